// SPDX-License-Identifier: MIT OR Apache-2.0

//! Running a guest: the host's registers out of the CPU and the guest's in,
//! the guest's exits, and back.
//!
//! While EL2 handles an exit, the guest's EL1 registers stay in the CPU; they
//! are stored when the run ends, or when the guest takes an exception that EL2
//! makes it take.

use core::arch::asm;
use core::ptr;

use aarch64_cpu::asm::barrier;
use escrow_core::addr::Ipa;
use escrow_core::hypervisor::Hypervisor;
use escrow_core::stage2::Stage2Context;
use escrow_core::vcpu::syndrome::{Ec, abort};
use escrow_core::vcpu::{
    Answer, El1Registers, Exception, GeneralRegisters, GuestExit, Next, READY, TimerRegisters,
    Trap, Vcpu,
};
use escrow_core::vm::Run;

use crate::controls::{Controls, Optional};
use crate::features::Features;
use crate::machine::Hardware;
use crate::percpu::{HostRegisters, PerCpu};
use crate::sysreg::*;
use crate::trace::{self, Event};
use crate::{debug, fp};

// The assembly knows of these structures what lib.rs and the assertions below
// tell it.
#[allow(improper_ctypes)]
unsafe extern "C" {
    // Not to be called from Rust: see `enter_guest`.
    fn escrow_enter_guest();
    fn escrow_to_guest(cpu: *mut PerCpu, vcpu: *const Vcpu, vttbr: u64, vtcr: u64) -> bool;
    fn escrow_to_host(cpu: *const PerCpu, vcpu: *mut Vcpu);
    fn escrow_save_el1(registers: *mut El1Registers);
    fn escrow_load_el1(registers: *const El1Registers);
    fn escrow_save_keys(keys: *mut [u64; 10]);
    fn escrow_load_keys(keys: *const [u64; 10]);
}

/// What [`enter_guest`] returns.
const EXIT_SYNCHRONOUS: u64 = 0;
const EXIT_INTERRUPT: u64 = 1;

/// `CNTV_CTL_EL0.IMASK`.
const TIMER_IMASK: u64 = 1 << 1;

/// `HCR_EL2.APK` and `API`: pointer authentication is not trapped.
const HCR_PAUTH: u64 = 1 << 40 | 1 << 41;

/// `HCR_EL2.VI`: a virtual IRQ is pending. The guest takes it when its PSTATE lets it.
const HCR_VI: u64 = 1 << 7;

// What vectors.S and switch.S rely on.
const _: () = {
    use core::mem::offset_of;
    use escrow_core::vcpu::Vcpu;
    assert!(offset_of!(Vcpu, regs) == 0);
    assert!(offset_of!(GeneralRegisters, x) == 0);
    assert!(offset_of!(GeneralRegisters, pc) == 248);
    assert!(offset_of!(GeneralRegisters, pstate) == 256);
    assert!(offset_of!(El1Registers, sctlr) == 0);
    assert!(offset_of!(El1Registers, vbar) == 48);
    assert!(offset_of!(El1Registers, esr) == 80);
    assert!(offset_of!(El1Registers, tpidr_el0) == 112);
    assert!(offset_of!(El1Registers, csselr) == 152);
};

