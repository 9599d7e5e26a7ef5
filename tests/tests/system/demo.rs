// SPDX-License-Identifier: MIT OR Apache-2.0

//! The demo, on several machines: every step as expected.

use escrow_tests::linux::Linux;

/// Steps of the demo.
const STEPS: u32 = 9;

/// Runs the demo twice: the second finds what the first left.
fn demo_on(cpu: &str, smp: u32, memory_mib: u64) {
    let script = "set -e; escrow demo; escrow demo; escrow info";
    let linux =
        Linux::sized(&format!("demo-{cpu}-{smp}-{memory_mib}M"), cpu, smp, memory_mib, script);
    let lines = linux.passes();
    let sums: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("demo: ")).collect();
    let expected = format!("{STEPS} passed, 0 failed");
    assert_eq!(sums, [expected.as_str(), expected.as_str()]);
}

#[test]
fn on_two_cpus() {
    demo_on("max", 2, 1024);
}

#[test]
fn on_four_cpus() {
    demo_on("max", 4, 1024);
}

#[test]
fn on_an_old_cpu() {
    demo_on("cortex-a53", 1, 512);
}

#[test]
fn on_a_server_s_cpu() {
    demo_on("neoverse-n1", 2, 2048);
}
