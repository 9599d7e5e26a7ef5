// SPDX-License-Identifier: MIT OR Apache-2.0

//! Translation tables for EL2 itself: an identity map where nothing is both
//! writable and executable.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;

use crate::range::Range;

/// Bytes of the smallest piece that is mapped, and of a table.
pub const PAGE: u64 = 4096;
/// Bits of an address that four levels translate.
pub const ADDRESS_BITS: u32 = 48;

/// Entries of a table.
const ENTRIES: usize = 512;
/// Places that tables are made from.
const MAX_POOLS: usize = 2;

// Stage 1 descriptors (Arm ARM, "VMSAv8-64 descriptor formats"). EL2's regime
// has one privilege level: AP[1] is RES1, and XN is bit 54.
const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 1 << 1;
const ATTRIBUTE_SHIFT: u32 = 2;
const AP1: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const EXECUTE_NEVER: u64 = 1 << 54;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

/// `MAIR_EL2` for these tables. Attribute 0: normal memory, write-back,
/// allocating. Attribute 1: device memory, nGnRE.
pub const MAIR: u64 = 0x04_ff;

/// What memory is mapped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// To be executed.
    Code,
    /// To be read.
    ReadOnly,
    /// To be read and written.
    Data,
    /// Registers of a device.
    Device,
}

impl Use {
    /// The descriptor of a block at address 0 that is mapped for this.
    pub const fn block(self) -> u64 {
        self.attributes()
    }

    /// The same of a page.
    pub const fn page(self) -> u64 {
        self.attributes() | TABLE_OR_PAGE
    }

    const fn attributes(self) -> u64 {
        const NORMAL: u64 = 0 << ATTRIBUTE_SHIFT;
        const DEVICE: u64 = 1 << ATTRIBUTE_SHIFT;
        VALID
            | AP1
            | INNER_SHAREABLE
            | ACCESSED
            | match self {
                Use::Code => NORMAL | READ_ONLY,
                Use::ReadOnly => NORMAL | READ_ONLY | EXECUTE_NEVER,
                Use::Data => NORMAL | EXECUTE_NEVER,
                Use::Device => DEVICE | EXECUTE_NEVER,
            }
    }
}

/// Why memory could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// There is no memory for tables left.
    NoTables,
    /// The address is beyond what the CPU can reach, or where EL2 has its windows.
    OutOfReach,
    /// A larger piece is mapped there already.
    Mapped,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MapError::NoTables => "no memory for EL2's translation tables",
            MapError::OutOfReach => "address beyond what EL2 can map",
            MapError::Mapped => "address is mapped twice at EL2",
        })
    }
}

impl core::error::Error for MapError {}

/// A translation table.
pub type Table = [AtomicU64; ENTRIES];

/// Tables to be used, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Pool<'t> {
    /// The tables, with any contents.
    pub tables: &'t [Table],
    /// Physical address of the first one.
    pub base: u64,
}

/// Translation tables.
#[derive(Debug)]
pub struct Stage1<'t> {
    pools: ArrayVec<Pool<'t>, MAX_POOLS>,
    /// Tables of the last pool that are in use.
    used: usize,
    root: u64,
    address_end: u64,
}

impl<'t> Stage1<'t> {
    /// An empty map for CPUs with this many bits of physical address.
    ///
    /// # Errors
    ///
    /// [`MapError::NoTables`]
    pub fn new(pool: Pool<'t>, physical_bits: u32) -> Result<Self, MapError> {
        let mut pools = ArrayVec::new();
        pools.push(pool);
        let address_end = 1 << physical_bits.min(ADDRESS_BITS);
        let mut map = Stage1 { pools, used: 0, root: 0, address_end };
        map.root = map.take()?;
        Ok(map)
    }

    /// Makes further tables from another pool.
    ///
    /// # Errors
    ///
    /// [`MapError::NoTables`] if that was done before.
    pub fn add_pool(&mut self, pool: Pool<'t>) -> Result<(), MapError> {
        self.pools.try_push(pool).map_err(|_| MapError::NoTables)?;
        self.used = 0;
        Ok(())
    }