/// Runs a vCPU until its host has to know something.
///
/// # Safety
///
/// `cpu` is the calling CPU's data, with the host's state in the CPU, and
/// nothing else refers to it.
pub(crate) unsafe fn run(
    cpu: *mut PerCpu,
    hypervisor: &Hypervisor<Hardware>,
    mut run: Run<'_>,
) -> Answer {
    if let Next::Leave(answer) = hypervisor.guest_entry(&run) {
        return answer;
    }
    // SAFETY: as granted, and the host's state is in the CPU.
    let timer_held_back = unsafe { enter(cpu, *run.context(), &mut run) };
    if run.has_interrupt() {
        set_interrupt(true);
    }
    let mut aside = None;

    let answer = loop {
        // SAFETY: the guest's state is in the CPU and the guest vectors are in
        // force; the guest's stage 2 keeps it to its own memory.
        let kind = unsafe {
            (*cpu).vcpu = ptr::from_mut(&mut *run);
            enter_guest(&raw mut (*(*cpu).vcpu).regs)
        };
        save_timer(&mut run.timer, timer_held_back);
        // A call for each kind of exit, so that each is compiled for it.
        let ids = &hypervisor.machine.guest_ids;
        // SAFETY: as granted; nothing else refers to it.
        let scratch = unsafe { &mut (*cpu).scratch };
        let next = match kind {
            EXIT_SYNCHRONOUS => {
                let esr = ESR_EL2::read();
                match Ec::of(esr) {
                    Ec::DATA_ABORT_LOWER | Ec::INSTRUCTION_ABORT_LOWER => {
                        run.el1.sctlr = SCTLR_EL1::read();
                        hypervisor.guest_exit(
                            scratch,
                            &mut run,
                            GuestExit::Abort(abort_of(esr)),
                            ids,
                        )
                    }
                    _ => hypervisor.guest_exit(scratch, &mut run, GuestExit::Instruction(esr), ids),
                }
            }
            EXIT_INTERRUPT => hypervisor.guest_exit(scratch, &mut run, GuestExit::Interrupt, ids),
            _ => {
                // Imprecise: it may well be the host's or a device's doing.
                crate::host::report("SError during a guest's run", ESR_EL2::read());
                hypervisor.guest_exit(scratch, &mut run, GuestExit::Interrupt, ids)
            }
        };
        match next {
            Next::Enter => {}
            Next::EnterWith { interrupt } => set_interrupt(interrupt),
            Next::Inject(exception) => {
                // SAFETY: as granted, and the registers in the CPU are the
                // guest's.
                unsafe {
                    if exception == Exception::UNDEFINED && lend(cpu, &mut run, &mut aside) {
                        continue;
                    }
                    escrow_save_el1(&mut run.el1);
                    run.inject(exception);
                    escrow_load_el1(&run.el1);
                }
                if run.slot().is_stopped() {
                    break READY;
                }
            }
            Next::Leave(answer) => break answer,
        }
    };

    if let Some(aside) = aside {
        // SAFETY: the registers are the guest's, the room holds the host's.
        unsafe {
            let (features, host) = (&(*cpu).features, &(*cpu).host_controls);
            fp::restore_host(features, host, &(*cpu).host_vectors, &mut run.fp, aside);
        }
    }
    // SAFETY: as granted, and the guest's state is in the CPU.
    unsafe { leave(cpu, &mut run) };
    answer
}

