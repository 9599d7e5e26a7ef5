// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages that change hands. Lists are written before the counting begins.

use escrow_abi::{BLOCK_SIZE, LIST_MAX, MemEntry, ORDER_BLOCK, PAGE_SIZE, Rights};
use escrow_abi::{ORDER_PAGE, call};
use escrow_payloads::guest::Agent;
use escrow_payloads::host::{frame, refused};
use escrow_payloads::{Host, Outcome, Test, check_eq, hvc, tests};

use crate::sample::{self, Samples};

pub const TESTS: &[Test] = tests![pages, blocks, lists, unlocked_pages];

/// Where guests get memory, in a part of their address space whose tables
/// have nothing else in them.
const GUEST: u64 = 0x1_0000_0000;
const PAGES_PER_BLOCK: u64 = BLOCK_SIZE / PAGE_SIZE;
/// Samples of calls about single pages.
const PAGES: u64 = 256;
/// Samples of calls about blocks.
const BLOCKS: u64 = 8;

/// A call with a list, counted.
fn list_call(
    host: &Host,
    samples: &mut Samples,
    function: u32,
    vm: Option<u64>,
    entries: &[MemEntry],
) -> Outcome {
    let [list, count] = host.lists.put(entries);
    let function = function as u64;
    let mut registers = match vm {
        Some(vm) => [function, vm, list, count, 0, 0, 0, 0],
        None => [function, list, count, 0, 0, 0, 0, 0],
    };
    samples.add(sample::hvc(&mut registers));
    check_eq!(registers[0], 0, "the answer");
    Ok(())
}

fn page(block: u64, n: u64, guest: u64) -> MemEntry {
    let (at, guest) = (block + n * PAGE_SIZE, guest + n * PAGE_SIZE);
    MemEntry::new(at, ORDER_PAGE, guest, Rights::READ_WRITE)
}

/// Single pages, one a call. The first of a block, which divides it, is a
/// sample of its own.
fn pages(host: &mut Host) -> Outcome {
    let vm = host.vm(4 + 2 * BLOCKS)?;
    let blocks = host.arena.blocks(BLOCKS);
    let to_share = host.arena.blocks(1);
    let mut first = Samples::new("lend_4k_first_of_block");
    for n in 0..BLOCKS {
        let offset = n * BLOCK_SIZE;
        let entry = page(blocks + offset, 0, GUEST + offset);
        list_call(host, &mut first, call::MEM_LEND, Some(vm), &[entry])?;
    }
    first.print();
    let mut lend = Samples::new("lend_4k");
    for n in 1..=PAGES {
        list_call(host, &mut lend, call::MEM_LEND, Some(vm), &[page(blocks, n, GUEST)])?;
    }
    lend.print();

    let guest = GUEST + BLOCKS * BLOCK_SIZE;
    host.lists.share(vm, &[page(to_share, 0, guest)]).map_err(refused("MEM_SHARE"))?;
    let mut share = Samples::new("share_4k");
    for n in 1..=PAGES {
        list_call(host, &mut share, call::MEM_SHARE, Some(vm), &[page(to_share, n, guest)])?;
    }
    share.print();
    let mut unshare = Samples::new("unshare_4k");
    for n in 1..=PAGES {
        let entry = frame(to_share + n * PAGE_SIZE);
        list_call(host, &mut unshare, call::MEM_UNSHARE, None, &[entry])?;
    }
    unshare.print();

    // From a dead VM, and so zeroed.
    hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
    let mut reclaim = Samples::new("reclaim_4k");
    for n in 1..=PAGES {
        let entry = frame(blocks + n * PAGE_SIZE);
        list_call(host, &mut reclaim, call::MEM_RECLAIM, None, &[entry])?;
    }
    reclaim.print();
    host.bring_home()
}

/// Whole blocks, one a call.
fn blocks(host: &mut Host) -> Outcome {
    let vm = host.vm(8)?;
    let blocks = host.arena.blocks(BLOCKS);
    let mut lend = Samples::new("lend_2m");
    // The first one finds no tables.
    let spare = host.arena.blocks(1);
    let entry = MemEntry::new(spare, ORDER_BLOCK, GUEST, Rights::READ_WRITE);
    host.lists.lend(vm, &[entry]).map_err(refused("MEM_LEND"))?;
    for n in 0..BLOCKS {
        let guest = GUEST + (n + 1) * BLOCK_SIZE;
        let entry = MemEntry::new(blocks + n * BLOCK_SIZE, ORDER_BLOCK, guest, Rights::READ_WRITE);
        list_call(host, &mut lend, call::MEM_LEND, Some(vm), &[entry])?;
    }
    lend.print();
    hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
    let mut reclaim = Samples::new("reclaim_2m");
    for n in 0..BLOCKS {
        let at = blocks + n * BLOCK_SIZE;
        let entry = MemEntry::new(at, ORDER_BLOCK, 0, Rights::NONE);
        list_call(host, &mut reclaim, call::MEM_RECLAIM, None, &[entry])?;
    }
    reclaim.print();
    host.bring_home()
}

/// As many pages as one call takes: all of a block's, which it divides.
fn lists(host: &mut Host) -> Outcome {
    let vm = host.vm(4 + BLOCKS)?;
    let blocks = host.arena.blocks(BLOCKS);
    let per = LIST_MAX as u64;
    let mut entries = [frame(0); LIST_MAX];
    let mut lend = Samples::per("lend_512x4k_per_page", per);
    for n in 0..BLOCKS {
        let (block, guest) = (blocks + n * BLOCK_SIZE, GUEST + n * BLOCK_SIZE);
        for (entry, number) in entries.iter_mut().zip(0..PAGES_PER_BLOCK) {
            *entry = page(block, number, guest);
        }
        list_call(host, &mut lend, call::MEM_LEND, Some(vm), &entries)?;
    }
    lend.print();
    hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
    let mut reclaim = Samples::per("reclaim_512x4k_per_page", per);
    for n in 0..BLOCKS {
        for (entry, number) in entries.iter_mut().zip(0..PAGES_PER_BLOCK) {
            *entry = frame(blocks + n * BLOCK_SIZE + number * PAGE_SIZE);
        }
        list_call(host, &mut reclaim, call::MEM_RECLAIM, None, &entries)?;
    }
    reclaim.print();
    host.bring_home()
}

/// Pages that a guest which lives on gave up with their contents: nothing is
/// zeroed, but the guest's map changes.
fn unlocked_pages(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let block = host.arena.blocks(1);
    let guest = escrow_payloads::guest::FREE_BLOCK;
    // Not all: a block whose pages are all home again is one again.
    let entries: [MemEntry; 300] = core::array::from_fn(|n| page(block, n as u64, guest));
    host.lists.lend(agent.vm, &entries).map_err(refused("MEM_LEND"))?;
    let unlock = [call::MODIFY_PAGES as u64, 0, guest, PAGES * PAGE_SIZE, call::MODIFY_UNLOCK];
    check_eq!(agent.hvc(&unlock)?, 0, "unlocked");
    let mut reclaim = Samples::new("reclaim_4k_unlocked");
    for n in 0..PAGES {
        let entry = frame(block + n * PAGE_SIZE);
        list_call(host, &mut reclaim, call::MEM_RECLAIM, None, &[entry])?;
    }
    reclaim.print();
    host.end(agent.vm)
}
