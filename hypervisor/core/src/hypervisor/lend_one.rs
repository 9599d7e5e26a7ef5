// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lending one page or one block, as a host does at each page fault of a guest:
//! the general way, without what only lists need.
//!
//! Whatever is not as it usually is goes the general way, which also finds the
//! error. Nothing has changed then, so there is one place that refuses, and one
//! order of checks.

use escrow_abi::{FrameState, Handle, ORDER_BLOCK};

use super::Hypervisor;
use super::oracle::Asked;
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::ledger::{Block, Record, VmId, page_in_block};
use crate::machine::{Machine, Note};
use crate::stage2::{Attributes, Descriptor};
use crate::vm::{Slot, Vm};

impl<M: Machine> Hypervisor<M> {
    /// Lends what the one entry of a list names; whether it did.
    #[inline(always)]
    pub(super) fn lend_one(&self, vm: u64, list: u64) -> bool {
        let Some([frame, guest, references, users]) = self.read_one(PhysAddr(list)) else {
            return false;
        };
        // The halves of `references` are equal when there is no excess; the rest
        // is 0 when the entry is in order.
        let odd = (references ^ references.rotate_left(32))
            | users
            | (guest & (PAGE_SIZE - 1) & !6) ^ 1
            | guest >> self.guest_geometry.ipa_bits;
        let attributes = self.guest_attributes[(guest % 8) as usize];
        if odd | (frame % PAGE_SIZE) == 0 {
            self.lend_page(vm, PhysAddr(frame), guest, attributes)
        } else if odd | ((frame % BLOCK_SIZE) ^ ORDER_BLOCK as u64) == 0
            && guest % BLOCK_SIZE < PAGE_SIZE
        {
            self.lend_block(vm, PhysAddr(frame).align_down(BLOCK_SIZE), guest, attributes)
        } else {
            false
        }
    }

    /// The words of the one entry of a list, in memory that is the host's alone.
    #[inline(always)]
    fn read_one(&self, at: PhysAddr) -> Option<[u64; 4]> {
        if !at.is_aligned(PAGE_SIZE) {
            return None;
        }
        let block = self.ledger.locate(at)?;
        block.read(|| {
            let record = block.record();
            let mine =
                record == Record::HOME || record.is_split() && Record::is_home(block.frame(at));
            // What is not the host's is not looked at. All ones are no entry.
            if mine { self.machine.read_entry(at) } else { [!0; 4] }
        })
    }

    #[inline(always)]
    fn lend_page(&self, vm: u64, frame: PhysAddr, guest: u64, attributes: Attributes) -> bool {
        let at = Ipa(guest & !(PAGE_SIZE - 1));
        let Some(block) = self.ledger.locate(frame) else { return false };
        let Some((id, slot)) = self.slot_of(vm) else { return false };
        let mut locked = slot.lock();
        if locked.live_handle != vm {
            return false;
        }
        let Vm { map: Some(map), counts, .. } = &mut *locked else { return false };
        let Some(entry) = map.free_page(&self.machine, at) else { return false };
        let record = Record::borrowed(FrameState::Lent, VmId::HOST, id, at);
        block.lock();
        if !leave_home(block, frame, record) {
            block.unlock();
            return false;
        }
        self.oracle_step(VmId::HOST, Asked::Lend, block, (page_in_block(frame), 1), record);
        self.machine.note(|| Note::Record { at: frame, size: PAGE_SIZE, record });
        self.host.unmap_pages(&self.machine, block, page_in_block(frame), 1);
        self.out_of_sight(frame, PAGE_SIZE);
        self.machine.write_descriptor(entry, Descriptor::page(frame, attributes));
        self.machine.publish();
        self.oracle_look_at(block, frame, 1, &[(id, Some(map))]);
        block.unlock();
        counts.add(FrameState::Lent, 1);
        true
    }

    #[inline(always)]
    fn lend_block(&self, vm: u64, frame: PhysAddr, guest: u64, attributes: Attributes) -> bool {
        let at = Ipa(guest & !(PAGE_SIZE - 1));
        let Some(block) = self.ledger.locate(frame) else { return false };
        let Some((id, slot)) = self.slot_of(vm) else { return false };
        let mut locked = slot.lock();
        if locked.live_handle != vm {
            return false;
        }
        let Vm { map: Some(map), counts, .. } = &mut *locked else { return false };
        let Some(entry) = map.free_block(&self.machine, at) else { return false };
        block.lock();
        if block.record() != Record::HOME {
            block.unlock();
            return false;
        }
        let record = Record::borrowed(FrameState::Lent, VmId::HOST, id, at);
        self.oracle_step(VmId::HOST, Asked::Lend, block, (0, PAGES_PER_BLOCK), record);
        self.host.unmap_block(&self.machine, frame);
        self.machine.note(|| Note::Record { at: frame, size: BLOCK_SIZE, record });
        block.set_record(record);
        self.out_of_sight(frame, BLOCK_SIZE);
        self.machine.write_descriptor(entry, Descriptor::block(frame, attributes));
        self.machine.publish();
        self.oracle_look_at(block, frame, PAGES_PER_BLOCK, &[(id, Some(map))]);
        block.unlock();
        counts.add(FrameState::Lent, PAGES_PER_BLOCK as u64);
        true
    }

    /// The slot that a VM's handle would be of; `None` for the host's.
    #[inline(always)]
    fn slot_of(&self, vm: u64) -> Option<(VmId, &Slot)> {
        let number = vm >> Handle::SLOT_SHIFT & VmId::MAX as u64;
        let slot = self.slots.get(number as usize)?;
        Some((VmId::new(number as u16), slot))
    }

    /// What follows when memory is out of the host's map.
    #[inline(always)]
    fn out_of_sight(&self, frame: PhysAddr, size: u64) {
        let range = (frame.identity(), size);
        self.machine.invalidate(self.host.context(), core::iter::once(range));
        if self.machine.needs_clean() {
            self.machine.clean_to_poc(frame, size);
        }
    }
}

/// Writes the record of a frame that is at home in a split block; whether it
/// was. The last one at home goes the general way, which makes the block whole.
#[inline(always)]
fn leave_home(block: Block, at: PhysAddr, record: Record) -> bool {
    let (split, frame) = (block.record(), block.frame(at));
    match split.next_away() {
        Some(next) if split.is_split() && Record::is_home(frame) => {
            record.store(frame);
            block.set_record(next);
            true
        }
        _ => false,
    }
}
