// SPDX-License-Identifier: MIT OR Apache-2.0

//! The payloads, in the host's place. Each run is many tests of its own: see
//! `tests/payloads`.

use std::time::Duration;

use escrow_tests::payload::Run;

/// Checks that a payload has run at least so many tests: one that is no longer registered would not
/// fail otherwise.
fn run(run: Run, at_least: usize) {
    let passed = run.passes();
    println!("{}: {passed} passed", run.payload);
    assert!(passed >= at_least, "{} has only {passed} tests", run.payload);
}

#[test]
fn runtime_without_escrow() {
    let passed = Run { smp: 4, ..Run::of("runtime") }.passes_alone();
    assert!(passed >= 6);
}

#[test]
fn runtime() {
    run(Run { smp: 4, ..Run::of("runtime") }, 6);
}

#[test]
fn calls() {
    run(Run::of("calls"), 46);
}

#[test]
fn calls_on_an_old_cpu() {
    run(Run { cpu: "cortex-a53", smp: 1, memory_mib: 512, ..Run::of("calls") }, 46);
}

#[test]
fn pages() {
    run(Run::of("pages"), 43);
}

#[test]
fn pages_on_an_old_cpu() {
    // No FEAT_LSE, no FEAT_S2FWB, one CPU.
    run(Run { cpu: "cortex-a53", smp: 1, memory_mib: 512, ..Run::of("pages") }, 41);
}

#[test]
fn guest() {
    run(Run::of("guest"), 60);
}

#[test]
fn guest_on_old_cpus() {
    for cpu in ["cortex-a53", "cortex-a57", "cortex-a72"] {
        run(Run { cpu, smp: 1, ..Run::of("guest") }, 48);
    }
}

#[test]
fn guest_on_newer_cpus() {
    for cpu in ["cortex-a76", "neoverse-n1"] {
        run(Run { cpu, ..Run::of("guest") }, 48);
    }
}

#[test]
fn gic() {
    run(Run { smp: 4, ..Run::of("gic") }, 23);
}

/// An old CPU and a newer one, which have less than `max`.
#[test]
fn gic_on_other_cpus() {
    for cpu in ["cortex-a53", "neoverse-n1"] {
        run(Run { cpu, smp: 4, memory_mib: 512, ..Run::of("gic") }, 22);
    }
}

#[test]
fn observers() {
    for cpu in ["max", "cortex-a72"] {
        run(Run { cpu, smp: 1, icount: true, ..Run::of("observers") }, 5);
    }
}

#[test]
fn firmware() {
    run(Run { smp: 4, ..Run::of("firmware") }, 8);
}

#[test]
fn firmware_on_one_cpu() {
    run(Run { cpu: "cortex-a72", smp: 1, ..Run::of("firmware") }, 7);
}

#[test]
fn smp() {
    run(Run::of("smp"), 7);
}

#[test]
fn smp_with_more_cpus() {
    run(Run { cpu: "cortex-a76", smp: 4, memory_mib: 512, ..Run::of("smp") }, 7);
}

#[test]
fn noise() {
    run(Run::of("noise"), 2);
    run(Run { cpu: "cortex-a76", arguments: "seed=77", ..Run::of("noise") }, 2);
}

#[test]
fn residue() {
    run(Run::of("residue"), 13);
    // No FEAT_S2FWB: what is zeroed is cleaned to memory.
    run(Run { cpu: "cortex-a53", smp: 1, ..Run::of("residue") }, 12);
}

#[test]
fn tlb() {
    run(Run::of("tlb"), 17);
    run(Run { cpu: "cortex-a72", smp: 4, ..Run::of("tlb") }, 17);
}

#[test]
fn hostile_on_one_cpu() {
    run(Run { smp: 1, ..Run::of("hostile") }, 12);
}

#[test]
fn hostile_on_two_cpus() {
    run(Run::of("hostile"), 17);
}

#[test]
fn hostile_on_four_cpus() {
    run(Run { cpu: "cortex-a76", smp: 4, arguments: "seed=4", ..patient("hostile") }, 17);
}

#[test]
fn hostile_on_eight_cpus() {
    run(Run { smp: 8, arguments: "seed=8", ..patient("hostile") }, 17);
}

#[test]
fn model() {
    run(Run { smp: 1, ..Run::of("model") }, 1);
    run(Run { arguments: "seed=77", ..patient("model") }, 1);
}

#[test]
fn model_on_four_cpus() {
    run(Run { cpu: "cortex-a72", smp: 4, arguments: "seed=4", ..patient("model") }, 1);
}

/// Many emulated CPUs that wait for each other's locks are slow on a machine that is busy.
fn patient(payload: &'static str) -> Run {
    Run { limit: Duration::from_secs(300), ..Run::of(payload) }
}

#[test]
fn a_reset_leaves_nothing_of_a_guest() {
    let mut serial = Run::of("reset").boot_again_and_again();
    serial.wait_for("escrow: Escrow ");
    serial.wait_for("escrow: Escrow ");
    serial.wait_for("payload reset: 1 passed, 0 failed");
}

/// The values that the guest of `reset` has in its registers, from this one on.
const SECRETS: std::ops::Range<u64> = !0x5ec2_e7ab_10c5_f00d..!0x5ec2_e7ab_10c5_f00d + 96;

#[test]
fn a_reset_leaves_no_register_of_a_guest_in_memory() {
    for cpu in ["max", "cortex-a72"] {
        let run = Run { cpu, smp: 4, memory_mib: 256, ..Run::of("reset") };
        let memory = run.memory_at_the_reset();
        let (mut seeds, mut found) = (0, Vec::new());
        for (at, word) in (0..).step_by(8).zip(memory.as_chunks().0) {
            let word = u64::from_le_bytes(*word);
            if SECRETS.contains(&word) {
                found.push((at, word));
            }
            seeds += usize::from(word == !SECRETS.start);
        }
        // What the host has put into a page of its own is there: this is the machine's RAM.
        assert!(seeds > 0, "{cpu}: no seed");
        assert!(found.is_empty(), "{cpu}: {} words of a guest, at {found:x?}", found.len());
    }
}

#[test]
fn devices_without_escrow() {
    let passed = Run { smp: 2, ..Run::of("devices") }.passes_alone();
    assert!(passed >= 8);
}

#[test]
fn devices() {
    run(Run::of("devices"), 10);
    run(Run { cpu: "cortex-a53", smp: 4, ..Run::of("devices") }, 10);
}

#[test]
fn poison() {
    run(Run::of("poison"), 2);
    run(Run { cpu: "cortex-a53", smp: 1, ..Run::of("poison") }, 2);
}
