// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's calls, by `HVC #0` or `SMC #0`: those of SMCCC and PSCI, and those that
//! Gunyah's guests make as well.

use escrow_abi::psci::{
    self, DENIED, INTERNAL_FAILURE, INVALID_PARAMETERS, NOT_SUPPORTED, SUCCESS,
};
use escrow_abi::{call, pv_time, rsi, run};

use super::context::Vcpu;
use super::exit::{Answer, Outcome, answer};
use super::trng::TrngCall;
use crate::hardening::{WORKAROUND_1, WORKAROUND_3};
use crate::psci::PsciCall;

/// SMCCC 1.2.
const SMCCC_VERSION_1_2: u64 = 0x1_0002;
/// PSCI 1.1.
const PSCI_VERSION_1_1: u64 = 0x1_0001;
/// PSCI MIGRATE_INFO_TYPE: no trusted OS that would have to move.
const NO_MIGRATION: u64 = 2;
/// Bits of CPU_SUSPEND's power state that are reserved, in the format that PSCI_FEATURES says
/// (0: the original one): all but the state's number and type and the power level (DEN0022,
/// "CPU_SUSPEND", "power_state").
const POWER_STATE_RESERVED: u32 = !(0x3 << 24 | 1 << 16 | 0xffff);
/// The highest affinity level.
const AFFINITY_LEVEL_MAX: u32 = 3;

/// The workarounds that a guest may ask for.
const WORKAROUNDS: [u32; 2] = [WORKAROUND_1, WORKAROUND_3];

/// A call that needs more than the vCPU's registers. The result
/// goes to `x0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// A call about memory, which is still in `x0`–`x7`.
    Memory,
    /// A call of the Realm Services Interface, likewise.
    Realm,
    /// A call about a doorbell, likewise.
    Doorbell,
    /// A call for random numbers.
    Random(TrngCall),
    /// PSCI CPU_SUSPEND, with the answer for the host unless an interrupt is pending.
    Suspend(Answer),
    /// SMCCC_ARCH_FEATURES about a workaround of the CPUs' speculation, if `asked`, or its call.
    Workaround {
        /// The function.
        function: u32,
        /// Whether the guest asks for support (SMCCC_ARCH_FEATURES), and does not call it.
        asked: bool,
    },
    /// Switches the VM off, or asks for a reset: the reason for
    /// [`run::SYSTEM_DOWN`].
    Down(u64),
    /// PSCI CPU_OFF.
    CpuOff,
    /// PSCI CPU_ON: the vCPU with this affinity goes to `entry`.
    CpuOn {
        /// Affinity, as in `MPIDR_EL1` with the other bits clear.
        target: u64,
        /// Guest address.
        entry: u64,
        /// Its `x0`.
        context: u64,
    },
    /// PSCI AFFINITY_INFO.
    AffinityInfo {
        /// Affinity, as above.
        target: u64,
        /// Lowest affinity level that counts, 0 to 3.
        level: u32,
    },
}

