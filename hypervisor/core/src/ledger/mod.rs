// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ledger: state, owner and borrower of each page of RAM.
//!
//! RAM is recorded in 2 MiB blocks. A block whose frames are all alike has one
//! record. When a part of it changes its state, the block is split: each of its 512
//! frames has a record of its own until all are alike again, in any state. The
//! memory for all records is set aside at boot, so a split cannot fail.
//!
//! # In memory
//!
//! A block's cell ([`BlockCell`]) points to its frames' records and to the host's
//! level-3 table for them. The cells of a GiB are an array ([`Gib`]), and a directory has
//! an entry for each GiB. So a block is found by its address in two loads, however
//! many banks of RAM there are and wherever they are. The largest piece of
//! contiguous memory that this needs is a GiB's cells or the
//! directory.
//!
//! # Locks
//!
//! Each block has a lock. It covers the block's record, its frames' records
//! and the host's stage-2 entries for it, so calls on different memory do not
//! wait for each other. A call takes the locks of several blocks in ascending order,
//! and after those of VMs.
//!
//! A frame that a VM borrows or owns changes its record only under that VM's lock,
//! or both VMs', the one with the lower number first.

mod block_lock;
mod record;

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use escrow_abi::FrameState;
use escrow_nospec as nospec;

use crate::addr::{BLOCK_SIZE, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr, PhysRange};
use crate::stage2::{HostBlock, HostGib};
pub use block_lock::TicketLock;
pub use record::{GuestId, Record, VmId};

/// RAM ranges that a machine may have, after adjacent ones are merged.
pub const MAX_RANGES: usize = 64;

/// Bytes that a [`Gib`] stands for.
pub(crate) const GIB_SIZE: u64 = 1 << 30;
/// Blocks in a GiB.
pub(crate) const BLOCKS_PER_GIB: usize = (GIB_SIZE / BLOCK_SIZE) as usize;
/// [`Frames`] that a block has.
pub(crate) const FRAMES_PER_BLOCK: usize = 1 + cfg!(feature = "oracle") as usize;
/// Bits of a physical address.
const ADDRESS_BITS: u32 = 48;

/// The records of a block's frames.
pub type Frames = [AtomicU64; PAGES_PER_BLOCK];

/// The data of one block. It fills a cache line, so that CPUs that work on
/// neighbouring blocks do not share one (false sharing). All zeros is a block that
/// is no RAM.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct BlockCell {
    record: AtomicU64,
    lock: TicketLock,
    /// `None` if it is no RAM.
    frames: Option<&'static Frames>,
    host: HostBlock,
    #[cfg(feature = "oracle")]
    shadow: Option<&'static Frames>,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<BlockCell>() == 64);

/// The data of a GiB that has RAM. All zeros is one that has none.
#[derive(Debug)]
pub struct Gib {
    blocks: [BlockCell; BLOCKS_PER_GIB],
    host: HostGib,
}

impl Default for Gib {
    fn default() -> Gib {
        Gib { blocks: core::array::from_fn(|_| BlockCell::default()), host: HostGib::default() }
    }
}

impl Gib {
    /// The host's map of it.
    #[inline]
    pub(crate) fn host(&self) -> &HostGib {
        &self.host
    }
}

/// Where each GiB's cells are; GiB 0 is first.
pub type Directory = &'static [Option<&'static Gib>];

/// Memory that is set aside at boot, for good. It may be in pieces.
pub trait Reserve {
    /// A directory of so many entries, all `None`.
    fn directory(&mut self, gibs: usize) -> Option<&'static mut [Option<&'static Gib>]>;

    /// The data of one GiB, all zeros.
    fn gib(&mut self) -> Option<&'static mut Gib>;

    /// Room for frames' records, with any contents: for as many blocks as there
    /// are side by side, at least one and at most `blocks`.
    fn frames(&mut self, blocks: usize) -> Option<&'static [Frames]>;

    /// Pages for tables, with any contents: as many as there are side by side,
    /// at least one and at most `pages`. The address of the first, and how many.
    fn tables(&mut self, pages: usize) -> Option<(PhysAddr, usize)>;

    /// `count` adjacent zeroed pages, aligned to their size rounded up to a power
    /// of two.
    fn zeroed(&mut self, count: usize) -> Option<PhysAddr>;
}

/// A block of RAM.
#[derive(Clone, Copy)]
pub struct Block {
    cell: &'static BlockCell,
    frames: &'static Frames,
}

impl Block {
    /// The block of a cell; `None` if it is no RAM.
    #[inline(always)]
    fn of(cell: &'static BlockCell) -> Option<Block> {
        Some(Block { cell, frames: cell.frames? })
    }

