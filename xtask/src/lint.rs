// SPDX-License-Identifier: MIT OR Apache-2.0

//! Format and clippy, each crate on the target that it is for; and the
//! kernel's own tools for what is C.

mod kernel;

use std::process::Command;

use anyhow::Result;

use crate::build::{self, MODULE_FLAGS, Workspace};
use crate::setup::{SOFTFLOAT, STATIC_LINUX, Setup};
use crate::shell::run_loudly;
use crate::test::Count;

/// Runs every check; each counts as one test.
pub fn lint(workspace: &Workspace, setup: &Setup) -> Result<Count> {
    let mut format = build::plain_cargo(workspace, "fmt");
    format.args(["--all", "--check"]);

    let mut host = build::plain_cargo(workspace, "clippy");
    host.arg("--all-targets");

    let mut tests = build::plain_cargo(workspace, "clippy");
    tests.args(["--package=escrow-tests", "--package=escrow-plugin", "--all-targets"]);

    let on = |target, flags, packages: &[&str]| -> Result<Command> {
        let mut clippy = build::cargo_command(workspace, setup, "clippy", target, flags)?;
        clippy.arg("--release");
        clippy.args(packages.iter().map(|package| format!("--package={package}")));
        Ok(clippy)
    };
    let bare_metal = ["escrow-boot", "escrow-aarch64", "escrow-payloads"];
    let checks = [
        ("format", Ok(format)),
        ("clippy on the build machine", Ok(denying(host))),
        ("clippy of the QEMU tests", Ok(denying(tests))),
        ("clippy on bare metal", on(SOFTFLOAT, &[], &bare_metal).map(denying)),
        ("clippy of the test builds", on(SOFTFLOAT, &[], &["escrow-boot"]).map(test_builds)),
        ("clippy of the module", on(SOFTFLOAT, MODULE_FLAGS, &["escrow-module"]).map(denying)),
        (
            "clippy of the programs for the host",
            on(
                STATIC_LINUX,
                &[],
                &[
                    "escrow-vmm",
                    "escrow-shim-tests",
                    "escrow-liar",
                    "escrow-workload",
                    "escrow-peers",
                    "escrow-shim-bench",
                ],
            )
            .map(denying),
        ),
    ];
    let mut count = Count::default();
    for (what, check) in checks {
        tell(&mut count, what, check.and_then(|mut command| run_loudly(&mut command)));
    }
    tell(&mut count, "checkpatch of the modules", kernel::checkpatch(workspace));
    tell(&mut count, "sparse of the modules", kernel::sparse(workspace, setup));
    tell(&mut count, "the package for DKMS", build::check_package(workspace, setup));
    Ok(count)
}

/// Says how a check ended, and counts it.
fn tell(count: &mut Count, what: &str, result: Result<()>) {
    match result {
        Ok(()) => {
            println!("test {what} ... ok");
            count.passed += 1;
        }
        Err(error) => {
            println!("test {what} ... FAILED: {error:#}");
            count.failed += 1;
        }
    }
}

fn test_builds(mut clippy: Command) -> Command {
    clippy.args(["--features", "escrow-boot/trace,escrow-boot/oracle"]);
    denying(clippy)
}

fn denying(mut clippy: Command) -> Command {
    // Everything that is wrong, not only the first crate's.
    clippy.args(["--keep-going", "--", "--deny=warnings"]);
    clippy
}
