// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest: how it is entered, and what it exits for.
//!
//! While EL2 handles an exit, the guest's EL1 registers stay in the CPU; they
//! are stored when the run ends, or when the guest takes an exception that EL2
//! makes it take.

use core::arch::asm;

use escrow_core::hypervisor::Hypervisor;
use escrow_core::vcpu::syndrome::{Abort, Lazy, Syndrome};
use escrow_core::vcpu::{
    Answer, Exception, FaultAddress, GeneralRegisters, GuestExit, Next, READY, Waited,
};
use escrow_core::vm::Run;

use crate::fp::{self, Aside};
use crate::machine::Hardware;
use crate::percpu::PerCpu;
use crate::switch;
use crate::sysreg::*;
use crate::window::walk_stage1;

unsafe extern "C" {
    // Not to be called from Rust: see `enter_guest`.
    fn escrow_enter_guest();
}

/// What [`enter_guest`] returns.
const EXIT_SYNCHRONOUS: u64 = 0;
const EXIT_INTERRUPT: u64 = 1;

/// `HCR_EL2.VI`: a virtual IRQ is pending. The guest takes it when its PSTATE lets it.
const HCR_VI: u64 = 1 << 7;

// What vectors.S relies on.
const _: () = {
    use core::mem::offset_of;
    use escrow_core::vcpu::Vcpu;
    assert!(offset_of!(Vcpu, regs) == 0);
    assert!(offset_of!(GeneralRegisters, x) == 0);
    assert!(offset_of!(GeneralRegisters, pc) == 248);
    assert!(offset_of!(GeneralRegisters, pstate) == 256);
};

/// Runs a vCPU until its host has to know something, and puts that into the host's `x0`
/// to `x4`.
///
/// # Safety
///
/// `cpu` is the calling CPU's data, with the host's state in the CPU, and
/// nothing else refers to it.
#[inline(always)]
pub(crate) unsafe fn run(
    cpu: *mut PerCpu,
    hypervisor: &Hypervisor<Hardware>,
    run: &mut Run<'_>,
    x: &mut [u64; 8],
) {
    if let Next::Exit(answer) = hypervisor.guest_entry(run) {
        put(x, &answer);
        return;
    }
    // SAFETY: as granted, and the host's state is in the CPU.
    let timer_mask = unsafe { switch::enter(cpu, hypervisor.context_of(run), run) };
    if run.has_interrupt() {
        set_interrupt(true);
    }
    let mut aside = Aside::Nothing;

    loop {
        // SAFETY: the guest's state is in the CPU and the guest vectors are in
        // force; the guest's stage 2 keeps it to its own memory.
        let kind = unsafe { enter_guest(&mut run.regs) };
        switch::save_timer(&mut run.timer, timer_mask);
        // A call for each kind of exit, so that each is compiled for it.
        let ids = &hypervisor.machine.guest_ids;
        // SAFETY: as granted; nothing else refers to it.
        let scratch = unsafe { &mut (*cpu).guest_scratch };
        let next = match kind {
            EXIT_SYNCHRONOUS => match Syndrome::of(ESR_EL2::read()) {
                Syndrome::Wait(wait) => match hypervisor.guest_waits(run, wait) {
                    Waited::Enter { interrupt } => {
                        set_interrupt(interrupt);
                        continue;
                    }
                    Waited::Exit(answer) => {
                        put(x, &answer);
                        break;
                    }
                },
                Syndrome::Abort(abort) => {
                    run.el1.sctlr = SCTLR_EL1::read();
                    let exit = GuestExit::Abort(abort, address_of(abort));
                    hypervisor.guest_exit(scratch, run, exit, ids)
                }
                Syndrome::Trapped(trapped) => {
                    hypervisor.guest_exit(scratch, run, GuestExit::Trapped(trapped), ids)
                }
            },
            EXIT_INTERRUPT => hypervisor.guest_exit(scratch, run, GuestExit::Interrupt, ids),
            _ => {
                crate::host::report_of_guest("SError during a guest's run");
                hypervisor.guest_exit(scratch, run, GuestExit::SError, ids)
            }
        };
        match next {
            Next::Enter => {}
            Next::EnterWith { interrupt } => set_interrupt(interrupt),
            Next::Inject(exception) => {
                // SAFETY: as granted, and the registers in the CPU are the
                // guest's.
                unsafe {
                    if exception == Exception::UNDEFINED && grant_registers(cpu, run, &mut aside) {
                        continue;
                    }
                    switch::inject(run, exception);
                }
                if run.slot().is_stopped() {
                    put(x, &READY);
                    break;
                }
            }
            Next::Exit(answer) => {
                put(x, &answer);
                break;
            }
        }
    }

    if aside != Aside::Nothing {
        // SAFETY: the registers are the guest's, the room holds the host's.
        unsafe {
            let (features, host) = (&(*cpu).features, &(*cpu).host_controls);
            fp::restore_host(features, host, &(*cpu).host_vectors, &mut run.fp, aside);
        }
    }
    // SAFETY: as granted, and the guest's state is in the CPU.
    unsafe { switch::exit(cpu, run) };
}

