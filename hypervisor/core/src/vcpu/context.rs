// SPDX-License-Identifier: MIT OR Apache-2.0

//! The register state of a vCPU.
//!
//! The layout is `repr(C)` because the world switch reads and writes it from
//! assembly; it asserts the offsets that it uses.

use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::exception::{Exception, ExceptionEntry, PstateFeatures, after_instruction};
use super::physical_timer::PhysicalTimer;
use super::resume::Pending;
use super::stolen::StolenTime;
use crate::vgic;

/// A vCPU in the page that was donated for it. The CPU that runs the vCPU holds the
/// lock during the whole run. No other CPU spins on it meanwhile: others use `try_lock`, or
/// take the lock before the vCPU's first run. So an unfair spin lock is enough.
pub type VcpuCell = SpinMutex<Vcpu>;

/// A vCPU that is locked.
pub type VcpuGuard<'a> = SpinMutexGuard<'a, Vcpu>;

/// The general registers, PC and PSTATE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GeneralRegisters {
    /// X0 to X30.
    pub x: [u64; 31],
    /// The address of the guest's next instruction.
    pub pc: u64,
    /// The guest's PSTATE, in the layout of `SPSR_EL2`.
    pub pstate: u64,
}

impl GeneralRegisters {
    /// Reads general register `n` of an instruction; 31 is XZR.
    pub fn read(&self, n: usize) -> u64 {
        self.x.get(n).copied().unwrap_or(0)
    }

    /// Writes general register `n` of an instruction; 31 is XZR.
    pub fn write(&mut self, n: usize, value: u64) {
        if let Some(register) = self.x.get_mut(n) {
            *register = value;
        }
    }
}

/// The system registers of EL1 and EL0, other than the timers'.
///
/// `AFSR0_EL1`, `AFSR1_EL1` and `AMAIR_EL1` are not switched on CPUs that have them as RES0, as most
/// do. `keys` has the low and high halves of the pointer-authentication keys IA, IB, DA, DB
/// and GA, in this order; it is unused on CPUs without pointer authentication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // The names are the architecture's.
pub struct El1Registers {
    pub sctlr: u64,
    pub cpacr: u64,
    pub ttbr0: u64,
    pub ttbr1: u64,
    pub tcr: u64,
    pub mair: u64,
    pub vbar: u64,
    pub contextidr: u64,
    pub elr: u64,
    pub spsr: u64,
    pub esr: u64,
    pub far: u64,
    pub par: u64,
    pub tpidrro_el0: u64,
    pub tpidr_el0: u64,
    pub tpidr_el1: u64,
    pub sp_el0: u64,
    pub sp_el1: u64,
    pub cntkctl: u64,
    pub csselr: u64,
    pub afsr0: u64,
    pub afsr1: u64,
    pub amair: u64,
    pub keys: [u64; 10],
}

/// The virtual timer of a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TimerRegisters {
    /// `CNTV_CTL_EL0`: bit 0 ENABLE, bit 1 IMASK, bit 2 ISTATUS (the condition was met
    /// at the last exit).
    pub ctl: u64,
    /// `CNTV_CVAL_EL0`.
    pub cval: u64,
    /// `CNTVOFF_EL2`: the physical count minus the guest's virtual count.
    pub offset: u64,
}

impl TimerRegisters {
    const ENABLE: u64 = 1 << 0;
    const IMASK: u64 = 1 << 1;
    const ISTATUS: u64 = 1 << 2;

    /// Whether the timer asserted its interrupt at the last exit.
    pub const fn is_pending(&self) -> bool {
        self.ctl & (Self::ENABLE | Self::IMASK | Self::ISTATUS) == Self::ENABLE | Self::ISTATUS
    }

    /// When the timer fires, as a value of the physical counter; `None` if it
    /// is off or masked.
    pub const fn deadline(&self) -> Option<u64> {
        if self.ctl & (Self::ENABLE | Self::IMASK) == Self::ENABLE {
            Some(self.cval.wrapping_add(self.offset))
        } else {
            None
        }
    }
}

