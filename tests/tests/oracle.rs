// SPDX-License-Identifier: MIT OR Apache-2.0

//! Payloads on an Escrow that checks every call against the executable specification
//! (`hypervisor/core/src/hypervisor/oracle`). A transition that the specification does not
//! allow, or a ledger or stage-2 table that differs from it, stops the machine.

use escrow_tests::payload::{Build, Run};

fn run(run: Run) {
    let run = Run { escrow: Build::Oracle, ..run };
    let passed = run.passes();
    println!("{} on {} CPUs: {passed} passed", run.payload, run.smp);
}

#[test]
fn pages() {
    run(Run::of("pages"));
}

#[test]
fn smp() {
    run(Run { smp: 4, ..Run::of("smp") });
}

#[test]
fn noise_of_four_cpus() {
    run(Run { smp: 4, ..Run::of("noise") });
}

#[test]
fn hostile_on_four_cpus() {
    run(Run { smp: 4, ..Run::of("hostile") });
}

#[test]
fn model_on_four_cpus() {
    run(Run { smp: 4, ..Run::of("model") });
}

#[test]
fn gic_on_four_cpus() {
    run(Run { smp: 4, ..Run::of("gic") });
}
