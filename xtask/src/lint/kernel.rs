// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the kernel's own tools say of the modules' C: checkpatch, sparse, and
//! the compiler with `W=1`. All that they find fails, but for what is listed
//! here with a reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build::{self, Workspace};
use crate::setup::{self, Setup};

/// A finding that stays: the end of the file's path, the tool's word, and why.
struct Exception {
    file: &'static str,
    /// checkpatch's type of message, or a part of sparse's text.
    finding: &'static str,
    #[allow(dead_code)] // For those who read this.
    reason: &'static str,
}

const fn except(file: &'static str, finding: &'static str, reason: &'static str) -> Exception {
    Exception { file, finding, reason }
}

const TRACE: &str = "TRACE_EVENT is written like this everywhere in the kernel";
const EXCEPTIONS: &[Exception] = &[
    except("module/arch/trace.h", "PARENTHESIS_ALIGNMENT", TRACE),
    except("module/arch/trace.h", "OPEN_ENDED_LINE", TRACE),
    except("module/arch/glue.c", "AVOID_BUG", "a panic in Rust has nowhere to return to"),
    except("module/arch/hvc.c", "LINE_SPACING", "it takes `register … asm` for a statement"),
    except("module/arch/gunyah_uapi.h", "LONG_LINE", "a table of numbers"),
    except("liar/module/contents.c", "LEADING_SPACE", "assembly in a string"),
    except("liar/module/contents.c", "AVOID_EXTERNS", "symbols of that assembly"),
];

/// Folders of the modules' C.
const SOURCES: [&str; 3] = ["host/module", "tests/liar/module", "tests/holder/module"];

/// Exceptions with which of them were needed.
struct Judge {
    needed: Vec<bool>,
    findings: Vec<String>,
}

impl Judge {
    fn new() -> Judge {
        Judge { needed: vec![false; EXCEPTIONS.len()], findings: Vec::new() }
    }

    /// Hears of a finding in a file.
    fn hear(&mut self, file: &str, text: &str) {
        let known = |it: &Exception| file.ends_with(it.file) && text.contains(it.finding);
        match EXCEPTIONS.iter().position(known).and_then(|at| self.needed.get_mut(at)) {
            Some(needed) => *needed = true,
            None => self.findings.push(format!("{file}: {text}")),
        }
    }

    fn verdict(self) -> Result<()> {
        if self.findings.is_empty() {
            return Ok(());
        }
        bail!("{} findings:\n{}", self.findings.len(), self.findings.join("\n"))
    }
}

/// `checkpatch.pl --strict` over every file.
pub fn checkpatch(workspace: &Workspace) -> Result<()> {
    let script = setup::checkpatch().context("there is no checkpatch.pl")?;
    let mut judge = Judge::new();
    for file in SOURCES.iter().map(|folder| c_files(&workspace.root().join(folder))) {
        for file in file? {
            let mut perl = Command::new("perl");
            perl.arg(&script);
            perl.args(["--strict", "--no-tree", "--no-summary", "--terse", "--show-types"]);
            // Its status tells of findings, too.
            let output = perl.arg("-f").arg(&file).output().context("cannot start perl")?;
            if !output.stderr.is_empty() {
                bail!("checkpatch.pl: {}", String::from_utf8_lossy(&output.stderr));
            }
            let name = file.to_string_lossy();
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                // PATH:LINE: LEVEL:TYPE: TEXT
                judge.hear(&name, line.strip_prefix(&*name).unwrap_or(line));
            }
        }
    }
    // One that nobody needs hides the next mistake.
    let all = EXCEPTIONS.iter().zip(&judge.needed);
    if let Some((it, _)) = all.into_iter().find(|(_, needed)| !**needed) {
        judge.findings.push(format!("{}: the exception {} is not needed", it.file, it.finding));
    }
    judge.verdict()
}

