// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that tests may lend, lose and get back: nothing of the payload's own
//! is in it.

use core::ops::Range;

use escrow_abi::{BLOCK_SIZE, PAGE_SIZE};

use crate::board::Board;

/// Bytes of the arena.
pub const SIZE: u64 = 96 << 20;

/// Where tests take pages from. All is free again at the start of each test.
pub struct Arena {
    range: Range<u64>,
    /// Pages are handed out upwards from the beginning, blocks downwards from the
    /// end.
    next_page: u64,
    next_block: u64,
}

impl Arena {
    /// Finds room for it.
    pub(crate) fn find(board: &Board) -> Option<Arena> {
        let candidates = board.memory.iter().rev().flat_map(|memory| {
            let first = memory.start.next_multiple_of(BLOCK_SIZE);
            let last = memory.end.checked_sub(SIZE).map(|at| at & !(BLOCK_SIZE - 1));
            // From the top down: what boots is rather at the bottom.
            let steps = last.and_then(|last| last.checked_sub(first)).map(|s| s / BLOCK_SIZE);
            (0..steps.map_or(0, |s| s + 1)).rev().map(move |n| first + n * BLOCK_SIZE)
        });
        let start = candidates.into_iter().find(|&at| board.is_free(&(at..at + SIZE)))?;
        let range = start..start + SIZE;
        Some(Arena { next_page: range.start, next_block: range.end, range })
    }

    /// All of it.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Makes all of it free again.
    pub(crate) fn reset(&mut self) {
        self.next_page = self.range.start;
        self.next_block = self.range.end;
    }

    /// `count` adjacent pages.
    ///
    /// # Panics
    /// A test asks for more than there is.
    pub fn pages(&mut self, count: u64) -> u64 {
        let at = self.next_page;
        self.next_page += count * PAGE_SIZE;
        assert!(self.next_page <= self.next_block, "the arena is too small for this test");
        at
    }

    /// `count` adjacent blocks of 2 MiB.
    ///
    /// # Panics
    /// A test asks for more than there is.
    pub fn blocks(&mut self, count: u64) -> u64 {
        self.next_block -= count * BLOCK_SIZE;
        assert!(self.next_page <= self.next_block, "the arena is too small for this test");
        self.next_block
    }
}
