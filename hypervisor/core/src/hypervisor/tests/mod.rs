// SPDX-License-Identifier: MIT OR Apache-2.0

mod broken;
mod doorbells;
pub(crate) mod fake;
mod frames;
mod histories;
mod lists;
mod poison;
mod portions;
mod protect;
mod reset;
mod runs;
mod slots;
mod trace;
mod traces;

use escrow_abi::errata::{Erratum, Hardening};
use escrow_abi::{Error, FrameState, Handle, MemEntry, ORDER_BLOCK, ORDER_PAGE, Rights, call};

use std::sync::atomic::Ordering;

use super::{HostAbort, Reply};
use crate::addr::{Ipa, PAGE_SIZE, PhysAddr};
use crate::errata::Errata;
use fake::{ESCROW, FREE, Host, PINNED};

fn page(at: u64, guest: u64) -> MemEntry {
    MemEntry::new(at, ORDER_PAGE, guest, Rights::ALL)
}

fn block(at: u64, guest: u64) -> MemEntry {
    MemEntry::new(at, ORDER_BLOCK, guest, Rights::ALL)
}

fn started(host: &mut Host) -> (u64, u64) {
    let (vm, _) = host.create(8);
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    host.call(call::VM_START, &[vm]).unwrap();
    (vm, vcpu)
}

fn unlock(host: &mut Host, vcpu: u64, at: u64, size: u64, flags: u64) -> Result<(), Error> {
    let called = host.guest_call(vcpu, call::MODIFY_PAGES, &[0, at, size, flags]);
    called.map(drop).map_err(|refused| refused.0)
}

const UNLOCK_ZEROED: u64 = call::MODIFY_UNLOCK | call::MODIFY_SANITIZE;

#[test]
fn the_host_begins_with_all_but_escrows_own() {
    let mut host = Host::new();
    assert!(host.reaches(FREE));
    assert!(host.reaches(PINNED.base.0));
    assert!(host.reaches(0x0900_0000), "MMIO");
    assert!(!host.reaches(ESCROW.base.0));
    assert!(!host.reaches(ESCROW.end() - 1));
    assert_eq!(host.touches(ESCROW.base.0), HostAbort::Inject);
    assert_eq!(host.touches(FREE), HostAbort::Retry);
    assert_eq!(host.touches(1 << 40), HostAbort::Inject);
}

#[test]
fn a_lent_page_is_the_guests_alone() {
    let mut host = Host::new();
    let (vm, _) = host.create(4);
    host.lend(vm, &[page(FREE, 0x8000_0000)]).unwrap();
    assert!(!host.reaches(FREE));
    assert!(host.reaches(FREE + PAGE_SIZE));
    assert_eq!(host.guest_frame(vm, 0x8000_0000), Some(FREE));
    assert_eq!(host.guest_frame(vm, 0x8000_1000), None);
    assert_eq!(host.touches(FREE), HostAbort::Inject);
}

#[test]
fn no_translation_of_a_lent_page_survives() {
    let mut host = Host::new();
    let (vm, _) = host.create(8);
    // The first page splits the block, which invalidates for another reason.
    host.lend(vm, &[page(FREE, 0x8000_0000)]).unwrap();
    let machine = host.escrow.host_context().vttbr;
    let seen = |host: &Host, vttbr, at| host.escrow.machine.invalidations(vttbr, Ipa(at));
    let split = seen(&host, machine, FREE + 0x3000);
    host.lend(vm, &[page(FREE + 0x3000, 0x8000_3000)]).unwrap();
    assert_eq!(seen(&host, machine, FREE + 0x3000), split + 1);
    let many: Vec<_> =
        (16..48).map(|n| page(FREE + n * PAGE_SIZE, 0x8000_0000 + n * PAGE_SIZE)).collect();
    host.lend(vm, &many).unwrap();
    for n in 16..48 {
        assert_eq!(seen(&host, machine, FREE + n * PAGE_SIZE), split + 1);
    }
    let scattered: Vec<_> =
        (50..90).map(|n| page(FREE + 2 * n * PAGE_SIZE, 0x8000_0000 + n * PAGE_SIZE)).collect();
    host.lend(vm, &scattered).unwrap();
    for n in 50..90 {
        assert_eq!(seen(&host, machine, FREE + 2 * n * PAGE_SIZE), split + 1);
    }
    let before = seen(&host, machine, FREE + 0x40_0000);
    host.lend(vm, &[block(FREE + 0x40_0000, 0x8040_0000)]).unwrap();
    assert_eq!(seen(&host, machine, FREE + 0x40_0000), before + 1);
    assert_eq!(seen(&host, machine, FREE + 0x5f_f000), before + 1);
}

