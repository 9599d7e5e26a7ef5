// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ledger: who holds each page of RAM.
//!
//! RAM is counted in 2 MiB blocks. A block whose frames are all alike is one
//! record; when a part of it changes hands, it is split, and each of its 512
//! frames has a record of its own until all are back where they began. The
//! memory of all records is set aside at boot, so a split cannot fail.
//!
//! # Locks
//!
//! Each block has a lock. It covers the block's record, its frames' records
//! and the host's stage-2 entries for it, so calls on different memory do not
//! wait for each other. Whoever takes several takes them in ascending order,
//! and after a VM's lock if it needs one.
//!
//! A frame that a VM borrows or owns changes its record only under that VM's lock,
//! or both VMs', the one with the lower number first.

mod block_lock;
mod record;

use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use escrow_abi::FrameState;

use crate::addr::{BLOCK_SIZE, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr, PhysRange};
use block_lock::TicketLock;
pub use record::{Record, VmId};

/// RAM ranges that a machine may have, after adjacent ones are merged.
pub const MAX_RANGES: usize = 32;

/// The ledger's hold on one block. 16 bytes; all zeros is an unlocked block
/// that is the host's.
#[derive(Debug, Default)]
pub struct BlockCell {
    record: AtomicU64,
    lock: TicketLock,
}

impl BlockCell {
    /// Takes the block's lock. Waiters get it in the order in which they came.
    #[inline(always)]
    pub fn lock(&self) {
        self.lock.lock();
    }

    /// Gives the block's lock back.
    #[inline(always)]
    pub fn unlock(&self) {
        self.lock.unlock();
    }

    /// Reads without the lock; `None` if somebody had it meanwhile, and the result
    /// is worth nothing.
    #[inline(always)]
    pub fn read<T>(&self, read: impl FnOnce() -> T) -> Option<T> {
        self.lock.read(read)
    }

    /// The block's record.
    #[inline(always)]
    pub fn record(&self) -> Record {
        Record::from_bits(self.record.load(Ordering::Relaxed))
    }

    /// Writes it. Needs the lock.
    #[inline(always)]
    pub fn set_record(&self, record: Record) {
        self.record.store(record.bits(), Ordering::Relaxed);
    }
}

/// A block, as an index over all blocks of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockIndex(u32);

impl BlockIndex {
    /// The index as a number.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Blocks that lie one after the other.
#[derive(Clone, Copy, Debug)]
struct Region {
    base: u64,
    size: u64,
    first: u32,
}

/// RAM as blocks: sorted, disjoint, whole blocks that cover all of RAM.
#[derive(Clone, Debug, Default)]
pub struct RamMap {
    regions: ArrayVec<Region, MAX_RANGES>,
    blocks: u32,
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
            let size = end - base;
            map.regions.push(Region { base, size, first: map.blocks });
            map.blocks += (size / BLOCK_SIZE) as u32;
        }
        if map.blocks == 0 { Err(RamError::None) } else { Ok(map) }
    }

    /// Blocks of RAM, partly covered ones included.
    pub fn blocks(&self) -> usize {
        self.blocks as usize
    }

    /// The block that an address lies in; `None` outside RAM.
    #[inline]
    pub fn locate(&self, at: PhysAddr) -> Option<BlockIndex> {
        for region in &self.regions {
            let offset = at.0.wrapping_sub(region.base);
            if offset < region.size {
                return Some(BlockIndex(region.first + (offset / BLOCK_SIZE) as u32));
            }
        }
        None
    }

    /// Block-aligned ranges that together cover RAM, in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.regions.iter().map(|r| PhysRange::new(r.base, r.size))
    }
}

