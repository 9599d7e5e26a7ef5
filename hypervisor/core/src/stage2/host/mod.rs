// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's stage 2: an identity map of the whole machine, with holes.
//!
//! RAM is mapped in entries of 1 GiB, 2 MiB and 4 KiB, the largest that the
//! ledger allows. All other addresses are mapped for the host as well, in entries of 1 GiB:
//! devices, and memory that is added later. The exception are pages that EL2 withholds
//! ([`Traps`]): they have no entry, for good, and their neighbours have smaller entries. A
//! level-2 table for each GiB with RAM and a level-3 table for each block of RAM
//! are set aside at boot, so unmapping a page never needs memory.
//!
//! A block's entry and its level-3 table are covered by the block's lock in
//! the ledger. The entry of a whole GiB is covered by [`HostMap`]'s own lock,
//! taken last.

mod build;

use core::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use escrow_nospec as nospec;
use spin::mutex::TicketMutex;

use super::page::{RootTables, TableCell, TablePage};
use super::{Attributes, Descriptor, DescriptorCell, Geometry, Stage2Context, level_shift};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::ledger::{Block, Directory, GIB_SIZE as GIB, Ledger};
use crate::machine::Machine;

pub use build::HostMapError;

/// Level-1 tables for MMIO beyond the first TiB, on machines with a level 0.
const SPARE_TABLES: usize = 4;

/// The map of a GiB is one level-1 entry right now.
const WHOLE: u32 = 1 << 31;
/// The GiB has holes or edges of its own and is never one entry.
const NEVER_WHOLE: u32 = 1 << 30;

/// What the map has for a GiB with RAM.
#[derive(Debug, Default)]
pub struct HostGib {
    /// Its level-2 table.
    table: TableCell,
    /// The number of blocks that are not mapped as a whole, and the flags above.
    away: AtomicU32,
}

/// What the map has for a block: its level-3 table.
#[derive(Debug, Default)]
pub struct HostBlock {
    table: TableCell,
}

/// The host's stage-2 tables. [`HostMap::new`] gives each GiB with RAM and each block of RAM
/// its table before there is one.
pub struct HostMap {
    geometry: Geometry,
    context: Stage2Context,
    root: RootTables,
    directory: Directory,
    level1: TicketMutex<ArrayVec<TablePage, SPARE_TABLES>>,
}

/// What became of an MMIO address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmioMap {
    /// It is mapped now: the access may be made again.
    Mapped,
    /// It cannot be: no such address, or no memory for its table.
    Refused,
}

impl HostMap {
    /// The registers that select this map.
    pub fn context(&self) -> &Stage2Context {
        &self.context
    }

    /// Empties the root for good, without a lock. When the TLBs are empty as well, every access
    /// of the host faults.
    pub fn empty<M: Machine>(&self, machine: &M) {
        for slot in self.root.all().flat_map(|table| machine.table(table)) {
            slot.store(Descriptor::INVALID);
        }
    }

    /// Maps an address outside RAM that the host accessed and that has no entry yet.
    ///
    /// Not to be called for withheld pages.
    pub fn map_mmio<M: Machine>(&self, machine: &M, at: Ipa) -> MmioMap {
        if at.0 >= self.geometry.end() {
            return MmioMap::Refused;
        }
        let gib = at.0 / GIB;
        if self.gib(gib).is_some() {
            // A GiB with RAM was mapped at boot. It faulted because another CPU splits its entry.
            return MmioMap::Mapped;
        }
        let mut spare = self.level1.lock();
        if self.level1_slot(machine, gib).is_none() {
            let Some(page) = spare.pop() else { return MmioMap::Refused };
            self.link_level1(machine, gib, page);
        }
        self.map_mmio_gib(machine, gib);
        machine.publish();
        MmioMap::Mapped
    }

    /// Maps a GiB without RAM by one entry, unless it has one: another CPU was
    /// faster, or pages of it are withheld.
    fn map_mmio_gib<M: Machine>(&self, machine: &M, gib: u64) {
        if let Some(slot) = self.level1_slot(machine, gib)
            && !slot.load().is_valid()
        {
            let entry = Descriptor::block(PhysAddr(gib * GIB), Attributes::HOST);
            machine.write_descriptor(slot, entry);
        }
    }

    /// Links an empty level-1 table for the 512 GiB around a GiB, on a machine with
    /// a level 0.
    fn link_level1<M: Machine>(&self, machine: &M, gib: u64, page: TablePage) {
        let slot = &machine.table(self.root.first())[((gib * GIB) >> level_shift(0)) as usize];
        machine.write_descriptor(slot, Descriptor::table(page));
    }

