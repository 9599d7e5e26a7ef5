// SPDX-License-Identifier: MIT OR Apache-2.0

//! The world switch: the host's registers out of the CPU and a guest's in, and back.

use core::arch::asm;
use core::ptr;

use aarch64_cpu::asm::barrier;
use escrow_core::observers::Observers;
use escrow_core::stage2::Stage2Context;
use escrow_core::vcpu::{El1Registers, Exception, NOWHERE, TimerRegisters, Vcpu};

use crate::controls::{Load as _, Optional};
use crate::debug::ThisCpu;
use crate::machine::finish_walks;
use crate::percpu::{HostRegisters, PerCpu};
use crate::sysreg::*;
use crate::trace::{self, Event};
use crate::walks::{self, Walks};

// The assembly knows of these structures what lib.rs and the assertions below
// tell it.
#[allow(improper_ctypes)]
unsafe extern "C" {
    fn escrow_to_guest(cpu: *mut PerCpu, vcpu: *const Vcpu, vttbr: u64, vtcr: u64) -> u64;
    fn escrow_to_host(cpu: *const PerCpu, vcpu: *mut Vcpu);
    fn escrow_save_el1(registers: *mut El1Registers);
    fn escrow_load_el1(registers: *const El1Registers);
    fn escrow_save_keys(keys: *mut [u64; 10]);
    fn escrow_load_keys(keys: *const [u64; 10]);
}

/// `HCR_EL2.APK` and `API`: pointer authentication is not trapped.
const HCR_PAUTH: u64 = 1 << 40 | 1 << 41;

// [`HostRegisters::long_way`] is either that, or something is to be done.
const _: () = assert!(Optional::MOST as u64 & Observers::NONE_ACTS == 0);

// What switch.S relies on.
const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(El1Registers, sctlr) == 0);
    assert!(offset_of!(El1Registers, vbar) == 48);
    assert!(offset_of!(El1Registers, esr) == 80);
    assert!(offset_of!(El1Registers, tpidr_el0) == 112);
    assert!(offset_of!(El1Registers, csselr) == 152);
    let vmpidr = offset_of!(Vcpu, vmpidr);
    assert!(offset_of!(Vcpu, timer) + offset_of!(TimerRegisters, ctl) == vmpidr + 8);
    assert!(offset_of!(Vcpu, timer) + offset_of!(TimerRegisters, cval) == vmpidr + 16);
    assert!(offset_of!(Vcpu, timer) + offset_of!(TimerRegisters, offset) == vmpidr + 24);
};

