// SPDX-License-Identifier: MIT OR Apache-2.0

//! The lists of pages that memory calls work on.
//!
//! A list is copied out of its caller's memory once, checked for what needs no
//! lock, put into the order of the locks, and from then on the copy is all
//! that the call knows.

use arrayvec::ArrayVec;
use escrow_abi::{Error, LIST_MAX, MemEntry, ORDER_BLOCK, ORDER_PAGE, Rights};

use super::{Hypervisor, Refusal};
use crate::addr::{BLOCK_SIZE, Ipa, Order, PAGE_SIZE, PhysAddr};
use crate::ledger::{BlockIndex, Record, VmId};
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

/// Room for one list: each CPU has its own.
#[derive(Default)]
pub struct Scratch {
    pub(super) items: ArrayVec<Item, LIST_MAX>,
}

impl Scratch {
    /// An empty one.
    pub const fn new() -> Scratch {
        Scratch { items: ArrayVec::new_const() }
    }
}

/// What the entries of a list must carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListKind {
    /// Frames and guest addresses.
    Map,
    /// Frames, guest addresses and reports.
    MapWithReport,
    /// Frames and reports, pages only.
    DonateWithReport,
    /// Frames.
    Frames,
}

const ENTRY_SIZE: u64 = size_of::<MemEntry>() as u64;
const ENTRIES_PER_PAGE: u64 = PAGE_SIZE / ENTRY_SIZE;

impl<M: Machine> Hypervisor<M> {
    /// Copies and checks a list of the host. `guest_end` bounds guest
    /// addresses.
    pub(super) fn read_list(
        &self,
        scratch: &mut Scratch,
        list: u64,
        count: u64,
        kind: ListKind,
    ) -> Result<(), Refusal> {
        scratch.items.clear();
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
        while done < count {
            let page = PhysAddr(list + done * ENTRY_SIZE);
            let here = (count - done).min(ENTRIES_PER_PAGE);
            self.read_list_page(scratch, page, done, here, kind)?;
            done += here;
        }
        Ok(())
    }

    fn read_list_page(
        &self,
        scratch: &mut Scratch,
        page: PhysAddr,
        first: u64,
        count: u64,
        kind: ListKind,
    ) -> Result<(), Refusal> {
        let block = self.ledger.ram().locate(page).ok_or(Error::InvalidAddress)?;
        // The lock keeps the page its caller's while it is read; the caller
        // itself may still write to it, which harms nobody but the caller.
        self.ledger.lock(block);
        let record = self.ledger.get_in(block, page);
        let result = if record.owner_reaches() && record.owner() == VmId::HOST {
            (0..count).try_for_each(|n| {
                let entry = self.machine.read_entry(page.add(n * ENTRY_SIZE));
                let index = first + n;
                match self.check_entry(&entry, index, kind) {
                    Ok(item) => {
                        scratch.items.push(item);
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
    fn check_entry(
        &self,
        entry: &MemEntry,
        index: u64,
        kind: ListKind,
    ) -> Result<Item, (Error, u64)> {
        let order = match (entry.frame % PAGE_SIZE) as u32 {
            ORDER_PAGE => Order::Page,
            ORDER_BLOCK if kind != ListKind::DonateWithReport => Order::Block,
            _ => return Err((Error::InvalidArgument, 0)),
        };
        let frame = PhysAddr(entry.frame & !(PAGE_SIZE - 1));
        let guest = Ipa(entry.guest & !(PAGE_SIZE - 1));
        let rights =
            Rights::from_bits(entry.guest % PAGE_SIZE).ok_or((Error::InvalidArgument, 0))?;
        if entry.reserved != 0 {
            return Err((Error::InvalidArgument, 0));
        }
        if !frame.is_aligned(order.size()) || !guest.is_aligned(order.size()) {
            return Err((Error::Misaligned, 0));
        }
        if matches!(kind, ListKind::Map | ListKind::MapWithReport) {
            if !rights.read() {
                return Err((Error::InvalidArgument, 0));
            }
            if guest.0 >= self.guest_geometry.end() {
                return Err((Error::AddressOverflow, 0));
            }
        } else if entry.guest != 0 {
            return Err((Error::InvalidArgument, 0));
        }
        if matches!(kind, ListKind::MapWithReport | ListKind::DonateWithReport) {
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

    /// Takes the locks of all blocks that the items lie in. The items are in
    /// the order of their frames.
    pub(super) fn lock_blocks(&self, items: &[Item]) {
        for_each_block(items, |block| self.ledger.lock(block));
    }

    /// Gives the locks back.
    pub(super) fn unlock_blocks(&self, items: &[Item]) {
        for_each_block(items, |block| self.ledger.unlock(block));
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
}

fn for_each_block(items: &[Item], mut f: impl FnMut(BlockIndex)) {
    let mut last = None;
    for item in items {
        if last != Some(item.block) {
            last = Some(item.block);
            f(item.block);
        }
    }
}

/// Puts items into the order of their frames; refuses overlapping ones.
pub(super) fn sort_by_frame(items: &mut [Item]) -> Result<(), Refusal> {
    sort_by(items, |item| item.frame.0)
}

/// Puts items into the order of their guest addresses; refuses overlapping
/// ones.
pub(super) fn sort_by_guest(items: &mut [Item]) -> Result<(), Refusal> {
    sort_by(items, |item| item.guest.0)
}

fn sort_by(items: &mut [Item], key: impl Fn(&Item) -> u64) -> Result<(), Refusal> {
    if !items.is_sorted_by_key(&key) {
        // In place and without allocation; at most 512 items.
        items.sort_unstable_by_key(&key);
    }
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

/// Checks all items and returns the refusal of the one that stands first in
/// the caller's list.
pub(super) fn check_all(
    items: &[Item],
    mut check: impl FnMut(&Item) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut first: Option<Refusal> = None;
    for item in items {
        if let Err(refusal) = check(item)
            && first.is_none_or(|f| refusal.index < f.index)
        {
            first = Some(refusal);
        }
    }
    first.map_or(Ok(()), Err)
}

/// Bytes that the items cover.
pub(super) fn total_size(items: &[Item]) -> u64 {
    items.iter().map(|item| item.order.size()).sum()
}

const _: () = assert!(BLOCK_SIZE.is_multiple_of(PAGE_SIZE));
