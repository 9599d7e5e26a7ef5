// SPDX-License-Identifier: MIT OR Apache-2.0

//! EL2's per-CPU data. `TPIDR_EL2` points to it.

use core::mem::{MaybeUninit, offset_of};
use core::ptr::{self, NonNull};
use core::sync::atomic::AtomicU32;

use escrow_core::errata::Errata;
use escrow_core::hypervisor::{Hypervisor, Scratch};
use escrow_core::observers::{Observers, Stopped};
use escrow_core::stage2::Stage2Context;
use escrow_core::vcpu::{El1Registers, Vcpu};

use crate::apart::Apart;
use crate::controls::{Controls, Optional};
use crate::features::Features;
use crate::fp::HostVectors;
use crate::machine::Hardware;
use crate::sysreg::TPIDR_EL2;
use crate::vgic::Gic;
use crate::window::Window;

/// Bytes of the stack for the report of a fault at EL2. It is separate, as the fault may be an
/// overflow of the CPU's own stack.
pub(crate) const FAULT_STACK_SIZE: usize = 8192;

#[repr(C, align(16))]
pub(crate) struct FaultStack([MaybeUninit<u8>; FAULT_STACK_SIZE]);

/// The host's registers that are saved while a guest runs.
#[derive(Default)]
#[repr(C)]
pub(crate) struct HostRegisters {
    pub el1: El1Registers,
    /// `ELR_EL2`: the host's return address.
    pub pc: u64,
    /// `SPSR_EL2`.
    pub pstate: u64,
    /// `CNTV_CTL_EL0`.
    pub timer_ctl: u64,
    /// `CNTV_CVAL_EL0`.
    pub timer_cval: u64,
    /// The observers that were active and stopped when they were saved.
    pub stopped: Stopped,
    /// Not 0: the switch has to do more than usual, in both directions ([`crate::switch`]).
    pub long_way: u64,
}

/// Bytes of a CPU's stacks at EL2, of either kind.
pub const STACK_SIZE: u64 = 32 << 10;

/// The data of one CPU. Only that CPU touches it once it has been started, but for
/// `apart` ([`crate::apart`]).
#[repr(C, align(64))]
pub struct PerCpu {
    pub(crate) apart: Apart,
    /// Top of the EL2 stack, 16-byte aligned.
    stack_top: u64,
    /// Number of the CPU, counted from 0 in the order of the device tree.
    index: u32,
    /// `MPIDR_EL1`.
    mpidr: u64,
    /// The vectors while the host runs, and while a guest runs.
    pub(crate) host_vectors_at: u64,
    pub(crate) guest_vectors_at: u64,
    /// The host's registers while a guest runs. Here, so that the assembly reaches all of
    /// them from where this begins.
    pub(crate) host: HostRegisters,
    pub(crate) host_stage2: Stage2Context,
    pub(crate) features: Features,
    pub(crate) observers: Observers,
    pub(crate) host_controls: Controls,
    pub(crate) guest_controls: Controls,
    /// What else a switch between the two has to do.
    pub(crate) optional: Optional,
    /// Where the CPU maps a page or a block for as long as it works on it.
    pub(crate) windows: Option<(Window, Window)>,
    /// Errata of this CPU.
    pub(crate) errata: Errata,
    /// What hardened vectors need to know ([`Vectors`](crate::errata::Vectors)).
    pub(crate) hardening: u32,
    /// The address of the last vCPU that ran here, only for comparison. A vCPU of a later VM may get
    /// the same address; then no vCPU of that VM has run here before, and no
    /// TLB entry has its VMID.
    pub(crate) last_vcpu: *const Vcpu,
    /// Where EL2 has mapped its redistributor; 0 if it has not.
    redistributor: u64,
    /// What EL2 uses of its GIC.
    pub(crate) gic: Gic,
    /// The installed hypervisor, here as well so that calls find it in one load.
    pub(crate) hypervisor: Option<&'static Hypervisor<Hardware>>,
    pub(crate) scratch: Scratch,
    pub(crate) host_vectors: MaybeUninit<HostVectors>,
    /// Faults at EL2 that it has had ([`crate::fault`]).
    pub(crate) faults: AtomicU32,
    /// For the calls of guests; wiped with the stack of their runs.
    pub(crate) guest_scratch: Scratch,
    pub(crate) fault_stack: FaultStack,
}

pub(crate) const FAULT_STACK_TOP: usize = offset_of!(PerCpu, fault_stack) + FAULT_STACK_SIZE;
/// What a CPU that stops wipes at once.
const _: () = assert!(
    offset_of!(PerCpu, fault_stack) - offset_of!(PerCpu, guest_scratch)
        < size_of::<Scratch>() + align_of::<FaultStack>()
);
const _: () = assert!(FAULT_STACK_TOP.is_multiple_of(16) && FAULT_STACK_TOP < 1 << 24);

/// Where the assembly finds fields.
pub(crate) mod offsets {
    use core::mem::offset_of;

    use super::PerCpu;