    /// Whether the map has a valid entry for a page, for tests and checks.
    pub fn reaches<M: Machine>(&self, machine: &M, at: PhysAddr) -> bool {
        let Some(level1) = self.level1_slot(machine, at.0 / GIB) else { return false };
        let mut entry = level1.load();
        for level in 2..=3 {
            let Some(table) = entry.as_table() else { break };
            entry = machine.table(table)[index(at.0, level)].load();
        }
        entry.is_valid()
    }

    /// Takes pages of a split block out of the map; the caller invalidates
    /// them afterwards. Needs the block's lock.
    #[inline(always)]
    pub fn unmap_pages<M: Machine>(&self, machine: &M, block: Block, first: usize, pages: usize) {
        let table = machine.table(block.host().table.get());
        for slot in table.get(first..first + pages).unwrap_or_default() {
            machine.write_descriptor(slot, Descriptor::INVALID);
        }
    }

    /// Puts pages back into the map of a split block; the caller publishes
    /// them. Needs the block's lock.
    pub fn map_pages<M: Machine>(&self, machine: &M, block: Block, at: PhysAddr, pages: usize) {
        let first = index(at.0, 3);
        let mut entry = Descriptor::page(at, Attributes::HOST);
        let table = machine.table(block.host().table.get());
        for slot in table.get(first..first + pages).unwrap_or_default() {
            machine.write_descriptor(slot, entry);
            entry = entry.behind(1);
        }
    }

    /// Notes where a guest that lends or shares frames of a block with another guest has them in its own
    /// map: the ledger has the borrower's address only. The owner's addresses are adjacent, from
    /// `at` on.
    ///
    /// The host cannot access frames that a guest owns, so the notes are in the place of the host's
    /// entries for the pages: invalid descriptors, whose other bits hardware ignores (DDI
    /// 0487, D8.3). While the block is one record, its level-3 table is not linked, but
    /// has the notes as well. Needs the block's lock.
    pub fn note_owners<M: Machine>(
        &self,
        machine: &M,
        block: Block,
        (first, pages): (usize, usize),
        at: Ipa,
    ) {
        let mut note = Descriptor::owners(at);
        let table = machine.table(block.host().table.get());
        for slot in table.get(first..first + pages).unwrap_or_default() {
            machine.write_descriptor(slot, note);
            note = note.behind(1);
        }
    }

    /// The owner's address of the first of such frames, and how many it has at adjacent addresses
    /// in the same 2 MiB: at least one. Needs the block's lock.
    pub fn owners<M: Machine>(
        &self,
        machine: &M,
        block: Block,
        (first, pages): (usize, usize),
    ) -> (Ipa, usize) {
        let table = machine.table(block.host().table.get());
        let notes = table.get(first..first + pages).unwrap_or_default();
        let note = |slot: &DescriptorCell| slot.load().address().0;
        let at = notes.first().map_or(0, note);
        let in_block = PAGES_PER_BLOCK - index(at, 3);
        let beside = (at..).step_by(PAGE_SIZE as usize).zip(notes).take(in_block);
        (Ipa(at), beside.take_while(|(at, slot)| note(slot) == *at).count().max(1))
    }

    /// Takes a whole block out of the map; the caller invalidates it
    /// afterwards. Needs the block's lock, the block not split.
    pub fn unmap_block<M: Machine>(&self, machine: &M, at: PhysAddr) {
        self.split_gib(machine, at);
        if let Some(slot) = self.level2_slot(machine, at) {
            machine.write_descriptor(slot, Descriptor::INVALID);
        }
    }

    /// Gives each page of a block an entry of its own, in the ledger and in
    /// the map. Needs the block's lock.
    pub fn split<M: Machine>(&self, machine: &M, ledger: &Ledger, block: Block, at: PhysAddr) {
        if ledger.is_split(block) {
            return;
        }
        let base = at.align_down(BLOCK_SIZE);
        let record = block.record();
        let reached = record.host_reaches();
        if reached {
            // It is a block entry now; a block that was lent has left before.
            self.split_gib(machine, base);
        }
        ledger.split(block);
        // The notes of what a guest has lent on are in the table already.
        if !record.is_lent_on() {
            let (mut entry, step) = match reached {
                true => (Descriptor::page(base, Attributes::HOST), 1),
                false => (Descriptor::INVALID, 0),
            };
            for slots in machine.table(block.host().table.get()).as_chunks::<8>().0 {
                for (n, slot) in (0..).zip(slots) {
                    machine.write_descriptor(slot, entry.behind(n * step));
                }
                entry = entry.behind(8 * step);
            }
        }
        let Some(slot) = self.level2_slot(machine, base) else { return };
        let table = Descriptor::table(block.host().table.get());
        self.replace(machine, slot, table, base, BLOCK_SIZE);
    }