/// The whole pages of a range as `(base, end)`; `None` if there are none.
fn whole_pages(range: &PhysRange) -> Result<Option<(u64, u64)>, RamError> {
    let end = range.base.0.checked_add(range.size).ok_or(RamError::OutOfRange)?;
    if end > 1 << 48 {
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

/// What the ledger has of one block.
#[derive(Clone, Copy)]
pub struct Located {
    /// Which block it is.
    pub index: BlockIndex,
    /// The ledger's hold on it.
    pub cell: &'static BlockCell,
    frames: &'static [AtomicU64; PAGES_PER_BLOCK],
}

impl Located {
    /// The own record of a frame of the block, for when it is split.
    #[inline(always)]
    pub fn frame(&self, at: PhysAddr) -> &'static AtomicU64 {
        &self.frames[page_in_block(at)]
    }
}

/// The records of the largest region, which most addresses lie in.
struct Main {
    base: u64,
    first: u32,
    blocks: &'static [BlockCell],
    frames: &'static [[AtomicU64; PAGES_PER_BLOCK]],
}

/// The records of all RAM.
pub struct Ledger {
    ram: RamMap,
    main: Main,
    blocks: &'static [BlockCell],
    frames: &'static [[AtomicU64; PAGES_PER_BLOCK]],
}

impl Ledger {
    /// A ledger in which every page of `ram` is the host's.
    ///
    /// `blocks` holds [`RamMap::blocks`] zeroed cells, `frames` 512 times as
    /// many words with any contents. `None` if either is too short.
    pub fn new(
        map: RamMap,
        ram: &[PhysRange],
        blocks: &'static [BlockCell],
        frames: &'static [AtomicU64],
    ) -> Option<Ledger> {
        let blocks = blocks.get(..map.blocks())?;
        let frames = frames.as_chunks().0.get(..map.blocks())?;
        let region = map.regions.iter().max_by_key(|region| region.size)?;
        let range =
            region.first as usize..region.first as usize + (region.size / BLOCK_SIZE) as usize;
        let main = Main {
            base: region.base,
            first: region.first,
            blocks: blocks.get(range.clone())?,
            frames: frames.get(range)?,
        };
        let ledger = Ledger { ram: map, main, blocks, frames };
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
        let in_block = |block: u32| match self.records(BlockIndex(block)) {
            Records::Whole(record) => record.is(state) as u64 * PAGES_PER_BLOCK as u64,
            Records::Split(frames) => {
                frames.iter().filter(|frame| load(frame).is(state)).count() as u64
            }
        };
        (0..self.ram.blocks).map(in_block).sum()
    }

    /// The block that an address in the largest region of RAM lies in: all that
    /// the shortest ways of calls care about.
    #[inline(always)]
    pub fn locate_main(&self, at: PhysAddr) -> Option<Located> {
        let Main { base, first, blocks, frames } = &self.main;
        let n = at.0.wrapping_sub(*base) / BLOCK_SIZE;
        let cell = blocks.get(n as usize)?;
        Some(Located { index: BlockIndex(first + n as u32), cell, frames: frames.get(n as usize)? })
    }

    /// The ledger's hold on a block.
    #[inline(always)]
    pub fn cell(&self, block: BlockIndex) -> &'static BlockCell {
        &self.blocks[block.get()]
    }

    /// Takes a block's lock.
    #[inline(always)]
    pub fn lock(&self, block: BlockIndex) {
        self.cell(block).lock();
    }

    /// Gives a block's lock back.
    #[inline(always)]
    pub fn unlock(&self, block: BlockIndex) {
        self.cell(block).unlock();
    }

    /// The record of the frame at an address; `None` outside RAM.
    #[inline]
    pub fn get(&self, at: PhysAddr) -> Option<Record> {
        self.ram.locate(at).map(|block| self.get_in(block, at))
    }

    /// The record of the frame at an address in a block.
    #[inline]
    pub fn get_in(&self, block: BlockIndex, at: PhysAddr) -> Record {
        self.records(block).get(page_in_block(at))
    }

    /// The records of a block.
    #[inline(always)]
    pub fn records(&self, block: BlockIndex) -> Records {
        let record = self.block_record(block);
        match record.split_away() {
            None => Records::Whole(record),
            Some(_) => Records::Split(&self.frames[block.get()]),
        }
    }

    /// The record that stands for a whole block; `None` if its frames differ.
    pub fn whole_block(&self, block: BlockIndex) -> Option<Record> {
        let records = self.records(block);
        let first = records.get(0);
        (records.alike(0, PAGES_PER_BLOCK) == PAGES_PER_BLOCK).then_some(first)
    }

    /// Whether the block's frames have records of their own.
    #[inline]
    pub fn is_split(&self, block: BlockIndex) -> bool {
        self.block_record(block).split_away().is_some()
    }

    /// How many frames of a block are not at home.
    pub fn away(&self, block: BlockIndex) -> u64 {
        let record = self.block_record(block);
        match record.split_away() {
            Some(away) => away,
            None if record == Record::HOME => 0,
            None => PAGES_PER_BLOCK as u64,
        }
    }

    /// Gives each frame of a block a record of its own. Needs the block's lock.
    pub fn split(&self, block: BlockIndex) {
        let record = self.block_record(block);
        if record.split_away().is_some() {
            return;
        }
        for (n, frame) in (0u64..).zip(&self.frames[block.get()]) {
            frame.store(record.nth(n).bits(), Ordering::Relaxed);
        }
        let away = if record == Record::HOME { 0 } else { PAGES_PER_BLOCK as u64 };
        self.set_block_record(block, Record::split(away));
    }

    /// Lets one record stand for a whole block. Needs the block's lock.
    #[inline]
    pub fn set_block(&self, block: BlockIndex, record: Record) {
        self.set_block_record(block, record);
    }

    /// Whether every frame of a block is at home, and it is not split.
    #[inline(always)]
    pub fn is_home(&self, block: BlockIndex) -> bool {
        self.block_record(block) == Record::HOME
    }

    /// Writes the records of `pages` frames of a split block, from the `first`
    /// on: `record` and what follows it ([`Record::nth`]). Needs the block's lock.
    #[inline(always)]
    pub fn set_frames(&self, block: BlockIndex, first: usize, pages: usize, record: Record) {
        let Some(frames) = self.frames[block.get()].get(first..first + pages) else { return };
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
        let away = self.block_record(block).split_away().unwrap_or(0);
        self.set_block_record(block, Record::split(away + were_home - are_home));
    }

    /// Does what [`Self::set_frames`] does, for frames that are all at home and
    /// a record that is not. Whether none of the block's frames is at home then.
    #[inline(always)]
    pub fn leave_home(
        &self,
        block: BlockIndex,
        first: usize,
        pages: usize,
        record: Record,
    ) -> bool {
        let Some(frames) = self.frames[block.get()].get(first..first + pages) else {
            return false;
        };
        let step = record.has_guest_address() as u64;
        let mut bits = record.bits();
        for frame in frames {
            frame.store(bits, Ordering::Relaxed);
            bits += step;
        }
        let split = Record::from_bits(self.block_record(block).bits() + pages as u64);
        self.set_block_record(block, split);
        split == Record::split(PAGES_PER_BLOCK as u64)
    }

    /// Writes the record of one frame, splitting its block if need be. Needs
    /// the block's lock. Does nothing outside RAM.
    pub fn set(&self, at: PhysAddr, record: Record) {
        if let Some(block) = self.ram.locate(at) {
            self.split(block);
            self.set_frames(block, page_in_block(at), 1, record);
        }
    }

    #[inline(always)]
    fn block_record(&self, block: BlockIndex) -> Record {
        self.cell(block).record()
    }

    #[inline(always)]
    fn set_block_record(&self, block: BlockIndex, record: Record) {
        self.cell(block).set_record(record);
    }
}

/// The records of a block's frames.
#[derive(Clone, Copy)]
pub enum Records {
    /// One stands for all.
    Whole(Record),
    /// Each frame has its own.
    Split(&'static [AtomicU64; PAGES_PER_BLOCK]),
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
