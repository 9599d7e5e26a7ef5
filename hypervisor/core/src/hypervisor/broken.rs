// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that fails while EL2 zeroes or cleans it, in the half of a call that
//! cannot refuse.
//!
//! The call goes on without the frames that fail. They are poisoned, as by
//! [`call::MEM_POISON`](escrow_abi::call::MEM_POISON): nobody reaches them any
//! more. The caller learns how many they were, and finds them by
//! [`call::FRAME_INFO`](escrow_abi::call::FRAME_INFO).

use core::sync::atomic::Ordering;

use super::Hypervisor;
use super::extents::Extent;
use super::oracle::Asked;
use super::parties::{Parties, Party};
use super::pieces::Piece;
use super::prepared::Prepared;
use crate::addr::PhysAddr;
use crate::ledger::{Block, Record, VmId};
use crate::machine::{Machine, MemoryError};
use crate::stage2::Unmapped;
use crate::vm::Vm;

impl<M: Machine> Hypervisor<M> {
    /// Poisons frames that no VM reaches, all of one record, of a locked block.
    #[cold]
    pub(super) fn break_frames(&self, block: Block, at: PhysAddr, piece: &Piece) {
        self.set_frames(block, at, piece, Record::POISONED, (VmId::Host, Asked::Break));
        self.poisoned.fetch_add(piece.pages as u64, Ordering::Relaxed);
    }

    /// Poisons an extent that has left its owner's map and is in nobody else's yet.
    /// It has no pages any more from here on. `owner`: the guest that counts them so far.
    /// At the addresses where it had them, its map gets marks of broken memory.
    #[cold]
    fn break_extent(&self, extent: &mut Extent, mut owner: Option<&mut Party<'_>>) {
        for piece in self.pieces(extent) {
            self.break_frames(extent.block, piece.frame(extent), &piece);
            let pages = piece.pages as u64;
            Parties::new(owner.as_deref_mut(), None).recount(piece.record, Record::POISONED, pages);
        }
        if let Some(Party { vm: Vm { map: Some(map), pool, has_broken, .. }, .. }) = owner
            && map.lookup(&self.machine, extent.own).entry.is_away()
        {
            // These entries were unmapped just now, so their tables exist.
            map.unmap(&self.machine, pool, extent.own_span(), Unmapped::Poisoned);
            *has_broken = true;
        }
        extent.pages = 0;
        extent.is_block = false;
    }

    /// Cleans what another VM is to see, where that is needed. Extents that
    /// fail are poisoned; returns how many pages that were.
    #[inline(always)]
    pub(super) fn clean(&self, prepared: &mut Prepared<'_>) -> u64 {
        if self.machine.needs_clean() { self.clean_always(prepared, None) } else { 0 }
    }

    /// The same, whatever the CPUs do by themselves. `owner`: the guest that counts the
    /// pages so far.
    pub(super) fn clean_always(
        &self,
        prepared: &mut Prepared<'_>,
        owner: Option<&mut Party<'_>>,
    ) -> u64 {
        self.work_on(prepared, owner, |machine, at, size| machine.clean_to_poc(at, size))
    }

    /// Zeroes what another VM is to see. The rest as for [`Self::clean`].
    #[cold]
    pub(super) fn zero_extents(&self, prepared: &mut Prepared<'_>) -> u64 {
        self.work_on(prepared, None, M::zero)
    }

    #[inline(always)]
    fn work_on(
        &self,
        prepared: &mut Prepared<'_>,
        mut owner: Option<&mut Party<'_>>,
        work: impl Fn(&M, PhysAddr, u64) -> Result<(), MemoryError>,
    ) -> u64 {
        let mut broken = 0;
        for extent in prepared.extents_mut() {
            if work(&self.machine, extent.frame, extent.size()).is_err() {
                broken += extent.pages as u64;
                self.break_extent(extent, owner.as_deref_mut());
            }
        }
        prepared.note_broken(broken);
        self.machine.sync_fetches();
        broken
    }
}
