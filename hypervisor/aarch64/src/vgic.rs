// SPDX-License-Identifier: MIT OR Apache-2.0

//! A CPU's virtual CPU interface (`ICH_*_EL2`), and the registers of the physical GIC that EL2
//! uses (IHI 0069).
//!
//! A vCPU's registers stay in the CPU while the host runs, with `ICH_HCR_EL2.En` clear: they have no effect then.
//! They are loaded again only if another vCPU ran here since, or this one ran on another CPU ([`Gic::load`]).
//!
//! The host owns the physical CPU interface. EL2 uses it for two things: it acknowledges the virtual timer's
//! interrupt while a guest runs, and it interrupts other CPUs that run guests, by SGI 0, which the
//! host takes. Linux uses all SGIs that it may, and leaves none for EL2; it tolerates an SGI 0 that no
//! CPU of its own has sent.

use core::ptr;

use aarch64_cpu::asm::barrier;
use escrow_core::vcpu::{ALARM, GuestCpu, MAINTENANCE, NOWHERE, VIRTUAL_TIMER, Vcpu};
use escrow_core::vgic::Interface;
use escrow_platform::gicr;

use crate::sysreg::*;

/// `ICH_HCR_EL2.En`.
const EN: u64 = 1 << 0;
/// INTIDs below this are SGIs.
const SGIS: u64 = 16;
/// `ICC_CTLR_EL1.EOImode`.
const EOI_MODE: u64 = 1 << 1;

/// The bits of `Gic::at_end`: extra work at the end of a run. This one: the virtual timer's physical
/// interrupt may have to be deactivated.
const HOLDS_TIMER: u8 = 1 << 0;
/// EL2's physical timer is on.
const HAS_ALARM: u8 = 1 << 1;
/// `ICH_HCR_EL2` was changed.
const HCR_CHANGED: u8 = 1 << 2;
/// There is more than one register of active priorities for each group.
const MORE_PRIORITIES: u8 = 1 << 3;

/// The virtual CPU interface of a CPU. It has the registers of the vCPU that ran there last.
#[derive(Debug, Default)]
pub(crate) struct Gic {
    /// List registers, 1 to 16.
    list_registers: u8,
    /// Bits of a priority that are compared for preemption (`ICH_VTR_EL2.PREbits` + 1): 5, 6 or 7.
    preemption_bits: u8,
    /// The host may have disabled the private interrupts that EL2 needs.
    is_due: bool,
    /// [`HOLDS_TIMER`] and the like.
    at_end: u8,
    /// The CPU's affinity: Aff3 to Aff0, a byte each.
    affinity: u32,
    /// Where EL2 has SGI_base of its redistributor; 0 if it is not known.
    private_frame: u64,
    /// What `ICH_HCR_EL2` was set to.
    hcr: u64,
}

impl Gic {
    /// That of the calling CPU, whose `MPIDR_EL1` this is. `redistributor` is the address at which EL2 has
    /// mapped its GICR as a device, or 0.
    pub fn new(mpidr: u64, redistributor: u64) -> Gic {
        let vtr = ICH_VTR_EL2::read();
        let preemption_bits = (vtr >> 26 & 7) as u8 + 1;
        Gic {
            list_registers: (vtr & 0x1f) as u8 + 1,
            preemption_bits,
            at_end: if preemption_bits > 5 { MORE_PRIORITIES } else { 0 },
            affinity: gicr::affinity(mpidr),
            private_frame: if redistributor == 0 { 0 } else { redistributor + gicr::SGI_BASE },
            is_due: redistributor != 0,
            ..Gic::default()
        }
    }

    /// Enables the PPIs that EL2 needs on this CPU. When a CPU starts, Linux disables all of its SGIs and
    /// PPIs and then enables those that it has drivers for (`gic_cpu_config`). So this is called when a
    /// CPU runs a vCPU for the first time since its start.
    #[cold]
    fn enable(&mut self) {
        let bits = 1u32 << MAINTENANCE | 1 << VIRTUAL_TIMER | 1 << ALARM;
        let frame = self.private_frame as usize;
        // SAFETY: boot has found the frame of this CPU's redistributor and mapped it at EL2 as a
        // device. These registers are about private interrupts of this CPU alone.
        unsafe {
            let group = (frame + gicr::IGROUPR0) as *mut u32;
            ptr::write_volatile(group, ptr::read_volatile(group) | bits);
            // The highest priority: if the timer's interrupt is pending, ICC_IAR1_EL1 returns it
            // (`GuestCpu::hold_timer`).
            let priority = frame + gicr::IPRIORITYR0 + VIRTUAL_TIMER as usize;
            ptr::write_volatile(priority as *mut u8, 0);
            ptr::write_volatile((frame + gicr::ISENABLER0) as *mut u32, bits);
        }
        self.is_due = false;
    }
}

/// Interrupts the CPU of an affinity by SGI 0. That CPU then sees this CPU's earlier stores.
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

impl Gic {
    /// Undoes the acknowledgement of an interrupt of the host's, in EOImode 1: deactivates it, so that it can
    /// be signalled again. A level-sensitive one becomes pending at once, and an SGI is sent again. Another
    /// edge is lost; that only happens if the host changes its GIC while this CPU runs a guest.
    #[cold]
    fn give_back(&self, intid: u64) {
        // Without effect if it is none, or an LPI (IHI 0069, "ICC_DIR_EL1").
        ICC_DIR_EL1::write(intid);
        if intid < SGIS {
            send(intid, self.affinity);
        }
    }

