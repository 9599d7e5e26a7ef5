// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's map: what each of its addresses leads to, and the tables that
//! takes.
//!
//! The root is at level 1. Below it are a level-2 table for each GiB and, where
//! 2 MiB are not one entry, a level-3 table. Tables are made when they are
//! needed and stay until the VM ends, but for one that a block takes the place
//! of.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use escrow_abi::{BLOCK_SIZE, PAGE_SIZE, Rights};

const GIB: u64 = 1 << 30;
const PAGES: usize = (BLOCK_SIZE / PAGE_SIZE) as usize;

/// What a guest address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    Nothing,
    /// A frame that the guest reaches, with these rights.
    Valid(u64, Rights),
    /// A frame that the guest owns and has lent, and the rights with which it
    /// had it.
    Away(u64, Rights),
    /// What was a frame and is broken.
    Poisoned,
}

/// 2 MiB of guest addresses.
#[derive(Clone, Debug)]
struct Region {
    /// One entry stands for all of it; there is a level-3 table otherwise.
    block: bool,
    pages: Vec<Entry>,
}

/// What a guest's addresses lead to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    /// The GiB that have a level-2 table.
    level2: BTreeSet<u64>,
    regions: BTreeMap<u64, Arc<Region>>,
    /// Where the interrupt controller is: nothing comes there.
    pub kept_free: Vec<Range<u64>>,
}

/// What a change does to the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    pub needed: u64,
    pub freed: u64,
}

impl Map {
    /// What an address leads to.
    pub fn get(&self, at: u64) -> Entry {
        self.regions.get(&(at / BLOCK_SIZE)).map_or(Entry::Nothing, |region| region.pages[page(at)])
    }

    /// Whether nothing is in the way of a page or a block.
    pub fn is_free(&self, at: u64, size: u64) -> bool {
        let nothing = |page: &Entry| *page == Entry::Nothing;
        if self.kept_free.iter().any(|range| at < range.end && range.start < at + size) {
            return false;
        }
        match self.regions.get(&(at / BLOCK_SIZE)) {
            None => true,
            Some(region) if size == PAGE_SIZE => nothing(&region.pages[page(at)]),
            // A table without a page in it makes room for a block.
            Some(region) => region.pages.iter().all(nothing),
        }
    }

    /// Maps a page or a block of frames where there is room.
    pub fn map(&mut self, at: u64, size: u64, frame: u64, rights: Rights) -> Tables {
        let mut tables = Tables { needed: self.level2.insert(at / GIB).into(), freed: 0 };
        let block = at / BLOCK_SIZE;
        if size == BLOCK_SIZE {
            let pages = (0..PAGES as u64).map(|n| Entry::Valid(frame + n * PAGE_SIZE, rights));
            let region = Region { block: true, pages: pages.collect() };
            tables.freed = self.regions.insert(block, Arc::new(region)).is_some().into();
        } else {
            let region = self.regions.entry(block).or_insert_with(|| {
                tables.needed += 1;
                Arc::new(Region { block: false, pages: [Entry::Nothing; PAGES].to_vec() })
            });
            Arc::make_mut(region).pages[page(at)] = Entry::Valid(frame, rights);
        }
        tables
    }

    /// Changes what is there already, page by page or as the block that it is;
    /// returns how many tables that needs.
    pub fn change(&mut self, at: u64, size: u64, to: impl Fn(Entry) -> Entry) -> u64 {
        let whole = size == BLOCK_SIZE && at.is_multiple_of(BLOCK_SIZE);
        match self.regions.get_mut(&(at / BLOCK_SIZE)) {
            Some(region) if whole && region.block => {
                let pages: Vec<_> = region.pages.iter().map(|&entry| to(entry)).collect();
                if pages.iter().all(|&entry| entry == Entry::Nothing) {
                    self.regions.remove(&(at / BLOCK_SIZE));
                } else {
                    Arc::make_mut(region).pages = pages;
                }
                0
            }
            // The frames of a block may be anywhere with a guest that got them
            // page by page.
            _ => {
                let pages = (at..at + size).step_by(PAGE_SIZE as usize);
                pages.map(|at| self.change_page(at, &to)).sum()
            }
        }
    }

    fn change_page(&mut self, at: u64, to: impl Fn(Entry) -> Entry) -> u64 {
        let Some(region) = self.regions.get_mut(&(at / BLOCK_SIZE)) else { return 0 };
        let (old, new) = (region.pages[page(at)], to(region.pages[page(at)]));
        if new == old {
            return 0;
        }
        let region = Arc::make_mut(region);
        region.pages[page(at)] = new;
        // The other pages of a block get entries of their own.
        core::mem::take(&mut region.block).into()
    }

    /// The block of frames that 2 MiB of addresses lead to, with these rights.
    pub fn block(&self, at: u64) -> Option<u64> {
        let region = self.regions.get(&(at / BLOCK_SIZE))?;
        let first = region.pages[0].frame().filter(|frame| frame.is_multiple_of(BLOCK_SIZE))?;
        let frames = region.pages.iter().map(|entry| entry.frame());
        frames.eq((0..PAGES as u64).map(|n| Some(first + n * PAGE_SIZE))).then_some(first)
    }

    /// Whether one entry stands for the 2 MiB around an address.
    pub fn is_block(&self, at: u64) -> bool {
        self.regions.get(&(at / BLOCK_SIZE)).is_some_and(|region| region.block)
    }

    /// All addresses that lead anywhere.
    pub fn entries(&self) -> impl Iterator<Item = (u64, Entry)> + '_ {
        self.regions.iter().flat_map(|(&block, region)| {
            let at = (0..).map(move |n| block * BLOCK_SIZE + n * PAGE_SIZE);
            at.zip(region.pages.iter().copied()).filter(|&(_, entry)| entry != Entry::Nothing)
        })
    }
}

impl Entry {
    /// The frame, whether the guest reaches it at the moment or not.
    pub fn frame(self) -> Option<u64> {
        match self {
            Entry::Valid(frame, _) | Entry::Away(frame, _) => Some(frame),
            Entry::Nothing | Entry::Poisoned => None,
        }
    }

    /// The same out of reach.
    pub fn away(self) -> Entry {
        match self {
            Entry::Valid(frame, rights) => Entry::Away(frame, rights),
            other => other,
        }
    }

    pub(crate) fn back(self) -> Entry {
        match self {
            Entry::Away(frame, rights) => Entry::Valid(frame, rights),
            other => other,
        }
    }
}

fn page(at: u64) -> usize {
    (at % BLOCK_SIZE / PAGE_SIZE) as usize
}
