// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that does not answer, or whose contents are broken, under each of EL2's own
//! accesses to it.

use core::sync::atomic::Ordering;

use escrow_abi::{Error, FrameState, Handle, MemEntry, call};

use super::fake::{FREE, Host, Interrupts, LIST, PINNED};
use super::poison::entry_is_poisoned;
use super::{UNLOCK_ZEROED, block, page, started, unlock};
use crate::addr::{BLOCK_SIZE, PAGE_SIZE};
use crate::hypervisor::WipeProgress;
use crate::ledger::GuestId;

const GUEST: u64 = 0x8000_0000;

fn breaks(host: &Host, at: u64) {
    host.escrow.machine.broken.lock().unwrap().insert(at);
}

fn state(host: &mut Host, at: u64) -> Result<u64, Error> {
    host.call(call::FRAME_INFO, &[at]).map(|[state, ..]| state).map_err(|refused| refused.0)
}

/// All calls of the host that take a list.
fn list_calls(vm: u64, list: u64) -> Vec<(u32, Vec<u64>)> {
    let with_vm = [call::VM_TOP_UP, call::MEM_LEND, call::MEM_SHARE, call::MEM_DONATE];
    let without = [
        call::VM_CREATE,
        call::MEM_UNSHARE,
        call::MEM_RECLAIM,
        call::MEM_TAKE_BACK,
        call::MEM_POISON,
    ];
    let with_vm = with_vm.map(|function| (function, vec![vm, list, 1]));
    with_vm.into_iter().chain(without.map(|function| (function, vec![list, 1]))).collect()
}

#[test]
fn a_list_that_cannot_be_read_refuses_the_call() {
    let mut host = Host::new();
    let (vm, _) = started(&mut host);
    host.list(&[page(FREE, GUEST)]);
    breaks(&host, LIST);
    let before = host.snapshot();
    for (function, args) in list_calls(vm, LIST) {
        assert_eq!(host.call(function, &args), Err((Error::BrokenMemory, 0, 0)), "{function:#x}");
    }
    assert_eq!(host.snapshot(), before);
}

#[test]
fn a_list_whose_second_page_cannot_be_read_names_its_entry() {
    let mut host = Host::new();
    let (vm, _) = started(&mut host);
    let entries: Vec<_> =
        (0..200).map(|n| page(FREE + n * PAGE_SIZE, GUEST + n * PAGE_SIZE)).collect();
    host.list(&entries);
    breaks(&host, LIST + PAGE_SIZE);
    let before = host.snapshot();
    let refused = host.call(call::MEM_LEND, &[vm, LIST, 200]);
    assert_eq!(refused, Err((Error::BrokenMemory, 128, 0)));
    assert_eq!(host.snapshot(), before);
}

#[test]
fn lists_do_not_lie_in_pinned_memory() {
    let mut host = Host::new();
    let (vm, _) = started(&mut host);
    // Whoever looks there all the same is told by the memory.
    breaks(&host, PINNED.base.0);
    for (function, args) in list_calls(vm, PINNED.base.0) {
        assert_eq!(host.call(function, &args), Err((Error::Pinned, 0, 0)), "{function:#x}");
    }
}

#[test]
fn a_guests_list_that_cannot_be_read_refuses_its_call() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.share(vm, &[page(FREE, GUEST)]).unwrap();
    breaks(&host, FREE);
    let refused = host.guest_call(vcpu, call::MEM_DONATE, &[Handle::HOST, GUEST, 1]);
    assert_eq!(refused, Err((Error::BrokenMemory, 0, 0)));
}

