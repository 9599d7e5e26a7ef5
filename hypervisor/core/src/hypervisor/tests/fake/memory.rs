// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that Escrow is set up in.

use std::sync::atomic::AtomicU64;

use zerocopy::FromZeros;

use crate::addr::{PAGE_SIZE, PhysAddr, PhysRange};
use crate::ledger::{self, Frames, Reserve};

/// Blocks whose records are more than what tests should write to: zeros that are not
/// looked at take no memory.
const MANY: usize = 1 << 14;

/// Memory to set up Escrow in.
pub struct Memory {
    /// Fake memory for tables.
    tables: PhysRange,
    /// Zeroed pages that there still are.
    zeroed: usize,
    /// Blocks whose records lie side by side, and pages for tables.
    piece: usize,
}

impl Memory {
    pub fn new(tables: PhysRange, zeroed: usize) -> Memory {
        Memory { tables, zeroed, piece: usize::MAX }
    }

    /// The same in pieces of at most so many blocks' records or pages.
    pub fn in_pieces(self, piece: usize) -> Memory {
        Memory { piece, ..self }
    }

    fn take(&mut self, pages: usize, align: u64) -> Option<PhysAddr> {
        let at = self.tables.base.0.next_multiple_of(align);
        let end = at + pages as u64 * PAGE_SIZE;
        let left = self.tables.end().checked_sub(end)?;
        self.tables = PhysRange::new(end, left);
        Some(PhysAddr(at))
    }
}

impl Reserve for Memory {
    fn directory(&mut self, gibs: usize) -> Option<&'static mut [Option<&'static ledger::Gib>]> {
        Some(vec![None; gibs].leak())
    }

    fn gib(&mut self) -> Option<&'static mut ledger::Gib> {
        Some(Box::leak(Box::default()))
    }

    fn frames(&mut self, blocks: usize) -> Option<&'static [Frames]> {
        let blocks = blocks.min(self.piece);
        if blocks > MANY {
            return Frames::new_vec_zeroed(blocks).ok().map(|frames| &*frames.leak());
        }
        let frames = || [const { AtomicU64::new(!0) }; 512];
        Some(Vec::leak((0..blocks).map(|_| frames()).collect()))
    }

    fn tables(&mut self, pages: usize) -> Option<(PhysAddr, usize)> {
        let pages = pages.min(self.piece);
        let at = self.take(pages, PAGE_SIZE)?;
        // A page between two pieces.
        self.take(1, PAGE_SIZE)?;
        Some((at, pages))
    }

    fn zeroed(&mut self, count: usize) -> Option<PhysAddr> {
        self.zeroed = self.zeroed.checked_sub(count)?;
        self.take(count, count.next_power_of_two() as u64 * PAGE_SIZE)
    }
}
