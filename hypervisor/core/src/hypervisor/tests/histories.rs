// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random histories, on the real ledger and on the executable specification:
//! VMs that come and go, right and wrong calls of the host and of guests.
//! Every call has the same answer on both, and after every step both hold the
//! same: frame by frame, entry by entry of every table, pool by pool. At the end
//! everything is home, and the host's tables are what they were at boot.
//!
//! `PROPTEST_CASES` says how many; [`CASES`] otherwise. What failed once is
//! kept in `proptest-regressions/histories.txt` and tried first.

mod compare;
mod steps;
mod world;

use std::cell::RefCell;
use std::env;
use std::thread;

use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

use super::fake::{LITTLE_RAM, RAM};
use crate::addr::PhysRange;
use steps::Step;
pub use steps::history;
use world::Outcomes;
pub use world::World;

/// Histories of a normal run.
const CASES: u32 = 100_000;
const REGRESSIONS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/histories.txt");

/// A world that is used for one history after the other, as long as nothing is
/// lost in it.
struct Stage {
    ram: PhysRange,
    world: RefCell<Option<Box<World>>>,
    outcomes: RefCell<Outcomes>,
}

type Snapshot = (Vec<u64>, Vec<Vec<bool>>, Vec<u64>);

fn snapshot(world: &World) -> Snapshot {
    let (counts, reached) = world.host.snapshot();
    (counts, reached, world.host.host_tables())
}

impl Stage {
    fn new(ram: PhysRange) -> Stage {
        Stage { ram, world: RefCell::default(), outcomes: RefCell::default() }
    }

    /// Plays one history. A world that something failed in is not used again.
    fn play(&self, steps: &[Step]) {
        let world = self.world.take();
        let mut world = world.unwrap_or_else(|| Box::new(World::new(self.ram)));
        world.begin();
        let before = snapshot(&world);
        for step in steps {
            world.apply(step);
        }
        world.end();
        let mut outcomes = self.outcomes.borrow_mut();
        for (outcome, times) in std::mem::take(&mut world.outcomes) {
            *outcomes.entry(outcome).or_default() += times;
        }
        if !world.has_broken_memory() {
            assert!(snapshot(&world) == before, "all is as it was");
            self.world.replace(Some(world));
        }
    }
}

fn cases() -> u32 {
    env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES)
}

/// Plays so many histories on a machine.
fn histories(ram: PhysRange, cases: u32) -> Outcomes {
    let stage = Stage::new(ram);
    let persistence = FileFailurePersistence::Direct(REGRESSIONS);
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(persistence)),
        max_shrink_iters: 4096,
        ..Config::default()
    };
    let played = TestRunner::new(config).run(&history(), |steps| {
        stage.play(&steps);
        Ok::<_, TestCaseError>(())
    });
    if let Err(error) = played {
        panic!("{error}");
    }
    stage.outcomes.into_inner()
}

#[test]
fn the_ledger_does_as_specified() {
    let threads = thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let share = cases().div_ceil(threads);
    // Most on a few blocks, some on a machine with a GiB that can be one entry.
    let play = || {
        let mut outcomes = histories(LITTLE_RAM, share - share / 8);
        for (outcome, times) in histories(RAM, share / 8) {
            *outcomes.entry(outcome).or_default() += times;
        }
        outcomes
    };
    let outcomes = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(play)).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    let mut all = Outcomes::new();
    for outcomes in outcomes {
        let outcomes = outcomes.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        for (outcome, times) in outcomes {
            *all.entry(outcome).or_default() += times;
        }
    }
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|((name, guest, error), _)| (*guest, *name, error.map_or(0, |e| e as i32)));
    for ((name, guest, error), times) in &all {
        let by = if *guest { "guest" } else { "host" };
        println!("{times:8} {by}: {name}: {error:?}");
    }
}
