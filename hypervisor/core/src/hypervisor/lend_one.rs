// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lending one page or one block, as a host does at each page fault of a guest: a fast
//! path, without the work that only lists need.
//!
//! An unusual case, an error among them, takes the general path. The fast path has changed
//! nothing then. So only the general path refuses, and there is one order of checks.

use escrow_abi::{FrameState, Handle};

use super::Hypervisor;
use super::list::{Entry, Form};
use super::oracle::Asked;
use super::pieces::Piece;
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::ledger::{Block, GuestId, Record, VmId, page_in_block};
use crate::machine::{Machine, MemoryError, Note};
use crate::stage2::{Attributes, Descriptor};
use crate::vm::{Slot, Vm};

impl<M: Machine> Hypervisor<M> {
    /// Lends what the words of an entry name, if it can: then it says how many
    /// of the pages turned out to be broken.
    #[inline(always)]
    pub(super) fn lend_one(&self, vm: u64, words: [u64; 4]) -> Option<u64> {
        let decoded = Entry::decode(Form::LEND, self.guest_geometry.ipa_bits, words);
        let Entry { at, guest, is_block } = decoded.ok()?;
        let attributes = self.guest_attributes[(guest % 8) as usize];
        if is_block {
            self.lend_block(vm, PhysAddr(at), guest, attributes)
        } else {
            self.lend_page(vm, PhysAddr(at), guest, attributes)
        }
    }

    /// The words of the one entry of a list, in memory that is the host's alone.
    #[inline(always)]
    pub(super) fn read_one(&self, at: PhysAddr) -> Option<[u64; 4]> {
        if !at.is_aligned(PAGE_SIZE) {
            return None;
        }
        let block = self.ledger.locate(at)?;
        block.read(|| {
            let record = block.record();
            let mine =
                record == Record::HOME || record.is_split() && Record::is_home(block.frame(at));
            // Read the list only if its page is the host's. No valid entry is all ones.
            if mine { self.machine.read_entry(at).unwrap_or([!0; 4]) } else { [!0; 4] }
        })
    }

    #[inline(always)]
    fn lend_page(
        &self,
        vm: u64,
        frame: PhysAddr,
        guest: u64,
        attributes: Attributes,
    ) -> Option<u64> {
        let at = Ipa(guest & !(PAGE_SIZE - 1));
        let block = self.ledger.locate(frame)?;
        let (id, slot) = self.slot_of(vm)?;
        let mut locked = slot.lock();
        if locked.live_handle != vm {
            return None;
        }
        let Vm { map: Some(map), counts, .. } = &mut *locked else { return None };
        if map.shared_bit().is_some() {
            return None;
        }
        let entry = map.free_page(&self.machine, at)?;
        let record = Record::borrowed(FrameState::Lent, VmId::Host, id, at);
        block.lock();
        if !leave_home(block, frame, record) {
            block.unlock();
            return None;
        }
        self.oracle_step(VmId::Host, Asked::Lend, block, (page_in_block(frame), 1), record);
        self.machine.note(|| Note::Record { at: frame, size: PAGE_SIZE, record });
        self.host.unmap_pages(&self.machine, block, page_in_block(frame), 1);
        if self.out_of_sight(frame, PAGE_SIZE).is_err() {
            return Some(self.broke(block, frame, 1, record));
        }
        self.machine.write_descriptor(entry, Descriptor::page(frame, attributes));
        self.machine.publish();
        self.oracle_look_at(block, frame, 1, &[(id.into(), Some(map))]);
        block.unlock();
        counts.add(FrameState::Lent, 1);
        Some(0)
    }

    #[inline(always)]
    fn lend_block(
        &self,
        vm: u64,
        frame: PhysAddr,
        guest: u64,
        attributes: Attributes,
    ) -> Option<u64> {
        let at = Ipa(guest & !(PAGE_SIZE - 1));
        let block = self.ledger.locate(frame)?;
        let (id, slot) = self.slot_of(vm)?;
        let mut locked = slot.lock();
        if locked.live_handle != vm {
            return None;
        }
        let Vm { map: Some(map), counts, .. } = &mut *locked else { return None };
        if map.shared_bit().is_some() {
            return None;
        }
        let entry = map.free_block(&self.machine, at)?;
        block.lock();
        if block.record() != Record::HOME {
            block.unlock();
            return None;
        }
        let record = Record::borrowed(FrameState::Lent, VmId::Host, id, at);
        self.oracle_step(VmId::Host, Asked::Lend, block, (0, PAGES_PER_BLOCK), record);
        self.host.unmap_block(&self.machine, frame);
        self.machine.note(|| Note::Record { at: frame, size: BLOCK_SIZE, record });
        block.set_record(record);
        if self.out_of_sight(frame, BLOCK_SIZE).is_err() {
            return Some(self.broke(block, frame, PAGES_PER_BLOCK, record));
        }
        self.machine.write_descriptor(entry, Descriptor::block(frame, attributes));
        self.machine.publish();
        self.oracle_look_at(block, frame, PAGES_PER_BLOCK, &[(id.into(), Some(map))]);
        block.unlock();
        counts.add(FrameState::Lent, PAGES_PER_BLOCK as u64);
        Some(0)
    }

    /// Poisons what failed on its way out of the host's sight, and gives its block
    /// back. Returns the number of pages.
    #[cold]
    fn broke(&self, block: Block, frame: PhysAddr, pages: usize, record: Record) -> u64 {
        self.break_frames(block, frame, &Piece::new(pages, record));
        block.unlock();
        pages as u64
    }

    /// The slot that a VM's handle would be of; `None` for the host's.
    #[inline(always)]
    fn slot_of(&self, vm: u64) -> Option<(GuestId, &Slot)> {
        let number = vm >> Handle::SLOT_SHIFT & GuestId::MAX as u64;
        let id = GuestId::new(number as u16)?;
        Some((id, self.slots.get(id)?))
    }

    /// What follows when memory is out of the host's map.
    #[inline(always)]
    fn out_of_sight(&self, frame: PhysAddr, size: u64) -> Result<(), MemoryError> {
        let range = (frame.identity(), size);
        self.machine.invalidate(self.host.context(), core::iter::once(range));
        if self.machine.needs_clean() {
            self.machine.clean_to_poc(frame, size)?;
            self.machine.sync_fetches();
        }
        Ok(())
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
