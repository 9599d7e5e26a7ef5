// SPDX-License-Identifier: MIT OR Apache-2.0

//! The oracle in test builds (feature `oracle`).

use core::sync::atomic::{AtomicU64, Ordering};

use escrow_abi::FrameState;
use escrow_spec::{Event, Frame, Living, Transition, VmId as SpecVm, step};

use super::super::Hypervisor;
use super::super::extents::Extent;
use super::Asked;
use crate::addr::{Ipa, PAGE_SIZE, PhysAddr};
use crate::ledger::{Block, GuestId, Ledger, Record, VmId, page_in_block};
use crate::machine::Machine;
use crate::stage2::GuestMap;

/// No frame of RAM.
const NO_RAM: u64 = u64::MAX;

fn spec(id: VmId) -> SpecVm {
    SpecVm(id.vmid())
}

/// What the specification would say of a frame with this record.
fn frame_of(record: Record) -> Option<Frame> {
    let state = record.state()?;
    let owner = spec(record.owner());
    Some(match state {
        FrameState::Donated => Frame::donated(owner, record.guest().0),
        FrameState::Owned | FrameState::Hypervisor | FrameState::Pinned | FrameState::Poisoned => {
            Frame { state, owner, borrower: None, guest: 0 }
        }
        _ => {
            let borrower = record.borrower().map(|id| spec(id.into()));
            Frame { state, owner, borrower, guest: record.guest().0 }
        }
    })
}

/// 4 bits of state, 12 of owner, 12 of borrower, 36 of page address. The
/// states say whether there is a borrower.
fn pack(frame: Option<Frame>) -> u64 {
    frame.map_or(NO_RAM, |frame| {
        (frame.state as u64) << 60
            | (frame.owner.0 as u64) << 48
            | (frame.borrower.map_or(0, |vm| vm.0) as u64) << 36
            | (frame.guest / PAGE_SIZE)
    })
}

fn unpack(word: u64) -> Option<Frame> {
    let state = FrameState::from_number(word >> 60)?;
    let alone = matches!(
        state,
        FrameState::Owned
            | FrameState::Hypervisor
            | FrameState::Pinned
            | FrameState::Poisoned
            | FrameState::Donated
    );
    Some(Frame {
        state,
        owner: SpecVm((word >> 48 & 0xfff) as u16),
        borrower: (!alone).then_some(SpecVm((word >> 36 & 0xfff) as u16)),
        guest: (word & ((1 << 36) - 1)) * PAGE_SIZE,
    })
}

/// Writes down what the specification says of each frame when the host begins.
pub(in super::super) fn begin(ledger: &Ledger) {
    for block in ledger.blocks() {
        let records = ledger.records(block);
        for (page, word) in block.shadow().into_iter().flatten().enumerate() {
            word.store(pack(frame_of(records.get(page))), Ordering::Relaxed);
        }
    }
}

/// What the specification says of a frame, packed.
fn word(block: Block, page: usize) -> &'static AtomicU64 {
    &block.shadow().expect("each block has one")[page]
}

fn get(block: Block, page: usize) -> Option<Frame> {
    unpack(word(block, page).load(Ordering::Relaxed))
}

fn set(block: Block, page: usize, frame: Frame) {
    word(block, page).store(pack(Some(frame)), Ordering::Relaxed);
}

