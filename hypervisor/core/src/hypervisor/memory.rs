// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages that an owner gives away: sharing, lending, donating.
//!
//! Each step of a call ([`portions`](super::portions)) prepares, then commits. Preparing
//! takes the locks (the VMs', then the blocks' in ascending order), checks every entry and
//! counts the tables that the change will need; it may refuse, and then nothing has
//! changed. Committing cannot fail ([`prepared`](super::prepared)).

use arrayvec::ArrayVec;
use escrow_abi::{Error, FrameState, call};

use super::extents::{Extent, Scratch, check_all};
use super::list::{Form, List, Reader};
use super::oracle::Asked;
use super::parties::{Parties, Party};
use super::pieces::Piece;
use super::portions::{Part, Progress};
use super::prepared::Prepared;
use super::{Hypervisor, Refusal};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::capability::Capability;
use crate::ledger::{GuestId, Record, Records, VmId};
use crate::machine::{Machine, Note};
use crate::stage2::{BlockRoom, GuestMap, PagePool, TableCount, Unmapped};
use crate::vm::Vm;

/// What left a guest's map, for its TLB entries to go as well: by address as
/// long as it is little.
pub(super) struct Gone {
    ranges: ArrayVec<(Ipa, u64), INVALIDATE_BY_ADDRESS>,
    more: bool,
}

impl Gone {
    pub fn new() -> Gone {
        Gone { ranges: ArrayVec::new(), more: false }
    }

    /// A range of addresses, and its size in bytes.
    pub fn add(&mut self, at: Ipa, size: u64) {
        self.more |= self.ranges.try_push((at, size)).is_err();
    }
}

/// Up to so many extents, TLB entries are removed by address; beyond, all of
/// the VM's are.
const INVALIDATE_BY_ADDRESS: usize = 16;

/// How pages are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Give {
    /// The owner keeps its access.
    Share,
    /// The owner has none until it takes them back.
    Lend,
    /// The owner changes.
    Donate,
}

impl Give {
    pub(super) const fn form(self) -> Form {
        match self {
            Give::Share => Form::SHARE,
            Give::Lend | Give::Donate => Form::LEND,
        }
    }

    /// What a guest's handle must allow.
    pub(super) const fn right(self) -> u64 {
        match self {
            Give::Share => call::RIGHT_SHARE,
            Give::Lend => call::RIGHT_LEND,
            Give::Donate => call::RIGHT_DONATE,
        }
    }

    /// The state that the receiver has the pages in.
    const fn state(self) -> FrameState {
        match self {
            Give::Share => FrameState::Shared,
            Give::Lend => FrameState::Lent,
            Give::Donate => FrameState::Donated,
        }
    }

    #[inline(always)]
    const fn record(self, from: VmId, to: GuestId, at: Ipa) -> Record {
        match self {
            Give::Donate => Record::donated(to, at),
            _ => Record::borrowed(self.state(), from, to, at),
        }
    }

    /// What stays in the map of an owner that is a guest.
    const fn unmapped(self) -> Unmapped {
        match self {
            Give::Donate => Unmapped::Free,
            _ => Unmapped::Away,
        }
    }

    const fn asked(self) -> Asked {
        match self {
            Give::Share => Asked::Share,
            Give::Lend => Asked::Lend,
            Give::Donate => Asked::Donate,
        }
    }

    /// Whether the owner loses sight of the pages.
    pub(super) const fn hides(self) -> bool {
        !matches!(self, Give::Share)
    }
}

impl<M: Machine> Hypervisor<M> {
    /// The host gives pages to a VM.
    #[inline(always)]
    pub(super) fn host_gives(
        &self,
        scratch: &mut Scratch,
        kind: Give,
        vm: u64,
        reader: Reader<'_>,
        list: List,
    ) -> Result<Progress, Refusal> {
        let contents = kind.hides() && (self.machine.needs_clean() || self.is_protected(vm));
        self.in_portions(scratch, list, contents, |scratch, part| {
            self.read_list(scratch, reader, kind.form(), list, part)?;
            scratch.sort_by_guest()?;
            let (id, mut vm) = self.lock_live_vm(vm)?;
            let Vm { map: Some(map), pool, counts, owned, .. } = &mut *vm else {
                return Err(Error::HandleRevoked.into());
            };
            self.check_halves(scratch.extents_mut(), kind, map)?;
            self.find_room(scratch, map, pool)?;
            let mut locked = self.lock_blocks(scratch)?;
            let prepared = locked
                .prepare(|extents| check_all(extents.iter_mut(), |extent| self.check_home(extent)));
            let result = prepared.map(|prepared| {
                if prepared.is_to_be_done() {
                    let pages = self.commit_host_gives(prepared, kind, id, map, pool);
                    counts.add(kind.state(), pages);
                    if kind == Give::Donate {
                        *owned += pages;
                    }
                }
            });
            locked.look(&[(id.into(), Some(map))]);
            drop(locked);
            result.map(|()| scratch.end(list))
        })
    }

