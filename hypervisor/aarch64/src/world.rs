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
use escrow_core::vcpu::syndrome::{Ec, abort};
use escrow_core::vcpu::{
    Answer, El1Registers, GeneralRegisters, GuestExit, Next, READY, TimerRegisters, Trap,
};
use escrow_core::vm::Run;

use crate::controls::{Controls, Optional};
use crate::machine::Hardware;
use crate::percpu::{HostRegisters, PerCpu};
use crate::sysreg::*;
use crate::{debug, fp};

unsafe extern "C" {
    static escrow_guest_vectors: [u8; 0];
    static escrow_host_vectors: [u8; 0];
    fn escrow_enter_guest(registers: *mut GeneralRegisters) -> u64;
    fn escrow_save_el1(registers: *mut El1Registers);
    fn escrow_load_el1(registers: *const El1Registers);
    fn escrow_save_keys(keys: *mut [u64; 10]);
    fn escrow_load_keys(keys: *const [u64; 10]);
}

/// What [`escrow_enter_guest`] returns.
const EXIT_SYNCHRONOUS: u64 = 0;
const EXIT_INTERRUPT: u64 = 1;

/// `CNTV_CTL_EL0.IMASK`.
const TIMER_IMASK: u64 = 1 << 1;

/// `HCR_EL2.APK` and `API`: pointer authentication is not trapped.
const HCR_PAUTH: u64 = 1 << 40 | 1 << 41;

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
/// nothing else refers to it but for reads of the stage 2 in force.
pub(crate) unsafe fn run(
    cpu: *mut PerCpu,
    hypervisor: &Hypervisor<Hardware>,
    mut run: Run<'_>,
) -> Answer {
    if let Next::Leave(answer) = hypervisor.guest_entry(&run) {
        return answer;
    }
    // SAFETY: as granted. These fields do not change during the run.
    let (features, host, guest) =
        unsafe { (&(*cpu).features, &(*cpu).host_controls, &(*cpu).guest_controls) };
    // SAFETY: as granted.
    let optional = unsafe { (*cpu).optional };
    let buffers = optional.has(Optional::BUFFERS).then(|| debug::stop(features));
    // SAFETY: as granted, and the host's state is in the CPU.
    let timer_held_back = unsafe { enter(cpu, &mut run) };
    let mut aside = None;

    let answer = loop {
        // SAFETY: the guest's state is in the CPU and the guest vectors are in
        // force; the guest's stage 2 keeps it to its own memory.
        let kind = unsafe {
            (*cpu).vcpu = ptr::from_mut(&mut *run);
            escrow_enter_guest(&raw mut (*(*cpu).vcpu).regs)
        };
        let exit = match kind {
            EXIT_SYNCHRONOUS => {
                let esr = ESR_EL2::read();
                match Ec::of(esr) {
                    Ec::DATA_ABORT_LOWER | Ec::INSTRUCTION_ABORT_LOWER => {
                        run.el1.sctlr = SCTLR_EL1::read();
                        GuestExit::Abort(abort_of(esr))
                    }
                    Ec::FP if aside.is_none() => {
                        // SAFETY: the registers are still the host's.
                        aside = Some(unsafe {
                            let room = &mut (*cpu).host_vectors;
                            fp::load_guest(features, host, guest, room, &run.fp)
                        });
                        continue;
                    }
                    Ec::PAUTH | Ec::SYSTEM if features.pauth && !run.pauth && wants_keys(esr) => {
                        // SAFETY: the keys are still the host's.
                        unsafe { lend_keys(&mut (*cpu).host, &mut run, guest) };
                        continue;
                    }
                    _ => GuestExit::Instruction(esr),
                }
            }
            EXIT_INTERRUPT => GuestExit::Interrupt,
            _ => {
                // Imprecise: it may well be the host's or a device's doing.
                crate::host::report("SError during a guest's run", ESR_EL2::read());
                GuestExit::Interrupt
            }
        };
        save_timer(&mut run.timer, timer_held_back);
        match hypervisor.guest_exit(&mut run, exit, &hypervisor.machine.guest_ids) {
            Next::Enter => {}
            Next::Inject(exception) => {
                // SAFETY: the registers in the CPU are the guest's.
                unsafe {
                    save_el1(&mut run.el1, optional);
                    run.inject(exception);
                    load_el1(&run.el1, optional);
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
            fp::restore_host(features, host, &(*cpu).host_vectors, &mut run.fp, aside);
        }
    }
    // SAFETY: as granted, and the guest's state is in the CPU.
    unsafe { leave(cpu, &mut run) };
    if let Some(buffers) = buffers {
        debug::start(features, buffers);
    }
    answer
}

/// Takes the host's state out of the CPU and puts the guest's in. Returns
/// whether the guest's timer is kept from interrupting.
///
/// None of the writes has to be in force before the ERET, a context
/// synchronization event (DDI 0487, Glossary): EL2 uses none of the registers.
#[inline(always)]
unsafe fn enter(cpu: *mut PerCpu, run: &mut Run<'_>) -> bool {
    // SAFETY: parts of this CPU's data that nothing else refers to; see `run`.
    let (host, stage2, last_vcpu) =
        unsafe { (&mut (*cpu).host, &mut (*cpu).stage2, &mut (*cpu).last_vcpu) };
    // SAFETY: these are only read while a guest runs.
    let (controls, optional) = unsafe { (&(*cpu).guest_controls, (*cpu).optional) };
    host.pc = ELR_EL2::read();
    host.pstate = SPSR_EL2::read();
    host.timer_ctl = CNTV_CTL_EL0::read();
    host.timer_cval = CNTV_CVAL_EL0::read();
    // SAFETY: the registers are the host's.
    unsafe { save_el1(&mut host.el1, optional) };

    let context = *run.context();
    *stage2 = context;
    VBAR_EL2::write((&raw const escrow_guest_vectors) as u64);
    VTTBR_EL2::write(context.vttbr);
    VTCR_EL2::write(context.vtcr);
    VMPIDR_EL2::write(run.vmpidr);
    controls.load(optional);
    if run.pauth {
        // SAFETY: the keys are the host's.
        unsafe { lend_keys(host, run, controls) };
    }
    // The host's breakpoints and single steps are none of the guest's; the
    // guest has none of its own (its accesses are trapped).
    host.mdscr = MDSCR_EL1::read();
    if host.mdscr != 0 {
        MDSCR_EL1::write(0);
    }
    // SAFETY: what a guest has in its registers acts on its own memory only.
    unsafe { load_el1(&run.el1, optional) };

    // A timer that has fired would end each run before it has begun, until
    // there is a virtual GIC to hand its interrupt to. The guest sees it
    // masked meanwhile.
    let held_back = run.timer.is_pending();
    CNTVOFF_EL2::write(run.timer.offset);
    CNTV_CVAL_EL0::write(run.timer.cval);
    CNTV_CTL_EL0::write(if held_back { run.timer.ctl | TIMER_IMASK } else { run.timer.ctl });

    let this = ptr::from_mut(&mut **run);
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
#[inline(always)]
unsafe fn leave(cpu: *mut PerCpu, run: &mut Run<'_>) {
    // SAFETY: parts of this CPU's data that nothing else refers to; see `run`.
    let (host, stage2) = unsafe { (&(*cpu).host, &mut (*cpu).stage2) };
    // SAFETY: these are only read while a guest runs.
    let (controls, optional, context, mpidr) =
        unsafe { (&(*cpu).host_controls, (*cpu).optional, (*cpu).host_stage2, (*cpu).mpidr()) };
    // SAFETY: the registers are the guest's, and so are the keys if they were
    // lent; then both become the host's again.
    unsafe {
        save_el1(&mut run.el1, optional);
        if run.pauth {
            escrow_save_keys(&mut run.el1.keys);
            escrow_load_keys(&host.el1.keys);
        }
        load_el1(&host.el1, optional);
    }
    if host.mdscr != 0 {
        MDSCR_EL1::write(host.mdscr);
    }
    *stage2 = context;
    VBAR_EL2::write((&raw const escrow_host_vectors) as u64);
    VTTBR_EL2::write(context.vttbr);
    VTCR_EL2::write(context.vtcr);
    VMPIDR_EL2::write(mpidr);
    controls.load(optional);
    CNTVOFF_EL2::write(0);
    CNTV_CVAL_EL0::write(host.timer_cval);
    CNTV_CTL_EL0::write(host.timer_ctl);
    ELR_EL2::write(host.pc);
    SPSR_EL2::write(host.pstate);
}

/// Stores EL1's registers.
///
/// # Safety
///
/// They are those of the VM that `registers` belongs to.
#[inline(always)]
unsafe fn save_el1(registers: &mut El1Registers, optional: Optional) {
    // SAFETY: writes the structure.
    unsafe { escrow_save_el1(registers) };
    if optional.has(Optional::AUXILIARY) {
        registers.afsr0 = AFSR0_EL1::read();
        registers.afsr1 = AFSR1_EL1::read();
        registers.amair = AMAIR_EL1::read();
    }
}

/// Loads EL1's registers.
///
/// # Safety
///
/// What was in them is stored or of no use, and the VM's stage 2 is in force
/// before it runs.
#[inline(always)]
unsafe fn load_el1(registers: &El1Registers, optional: Optional) {
    // SAFETY: as granted.
    unsafe { escrow_load_el1(registers) };
    if optional.has(Optional::AUXILIARY) {
        AFSR0_EL1::write(registers.afsr0);
        AFSR1_EL1::write(registers.afsr1);
        AMAIR_EL1::write(registers.amair);
    }
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
/// The keys in the CPU are the host's.
#[inline(never)]
unsafe fn lend_keys(host: &mut HostRegisters, run: &mut Run<'_>, guest: &Controls) {
    run.pauth = true;
    // SAFETY: as granted.
    unsafe {
        escrow_save_keys(&mut host.el1.keys);
        escrow_load_keys(&run.el1.keys);
    }
    HCR_EL2::write(guest.hcr | HCR_PAUTH);
}

/// Stores the guest's timer.
fn save_timer(timer: &mut TimerRegisters, held_back: bool) {
    let ctl = CNTV_CTL_EL0::read();
    timer.ctl = if held_back { ctl & !TIMER_IMASK } else { ctl };
    timer.cval = CNTV_CVAL_EL0::read();
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
