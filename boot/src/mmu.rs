// SPDX-License-Identifier: MIT OR Apache-2.0

//! EL2's own translation, as a CPU uses it.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, Readable};
pub use escrow_platform::stage1::{MapError, PAGE, Table, Use};

use escrow_platform::range::Range;
use escrow_platform::stage1::{ADDRESS_BITS, MAIR, Pool, Stage1};

/// SCTLR_EL2 with its RES1 bits only: all off. Also in `entry.S`.
pub const SCTLR_OFF: u64 = 0x30c5_0830;
/// M, C, SA, I, WXN.
const SCTLR_ON: u64 = SCTLR_OFF | 1 << 0 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;

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

/// EL2's map.
#[derive(Debug)]
pub struct El2Map(Stage1<'static>);

impl El2Map {
    /// An empty map, made of tables that nobody else uses. May run with the MMU
    /// off: there are no atomic read-modify-writes in it.
    ///
    /// # Errors
    ///
    /// [`MapError::NoTables`]
    pub fn new(tables: &'static [Table]) -> Result<Self, MapError> {
        Ok(El2Map(Stage1::new(pool(tables), physical_address_bits())?))
    }

    /// Makes further tables from other memory, once.
    ///
    /// # Errors
    ///
    /// [`MapError::NoTables`] if that was done before.
    pub fn add_tables(&mut self, tables: &'static [Table]) -> Result<(), MapError> {
        self.0.add_pool(pool(tables))
    }

    /// Maps memory to its own address, see [`Stage1::map`].
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
        let result = self.0.map(range, usage);
        // The walk sees descriptors after a DSB, and instructions that rely on
        // them come after an ISB (Arm ARM, "Ordering and completion of
        // translation table walks").
        barrier::dsb(barrier::ISHST);
        barrier::isb(barrier::SY);
        result
    }

    /// The table of a level that an address's entry is in, see [`Stage1::table_of`].
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn table_of(&mut self, at: u64, level: u32) -> Result<u64, MapError> {
        self.0.table_of(at, level)
    }

    /// Takes memory out of the map.
    ///
    /// # Errors
    ///
    /// See [`Stage1::unmap`].
    ///
    /// # Safety
    ///
    /// Nothing uses the memory at its address any more.
    pub unsafe fn unmap(&mut self, range: Range) -> Result<(), MapError> {
        let result = self.0.unmap(range);
        flush_tlb();
        result
    }

    /// Physical address of the table of level 0.
    pub fn root(&self) -> u64 {
        self.0.root()
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
            ttbr0: self.0.root(),
            tcr,
            mair: MAIR,
            sctlr: SCTLR_ON,
            stack_top: 0,
            argument: 0,
        }
    }
}

/// Removes what TLBs hold of EL2's map (Arm ARM, "TLB maintenance instructions": complete
/// after a DSB). Those of all CPUs: one that came too late to say what it has may be on
/// still, under this map.
pub fn flush_tlb() {
    // SAFETY: the map translates everything in use as before, or with more
    // rights.
    unsafe {
        core::arch::asm!("dsb ishst", "tlbi alle2is", "dsb ish", "isb", options(nostack));
    }
}

/// Tables at the address where they are for the MMU, too.
fn pool(tables: &'static [Table]) -> Pool<'static> {
    Pool { tables, base: tables.as_ptr().expose_provenance() as u64 }
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
