// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's calls: which number does what.

use escrow_abi::{Error, FrameState, call};

use super::{HostCall, Hypervisor, Refusal, Scratch};
use crate::addr::PhysAddr;
use crate::ledger::VmId;
use crate::machine::Machine;

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
    /// Answers an HVC of the host. `args` are its `x0`–`x7`.
    #[inline]
    pub fn host_call(&self, scratch: &mut Scratch, args: &[u64; 8]) -> HostCall<'_> {
        // SMCCC: the identifier is 32 bits, and what is above must be ignored.
        let function = args[0] as u32;
        if let Some(answer) = immediate(function) {
            return HostCall::Return(answer);
        }
        match function {
            call::VCPU_RUN => self.vcpu_run(args).unwrap_or_else(|refusal| refused(&refusal)),
            function => self.slow_call(scratch, function, args),
        }
    }

    fn slow_call(&self, scratch: &mut Scratch, function: u32, args: &[u64; 8]) -> HostCall<'_> {
        let [_, a, b, c, d, ..] = *args;
        match function {
            call::SMCCC_ARCH_FEATURES => {
                let known = matches!(a as u32, call::SMCCC_VERSION | call::SMCCC_ARCH_FEATURES);
                let answer = if known { 0 } else { NOT_SUPPORTED };
                return HostCall::Return([answer, 0, 0, 0, 0]);
            }
            call::VENDOR_HYP_UID => {
                let [w0, w1, w2, w3] = call::UID.map(u64::from);
                return HostCall::Return([w0, w1, w2, w3, 0]);
            }
            _ => {}
        }
        let Some(arguments) = arguments(function) else {
            return HostCall::Return([NOT_SUPPORTED, 0, 0, 0, 0]);
        };
        if args[1 + arguments..].iter().any(|&reserved| reserved != 0) {
            return refused(&Error::InvalidArgument.into());
        }
        let done = |_| [0; 4];
        let one = |value| [value, 0, 0, 0];
        let result = match function {
            call::VM_CREATE => self.vm_create(scratch, a, b).map(one),
            call::VM_CONFIGURE => self.vm_configure(a, b, c, d).map(done),
            call::VM_TOP_UP => self.vm_top_up(scratch, a, b, c).map(done),
            call::VM_START => self.vm_start(a).map(done),
            call::VM_DESTROY => self.vm_destroy(a).map(done),
            call::VM_INFO => self.vm_info(a),
            call::VCPU_CREATE => self.vcpu_create(a, b).map(one),
            call::VCPU_SET_REGISTER => self.vcpu_set_register(a, b, c).map(done),
            call::MEM_SHARE => self.give::<false>(scratch, a, b, c).map(done),
            call::MEM_LEND => self.give::<true>(scratch, a, b, c).map(done),
            call::MEM_UNSHARE => self.unshare(scratch, a, b).map(done),
            call::MEM_RECLAIM => self.reclaim(scratch, a, b).map(done),
            call::LEDGER_INFO => self.ledger_info(a, b).map(one),
            _ => self.frame_info(a).map(one),
        };
        match result {
            Ok([x1, x2, x3, x4]) => HostCall::Return([0, x1, x2, x3, x4]),
            Err(refusal) => refused(&refusal),
        }
    }

    fn frame_info(&self, at: u64) -> Result<u64, Refusal> {
        let at = PhysAddr(at);
        let block = self.ledger.ram().locate(at).ok_or(Error::InvalidAddress)?;
        self.ledger.lock(block);
        let record = self.ledger.get_in(block, at);
        self.ledger.unlock(block);
        match record.state() {
            None => Err(Error::InvalidAddress.into()),
            Some(FrameState::Hypervisor) => Err(Error::NotOwner.into()),
            Some(_) if record.owner() != VmId::HOST => Err(Error::NotOwner.into()),
            Some(state) => Ok(state as u64),
        }
    }
}

/// How many arguments a call takes after its number; `None` for no call of
/// the host.
const fn arguments(function: u32) -> Option<usize> {
    Some(match function {
        call::VM_START | call::VM_DESTROY | call::VM_INFO | call::FRAME_INFO => 1,
        call::VM_CREATE
        | call::VCPU_CREATE
        | call::MEM_UNSHARE
        | call::MEM_RECLAIM
        | call::LEDGER_INFO => 2,
        call::VM_TOP_UP | call::VCPU_SET_REGISTER | call::MEM_SHARE | call::MEM_LEND => 3,
        call::VM_CONFIGURE => 4,
        _ => return None,
    })
}

fn refused<'a>(refusal: &Refusal) -> HostCall<'a> {
    HostCall::Return([refusal.error.to_register(), refusal.index, refusal.detail, 0, 0])
}