    // vectors.S finds the two at once.
    const _: () = assert!(offset_of!(PerCpu, apart) == 0);
    pub const STACK_TOP: usize = offset_of!(PerCpu, stack_top);
    pub const MPIDR: usize = offset_of!(PerCpu, mpidr);
    pub const HOST: usize = offset_of!(PerCpu, host);
    pub const HOST_STAGE2: usize = offset_of!(PerCpu, host_stage2);
    pub const HOST_CONTROLS: usize = offset_of!(PerCpu, host_controls);
    pub const GUEST_CONTROLS: usize = offset_of!(PerCpu, guest_controls);
    pub const OPTIONAL: usize = offset_of!(PerCpu, optional);
    // switch.S loads the two at once.
    const _: () = assert!(offset_of!(PerCpu, host_vectors_at) == MPIDR + 8);
    pub const HARDENING: usize = offset_of!(PerCpu, hardening);
    pub const GUEST_VECTORS: usize = offset_of!(PerCpu, guest_vectors_at);
}

impl PerCpu {
    /// Sets aside the data of a CPU, once, before any CPU but the boot CPU runs.
    ///
    /// `stack_top` is the upper end of the CPU's EL2 stack, `run_stack_top` that of the one
    /// that it is on while it runs a guest.
    ///
    /// # Safety
    ///
    /// `place` is valid for writes, aligned, and used for nothing else for ever. Below either
    /// top, which is 16-byte aligned, are [`STACK_SIZE`] writable bytes that nothing else uses.
    pub unsafe fn set_aside(place: NonNull<PerCpu>, stack_top: u64, run_stack_top: u64) {
        let cpu = place.as_ptr();
        // SAFETY: as granted.
        unsafe {
            ptr::write(&raw mut (*cpu).stack_top, stack_top);
            ptr::write(&raw mut (*cpu).guest_scratch, Scratch::new());
            ptr::write(&raw mut (*cpu).apart, Apart::new(run_stack_top));
            crate::apart::add(cpu);
        }
    }

    /// Sets up the data of a CPU that is about to run the host, also when it does so again.
    ///
    /// `index` counts CPUs from 0; `mpidr` is the CPU's affinity as its `MPIDR_EL1` reads;
    /// `redistributor` is where its redistributor is mapped at EL2 as a device, 0 if it is not.
    ///
    /// # Safety
    ///
    /// `place` was [set aside](Self::set_aside) for the CPU, which does not run the host, and
    /// nothing refers to it. A redistributor that is not 0 is the CPU's own.
    pub unsafe fn place(
        place: NonNull<PerCpu>,
        index: u32,
        mpidr: u64,
        features: Features,
        redistributor: u64,
    ) {
        let place = place.as_ptr();
        macro_rules! init {
            ($($field:ident: $value:expr,)*) => {
                // SAFETY: the caller grants `place`. Fields are written one by
                // one so that the large buffers are neither copied nor touched.
                unsafe { $( ptr::write(&raw mut (*place).$field, $value); )* }
            };
        }
        init! {
            index: index,
            mpidr: mpidr,
            features: features,
            observers: Observers::default(),
            host_controls: Controls::default(),
            guest_controls: Controls::default(),
            optional: Optional::default(),
            host_stage2: Stage2Context::default(),
            windows: None,
            errata: Errata::NONE,
            hardening: 0,
            host_vectors_at: 0,
            guest_vectors_at: 0,
            host: HostRegisters::default(),
            last_vcpu: ptr::null(),
            redistributor: redistributor,
            gic: Gic::default(),
            hypervisor: None,
            scratch: Scratch::new(),
            faults: AtomicU32::new(0),
        }
    }

    /// Number of the CPU, counted from 0 in the order of the device tree.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The CPU's affinity, as its `MPIDR_EL1` reads.
    pub fn mpidr(&self) -> u64 {
        self.mpidr
    }

    /// Where its redistributor is mapped at EL2, or 0.
    pub(crate) fn redistributor(&self) -> u64 {
        self.redistributor
    }

    /// Top of the CPU's EL2 stack.
    pub fn stack_top(&self) -> u64 {
        self.stack_top
    }

    /// The top of the stack that `sp` is on.
    pub(crate) fn top_of_stack_at(&self, sp: u64) -> u64 {
        let run = self.apart.stack_top();
        if (run - STACK_SIZE..run).contains(&sp) { run } else { self.stack_top }
    }

    /// The data of the calling CPU; null before [`init_cpu`](crate::init_cpu).
    #[inline(always)]
    pub(crate) fn current() -> *mut PerCpu {
        TPIDR_EL2::read() as usize as *mut PerCpu
    }
}

/// Number of the calling CPU; `None` before [`init_cpu`](crate::init_cpu).
pub fn cpu_index() -> Option<u32> {
    // SAFETY: TPIDR_EL2 is zero or points to this CPU's data, whose index never changes.
    unsafe { PerCpu::current().as_ref() }.map(|cpu| cpu.index)
}