    /// Takes the block's lock. Waiters get it in the order in which they came.
    #[inline(always)]
    pub fn lock(&self) {
        self.cell.lock.lock();
    }

    /// Gives the block's lock back.
    #[inline(always)]
    pub fn unlock(&self) {
        self.cell.lock.unlock();
    }

    /// Reads without the lock. `None` if a CPU held the lock meanwhile, so the result may be
    /// inconsistent.
    #[inline(always)]
    pub fn read<T>(&self, read: impl FnOnce() -> T) -> Option<T> {
        self.cell.lock.read(read)
    }

    /// The block's record.
    #[inline(always)]
    pub fn record(&self) -> Record {
        Record::from_bits(self.cell.record.load(Ordering::Relaxed))
    }

    /// Writes it. Needs the lock.
    #[inline(always)]
    pub fn set_record(&self, record: Record) {
        self.cell.record.store(record.bits(), Ordering::Relaxed);
    }

    /// The own record of a frame of the block, for when it is split.
    #[inline(always)]
    pub fn frame(&self, at: PhysAddr) -> &'static AtomicU64 {
        &self.frames[page_in_block(at)]
    }

    /// The host's table of it.
    #[inline(always)]
    pub(crate) fn host(&self) -> &'static HostBlock {
        &self.cell.host
    }

    /// Beside each frame's record, what the specification says of the frame.
    #[cfg(feature = "oracle")]
    pub(crate) fn shadow(&self) -> Option<&'static Frames> {
        self.cell.shadow
    }
}

impl PartialEq for Block {
    fn eq(&self, other: &Block) -> bool {
        core::ptr::eq(self.cell, other.cell)
    }
}

impl Eq for Block {}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:?})", self.record())
    }
}

/// Blocks that lie one after the other.
#[derive(Clone, Copy, Debug)]
struct Region {
    base: u64,
    size: u64,
}

/// RAM as blocks: sorted, disjoint, whole blocks that cover all of RAM.
#[derive(Clone, Debug, Default)]
pub struct RamMap {
    regions: ArrayVec<Region, MAX_RANGES>,
}

/// Why RAM cannot be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamError {
    /// More than [`MAX_RANGES`] separate ranges.
    TooManyRanges,
    /// A range that wraps around, or lies above 2^48.
    OutOfRange,
    /// No RAM at all.
    None,
}

impl RamMap {
    /// Describes RAM. The ranges may come in any order, touch and overlap;
    /// what is no whole page at their edges is left out.
    pub fn new(ram: &[PhysRange]) -> Result<RamMap, RamError> {
        let mut covers: ArrayVec<(u64, u64), MAX_RANGES> = ArrayVec::new();
        for range in ram {
            let Some((base, end)) = whole_pages(range)? else { continue };
            let cover = (base & !(BLOCK_SIZE - 1), end.next_multiple_of(BLOCK_SIZE));
            let at = covers.partition_point(|c| c.0 <= cover.0);
            covers.try_insert(at, cover).map_err(|_| RamError::TooManyRanges)?;
            merge_touching(&mut covers);
        }
        let mut map = RamMap::default();
        for (base, end) in covers {
            map.regions.push(Region { base, size: end - base });
        }
        if map.regions.is_empty() { Err(RamError::None) } else { Ok(map) }
    }

    /// Blocks of RAM, partly covered ones included.
    pub fn blocks(&self) -> usize {
        self.regions.iter().map(|r| (r.size / BLOCK_SIZE) as usize).sum()
    }

    /// GiB that have RAM.
    pub fn gibs(&self) -> usize {
        let mut next = 0;
        let count = |r: &Region| {
            let (first, end) = ((r.base / GIB_SIZE).max(next), r.end().div_ceil(GIB_SIZE));
            next = end;
            end.saturating_sub(first) as usize
        };
        self.regions.iter().map(count).sum()
    }

    /// Entries of a directory of this RAM.
    pub fn directory(&self) -> usize {
        self.end().div_ceil(GIB_SIZE) as usize
    }

    /// The end of the last block.
    pub fn end(&self) -> u64 {
        self.regions.last().map_or(0, Region::end)
    }

    /// Block-aligned ranges that together cover RAM, in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.regions.iter().map(|r| PhysRange::new(r.base, r.size))
    }
}

impl Region {
    fn end(&self) -> u64 {
        self.base + self.size
    }
}

