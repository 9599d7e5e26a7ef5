// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls in which an owner takes pages: it reclaims or unshares them, takes shared ones
//! back for their borrower, or poisons them.

use core::sync::atomic::Ordering;

use escrow_abi::{Error, FrameState};

use super::extents::{Extent, Scratch, check_all};
use super::list::{Form, List, Reader};
use super::memory::{Gone, enough_tables};
use super::oracle::Asked;
use super::parties::{Parties, Party};
use super::pieces::Piece;
use super::portions::Progress;
use super::prepared::Prepared;
use super::{Hypervisor, Refusal};
use crate::addr::{PAGE_SIZE, PAGES_PER_BLOCK};
use crate::ledger::{GuestId, Record, VmId};
use crate::machine::{Machine, MemoryError};
use crate::stage2::{GuestMap, Span, TableCount, Unmapped};
use crate::vm::{Life, Vm};

/// What an owner takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taking {
    /// What it shares.
    Unshare,
    /// What was given up, or left behind.
    Reclaim,
    /// Out of its own sight again: what the borrower had opened to it.
    TakeBack,
    /// Out of use.
    Poison,
}

impl Taking {
    pub(super) const fn form(self) -> Form {
        match self {
            Taking::TakeBack => Form::UNMAP,
            _ => Form::TAKE,
        }
    }

    const fn asked(self) -> Asked {
        match self {
            Taking::Unshare => Asked::Unshare,
            Taking::Reclaim => Asked::Reclaim,
            Taking::TakeBack => Asked::TakeBack,
            Taking::Poison => Asked::Poison,
        }
    }

    const fn unmapped(self) -> Unmapped {
        match self {
            Taking::Poison => Unmapped::Poisoned,
            _ => Unmapped::Free,
        }
    }
}

/// The VMs of a call that takes pages: the owner of the pages and their borrower.
pub(super) struct Sides<'a, 'v> {
    /// `None` if it is the host.
    pub owner: Option<&'a mut Party<'v>>,
    /// `None` if there is none.
    pub borrower: Option<&'a mut Party<'v>>,
    /// The caller is the host, as the heir of a dead owner.
    pub inherits: bool,
}

impl Sides<'_, '_> {
    fn ids(&self) -> (VmId, Option<GuestId>) {
        let owner = self.owner.as_ref().map_or(VmId::Host, |party| party.id.into());
        (owner, self.borrower.as_ref().map(|party| party.id))
    }

    /// The maps of those that have one.
    fn maps(&self) -> [(VmId, Option<&GuestMap>); 2] {
        [&self.owner, &self.borrower].map(|party| match party {
            Some(party) => (party.id.into(), party.vm.map.as_ref()),
            None => (VmId::Host, None),
        })
    }

    fn borrower_is_dead(&self) -> bool {
        self.borrower.as_ref().is_some_and(|party| party.vm.life == Life::Dead)
    }

    /// Who has the pages, if that is a VM that can still reach them.
    fn reacher(&mut self) -> Option<&mut Vm> {
        self.borrower.as_mut().map(|party| &mut *party.vm).filter(|vm| vm.is_alive())
    }
}

impl<M: Machine> Hypervisor<M> {
    /// The host takes pages: its own, or those of a dead VM.
    pub(super) fn host_takes(
        &self,
        scratch: &mut Scratch,
        kind: Taking,
        list: List,
    ) -> Result<Progress, Refusal> {
        self.in_portions(scratch, list, self.works_on_contents(kind), |scratch, part| {
            self.read_list(scratch, Reader::Host, kind.form(), list, part)?;
            scratch.sort_by_frame()?;
            let (owner, borrower) = self.peek(scratch)?;
            let (mut owner_vm, mut borrower_vm) = self.lock_pair(owner.guest(), borrower);
            let inherits = owner_vm.as_ref().is_some_and(|vm| vm.life == Life::Dead);
            let party = |(id, vm)| Party { id, vm };
            let mut owner = owner.guest().zip(owner_vm.as_deref_mut()).map(party);
            let mut borrower = borrower.zip(borrower_vm.as_deref_mut()).map(party);
            let sides = Sides { owner: owner.as_mut(), borrower: borrower.as_mut(), inherits };
            self.take(scratch, kind, VmId::Host, sides)?;
            Ok(scratch.end(list))
        })
    }

    /// Whether a call may have to zero or to clean what it takes.
    pub(super) fn works_on_contents(&self, kind: Taking) -> bool {
        match kind {
            // What an heir unshares.
            Taking::Reclaim | Taking::Unshare => true,
            Taking::TakeBack => self.machine.needs_clean(),
            Taking::Poison => false,
        }
    }