#[test]
fn what_breaks_on_its_way_to_a_guest_is_out_of_use() {
    for list in
        [vec![page(FREE, GUEST)], vec![page(FREE, GUEST), page(FREE + 0x5000, GUEST + 0x9000)]]
    {
        for function in [call::MEM_LEND, call::MEM_DONATE] {
            let mut host = Host::new();
            let (vm, _) = started(&mut host);
            // So that the short way of a single page is open.
            host.lend(vm, &[page(FREE + 0x1000, GUEST + 0x1000)]).unwrap();
            breaks(&host, FREE);
            let [at, count] = host.list(&list);
            assert_eq!(host.call(function, &[vm, at, count]), Ok([0, 1, 0, 0]));
            assert_eq!(state(&mut host, FREE), Ok(FrameState::Poisoned as u64));
            assert!(!host.reaches(FREE));
            assert_eq!(host.guest_frame(vm, GUEST), None, "neither does the guest");
            assert_eq!(host.escrow.pages(FrameState::Poisoned), 1);
            let [_, reachable, ..] = host.call(call::VM_INFO, &[vm]).unwrap();
            assert_eq!(reachable, count, "the other pages");
            if count == 2 {
                assert_eq!(host.guest_frame(vm, GUEST + 0x9000), Some(FREE + 0x5000));
            }
            // The address is free for another page.
            host.lend(vm, &[page(FREE + 0x2000, GUEST)]).unwrap();
            ends(&mut host, vm);
        }
    }
}

#[test]
fn a_block_that_breaks_on_its_way_to_a_guest_is_out_of_use() {
    for fill in [false, true] {
        let mut host = Host::new();
        let (vm, _) = started(&mut host);
        if fill {
            host.lend(vm, &[block(FREE + 0x20_0000, GUEST + 0x20_0000)]).unwrap();
        }
        breaks(&host, FREE + 0x7000);
        let [at, count] = host.list(&[block(FREE, GUEST)]);
        assert_eq!(host.call(call::MEM_LEND, &[vm, at, count]), Ok([0, 512, 0, 0]));
        assert_eq!(host.guest_frame(vm, GUEST), None);
        assert!(!host.reaches(FREE));
        assert_eq!(host.escrow.pages(FrameState::Poisoned), 512);
        ends(&mut host, vm);
    }
}

/// All that can come home does, and the VM's slot is free again.
fn ends(host: &mut Host, vm: u64) {
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    let ram = host.escrow.ledger().ram().ranges();
    let pages: Vec<_> = ram
        .flat_map(|r| (r.base.0..r.end().min(FREE + 0x60_0000)).step_by(PAGE_SIZE as usize))
        .collect();
    for at in pages {
        let _ = host.reclaim(&[(at, 0)]);
    }
    assert_eq!(host.call(call::LEDGER_INFO, &[call::INFO_VMS, 0]), Ok([0; 4]), "the slot is free");
    assert!(host.escrow.machine.metadata.lock().unwrap().is_empty(), "nothing is mapped at EL2");
}

#[test]
fn what_breaks_on_its_way_home_stays_out_of_use() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.lend(vm, &[block(FREE, GUEST), page(FREE + 0x20_0000, GUEST + 0x20_0000)]).unwrap();
    for at in [FREE, FREE + 0x7000, FREE + 0x8000] {
        host.escrow.machine.scribble(at);
    }
    unlock(&mut host, vcpu, GUEST, 0x20_1000, UNLOCK_ZEROED).unwrap();
    breaks(&host, FREE + 0x7000);
    let [at, count] = host.list(&[taken(FREE, 9), taken(FREE + 0x20_0000, 0)]);
    assert_eq!(host.call(call::MEM_RECLAIM, &[at, count]), Ok([0, 1, 0, 0]));
    assert_eq!(state(&mut host, FREE + 0x7000), Ok(FrameState::Poisoned as u64));
    assert!(!host.reaches(FREE + 0x7000));
    for at in [FREE, FREE + 0x6000, FREE + 0x8000, FREE + 0x1f_f000, FREE + 0x20_0000] {
        assert!(host.reaches(at), "{at:#x}");
        assert!(host.escrow.machine.is_zero(at), "{at:#x}");
    }
    assert_eq!(host.escrow.pages(FrameState::Poisoned), 1);
    assert_eq!(host.escrow.pages(FrameState::Lent), 0);
    ends(&mut host, vm);
}

fn taken(at: u64, order: u32) -> escrow_abi::MemEntry {
    escrow_abi::MemEntry::new(at, order, 0, escrow_abi::Rights::NONE)
}

