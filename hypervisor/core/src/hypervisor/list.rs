// SPDX-License-Identifier: MIT OR Apache-2.0

//! The lists of pages that memory calls work on.
//!
//! A list is copied out of its caller's memory once, checked for what needs no
//! lock, put into the order of the locks, and from then on the copy is all
//! that the call knows.

use core::ops::Range;

use arrayvec::ArrayVec;
use escrow_abi::{Error, LIST_MAX, MemEntry, ORDER_BLOCK, ORDER_PAGE, Rights};

use super::{Hypervisor, Refusal};
use crate::addr::{BLOCK_SIZE, Ipa, Order, PAGE_SIZE, PhysAddr};
use crate::ledger::{BlockIndex, Record, VmId, page_in_block};
use crate::machine::Machine;

/// A list entry, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub frame: PhysAddr,
    pub guest: Ipa,
    pub block: BlockIndex,
    /// Its place in the caller's list.
    pub index: u16,
    pub order: Order,
    pub rights: Rights,
}

/// Items of one block that stand side by side.
#[derive(Clone, Copy, Debug)]
struct BlockRun {
    block: BlockIndex,
    first: u16,
    end: u16,
}

/// Room for one list: each CPU has its own.
#[derive(Default)]
pub struct Scratch {
    items: ArrayVec<Item, LIST_MAX>,
    runs: ArrayVec<BlockRun, LIST_MAX>,
    /// The items are in the order of their frames, and none overlap.
    frames_sorted: bool,
    /// The same for their guest addresses.
    guests_sorted: bool,
}

const ENTRY_SIZE: u64 = size_of::<MemEntry>() as u64;
const ENTRIES_PER_PAGE: u64 = PAGE_SIZE / ENTRY_SIZE;

impl Scratch {
    /// An empty one.
    pub const fn new() -> Scratch {
        Scratch {
            items: ArrayVec::new_const(),
            runs: ArrayVec::new_const(),
            frames_sorted: true,
            guests_sorted: true,
        }
    }

    /// The items.
    #[inline]
    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    /// The items, for calls that note in them where the guest sees each frame.
    pub(super) fn items_mut(&mut self) -> &mut [Item] {
        self.guests_sorted = false;
        &mut self.items
    }

    /// The items, block by block. For lists in the order of their frames whose
    /// blocks are locked.
    #[inline]
    pub(super) fn runs(&self) -> impl Iterator<Item = (BlockIndex, &[Item])> {
        self.runs.iter().map(|run| (run.block, &self.items[Self::range(run)]))
    }

    fn range(run: &BlockRun) -> Range<usize> {
        run.first as usize..run.end as usize
    }

    /// Puts the items into the order of their frames, unless they are;
    /// refuses overlapping ones.
    #[inline]
    pub(super) fn sort_by_frame(&mut self) -> Result<(), Refusal> {
        if !self.frames_sorted {
            sort_by(&mut self.items, |item| item.frame.0)?;
            self.frames_sorted = true;
            self.guests_sorted = false;
        }
        Ok(())
    }