#[test]
fn no_translation_of_a_guest_survives_what_it_loses() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    let guest = host.run(vcpu, |el2, run| el2.context_of(&run).vttbr);
    let seen = |host: &Host, at| host.escrow.machine.invalidations(guest, Ipa(at));
    host.share(vm, &[page(FREE, 0x1000), block(FREE + 0x20_0000, 0x20_0000)]).unwrap();
    host.lend(vm, &[page(FREE + 0x1000, 0x2000)]).unwrap();
    assert_eq!((seen(&host, 0x1000), seen(&host, 0x2000)), (0, 0));
    host.take(call::MEM_UNSHARE, &[(FREE, 0)]).unwrap();
    assert_eq!((seen(&host, 0x1000), seen(&host, 0x2000)), (1, 0));
    unlock(&mut host, vcpu, 0x2000, PAGE_SIZE, UNLOCK_ZEROED).unwrap();
    assert_eq!(seen(&host, 0x2000), 0, "it keeps the page until it is fetched");
    host.reclaim(&[(FREE + 0x1000, 0)]).unwrap();
    assert_eq!(seen(&host, 0x2000), 1);
    // A page out of a block: the block's translation goes before the table
    // comes, then the page's.
    host.take(call::MEM_UNSHARE, &[(FREE + 0x20_0000 + 0x5000, 0)]).unwrap();
    assert_eq!((seen(&host, 0x20_0000), seen(&host, 0x20_5000)), (1, 2));
}

#[test]
fn an_entry_that_changes_its_shape_is_broken_first() {
    let mut host = Host::new();
    let (vm, _) = host.create(8);
    let machine = host.escrow.host_context().vttbr;
    let seen = |host: &Host, at| host.escrow.machine.invalidations(machine, Ipa(at));
    // The GiB, then the block: FREE begins both.
    host.share(vm, &[page(FREE + 0x7000, 0)]).unwrap();
    assert_eq!(seen(&host, FREE), 2);
    assert_eq!(seen(&host, FREE + 0x7000), 2, "the same: the host keeps it");
    host.take(call::MEM_UNSHARE, &[(FREE + 0x7000, 0)]).unwrap();
    assert_eq!(seen(&host, FREE), 4, "made whole again, the block and the GiB");
}

#[test]
fn a_report_with_an_excess_refuses_the_whole_call() {
    let mut host = Host::new();
    let (vm, _) = host.create(4);
    let before = host.snapshot();
    let good = page(FREE, 0x8000_0000);
    for (place, bad) in [
        (0, page(FREE + 0x1000, 0x8000_1000).with_report(2, 1, 0)),
        (1, page(FREE + 0x1000, 0x8000_1000).with_report(1025, 1, 0)),
    ] {
        let mut list = vec![good];
        list.insert(place, bad);
        let excess = bad.excess() as u64;
        assert_eq!(host.lend(vm, &list), Err((Error::Excess, place as u64, excess)));
    }
    let used = page(FREE, 0x8000_0000).with_report(1, 1, 3);
    assert_eq!(host.lend(vm, &[used]), Err((Error::Accessible, 0, 3)));
    let negative = page(FREE, 0x8000_0000).with_report(1, 2, 0);
    assert_eq!(host.lend(vm, &[negative]), Err((Error::Excess, 0, -1i64 as u64)));
    assert_eq!(host.snapshot(), before);
}

