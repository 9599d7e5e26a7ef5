// SPDX-License-Identifier: MIT OR Apache-2.0

//! Exits that need more than the vCPU's registers: its VM's memory, or its other vCPUs.

use core::array;

use escrow_abi::{psci, run};

use super::context::{Power, Vcpu};
use super::exception::Exception;
use super::exit::{Answer, GuestExit, Outcome, READY, Waiting, answer};
use super::ids::GuestIds;
use super::resume::Pending;
use super::smccc::Service;
use super::syndrome::Wait;
use crate::hardening::{guest_call, guest_features};
use crate::hypervisor::guest_calls::GuestCall;
use crate::hypervisor::protect::RealmCall;
use crate::hypervisor::{Hypervisor, Scratch, Touched};
use crate::machine::{Machine, Note};
use crate::stage2::GuestMap;
use crate::vm::{MAX_VCPUS, Run, Slot};

/// What the machine half does next with a run. (`repr(u64)`: with a tag of one byte, the compiler copies
/// the padding by a call of `memcpy`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Next {
    /// Enter the guest.
    Enter,
    /// Enter it with a virtual interrupt pending, or with none.
    EnterWith {
        /// Whether there is one.
        interrupt: bool,
    },
    /// Make it take an exception ([`Vcpu::inject`]) and enter it.
    Inject(Exception),
    /// Exit to the host, with this for it.
    Exit(Answer),
}

/// What the machine half does with a guest that executed an instruction that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Waited {
    /// An interrupt is pending, so the guest does not wait. Enter it, with a virtual interrupt or with none.
    Enter {
        /// Whether there is one.
        interrupt: bool,
    },
    /// Exit to the host, with this for it.
    Exit(Answer),
}

impl From<Waited> for Next {
    fn from(waited: Waited) -> Next {
        match waited {
            Waited::Enter { interrupt } => Next::EnterWith { interrupt },
            Waited::Exit(answer) => Next::Exit(answer),
        }
    }
}

/// PSCI AFFINITY_INFO.
const AFFINITY_ON: u64 = 0;
const AFFINITY_OFF: u64 = 1;

impl<M: Machine> Hypervisor<M> {
    /// Decides whether a run enters the guest at all.
    #[inline(always)]
    pub fn guest_entry(&self, run: &Run<'_>) -> Next {
        match run.power {
            Power::On => Next::Enter,
            Power::Off => Next::Exit(answer(run::POWERED_OFF, [0; 3])),
        }
    }

    /// Handles an exit by an instruction that waits, of a vCPU without a GIC. Most runs end so, hence
    /// a function of its own.
    #[inline(always)]
    pub fn guest_waits(&self, run: &mut Run<'_>, wait: Wait) -> Waited {
        // The timer is read before the doorbells. If it fires in between, the host gets a deadline
        // that has passed, and runs the vCPU again at once.
        let waiting = run.wait(wait, false);
        waits(run, waiting)
    }

    /// Handles an exit of a run's guest. See [`Vcpu::decode`] for what of its
    /// registers must be in memory.
    #[inline(always)]
    pub fn guest_exit(
        &self,
        scratch: &mut Scratch,
        run: &mut Run<'_>,
        exit: GuestExit,
        ids: &GuestIds,
    ) -> Next {
        let mut outcome = run.decode(exit, ids);
        if let Outcome::Abort(abort) = outcome {
            let mut vm = run.slot().lock();
            let is_memory = vm.ranges.contains(abort.at);
            let touched = if (vm.owned != 0 || vm.has_broken) && abort.is_translation() {
                let touched = self.guest_touches(run.id(), &mut vm, abort.at);
                // For the trace this ends as a call does: from here on the guest may use what changed.
                self.machine.note(|| Note::End(0));
                touched
            } else {
                Touched::Nothing
            };
            let shared = vm.map.as_ref().and_then(GuestMap::shared_bit);
            outcome = match (touched, shared) {
                (Touched::Nothing, Some(shared)) => {
                    self.settle_protected(run, &mut vm, &abort, shared)
                }
                (Touched::Nothing, None) => run.settle(&abort, is_memory),
                (Touched::Unreachable, _) => run.unreachable(&abort),
                (Touched::Reachable, _) => Outcome::Resume,
            };
        }
        let next = match outcome {
            Outcome::Exit(answer) => return Next::Exit(answer),
            Outcome::Resume => Next::Enter,
            Outcome::Inject(exception) => Next::Inject(exception),
            Outcome::Unknown(access) => {
                self.note_unknown(run, access);
                Next::Inject(Exception::UNDEFINED)
            }
            Outcome::Wait(waiting) => return waits(run, waiting).into(),
            Outcome::Service(service) => self.serve(scratch, run, service),
            // `settle` never returns an abort.
            Outcome::Abort(_) => Next::Enter,
        };
        // The run of a VM that is being ended stops at its next exit. An exception is not replaced by
        // that: the machine half injects it first, and then makes the same check.
        let enters = matches!(next, Next::Enter | Next::EnterWith { .. });
        if enters && run.slot().is_stopped() { Next::Exit(READY) } else { next }
    }

