// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls that take long, in portions.
//!
//! EL2 runs with interrupts masked. A call that works on the contents of many pages (zeroes
//! them, cleans caches of them), or on pages in many blocks, therefore looks after each
//! portion whether an interrupt is pending. If one is, EL2 returns to the caller, with the
//! progress in the caller's `x7` and the caller's PC still on the call: the caller takes its
//! interrupt, and makes the call again without knowing of it. Xen calls that a hypercall's
//! continuation.
//!
//! A long call is first checked as a whole, so that it happens for all or for none. After
//! that each portion is a call of its own: it takes the locks, is checked again, since
//! others may have had the locks meanwhile, and cannot be refused once it changes
//! anything. So no CPU waits for a lock longer than a portion takes either. If a later
//! portion is refused, because somebody has changed the rest of the pages meanwhile, the
//! answer says how much was done before.
//!
//! EL2 does not trust `x7`. A wrong value only chooses which part of its own list or
//! range a caller leaves out, or does not have checked beforehand.

use super::extents::Scratch;
use super::list::List;
use super::{Hypervisor, Refusal};
use crate::addr::PAGES_PER_BLOCK;
use crate::machine::Machine;

/// Pages whose contents one portion works on at the most.
pub(super) const PORTION_PAGES: u64 = PAGES_PER_BLOCK as u64;
/// Blocks at the most that one portion works on as such: it may split them, or make them
/// whole again, which costs a table and 512 records.
pub(super) const PORTION_BLOCKS: u64 = 16;

/// How far a call has come.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// To its end.
    Done {
        /// Pages that turned out to be broken, and are out of use.
        broken: u64,
    },
    /// As far as the word for `x7` says. An interrupt is pending; the call is to be made
    /// again after it.
    Again(u64),
}

/// Which entries of its list a step of a call is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    first: u64,
    is_whole: bool,
    /// The call works on the contents of the pages.
    contents: bool,
}

impl Part {
    /// All of them, without work on contents.
    pub const WHOLE: Part = Part { first: 0, is_whole: true, contents: false };

    /// Its first entry.
    #[inline(always)]
    pub fn first(self) -> u64 {
        self.first
    }

    /// Whether so many pages, in so many blocks, fit into it.
    #[inline(always)]
    pub fn takes(self, pages: u64, blocks: u64) -> bool {
        self.is_whole || self.is_little(pages, blocks)
    }

    /// How many more pages of the same block fit into it, behind `pages`.
    #[inline(always)]
    pub fn room(self, pages: u64) -> u64 {
        match self.is_whole || !self.contents {
            true => u64::MAX,
            false => PORTION_PAGES.saturating_sub(pages),
        }
    }

    /// Whether so many pages, and work on so many blocks, are no more than a portion.
    #[inline(always)]
    fn is_little(self, pages: u64, blocks: u64) -> bool {
        blocks <= PORTION_BLOCKS && (pages <= PORTION_PAGES || !self.contents)
    }
}

impl Scratch {
    /// Whether the part of the list that was read is done in this step, not only
    /// checked. To be asked once the ledger was looked at.
    #[inline(always)]
    pub(super) fn is_to_be_done(&self) -> bool {
        self.part().is_little(self.pages(), self.work())
    }

    /// The first entry that is left to do after this step.
    #[inline(always)]
    pub(super) fn end(&self, list: List) -> u64 {
        match self.is_to_be_done() {
            true if self.is_full() => self.part().first + self.entries(),
            true => list.count,
            false => 0,
        }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Makes a call over a list. `step` does, or only checks, what it reads of the part
    /// that it is given, and returns [`Scratch::end`].
    #[inline(always)]
    pub(super) fn in_portions(
        &self,
        scratch: &mut Scratch,
        list: List,
        contents: bool,
        mut step: impl FnMut(&mut Scratch, Part) -> Result<u64, Refusal>,
    ) -> Result<Progress, Refusal> {
        scratch.broken = list.broken();
        let mut part = Part { first: list.done(), is_whole: list.done() == 0, contents };
        loop {
            let end =
                step(scratch, part).map_err(|refusal| Refusal { done: part.first, ..refusal })?;
            if end == list.count {
                return Ok(Progress::Done { broken: scratch.broken });
            }
            if end > part.first && self.machine.interrupt_pending() {
                return Ok(Progress::Again(List::progress(end, scratch.broken)));
            }
            part = Part { first: end, is_whole: false, ..part };
        }
    }
}