#[test]
fn contents_that_break_on_their_way_home_stay_out_of_use() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.lend(vm, &[page(FREE, GUEST), page(FREE + 0x1000, GUEST + 0x1000)]).unwrap();
    host.give(call::MEM_DONATE, vm, &[page(FREE + 0x3000, GUEST + 0x3000)]).unwrap();
    host.share(vm, &[page(FREE + 0x4000, GUEST + 0x4000)]).unwrap();
    unlock(&mut host, vcpu, GUEST, 0x2000, call::MODIFY_UNLOCK).unwrap();
    breaks(&host, FREE);
    breaks(&host, FREE + 0x3000);
    let [at, count] = host.list(&[taken(FREE, 0), taken(FREE + 0x1000, 0)]);
    assert_eq!(host.call(call::MEM_RECLAIM, &[at, count]), Ok([0, 1, 0, 0]));
    assert!(!host.reaches(FREE) && host.reaches(FREE + 0x1000));
    // A guest's donation to the host.
    host.write_list(&[taken(GUEST + 0x3000, 0)], |_| FREE + 0x4000);
    let told = host.guest_call(vcpu, call::MEM_DONATE, &[Handle::HOST, GUEST + 0x4000, 1]);
    assert_eq!(told, Ok([0, 1, 0]));
    assert!(!host.reaches(FREE + 0x3000));
    assert_eq!(state(&mut host, FREE + 0x3000), Ok(FrameState::Poisoned as u64));
    assert_eq!(host.escrow.pages(FrameState::Poisoned), 2);
    ends(&mut host, vm);
}

#[test]
fn what_breaks_between_guests_is_out_of_their_reach() {
    let mut host = Host::new();
    let (a, a_vcpu) = started(&mut host);
    let (b, b_vcpu) = started(&mut host);
    host.give(call::MEM_DONATE, a, &[page(FREE, GUEST), page(FREE + 0x1000, GUEST + 0x1000)])
        .unwrap();
    let list = FREE + 0x8000;
    host.share(a, &[page(list, GUEST + 0x8000)]).unwrap();
    let rights = call::RIGHT_LEND;
    let [cap, ..] = host.call(call::CAP_GRANT, &[a, b, rights, GUEST, 0x2000]).unwrap();
    host.write_list(&[page(GUEST, GUEST), page(GUEST + 0x1000, GUEST + 0x1000)], |_| list);
    host.guest_call(a_vcpu, call::MEM_LEND, &[cap, GUEST + 0x8000, 2]).unwrap();
    unlock(&mut host, b_vcpu, GUEST, 0x2000, UNLOCK_ZEROED).unwrap();
    breaks(&host, FREE);
    host.write_list(&[taken(GUEST, 0), taken(GUEST + 0x1000, 0)], |_| list);
    let told = host.guest_call(a_vcpu, call::MEM_RECLAIM, &[GUEST + 0x8000, 2]);
    assert!(matches!(told, Ok([0, 1 | 2, 0])), "{told:?}");
    assert_eq!(host.guest_frame(a, GUEST), None);
    assert_eq!(host.guest_frame(b, GUEST), None);
    // Nothing can be slipped in where it was.
    host.list(&[page(FREE + 0x9000, GUEST)]);
    assert_eq!(host.call(call::MEM_LEND, &[a, LIST, 1]), Err((Error::GuestMapped, 0, 0)));
    host.call(call::VM_DESTROY, &[b]).unwrap();
    host.call(call::VM_DESTROY, &[a]).unwrap();
    for at in (super::fake::METADATA..FREE + 0x20_0000).step_by(PAGE_SIZE as usize) {
        let _ = host.reclaim(&[(at, 0)]);
    }
    assert_eq!(host.call(call::LEDGER_INFO, &[call::INFO_VMS, 0]), Ok([0; 4]));
}

