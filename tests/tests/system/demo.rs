// SPDX-License-Identifier: MIT OR Apache-2.0

//! The demo, on several machines: every step as expected.

use escrow_tests::linux::{Kernel, Linux};

/// Steps of the demo.
const STEPS: u32 = 9;

/// Runs the demo twice: the second finds what the first left.
fn demo_on(kernel: Kernel, cpu: &str, smp: u32, memory_mib: u64) {
    let script = "set -e; escrow demo; escrow demo; escrow info";
    let name = format!("demo-{kernel:?}-{cpu}-{smp}-{memory_mib}M");
    let linux = Linux::sized(&name, cpu, smp, memory_mib, script);
    let lines = linux.of(kernel).passes();
    let sums: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("demo: ")).collect();
    let expected = format!("{STEPS} passed, 0 failed");
    assert_eq!(sums, [expected.as_str(), expected.as_str()]);
}

#[test]
fn on_two_cpus() {
    demo_on(Kernel::Older, "max", 2, 1024);
}

#[test]
fn on_four_cpus() {
    demo_on(Kernel::Older, "max", 4, 1024);
}

#[test]
fn on_an_old_cpu() {
    demo_on(Kernel::Older, "cortex-a53", 1, 512);
}

#[test]
fn on_a_server_s_cpu() {
    demo_on(Kernel::Older, "neoverse-n1", 2, 2048);
}

#[test]
fn on_the_newer_kernel() {
    demo_on(Kernel::Newer, "max", 2, 1024);
}

#[test]
fn on_the_newer_kernel_and_an_old_cpu() {
    demo_on(Kernel::Newer, "cortex-a53", 4, 1024);
}
