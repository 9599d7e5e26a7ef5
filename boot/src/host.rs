// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host: its kernel in place, its device tree written.

use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, Readable};
use escrow_platform::board::{Board, Module};
use escrow_platform::fdt::Fdt;
use escrow_platform::host_tree::Changes;
use escrow_platform::image::{HEAD_SIZE, KernelImage};
use escrow_platform::layout::Layout;
use escrow_platform::range::Range;

use crate::console::fatal;
use crate::early;
use crate::mmu::{El2Map, Use};

/// Reads the header of the host's kernel, before all RAM is mapped.
pub fn read_image(kernel: &Module<'_>, stage1: &mut El2Map) -> KernelImage {
    let start = kernel.range.start;
    let head = Range::new(start, start + kernel.range.size().min(HEAD_SIZE));
    // SAFETY: RAM that only EL2 uses for now; that it is not the image's is
    // checked in there.
    if let Err(error) = unsafe { early::map_pages(stage1, head, Use::ReadOnly) } {
        fatal!("cannot map the host's kernel: {error}");
    }
    // SAFETY: mapped just now, and nobody writes there yet.
    let head = unsafe { bytes(head) };
    let image =
        KernelImage::parse(head, kernel.range.size()).unwrap_or_else(|error| fatal!("{error}"));
    if let Some(size) = image.page_size
        && !has_page_size(size)
    {
        fatal!("this CPU lacks the {} KiB pages that the host's kernel needs", size >> 10);
    }
    image
}

/// Whether stage 1 of EL1 has pages of this size.
fn has_page_size(size: u64) -> bool {
    let features = ID_AA64MMFR0_EL1.extract();
    match size {
        0x1000 => features.read(ID_AA64MMFR0_EL1::TGran4) != 0xf,
        0x4000 => features.read(ID_AA64MMFR0_EL1::TGran16) != 0,
        _ => features.read(ID_AA64MMFR0_EL1::TGran64) != 0xf,
    }
}

/// Moves the kernel if it has to be, and writes the host's device tree.
///
/// # Safety
///
/// Only EL2 runs, and what `layout` gives to the host is free.
pub unsafe fn prepare(board: &Board<'_>, fdt: &Fdt<'_>, layout: &Layout, stage1: &mut El2Map) {
    let kernel = board.kernel.range;
    let mut map = |range| {
        // SAFETY: the host's RAM, which only EL2 uses for now.
        if let Err(error) = unsafe { stage1.map(range, Use::Data) } {
            fatal!("cannot map {range}: {error}");
        }
    };
    if layout.kernel.start != kernel.start {
        map(kernel);
        map(Range::new(layout.kernel.start, layout.kernel.start + kernel.size()));
        crate::mmu::flush_tlb();
        log::info!("moving the host's kernel to {:#x}", layout.kernel.start);
        // SAFETY: source and destination are RAM, the latter free.
        unsafe {
            let from = core::ptr::with_exposed_provenance::<u8>(kernel.start as usize);
            let to = core::ptr::with_exposed_provenance_mut::<u8>(layout.kernel.start as usize);
            core::ptr::copy(from, to, kernel.size() as usize);
        }
        // The host begins with its caches off.
        let moved = Range::new(layout.kernel.start, layout.kernel.start + kernel.size());
        clean(moved);
        // What it executes may be in an instruction cache as what was there
        // before (Arm ARM, "Concurrent modification and execution").
        // SAFETY: cache upkeep changes nothing that code can see.
        unsafe {
            core::arch::asm!("ic ialluis", "dsb ish", "isb", options(nostack));
        }
    }
    let changes = Changes {
        escrow: &layout.escrow(),
        ramdisk: board.ramdisk.map(|module| module.range),
        arguments: board.kernel.arguments,
    };
    map(layout.host_tree);
    // SAFETY: free RAM of that size.
    let out = unsafe { bytes_mut(layout.host_tree) };
    if let Err(error) = changes.write(fdt, out) {
        fatal!("cannot write the host's device tree: {error}");
    }
    clean(layout.host_tree);
}

/// Writes the data cache back to memory, for who reads without caches (Arm
/// ARM, "Terms used in cache maintenance": the point of coherency; complete
/// after a DSB).
pub fn clean(range: Range) {
    let ctr: u64;
    // SAFETY: reads an identification register.
    unsafe { core::arch::asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack)) };
    // DminLine, as the logarithm of a number of words.
    let line = 4u64 << (ctr >> 16 & 0xf);
    let mut at = range.start & !(line - 1);
    while at < range.end {
        // SAFETY: cleaning changes nothing that code can see, at an address
        // that is mapped.
        unsafe { core::arch::asm!("dc cvac, {}", in(reg) at, options(nostack)) };
        at += line;
    }
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
}

/// Memory as bytes.
///
/// # Safety
///
/// The range is mapped to be read, and nobody writes there for as long as the
/// bytes are in use.
unsafe fn bytes(range: Range) -> &'static [u8] {
    let start = core::ptr::with_exposed_provenance(range.start as usize);
    // SAFETY: as the caller says.
    unsafe { core::slice::from_raw_parts(start, range.size() as usize) }
}

/// Memory as bytes, to be written.
///
/// # Safety
///
/// The range is mapped to be written, and nobody else uses it for as long as
/// the bytes are in use.
unsafe fn bytes_mut(range: Range) -> &'static mut [u8] {
    let start = core::ptr::with_exposed_provenance_mut(range.start as usize);
    // SAFETY: as the caller says.
    unsafe { core::slice::from_raw_parts_mut(start, range.size() as usize) }
}
