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

use crate::machine::Hardware;
use crate::percpu::PerCpu;
use crate::sysreg::*;
use crate::{debug, fp};

unsafe extern "C" {
    static escrow_guest_vectors: [u8; 0];
    static escrow_host_vectors: [u8; 0];
    fn escrow_enter_guest(registers: *mut GeneralRegisters) -> u64;
}

/// What [`escrow_enter_guest`] returns.
const EXIT_SYNCHRONOUS: u64 = 0;
const EXIT_INTERRUPT: u64 = 1;

/// `CNTV_CTL_EL0.IMASK`.
const TIMER_IMASK: u64 = 1 << 1;

// What vectors.S relies on.
const _: () = {
    use core::mem::offset_of;
    use escrow_core::vcpu::Vcpu;
    assert!(offset_of!(Vcpu, regs) == 0);
    assert!(offset_of!(GeneralRegisters, x) == 0);
    assert!(offset_of!(GeneralRegisters, pc) == 248);
    assert!(offset_of!(GeneralRegisters, pstate) == 256);
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
    let buffers = debug::stop(features);
    // Where the host goes on: the guest's exits overwrite both.
    let (host_pc, host_pstate) = (ELR_EL2::read(), SPSR_EL2::read());
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
                if Ec::of(esr) == Ec::FP && aside.is_none() {
                    // SAFETY: the registers are still the host's.
                    aside = Some(unsafe {
                        let room = &mut (*cpu).host_vectors;
                        fp::load_guest(features, host, guest, room, &run.fp)
                    });
                    continue;
                }
                save_timer(&mut run.timer, timer_held_back);
                GuestExit::Synchronous(synchronous(esr, &mut run.el1))
            }
            EXIT_INTERRUPT => GuestExit::Interrupt,
            _ => {
                // Imprecise: it may well be the host's or a device's doing.
                crate::host::report("SError during a guest's run", ESR_EL2::read());
                GuestExit::Interrupt
            }
        };
        match hypervisor.guest_exit(&mut run, exit, &hypervisor.machine.guest_ids) {
            Next::Enter => {}
            Next::Inject(exception) => {
                save_el1(&mut run.el1, features.pauth);
                run.inject(exception);
                load_el1(&run.el1, features.pauth);
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
    unsafe { leave(cpu, &mut run, timer_held_back) };
    ELR_EL2::write(host_pc);
    SPSR_EL2::write(host_pstate);
    debug::start(features, buffers);
    answer
}

/// Takes the host's state out of the CPU and puts the guest's in. Returns
/// whether the guest's timer is kept from interrupting.
///
/// None of the writes has to be in force before the ERET, which is a context
/// synchronisation event (DDI 0487, D1.4.4): EL2 uses none of the registers.
#[inline(always)]
unsafe fn enter(cpu: *mut PerCpu, run: &mut Run<'_>) -> bool {
    // SAFETY: `cpu` is this CPU's data; see `run`.
    let data = unsafe { &mut *cpu };
    // Where the host goes on: a guest's exits write these.
    data.host_return = (ELR_EL2::read(), SPSR_EL2::read());
    save_el1(&mut data.host_el1, data.features.pauth);
    data.host_timer.ctl = CNTV_CTL_EL0::read();
    data.host_timer.cval = CNTV_CVAL_EL0::read();

    let context = *run.context();
    data.stage2 = context;
    VBAR_EL2::write((&raw const escrow_guest_vectors) as u64);
    VTTBR_EL2::write(context.vttbr);
    VTCR_EL2::write(context.vtcr);
    VMPIDR_EL2::write(run.vmpidr);
    data.guest_controls.load(&data.features);
    // The host's breakpoints and single steps are none of the guest's; the
    // guest has none of its own (its accesses are trapped).
    if data.host_el1.mdscr != 0 {
        MDSCR_EL1::write(0);
    }
    load_el1(&run.el1, data.features.pauth);

    // A timer that has fired would end each run before it has begun, until
    // there is a virtual GIC to hand its interrupt to. The guest sees it
    // masked meanwhile.
    let held_back = run.timer.is_pending();
    CNTVOFF_EL2::write(run.timer.offset);
    CNTV_CVAL_EL0::write(run.timer.cval);
    CNTV_CTL_EL0::write(if held_back { run.timer.ctl | TIMER_IMASK } else { run.timer.ctl });

    let this = (ptr::from_mut(&mut **run) as usize, context.vttbr);
    if data.last_vcpu != this {
        data.last_vcpu = this;
        // vCPUs of a VM share a VMID, but stage 1 need not be the same on
        // each (DDI 0487, D8.17.4: entries are matched by VMID and ASID
        // alone): nothing of another one may be left on this CPU.
        barrier::isb(barrier::SY);
        // SAFETY: removes cached translations only.
        unsafe { asm!("tlbi vmalle1", options(nostack, preserves_flags)) };
        barrier::dsb(barrier::NSH);
    }
    held_back
}

/// The way back.
#[inline(always)]
unsafe fn leave(cpu: *mut PerCpu, run: &mut Run<'_>, timer_held_back: bool) {
    // SAFETY: `cpu` is this CPU's data; see `run`.
    let data = unsafe { &mut *cpu };
    save_el1(&mut run.el1, data.features.pauth);
    save_timer(&mut run.timer, timer_held_back);

    ELR_EL2::write(data.host_return.0);
    SPSR_EL2::write(data.host_return.1);
    data.stage2 = data.host_stage2;
    VBAR_EL2::write((&raw const escrow_host_vectors) as u64);
    VTTBR_EL2::write(data.host_stage2.vttbr);
    VTCR_EL2::write(data.host_stage2.vtcr);
    VMPIDR_EL2::write(data.mpidr());
    data.host_controls.load(&data.features);
    if data.host_el1.mdscr != 0 {
        MDSCR_EL1::write(data.host_el1.mdscr);
    }
    load_el1(&data.host_el1, data.features.pauth);
    CNTVOFF_EL2::write(0);
    CNTV_CVAL_EL0::write(data.host_timer.cval);
    CNTV_CTL_EL0::write(data.host_timer.ctl);
}

/// Stores the guest's timer.
fn save_timer(timer: &mut TimerRegisters, held_back: bool) {
    let ctl = CNTV_CTL_EL0::read();
    timer.ctl = if held_back { ctl & !TIMER_IMASK } else { ctl };
    timer.cval = CNTV_CVAL_EL0::read();
}

/// Reads what belongs to a synchronous exit.
#[inline]
fn synchronous(esr: u64, el1: &mut El1Registers) -> Trap {
    let mut trap = Trap { esr, far: 0, ipa: None };
    if matches!(Ec::of(esr), Ec::DATA_ABORT_LOWER | Ec::INSTRUCTION_ABORT_LOWER) {
        trap.far = FAR_EL2::read();
        trap.ipa = abort_address(esr, trap.far);
        el1.sctlr = SCTLR_EL1::read();
    }
    trap
}

/// The guest address of an abort.
fn abort_address(esr: u64, far: u64) -> Option<Ipa> {
    let page = match abort::kind(esr) {
        abort::Kind::Permission if esr & abort::S1PTW == 0 => {
            // HPFAR_EL2 is UNKNOWN here (DDI 0487, D24.2.55): walk stage 1
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

/// The registers of `El1Registers`, in both directions.
macro_rules! el1_registers {
    ($($field:ident: $register:ident,)*) => {
        #[inline(always)]
        fn save_el1(registers: &mut El1Registers, pauth: bool) {
            $(registers.$field = $register::read();)*
            registers.mdscr = MDSCR_EL1::read();
            if pauth {
                registers.keys = [
                    APIAKEYLO_EL1::read(), APIAKEYHI_EL1::read(),
                    APIBKEYLO_EL1::read(), APIBKEYHI_EL1::read(),
                    APDAKEYLO_EL1::read(), APDAKEYHI_EL1::read(),
                    APDBKEYLO_EL1::read(), APDBKEYHI_EL1::read(),
                    APGAKEYLO_EL1::read(), APGAKEYHI_EL1::read(),
                ];
            }
        }

        /// All but `MDSCR_EL1`, which only the host has.
        #[inline(always)]
        fn load_el1(registers: &El1Registers, pauth: bool) {
            $($register::write(registers.$field);)*
            if pauth {
                let keys = &registers.keys;
                APIAKEYLO_EL1::write(keys[0]);
                APIAKEYHI_EL1::write(keys[1]);
                APIBKEYLO_EL1::write(keys[2]);
                APIBKEYHI_EL1::write(keys[3]);
                APDAKEYLO_EL1::write(keys[4]);
                APDAKEYHI_EL1::write(keys[5]);
                APDBKEYLO_EL1::write(keys[6]);
                APDBKEYHI_EL1::write(keys[7]);
                APGAKEYLO_EL1::write(keys[8]);
                APGAKEYHI_EL1::write(keys[9]);
            }
        }
    };
}

el1_registers! {
    sctlr: SCTLR_EL1,
    cpacr: CPACR_EL1,
    ttbr0: TTBR0_EL1,
    ttbr1: TTBR1_EL1,
    tcr: TCR_EL1,
    mair: MAIR_EL1,
    amair: AMAIR_EL1,
    vbar: VBAR_EL1,
    elr: ELR_EL1,
    spsr: SPSR_EL1,
    esr: ESR_EL1,
    far: FAR_EL1,
    afsr0: AFSR0_EL1,
    afsr1: AFSR1_EL1,
    par: PAR_EL1,
    contextidr: CONTEXTIDR_EL1,
    tpidr_el0: TPIDR_EL0,
    tpidrro_el0: TPIDRRO_EL0,
    tpidr_el1: TPIDR_EL1,
    sp_el0: SP_EL0,
    sp_el1: SP_EL1,
    cntkctl: CNTKCTL_EL1,
    csselr: CSSELR_EL1,
}
