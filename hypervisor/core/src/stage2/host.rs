// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's stage 2: an identity map of the whole machine, with holes.
//!
//! RAM is mapped in 1 GiB, 2 MiB and 4 KiB entries, the largest that fit what
//! the ledger says. Everything else is the host's as well, in entries of 1 GiB:
//! devices, and memory that is added later. But for pages that EL2 withholds
//! ([`Traps`]): they have no entry, and those beside them are smaller for it. A
//! level-2 table for each GiB with RAM and a level-3 table for each block of RAM
//! are set aside at boot, so taking a page out of the map never needs memory.
//! What is withheld is withheld for good.
//!
//! A block's entry and its level-3 table are covered by the block's lock in
//! the ledger. The entry of a whole GiB is covered by [`HostMap`]'s own lock,
//! taken last.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use escrow_nospec as nospec;
use spin::mutex::TicketMutex;

use super::{Attributes, Descriptor, Geometry, Stage2Context, Stage2Features, level_shift};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr, PhysRange};
use crate::ledger::{Block, Directory, GIB_SIZE as GIB, Ledger, RamMap, Record, Reserve};
use crate::machine::{Machine, Note};
use crate::trap::{MAX_TRAPS, Traps};

/// Level-1 tables for MMIO beyond the first TiB, on machines with a level 0.
const SPARE_TABLES: usize = 4;
/// Tables that a root has at the most, side by side.
const MAX_ROOT_TABLES: usize = 16;
/// MMIO below this address is mapped at boot.
const EAGER_MMIO: u64 = 1 << 40;

/// The map of a GiB is one level-1 entry right now.
const WHOLE: u32 = 1 << 31;
/// The GiB has holes or edges of its own and is never one entry.
const NEVER_WHOLE: u32 = 1 << 30;

/// What the map has for a GiB with RAM.
#[derive(Debug, Default)]
pub struct HostGib {
    /// Its level-2 table.
    table: AtomicU64,
    /// Blocks that are away, and the flags above.
    away: AtomicU32,
}

impl HostGib {
    fn table(&self) -> PhysAddr {
        PhysAddr(self.table.load(Ordering::Relaxed))
    }
}

/// What the map has for a block: its level-3 table.
#[derive(Debug, Default)]
pub struct HostBlock {
    table: AtomicU64,
}

impl HostBlock {
    fn table(&self) -> PhysAddr {
        PhysAddr(self.table.load(Ordering::Relaxed))
    }
}

/// The host's stage-2 tables.
pub struct HostMap {
    geometry: Geometry,
    context: Stage2Context,
    root: PhysAddr,
    directory: Directory,
    level1: TicketMutex<ArrayVec<PhysAddr, SPARE_TABLES>>,
}

