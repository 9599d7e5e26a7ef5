// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stage 1 of a payload: an identity map of the first 512 GiB.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, MAIR_EL1, Readable as _, Writeable as _};

use crate::board::Board;

/// Bytes that one level-1 entry maps.
pub const GIB: u64 = 1 << 30;

const ENTRIES: usize = 512;

#[repr(C, align(4096))]
struct Table([AtomicU64; ENTRIES]);

static ROOT: Table = Table([const { AtomicU64::new(0) }; ENTRIES]);

const BLOCK: u64 = 0b01;
const TABLE: u64 = 0b11;
/// Attribute 0 of `MAIR_EL1`: normal, write-back; inner shareable; accessed.
const NORMAL: u64 = 3 << 8 | 1 << 10 | 1 << 54;
/// Attribute 1: device; accessed; never executed.
const DEVICE: u64 = 1 << 2 | 1 << 10 | 1 << 54 | 1 << 53;
/// Attribute 2: normal, not cached; accessed; never executed.
const UNCACHED: u64 = 2 << 2 | 3 << 8 | 1 << 10 | 1 << 54 | 1 << 53;
const MAIR: u64 = 0x44 << 16 | 0x04 << 8 | 0xff;

/// Builds the map: GiB that hold RAM are normal memory, others device.
pub(crate) fn build(board: &Board) {
    for (n, entry) in (0..).zip(&ROOT.0) {
        let at = n * GIB;
        let ram = board.memory.iter().any(|r| r.start < at + GIB && r.end > at);
        // A plain store: atomics wait for the MMU.
        let value = at | BLOCK | if ram { NORMAL } else { DEVICE };
        // SAFETY: the CPU is alone, and nobody holds a reference to the value.
        unsafe { entry.as_ptr().write_volatile(value) };
    }
}

/// Switches the MMU and the caches of this CPU on.
pub(crate) fn enable() {
    let parange = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange).min(5);
    // 39 bits from TTBR0, 4 KiB granule, inner shareable write-back walks, no TTBR1.
    let tcr = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | parange << 32;
    MAIR_EL1.set(MAIR);
    barrier::isb(barrier::SY);
    // RES1 without the features that give the bits a meaning; then M, C, SA, I.
    let sctlr: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 3 | 1 << 12;
    // SAFETY: the map is the identity for all that the payload uses.
    unsafe {
        asm!(
            "msr tcr_el1, {tcr}",
            "msr ttbr0_el1, {root}",
            "dsb ishst",
            "isb",
            "tlbi vmalle1",
            "ic iallu",
            "dsb nsh",
            "isb",
            "msr sctlr_el1, {sctlr}",
            "isb",
            tcr = in(reg) tcr,
            root = in(reg) &raw const ROOT,
            sctlr = in(reg) sctlr,
        );
    }
}

/// Lets GiB number `gib` of the map be walked through a table in `page`, whose
/// entries are blocks of 2 MiB or tables.
pub fn set_table(gib: usize, page: u64) {
    replace(gib, page | TABLE);
}

/// Makes GiB number `gib` the identity again, as device memory.
pub fn clear_table(gib: usize) {
    replace(gib, (gib as u64 * GIB) | BLOCK | DEVICE);
}

/// A table entry for the page or table at `page`.
pub const fn table_entry(page: u64) -> u64 {
    page | TABLE
}

/// A level-2 entry that maps the block at `block` as normal memory.
pub const fn block_entry(block: u64) -> u64 {
    block | BLOCK | NORMAL
}

/// A level-2 entry that maps the block at `block` as normal memory that is not cached.
pub const fn uncached_block_entry(block: u64) -> u64 {
    block | BLOCK | UNCACHED
}

/// A level-2 entry that maps the block at `block` as device memory.
pub const fn device_block_entry(block: u64) -> u64 {
    block | BLOCK | DEVICE
}

/// A level-3 entry that maps the page at `page` as normal memory.
pub const fn page_entry(page: u64) -> u64 {
    page | 0b11 | NORMAL
}

fn replace(gib: usize, entry: u64) {
    // Break before make.
    for value in [0, entry] {
        ROOT.0[gib].store(value, Ordering::SeqCst);
        flush_tlb();
    }
}

/// Forgets all translations, on all CPUs.
pub fn flush_tlb() {
    // SAFETY: translations are only read again from the tables.
    unsafe { asm!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb") };
}

/// Makes instructions written to `at..at + size` visible to fetches, and data
/// to observers whose caches are off.
pub fn clean(at: u64, size: u64) {
    for line in (at..at + size).step_by(16) {
        // SAFETY: cleaning changes no contents.
        unsafe { asm!("dc civac, {}", in(reg) line) };
    }
    // SAFETY: as above; instructions are fetched anew.
    unsafe { asm!("dsb ish", "ic ialluis", "dsb ish", "isb") };
}

/// All words of `at..at + size`, or-ed and exclusive-or-ed together, as this CPU reads them
/// with its MMU and caches off.
pub fn digest_without_mmu(at: u64, size: u64) -> [u64; 2] {
    let (or, xor): (u64, u64);
    // SAFETY: the map is the identity, so the instructions go on where they are. The
    // loop accesses no memory but what it reads, and that is the test's.
    unsafe {
        asm!(
            "mrs {sctlr}, sctlr_el1",
            // M and C.
            "bic {off}, {sctlr}, #(1 << 2)",
            "bic {off}, {off}, #1",
            "dsb sy",
            "msr sctlr_el1, {off}",
            "isb",
            "2: ldr {word}, [{at}], #8",
            "orr {or}, {or}, {word}",
            "eor {xor}, {xor}, {word}",
            "cmp {at}, {end}",
            "b.ne 2b",
            "dsb sy",
            "msr sctlr_el1, {sctlr}",
            "isb",
            sctlr = out(reg) _,
            off = out(reg) _,
            word = out(reg) _,
            at = inout(reg) at => _,
            end = in(reg) at + size,
            or = inout(reg) 0u64 => or,
            xor = inout(reg) 0u64 => xor,
        );
    }
    [or, xor]
}

/// A call to EL2 with this CPU's MMU and caches off: `x` holds X0 to X7, before and after.
/// Returns `SCTLR_EL1` as it was set for the call, and as it was found after it.
pub fn call_without_mmu(x: &mut [u64; 8]) -> [u64; 2] {
    let (set, found): (u64, u64);
    // SAFETY: the map is the identity, so the instructions go on where they are. They
    // access no memory; what the call changes is listed (DEN0028, "Register use in AArch64
    // SMC and HVC calls").
    unsafe {
        asm!(
            "mrs x20, sctlr_el1",
            // M and C.
            "bic x21, x20, #(1 << 2)",
            "bic x21, x21, #1",
            "dsb sy",
            "msr sctlr_el1, x21",
            "isb",
            "hvc #0",
            "mrs x22, sctlr_el1",
            "dsb sy",
            "msr sctlr_el1, x20",
            "isb",
            inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3],
            inout("x4") x[4], inout("x5") x[5], inout("x6") x[6], inout("x7") x[7],
            out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
            out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            out("x20") _, out("x21") set, out("x22") found,
        );
    }
    [set, found]
}
