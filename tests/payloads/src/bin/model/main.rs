// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random calls that know what they do: the executable specification runs beside
//! Escrow, at EL1, on each CPU, about that CPU's VMs and memory. Most calls are right,
//! some are spoilt on purpose, the host and its guests make them by turns; every answer
//! is what the specification says, and so is what the host and the guests reach and find.
//!
//! `seed=` on the command line is for other histories, `rounds=` for longer ones.

#![no_std]
#![no_main]

extern crate alloc;

mod calls;
mod heap;
mod look;
mod member;
mod pick;
mod world;

use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable as _};
use escrow_abi::{BLOCK_SIZE, FrameState};
use escrow_payloads::host::{Counts, Lists, block_at};
use escrow_payloads::spoil::Elsewhere;
use escrow_payloads::{Host, Outcome, Test, check, cpus, payload, println, tests};

use world::{Place, World};

payload!("model", TESTS);

const TESTS: &[Test] = tests![as_specified];

/// Blocks of each CPU's own.
const BLOCKS: u64 = 2;
/// Pages for metadata and agents of each CPU's VMs.
const SUPPLIES: u64 = 64;

fn as_specified(host: &mut Host) -> Outcome {
    heap::set_up();
    let elsewhere = Elsewhere::find(host)?;
    let lists: [Lists; cpus::MAX_CPUS] = core::array::from_fn(|_| Lists::new(&mut host.arena));
    let count = cpus::count() as u64;
    let supplies = host.arena.pages(SUPPLIES * count);
    let blocks = host.arena.blocks(BLOCKS * count + 1);
    let seed = host.board.number("seed").unwrap_or(1);
    let rounds = host.board.number("rounds").unwrap_or(if count > 2 { 400 } else { 6000 } / count);
    let (done, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let begin = CNTPCT_EL0.get();
    cpus::try_on_all(|n| {
        let n = n as u64;
        let place = Place {
            lists: lists[n as usize],
            blocks: blocks + n * BLOCKS * BLOCK_SIZE,
            // A part of the block that all CPUs have a part of.
            part: blocks + count * BLOCKS * BLOCK_SIZE + n * ((BLOCK_SIZE / count) & !0xfff),
            supplies: supplies + n * SUPPLIES * 0x1000,
            ram: host.board.memory.first().map_or(0, |r| r.start)
                ..host.board.memory.last().map_or(0, |r| r.end).next_multiple_of(1 << 30),
        };
        let mut world = World::new(place, &elsewhere, (seed << 8) | n)?;
        let outcome = world.live(rounds);
        done.fetch_add(world.done, Ordering::Relaxed);
        refused.fetch_add(world.refused, Ordering::Relaxed);
        outcome
    })?;
    let [done, refused] = [done, refused].map(AtomicU64::into_inner);
    let milliseconds = (CNTPCT_EL0.get() - begin) * 1000 / CNTFRQ_EL0.get();
    let calls = done + refused;
    println!(
        "note: {count} CPUs, seed {seed:#x}: {calls} calls in {milliseconds} ms, {} a minute; {done} done, {refused} refused",
        calls * 60_000 / milliseconds.max(1)
    );
    // Both must happen often, or this tests nothing.
    check!(done > calls / 3 && refused > calls / 10, "{done} done, {refused} refused");
    check!(Counts::read().of(FrameState::Metadata) == 0);
    // All is home, and each block is one.
    let vm = host.vm(2)?;
    for n in 0..BLOCKS * count + 1 {
        let whole = block_at(blocks + n * BLOCK_SIZE, n * BLOCK_SIZE);
        host.lists.lend(vm, &[whole]).map_err(escrow_payloads::host::refused("a whole block"))?;
    }
    host.end(vm)
}