/// An owner finds at once that it will not have it back, be it the last that it owned.
#[test]
fn what_breaks_on_its_way_to_another_guest_leaves_a_mark_with_its_owner() {
    for lent in [page(GUEST, GUEST), block(GUEST, GUEST)] {
        let mut host = Host::new();
        let (a, a_vcpu) = started(&mut host);
        let (b, _) = started(&mut host);
        let far = FREE + 3 * BLOCK_SIZE;
        let given = MemEntry { frame: far | (lent.frame % PAGE_SIZE), ..lent };
        host.give(call::MEM_DONATE, a, &[given]).unwrap();
        host.share(a, &[page(FREE, GUEST + BLOCK_SIZE)]).unwrap();
        let window = [a, b, call::RIGHT_LEND, GUEST, BLOCK_SIZE];
        let [cap, ..] = host.call(call::CAP_GRANT, &window).unwrap();
        host.write_list(&[lent], |_| FREE);
        breaks(&host, far);
        let pages = if lent.frame % PAGE_SIZE == 0 { 1 } else { 512 };
        let told = host.guest_call(a_vcpu, call::MEM_LEND, &[cap, GUEST + BLOCK_SIZE, 1]);
        assert_eq!(told, Ok([0, pages, 0]));
        assert!(entry_is_poisoned(&host, a, GUEST));
        assert_eq!(host.guest_frame(b, GUEST), None);
        let slot = Handle::from_register(a).unwrap().slot;
        let slot = host.escrow.slots.get(GuestId::new(slot).unwrap()).unwrap();
        let vm = slot.lock();
        assert!(vm.owned == 0 && vm.has_broken);
    }
}

/// What broke in the portions that were done is told with them, and counted when the rest is
/// made later.
#[test]
fn a_long_call_that_is_refused_says_what_broke_before() {
    let mut host = Host::new();
    let (vm, _) = started(&mut host);
    let (other, _) = host.create(8);
    *host.escrow.machine.interrupts.lock().unwrap() = Interrupts::Always;
    let entries: Vec<_> =
        (0..5).map(|n| block(FREE + n * BLOCK_SIZE, GUEST + n * BLOCK_SIZE)).collect();
    let [list, count] = host.list(&entries);
    breaks(&host, FREE + BLOCK_SIZE + 0x3000);
    breaks(&host, FREE + 4 * BLOCK_SIZE);
    let begun = [call::MEM_LEND.into(), vm, list, count, 0, 0, 0, 0];
    let mut x = begun;
    while !host.makes_call(&mut x) {
        if x[7] as u16 == 2 {
            // The fourth block is another's meanwhile.
            host.write_list(&[block(FREE + 3 * BLOCK_SIZE, 0)], |_| list + 0x8000);
            let mut other = [call::MEM_SHARE.into(), other, list + 0x8000, 1, 0, 0, 0, 0];
            assert!(host.makes_call(&mut other));
            assert_eq!(other[0], 0);
        }
    }
    let shared = FrameState::Shared as u64;
    assert_eq!(x[..4], [Error::WrongState.to_register(), 3, shared, 512 << 32 | 3]);
    // The rest, when it can be done.
    host.take(call::MEM_UNSHARE, &[(FREE + 3 * BLOCK_SIZE, 9)]).unwrap();
    host.list(&entries);
    let told = x[3];
    x = begun;
    x[7] = told;
    while !host.makes_call(&mut x) {}
    assert_eq!((&x[..4], x[7]), (&[0, 0, 1024, 0][..], 0));
    // What is refused before anything is done has broken nothing.
    x = begun;
    while !host.makes_call(&mut x) {}
    assert_eq!((x[0] == 0, x[3]), (false, 0));
}

