// SPDX-License-Identifier: MIT OR Apache-2.0

//! Why a guest left its own code, and what follows from it for the vCPU's registers.

use escrow_abi::run;

use super::context::Vcpu;
use super::exception::Exception;
use super::ids::GuestIds;
use super::resume::Pending;
use super::smccc::Service;
use super::syndrome::{
    Abort, Call, Conduit, DataAccess, Fault, Instruction, Limit, SystemAccess, Trapped, Wait,
};
use super::trapped;
use crate::addr::{Ipa, PAGE_SIZE};

/// Why a guest left its own code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestExit {
    /// By an instruction that waits.
    Wait(Wait),
    /// By an abort, and where.
    Abort(Abort, FaultAddress),
    /// By another instruction that it executed.
    Trapped(Trapped),
    /// By a physical interrupt.
    Interrupt,
    /// By an SError, which is imprecise: it may be the host's or a device's doing.
    SError,
}

/// The address of an abort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultAddress {
    /// `FAR_EL2`.
    pub far: u64,
    /// The guest address in full; `None` if it could not be found out (the
    /// guest's tables have changed since).
    pub ipa: Option<Ipa>,
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
    /// The guest takes an undefined instruction: it has no such register or instruction.
    Unknown(SystemAccess),
    /// The host has to know.
    Exit(Answer),
    /// The guest asks for something that is not the vCPU's alone.
    Service(Service),
    /// The guest waits.
    Wait(Waiting),
    /// The guest touched an address that stage 2 does not let it touch.
    Abort(Stage2Abort),
}

/// A stage-2 abort of a guest at a known address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Abort {
    /// The guest address.
    pub at: Ipa,
    pub(super) abort: Abort,
    pub(super) far: u64,
}

/// What becomes of an instruction that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What the host has to know; `None` if the interrupt of the guest's timer is pending,
    /// and there is no GIC to ask whether that counts.
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

impl Stage2Abort {
    /// An abort, if it is one at a known address.
    #[inline(always)]
    pub(super) fn of(abort: Abort, address: &FaultAddress) -> Option<Stage2Abort> {
        match abort.fault() {
            Fault::Translation | Fault::Permission => {
                address.ipa.map(|at| Stage2Abort { at, abort, far: address.far })
            }
            Fault::External | Fault::Other => None,
        }
    }

    /// Whether stage 2 has no entry, not one that allows less.
    pub(super) fn is_translation(&self) -> bool {
        self.abort.fault() == Fault::Translation
    }

    /// Whether the guest fetches an instruction.
    pub(crate) fn is_fetch(&self) -> bool {
        self.abort.is_fetch()
    }

    /// The load or store that it is of, if it can be emulated.
    #[inline(always)]
    pub(super) fn access(&self) -> Option<DataAccess> {
        self.abort.access()
    }

    /// Whether it is of a cache maintenance instruction, and not of a walk.
    pub(super) fn is_cache_maintenance(&self) -> bool {
        self.abort.is_cache_maintenance() && !self.abort.is_walk()
    }

    /// The external abort that a guest takes instead.
    pub(super) fn external(&self, pstate: u64) -> Exception {
        Exception::external_abort(self.abort, self.far, pstate)
    }
}

impl Vcpu {
    /// What becomes of an exit. General registers and the timer must be up to date, and so must
    /// `SCTLR_EL1` when the exit is an abort.
    #[inline(always)]
    pub fn decode(&mut self, exit: GuestExit, ids: &GuestIds) -> Outcome {
        match exit {
            GuestExit::Wait(wait) => Outcome::Wait(self.wait(wait, self.has_gic)),
            GuestExit::Abort(abort, address) => self.abort(abort, &address),
            GuestExit::Trapped(trapped) => self.trapped(trapped, ids),
            GuestExit::Interrupt | GuestExit::SError => Outcome::Exit(READY),
        }
    }

    /// An instruction that trapped, other than WFI and WFE.
    #[inline(always)]
    fn trapped(&mut self, trapped: Trapped, ids: &GuestIds) -> Outcome {
        match trapped.instruction() {
            Instruction::Call(Call { conduit, immediate }) => {
                if conduit == Conduit::Smc {
                    self.skip_instruction();
                }
                self.call(immediate)
            }
            Instruction::System(access) => self.system(access, ids),
            // Unless the machine half gives it the registers: see `Trapped::uses`.
            Instruction::Vectors | Instruction::Keys | Instruction::Undefined => {
                Outcome::Inject(Exception::UNDEFINED)
            }
        }
    }

