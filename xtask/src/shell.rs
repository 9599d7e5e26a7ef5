// SPDX-License-Identifier: MIT OR Apache-2.0

//! Running other programs, with progress for whoever waits.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How much of a failed program's output is worth showing.
const TAIL_LINES: usize = 25;

/// Says on standard error what is going on.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { eprintln!("escrow: {}", format_args!($($argument)*)) };
}

/// Prints a line on standard output.
#[macro_export]
macro_rules! show {
    ($($argument:tt)*) => { $crate::shell::show(format_args!($($argument)*)) };
}

/// What a shell says of a program that SIGPIPE has ended.
pub const CLOSED_PIPE: u8 = 128 + 13;

/// Prints a line on standard output. If nobody reads any more, that is the end.
pub fn show(line: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        process::exit(CLOSED_PIPE.into());
    }
}

/// A step that takes a while: a spinner with the time on a terminal, a line at
/// its start and one at its end elsewhere.
pub struct Step {
    what: String,
    since: Instant,
    spinner: Option<ProgressBar>,
}

impl Step {
    pub fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        let spinner = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("escrow: {msg} {spinner} {elapsed}");
            let bar = ProgressBar::new_spinner().with_message(what.clone());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if spinner.is_none() {
            say!("{what} ...");
        }
        Self { what, since: Instant::now(), spinner }
    }

    pub fn done(self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        say!("{}: done ({:.1?})", self.what, self.since.elapsed());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

/// Runs a program to its end without showing its output, unless it fails.
pub fn run_quietly(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", name(command)))?;
    if !output.status.success() {
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        bail!("{} failed ({}):\n{}", line(command), output.status, tail(&text));
    }
    Ok(output)
}

/// Runs a program to its end, with its output on ours.
pub fn run_loudly(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", name(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// What a program writes to its standard output.
pub fn output_of(command: &mut Command) -> Result<String> {
    let output = run_quietly(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Looks a program up as the shell does.
pub fn find_program(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        // Not everybody's PATH has the folders of the administrator's tools.
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Writes a file only when its contents change, so that what depends on its
/// time stamp stays up to date. Whether it was written.
pub fn write_if_changed(path: &Path, contents: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(false);
    }
    let what = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(what)?;
    }
    fs::write(path, contents).with_context(what)?;
    Ok(true)
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// The end of what a program said.
pub fn tail(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
