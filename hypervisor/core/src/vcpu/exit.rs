// SPDX-License-Identifier: MIT OR Apache-2.0

//! Why a guest left its own code, decoded from the syndrome, and what follows
//! from it for the vCPU's registers.

use escrow_abi::run;

use super::context::Vcpu;
use super::exception::Exception;
use super::ids::GuestIds;
use super::resume::{Mmio, Pending};
use super::smccc::Service;
use super::syndrome::{Ec, abort};
use super::trapped::{self, Access};
use crate::addr::{Ipa, PAGE_SIZE};

/// What the hardware says of an instruction or data abort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trap {
    /// `ESR_EL2`.
    pub esr: u64,
    /// `FAR_EL2`.
    pub far: u64,
    /// The guest address in full; `None` if it could not be found out (the
    /// guest's tables have changed since).
    pub ipa: Option<Ipa>,
}

/// How a guest's run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestExit {
    /// By an abort.
    Abort(Trap),
    /// By an instruction that it executed: any other synchronous exception,
    /// with its `ESR_EL2`.
    Instruction(u64),
    /// By a physical interrupt.
    Interrupt,
}

/// What [`VCPU_RUN`](escrow_abi::call::VCPU_RUN) answers in `x1`–`x4`, without
/// an error in `x0`: a state and its data.
pub type Answer = [u64; 4];

/// What follows from an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest goes on.
    Resume,
    /// The guest goes on at its exception vector.
    Inject(Exception),
    /// The host has to know.
    Exit(Answer),
    /// The guest asks for something that is not the vCPU's alone.
    Service(Service),
    /// The guest touched an address that stage 2 does not let it touch.
    Abort(Abort),
}

/// A stage-2 abort of a guest at a known address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The guest address.
    pub at: Ipa,
    esr: u64,
    far: u64,
}

/// What an instruction comes to that waits.
pub(super) struct Wait {
    /// What the host has to know; `None` if the interrupt of the guest's timer is pending.
    pub until: Option<Answer>,
    /// Whether a pending interrupt ends it.
    pub interruptible: bool,
}

/// The answer of a state and its data.
pub(super) const fn answer(state: u64, data: [u64; 3]) -> Answer {
    [state, data[0], data[1], data[2]]
}

/// The answer when the run ended for a reason that is the host's own.
pub const READY: Answer = answer(run::READY, [0; 3]);

impl Abort {
    /// Whether stage 2 has no entry, not one that allows less.
    pub(super) fn is_translation(&self) -> bool {
        abort::kind(self.esr) == abort::Kind::Translation
    }
}

impl Vcpu {
    /// Decodes an exit other than by an instruction that waits ([`Self::wait`]).
    /// General registers and the timer must be up to date, and so must
    /// `SCTLR_EL1` when the exit is an abort.
    #[inline(always)]
    pub fn decode(&mut self, exit: GuestExit, ids: &GuestIds) -> Outcome {
        let esr = match exit {
            GuestExit::Abort(trap) => return self.abort(&trap),
            GuestExit::Instruction(esr) => esr,
            GuestExit::Interrupt => return Outcome::Exit(READY),
        };
        match Ec::of(esr) {
            Ec::HVC64 => self.call(esr),
            Ec::SMC64 => {
                // Unlike HVC, a trapped SMC is still to be gone past.
                self.skip_instruction();
                self.call(esr)
            }
            Ec::SYSTEM => self.system(esr, ids),
            // Features that are hidden, AArch32, and what has no class yet.
            _ => Outcome::Inject(Exception::UNDEFINED),
        }
    }

    /// WFI and WFE, with and without a deadline of their own.
    #[inline(always)]
    pub(super) fn wait(&mut self, esr: u64) -> Wait {
        self.skip_instruction();
        let (for_event, limited) = (esr & 1 != 0, esr & 2 != 0);
        if for_event {
            // Events are not modelled, and it may be for another vCPU that
            // the guest waits: the host may run that.
            return Wait { until: Some(READY), interruptible: false };
        }
        if self.timer.is_pending() {
            return Wait { until: None, interruptible: true };
        }
        let mut deadline = self.timer.deadline();
        if limited {
            // RV (bit 2): RN (bits 9:5) holds the register number.
            if esr & 1 << 2 == 0 {
                return Wait { until: Some(READY), interruptible: true };
            }
            let limit = self.regs.read((esr >> 5 & 0x1f) as usize);
            let limit = limit.wrapping_add(self.timer.offset);
            deadline = Some(deadline.map_or(limit, |timer| timer.min(limit)));
        }
        let until = answer(run::EXPECTS_WAKEUP, [0, 0, deadline.unwrap_or(u64::MAX)]);
        Wait { until: Some(until), interruptible: true }
    }

