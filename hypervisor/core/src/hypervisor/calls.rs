// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's calls: which number does what.

use escrow_abi::{Error, FrameState, call};

use super::memory::Give;
use super::take::Taking;
use super::{Hypervisor, Refusal, Scratch};
use crate::addr::PhysAddr;
use crate::doorbell::Action;
use crate::ledger::VmId;
use crate::machine::{Machine, Note};
use crate::vm::Run;

const NOT_SUPPORTED: u64 = Error::Unimplemented.to_register();
const SMCCC_1_2: u64 = 0x10002;

/// The answer, in `x0`–`x4`, to a call that needs nothing but its number: for
/// the machine half to ask before it sets out for [`Hypervisor::host_call`].
#[inline(always)]
pub const fn immediate(function: u32) -> Option<[u64; 5]> {
    match function {
        call::HYP_IDENTIFY => Some([call::IDENTIFY_INFO, 0, 0, 0, 0]),
        call::SMCCC_VERSION => Some([SMCCC_1_2, 0, 0, 0, 0]),
        _ => None,
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Answers an HVC of the host. `x` are its `x0`–`x7`; the answer goes to
    /// the first five of them, unless a vCPU is to be run: then what that ends
    /// with is the answer.
    #[inline(always)]
    pub fn host_call(&self, scratch: &mut Scratch, x: &mut [u64; 8]) -> Option<Run<'_>> {
        self.machine.note(|| Note::Begin(x[0]));
        // SMCCC: the identifier is 32 bits, and what is above must be ignored.
        match x[0] as u32 {
            call::VCPU_RUN => match self.vcpu_run(x) {
                Ok(run) => {
                    self.machine.note(|| Note::End(0));
                    return Some(run);
                }
                Err(answer) => x[..5].copy_from_slice(&answer),
            },
            function => self.slow_call(scratch, function, x),
        }
        self.machine.note(|| Note::End(x[0]));
        None
    }

    /// [`call::MEM_LEND`] of one entry, for the machine half to try first. `false`:
    /// it is for [`Self::host_call`] after all.
    #[inline(always)]
    pub fn host_lends_one(&self, x: &mut [u64; 8]) -> bool {
        self.machine.note(|| Note::Begin(x[0]));
        let [_, vm, list, count, x4, x5, x6, x7] = *x;
        if (count ^ 1) | x4 | x5 | x6 | x7 != 0 {
            return false;
        }
        let Some(broken) = self.lend_one(vm, list) else { return false };
        self.machine.note(|| Note::End(0));
        x[..5].copy_from_slice(&[0, 0, broken, 0, 0]);
        true
    }

    #[inline(never)]
    fn slow_call(&self, scratch: &mut Scratch, function: u32, x: &mut [u64; 8]) {
        let [_, a, b, c, d, e, ..] = *x;
        if let Some(immediate) = immediate(function) {
            x[..5].copy_from_slice(&immediate);
            return;
        }
        match function {
            call::SMCCC_ARCH_FEATURES => {
                let known = matches!(a as u32, call::SMCCC_VERSION | call::SMCCC_ARCH_FEATURES);
                x[..5].copy_from_slice(&[if known { 0 } else { NOT_SUPPORTED }, 0, 0, 0, 0]);
                return;
            }
            call::VENDOR_HYP_UID => {
                let [w0, w1, w2, w3] = call::UID.map(u64::from);
                x[..5].copy_from_slice(&[w0, w1, w2, w3, 0]);
                return;
            }
            _ => {}
        }
        let Some(arguments) = arguments(function) else {
            x[..5].copy_from_slice(&[NOT_SUPPORTED, 0, 0, 0, 0]);
            return;
        };
        if x[1 + arguments..].iter().any(|&reserved| reserved != 0) {
            answer(x, Err(Error::InvalidArgument.into()));
            return;
        }
        let done = |()| [0; 4];
        let one = |value| [value, 0, 0, 0];
        let result = match function {
            call::VM_CREATE => self.vm_create(scratch, a, b).map(|vm| [vm, scratch.broken, 0, 0]),
            call::VM_CONFIGURE => self.vm_configure(a, b, c, d).map(done),
            call::VM_TOP_UP => self.vm_top_up(scratch, a, b, c).map(|()| scratch.told()),
            call::VM_START => self.vm_start(a).map(done),
            call::VM_DESTROY => self.vm_destroy(a).map(done),
            call::VM_INFO => self.vm_info(a),
            call::VCPU_CREATE => self.vcpu_create(a, b).map(one),
            call::VCPU_SET_REGISTER => self.vcpu_set_register(a, b, c).map(done),
            call::MEM_LEND => {
                self.host_gives(scratch, Give::Lend, a, b, c).map(|()| scratch.told())
            }
            call::MEM_SHARE => {
                self.host_gives(scratch, Give::Share, a, b, c).map(|()| scratch.told())
            }
            call::MEM_DONATE => {
                self.host_gives(scratch, Give::Donate, a, b, c).map(|()| scratch.told())
            }
            call::MEM_UNSHARE => {
                self.host_takes(scratch, Taking::Unshare, a, b).map(|()| scratch.told())
            }
            call::MEM_RECLAIM => {
                self.host_takes(scratch, Taking::Reclaim, a, b).map(|()| scratch.told())
            }
            call::MEM_TAKE_BACK => {
                self.host_takes(scratch, Taking::TakeBack, a, b).map(|()| scratch.told())
            }
            call::MEM_POISON => {
                self.host_takes(scratch, Taking::Poison, a, b).map(|()| scratch.told())
            }
            call::CAP_GRANT => self.cap_grant(a, b, c, d, e).map(one),
            call::CAP_REVOKE => self.cap_revoke(a, b).map(done),
            call::BELL_CREATE => self.bell_create(a, b).map(one),
            call::BELL_SEND => self.bell(a, Action::Send(b)).map(one),
            call::BELL_RECEIVE => self.bell(a, Action::Receive(b)).map(one),
            call::BELL_RESET => self.bell(a, Action::Reset).map(|_| [0; 4]),
            call::BELL_SET_MASK => {
                self.bell(a, Action::SetMask { enable: b, ack: c }).map(|_| [0; 4])
            }
            call::LEDGER_INFO => self.ledger_info(a, b).map(one),
            _ => self.frame_info(a).map(one),
        };
        answer(x, result);
    }

    fn frame_info(&self, at: u64) -> Result<u64, Refusal> {
        let at = PhysAddr(at);
        let block = self.ledger.locate(at).ok_or(Error::InvalidAddress)?;
        self.ledger.lock(block);
        let record = self.ledger.get_in(block, at);
        self.ledger.unlock(block);
        match record.state() {
            None => Err(Error::InvalidAddress.into()),
            Some(FrameState::Hypervisor) => Err(Error::NotOwner.into()),
            Some(_) if record.owner() != VmId::HOST && !self.is_dead(record.owner()) => {
                Err(Error::NotOwner.into())
            }
            Some(state) => Ok(state as u64),
        }
    }
}

