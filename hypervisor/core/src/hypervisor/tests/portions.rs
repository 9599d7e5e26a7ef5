// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls that take long: how much of one is done at a time, and what becomes of it when
//! something happens in its middle.

use std::sync::atomic::Ordering;

use escrow_abi::{BLOCK_SIZE, Error, FrameState, Handle, MODIFY_MAX, MemEntry, Rights, call};

use super::fake::{FREE, HVC, Host, Interrupts, LIST};
use super::{UNLOCK_ZEROED, block, page, started};
use crate::addr::PAGE_SIZE;
use crate::hypervisor::guest_calls::GuestCall;
use crate::hypervisor::portions::PORTION_BLOCKS;
use crate::hypervisor::{Reply, Scratch};
use crate::vcpu::{GuestIds, Next};

const GUEST: u64 = 0x8000_0000;
/// Where guests have their lists.
const LISTS: u64 = 0x1000;

/// So many blocks of the host's, side by side.
fn blocks(count: u64) -> Vec<MemEntry> {
    (0..count).map(|n| block(FREE + n * BLOCK_SIZE, GUEST + n * BLOCK_SIZE)).collect()
}

/// The same blocks in the list of a guest that gives them back.
fn own_blocks(count: u64) -> Vec<MemEntry> {
    (0..count).map(|n| MemEntry::new(GUEST + n * BLOCK_SIZE, 9, 0, Rights::NONE)).collect()
}

fn frames(count: u64) -> Vec<(u64, u32)> {
    (0..count).map(|n| (FREE + n * BLOCK_SIZE, 9)).collect()
}

/// A host whose CPU always has an interrupt pending.
fn interrupted() -> Host {
    let host = Host::new();
    *host.escrow.machine.interrupts.lock().unwrap() = Interrupts::Always;
    host
}

/// That since the last time no call worked on more than 2 MiB of contents before it looked
/// for interrupts, and that some call did find one.
fn check_bound(host: &mut Host, what: &str) {
    let most = host.escrow.machine.touched_at_once.swap(0, Ordering::Relaxed);
    assert!(most <= BLOCK_SIZE, "{what} works on {} KiB at a time", most >> 10);
    assert!(host.restarts > 0, "{what} was never interrupted");
    host.restarts = 0;
}

/// Gives a guest a list in memory that it shares with the host.
fn guests_list(host: &mut Host, vm: u64, entries: &[MemEntry]) {
    let frames = FREE + 510 * BLOCK_SIZE;
    let pages: Vec<_> =
        (0..4).map(|n| page(frames + n * PAGE_SIZE, LISTS + n * PAGE_SIZE)).collect();
    host.share(vm, &pages).unwrap();
    host.write_list(entries, |n| frames + n * PAGE_SIZE);
}

#[test]
fn no_call_of_the_host_works_on_more_than_2_mib_at_a_time() {
    let mut host = interrupted();
    let (vm, vcpu) = started(&mut host);
    host.lend(vm, &blocks(500)).unwrap();
    check_bound(&mut host, "a lend");
    assert_eq!(host.escrow.pages(FrameState::Lent), 500 * 512);
    // Blocks share their table, so a gift of all comes through as well.
    for n in 0..8 {
        let at = GUEST + n * MODIFY_MAX;
        host.guest_call(vcpu, call::MODIFY_PAGES, &[0, at, MODIFY_MAX, UNLOCK_ZEROED]).unwrap();
        check_bound(&mut host, "sanitizing");
    }
    host.reclaim(&frames(256)).unwrap();
    check_bound(&mut host, "a reclaim");
    assert_eq!(host.escrow.pages(FrameState::UnlockedZeroed), 0);
    host.guest_call(vcpu, call::MEM_SHARE_BACK, &[GUEST + 8 * MODIFY_MAX, MODIFY_MAX]).unwrap();
    check_bound(&mut host, "sharing back");
    let opened: Vec<_> =
        (256..288).map(|n| MemEntry::new(FREE + n * BLOCK_SIZE, 9, 0, Rights::NONE)).collect();
    let [list, count] = host.list(&opened);
    host.call(call::MEM_TAKE_BACK, &[list, count]).unwrap();
    check_bound(&mut host, "taking back");
}