    /// A trapped system register or instruction.
    #[inline(never)]
    fn system(&mut self, esr: u64, ids: &GuestIds) -> Outcome {
        let access = Access::from_syndrome(esr);
        match trapped::emulate(access, ids) {
            Some(value) => {
                if access.read {
                    self.regs.write(access.register, value);
                }
                self.skip_instruction();
                Outcome::Resume
            }
            None => Outcome::Inject(Exception::UNDEFINED),
        }
    }

    #[inline(always)]
    fn abort(&mut self, trap: &Trap) -> Outcome {
        let Trap { esr, far, ipa } = *trap;
        match abort::kind(esr) {
            abort::Kind::Other => {
                if is_external(esr) {
                    return Outcome::Inject(Exception::external_abort(esr, far, self.regs.pstate));
                }
                // TLB conflicts and the like: stage 2 is not the guest's to
                // repair.
                self.fault(esr, far, ipa.unwrap_or_default())
            }
            abort::Kind::Translation | abort::Kind::Permission => match ipa {
                Some(at) => Outcome::Abort(Abort { at, esr, far }),
                None => Outcome::Resume,
            },
        }
    }

    /// Decides about an abort, given whether its address is declared memory.
    #[inline(always)]
    pub fn settle(&mut self, abort: &Abort, is_memory: bool) -> Outcome {
        let Abort { at, esr, far } = *abort;
        let fetch = Ec::of(esr) == Ec::INSTRUCTION_ABORT_LOWER;
        let walk = esr & abort::S1PTW != 0;
        if is_memory {
            let mut access = 0;
            if fetch {
                access |= run::FAULT_EXECUTE;
            } else if esr & abort::WNR != 0 && esr & abort::CM == 0 {
                // A walk that updates an entry is a write as well.
                access |= run::FAULT_WRITE;
            }
            self.pending = Pending::Abort { esr, far, emulate_retries: true };
            // Where in the page is the guest's own business.
            let page = at.align_down(PAGE_SIZE);
            return Outcome::Exit(answer(run::PAGE_FAULT, [page.0, PAGE_SIZE, access]));
        }
        if !fetch && !walk {
            if esr & abort::CM != 0 {
                // What is no memory has no cache lines.
                self.skip_instruction();
                return Outcome::Resume;
            }
            if esr & abort::ISV != 0 {
                return self.mmio(at, esr, far);
            }
        }
        self.fault(esr, far, at)
    }

    #[inline(always)]
    fn mmio(&mut self, at: Ipa, esr: u64, far: u64) -> Outcome {
        let mmio = Mmio { esr, far };
        self.pending = Pending::Mmio(mmio);
        Outcome::Exit(if mmio.is_write() {
            let value = mmio.stored(self.regs.read(mmio.register()), self.is_big_endian());
            answer(run::MMIO_WRITE, [at.0, mmio.size(), value])
        } else {
            answer(run::MMIO_READ, [at.0, mmio.size(), 0])
        })
    }

    /// The guest touched memory that is its own and that it cannot have.
    pub(super) fn unreachable(&mut self, abort: &Abort) -> Outcome {
        let Abort { esr, far, .. } = *abort;
        Outcome::Inject(Exception::external_abort(esr, far, self.regs.pstate))
    }

    fn fault(&mut self, esr: u64, far: u64, at: Ipa) -> Outcome {
        self.pending = Pending::Abort { esr, far, emulate_retries: false };
        Outcome::Exit(answer(run::FAULT, [esr, at.0, 0]))
    }
}

/// Whether an abort came from the memory system, not from translation:
/// synchronous external aborts and parity errors, also on table walks.
const fn is_external(esr: u64) -> bool {
    matches!(esr & abort::STATUS, 0x10 | 0x13..=0x17 | 0x18 | 0x1b..=0x1f)
}
