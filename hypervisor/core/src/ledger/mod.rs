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
//! A frame that a VM borrows changes its record only under that VM's lock.

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

/// The records of all RAM.
pub struct Ledger {
    ram: RamMap,
    blocks: &'static [BlockCell],
    frames: &'static [AtomicU64],
    pages: [AtomicU64; FrameState::ALL.len()],
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
        let frames = frames.get(..map.blocks() * PAGES_PER_BLOCK)?;
        let ledger = Ledger { ram: map, blocks, frames, pages: Default::default() };
        ledger.count(Record::HOME, (ledger.frames.len()) as u64);
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

    /// 4 KiB pages in a state.
    pub fn pages(&self, state: FrameState) -> u64 {
        self.pages[state as usize].load(Ordering::Relaxed)
    }

    /// Takes a block's lock. Waiters get it in the order in which they came.
    #[inline]
    pub fn lock(&self, block: BlockIndex) {
        self.blocks[block.get()].lock.lock();
    }

    /// Gives a block's lock back.
    #[inline]
    pub fn unlock(&self, block: BlockIndex) {
        self.blocks[block.get()].lock.unlock();
    }

    /// The record of the frame at an address; `None` outside RAM.
    #[inline]
    pub fn get(&self, at: PhysAddr) -> Option<Record> {
        self.ram.locate(at).map(|block| self.get_in(block, at))
    }

    /// The record of the frame at an address in a block.
    #[inline]
    pub fn get_in(&self, block: BlockIndex, at: PhysAddr) -> Record {
        let record = self.block_record(block);
        let page = page_in_block(at);
        match record.split_away() {
            None => record.nth(page as u64),
            Some(_) => self.frame(block, page),
        }
    }

    /// The record that stands for a whole block; `None` if its frames differ.
    pub fn whole_block(&self, block: BlockIndex) -> Option<Record> {
        let record = self.block_record(block);
        if record.split_away().is_none() {
            return Some(record);
        }
        let first = self.frame(block, 0);
        let alike = (1..PAGES_PER_BLOCK).all(|n| self.frame(block, n) == first.nth(n as u64));
        alike.then_some(first)
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
        let first = block.get() * PAGES_PER_BLOCK;
        let Some(frames) = self.frames.get(first..first + PAGES_PER_BLOCK) else { return };
        for (n, frame) in (0u64..).zip(frames) {
            frame.store(record.nth(n).bits(), Ordering::Relaxed);
        }
        let away = if record == Record::HOME { 0 } else { PAGES_PER_BLOCK as u64 };
        self.set_block_record(block, Record::split(away));
    }

    /// Lets one record stand for a whole block. Needs the block's lock.
    pub fn set_block(&self, block: BlockIndex, record: Record) {
        match self.block_record(block).split_away() {
            None => self.count_change(self.block_record(block), record, PAGES_PER_BLOCK as u64),
            Some(_) => {
                for n in 0..PAGES_PER_BLOCK {
                    self.count_change(self.frame(block, n), record, 1);
                }
            }
        }
        self.set_block_record(block, record);
    }

    /// Whether every frame of a block is at home, and it is not split.
    #[inline]
    pub fn is_home(&self, block: BlockIndex) -> bool {
        self.block_record(block) == Record::HOME
    }

    /// Whether a frame of a split block is at home.
    #[inline]
    pub fn is_frame_home(&self, block: BlockIndex, page: usize) -> bool {
        self.frame(block, page) == Record::HOME
    }

    /// Writes the records of frames of a split block that are all at home, and
    /// that go into one state. Needs the block's lock. Does once what
    /// [`Self::set_in`] does for each frame.
    #[inline]
    pub fn leave_home(
        &self,
        block: BlockIndex,
        state: FrameState,
        frames: impl Iterator<Item = (usize, Record)>,
    ) {
        let first = block.get() * PAGES_PER_BLOCK;
        let Some(records) = self.frames.get(first..first + PAGES_PER_BLOCK) else { return };
        let mut left = 0;
        for (page, record) in frames {
            records[page % PAGES_PER_BLOCK].store(record.bits(), Ordering::Relaxed);
            left += 1;
        }
        let away = self.block_record(block).split_away().unwrap_or(0);
        self.set_block_record(block, Record::split(away + left));
        self.pages[FrameState::Owned as usize].fetch_sub(left, Ordering::Relaxed);
        self.pages[state as usize].fetch_add(left, Ordering::Relaxed);
    }

    /// Writes the record of one frame, splitting its block if need be. Needs
    /// the block's lock. Does nothing outside RAM.
    pub fn set(&self, at: PhysAddr, record: Record) {
        if let Some(block) = self.ram.locate(at) {
            self.set_in(block, at, record);
        }
    }

    /// Writes the record of one frame of a block, splitting it if need be.
    /// Needs the block's lock.
    #[inline]
    pub fn set_in(&self, block: BlockIndex, at: PhysAddr, record: Record) {
        let page = page_in_block(at);
        let mut whole = self.block_record(block);
        if whole.split_away().is_none() {
            self.split(block);
            whole = self.block_record(block);
        }
        let old = self.frame(block, page);
        let away = whole.split_away().unwrap_or(0) + (record != Record::HOME) as u64
            - (old != Record::HOME) as u64;
        self.set_frame(block, page, record);
        self.set_block_record(block, Record::split(away));
        self.count_change(old, record, 1);
    }

    #[inline]
    fn block_record(&self, block: BlockIndex) -> Record {
        Record::from_bits(self.blocks[block.get()].record.load(Ordering::Relaxed))
    }

    #[inline]
    fn set_block_record(&self, block: BlockIndex, record: Record) {
        self.blocks[block.get()].record.store(record.bits(), Ordering::Relaxed);
    }

    #[inline]
    fn frame(&self, block: BlockIndex, page: usize) -> Record {
        let at = block.get() * PAGES_PER_BLOCK + page;
        Record::from_bits(self.frames[at].load(Ordering::Relaxed))
    }

    #[inline]
    fn set_frame(&self, block: BlockIndex, page: usize, record: Record) {
        let at = block.get() * PAGES_PER_BLOCK + page;
        self.frames[at].store(record.bits(), Ordering::Relaxed);
    }

    #[inline]
    fn count_change(&self, old: Record, new: Record, pages: u64) {
        if let Some(state) = old.state() {
            self.pages[state as usize].fetch_sub(pages, Ordering::Relaxed);
        }
        self.count(new, pages);
    }

    #[inline]
    fn count(&self, record: Record, pages: u64) {
        if let Some(state) = record.state() {
            self.pages[state as usize].fetch_add(pages, Ordering::Relaxed);
        }
    }
}

/// Which page of its block an address lies in.
#[inline]
pub fn page_in_block(at: PhysAddr) -> usize {
    (at.0 / PAGE_SIZE) as usize % PAGES_PER_BLOCK
}

#[cfg(test)]
mod tests;