#[test]
fn no_donation_works_on_more_than_2_mib_at_a_time() {
    let mut host = interrupted();
    let (vm, vcpu) = started(&mut host);
    host.give(call::MEM_DONATE, vm, &blocks(500)).unwrap();
    check_bound(&mut host, "a donation");
    guests_list(&mut host, vm, &own_blocks(500));
    // What comes home is cleaned whatever the CPU forces.
    host.escrow.machine.forces_write_back.store(true, Ordering::Relaxed);
    host.guest_call(vcpu, call::MEM_DONATE, &[Handle::HOST, LISTS, 500]).unwrap();
    check_bound(&mut host, "a guest's donation");
    assert_eq!(host.escrow.pages(FrameState::Donated), 0);
    assert!(host.reaches(FREE) && host.reaches(FREE + 499 * BLOCK_SIZE));
}

#[test]
fn no_guest_works_on_more_than_2_mib_at_a_time() {
    let mut host = interrupted();
    let (a, a_vcpu) = started(&mut host);
    let (b, b_vcpu) = started(&mut host);
    host.give(call::MEM_DONATE, a, &blocks(40)).unwrap();
    let [cap, ..] =
        host.call(call::CAP_GRANT, &[a, b, call::RIGHT_LEND, GUEST, 40 * BLOCK_SIZE]).unwrap();
    let entry = |n| MemEntry::new(GUEST + n * BLOCK_SIZE, 9, GUEST + n * BLOCK_SIZE, Rights::ALL);
    guests_list(&mut host, a, &(0..40).map(entry).collect::<Vec<_>>());
    check_bound(&mut host, "a donation");
    host.guest_call(a_vcpu, call::MEM_LEND, &[cap, LISTS, 40]).unwrap();
    check_bound(&mut host, "a guest's lend");
    let unlock = [0, GUEST, 32 * BLOCK_SIZE, UNLOCK_ZEROED];
    host.guest_call(b_vcpu, call::MODIFY_PAGES, &unlock).unwrap();
    check_bound(&mut host, "sanitizing");
    host.write_list(&own_blocks(32), |n| FREE + 510 * BLOCK_SIZE + n * PAGE_SIZE);
    host.guest_call(a_vcpu, call::MEM_RECLAIM, &[LISTS, 32]).unwrap();
    check_bound(&mut host, "a guest's reclaim");
    assert_eq!(host.escrow.pages(FrameState::Lent), 8 * 512);
}

#[test]
fn a_list_of_many_blocks_is_done_in_portions_also_without_contents() {
    let mut host = interrupted();
    host.escrow.machine.forces_write_back.store(true, Ordering::Relaxed);
    let (vm, _) = host.create(8);
    let list: Vec<_> =
        (0..500).map(|n| page(FREE + n * BLOCK_SIZE, GUEST + n * PAGE_SIZE)).collect();
    host.lend(vm, &list).unwrap();
    assert_eq!(host.restarts, 500 / 16, "each takes a block apart");
    host.restarts = 0;
    // Without contents and in few blocks it is one step, as always.
    host.lend(
        vm,
        &(0..60)
            .map(|n| block(FREE + (500 + n) * BLOCK_SIZE, 0x4000_0000 + n * BLOCK_SIZE))
            .take(11)
            .collect::<Vec<_>>(),
    )
    .unwrap();
    assert_eq!(host.restarts, 0);
}

/// So many pages, the same of each of 70 blocks in turn, which go to the guest's addresses
/// that are named.
fn of_70_blocks(pages: core::ops::Range<u64>, guest: u64) -> Vec<MemEntry> {
    let places = pages.flat_map(|page| (0..70).map(move |block| (page, block)));
    let frames = places.map(|(page, block)| FREE + block * BLOCK_SIZE + page * PAGE_SIZE);
    (0..).zip(frames).map(|(n, frame)| page(frame, guest + n * PAGE_SIZE)).collect()
}