/// The whole pages of a range as `(base, end)`; `None` if there are none.
fn whole_pages(range: &PhysRange) -> Result<Option<(u64, u64)>, RamError> {
    let end = range.base.0.checked_add(range.size).ok_or(RamError::OutOfRange)?;
    if end > 1 << ADDRESS_BITS {
        return Err(RamError::OutOfRange);
    }
    let base = range.base.0.next_multiple_of(PAGE_SIZE);
    let end = end & !(PAGE_SIZE - 1);
    Ok((base < end).then_some((base, end)))
}

fn merge_touching(covers: &mut ArrayVec<(u64, u64), MAX_RANGES>) {
    let mut i = 1;
    while i < covers.len() {
        if covers[i].0 <= covers[i - 1].1 {
            covers[i - 1].1 = covers[i - 1].1.max(covers[i].1);
            covers.remove(i);
        } else {
            i += 1;
        }
    }
}

/// The records of all RAM.
pub struct Ledger {
    ram: RamMap,
    directory: Directory,
}

impl Ledger {
    /// A ledger in which every page of `ram` is the host's. `None` if there is
    /// not enough memory for it.
    pub fn new(map: RamMap, ram: &[PhysRange], reserve: &mut dyn Reserve) -> Option<Ledger> {
        let directory = reserve.directory(map.directory())?;
        let mut supply = Supply { blocks: map.blocks() * FRAMES_PER_BLOCK, ready: &[] };
        for (number, slot) in (0u64..).zip(&mut *directory) {
            let whole = PhysRange::new(number * GIB_SIZE, GIB_SIZE);
            let parts = || map.ranges().filter_map(|range| intersection(&range, &whole));
            if parts().next().is_none() {
                continue;
            }
            let gib = reserve.gib()?;
            for part in parts() {
                let first = ((part.base.0 - whole.base.0) / BLOCK_SIZE) as usize;
                let count = (part.size / BLOCK_SIZE) as usize;
                for cell in gib.blocks.get_mut(first..first + count)? {
                    cell.frames = Some(supply.next(reserve)?);
                    #[cfg(feature = "oracle")]
                    (cell.shadow = Some(supply.next(reserve)?));
                }
            }
            *slot = Some(gib);
        }
        let ledger = Ledger { ram: map, directory };
        ledger.mark_edges(ram);
        Some(ledger)
    }

    /// Marks the frames of edge blocks that no RAM range covers.
    fn mark_edges(&self, ram: &[PhysRange]) {
        let covered = |at: u64| {
            ram.iter().any(|r| matches!(whole_pages(r), Ok(Some((b, e))) if b <= at && at < e))
        };
        for range in ram {
            let Ok(Some((base, end))) = whole_pages(range) else { continue };
            for edge in [base, end] {
                if edge & (BLOCK_SIZE - 1) == 0 {
                    continue;
                }
                let block = edge & !(BLOCK_SIZE - 1);
                for page in (block..block + BLOCK_SIZE).step_by(PAGE_SIZE as usize) {
                    if !covered(page) && self.get(PhysAddr(page)) == Some(Record::HOME) {
                        self.set(PhysAddr(page), Record::NO_RAM);
                    }
                }
            }
        }
    }

    /// RAM as blocks.
    pub fn ram(&self) -> &RamMap {
        &self.ram
    }

    /// Counts the pages in a state, one by one: not for use at run time.
    pub fn count(&self, state: FrameState) -> u64 {
        let in_block = |block: Block| match self.records(block) {
            Records::Whole(record) => record.is(state) as u64 * PAGES_PER_BLOCK as u64,
            Records::Split(frames) => {
                frames.iter().filter(|frame| load(frame).is(state)).count() as u64
            }
        };
        self.blocks().map(in_block).sum()
    }

    /// Where each GiB's cells are.
    pub(crate) fn directory(&self) -> Directory {
        self.directory
    }

