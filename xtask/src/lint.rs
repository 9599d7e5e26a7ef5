// SPDX-License-Identifier: MIT OR Apache-2.0

//! Format and clippy, each crate on the target that it is for; the kernel's own
//! tools for what is C; and the machine code of EL2 and of the module's Rust half.

mod code;
mod floors;
mod image;
mod kernel;
mod labels;
mod seam;

use std::process::Command;

use anyhow::Result;

use crate::build::{self, MODULE_FLAGS, Workspace};
use crate::setup::{SOFTFLOAT, STATIC_LINUX, Setup};
use crate::shell::run_loudly;
use crate::show;
use crate::test::Count;

/// Runs every check that has a word of `filter` in its name, or all; each counts
/// as one test.
pub fn lint(workspace: &Workspace, setup: &Setup, filter: &[String]) -> Result<Count> {
    let wanted = |what: &str| filter.is_empty() || filter.iter().any(|word| what.contains(word));
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
                    "escrow-guest-bench",
                ],
            )
            .map(denying),
        ),
    ];
    let mut count = Count::default();
    for (what, check) in checks.into_iter().filter(|(what, _)| wanted(what)) {
        tell(&mut count, what, check.and_then(|mut command| run_loudly(&mut command)));
    }
    let others: [(_, Check<'_>); 9] = [
        ("floors of the shim", &|| floors::includes(workspace.root())),
        ("the shim's C and Rust agree", &|| seam::agreed(workspace.root())),
        ("labels of programs with a C library", &|| labels::are_ours(workspace.root())),
        ("checkpatch of the modules", &|| kernel::checkpatch(workspace)),
        ("descriptors are published last", &|| kernel::descriptors(workspace)),
        ("sparse of the modules", &|| kernel::sparse(workspace, setup)),
        ("machine code of EL2", &|| image::el2(workspace, setup)),
        ("machine code of the Rust half", &|| code::rust_half(workspace, setup)),
        ("the package for DKMS", &|| build::check_package(workspace, setup)),
    ];
    for (what, check) in others.into_iter().filter(|(what, _)| wanted(what)) {
        tell(&mut count, what, check());
    }
    Ok(count)
}

type Check<'a> = &'a dyn Fn() -> Result<()>;

/// Says how a check ended, and counts it.
fn tell(count: &mut Count, what: &str, result: Result<()>) {
    match result {
        Ok(()) => {
            show!("test {what} ... ok");
            count.passed += 1;
        }
        Err(error) => {
            show!("test {what} ... FAILED: {error:#}");
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
