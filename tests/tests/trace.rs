// SPDX-License-Identifier: MIT OR Apache-2.0

//! Payloads on an Escrow that writes down what it does to tables, TLBs and
//! memory: all of it keeps the rules of the architecture (`docs/trace.md`),
//! whichever CPU does what.
//!
//! QEMU itself would not notice: it needs no break-before-make.

use escrow_tests::payload::Run;

/// A run must be about something.
fn run(run: Run) {
    let name = format!("{} on {} x {}", run.payload, run.smp, run.cpu);
    let counts = run.keeps_the_rules();
    println!("{name}: {counts:?}");
    assert!(counts.breaks > 100 && counts.tlbis > 100 && counts.calls > 100, "{name}: {counts:?}");
}

#[test]
fn pages() {
    run(Run { smp: 1, ..Run::of("pages") });
}

#[test]
fn pages_without_tlb_ranges() {
    run(Run { cpu: "cortex-a53", smp: 1, memory_mib: 512, ..Run::of("pages") });
}

#[test]
fn guest() {
    run(Run { smp: 1, ..Run::of("guest") });
}

#[test]
fn smp() {
    run(Run { smp: 4, ..Run::of("smp") });
}

#[test]
fn noise_of_four_cpus() {
    run(Run { smp: 4, ..Run::of("noise") });
}