    /// Whose the first entry's frame is and who has it, as it looks without a
    /// lock; to be checked under it.
    pub(super) fn peek(&self, scratch: &Scratch) -> Result<(VmId, Option<GuestId>), Refusal> {
        let first = scratch.first().ok_or(Error::InvalidSize)?;
        Ok(pair(self.ledger.get_in(first.block, first.frame)))
    }

    /// One step of taking pages whose VMs are locked.
    pub(super) fn take(
        &self,
        scratch: &mut Scratch,
        kind: Taking,
        caller: VmId,
        mut sides: Sides<'_, '_>,
    ) -> Result<(), Refusal> {
        let mut locked = self.lock_blocks(scratch)?;
        let prepared = locked.prepare(|extents| self.check_take(extents, kind, caller, &mut sides));
        let result = prepared.map(|prepared| {
            if prepared.is_to_be_done() {
                self.commit_take(prepared, kind, caller, &mut sides);
            }
        });
        locked.look(&sides.maps());
        drop(locked);
        if let Some(party) = sides.owner {
            party.vm.free_if_empty();
        }
        if let Some(party) = sides.borrower {
            party.vm.free_if_empty();
        }
        result
    }

    fn check_take(
        &self,
        extents: &mut [Extent],
        kind: Taking,
        caller: VmId,
        sides: &mut Sides<'_, '_>,
    ) -> Result<(), Refusal> {
        let (owner, borrower) = sides.ids();
        let dead = sides.borrower_is_dead();
        let inherits = sides.inherits;
        let mut tables = TableCount::new();
        let mut own_tables = TableCount::new();
        let reacher = sides.reacher().map(|vm| &*vm);
        check_all(extents.iter_mut(), |extent| {
            if extent.is_block && self.ledger.record_of(extent.block).is_none() {
                return Err(extent.refuse(Error::WrongState, 0));
            }
            for piece in self.pieces(extent) {
                let record = piece.record;
                let refuse = |error, detail| Err(extent.refuse_page(piece.page, error, detail));
                if record == Record::NO_RAM {
                    return refuse(Error::InvalidAddress, 0);
                }
                let inherits = if record.owner() == owner {
                    inherits
                } else {
                    caller == VmId::Host && self.is_dead(record.owner())
                };
                // The host may report any memory as broken, also that of guests.
                let mine = record.owner() == caller || inherits || kind == Taking::Poison;
                if record == Record::HYPERVISOR || !mine {
                    return refuse(Error::NotOwner, 0);
                }
                if let Err((error, detail)) = allowed(kind, record, dead, inherits) {
                    return refuse(error, detail);
                }
                if pair(record) != (owner, borrower) {
                    return refuse(Error::MixedVms, 0);
                }
                if let Some(Vm { map: Some(map), .. }) = reacher
                    && kind != Taking::TakeBack
                    && record.has_guest_address()
                {
                    map.prepare_unmap(&self.machine, piece.span(), kind.unmapped(), &mut tables);
                }
            }
            Ok(())
        })?;
        if let Some(vm) = reacher {
            // The count is exact: a guest's block entry maps a block of frames, whose pages are
            // adjacent in the order of frames.
            enough_tables(&tables, &vm.pool, 0)?;
        }
        if let Some(Party { vm: Vm { map: Some(map), pool, .. }, .. }) = &sides.owner {
            match kind {
                Taking::Poison => self.own_spans(extents, |span| {
                    map.prepare_unmap(&self.machine, span, Unmapped::Poisoned, &mut own_tables);
                }),
                Taking::TakeBack => {
                    for span in extents.iter().map(Extent::own_span) {
                        map.prepare_unmap(&self.machine, span, Unmapped::Away, &mut own_tables);
                    }
                }
                Taking::Unshare | Taking::Reclaim => {
                    for span in extents.iter().map(Extent::own_span) {
                        map.prepare_restore(&self.machine, span, &mut own_tables);
                    }
                }
            }
            enough_tables(&own_tables, pool, 1)?;
        }
        Ok(())
    }