#[test]
fn pages_of_blocks_that_stay_split_are_one_portion() {
    let mut host = interrupted();
    host.escrow.machine.forces_write_back.store(true, Ordering::Relaxed);
    let (vm, _) = host.create(128);
    let mut guest = 0;
    let mut lend = |host: &mut Host, pages: core::ops::Range<u64>| {
        let list = of_70_blocks(pages, guest);
        guest += list.len() as u64 * PAGE_SIZE;
        host.restarts = 0;
        host.lend(vm, &list).unwrap();
        host.restarts
    };
    assert_eq!(lend(&mut host, 0..1), 70 / 16, "each block is split");
    assert_eq!(lend(&mut host, 1..8), 0, "490 times another block, and no work on any");
    for page in (8..505).step_by(7) {
        assert_eq!(lend(&mut host, page..page + 7), 0);
    }
    // Whose last pages leave become whole again, whatever the guest makes of them.
    assert_eq!(lend(&mut host, 505..511), 0);
    assert_eq!(lend(&mut host, 511..512), 70 / 16, "no page is at home");
    assert_eq!(host.escrow.pages(FrameState::Lent), 70 * 512);
    // On the way home each block is work, for there are guests' maps.
    let list: Vec<_> = (0..70).map(|n| (FREE + n * BLOCK_SIZE, 0)).collect();
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    host.restarts = 0;
    host.reclaim(&list).unwrap();
    assert_eq!(host.restarts, 70 / 16);
}

#[test]
fn a_vm_is_made_of_few_blocks() {
    let mut host = interrupted();
    let before = host.snapshot();
    let page_of = |n: u64| MemEntry::new(FREE + n * BLOCK_SIZE, 0, 0, Rights::NONE);
    let [list, count] = host.list(&(0..65).map(page_of).collect::<Vec<_>>());
    let refused = host.call(call::VM_CREATE, &[list, count]);
    assert_eq!(refused, Err((Error::InvalidSize, 0, 0)));
    assert_eq!(host.snapshot(), before);
    // As many as a list holds, in no order.
    let entry =
        |n: u64| MemEntry::new(FREE + n % 2 * BLOCK_SIZE + n / 2 * PAGE_SIZE, 0, 0, Rights::NONE);
    let [list, count] = host.list(&(0..512).map(entry).collect::<Vec<_>>());
    host.call(call::VM_CREATE, &[list, count]).unwrap();
    assert_eq!((host.escrow.pages(FrameState::Metadata), host.restarts), (512, 0));
}

/// A guest lends a block page by page, and lists it again and again.
#[test]
fn a_list_of_blocks_that_a_guest_has_as_pages_is_looked_through_a_few_at_a_time() {
    let mut host = interrupted();
    host.escrow.machine.forces_write_back.store(true, Ordering::Relaxed);
    let (a, a_vcpu) = started(&mut host);
    let (b, _) = started(&mut host);
    host.give(call::MEM_DONATE, a, &blocks(2)).unwrap();
    let [cap, ..] =
        host.call(call::CAP_GRANT, &[a, b, call::RIGHT_LEND, GUEST, 2 * BLOCK_SIZE]).unwrap();
    for half in 0..2 {
        let own = |n: u64| GUEST + half * BLOCK_SIZE + n * PAGE_SIZE;
        let entry = |n| MemEntry::new(own(n), 0, own(n), Rights::ALL);
        let entries: Vec<_> = (0..512).map(entry).collect();
        match half {
            0 => guests_list(&mut host, a, &entries),
            _ => host.write_list(&entries, |n| FREE + 510 * BLOCK_SIZE + n * PAGE_SIZE),
        }
        host.guest_call(a_vcpu, call::MEM_LEND, &[cap, LISTS, 512]).unwrap();
    }
    assert_eq!(host.escrow.pages(FrameState::Lent), 1024);
    let again: Vec<_> = own_blocks(2).into_iter().cycle().take(512).collect();
    host.write_list(&again, |n| FREE + 510 * BLOCK_SIZE + n * PAGE_SIZE);
    host.restarts = 0;
    let refused = host.guest_call(a_vcpu, call::MEM_RECLAIM, &[LISTS, 512]);
    assert_eq!(refused, Err((Error::Overlap, 2, 0)));
    assert_eq!(host.restarts, 511 / 64, "after each 64 tables but the last");
}

