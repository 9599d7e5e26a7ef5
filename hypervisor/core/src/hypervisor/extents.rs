// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a call works on once its list is copied: *extents*, pages that lie side by
//! side in memory and in the guest, in the order of the locks.

use core::ops::Range;

use arrayvec::ArrayVec;
use escrow_abi::{Error, LIST_MAX, MemEntry, Rights};

use super::Refusal;
use super::list::{ENTRIES_PER_PAGE, Expected};
use super::portions::{Looks, PORTION_BLOCKS, Part};
use crate::addr::{Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::ledger::{Block, Record, page_in_block};
use crate::stage2::{Room, Span};

/// Entries of a list that name pages side by side. Neither its frames nor its guest
/// addresses go beyond one block of 2 MiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub frame: PhysAddr,
    /// Address in the VM that gets it, with the rights in the low bits; 0 if
    /// none does.
    pub guest: u64,
    /// The calling guest's own address.
    pub own: Ipa,
    pub block: Block,
    /// 0 once its memory has failed: it is out of the call then.
    pub pages: u16,
    /// Place of its first entry in the caller's list.
    pub index: u16,
    /// It is one entry, for a block.
    pub is_block: bool,
    /// Where the guest has room for it.
    pub room: Room,
}

impl Extent {
    /// Address in the VM that gets it.
    #[inline(always)]
    pub fn guest(&self) -> Ipa {
        Ipa(self.guest & !(PAGE_SIZE - 1))
    }

    /// What the VM that gets it may do, as an index.
    #[inline(always)]
    pub fn rights(&self) -> usize {
        (self.guest % 8) as usize
    }

    /// The VM that gets it may read and write at the most.
    pub fn forbid_execution(&mut self) {
        const EXECUTE: u64 = (Rights::ALL.bits() - Rights::READ_WRITE.bits()) as u64;
        self.guest &= !EXECUTE;
    }

    /// Its pages at their addresses in the VM that gets them.
    #[inline(always)]
    pub fn span(&self) -> Span {
        Span { at: self.guest(), pages: self.pages.into(), is_block: self.is_block }
    }

    /// Its pages at the calling guest's addresses.
    pub fn own_span(&self) -> Span {
        Span { at: self.own, pages: self.pages.into(), is_block: self.is_block }
    }

    /// Bytes.
    #[inline(always)]
    pub fn size(&self) -> u64 {
        self.pages as u64 * PAGE_SIZE
    }

    /// Which page of its block it begins with.
    #[inline(always)]
    pub fn first(&self) -> usize {
        page_in_block(self.frame)
    }

    /// A refusal about its first entry.
    pub fn refuse(&self, error: Error, detail: u64) -> Refusal {
        self.refuse_page(0, error, detail)
    }

    /// A refusal about its `page`th page.
    pub fn refuse_page(&self, page: usize, error: Error, detail: u64) -> Refusal {
        let entry = if self.is_block { 0 } else { page as u64 };
        Refusal { error, index: self.index as u64 + entry, detail, done: 0 }
    }
}

/// Pages that a list lies in at the most.
const LIST_PAGES: usize = (LIST_MAX * size_of::<MemEntry>()) / PAGE_SIZE as usize;

/// Room for one list: each CPU has its own.
pub struct Scratch {
    /// Copies of entries, of one page of the list.
    copies: [[u64; 4]; ENTRIES_PER_PAGE as usize],
    extents: ArrayVec<Extent, LIST_MAX>,
    /// To sort by.
    keys: ArrayVec<u64, LIST_MAX>,
    /// Pages that the call has put out of use because their memory failed.
    pub(super) broken: u64,
    /// The extents are in the order of their frames, and none overlap.
    frames_sorted: bool,
    /// The same for their guest addresses.
    guests_sorted: bool,
    /// Where the last extent ends.
    frame_end: u64,
    guest_end: u64,
    /// The pages that the list itself lies in.
    list: ArrayVec<PhysAddr, LIST_PAGES>,
    /// The part of the list that was to be read.
    part: Part,
    /// At guests' tables, meanwhile.
    pub(super) looks: Looks,
    /// Pages in all extents.
    pages: u64,
    /// How often an extent is a block, or lies in another one than the extent before it.
    blocks: u64,
    /// Blocks that there is work on, as far as is known: `blocks` at the most.
    work: u64,
    /// The block of the last extent.
    last_block: Option<Block>,
    /// The place of the next entry in the caller's list, if that does not fit into this part.
    rest: Option<u16>,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

/// Bits for the place of an extent among 512.
const PLACE_BITS: u32 = 9;

impl Scratch {
    /// An empty one.
    pub const fn new() -> Scratch {
        Scratch {
            copies: [[0; 4]; ENTRIES_PER_PAGE as usize],
            extents: ArrayVec::new_const(),
            keys: ArrayVec::new_const(),
            broken: 0,
            frames_sorted: true,
            guests_sorted: true,
            frame_end: 0,
            guest_end: 0,
            list: ArrayVec::new_const(),
            part: Part::AT_ONCE,
            looks: Looks::ALL,
            pages: 0,
            blocks: 0,
            work: 0,
            last_block: None,
            rest: None,
        }
    }