#[test]
fn one_bad_entry_anywhere_refuses_all() {
    let mut host = Host::new();
    let (vm, _) = host.create(6);
    let (other, _) = host.create(4);
    host.lend(other, &[page(FREE + 0x10_0000, 0)]).unwrap();
    let before = host.snapshot();
    let bad = [
        (page(FREE + 0x10_0000, 0x8010_0000), Error::WrongState),
        (page(ESCROW.base.0, 0x8010_0000), Error::NotOwner),
        (page(PINNED.base.0, 0x8010_0000), Error::Pinned),
        (page(0x0900_0000, 0x8010_0000), Error::InvalidAddress),
        (page(!0xfff, 0x8010_0000), Error::InvalidAddress),
        (page(FREE + 0x800, 0x8010_0000), Error::InvalidArgument),
        (page(FREE + 0x20_0000, 1 << 39), Error::AddressOverflow),
        (block(FREE + 0x1000, 0x8020_0000), Error::Misaligned),
        (block(FREE + 0x40_0000, 0x8010_0000), Error::Misaligned),
        (page(FREE, 0x8010_0000), Error::Overlap),
        (page(FREE + 0x30_0000, 0x8000_0000), Error::Overlap),
        (MemEntry::new(FREE + 0x30_0000, 0, 0x8010_0000, Rights::NONE), Error::InvalidArgument),
        (MemEntry { reserved: 1, ..page(FREE + 0x30_0000, 0x8010_0000) }, Error::InvalidArgument),
    ];
    for (entry, error) in bad {
        for place in 0..3 {
            let mut list = vec![page(FREE, 0x8000_0000), page(FREE + 0x5000, 0x8000_5000)];
            list.insert(place, entry);
            let refused = host.lend(vm, &list).unwrap_err();
            assert_eq!(refused.0, error, "{entry:x?} at {place}");
            if error != Error::Overlap {
                assert_eq!(refused.1, place as u64, "{entry:x?} at {place}");
            }
        }
    }
    assert_eq!(host.snapshot(), before);
}

#[test]
fn lists_need_not_be_sorted() {
    let mut host = Host::new();
    let (vm, _) = host.create(6);
    let list: Vec<_> =
        [7, 2, 513, 0].iter().map(|n| page(FREE + n * PAGE_SIZE, (900 - n) * PAGE_SIZE)).collect();
    host.lend(vm, &list).unwrap();
    for n in [7, 2, 513, 0] {
        assert_eq!(host.guest_frame(vm, (900 - n) * PAGE_SIZE), Some(FREE + n * PAGE_SIZE));
        assert!(!host.reaches(FREE + n * PAGE_SIZE));
    }
}

#[test]
fn a_full_list_of_pages_is_one_call() {
    let mut host = Host::new();
    let before = host.snapshot();
    let (vm, metadata) = host.create(4);
    let list: Vec<_> =
        (0..512).map(|n| page(FREE + n * PAGE_SIZE, 0x8000_0000 + n * PAGE_SIZE)).collect();
    host.lend(vm, &list).unwrap();
    assert_eq!(host.escrow.pages(FrameState::Lent), 512);
    assert_eq!(host.lend(vm, &[page(FREE, 0x9000_0000); 513]).unwrap_err().0, Error::InvalidSize);
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    let frames: Vec<_> = list.iter().map(|e| (e.frame, 0)).collect();
    host.reclaim(&frames).unwrap();
    host.reclaim(&metadata).unwrap();
    assert_eq!(host.snapshot(), before);
}

#[test]
fn running_out_of_tables_says_how_many_and_changes_nothing() {
    let mut host = Host::new();
    let (vm, _) = host.create(1);
    let before = host.snapshot();
    let list = [page(FREE, 0), page(FREE + 0x1000, 0x1000), page(FREE + 0x2000, 0x4000_0000)];
    // Two level-2 and two level-3 tables.
    assert_eq!(host.lend(vm, &list), Err((Error::NoMemory, 0, 4)));
    assert_eq!(host.snapshot(), before);
    let more = host.fresh_metadata(4);
    host.give(call::VM_TOP_UP, vm, &more).unwrap();
    host.lend(vm, &list).unwrap();
    assert_eq!(host.call(call::VM_INFO, &[vm]).unwrap(), [0, 3, 5, 0]);
}

#[test]
fn a_locked_page_stays_with_its_guest() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.lend(vm, &[page(FREE, 0x8000_0000)]).unwrap();
    host.escrow.machine.scribble(FREE);
    assert_eq!(host.reclaim(&[(FREE, 0)]), Err((Error::Locked, 0, 0)));
    assert!(!host.reaches(FREE));
    unlock(&mut host, vcpu, 0x8000_0000, PAGE_SIZE, UNLOCK_ZEROED).unwrap();
    assert_eq!(host.guest_frame(vm, 0x8000_0000), Some(FREE), "reached until it is fetched");
    // What the guest writes after it unlocked stays its own as well.
    host.escrow.machine.scribble(FREE);
    host.reclaim(&[(FREE, 0)]).unwrap();
    assert!(host.reaches(FREE));
    assert!(host.escrow.machine.is_zero(FREE));
    assert_eq!(host.guest_frame(vm, 0x8000_0000), None);
}