    /// Merges a split block whose frames are alike into one record and one entry.
    /// Returns whether it did. Needs the block's lock.
    #[inline]
    pub fn merge<M: Machine>(
        &self,
        machine: &M,
        ledger: &Ledger,
        block: Block,
        at: PhysAddr,
    ) -> bool {
        let away = ledger.away(block);
        let may = ledger.is_split(block) && (away == 0 || away == PAGES_PER_BLOCK as u64);
        may && self.merge_alike(machine, ledger, block, at)
    }

    #[cold]
    fn merge_alike<M: Machine>(
        &self,
        machine: &M,
        ledger: &Ledger,
        block: Block,
        at: PhysAddr,
    ) -> bool {
        let Some(record) = ledger.whole_block(block) else { return false };
        ledger.set_block(block, record);
        let base = at.align_down(BLOCK_SIZE);
        if record.host_reaches() {
            self.map_block(machine, base);
        } else if let Some(slot) = self.level2_slot(machine, base) {
            // TLBs may cache the entry that points to the table, which is about to be filled again.
            self.replace(machine, slot, Descriptor::INVALID, base, BLOCK_SIZE);
        }
        true
    }

    /// Puts a whole block back into the map. Needs the block's lock.
    pub fn map_block<M: Machine>(&self, machine: &M, at: PhysAddr) {
        let base = at.align_down(BLOCK_SIZE);
        if let Some(slot) = self.level2_slot(machine, base) {
            let entry = Descriptor::block(base, Attributes::HOST);
            self.replace(machine, slot, entry, base, BLOCK_SIZE);
        }
        self.merge_gib(machine, base);
    }

    /// Replaces a live entry by one of another shape: break before make
    /// (DDI 0487, D8.16.1 "Using break-before-make when updating translation
    /// table entries"). The one place where that is done for the host.
    fn replace<M: Machine>(
        &self,
        machine: &M,
        slot: &DescriptorCell,
        entry: Descriptor,
        base: PhysAddr,
        size: u64,
    ) {
        if slot.load().is_valid() {
            machine.write_descriptor(slot, Descriptor::INVALID);
            machine.invalidate(&self.context, core::iter::once((base.identity(), size)));
        }
        if entry.is_valid() {
            machine.write_descriptor(slot, entry);
            machine.publish();
        }
    }

    /// A block is about to get an entry of its own: its GiB is split if it is one entry.
    fn split_gib<M: Machine>(&self, machine: &M, at: PhysAddr) {
        let number = at.0 / GIB;
        let Some(gib) = self.gib(number) else { return };
        if gib.away.fetch_add(1, Ordering::AcqRel) & WHOLE == 0 {
            return;
        }
        let _guard = self.level1.lock();
        if gib.away.load(Ordering::Acquire) & WHOLE == 0 {
            return;
        }
        if let Some(slot) = self.level1_slot(machine, number) {
            let entry = Descriptor::table(gib.table.get());
            self.replace(machine, slot, entry, PhysAddr(number * GIB), GIB);
        }
        gib.away.fetch_and(!WHOLE, Ordering::AcqRel);
    }

    /// A block is whole again: the last one makes its GiB one entry.
    fn merge_gib<M: Machine>(&self, machine: &M, at: PhysAddr) {
        let number = at.0 / GIB;
        let Some(gib) = self.gib(number) else { return };
        if gib.away.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let _guard = self.level1.lock();
        // WHOLE is set first: a CPU that splits the GiB from here on waits for the lock.
        if gib.away.compare_exchange(0, WHOLE, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        if let Some(slot) = self.level1_slot(machine, number) {
            let base = PhysAddr(number * GIB);
            self.replace(machine, slot, Descriptor::block(base, Attributes::HOST), base, GIB);
        }
    }

    /// What the map has for a GiB; `None` for a GiB without RAM.
    fn gib(&self, number: u64) -> Option<&'static HostGib> {
        Some((*nospec::get(self.directory, number as usize)?)?.host())
    }

    fn level1_slot<'m, M: Machine>(&self, machine: &'m M, gib: u64) -> Option<&'m DescriptorCell> {
        let at = gib * GIB;
        if at >= self.geometry.end() {
            return None;
        }
        let table = if self.geometry.start_level == 0 {
            let slot = &machine.table(self.root.first())[(at >> level_shift(0)) as usize];
            slot.load_acquire().as_table()?
        } else {
            self.root.get(gib / 512)?
        };
        Some(&machine.table(table)[(gib % 512) as usize])
    }

    fn level2_slot<'m, M: Machine>(
        &self,
        machine: &'m M,
        at: PhysAddr,
    ) -> Option<&'m DescriptorCell> {
        Some(&machine.table(self.gib(at.0 / GIB)?.table.get())[index(at.0, 2)])
    }
}

fn index(at: u64, level: u8) -> usize {
    (at >> level_shift(level)) as usize % PAGES_PER_BLOCK
}
