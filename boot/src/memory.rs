// SPDX-License-Identifier: MIT OR Apache-2.0

//! Escrow's working memory, and the map of all RAM.

use core::ptr::NonNull;

use escrow_core::addr::PhysRange;
use escrow_platform::board::{MAX_CPUS, MAX_RAM, MAX_RESERVED};
use escrow_platform::range::{Full, Range, RangeSet, align_up};

use crate::image;
use crate::mmu::{El2Map, MapError, PAGE, Table, Use};

/// Bytes of a secondary CPU's stack.
pub const STACK_SIZE: u64 = 32 << 10;

/// Separate ranges of RAM after what must not be mapped is taken out.
const MAX_MAPPED: usize = MAX_RAM + MAX_RESERVED + MAX_CPUS + 2;

/// Free memory that is given away piece by piece, from the bottom, for good.
pub struct Arena {
    free: Range,
}

impl Arena {
    /// Takes a range of mapped memory.
    ///
    /// # Safety
    ///
    /// The memory is nobody else's from now on.
    pub unsafe fn new(range: Range) -> Self {
        Arena { free: range }
    }

    /// `size` bytes at a multiple of `align`, a power of two, with any
    /// contents. `None` if there is not so much left.
    pub fn take(&mut self, size: u64, align: u64) -> Option<NonNull<u8>> {
        let start = align_up(self.free.start, align)?;
        let taken = Range::with_size(start, size).filter(|taken| self.free.contains(taken))?;
        self.free.start = taken.end;
        NonNull::new(core::ptr::with_exposed_provenance_mut(taken.start as usize))
    }

    /// As [`Self::take`], zeroed.
    pub fn take_zeroed(&mut self, size: u64, align: u64) -> Option<NonNull<u8>> {
        let start = self.take(size, align)?;
        // SAFETY: `start` begins `size` bytes that are this caller's alone.
        unsafe { start.write_bytes(0, size as usize) };
        Some(start)
    }

    /// `count` zeroed values that live for ever.
    ///
    /// # Safety
    ///
    /// All zeros must be a value of `T`.
    pub unsafe fn zeroed_slice<T>(&mut self, count: usize) -> Option<&'static mut [T]> {
        let size = size_of::<T>().checked_mul(count)?;
        let start = self.take_zeroed(size as u64, align_of::<T>() as u64)?;
        // SAFETY: fresh memory of the right size and alignment, and zeros are
        // values, as the caller says.
        Some(unsafe { core::slice::from_raw_parts_mut(start.cast().as_ptr(), count) })
    }

    /// `count` values with any contents that live for ever.
    ///
    /// # Safety
    ///
    /// Any bytes must be a value of `T`.
    pub unsafe fn raw_slice<T>(&mut self, count: usize) -> Option<&'static mut [T]> {
        let size = size_of::<T>().checked_mul(count)?;
        let start = self.take(size as u64, align_of::<T>() as u64)?;
        // SAFETY: as above, for any contents. RAM is initialised as far as the
        // compiler is concerned: it does not know where it comes from.
        Some(unsafe { core::slice::from_raw_parts_mut(start.cast().as_ptr(), count) })
    }
}

/// Tables for a map of this many separate ranges: at each of its ends, a range
/// may need a table of levels 1, 2 and 3 of its own.
pub const fn tables_for(ranges: usize) -> usize {
    6 * (ranges + 4)
}

/// Maps all RAM that EL2 may touch.
///
/// The image is mapped already, and keeps its own rights; guard pages and what
/// firmware forbids to map are left out. `working` is Escrow's working memory:
/// its begin becomes tables, and what is left is returned.
///
/// # Errors
///
/// See [`MapError`].
///
/// # Safety
///
/// The ranges are RAM that only EL2 uses for now, and `working` is nobody's.
pub unsafe fn map_ram(
    stage1: &mut El2Map,
    ram: &RangeSet<MAX_RAM>,
    no_map: &RangeSet<MAX_RESERVED>,
    working: Range,
    cpus: usize,
) -> Result<(Arena, Stacks), MapError> {
    let full = |Full| MapError::NoTables;
    let stacks_size = (STACK_SIZE + PAGE) * cpus as u64;
    let tables = tables_for(ram.as_slice().len() + no_map.as_slice().len() + cpus);
    let pool = Range::new(working.start, working.start + tables as u64 * PAGE);
    let stacks = Range::new(pool.end, pool.end + stacks_size);
    if !working.contains(&stacks) {
        return Err(MapError::NoTables);
    }
    // The tables of the first map are few: enough for this.
    // SAFETY: working memory, as data.
    unsafe { stage1.map(pool, Use::Data) }?;
    let first = core::ptr::with_exposed_provenance::<Table>(pool.start as usize);
    // SAFETY: just mapped, for nothing else, and any words are a table.
    stage1.add_tables(unsafe { core::slice::from_raw_parts(first, tables) })?;

    let mut mapped = RangeSet::<MAX_MAPPED>::new();
    for range in ram {
        mapped.insert(*range).map_err(full)?;
    }
    for range in no_map {
        mapped.remove(range.aligned_out(PAGE).ok_or(MapError::OutOfReach)?).map_err(full)?;
    }
    let image = image::whole();
    mapped.remove(image).map_err(full)?;
    let stacks = Stacks { bottom: stacks.start, count: cpus };
    for cpu in 0..cpus {
        let guard = stacks.guard(cpu);
        mapped.remove(guard).map_err(full)?;
    }
    for range in &mapped {
        // SAFETY: RAM, as data. What was mapped before are whole pages of the
        // device tree, the kernel's head and the tables; rights only grow.
        unsafe { stage1.map(inner_pages(*range), Use::Data) }?;
    }
    flush_tlb();
    // SAFETY: the part of working memory that is not tables or stacks.
    let arena = unsafe { Arena::new(Range::new(stacks.bottom + stacks_size, working.end)) };
    Ok((arena, stacks))
}

/// The whole pages inside a range: RAM that shares a page with something else
/// is nothing that EL2 needs.
fn inner_pages(range: Range) -> Range {
    match align_up(range.start, PAGE) {
        Some(start) => Range::new(start, range.end & !(PAGE - 1)),
        None => Range::default(),
    }
}

/// Removes what this CPU's TLB holds of EL2's map (Arm ARM, "TLB maintenance
/// instructions": complete after a DSB). No other CPU runs yet.
fn flush_tlb() {
    // SAFETY: the map translates everything in use as before, or with more
    // rights.
    unsafe {
        core::arch::asm!("dsb nshst", "tlbi alle2", "dsb nsh", "isb", options(nostack));
    }
}

/// The stacks of secondary CPUs, each above a guard page.
#[derive(Clone, Copy)]
pub struct Stacks {
    bottom: u64,
    count: usize,
}

impl Stacks {
    fn guard(&self, cpu: usize) -> Range {
        let start = self.bottom + (STACK_SIZE + PAGE) * cpu as u64;
        Range::new(start, start + PAGE)
    }

    /// The upper end of a CPU's stack.
    pub fn top(&self, cpu: usize) -> Option<u64> {
        (cpu < self.count).then(|| self.guard(cpu).end + STACK_SIZE)
    }
}

/// A range in the terms of `escrow-core`.
pub fn phys(range: &Range) -> PhysRange {
    PhysRange::new(range.start, range.size())
}
