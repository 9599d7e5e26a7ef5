// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists with one bad entry: refused with its index, wherever it stands, and
//! nothing is done for the good ones.

use arrayvec::ArrayVec;
use escrow_abi::{
    BLOCK_SIZE, Error, FrameState, LIST_MAX, MemEntry, ORDER_BLOCK, PAGE_SIZE, Rights, call,
};
use escrow_payloads::expect::{is_in_reach, is_out_of_reach, refusal_of, refuses, refuses_with};
use escrow_payloads::host::{Counts, frame, is_zero, page_at, refused};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, hvc, tests};

use escrow_payloads::spoil::{Bad, BadEntries, Elsewhere};

pub const TESTS: &[Test] = tests![
    lend_lists_are_all_or_nothing,
    share_lists_are_all_or_nothing,
    donation_lists_are_all_or_nothing,
    reclaim_lists_are_all_or_nothing,
    unshare_lists_are_all_or_nothing,
    the_first_bad_entry_is_named,
    blocks_are_whole,
    frames_do_not_overlap,
    guest_addresses_do_not_overlap,
    guest_addresses_are_free,
    tables_are_paid_for,
    a_reclaim_takes_all_that_its_list_names,
];

/// A guest address that no good entry has.
const SPARE: u64 = 0x70_0000;

/// Tries a call with each bad entry in each place of a list of good ones.
fn each_spoils(
    host: &Host,
    good: &[MemEntry],
    bad: &[Bad],
    call: impl Fn(&Host, &[MemEntry]) -> hvc::Answer,
) -> Outcome {
    let mut list: ArrayVec<MemEntry, LIST_MAX> = good.iter().copied().collect();
    for &Bad { entry, error, detail } in bad {
        for place in [0, good.len() / 2, good.len() - 1] {
            list[place] = entry;
            let what = [entry.frame, entry.guest, place as u64];
            refuses_with(refusal_of(error, place as u64, detail), &what, || call(host, &list))?;
            list[place] = good[place];
        }
    }
    Ok(())
}

/// Entries for adjacent pages at adjacent guest addresses.
fn pages(from: u64, count: u64) -> ArrayVec<MemEntry, LIST_MAX> {
    (0..count).map(|n| page_at(from + n * PAGE_SIZE, 0x10_0000 + n * PAGE_SIZE)).collect()
}

/// Entries that name adjacent frames only.
fn frames(from: u64, count: u64) -> ArrayVec<MemEntry, LIST_MAX> {
    (0..count).map(|n| frame(from + n * PAGE_SIZE)).collect()
}

/// The list without a bad entry is all right, and done as a whole.
fn moved(
    host: &Host,
    from: FrameState,
    to: FrameState,
    count: u64,
    good: &[MemEntry],
    call: impl Fn(&Host, &[MemEntry]) -> hvc::Answer,
) -> Outcome {
    let before = Counts::read();
    call(host, good).map_err(refused("the good list"))?;
    check_eq!(Counts::read(), before.moved(from, to, count));
    Ok(())
}

fn lend_lists_are_all_or_nothing(host: &mut Host) -> Outcome {
    for count in [3, 512] {
        let vm = host.vm(12)?;
        let lend = |host: &Host, list: &[MemEntry]| host.lists.lend(vm, list);
        let good = pages(host.arena.pages(count), count);
        let spare = page_at(host.page(), SPARE);
        let elsewhere = Elsewhere::find(host)?;
        let mut bad = BadEntries::default();
        bad.anywhere(&elsewhere, spare);
        bad.in_maps(spare);
        bad.reports(spare);
        each_spoils(host, &good, &bad, lend)?;
        for entry in &good {
            is_in_reach(entry.frame)?;
        }
        moved(host, FrameState::Owned, FrameState::Lent, count, &good, lend)?;
        for entry in &good {
            is_out_of_reach(entry.frame)?;
        }
        // Lent already: refused with the state.
        let taken = page_at(good[0].frame, SPARE);
        let bad = [Bad::new(taken, Error::WrongState, FrameState::Lent as u64)];
        let others = host.arena.pages(3);
        let others: ArrayVec<_, 3> =
            (0..3).map(|n| page_at(others + n * PAGE_SIZE, 0x90_0000 + n * PAGE_SIZE)).collect();
        each_spoils(host, &others, &bad, lend)?;
        host.end(vm)?;
    }
    Ok(())
}

