// SPDX-License-Identifier: MIT OR Apache-2.0

//! EL2's own translation: an identity map where nothing is both writable and
//! executable.

use core::fmt;
use core::ptr::NonNull;

use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, Readable};
use escrow_platform::range::Range;

/// Bytes of the smallest piece that is mapped, and of a table.
pub const PAGE: u64 = 4096;
/// Entries of a table.
const ENTRIES: usize = 512;
/// Bits of an address: four levels. The physical address size can be less.
const ADDRESS_BITS: u32 = 48;

// Stage 1 descriptors (Arm ARM, "VMSAv8-64 descriptor formats"). At EL2, one
// privilege level: AP[1] is RES1, and XN is bit 54.
const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 1 << 1;
const ATTRIBUTE_SHIFT: u32 = 2;
const AP1: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const EXECUTE_NEVER: u64 = 1 << 54;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

/// Attribute 0: normal memory, write-back, allocating. Attribute 1: device
/// memory, nGnRE.
const MAIR: u64 = 0x04_ff;

/// SCTLR_EL2 with its RES1 bits only: all off. Also in `entry.S`.
pub const SCTLR_OFF: u64 = 0x30c5_0830;
/// M, C, SA, I, WXN.
const SCTLR_ON: u64 = SCTLR_OFF | 1 << 0 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;

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
    /// The address is beyond what this CPU can reach.
    OutOfReach,
    /// A larger piece is mapped there already.
    Mapped,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MapError::NoTables => "no memory for EL2's translation tables",
            MapError::OutOfReach => "address beyond the physical address size of this CPU",
            MapError::Mapped => "address is mapped twice at EL2",
        })
    }
}

/// What a CPU loads to run under EL2's translation. `entry.S` knows its layout.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CpuStart {
    ttbr0: u64,
    tcr: u64,
    mair: u64,
    sctlr: u64,
    /// Where the CPU's stack begins; unused for the boot CPU.
    pub stack_top: u64,
    /// What `secondary_main` gets; unused for the boot CPU.
    pub argument: u64,
}

impl CpuStart {
    /// The same translation for a CPU with this stack and argument.
    pub fn with(&self, stack_top: u64, argument: u64) -> CpuStart {
        CpuStart { stack_top, argument, ..*self }
    }
}

/// A translation table.
pub type Table = [u64; ENTRIES];

/// Memory that tables are made from.
#[derive(Debug)]
struct Pool {
    next: NonNull<Table>,
    left: usize,
}

/// EL2's translation tables.
#[derive(Debug)]
pub struct Stage1 {
    root: NonNull<Table>,
    pool: Pool,
    address_end: u64,
}

impl Stage1 {
    /// An empty map.
    ///
    /// May run with the MMU off: it uses no atomic instructions.
    ///
    /// # Errors
    ///
    /// [`MapError::NoTables`]
    ///
    /// # Safety
    ///
    /// `tables` must begin `count` pages of memory that is nobody else's, now
    /// and later, at the same address as they are for the MMU.
    pub unsafe fn new(tables: NonNull<Table>, count: usize) -> Result<Self, MapError> {
        let mut pool = Pool { next: tables, left: count };
        let root = pool.take()?;
        let bits = physical_address_bits().min(ADDRESS_BITS);
        Ok(Stage1 { root, pool, address_end: 1 << bits })
    }

    /// Makes further tables from other memory.
    ///
    /// # Safety
    ///
    /// As for [`Self::new`].
    pub unsafe fn refill(&mut self, tables: NonNull<Table>, count: usize) {
        self.pool = Pool { next: tables, left: count };
    }