    /// Pages leave their borrower; when no TLB holds them any more they are
    /// zeroed, unless they are passed on, and then come to their owner.
    fn commit_take(
        &self,
        mut prepared: Prepared<'_>,
        kind: Taking,
        caller: VmId,
        sides: &mut Sides<'_, '_>,
    ) {
        let mut broken = 0;
        let extents = prepared.extents();
        if kind != Taking::TakeBack
            && let Some(Vm { map: Some(map), pool, has_broken, .. }) = sides.reacher()
        {
            let mut gone = Gone::new();
            for extent in extents {
                for piece in self.pieces(extent) {
                    if piece.record.has_guest_address() {
                        map.unmap(&self.machine, pool, piece.span(), kind.unmapped());
                        gone.add(piece.record.guest(), piece.size());
                    }
                }
            }
            *has_broken |= kind == Taking::Poison;
            self.invalidate_guest(map, &gone);
        }
        if kind == Taking::Poison
            && let Some(Party { vm: Vm { map: Some(map), pool, has_broken, .. }, .. }) =
                &mut sides.owner
        {
            let mut gone = Gone::new();
            self.own_spans(extents, |span| {
                map.unmap(&self.machine, pool, span, Unmapped::Poisoned);
                gone.add(span.at, span.pages as u64 * PAGE_SIZE);
            });
            *has_broken = true;
            self.invalidate_guest(map, &gone);
        }
        if kind == Taking::Reclaim || kind == Taking::Unshare {
            for extent in extents {
                broken += self.empty(extent, sides);
            }
            self.machine.sync_fetches();
        }
        for extent in extents {
            // Skip pieces that broke in this call.
            let left = |piece: &Piece| broken == 0 || piece.record != Record::POISONED;
            for piece in self.pieces(extent).filter(left) {
                let new = self.taken(extent, &piece, kind, sides);
                self.set_piece(extent, &piece, new, (caller, kind.asked()));
                Parties::new(sides.owner.as_deref_mut(), sides.borrower.as_deref_mut()).recount(
                    piece.record,
                    new,
                    piece.pages as u64,
                );
                if kind == Taking::Poison {
                    self.poisoned.fetch_add(piece.pages as u64, Ordering::Relaxed);
                }
            }
        }
        if matches!(kind, Taking::TakeBack | Taking::Poison) && sides.owner.is_none() {
            self.invalidate_host(extents);
        }
        self.change_owners_map(extents, kind, sides, broken);
        if kind == Taking::TakeBack && self.machine.needs_clean() {
            for extent in extents {
                // If the memory is broken, EL2 does not poison it: the borrower has it mapped,
                // and its next access fails.
                let _ = self.machine.clean_to_poc(extent.frame, extent.size());
            }
            self.machine.sync_fetches();
        }
        self.machine.publish();
        let to = match &mut sides.owner {
            // What it hides stays where its borrower has it.
            Some(Party { vm: Vm { map: Some(map), pool, .. }, .. }) if kind != Taking::TakeBack => {
                Some((&*map, pool))
            }
            _ => None,
        };
        self.merge_extents(extents, to);
        prepared.note_broken(broken);
    }

    /// Empties what comes home. What fails is poisoned: by the page where it comes to
    /// the host, else as far as it is alike, for a block that is one entry of a guest's
    /// map has no table to be taken apart with. Returns the number of pages.
    fn empty(&self, extent: &Extent, sides: &mut Sides<'_, '_>) -> u64 {
        let borrower_lives = sides.reacher().is_some();
        let inherits = sides.inherits;
        let to_host = sides.owner.is_none() || inherits;
        let mut broken = 0;
        for piece in self.pieces(extent) {
            if piece.record.is(FrameState::Metadata) {
                self.machine.unmap_metadata(piece.frame(extent), piece.size());
            }
            let empty = |piece: &Piece| self.empty_piece(extent, piece, borrower_lives, inherits);
            if empty(&piece).is_ok() {
                continue;
            }
            let pages = if to_host { piece.pages } else { 1 };
            for n in 0..pages {
                let part = if to_host { piece.nth(n) } else { piece };
                if to_host && empty(&part).is_ok() {
                    continue;
                }
                self.break_frames(extent.block, part.frame(extent), &part);
                Parties::new(sides.owner.as_deref_mut(), sides.borrower.as_deref_mut()).recount(
                    part.record,
                    Record::POISONED,
                    part.pages as u64,
                );
                broken += part.pages as u64;
            }
        }
        broken
    }

    /// Zeroes what a guest may have written to, unless it lives and passed it on,
    /// or the owner could see it all along.
    fn empty_piece(
        &self,
        extent: &Extent,
        piece: &Piece,
        borrower_lives: bool,
        inherits: bool,
    ) -> Result<(), MemoryError> {
        let record = piece.record;
        let shared = record.is(FrameState::Shared);
        let passed_on = borrower_lives && record.is(FrameState::UnlockedContents);
        if inherits || !(shared || passed_on) {
            self.machine.zero(piece.frame(extent), piece.size())
        } else if shared {
            Ok(())
        } else {
            // Clean, so that the next owner reads what the guest wrote last, even by a
            // non-cacheable mapping.
            self.machine.clean_to_poc(piece.frame(extent), piece.size())
        }
    }

