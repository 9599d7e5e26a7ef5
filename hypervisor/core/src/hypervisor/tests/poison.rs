// SPDX-License-Identifier: MIT OR Apache-2.0

//! Broken memory that guests own.

use std::sync::atomic::Ordering;

use escrow_abi::{Error, FrameState, Handle, MemEntry, ORDER_BLOCK, Rights, call};

use super::fake::{FREE, Host};
use super::{block, page, started};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PhysAddr};
use crate::ledger::GuestId;

pub(super) fn entry_is_poisoned(host: &Host, vm: u64, at: u64) -> bool {
    let slot = Handle::from_register(vm).unwrap().slot;
    let vm = host.escrow.slots.get(GuestId::new(slot).unwrap()).unwrap().lock();
    let map = vm.map.as_ref().unwrap();
    map.lookup(&host.escrow.machine, Ipa(at)).entry.is_poisoned()
}

#[test]
fn broken_memory_that_a_guest_owns_goes_out_of_use() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.give(call::MEM_DONATE, vm, &[page(FREE, 0x5000), page(FREE + 0x1000, 0x7000)]).unwrap();
    host.escrow.machine.forget();
    host.take(call::MEM_POISON, &[(FREE, 0)]).unwrap();
    assert!(entry_is_poisoned(&host, vm, 0x5000));
    let context = host.guest_context(1);
    assert!(host.escrow.machine.invalidations(context.vttbr, Ipa(0x5000)) > 0);
    assert_eq!(host.guest_frame(vm, 0x7000), Some(FREE + 0x1000), "what is beside it stays");
    assert_eq!(host.escrow.pages(FrameState::Poisoned), 1);
    assert_eq!(host.escrow.pages(FrameState::Donated), 1);
    // Its address is taken, and it is nobody's any more.
    let again = host.lend(vm, &[page(FREE + 0x2000, 0x5000)]);
    assert_eq!(again, Err((Error::GuestMapped, 0, 0)));
    host.write_list(&[MemEntry::new(0x5000, 0, 0, Rights::NONE)], |_| FREE + 0x1000);
    let given_back = host.guest_call(vcpu, call::MEM_DONATE, &[Handle::HOST, 0x7000, 1]);
    assert_eq!(given_back, Err((Error::InvalidAddress, 0, 0)));
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    host.reclaim(&[(FREE + 0x1000, 0)]).unwrap();
}

/// The ledger does not say where the owner has them.
#[test]
fn broken_memory_that_a_guest_has_given_to_another_leaves_both() {
    for function in [call::MEM_SHARE, call::MEM_LEND] {
        let mut host = Host::new();
        let (owner, owner_vcpu) = started(&mut host);
        let (other, _) = started(&mut host);
        let far = FREE + 3 * BLOCK_SIZE;
        let whole = [page(FREE, 0x1000), page(FREE + 0x1000, 0x5000), block(far, BLOCK_SIZE)];
        host.give(call::MEM_DONATE, owner, &whole).unwrap();
        let rights = call::RIGHT_LEND | call::RIGHT_SHARE;
        let window = [owner, other, rights, 0, 8 * BLOCK_SIZE];
        let [cap, ..] = host.call(call::CAP_GRANT, &window).unwrap();
        // A page of the block, to an address that says nothing of the owner's.
        let entries = [page(0x5000, 0x9000), page(BLOCK_SIZE + 3 * PAGE_SIZE, 5 * BLOCK_SIZE)];
        host.write_list(&entries, |_| FREE);
        host.guest_call(owner_vcpu, function, &[cap, 0x1000, 2]).unwrap();
        let broken = [(FREE + 0x1000, 0), (far + 3 * PAGE_SIZE, 0)];
        host.escrow.machine.forget();
        host.take(call::MEM_POISON, &broken).unwrap();
        for at in [0x5000, BLOCK_SIZE + 3 * PAGE_SIZE] {
            assert!(entry_is_poisoned(&host, owner, at), "the owner at {at:#x}");
        }
        for at in [0x9000, 5 * BLOCK_SIZE] {
            assert!(entry_is_poisoned(&host, other, at), "the borrower at {at:#x}");
        }
        assert_eq!(host.guest_frame(owner, BLOCK_SIZE), Some(far));
        assert_eq!(host.escrow.pages(FrameState::Poisoned), 2);
        assert_eq!(host.escrow.pages(FrameState::Donated), 512);
        for slot in [1, 2] {
            let context = host.guest_context(slot);
            let at = [0x5000, 0x9000][usize::from(slot) - 1];
            assert!(host.escrow.machine.invalidations(context.vttbr, Ipa(at)) > 0);
        }
        host.call(call::VM_DESTROY, &[owner]).unwrap();
        host.call(call::VM_DESTROY, &[other]).unwrap();
    }
}

/// Two guests, of which the first owns what the entries name and may give it to the second at
/// the same addresses; `tables` are for it beside those.
fn owner_and_borrower(host: &mut Host, tables: u64, entries: &[MemEntry]) -> [u64; 4] {
    let (owner, _) = host.create(8 + tables);
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[owner, 0]).unwrap();
    host.call(call::VM_START, &[owner]).unwrap();
    let (borrower, _) = started(host);
    host.give(call::MEM_DONATE, owner, entries).unwrap();
    let rights = call::RIGHT_LEND | call::RIGHT_SHARE;
    let window = [owner, borrower, rights, 0, 512 * BLOCK_SIZE];
    let [cap, ..] = host.call(call::CAP_GRANT, &window).unwrap();
    [owner, vcpu, borrower, cap]
}

/// Where owners have their lists in these tests.
const LISTS: u64 = 0x1000;