    /// The extents.
    #[inline(always)]
    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The extents, to note in them where there is room for them.
    #[inline(always)]
    pub(super) fn extents_mut(&mut self) -> &mut [Extent] {
        &mut self.extents
    }

    /// The same, with the looks of this step.
    #[inline(always)]
    pub(super) fn extents_and_looks(&mut self) -> (&mut [Extent], &mut Looks) {
        (&mut self.extents, &mut self.looks)
    }

    /// The part of the list that they are of.
    #[inline(always)]
    pub(super) fn part(&self) -> Part {
        self.part
    }

    /// Puts the extents into the order of their frames, unless they are;
    /// refuses overlapping ones.
    #[inline(always)]
    pub(super) fn sort_by_frame(&mut self) -> Result<(), Refusal> {
        if !self.frames_sorted {
            self.sort_by(|extent| extent.frame.0)?;
            self.frames_sorted = true;
            self.guests_sorted = false;
        }
        Ok(())
    }

    /// Puts the extents into the order of their guest addresses, unless they
    /// are; refuses overlapping ones.
    #[inline(always)]
    pub(super) fn sort_by_guest(&mut self) -> Result<(), Refusal> {
        if !self.guests_sorted {
            self.sort_by(|extent| extent.guest().0)?;
            self.guests_sorted = true;
            self.frames_sorted = false;
        }
        Ok(())
    }

    /// Pages in all extents.
    #[inline(always)]
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Blocks that there is work on ([`PORTION_BLOCKS`]).
    #[inline(always)]
    pub(super) fn work(&self) -> u64 {
        self.work
    }

    /// Counts the blocks that there is work on, if that matters. The extents are in the
    /// order of their frames, their blocks are locked, and their pages were checked.
    #[inline(always)]
    pub(super) fn count_work(&mut self) {
        if self.blocks > PORTION_BLOCKS {
            self.work = self.blocks_with_work();
        }
    }

    /// There is none on a block that is split already, and stays so when pages leave it
    /// that were at home. Any other may be split, here or in a guest's map, or become whole.
    #[inline(never)]
    fn blocks_with_work(&self) -> u64 {
        let block_of = |one: &Extent, other: &Extent| one.block == other.block;
        let has_work = |extents: &&[Extent]| {
            let Some(first) = extents.first() else { return false };
            let pages: u64 = extents.iter().map(|extent| extent.pages as u64).sum();
            match first.block.record().split_away() {
                Some(away) => {
                    !Record::is_home(first.block.frame(first.frame))
                        || away + pages >= PAGES_PER_BLOCK as u64
                }
                None => true,
            }
        };
        self.extents.chunk_by(block_of).filter(has_work).count() as u64
    }

    /// Whether the list goes on and the part does not.
    #[inline(always)]
    pub(super) fn is_full(&self) -> bool {
        self.rest.is_some()
    }

    /// Where the list goes on behind the part.
    #[inline(always)]
    pub(super) fn rest(&self) -> Option<u64> {
        self.rest.map(u64::from)
    }

    /// The extent whose entry stands first in the caller's list.
    pub(super) fn first(&self) -> Option<&Extent> {
        self.extents.iter().min_by_key(|extent| extent.index)
    }

    /// Empties the scratch, to read a part of a list.
    #[inline(always)]
    pub(super) fn begin(&mut self, part: Part) {
        self.part = part;
        self.looks.again();
        self.pages = 0;
        self.blocks = 0;
        self.work = 0;
        self.last_block = None;
        self.rest = None;
        self.list.clear();
        self.extents.clear();
        self.frames_sorted = true;
        self.guests_sorted = true;
        self.frame_end = 0;
        self.guest_end = 0;
    }

    /// Notes that the list goes on in a page. Once for each.
    #[inline(always)]
    pub(super) fn lies_in(&mut self, page: PhysAddr) {
        // This cannot fail: the array has room for the pages of any list.
        let _ = self.list.try_push(page);
    }

    /// Room for copies of so many entries.
    #[inline(always)]
    pub(super) fn copies(&mut self, entries: usize) -> &mut [[u64; 4]] {
        self.copies.get_mut(..entries).unwrap_or_default()
    }

    /// Takes an entry that is in registers. Returns how many there are.
    #[inline(always)]
    pub(super) fn take_entry(&mut self, words: [u64; 4]) -> usize {
        self.copies[0] = words;
        1
    }

    /// A copied entry.
    #[inline(always)]
    pub(super) fn entry(&self, place: usize) -> [u64; 4] {
        // No valid entry is all ones.
        self.copies.get(place).copied().unwrap_or([!0; 4])
    }

    /// Refuses a list that lies in the pages that it names: what a call has done must not
    /// take its list away, if it is to be read again.
    pub(super) fn check_apart(&self) -> Result<(), Refusal> {
        let holds = |extent: &&Extent| {
            let inside = |page: &PhysAddr| page.0.wrapping_sub(extent.frame.0) < extent.size();
            self.list.iter().any(inside)
        };
        match self.extents.iter().filter(holds).min_by_key(|extent| extent.index) {
            Some(extent) => Err(extent.refuse(Error::Overlap, 0)),
            None => Ok(()),
        }
    }

