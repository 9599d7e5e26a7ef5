// SPDX-License-Identifier: MIT OR Apache-2.0

//! The demo, on several machines: every step as expected.

use std::fs;

use escrow_tests::linux::{Kernel, Linux};

/// Steps of the demo; without a kernel for its guest, one less.
const STEPS: u32 = 10;

/// Runs the demo twice: the second finds what the first left. The first boots the
/// host's kernel as a guest, too.
fn demo_on(kernel: Kernel, cpu: &str, smp: u32, memory_mib: u64) {
    let script = "set -e; escrow demo --kernel /vmlinuz; escrow demo; escrow info";
    let image = fs::read(kernel.image()).expect("the host's kernel");
    let name = format!("demo-{kernel:?}-{cpu}-{smp}-{memory_mib}M");
    let linux = Linux::with_files(&name, cpu, smp, memory_mib, script, &[("vmlinuz", &image)]);
    let lines = linux.of(kernel).passes();
    let sums: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("demo: ")).collect();
    let expected = [STEPS, STEPS - 1].map(|steps| format!("{steps} passed, 0 failed"));
    assert_eq!(sums, expected);
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
