// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which tables a guest's stage 2 is made of: a root at level 1, below it
//! tables that are made when they are needed and stay until the VM ends, but
//! for one that a block takes the place of.

use std::collections::BTreeSet;

use escrow_abi::{BLOCK_SIZE, PAGE_SIZE};

const GIB: u64 = 1 << 30;

/// The tables, and what is mapped by them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    /// Level 2, by GiB.
    level2: BTreeSet<u64>,
    /// Level 3, by 2 MiB.
    level3: BTreeSet<u64>,
    /// 2 MiB that are one entry.
    blocks: BTreeSet<u64>,
    pages: BTreeSet<u64>,
}

/// What a change does to the pool.
pub(crate) struct Change {
    pub needed: u64,
    pub freed: u64,
}

impl Tables {
    /// Whether anything is mapped at a guest address.
    pub fn maps(&self, guest: u64) -> bool {
        self.blocks.contains(&(guest / BLOCK_SIZE)) || self.pages.contains(&(guest / PAGE_SIZE))
    }

    /// Maps a page or a block where there is room.
    pub fn map(&mut self, guest: u64, size: u64) -> Change {
        let mut change = Change { needed: self.level2.insert(guest / GIB).into(), freed: 0 };
        if size == BLOCK_SIZE {
            change.freed = self.level3.remove(&(guest / BLOCK_SIZE)).into();
            self.blocks.insert(guest / BLOCK_SIZE);
        } else {
            change.needed += u64::from(self.level3.insert(guest / BLOCK_SIZE));
            self.pages.insert(guest / PAGE_SIZE);
        }
        change
    }

    /// Takes a page or a block of frames out; returns how many tables that
    /// needs.
    pub fn unmap(&mut self, guest: u64, size: u64) -> u64 {
        let block = guest / BLOCK_SIZE;
        if size == BLOCK_SIZE && guest.is_multiple_of(BLOCK_SIZE) && self.blocks.remove(&block) {
            return 0;
        }
        // Page by page, wherever they are.
        (guest..guest + size).step_by(PAGE_SIZE as usize).map(|at| self.unmap_page(at)).sum()
    }

    fn unmap_page(&mut self, guest: u64) -> u64 {
        let block = guest / BLOCK_SIZE;
        let mut needed = 0;
        if self.blocks.remove(&block) {
            // The other pages of the block get entries of their own.
            needed = self.level3.insert(block).into();
            let first = block * (BLOCK_SIZE / PAGE_SIZE);
            self.pages.extend(first..first + BLOCK_SIZE / PAGE_SIZE);
        }
        self.pages.remove(&(guest / PAGE_SIZE));
        needed
    }
}