/// A block whose memory fails counts as done, like those around it.
#[test]
fn a_long_call_goes_on_behind_what_breaks() {
    let blocks = |entry: fn(u64) -> MemEntry| (0..3).map(entry).collect::<Vec<_>>();
    let to_guest = |n| block(FREE + n * BLOCK_SIZE, GUEST + n * BLOCK_SIZE);
    for bad in 0..3 {
        for function in [call::MEM_LEND, call::MEM_DONATE] {
            let mut host = Host::new();
            let (vm, _) = started(&mut host);
            let [list, count] = host.list(&blocks(to_guest));
            breaks(&host, FREE + bad * BLOCK_SIZE + 0x3000);
            assert_eq!(host.call(function, &[vm, list, count]), Ok([0, 512, 0, 0]), "{bad}");
            for n in 0..3 {
                let frame = (n != bad).then_some(FREE + n * BLOCK_SIZE);
                assert_eq!(host.guest_frame(vm, GUEST + n * BLOCK_SIZE), frame);
            }
            ends(&mut host, vm);
        }
        // A guest gives blocks to another one, or home.
        for to_other in [true, false] {
            let mut host = Host::new();
            let (a, a_vcpu) = started(&mut host);
            let (b, _) = started(&mut host);
            host.give(call::MEM_DONATE, a, &blocks(to_guest)).unwrap();
            let lists = FREE + 3 * BLOCK_SIZE;
            host.share(a, &[page(lists, 0x1000)]).unwrap();
            let window = [a, b, call::RIGHT_DONATE, GUEST, 3 * BLOCK_SIZE];
            let [cap, ..] = host.call(call::CAP_GRANT, &window).unwrap();
            let (to, list) = match to_other {
                true => (cap, blocks(|n| block(GUEST + n * BLOCK_SIZE, GUEST + n * BLOCK_SIZE))),
                false => (Handle::HOST, blocks(|n| taken(GUEST + n * BLOCK_SIZE, 9))),
            };
            host.write_list(&list, |_| lists);
            breaks(&host, FREE + bad * BLOCK_SIZE + 0x3000);
            let told = host.guest_call(a_vcpu, call::MEM_DONATE, &[to, 0x1000, 3]);
            assert_eq!(told, Ok([0, 512, 0]), "{bad} {to_other}");
            for n in 0..3 {
                let frame = (n != bad && to_other).then_some(FREE + n * BLOCK_SIZE);
                assert_eq!(host.guest_frame(b, GUEST + n * BLOCK_SIZE), frame);
                assert_eq!(host.reaches(FREE + n * BLOCK_SIZE), n != bad && !to_other);
            }
        }
    }
}

#[test]
fn broken_pages_are_no_metadata() {
    let mut host = Host::new();
    let pages = host.fresh_metadata(4);
    breaks(&host, pages[1].frame);
    let [list, count] = host.list(&pages);
    let [vm, broken, ..] = host.call(call::VM_CREATE, &[list, count]).unwrap();
    assert_eq!(broken, 1);
    assert_eq!(host.call(call::VM_INFO, &[vm]), Ok([0, 0, 3, 2]));
    let more = host.fresh_metadata(2);
    breaks(&host, more[0].frame);
    let [list, count] = host.list(&more);
    assert_eq!(host.call(call::VM_TOP_UP, &[vm, list, count]), Ok([0, 1, 0, 0]));
    assert_eq!(host.call(call::VM_INFO, &[vm]), Ok([0, 0, 4, 3]));
    assert_eq!(host.escrow.pages(FrameState::Poisoned), 2);
    ends(&mut host, vm);
    // A VM of nothing but broken pages is none.
    let pages = host.fresh_metadata(2);
    for entry in &pages {
        breaks(&host, entry.frame);
    }
    let [list, count] = host.list(&pages);
    assert_eq!(host.call(call::VM_CREATE, &[list, count]), Err((Error::NoMemory, 0, 1)));
    assert_eq!(host.call(call::LEDGER_INFO, &[call::INFO_VMS, 0]), Ok([0; 4]));
    assert_eq!(host.escrow.pages(FrameState::Poisoned), 4);
    assert_eq!(host.escrow.pages(FrameState::Metadata), 0);
}