    /// Maps memory to its own address, in the largest pieces that fit; rounded
    /// out to whole pages.
    ///
    /// What is mapped already at the same size may change its use, as long as
    /// it stays normal memory; the caller then invalidates TLBs.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; part of the range may be mapped then.
    ///
    /// # Safety
    ///
    /// The memory is what `usage` says, and mapping it that way takes nothing
    /// away that running code relies on.
    pub unsafe fn map(&mut self, range: Range, usage: Use) -> Result<(), MapError> {
        let range = range.aligned_out(PAGE).ok_or(MapError::OutOfReach)?;
        if range.end > self.address_end {
            return Err(MapError::OutOfReach);
        }
        if range.is_empty() {
            return Ok(());
        }
        let root = self.root;
        self.map_table(root, 0, range, usage.attributes())
    }

    fn map_table(
        &mut self,
        table: NonNull<Table>,
        level: u32,
        range: Range,
        attributes: u64,
    ) -> Result<(), MapError> {
        let shift = 12 + 9 * (3 - level);
        let size = 1u64 << shift;
        let mut at = range.start;
        while at < range.end {
            let next = (at | (size - 1)) + 1;
            let index = (at >> shift) as usize % ENTRIES;
            // SAFETY: `table` is one of this map's, and the index is in it.
            // The walk reads it at any time, so it is written in one access.
            let entry = unsafe { table.cast::<u64>().add(index) };
            // SAFETY: as above.
            let old = unsafe { entry.read_volatile() };
            let is_table = level < 3 && old & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE;
            let whole = at.is_multiple_of(size) && next <= range.end;
            if whole && level > 0 && !is_table {
                let kind = if level == 3 { TABLE_OR_PAGE } else { 0 };
                // SAFETY: as above.
                unsafe { entry.write_volatile(at | attributes | kind) };
            } else {
                let below = if is_table {
                    NonNull::new(core::ptr::with_exposed_provenance_mut((old & OUTPUT) as usize))
                        .ok_or(MapError::Mapped)?
                } else if old & VALID != 0 {
                    return Err(MapError::Mapped);
                } else {
                    let below = self.pool.take()?;
                    let descriptor = below.as_ptr().expose_provenance() as u64;
                    publish();
                    // SAFETY: as above.
                    unsafe { entry.write_volatile(descriptor | VALID | TABLE_OR_PAGE) };
                    below
                };
                let part = Range::new(at, next.min(range.end));
                self.map_table(below, level + 1, part, attributes)?;
            }
            at = next;
        }
        if level == 0 {
            publish();
        }
        Ok(())
    }

    /// What a CPU loads to use the map.
    pub fn cpu_start(&self) -> CpuStart {
        let pa_size = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange).min(0b0101);
        // TCR_EL2 without the host extensions: RES1 bits 31 and 23, PS, 4 KiB
        // granule, walks inner shareable and write-back, T0SZ.
        let tcr = 1 << 31
            | 1 << 23
            | pa_size << 16
            | 0b11 << 12
            | 0b01 << 10
            | 0b01 << 8
            | u64::from(64 - ADDRESS_BITS);
        CpuStart {
            ttbr0: self.root.as_ptr().expose_provenance() as u64,
            tcr,
            mair: MAIR,
            sctlr: SCTLR_ON,
            stack_top: 0,
            argument: 0,
        }
    }
}

impl Pool {
    fn take(&mut self) -> Result<NonNull<Table>, MapError> {
        self.left = self.left.checked_sub(1).ok_or(MapError::NoTables)?;
        let table = self.next;
        // SAFETY: the pool's memory is its own, and `left` says that this page
        // is still part of it.
        unsafe {
            table.write([0; ENTRIES]);
            self.next = table.add(1);
        }
        Ok(table)
    }
}

/// Makes descriptors visible to the table walk (Arm ARM, "Ordering and
/// completion of translation table walks": a DSB after the write, and an ISB
/// before instructions that rely on it).
fn publish() {
    use aarch64_cpu::asm::barrier;
    barrier::dsb(barrier::ISHST);
    barrier::isb(barrier::SY);
}

/// Bits of a physical address on this CPU.
fn physical_address_bits() -> u32 {
    match ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange) {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        _ => 52,
    }
}