    #[cold]
    fn serve(&self, scratch: &mut Scratch, run: &mut Run<'_>, service: Service) -> Next {
        match service {
            Service::Memory => {
                let mut args = call_of(run);
                let called = self.guest_call(scratch, run, &mut args);
                run.regs.x[7] = args[7];
                match called {
                    GuestCall::Return(answer) => run.regs.x[..4].copy_from_slice(&answer),
                    // The guest repeats the call. The host's pending interrupt ends the run before that.
                    GuestCall::Again => run.regs.pc = run.regs.pc.wrapping_sub(4),
                    GuestCall::Ask(answer) => {
                        // The guest makes its call again when the host has answered.
                        run.regs.pc = run.regs.pc.wrapping_sub(4);
                        return Next::Exit(answer);
                    }
                }
            }
            Service::Realm => match self.realm_call(run, &call_of(run)) {
                None => run.regs.x[0] = psci::NOT_SUPPORTED,
                Some(RealmCall::Return(answer)) => run.regs.x[..3].copy_from_slice(&answer),
                Some(RealmCall::Ask(answer)) => {
                    run.regs.pc = run.regs.pc.wrapping_sub(4);
                    run.pending = Pending::Again;
                    return Next::Exit(answer);
                }
            },
            Service::Doorbell => {
                let answer = self.guest_bell(run, &call_of(run));
                run.regs.x[..2].copy_from_slice(&answer);
                return Next::EnterWith { interrupt: run.has_interrupt() };
            }
            Service::Workaround { function, asked } => {
                let hardening = self.machine.hardening();
                // Two direct calls: a call of a function that was chosen before would be an indirect
                // branch, which an attacker can train.
                run.regs.x[0] = match asked {
                    true => guest_features(hardening, function),
                    false => guest_call(hardening, function),
                };
            }
            Service::Suspend(answer) => {
                let interrupted = run.has_interrupt_to_wait_for();
                return if interrupted { waits_no_more(run).into() } else { Next::Exit(answer) };
            }
            Service::Down(reason) => {
                run.slot().set_down(reason);
                return Next::Exit(answer(run::SYSTEM_DOWN, [reason, 0, 0]));
            }
            Service::Random(call) => self.random(run, call),
            Service::CpuOff => {
                run.power = Power::Off;
                run.slot().set_on(run.index(), false);
                return Next::Exit(answer(run::POWERED_OFF, [0; 3]));
            }
            Service::CpuOn { target, entry, context } => {
                // The order of checks is Trusted Firmware-A's: target, entry point, power state.
                let refusal = match is_any_on(run.slot(), target, 0) {
                    None => Some(psci::INVALID_PARAMETERS),
                    Some(_) if !self.is_entry(entry) => Some(psci::INVALID_ADDRESS),
                    Some(true) => Some(psci::ALREADY_ON),
                    Some(false) => None,
                };
                if let Some(refusal) = refusal {
                    run.regs.x[0] = refusal;
                    return Next::Enter;
                }
                let slot = run.slot();
                let mut woken = 0;
                let index = self.with_sibling(run, target, |sibling| {
                    let answer = sibling.on(entry, context);
                    slot.set_on(sibling.index(), true);
                    if answer == psci::SUCCESS && sibling.has_gic {
                        woken = self.gic_switched_on(slot, sibling.index());
                    }
                    answer
                });
                // The host's thread of the other vCPU may be asleep, so this run ends to tell the
                // host to wake it. `on` has written the vCPU's state under its lock, which is
                // released by now: the thread's next run sees it.
                if let (Some(index), psci::SUCCESS) = (index, run.regs.x[0]) {
                    return Next::Exit(match woken {
                        0 => answer(run::SWITCHED_ON, [index.into(), 0, 0]),
                        others => answer(run::WAKE, [(others | 1 << index).into(), 0, 0]),
                    });
                }
            }
            Service::AffinityInfo { target, level } => {
                run.regs.x[0] = match is_any_on(run.slot(), target, level) {
                    None => psci::INVALID_PARAMETERS,
                    Some(true) => AFFINITY_ON,
                    Some(false) => AFFINITY_OFF,
                };
            }
        }
        Next::Enter
    }

