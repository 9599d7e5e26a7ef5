// SPDX-License-Identifier: MIT OR Apache-2.0

//! Payloads on an Escrow that records its changes of tables, TLBs and
//! memory. The record of all CPUs is checked against the rules of the architecture
//! (`docs/trace.md`).
//!
//! Without the record, a violation would pass on QEMU, which does not need break-before-make.

use escrow_tests::payload::Run;
use escrow_trace::Counts;

/// Checks that the trace of a run is not empty.
fn run(run: Run) -> Counts {
    let name = format!("{} on {} x {}", run.payload, run.smp, run.cpu);
    let counts = run.keeps_the_rules();
    println!("{name}: {counts:?}");
    assert!(counts.breaks > 100 && counts.tlbis > 100 && counts.calls > 100, "{name}: {counts:?}");
    counts
}

#[test]
fn pages() {
    run(Run { smp: 1, ..Run::of("pages") });
}

#[test]
fn pages_without_tlb_ranges() {
    run(Run { cpu: "cortex-a53", smp: 1, memory_mib: 512, ..Run::of("pages") });
}

/// CPUs whose TLB maintenance is complete only when it is repeated.
#[test]
fn where_maintenance_is_repeated() {
    for (cpu, smp, payload) in
        [("cortex-a76", 1, "pages"), ("neoverse-n1", 4, "smp"), ("cortex-a76", 1, "guest")]
    {
        let counts = run(Run { cpu, smp, ..Run::of(payload) });
        assert!(counts.repeating >= smp as usize, "{cpu}: {counts:?}");
    }
    assert_eq!(run(Run { cpu: "cortex-a72", smp: 1, ..Run::of("pages") }).repeating, 0);
}

#[test]
fn guest() {
    let counts = run(Run { smp: 1, ..Run::of("guest") });
    assert_eq!(counts.held_off, 0, "{counts:?}");
}

/// CPUs that may execute `AT` speculatively: each switch to a guest, each one back, and each change of
/// stage 2 for TLB maintenance has walks held off.
#[test]
fn where_at_is_speculative() {
    for (cpu, smp, payload) in
        [("cortex-a72", 1, "guest"), ("cortex-a72", 4, "smp"), ("cortex-a55", 1, "guest")]
    {
        let counts = run(Run { cpu, smp, ..Run::of(payload) });
        assert!(counts.held_off > 100, "{cpu}: {counts:?}");
    }
}

#[test]
fn smp() {
    run(Run { smp: 4, ..Run::of("smp") });
}

#[test]
fn noise_of_four_cpus() {
    run(Run { smp: 4, ..Run::of("noise") });
}
