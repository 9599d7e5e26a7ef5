// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tests of the shim, which run on the host: see `tests/shim`.

use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::linux::{Kernel, Linux};

/// Tests that there are, at least: one that was lost passes as well.
const AT_LEAST: u32 = 34;

fn shim_tests_on(kernel: Kernel, cpu: &str, smp: u32) {
    let program = std::fs::read(&artefacts().shim_tests).expect("the tests of the shim");
    let name = format!("shim-{kernel:?}-{cpu}-{smp}");
    let files = [("bin/shim-tests", program.as_slice())];
    let mut linux = Linux::with_files(&name, cpu, smp, 1024, "exec /bin/shim-tests", &files);
    linux = linux.of(kernel);
    linux.limit = Duration::from_secs(240);
    let lines = linux.passes();
    let sum = lines.iter().find_map(|line| line.strip_suffix(" passed, 0 failed"));
    let passed = sum.and_then(|passed| passed.parse().ok()).unwrap_or(0);
    assert!(passed >= AT_LEAST, "{passed} tests passed");
}

#[test]
fn on_two_cpus() {
    shim_tests_on(Kernel::Older, "max", 2);
}

#[test]
fn on_an_old_cpu() {
    shim_tests_on(Kernel::Older, "cortex-a53", 4);
}

#[test]
fn on_the_newer_kernel() {
    shim_tests_on(Kernel::Newer, "max", 2);
}
