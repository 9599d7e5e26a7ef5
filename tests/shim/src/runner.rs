// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs tests, each in a process of its own, and watches Escrow's counts.

use std::error::Error;
use std::fmt::{self, Debug, Display, Formatter};
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::facts::Facts;
use crate::{say, say_part};

/// A test, and the name that it is told by.
pub type Test = (&'static str, fn() -> Result<()>);

/// What a kernel may lack, so that tests that need it are left out: names with commas
/// between, or `1` for anything, as kernels that look for mistakes have little else in them.
const MAY_LACK: &str = "SHIM_MAY_LACK";

/// What a test needs of its kernel, which was built without: it is left out
/// where that may be, and fails otherwise.
#[derive(Debug)]
pub struct Lacking(pub String);

impl Display for Lacking {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "this kernel has no {}", self.0)
    }
}

impl Error for Lacking {}

/// What becomes of a test that has not failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It passed.
    Passed,
    /// The kernel lacks what it needs.
    LeftOut,
}

impl Ending {
    /// The status of a process that ends with this error.
    pub fn status(error: &anyhow::Error) -> i32 {
        let Some(Lacking(name)) = error.downcast_ref() else { return 1 };
        match std::env::var(MAY_LACK) {
            Ok(may) if may == "1" || may.split(',').any(|it| it == name) => Self::LEFT_OUT,
            _ => 1,
        }
    }

    /// The status of a process that has nothing to say but that.
    pub const LEFT_OUT: i32 = 2;
}

/// How long the kernel may take to clean up behind a process that has ended.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// Runs those of `tests` whose names have the first argument of the program in
/// them, or have not, if a `-` stands before it. A success if none of them fails,
/// and there are any, be it only such as this kernel cannot run.
pub fn run(tests: &[Test]) -> ExitCode {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    let is_wanted = |name: &str| match filter.strip_prefix('-') {
        Some(unwanted) => !name.contains(unwanted),
        None => name.contains(&filter),
    };
    for (name, test) in tests.iter().filter(|(name, _)| is_wanted(name)) {
        say_part!("test {name} ... ");
        match in_a_process(*test) {
            Ok(Ending::Passed) => {
                say!("ok");
                passed += 1;
            }
            Ok(Ending::LeftOut) => {
                say!("left out");
                left_out += 1;
            }
            Err(error) => {
                say!("FAILED: {error:#}");
                failed += 1;
            }
        }
    }
    match (passed + failed, left_out) {
        (0, 0) => say!("no test has {filter:?} in its name"),
        (0, _) => say!("this kernel can run none of the {left_out} tests"),
        _ => {}
    }
    say!("{passed} passed, {failed} failed");
    if failed == 0 && passed + left_out > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a test in a child, and compares Escrow's counts.
fn in_a_process(test: fn() -> Result<()>) -> Result<Ending> {
    let before = Facts::read()?;
    let (mut reader, mut writer) = std::io::pipe()?;
    // SAFETY: this process has one thread, so the child may do anything.
    let ending = match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            drop(reader);
            let status = match test() {
                Ok(()) => 0,
                Err(error) => {
                    // Without it, the status tells that something was wrong.
                    let _ = writer.write_all(format!("{error:#}").as_bytes());
                    Ending::status(&error)
                }
            };
            // SAFETY: ends this process without what the parent set up for
            // its own end.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut told = String::new();
            std::io::Read::read_to_string(&mut reader, &mut told)?;
            let status = waitpid(child, None).context("waitpid")?;
            if matches!(status, WaitStatus::Exited(_, Ending::LEFT_OUT)) {
                say_part!("({told}) ");
                Ending::LeftOut
            } else if !told.is_empty() {
                bail!("{told}");
            } else {
                ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
                Ending::Passed
            }
        }
    };
    let deadline = Instant::now() + CLEAN_UP;
    loop {
        let after = Facts::read()?;
        if after == before {
            return Ok(ending);
        }
        ensure!(Instant::now() < deadline, "Escrow's counts were {before:?}, are {after:?}");
        std::thread::yield_now();
    }
}

/// `ALL`, a list of the tests that are named by module and function, and by a
/// folder before them.
#[macro_export]
macro_rules! tests {
    ($($test:path),* $(,)?) => {
        $crate::tests!("": $($test),*);
    };
    ($folder:literal: $($test:path),* $(,)?) => {
        /// All of them.
        pub const ALL: &[$crate::runner::Test] =
            &[$((concat!($folder, stringify!($test)), $test)),*];
    };
}

/// Fails unless the two are equal.
pub fn same<T: PartialEq + Debug>(seen: T, expected: T) -> Result<()> {
    ensure!(seen == expected, "seen {seen:x?}, expected {expected:x?}");
    Ok(())
}