    /// Puts the items into the order of their guest addresses, unless they
    /// are; refuses overlapping ones.
    #[inline]
    pub(super) fn sort_by_guest(&mut self) -> Result<(), Refusal> {
        if !self.guests_sorted {
            sort_by(&mut self.items, |item| item.guest.0)?;
            self.guests_sorted = true;
            self.frames_sorted = false;
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.items.clear();
        self.frames_sorted = true;
        self.guests_sorted = true;
    }

    /// Adds an item behind `last`, the one before it.
    #[inline]
    fn push(&mut self, item: Item, last: &mut Option<(u64, u64)>) {
        if let Some((frame, guest)) = *last {
            self.frames_sorted &= item.frame.0 >= frame;
            self.guests_sorted &= item.guest.0 >= guest;
        }
        let size = item.order.size();
        *last = Some((item.frame.0 + size, item.guest.0 + size));
        // The caller's list is no longer than there is room.
        let _ = self.items.try_push(item);
    }

    fn find_runs(&mut self) {
        self.runs.clear();
        let mut first = 0;
        for run in self.items.chunk_by(|a, b| a.block == b.block) {
            let end = first + run.len() as u16;
            let _ = self.runs.try_push(BlockRun { block: run[0].block, first, end });
            first = end;
        }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Copies and checks a list of the host. With `MAP`, its entries name
    /// guest addresses; with `REPORT`, they carry reports. Entries with
    /// reports alone are donations, of pages.
    pub(super) fn read_list<const MAP: bool, const REPORT: bool>(
        &self,
        scratch: &mut Scratch,
        list: u64,
        count: u64,
    ) -> Result<(), Refusal> {
        scratch.clear();
        if count == 0 || count > LIST_MAX as u64 {
            return Err(Error::InvalidSize.into());
        }
        if !list.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Misaligned.into());
        }
        if list.checked_add(count * ENTRY_SIZE).is_none() {
            return Err(Error::AddressOverflow.into());
        }
        let mut done = 0;
        let mut last = None;
        while done < count {
            let page = PhysAddr(list + done * ENTRY_SIZE);
            let here = done..count.min(done + ENTRIES_PER_PAGE);
            done = here.end;
            self.read_list_page::<MAP, REPORT>(scratch, page, here, &mut last)?;
        }
        Ok(())
    }

    #[inline]
    fn read_list_page<const MAP: bool, const REPORT: bool>(
        &self,
        scratch: &mut Scratch,
        page: PhysAddr,
        entries: Range<u64>,
        last: &mut Option<(u64, u64)>,
    ) -> Result<(), Refusal> {
        let block = self.ledger.ram().locate(page).ok_or(Error::InvalidAddress)?;
        // The lock keeps the page its caller's while it is read; the caller
        // itself may still write to it, which harms nobody but the caller.
        self.ledger.lock(block);
        let record = self.ledger.get_in(block, page);
        let result = if record.owner_reaches() && record.owner() == VmId::HOST {
            let mut at = page;
            entries.into_iter().try_for_each(|index| {
                let entry = self.machine.read_entry(at);
                at = at.add(ENTRY_SIZE);
                match self.check_entry::<MAP, REPORT>(&entry, index) {
                    Ok(item) => {
                        scratch.push(item, last);
                        Ok(())
                    }
                    Err((error, detail)) => Err(Refusal { error, index, detail }),
                }
            })
        } else {
            Err(Error::NotOwner.into())
        };
        self.ledger.unlock(block);
        result
    }

    #[inline]
    fn check_entry<const MAP: bool, const REPORT: bool>(
        &self,
        entry: &MemEntry,
        index: u64,
    ) -> Result<Item, (Error, u64)> {
        let order = match (entry.frame % PAGE_SIZE) as u32 {
            ORDER_PAGE => Order::Page,
            ORDER_BLOCK if MAP || !REPORT => Order::Block,
            _ => return Err((Error::InvalidArgument, 0)),
        };
        let frame = PhysAddr(entry.frame & !(PAGE_SIZE - 1));
        let guest = Ipa(entry.guest & !(PAGE_SIZE - 1));
        let rights =
            Rights::from_bits(entry.guest % PAGE_SIZE).ok_or((Error::InvalidArgument, 0))?;
        if entry.reserved != 0 {
            return Err((Error::InvalidArgument, 0));
        }
        if order == Order::Block && !(frame.is_aligned(BLOCK_SIZE) && guest.is_aligned(BLOCK_SIZE))
        {
            return Err((Error::Misaligned, 0));
        }
        if MAP {
            if !rights.read() {
                return Err((Error::InvalidArgument, 0));
            }
            if guest.0 >= self.guest_geometry.end() {
                return Err((Error::AddressOverflow, 0));
            }
        } else if entry.guest != 0 {
            return Err((Error::InvalidArgument, 0));
        }
        if REPORT {
            if entry.refcount != entry.safe {
                return Err((Error::Excess, entry.excess() as u64));
            }
            if entry.accessible != 0 {
                return Err((Error::Accessible, entry.accessible as u64));
            }
        } else if entry.refcount | entry.safe | entry.accessible != 0 {
            return Err((Error::InvalidArgument, 0));
        }
        let block = self.ledger.ram().locate(frame).ok_or((Error::InvalidAddress, 0))?;
        Ok(Item { frame, guest, block, index: index as u16, order, rights })
    }

