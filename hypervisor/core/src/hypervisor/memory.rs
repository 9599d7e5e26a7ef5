// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages changing hands.
//!
//! Each call prepares, then commits. Preparing takes the locks (the VM's, then
//! the blocks' in ascending order), checks every entry and counts the tables
//! that the change will need; it may refuse, and then nothing has changed.
//! Committing cannot fail.

use escrow_abi::{Error, FrameState, RECLAIM_MAX};

use super::list::{Item, Scratch, check_all, note_first, total_size};
use super::{Hypervisor, Refusal};
use crate::addr::{Ipa, Order, PAGE_SIZE};
use crate::ledger::{Record, VmId};
use crate::machine::Machine;
use crate::stage2::{Cursor, GuestMap, PagePool, TableCount};
use crate::vm::{Life, Vm};

/// Up to so many entries, TLB entries are removed one by one; beyond, all of
/// the VM's are.
const INVALIDATE_ONE_BY_ONE: usize = 16;

impl<M: Machine> Hypervisor<M> {
    /// The host opens pages to a VM as well or, with `LEND`, gives them away
    /// for the time, which takes a report.
    pub(super) fn give<const LEND: bool>(
        &self,
        scratch: &mut Scratch,
        vm: u64,
        list: u64,
        count: u64,
    ) -> Result<(), Refusal> {
        let to = if LEND { FrameState::Lent } else { FrameState::Shared };
        self.read_list::<true, LEND>(scratch, list, count)?;
        scratch.sort_by_guest()?;
        let (id, mut vm) = self.lock_live_vm(vm)?;
        let Vm { map: Some(map), pool, borrowed, .. } = &mut *vm else {
            return Err(Error::HandleRevoked.into());
        };
        let mut tables = TableCount::new();
        let mut cursor = Cursor::new(map, &self.machine);
        check_all(scratch.items(), |item| {
            let room = cursor.prepare_map(item.guest, item.order, &mut tables);
            if room { Ok(()) } else { Err(item.refuse(Error::GuestMapped, 0)) }
        })?;
        enough_tables(&tables, pool)?;
        scratch.sort_by_frame()?;
        self.lock_blocks(scratch);
        let result = self.check_given(scratch);
        if result.is_ok() {
            self.set_given::<LEND>(scratch, to, |item| {
                Record::borrowed(to, VmId::HOST, id, item.guest)
            });
            if LEND {
                self.invalidate_host(scratch.items());
                self.clean(scratch.items());
            }
            let mut cursor = Cursor::new(map, &self.machine);
            for item in scratch.items() {
                let attributes = self.guest_attributes[item.rights.bits() as usize % 8];
                cursor.map(pool, item.guest, item.frame, item.order, attributes);
            }
            self.machine.publish();
            *borrowed += total_size(scratch.items()) / PAGE_SIZE;
        }
        self.unlock_blocks(scratch);
        result
    }

    /// The host donates pages for a VM's tables and vCPUs. `vm` is locked and
    /// alive, or about to be.
    pub(super) fn donate(
        &self,
        scratch: &mut Scratch,
        id: VmId,
        vm: &mut Vm,
    ) -> Result<(), Refusal> {
        scratch.sort_by_frame()?;
        self.lock_blocks(scratch);
        let result = self.check_given(scratch);
        if result.is_ok() {
            let record = Record::borrowed(FrameState::Metadata, VmId::HOST, id, Ipa(0));
            self.set_given::<true>(scratch, FrameState::Metadata, |_| record);
            self.invalidate_host(scratch.items());
            for item in scratch.items() {
                self.machine.zero(item.frame, item.order.size());
                vm.pool.push(&self.machine, item.frame);
            }
            vm.metadata += scratch.items().len() as u64;
        }
        self.unlock_blocks(scratch);
        result
    }