/// Nor by saying that the list was checked.
#[test]
fn no_portion_looks_at_more_tables_than_it_has_blocks() {
    let mut host = Host::new();
    host.escrow.machine.forces_write_back.store(true, Ordering::Relaxed);
    let (a, a_vcpu) = started(&mut host);
    let (b, _) = started(&mut host);
    host.give(call::MEM_DONATE, a, &blocks(1)).unwrap();
    let [cap, ..] =
        host.call(call::CAP_GRANT, &[a, b, call::RIGHT_LEND, GUEST, BLOCK_SIZE]).unwrap();
    let own = |n: u64| GUEST + n * PAGE_SIZE;
    let lend: Vec<_> = (0..512).map(|n| MemEntry::new(own(n), 0, own(n), Rights::ALL)).collect();
    guests_list(&mut host, a, &lend);
    host.guest_call(a_vcpu, call::MEM_LEND, &[cap, LISTS, 512]).unwrap();
    // The same block again and again.
    let list: Vec<_> = own_blocks(1).into_iter().cycle().take(512).collect();
    host.write_list(&list, |n| FREE + 510 * BLOCK_SIZE + n * PAGE_SIZE);
    host.run(a_vcpu, |escrow, mut run| {
        let mut scratch = Scratch::new();
        let mut x = [call::MEM_TAKE_BACK.into(), LISTS, 512, 0, 0, 0, 0, 1];
        let GuestCall::Return([x0, ..]) = escrow.guest_call(&mut scratch, &mut run, &mut x) else {
            panic!("no answer")
        };
        assert_eq!(x0, Error::Overlap.to_register());
        let looks = scratch.looks.made;
        assert!(looks <= PORTION_BLOCKS + 1, "one portion takes {looks} looks");
    });
}

/// Pages that the borrower has in order and the owner has not: in the ledger one record, in
/// the owner's map no block.
#[test]
fn nobody_leaves_out_a_look_by_saying_that_it_was_made() {
    let mut host = Host::new();
    let (a, a_vcpu) = started(&mut host);
    let (b, _) = started(&mut host);
    let place = |n: u64| GUEST + if n == 1 || n == 2 { 3 - n } else { n } * PAGE_SIZE;
    let pages: Vec<_> = (0..512).map(|n| page(FREE + n * PAGE_SIZE, place(n))).collect();
    host.give(call::MEM_DONATE, a, &pages).unwrap();
    let [cap, ..] =
        host.call(call::CAP_GRANT, &[a, b, call::RIGHT_LEND, GUEST, BLOCK_SIZE]).unwrap();
    let lend: Vec<_> =
        (0..512).map(|n| MemEntry::new(place(n), 0, GUEST + n * PAGE_SIZE, Rights::ALL)).collect();
    guests_list(&mut host, a, &lend);
    host.guest_call(a_vcpu, call::MEM_LEND, &[cap, LISTS, 512]).unwrap();
    host.call(call::VM_DESTROY, &[b]).unwrap();
    host.write_list(&own_blocks(1), |n| FREE + 510 * BLOCK_SIZE + n * PAGE_SIZE);
    for progress in [0, 1 << 16, 512 << 16, 0xffff << 16] {
        let args = [LISTS, 1, 0, 0, 0, 0, progress];
        let refused = host.guest_call(a_vcpu, call::MEM_RECLAIM, &args);
        assert_eq!(refused, Err((Error::InvalidAddress, 0, 0)), "{progress:#x}");
    }
    assert_eq!(host.escrow.pages(FrameState::Lent), 512);
}

#[test]
fn without_interrupts_a_long_call_is_made_once() {
    let mut host = Host::new();
    let (vm, _) = host.create(8);
    host.lend(vm, &blocks(100)).unwrap();
    assert_eq!(host.restarts, 0);
    assert_eq!(host.escrow.pages(FrameState::Lent), 100 * 512);
}

#[test]
fn a_long_call_is_checked_as_a_whole_first() {
    let mut host = interrupted();
    let (a, _) = host.create(8);
    let (b, b_vcpu) = started(&mut host);
    host.lend(a, &[block(FREE + 9 * BLOCK_SIZE, 0)]).unwrap();
    let before = host.snapshot();
    let lent = FrameState::Lent as u64;
    let refused = host.lend(b, &blocks(10));
    assert_eq!(refused, Err((Error::WrongState, 9, lent)), "the last one is another's");
    assert_eq!((host.done, host.restarts), (0, 0));
    assert_eq!(host.snapshot(), before);
    // A range of which the last page is missing.
    host.lend(b, &blocks(9)).unwrap();
    host.restarts = 0;
    let args = [0, GUEST, 10 * BLOCK_SIZE, UNLOCK_ZEROED];
    let refused = host.guest_call(b_vcpu, call::MODIFY_PAGES, &args);
    assert_eq!(refused, Err((Error::InvalidAddress, 0, 0)));
    assert_eq!(host.done, 0);
    assert!(host.restarts > 0, "while it was checked");
    assert_eq!(host.escrow.pages(FrameState::UnlockedZeroed), 0);
}

