// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists that are mostly right: of pages that are all in one state, with one owner and
//! one borrower; and what is done to make them wrong.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, MemEntry, ORDER_BLOCK, ORDER_PAGE, PAGE_SIZE, Rights};
use escrow_spec::{Entry, Frame, VmId};

use crate::BLOCKS;
use crate::member::Member;
use crate::world::{PART, World};

/// Where guests have what lists are about.
pub const GUEST: u64 = 0x4020_0000;
/// Blocks of guest addresses that lists name.
const GUEST_BLOCKS: u64 = 4;
/// Entries of a list, at the most.
pub const MOST: usize = 8;

pub type List = ArrayVec<MemEntry, MOST>;

/// Which frames go together in one list.
fn kind(frame: Frame) -> (escrow_abi::FrameState, VmId, Option<VmId>) {
    (frame.state, frame.owner, frame.borrower)
}

impl World<'_> {
    /// A page that lists are about, often one that is near others of its kind.
    pub fn page(&mut self) -> u64 {
        let page = match self.random.below(8) {
            0 => return self.place.part + self.random.below(PART) * PAGE_SIZE,
            1 => self.random.below(512),
            2 => 511,
            _ => self.random.below(8),
        };
        self.place.blocks + self.random.below(BLOCKS) * BLOCK_SIZE + page * PAGE_SIZE
    }

    /// Some pages, or blocks, of the first one's kind.
    pub fn frames_like(&mut self, first: u64) -> ArrayVec<(u64, u32), MOST> {
        let like = kind(self.spec.frame(first));
        let mut list: ArrayVec<(u64, u32), MOST> = ArrayVec::new();
        let block = first & !(BLOCK_SIZE - 1);
        let own = self.place.blocks..self.place.blocks + BLOCKS * BLOCK_SIZE;
        let mut pages = (0..512).map(|n| block + n * PAGE_SIZE);
        if self.random.below(3) == 0
            && own.contains(&block)
            && pages.all(|at| kind(self.spec.frame(at)) == like)
        {
            list.push((block, ORDER_BLOCK));
        } else {
            list.push((first, ORDER_PAGE));
        }
        for _ in 0..self.random.below(MOST as u64) {
            let at = self.page();
            let taken = |&(other, order): &(u64, u32)| {
                other == at || order == ORDER_BLOCK && other == at & !(BLOCK_SIZE - 1)
            };
            let fits = kind(self.spec.frame(at)) == like && !list.iter().any(taken);
            if fits || self.random.below(40) == 0 {
                list.push((at, ORDER_PAGE));
            }
        }
        list
    }

    /// A guest address for a folio: where it would be in one piece with others, or
    /// anywhere that is free, mostly.
    fn guest_for(&mut self, at: u64, order: u32, to: Option<VmId>) -> u64 {
        let near = GUEST + (at - self.place.blocks.min(at)) % (GUEST_BLOCKS * BLOCK_SIZE);
        let size = if order == ORDER_BLOCK { BLOCK_SIZE } else { PAGE_SIZE };
        let mut guest = near;
        for _ in 0..6 {
            guest &= !(size - 1);
            let free = |vm| self.spec.guest(vm).entry(guest) == Entry::Nothing;
            if to.is_none_or(free) {
                break;
            }
            guest = GUEST + self.random.below(GUEST_BLOCKS * BLOCK_SIZE);
        }
        guest & !(size - 1)
    }

    fn rights(&mut self) -> Rights {
        self.random.pick(&[Rights::ALL, Rights::ALL, Rights::READ_WRITE, Rights::READ])
    }

    /// Entries with guest addresses, for folios.
    pub fn mapped(&mut self, folios: &[(u64, u32)], to: Option<VmId>) -> List {
        folios
            .iter()
            .map(|&(at, order)| {
                let (guest, rights) = (self.guest_for(at, order, to), self.rights());
                MemEntry::new(at, order, guest, rights)
            })
            .collect()
    }

    /// Entries that name folios and nothing else.
    pub fn bare(&self, folios: &[(u64, u32)]) -> List {
        folios.iter().map(|&(at, order)| MemEntry::new(at, order, 0, Rights::NONE)).collect()
    }

    /// Guest addresses of a VM's that lead to pages of one kind.
    pub fn own_like(&mut self, member: &Member) -> ArrayVec<(u64, u32), MOST> {
        let vm = member.id;
        let owned: Vec<(u64, u64)> = self
            .spec
            .guest(vm)
            .entries()
            .filter(|&(at, _)| at >= GUEST)
            .filter_map(|(at, entry)| Some((at, entry.frame()?)))
            .collect();
        let mut list = ArrayVec::new();
        if owned.is_empty() {
            return list;
        }
        // What it owns is what it can do most with.
        let is_own = |&&(_, frame): &&(u64, u64)| self.spec.frame(frame).owner == vm;
        let own: Vec<(u64, u64)> = owned.iter().filter(is_own).copied().collect();
        let from = if own.is_empty() || self.random.below(8) == 0 { &owned } else { &own };
        let (first, frame) = self.random.pick(from);
        let like = kind(self.spec.frame(frame));
        let block = first & !(BLOCK_SIZE - 1);
        let whole = from.iter().filter(|(at, _)| at & !(BLOCK_SIZE - 1) == block).count() == 512;
        if whole && self.random.below(2) == 0 {
            list.push((block, ORDER_BLOCK));
            return list;
        }
        list.push((first, ORDER_PAGE));
        for _ in 0..self.random.below(MOST as u64) {
            let (at, frame) = self.random.pick(from);
            let taken = list.iter().any(|&(other, _)| other == at);
            if kind(self.spec.frame(frame)) == like && !taken {
                list.push((at, ORDER_PAGE));
            }
        }
        list
    }

    /// A range of guest addresses of a VM's: page-aligned, mostly of what it has.
    pub fn range(&mut self, member: &Member) -> (u64, u64) {
        // Mostly what it borrows, at times what is its own.
        let own = self.random.below(8) == 0;
        let has: Vec<u64> = self
            .spec
            .guest(member.id)
            .entries()
            .filter(|&(at, entry)| match entry {
                Entry::Valid(frame, _) => {
                    at >= GUEST && (self.spec.frame(frame).borrower == Some(member.id)) != own
                }
                _ => false,
            })
            .map(|(at, _)| at)
            .collect();
        if has.is_empty() || self.random.below(10) == 0 {
            let at = GUEST + self.random.below(1024) * PAGE_SIZE;
            let odd = self.random.pick(&[(at, 0), (at + 8, PAGE_SIZE), (at, 1 << 39), (at, 4096)]);
            return odd;
        }
        let at = self.random.pick(&has);
        let block = at & !(BLOCK_SIZE - 1);
        match self.random.below(4) {
            0 => (block, BLOCK_SIZE),
            1 => (at, 3 * PAGE_SIZE),
            _ => (at, PAGE_SIZE),
        }
    }

    /// At times, makes an entry of a list wrong.
    pub fn spoil(&mut self, list: &[MemEntry]) -> ArrayVec<MemEntry, 16> {
        let mut list: ArrayVec<MemEntry, 16> = list.iter().copied().collect();
        if list.is_empty() || self.random.below(6) != 0 {
            return list;
        }
        let place = match self.random.below(3) {
            0 => 0,
            1 => list.len() - 1,
            _ => self.random.below(list.len() as u64) as usize,
        };
        let other = self.random.pick(&list).frame;
        let bad: Vec<u64> = self.elsewhere.addresses().collect();
        let page = self.page();
        let supply = self.place.supplies + self.random.below(crate::SUPPLIES) * PAGE_SIZE;
        let entry = &mut list[place];
        match self.random.below(12) {
            0 => entry.frame = self.random.pick(&bad),
            1 => entry.frame |= self.random.pick(&[1, 8, 9, 0x800]),
            2 => entry.frame = other,
            3 => entry.frame = page,
            4 => entry.guest ^= self.random.pick(&[1, 2, 7, 8, 0x1000]),
            5 => entry.guest = self.random.pick(&[1 << 39 | 7, !0xfff | 7, 7, 0]),
            6 => entry.refcount = self.random.pick(&[1, 2, u32::MAX]),
            7 => entry.safe = 1,
            8 => entry.accessible = self.random.pick(&[1, 9]),
            9 => entry.reserved = 1,
            // An agent's own pages stay where they are; others do as pages.
            10 if !self.is_kept(supply) => entry.frame = supply,
            _ => entry.frame = !0,
        }
        list
    }
}