/// A file descriptor is published last: from then on, another thread may close
/// it, and what it stands for may be gone. So nobody calls what makes and publishes
/// in one step, and after `fd_install` comes nothing but the return.
pub fn descriptors(workspace: &Workspace) -> Result<()> {
    let mut judge = Judge::new();
    for folder in SOURCES {
        for file in c_files(&workspace.root().join(folder))? {
            let text = fs::read_to_string(&file).context("a source file")?;
            for finding in published_early(&text) {
                judge.hear(&file.to_string_lossy(), &finding);
            }
        }
    }
    judge.verdict()
}

/// Functions that make a file and publish it.
const ONE_STEP: [&str; 4] =
    ["anon_inode_getfd(", "anon_inode_create_getfd(", "anon_inode_getfd_secure(", "receive_fd("];

fn published_early(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut findings = Vec::new();
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| !line.starts_with("#define"))
    {
        let at = number + 1;
        if let Some(name) = ONE_STEP.iter().find(|&&name| line.contains(name)) {
            findings.push(format!(":{at}: {name}…) publishes what is not finished"));
        }
        if line.starts_with("fd_install(")
            && !lines.get(number + 1).is_some_and(|next| next.starts_with("return "))
        {
            findings.push(format!(":{at}: something is done after fd_install"));
        }
    }
    findings
}

/// The C files and headers in a folder, and in those within.
pub fn c_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            files.extend(c_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "c" || e == "h") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// sparse, and all of the compiler's warnings that a kernel's build can ask
/// for (`W=1`), for every kernel that hosts run.
pub fn sparse(workspace: &Workspace, setup: &Setup) -> Result<()> {
    setup.lint_tools()?;
    let mut judge = Judge::new();
    for (folder, text) in build::check_modules(workspace, setup)? {
        // What headers of the kernel's say of themselves is not ours.
        for line in text.lines().filter(|line| is_ours(line, &folder)) {
            if line.contains(": warning: ") || line.contains(": error: ") {
                judge.hear("", line);
            }
        }
    }
    judge.verdict()
}

/// Whether a line is about a file in the folder: 7.x tells of it by its path in
/// there, 6.x by its whole path.
fn is_ours(line: &str, folder: &Path) -> bool {
    let path = Path::new(line.split(':').next().unwrap_or_default());
    path.starts_with(folder) || (path.is_relative() && folder.join(path).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_headers_are_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("vm")).unwrap();
        fs::write(folder.path().join("vm/end.c"), "").unwrap();
        let whole = format!("{}/vm/end.c:1:2: warning: x", folder.path().display());
        assert!(is_ours(&whole, folder.path()));
        assert!(is_ours("vm/end.c:1:2: warning: x", folder.path()));
        assert!(is_ours("./vm/end.c:1:2: warning: x", folder.path()));
        assert!(!is_ours("./include/linux/mm.h:1:2: warning: x", folder.path()));
        assert!(!is_ours("/usr/src/linux/mm.h:1:2: warning: x", folder.path()));
    }

    #[test]
    fn descriptors_are_published_last() {
        let good = "\tfile = anon_inode_getfile(x);\n\tfd_install(fd, file);\n\treturn fd;\n";
        assert!(published_early(good).is_empty());
        assert!(published_early("#define fd_install(fd, file) other(fd, file)\n").is_empty());
        for bad in [
            "\terr = anon_inode_getfd(\"[vm]\", &fops, vm, O_RDWR);\n\treturn err;\n",
            "\tfd_install(fd, file);\n\tup_write(&vm->lock);\n\treturn fd;\n",
            "\tfd_install(fd, file);\n",
        ] {
            assert_eq!(published_early(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn only_what_is_listed_is_let_through() {
        let mut judge = Judge::new();
        judge.hear("/w/host/module/arch/trace.h", ":20: CHECK:OPEN_ENDED_LINE: Lines should not …");
        assert!(judge.verdict().is_ok());
        let mut judge = Judge::new();
        judge.hear("/w/host/module/vm/vm.c", ":20: CHECK:OPEN_ENDED_LINE: Lines should not …");
        assert!(judge.verdict().is_err());
        let mut judge = Judge::new();
        judge.hear("", "/w/vm.c:20:1: warning: context imbalance");
        assert!(judge.verdict().is_err());
    }
}
