// SPDX-License-Identifier: MIT OR Apache-2.0

//! Escrow's working memory, and the map of all RAM.

use core::ptr::NonNull;

use arrayvec::ArrayVec;
use escrow_aarch64::{BLOCK_WINDOWS, El2Tables, PAGE_WINDOWS, STACK_SIZE};
use escrow_core::addr::{PhysAddr, PhysRange};
use escrow_core::ledger::{Frames, Gib, Reserve};
use escrow_platform::board::{MAX_CPUS, MAX_RAM, MAX_RESERVED};
use escrow_platform::layout::Working;
use escrow_platform::range::{Full, Range, RangeSet, align_up};

use crate::mmu::{El2Map, MapError, PAGE, Table, Use, flush_tlb};

/// Separate ranges of RAM after what must not be mapped is taken out.
const MAX_MAPPED: usize = MAX_RAM + MAX_RESERVED + STACKS * MAX_CPUS + 2;

/// Free memory that is given away for good: from the bottom of its pieces, the
/// first one with room.
pub struct Arena {
    free: Working,
}

impl Arena {
    /// Takes pieces of mapped memory.
    ///
    /// # Safety
    ///
    /// The memory is nobody else's from now on.
    pub unsafe fn new(pieces: Working) -> Self {
        Arena { free: pieces }
    }

    /// `size` bytes at a multiple of `align`, a power of two, with any
    /// contents. `None` if there is not so much left.
    pub fn take(&mut self, size: u64, align: u64) -> Option<NonNull<u8>> {
        self.free.iter_mut().find_map(|free| {
            let taken = Range::with_size(align_up(free.start, align)?, size)?;
            if !free.contains(&taken) {
                return None;
            }
            free.start = taken.end;
            NonNull::new(core::ptr::with_exposed_provenance_mut(taken.start as usize))
        })
    }

    /// As many pages as there are side by side in the first piece that has any, at
    /// most `count`, with any contents; and how many they are.
    pub fn take_pages(&mut self, count: usize) -> Option<(NonNull<u8>, usize)> {
        let pages = |free: &Range| (inner_pages(*free).size() / PAGE) as usize;
        let pages = self.free.iter().map(pages).find(|&pages| pages > 0)?.min(count);
        Some((self.take(pages as u64 * PAGE, PAGE)?, pages))
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
}

/// A page of records.
const _: () = assert!(size_of::<Frames>() as u64 == PAGE);

impl Reserve for Arena {
    fn directory(&mut self, gibs: usize) -> Option<&'static mut [Option<&'static Gib>]> {
        // SAFETY: zeros are `None` of a reference.
        unsafe { self.zeroed_slice(gibs) }
    }

    fn gib(&mut self) -> Option<&'static mut Gib> {
        // SAFETY: numbers, and `None` of references: zeros are one.
        unsafe { self.zeroed_slice(1) }?.first_mut()
    }

    fn frames(&mut self, blocks: usize) -> Option<&'static [Frames]> {
        let (start, pages) = self.take_pages(blocks)?;
        // SAFETY: fresh pages, each of which is as large as `Frames` is, and any
        // words are records. RAM is initialised as far as the compiler is
        // concerned: it does not know where it comes from.
        Some(unsafe { core::slice::from_raw_parts(start.cast().as_ptr(), pages) })
    }

    fn tables(&mut self, pages: usize) -> Option<(PhysAddr, usize)> {
        let (start, pages) = self.take_pages(pages)?;
        Some((address(start), pages))
    }

    fn zeroed(&mut self, count: usize) -> Option<PhysAddr> {
        let size = count as u64 * PAGE;
        Some(address(self.take_zeroed(size, size.next_power_of_two())?))
    }
}

/// Where memory is: all of it is mapped to its own address.
fn address(start: NonNull<u8>) -> PhysAddr {
    PhysAddr(start.as_ptr().expose_provenance() as u64)
}

/// Tables for a map of this many separate ranges, on a machine with so many GiB of
/// RAM: at each of its ends, a range may need a table of levels 1, 2 and 3 of its own.
/// Each GiB of RAM has one of level 2 for the metadata that may come to be there, and
/// the windows have four.
pub const fn tables_for(ranges: usize, gibs: usize) -> usize {
    6 * (ranges + 4) + gibs + 4
}

/// Stacks of a CPU: its own, and the one for its guests.
pub const STACKS: usize = 2;

/// Bytes of the stacks of so many CPUs, with their guard pages.
pub const fn stacks_size(cpus: usize) -> u64 {
    (STACK_SIZE + PAGE) * (STACKS * cpus) as u64
}