#[test]
fn a_call_whose_rest_changes_says_how_much_was_done() {
    let mut host = interrupted();
    let (a, _) = host.create(8);
    let (b, _) = host.create(8);
    let [list, count] = host.list(&blocks(5));
    let mut x = [call::MEM_LEND.into(), a, list, count, 0, 0, 0, 0];
    assert!(!host.makes_call(&mut x));
    assert!(!host.makes_call(&mut x));
    assert_eq!(host.escrow.pages(FrameState::Lent), 2 * 512);
    // In its list's memory the rest still stands; the fourth block is another's now.
    let mut other = [call::MEM_SHARE.into(), b, list + 0x8000, 1, 0, 0, 0, 0];
    host.write_list(&[block(FREE + 3 * BLOCK_SIZE, 0)], |_| list + 0x8000);
    assert!(host.makes_call(&mut other));
    assert_eq!(other[0], 0);
    assert!(!host.makes_call(&mut x), "the third");
    assert!(host.makes_call(&mut x));
    let shared = FrameState::Shared as u64;
    let expected = [Error::WrongState.to_register(), 3, shared, 3, 0];
    assert_eq!((&x[..5], x[7]), (&expected[..], 0));
    assert_eq!(host.guest_frame(a, GUEST + 2 * BLOCK_SIZE), Some(FREE + 2 * BLOCK_SIZE));
    assert_eq!(host.guest_frame(a, GUEST + 3 * BLOCK_SIZE), None);
    assert_eq!(host.guest_frame(a, GUEST + 4 * BLOCK_SIZE), None);
    assert!(host.reaches(FREE + 4 * BLOCK_SIZE));
}

#[test]
fn a_call_whose_vm_ends_in_its_middle_leaves_nothing_out_of_reach() {
    let mut host = interrupted();
    let (vm, metadata) = host.create(8);
    let before = host.snapshot().1;
    let [list, count] = host.list(&blocks(3));
    let mut x = [call::MEM_LEND.into(), vm, list, count, 0, 0, 0, 0];
    assert!(!host.makes_call(&mut x));
    let mut destroy = [call::VM_DESTROY.into(), vm, 0, 0, 0, 0, 0, 0];
    assert!(host.makes_call(&mut destroy));
    assert!(host.makes_call(&mut x));
    assert_eq!(x[..4], [Error::HandleRevoked.to_register(), 0, 0, 1]);
    host.reclaim(&frames(1)).unwrap();
    assert_eq!(host.snapshot().1, before);
    host.reclaim(&metadata).unwrap();
}

#[test]
fn who_lies_about_progress_leaves_out_entries_of_its_own() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    let [list, count] = host.list(&blocks(3));
    let before = host.snapshot();
    for progress in [3, 4, 512, 1 << 32, u64::MAX] {
        let mut x = [call::MEM_LEND.into(), vm, list, count, 0, 0, 0, progress];
        assert!(host.makes_call(&mut x));
        assert_eq!((x[0], x[7]), (Error::InvalidArgument.to_register(), 0), "{progress:#x}");
    }
    assert_eq!(host.snapshot(), before);
    let mut x = [call::MEM_LEND.into(), vm, list, count, 0, 0, 0, 2];
    assert!(host.makes_call(&mut x));
    assert_eq!((x[0], x[7]), (0, 0));
    assert_eq!(host.escrow.pages(FrameState::Lent), 512);
    assert_eq!(host.guest_frame(vm, GUEST + 2 * BLOCK_SIZE), Some(FREE + 2 * BLOCK_SIZE));
    // Calls that have no progress keep `x7` reserved, and leave it alone.
    let mut x = [call::VM_INFO.into(), vm, 0, 0, 0, 0, 0, 7];
    assert!(host.makes_call(&mut x));
    assert_eq!((x[0], x[7]), (Error::InvalidArgument.to_register(), 7));
    // A range.
    let at = GUEST + 2 * BLOCK_SIZE;
    for (progress, result) in [
        (512, Err((Error::InvalidArgument, 0, 0))),
        (513 << 32, Err((Error::InvalidArgument, 0, 0))),
        (1 << 62, Err((Error::InvalidArgument, 0, 0))),
        (511 | 512 << 32, Ok([0; 3])),
    ] {
        let args = [0, at, BLOCK_SIZE, UNLOCK_ZEROED, 0, 0, progress];
        assert_eq!(host.guest_call(vcpu, call::MODIFY_PAGES, &args), result, "{progress:#x}");
    }
    assert_eq!(host.escrow.pages(FrameState::UnlockedZeroed), 1);
}

