// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's calls: which number does what.
//!
//! Two tables say all there is to say of a call's number: [`immediate`] those that need
//! nothing but it, and [`Hypervisor::dispatch`] the others, with their arguments and what
//! answers them.

use escrow_abi::{Error, FrameState, call};

use super::list::{List, Reader};
use super::memory::Give;
use super::portions::Progress;
use super::take::Taking;
use super::{Hypervisor, Refusal, Scratch};
use crate::addr::PhysAddr;
use crate::doorbell::Action;
use crate::ledger::{VmId, page_in_block};
use crate::machine::{Machine, Note};
use crate::vm::Run;

const NOT_SUPPORTED: u64 = Error::Unimplemented.to_register();
const SMCCC_1_2: u64 = 0x10002;

/// The call that hosts make most, for the vectors to compare with:
/// [`Hypervisor::host_lends_one`] is tried for it.
pub const LENDS_ONE: u32 = call::MEM_LEND_ONE;

/// The answer, in `x0`–`x4`, to a call that needs nothing but its number: for
/// the machine half to ask before it sets out for [`Hypervisor::host_call`].
#[inline(always)]
pub const fn immediate(function: u32) -> Option<[u64; 5]> {
    match function {
        call::HYP_IDENTIFY => Some([call::IDENTIFY_INFO, 0, 0, 0, 0]),
        call::SMCCC_VERSION => Some([SMCCC_1_2, 0, 0, 0, 0]),
        call::VENDOR_HYP_UID => {
            let [w0, w1, w2, w3] = call::UID;
            Some([w0 as u64, w1 as u64, w2 as u64, w3 as u64, 0])
        }
        _ => None,
    }
}

/// What becomes of a host's HVC.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is answered.
    Answer,
    /// An interrupt is pending: the host is to make its call again, with the registers as
    /// they are now.
    Again,
}

/// What a call comes to that has no error.
pub(super) enum Success {
    /// `x1`–`x4`.
    Answer([u64; 4]),
    /// `x7`, to make the call again with.
    Again(u64),
}

impl From<()> for Success {
    fn from((): ()) -> Success {
        Success::Answer([0; 4])
    }
}

impl From<u64> for Success {
    fn from(value: u64) -> Success {
        Success::Answer([value, 0, 0, 0])
    }
}

impl From<[u64; 4]> for Success {
    fn from(values: [u64; 4]) -> Success {
        Success::Answer(values)
    }
}

impl From<Progress> for Success {
    fn from(progress: Progress) -> Success {
        match progress {
            Progress::Done { broken } => Success::Answer([0, broken, 0, 0]),
            Progress::Again(x7) => Success::Again(x7),
        }
    }
}

/// A table of calls: for each number its arguments, in the order of their registers, and
/// what answers it. All registers behind the arguments must be zero, but `x7` in a call
/// that has it as its `progress`, which is zero afterwards.
macro_rules! calls {
    ($function:ident, $x:ident: $(
        $call:ident($($argument:ident),* $(; $progress:ident)?) => $answer:expr,
    )*) => {
        match $function {
            $(call::$call => {
                $(let $progress = core::mem::take(&mut $x[7]);)?
                let [_, $($argument,)* reserved @ ..] = *$x;
                if reserved.iter().any(|&word| word != 0) {
                    return Err(Error::InvalidArgument.into());
                }
                $answer.map(Into::into).map_err(Into::into)
            })*
            _ => Err(Error::Unimplemented.into()),
        }
    };
}
pub(super) use calls;

