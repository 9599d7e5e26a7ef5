// SPDX-License-Identifier: MIT OR Apache-2.0

//! What runs before the MMU is on, or when it never will be.
//!
//! Memory is device memory here: no atomic instructions, no locks. (The
//! target's code makes no unaligned accesses anyway.)

use core::mem::MaybeUninit;

use escrow_platform::board::{Console, Outline};
use escrow_platform::fdt::{Fdt, FdtError, HEADER_SIZE};
use escrow_platform::range::Range;
use escrow_platform::uart::{Pl011, Uart};

use crate::console::{LAST_RESORT, fatal_unlocked, halt};
use crate::image;
use crate::mmu::{CpuStart, El2Map, MapError, Use};

/// What the half of boot before the MMU leaves for the half after it.
/// `entry.S` makes room for it and knows that `start` is first.
#[repr(C, align(16))]
pub struct Early {
    /// What the boot CPU loads to switch the MMU on.
    pub start: CpuStart,
    /// The map so far: image and device tree.
    pub stage1: El2Map,
    /// Where the device tree is.
    pub tree: Result<Range, TreeError>,
}

/// Why there is no looking at the device tree.
#[derive(Clone, Copy, Debug)]
pub enum TreeError {
    /// The boot loader gave none.
    Absent,
    /// Its address is not a multiple of 8.
    Misaligned(u64),
    /// What is there is none.
    Broken(FdtError),
    /// It is where this CPU cannot reach it.
    Unreachable(MapError),
}

impl core::fmt::Display for TreeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            TreeError::Absent => f.write_str("no device tree (x0 is 0)"),
            TreeError::Misaligned(at) => {
                write!(f, "the device tree's address {at:#x} is no multiple of 8")
            }
            TreeError::Broken(error) => write!(f, "broken device tree: {error}"),
            TreeError::Unreachable(error) => write!(f, "cannot map the device tree: {error}"),
        }
    }
}

/// Where a tree at `at` lies, by its header.
///
/// # Safety
///
/// A tree's header at `at` must be safe to read, if it is not 0.
unsafe fn locate_tree(at: u64) -> Result<Range, TreeError> {
    if at == 0 {
        return Err(TreeError::Absent);
    }
    if !at.is_multiple_of(8) {
        return Err(TreeError::Misaligned(at));
    }
    let header = core::ptr::with_exposed_provenance::<[u8; HEADER_SIZE]>(at as usize);
    // SAFETY: by the boot protocol the address in x0 is that of a tree in RAM.
    let size = Fdt::size(unsafe { &*header }).map_err(TreeError::Broken)?;
    Range::with_size(at, size as u64).ok_or(TreeError::Broken(FdtError::BadHeader))
}

/// Makes a map of the image and the device tree, called by `entry.S`.
///
/// # Safety
///
/// Only `entry.S` calls this, once, with the MMU off; `tree` is what the boot
/// loader passed.
#[unsafe(no_mangle)]
unsafe extern "C" fn map_early(early: &mut MaybeUninit<Early>, tree: u64) {
    let Ok(mut stage1) = El2Map::new(image::early_tables()) else { halt() };
    let parts = [
        (image::text(), Use::Code),
        (image::rodata(), Use::ReadOnly),
        (image::data(), Use::Data),
        (image::stack(), Use::Data),
    ];
    for (range, usage) in parts {
        // SAFETY: the parts of the image, used for what the linker put there.
        if unsafe { stage1.map(range, usage) }.is_err() {
            halt();
        }
    }
    // SAFETY: the caller passes what the boot loader did.
    let tree = unsafe { locate_tree(tree) }.and_then(|range| {
        // In pages even where blocks would do: what comes later must find it at
        // the size that it has then.
        // SAFETY: RAM that is nobody else's; what of it is the image's keeps
        // its rights, and `read_tree` finds it out.
        unsafe { map_pages(&mut stage1, range, Use::Data) }.map_err(TreeError::Unreachable)?;
        Ok(range)
    });
    early.write(Early { start: stage1.cpu_start(), stage1, tree });
}