    /// Adds an extent if it fits into the part. Returns whether it does.
    #[inline(always)]
    pub(super) fn push(&mut self, extent: Extent) -> bool {
        let pages = self.pages + extent.pages as u64;
        // An entry for a block counts as a new block, even if another entry has named it: such
        // a list is refused, but only after the whole part was checked.
        let is_new = extent.is_block || self.last_block != Some(extent.block);
        let blocks = self.blocks + u64::from(is_new);
        if !self.part.takes(pages, blocks) {
            self.rest = Some(extent.index);
            return false;
        }
        (self.pages, self.blocks, self.work) = (pages, blocks, blocks);
        self.last_block = Some(extent.block);
        self.frames_sorted &= extent.frame.0 >= self.frame_end;
        self.guests_sorted &= extent.guest().0 >= self.guest_end;
        self.set_ends(&extent);
        // This cannot fail for a list: the array has room for any.
        self.extents.try_push(extent).is_ok()
    }

    /// Adds pages behind the last extent to it: those of copied entries, as long as they
    /// are what comes next and the part takes them. Returns how many there are.
    #[inline(always)]
    pub(super) fn prolong(&mut self, places: Range<usize>, next: &mut Expected) -> usize {
        let Some(extent) = self.extents.last_mut() else { return 0 };
        let entries = self.copies.get(places).unwrap_or_default();
        let room = self.part.room(self.pages).min(entries.len() as u64);
        let pages = next.take(entries.get(..room as usize).unwrap_or_default());
        extent.pages += pages as u16;
        self.pages += pages;
        self.frame_end += pages * PAGE_SIZE;
        self.guest_end += pages * PAGE_SIZE;
        pages as usize
    }

    #[inline(always)]
    fn set_ends(&mut self, extent: &Extent) {
        self.frame_end = extent.frame.0 + extent.size();
        self.guest_end = extent.guest().0 + extent.size();
    }

    /// Sorts the extents by an address of theirs, in place and without
    /// allocation; refuses those that overlap in it.
    ///
    /// Keys are sorted, words of their own that know which extent they are of:
    /// extents are too long to be moved about at each step.
    #[inline(never)]
    fn sort_by(&mut self, address: impl Fn(&Extent) -> u64) -> Result<(), Refusal> {
        const { assert!(LIST_MAX <= 1 << PLACE_BITS) };
        let Scratch { extents, keys, .. } = self;
        keys.clear();
        for (place, extent) in extents.iter().enumerate() {
            // This cannot fail: there is room for as many keys as extents.
            let _ = keys.try_push((address(extent) / PAGE_SIZE) << PLACE_BITS | place as u64);
        }
        keys.sort_unstable();
        let place_of = |key: u64| (key & ((1 << PLACE_BITS) - 1)) as usize;
        // The end of the extents so far: a block may cover several pages that follow.
        let mut end = (0, 0);
        let mut bad: Option<u16> = None;
        for &key in keys.iter() {
            let Some(extent) = extents.get(place_of(key)) else { continue };
            let at = address(extent);
            if at < end.0 {
                let later = extent.index.max(end.1);
                bad = Some(bad.map_or(later, |b| b.min(later)));
            }
            if at + extent.size() > end.0 {
                end = (at + extent.size(), extent.index);
            }
        }
        if let Some(index) = bad {
            return Err(Refusal { index: index as u64, ..Error::Overlap.into() });
        }
        // Permute the extents in place, cycle by cycle. A key is done when it names its own
        // place.
        for start in 0..keys.len() {
            let mut to = start;
            loop {
                let from = place_of(keys[to]);
                keys[to] = to as u64;
                if from == start {
                    break;
                }
                extents.swap(to, from);
                to = from;
            }
        }
        Ok(())
    }
}

/// Shows each block that extents in the order of their frames lie in, in ascending order.
#[inline(always)]
pub(super) fn for_each_block(extents: &[Extent], mut f: impl FnMut(Block)) {
    let mut last = None;
    for extent in extents {
        if last != Some(extent.block) {
            f(extent.block);
            last = Some(extent.block);
        }
    }
}

/// Keeps the refusal of the entry that stands first in the caller's list.
#[cold]
fn note_first(first: &mut Option<Refusal>, refusal: Refusal) {
    if first.is_none_or(|f| refusal.index < f.index) {
        *first = Some(refusal);
    }
}

/// Checks all extents and returns the refusal of the entry that stands first in
/// the caller's list.
#[inline(always)]
pub(super) fn check_all<'a>(
    extents: impl Iterator<Item = &'a mut Extent>,
    mut check: impl FnMut(&mut Extent) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut first: Option<Refusal> = None;
    for extent in extents {
        if let Err(refusal) = check(extent) {
            note_first(&mut first, refusal);
        }
    }
    first.map_or(Ok(()), Err)
}
