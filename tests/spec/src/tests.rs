// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stories: what the calls are for, one at a time.

use alloc::vec::Vec;

use escrow_abi::{
    BLOCK_SIZE, Error, FrameState, MemEntry, ORDER_BLOCK, ORDER_PAGE, PAGE_SIZE, Rights, call,
};

use crate::{Asked, CapId, Entry, Frame, Spec, Target, VmId};

const HOST: VmId = VmId::HOST;
const RAM: u64 = 0x4000_0000;
/// Where the host takes pages from that become metadata.
const METADATA: u64 = RAM + 0x80_0000;
const GUEST_END: u64 = 1 << 39;

fn machine() -> Spec {
    Spec::new(RAM..RAM + 0x100_0000, GUEST_END)
}

fn page(at: u64, guest: u64) -> MemEntry {
    MemEntry::new(at, ORDER_PAGE, guest, Rights::ALL)
}

fn block(at: u64, guest: u64) -> MemEntry {
    MemEntry::new(at, ORDER_BLOCK, guest, Rights::ALL)
}

/// An entry for calls after which the pages are nowhere new.
fn bare(at: u64, order: u32) -> MemEntry {
    MemEntry::new(at, order, 0, Rights::NONE)
}

/// A guest that runs, with so many pages in its pool.
fn guest(spec: &mut Spec, pool: u64) -> VmId {
    let taken = spec.counts()[FrameState::Metadata as usize];
    // The root table and the vCPU.
    let list: Vec<_> =
        (taken..taken + pool + 2).map(|n| bare(METADATA + n * PAGE_SIZE, 0)).collect();
    let vm = spec.create(&list).unwrap();
    spec.create_vcpu(vm, 0).unwrap();
    spec.start(vm).unwrap();
    vm
}

/// A guest that owns a page, and may do everything with another guest.
fn owner_and_other(spec: &mut Spec) -> (VmId, VmId, Target) {
    let (owner, other) = (guest(spec, 4), guest(spec, 4));
    spec.donate(HOST, Target::Vm(owner), &[page(RAM, 0x1000)]).unwrap();
    let all = call::RIGHT_SHARE | call::RIGHT_LEND | call::RIGHT_DONATE;
    let handle = spec.grant(Target::Vm(owner), Target::Vm(other), all, 0, GUEST_END).unwrap();
    (owner, other, Target::Capability(handle))
}

fn state(spec: &Spec, at: u64) -> FrameState {
    spec.frame(at).state
}

#[test]
fn a_lent_page_comes_home_when_the_guest_gives_it_up() {
    let mut spec = machine();
    let vm = guest(&mut spec, 2);
    spec.lend(HOST, Target::Vm(vm), &[page(RAM, 0x1000)]).unwrap();
    assert!(!spec.frame(RAM).is_reached_by(HOST));
    assert_eq!(spec.guest(vm).entry(0x1000), Entry::Valid(RAM, Rights::ALL));
    assert_eq!(spec.reclaim(HOST, &[bare(RAM, 0)]), Err((Error::Locked, 0, 0)));
    spec.modify(vm, 0x1000, PAGE_SIZE, call::MODIFY_UNLOCK | call::MODIFY_SANITIZE).unwrap();
    assert!(spec.frame(RAM).is_reached_by(vm), "until it is fetched");
    spec.reclaim(HOST, &[bare(RAM, 0)]).unwrap();
    assert_eq!(spec.frame(RAM), Frame::HOME);
    assert_eq!(spec.guest(vm).entry(0x1000), Entry::Nothing);
    assert!(spec.is_zero(RAM));
}

#[test]
fn contents_are_passed_on_by_the_living() {
    let mut spec = machine();
    let vm = guest(&mut spec, 2);
    spec.lend(HOST, Target::Vm(vm), &[page(RAM, 0), page(RAM + 0x1000, 0x1000)]).unwrap();
    spec.modify(vm, 0, 2 * PAGE_SIZE, call::MODIFY_UNLOCK).unwrap();
    spec.reclaim(HOST, &[bare(RAM, 0)]).unwrap();
    assert!(!spec.is_zero(RAM));
    spec.destroy(vm).unwrap();
    spec.reclaim(HOST, &[bare(RAM + 0x1000, 0)]).unwrap();
    assert!(spec.is_zero(RAM + 0x1000));
}

