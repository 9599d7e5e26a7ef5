// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages that an owner gives away: sharing, lending, donating.
//!
//! Each call prepares, then commits. Preparing takes the locks (the VMs', then
//! the blocks' in ascending order), checks every entry and counts the tables
//! that the change will need; it may refuse, and then nothing has changed.
//! Committing cannot fail.

use arrayvec::ArrayVec;
use escrow_abi::{Error, FrameState, call};

use super::list::{Form, Reader, Run, Scratch, check_all};
use super::oracle::Asked;
use super::parties::{Parties, Party};
use super::{Hypervisor, Refusal};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK};
use crate::capability::Capability;
use crate::ledger::{Record, VmId};
use crate::machine::{Machine, Note};
use crate::stage2::{GuestMap, Leave, PagePool, TableCount};
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

/// Up to so many runs, TLB entries are removed by address; beyond, all of
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
    const fn record(self, from: VmId, to: VmId, at: Ipa) -> Record {
        match self {
            Give::Donate => Record::donated(to, at),
            _ => Record::borrowed(self.state(), from, to, at),
        }
    }

    /// What stays in the map of an owner that is a guest.
    const fn leave(self) -> Leave {
        match self {
            Give::Donate => Leave::Nothing,
            _ => Leave::Away,
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
    const fn hides(self) -> bool {
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
        list: u64,
        count: u64,
    ) -> Result<(), Refusal> {
        self.read_list(scratch, Reader::Host, kind.form(), list, count)?;
        scratch.sort_by_guest()?;
        let (id, mut vm) = self.lock_live_vm(vm)?;
        let Vm { map: Some(map), pool, counts, owned, .. } = &mut *vm else {
            return Err(Error::HandleRevoked.into());
        };
        self.find_room(scratch, map, pool)?;
        scratch.sort_by_frame()?;
        self.lock_blocks(scratch);
        let result = check_all(scratch.runs_mut().iter_mut(), |run| self.check_home(run));
        if result.is_ok() {
            let mut full = false;
            let mut pages = 0;
            for run in scratch.runs() {
                let record = kind.record(VmId::HOST, id, run.guest());
                full |= self.leave_home(run, record, kind.asked());
                pages += run.pages as u64;
            }
            if kind.hides() {
                self.invalidate_host(scratch.runs());
                self.clean(scratch.runs());
            }
            self.map_runs(scratch.runs(), map, pool);
            counts.add(kind.state(), pages);
            if kind == Give::Donate {
                *owned += pages;
            }
            if full {
                self.merge_runs(scratch.runs(), Some((map, pool)));
            }
        }
        self.oracle_look(scratch.runs(), &[(id, Some(map))]);
        self.unlock_blocks(scratch);
        result
    }

    /// A guest gives pages that it owns to another, or back to the host.
    pub(super) fn guest_gives(
        &self,
        scratch: &mut Scratch,
        kind: Give,
        from: &mut Party<'_>,
        to: Option<(&mut Party<'_>, &Capability)>,
        list: (u64, u64),
    ) -> Result<(), Refusal> {
        let form = if to.is_some() { kind.form() } else { Form::HIDE };
        let Some(own) = &from.vm.map else { return Err(Error::Denied.into()) };
        self.read_list(scratch, Reader::Guest(own), form, list.0, list.1)?;
        let mut to = to;
        let to_id = to.as_ref().map_or(VmId::HOST, |(party, _)| party.id);
        if let Some((Party { vm: Vm { map: Some(map), pool, .. }, .. }, capability)) = &mut to {
            scratch.sort_by_guest()?;
            check_all(scratch.runs_mut().iter_mut(), |run| {
                let inside = capability.allows(run.guest().0, run.size());
                if inside { Ok(()) } else { Err(run.refuse(Error::Denied, 0)) }
            })?;
            self.find_room(scratch, map, pool)?;
        }
        scratch.sort_by_frame()?;
        self.lock_blocks(scratch);
        let leave = kind.leave();
        let mut tables = TableCount::new();
        let mut result = check_all(scratch.runs_mut().iter_mut(), |run| {
            self.check_donated(run, from.id)?;
            if kind.hides() {
                own.prepare_unmap(&self.machine, run.own_span(), leave, &mut tables);
            }
            Ok(())
        });
        if result.is_ok() {
            result = enough_tables(&tables, &from.vm.pool, 1);
        }
        if result.is_ok() {
            self.commit_guest_gives(scratch, kind, from, to.map(|(party, _)| party), to_id);
        }
        self.oracle_look(scratch.runs(), &[(from.id, from.vm.map.as_ref())]);
        self.unlock_blocks(scratch);
        result
    }

    fn commit_guest_gives(
        &self,
        scratch: &Scratch,
        kind: Give,
        from: &mut Party<'_>,
        mut to: Option<&mut Party<'_>>,
        to_id: VmId,
    ) {
        if kind.hides() {
            let Vm { map: Some(map), pool, .. } = &mut *from.vm else { return };
            let mut gone = Gone::new();
            for run in scratch.runs() {
                map.unmap(&self.machine, pool, run.own_span(), kind.leave());
                gone.add(run.own, run.size());
            }
            self.invalidate_guest(map, &gone);
            if to.is_some() {
                self.clean(scratch.runs());
            } else {
                // Whatever its caches show: a non-cacheable mapping of the host's
                // would read what was in memory before.
                for run in scratch.runs() {
                    self.machine.clean_to_poc(run.frame, run.size());
                }
            }
        }
        for run in scratch.runs() {
            let record = match to {
                Some(_) => kind.record(from.id, to_id, run.guest()),
                None => Record::HOME,
            };
            let from_id = from.id;
            let mut parties = Parties::new(Some(&mut *from), to.as_deref_mut());
            for piece in self.pieces(run) {
                let new = record.nth(piece.page as u64);
                self.set_piece(run, &piece, new, (from_id, kind.asked()));
                parties.recount(piece.record, new, piece.pages as u64);
            }
        }
        match to {
            Some(Party { vm: Vm { map: Some(map), pool, .. }, .. }) => {
                self.map_runs(scratch.runs(), map, pool);
                self.merge_runs(scratch.runs(), Some((map, pool)));
            }
            _ => {
                self.machine.publish();
                self.merge_runs(scratch.runs(), None);
            }
        }
    }

    /// The host donates pages for a VM's tables and vCPUs. `vm` is locked and
    /// alive, or about to be.
    pub(super) fn donate_metadata(
        &self,
        scratch: &mut Scratch,
        id: VmId,
        vm: &mut Vm,
    ) -> Result<(), Refusal> {
        scratch.sort_by_frame()?;
        self.lock_blocks(scratch);
        let result = check_all(scratch.runs_mut().iter_mut(), |run| self.check_home(run));
        if result.is_ok() {
            let record = Record::borrowed(FrameState::Metadata, VmId::HOST, id, Ipa(0));
            let mut full = false;
            for run in scratch.runs() {
                full |= self.leave_home(run, record, Asked::Equip);
            }
            self.invalidate_host(scratch.runs());
            for run in scratch.runs() {
                self.machine.zero(run.frame, run.size());
                for page in 0..run.pages as u64 {
                    vm.pool.push(&self.machine, run.frame.add(page * PAGE_SIZE));
                }
            }
            vm.counts.add(FrameState::Metadata, scratch.pages());
            if full {
                self.merge_runs(scratch.runs(), None);
            }
        }
        self.oracle_look(scratch.runs(), &[(id, vm.map.as_ref())]);
        self.unlock_blocks(scratch);
        result
    }

    /// Finds room for all runs at their guest addresses, and tables enough.
    #[inline(always)]
    fn find_room(
        &self,
        scratch: &mut Scratch,
        map: &GuestMap,
        pool: &PagePool,
    ) -> Result<(), Refusal> {
        let mut tables = TableCount::new();
        check_all(scratch.runs_mut().iter_mut(), |run| {
            if run.is_block {
                let room = map.prepare_map_block(&self.machine, run.guest(), &mut tables);
                return if room { Ok(()) } else { Err(run.refuse(Error::GuestMapped, 0)) };
            }
            match map.prepare_map(&self.machine, run.span(), &mut tables) {
                Ok(room) => {
                    run.room = room;
                    Ok(())
                }
                Err(page) => Err(run.refuse_page(page, Error::GuestMapped, 0)),
            }
        })?;
        enough_tables(&tables, pool, 0)
    }

    /// Maps runs where there is room for them.
    #[inline(always)]
    fn map_runs(&self, runs: &[Run], map: &GuestMap, pool: &mut PagePool) {
        for run in runs {
            let attributes = self.guest_attributes[run.rights()];
            if run.is_block {
                map.map_block(&self.machine, pool, run.guest(), run.frame, attributes);
            } else {
                map.map(&self.machine, pool, run.span(), run.room, run.frame, attributes);
            }
        }
        self.machine.publish();
    }

    /// What the host may give away: its own, not pinned.
    #[inline(always)]
    fn check_home(&self, run: &Run) -> Result<(), Refusal> {
        match self.ledger.records(run.block).first_away(run.first(), run.pages.into()) {
            None => Ok(()),
            Some(page) => Err(self.why_not_given(run, page, VmId::HOST)),
        }
    }

    /// What a guest may give away: what it owns and has to itself.
    fn check_donated(&self, run: &Run, owner: VmId) -> Result<(), Refusal> {
        for piece in self.pieces(run) {
            let whole = piece.pages == run.pages as usize || !run.is_block;
            let record = piece.record;
            if !whole || !record.is(FrameState::Donated) || record.owner() != owner {
                return Err(self.why_not_given(run, piece.page, owner));
            }
        }
        Ok(())
    }

    #[cold]
    fn why_not_given(&self, run: &Run, page: usize, owner: VmId) -> Refusal {
        let record = if run.is_block {
            self.ledger.whole_block(run.block)
        } else {
            Some(self.ledger.records(run.block).get(run.first() + page))
        };
        let (error, detail) = match record {
            None => (Error::WrongState, 0),
            Some(Record::NO_RAM) => (Error::InvalidAddress, 0),
            Some(Record::HYPERVISOR) => (Error::NotOwner, 0),
            Some(record) if record.owner() != owner => (Error::NotOwner, 0),
            Some(record) if record.is(FrameState::Pinned) => (Error::Pinned, 0),
            Some(record) => (Error::WrongState, record.state().map_or(0, |state| state as u64)),
        };
        run.refuse_page(page, error, detail)
    }

    /// Writes the records of frames that leave home, and takes them out of the
    /// host's map if they are to. Whether no frame of the block is at home
    /// then, but each has a record of its own.
    #[inline(always)]
    fn leave_home(&self, run: &Run, record: Record, asked: Asked) -> bool {
        let hide = asked != Asked::Share;
        let pages = run.pages as usize;
        self.oracle_step(VmId::HOST, asked, run.block, (run.first(), pages), record);
        self.machine.note(|| Note::Record { at: run.frame, size: run.size(), record });
        if pages == PAGES_PER_BLOCK && !self.ledger.is_split(run.block) {
            if hide {
                self.host.unmap_block(&self.machine, run.frame);
            }
            self.ledger.set_block(run.block, record);
            return false;
        }
        self.host.split(&self.machine, &self.ledger, run.block, run.frame);
        if hide {
            self.host.unmap_pages(&self.machine, run.block, run.first(), pages);
        }
        self.ledger.leave_home(run.block, run.first(), pages, record)
    }

    #[inline(always)]
    fn clean(&self, runs: &[Run]) {
        if self.machine.needs_clean() {
            for run in runs {
                self.machine.clean_to_poc(run.frame, run.size());
            }
        }
    }

    #[inline(always)]
    pub(super) fn invalidate_host(&self, runs: &[Run]) {
        let context = self.host.context();
        if runs.len() > INVALIDATE_BY_ADDRESS {
            self.machine.invalidate_all(context);
            return;
        }
        let ranges = runs.iter().map(|run| (run.frame.identity(), run.size()));
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
    pub(super) fn merge_runs(&self, runs: &[Run], mut to: Option<(&GuestMap, &mut PagePool)>) {
        let mut last = None;
        for run in runs.iter().filter(|run| last.replace(run.block) != Some(run.block)) {
            if !self.host.merge(&self.machine, &self.ledger, run.block, run.frame) {
                continue;
            }
            let record = self.ledger.get_in(run.block, run.frame.align_down(BLOCK_SIZE));
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
        Some(detail) => Err(Refusal { error: Error::NoMemory, index: whose, detail }),
    }
}