    /// Takes the locks of all blocks that the items lie in, in ascending
    /// order. The items are in the order of their frames.
    pub(super) fn lock_blocks(&self, scratch: &mut Scratch) {
        scratch.find_runs();
        for run in &scratch.runs {
            self.ledger.lock(run.block);
        }
    }

    /// Gives the locks back.
    pub(super) fn unlock_blocks(&self, scratch: &Scratch) {
        for run in &scratch.runs {
            self.ledger.unlock(run.block);
        }
    }

    /// The record that a call about an item starts from, if the item is all
    /// of one kind and the host's.
    #[inline]
    pub(super) fn host_record(&self, item: &Item) -> Result<Record, Refusal> {
        let record = match item.order {
            Order::Page => Some(self.ledger.get_in(item.block, item.frame)),
            Order::Block => self.ledger.whole_block(item.block),
        };
        match record {
            None => Err(item.refuse(Error::WrongState, 0)),
            Some(Record::NO_RAM) => Err(item.refuse(Error::InvalidAddress, 0)),
            Some(Record::HYPERVISOR) => Err(item.refuse(Error::NotOwner, 0)),
            Some(record) if record.owner() != VmId::HOST => Err(item.refuse(Error::NotOwner, 0)),
            Some(record) => Ok(record),
        }
    }
}

impl Item {
    /// A refusal about this item.
    pub(super) fn refuse(&self, error: Error, detail: u64) -> Refusal {
        Refusal { error, index: self.index as u64, detail }
    }

    /// Which page of its block it is, or begins with.
    #[inline]
    pub(super) fn page(&self) -> usize {
        page_in_block(self.frame)
    }
}

#[cold]
fn sort_by(items: &mut [Item], key: impl Fn(&Item) -> u64) -> Result<(), Refusal> {
    // In place and without allocation; at most 512 items.
    items.sort_unstable_by_key(&key);
    // The end of what came before: a block may cover several later pages.
    let mut end = (0, 0);
    let mut bad: Option<u16> = None;
    for item in items.iter() {
        if key(item) < end.0 {
            let later = item.index.max(end.1);
            bad = Some(bad.map_or(later, |b| b.min(later)));
        }
        let here = key(item) + item.order.size();
        if here > end.0 {
            end = (here, item.index);
        }
    }
    let overlap = |index| Refusal { error: Error::Overlap, index, detail: 0 };
    bad.map_or(Ok(()), |index| Err(overlap(index as u64)))
}

/// Keeps the refusal of the entry that stands first in the caller's list.
#[cold]
pub(super) fn note_first(first: &mut Option<Refusal>, refusal: Refusal) {
    if first.is_none_or(|f| refusal.index < f.index) {
        *first = Some(refusal);
    }
}

/// Checks all items and returns the refusal of the one that stands first in
/// the caller's list.
#[inline]
pub(super) fn check_all(
    items: &[Item],
    mut check: impl FnMut(&Item) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut first: Option<Refusal> = None;
    for item in items {
        if let Err(refusal) = check(item) {
            note_first(&mut first, refusal);
        }
    }
    first.map_or(Ok(()), Err)
}

/// Bytes that the items cover.
pub(super) fn total_size(items: &[Item]) -> u64 {
    items.iter().map(|item| item.order.size()).sum()
}

const _: () = assert!(BLOCK_SIZE.is_multiple_of(PAGE_SIZE));
