// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's stage 2: an identity map of the whole machine, with holes.
//!
//! RAM is mapped in 1 GiB, 2 MiB and 4 KiB entries, the largest that fit what
//! the ledger says; everything else is MMIO and the host's. A level-2 table
//! for each GiB with RAM and a level-3 table for each block of RAM are set
//! aside at boot, so taking a page out of the map never needs memory.
//!
//! A block's entry and its level-3 table are covered by the block's lock in
//! the ledger. The entry of a whole GiB is covered by [`HostMap`]'s own lock,
//! taken last.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use spin::mutex::TicketMutex;

use super::{Attributes, Descriptor, Geometry, Stage2Context, Stage2Features, level_shift};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::ledger::{BlockIndex, Ledger, MAX_RANGES, Record};
use crate::machine::{Machine, Table};

const GIB: u64 = 1 << 30;
const BLOCKS_PER_GIB: u64 = GIB / BLOCK_SIZE;
/// Level-1 tables for MMIO beyond the first TiB, on machines with a level 0.
const SPARE_TABLES: usize = 4;
/// MMIO below this address is mapped at boot.
const EAGER_MMIO: u64 = 1 << 40;
/// GiB with RAM that a machine may have.
const MAX_GIB: usize = 1024;

/// The map of a GiB is one level-1 entry right now.
const WHOLE: u32 = 1 << 31;
/// The GiB has holes or edges of its own and is never one entry.
const NEVER_WHOLE: u32 = 1 << 30;

/// GiB with RAM that lie one after the other.
#[derive(Clone, Copy, Debug)]
struct GibRun {
    first: u64,
    count: u64,
    /// Index of the first one's level-2 table.
    table: u64,
}

/// The host's stage-2 tables.
pub struct HostMap {
    geometry: Geometry,
    context: Stage2Context,
    root: PhysAddr,
    runs: ArrayVec<GibRun, MAX_RANGES>,
    level2: PhysAddr,
    level3: PhysAddr,
    /// For each GiB with RAM: blocks that are away, and the flags above.
    gibs: [AtomicU32; MAX_GIB],
    level1: TicketMutex<ArrayVec<PhysAddr, SPARE_TABLES>>,
}

