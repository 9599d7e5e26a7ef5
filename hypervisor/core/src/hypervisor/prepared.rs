// SPDX-License-Identifier: MIT OR Apache-2.0

//! The two halves of a call, told apart by type.
//!
//! What changes memory takes a [`Prepared`] and returns nothing. The only way to get a
//! `Prepared` is a check of all extents under the locks of their blocks, and it borrows
//! those locks. So nothing changes before all was checked, and nothing refuses after
//! something has changed.

use super::extents::{Extent, Scratch, for_each_block};
use super::{Hypervisor, Refusal};
use crate::ledger::VmId;
use crate::machine::Machine;
use crate::stage2::GuestMap;

/// Extents in the order of their frames, whose blocks are locked.
pub(super) struct Locked<'a, M: Machine> {
    escrow: &'a Hypervisor<M>,
    scratch: &'a mut Scratch,
}

/// Extents that a call may change: they were checked, and their blocks are locked.
pub(super) struct Prepared<'a> {
    scratch: &'a mut Scratch,
}

impl<M: Machine> Hypervisor<M> {
    /// Takes the locks of all blocks that extents lie in, in ascending order, after
    /// those of their VMs.
    #[inline(always)]
    pub(super) fn lock_blocks<'a>(
        &'a self,
        scratch: &'a mut Scratch,
    ) -> Result<Locked<'a, M>, Refusal> {
        scratch.sort_by_frame()?;
        for_each_block(scratch.extents(), |block| self.ledger.lock(block));
        Ok(Locked { escrow: self, scratch })
    }
}

impl<M: Machine> Locked<'_, M> {
    /// Has the extents checked. What is returned can be committed and cannot be refused
    /// any more.
    #[inline(always)]
    pub fn prepare(
        &mut self,
        check: impl FnOnce(&mut [Extent]) -> Result<(), Refusal>,
    ) -> Result<Prepared<'_>, Refusal> {
        check(self.scratch.extents_mut())?;
        self.scratch.count_work();
        if !self.scratch.is_to_be_done() {
            self.scratch.check_apart()?;
        }
        Ok(Prepared { scratch: self.scratch })
    }

    /// Shows the extents to the oracle, with the maps of the VMs that are locked.
    #[inline(always)]
    pub fn look(&self, vms: &[(VmId, Option<&GuestMap>)]) {
        self.escrow.oracle_look(self.scratch.extents(), vms);
    }
}

impl<M: Machine> Drop for Locked<'_, M> {
    #[inline(always)]
    fn drop(&mut self) {
        for_each_block(self.scratch.extents(), |block| self.escrow.ledger.unlock(block));
    }
}

impl Prepared<'_> {
    /// The extents.
    #[inline(always)]
    pub fn extents(&self) -> &[Extent] {
        self.scratch.extents()
    }

    /// The extents, to take those out of the call whose memory fails.
    #[inline(always)]
    pub fn extents_mut(&mut self) -> &mut [Extent] {
        self.scratch.extents_mut()
    }

    /// Whether this step is to commit them, or was about checking them only.
    #[inline(always)]
    pub fn is_to_be_done(&self) -> bool {
        self.scratch.is_to_be_done()
    }

    /// Notes pages that the call has put out of use.
    #[inline(always)]
    pub fn note_broken(&mut self, pages: u64) {
        self.scratch.broken += pages;
    }
}
