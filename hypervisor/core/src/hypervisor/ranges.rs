// SPDX-License-Identifier: MIT OR Apache-2.0

//! The calls of guests about ranges of their own addresses.

use escrow_abi::{Error, FrameState, MODIFY_MAX, call, run};

use super::oracle::Asked;
use super::pieces::Piece;
use super::portions::{PORTION_PAGES, Progress};
use super::{Hypervisor, Refusal, check_range};
use crate::addr::{Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::ledger::{Block, GuestId, Record, VmId, page_in_block};
use crate::machine::Machine;
use crate::vcpu::Answer;
use crate::vm::{Run, Vm};

/// Frames of one block that a guest's addresses lead to.
pub(super) struct Found {
    block: Block,
    pub frame: PhysAddr,
    pub piece: Piece,
}

/// A range of the calling guest's addresses, and its progress: `x1`, `x2` and `x7`, or
/// what stands for them.
pub(super) type Range = (u64, u64, u64);

/// How far a call over a range has come, in pages. `x7` holds it: the pages that are done
/// in bits 31:0, those that were checked beforehand in 61:32, and two flags of the call
/// in 63:62.
#[derive(Clone, Copy)]
struct Reached {
    done: u64,
    checked: u64,
    /// Two bits that a call keeps for itself.
    kept: u64,
}

const CHECKED_SHIFT: u32 = 32;
const KEPT_SHIFT: u32 = 62;

impl Reached {
    const fn from_register(x7: u64) -> Reached {
        let checked = x7 >> CHECKED_SHIFT & ((1 << (KEPT_SHIFT - CHECKED_SHIFT)) - 1);
        Reached { done: x7 as u32 as u64, checked, kept: x7 >> KEPT_SHIFT }
    }

    const fn to_register(self) -> u64 {
        self.kept << KEPT_SHIFT | self.checked << CHECKED_SHIFT | self.done
    }
}

/// Pages of a guest's range that a call may change: they were checked, and the lock of
/// the VM is held. A frame that a VM borrows changes only under that lock.
struct PreparedRange<'v> {
    vm: &'v mut Vm,
    at: u64,
    end: u64,
}

/// [`call::MEM_ASK_BACK`]: the owner of some page has access to it.
const OPEN: u64 = 1 << 0;
/// The host is such an owner.
const OPEN_TO_HOST: u64 = 1 << 1;

impl<M: Machine> Hypervisor<M> {
    /// [`call::MODIFY_PAGES`]: every page of the range must be lent to the
    /// guest; if one is not, none changes.
    pub(super) fn modify_pages(
        &self,
        run: &Run<'_>,
        address_space: u64,
        range: Range,
        flags: u64,
    ) -> Result<Progress, Refusal> {
        let known = call::MODIFY_UNLOCK | call::MODIFY_SANITIZE | call::MODIFY_FLUSH;
        if address_space != 0 || flags == 0 || flags & !known != 0 {
            return Err(Error::InvalidArgument.into());
        }
        let sanitize = flags & call::MODIFY_SANITIZE != 0;
        let allowed = |record: Record| {
            use FrameState::{Lent, UnlockedContents, UnlockedZeroed};
            matches!(record.state(), Some(Lent | UnlockedZeroed | UnlockedContents))
        };
        let modify = |found: &Found, vm: &mut Vm| {
            // If the memory is broken, the guest's own access fails as EL2's did. When the page
            // comes home, EL2 zeroes it again, fails, and poisons it.
            if sanitize {
                let _ = self.machine.zero(found.frame, found.piece.size());
            } else if flags & call::MODIFY_FLUSH != 0 {
                let _ = self.machine.clean_to_poc(found.frame, found.piece.size());
            }
            if flags & call::MODIFY_UNLOCK != 0 {
                let state = if sanitize {
                    FrameState::UnlockedZeroed
                } else {
                    FrameState::UnlockedContents
                };
                self.set_state(found, vm, state, (run.id().into(), Asked::Unlock));
            }
        };
        self.for_range(run, range, allowed, modify, false)
    }