    /// All blocks of RAM, in ascending order.
    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        let cells = self.directory.iter().flatten().flat_map(|gib| &gib.blocks);
        cells.filter_map(Block::of)
    }

    /// The block that an address lies in; `None` outside RAM.
    #[inline(always)]
    pub fn locate(&self, at: PhysAddr) -> Option<Block> {
        let gib = (*nospec::get(self.directory, (at.0 / GIB_SIZE) as usize)?)?;
        Block::of(&gib.blocks[(at.0 / BLOCK_SIZE) as usize % BLOCKS_PER_GIB])
    }

    /// Takes a block's lock.
    #[inline(always)]
    pub fn lock(&self, block: Block) {
        block.lock();
    }

    /// Gives a block's lock back.
    #[inline(always)]
    pub fn unlock(&self, block: Block) {
        block.unlock();
    }

    /// The record of the frame at an address; `None` outside RAM.
    #[inline]
    pub fn get(&self, at: PhysAddr) -> Option<Record> {
        self.locate(at).map(|block| self.get_in(block, at))
    }

    /// The record of the frame at an address in a block.
    #[inline]
    pub fn get_in(&self, block: Block, at: PhysAddr) -> Record {
        self.records(block).get(page_in_block(at))
    }

    /// The records of a block.
    #[inline(always)]
    pub fn records(&self, block: Block) -> Records {
        let record = block.record();
        match record.split_away() {
            None => Records::Whole(record),
            Some(_) => Records::Split(block.frames),
        }
    }

    /// The record of a whole block; `None` if its frames have records of their own. The frames then
    /// differ: each call that makes them alike ends in a merge
    /// ([`HostMap::merge`](crate::stage2::HostMap::merge)). Only a change to broken memory does
    /// not, as no call can name such frames.
    #[inline(always)]
    pub fn record_of(&self, block: Block) -> Option<Record> {
        match self.records(block) {
            Records::Whole(record) => Some(record),
            Records::Split(_) => None,
        }
    }

    /// The record that a whole block has or could be merged into; `None` if its frames differ.
    pub fn whole_block(&self, block: Block) -> Option<Record> {
        let records = self.records(block);
        let first = records.get(0);
        (records.alike(0, PAGES_PER_BLOCK) == PAGES_PER_BLOCK).then_some(first)
    }

    /// Whether the block's frames have records of their own.
    #[inline]
    pub fn is_split(&self, block: Block) -> bool {
        block.record().split_away().is_some()
    }

    /// How many frames of a block are not at home.
    pub fn away(&self, block: Block) -> u64 {
        let record = block.record();
        match record.split_away() {
            Some(away) => away,
            None if record == Record::HOME => 0,
            None => PAGES_PER_BLOCK as u64,
        }
    }

    /// Gives each frame of a block a record of its own. Needs the block's lock.
    pub fn split(&self, block: Block) {
        let record = block.record();
        if record.split_away().is_some() {
            return;
        }
        let step = record.has_guest_address() as u64;
        let mut bits = record.bits();
        for frames in block.frames.as_chunks::<UNROLLED>().0 {
            for (n, frame) in (0u64..).zip(frames) {
                frame.store(bits + n * step, Ordering::Relaxed);
            }
            bits += UNROLLED as u64 * step;
        }
        let away = if record == Record::HOME { 0 } else { PAGES_PER_BLOCK as u64 };
        block.set_record(Record::split(away));
    }

    /// Lets one record stand for a whole block. Needs the block's lock.
    #[inline]
    pub fn set_block(&self, block: Block, record: Record) {
        block.set_record(record);
    }

    /// Whether every frame of a block is at home, and it is not split.
    #[inline(always)]
    pub fn is_home(&self, block: Block) -> bool {
        block.record() == Record::HOME
    }

    /// Writes the records of `pages` frames of a split block, from the `first`
    /// on: `record` and what follows it ([`Record::nth`]). Needs the block's lock.
    #[inline(always)]
    pub fn set_frames(&self, block: Block, first: usize, pages: usize, record: Record) {
        let Some(frames) = block.frames.get(first..first + pages) else { return };
        let home = |bits: u64| (bits == Record::HOME.bits()) as u64;
        let mut were_home = 0;
        let step = record.has_guest_address() as u64;
        let mut bits = record.bits();
        for frame in frames {
            were_home += home(frame.load(Ordering::Relaxed));
            frame.store(bits, Ordering::Relaxed);
            bits += step;
        }
        let are_home = home(record.bits()) * pages as u64;
        let away = block.record().split_away().unwrap_or(0);
        block.set_record(Record::split(away + were_home - are_home));
    }

    /// [`Self::set_frames`] for frames that are all at home and a record that is not
    /// [`Record::HOME`]. Returns whether none of the block's frames is at home afterwards.
    #[inline(always)]
    pub fn leave_home(&self, block: Block, first: usize, pages: usize, record: Record) -> bool {
        let Some(frames) = block.frames.get(first..first + pages) else {
            return false;
        };
        let step = record.has_guest_address() as u64;
        let mut bits = record.bits();
        for frame in frames {
            frame.store(bits, Ordering::Relaxed);
            bits += step;
        }
        let split = Record::from_bits(block.record().bits() + pages as u64);
        block.set_record(split);
        split == Record::split(PAGES_PER_BLOCK as u64)
    }

    /// Writes the record of one frame, splitting its block if need be. Needs
    /// the block's lock. Does nothing outside RAM.
    pub fn set(&self, at: PhysAddr, record: Record) {
        if let Some(block) = self.locate(at) {
            self.split(block);
            self.set_frames(block, page_in_block(at), 1, record);
        }
    }
}

