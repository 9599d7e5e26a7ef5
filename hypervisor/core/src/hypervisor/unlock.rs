// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's own call about the pages that it was lent.

use escrow_abi::{Error, FrameState, MODIFY_MAX, call};

use super::Hypervisor;
use crate::addr::{BLOCK_SIZE, Ipa, Order, PAGE_SIZE, PhysAddr};
use crate::ledger::{BlockIndex, Record};
use crate::machine::Machine;
use crate::stage2::GuestMap;
use crate::vm::Run;

/// A piece of guest memory that one record and one entry stand for.
struct Piece {
    frame: PhysAddr,
    block: BlockIndex,
    order: Order,
    record: Record,
}

impl<M: Machine> Hypervisor<M> {
    /// [`call::MODIFY_PAGES`] by the guest that `run` runs.
    ///
    /// Every page of the range must be lent to the guest; if one is not, none
    /// changes.
    pub fn modify_pages(&self, run: &Run<'_>, args: &[u64; 8]) -> Result<(), Error> {
        let [_, address_space, at, size, flags, ..] = *args;
        let known = call::MODIFY_UNLOCK | call::MODIFY_SANITIZE | call::MODIFY_FLUSH;
        if address_space != 0 || flags == 0 || flags & !known != 0 {
            return Err(Error::InvalidArgument);
        }
        if !at.is_multiple_of(PAGE_SIZE) || !size.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Misaligned);
        }
        if size == 0 || size > MODIFY_MAX {
            return Err(Error::InvalidSize);
        }
        let vm = run.slot().lock();
        let Some(map) = &vm.map else { return Err(Error::Denied) };
        let end = at.checked_add(size).filter(|&end| end <= map.end());
        let end = end.ok_or(Error::AddressOverflow)?;
        // A frame that this VM borrows changes only under the VM's lock, so
        // what the first pass finds still holds in the second.
        self.for_each_piece(run, map, at, end, |_| {})?;
        self.for_each_piece(run, map, at, end, |piece| {
            if flags & call::MODIFY_SANITIZE != 0 {
                self.machine.zero(piece.frame, piece.order.size());
            } else if flags & call::MODIFY_FLUSH != 0 {
                self.machine.clean_to_poc(piece.frame, piece.order.size());
            }
            if flags & call::MODIFY_UNLOCK != 0 {
                self.unlock_piece(&piece, flags & call::MODIFY_SANITIZE != 0);
            }
        })
    }

    /// Hands each piece of a range to `f`, under the lock of its block.
    fn for_each_piece(
        &self,
        run: &Run<'_>,
        map: &GuestMap,
        at: u64,
        end: u64,
        mut f: impl FnMut(Piece),
    ) -> Result<(), Error> {
        let mut at = at;
        while at < end {
            let leaf = map.lookup(&self.machine, Ipa(at));
            if !leaf.entry.is_valid() {
                return Err(Error::InvalidAddress);
            }
            let in_block = if leaf.level == 2 { at % BLOCK_SIZE } else { 0 };
            let frame = leaf.entry.address().add(in_block);
            let block = self.ledger.ram().locate(frame).ok_or(Error::InvalidAddress)?;
            self.ledger.lock(block);
            let whole = leaf.level == 2
                && at.is_multiple_of(BLOCK_SIZE)
                && end - at >= BLOCK_SIZE
                && !self.ledger.is_split(block);
            let order = if whole { Order::Block } else { Order::Page };
            let record = self.ledger.get_in(block, frame);
            let lent = matches!(
                record.state(),
                Some(FrameState::Lent | FrameState::UnlockedZeroed | FrameState::UnlockedContents)
            );
            let mine = lent && record.borrower() == run.id();
            if mine {
                f(Piece { frame, block, order, record });
            }
            self.ledger.unlock(block);
            if !mine {
                return Err(Error::Denied);
            }
            at += order.size();
        }
        Ok(())
    }

    fn unlock_piece(&self, piece: &Piece, zeroed: bool) {
        let state = if zeroed { FrameState::UnlockedZeroed } else { FrameState::UnlockedContents };
        let record = piece.record.with_state(state);
        match piece.order {
            Order::Block => self.ledger.set_block(piece.block, record),
            Order::Page => {
                self.host.split(&self.machine, &self.ledger, piece.block, piece.frame);
                self.ledger.set_in(piece.block, piece.frame, record);
            }
        }
    }
}