impl Vcpu {
    /// Handles a call. The PC is after the instruction.
    #[inline(never)]
    pub(super) fn call(&mut self, immediate: u16) -> Outcome {
        let args: [u64; 8] = core::array::from_fn(|n| self.regs.x[n]);
        // Calls have immediate 0; others are unknown (DEN0028, "SMC and HVC immediate value").
        if immediate != 0 {
            return self.returns(NOT_SUPPORTED);
        }
        if let Some(call) = PsciCall::decode(&[args[0], args[1], args[2], args[3]]) {
            return self.psci(call);
        }
        if let Some(call) = TrngCall::decode(args[0], args[1]) {
            return Outcome::Service(Service::Random(call));
        }
        match args[0] as u32 {
            call::SMCCC_VERSION => self.returns(SMCCC_VERSION_1_2),
            call::SMCCC_ARCH_FEATURES => {
                let function = args[1] as u32;
                if WORKAROUNDS.contains(&function) {
                    return Outcome::Service(Service::Workaround { function, asked: true });
                }
                let known = match function {
                    call::SMCCC_VERSION | call::SMCCC_ARCH_FEATURES => true,
                    // Not an architecture call, but a guest asks for it here (DEN0057,
                    // "PV_TIME_FEATURES").
                    pv_time::FEATURES => self.stolen.is_some(),
                    _ => false,
                };
                self.returns(if known { SUCCESS } else { NOT_SUPPORTED })
            }
            rsi::FIRST..=rsi::LAST => Outcome::Service(Service::Realm),
            function if WORKAROUNDS.contains(&function) => {
                Outcome::Service(Service::Workaround { function, asked: false })
            }
            pv_time::FEATURES => {
                let known = matches!(args[1] as u32, pv_time::FEATURES | pv_time::ST);
                self.returns(if known && self.stolen.is_some() { SUCCESS } else { NOT_SUPPORTED })
            }
            pv_time::ST => {
                let at = self.stolen_time_at();
                self.returns(at.unwrap_or(NOT_SUPPORTED))
            }
            call::VENDOR_HYP_UID => {
                for (register, word) in self.regs.x.iter_mut().zip(call::UID) {
                    *register = word.into();
                }
                Outcome::Resume
            }
            call::HYP_IDENTIFY => {
                self.regs.x[1..4].fill(0);
                self.returns(call::IDENTIFY_INFO)
            }
            call::MODIFY_PAGES
            | call::MEM_SHARE
            | call::MEM_UNSHARE
            | call::MEM_LEND
            | call::MEM_RECLAIM
            | call::MEM_DONATE
            | call::MEM_SHARE_BACK
            | call::MEM_ASK_BACK
            | call::MEM_TAKE_BACK => Outcome::Service(Service::Memory),
            call::BELL_SEND | call::BELL_RECEIVE | call::BELL_RESET | call::BELL_SET_MASK => {
                Outcome::Service(Service::Doorbell)
            }
            _ => self.returns(NOT_SUPPORTED),
        }
    }

    fn psci(&mut self, call: PsciCall) -> Outcome {
        match call {
            PsciCall::Version => self.returns(PSCI_VERSION_1_1),
            PsciCall::Features { function } => {
                let there = match function {
                    psci::SYSTEM_SUSPEND_32 | psci::SYSTEM_SUSPEND_64 => false,
                    call::SMCCC_VERSION => true,
                    _ => PsciCall::decode(&[function.into(), 0, 0, 0]).is_some(),
                };
                self.returns(if there { SUCCESS } else { NOT_SUPPORTED })
            }
            PsciCall::CpuSuspend { state, .. } if state & POWER_STATE_RESERVED != 0 => {
                self.returns(INVALID_PARAMETERS)
            }
            PsciCall::CpuSuspend { .. } => {
                // Each state is a standby state, which any wake-up ends. A power-down state is one
                // as well: its call returns if a wake-up comes before the power goes (DEN0022,
                // "CPU_SUSPEND"), and here it always comes before.
                self.regs.x[0] = SUCCESS;
                if self.timer.is_pending() && !self.has_gic {
                    return Outcome::Resume;
                }
                let deadline = self.deadline_with_gic().unwrap_or(u64::MAX);
                Outcome::Service(Service::Suspend(answer(run::EXPECTS_WAKEUP, [0, 0, deadline])))
            }
            PsciCall::CpuOff => {
                // The call returns only if it fails; the guest then reads DENIED.
                self.regs.x[0] = DENIED;
                Outcome::Service(Service::CpuOff)
            }
            PsciCall::CpuOn { target, entry, context } => {
                Outcome::Service(Service::CpuOn { target, entry, context })
            }
            PsciCall::AffinityInfo { target, level } if level <= AFFINITY_LEVEL_MAX => {
                Outcome::Service(Service::AffinityInfo { target, level })
            }
            PsciCall::AffinityInfo { .. } => self.returns(INVALID_PARAMETERS),
            PsciCall::MigrateInfoType => self.returns(NO_MIGRATION),
            PsciCall::SystemOff => self.goes_down(0),
            PsciCall::SystemReset | PsciCall::SystemReset2 { kind: 0, .. } => self.goes_down(1),
            PsciCall::SystemReset2 { .. } => self.returns(INVALID_PARAMETERS),
            PsciCall::SystemSuspend { .. } => self.returns(NOT_SUPPORTED),
        }
    }

    fn goes_down(&mut self, reason: u64) -> Outcome {
        self.regs.x[0] = INTERNAL_FAILURE;
        Outcome::Service(Service::Down(reason))
    }

    /// Answers a call.
    pub(super) fn returns(&mut self, x0: u64) -> Outcome {
        self.regs.x[0] = x0;
        Outcome::Resume
    }
}