    /// Returns how many pages it gave.
    #[inline(always)]
    fn commit_host_gives(
        &self,
        mut prepared: Prepared<'_>,
        kind: Give,
        to: GuestId,
        map: &GuestMap,
        pool: &mut PagePool,
    ) -> u64 {
        let mut full = false;
        let mut pages = 0;
        for extent in prepared.extents() {
            let record = kind.record(VmId::Host, to, extent.guest());
            full |= self.leave_home(extent, record, kind.asked());
            pages += extent.pages as u64;
        }
        if kind.hides() {
            self.invalidate_host(prepared.extents());
            pages -= if map.zeroes() {
                self.zero_extents(&mut prepared)
            } else {
                self.clean(&mut prepared)
            };
        }
        self.map_extents(prepared.extents(), map, pool);
        if full {
            self.merge_extents(prepared.extents(), Some((map, pool)));
        }
        pages
    }

    /// One step of a guest's giving pages that it owns to another, or back to the host.
    /// Returns where the next begins.
    pub(super) fn guest_gives(
        &self,
        scratch: &mut Scratch,
        kind: Give,
        from: &mut Party<'_>,
        to: Option<(&mut Party<'_>, &Capability)>,
        (list, part): (List, Part),
    ) -> Result<u64, Refusal> {
        let form = if to.is_some() { kind.form() } else { Form::UNMAP };
        let Some(own) = &from.vm.map else { return Err(Error::Denied.into()) };
        self.read_list(scratch, Reader::Guest(own), form, list, part)?;
        let mut to = to;
        let to_id = to.as_ref().map(|(party, _)| party.id);
        if let Some((Party { vm: Vm { map: Some(map), pool, .. }, .. }, capability)) = &mut to {
            scratch.sort_by_guest()?;
            check_all(scratch.extents_mut().iter_mut(), |extent| {
                let inside = capability.allows(extent.guest().0, extent.size());
                if inside { Ok(()) } else { Err(extent.refuse(Error::Denied, 0)) }
            })?;
            self.find_room(scratch, map, pool)?;
        }
        let mut locked = self.lock_blocks(scratch)?;
        let prepared = locked.prepare(|extents| {
            let mut tables = TableCount::new();
            check_all(extents.iter_mut(), |extent| {
                self.check_donated(extent, from.id.into())?;
                if kind.hides() {
                    let span = extent.own_span();
                    own.prepare_unmap(&self.machine, span, kind.unmapped(), &mut tables);
                }
                Ok(())
            })?;
            enough_tables(&tables, &from.vm.pool, 1)
        });
        let result = prepared.map(|prepared| {
            if prepared.is_to_be_done() {
                let to = to.map(|(party, _)| party);
                self.commit_guest_gives(prepared, kind, from, to, to_id);
            }
        });
        locked.look(&[(from.id.into(), from.vm.map.as_ref())]);
        drop(locked);
        result.map(|()| scratch.end(list))
    }

    fn commit_guest_gives(
        &self,
        mut prepared: Prepared<'_>,
        kind: Give,
        from: &mut Party<'_>,
        mut to: Option<&mut Party<'_>>,
        to_id: Option<GuestId>,
    ) {
        let from_id = from.id.into();
        if kind.hides() {
            let Vm { map: Some(map), pool, .. } = &mut *from.vm else { return };
            let mut gone = Gone::new();
            for extent in prepared.extents() {
                map.unmap(&self.machine, pool, extent.own_span(), kind.unmapped());
                gone.add(extent.own, extent.size());
            }
            self.invalidate_guest(map, &gone);
            // Pages that go home are always cleaned: by a non-cacheable mapping, the host
            // would otherwise read what was in memory before.
            if to.is_none() || self.machine.needs_clean() {
                self.clean_always(&mut prepared, Some(&mut *from));
            }
        }
        let mut parties = Parties::new(Some(&mut *from), to.as_deref_mut());
        for extent in prepared.extents() {
            let record = match to_id {
                None => Record::HOME,
                Some(to) => kind.record(from_id, to, extent.guest()),
            };
            for piece in self.pieces(extent) {
                let new = record.nth(piece.page as u64);
                self.set_piece(extent, &piece, new, (from_id, kind.asked()));
                parties.recount(piece.record, new, piece.pages as u64);
            }
            if record.is_lent_on() {
                let frames = (extent.first(), extent.pages.into());
                self.host.note_owners(&self.machine, extent.block, frames, extent.own);
            }
        }
        match to {
            Some(Party { vm: Vm { map: Some(map), pool, .. }, .. }) => {
                self.map_extents(prepared.extents(), map, pool);
                self.merge_extents(prepared.extents(), Some((map, pool)));
            }
            _ => {
                self.machine.publish();
                self.merge_extents(prepared.extents(), None);
            }
        }
    }

    /// One step of the host's donating pages for a VM's tables and vCPUs, of a list that
    /// was read. `vm` is locked and alive, or about to be.
    pub(super) fn donate_metadata(
        &self,
        scratch: &mut Scratch,
        id: GuestId,
        vm: &mut Vm,
    ) -> Result<(), Refusal> {
        let pages = scratch.pages();
        let mut locked = self.lock_blocks(scratch)?;
        let prepared = locked.prepare(|extents| {
            check_all(extents.iter_mut(), |extent| {
                // EL2 maps metadata under its own address, and no Rust reference has address 0.
                if extent.frame == PhysAddr(0) {
                    return Err(extent.refuse(Error::InvalidAddress, 0));
                }
                self.check_home(extent)
            })
        });
        let result = prepared.map(|prepared| {
            if prepared.is_to_be_done() {
                let broken = self.commit_metadata(prepared, id, &mut vm.pool);
                vm.counts.add(FrameState::Metadata, pages - broken);
            }
        });
        locked.look(&[(id.into(), vm.map.as_ref())]);
        result
    }

    /// Returns how many of the pages turned out to be broken.
    fn commit_metadata(&self, mut prepared: Prepared<'_>, id: GuestId, pool: &mut PagePool) -> u64 {
        let extents = prepared.extents();
        let record = Record::borrowed(FrameState::Metadata, VmId::Host, id, Ipa(0));
        let mut full = false;
        for extent in extents {
            full |= self.leave_home(extent, record, Asked::Equip);
        }
        self.invalidate_host(extents);
        let mut broken = 0;
        for extent in extents {
            let whole = self.machine.zero(extent.frame, extent.size());
            for page in 0..extent.pages as usize {
                let at = extent.frame.add(page as u64 * PAGE_SIZE);
                if whole.is_err() && self.machine.zero(at, PAGE_SIZE).is_err() {
                    self.break_frames(extent.block, at, &Piece::new(1, record));
                    broken += 1;
                } else {
                    pool.adopt(&self.machine, at);
                }
            }
        }
        if full {
            self.merge_extents(extents, None);
        }
        prepared.note_broken(broken);
        broken
    }

    /// Finds room for all extents at their guest addresses, and tables enough.
    #[inline(always)]
    fn find_room(
        &self,
        scratch: &mut Scratch,
        map: &GuestMap,
        pool: &PagePool,
    ) -> Result<(), Refusal> {
        let mut tables = TableCount::new();
        let (extents, looks) = scratch.extents_and_looks();
        let mut looked = true;
        check_all(extents.iter_mut(), |extent| {
            if extent.is_block {
                let at = extent.guest();
                let room = match map.prepare_map_block(&self.machine, at, &mut tables) {
                    BlockRoom::Free => Some(true),
                    BlockRoom::Taken => Some(false),
                    BlockRoom::IfEmpty(table) => {
                        looks.make(|| map.is_empty(&self.machine, table, at))
                    }
                };
                looked &= room.is_some();
                // An extent that was not checked yet does not refuse the call.
                let room = room.unwrap_or(true);
                return if room { Ok(()) } else { Err(extent.refuse(Error::GuestMapped, 0)) };
            }
            match map.prepare_map(&self.machine, extent.span(), &mut tables) {
                Ok(room) => {
                    extent.room = room;
                    Ok(())
                }
                Err(page) => Err(extent.refuse_page(page, Error::GuestMapped, 0)),
            }
        })?;
        if !looked {
            return Err(Error::Retry.into());
        }
        enough_tables(&tables, pool, 0)
    }

    /// Maps extents where there is room for them.
    #[inline(always)]
    fn map_extents(&self, extents: &[Extent], map: &GuestMap, pool: &mut PagePool) {
        for extent in extents.iter().filter(|extent| extent.pages != 0) {
            let attributes = self.guest_attributes[extent.rights()];
            if extent.is_block {
                map.map_block(&self.machine, pool, extent.guest(), extent.frame, attributes);
            } else {
                map.map(&self.machine, pool, extent.span(), extent.room, extent.frame, attributes);
            }
        }
        self.machine.publish();
    }

    /// What the host may give away: its own, not pinned.
    #[inline(always)]
    fn check_home(&self, extent: &Extent) -> Result<(), Refusal> {
        let records = self.ledger.records(extent.block);
        let away = match records {
            Records::Split(_) if extent.is_block => Some(0),
            _ => records.first_away(extent.first(), extent.pages.into()),
        };
        match away {
            None => Ok(()),
            Some(page) => Err(self.why_not_given(extent, page, VmId::Host)),
        }
    }

    /// What a guest may give away: what it owns and has to itself.
    fn check_donated(&self, extent: &Extent, owner: VmId) -> Result<(), Refusal> {
        if extent.is_block && self.ledger.record_of(extent.block).is_none() {
            return Err(self.why_not_given(extent, 0, owner));
        }
        for piece in self.pieces(extent) {
            let record = piece.record;
            if !record.is(FrameState::Donated) || record.owner() != owner {
                return Err(self.why_not_given(extent, piece.page, owner));
            }
        }
        Ok(())
    }

    #[cold]
    fn why_not_given(&self, extent: &Extent, page: usize, owner: VmId) -> Refusal {
        let record = if extent.is_block {
            self.ledger.record_of(extent.block)
        } else {
            Some(self.ledger.records(extent.block).get(extent.first() + page))
        };
        let (error, detail) = match record {
            None => (Error::WrongState, 0),
            Some(Record::NO_RAM) => (Error::InvalidAddress, 0),
            Some(Record::HYPERVISOR) => (Error::NotOwner, 0),
            Some(record) if record.owner() != owner => (Error::NotOwner, 0),
            Some(record) if record.is(FrameState::Pinned) => (Error::Pinned, 0),
            Some(record) => (Error::WrongState, record.state().map_or(0, |state| state as u64)),
        };
        extent.refuse_page(page, error, detail)
    }

    /// Writes the records of frames that leave home, and takes them out of the
    /// host's map if they are to. Whether no frame of the block is at home
    /// then, but each has a record of its own.
    #[inline(always)]
    fn leave_home(&self, extent: &Extent, record: Record, asked: Asked) -> bool {
        let hide = asked != Asked::Share;
        let pages = extent.pages as usize;
        self.oracle_step(VmId::Host, asked, extent.block, (extent.first(), pages), record);
        self.machine.note(|| Note::Record { at: extent.frame, size: extent.size(), record });
        if pages == PAGES_PER_BLOCK && !self.ledger.is_split(extent.block) {
            if hide {
                self.host.unmap_block(&self.machine, extent.frame);
            }
            self.ledger.set_block(extent.block, record);
            return false;
        }
        self.host.split(&self.machine, &self.ledger, extent.block, extent.frame);
        if hide {
            self.host.unmap_pages(&self.machine, extent.block, extent.first(), pages);
        }
        self.ledger.leave_home(extent.block, extent.first(), pages, record)
    }

    #[inline(always)]
    pub(super) fn invalidate_host(&self, extents: &[Extent]) {
        let context = self.host.context();
        if extents.len() > INVALIDATE_BY_ADDRESS {
            self.machine.invalidate_all(context);
            return;
        }
        let ranges = extents.iter().map(|extent| (extent.frame.identity(), extent.size()));
        self.machine.invalidate(context, ranges);
    }

    pub(super) fn invalidate_guest(&self, map: &GuestMap, gone: &Gone) {
        if gone.more {
            self.machine.invalidate_all(map.context());
        } else {
            self.machine.invalidate(map.context(), gone.ranges.iter().copied());
        }
    }

    /// Where frames that were given one by one fill a block, one record and one
    /// entry stand for them again: in the ledger, the host's map, the guest's.
    #[cold]
    #[inline(never)]
    pub(super) fn merge_extents(
        &self,
        extents: &[Extent],
        mut to: Option<(&GuestMap, &mut PagePool)>,
    ) {
        let mut last = None;
        for extent in
            extents.iter().filter(|extent| last.replace(extent.block) != Some(extent.block))
        {
            if !self.host.merge(&self.machine, &self.ledger, extent.block, extent.frame) {
                continue;
            }
            let record = self.ledger.get_in(extent.block, extent.frame.align_down(BLOCK_SIZE));
            if let Some((map, pool)) = &mut to
                && record.has_guest_address()
                && record.guest().is_aligned(BLOCK_SIZE)
            {
                map.merge(&self.machine, pool, record.guest());
            }
        }
    }
}

/// Whether the pool of the VM that a refusal calls `whose` holds the tables.
#[inline(always)]
pub(super) fn enough_tables(
    tables: &TableCount,
    pool: &PagePool,
    whose: u64,
) -> Result<(), Refusal> {
    match tables.tables().checked_sub(pool.len()) {
        None | Some(0) => Ok(()),
        Some(detail) => Err(Refusal { error: Error::NoMemory, index: whose, detail, done: 0 }),
    }
}