/// Enters the guest whose general registers these are; returns how its run
/// ended, with them stored.
///
/// # Safety
///
/// The rest of the guest's state is in the CPU, and `PerCpu::vcpu` points to
/// the same registers.
#[inline(always)]
unsafe fn enter_guest(registers: *mut GeneralRegisters) -> u64 {
    let kind;
    // SAFETY: as granted. What it changes is listed: all that the compiler may
    // not keep across it. That saves storing registers here that the caller of
    // the caller has stored already.
    unsafe {
        asm!(
            "bl {enter}",
            enter = sym escrow_enter_guest,
            inout("x0") registers => kind,
            out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _,
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
unsafe fn lend(cpu: *mut PerCpu, run: &mut Run<'_>, aside: &mut Option<fp::Aside>) -> bool {
    let esr = ESR_EL2::read();
    // SAFETY: as granted; these do not change during a run.
    let (features, host, guest) =
        unsafe { (&(*cpu).features, &(*cpu).host_controls, &(*cpu).guest_controls) };
    if Ec::of(esr) == Ec::FP {
        if aside.is_some() {
            return false;
        }
        // SAFETY: the vector registers are still the host's.
        unsafe {
            let room = &mut (*cpu).host_vectors;
            *aside = Some(fp::load_guest(features, host, guest, room, &run.fp));
        }
        return true;
    }
    if !features.pauth || run.pauth || !wants_keys(esr) {
        return false;
    }
    // SAFETY: the keys are still the host's.
    unsafe { lend_keys(&mut (*cpu).host, run) };
    true
}

/// Takes the host's state out of the CPU and puts the guest's in. Returns
/// whether the guest's timer is kept from interrupting: one that has fired
/// would end each run before it has begun, until there is a virtual GIC to
/// hand its interrupt to. The guest sees it masked meanwhile.
///
/// # Safety
///
/// As for [`run`].
#[inline(always)]
unsafe fn enter(cpu: *mut PerCpu, context: Stage2Context, vcpu: &mut Vcpu) -> bool {
    // SAFETY: parts of this CPU's data that nothing else refers to; see `run`.
    let (host, last_vcpu) = unsafe { (&mut (*cpu).host, &mut (*cpu).last_vcpu) };
    // SAFETY: these are only read while a guest runs.
    let (controls, optional) = unsafe { (&(*cpu).guest_controls, (*cpu).optional) };
    if optional.has(Optional::RARE) {
        // SAFETY: `features` does not change.
        enter_rarely(unsafe { &(*cpu).features }, optional, host, vcpu, controls);
    }
    // SAFETY: the host's state is in the CPU. What a guest has in its
    // registers acts on its own memory only.
    let held_back = unsafe { escrow_to_guest(cpu, vcpu, context.vttbr, context.vtcr) };
    // Nothing is invalidated by it before the exception return.
    trace::event(|| Event::Vttbr(context.vttbr));
    trace::event(|| Event::Isb);
    if vcpu.pauth {
        // SAFETY: the keys are the host's.
        unsafe { lend_keys(host, vcpu) };
    }
    let this = ptr::from_ref(vcpu);
    if *last_vcpu != this {
        *last_vcpu = this;
        // vCPUs of a VM share a VMID, but their stage 1 need not be the same,
        // and TLB entries are told apart by VMID and ASID alone (DDI 0487,
        // "VMSAv8-64 TLB lookup"): nothing of another one may be left on this
        // CPU.
        barrier::isb(barrier::SY);
        // SAFETY: removes cached translations only.
        unsafe { asm!("tlbi vmalle1", options(nostack, preserves_flags)) };
        barrier::dsb(barrier::NSH);
    }
    held_back
}

/// The way back. The guest's timer is stored already.
///
/// # Safety
///
/// As for [`run`], with the guest's state in the CPU.
#[inline(always)]
unsafe fn leave(cpu: *mut PerCpu, vcpu: &mut Vcpu) {
    // SAFETY: these are only read while a guest runs.
    let (host, controls, optional) =
        unsafe { (&(*cpu).host, &(*cpu).host_controls, (*cpu).optional) };
    // SAFETY: the keys are the guest's if they were lent.
    unsafe {
        if vcpu.pauth {
            escrow_save_keys(&mut vcpu.el1.keys);
            escrow_load_keys(&host.el1.keys);
        }
        escrow_to_host(cpu, vcpu);
    }
    // SAFETY: the CPU's own data.
    trace::event(|| Event::Vttbr(unsafe { (*cpu).host_stage2.vttbr }));
    trace::event(|| Event::Isb);
    if optional.has(Optional::RARE) {
        // SAFETY: `features` does not change.
        leave_rarely(unsafe { &(*cpu).features }, optional, host, vcpu, controls);
    }
}

/// The part of [`enter`] that hardly any CPU needs. To be called while EL1's
/// translation is still the host's, for the buffers to be drained.
#[cold]
fn enter_rarely(
    features: &Features,
    optional: Optional,
    host: &mut HostRegisters,
    vcpu: &mut Vcpu,
    controls: &Controls,
) {
    if optional.has(Optional::BUFFERS) {
        host.buffers = debug::stop(features);
    }
    if optional.has(Optional::AUXILIARY) {
        save_auxiliary(&mut host.el1);
        load_auxiliary(&vcpu.el1);
    }
    controls.load_rare(optional);
}

/// The part of [`leave`] that hardly any CPU needs.
#[cold]
fn leave_rarely(
    features: &Features,
    optional: Optional,
    host: &HostRegisters,
    vcpu: &mut Vcpu,
    controls: &Controls,
) {
    if optional.has(Optional::AUXILIARY) {
        save_auxiliary(&mut vcpu.el1);
        load_auxiliary(&host.el1);
    }
    controls.load_rare(optional);
    if optional.has(Optional::BUFFERS) {
        // The host's translation is in force before they write through it.
        barrier::isb(barrier::SY);
        debug::start(features, host.buffers);
    }
}

fn save_auxiliary(registers: &mut El1Registers) {
    registers.afsr0 = AFSR0_EL1::read();
    registers.afsr1 = AFSR1_EL1::read();
    registers.amair = AMAIR_EL1::read();
}

fn load_auxiliary(registers: &El1Registers) {
    AFSR0_EL1::write(registers.afsr0);
    AFSR1_EL1::write(registers.afsr1);
    AMAIR_EL1::write(registers.amair);
}

/// Whether a trap is for a pointer-authentication instruction or one of its
/// key registers (`S3_0_C2_C<1-3>_x`).
fn wants_keys(esr: u64) -> bool {
    const OP0_OP1_CRN: u64 = 0x3 << 20 | 0x7 << 14 | 0xf << 10;
    let crm = esr >> 1 & 0xf;
    Ec::of(esr) == Ec::PAUTH || (esr & OP0_OP1_CRN == 3 << 20 | 2 << 10 && (1..=3).contains(&crm))
}

/// Puts the host's keys aside and loads the guest's, which it may use from now
/// on and will have from the start in its next runs: one that uses them uses
/// them all the time.
///
/// # Safety
///
/// The keys in the CPU are the host's, the controls are the guest's.
#[inline(never)]
unsafe fn lend_keys(host: &mut HostRegisters, run: &mut Vcpu) {
    run.pauth = true;
    // SAFETY: as granted.
    unsafe {
        escrow_save_keys(&mut host.el1.keys);
        escrow_load_keys(&run.el1.keys);
    }
    HCR_EL2::write(HCR_EL2::read() | HCR_PAUTH);
}

/// Gives the guest whose state is in the CPU a virtual interrupt, or takes it away. The
/// host's own controls have none, so it is gone with the run.
#[cold]
fn set_interrupt(pending: bool) {
    let others = HCR_EL2::read() & !HCR_VI;
    HCR_EL2::write(if pending { others | HCR_VI } else { others });
}

/// Stores the guest's timer.
fn save_timer(timer: &mut TimerRegisters, held_back: bool) {
    let (ctl, cval) = (CNTV_CTL_EL0::read(), CNTV_CVAL_EL0::read());
    timer.ctl = if held_back { ctl & !TIMER_IMASK } else { ctl };
    timer.cval = cval;
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
            // SAFETY: an address translation only writes PAR_EL1.
            unsafe {
                if el0 {
                    asm!("at s1e0r, {}", in(reg) far, options(nostack, preserves_flags));
                } else {
                    asm!("at s1e1r, {}", in(reg) far, options(nostack, preserves_flags));
                }
            }
            barrier::isb(barrier::SY);
            let result = PAR_EL1::read();
            PAR_EL1::write(par);
            if result & 1 != 0 {
                return None;
            }
            result & 0x000f_ffff_ffff_f000
        }
        abort::Kind::Other => return None,
        _ => (HPFAR_EL2::read() & 0x0000_0fff_ffff_fff0) << 8,
    };
    Some(Ipa(page | far & 0xfff))
}