#[test]
fn a_guest_opens_a_page_and_wants_it_closed_again() {
    let mut spec = machine();
    let vm = guest(&mut spec, 2);
    spec.lend(HOST, Target::Vm(vm), &[page(RAM, 0)]).unwrap();
    spec.share_back(vm, 0, PAGE_SIZE).unwrap();
    assert!(spec.frame(RAM).is_reached_by(HOST) && spec.frame(RAM).is_reached_by(vm));
    // What the borrower opened itself is not the owner's to take.
    let shared_back = FrameState::SharedBack as u64;
    assert_eq!(spec.unshare(HOST, &[bare(RAM, 0)]), Err((Error::WrongState, 0, shared_back)));
    assert_eq!(spec.ask_back(vm, 0, PAGE_SIZE), Ok(Asked::HostIsAsked));
    // The host is out of it again, and says so by a report.
    let used = bare(RAM, 0).with_report(2, 1, 0);
    assert_eq!(spec.take_back(HOST, &[used]), Err((Error::Excess, 0, 1)));
    spec.take_back(HOST, &[bare(RAM, 0)]).unwrap();
    assert_eq!(spec.ask_back(vm, 0, PAGE_SIZE), Ok(Asked::Done));
    assert_eq!(state(&spec, RAM), FrameState::Lent);
}

#[test]
fn a_guest_owns_what_was_donated_to_it_and_gives_it_back() {
    let mut spec = machine();
    let vm = guest(&mut spec, 2);
    spec.donate(HOST, Target::Vm(vm), &[page(RAM, 0x1000)]).unwrap();
    assert_eq!(spec.frame(RAM), Frame::donated(vm, 0x1000));
    assert_eq!(spec.reclaim(HOST, &[bare(RAM, 0)]), Err((Error::NotOwner, 0, 0)));
    spec.donate(vm, Target::Host, &[bare(0x1000, 0)]).unwrap();
    assert_eq!(spec.frame(RAM), Frame::HOME);
    assert!(!spec.is_zero(RAM), "contents and all");
}

#[test]
fn guests_lend_to_each_other_and_the_host_sees_none_of_it() {
    let mut spec = machine();
    let (owner, other, handle) = owner_and_other(&mut spec);
    spec.lend(owner, handle, &[page(0x1000, 0x5000)]).unwrap();
    assert_eq!(spec.guest(owner).entry(0x1000), Entry::Away(RAM, Rights::ALL));
    assert_eq!(spec.guest(other).entry(0x5000), Entry::Valid(RAM, Rights::ALL));
    assert!(!spec.frame(RAM).is_reached_by(HOST));
    // It is lent by one to one, and by nobody else to anybody.
    assert_eq!(spec.lend(owner, handle, &[page(0x1000, 0x6000)]).unwrap_err().0, Error::WrongState);
    let back = spec.grant(Target::Vm(other), Target::Vm(owner), 7, 0, GUEST_END).unwrap();
    let on = [page(0x5000, 0x6000)];
    assert_eq!(spec.lend(other, Target::Capability(back), &on), Err((Error::NotOwner, 0, 0)));
    // Its address stays taken as long as it is away.
    let there = spec.lend(HOST, Target::Vm(owner), &[page(RAM + 0x1000, 0x1000)]);
    assert_eq!(there, Err((Error::GuestMapped, 0, 0)));
    spec.modify(other, 0x5000, PAGE_SIZE, call::MODIFY_UNLOCK).unwrap();
    spec.reclaim(owner, &[bare(0x1000, 0)]).unwrap();
    assert_eq!(spec.frame(RAM), Frame::donated(owner, 0x1000));
    assert_eq!(spec.guest(owner).entry(0x1000), Entry::Valid(RAM, Rights::ALL));
}

#[test]
fn a_guest_owner_reaches_what_was_opened_to_it_by_touching_it() {
    let mut spec = machine();
    let (owner, other, handle) = owner_and_other(&mut spec);
    spec.lend(owner, handle, &[page(0x1000, 0x5000)]).unwrap();
    assert!(!spec.touch(owner, 0x1000));
    spec.share_back(other, 0x5000, PAGE_SIZE).unwrap();
    assert!(spec.touch(owner, 0x1000));
    // Another guest is not asked; it will see to it, or not.
    assert_eq!(spec.ask_back(other, 0x5000, PAGE_SIZE), Err(Error::Busy));
    spec.take_back(owner, &[bare(0x1000, 0)]).unwrap();
    assert_eq!(spec.guest(owner).entry(0x1000), Entry::Away(RAM, Rights::ALL));
    assert_eq!(spec.ask_back(other, 0x5000, PAGE_SIZE), Ok(Asked::Done));
}