fn transition(asked: Asked, new: Record) -> Transition {
    let at = new.guest().0;
    let to = spec(new.borrower().map_or(VmId::Host, VmId::Guest));
    // Where an owner that is a guest has it again.
    let home = if new.is(FrameState::Donated) { at } else { 0 };
    match asked {
        Asked::Share => Transition::Share(to, at),
        Asked::Lend => Transition::Lend(to, at),
        Asked::Donate => Transition::Donate(spec(new.owner()), home),
        Asked::Equip => Transition::Equip(to),
        Asked::Unlock => Transition::Unlock { sanitize: new.is(FrameState::UnlockedZeroed) },
        Asked::Relock => Transition::Relock,
        Asked::ShareBack => Transition::ShareBack,
        Asked::TakeBack => Transition::TakeBack,
        Asked::Unshare => Transition::Unshare(home),
        Asked::Reclaim => Transition::Reclaim(home),
        Asked::Poison | Asked::Break => Transition::Poison,
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Notes that a call changes `pages` frames of a block from the `first` on.
    pub(in super::super) fn oracle_step(
        &self,
        by: VmId,
        asked: Asked,
        block: Block,
        (first, pages): (usize, usize),
        new: Record,
    ) {
        let alive = |vm: SpecVm| !self.is_dead(GuestId::new(vm.0).map_or(VmId::Host, VmId::Guest));
        for n in 0..pages {
            let page = first + n;
            let record = new.nth(n as u64);
            let Some(old) = get(block, page) else {
                panic!("oracle: {asked:?} by {by:?} of what is no RAM: {record:?}");
            };
            if asked == Asked::Break
                && let Some(frame) =
                    frame_of(record).filter(|frame| frame.state == FrameState::Poisoned)
            {
                // No call's transition: memory breaks in any state.
                set(block, page, frame);
                continue;
            }
            // Nothing keeps the owner of what is opened alive: it did live when the call
            // was checked.
            let owner = asked == Asked::ShareBack || alive(old.owner);
            let living = Living { owner, borrower: old.borrower.is_none_or(alive) };
            let event = Event { by: spec(by), transition: transition(asked, record), living };
            match step(old, event) {
                Ok(frame) if Some(frame) == frame_of(record) => set(block, page, frame),
                other => panic!("oracle: {old:?}, {event:?}: {other:?}, not {record:?}"),
            }
        }
    }

    /// Looks at what EL2 itself has mapped: of RAM nothing but its own, and metadata while
    /// it is that.
    fn oracle_look_at_el2(&self) {
        let is_own = |at: PhysAddr| {
            use FrameState::{Hypervisor, Metadata};
            // What is no RAM are registers of devices.
            self.ledger
                .get(at)
                .is_none_or(|record| matches!(record.state(), None | Some(Hypervisor | Metadata)))
        };
        let mut wrong = None;
        self.machine.each_mapped(&mut |at, size| {
            for page in (at.0..at.0 + size).step_by(PAGE_SIZE as usize).map(PhysAddr) {
                if !is_own(page) {
                    wrong = Some(page);
                }
            }
        });
        let Some(wrong) = wrong else { return };
        // Unless another CPU has taken the page from a VM meanwhile.
        self.machine.each_mapped(&mut |at, size| {
            let here = wrong.0.wrapping_sub(at.0) < size;
            assert!(!here || is_own(wrong), "oracle: {wrong} is mapped at EL2");
        });
    }

    /// Looks at the frames of extents whose blocks are locked.
    pub(in super::super) fn oracle_look(
        &self,
        extents: &[Extent],
        vms: &[(VmId, Option<&GuestMap>)],
    ) {
        self.oracle_look_at_el2();
        for extent in extents {
            self.oracle_look_at(extent.block, extent.frame, extent.pages.into(), vms);
        }
    }

    /// The same for frames of one block.
    pub(in super::super) fn oracle_look_at(
        &self,
        block: Block,
        at: PhysAddr,
        pages: usize,
        vms: &[(VmId, Option<&GuestMap>)],
    ) {
        for n in 0..pages {
            let at = at.add(n as u64 * PAGE_SIZE);
            let record = self.ledger.get_in(block, at);
            let Some(frame) = get(block, page_in_block(at)) else {
                assert!(record == Record::NO_RAM, "oracle: {record:?} of what is no RAM");
                continue;
            };
            assert!(
                frame_of(record) == Some(frame),
                "oracle: {at} is {record:?} in the ledger, not {frame:?}"
            );
            let reached = frame.is_reached_by(SpecVm::HOST);
            assert!(
                self.host.reaches(&self.machine, at) == reached,
                "oracle: {at}: {frame:?}, and the host's map says otherwise"
            );
            let has = frame.borrower.unwrap_or(frame.owner);
            for (_, map) in vms.iter().filter(|vm| spec(vm.0) == has) {
                // A VM that is dead has no map.
                let Some(map) = map else { continue };
                if frame.is_reached_by(has) {
                    let found = map.frame(&self.machine, Ipa(frame.guest));
                    let there =
                        found.is_some_and(|(page, leaf)| page == at && leaf.entry.is_valid());
                    assert!(there, "oracle: {at}: {frame:?}, and the guest has {found:?}");
                }
            }
        }
    }
}