/// Maps Escrow's own memory: of RAM, EL2 maps nothing else for longer than boot needs
/// it, but a VM's metadata while it is that.
///
/// The image is mapped already, and keeps its own rights; guard pages are left out.
/// `working` is Escrow's working memory: the beginning of its first piece becomes tables
/// and stacks, and what is left is returned.
///
/// # Errors
///
/// See [`MapError`].
///
/// # Safety
///
/// `working` is RAM that is nobody's.
pub unsafe fn map_own(
    stage1: &mut El2Map,
    tables: usize,
    mut working: Working,
    cpus: usize,
) -> Result<(Arena, Stacks), MapError> {
    let full = |Full| MapError::NoTables;
    let mut mapped = RangeSet::<MAX_MAPPED>::new();
    for piece in &working {
        mapped.insert(*piece).map_err(full)?;
    }
    let first = working.first_mut().ok_or(MapError::NoTables)?;
    let pool = Range::new(first.start, first.start + tables as u64 * PAGE);
    let stacks = Range::new(pool.end, pool.end + stacks_size(cpus));
    if !first.contains(&stacks) {
        return Err(MapError::NoTables);
    }
    first.start = stacks.end;
    // The tables of the first map are few: enough for this.
    // SAFETY: working memory, as data.
    unsafe { stage1.map(pool, Use::Data) }?;
    let first = core::ptr::with_exposed_provenance::<Table>(pool.start as usize);
    // SAFETY: just mapped, for nothing else, and any words are a table.
    stage1.add_tables(unsafe { core::slice::from_raw_parts(first, tables) })?;

    let stacks = Stacks { bottom: stacks.start, cpus };
    for stack in 0..STACKS * cpus {
        let guard = stacks.guard(stack);
        mapped.remove(guard).map_err(full)?;
    }
    for range in &mapped {
        // SAFETY: RAM, as data. What was mapped before are the tables.
        unsafe { stage1.map(inner_pages(*range), Use::Data) }?;
    }
    flush_tlb();
    // SAFETY: the part of working memory that is not tables or stacks.
    let arena = unsafe { Arena::new(working) };
    Ok((arena, stacks))
}

/// Prepares EL2's map for what is mapped in it while the host runs: windows, and
/// metadata anywhere in RAM, for which `arena` has a table for each block of RAM.
///
/// # Errors
///
/// [`MapError::NoTables`]
pub fn prepare_changes(
    stage1: &mut El2Map,
    arena: &mut Arena,
    ram: &RangeSet<MAX_RAM>,
    mut blocks: usize,
) -> Result<El2Tables, MapError> {
    const GIB: u64 = 1 << 30;
    for range in ram {
        // Metadata is mapped under its own address: it must not meet the windows.
        if range.end > PAGE_WINDOWS {
            return Err(MapError::OutOfReach);
        }
        for at in (range.start & !(GIB - 1)..range.end).step_by(GIB as usize) {
            stage1.table_of(at, 2)?;
        }
    }
    let mut spare = ArrayVec::new();
    while blocks > 0 {
        let (start, pages) = arena.take_pages(blocks).ok_or(MapError::NoTables)?;
        spare.try_push((address(start), pages)).map_err(|_| MapError::NoTables)?;
        blocks -= pages;
    }
    Ok(El2Tables {
        root: PhysAddr(stage1.root()),
        page: Use::Data.page(),
        block: Use::Data.block(),
        page_windows: PhysAddr(stage1.table_of(PAGE_WINDOWS, 3)?),
        block_windows: PhysAddr(stage1.table_of(BLOCK_WINDOWS, 2)?),
        spare,
    })
}

/// Takes out of EL2's map all RAM that is not Escrow's.
///
/// # Errors
///
/// See [`MapError`].
///
/// # Safety
///
/// Nothing uses that memory at EL2 any more.
pub unsafe fn leave_ram(
    stage1: &mut El2Map,
    ram: &RangeSet<MAX_RAM>,
    escrow: &[Range],
) -> Result<(), MapError> {
    let mut others = RangeSet::<MAX_MAPPED>::new();
    for range in ram {
        let whole = range.aligned_out(PAGE).ok_or(MapError::OutOfReach)?;
        others.insert(whole).map_err(|Full| MapError::NoTables)?;
    }
    for range in escrow {
        others.remove(*range).map_err(|Full| MapError::NoTables)?;
    }
    for range in &others {
        // SAFETY: as the caller says.
        unsafe { stage1.unmap(*range) }?;
    }
    Ok(())
}

/// The whole pages inside a range: RAM that shares a page with something else
/// is nothing that EL2 needs.
fn inner_pages(range: Range) -> Range {
    match align_up(range.start, PAGE) {
        Some(start) => Range::new(start, range.end & !(PAGE - 1)),
        None => Range::default(),
    }
}

/// The stacks of all CPUs, each above a guard page.
#[derive(Clone, Copy)]
pub struct Stacks {
    bottom: u64,
    cpus: usize,
}

impl Stacks {
    fn guard(&self, stack: usize) -> Range {
        let start = self.bottom + (STACK_SIZE + PAGE) * stack as u64;
        Range::new(start, start + PAGE)
    }

    /// The upper ends of a CPU's stacks: its own, and the one for its guests.
    pub fn tops(&self, cpu: usize) -> Option<[u64; STACKS]> {
        (cpu < self.cpus).then(|| [0, 1].map(|n| self.guard(STACKS * cpu + n).end + STACK_SIZE))
    }
}

/// A range in the terms of `escrow-core`.
pub fn phys(range: &Range) -> PhysRange {
    PhysRange::new(range.start, range.size())
}