/// What a run ended with, in the host's registers.
#[inline(always)]
fn put(x: &mut [u64; 8], answer: &Answer) {
    let [state, a, b, c] = *answer;
    x[..5].copy_from_slice(&[0, state, a, b, c]);
}

/// Enters the guest whose general registers these are; returns how its run
/// ended, with them stored.
///
/// # Safety
///
/// The rest of the guest's state is in the CPU.
#[inline(always)]
unsafe fn enter_guest(registers: &mut GeneralRegisters) -> u64 {
    let kind;
    // SAFETY: as granted. What it changes is listed: all that the compiler may
    // not keep across it. That saves storing registers here that the caller of
    // the caller has stored already.
    unsafe {
        asm!(
            "bl {enter}",
            enter = sym escrow_enter_guest,
            inout("x0") registers => _, out("x1") kind,
            out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _,
            out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
            out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, out("x18") _,
            out("x20") _, out("x21") _, out("x22") _, out("x23") _, out("x24") _, out("x25") _,
            out("x26") _, out("x27") _, out("x28") _, out("x30") _,
        );
    }
    kind
}

/// Gives a guest registers of its own, if it was for them that it met an
/// undefined instruction.
///
/// # Safety
///
/// As for [`run`], with the guest's state in the CPU.
#[cold]
unsafe fn grant_registers(cpu: *mut PerCpu, run: &mut Run<'_>, aside: &mut Aside) -> bool {
    let Syndrome::Trapped(trapped) = Syndrome::of(ESR_EL2::read()) else { return false };
    // SAFETY: as granted; these do not change during a run.
    let (features, host, guest) =
        unsafe { (&(*cpu).features, &(*cpu).host_controls, &(*cpu).guest_controls) };
    match trapped.uses() {
        Some(Lazy::Vectors) if *aside == Aside::Nothing => {
            // SAFETY: the vector registers are still the host's.
            unsafe {
                let room = &mut (*cpu).host_vectors;
                *aside = fp::load_guest(features, host, guest, room, &run.fp);
            }
            true
        }
        Some(Lazy::Keys) if features.pauth && !run.pauth => {
            // SAFETY: the keys are still the host's.
            unsafe { switch::grant_keys(&mut (*cpu).host, run) };
            true
        }
        _ => false,
    }
}

/// Gives the guest whose state is in the CPU a virtual interrupt, or takes it away. The
/// host's own controls have none, so it is gone with the run.
#[cold]
fn set_interrupt(pending: bool) {
    let others = HCR_EL2::read() & !HCR_VI;
    HCR_EL2::write(if pending { others | HCR_VI } else { others });
}

/// Reads the address of an abort.
#[inline(always)]
fn address_of(abort: Abort) -> FaultAddress {
    let far = FAR_EL2::read();
    FaultAddress { far, ipa: abort.ipa(far, HPFAR_EL2::read, || translate(far)) }
}

/// What `PAR_EL1` says of an address by the guest's stage 1; `None` if its tables cannot be
/// read. The guest's own `PAR_EL1` is kept.
fn translate(far: u64) -> Option<u64> {
    let par = PAR_EL1::read();
    let el0 = SPSR_EL2::read() & 0x1f == 0;
    let walked = walk_stage1(far, el0);
    let result = PAR_EL1::read();
    PAR_EL1::write(par);
    walked.ok().map(|()| result)
}
