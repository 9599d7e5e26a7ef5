// SPDX-License-Identifier: MIT OR Apache-2.0

//! The calls of guests about memory.

use escrow_abi::{Error, Handle, call};

use super::calls::{Success, calls};
use super::extents::Scratch;
use super::list::{List, Reader};
use super::memory::Give;
use super::parties::Party;
use super::portions::{Part, Progress};
use super::take::{Sides, Taking};
use super::{Hypervisor, Refusal};
use crate::machine::{Machine, Note};
use crate::vcpu::Answer;
use crate::vm::{Run, Vm};

/// What a guest's call comes to.
pub(crate) enum GuestCall {
    /// An answer, in `x0`–`x3`.
    Return([u64; 4]),
    /// An interrupt is pending: the guest makes its call again.
    Again,
    /// The host has to know, and the guest makes its call again.
    Ask(Answer),
}

impl<M: Machine> Hypervisor<M> {
    /// Answers a guest's call about memory. `args` are its `x0`–`x7`, of which the last is
    /// changed if it is the call's progress.
    pub(crate) fn guest_call(
        &self,
        scratch: &mut Scratch,
        run: &mut Run<'_>,
        args: &mut [u64; 8],
    ) -> GuestCall {
        self.machine.note(|| Note::Begin(args[0]));
        let answer = self.answer_guest(scratch, run, args);
        self.machine.note(|| {
            Note::End(match answer {
                GuestCall::Return([x0, ..]) => x0,
                GuestCall::Again | GuestCall::Ask(_) => 0,
            })
        });
        answer
    }

    #[inline(always)]
    fn answer_guest(
        &self,
        scratch: &mut Scratch,
        run: &mut Run<'_>,
        args: &mut [u64; 8],
    ) -> GuestCall {
        let mut ask = None;
        let result = self.dispatch_guest(scratch, run, args, &mut ask);
        match (result, ask) {
            (Ok(_), Some(ask)) => GuestCall::Ask(ask),
            (Ok(Success::Answer([x1, x2, x3, _])), None) => GuestCall::Return([0, x1, x2, x3]),
            (Ok(Success::Again(progress)), None) => {
                args[7] = progress;
                GuestCall::Again
            }
            (Err(Refusal { error, index, detail, done }), _) => {
                GuestCall::Return([error.to_register(), index, detail, done])
            }
        }
    }

    /// The table of guests' calls about memory. `ask` is what the host is to be asked
    /// first.
    #[inline(always)]
    fn dispatch_guest(
        &self,
        scratch: &mut Scratch,
        run: &mut Run<'_>,
        x: &mut [u64; 8],
        ask: &mut Option<Answer>,
    ) -> Result<Success, Refusal> {
        let function = x[0] as u32;
        let list = |at, count, progress| List { at, count, progress };
        calls! { function, x:
            MODIFY_PAGES(space, at, size, flags; progress) => {
                self.modify_pages(run, space, (at, size, progress), flags)
            },
            MEM_SHARE(handle, at, count; progress) => {
                self.guest_gives_to(scratch, run, Give::Share, handle, list(at, count, progress))
            },
            MEM_LEND(handle, at, count; progress) => {
                self.guest_gives_to(scratch, run, Give::Lend, handle, list(at, count, progress))
            },
            MEM_DONATE(handle, at, count; progress) => {
                self.guest_gives_to(scratch, run, Give::Donate, handle, list(at, count, progress))
            },
            MEM_UNSHARE(at, count; progress) => {
                self.guest_takes(scratch, run, Taking::Unshare, list(at, count, progress))
            },
            MEM_RECLAIM(at, count; progress) => {
                self.guest_takes(scratch, run, Taking::Reclaim, list(at, count, progress))
            },
            MEM_TAKE_BACK(at, count; progress) => {
                self.guest_takes(scratch, run, Taking::TakeBack, list(at, count, progress))
            },
            MEM_SHARE_BACK(at, size; progress) => self.share_back(run, (at, size, progress)),
            MEM_ASK_BACK(at, size; progress) => self.ask_back(run, (at, size, progress), ask),
        }
    }

    fn guest_gives_to(
        &self,
        scratch: &mut Scratch,
        run: &Run<'_>,
        kind: Give,
        handle: u64,
        list: List,
    ) -> Result<Progress, Refusal> {
        let home = handle == Handle::HOST && kind == Give::Donate;
        // A donation to the host is cleaned always, even if the guest's accesses were cached.
        let contents = home || kind.hides() && self.machine.needs_clean();
        self.in_portions(scratch, list, contents, |scratch, part| {
            if home {
                let mut vm = run.slot().lock();
                let mut from = Party { id: run.id(), vm: &mut vm };
                return self.guest_gives(scratch, kind, &mut from, None, (list, part));
            }
            self.guest_gives_to_guest(scratch, run, kind, handle, (list, part))
        })
    }

    fn guest_gives_to_guest(
        &self,
        scratch: &mut Scratch,
        run: &Run<'_>,
        kind: Give,
        handle: u64,
        (list, part): (List, Part),
    ) -> Result<u64, Refusal> {
        let id = run.id();
        // The order of the locks depends on which VM the handle names, so look it up first, and
        // again under both locks. Without such a VM, the list is read only to find which error
        // comes first.
        let object = run.slot().lock().capabilities.get(handle).map(|found| found.object);
        let (mut own, mut other) = self.lock_pair(Some(id), object.ok().or(Some(id)));
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
            // A VM may have become a protected one since the grant: nothing but what EL2 zeroes comes to it.
            let is_protected = vm.map.as_ref().is_some_and(|map| map.shared_bit().is_some());
            if is_protected || !capability.has(kind.right()) {
                return Err(Error::Denied);
            }
            Ok((capability, vm))
        });
        match found {
            Ok((capability, vm)) => {
                let mut from = Party { id, vm: own };
                let mut to = Party { id: capability.object, vm };
                self.guest_gives(
                    scratch,
                    kind,
                    &mut from,
                    Some((&mut to, &capability)),
                    (list, part),
                )
            }
            Err(error) => {
                let map = own.map.as_ref().ok_or(Error::Denied)?;
                self.read_list(scratch, Reader::Guest(map), kind.form(), list, part)?;
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
        list: List,
    ) -> Result<Progress, Refusal> {
        self.in_portions(scratch, list, self.works_on_contents(kind), |scratch, part| {
            let id = run.id();
            let peek = |scratch: &mut Scratch, vm: &Vm| {
                let map = vm.map.as_ref().ok_or(Error::Denied)?;
                self.read_list(scratch, Reader::Guest(map), kind.form(), list, part)?;
                scratch.sort_by_frame()?;
                self.peek(scratch)
            };
            let (_, borrower) = peek(scratch, &run.slot().lock())?;
            let (mut own, mut other) = self.lock_pair(Some(id), borrower);
            let own = own.as_deref_mut().ok_or(Error::Denied)?;
            // The list may have changed since, and name pages of another borrower.
            let (_, now) = peek(scratch, own)?;
            if now != borrower {
                return Err(Error::Retry.into());
            }
            let mut owner = Party { id, vm: own };
            let mut borrower = borrower.zip(other.as_deref_mut()).map(|(id, vm)| Party { id, vm });
            let sides =
                Sides { owner: Some(&mut owner), borrower: borrower.as_mut(), inherits: false };
            self.take(scratch, kind, id.into(), sides)?;
            Ok(scratch.end(list))
        })
    }
}