/// The virtual CPU interface of a vCPU with a GIC, but for the list registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the architecture's.
pub struct GicRegisters {
    /// `ICH_HCR_EL2`, without EOIcount.
    pub hcr: u64,
    pub vmcr: u64,
    /// `ICH_AP0R<n>_EL2` and `ICH_AP1R<n>_EL2`, by n.
    pub apr: [[u64; 2]; 4],
}

/// The SIMD and floating-point registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FpRegisters {
    /// V0 to V31.
    pub v: [u128; 32],
    /// `FPSR`.
    pub fpsr: u64,
    /// `FPCR`.
    pub fpcr: u64,
}

/// `SCTLR_EL1` of a vCPU that starts: MMU and caches off, little-endian, and
/// the bits set that are RES1 without the feature that gives them a meaning
/// (LSMAOE, nTLSMD, SPAN, EIS, TSCXT, EOS).
pub const SCTLR_EL1_RESET: u64 = 0x30d0_0800;

/// `SCTLR_EL1.EE`: data accesses of EL1 are big-endian.
pub(super) const SCTLR_EE: u64 = 1 << 25;

/// PSTATE of a vCPU that starts: EL1 with its own stack pointer, D, A, I and F
/// masked.
pub const PSTATE_RESET: u64 = 0x3c5;

/// A virtual CPU.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Vcpu {
    /// General registers; first, for the world switch.
    pub regs: GeneralRegisters,
    /// `VMPIDR_EL2`: what the guest reads as `MPIDR_EL1`.
    pub vmpidr: u64,
    /// The virtual timer.
    pub timer: TimerRegisters,
    /// System registers.
    pub el1: El1Registers,
    /// SIMD and floating point.
    pub fp: FpRegisters,
    /// The guest has used pointer authentication: its keys are switched.
    pub pauth: bool,
    /// Its VM has a GIC ([`VM_VGIC`](escrow_abi::call::VM_VGIC)).
    pub has_gic: bool,
    /// The level of the virtual timer's interrupt that the vGIC was last given: true is asserted.
    pub(super) timer_asserted: bool,
    /// The next run of this vCPU, which has a GIC, may not take the short way into the guest: a timer has to be
    /// compared with the counter, or an access that waits has to be continued. Code that causes either sets this;
    /// a run that finds it set computes it again.
    pub(super) begins_anew: bool,
    /// The affinity of the CPU that ran this vCPU last: its virtual CPU interface still has this vCPU's
    /// registers, unless another vCPU ran there since. [`NOWHERE`] if there is no such CPU.
    pub interface_on: u64,
    /// The virtual CPU interface.
    pub gic: GicRegisters,
    /// Whether it is switched on.
    pub(super) power: Power,
    /// The host was asked to give up its access to pages (MEM_ASK_BACK), and the guest has yet to repeat the call.
    pub(crate) asked_back: bool,
    /// What the host has yet to answer.
    pub(super) pending: Pending,
    /// Its stolen time, if it is told.
    pub stolen: Option<StolenTime>,
    /// The physical timer, of a vCPU with a GIC.
    pub(super) physical_timer: PhysicalTimer,
}

/// Whether a vCPU is switched on, as PSCI means it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// `VCPU_RUN` enters the guest.
    On,
    /// It waits for another vCPU's CPU_ON.
    Off,
}

/// No affinity of a CPU: [`Vcpu::interface_on`].
pub const NOWHERE: u64 = u64::MAX;

/// What is in a vCPU's page.
pub struct VcpuContents {
    /// The vCPU.
    pub cell: VcpuCell,
    /// Its interrupts, which others make pending while it runs.
    pub interrupts: vgic::Cpu,
}

impl VcpuContents {
    /// A vCPU whose GIC, should it get one, is as reset leaves it.
    pub fn new(vcpu: Vcpu) -> VcpuContents {
        VcpuContents { cell: VcpuCell::new(vcpu), interrupts: vgic::Cpu::new() }
    }
}