#[test]
fn contents_are_passed_on_only_when_the_guest_says_so() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.lend(vm, &[page(FREE, 0x8000_0000), page(FREE + 0x1000, 0x8000_1000)]).unwrap();
    host.escrow.machine.scribble(FREE);
    host.escrow.machine.scribble(FREE + 0x1000);
    unlock(&mut host, vcpu, 0x8000_0000, PAGE_SIZE, call::MODIFY_UNLOCK).unwrap();
    host.escrow.machine.cleaned.lock().unwrap().clear();
    host.reclaim(&[(FREE, 0)]).unwrap();
    assert!(!host.escrow.machine.is_zero(FREE));
    let cleaned = host.escrow.machine.cleaned.lock().unwrap().clone();
    assert_eq!(cleaned, [FREE], "what memory held before is not the host's to see");
    // A guest that died takes its contents with it.
    unlock(&mut host, vcpu, 0x8000_1000, PAGE_SIZE, call::MODIFY_UNLOCK).unwrap();
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    host.reclaim(&[(FREE + 0x1000, 0)]).unwrap();
    assert!(host.escrow.machine.is_zero(FREE + 0x1000));
}

#[test]
fn a_guest_unlocks_all_of_a_range_or_none() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.lend(vm, &[page(FREE, 0x8000_0000)]).unwrap();
    host.share(vm, &[page(FREE + 0x1000, 0x8000_1000)]).unwrap();
    let mut refused = |at, size, flags| unlock(&mut host, vcpu, at, size, flags).unwrap_err();
    assert_eq!(refused(0x8000_0000, 0x2000, UNLOCK_ZEROED), Error::Denied);
    assert_eq!(refused(0x7fff_f000, 0x2000, UNLOCK_ZEROED), Error::InvalidAddress);
    assert_eq!(refused(0x8000_0800, 0x1000, UNLOCK_ZEROED), Error::Misaligned);
    assert_eq!(refused(0x8000_0000, 0, UNLOCK_ZEROED), Error::InvalidSize);
    assert_eq!(refused(0x8000_0000, 0x1000, 8), Error::InvalidArgument);
    assert_eq!(refused(!0xfff, 0x1000, UNLOCK_ZEROED), Error::AddressOverflow);
    assert_eq!(host.reclaim(&[(FREE, 0)]), Err((Error::Locked, 0, 0)));
}

#[test]
fn a_block_moves_as_one_and_comes_home_in_pieces() {
    let mut host = Host::new();
    let before = host.snapshot();
    let (vm, metadata) = host.create(8);
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    host.call(call::VM_START, &[vm]).unwrap();
    host.lend(vm, &[block(FREE, 0x8000_0000)]).unwrap();
    // A root, a level-2 table and a vCPU: no level-3 table was needed.
    assert_eq!(host.call(call::VM_INFO, &[vm]).unwrap(), [1, 512, 8, 5]);
    assert_eq!(host.guest_frame(vm, 0x8000_3000), Some(FREE + 0x3000));
    unlock(&mut host, vcpu, 0x8000_3000, PAGE_SIZE, UNLOCK_ZEROED).unwrap();
    assert_eq!(host.reclaim(&[(FREE, 9)]).unwrap_err().0, Error::WrongState);
    assert_eq!(host.reclaim(&[(FREE + 0x2000, 0)]), Err((Error::Locked, 0, 0)));
    host.reclaim(&[(FREE + 0x3000, 0)]).unwrap();
    assert_eq!(host.guest_frame(vm, 0x8000_3000), None);
    assert_eq!(host.guest_frame(vm, 0x8000_4000), Some(FREE + 0x4000));
    assert!(host.reaches(FREE + 0x3000) && !host.reaches(FREE + 0x4000));
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    let rest: Vec<_> = (0..512).filter(|&n| n != 3).map(|n| (FREE + n * PAGE_SIZE, 0)).collect();
    host.reclaim(&rest).unwrap();
    host.reclaim(&metadata).unwrap();
    assert_eq!(host.snapshot(), before);
    let block = host.escrow.ledger().locate(PhysAddr(FREE)).unwrap();
    assert!(!host.escrow.ledger().is_split(block), "one record again");
}

