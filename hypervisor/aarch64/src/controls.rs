// SPDX-License-Identifier: MIT OR Apache-2.0

//! The control registers on this CPU: what `escrow_core::controls` says, written.

use aarch64_cpu::asm::barrier;
pub(crate) use escrow_core::controls::Controls;
use escrow_core::controls::fields::PFR0_RAS;
use escrow_core::controls::registers::{Reg, cptr};
use escrow_core::controls::{Cpu, Features, MissingFeature, Other};
use escrow_core::errata::Errata;

use escrow_core::observers::Observers;

use crate::sysreg::*;

/// Writing a set of controls.
pub(crate) trait Load {
    /// Writes all of the registers. A world switch writes those that need it
    /// from assembly (switch.S) and by [`Self::load_rare`].
    fn load(&self, optional: Optional);

    /// Writes the optional registers that hardly any CPU needs.
    fn load_rare(&self, optional: Optional);
}

impl Load for Controls {
    fn load(&self, optional: Optional) {
        HCR_EL2::write(self.hcr);
        CPTR_EL2::write(self.cptr);
        MDCR_EL2::write(self.mdcr);
        CNTHCTL_EL2::write(self.cnthctl);
        ICH_HCR_EL2::write(self.ich_hcr);
        if optional.has(Optional::HFGXTR) {
            HFGRTR_EL2::write(self.hfgrtr);
            HFGWTR_EL2::write(self.hfgwtr);
        }
        self.load_rare(optional);
    }

    fn load_rare(&self, optional: Optional) {
        if optional.has(Optional::HCRX) {
            HCRX_EL2::write(self.hcrx);
        }
        if optional.has(Optional::ICC_SRE) {
            ICC_SRE_EL2::write(self.icc_sre);
        }
        if optional.has(Optional::MPAM) {
            MPAM2_EL2::write(self.mpam2);
        }
        if optional.has(Optional::FGT) {
            HFGITR_EL2::write(self.hfgitr);
            HDFGRTR_EL2::write(self.hdfgrtr);
            HDFGWTR_EL2::write(self.hdfgwtr);
        }
        if optional.has(Optional::FGT2) {
            HFGRTR2_EL2::write(self.hfgrtr2);
            HFGWTR2_EL2::write(self.hfgwtr2);
            HFGITR2_EL2::write(self.hfgitr2);
            HDFGRTR2_EL2::write(self.hdfgrtr2);
            HDFGWTR2_EL2::write(self.hdfgwtr2);
        }
    }
}

/// Steps of a world switch that not every CPU needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Optional(u16);

impl Optional {
    /// `HFGRTR_EL2` and `HFGWTR_EL2`. Bit 0, as switch.S has it.
    pub const HFGXTR: u16 = 1 << 0;
    /// There is `PMCR_EL0`.
    pub const PMU: u16 = 1 << 1;
    /// `VDISR_EL2`.
    pub const VDISR: u16 = 1 << 2;
    /// `HCRX_EL2`.
    pub const HCRX: u16 = 1 << 3;
    /// `MPAM2_EL2`.
    pub const MPAM: u16 = 1 << 4;
    /// The other registers of FEAT_FGT.
    pub const FGT: u16 = 1 << 5;
    /// The registers of FEAT_FGT2.
    pub const FGT2: u16 = 1 << 6;
    /// More than the observers that every CPU has ([`crate::debug`]).
    pub const OBSERVERS: u16 = 1 << 7;
    /// `AFSR0_EL1`, `AFSR1_EL1` and `AMAIR_EL1`.
    pub const AUXILIARY: u16 = 1 << 8;
    /// `ICC_SRE_EL2`, to trap `ICC_SRE_EL1`.
    pub const ICC_SRE: u16 = 1 << 9;
    /// Walks are held off meanwhile ([`crate::walks`]).
    pub const WALKS: u16 = 1 << 10;
    /// All of them.
    pub const MOST: u16 = (Self::WALKS << 1) - 1;
    /// What hardly any CPU needs: adjacent bits, which one instruction masks.
    pub const RARE: u16 = !(Self::HFGXTR | Self::PMU | Self::VDISR);

    /// All that the CPU has.
    pub fn all(cpu: &Cpu, errata: Errata, observers: &Observers) -> Optional {
        let has = |register: Reg, bits: u16| if register.is_in(&cpu.ids) { bits } else { 0 };
        Optional(
            has(Reg::Hcrx, Self::HCRX)
                | has(Reg::Mpam2, Self::MPAM)
                | has(Reg::Hfgrtr, Self::HFGXTR | Self::FGT)
                | has(Reg::Hfgrtr2, Self::FGT2)
                | (observers.are_many() as u16 * Self::OBSERVERS)
                | (observers.pmu as u16 * Self::PMU)
                | (cpu.ids.has(&PFR0_RAS, 1) as u16 * Self::VDISR)
                | (cpu.has_auxiliary_registers() as u16 * Self::AUXILIARY)
                | (cpu.has_gicv2_interface() as u16 * Self::ICC_SRE)
                | (errata.has(Errata::SPECULATIVE_AT) as u16 * Self::WALKS),
        )
    }