    /// [`call::MEM_SHARE_BACK`]: opens lent pages to their owner.
    ///
    /// The owner may die at any moment: no lock of this call keeps it alive. So the call
    /// checks once, with the page, that the owner lives.
    pub(super) fn share_back(&self, run: &Run<'_>, range: Range) -> Result<Progress, Refusal> {
        let allowed = |record: Record| record.is(FrameState::Lent) && !self.is_dead(record.owner());
        let open = |found: &Found, vm: &mut Vm| {
            // The owner may read without caches. If the memory is broken, it may miss what the
            // guest wrote last, but sees nothing of anybody else.
            let _ = self.machine.clean_to_poc(found.frame, found.piece.size());
            self.set_state(found, vm, FrameState::SharedBack, (run.id().into(), Asked::ShareBack));
        };
        self.for_range(run, range, allowed, open, true)
    }

    /// [`call::MEM_ASK_BACK`]: succeeds if no owner has access to any page of the range.
    /// Otherwise, if the host is such an owner, `ask` becomes what it is to be asked.
    pub(super) fn ask_back(
        &self,
        run: &mut Run<'_>,
        (at, size, x7): Range,
        ask: &mut Option<Answer>,
    ) -> Result<Progress, Refusal> {
        let allowed = |record: Record| {
            matches!(record.state(), Some(FrameState::Lent | FrameState::SharedBack))
        };
        let asked = core::mem::take(&mut run.asked_back);
        let pages = pages_of(at, size, self.guest_geometry.end())?;
        let mut reached = Reached::from_register(x7);
        if reached.checked >= pages {
            return Err(Error::InvalidArgument.into());
        }
        while reached.checked < pages {
            let mut vm = run.slot().lock();
            let (from, end) = next_portion(at, reached.checked, pages);
            self.for_pieces(run.id(), &mut vm, (from, end), &allowed, |found, _| {
                if found.piece.record.is(FrameState::SharedBack) {
                    let to_host = found.piece.record.owner() == VmId::Host;
                    reached.kept |= OPEN | if to_host { OPEN_TO_HOST } else { 0 };
                }
            })?;
            drop(vm);
            reached.checked = (end - at) / PAGE_SIZE;
            if reached.checked < pages && self.machine.interrupt_pending() {
                run.asked_back = asked;
                return Ok(Progress::Again(reached.to_register()));
            }
        }
        match (reached.kept & OPEN != 0, reached.kept & OPEN_TO_HOST != 0 && !asked) {
            (false, _) => {}
            (true, false) => return Err(Error::Busy.into()),
            (true, true) => {
                run.asked_back = true;
                *ask = Some([run::TAKE_BACK, at, size, 0]);
            }
        }
        Ok(Progress::Done { broken: 0 })
    }

    /// Puts a piece into another state; its host's or owner's view follows.
    pub(super) fn set_state(
        &self,
        found: &Found,
        vm: &mut Vm,
        state: FrameState,
        call: (VmId, Asked),
    ) {
        let old = found.piece.record;
        self.set_frames(found.block, found.frame, &found.piece, old.with_state(state), call);
        let (first, pages) = (page_in_block(found.frame), found.piece.pages);
        if self.ledger.records(found.block).go_on_around(first, pages) {
            self.host.merge(&self.machine, &self.ledger, found.block, found.frame);
        }
        if let Some(old) = old.state() {
            vm.counts.remove(old, found.piece.pages as u64);
            vm.counts.add(state, found.piece.pages as u64);
        }
        let maps = [(call.0, vm.map.as_ref())];
        self.oracle_look_at(found.block, found.frame, found.piece.pages, &maps);
    }

    /// Checks a range of a guest's addresses, page by page, then works on it with `f`,
    /// portion by portion ([`portions`](super::portions)). Pages must be borrowed by the
    /// guest and `allowed`. `syncs_fetches`: what is in them may be executed elsewhere.
    fn for_range(
        &self,
        run: &Run<'_>,
        (at, size, x7): Range,
        allowed: impl Fn(Record) -> bool,
        mut f: impl FnMut(&Found, &mut Vm),
        syncs_fetches: bool,
    ) -> Result<Progress, Refusal> {
        let pages = pages_of(at, size, self.guest_geometry.end())?;
        let mut reached = Reached::from_register(x7);
        if reached.done >= pages || reached.checked > pages || reached.kept != 0 {
            return Err(Error::InvalidArgument.into());
        }
        // Pages that are done have changed, so they are not checked again.
        reached.checked = reached.checked.max(reached.done);
        loop {
            let mut vm = run.slot().lock();
            let only_checks = pages > PORTION_PAGES && reached.checked < pages;
            let from = if only_checks { reached.checked } else { reached.done };
            let portion = next_portion(at, from, pages);
            let prepared = self
                .prepare_range(run.id(), &mut vm, portion, &allowed)
                .map_err(|error| Refusal { done: reached.done, ..error.into() })?;
            let to = (portion.1 - at) / PAGE_SIZE;
            if only_checks {
                reached.checked = to;
            } else {
                self.commit_range(prepared, &mut f, syncs_fetches);
                reached.done = to;
            }
            drop(vm);
            if reached.done == pages {
                return Ok(Progress::Done { broken: 0 });
            }
            if self.machine.interrupt_pending() {
                return Ok(Progress::Again(reached.to_register()));
            }
        }
    }