const _: () = assert!(size_of::<VcpuContents>() <= escrow_abi::PAGE_SIZE as usize);

impl Vcpu {
    /// A vCPU as it comes out of reset. The first of a VM, with index 0, is
    /// on; the others wait for it to switch them on.
    pub fn new(index: u8) -> Vcpu {
        Vcpu {
            regs: GeneralRegisters { pstate: PSTATE_RESET, ..Default::default() },
            el1: El1Registers { sctlr: SCTLR_EL1_RESET, ..Default::default() },
            // Bit 31 is RES1; bit 30 (U) clear: one of several.
            vmpidr: 1 << 31 | Self::affinity_of(index),
            timer: TimerRegisters::default(),
            fp: FpRegisters::default(),
            pauth: false,
            has_gic: false,
            timer_asserted: false,
            begins_anew: false,
            interface_on: NOWHERE,
            gic: GicRegisters::default(),
            asked_back: false,
            power: if index == 0 { Power::On } else { Power::Off },
            pending: Pending::None,
            stolen: None,
            physical_timer: PhysicalTimer::default(),
        }
    }

    /// A vCPU that is added to a started VM: whatever its index, it is off until another vCPU
    /// switches it on.
    pub fn late(index: u8) -> Vcpu {
        Vcpu { power: Power::Off, ..Vcpu::new(index) }
    }

    /// The affinity of the vCPU with an index. Aff0 is below 16, as the target list of
    /// `ICC_SGI1R_EL1` has 16 bits (IHI 0069).
    pub const fn affinity_of(index: u8) -> u64 {
        (index as u64 & 0xf) | (index as u64 >> 4) << 8
    }

    /// This vCPU's index.
    #[inline(always)]
    pub const fn index(&self) -> u8 {
        (self.vmpidr & 0xf | self.vmpidr >> 4 & 0xf0) as u8
    }

    /// This vCPU's affinity.
    pub const fn affinity(&self) -> u64 {
        self.vmpidr & 0xff_00ff_ffff
    }

    /// Whether it is switched on.
    pub fn is_on(&self) -> bool {
        self.power == Power::On
    }

    /// Resets the vCPU's registers. What the VM's configuration decides stays: the affinity, the
    /// counter's offset, the GIC, the stolen time.
    pub(super) fn reset(&mut self) {
        let offset = self.timer.offset;
        self.regs = GeneralRegisters { pstate: PSTATE_RESET, ..Default::default() };
        self.el1 = El1Registers { sctlr: SCTLR_EL1_RESET, ..Default::default() };
        self.timer = TimerRegisters { offset, ..Default::default() };
        self.physical_timer = self.physical_timer.reset();
        self.fp = FpRegisters::default();
        self.pauth = false;
        self.gic = GicRegisters::default();
        self.interface_on = NOWHERE;
        self.begins_anew = true;
        // `timer_asserted` stays: the vGIC keeps the level that it was given until the next run
        // gives it the new one.
        self.pending = Pending::None;
    }

    /// Advances the PC past the 32-bit instruction that was emulated.
    pub fn skip_instruction(&mut self) {
        self.regs.pc = self.regs.pc.wrapping_add(4);
        self.regs.pstate = after_instruction(self.regs.pstate);
    }

    /// Makes the guest take an exception. [`Self::el1`] must be up to date.
    ///
    /// Guests are offered neither MTE nor NMI, so their PSTATE has no bits of
    /// them.
    pub fn inject(&mut self, exception: Exception) {
        let interrupted = self.regs.pstate;
        self.el1.esr = exception.esr;
        if let Some(far) = exception.far {
            self.el1.far = far;
        }
        self.el1.elr = self.regs.pc;
        self.el1.spsr = interrupted;
        let entry = ExceptionEntry::new(
            interrupted,
            self.el1.sctlr,
            self.el1.vbar,
            PstateFeatures::default(),
        );
        self.regs.pc = entry.pc;
        self.regs.pstate = entry.pstate;
    }
}