/// Takes the host's state out of the CPU and puts the guest's in. Returns
/// what [`save_timer`] takes off again, if the guest's timer is kept from
/// interrupting: one that has fired
/// would end each run before it has begun, until there is a virtual GIC to
/// hand its interrupt to. The guest sees it masked meanwhile.
///
/// # Safety
///
/// As for [`run`](crate::guest::run).
#[inline(always)]
pub(crate) unsafe fn enter(cpu: *mut PerCpu, context: Stage2Context, vcpu: &mut Vcpu) -> u64 {
    finish_walks();
    // SAFETY: parts of this CPU's data that nothing else refers to; see `guest::run`.
    let (host, last_vcpu, optional) =
        unsafe { (&mut (*cpu).host, &mut (*cpu).last_vcpu, (*cpu).optional) };
    if optional.has(Optional::VDISR) {
        // A guest's DISR_EL1 (DDI 0487, "DISR_EL1", HCR_EL2.AMO), which nothing traps. No
        // virtual SError is ever pending, so what is in it is what the last guest wrote.
        VDISR_EL2::clear();
    }
    let pmcr = if optional.has(Optional::PMU) { PMCR_EL0::read() } else { 0 };
    host.long_way = Observers::act(MDSCR_EL1::read(), pmcr) | optional.rare();
    // SAFETY: the host's state is in the CPU. What a guest has in its
    // registers acts on its own memory only.
    let held_back = unsafe {
        if host.long_way != 0 {
            enter_long_way(cpu, context, vcpu)
        } else {
            to_guest(cpu, context, vcpu)
        }
    };
    // Nothing is invalidated by it before the exception return.
    trace::event(|| Event::Isb);
    if vcpu.pauth {
        // SAFETY: the keys are the host's.
        unsafe { grant_keys(host, vcpu) };
    }
    let this = ptr::from_ref(vcpu);
    if *last_vcpu != this {
        *last_vcpu = this;
        // What this CPU's virtual CPU interface has may be another one's.
        vcpu.interface_on = NOWHERE;
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
/// As for [`run`](crate::guest::run), with the guest's state in the CPU.
#[inline(always)]
pub(crate) unsafe fn exit(cpu: *mut PerCpu, vcpu: &mut Vcpu) {
    finish_walks();
    // SAFETY: this is only read while a guest runs.
    let host = unsafe { &(*cpu).host };
    // SAFETY: the keys are the guest's if they were granted; the state is the guest's.
    unsafe {
        if vcpu.pauth {
            escrow_save_keys(&mut vcpu.el1.keys);
            escrow_load_keys(&host.el1.keys);
        }
        if host.long_way != 0 {
            exit_long_way(cpu, vcpu);
        } else {
            to_host(cpu, vcpu);
        }
    }
    trace::event(|| Event::Isb);
}

/// [`escrow_to_guest`], for the trace as well.
///
/// # Safety
///
/// As for [`enter`].
#[inline(always)]
unsafe fn to_guest(cpu: *mut PerCpu, context: Stage2Context, vcpu: &Vcpu) -> u64 {
    // SAFETY: as granted.
    let held_back = unsafe { escrow_to_guest(cpu, vcpu, context.vttbr, context.vtcr) } << 1;
    walks::note_loaded();
    trace::event(|| Event::Vttbr(context.vttbr));
    held_back
}

/// [`escrow_to_host`], likewise.
///
/// # Safety
///
/// As for [`exit`].
#[inline(always)]
unsafe fn to_host(cpu: *const PerCpu, vcpu: &mut Vcpu) {
    // SAFETY: as granted; the CPU's own data.
    unsafe {
        escrow_to_host(cpu, vcpu);
        walks::note_loaded();
        trace::event(|| Event::Vttbr((*cpu).host_stage2.vttbr));
    }
}

/// [`to_guest`] where something more is to be done: the little that Linux needs each time,
/// or [`enter_rarely`].
///
/// # Safety
///
/// As for [`enter`].
#[cold]
#[inline(never)]
unsafe fn enter_long_way(cpu: *mut PerCpu, context: Stage2Context, vcpu: &mut Vcpu) -> u64 {
    // SAFETY: as granted; the CPU's own data.
    unsafe {
        if (*cpu).host.long_way != Observers::NONE_ACTS {
            return enter_rarely(cpu, context, vcpu);
        }
        MDSCR_EL1::write(0);
        to_guest(cpu, context, vcpu)
    }
}

/// The way back from [`enter_long_way`].
///
/// # Safety
///
/// As for [`exit`].
#[cold]
#[inline(never)]
unsafe fn exit_long_way(cpu: *mut PerCpu, vcpu: &mut Vcpu) {
    // SAFETY: as granted; the CPU's own data.
    unsafe {
        if (*cpu).host.long_way != Observers::NONE_ACTS {
            return exit_rarely(cpu, vcpu);
        }
        to_host(cpu, vcpu);
    }
    MDSCR_EL1::write(Observers::NONE_ACTS);
}

/// The slow path of [`to_guest`], taken when walks are to be held off, observers to be
/// stopped, or optional registers to be switched.
///
/// # Safety
///
/// As for [`enter`].
#[cold]
#[inline(never)]
unsafe fn enter_rarely(cpu: *mut PerCpu, context: Stage2Context, vcpu: &mut Vcpu) -> u64 {
    // SAFETY: parts of this CPU's data that nothing else refers to.
    let (host, controls, observers, optional) =
        unsafe { (&mut (*cpu).host, &(*cpu).guest_controls, &(*cpu).observers, (*cpu).optional) };
    // While EL1's translation is still the host's, for the buffers to be drained.
    host.stopped = observers.stop(&mut ThisCpu);
    let walks =
        optional.has(Optional::WALKS).then(|| (Walks::hold(), Walks::hold_in(&mut vcpu.el1)));
    if optional.has(Optional::AUXILIARY) {
        save_auxiliary(&mut host.el1);
        load_auxiliary(&vcpu.el1);
    }
    controls.load_rare(optional);
    // SAFETY: as granted.
    let held_back = unsafe { to_guest(cpu, context, vcpu) };
    if let Some((of_host, of_guest)) = walks {
        // SAFETY: nothing else refers to it.
        of_host.restore_in(unsafe { &mut (*cpu).host.el1 });
        of_guest.restore_in(&mut vcpu.el1);
        of_guest.resume();
    }
    held_back
}

/// The slow path of [`to_host`], likewise.
///
/// # Safety
///
/// As for [`exit`].
#[cold]
#[inline(never)]
unsafe fn exit_rarely(cpu: *mut PerCpu, vcpu: &mut Vcpu) {
    // SAFETY: parts of this CPU's data that nothing else refers to.
    let (host, controls, observers, optional) =
        unsafe { (&mut (*cpu).host, &(*cpu).host_controls, &(*cpu).observers, (*cpu).optional) };
    let walks =
        optional.has(Optional::WALKS).then(|| (Walks::hold(), Walks::hold_in(&mut host.el1)));
    if optional.has(Optional::AUXILIARY) {
        save_auxiliary(&mut vcpu.el1);
        load_auxiliary(&host.el1);
    }
    controls.load_rare(optional);
    // SAFETY: as granted.
    unsafe { to_host(cpu, vcpu) };
    // SAFETY: nothing else refers to it.
    let host = unsafe { &mut (*cpu).host };
    if let Some((of_guest, of_host)) = walks {
        of_guest.restore_in(&mut vcpu.el1);
        of_host.restore_in(&mut host.el1);
        of_host.resume();
    }
    // The host's translation is in force before anything writes through it.
    barrier::isb(barrier::SY);
    observers.start(&mut ThisCpu, &host.stopped);
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

/// Makes the guest take an exception.
///
/// # Safety
///
/// The EL1 registers in the CPU are the guest's.
pub(crate) unsafe fn inject(vcpu: &mut Vcpu, exception: Exception) {
    // SAFETY: as granted.
    unsafe {
        escrow_save_el1(&mut vcpu.el1);
        vcpu.inject(exception);
        escrow_load_el1(&vcpu.el1);
    }
}

/// Puts the host's keys aside and loads the guest's, which it may use from now
/// on and will have from the start in its next runs: one that uses them uses
/// them all the time.
///
/// # Safety
///
/// The keys in the CPU are the host's, the controls are the guest's.
#[inline(never)]
pub(crate) unsafe fn grant_keys(host: &mut HostRegisters, run: &mut Vcpu) {
    run.pauth = true;
    // SAFETY: as granted.
    unsafe {
        escrow_save_keys(&mut host.el1.keys);
        escrow_load_keys(&run.el1.keys);
    }
    HCR_EL2::write(HCR_EL2::read() | HCR_PAUTH);
}

/// Stores the guest's timer, without the `IMASK` that [`enter`] may have added.
#[inline(always)]
pub(crate) fn save_timer(timer: &mut TimerRegisters, added: u64) {
    let (ctl, cval) = (CNTV_CTL_EL0::read(), CNTV_CVAL_EL0::read());
    timer.ctl = ctl & !added;
    timer.cval = cval;
}
