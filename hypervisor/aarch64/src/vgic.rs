// SPDX-License-Identifier: MIT OR Apache-2.0

//! The GIC's part in a CPU's runs of guests: its virtual CPU interface (`ICH_*_EL2`), and what
//! EL2 uses of the physical one (IHI 0069).
//!
//! A vCPU's registers stay in the CPU while the host runs, with `ICH_HCR_EL2.En` clear: they act on nothing then.
//! They are loaded only if another vCPU ran here since, or if the vCPU ran elsewhere ([`GuestInterface::load`]).
//!
//! The host has the physical CPU interface. EL2 uses it for two things: it acknowledges the virtual timer's
//! interrupt while a guest runs, and it interrupts other CPUs that run guests, by SGI 0, which the
//! host takes. Linux has no SGI to spare, and takes one more than it has sent as it takes any.

use core::ptr;

use aarch64_cpu::asm::barrier;
use escrow_core::vcpu::{ALARM, GuestCpu, MAINTENANCE, VIRTUAL_TIMER, Vcpu};
use escrow_core::vgic::Interface;

use crate::sysreg::*;

/// `ICH_HCR_EL2.En`.
const EN: u64 = 1 << 0;
/// INTIDs below this are SGIs.
const SGIS: u64 = 16;
/// `ICC_CTLR_EL1.EOImode`.
const EOI_MODE: u64 = 1 << 1;

/// What of this does not change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gic {
    /// List registers, 1 to 16.
    list_registers: u8,
    /// Bits of a priority that decide about preemption: 5, 6 or 7.
    preemption_bits: u8,
    /// The CPU's affinity: Aff3 to Aff0, a byte each.
    affinity: u32,
    /// Where EL2 has SGI_base of its redistributor; 0 if it is not known.
    private_frame: u64,
    /// The host may have disabled the private interrupts that EL2 needs.
    is_due: bool,
}

impl Gic {
    /// The calling CPU's, whose `MPIDR_EL1` this is. `redistributor` is 0 or where EL2 has mapped
    /// its GICR as a device.
    pub fn new(mpidr: u64, redistributor: u64) -> Gic {
        let vtr = ICH_VTR_EL2::read();
        Gic {
            list_registers: (vtr & 0x1f) as u8 + 1,
            preemption_bits: (vtr >> 26 & 7) as u8 + 1,
            affinity: (mpidr >> 8 & 0xff00_0000 | mpidr & 0xff_ffff) as u32,
            private_frame: if redistributor == 0 { 0 } else { redistributor + SGI_BASE },
            is_due: redistributor != 0,
        }
    }

    /// Enables the interrupts that EL2 needs on this CPU, if the host may have disabled them: when a
    /// CPU starts, Linux disables all private ones and then enables those that it has drivers for (`gic_cpu_config`).
    /// So this is done when a CPU runs a vCPU for the first time since it has started.
    #[inline(always)]
    pub fn prepare(&mut self) {
        if self.is_due {
            self.enable();
        }
    }

    #[cold]
    fn enable(&mut self) {
        let bits = 1u32 << MAINTENANCE | 1 << VIRTUAL_TIMER | 1 << ALARM;
        let frame = self.private_frame as usize;
        // SAFETY: boot has found the frame of this CPU's redistributor and mapped it at EL2 as a
        // device. These registers are about private interrupts of this CPU alone.
        unsafe {
            let group = (frame + IGROUPR0) as *mut u32;
            ptr::write_volatile(group, ptr::read_volatile(group) | bits);
            // The most urgent: what is acknowledged then is the timer's, if that is pending
            // (`GuestCpu::hold_timer`).
            ptr::write_volatile((frame + IPRIORITYR0 + VIRTUAL_TIMER as usize) as *mut u8, 0);
            ptr::write_volatile((frame + ISENABLER0) as *mut u32, bits);
        }
        self.is_due = false;
    }
}

/// Offset of SGI_base in GICR, and of registers in that.
const SGI_BASE: u64 = 0x1_0000;
const IGROUPR0: usize = 0x80;
const ISENABLER0: usize = 0x100;
const IPRIORITYR0: usize = 0x400;

/// Interrupts the CPU of an affinity by SGI 0. What was written before is seen by it.
#[cold]
pub(crate) fn interrupt(affinity: u32) {
    send(0, affinity);
}

/// Sends an SGI of the host's group to the CPU of an affinity.
fn send(sgi: u64, affinity: u32) {
    let byte = |n: u32| u64::from(affinity >> (8 * n) & 0xff);
    let [aff0, aff1, aff2, aff3] = [byte(0), byte(1), byte(2), byte(3)];
    // An SGI is no memory access: the barrier orders it behind those (IHI 0069, "ICC_SGI1R_EL1").
    barrier::dsb(barrier::ISHST);
    ICC_SGI1R_EL1::write(
        aff3 << 48 | aff0 >> 4 << 44 | aff2 << 32 | sgi << 24 | aff1 << 16 | 1 << (aff0 & 0xf),
    );
    barrier::isb(barrier::SY);
}