/// Maps memory page by page; what of it is the image's stays as it is.
///
/// # Safety
///
/// As for [`El2Map::map`].
pub unsafe fn map_pages(stage1: &mut El2Map, range: Range, usage: Use) -> Result<(), MapError> {
    let range = range.aligned_out(crate::mmu::PAGE).ok_or(MapError::OutOfReach)?;
    let mut at = range.start;
    while at < range.end {
        let page = Range::new(at, at + crate::mmu::PAGE);
        if !page.overlaps(&image::whole()) {
            // SAFETY: as the caller says.
            unsafe { stage1.map(page, usage) }?;
        }
        at = page.end;
    }
    Ok(())
}

/// The tree in a range.
///
/// # Safety
///
/// The range must be memory that can be read and written, and nobody else's
/// for as long as the tree is in use.
pub unsafe fn read_tree(range: Range) -> Result<Fdt<'static>, FdtError> {
    // What is left of the image's last block may hold the tree, the image
    // itself may not.
    if range.overlaps(&image::whole()) {
        return Err(FdtError::BadHeader);
    }
    let start = core::ptr::with_exposed_provenance_mut::<u8>(range.start as usize);
    // SAFETY: as the caller says, and it is not the image's.
    Fdt::open(unsafe { core::slice::from_raw_parts_mut(start, range.size() as usize) })
}

/// The UART that a tree names, for use without the MMU.
fn uart_without_mmu(tree: u64) -> Option<Uart> {
    // SAFETY: what the boot loader passed; memory is readable without the MMU,
    // and nobody else runs.
    let fdt = unsafe { locate_tree(tree).ok().and_then(|range| read_tree(range).ok()) };
    match fdt {
        Some(fdt) => {
            let Console { registers, kind } = Console::find(&Outline::of(&fdt))?;
            // SAFETY: the tree says that such a port is there, and without the MMU
            // everything is device memory.
            Some(unsafe { Uart::new(kind, registers.start as usize) })
        }
        None => last_resort_without_mmu(),
    }
}

/// Finds a UART without a tree and without the MMU, on a machine that is about
/// to halt.
fn last_resort_without_mmu() -> Option<Uart> {
    LAST_RESORT.into_iter().find_map(|at| {
        // SAFETY: device memory without the MMU; reading what may be a PL011's
        // identification.
        let uart = unsafe { Pl011::new(at as usize) };
        uart.is_present().then(|| uart.into())
    })
}

/// Entered at another exception level than EL2, called by `entry.S`.
#[unsafe(no_mangle)]
extern "C" fn entered_elsewhere(tree: u64, level: u64) -> ! {
    fatal_unlocked(
        uart_without_mmu(tree),
        format_args!("Escrow was entered at EL{level}; it has to be entered at EL2"),
    )
}

/// A CPU whose EL2 always has the host extensions, called by `entry.S`.
#[unsafe(no_mangle)]
extern "C" fn no_plain_el2(tree: u64) -> ! {
    fatal_unlocked(
        uart_without_mmu(tree),
        format_args!("this CPU lacks FEAT_E2H0: its EL2 is VHE only"),
    )
}

/// An exception before the vectors of `escrow-aarch64` are in place. The MMU is
/// off, at the latest since `entry.S`'s vectors.
#[unsafe(no_mangle)]
extern "C" fn boot_exception(esr: u64, far: u64, elr: u64) -> ! {
    let offset = elr.wrapping_sub(image::whole().start);
    fatal_unlocked(
        last_resort_without_mmu(),
        format_args!(
            "exception while starting, as if x0 were no device tree's address: ESR {esr:#x}, \
             FAR {far:#x}, PC image+{offset:#x}"
        ),
    )
}

/// Finds a console on a machine without a device tree.
///
/// # Safety
///
/// Only for a machine that is about to halt: it reads where there may be
/// nothing.
pub unsafe fn last_resort(stage1: &mut El2Map) -> Option<Uart> {
    LAST_RESORT.into_iter().find_map(|at| {
        let registers = Range::with_size(at, crate::mmu::PAGE)?;
        // SAFETY: nothing else is at that address: RAM is not mapped yet.
        unsafe { stage1.map(registers, Use::Device) }.ok()?;
        // SAFETY: mapped as device memory, and read only, as far as it is not
        // known to be a PL011.
        let uart = unsafe { Pl011::new(at as usize) };
        uart.is_present().then(|| uart.into())
    })
}

// What `entry.S` relies on.
const _: () = assert!(core::mem::offset_of!(Early, start) == 0);
const _: () = assert!(size_of::<Early>().is_multiple_of(16));
