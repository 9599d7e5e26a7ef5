// SPDX-License-Identifier: MIT OR Apache-2.0

//! Frames that are alike, and what happens to them together.

use super::Hypervisor;
use super::extents::Extent;
use super::oracle::Asked;
use crate::addr::{PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::ledger::{Block, Record, Records, VmId, page_in_block};
use crate::machine::{Machine, Note};
use crate::stage2::Span;

/// Frames side by side that are in one state, of one owner and one borrower,
/// whose guest addresses lie side by side in 2 MiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The first, counted in its extent.
    pub page: usize,
    pub pages: usize,
    /// The first one's record.
    pub record: Record,
    /// It is part of one entry of a list, or of a guest's range.
    is_block: bool,
}

impl Piece {
    /// Pages of which the first has this record.
    pub fn new(pages: usize, record: Record) -> Piece {
        Piece { page: 0, pages, record, is_block: true }
    }

    /// One of its pages.
    pub fn nth(&self, page: usize) -> Piece {
        let record = self.record.nth(page as u64);
        Piece { page: self.page + page, pages: 1, record, is_block: false }
    }

    /// Where its guest sees it.
    pub fn span(&self) -> Span {
        Span { at: self.record.guest(), pages: self.pages, is_block: self.is_block }
    }

    /// Where a calling guest has it.
    pub fn own_span(&self, extent: &Extent) -> Span {
        let at = extent.own.add(self.page as u64 * PAGE_SIZE);
        Span { at, pages: self.pages, is_block: extent.is_block }
    }

    /// Where it begins in memory.
    pub fn frame(&self, extent: &Extent) -> PhysAddr {
        extent.frame.add(self.page as u64 * PAGE_SIZE)
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.pages as u64 * PAGE_SIZE
    }
}

/// The pieces that an extent is made of.
pub(super) struct Pieces {
    records: Records,
    /// In the block.
    first: usize,
    /// In the extent.
    done: usize,
    pages: usize,
    is_block: bool,
}

impl Iterator for Pieces {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        let left = self.pages - self.done;
        if left == 0 {
            return None;
        }
        let record = self.records.get(self.first + self.done);
        let limit = if record.has_guest_address() {
            let in_block = (record.guest().0 / PAGE_SIZE) as usize % PAGES_PER_BLOCK;
            left.min(PAGES_PER_BLOCK - in_block)
        } else {
            left
        };
        let pages = self.records.alike(self.first + self.done, limit);
        let piece = Piece { page: self.done, pages, record, is_block: self.is_block };
        self.done += pages;
        Some(piece)
    }
}

impl<M: Machine> Hypervisor<M> {
    /// The pieces of an extent, whose block is locked.
    #[inline]
    pub(super) fn pieces(&self, extent: &Extent) -> Pieces {
        Pieces {
            is_block: extent.is_block,
            ..self.pieces_of(extent.block, extent.first(), extent.pages.into())
        }
    }

    /// The pieces of frames of a locked block.
    #[inline]
    pub(super) fn pieces_of(&self, block: Block, first: usize, pages: usize) -> Pieces {
        Pieces { records: self.ledger.records(block), first, done: 0, pages, is_block: true }
    }

    /// Writes the record of a piece of an extent, and changes the host's map as that
    /// says: the caller invalidates what leaves it and publishes what comes.
    #[inline]
    pub(super) fn set_piece(
        &self,
        extent: &Extent,
        piece: &Piece,
        new: Record,
        call: (VmId, Asked),
    ) {
        self.set_frames(extent.block, piece.frame(extent), piece, new, call);
    }

    /// The same for a piece of any block.
    pub(super) fn set_frames(
        &self,
        block: Block,
        at: PhysAddr,
        piece: &Piece,
        new: Record,
        (by, asked): (VmId, Asked),
    ) {
        self.oracle_step(by, asked, block, (page_in_block(at), piece.pages), new);
        self.machine.note(move || Note::Record { at, size: piece.size(), record: new });
        let (was, is) = (piece.record.host_reaches(), new.host_reaches());
        if piece.pages == PAGES_PER_BLOCK && !self.ledger.is_split(block) {
            if was && !is {
                self.host.unmap_block(&self.machine, at);
            }
            self.ledger.set_block(block, new);
            if is && !was {
                self.host.map_block(&self.machine, at);
            }
            return;
        }
        self.host.split(&self.machine, &self.ledger, block, at);
        let first = page_in_block(at);
        if was && !is {
            self.host.unmap_pages(&self.machine, block, first, piece.pages);
        }
        self.ledger.set_frames(block, first, piece.pages, new);
        if is && !was {
            self.host.map_pages(&self.machine, block, at, piece.pages);
        }
    }
}