#[test]
fn a_block_that_is_unlocked_whole_comes_home_whole() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.lend(vm, &[block(FREE, 0x8000_0000)]).unwrap();
    // Page by page: the block's record is split, and still all alike.
    for n in 0..512 {
        unlock(&mut host, vcpu, 0x8000_0000 + n * PAGE_SIZE, PAGE_SIZE, UNLOCK_ZEROED).unwrap();
    }
    host.reclaim(&[(FREE, 9)]).unwrap();
    assert!(host.reaches(FREE) && host.reaches(FREE + 0x1f_f000));
    assert_eq!(host.guest_frame(vm, 0x8000_0000), None);
    host.lend(vm, &[block(FREE, 0x8000_0000)]).unwrap();
}

#[test]
fn a_block_that_the_guest_has_page_by_page_comes_home_whole() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    // One page off: the block's pages lie in two of the guest's tables.
    let guest = 0x8000_1000;
    let list: Vec<_> =
        (0..512).map(|n| page(FREE + n * PAGE_SIZE, guest + n * PAGE_SIZE)).collect();
    host.lend(vm, &[page(FREE + 0x20_0000, guest - PAGE_SIZE)]).unwrap();
    host.lend(vm, &list).unwrap();
    unlock(&mut host, vcpu, guest, 512 * PAGE_SIZE, UNLOCK_ZEROED).unwrap();
    host.reclaim(&[(FREE, 9)]).unwrap();
    for n in 0..512 {
        assert_eq!(host.guest_frame(vm, guest + n * PAGE_SIZE), None, "page {n}");
    }
    assert_eq!(host.guest_frame(vm, guest - PAGE_SIZE), Some(FREE + 0x20_0000), "its neighbour");
}

#[test]
fn shared_pages_are_reached_by_both() {
    let mut host = Host::new();
    let (vm, _) = host.create(8);
    host.share(vm, &[page(FREE, 0), block(FREE + 0x20_0000, 0x20_0000)]).unwrap();
    assert!(host.reaches(FREE) && host.reaches(FREE + 0x20_0000));
    assert_eq!(host.guest_frame(vm, 0), Some(FREE));
    assert_eq!(host.lend(vm, &[page(FREE, 0x1000)]).unwrap_err().0, Error::WrongState);
    assert_eq!(host.reclaim(&[(FREE, 0)]).unwrap_err().0, Error::WrongState);
    host.take(call::MEM_UNSHARE, &[(FREE, 0), (FREE + 0x20_0000, 9)]).unwrap();
    assert_eq!(host.guest_frame(vm, 0), None);
    assert_eq!(host.guest_frame(vm, 0x20_0000), None);
    assert_eq!(host.escrow.pages(FrameState::Shared), 0);
    assert_eq!(host.take(call::MEM_UNSHARE, &[(FREE, 0)]).unwrap_err().0, Error::WrongState);
}

#[test]
fn entries_of_different_vms_are_two_calls() {
    let mut host = Host::new();
    let (one, _) = host.create(4);
    let (two, _) = host.create(4);
    host.share(one, &[page(FREE, 0)]).unwrap();
    host.share(two, &[page(FREE + 0x1000, 0)]).unwrap();
    let both = [(FREE, 0), (FREE + 0x1000, 0)];
    assert_eq!(host.take(call::MEM_UNSHARE, &both), Err((Error::MixedVms, 1, 0)));
    assert_eq!(host.escrow.pages(FrameState::Shared), 2);
}

#[test]
fn a_vm_that_ends_gives_everything_back_empty() {
    let mut host = Host::new();
    let before = host.snapshot();
    let (vm, metadata) = host.create(8);
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    host.lend(vm, &[page(FREE, 0x8000_0000)]).unwrap();
    host.escrow.machine.scribble(FREE);
    host.call(call::VM_START, &[vm]).unwrap();
    let context = host.run(vcpu, |el2, run| el2.context_of(&run));
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    assert_eq!(host.escrow.machine.invalidations(context.vttbr, Ipa(0)), 1);
    for handle in [vm, vcpu] {
        let gone = host.call(call::VM_DESTROY, &[handle]).unwrap_err().0;
        assert!(matches!(gone, Error::HandleRevoked | Error::HandleType), "{gone:?}");
    }
    assert_eq!(host.call(call::VCPU_RUN, &[vcpu]).unwrap_err().0, Error::HandleRevoked);
    assert_eq!(host.call(call::LEDGER_INFO, &[call::INFO_VMS, 0]).unwrap()[0], 1);
    host.reclaim(&[(FREE, 0)]).unwrap();
    host.reclaim(&metadata).unwrap();
    assert!(host.escrow.machine.is_zero(FREE));
    assert!(metadata.iter().all(|&(at, _)| host.escrow.machine.is_zero(at)));
    assert_eq!(host.snapshot(), before);
    assert_eq!(host.call(call::LEDGER_INFO, &[call::INFO_VMS, 0]).unwrap()[0], 0);
    // The slot's next VM is not reached by the old handle.
    let (next, _) = host.create(4);
    assert_ne!(next, vm);
    assert_eq!(host.call(call::VM_INFO, &[vm]).unwrap_err().0, Error::HandleRevoked);
}