/// The virtual CPU interface, with a vCPU's registers in it.
pub(crate) struct GuestInterface {
    gic: Gic,
    /// What `ICH_HCR_EL2` was set to.
    hcr: u64,
    holds_timer: bool,
    /// EL2's physical timer is on.
    has_alarm: bool,
}

/// Names one of the list registers, for a macro that uses it.
macro_rules! list_register {
    ($n:expr, $use:ident($($argument:ident)?), $none:expr) => {
        match $n {
            0 => list_register!(@ ICH_LR0_EL2, $use($($argument)?)),
            1 => list_register!(@ ICH_LR1_EL2, $use($($argument)?)),
            2 => list_register!(@ ICH_LR2_EL2, $use($($argument)?)),
            3 => list_register!(@ ICH_LR3_EL2, $use($($argument)?)),
            4 => list_register!(@ ICH_LR4_EL2, $use($($argument)?)),
            5 => list_register!(@ ICH_LR5_EL2, $use($($argument)?)),
            6 => list_register!(@ ICH_LR6_EL2, $use($($argument)?)),
            7 => list_register!(@ ICH_LR7_EL2, $use($($argument)?)),
            8 => list_register!(@ ICH_LR8_EL2, $use($($argument)?)),
            9 => list_register!(@ ICH_LR9_EL2, $use($($argument)?)),
            10 => list_register!(@ ICH_LR10_EL2, $use($($argument)?)),
            11 => list_register!(@ ICH_LR11_EL2, $use($($argument)?)),
            12 => list_register!(@ ICH_LR12_EL2, $use($($argument)?)),
            13 => list_register!(@ ICH_LR13_EL2, $use($($argument)?)),
            14 => list_register!(@ ICH_LR14_EL2, $use($($argument)?)),
            15 => list_register!(@ ICH_LR15_EL2, $use($($argument)?)),
            _ => $none,
        }
    };
    (@ $register:ident, $use:ident($($argument:ident)?)) => { $register::$use($($argument)?) };
}

impl GuestInterface {
    /// An interrupt of the host's was acknowledged, in EOImode 1. It is deactivated, so that it can come
    /// again. What is level-sensitive comes at once, and SGIs are sent again. Another edge is lost: the host
    /// has changed its GIC while it runs a guest.
    #[cold]
    fn give_back(&self, intid: u64) {
        // Without effect if it is none, or an LPI (IHI 0069, "ICC_DIR_EL1").
        ICC_DIR_EL1::write(intid);
        if intid < SGIS {
            send(intid, self.gic.affinity);
        }
    }

    /// That of a CPU, without a vCPU.
    pub fn new(gic: Gic) -> GuestInterface {
        GuestInterface { gic, hcr: 0, holds_timer: false, has_alarm: false }
    }

    /// Puts a vCPU's registers into the CPU, unless they are there. Returns whether
    /// they were not: what is in the list registers is another one's then.
    #[inline(always)]
    pub fn load(gic: &mut Gic, vcpu: &mut Vcpu, ran_last: bool) -> (GuestInterface, bool) {
        gic.prepare();
        let all = !ran_last || vcpu.interface_on != Some(gic.affinity);
        let hcr = vcpu.gic.hcr | EN;
        ICH_HCR_EL2::write(hcr);
        let interface = GuestInterface { gic: *gic, hcr, holds_timer: false, has_alarm: false };
        if all {
            vcpu.interface_on = Some(gic.affinity);
            interface.load_all(vcpu);
        }
        (interface, all)
    }

    #[inline(never)]
    fn load_all(&self, vcpu: &Vcpu) {
        let registers = &vcpu.gic;
        ICH_VMCR_EL2::write(registers.vmcr);
        let ap0r = registers.ap0r.map(u64::from);
        let ap1r = registers.ap1r.map(u64::from);
        ICH_AP0R0_EL2::write(ap0r[0]);
        ICH_AP1R0_EL2::write(ap1r[0]);
        if self.gic.preemption_bits > 5 {
            ICH_AP0R1_EL2::write(ap0r[1]);
            ICH_AP1R1_EL2::write(ap1r[1]);
        }
        if self.gic.preemption_bits > 6 {
            ICH_AP0R2_EL2::write(ap0r[2]);
            ICH_AP1R2_EL2::write(ap1r[2]);
            ICH_AP0R3_EL2::write(ap0r[3]);
            ICH_AP1R3_EL2::write(ap1r[3]);
        }
    }