    fn prepare_range<'v>(
        &self,
        id: GuestId,
        vm: &'v mut Vm,
        (at, end): (u64, u64),
        allowed: &impl Fn(Record) -> bool,
    ) -> Result<PreparedRange<'v>, Error> {
        self.for_pieces(id, vm, (at, end), allowed, |_, _| {})?;
        Ok(PreparedRange { vm, at, end })
    }

    fn commit_range(
        &self,
        prepared: PreparedRange<'_>,
        f: &mut impl FnMut(&Found, &mut Vm),
        syncs_fetches: bool,
    ) {
        let PreparedRange { vm, at, end } = prepared;
        let mut next = at;
        // The pieces are those that the check found: the VM's lock is held since.
        while next < end
            && let Ok(size) = self.find(vm, Ipa(next), end - next, |found, vm| f(found, vm))
        {
            next += size;
        }
        if syncs_fetches {
            self.machine.sync_fetches();
        }
        self.machine.publish();
    }

    /// Shows what is behind the addresses of a portion; refuses what a call over a
    /// range may not be about.
    fn for_pieces(
        &self,
        id: GuestId,
        vm: &mut Vm,
        (at, end): (u64, u64),
        allowed: &impl Fn(Record) -> bool,
        mut f: impl FnMut(&Found, &mut Vm),
    ) -> Result<(), Error> {
        let mut next = at;
        while next < end {
            let mut fits = false;
            next += self.find(vm, Ipa(next), end - next, |found, vm| {
                let record = found.piece.record;
                fits = record.holder() == Some(id) && allowed(record);
                if fits {
                    f(found, vm);
                }
            })?;
            if !fits {
                return Err(Error::Denied);
            }
        }
        Ok(())
    }

    /// Hands the frames from a guest address on to `f`, as far as they are
    /// alike, under the lock of their block. Returns how many bytes that was.
    pub(super) fn find(
        &self,
        vm: &mut Vm,
        at: Ipa,
        size: u64,
        f: impl FnOnce(&Found, &mut Vm),
    ) -> Result<u64, Error> {
        let map = vm.map.as_ref().ok_or(Error::Denied)?;
        let (frame, leaf) = map.frame(&self.machine, at).ok_or(Error::InvalidAddress)?;
        if !leaf.entry.is_valid() {
            return Err(Error::InvalidAddress);
        }
        let block = self.ledger.locate(frame).ok_or(Error::InvalidAddress)?;
        let first = page_in_block(frame);
        let pages = if leaf.level == 2 {
            ((size / PAGE_SIZE) as usize).min(PAGES_PER_BLOCK - first)
        } else {
            1
        };
        self.ledger.lock(block);
        let size = self.pieces_of(block, first, pages).next().map(|piece| {
            f(&Found { block, frame, piece }, vm);
            piece.size()
        });
        self.ledger.unlock(block);
        size.ok_or(Error::InvalidAddress)
    }
}

/// Checks a range; returns how many pages it has.
fn pages_of(at: u64, size: u64, end: u64) -> Result<u64, Error> {
    if size > MODIFY_MAX && at.is_multiple_of(PAGE_SIZE) && size.is_multiple_of(PAGE_SIZE) {
        return Err(Error::InvalidSize);
    }
    check_range(at, size, end)?;
    Ok(size / PAGE_SIZE)
}

/// The addresses of the portion that begins with a page of a range.
fn next_portion(at: u64, page: u64, pages: u64) -> (u64, u64) {
    let end = pages.min(page + PORTION_PAGES);
    (at + page * PAGE_SIZE, at + end * PAGE_SIZE)
}
