// SPDX-License-Identifier: MIT OR Apache-2.0

//! The calls of guests about memory.

use escrow_abi::{Error, FrameState, Handle, MODIFY_MAX, call, run};

use super::extents::Scratch;
use super::list::Reader;
use super::memory::Give;
use super::oracle::Asked;
use super::parties::Party;
use super::pieces::Piece;
use super::take::{Sides, Taking};
use super::{Hypervisor, Refusal, check_range};
use crate::addr::{Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::ledger::{Block, Record, VmId, page_in_block};
use crate::machine::{Machine, Note};
use crate::vcpu::Answer;
use crate::vm::{Run, Vm};

/// What a guest's call comes to.
pub(crate) enum GuestCall {
    /// An answer, in `x0`–`x3`.
    Return([u64; 4]),
    /// The host has to know, and the guest makes its call again.
    Ask(Answer),
}

/// Frames of one block that a guest's addresses lead to.
struct Found {
    block: Block,
    frame: PhysAddr,
    piece: Piece,
}

impl<M: Machine> Hypervisor<M> {
    /// Answers a guest's call about memory. `args` are its `x0`–`x7`.
    pub(crate) fn guest_call(
        &self,
        scratch: &mut Scratch,
        run: &mut Run<'_>,
        args: &[u64; 8],
    ) -> GuestCall {
        self.machine.note(|| Note::Begin(args[0]));
        let answer = self.answer_guest(scratch, run, args);
        self.machine.note(|| {
            Note::End(match answer {
                GuestCall::Return([x0, ..]) => x0,
                GuestCall::Ask(_) => 0,
            })
        });
        answer
    }

    #[inline(always)]
    fn answer_guest(&self, scratch: &mut Scratch, run: &mut Run<'_>, args: &[u64; 8]) -> GuestCall {
        let [function, a, b, c, d, ..] = *args;
        let function = function as u32;
        scratch.broken = 0;
        let arguments = match function {
            call::MODIFY_PAGES => 4,
            call::MEM_SHARE | call::MEM_LEND | call::MEM_DONATE => 3,
            _ => 2,
        };
        let result = if args[1 + arguments..].iter().any(|&reserved| reserved != 0) {
            Err(Error::InvalidArgument.into())
        } else {
            match function {
                call::MODIFY_PAGES => self.modify_pages(run, a, b, c, d).map_err(Refusal::from),
                call::MEM_SHARE => self.guest_gives_to(scratch, run, Give::Share, a, (b, c)),
                call::MEM_LEND => self.guest_gives_to(scratch, run, Give::Lend, a, (b, c)),
                call::MEM_DONATE => self.guest_gives_to(scratch, run, Give::Donate, a, (b, c)),
                call::MEM_UNSHARE => self.guest_takes(scratch, run, Taking::Unshare, a, b),
                call::MEM_RECLAIM => self.guest_takes(scratch, run, Taking::Reclaim, a, b),
                call::MEM_TAKE_BACK => self.guest_takes(scratch, run, Taking::TakeBack, a, b),
                call::MEM_SHARE_BACK => self.share_back(run, a, b).map_err(Refusal::from),
                call::MEM_ASK_BACK => match self.ask_back(run, a, b) {
                    Ok(None) => Ok(()),
                    Ok(Some(ask)) => return GuestCall::Ask(ask),
                    Err(error) => Err(error.into()),
                },
                _ => Err(Error::Unimplemented.into()),
            }
        };
        GuestCall::Return(match result {
            Ok(()) => [0, 0, scratch.broken, 0],
            Err(Refusal { error, index, detail }) => [error.to_register(), index, detail, 0],
        })
    }

    fn guest_gives_to(
        &self,
        scratch: &mut Scratch,
        run: &Run<'_>,
        kind: Give,
        handle: u64,
        list: (u64, u64),
    ) -> Result<(), Refusal> {
        let id = run.id();
        if handle == Handle::HOST && kind == Give::Donate {
            let mut vm = run.slot().lock();
            let mut from = Party { id, vm: &mut vm };
            return self.guest_gives(scratch, kind, &mut from, None, list);
        }
        // Which VM it is decides the order of the locks; it is looked up again
        // under both. Without one, the list is looked at for the sake of its error alone.
        let object = run.slot().lock().capabilities.get(handle).map(|found| found.object);
        let (mut own, mut other) = self.lock_pair(id, object.unwrap_or(id));
        let own = own.as_deref_mut().ok_or(Error::Denied)?;
        let named = if handle == Handle::HOST {
            Err(Error::Denied)
        } else {
            own.capabilities.get(handle).copied()
        };
        let found = named.and_then(|capability| {
            let Some(vm) = other.as_deref_mut().filter(|_| object == Ok(capability.object)) else {
                return Err(Error::HandleRevoked);
            };
            if vm.generation != capability.generation || !vm.is_live() {
                return Err(Error::HandleRevoked);
            }
            if !capability.has(kind.right()) {
                return Err(Error::Denied);
            }
            Ok((capability, vm))
        });
        match found {
            Ok((capability, vm)) => {
                let mut from = Party { id, vm: own };
                let mut to = Party { id: capability.object, vm };
                self.guest_gives(scratch, kind, &mut from, Some((&mut to, &capability)), list)
            }
            Err(error) => {
                let map = own.map.as_ref().ok_or(Error::Denied)?;
                self.read_list(scratch, Reader::Guest(map), kind.form(), list.0, list.1)?;
                scratch.sort_by_guest()?;
                Err(error.into())
            }
        }
    }

    fn guest_takes(
        &self,
        scratch: &mut Scratch,
        run: &Run<'_>,
        kind: Taking,
        list: u64,
        count: u64,
    ) -> Result<(), Refusal> {
        let id = run.id();
        let peek = |scratch: &mut Scratch, vm: &Vm| {
            let map = vm.map.as_ref().ok_or(Error::Denied)?;
            self.read_list(scratch, Reader::Guest(map), kind.form(), list, count)?;
            self.prepare_list(scratch)?;
            self.peek(scratch)
        };
        let (_, borrower) = peek(scratch, &run.slot().lock())?;
        let (mut own, mut other) = self.lock_pair(id, borrower);
        let own = own.as_deref_mut().ok_or(Error::Denied)?;
        // What the list leads to may be something else by now.
        let (_, now) = peek(scratch, own)?;
        if now != borrower {
            return Err(Error::Retry.into());
        }
        let mut owner = Party { id, vm: own };
        let mut borrower = other.as_deref_mut().map(|vm| Party { id: borrower, vm });
        let sides = Sides { owner: Some(&mut owner), borrower: borrower.as_mut(), inherits: false };
        self.take(scratch, kind, id, sides)
    }

    /// [`call::MODIFY_PAGES`]: every page of the range must be lent to the
    /// guest; if one is not, none changes.
    fn modify_pages(
        &self,
        run: &Run<'_>,
        address_space: u64,
        at: u64,
        size: u64,
        flags: u64,
    ) -> Result<(), Error> {
        let known = call::MODIFY_UNLOCK | call::MODIFY_SANITIZE | call::MODIFY_FLUSH;
        if address_space != 0 || flags == 0 || flags & !known != 0 {
            return Err(Error::InvalidArgument);
        }
        let sanitize = flags & call::MODIFY_SANITIZE != 0;
        let allowed = |record: Record| {
            use FrameState::{Lent, UnlockedContents, UnlockedZeroed};
            matches!(record.state(), Some(Lent | UnlockedZeroed | UnlockedContents))
        };
        let mut vm = run.slot().lock();
        self.for_range(run.id(), &mut vm, at, size, allowed, |found, vm| {
            // If the memory is broken, the guest learns it where it reads there: its own
            // access fails as EL2's did. On the way home, EL2 tries again and poisons it.
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
                self.set_state(found, vm, state, (run.id(), Asked::Unlock));
            }
        })
    }

    /// [`call::MEM_SHARE_BACK`]: opens lent pages to their owner.
    fn share_back(&self, run: &Run<'_>, at: u64, size: u64) -> Result<(), Error> {
        let allowed = |record: Record| record.is(FrameState::Lent) && !self.is_dead(record.owner());
        let mut vm = run.slot().lock();
        self.for_range(run.id(), &mut vm, at, size, allowed, |found, vm| {
            // The owner may look without caches. It may not see what the guest wrote
            // last if the memory is broken, but nothing that is not the guest's or its own.
            let _ = self.machine.clean_to_poc(found.frame, found.piece.size());
            self.set_state(found, vm, FrameState::SharedBack, (run.id(), Asked::ShareBack));
        })?;
        self.machine.sync_fetches();
        self.machine.publish();
        Ok(())
    }

    /// [`call::MEM_ASK_BACK`]: what the host is to be asked, unless all owners have let go.
    fn ask_back(&self, run: &mut Run<'_>, at: u64, size: u64) -> Result<Option<Answer>, Error> {
        let asked = core::mem::take(&mut run.asked_back);
        let allowed = |record: Record| {
            matches!(record.state(), Some(FrameState::Lent | FrameState::SharedBack))
        };
        let (mut open, mut to_host) = (false, false);
        let mut vm = run.slot().lock();
        self.for_range(run.id(), &mut vm, at, size, allowed, |found, _| {
            if found.piece.record.is(FrameState::SharedBack) {
                open = true;
                to_host |= found.piece.record.owner() == VmId::HOST;
            }
        })?;
        drop(vm);
        match (open, to_host && !asked) {
            (false, _) => Ok(None),
            (true, false) => Err(Error::Busy),
            (true, true) => {
                run.asked_back = true;
                Ok(Some([run::TAKE_BACK, at, size, 0]))
            }
        }
    }

    /// Puts a piece into another state; its host's or owner's view follows.
    fn set_state(&self, found: &Found, vm: &mut Vm, state: FrameState, call: (VmId, Asked)) {
        let old = found.piece.record;
        self.set_frames(found.block, found.frame, &found.piece, old.with_state(state), call);
        self.host.merge(&self.machine, &self.ledger, found.block, found.frame);
        if let Some(old) = old.state() {
            vm.counts.remove(old, found.piece.pages as u64);
            vm.counts.add(state, found.piece.pages as u64);
        }
        let maps = [(call.0, vm.map.as_ref())];
        self.oracle_look_at(found.block, found.frame, found.piece.pages, &maps);
    }

    /// Checks a range of a guest's addresses, page by page, then works on all
    /// of it. Pages must be borrowed by the guest and `allowed`.
    ///
    /// A frame that this VM borrows changes only under the VM's lock, so what
    /// the first pass finds still holds in the second.
    fn for_range(
        &self,
        id: VmId,
        vm: &mut Vm,
        at: u64,
        size: u64,
        allowed: impl Fn(Record) -> bool,
        mut f: impl FnMut(&Found, &mut Vm),
    ) -> Result<(), Error> {
        if size > MODIFY_MAX && at.is_multiple_of(PAGE_SIZE) && size.is_multiple_of(PAGE_SIZE) {
            return Err(Error::InvalidSize);
        }
        let end = check_range(at, size, self.guest_geometry.end())?;
        for commit in [false, true] {
            let mut next = at;
            while next < end {
                next += self.find(vm, Ipa(next), end - next, |found, vm| {
                    let record = found.piece.record;
                    if record.holder() != Some(id) || !allowed(record) {
                        return Err(Error::Denied);
                    }
                    if commit {
                        f(found, vm);
                    }
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Hands the frames from a guest address on to `f`, as far as they are
    /// alike, under the lock of their block. Returns how many bytes that was.
    fn find(
        &self,
        vm: &mut Vm,
        at: Ipa,
        size: u64,
        f: impl FnOnce(&Found, &mut Vm) -> Result<(), Error>,
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
        let piece = self.pieces_of(block, first, pages).next();
        let result = match piece {
            Some(piece) => f(&Found { block, frame, piece }, vm).map(|()| piece.size()),
            None => Err(Error::InvalidAddress),
        };
        self.ledger.unlock(block);
        result
    }
}