#[test]
fn a_handle_goes_as_far_as_its_rights_and_its_window() {
    let mut spec = machine();
    let (owner, other, _) = owner_and_other(&mut spec);
    let grant = |spec: &mut Spec, rights| {
        let window = (0x5000, 0x2000);
        spec.grant(Target::Vm(owner), Target::Vm(other), rights, window.0, window.1)
    };
    let narrow = Target::Capability(grant(&mut spec, call::RIGHT_SHARE).unwrap());
    let refused = |result: Result<(), crate::Refused>| result.unwrap_err();
    let inside = [page(0x1000, 0x6000)];
    assert_eq!(refused(spec.lend(owner, narrow, &inside)), (Error::Denied, 0, 0));
    let outside = [page(0x1000, 0x6000), page(0x1000, 0x7000)];
    assert_eq!(refused(spec.share(owner, narrow, &outside)), (Error::Denied, 1, 0));
    spec.share(owner, narrow, &inside).unwrap();
    spec.unshare(owner, &[bare(0x1000, 0)]).unwrap();
    // A guest's host is a name for giving back, and for nothing else.
    assert_eq!(refused(spec.share(owner, Target::Host, &inside)), (Error::Denied, 0, 0));
    let Target::Capability(which) = narrow else { unreachable!() };
    spec.revoke(Target::Vm(owner), Some(which)).unwrap();
    assert_eq!(refused(spec.share(owner, narrow, &inside)), (Error::HandleRevoked, 0, 0));
    let again = spec.revoke(Target::Vm(owner), Some(which));
    assert_eq!(again, Err((Error::HandleRevoked, 0, 0)));
}

#[test]
fn a_table_of_handles_is_full_until_an_object_dies() {
    let mut spec = machine();
    let (owner, other, first) = owner_and_other(&mut spec);
    let grant = |spec: &mut Spec, object| {
        spec.grant(Target::Vm(owner), Target::Vm(object), 1, 0, PAGE_SIZE)
    };
    for n in 1..16 {
        assert_eq!(grant(&mut spec, other), Ok(CapId(n)));
    }
    let third = guest(&mut spec, 0);
    assert_eq!(grant(&mut spec, third), Err((Error::TableFull, 0, 0)));
    spec.destroy(other).unwrap();
    assert_eq!(grant(&mut spec, third), Ok(CapId(16)), "numbering never repeats");
    let dead = spec.share(owner, first, &[page(0x1000, 0)]);
    assert_eq!(dead, Err((Error::HandleRevoked, 0, 0)));
}

#[test]
fn the_host_is_the_heir_and_finds_zeros() {
    let mut spec = machine();
    let (owner, other, handle) = owner_and_other(&mut spec);
    spec.donate(HOST, Target::Vm(owner), &[page(RAM + 0x1000, 0x2000)]).unwrap();
    spec.share(owner, handle, &[page(0x1000, 0x5000)]).unwrap();
    spec.destroy(owner).unwrap();
    assert!(spec.frame(RAM).is_reached_by(other), "a living borrower keeps what it has");
    let shared = FrameState::Shared as u64;
    assert_eq!(spec.reclaim(HOST, &[bare(RAM, 0)]), Err((Error::WrongState, 0, shared)));
    spec.unshare(HOST, &[bare(RAM, 0)]).unwrap();
    spec.reclaim(HOST, &[bare(RAM + 0x1000, 0)]).unwrap();
    assert_eq!((spec.frame(RAM), spec.frame(RAM + 0x1000)), (Frame::HOME, Frame::HOME));
    assert!(spec.is_zero(RAM) && spec.is_zero(RAM + 0x1000));
    assert_eq!(spec.guest(other).entry(0x5000), Entry::Nothing);
}