/// How many arguments a call takes after its number; `None` for no call of
/// the host.
const fn arguments(function: u32) -> Option<usize> {
    Some(match function {
        call::VM_START | call::VM_DESTROY | call::VM_INFO | call::FRAME_INFO | call::BELL_RESET => {
            1
        }
        call::VM_CREATE
        | call::VCPU_CREATE
        | call::MEM_UNSHARE
        | call::MEM_RECLAIM
        | call::MEM_TAKE_BACK
        | call::MEM_POISON
        | call::CAP_REVOKE
        | call::BELL_CREATE
        | call::BELL_SEND
        | call::BELL_RECEIVE
        | call::LEDGER_INFO => 2,
        call::VM_TOP_UP
        | call::VCPU_SET_REGISTER
        | call::MEM_SHARE
        | call::MEM_LEND
        | call::MEM_DONATE
        | call::BELL_SET_MASK => 3,
        call::VM_CONFIGURE => 4,
        call::CAP_GRANT => 5,
        _ => return None,
    })
}

#[inline(always)]
fn answer(x: &mut [u64; 8], result: Result<[u64; 4], Refusal>) {
    let (x0, [x1, x2, x3, x4]) = match result {
        Ok(values) => (0, values),
        Err(Refusal { error, index, detail }) => (error.to_register(), [index, detail, 0, 0]),
    };
    x[..5].copy_from_slice(&[x0, x1, x2, x3, x4]);
}