/// Has a guest make a call with a list, in pages that the host shares with it.
fn with_list(host: &mut Host, (vcpu, function): (u64, u32), cap: u64, entries: &[MemEntry]) {
    host.write_list(entries, |n| FREE + n * PAGE_SIZE);
    host.guest_call(vcpu, function, &[cap, LISTS, entries.len() as u64]).unwrap();
}

fn share_lists(host: &mut Host, vm: u64) {
    let pages: Vec<_> = (0..4).map(|n| page(FREE + n * PAGE_SIZE, LISTS + n * PAGE_SIZE)).collect();
    host.share(vm, &pages).unwrap();
}

/// It does not depend on how much else the owner has.
#[test]
fn the_owner_of_broken_memory_is_found_without_a_search() {
    let found = |tables: u64| {
        let mut host = Host::new();
        let own = |n: u64| page(FREE + BLOCK_SIZE + n * PAGE_SIZE, n * BLOCK_SIZE);
        let entries: Vec<_> = (1..1 + tables).map(own).collect();
        let [owner, vcpu, _, cap] = owner_and_borrower(&mut host, tables, &entries);
        share_lists(&mut host, owner);
        with_list(&mut host, (vcpu, call::MEM_SHARE), cap, &[page(BLOCK_SIZE, 0x9000)]);
        host.escrow.machine.tables_found.store(0, Ordering::Relaxed);
        host.take(call::MEM_POISON, &[(FREE + BLOCK_SIZE + PAGE_SIZE, 0)]).unwrap();
        assert!(entry_is_poisoned(&host, owner, BLOCK_SIZE));
        host.escrow.machine.tables_found.load(Ordering::Relaxed)
    };
    assert_eq!(found(2), found(200));
}

/// A block of frames that its borrower has in order, so that one record stands for it, and
/// its owner here and there.
#[test]
fn a_broken_block_leaves_its_owners_scattered_addresses() {
    for by_pages in [false, true] {
        let mut host = Host::new();
        let far = FREE + 3 * BLOCK_SIZE;
        // The owner has the pages of both halves the other way round, and two of them apart.
        let place = |n: u64| match n {
            7 => 9 * BLOCK_SIZE,
            300 => 10 * BLOCK_SIZE,
            n => BLOCK_SIZE + (n ^ 256) * PAGE_SIZE,
        };
        let entries: Vec<_> = (0..512).map(|n| page(far + n * PAGE_SIZE, place(n))).collect();
        let [owner, vcpu, borrower, cap] = owner_and_borrower(&mut host, 8, &entries);
        share_lists(&mut host, owner);
        let at = |n: u64| 4 * BLOCK_SIZE + n * PAGE_SIZE;
        let lent: Vec<_> = (0..512).map(|n| page(place(n), at(n))).collect();
        with_list(&mut host, (vcpu, call::MEM_LEND), cap, &lent);
        let ledger = host.escrow.ledger();
        assert!(!ledger.is_split(ledger.locate(PhysAddr(far)).unwrap()), "one record");
        if by_pages {
            // Also when the first call has split the block.
            for some in [&[0, 7][..], &[299, 300, 511]] {
                let some: Vec<_> = some.iter().map(|n| (far + n * PAGE_SIZE, 0)).collect();
                host.take(call::MEM_POISON, &some).unwrap();
            }
        } else {
            host.take(call::MEM_POISON, &[(far, ORDER_BLOCK)]).unwrap();
        }
        for n in 0..512 {
            let broken = !by_pages || [0, 7, 299, 300, 511].contains(&n);
            assert_eq!(entry_is_poisoned(&host, owner, place(n)), broken, "the owner's {n}");
            assert_eq!(entry_is_poisoned(&host, borrower, at(n)), broken, "the borrower's {n}");
        }
    }
}

/// What is noted of a frame's owner is what it was when the frame was given last.
#[test]
fn the_owners_address_is_that_of_the_last_time() {
    let mut host = Host::new();
    let far = FREE + 3 * BLOCK_SIZE;
    let [owner, vcpu, borrower, cap] =
        owner_and_borrower(&mut host, 8, &[block(far, 2 * BLOCK_SIZE)]);
    share_lists(&mut host, owner);
    let whole = block(2 * BLOCK_SIZE, 2 * BLOCK_SIZE);
    with_list(&mut host, (vcpu, call::MEM_SHARE), cap, &[whole]);
    let back = [MemEntry::new(2 * BLOCK_SIZE, ORDER_BLOCK, 0, Rights::NONE)];
    host.write_list(&back, |_| FREE);
    host.guest_call(vcpu, call::MEM_UNSHARE, &[LISTS, 1]).unwrap();
    host.guest_call(vcpu, call::MEM_DONATE, &[Handle::HOST, LISTS, 1]).unwrap();
    // A page of it by itself, elsewhere, and the one behind it as the host's own.
    host.give(call::MEM_DONATE, owner, &[page(far + PAGE_SIZE, 0x7000)]).unwrap();
    with_list(&mut host, (vcpu, call::MEM_SHARE), cap, &[page(0x7000, 0x9000)]);
    assert!(host.reaches(far) && !host.reaches(far + PAGE_SIZE));
    assert!(host.reaches(far + 2 * PAGE_SIZE));
    host.take(call::MEM_POISON, &[(far + PAGE_SIZE, 0)]).unwrap();
    assert!(entry_is_poisoned(&host, owner, 0x7000) && entry_is_poisoned(&host, borrower, 0x9000));
    assert!(!entry_is_poisoned(&host, owner, 2 * BLOCK_SIZE + PAGE_SIZE));
}
