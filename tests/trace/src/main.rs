// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow-trace`: checks traces in files.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use escrow_trace::{Report, check, parse};

/// Checks traces of stage-2 table writes, TLB maintenance and barriers.
///
/// Exits with 0 if all traces keep the rules, 1 if one breaks any, 2 if one
/// cannot be read.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Files that hold traces, a serial log for example; `-` for standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Names the lines on which permissions changed, which is allowed
    #[arg(short, long)]
    verbose: bool,
}

/// What became of a file, from good to bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Sound,
    Broken,
    Unreadable,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let verdict = arguments.files.iter().map(|file| check_file(file, arguments.verbose)).max();
    match verdict {
        Some(Verdict::Sound) => ExitCode::SUCCESS,
        Some(Verdict::Broken) => ExitCode::from(1),
        Some(Verdict::Unreadable) | None => ExitCode::from(2),
    }
}

fn check_file(file: &Path, verbose: bool) -> Verdict {
    let name = file.display();
    let text = match read(file) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{name}: {error}");
            return Verdict::Unreadable;
        }
    };
    match parse(&text) {
        Ok(records) => {
            let report = check(&records);
            print(&name.to_string(), &report, verbose);
            if report.findings.is_empty() { Verdict::Sound } else { Verdict::Broken }
        }
        Err(error) => {
            eprintln!("{name}: {error}");
            Verdict::Unreadable
        }
    }
}

/// A console's bytes need not be text everywhere.
fn read(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        io::stdin().read_to_end(&mut bytes)?;
    } else {
        bytes = fs::read(file)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn print(name: &str, report: &Report, verbose: bool) {
    for finding in &report.findings {
        println!("{name}: {finding}");
    }
    if verbose {
        for line in &report.permission_changes {
            println!("{name}: line {line}: permissions change, which takes no break-before-make");
        }
    }
    let counts = report.counts;
    println!(
        "{name}: {} findings in {} events: {} descriptors written, {} of them live ones that \
         went, {} with permissions changed; {} TLBI, {} DSB, {} calls",
        report.findings.len(),
        counts.events,
        counts.writes,
        counts.breaks,
        report.permission_changes.len(),
        counts.tlbis,
        counts.dsbs,
        counts.calls
    );
}