fn share_lists_are_all_or_nothing(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let share = |host: &Host, list: &[MemEntry]| host.lists.share(vm, list);
    let good = pages(host.arena.pages(5), 5);
    let spare = page_at(host.page(), SPARE);
    let elsewhere = Elsewhere::find(host)?;
    let mut bad = BadEntries::default();
    bad.anywhere(&elsewhere, spare);
    bad.in_maps(spare);
    bad.without_report(spare);
    each_spoils(host, &good, &bad, share)?;
    moved(host, FrameState::Owned, FrameState::Shared, 5, &good, share)?;
    for entry in &good {
        is_in_reach(entry.frame)?;
    }
    host.end(vm)
}

fn donation_lists_are_all_or_nothing(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    let good = frames(host.arena.pages(5), 5);
    let spare = frame(host.page());
    let block = host.arena.blocks(1);
    let elsewhere = Elsewhere::find(host)?;
    let mut bad = BadEntries::default();
    bad.anywhere(&elsewhere, spare);
    bad.reports(spare);
    bad.push(Bad::new(
        MemEntry::new(block, ORDER_BLOCK, 0, Rights::NONE),
        Error::InvalidArgument,
        0,
    ));
    bad.push(Bad::new(page_at(spare.frame, 0), Error::InvalidArgument, 0));
    bad.push(Bad::new(page_at(spare.frame, 0x1000), Error::InvalidArgument, 0));
    let create =
        |host: &Host, list: &[MemEntry]| host.lists.vm_create(list).map(|vm| [vm, 0, 0, 0]);
    each_spoils(host, &good, &bad, create)?;
    let top_up = |host: &Host, list: &[MemEntry]| host.lists.top_up(vm, list);
    each_spoils(host, &good, &bad, top_up)?;
    for entry in &good {
        is_in_reach(entry.frame)?;
    }
    moved(host, FrameState::Owned, FrameState::Metadata, 5, &good, top_up)?;
    for entry in &good {
        is_out_of_reach(entry.frame)?;
    }
    host.end(vm)
}

fn reclaim_lists_are_all_or_nothing(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let first = host.arena.pages(5);
    host.lists.lend(vm, &pages(first, 5)).map_err(refused("MEM_LEND"))?;
    let good = frames(first, 5);
    let reclaim = |host: &Host, list: &[MemEntry]| host.lists.reclaim(list);
    // Not while the guest lives and has not unlocked them.
    for place in 0..5 {
        let locked = refusal_of(Error::Locked, 0, 0);
        refuses_with(locked, &[place as u64], || reclaim(host, &good[place..]))?;
    }
    hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
    let elsewhere = Elsewhere::find(host)?;
    let mut bad = BadEntries::default();
    bad.anywhere(&elsewhere, good[0]);
    bad.without_report(good[0]);
    bad.push(Bad::new(page_at(good[0].frame, 0x1000), Error::InvalidArgument, 0));
    each_spoils(host, &good, &bad, reclaim)?;
    // The host's own page is of no VM. Entry 0 says which VM the call is
    // about, so it is not tried there.
    let home = host.page();
    for place in [1, 4] {
        let mut list = good.clone();
        list[place] = frame(home);
        let expected = refusal_of(Error::WrongState, place as u64, FrameState::Owned as u64);
        refuses_with(expected, &[place as u64], || reclaim(host, &list))?;
    }
    moved(host, FrameState::Lent, FrameState::Owned, 5, &good, reclaim)?;
    host.bring_home()
}

fn unshare_lists_are_all_or_nothing(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let first = host.arena.pages(5);
    host.lists.share(vm, &pages(first, 5)).map_err(refused("MEM_SHARE"))?;
    let good = frames(first, 5);
    let unshare = |host: &Host, list: &[MemEntry]| host.lists.unshare(list);
    let elsewhere = Elsewhere::find(host)?;
    let mut bad = BadEntries::default();
    bad.anywhere(&elsewhere, good[0]);
    bad.without_report(good[0]);
    each_spoils(host, &good, &bad, unshare)?;
    moved(host, FrameState::Shared, FrameState::Owned, 5, &good, unshare)?;
    host.end(vm)
}

