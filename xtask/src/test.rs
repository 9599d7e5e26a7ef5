// SPDX-License-Identifier: MIT OR Apache-2.0

//! The test levels, one after the other, each with its count.

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::ops::AddAssign;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::ValueEnum;

use xtask::artefacts::{DEBUG_KERNEL, LONG_PARTS};

use crate::build::{self, What, Workspace};
use crate::lint;
use crate::setup::{DebugKernel, Setup};
use crate::{say, show};

#[derive(clap::Args)]
pub struct Args {
    /// The level to run; all if none is named
    level: Option<Level>,
    /// Have hosts run a kernel that looks for mistakes, in the place of Debian's 6.12: what it
    /// complains of fails the test
    #[arg(long, value_name = "KIND", num_args = 0..=1, require_equals = true,
        default_missing_value = "kasan")]
    debug_kernel: Option<DebugKernel>,
    /// Have hosts run Debian's real-time kernel (PREEMPT_RT), in the place of the usual one
    #[arg(long, conflicts_with = "debug_kernel")]
    real_time: bool,
    /// Run the system level's tests that take long, and no others; what they need is fetched
    #[arg(long)]
    long: bool,
    /// Arguments for the test programs: a filter, --nocapture …
    #[arg(last = true, value_name = "TEST ARGUMENTS")]
    test: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Format and clippy, for every target
    Lint,
    /// Every crate that runs on the build machine
    Unit,
    /// Bare-metal programs in the host's place, under QEMU
    Payload,
    /// Some of them on an Escrow that writes down what it does to tables, held
    /// against the architecture's rules
    Trace,
    /// Some of them on an Escrow that holds every call against the specification
    Oracle,
    /// Boots of every sort of machine, and of bad input, under QEMU
    Boot,
    /// Debian as the host, the module, the demo, under QEMU
    System,
}

/// The cargo calls of the unit level: the default members, and what of others
/// runs on the build machine as well.
const UNIT: &[UnitCall] = &[
    UnitCall { arguments: &[], flags: "" },
    UnitCall { arguments: &["--package=escrow-vmm"], flags: "" },
    UnitCall { arguments: &["--package=escrow-tests", "--lib"], flags: "" },
    // Every interleaving of the counters' users.
    UnitCall {
        arguments: &["--release", "--package=escrow-memfd", "--test=interleavings"],
        flags: "--cfg=loom",
    },
    // Every interleaving of EL2's own protocols between CPUs.
    UnitCall {
        arguments: &["--release", "--package=escrow-core", "--test=interleavings"],
        flags: "--cfg=loom",
    },
];

struct UnitCall {
    arguments: &'static [&'static str],
    /// For rustc; empty for none.
    flags: &'static str,
}

/// How many tests did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub passed: u64,
    pub failed: u64,
}

impl Count {
    /// Whether this is the count of a success: a run of no test is none.
    pub fn is_success(self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs one level, or all.
pub fn test(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let mut setup = Setup::ensure(Default::default())?;
    if let Some(kind) = args.debug_kernel {
        setup.use_debug_kernel(kind)?;
    }
    if args.real_time {
        setup.use_real_time()?;
    }
    let levels = match &args.level {
        None if args.long => &[Level::System],
        Some(level) => std::slice::from_ref(level),
        None => Level::value_variants(),
    };
    let mut total = Count::default();
    let mut success = true;
    for &level in levels {
        say!("test level {}", level.name());
        let count = level.run(&workspace, &setup, args).unwrap_or_else(|error| {
            say!("{}: {error:#}", level.name());
            Count { passed: 0, failed: 1 }
        });
        if count.passed + count.failed == 0 {
            say!("{}: no test ran", level.name());
        }
        show!("{}: {count}", level.name());
        success &= count.is_success();
        total += count;
    }
    show!("{total}");
    Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Payload => "payload",
            Self::Trace => "trace",
            Self::Oracle => "oracle",
            Self::Boot => "boot",
            Self::System => "system",
        }
    }

    fn run(self, workspace: &Workspace, setup: &Setup, args: &Args) -> Result<Count> {
        let arguments = &args.test;
        match self {
            Self::Lint => lint::lint(workspace, setup, arguments),
            Self::Unit => {
                let mut count = Count::default();
                for call in UNIT {
                    let mut command = build::plain_cargo(workspace, "test");
                    command.arg("--no-fail-fast").args(call.arguments).arg("--").args(arguments);
                    if !call.flags.is_empty() {
                        command.env("CARGO_ENCODED_RUSTFLAGS", call.flags);
                    }
                    count += run_tests(&mut command)?;
                }
                Ok(count)
            }
            Self::Payload | Self::Trace | Self::Oracle | Self::Boot | Self::System => {
                let parts = match self {
                    Self::Trace => &[What::Traced, What::Payloads][..],
                    Self::Oracle => &[What::Oracle, What::Payloads],
                    Self::System => &[What::Hypervisor, What::Host, What::Tests],
                    _ => &[What::Hypervisor, What::Payloads, What::Host],
                };
                build::build(workspace, setup, parts)?;
                let mut command = build::plain_cargo(workspace, "test");
                command.args(["--no-fail-fast", "--package=escrow-tests", "--test", self.name()]);
                command.arg("--").args(arguments);
                // They are marked as those that are left out.
                command.args(args.long.then_some("--ignored"));
                command.envs(workspace.artefacts(setup)?.to_env());
                if args.long {
                    command.env(LONG_PARTS, setup.for_long_tests()?);
                }
                if let Some(kind) = args.debug_kernel {
                    command.env(DEBUG_KERNEL, kind.name());
                }
                run_tests(&mut command)
            }
        }
    }
}

/// Runs `cargo test`, shows what it says, and adds up its results.
fn run_tests(command: &mut Command) -> Result<Count> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut count = Count::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        show!("{line}");
        count += parse_result(&line).unwrap_or_default();
    }
    let status = child.wait()?;
    if !status.success() && count.failed == 0 {
        // It did not compile, or a test program died without a result.
        say!("cargo test failed ({status})");
        count.failed = 1;
    }
    Ok(count)
}

/// `test result: ok. 5 passed; 0 failed; 0 ignored; …`
fn parse_result(line: &str) -> Option<Count> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        let counts = counts.split("; ");
        let mut of = counts.filter_map(|part| part.strip_suffix(what)?.trim().parse().ok());
        of.next()
    };
    Some(Count { passed: number("passed")?, failed: number("failed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_libtest() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s";
        let expected = Count { passed: 12, failed: 3 };
        assert_eq!(parse_result(line), Some(expected));
        assert_eq!(parse_result("test a::b ... ok"), None);
    }

    #[test]
    fn an_empty_run_is_no_success() {
        let count = |passed, failed| Count { passed, failed };
        assert!(count(1, 0).is_success());
        assert!(!count(0, 0).is_success());
        assert!(!count(9, 1).is_success());
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let script = |text: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", text]);
            run_tests(&mut command).unwrap()
        };
        let ok = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'";
        assert!(script(ok).is_success());
        let died = script(&format!("{ok}; exit 101"));
        assert_eq!((died.passed, died.failed), (2, 1));
    }
}