/// Why the host's tables cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMapError {
    /// Not enough pages for the tables.
    NoMemory,
    /// RAM lies beyond the CPUs' physical addresses.
    OutOfRange,
    /// CPUs with less than 36 bits of physical address.
    AddressesTooSmall,
    /// A page that is to be withheld is RAM.
    WithheldRam,
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
    /// Builds the map of all that the ledger gives to the host and `traps` does
    /// not withhold.
    pub fn new<M: Machine>(
        machine: &M,
        ledger: &Ledger,
        features: &Stage2Features,
        traps: &Traps,
        reserve: &mut dyn Reserve,
    ) -> Result<HostMap, HostMapError> {
        if features.pa_bits < 36 {
            return Err(HostMapError::AddressesTooSmall);
        }
        let geometry = Geometry::new(features.pa_bits.min(48));
        if ledger.ram().end() > geometry.end() {
            return Err(HostMapError::OutOfRange);
        }
        give_level3(machine, ledger, reserve)?;
        let mut pages = |count: usize| {
            let at = reserve.zeroed(count).ok_or(HostMapError::NoMemory)?;
            machine.note(|| Note::Tables { at, size: count as u64 * PAGE_SIZE, zeroed: true });
            Ok(at)
        };
        let root = pages(geometry.root_tables as usize)?;
        // VMID 0 is the host's.
        let context = Stage2Context { vttbr: root.0, vtcr: geometry.vtcr(features) };
        let map = HostMap {
            geometry,
            context,
            root,
            directory: ledger.directory(),
            level1: TicketMutex::new(ArrayVec::new()),
        };
        for (_, gib) in map.gibs() {
            gib.table.store(pages(1)?.0, Ordering::Relaxed);
        }
        if geometry.start_level == 0 {
            let mut spare = map.level1.lock();
            for _ in 0..SPARE_TABLES {
                spare.push(pages(1)?);
            }
            let reach = ledger.ram().end().max(EAGER_MMIO).min(geometry.end());
            for at in (0..reach).step_by(1 << level_shift(0)) {
                let slot = &machine.table(map.root)[(at >> level_shift(0)) as usize];
                machine.write_descriptor(slot, Descriptor::table(pages(1)?));
            }
        }
        for gib in 0..EAGER_MMIO.min(geometry.end()) / GIB {
            if map.gib(gib).is_none() {
                map.map_mmio_gib(machine, gib);
            }
        }
        map.map_ram(machine, ledger);
        for range in traps.ranges() {
            map.withhold(machine, ledger, range, &mut pages)?;
        }
        machine.publish();
        Ok(map)
    }

    /// Pages that [`HostMap::new`] takes at the most for this RAM, beside those for
    /// level 3.
    pub fn pages_needed(ram: &RamMap) -> usize {
        let level1 = ram.end().max(EAGER_MMIO).div_ceil(1 << level_shift(0)) as usize;
        // The root may have to begin at a multiple of its size.
        2 * MAX_ROOT_TABLES + ram.gibs() + SPARE_TABLES + level1
            // A withheld range may need one of levels 1, 2 and 3 at each of its ends.
            + 6 * MAX_TRAPS
    }

    /// The registers that select this map.
    pub fn context(&self) -> &Stage2Context {
        &self.context
    }

    /// The GiB that have RAM, and their numbers.
    fn gibs(&self) -> impl Iterator<Item = (u64, &'static HostGib)> + use<> {
        (0u64..).zip(self.directory).filter_map(|(number, gib)| Some((number, (*gib)?.host())))
    }

    fn map_ram<M: Machine>(&self, machine: &M, ledger: &Ledger) {
        for (number, gib) in self.gibs() {
            self.map_ram_gib(machine, ledger, number, gib);
        }
    }

    fn map_ram_gib<M: Machine>(&self, machine: &M, ledger: &Ledger, number: u64, gib: &HostGib) {
        let table = machine.table(gib.table());
        let mut whole = true;
        for (n, slot) in table.iter().enumerate() {
            let at = PhysAddr(number * GIB + n as u64 * BLOCK_SIZE);
            let entry = match ledger.locate(at) {
                None => {
                    whole = false;
                    Descriptor::block(at, Attributes::HOST)
                }
                Some(block) if ledger.is_split(block) => {
                    whole = false;
                    self.fill_level3(machine, ledger, block, at);
                    Descriptor::table(block.host().table())
                }
                Some(block) => match ledger.whole_block(block) {
                    Some(record) if record.host_reaches() => {
                        Descriptor::block(at, Attributes::HOST)
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
            Descriptor::block(PhysAddr(number * GIB), Attributes::HOST)
        } else {
            Descriptor::table(gib.table())
        };
        let flags = if whole { WHOLE } else { NEVER_WHOLE };
        gib.away.store(flags, Ordering::Relaxed);
        if let Some(slot) = self.level1_slot(machine, number) {
            machine.write_descriptor(slot, entry);
        }
    }

    /// Takes pages that are no RAM out of the map, which no CPU uses yet.
    fn withhold<M: Machine>(
        &self,
        machine: &M,
        ledger: &Ledger,
        range: PhysRange,
        pages: &mut dyn FnMut(usize) -> Result<PhysAddr, HostMapError>,
    ) -> Result<(), HostMapError> {
        if range.end() > self.geometry.end() {
            return Err(HostMapError::OutOfRange);
        }
        let mut at = range.base;
        while at.0 < range.end() {
            let block = at.align_down(BLOCK_SIZE);
            let end = range.end().min(block.0 + BLOCK_SIZE);
            let level2 = self.withhold_in_gib(machine, at.0 / GIB, pages)?;
            let slot = &machine.table(level2)[index(at.0, 2)];
            let entry = Descriptor(slot.load(Ordering::Relaxed));
            if at == block && end == block.0 + BLOCK_SIZE {
                if ledger.locate(block).is_some() {
                    return Err(HostMapError::WithheldRam);
                }
                machine.write_descriptor(slot, Descriptor::INVALID);
            } else {
                let level3 = if entry.is_table() {
                    entry.address()
                } else {
                    let table = pages(1)?;
                    fill(machine, table, block, PAGE_SIZE, Descriptor::page);
                    machine.write_descriptor(slot, Descriptor::table(table));
                    table
                };
                for page in (at.0..end).step_by(PAGE_SIZE as usize) {
                    if !matches!(ledger.get(PhysAddr(page)), None | Some(Record::NO_RAM)) {
                        return Err(HostMapError::WithheldRam);
                    }
                    let slot = &machine.table(level3)[index(page, 3)];
                    machine.write_descriptor(slot, Descriptor::INVALID);
                }
            }
            at = PhysAddr(end);
        }
        Ok(())
    }

    /// The level-2 table of a GiB that is not to be one entry; makes one for a GiB
    /// without RAM.
    fn withhold_in_gib<M: Machine>(
        &self,
        machine: &M,
        gib: u64,
        pages: &mut dyn FnMut(usize) -> Result<PhysAddr, HostMapError>,
    ) -> Result<PhysAddr, HostMapError> {
        if self.level1_slot(machine, gib).is_none() {
            self.link_level1(machine, gib, pages(1)?);
        }
        let Some(slot) = self.level1_slot(machine, gib) else {
            return Err(HostMapError::OutOfRange);
        };
        let entry = Descriptor(slot.load(Ordering::Relaxed));
        if entry.is_table() {
            return Ok(entry.address());
        }
        if self.gib(gib).is_some() {
            // A GiB that is one entry is RAM throughout.
            return Err(HostMapError::WithheldRam);
        }
        let table = pages(1)?;
        fill(machine, table, PhysAddr(gib * GIB), BLOCK_SIZE, Descriptor::block);
        machine.write_descriptor(slot, Descriptor::table(table));
        Ok(table)
    }

    /// Maps what is at an address that the host touched and the map lacks.
    ///
    /// For addresses outside RAM, and not for what is withheld.
    pub fn map_mmio<M: Machine>(&self, machine: &M, at: Ipa) -> MmioMap {
        if at.0 >= self.geometry.end() {
            return MmioMap::Refused;
        }
        let gib = at.0 / GIB;
        if self.gib(gib).is_some() {
            // All of a GiB with RAM was mapped at boot; a split is under way.
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
            && !Descriptor(slot.load(Ordering::Relaxed)).is_valid()
        {
            let entry = Descriptor::block(PhysAddr(gib * GIB), Attributes::HOST);
            machine.write_descriptor(slot, entry);
        }
    }

    /// Links an empty level-1 table for the 512 GiB around a GiB, on a machine with
    /// a level 0.
    fn link_level1<M: Machine>(&self, machine: &M, gib: u64, page: PhysAddr) {
        let slot = &machine.table(self.root)[((gib * GIB) >> level_shift(0)) as usize];
        machine.write_descriptor(slot, Descriptor::table(page));
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
    pub fn unmap_pages<M: Machine>(&self, machine: &M, block: Block, first: usize, pages: usize) {
        let table = machine.table(block.host().table());
        for slot in table.get(first..first + pages).unwrap_or_default() {
            machine.write_descriptor(slot, Descriptor::INVALID);
        }
    }

    /// Puts pages back into the map of a split block; the caller publishes
    /// them. Needs the block's lock.
    pub fn map_pages<M: Machine>(&self, machine: &M, block: Block, at: PhysAddr, pages: usize) {
        let first = index(at.0, 3);
        let mut entry = Descriptor::page(at, Attributes::HOST);
        let table = machine.table(block.host().table());
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
    pub fn split<M: Machine>(&self, machine: &M, ledger: &Ledger, block: Block, at: PhysAddr) {
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
        let first = Descriptor::page(base, Attributes::HOST).0;
        let (mut entry, step) = if reached { (first, PAGE_SIZE) } else { (0, 0) };
        for slot in machine.table(block.host().table()) {
            machine.write_descriptor(slot, Descriptor(entry));
            entry += step;
        }
        let Some(slot) = self.level2_slot(machine, base) else { return };
        let table = Descriptor::table(block.host().table());
        self.replace(machine, slot, table, base, BLOCK_SIZE);
    }

    /// Makes a split block whose frames are alike one record and one entry
    /// again; whether it was one. Needs the block's lock.
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
            // Walkers may hold the way to the table, which is to be filled anew.
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
            let entry = Descriptor::table(gib.table());
            self.replace(machine, slot, entry, PhysAddr(number * GIB), GIB);
        }
        gib.away.fetch_and(!WHOLE, Ordering::AcqRel);
    }

    /// A block is whole again: the last one makes its GiB one entry.
    fn come_home<M: Machine>(&self, machine: &M, at: PhysAddr) {
        let number = at.0 / GIB;
        let Some(gib) = self.gib(number) else { return };
        if gib.away.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let _guard = self.level1.lock();
        // WHOLE goes in first: who leaves from here on waits for the lock.
        if gib.away.compare_exchange(0, WHOLE, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        if let Some(slot) = self.level1_slot(machine, number) {
            let base = PhysAddr(number * GIB);
            self.replace(machine, slot, Descriptor::block(base, Attributes::HOST), base, GIB);
        }
    }

    fn fill_level3<M: Machine>(&self, machine: &M, ledger: &Ledger, block: Block, base: PhysAddr) {
        let table = machine.table(block.host().table());
        for (n, slot) in table.iter().enumerate() {
            let at = base.add(n as u64 * PAGE_SIZE);
            let record = ledger.get_in(block, at);
            let entry = if record == Record::NO_RAM || record.host_reaches() {
                Descriptor::page(at, Attributes::HOST)
            } else {
                Descriptor::INVALID
            };
            machine.write_descriptor(slot, entry);
        }
    }

    /// What the map has for a GiB; `None` for a GiB without RAM.
    fn gib(&self, number: u64) -> Option<&'static HostGib> {
        Some((*nospec::get(self.directory, number as usize)?)?.host())
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

    fn level2_slot<'m, M: Machine>(&self, machine: &'m M, at: PhysAddr) -> Option<&'m AtomicU64> {
        Some(&machine.table(self.gib(at.0 / GIB)?.table())[index(at.0, 2)])
    }
}

/// Gives each block of RAM a page for its level-3 table.
fn give_level3<M: Machine>(
    machine: &M,
    ledger: &Ledger,
    reserve: &mut dyn Reserve,
) -> Result<(), HostMapError> {
    let mut wanted = ledger.ram().blocks();
    let (mut next, mut ready) = (PhysAddr(0), 0);
    for block in ledger.blocks() {
        if ready == 0 {
            (next, ready) = reserve.tables(wanted).ok_or(HostMapError::NoMemory)?;
            let (at, size) = (next, ready as u64 * PAGE_SIZE);
            machine.note(|| Note::Tables { at, size, zeroed: false });
        }
        block.host().table.store(next.0, Ordering::Relaxed);
        next = next.add(PAGE_SIZE);
        ready = ready.saturating_sub(1);
        wanted -= 1;
    }
    Ok(())
}

/// Fills a table with what the host reaches, in pieces of `size` bytes.
fn fill<M: Machine>(
    machine: &M,
    table: PhysAddr,
    base: PhysAddr,
    size: u64,
    leaf: impl Fn(PhysAddr, Attributes) -> Descriptor,
) {
    for (n, slot) in (0u64..).zip(machine.table(table)) {
        machine.write_descriptor(slot, leaf(base.add(n * size), Attributes::HOST));
    }
}

fn index(at: u64, level: u8) -> usize {
    (at >> level_shift(level)) as usize % PAGES_PER_BLOCK
}
