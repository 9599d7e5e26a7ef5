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
//! portion is refused, because the rest of the pages has changed meanwhile, the
//! answer says how much was done before, and how much of that was broken, by the word that
//! the rest of the call would begin with in `x7`.
//!
//! EL2 does not trust `x7`. A wrong value only chooses which part of its own list or
//! range a caller leaves out, or does not have checked beforehand.

use super::extents::Scratch;
use super::list::List;
use super::{Hypervisor, Refusal};
use crate::addr::PAGES_PER_BLOCK;
use crate::machine::Machine;
use escrow_abi::Error;

/// Pages whose contents one portion works on at the most.
pub(super) const PORTION_PAGES: u64 = PAGES_PER_BLOCK as u64;
/// Blocks at the most that one portion works on as such: it may split them, or make them
/// whole again, which costs a table and 512 records.
pub(super) const PORTION_BLOCKS: u64 = 16;

/// How many of a guest's tables one step reads completely ([`Looks`]), before EL2 looks for
/// interrupts. It is more than a portion has blocks.
const LOOKS: u64 = 64;

/// Counts reads of all 512 entries of a table. They are needed to find that a block of guest
/// addresses, mapped as pages, is one block of frames, or that there is room for a block where a
/// guest has a table. All else in the check of a list entry costs little beside them.
///
/// Each of 512 list entries may need one or two such reads. So the check of a whole list
/// ends after [`LOOKS`] of them, and begins again without those that were made. What they
/// found may change in between: each portion looks again, under its locks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looks {
    /// How many to leave out, because an earlier step made them.
    skipped: u64,
    /// How many were made or left out.
    pub(super) made: u64,
    most: u64,
}

impl Looks {
    /// All that there are.
    pub const ALL: Looks = Looks { skipped: 0, made: 0, most: u64::MAX };

    /// Begins with the first again.
    #[inline(always)]
    pub fn again(&mut self) {
        self.made = 0;
    }

    /// Makes the next one, unless it is left out: whether it finds what it should. `None`:
    /// there were enough of them.
    pub fn make(&mut self, look: impl FnOnce() -> bool) -> Option<bool> {
        if self.made == self.most {
            return None;
        }
        self.made += 1;
        Some(self.made <= self.skipped || look())
    }

    /// Whether no more of them are made in this step.
    pub fn are_enough(&self) -> bool {
        self.made == self.most
    }
}

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
    /// The call is not made in portions: all is done in this step, however much it is.
    at_once: bool,
}

impl Part {
    /// All of them, of a call that is one portion.
    pub const AT_ONCE: Part = Part { first: 0, is_whole: true, contents: false, at_once: true };

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
        let little = self.part().is_little(self.pages(), self.work());
        self.part().at_once || little && self.looks.skipped == 0
    }

    /// The first entry that is left to do after this step.
    #[inline(always)]
    pub(super) fn end(&self, list: List) -> u64 {
        match self.is_to_be_done() {
            true => self.rest().unwrap_or(list.count),
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
        let mut part =
            Part { first: list.done(), is_whole: list.done() == 0, contents, at_once: false };
        let mut looked = list.looked();
        loop {
            scratch.looks = match part.is_whole {
                true => Looks { skipped: looked, made: 0, most: looked + LOOKS },
                false => Looks::ALL,
            };
            let end = match step(scratch, part) {
                Ok(end) => end,
                Err(Refusal { error: Error::Retry, .. }) if scratch.looks.are_enough() => {
                    looked += LOOKS;
                    if self.machine.interrupt_pending() {
                        return Ok(Progress::Again(List::progress(0, looked, 0)));
                    }
                    continue;
                }
                Err(refusal) => {
                    let broken = if part.first == 0 { 0 } else { scratch.broken };
                    return Err(Refusal { done: List::progress(part.first, 0, broken), ..refusal });
                }
            };
            if end == list.count {
                return Ok(Progress::Done { broken: scratch.broken });
            }
            if end > part.first && self.machine.interrupt_pending() {
                return Ok(Progress::Again(List::progress(end, 0, scratch.broken)));
            }
            part = Part { first: end, is_whole: false, ..part };
        }
    }
}