/// Fetches see what came home, whichever way it came.
#[test]
fn no_old_instruction_outlives_a_way_home() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.escrow.machine.forces_write_back.store(true, std::sync::atomic::Ordering::Relaxed);
    let synced = |host: &Host| {
        host.escrow.machine.fetches_synced.swap(0, std::sync::atomic::Ordering::Relaxed)
    };
    host.lend(vm, &[page(FREE, GUEST), page(FREE + 0x1000, GUEST + 0x1000)]).unwrap();
    host.lend(vm, &[page(FREE + 0x2000, GUEST + 0x2000)]).unwrap();
    host.share(vm, &[page(FREE + 0x4000, GUEST + 0x4000)]).unwrap();
    host.give(call::MEM_DONATE, vm, &[page(FREE + 0x3000, GUEST + 0x3000)]).unwrap();
    unlock(&mut host, vcpu, GUEST, 0x1000, call::MODIFY_UNLOCK).unwrap();
    unlock(&mut host, vcpu, GUEST + 0x1000, 0x1000, UNLOCK_ZEROED).unwrap();
    synced(&host);
    host.guest_call(vcpu, call::MEM_SHARE_BACK, &[GUEST + 0x2000, 0x1000]).unwrap();
    assert_eq!(synced(&host), 1, "shared back");
    host.reclaim(&[(FREE, 0)]).unwrap();
    assert_eq!(synced(&host), 1, "with its contents");
    host.reclaim(&[(FREE + 0x1000, 0)]).unwrap();
    assert_eq!(synced(&host), 1, "zeroed");
    host.write_list(&[taken(GUEST + 0x3000, 0)], |_| FREE + 0x4000);
    host.guest_call(vcpu, call::MEM_DONATE, &[Handle::HOST, GUEST + 0x4000, 1]).unwrap();
    assert_eq!(synced(&host), 1, "donated");
    host.take(call::MEM_UNSHARE, &[(FREE + 0x4000, 0)]).unwrap();
    assert_eq!(synced(&host), 1, "shared");
}

/// The end of a hypervisor that has failed: no lock keeps it from wiping what guests have.
#[test]
fn a_failed_hypervisor_wipes_without_locks() {
    let mut host = Host::new();
    let (vm, _) = started(&mut host);
    host.lend(vm, &[page(FREE, GUEST), block(FREE + 0x20_0000, GUEST + 0x20_0000)]).unwrap();
    host.share(vm, &[page(FREE + 0x5000, GUEST + 0x5000)]).unwrap();
    for at in [FREE, FREE + 0x5000, FREE + 0x6000, FREE + 0x20_3000] {
        host.escrow.machine.scribble(at);
    }
    let ledger = host.escrow.ledger();
    let held = [FREE, FREE + 0x20_0000].map(|at| ledger.locate(crate::addr::PhysAddr(at)).unwrap());
    held.iter().for_each(|block| block.lock());
    host.escrow.wipe(&WipeProgress::new());
    held.iter().for_each(|block| block.unlock());
    assert!(host.escrow.machine.is_zero(FREE));
    assert!(host.escrow.machine.is_zero(FREE + 0x20_3000));
    assert!(!host.escrow.machine.is_zero(FREE + 0x5000), "the host reads it all along");
    assert!(!host.escrow.machine.is_zero(FREE + 0x6000), "the host's own");
}

/// A CPU that fails in the middle of it goes on behind the frame at which it failed.
#[test]
fn a_wipe_that_fails_goes_on_behind_what_failed() {
    let mut host = Host::new();
    let (vm, _) = started(&mut host);
    let sound = [FREE, FREE + 0x1000, FREE + 0x2000, FREE + 0x3000];
    for at in sound {
        host.lend(vm, &[page(at, GUEST + (at - FREE))]).unwrap();
    }
    host.lend(vm, &[block(FREE + 0x20_0000, GUEST + 0x20_0000)]).unwrap();
    let all = sound.into_iter().chain([FREE + 0x20_3000]);
    all.clone().for_each(|at| host.escrow.machine.scribble(at));
    let progress = WipeProgress::new();
    let fails_at = [FREE + 0x1000, FREE + 0x2000];
    for at in fails_at {
        host.escrow.machine.fails_at.store(at, Ordering::Relaxed);
        let wipe = std::panic::AssertUnwindSafe(|| host.escrow.wipe(&progress));
        std::panic::catch_unwind(wipe).expect_err("it fails");
    }
    assert!(!host.escrow.machine.is_zero(FREE + 0x3000), "not yet");
    // Each frame is begun with once: this one would fail again.
    host.escrow.wipe(&progress);
    for at in all {
        assert_eq!(host.escrow.machine.is_zero(at), !fails_at.contains(&at), "{at:#x}");
    }
    // There is nothing left.
    host.escrow.machine.scribble(FREE);
    host.escrow.wipe(&progress);
    assert!(!host.escrow.machine.is_zero(FREE));
}