impl<M: Machine> Hypervisor<M> {
    /// Begins a [`call::VCPU_RUN`] of the host: a vCPU is to be run, and what that ends
    /// with is the answer. `None`: it is answered, by `x0`–`x4`.
    #[inline(always)]
    pub fn host_runs(&self, x: &mut [u64; 8]) -> Option<Run<'_>> {
        self.machine.note(|| Note::Begin(x[0]));
        match self.vcpu_run(x) {
            Ok(run) => {
                self.machine.note(|| Note::End(0));
                Some(run)
            }
            Err(answer) => {
                x[..5].copy_from_slice(&answer);
                self.machine.note(|| Note::End(x[0]));
                None
            }
        }
    }

    /// Answers any other HVC of the host. `x` are its `x0`–`x7`; the answer goes to
    /// the first five of them.
    #[inline(always)]
    pub fn host_call(&self, scratch: &mut Scratch, x: &mut [u64; 8]) -> Reply {
        self.machine.note(|| Note::Begin(x[0]));
        // SMCCC: the identifier is 32 bits, and what is above must be ignored.
        let reply = self.slow_call(scratch, x[0] as u32, x);
        self.machine.note(|| Note::End(if reply == Reply::Again { 0 } else { x[0] }));
        reply
    }

    /// [`call::MEM_LEND_ONE`], for the machine half to try first. `false`: it is for
    /// [`Self::host_call`] after all.
    #[inline(always)]
    pub fn host_lends_one(&self, x: &mut [u64; 8]) -> bool {
        self.machine.note(|| Note::Begin(x[0]));
        let [_, vm, words @ .., x6, x7] = *x;
        if x6 | x7 != 0 {
            return false;
        }
        let Some(broken) = self.lend_one(vm, words) else { return false };
        self.machine.note(|| Note::End(0));
        x[..5].copy_from_slice(&[0, 0, broken, 0, 0]);
        true
    }

    /// The same for [`call::MEM_LEND`] with a list of one entry.
    #[inline(never)]
    pub fn host_lends_list_of_one(&self, x: &mut [u64; 8]) -> bool {
        self.machine.note(|| Note::Begin(x[0]));
        let [_, vm, list, count, x4, x5, x6, x7] = *x;
        if (count ^ 1) | x4 | x5 | x6 | x7 != 0 {
            return false;
        }
        let Some(words) = self.read_one(PhysAddr(list)) else { return false };
        let Some(broken) = self.lend_one(vm, words) else { return false };
        self.machine.note(|| Note::End(0));
        x[..5].copy_from_slice(&[0, 0, broken, 0, 0]);
        true
    }

    #[inline(never)]
    fn slow_call(&self, scratch: &mut Scratch, function: u32, x: &mut [u64; 8]) -> Reply {
        let answer = match function {
            call::SMCCC_ARCH_FEATURES => {
                let known = matches!(x[1] as u32, call::SMCCC_VERSION | call::SMCCC_ARCH_FEATURES);
                [if known { 0 } else { NOT_SUPPORTED }, 0, 0, 0, 0]
            }
            _ => match immediate(function) {
                Some(answer) => answer,
                None => match self.dispatch(scratch, function, x) {
                    Ok(Success::Answer([x1, x2, x3, x4])) => [0, x1, x2, x3, x4],
                    Ok(Success::Again(progress)) => {
                        x[7] = progress;
                        return Reply::Again;
                    }
                    Err(Refusal { error, index, detail, done }) => {
                        [error.to_register(), index, detail, done, 0]
                    }
                },
            },
        };
        x[..5].copy_from_slice(&answer);
        Reply::Answer
    }

    #[inline(always)]
    fn dispatch(
        &self,
        scratch: &mut Scratch,
        function: u32,
        x: &mut [u64; 8],
    ) -> Result<Success, Refusal> {
        let list = |at, count, progress| List { at, count, progress };
        calls! { function, x:
            VM_CREATE(at, count) => self.vm_create(scratch, list(at, count, 0)),
            VM_CONFIGURE(vm, key, base, size) => self.vm_configure(vm, key, base, size),
            VM_TOP_UP(vm, at, count; progress) => self.vm_top_up(scratch, vm, list(at, count, progress)),
            VM_START(vm) => self.vm_start(vm),
            VM_DESTROY(vm) => self.vm_destroy(vm),
            VM_INFO(vm) => self.vm_info(vm),
            VM_VGIC(vm, distributor, redistributors, spis) => {
                self.vm_vgic(vm, distributor, redistributors, spis)
            },
            VM_PV_TIME(vm, at) => self.vm_pv_time(vm, at),
            VM_PROTECT(vm) => self.vm_protect(vm),
            VCPU_CREATE(vm, index) => self.vcpu_create(vm, index),
            VCPU_SET_REGISTER(vcpu, which, value) => self.vcpu_set_register(vcpu, which, value),
            MEM_LEND(vm, at, count; progress) => {
                self.host_gives(scratch, Give::Lend, vm, Reader::Host, list(at, count, progress))
            },
            MEM_LEND_ONE(vm, frame, guest, references, users) => {
                let reader = Reader::Registers([frame, guest, references, users]);
                self.host_gives(scratch, Give::Lend, vm, reader, List::OF_ONE)
            },
            MEM_SHARE(vm, at, count; progress) => {
                self.host_gives(scratch, Give::Share, vm, Reader::Host, list(at, count, progress))
            },
            MEM_DONATE(vm, at, count; progress) => {
                self.host_gives(scratch, Give::Donate, vm, Reader::Host, list(at, count, progress))
            },
            MEM_UNSHARE(at, count; progress) => {
                self.host_takes(scratch, Taking::Unshare, list(at, count, progress))
            },
            MEM_RECLAIM(at, count; progress) => {
                self.host_takes(scratch, Taking::Reclaim, list(at, count, progress))
            },
            MEM_TAKE_BACK(at, count; progress) => {
                self.host_takes(scratch, Taking::TakeBack, list(at, count, progress))
            },
            MEM_POISON(at, count; progress) => {
                self.host_takes(scratch, Taking::Poison, list(at, count, progress))
            },
            CAP_GRANT(to, object, rights, base, size) => {
                self.cap_grant(to, object, rights, base, size)
            },
            CAP_REVOKE(from, handle) => self.cap_revoke(from, handle),
            BELL_CREATE(vm, label) => self.bell_create(vm, label),
            BELL_SEND(bell, flags) => self.bell(bell, Action::Send(flags)),
            BELL_RECEIVE(bell, flags) => self.bell(bell, Action::Receive(flags)),
            BELL_RESET(bell) => self.bell(bell, Action::Reset).map(drop),
            BELL_SET_MASK(bell, enable, ack) => {
                self.bell(bell, Action::SetMask { enable, ack }).map(drop)
            },
            SPI_INPUT(vm, intid, input) => self.spi_input(vm, intid, input),
            SPI_DONE(vm) => self.spi_done(vm),
            LEDGER_INFO(selector, detail) => self.ledger_info(selector, detail),
            LOG_READ(from) => Ok::<_, Refusal>(self.log.read(from)),
            FRAME_INFO(at) => self.frame_info(at),
        }
    }

    fn frame_info(&self, at: u64) -> Result<[u64; 4], Refusal> {
        let at = PhysAddr(at);
        let block = self.ledger.locate(at).ok_or(Error::InvalidAddress)?;
        self.ledger.lock(block);
        let records = self.ledger.records(block);
        let record = records.get(page_in_block(at));
        let pages = records.held_alike(page_in_block(at));
        self.ledger.unlock(block);
        match record.state() {
            None => Err(Error::InvalidAddress.into()),
            Some(FrameState::Hypervisor) => Err(Error::NotOwner.into()),
            Some(_) if record.owner() != VmId::Host && !self.is_dead(record.owner()) => {
                Err(Error::NotOwner.into())
            }
            Some(state) => Ok([state as u64, pages as u64, 0, 0]),
        }
    }
}