    /// Loads a vCPU's registers, unless the CPU has them already. Returns whether it loaded them: the list
    /// registers still have another vCPU's contents then.
    #[inline(always)]
    pub fn load(&mut self, vcpu: &mut Vcpu) -> bool {
        let all = vcpu.interface_on != self.affinity.into();
        if all {
            self.load_all(vcpu);
        }
        ICH_HCR_EL2::write(vcpu.gic.hcr);
        all
    }

    #[inline(never)]
    fn load_all(&mut self, vcpu: &mut Vcpu) {
        const { assert!(NOWHERE > u32::MAX as u64) };
        if self.is_due {
            self.enable();
        }
        vcpu.interface_on = self.affinity.into();
        let registers = &mut vcpu.gic;
        registers.hcr |= EN;
        ICH_VMCR_EL2::write(registers.vmcr);
        let apr = &registers.apr;
        ICH_AP0R0_EL2::write(apr[0][0]);
        ICH_AP1R0_EL2::write(apr[0][1]);
        if self.preemption_bits > 5 {
            ICH_AP0R1_EL2::write(apr[1][0]);
            ICH_AP1R1_EL2::write(apr[1][1]);
        }
        if self.preemption_bits > 6 {
            ICH_AP0R2_EL2::write(apr[2][0]);
            ICH_AP1R2_EL2::write(apr[2][1]);
            ICH_AP0R3_EL2::write(apr[3][0]);
            ICH_AP1R3_EL2::write(apr[3][1]);
        }
    }

    /// Stores the registers that may have changed. The list registers are stored already.
    #[inline(always)]
    pub fn store(&mut self, vcpu: &mut Vcpu) {
        if self.at_end != 0 {
            self.end(vcpu);
        }
        vcpu.gic.vmcr = ICH_VMCR_EL2::read();
        vcpu.gic.apr[0] = [ICH_AP0R0_EL2::read(), ICH_AP1R0_EL2::read()];
    }

    #[inline(never)]
    fn end(&mut self, vcpu: &mut Vcpu) {
        if self.at_end & HOLDS_TIMER != 0 {
            // A timer that still asserts the interrupt would make it pending for the host once it is
            // deactivated. The guest's timer is stored already, so it can be switched off.
            CNTV_CTL_EL0::write(0);
            barrier::isb(barrier::SY);
            self.release_timer();
        }
        if self.at_end & HAS_ALARM != 0 {
            // The host has no handler for the alarm's interrupt.
            self.set_alarm(None);
        }
        if self.at_end & HCR_CHANGED != 0 {
            vcpu.gic.hcr = self.hcr;
        }
        self.at_end &= MORE_PRIORITIES;
        if self.at_end != 0 {
            self.store_others(vcpu);
        }
    }

    #[cold]
    fn store_others(&self, vcpu: &mut Vcpu) {
        let apr = &mut vcpu.gic.apr;
        apr[1] = [ICH_AP0R1_EL2::read(), ICH_AP1R1_EL2::read()];
        if self.preemption_bits > 6 {
            apr[2] = [ICH_AP0R2_EL2::read(), ICH_AP1R2_EL2::read()];
            apr[3] = [ICH_AP0R3_EL2::read(), ICH_AP1R3_EL2::read()];
        }
    }
}

impl Interface for Gic {
    #[inline(always)]
    fn list_registers(&self) -> usize {
        self.list_registers.into()
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
        self.at_end |= HCR_CHANGED;
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
        if self.preemption_bits > 5 {
            words[1] = ICH_AP0R1_EL2::read() | ICH_AP1R1_EL2::read();
        }
        if self.preemption_bits > 6 {
            words[2] = ICH_AP0R2_EL2::read() | ICH_AP1R2_EL2::read();
            words[3] = ICH_AP0R3_EL2::read() | ICH_AP1R3_EL2::read();
        }
        words.map(|word| word as u32)
    }

    fn preemption_shift(&self) -> u32 {
        8u32.saturating_sub(self.preemption_bits.into())
    }
}

impl GuestCpu for Gic {
    fn still_has_maintenance(&self) -> bool {
        barrier::isb(barrier::SY);
        self.has_maintenance()
    }

    #[inline(always)]
    fn affinity(&self) -> u32 {
        self.affinity
    }

    #[inline(always)]
    fn pending(&self) -> u32 {
        ICC_HPPIR1_EL1::read() as u32
    }

    /// The timer's interrupt has the highest priority ([`Gic::enable`]) and is asserted. So ICC_IAR1_EL1
    /// returns it, unless the host changes its priority or enable at this moment.
    #[inline(always)]
    fn hold_timer(&mut self) -> bool {
        let control = ICC_CTLR_EL1::read();
        ICC_CTLR_EL1::write(control | EOI_MODE);
        barrier::isb(barrier::SY);
        let intid = ICC_IAR1_EL1::read();
        ICC_EOIR1_EL1::write(intid);
        let held = intid == VIRTUAL_TIMER.into();
        if held {
            self.at_end |= HOLDS_TIMER;
        } else {
            self.give_back(intid);
        }
        ICC_CTLR_EL1::write(control);
        held
    }

    #[inline(always)]
    fn holds_timer(&self) -> bool {
        self.at_end & HOLDS_TIMER != 0
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
        self.at_end &= !HOLDS_TIMER;
    }

    #[inline(never)]
    fn set_alarm(&mut self, at: Option<u64>) {
        // Enabled, or not. The exception return to the guest makes the writes effective.
        if let Some(at) = at {
            CNTHP_CVAL_EL2::write(at);
        }
        CNTHP_CTL_EL2::write(at.is_some().into());
        let bit = if at.is_some() { HAS_ALARM } else { 0 };
        self.at_end = self.at_end & !HAS_ALARM | bit;
    }
}