    /// What the host may give away: its own, not pinned, all of one kind.
    fn check_given(&self, scratch: &Scratch) -> Result<(), Refusal> {
        let mut first = None;
        for (block, items) in scratch.runs() {
            if self.ledger.is_home(block) {
                continue;
            }
            let split = self.ledger.is_split(block);
            for item in items {
                let home = split
                    && item.order == Order::Page
                    && self.ledger.is_frame_home(block, item.page());
                if !home {
                    note_first(&mut first, self.why_not_given(item));
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    #[cold]
    fn why_not_given(&self, item: &Item) -> Refusal {
        match self.host_record(item) {
            Err(refusal) => refusal,
            Ok(record) if record.is(FrameState::Pinned) => item.refuse(Error::Pinned, 0),
            Ok(record) => {
                item.refuse(Error::WrongState, record.state().map_or(0, |state| state as u64))
            }
        }
    }

    /// Writes the records of frames that leave home, and takes them out of the
    /// host's map if they are to.
    #[inline]
    fn set_given<const UNMAP: bool>(
        &self,
        scratch: &Scratch,
        to: FrameState,
        record: impl Fn(&Item) -> Record,
    ) {
        for (block, items) in scratch.runs() {
            // Items do not overlap: with a whole block, it is the only one.
            let first = &items[0];
            if first.order == Order::Block {
                if UNMAP {
                    self.host.unmap_block(&self.machine, first.frame);
                }
                self.ledger.set_block(block, record(first));
                continue;
            }
            self.host.split(&self.machine, &self.ledger, block, first.frame);
            if UNMAP {
                self.host.unmap_pages(&self.machine, block, items.iter().map(Item::page));
            }
            let records = items.iter().map(|item| (item.page(), record(item)));
            self.ledger.leave_home(block, to, records);
        }
    }

    fn clean(&self, items: &[Item]) {
        if self.machine.needs_clean() {
            for item in items {
                self.machine.clean_to_poc(item.frame, item.order.size());
            }
        }
    }

    /// The host takes shared pages from their borrower.
    pub(super) fn unshare(
        &self,
        scratch: &mut Scratch,
        list: u64,
        count: u64,
    ) -> Result<(), Refusal> {
        self.take_back(scratch, list, count, |_, record| match record.state() {
            Some(FrameState::Shared) => Ok(()),
            state => Err((Error::WrongState, state.map_or(0, |s| s as u64))),
        })
    }

    /// The host takes home what its borrower gave up, or left behind.
    pub(super) fn reclaim(
        &self,
        scratch: &mut Scratch,
        list: u64,
        count: u64,
    ) -> Result<(), Refusal> {
        self.take_back(scratch, list, count, |vm, record| {
            let dead = vm.life == Life::Dead;
            match record.state() {
                Some(FrameState::UnlockedZeroed | FrameState::UnlockedContents) => Ok(()),
                Some(FrameState::Lent | FrameState::Shared | FrameState::Metadata) if dead => {
                    Ok(())
                }
                Some(FrameState::Lent) => Err((Error::Locked, 0)),
                state => Err((Error::WrongState, state.map_or(0, |s| s as u64))),
            }
        })
    }

    fn take_back(
        &self,
        scratch: &mut Scratch,
        list: u64,
        count: u64,
        allowed: impl Fn(&Vm, Record) -> Result<(), (Error, u64)>,
    ) -> Result<(), Refusal> {
        self.read_list::<false, false>(scratch, list, count)?;
        scratch.sort_by_frame()?;
        // Zeroing is done under the locks; this bounds it.
        if total_size(scratch.items()) > RECLAIM_MAX {
            return Err(Error::InvalidSize.into());
        }
        // Which VM it is about is read without a lock, and checked under it.
        let Some(first) = scratch.items().iter().min_by_key(|item| item.index) else {
            return Err(Error::InvalidSize.into());
        };
        let id = self.ledger.get_in(first.block, first.frame).borrower();
        let mut vm = self.slots[id.get() as usize % self.slots.len()].lock();
        let vm = &mut *vm;
        self.lock_blocks(scratch);
        let mut tables = TableCount::new();
        let mut result = check_all(scratch.items(), |item| {
            let record = self.host_record(item)?;
            allowed(vm, record).map_err(|(error, detail)| item.refuse(error, detail))?;
            if record.borrower() != id {
                return Err(item.refuse(Error::MixedVms, 0));
            }
            if let (Some(map), true) = (&vm.map, vm.is_alive()) {
                map.prepare_unmap(&self.machine, record.guest(), item.order, &mut tables);
            }
            Ok(())
        });
        if result.is_ok() {
            // A block that the guest has as one entry is a block of frames, so
            // in the order of frames its pages come together: exact.
            result = enough_tables(&tables, &vm.pool);
        }
        if result.is_ok() {
            self.commit_take_back(scratch.items_mut(), vm);
        }
        self.unlock_blocks(scratch);
        result
    }

    fn commit_take_back(&self, items: &mut [Item], vm: &mut Vm) {
        let alive = vm.is_alive();
        if let (Some(map), true) = (&vm.map, alive) {
            for item in items.iter_mut() {
                item.guest = self.ledger.get_in(item.block, item.frame).guest();
                map.unmap(&self.machine, &mut vm.pool, item.guest, item.order);
            }
            self.invalidate_guest(map, items);
        }
        for (n, item) in items.iter().enumerate() {
            let record = self.ledger.get_in(item.block, item.frame);
            let metadata = record.is(FrameState::Metadata);
            // What a guest may have written to goes home empty, unless the
            // guest lives and passed it on, or both could see it all along.
            let keep =
                record.is(FrameState::Shared) || alive && record.is(FrameState::UnlockedContents);
            if !keep {
                self.machine.zero(item.frame, item.order.size());
            } else if !record.is(FrameState::Shared) {
                // What is passed on is what the guest wrote last: a
                // non-cacheable mapping of the host's would read what was in
                // memory before.
                self.machine.clean_to_poc(item.frame, item.order.size());
            }
            let last_in_block = items.get(n + 1).is_none_or(|next| next.block != item.block);
            self.bring_home(item, record, last_in_block);
            if metadata {
                vm.metadata -= item.order.pages();
            } else {
                vm.borrowed -= item.order.pages();
            }
        }
        self.machine.publish();
        vm.free_if_empty();
    }

    /// Makes a frame the host's again, in the ledger and in its map.
    fn bring_home(&self, item: &Item, record: Record, last_in_block: bool) {
        match item.order {
            Order::Page => {
                self.host.split(&self.machine, &self.ledger, item.block, item.frame);
                self.ledger.set_in(item.block, item.frame, Record::HOME);
                self.host.map_page(&self.machine, item.block, item.frame);
                if last_in_block {
                    self.host.merge(&self.machine, &self.ledger, item.block, item.frame);
                }
            }
            Order::Block => {
                let mapped = record.owner_reaches() && !self.ledger.is_split(item.block);
                self.ledger.set_block(item.block, Record::HOME);
                if !mapped {
                    self.host.map_block(&self.machine, item.frame);
                }
            }
        }
    }

    fn invalidate_host(&self, items: &[Item]) {
        let context = self.host.context();
        if items.len() > INVALIDATE_ONE_BY_ONE {
            self.machine.invalidate_all(context);
            return;
        }
        for item in items {
            let size = item.order.size();
            self.machine.invalidate_range(context, item.frame.identity(), size);
        }
        self.machine.invalidate_finish(context);
    }

    fn invalidate_guest(&self, map: &GuestMap, items: &[Item]) {
        if items.len() > INVALIDATE_ONE_BY_ONE {
            self.machine.invalidate_all(map.context());
            return;
        }
        for item in items {
            self.machine.invalidate_range(map.context(), item.guest, item.order.size());
        }
        self.machine.invalidate_finish(map.context());
    }
}

fn enough_tables(tables: &TableCount, pool: &PagePool) -> Result<(), Refusal> {
    match tables.tables().checked_sub(pool.len()) {
        None | Some(0) => Ok(()),
        Some(detail) => Err(Refusal { error: Error::NoMemory, index: 0, detail }),
    }
}
