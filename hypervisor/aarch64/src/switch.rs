// SPDX-License-Identifier: MIT OR Apache-2.0

//! The world switch: saves the host's registers and loads a guest's, and the reverse.

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

// The assembly uses the offsets in these structures that lib.rs and the assertions below
// define.
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

// [`HostRegisters::long_way`] is `Observers::act` or-ed with bits of `Optional`: it is
// [`Observers::NONE_ACTS`] only if no bit of `Optional` is set.
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

/// Saves the host's state and loads the guest's. If the guest's timer asserts its
/// interrupt, it is loaded with IMASK set: otherwise its physical interrupt would end the run at
/// once, and a vCPU without a GIC cannot be given it. The guest reads IMASK as 1 meanwhile.
/// Returns the bits of `CNTV_CTL_EL0` that were added, for [`save_timer`] to clear.
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
        // With HCR_EL2.AMO, a guest's accesses to DISR_EL1 go to VDISR_EL2 and do not trap (DDI 0487,
        // "DISR_EL1"). EL2 never makes a virtual SError pending, so its value is what the last guest
        // wrote: this guest must not read it.
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
    // The exception return synchronises the context; the trace records it here. The TLB
    // maintenance below has an ISB of its own.
    trace::event(|| Event::Isb);
    if vcpu.pauth {
        // SAFETY: the keys are the host's.
        unsafe { grant_keys(host, vcpu) };
    }
    let this = ptr::from_ref(vcpu);
    if *last_vcpu != this {
        *last_vcpu = this;
        // This CPU's virtual CPU interface may have the registers of another vCPU.
        vcpu.interface_on = NOWHERE;
        // vCPUs of a VM share a VMID, but may use one ASID for different stage-1 tables.
        // TLB entries match by VMID and ASID alone (DDI 0487, "VMSAv8-64 TLB lookup"), so
        // entries of another vCPU must go from this CPU.
        barrier::isb(barrier::SY);
        // SAFETY: removes cached translations only.
        unsafe { asm!("tlbi vmalle1", options(nostack, preserves_flags)) };
        barrier::dsb(barrier::NSH);
    }
    held_back
}

/// Saves the guest's state and loads the host's. The guest's timer is stored already.
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

/// [`to_guest`] for a CPU where more has to be switched: only what a Linux host needs at each
/// entry, or all of it ([`enter_rarely`]).
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

/// The reverse of [`enter_long_way`].
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
    // Before EL1's translation changes: the buffers of the trace and of profiling are drained
    // through the host's.
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
    // The ISB makes the host's translation effective before the units write through it again.
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

/// Saves the host's keys, loads the guest's and clears the trap. From now on they are switched at
/// each entry of this vCPU: a kernel that uses pointer authentication once uses it at each
/// function call.
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
