// SPDX-License-Identifier: MIT OR Apache-2.0

//! Builds the host's tables, before any CPU uses them.

use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use spin::mutex::TicketMutex;

use super::{GIB, HostGib, HostMap, NEVER_WHOLE, SPARE_TABLES, WHOLE, index};
use crate::addr::{BLOCK_SIZE, PAGE_SIZE, PhysAddr, PhysRange};
use crate::ledger::{Block, Ledger, RamMap, Record, Reserve};
use crate::machine::{Machine, Note};
use crate::stage2::page::{RootTables, TablePage};
use crate::stage2::{Attributes, Descriptor, Geometry, Stage2Context, Stage2Features, level_shift};
use crate::trap::{MAX_TRAPS, Traps};

/// Tables that a root has at the most, side by side.
const MAX_ROOT_TABLES: usize = 16;
/// MMIO below this address is mapped at boot.
const EAGER_MMIO: u64 = 1 << 40;

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
        let mut pages = |count: u64| {
            let at = reserve.zeroed(count as usize).ok_or(HostMapError::NoMemory)?;
            machine.note(|| Note::Tables { at, size: count * PAGE_SIZE, zeroed: true });
            Ok(RootTables::reserved(at, count))
        };
        let root = pages(geometry.root_tables.into())?;
        let mut page = || pages(1).map(RootTables::first);
        // VMID 0 is the host's.
        let context =
            Stage2Context { vttbr: root.first().address().0, vtcr: geometry.vtcr(features) };
        let map = HostMap {
            geometry,
            context,
            root,
            directory: ledger.directory(),
            level1: TicketMutex::new(ArrayVec::new()),
        };
        for (_, gib) in map.gibs() {
            gib.table.set(page()?);
        }
        if geometry.start_level == 0 {
            let mut spare = map.level1.lock();
            for _ in 0..SPARE_TABLES {
                spare.push(page()?);
            }
            let reach = ledger.ram().end().max(EAGER_MMIO).min(geometry.end());
            for at in (0..reach).step_by(1 << level_shift(0)) {
                let slot = &machine.table(map.root.first())[(at >> level_shift(0)) as usize];
                machine.write_descriptor(slot, Descriptor::table(page()?));
            }
        }
        for gib in 0..EAGER_MMIO.min(geometry.end()) / GIB {
            if map.gib(gib).is_none() {
                map.map_mmio_gib(machine, gib);
            }
        }
        map.map_ram(machine, ledger);
        for range in traps.ranges() {
            map.withhold(machine, ledger, range, &mut page)?;
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
        let table = machine.table(gib.table.get());
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
                    Descriptor::table(block.host().table.get())
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
            Descriptor::table(gib.table.get())
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
        page: &mut dyn FnMut() -> Result<TablePage, HostMapError>,
    ) -> Result<(), HostMapError> {
        if range.end() > self.geometry.end() {
            return Err(HostMapError::OutOfRange);
        }
        let mut at = range.base;
        while at.0 < range.end() {
            let block = at.align_down(BLOCK_SIZE);
            let end = range.end().min(block.0 + BLOCK_SIZE);
            let level2 = self.withhold_in_gib(machine, at.0 / GIB, page)?;
            let slot = &machine.table(level2)[index(at.0, 2)];
            let entry = slot.load();
            if at == block && end == block.0 + BLOCK_SIZE {
                if ledger.locate(block).is_some() {
                    return Err(HostMapError::WithheldRam);
                }
                machine.write_descriptor(slot, Descriptor::INVALID);
            } else {
                let level3 = if let Some(table) = entry.as_table() {
                    table
                } else {
                    let table = page()?;
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
        page: &mut dyn FnMut() -> Result<TablePage, HostMapError>,
    ) -> Result<TablePage, HostMapError> {
        if self.level1_slot(machine, gib).is_none() {
            self.link_level1(machine, gib, page()?);
        }
        let Some(slot) = self.level1_slot(machine, gib) else {
            return Err(HostMapError::OutOfRange);
        };
        let entry = slot.load();
        if let Some(table) = entry.as_table() {
            return Ok(table);
        }
        if self.gib(gib).is_some() {
            // A GiB that is one entry is RAM throughout.
            return Err(HostMapError::WithheldRam);
        }
        let table = page()?;
        fill(machine, table, PhysAddr(gib * GIB), BLOCK_SIZE, Descriptor::block);
        machine.write_descriptor(slot, Descriptor::table(table));
        Ok(table)
    }

    fn fill_level3<M: Machine>(&self, machine: &M, ledger: &Ledger, block: Block, base: PhysAddr) {
        let table = machine.table(block.host().table.get());
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
        block.host().table.set(TablePage::reserved(next));
        next = next.add(PAGE_SIZE);
        ready = ready.saturating_sub(1);
        wanted -= 1;
    }
    Ok(())
}

/// Fills a table with what the host reaches, in pieces of `size` bytes.
fn fill<M: Machine>(
    machine: &M,
    table: TablePage,
    base: PhysAddr,
    size: u64,
    leaf: impl Fn(PhysAddr, Attributes) -> Descriptor,
) {
    for (n, slot) in (0u64..).zip(machine.table(table)) {
        machine.write_descriptor(slot, leaf(base.add(n * size), Attributes::HOST));
    }
}