fn the_first_bad_entry_is_named(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    // In the list's order, not in that of the addresses; whatever is wrong.
    let first = host.arena.pages(6);
    let mut list = pages(first, 6);
    list.reverse();
    list[1] = list[1].with_report(3, 1, 0);
    list[3] = list[3].with_report(1, 1, 4);
    list[4].frame |= 1;
    let [at, count] = host.lists.put(&list);
    refuses(call::MEM_LEND, &[vm, at, count], refusal_of(Error::Excess, 1, 2))?;
    list[1] = list[1].with_report(0, 0, 0);
    let [at, count] = host.lists.put(&list);
    refuses(call::MEM_LEND, &[vm, at, count], refusal_of(Error::Accessible, 3, 4))?;
    list[3] = list[3].with_report(1, 1, 0);
    let [at, count] = host.lists.put(&list);
    refuses(call::MEM_LEND, &[vm, at, count], refusal_of(Error::InvalidArgument, 4, 0))?;
    list[4].frame &= !1;
    // Two that are lent already: the earlier in the list is the higher in memory.
    let lent = [page_at(first, 0x80_0000), page_at(first + 5 * PAGE_SIZE, 0x81_0000)];
    host.lists.lend(vm, &lent).map_err(refused("MEM_LEND"))?;
    let [at, count] = host.lists.put(&list);
    let lent = FrameState::Lent as u64;
    refuses(call::MEM_LEND, &[vm, at, count], refusal_of(Error::WrongState, 0, lent))?;
    host.end(vm)
}

fn block_at(at: u64, guest: u64) -> MemEntry {
    MemEntry::new(at, ORDER_BLOCK, guest, Rights::ALL)
}

fn blocks_are_whole(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let block = host.arena.blocks(2);
    let misaligned = refusal_of(Error::Misaligned, 0, 0);
    for (at, guest) in [
        (block + PAGE_SIZE, 0x20_0000),
        (block + BLOCK_SIZE / 2, 0x20_0000),
        (block, 0x20_1000),
        (block, 0x30_0000),
    ] {
        refuses_with(misaligned, &[at, guest], || host.lists.lend(vm, &[block_at(at, guest)]))?;
    }
    // One page of it is away: the first, one in the middle, the last.
    for page in [block, block + 77 * PAGE_SIZE, block + BLOCK_SIZE - PAGE_SIZE] {
        let borrower = host.vm(12)?;
        let list = [page_at(page, 0x80_0000)];
        host.lists.lend(borrower, &list).map_err(refused("MEM_LEND of a page"))?;
        let mixed = refusal_of(Error::WrongState, 1, 0);
        let list = [page_at(block + BLOCK_SIZE, 0x90_0000), block_at(block, 0x20_0000)];
        refuses_with(mixed, &[page], || host.lists.lend(vm, &list))?;
        host.end(borrower)?;
    }
    // What was split and is all at home again can go as a block.
    let list = [block_at(block, 0x20_0000)];
    let lend = |host: &Host, list: &[MemEntry]| host.lists.lend(vm, list);
    moved(host, FrameState::Owned, FrameState::Lent, 512, &list, lend)?;
    is_out_of_reach(block)?;
    is_out_of_reach(block + BLOCK_SIZE - 8)?;
    is_in_reach(block + BLOCK_SIZE)?;
    host.end(vm)
}

fn frames_do_not_overlap(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let block = host.arena.blocks(1);
    let page = host.arena.pages(2);
    let cases: [(&[MemEntry], u64); 5] = [
        (&[page_at(page, 0x1000), page_at(page, 0x2000)], 1),
        (&[page_at(page, 0x1000), page_at(page + PAGE_SIZE, 0x2000), page_at(page, 0x3000)], 2),
        (&[block_at(block, 0x20_0000), page_at(block, 0x1000)], 1),
        (&[page_at(block + 5 * PAGE_SIZE, 0x1000), block_at(block, 0x20_0000)], 1),
        (&[block_at(block, 0x20_0000), block_at(block, 0x40_0000)], 1),
    ];
    for (list, index) in cases {
        let overlap = refusal_of(Error::Overlap, index, 0);
        refuses_with(overlap, &[index], || host.lists.lend(vm, list))?;
        refuses_with(overlap, &[index], || host.lists.share(vm, list))?;
    }
    let twice = [frame(page), frame(page)];
    let overlap = refusal_of(Error::Overlap, 1, 0);
    refuses_with(overlap, &[], || host.lists.top_up(vm, &twice))?;
    refuses_with(overlap, &[], || host.lists.vm_create(&twice).map(|vm| [vm, 0, 0, 0]))?;
    refuses_with(overlap, &[], || host.lists.reclaim(&twice))?;
    host.end(vm)
}