/// Words that are written in one round of a loop.
const UNROLLED: usize = 8;

/// Room for frames' records, as it is dealt out.
struct Supply {
    /// For how many blocks it is still wanted.
    blocks: usize,
    ready: &'static [Frames],
}

impl Supply {
    fn next(&mut self, reserve: &mut dyn Reserve) -> Option<&'static Frames> {
        if self.ready.is_empty() {
            self.ready = reserve.frames(self.blocks)?;
        }
        let (next, rest) = self.ready.split_first()?;
        self.ready = rest;
        self.blocks = self.blocks.saturating_sub(1);
        Some(next)
    }
}

/// What two ranges have in common; `None` if nothing.
fn intersection(one: &PhysRange, other: &PhysRange) -> Option<PhysRange> {
    let base = one.base.max(other.base);
    let size = one.end().min(other.end()).checked_sub(base.0)?;
    (size > 0).then_some(PhysRange { base, size })
}

/// What the ledger says of a block's frames.
#[derive(Clone, Copy)]
pub enum Records {
    /// One stands for all.
    Whole(Record),
    /// Each frame has its own.
    Split(&'static Frames),
}

impl Records {
    /// The record of a frame.
    #[inline(always)]
    pub fn get(&self, page: usize) -> Record {
        match self {
            Records::Whole(record) => record.nth(page as u64),
            Records::Split(frames) => load(&frames[page % PAGES_PER_BLOCK]),
        }
    }

    /// How many of `pages` frames, from the `first` on, are alike: in one state,
    /// of one owner and one borrower, at adjacent guest addresses. At least 1.
    #[inline]
    pub fn alike(&self, first: usize, pages: usize) -> usize {
        let Records::Split(frames) = self else { return pages };
        let Some(frames) = frames.get(first..first + pages) else { return 1 };
        let Some(start) = frames.first().map(load) else { return 1 };
        let step = start.has_guest_address() as u64;
        let mut expected = start.bits();
        let alike = frames.iter().take_while(|frame| {
            let same = frame.load(Ordering::Relaxed) == expected;
            expected += step;
            same
        });
        alike.count()
    }

    /// How many frames, from the `first` on to the end of the block, are in one state and
    /// of one owner, whoever borrows them. At least 1.
    pub fn held_alike(&self, first: usize) -> usize {
        let first = first % PAGES_PER_BLOCK;
        let Records::Split(frames) = self else { return PAGES_PER_BLOCK - first };
        let start = load(&frames[first]);
        let is_alike = |frame: &&AtomicU64| {
            let record = load(frame);
            record.state() == start.state() && record.owner() == start.owner()
        };
        frames[first..].iter().take_while(is_alike).count()
    }

    /// Whether the frames around `pages` alike ones, from the `first` on, are alike as well,
    /// up to the ends of the block. It compares from the inside out: while a range is changed page by
    /// page, a neighbour of the last page mostly differs still, so the first comparison fails.
    pub fn go_on_around(&self, first: usize, pages: usize) -> bool {
        let Records::Split(frames) = self else { return true };
        let start = load(&frames[first % PAGES_PER_BLOCK]);
        let step = start.has_guest_address() as u64;
        let bits = |page: usize| {
            start.bits().wrapping_add((page as u64).wrapping_sub(first as u64).wrapping_mul(step))
        };
        let is_alike = |page: usize| load(&frames[page]).bits() == bits(page);
        let (mut before, mut behind) = ((0..first).rev(), first + pages..PAGES_PER_BLOCK);
        loop {
            match (before.next(), behind.next()) {
                (None, None) => return true,
                (left, right) if left.into_iter().chain(right).all(is_alike) => {}
                _ => return false,
            }
        }
    }

    /// The first of `pages` frames, from `first` on, that is not at home.
    #[inline(always)]
    pub fn first_away(&self, first: usize, pages: usize) -> Option<usize> {
        match self {
            Records::Whole(Record::HOME) => None,
            Records::Whole(_) => Some(0),
            Records::Split(frames) => frames
                .get(first..first + pages)?
                .iter()
                .position(|frame| frame.load(Ordering::Relaxed) != Record::HOME.bits()),
        }
    }
}

#[inline(always)]
fn load(frame: &AtomicU64) -> Record {
    Record::from_bits(frame.load(Ordering::Relaxed))
}

/// Which page of its block an address lies in.
#[inline]
pub const fn page_in_block(at: PhysAddr) -> usize {
    (at.0 / PAGE_SIZE) as usize % PAGES_PER_BLOCK
}

#[cfg(test)]
mod tests;