/// Why the host's tables cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMapError {
    /// Not enough pages for the tables.
    NoMemory,
    /// More than 1 TiB of RAM.
    TooMuchRam,
    /// RAM lies beyond the CPUs' physical addresses.
    OutOfRange,
    /// CPUs with less than 36 bits of physical address.
    AddressesTooSmall,
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
    /// Builds the map of all that the ledger gives to the host.
    ///
    /// `pages(n)` returns `n` adjacent zeroed pages, aligned to their size
    /// rounded up to a power of two; `level3` is a page for each block of RAM.
    pub fn new<M: Machine>(
        machine: &M,
        ledger: &Ledger,
        features: &Stage2Features,
        level3: PhysAddr,
        pages: &mut dyn FnMut(usize) -> Option<PhysAddr>,
    ) -> Result<HostMap, HostMapError> {
        if features.pa_bits < 36 {
            return Err(HostMapError::AddressesTooSmall);
        }
        let geometry = Geometry::new(features.pa_bits.min(48));
        let mut pages = |n| pages(n).ok_or(HostMapError::NoMemory);
        let runs = gib_runs(ledger);
        if runs.last().is_some_and(|r| (r.first + r.count) * GIB > geometry.end()) {
            return Err(HostMapError::OutOfRange);
        }
        let gibs = runs.iter().map(|r| r.count as usize).sum::<usize>();
        if gibs > MAX_GIB {
            return Err(HostMapError::TooMuchRam);
        }
        let root = pages(geometry.root_tables as usize)?;
        // VMID 0 is the host's.
        let context = Stage2Context { vttbr: root.0, vtcr: geometry.vtcr(features) };
        let map = HostMap {
            geometry,
            context,
            root,
            runs,
            level2: pages(gibs)?,
            level3,
            gibs: [const { AtomicU32::new(0) }; MAX_GIB],
            level1: TicketMutex::new(ArrayVec::new()),
        };
        if geometry.start_level == 0 {
            let mut spare = map.level1.lock();
            for _ in 0..SPARE_TABLES {
                spare.push(pages(1)?);
            }
            let in_ram = map.runs.iter().map(|r| (r.first + r.count) * GIB).max().unwrap_or(0);
            let reach = in_ram.max(EAGER_MMIO);
            for at in (0..reach.min(geometry.end())).step_by(1 << level_shift(0)) {
                let slot = &machine.table(map.root)[(at >> level_shift(0)) as usize];
                machine.write_descriptor(slot, Descriptor::table(pages(1)?));
            }
        }
        for gib in 0..EAGER_MMIO.min(geometry.end()) / GIB {
            if map.table_of(gib).is_none() {
                map.map_mmio_gib(machine, gib);
            }
        }
        map.map_ram(machine, ledger);
        machine.publish();
        Ok(map)
    }

    /// Pages that [`HostMap::new`] takes at the most for this much RAM.
    pub fn pages_needed(ledger_blocks: usize) -> usize {
        let gibs = ledger_blocks / BLOCKS_PER_GIB as usize + 2 * MAX_RANGES;
        16 + gibs.next_power_of_two() * 2 + SPARE_TABLES + 512
    }

    /// The registers that select this map.
    pub fn context(&self) -> &Stage2Context {
        &self.context
    }

    fn map_ram<M: Machine>(&self, machine: &M, ledger: &Ledger) {
        for run in &self.runs {
            for n in 0..run.count {
                self.map_ram_gib(machine, ledger, run.first + n, run.table + n);
            }
        }
    }

    fn map_ram_gib<M: Machine>(&self, machine: &M, ledger: &Ledger, gib: u64, index: u64) {
        let table = self.level2_table(machine, index);
        let mut whole = true;
        for (n, slot) in table.iter().enumerate() {
            let at = PhysAddr(gib * GIB + n as u64 * BLOCK_SIZE);
            let entry = match ledger.ram().locate(at) {
                None => {
                    whole = false;
                    Descriptor::block(at, Attributes::HOST_MMIO)
                }
                Some(block) if ledger.is_split(block) => {
                    whole = false;
                    self.fill_level3(machine, ledger, block, at);
                    Descriptor::table(self.level3_page(block))
                }
                Some(block) => match ledger.whole_block(block) {
                    Some(record) if record.host_reaches() => {
                        Descriptor::block(at, Attributes::HOST_RAM)
                    }
                    _ => {
                        whole = false;
                        Descriptor::INVALID
                    }
                },
            };
            machine.write_descriptor(slot, entry);
        }
        let entry = if whole {
            Descriptor::block(PhysAddr(gib * GIB), Attributes::HOST_RAM)
        } else {
            Descriptor::table(self.level2_page(index))
        };
        let flags = if whole { WHOLE } else { NEVER_WHOLE };
        self.gibs[index as usize].store(flags, Ordering::Relaxed);
        if let Some(slot) = self.level1_slot(machine, gib) {
            machine.write_descriptor(slot, entry);
        }
    }

    /// Maps the MMIO at an address that the host touched and the map lacks.
    ///
    /// For addresses outside RAM only.
    pub fn map_mmio<M: Machine>(&self, machine: &M, at: Ipa) -> MmioMap {
        if at.0 >= self.geometry.end() {
            return MmioMap::Refused;
        }
        let gib = at.0 / GIB;
        if self.table_of(gib).is_some() {
            // All of a GiB with RAM was mapped at boot; a split is under way.
            return MmioMap::Mapped;
        }
        let mut spare = self.level1.lock();
        if self.level1_slot(machine, gib).is_none() {
            let Some(page) = spare.pop() else { return MmioMap::Refused };
            let slot = &machine.table(self.root)[(at.0 >> level_shift(0)) as usize];
            machine.write_descriptor(slot, Descriptor::table(page));
        }
        self.map_mmio_gib(machine, gib);
        machine.publish();
        MmioMap::Mapped
    }

    fn map_mmio_gib<M: Machine>(&self, machine: &M, gib: u64) {
        if let Some(slot) = self.level1_slot(machine, gib) {
            let entry = Descriptor::block(PhysAddr(gib * GIB), Attributes::HOST_MMIO);
            machine.write_descriptor(slot, entry);
        }
    }

    /// Whether the map has a valid entry for a page, for tests and checks.
    pub fn reaches<M: Machine>(&self, machine: &M, at: PhysAddr) -> bool {
        let Some(level1) = self.level1_slot(machine, at.0 / GIB) else { return false };
        let mut entry = Descriptor(level1.load(Ordering::Relaxed));
        for level in 2..=3 {
            if !entry.is_table() {
                return entry.is_valid();
            }
            let table = machine.table(entry.address());
            entry = Descriptor(table[index(at.0, level)].load(Ordering::Relaxed));
        }
        entry.is_valid()
    }

    /// Takes pages of a split block out of the map; the caller invalidates
    /// them afterwards. Needs the block's lock.
    #[inline(always)]
    pub fn unmap_pages<M: Machine>(
        &self,
        machine: &M,
        block: BlockIndex,
        first: usize,
        pages: usize,
    ) {
        let table = machine.table(self.level3_page(block));
        for slot in table.get(first..first + pages).unwrap_or_default() {
            machine.write_descriptor(slot, Descriptor::INVALID);
        }
    }

    /// Puts pages back into the map of a split block; the caller publishes
    /// them. Needs the block's lock.
    pub fn map_pages<M: Machine>(
        &self,
        machine: &M,
        block: BlockIndex,
        at: PhysAddr,
        pages: usize,
    ) {
        let first = index(at.0, 3);
        let mut entry = Descriptor::page(at, Attributes::HOST_RAM);
        let table = machine.table(self.level3_page(block));
        for slot in table.get(first..first + pages).unwrap_or_default() {
            machine.write_descriptor(slot, entry);
            entry.0 += PAGE_SIZE;
        }
    }

    /// Takes a whole block out of the map; the caller invalidates it
    /// afterwards. Needs the block's lock, the block not split.
    pub fn unmap_block<M: Machine>(&self, machine: &M, at: PhysAddr) {
        self.leave(machine, at);
        if let Some(slot) = self.level2_slot(machine, at) {
            machine.write_descriptor(slot, Descriptor::INVALID);
        }
    }

    /// Gives each page of a block an entry of its own, in the ledger and in
    /// the map. Needs the block's lock.
    pub fn split<M: Machine>(&self, machine: &M, ledger: &Ledger, block: BlockIndex, at: PhysAddr) {
        if ledger.is_split(block) {
            return;
        }
        let base = at.align_down(BLOCK_SIZE);
        let reached = ledger.whole_block(block).is_some_and(Record::host_reaches);
        if reached {
            // It is a block entry now; a block that was lent has left before.
            self.leave(machine, base);
        }
        ledger.split(block);
        let first = Descriptor::page(base, Attributes::HOST_RAM).0;
        let (mut entry, step) = if reached { (first, PAGE_SIZE) } else { (0, 0) };
        for slot in machine.table(self.level3_page(block)) {
            machine.write_descriptor(slot, Descriptor(entry));
            entry += step;
        }
        let Some(slot) = self.level2_slot(machine, base) else { return };
        let table = Descriptor::table(self.level3_page(block));
        self.replace(machine, slot, table, base, BLOCK_SIZE);
    }

    /// Makes a split block whose frames are alike one record and one entry
    /// again; whether it was one. Needs the block's lock.
    #[inline]
    pub fn merge<M: Machine>(
        &self,
        machine: &M,
        ledger: &Ledger,
        block: BlockIndex,
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
        block: BlockIndex,
        at: PhysAddr,
    ) -> bool {
        let Some(record) = ledger.whole_block(block) else { return false };
        ledger.set_block(block, record);
        let base = at.align_down(BLOCK_SIZE);
        if record.host_reaches() {
            self.map_block(machine, base);
        } else if let Some(slot) = self.level2_slot(machine, base) {
            // Walkers may hold the way to the table, which is to be filled anew.
            self.replace(machine, slot, Descriptor::INVALID, base, BLOCK_SIZE);
        }
        true
    }

    /// Puts a whole block back into the map. Needs the block's lock.
    pub fn map_block<M: Machine>(&self, machine: &M, at: PhysAddr) {
        let base = at.align_down(BLOCK_SIZE);
        if let Some(slot) = self.level2_slot(machine, base) {
            let entry = Descriptor::block(base, Attributes::HOST_RAM);
            self.replace(machine, slot, entry, base, BLOCK_SIZE);
        }
        self.come_home(machine, base);
    }

    /// Replaces a live entry by one of another shape: break before make
    /// (DDI 0487, D8.16.1 "Using break-before-make when updating translation
    /// table entries"). The one place where that is done for the host.
    fn replace<M: Machine>(
        &self,
        machine: &M,
        slot: &AtomicU64,
        entry: Descriptor,
        base: PhysAddr,
        size: u64,
    ) {
        if Descriptor(slot.load(Ordering::Relaxed)).is_valid() {
            machine.write_descriptor(slot, Descriptor::INVALID);
            machine.invalidate(&self.context, core::iter::once((base.identity(), size)));
        }
        if entry.is_valid() {
            machine.write_descriptor(slot, entry);
            machine.publish();
        }
    }

    /// A block is about to get an entry of its own: its GiB must not be one.
    fn leave<M: Machine>(&self, machine: &M, at: PhysAddr) {
        let gib = at.0 / GIB;
        let Some(table) = self.table_of(gib) else { return };
        let away = &self.gibs[table as usize];
        if away.fetch_add(1, Ordering::AcqRel) & WHOLE == 0 {
            return;
        }
        let _guard = self.level1.lock();
        if away.load(Ordering::Acquire) & WHOLE == 0 {
            return;
        }
        if let Some(slot) = self.level1_slot(machine, gib) {
            let entry = Descriptor::table(self.level2_page(table));
            self.replace(machine, slot, entry, PhysAddr(gib * GIB), GIB);
        }
        away.fetch_and(!WHOLE, Ordering::AcqRel);
    }

    /// A block is whole again: the last one makes its GiB one entry.
    fn come_home<M: Machine>(&self, machine: &M, at: PhysAddr) {
        let gib = at.0 / GIB;
        let Some(table) = self.table_of(gib) else { return };
        let away = &self.gibs[table as usize];
        if away.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let _guard = self.level1.lock();
        // WHOLE goes in first: who leaves from here on waits for the lock.
        if away.compare_exchange(0, WHOLE, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        if let Some(slot) = self.level1_slot(machine, gib) {
            let base = PhysAddr(gib * GIB);
            self.replace(machine, slot, Descriptor::block(base, Attributes::HOST_RAM), base, GIB);
        }
    }

    fn fill_level3<M: Machine>(
        &self,
        machine: &M,
        ledger: &Ledger,
        block: BlockIndex,
        base: PhysAddr,
    ) {
        let table = machine.table(self.level3_page(block));
        for (n, slot) in table.iter().enumerate() {
            let at = base.add(n as u64 * PAGE_SIZE);
            let record = ledger.get_in(block, at);
            let entry = if record == Record::NO_RAM {
                Descriptor::page(at, Attributes::HOST_MMIO)
            } else if record.host_reaches() {
                Descriptor::page(at, Attributes::HOST_RAM)
            } else {
                Descriptor::INVALID
            };
            machine.write_descriptor(slot, entry);
        }
    }

    /// The index of a GiB's level-2 table; `None` for a GiB without RAM.
    fn table_of(&self, gib: u64) -> Option<u64> {
        let run = self.runs.iter().find(|r| gib.wrapping_sub(r.first) < r.count)?;
        Some(run.table + gib - run.first)
    }

    fn level1_slot<'m, M: Machine>(&self, machine: &'m M, gib: u64) -> Option<&'m AtomicU64> {
        let at = gib * GIB;
        if at >= self.geometry.end() {
            return None;
        }
        let table = if self.geometry.start_level == 0 {
            let slot = &machine.table(self.root)[(at >> level_shift(0)) as usize];
            let entry = Descriptor(slot.load(Ordering::Acquire));
            entry.is_table().then(|| entry.address())?
        } else {
            self.root.add(gib / 512 * PAGE_SIZE)
        };
        Some(&machine.table(table)[(gib % 512) as usize])
    }

    fn level2_page(&self, table: u64) -> PhysAddr {
        self.level2.add(table * PAGE_SIZE)
    }

    fn level2_table<'m, M: Machine>(&self, machine: &'m M, table: u64) -> &'m Table {
        machine.table(self.level2_page(table))
    }

    fn level2_slot<'m, M: Machine>(&self, machine: &'m M, at: PhysAddr) -> Option<&'m AtomicU64> {
        let table = self.table_of(at.0 / GIB)?;
        Some(&self.level2_table(machine, table)[index(at.0, 2)])
    }

    fn level3_page(&self, block: BlockIndex) -> PhysAddr {
        self.level3.add(block.get() as u64 * PAGE_SIZE)
    }
}

fn index(at: u64, level: u8) -> usize {
    (at >> level_shift(level)) as usize % PAGES_PER_BLOCK
}

/// The GiB that hold RAM, as runs. There are at most as many as RAM ranges.
fn gib_runs(ledger: &Ledger) -> ArrayVec<GibRun, MAX_RANGES> {
    let mut runs: ArrayVec<GibRun, MAX_RANGES> = ArrayVec::new();
    let mut tables = 0;
    for range in ledger.ram().ranges() {
        let mut first = range.base.0 / GIB;
        let end = range.end().div_ceil(GIB);
        if let Some(last) = runs.last_mut().filter(|r| first <= r.first + r.count) {
            first = last.first + last.count;
            let more = end.saturating_sub(first);
            last.count += more;
            tables += more;
        } else {
            runs.push(GibRun { first, count: end - first, table: tables });
            tables += end - first;
        }
    }
    runs
}