fn guest_addresses_do_not_overlap(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let block = host.arena.blocks(1);
    let page = host.arena.pages(2);
    let cases: [&[MemEntry]; 3] = [
        &[page_at(page, 0x1000), page_at(page + PAGE_SIZE, 0x1000)],
        &[block_at(block, 0x20_0000), page_at(page, 0x20_0000)],
        &[page_at(page, 0x3f_f000), block_at(block, 0x20_0000)],
    ];
    for list in cases {
        let overlap = refusal_of(Error::Overlap, 1, 0);
        refuses_with(overlap, &[list[0].guest], || host.lists.lend(vm, list))?;
    }
    host.end(vm)
}

fn guest_addresses_are_free(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let block = host.arena.blocks(2);
    let page = host.arena.pages(3);
    let lend = |list: &[MemEntry]| host.lists.lend(vm, list);
    lend(&[page_at(page, 0x1000), block_at(block, 0x40_0000)]).map_err(refused("MEM_LEND"))?;
    let [free, other] = [page + PAGE_SIZE, page + 2 * PAGE_SIZE];
    for entry in [
        page_at(free, 0x1000),
        page_at(free, 0x40_0000),
        page_at(free, 0x5f_f000),
        // A block over a table with a page in it, and over a block.
        block_at(block + BLOCK_SIZE, 0),
        block_at(block + BLOCK_SIZE, 0x40_0000),
    ] {
        let list = [page_at(other, 0xa0_0000), entry];
        let mapped = refusal_of(Error::GuestMapped, 1, 0);
        refuses_with(mapped, &[entry.guest], || lend(&list))?;
        refuses_with(mapped, &[entry.guest], || host.lists.share(vm, &list))?;
    }
    host.end(vm)
}

fn tables_are_paid_for(host: &mut Host) -> Outcome {
    // One page is the root; a guest page wants two tables below it.
    let vm = host.vm(1)?;
    let page = host.arena.pages(4);
    let lend = |list: &[MemEntry]| host.lists.lend(vm, list);
    let far = [page_at(page, 0x1000), page_at(page + PAGE_SIZE, 0x4000_0000)];
    refuses_with(refusal_of(Error::NoMemory, 0, 2), &[1], || lend(&far[..1]))?;
    refuses_with(refusal_of(Error::NoMemory, 0, 4), &[2], || lend(&far))?;
    let more = host.arena.pages(4);
    host.lists.top_up(vm, &frames(more, 3)).map_err(refused("VM_TOP_UP"))?;
    refuses_with(refusal_of(Error::NoMemory, 0, 1), &[3], || lend(&far))?;
    host.lists.top_up(vm, &frames(more + 3 * PAGE_SIZE, 1)).map_err(refused("VM_TOP_UP"))?;
    lend(&far).map_err(refused("MEM_LEND"))?;
    let info = hvc::call(call::VM_INFO, &[vm]).map_err(refused("VM_INFO"))?;
    check_eq!(info, [0, 2, 5, 0]);
    host.end(vm)
}

fn a_reclaim_takes_all_that_its_list_names(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let blocks = host.arena.blocks(33);
    let entries = |count: u64| -> ArrayVec<MemEntry, 40> {
        (0..count).map(|n| block_at(blocks + n * BLOCK_SIZE, 0x20_0000 + n * BLOCK_SIZE)).collect()
    };
    host.lists.lend(vm, &entries(33)).map_err(refused("MEM_LEND"))?;
    hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
    let home: ArrayVec<MemEntry, 40> = (0..33)
        .map(|n| MemEntry::new(blocks + n * BLOCK_SIZE, ORDER_BLOCK, 0, Rights::NONE))
        .collect();
    host.lists.reclaim(&home).map_err(refused("MEM_RECLAIM"))?;
    check!(is_zero(blocks, 33 * BLOCK_SIZE));
    host.bring_home()
}
