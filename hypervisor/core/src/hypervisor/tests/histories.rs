// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random histories, on the real ledger and on the executable specification:
//! VMs that come and go, right and wrong calls of the host and of guests.
//! Every call has the same answer on both, and after every step both hold the
//! same: frame by frame, entry by entry of every table, pool by pool. At the end
//! everything is home, and the host's tables are what they were at boot.
//!
//! `PROPTEST_CASES` says how many; [`CASES`] otherwise. The seeds of those that
//! failed are kept in `proptest-regressions/histories.txt` and tried first, and
//! what they were shrunk to belongs into `once.rs`.

mod borrowers;
mod choose;
mod compare;
mod interrupts;
mod lists;
mod once;
mod steps;
mod tally;
mod world;

use std::cell::RefCell;
use std::thread;
use std::{env, mem, panic};

use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

use super::fake::{LITTLE_RAM, RAM};
use crate::addr::PhysRange;
use steps::Step;
pub use steps::history;
use tally::Tally;
pub use world::World;

/// Histories of a normal run.
const CASES: u32 = 100_000;
/// From so many on, nothing that can happen may be missing.
const ENOUGH: u32 = 100_000;
const REGRESSIONS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/histories.txt");

/// A world that is used for one history after the other, as long as nothing is
/// lost in it.
struct Stage {
    ram: PhysRange,
    world: RefCell<Option<Box<World>>>,
    tally: RefCell<Tally>,
}

type Snapshot = (Vec<u64>, Vec<Vec<bool>>, Vec<u64>);

fn snapshot(world: &World) -> Snapshot {
    let (counts, reached) = world.host.snapshot();
    (counts, reached, world.host.host_tables())
}

impl Stage {
    fn new(ram: PhysRange) -> Stage {
        Stage { ram, world: RefCell::default(), tally: RefCell::default() }
    }

    /// Plays one history. A world that something failed in is not used again.
    fn play(&self, steps: &[Step]) {
        let world = self.world.take();
        let mut world = world.unwrap_or_else(|| Box::new(World::new(self.ram)));
        world.begin();
        let before = snapshot(&world);
        world.play(steps);
        world.end();
        self.tally.borrow_mut().add(mem::take(&mut world.tally));
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
fn histories(ram: PhysRange, cases: u32) -> Tally {
    let stage = Stage::new(ram);
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
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
    stage.tally.into_inner()
}

#[test]
fn the_ledger_does_as_specified() {
    let threads = thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let share = cases().div_ceil(threads);
    // Most on a few blocks, some on a machine with a GiB that can be one entry.
    let play = || {
        let mut tally = histories(LITTLE_RAM, share - share / 8);
        tally.add(histories(RAM, share / 8));
        tally
    };
    let mut all = Tally::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(play)).collect();
        for thread in threads {
            all.add(thread.join().unwrap_or_else(|failure| panic::resume_unwind(failure)));
        }
    });
    println!("{all}");
    if cases() >= ENOUGH {
        assert!(all.missing().is_empty(), "never seen: {:?}", all.missing());
    }
}