    /// Stores what may have changed. The list registers are stored already.
    #[inline(always)]
    pub fn store(&mut self, vcpu: &mut Vcpu) {
        if self.holds_timer {
            self.release_timer();
        }
        if self.has_alarm {
            // The host has nothing for its interrupt.
            self.set_alarm(None);
        }
        let registers = &mut vcpu.gic;
        registers.hcr = self.hcr;
        registers.vmcr = ICH_VMCR_EL2::read();
        registers.ap0r[0] = ICH_AP0R0_EL2::read() as u32;
        registers.ap1r[0] = ICH_AP1R0_EL2::read() as u32;
        if self.gic.preemption_bits > 5 {
            self.store_others(vcpu);
        }
    }

    #[cold]
    fn store_others(&self, vcpu: &mut Vcpu) {
        let registers = &mut vcpu.gic;
        registers.ap0r[1] = ICH_AP0R1_EL2::read() as u32;
        registers.ap1r[1] = ICH_AP1R1_EL2::read() as u32;
        if self.gic.preemption_bits > 6 {
            registers.ap0r[2] = ICH_AP0R2_EL2::read() as u32;
            registers.ap1r[2] = ICH_AP1R2_EL2::read() as u32;
            registers.ap0r[3] = ICH_AP0R3_EL2::read() as u32;
            registers.ap1r[3] = ICH_AP1R3_EL2::read() as u32;
        }
    }
}

impl Interface for GuestInterface {
    #[inline(always)]
    fn list_registers(&self) -> usize {
        self.gic.list_registers.into()
    }

    #[inline(always)]
    fn list_register(&self, n: usize) -> u64 {
        list_register!(n, read(), 0)
    }

    #[inline(always)]
    fn set_list_register(&mut self, n: usize, value: u64) {
        list_register!(n, write(value), ());
    }

    #[inline(always)]
    fn hcr(&self) -> u64 {
        ICH_HCR_EL2::read()
    }

    #[inline(always)]
    fn set_hcr(&mut self, value: u64) {
        self.hcr = value;
        ICH_HCR_EL2::write(value);
    }

    #[inline(always)]
    fn vmcr(&self) -> u64 {
        ICH_VMCR_EL2::read()
    }

    #[inline(always)]
    fn has_maintenance(&self) -> bool {
        ICH_MISR_EL2::read() != 0
    }

    fn active_priorities(&self) -> [u32; 4] {
        let mut words = [ICH_AP0R0_EL2::read() | ICH_AP1R0_EL2::read(), 0, 0, 0];
        if self.gic.preemption_bits > 5 {
            words[1] = ICH_AP0R1_EL2::read() | ICH_AP1R1_EL2::read();
        }
        if self.gic.preemption_bits > 6 {
            words[2] = ICH_AP0R2_EL2::read() | ICH_AP1R2_EL2::read();
            words[3] = ICH_AP0R3_EL2::read() | ICH_AP1R3_EL2::read();
        }
        words.map(|word| word as u32)
    }

    fn preemption_shift(&self) -> u32 {
        8u32.saturating_sub(self.gic.preemption_bits.into())
    }
}

impl GuestCpu for GuestInterface {
    #[inline(always)]
    fn affinity(&self) -> u32 {
        self.gic.affinity
    }

    #[inline(always)]
    fn pending(&self) -> u32 {
        ICC_HPPIR1_EL1::read() as u32
    }

    /// It is the most urgent one ([`Gic::prepare`]), and asserted, so it is the one that is
    /// acknowledged, unless the host changes its priority or its enable just now.
    #[inline(always)]
    fn hold_timer(&mut self) -> bool {
        let control = ICC_CTLR_EL1::read();
        ICC_CTLR_EL1::write(control | EOI_MODE);
        barrier::isb(barrier::SY);
        let intid = ICC_IAR1_EL1::read();
        ICC_EOIR1_EL1::write(intid);
        let held = intid == VIRTUAL_TIMER.into();
        if held {
            self.holds_timer = true;
        } else {
            self.give_back(intid);
        }
        ICC_CTLR_EL1::write(control);
        held
    }

    #[inline(always)]
    fn holds_timer(&self) -> bool {
        self.holds_timer
    }

    #[inline(never)]
    fn release_timer(&mut self) {
        let control = ICC_CTLR_EL1::read();
        // The write to DIR counts in EOImode 1 only (IHI 0069, "ICC_DIR_EL1").
        ICC_CTLR_EL1::write(control | EOI_MODE);
        barrier::isb(barrier::SY);
        ICC_DIR_EL1::write(VIRTUAL_TIMER.into());
        ICC_CTLR_EL1::write(control);
        barrier::isb(barrier::SY);
        self.holds_timer = false;
    }

    #[inline(never)]
    fn set_alarm(&mut self, at: Option<u64>) {
        // Enabled, or not. What is written is in force by the return to the guest.
        if let Some(at) = at {
            CNTHP_CVAL_EL2::write(at);
        }
        CNTHP_CTL_EL2::write(at.is_some().into());
        self.has_alarm = at.is_some();
    }
}