    /// Physical address of the table of level 0.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Maps memory to its own address, in the largest pieces that fit; rounded
    /// out to whole pages. The walk sees it after a DSB.
    ///
    /// What is mapped already at the same size may change its use, as long as
    /// it stays normal memory; the caller then invalidates TLBs.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; part of the range may be mapped then.
    pub fn map(&mut self, range: Range, usage: Use) -> Result<(), MapError> {
        let range = range.aligned_out(PAGE).ok_or(MapError::OutOfReach)?;
        if range.end > self.address_end {
            return Err(MapError::OutOfReach);
        }
        self.change(self.root, 0, range, Some(usage.attributes()))
    }

    /// The table of a level, 1 to 3, that the entry of an address is in; it is made if
    /// there is none.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn table_of(&mut self, at: u64, level: u32) -> Result<u64, MapError> {
        let mut address = self.root;
        for above in 0..level {
            let table = self.table(address).ok_or(MapError::Mapped)?;
            let entry = &table[(at >> (12 + 9 * (3 - above))) as usize % ENTRIES];
            address = self.below(entry, above)?;
        }
        Ok(address)
    }

    /// Takes memory out of the map. The caller invalidates TLBs.
    ///
    /// # Errors
    ///
    /// [`MapError::Mapped`] if an entry maps more than the range.
    pub fn unmap(&mut self, range: Range) -> Result<(), MapError> {
        self.change(self.root, 0, range, None)
    }

    /// The table that an entry of a level leads to, made if it leads nowhere.
    fn below(&mut self, entry: &AtomicU64, level: u32) -> Result<u64, MapError> {
        let old = entry.load(Ordering::Relaxed);
        if leads_to_table(old, level) {
            return Ok(old & OUTPUT);
        }
        if old & VALID != 0 {
            return Err(MapError::Mapped);
        }
        let below = self.take()?;
        // After the zeros of the table itself.
        entry.store(below | VALID | TABLE_OR_PAGE, Ordering::Release);
        Ok(below)
    }

    /// Gives what a table translates of a range its entries: blocks and pages with
    /// attributes, or none.
    fn change(
        &mut self,
        table: u64,
        level: u32,
        range: Range,
        to: Option<u64>,
    ) -> Result<(), MapError> {
        let table = self.table(table).ok_or(MapError::Mapped)?;
        let shift = 12 + 9 * (3 - level);
        let size = 1u64 << shift;
        let mut at = range.start;
        while at < range.end {
            let next = (at | (size - 1)) + 1;
            let entry = &table[(at >> shift) as usize % ENTRIES];
            let old = entry.load(Ordering::Relaxed);
            let whole = at.is_multiple_of(size) && next <= range.end;
            let below = match to {
                _ if leads_to_table(old, level) => Some(old & OUTPUT),
                Some(attributes) if whole && level > 0 => {
                    let kind = if level == 3 { TABLE_OR_PAGE } else { 0 };
                    entry.store(at | attributes | kind, Ordering::Relaxed);
                    None
                }
                Some(_) => Some(self.below(entry, level)?),
                None if old & VALID == 0 => None,
                None if whole => {
                    entry.store(0, Ordering::Relaxed);
                    None
                }
                None => return Err(MapError::Mapped),
            };
            if let Some(below) = below {
                self.change(below, level + 1, Range::new(at, next.min(range.end)), to)?;
            }
            at = next;
        }
        Ok(())
    }

    /// The table at a physical address.
    fn table(&self, at: u64) -> Option<&'t Table> {
        self.pools.iter().find_map(|pool| {
            let index = at.checked_sub(pool.base)? / PAGE;
            pool.tables.get(usize::try_from(index).ok()?)
        })
    }

    /// A new table, all invalid.
    fn take(&mut self) -> Result<u64, MapError> {
        let pool = self.pools.last().ok_or(MapError::NoTables)?;
        let table = pool.tables.get(self.used).ok_or(MapError::NoTables)?;
        for entry in table {
            entry.store(0, Ordering::Relaxed);
        }
        let address = pool.base + self.used as u64 * PAGE;
        self.used += 1;
        Ok(address)
    }
}

/// Whether an entry of a level leads to a table of the next.
fn leads_to_table(entry: u64, level: u32) -> bool {
    level < 3 && entry & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE
}

#[cfg(test)]
mod tests;
