// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest: how it is entered, and what it exits for.
//!
//! While EL2 handles an exit, the guest's EL1 registers stay in the CPU; they
//! are stored when the run ends, or when the guest takes an exception that EL2
//! makes it take.

use core::arch::asm;

use escrow_core::addr::Ipa;
use escrow_core::hypervisor::Hypervisor;
use escrow_core::vcpu::syndrome::{Ec, abort};
use escrow_core::vcpu::{
    Answer, Exception, GeneralRegisters, GuestExit, Next, READY, Trap, Waited,
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
            EXIT_SYNCHRONOUS => {
                let esr = ESR_EL2::read();
                match Ec::of(esr) {
                    Ec::WAIT => match hypervisor.guest_waits(run, esr) {
                        Waited::Enter { interrupt } => {
                            set_interrupt(interrupt);
                            continue;
                        }
                        Waited::Exit(answer) => {
                            put(x, &answer);
                            break;
                        }
                    },
                    Ec::DATA_ABORT_LOWER | Ec::INSTRUCTION_ABORT_LOWER => {
                        run.el1.sctlr = SCTLR_EL1::read();
                        hypervisor.guest_exit(scratch, run, GuestExit::Abort(abort_of(esr)), ids)
                    }
                    _ => hypervisor.guest_exit(scratch, run, GuestExit::Instruction(esr), ids),
                }
            }
            EXIT_INTERRUPT => hypervisor.guest_exit(scratch, run, GuestExit::Interrupt, ids),
            _ => {
                // Imprecise: it may well be the host's or a device's doing.
                crate::host::report_of_guest("SError during a guest's run");
                hypervisor.guest_exit(scratch, run, GuestExit::Interrupt, ids)
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
/// undefined instruction: vector registers for this run, keys from now on.
///
/// # Safety
///
/// As for [`run`], with the guest's state in the CPU.
#[cold]
unsafe fn grant_registers(cpu: *mut PerCpu, run: &mut Run<'_>, aside: &mut Aside) -> bool {
    let esr = ESR_EL2::read();
    // SAFETY: as granted; these do not change during a run.
    let (features, host, guest) =
        unsafe { (&(*cpu).features, &(*cpu).host_controls, &(*cpu).guest_controls) };
    if Ec::of(esr) == Ec::FP {
        if *aside != Aside::Nothing {
            return false;
        }
        // SAFETY: the vector registers are still the host's.
        unsafe {
            let room = &mut (*cpu).host_vectors;
            *aside = fp::load_guest(features, host, guest, room, &run.fp);
        }
        return true;
    }
    if !features.pauth || run.pauth || !wants_keys(esr) {
        return false;
    }
    // SAFETY: the keys are still the host's.
    unsafe { switch::grant_keys(&mut (*cpu).host, run) };
    true
}

/// Whether a trap is for a pointer-authentication instruction or one of its
/// key registers (`S3_0_C2_C<1-3>_x`).
fn wants_keys(esr: u64) -> bool {
    const OP0_OP1_CRN: u64 = 0x3 << 20 | 0x7 << 14 | 0xf << 10;
    let crm = esr >> 1 & 0xf;
    Ec::of(esr) == Ec::PAUTH || (esr & OP0_OP1_CRN == 3 << 20 | 2 << 10 && (1..=3).contains(&crm))
}

/// Gives the guest whose state is in the CPU a virtual interrupt, or takes it away. The
/// host's own controls have none, so it is gone with the run.
#[cold]
fn set_interrupt(pending: bool) {
    let others = HCR_EL2::read() & !HCR_VI;
    HCR_EL2::write(if pending { others | HCR_VI } else { others });
}

/// Reads what belongs to an abort.
#[inline(always)]
fn abort_of(esr: u64) -> Trap {
    let far = FAR_EL2::read();
    Trap { esr, far, ipa: abort_address(esr, far) }
}

/// The guest address of an abort.
fn abort_address(esr: u64, far: u64) -> Option<Ipa> {
    let page = match abort::kind(esr) {
        abort::Kind::Permission if esr & abort::S1PTW == 0 => {
            // HPFAR_EL2 is UNKNOWN here (DDI 0487, "HPFAR_EL2"): walk stage 1
            // again. The guest's own PAR_EL1 is kept.
            let par = PAR_EL1::read();
            let el0 = SPSR_EL2::read() & 0x1f == 0;
            let walked = walk_stage1(far, el0);
            let result = PAR_EL1::read();
            PAR_EL1::write(par);
            if walked.is_err() || result & 1 != 0 {
                return None;
            }
            result & 0x000f_ffff_ffff_f000
        }
        abort::Kind::Other => return None,
        _ => (HPFAR_EL2::read() & 0x0000_0fff_ffff_fff0) << 8,
    };
    Some(Ipa(page | far & 0xfff))
}