#[test]
fn a_long_call_keeps_the_memory_of_its_list() {
    let mut host = interrupted();
    let (vm, _) = host.create(8);
    let before = host.snapshot();
    let lists_own = page(LIST, 0);
    let refused = host.lend(vm, &[lists_own, blocks(1)[0]]);
    assert_eq!(refused, Err((Error::Overlap, 0, 0)));
    assert_eq!(host.snapshot(), before);
    // What takes one portion has been read by then.
    host.lend(vm, &[lists_own]).unwrap();
}

/// That is one portion, of however many blocks.
#[test]
fn a_vm_is_created_of_the_memory_of_its_list_as_well() {
    let mut host = interrupted();
    let frames = (0..20).map(|n| FREE + n * BLOCK_SIZE).chain([LIST]);
    let entries: Vec<_> = frames.map(|at| MemEntry::new(at, 0, 0, Rights::NONE)).collect();
    let args = host.list(&entries);
    host.call(call::VM_CREATE, &args).unwrap();
    assert_eq!(host.escrow.pages(FrameState::Metadata), 21);
    assert!(!host.reaches(LIST));
}

/// By the word that says how much was done: what was done need not be as it was before.
#[test]
fn a_call_over_a_range_goes_on_behind_what_was_done() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.lend(vm, &blocks(2)).unwrap();
    host.guest_call(vcpu, call::MEM_SHARE_BACK, &[GUEST, BLOCK_SIZE]).unwrap();
    let all = [GUEST, 2 * BLOCK_SIZE, 0, 0, 0, 0, 0];
    assert_eq!(host.guest_call(vcpu, call::MEM_SHARE_BACK, &all), Err((Error::Denied, 0, 0)));
    let rest = [GUEST, 2 * BLOCK_SIZE, 0, 0, 0, 0, 512];
    assert_eq!(host.guest_call(vcpu, call::MEM_SHARE_BACK, &rest), Ok([0; 3]));
    assert_eq!(host.escrow.pages(FrameState::SharedBack), 1024);
}

/// Another CPU ends the owner of some of the pages while a guest's call works on the first.
#[test]
fn sharing_back_happens_for_all_or_for_none() {
    let mut host = Host::new();
    let (a, a_vcpu) = started(&mut host);
    let (b, b_vcpu) = started(&mut host);
    // Not side by side in memory, so that they are worked on one after the other.
    host.give(call::MEM_DONATE, a, &[page(FREE, 0x9000), page(FREE + 0x8000, 0xa000)]).unwrap();
    let own =
        |n: u64| MemEntry::new(0x9000 + n * PAGE_SIZE, 0, 0x6000 + n * PAGE_SIZE, Rights::ALL);
    guests_list(&mut host, a, &[own(0), own(1)]);
    let [cap, ..] = host.call(call::CAP_GRANT, &[a, b, call::RIGHT_LEND, 0x6000, 0x2000]).unwrap();
    host.guest_call(a_vcpu, call::MEM_LEND, &[cap, LISTS, 2]).unwrap();
    let host: &'static Host = Box::leak(Box::new(host));
    let escrow = &host.escrow;
    escrow.machine.at_work_on(FREE, move || {
        let mut x = [call::VM_DESTROY.into(), a, 0, 0, 0, 0, 0, 0];
        assert!(matches!(escrow.host_call(&mut Scratch::new(), &mut x), Reply::Answer));
        assert_eq!(x[0], 0, "the owner is dead");
    });
    let mut x = [call::VCPU_RUN.into(), b_vcpu, 0, 0, 0, 0, 0, 0];
    let scratch = &mut Scratch::new();
    let mut run = escrow.host_runs(&mut x).expect("a run");
    let share_back = [call::MEM_SHARE_BACK.into(), 0x6000, 0x2000, 0, 0, 0, 0, 0];
    run.regs.x[..8].copy_from_slice(&share_back);
    let ids = GuestIds::new(|_, _| 0, 39);
    assert_eq!(escrow.guest_exit(scratch, &mut run, HVC, &ids), Next::Enter);
    let open = (escrow.pages(FrameState::Lent), escrow.pages(FrameState::SharedBack));
    assert_eq!((run.regs.x[0], open), (0, (0, 2)));
}