#[test]
fn a_guest_exists_until_its_last_page_is_home() {
    let mut spec = machine();
    let (owner, other, handle) = owner_and_other(&mut spec);
    spec.lend(owner, handle, &[page(0x1000, 0x5000)]).unwrap();
    spec.destroy(owner).unwrap();
    let metadata: Vec<_> = spec
        .frames()
        .filter(|(_, frame)| frame.borrower == Some(owner))
        .map(|(at, _)| bare(at, 0))
        .collect();
    spec.reclaim(HOST, &metadata).unwrap();
    assert_eq!(spec.existing(), 2, "the other one has a page of its");
    spec.modify(other, 0x5000, PAGE_SIZE, call::MODIFY_UNLOCK).unwrap();
    spec.reclaim(HOST, &[bare(RAM, 0)]).unwrap();
    assert_eq!(spec.existing(), 1);
    assert!(spec.is_zero(RAM), "not for its heir");
}

#[test]
fn broken_memory_never_comes_home_and_its_address_stays_taken() {
    let mut spec = machine();
    let vm = guest(&mut spec, 2);
    spec.lend(HOST, Target::Vm(vm), &[page(RAM, 0x1000)]).unwrap();
    spec.poison(&[bare(RAM, 0)]).unwrap();
    assert_eq!(spec.guest(vm).entry(0x1000), Entry::Poisoned);
    assert!(!spec.frame(RAM).is_reached_by(HOST) && !spec.frame(RAM).is_reached_by(vm));
    let instead = spec.lend(HOST, Target::Vm(vm), &[page(RAM + 0x1000, 0x1000)]);
    assert_eq!(instead, Err((Error::GuestMapped, 0, 0)));
    spec.destroy(vm).unwrap();
    let poisoned = FrameState::Poisoned as u64;
    assert_eq!(spec.reclaim(HOST, &[bare(RAM, 0)]), Err((Error::WrongState, 0, poisoned)));
}

#[test]
fn a_page_out_of_a_block_takes_a_table_of_whoever_loses_it() {
    let mut spec = machine();
    let vm = guest(&mut spec, 1);
    let third = RAM + 3 * PAGE_SIZE;
    // One table: a block has none of its own.
    spec.share(HOST, Target::Vm(vm), &[block(RAM, BLOCK_SIZE)]).unwrap();
    assert_eq!(spec.guest(vm).pool, 0);
    assert_eq!(spec.unshare(HOST, &[bare(third, 0)]), Err((Error::NoMemory, 0, 1)));
    spec.unshare(HOST, &[bare(RAM, ORDER_BLOCK)]).unwrap();
    spec.donate(HOST, Target::Vm(vm), &[block(RAM, BLOCK_SIZE)]).unwrap();
    let back = [bare(BLOCK_SIZE + 3 * PAGE_SIZE, 0)];
    // The caller itself, which is another matter.
    assert_eq!(spec.donate(vm, Target::Host, &back), Err((Error::NoMemory, 1, 1)));
    spec.top_up(Target::Vm(vm), &[bare(METADATA + 0x10_0000, 0)]).unwrap();
    spec.donate(vm, Target::Host, &back).unwrap();
    assert_eq!(spec.frame(third), Frame::HOME);
    assert_eq!(spec.guest(vm).entry(BLOCK_SIZE), Entry::Valid(RAM, Rights::ALL));
    // And a block needs one that is whole.
    let rest = [bare(BLOCK_SIZE, ORDER_BLOCK)];
    assert_eq!(spec.donate(vm, Target::Host, &rest), Err((Error::InvalidAddress, 0, 0)));
}

#[test]
fn a_call_happens_for_all_of_its_entries_or_for_none() {
    let mut spec = machine();
    let vm = guest(&mut spec, 4);
    spec.set_aside(RAM + 0x3000..RAM + 0x4000, FrameState::Pinned);
    let list = [page(RAM, 0), page(RAM + 0x3000, 0x1000), page(RAM + 0x1000, 0x2000)];
    assert_eq!(spec.lend(HOST, Target::Vm(vm), &list), Err((Error::Pinned, 1, 0)));
    assert_eq!(spec.frame(RAM), Frame::HOME);
    assert_eq!(spec.guest(vm).entries().count(), 0);
    assert_eq!(spec.guest(vm).pool, 4);
}

#[test]
fn one_call_is_about_one_owner_and_one_borrower() {
    let mut spec = machine();
    let (one, two) = (guest(&mut spec, 2), guest(&mut spec, 2));
    spec.share(HOST, Target::Vm(one), &[page(RAM, 0)]).unwrap();
    spec.share(HOST, Target::Vm(two), &[page(RAM + 0x1000, 0)]).unwrap();
    let both = [bare(RAM, 0), bare(RAM + 0x1000, 0)];
    assert_eq!(spec.unshare(HOST, &both), Err((Error::MixedVms, 1, 0)));
}

