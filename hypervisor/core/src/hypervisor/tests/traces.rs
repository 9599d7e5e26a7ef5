// SPDX-License-Identifier: MIT OR Apache-2.0

//! Histories whose table writes are traced, and held against the rules of the
//! architecture (`tests/trace`).

use std::cell::RefCell;

use escrow_abi::call;
use escrow_trace::Counts;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

use super::fake::{Host, LITTLE_RAM, RAM};
use super::histories::{World, history};
use crate::addr::PhysRange;

/// What failed once is tried first.
const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/traces.txt");
/// Histories on each of two machines.
const HISTORIES: u32 = 150;

#[test]
fn the_tables_of_a_new_machine_are_in_its_trace() {
    let host = Host::traced(RAM);
    let counts = host.escrow.machine.trace().check().counts;
    assert!(counts.writes > 1024 && counts.breaks == 0, "{counts:?}");
}

/// A page of the hypervisor's that a guest reads.
#[test]
fn the_stolen_time_of_a_guest() {
    let mut host = Host::traced(RAM);
    let (vm, pages) = host.create(8);
    host.call(call::VM_PV_TIME, &[vm, 0x0b00_0000]).unwrap();
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    host.call(call::VM_START, &[vm]).unwrap();
    host.run(vcpu, |_, run| assert!(run.stolen.is_some()));
    host.end(vcpu);
    host.reclaim(&pages).unwrap();
    host.escrow.machine.trace().check();
}

/// Plays histories, each on a new machine. What there was to check.
fn traced_histories(ram: PhysRange) -> Counts {
    let counts = RefCell::new(Counts::default());
    let config = Config {
        cases: HISTORIES,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        ..Config::default()
    };
    let played = TestRunner::new(config).run(&history(), |steps| {
        let mut world = World::on(Host::traced(ram), ram);
        for step in &steps {
            world.apply(step);
        }
        world.end();
        let these = world.host.escrow.machine.trace().check().counts;
        let mut all = counts.borrow_mut();
        all.events += these.events;
        all.breaks += these.breaks;
        all.tlbis += these.tlbis;
        all.calls += these.calls;
        Ok::<_, TestCaseError>(())
    });
    if let Err(error) = played {
        panic!("{error}");
    }
    counts.into_inner()
}

#[test]
fn histories_keep_the_rules_of_the_architecture() {
    for ram in [LITTLE_RAM, RAM] {
        let counts = traced_histories(ram);
        println!("{ram:x?}: {counts:?}");
        let enough = |count| count > 2 * HISTORIES as usize;
        assert!(enough(counts.breaks) && enough(counts.tlbis) && enough(counts.calls));
    }
}
