// SPDX-License-Identifier: MIT OR Apache-2.0

//! Exits of guests: their reasons, and what each does to the vCPU's registers.

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

/// Why a guest exited to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestExit {
    /// WFI, WFE, WFIT or WFET.
    Wait(Wait),
    /// An instruction or data abort, and its address.
    Abort(Abort, FaultAddress),
    /// Another instruction that trapped.
    Trapped(Trapped),
    /// A physical interrupt.
    Interrupt,
    /// An SError. It is asynchronous, so its cause may be the host or a device.
    SError,
}

/// The address of an abort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultAddress {
    /// `FAR_EL2`.
    pub far: u64,
    /// The whole IPA. `None` if EL2 could not translate `far`, because the guest has changed its
    /// stage-1 tables since.
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
    /// The run ends, with this answer for the host.
    Exit(Answer),
    /// The guest makes a call that needs more than its vCPU's registers.
    Service(Service),
    /// The guest waits.
    Wait(Waiting),
    /// The guest accessed an address that its stage 2 does not map, or not with such rights.
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

/// How an instruction that waits (WFI and the like) ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The answer for the host if the vCPU waits. `None` if it need not: the guest's timer asserts its
    /// interrupt, and the vCPU has no GIC that might mask it.
    pub until: Option<Answer>,
    /// Whether a pending interrupt ends the wait.
    pub interruptible: bool,
}

/// The answer of a state and its data.
pub(super) const fn answer(state: u64, data: [u64; 3]) -> Answer {
    [state, data[0], data[1], data[2]]
}

/// The answer when the run ended for a reason that is the host's own.
pub const READY: Answer = answer(run::READY, [0; 3]);

impl Stage2Abort {
    /// A translation or permission fault at a known IPA; `None` for other aborts.
    #[inline(always)]
    pub(super) fn of(abort: Abort, address: &FaultAddress) -> Option<Stage2Abort> {
        match abort.fault() {
            Fault::Translation | Fault::Permission => {
                address.ipa.map(|at| Stage2Abort { at, abort, far: address.far })
            }
            Fault::External | Fault::Other => None,
        }
    }

    /// Whether it is a translation fault, not a permission fault.
    pub(super) fn is_translation(&self) -> bool {
        self.abort.fault() == Fault::Translation
    }

    /// Whether the guest fetches an instruction.
    pub(crate) fn is_fetch(&self) -> bool {
        self.abort.is_fetch()
    }

    /// The load or store that caused it, if EL2 or the host can emulate that.
    #[inline(always)]
    pub(super) fn access(&self) -> Option<DataAccess> {
        self.abort.access()
    }

    /// Whether a cache maintenance instruction caused it, and not a stage-1 table walk.
    pub(super) fn is_cache_maintenance(&self) -> bool {
        self.abort.is_cache_maintenance() && !self.abort.is_walk()
    }

    /// The external abort that a guest takes instead.
    pub(super) fn external(&self, pstate: u64) -> Exception {
        Exception::external_abort(self.abort, self.far, pstate)
    }
}

impl Vcpu {
    /// Decodes an exit. General registers and the timer must be stored in the vCPU, and for an abort
    /// `SCTLR_EL1` as well.
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
            // Before it injects this, the machine half asks `Trapped::uses`: it may grant the
            // registers instead.
            Instruction::Vectors | Instruction::Keys | Instruction::Undefined => {
                Outcome::Inject(Exception::UNDEFINED)
            }
        }
    }

    /// Handles WFI, WFE, WFIT and WFET. `has_gic`: the vCPU has a GIC.
    #[inline(always)]
    pub(super) fn wait(&mut self, wait: Wait, has_gic: bool) -> Waiting {
        self.skip_instruction();
        if wait.is_for_event() {
            // EL2 does not model events. The guest may wait for an event (SEV) of another
            // vCPU, so the run ends and the host can run that one.
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
            // The machine half may grant the keys instead: see `Trapped::uses`.
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
            // A TLB conflict and the like: the cause may be stage 2, which the guest cannot
            // change. So the host gets it.
            Fault::Other => self.fault(abort, far, ipa.unwrap_or_default()),
            Fault::Translation | Fault::Permission => match ipa {
                Some(at) => Outcome::Abort(Stage2Abort { at, abort, far }),
                None => Outcome::Resume,
            },
        }
    }

    /// Decides what an abort becomes. `is_memory`: the host has declared the address as memory.
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
            // The host needs only the page to repair the fault, so it does not get the offset.
            let page = at.align_down(PAGE_SIZE);
            return Outcome::Exit(answer(run::PAGE_FAULT, [page.0, PAGE_SIZE, access]));
        }
        if let Some(access) = abort.access() {
            return self.mmio(at, access, far);
        }
        if abort.is_cache_maintenance() && !abort.is_walk() {
            // Maintenance of an address without memory has no effect: no cache line is there.
            self.skip_instruction();
            return Outcome::Resume;
        }
        self.fault(abort, far, at)
    }

    /// Handles an access of a protected VM's guest to RAM that is not mapped. The host can make the guest wait
    /// until the RAM is there, but cannot answer with an external abort: it could so choose an instruction to fail.
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

    /// Handles an access to memory that the guest owns and that cannot be mapped: an external abort.
    pub(crate) fn unreachable(&mut self, stage2: &Stage2Abort) -> Outcome {
        Outcome::Inject(stage2.external(self.regs.pstate))
    }

    fn fault(&mut self, abort: Abort, far: u64, at: Ipa) -> Outcome {
        self.pending = Pending::Abort { abort, far, emulate_retries: false };
        Outcome::Exit(answer(run::FAULT, [abort.esr(), at.0, 0]))
    }
}
