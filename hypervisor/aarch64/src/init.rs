// SPDX-License-Identifier: MIT OR Apache-2.0

//! Bringing a CPU under Escrow, and handing it to the host.

use core::arch::asm;
use core::ptr::{self, NonNull};

use aarch64_cpu::asm::barrier;
use escrow_core::hypervisor::Hypervisor;
use escrow_core::observers::Observers;

use crate::controls::{self, Controls, Load as _, Optional};
use crate::errata;
use crate::features::{Cpu, MissingFeature};
use crate::machine::{Hardware, installed};
use crate::percpu::PerCpu;
use crate::sysreg::*;
use crate::vgic::Gic;

unsafe extern "C" {
    static escrow_host_vectors: [u8; 0];
    fn escrow_enter_host(entry: u64, x0: u64, x1: u64, x2: u64, x3: u64, spsr: u64, sp: u64) -> !;
}

/// Sets the vectors, so that a fault at EL2 is reported. For the time before
/// [`init_cpu`], which does so as well.
pub fn install_vectors() {
    VBAR_EL2::write((&raw const escrow_host_vectors) as u64);
    barrier::isb(barrier::SY);
}

/// Makes the calling CPU ready for the host: vectors, traps, stage 2 and all
/// else of EL2's that EL1 depends on, to the state that a Linux kernel entered
/// at EL1 may expect.
///
/// Also to be called on a CPU that comes back from being switched off or
/// suspended: nothing is assumed of its registers. `identity` is what the CPU
/// says of itself, and it keeps what the machine promises.
///
/// # Errors
///
/// The GIC's CPU interface cannot be used by system registers (`ICC_SRE_EL2.SRE` stays 0).
///
/// # Safety
///
/// `cpu` was set up by [`PerCpu::place`] for this CPU and from now on belongs
/// to it alone. The CPU is at EL2 with the MMU on, `HCR_EL2.E2H` and `TGE`
/// clear, and D, A, I and F masked.
pub unsafe fn init_cpu(
    cpu: NonNull<PerCpu>,
    hypervisor: &Hypervisor<Hardware>,
    identity: &Cpu,
) -> Result<(), MissingFeature> {
    let host = *hypervisor.host_context();
    // SAFETY: the caller grants the data to this CPU.
    let data = unsafe { &mut *cpu.as_ptr() };
    data.windows = hypervisor.machine.windows.of_cpu(data.index() as usize);
    TPIDR_EL2::write(cpu.as_ptr() as u64);
    errata::meet(data, &hypervisor.machine, identity);
    VBAR_EL2::write(data.host_vectors_at);

    let promise = &hypervisor.machine.promise;
    data.features = promise.features;
    data.host_controls = Controls::host(identity, promise);
    data.guest_controls = Controls::guest(identity, promise);
    controls::init_constant(identity, &data.host_controls)?;
    // After ICC_SRE_EL2.SRE, which `init_constant` sets, is in force.
    data.gic = Gic::new(data.mpidr(), data.redistributor());
    data.hypervisor = installed().map(|installed| installed.hypervisor);
    data.observers = Observers::of(&identity.ids);
    let optional = Optional::all(identity, data.errata, &data.observers);
    data.host_controls.load(optional);
    data.optional = optional.between(&data.host_controls, &data.guest_controls);
    data.host_stage2 = host;
    data.last_vcpu = ptr::null();
    VMPIDR_EL2::write(MPIDR_EL1::read());
    VTCR_EL2::write(host.vtcr);
    VTTBR_EL2::write(host.vttbr);
    reset_el1();
    barrier::isb(barrier::SY);
    // Whatever the TLBs hold of EL1&0 comes from before Escrow, or from reset,
    // which leaves it UNKNOWN (DDI 0487, "TLB behavior at reset"). What a speculative AT made
    // of registers of then and this stage 2 goes as well ([`crate::walks`]).
    // SAFETY: removes cached translations only.
    unsafe { asm!("tlbi alle1", "ic iallu", options(nostack)) };
    barrier::dsb(barrier::NSH);
    barrier::isb(barrier::SY);
    Ok(())
}

/// Enters the host at EL1 with the MMU off, at physical address `entry` with
/// `args` in `x0`–`x3` (for Linux: the device tree, or the context that PSCI
/// passes, and zeros). EL2's stack is empty from now on.
///
/// # Safety
///
/// [`init_cpu`] was called on this CPU, and the memory at `entry` is the
/// host's. Nothing on the CPU's stack is used by others.
pub unsafe fn enter_host(entry: u64, args: [u64; 4]) -> ! {
    // SAFETY: as granted by the caller.
    let stack_top = unsafe { (*PerCpu::current()).stack_top() };
    let [x0, x1, x2, x3] = args;
    // SAFETY: EL1h with D, A, I and F masked; the host's stage 2 is in force,
    // so it cannot reach what is EL2's.
    unsafe { escrow_enter_host(entry, x0, x1, x2, x3, escrow_core::vcpu::PSTATE_RESET, stack_top) }
}

/// EL1's registers that a kernel relies on, or that act before it writes them.
fn reset_el1() {
    SCTLR_EL1::write(escrow_core::vcpu::SCTLR_EL1_RESET);
    CPACR_EL1::write(0);
    CNTKCTL_EL1::write(0);
    CNTV_CTL_EL0::write(0);
    MDSCR_EL1::write(0);
    TTBR0_EL1::write(0);
    TTBR1_EL1::write(0);
    TCR_EL1::write(0);
    VBAR_EL1::write(0);
    CONTEXTIDR_EL1::write(0);
}