    /// WFI and WFE, with and without a deadline of their own. `has_gic` is the vCPU's.
    #[inline(always)]
    pub(super) fn wait(&mut self, wait: Wait, has_gic: bool) -> Waiting {
        self.skip_instruction();
        if wait.is_for_event() {
            // Events are not modelled, and it may be for another vCPU that
            // the guest waits: the host may run that.
            return Waiting { until: Some(READY), interruptible: false };
        }
        let timer = if has_gic {
            self.deadline_with_gic()
        } else if self.timer.is_pending() {
            return Waiting { until: None, interruptible: true };
        } else {
            self.timer.deadline()
        };
        let mut deadline = timer.unwrap_or(u64::MAX);
        match wait.limit() {
            Limit::None => {}
            Limit::Unknown => return Waiting { until: Some(READY), interruptible: true },
            Limit::Register(register) => {
                let limit = self.regs.read(register).wrapping_add(self.timer.offset);
                deadline = deadline.min(limit);
            }
        }
        let until = answer(run::EXPECTS_WAKEUP, [0, 0, deadline]);
        Waiting { until: Some(until), interruptible: true }
    }

    /// A trapped system register or instruction.
    #[inline(never)]
    fn system(&mut self, access: SystemAccess, ids: &GuestIds) -> Outcome {
        match trapped::emulate(access, ids, self.has_gic) {
            Some(value) => {
                if access.is_read() {
                    self.regs.write(access.register(), value);
                }
                self.skip_instruction();
                Outcome::Resume
            }
            // The machine half may give it the keys: see `Trapped::uses`.
            None if access.is_key() => Outcome::Inject(Exception::UNDEFINED),
            None => Outcome::Unknown(access),
        }
    }

    #[inline(always)]
    fn abort(&mut self, abort: Abort, address: &FaultAddress) -> Outcome {
        let FaultAddress { far, ipa } = *address;
        match abort.fault() {
            Fault::External => {
                Outcome::Inject(Exception::external_abort(abort, far, self.regs.pstate))
            }
            // Stage 2 is not the guest's to repair.
            Fault::Other => self.fault(abort, far, ipa.unwrap_or_default()),
            Fault::Translation | Fault::Permission => match ipa {
                Some(at) => Outcome::Abort(Stage2Abort { at, abort, far }),
                None => Outcome::Resume,
            },
        }
    }

    /// Decides about an abort, given whether its address is declared memory.
    #[inline(always)]
    pub fn settle(&mut self, stage2: &Stage2Abort, is_memory: bool) -> Outcome {
        let Stage2Abort { at, abort, far } = *stage2;
        if is_memory {
            let mut access = 0;
            if abort.is_fetch() {
                access |= run::FAULT_EXECUTE;
            } else if abort.is_write() {
                access |= run::FAULT_WRITE;
            }
            self.pending = Pending::Abort { abort, far, emulate_retries: true };
            // Where in the page is the guest's own business.
            let page = at.align_down(PAGE_SIZE);
            return Outcome::Exit(answer(run::PAGE_FAULT, [page.0, PAGE_SIZE, access]));
        }
        if let Some(access) = abort.access() {
            return self.mmio(at, access, far);
        }
        if abort.is_cache_maintenance() && !abort.is_walk() {
            // What is no memory has no cache lines.
            self.skip_instruction();
            return Outcome::Resume;
        }
        self.fault(abort, far, at)
    }

    /// The guest of a protected VM touched RAM that is not there. Its host lets it wait, and does not choose an
    /// instruction that fails.
    pub(crate) fn waits_for_ram(&mut self, stage2: &Stage2Abort) -> Outcome {
        let outcome = self.settle(stage2, true);
        self.pending = Pending::Again;
        outcome
    }

    #[inline(always)]
    fn mmio(&mut self, at: Ipa, access: DataAccess, far: u64) -> Outcome {
        self.pending = Pending::Mmio { access, far };
        Outcome::Exit(if access.is_write() {
            let value = access.stored(self.regs.read(access.register()), self.is_big_endian());
            answer(run::MMIO_WRITE, [at.0, access.size(), value])
        } else {
            answer(run::MMIO_READ, [at.0, access.size(), 0])
        })
    }

    /// The guest touched memory that is its own and that it cannot have.
    pub(crate) fn unreachable(&mut self, stage2: &Stage2Abort) -> Outcome {
        Outcome::Inject(stage2.external(self.regs.pstate))
    }

    fn fault(&mut self, abort: Abort, far: u64, at: Ipa) -> Outcome {
        self.pending = Pending::Abort { abort, far, emulate_retries: false };
        Outcome::Exit(answer(run::FAULT, [abort.esr(), at.0, 0]))
    }
}