#[test]
fn the_host_is_told_of_errata() {
    let mut host = Host::new();
    let info = |host: &mut Host, selector| host.call(call::LEDGER_INFO, &[selector, 0]).unwrap()[0];
    assert_eq!(info(&mut host, call::INFO_ERRATA), 0);
    assert_eq!(info(&mut host, call::INFO_HARDENING), Hardening::NotNeeded.bit());
    // Another CPU comes.
    let machine = &host.escrow.machine;
    machine.errata.store(Errata::REPEAT_TLBI.bits(), Ordering::Relaxed);
    machine.hardening.fetch_or(Hardening::Loop.bit(), Ordering::Relaxed);
    assert_eq!(info(&mut host, call::INFO_ERRATA), Erratum::RepeatTlbi.bit());
    let both = Hardening::NotNeeded.bit() | Hardening::Loop.bit();
    assert_eq!(info(&mut host, call::INFO_HARDENING), both);
}

#[test]
fn a_vm_does_not_end_under_a_running_vcpu() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.lend(vm, &[page(FREE, 0)]).unwrap();
    let mut other_cpu = super::Scratch::new();
    host.run(vcpu, |escrow, run| {
        let destroy = [call::VM_DESTROY as u64, vm, 0, 0, 0, 0, 0, 0];
        let again = [call::VCPU_RUN as u64, vcpu, 0, 0, 0, 0, 0, 0];
        let mut call = |args: &[u64; 8]| {
            let mut x = *args;
            match x[0] as u32 {
                call::VCPU_RUN => assert!(escrow.host_runs(&mut x).is_none(), "a run"),
                _ => assert_eq!(escrow.host_call(&mut other_cpu, &mut x), Reply::Answer),
            }
            Error::from_register(x[0])
        };
        assert_eq!(call(&again), Some(Error::Busy), "the vCPU is in use");
        assert_eq!(call(&destroy), Some(Error::Busy));
        assert!(run.slot().is_stopped());
        assert_eq!(call(&again), Some(Error::HandleRevoked));
        drop(run);
        assert_eq!(call(&destroy), None);
    });
    host.reclaim(&[(FREE, 0)]).unwrap();
}

#[test]
fn calls_out_of_order_are_refused() {
    let mut host = Host::new();
    let (vm, _) = host.create(3);
    assert_eq!(host.call(call::VM_START, &[vm]).unwrap_err().0, Error::Denied, "no vCPU");
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    assert_eq!(host.call(call::VCPU_CREATE, &[vm, 0]).unwrap_err().0, Error::Denied);
    assert_eq!(host.call(call::VCPU_CREATE, &[vm, 32]).unwrap_err().0, Error::InvalidArgument);
    assert_eq!(host.call(call::VCPU_RUN, &[vcpu]).unwrap_err().0, Error::Denied);
    assert_eq!(host.call(call::VCPU_RUN, &[vm]).unwrap_err().0, Error::HandleType);
    host.call(call::VCPU_SET_REGISTER, &[vcpu, 1 << 8, 0x8000_0000]).unwrap();
    let bad = host.call(call::VCPU_SET_REGISTER, &[vcpu, 31, 0]).unwrap_err().0;
    assert_eq!(bad, Error::InvalidArgument);
    host.call(call::VM_START, &[vm]).unwrap();
    assert_eq!(host.call(call::VM_START, &[vm]).unwrap_err().0, Error::Denied);
    assert_eq!(host.call(call::VCPU_CREATE, &[vm, 0]).unwrap_err().0, Error::Denied);
    assert_eq!(
        host.call(call::VCPU_SET_REGISTER, &[vcpu, 0, 0]).unwrap_err().0,
        Error::Denied,
        "its registers are its own once it runs"
    );
    host.run(vcpu, |_, run| assert_eq!(run.regs.pc, 0x8000_0000));
}