    /// Those of them that a switch between two sets changes.
    pub fn between(self, a: &Controls, b: &Controls) -> Optional {
        let mut changed = Self::OBSERVERS
            | Self::PMU
            | Self::AUXILIARY
            | Self::ICC_SRE
            | Self::WALKS
            | Self::VDISR;
        let mut note = |bit: u16, differs: bool| changed |= differs as u16 * bit;
        note(Self::HCRX, a.hcrx != b.hcrx);
        note(Self::MPAM, a.mpam2 != b.mpam2);
        note(Self::HFGXTR, (a.hfgrtr, a.hfgwtr) != (b.hfgrtr, b.hfgwtr));
        let fgt = |c: &Controls| (c.hfgitr, c.hdfgrtr, c.hdfgwtr);
        note(Self::FGT, fgt(a) != fgt(b));
        let fgt2 = |c: &Controls| (c.hfgrtr2, c.hfgwtr2, c.hfgitr2, c.hdfgrtr2, c.hdfgwtr2);
        note(Self::FGT2, fgt2(a) != fgt2(b));
        Optional(self.0 & changed)
    }

    /// What hardly any CPU needs, of them: not 0 if there is any.
    #[inline(always)]
    pub const fn rare(self) -> u64 {
        (self.0 & Self::RARE) as u64
    }

    /// Whether any of `bits` is among them.
    #[inline(always)]
    pub const fn has(self, bits: u16) -> bool {
        self.0 & bits != 0
    }
}

/// Sets what does not differ between the host and its guests, once for each
/// CPU. All of it is left UNKNOWN by reset or by the firmware. `controls` are
/// the host's.
///
/// # Errors
///
/// The GIC's CPU interface does not listen to system registers: EL3, or a GIC
/// that is none of version 3, has it so.
pub(crate) fn init_constant(cpu: &Cpu, controls: &Controls) -> Result<(), MissingFeature> {
    let has = Features::of(cpu, &cpu.ids);
    VPIDR_EL2::write(cpu.midr.0.into());
    HSTR_EL2::write(0);
    HACR_EL2::write(0);
    // Keeps EL1 from ACTLR_EL1 and from registers that the implementation defines.
    ACTLR_EL2::write(0);
    CNTHP_CTL_EL2::write(0);
    CNTVOFF_EL2::write(0);
    if has.lor {
        LORC_EL1::write(0);
    }
    if Reg::Hafgrtr.is_in(&cpu.ids) {
        HAFGRTR_EL2::write(controls.hafgrtr);
    }
    if Reg::IchHfgrtr.is_in(&cpu.ids) {
        ICH_HFGRTR_EL2::write(controls.ich_hfgrtr);
        ICH_HFGWTR_EL2::write(controls.ich_hfgwtr);
        ICH_HFGITR_EL2::write(controls.ich_hfgitr);
    }
    if has.trf {
        // Prohibits trace at EL2.
        TRFCR_EL2::write(0);
    }
    // PMBIDR_EL1.P: the buffer belongs to a higher exception level.
    if has.spe != 0 && cpu.ids.other(Other::Pmbidr) >> 4 & 1 == 0 {
        // PCT, PA: the host may sample physical time stamps and addresses.
        PMSCR_EL2::write(1 << 6 | 1 << 4);
    }
    if has.brbe {
        // CC, MPRED: needed here as well for EL1 to record them.
        BRBCR_EL2::write(1 << 3 | 1 << 4);
    }
    if has.mpam && cpu.ids.other(Other::Mpamidr) >> 17 & 1 != 0 {
        MPAMHCR_EL2::write(0);
    }
    if has.gcs {
        GCSCR_EL1::write(0);
        GCSCRE0_EL1::write(0);
    }
    // ICC_SRE_EL2.SRE must be in force before ICH_HCR_EL2 is touched
    // (IHI 0069, "ICC_SRE_EL2"), and CPTR_EL2 before ZCR_EL2 and SMCR_EL2.
    ICC_SRE_EL2::write(0xf);
    CPTR_EL2::write(
        cptr::RES1 & !if has.sve { cptr::TZ } else { 0 } & !if has.sme { cptr::TSM } else { 0 },
    );
    barrier::isb(barrier::SY);
    if ICC_SRE_EL2::read() & 1 == 0 {
        return Err(MissingFeature::GicSystemRegisters);
    }
    // EL2 allows the largest vector length; EL1 can choose a smaller one.
    if has.sve {
        ZCR_EL2::write(0xf);
    }
    if has.sme {
        let fa64 = if has.sme_fa64 { 1 << 31 } else { 0 };
        let zt0 = if has.sme2 { 1 << 30 } else { 0 };
        SMCR_EL2::write(fa64 | zt0 | 0xf);
        if has.sme_priority {
            SMPRIMAP_EL2::write(0);
        }
    }
    Ok(())
}
