// SPDX-License-Identifier: MIT OR Apache-2.0

//! Labels in the assembly of programs that are linked with a C library. What
//! `global_asm!` assembles is in one object with the Rust around it, so a label
//! `send`, say, takes the place of the library's function for all calls of that
//! object.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::floors::verdict;

/// The programs.
const PROGRAMS: [&str; 5] =
    ["host/vmm/src", "tests/shim/src", "tests/liar/src", "tests/peers/src", "tests/workload/src"];
/// How names begin that no library has.
const PREFIXES: [&str; 4] = ["escrow_", "shim_", "liar_", "peer_"];

/// Each label is local to the assembler, or has a prefix of ours.
pub fn are_ours(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    for program in PROGRAMS {
        look_through(&root.join(program), &mut findings)?;
    }
    verdict(findings)
}

fn look_through(folder: &Path, findings: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            look_through(&path, findings)?;
            continue;
        }
        let is_assembly = path.extension().is_some_and(|e| e == "S");
        if !is_assembly && path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        // In Rust, each line of assembly is a string in a line of its own.
        let lines = text.lines().map(str::trim_start).filter_map(|line| match is_assembly {
            true => Some(line),
            false => line.strip_prefix('"').filter(|_| text.contains("global_asm!")),
        });
        findings
            .extend(lines.filter_map(foreign).map(|label| format!("{}: {label}", path.display())));
    }
    Ok(())
}

/// The label that a line begins with, if a library could have it.
fn foreign(line: &str) -> Option<&str> {
    let (name, _) = line.split_once(':')?;
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || "_.$".contains(c));
    let is_local = name.starts_with(".L") || name.starts_with(|c: char| c.is_ascii_digit());
    let is_ours = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    (!name.is_empty() && is_name && !is_local && !is_ours).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_a_library_may_have_are_seen() {
        for line in ["send:", "wait:\t// for an interrupt", "_exit: ret", "memcpy.part:"] {
            assert_eq!(foreign(line), line.split(':').next(), "{line}");
        }
        for line in
            [".Lsend:", "1: wfi", "shim_guest_end:", "\tb\t1b", "mov x0, #1", ": no name", ""]
        {
            assert_eq!(foreign(line), None, "{line}");
        }
    }
}