    /// The record of what was taken.
    fn taken(&self, extent: &Extent, piece: &Piece, kind: Taking, sides: &Sides<'_, '_>) -> Record {
        match (kind, &sides.owner) {
            (Taking::Poison, _) => Record::POISONED,
            (Taking::TakeBack, _) => piece.record.with_state(FrameState::Lent),
            (_, Some(party)) if !sides.inherits => {
                Record::donated(party.id, extent.own.add(piece.page as u64 * PAGE_SIZE))
            }
            _ => Record::HOME,
        }
    }

    /// An owner that is a guest has its pages back in its map, or out of it.
    fn change_owners_map(
        &self,
        extents: &[Extent],
        kind: Taking,
        sides: &mut Sides<'_, '_>,
        broken: u64,
    ) {
        let Some(Party { vm: Vm { map: Some(map), pool, has_broken, .. }, .. }) = &mut sides.owner
        else {
            return;
        };
        let own_spans = extents.iter().map(Extent::own_span);
        match kind {
            Taking::Unshare | Taking::Reclaim if broken == 0 => {
                own_spans.for_each(|span| map.restore(&self.machine, pool, span));
            }
            Taking::Unshare | Taking::Reclaim => {
                *has_broken = true;
                for extent in extents {
                    for piece in self.pieces(extent) {
                        let span = piece.own_span(extent);
                        if piece.record == Record::POISONED {
                            map.unmap(&self.machine, pool, span, Unmapped::Poisoned);
                        } else {
                            map.restore(&self.machine, pool, span);
                        }
                    }
                }
            }
            Taking::TakeBack => {
                let mut gone = Gone::new();
                for span in own_spans {
                    map.unmap(&self.machine, pool, span, Unmapped::Away);
                    gone.add(span.at, span.pages as u64 * PAGE_SIZE);
                }
                self.invalidate_guest(map, &gone);
            }
            // Unmapped already, while the ledger still had the address.
            Taking::Poison => {}
        }
    }

    /// Shows where an owner that is a guest has frames, in reach or away.
    ///
    /// The ledger says so of what it has to itself. What it has given to another guest is
    /// noted in the host's map ([`HostMap::note_owners`](crate::stage2::HostMap::note_owners)).
    fn own_spans(&self, extents: &[Extent], mut f: impl FnMut(Span)) {
        for extent in extents {
            for piece in self.pieces(extent) {
                if piece.record.is(FrameState::Donated) {
                    f(piece.span());
                    continue;
                }
                let first = extent.first() + piece.page;
                let mut done = 0;
                while done < piece.pages {
                    let frames = (first + done, piece.pages - done);
                    let (at, pages) = self.host.owners(&self.machine, extent.block, frames);
                    let is_block = extent.is_block && pages == PAGES_PER_BLOCK;
                    f(Span { at, pages, is_block });
                    done += pages;
                }
            }
        }
    }
}

/// The owner of a frame, and its borrower.
fn pair(record: Record) -> (VmId, Option<GuestId>) {
    (record.owner(), record.borrower())
}

/// Whether a call starts from a record. `dead`: its borrower is; `inherits`: its owner is.
fn allowed(kind: Taking, record: Record, dead: bool, inherits: bool) -> Result<(), (Error, u64)> {
    use FrameState::{
        Donated, Lent, Metadata, Owned, Pinned, Shared, SharedBack, UnlockedContents,
        UnlockedZeroed,
    };
    let state = record.state().unwrap_or(FrameState::Hypervisor);
    let starts = match (kind, state) {
        (Taking::Unshare, Shared) | (Taking::TakeBack, SharedBack) => true,
        (Taking::Reclaim, UnlockedZeroed | UnlockedContents) => true,
        (Taking::Reclaim, Lent | Shared | SharedBack | Metadata) if dead => true,
        (Taking::Reclaim, Donated) if inherits => true,
        (Taking::Reclaim, Lent) => return Err((Error::Locked, 0)),
        (Taking::Poison, Pinned) => return Err((Error::Pinned, 0)),
        (
            Taking::Poison,
            Owned | Donated | Shared | Lent | SharedBack | UnlockedZeroed | UnlockedContents,
        ) => true,
        _ => false,
    };
    if starts { Ok(()) } else { Err((Error::WrongState, state as u64)) }
}