/// A guest that has a table for each of so many blocks' addresses: empty ones, and from one on
/// with a page at their ends.
fn with_tables(host: &mut Host, tables: u64, full: core::ops::Range<u64>) -> u64 {
    let (vm, vcpu) = {
        let (vm, _) = host.create(tables + 8);
        let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
        host.call(call::VM_START, &[vm]).unwrap();
        (vm, vcpu)
    };
    let frames = FREE + 400 * BLOCK_SIZE;
    let last = BLOCK_SIZE - PAGE_SIZE;
    for n in 0..tables {
        host.lend(vm, &[page(frames + n * PAGE_SIZE, GUEST + n * BLOCK_SIZE + last)]).unwrap();
        if !full.contains(&n) {
            let at = GUEST + n * BLOCK_SIZE + last;
            host.guest_call(vcpu, call::MODIFY_PAGES, &[0, at, PAGE_SIZE, UNLOCK_ZEROED]).unwrap();
            host.reclaim(&[(frames + n * PAGE_SIZE, 0)]).unwrap();
        }
    }
    vm
}

#[test]
fn tables_that_blocks_come_in_the_place_of_are_looked_through_a_few_at_a_time() {
    let mut host = Host::new();
    host.escrow.machine.forces_write_back.store(true, Ordering::Relaxed);
    let vm = with_tables(&mut host, 150, 149..150);
    *host.escrow.machine.interrupts.lock().unwrap() = Interrupts::Always;
    let before = host.snapshot();
    host.restarts = 0;
    assert_eq!(host.lend(vm, &blocks(150)), Err((Error::GuestMapped, 149, 0)));
    assert_eq!((host.done, host.restarts), (0, 149 / 64), "after each 64 tables but the last");
    assert_eq!(host.snapshot(), before);
    host.restarts = 0;
    host.lend(vm, &blocks(149)).unwrap();
    assert_eq!(host.restarts, 149 / 64 + 149 / 16, "and then the portions");
    assert_eq!(host.guest_frame(vm, GUEST + 148 * BLOCK_SIZE), Some(FREE + 148 * BLOCK_SIZE));
}

/// Also one that is refused where its portion of looks ends, and one that says that it has
/// made looks.
#[test]
fn no_block_comes_where_a_table_is_not_empty() {
    let mut host = interrupted();
    host.escrow.machine.forces_write_back.store(true, Ordering::Relaxed);
    let vm = with_tables(&mut host, 66, 63..64);
    let before = host.snapshot();
    for count in [64, 65, 66] {
        // The last look of the first step finds it, at whatever place of the list it is.
        let mut list = blocks(count);
        for index in [63, count - 1] {
            assert_eq!(host.lend(vm, &list), Err((Error::GuestMapped, index, 0)));
            assert_eq!((host.done, host.snapshot() == before), (0, true), "{count}");
            list.rotate_right(count as usize - 64);
        }
    }
    let [list, _] = host.list(&blocks(64)[63..]);
    for looks in [1, 64, 512, 0xffff] {
        let args = [vm, list, 1, 0, 0, 0, looks << 16];
        assert_eq!(host.call(call::MEM_LEND, &args), Err((Error::GuestMapped, 0, 0)), "{looks}");
        assert_eq!((host.done, host.snapshot() == before), (0, true), "{looks}");
    }
}