    /// Whether an entry point is valid: aligned to an instruction, and inside the guest's IPA space.
    fn is_entry(&self, at: u64) -> bool {
        at.is_multiple_of(4) && at < self.guest_address_end()
    }

    /// Answers a guest's call about another vCPU of its VM, which is off, by `ask`. Returns that vCPU's
    /// index. `None` if there is no such vCPU (the guest gets INVALID_PARAMETERS), or if its lock is
    /// taken (the guest repeats the call). The lock of a vCPU that is off is only held until its last run
    /// has ended, or by a `VCPU_RUN` that answers POWERED_OFF, so the repetition ends.
    fn with_sibling(
        &self,
        run: &mut Run<'_>,
        target: u64,
        ask: impl FnOnce(&mut Vcpu) -> u64,
    ) -> Option<u8> {
        let found = (0..MAX_VCPUS as u8)
            .find(|&index| Vcpu::affinity_of(index) == target)
            .and_then(|index| Some((index, run.slot().vcpu(index)?)));
        let Some((index, page)) = found else {
            run.regs.x[0] = psci::INVALID_PARAMETERS;
            return None;
        };
        let Some(mut sibling) = self.machine.vcpu(page).try_lock() else {
            run.regs.pc = run.regs.pc.wrapping_sub(4);
            return None;
        };
        run.regs.x[0] = ask(&mut sibling);
        Some(index)
    }
}

/// Whether any vCPU is on whose affinity is that of `target` from level `level` up; `None` if there
/// is no such vCPU.
fn is_any_on(slot: &Slot, target: u64, level: u32) -> Option<bool> {
    // Aff3 is in bits 39:32, not next to Aff2 in 23:16.
    let shift = if level == 3 { 32 } else { 8 * level };
    let siblings = (0..MAX_VCPUS as u8)
        .filter(|&index| Vcpu::affinity_of(index) >> shift == target >> shift)
        .filter(|&index| slot.vcpu(index).is_some());
    siblings.fold(None, |any, index| Some(any == Some(true) || slot.is_on(index)))
}

/// `x0`–`x7`.
fn call_of(run: &Run<'_>) -> [u64; 8] {
    array::from_fn(|n| run.regs.x[n])
}

/// Decides whether a guest that executed an instruction that waits has an interrupt to go on for.
#[inline(always)]
fn waits(run: &Run<'_>, waiting: Waiting) -> Waited {
    let is_interrupted = || waiting.interruptible && run.has_interrupt_to_wait_for();
    match waiting.until {
        Some(answer) if !is_interrupted() => Waited::Exit(answer),
        _ => waits_no_more(run),
    }
}

/// The guest goes on, because an interrupt is pending. It may have become pending after the guest was
/// entered, so HCR_EL2.VI is to be set now.
#[inline(always)]
fn waits_no_more(run: &Run<'_>) -> Waited {
    if run.slot().is_stopped() {
        return Waited::Exit(READY);
    }
    Waited::Enter { interrupt: run.has_interrupt() }
}

impl Vcpu {
    /// PSCI CPU_ON, of this vCPU by another one.
    fn on(&mut self, entry: u64, context: u64) -> u64 {
        if self.power == Power::On {
            return psci::ALREADY_ON;
        }
        self.reset();
        self.regs.pc = entry;
        self.regs.x[0] = context;
        self.power = Power::On;
        psci::SUCCESS
    }
}
