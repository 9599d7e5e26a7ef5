// SPDX-License-Identifier: MIT OR Apache-2.0

//! A host that means harm, on one CPU and on all at once: whatever it says, whenever
//! it says it, each call is done as a whole or not at all, and all comes home.
//!
//! `seed=` on the command line is for other histories, `rounds=` for longer ones.

#![no_std]
#![no_main]

mod arguments;
mod lists;
mod races;
mod rewrites;
mod storms;
mod tables;

use escrow_payloads::host::Lists;
use escrow_payloads::{Host, cpus, payload};

payload!(
    "hostile",
    arguments::TESTS,
    lists::TESTS,
    tables::TESTS,
    storms::TESTS,
    races::TESTS,
    rewrites::TESTS,
);

/// Room for a list for each CPU.
type AllLists = [Lists; cpus::MAX_CPUS];

fn all_lists(host: &mut Host) -> AllLists {
    core::array::from_fn(|_| Lists::new(&mut host.arena))
}

/// Where the histories begin.
fn seed(host: &Host) -> u64 {
    host.board.number("seed").unwrap_or(1)
}

/// How often a CPU does what it does: `alone` times where it is the only one. An
/// emulated CPU that waits for a lock may keep the one that has it from running,
/// so the more there are, the less each does.
fn rounds(host: &Host, alone: u64) -> u64 {
    let cpus = cpus::count() as u64;
    let share = if cpus <= 2 { alone / cpus } else { alone / (8 * cpus * cpus) };
    host.board.number("rounds").unwrap_or(share.max(2))
}
