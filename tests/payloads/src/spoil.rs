// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can be wrong with one entry of a list, and how each is refused.

use core::ops::{Deref, Range};

use arrayvec::ArrayVec;
use escrow_abi::{Error, MemEntry, ORDER_BLOCK};

use crate::expect::{escrow_memory, not_ram};
use crate::host::Host;
use crate::{Outcome, check};

/// Physical addresses that are not the host's to give.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    /// No RAM: devices, nothing, beyond everything.
    pub not_ram: [u64; 7],
    /// Escrow's own memory.
    pub escrow: ArrayVec<Range<u64>, 16>,
}

impl Elsewhere {
    /// Looks for them.
    ///
    /// # Errors
    /// Escrow's memory is not where it says.
    pub fn find(host: &Host) -> Outcome<Elsewhere> {
        let escrow = escrow_memory(host)?;
        check!(!escrow.is_empty());
        Ok(Elsewhere { not_ram: not_ram(host), escrow })
    }

    /// All of them.
    pub fn addresses(&self) -> impl Iterator<Item = u64> + '_ {
        let ends = self.escrow.iter().take(4).flat_map(|r| [r.start, r.end - 0x1000]);
        self.not_ram.into_iter().chain(ends)
    }
}

/// An entry, and why it is refused.
#[derive(Clone, Copy, Debug)]
pub struct Bad {
    /// The entry.
    pub entry: MemEntry,
    /// Why.
    pub error: Error,
    /// What the error says beside it.
    pub detail: u64,
}

impl Bad {
    /// An entry that is refused for this reason.
    pub const fn new(entry: MemEntry, error: Error, detail: u64) -> Bad {
        Bad { entry, error, detail }
    }
}

/// Bad entries, made out of good ones.
#[derive(Clone, Debug, Default)]
pub struct BadEntries(ArrayVec<Bad, 80>);

impl Deref for BadEntries {
    type Target = [Bad];

    fn deref(&self) -> &[Bad] {
        &self.0
    }
}

impl BadEntries {
    /// Adds one.
    pub fn push(&mut self, bad: Bad) {
        self.0.push(bad);
    }

    fn add(&mut self, entry: MemEntry, error: Error, detail: u64) {
        self.push(Bad::new(entry, error, detail));
    }

    /// What is wrong in any list.
    pub fn anywhere(&mut self, elsewhere: &Elsewhere, good: MemEntry) {
        for order in [1, 8, 10, 0x200, 0x7ff, 0x800] {
            self.add(MemEntry { frame: good.frame | order, ..good }, Error::InvalidArgument, 0);
        }
        self.add(MemEntry { reserved: 1, ..good }, Error::InvalidArgument, 0);
        self.add(MemEntry { reserved: u32::MAX, ..good }, Error::InvalidArgument, 0);
        for bit in [3, 7, 11] {
            let guest = good.guest | 1 << bit;
            self.add(MemEntry { guest, ..good }, Error::InvalidArgument, 0);
        }
        for at in elsewhere.not_ram {
            self.add(MemEntry { frame: at, ..good }, Error::InvalidAddress, 0);
        }
        for range in elsewhere.escrow.iter().take(4) {
            self.add(MemEntry { frame: range.start, ..good }, Error::NotOwner, 0);
        }
    }

    /// What is wrong where an entry names a guest address.
    pub fn in_maps(&mut self, good: MemEntry) {
        let guest = good.guest & !0xfff;
        for rights in [0, 2, 4, 6] {
            let guest = guest | rights;
            self.add(MemEntry { guest, ..good }, Error::InvalidArgument, 0);
        }
        for guest in [1 << 39, 1 << 40, 1 << 52, 1 << 63, !0xfff] {
            let guest = guest | 7;
            self.add(MemEntry { guest, ..good }, Error::AddressOverflow, 0);
        }
    }

    /// What is wrong where lists take blocks: one that does not begin on a multiple of
    /// its size.
    pub fn in_blocks(&mut self, good: MemEntry) {
        let frame = (good.frame & !0xfff & !(1 << 12)) | 1 << 12 | ORDER_BLOCK as u64;
        self.add(MemEntry { frame, ..good }, Error::Misaligned, 0);
    }

    /// What is wrong where an entry carries no report.
    pub fn without_report(&mut self, good: MemEntry) {
        for (refcount, safe, accessible) in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)] {
            let entry = good.with_report(refcount, safe, accessible);
            self.add(entry, Error::InvalidArgument, 0);
        }
    }

    /// What is wrong where an entry names no guest address.
    pub fn without_guest(&mut self, good: MemEntry) {
        for guest in [1, 7, 0x1000, 1 << 39, !0xfff] {
            self.add(MemEntry { guest, ..good }, Error::InvalidArgument, 0);
        }
    }

    /// What is wrong with a report.
    pub fn reports(&mut self, good: MemEntry) {
        for (refcount, safe, accessible) in [
            (1, 0, 0),
            (2, 1, 0),
            (0, 1, 0),
            (1025, 1, 0),
            (u32::MAX, 0, 0),
            (0, u32::MAX, 0),
            (3, 1, 9),
        ] {
            let entry = good.with_report(refcount, safe, accessible);
            self.add(entry, Error::Excess, refcount as i64 as u64 - safe as u64);
        }
        for accessible in [1, 2, u32::MAX] {
            let entry = good.with_report(5, 5, accessible);
            self.add(entry, Error::Accessible, accessible as u64);
        }
    }
}