#[test]
fn an_interrupt_controller_takes_pages_and_keeps_its_addresses_free() {
    let mut spec = machine();
    let list: Vec<_> = (0..4).map(|n| bare(METADATA + n * PAGE_SIZE, 0)).collect();
    let vm = spec.create(&list).unwrap();
    let target = Target::Vm(vm);
    let (gicd, gicr) = (0x0800_0000, 0x080a_0000);
    spec.create_vcpu(vm, 0).unwrap();
    // INTIDs up to 1023 take two pages.
    spec.vgic(target, gicd, gicr, call::SPIS_MAX).unwrap();
    assert_eq!(spec.guest(vm).pool, 0);
    assert_eq!(spec.vgic(target, gicd, gicr, call::SPIS_MAX), Err((Error::Denied, 0, 0)));
    let taken = Err((Error::GuestMapped, 0, 0));
    assert_eq!(spec.share(HOST, target, &[page(RAM, gicd)]), taken);
    assert_eq!(spec.share(HOST, target, &[page(RAM, gicr + 0x1_f000)]), taken);
    assert_eq!(spec.pv_time(target, gicr, None), taken);
    let beside = spec.share(HOST, target, &[page(RAM, gicr + 0x2_0000)]);
    assert_eq!(beside, Err((Error::NoMemory, 0, 2)), "tables");
    spec.top_up(target, &[bare(METADATA + 4 * PAGE_SIZE, 0), bare(METADATA + 5 * PAGE_SIZE, 0)])
        .unwrap();
    spec.share(HOST, target, &[page(RAM, gicr + 0x2_0000)]).unwrap();
    // That is where the next vCPU's redistributor would be.
    assert_eq!(spec.create_vcpu(vm, 1), taken);

    spec.spi_input(target, 40, call::INPUT_HIGH).unwrap();
    spec.spi_input(target, 1019, call::INPUT_EDGE).unwrap();
    spec.spi_input(target, 41, call::INPUT_HIGH).unwrap();
    spec.spi_input(target, 41, call::INPUT_LOW).unwrap();
    let gic = spec.guest(vm).gic.as_ref().unwrap();
    assert_eq!((gic.pending(1), gic.pending(31)), (1 << 8, 1 << 27));
    spec.destroy(vm).unwrap();
    let dead = Err((Error::HandleRevoked, 0, 0));
    assert_eq!(spec.spi_input(target, 40, call::INPUT_LOW), dead);
    assert_eq!(spec.spi_done(target), dead);
    // All of its pages come home, zeroed.
    for n in 0..6 {
        spec.reclaim(HOST, &[bare(METADATA + n * PAGE_SIZE, 0)]).unwrap();
        assert!(spec.is_zero(METADATA + n * PAGE_SIZE));
    }
    spec.reclaim(HOST, &[bare(RAM, 0)]).unwrap();
    assert_eq!(spec.existing(), 0);
}

#[test]
fn stolen_time_is_for_its_guest_to_read() {
    let mut spec = machine();
    let list: Vec<_> = (0..5).map(|n| bare(METADATA + n * PAGE_SIZE, 0)).collect();
    let vm = spec.create(&list).unwrap();
    spec.create_vcpu(vm, 0).unwrap();
    spec.pv_time(Target::Vm(vm), 0x1000, Some(METADATA + PAGE_SIZE)).unwrap();
    assert_eq!(spec.guest(vm).pool, 0, "two tables, and the page");
    assert!(spec.is_consistent());
    spec.start(vm).unwrap();
    assert_eq!(spec.guest(vm).entry(0x1000), Entry::Valid(METADATA + PAGE_SIZE, Rights::READ));
    assert!(!spec.frame(METADATA + PAGE_SIZE).is_reached_by(HOST));
    // It is not the guest's to give up, or away.
    assert_eq!(spec.modify(vm, 0x1000, PAGE_SIZE, call::MODIFY_UNLOCK), Err(Error::Denied));
    assert_eq!(spec.share_back(vm, 0x1000, PAGE_SIZE), Err(Error::Denied));
    let lent = spec.donate(vm, Target::Host, &[bare(0x1000, 0)]);
    assert_eq!(lent, Err((Error::NotOwner, 0, 0)));
}