#[test]
fn reserved_arguments_and_unknown_calls_are_refused() {
    let mut host = Host::new();
    let (vm, _) = host.create(2);
    let extra = host.call(call::VM_INFO, &[vm, 1]).unwrap_err().0;
    assert_eq!(extra, Error::InvalidArgument);
    assert_eq!(host.call(0xC600_8199, &[]).unwrap_err().0, Error::Unimplemented);
    assert_eq!(host.call(call::MODIFY_PAGES, &[]).unwrap_err().0, Error::Unimplemented);
    for bad in [0, !0, vm + 1, vm ^ 1 << 63, 1 << 24 | 1 << 20] {
        assert!(host.call(call::VM_INFO, &[bad]).is_err(), "{bad:#x}");
    }
}

#[test]
fn frame_info_tells_the_host_only_of_its_own() {
    let mut host = Host::new();
    let (vm, metadata) = host.create(4);
    host.lend(vm, &[page(FREE, 0)]).unwrap();
    let mut info = |at| host.call(call::FRAME_INFO, &[at]);
    let alike = |state: FrameState, pages| Ok([state as u64, pages, 0, 0]);
    assert_eq!(info(FREE), alike(FrameState::Lent, 1));
    assert_eq!(info(FREE + 0x1000), alike(FrameState::Owned, 511));
    assert_eq!(info(FREE + 0x1f_ffff), alike(FrameState::Owned, 1));
    // One record stands for the whole block.
    assert_eq!(info(FREE + 0x20_3000), alike(FrameState::Owned, 509));
    assert_eq!(info(metadata[0].0).map(|x| x[0]), Ok(FrameState::Metadata as u64));
    assert_eq!(info(ESCROW.base.0).unwrap_err().0, Error::NotOwner);
    assert_eq!(info(0x0900_0000).unwrap_err().0, Error::InvalidAddress);
    // Who borrows a page makes no difference.
    let (other, _) = host.create(4);
    host.lend(other, &[page(FREE + 0x1000, 0x9000)]).unwrap();
    let info = |host: &mut Host, at| host.call(call::FRAME_INFO, &[at]);
    assert_eq!(info(&mut host, FREE), alike(FrameState::Lent, 2));
    assert_eq!(info(&mut host, FREE + 0x2000), alike(FrameState::Owned, 510));
}

#[test]
fn lists_must_be_in_the_callers_memory() {
    let mut host = Host::new();
    let (vm, _) = host.create(4);
    host.lend(vm, &[page(FREE, 0)]).unwrap();
    let mut lend = |list, count| host.call(call::MEM_LEND, &[vm, list, count]).unwrap_err().0;
    assert_eq!(lend(FREE, 1), Error::NotOwner);
    assert_eq!(lend(ESCROW.base.0, 1), Error::NotOwner);
    assert_eq!(lend(0x0900_0000, 1), Error::InvalidAddress);
    assert_eq!(lend(FREE + 0x2001, 1), Error::Misaligned);
    assert_eq!(lend(!0xfff, 512), Error::AddressOverflow);
    assert_eq!(lend(FREE + 0x2000, 0), Error::InvalidSize);
    assert_eq!(lend(FREE + 0x2000, 513), Error::InvalidSize);
    // The first page of the list is the host's, the second is lent.
    assert_eq!(lend(FREE - 0x1000, 129), Error::InvalidArgument);
}

#[test]
fn what_a_guest_donates_to_its_host_is_cleaned_whatever_its_accesses_are() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    let list = FREE + 0x1000;
    host.give(call::MEM_DONATE, vm, &[page(FREE, 0x1000)]).unwrap();
    host.lend(vm, &[page(list, 0x2000)]).unwrap();
    host.escrow.machine.word(PhysAddr(list)).store(0x1000, Ordering::Relaxed);
    host.escrow.machine.forces_write_back.store(true, Ordering::Relaxed);
    host.escrow.machine.cleaned.lock().unwrap().clear();
    host.guest_call(vcpu, call::MEM_DONATE, &[Handle::HOST, 0x2000, 1]).unwrap();
    let cleaned = host.escrow.machine.cleaned.lock().unwrap().clone();
    assert_eq!(cleaned, [FREE], "what memory held before is not the host's to see");
    assert!(host.reaches(FREE));
}
