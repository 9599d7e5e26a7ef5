// SPDX-License-Identifier: MIT OR Apache-2.0

//! What EL2 lets EL1 and EL0 do: one set of control registers for the host,
//! one for guests.
//!
//! The host gets all that the CPU has, as if there were no EL2. A guest gets
//! the base architecture with floating point and pointer authentication; the
//! rest is trapped, so that it neither sees nor disturbs the host's state, and
//! the ID registers that it reads say so (`escrow_core::vcpu`).

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{HCR_EL2 as hcr, MDCR_EL2 as mdcr};

use escrow_core::observers::Observers;

use crate::features::Features;
use crate::sysreg::*;

/// Bits of `CPTR_EL2` with `HCR_EL2.E2H` clear (DDI 0487, "CPTR_EL2").
pub(crate) mod cptr {
    /// RES1, and the bits that are RES1 without SVE and SME.
    pub const RES1: u64 = 0x33ff;
    /// Traps SVE; RES1 without it.
    pub const TZ: u64 = 1 << 8;
    /// Traps SIMD and floating point.
    pub const TFP: u64 = 1 << 10;
    /// Traps SME; RES1 without it.
    pub const TSM: u64 = 1 << 12;
    /// Traps trace registers.
    pub const TTA: u64 = 1 << 20;
    /// Traps the activity monitors; RES0 without them.
    pub const TAM: u64 = 1 << 30;
}

/// One set of controls. A register that the CPU lacks is 0 here and never
/// written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Controls {
    pub hcr: u64,
    pub cptr: u64,
    pub mdcr: u64,
    pub cnthctl: u64,
    pub ich_hcr: u64,
    pub icc_sre: u64,
    pub hcrx: u64,
    pub mpam2: u64,
    pub hfgrtr: u64,
    pub hfgwtr: u64,
    pub hfgitr: u64,
    pub hdfgrtr: u64,
    pub hdfgwtr: u64,
    pub hdfgrtr2: u64,
}

impl Controls {
    /// The host's controls on the calling CPU.
    pub fn host(features: &Features) -> Controls {
        let f = features;
        let on = |condition: bool, bits: u64| if condition { bits } else { 0 };

        // SMC is trapped for PSCI and the filter; nothing else is. FWB stays
        // clear: the host's stage 1 says how its memory is cached, and its
        // stage-2 attributes are encoded for that.
        let hcr_el2 = (hcr::RW::EL1IsAarch64
            + hcr::VM::Enable
            + hcr::SWIO::SET
            + hcr::TSC::EnableTrapEl1SmcToEl2)
            .value
            | on(f.pauth, hcr::API::SET.value | hcr::APK::SET.value)
            | on(f.mte2, hcr::ATA::SET.value)
            | on(f.scxtnum, hcr::EnSCXT::SET.value);

        // Bits 63:50 of the read and write traps are enables ("n"): 0 traps.
        let hfg = on(f.sme, 1 << 54 | 1 << 55) // nSMPRI_EL1, nTPIDR2_EL0
            | on(f.s1pie, 1 << 57 | 1 << 58) // nPIRE0_EL1, nPIR_EL1
            | on(f.s1poe, 1 << 59 | 1 << 60) // nPOR_EL0, nPOR_EL1
            | on(f.gcs, 1 << 52 | 1 << 53) // nGCS_EL0, nGCS_EL1
            | on(f.the, 1 << 56) // nRCWMASK_EL1
            | on(f.aie, 1 << 62 | 1 << 63) // nMAIR2_EL1, nAMAIR2_EL1
            | on(f.ls64 >= 3, 1 << 50); // nACCDATA_EL1
        let hfgitr = on(f.brbe, 1 << 55 | 1 << 56) // nBRBINJ, nBRBIALL
            | on(f.gcs, 1 << 57 | 1 << 58 | 1 << 59); // nGCSPUSHM_EL1, nGCSSTR_EL1, nGCSEPP
        let spe_1p2 = on(f.spe >= 3, 1 << 62); // nPMSNEVFR_EL1
        let hdfgrtr = spe_1p2 | on(f.brbe, 1 << 59 | 1 << 60 | 1 << 61); // nBRBIDR, nBRBCTL, nBRBDATA
        let hdfgwtr = spe_1p2 | on(f.brbe, 1 << 60 | 1 << 61);
        // nPMICNTR_EL0, nPMICFILTR_EL0, nPMUACR_EL1
        let hdfgrtr2 = on(f.pmu_v3p9, 1 << 2 | 1 << 3 | 1 << 4)
            | on(f.spe != 0 && has_spe_data_source_filter(f), 1 << 19); // nPMSDSFR_EL1

        Controls {
            hcr: hcr_el2,
            cptr: cptr::RES1 & !on(f.sve, cptr::TZ) & !on(f.sme, cptr::TSM),
            mdcr: event_counters(f)
                | on(f.spe != 0, mdcr::E2PB.val(0b11).value)
                | on(f.trbe, mdcr::E2TB.val(0b11).value),
            // EL1PCTEN, EL1PCEN: the physical counter and timer are the host's.
            cnthctl: 0b11,
            ich_hcr: 0,
            // SRE, DFB, DIB, Enable.
            icc_sre: 0xf,
            hcrx: on(
                f.hcx,
                on(f.mops, 1 << 11) // MSCEn
                    | on(f.tcr2, 1 << 14) // TCR2En
                    | on(f.sctlr2, 1 << 15) // SCTLR2En
                    | on(f.d128, 1 << 17) // D128En
                    | on(f.gcs, 1 << 22) // GCSEn
                    | on(f.fpmr, 1 << 23) // EnFPM
                    | on(f.ls64 >= 1, 1 << 1) // EnALS
                    | on(f.ls64 >= 2, 1 << 2) // EnASR
                    | on(f.ls64 >= 3, 1 << 0), // EnAS0
            ),
            mpam2: 0,
            hfgrtr: on(f.fgt >= 1, hfg),
            hfgwtr: on(f.fgt >= 1, hfg),
            hfgitr: on(f.fgt >= 1, hfgitr),
            hdfgrtr: on(f.fgt >= 1, hdfgrtr),
            hdfgwtr: on(f.fgt >= 1, hdfgwtr),
            hdfgrtr2: on(f.fgt >= 2, hdfgrtr2),
        }
    }

    /// The controls for guests on the calling CPU. `force_write_back` says
    /// how their stage-2 tables are written, the same on all CPUs. Floating
    /// point and pointer authentication are trapped until the guest has its
    /// own registers for them.
    ///
    /// Fine-grained traps stay 0, which traps all registers that have an
    /// enable there; so do the enables in `HCRX_EL2`, which also makes the
    /// host's `TCR2_EL1` and `SCTLR2_EL1`, never saved, act as 0 for the guest.
    pub fn guest(features: &Features, force_write_back: bool) -> Controls {
        let f = features;
        let on = |condition: bool, bits: u64| if condition { bits } else { 0 };

        // Interrupts and SErrors end the run (IMO, FMO, AMO), and so do
        // external aborts (TEA). A vCPU moves between CPUs, so its local TLB
        // and cache maintenance and barriers reach all of them (FB, BSU).
        let hcr_el2 = (hcr::RW::EL1IsAarch64
            + hcr::VM::Enable
            + hcr::SWIO::SET
            + hcr::PTW::SET
            + hcr::FMO::EnableVirtualFIQ
            + hcr::IMO::EnableVirtualIRQ
            + hcr::AMO::SET
            + hcr::FB::SET
            + hcr::BSU::InnerShareable
            + hcr::TWI::SET
            + hcr::TID1::SET
            + hcr::TID3::SET
            + hcr::TSC::EnableTrapEl1SmcToEl2
            + hcr::TIDCP::SET
            + hcr::TACR::SET
            + hcr::TSW::SET)
            .value
            | on(f.lor, hcr::TLOR::SET.value)
            | on(f.ras, hcr::TERR::SET.value | hcr::TEA::SET.value)
            | on(force_write_back, hcr::FWB::SET.value)
            | on(f.mte2, hcr::TID5::SET.value);

        Controls {
            hcr: hcr_el2,
            cptr: cptr::RES1 | cptr::TFP | cptr::TTA | on(f.amu, cptr::TAM),
            // The profiling and trace buffers stay EL1's (0b10: trapped, not
            // 0b00: EL2's), for with EL2 as their owner they would write
            // through EL2's own translation.
            mdcr: event_counters(f)
                | (mdcr::TDA::SET + mdcr::TDOSA::SET + mdcr::TDRA::SET).value
                | on(f.pmu, mdcr::TPM::SET.value | mdcr::TPMCR::SET.value)
                | on(f.spe != 0, mdcr::TPMS::SET.value | mdcr::E2PB.val(0b10).value)
                | on(f.trbe, mdcr::E2TB.val(0b10).value)
                | on(f.trf, mdcr::TTRF::SET.value),
            // EL1PCTEN alone: the physical counter can be read, the physical
            // timer is the host's.
            cnthctl: 0b01,
            // TC, TALL0, TALL1: no virtual CPU interface.
            ich_hcr: 1 << 10 | 1 << 11 | 1 << 12,
            // SRE, DFB, DIB; Enable clear traps ICC_SRE_EL1.
            icc_sre: 0x7,
            // MSCEn: memory copies may fault at EL1; nothing else.
            hcrx: on(f.hcx && f.mops, 1 << 11),
            // TIDR, TRAPMPAM0EL1, TRAPMPAM1EL1.
            mpam2: on(f.mpam, 1 << 58 | 1 << 49 | 1 << 48),
            ..Controls::default()
        }
    }

    /// Writes all of the registers. A world switch writes those that need it
    /// from assembly (switch.S) and by [`Self::load_rare`].
    pub fn load(&self, optional: Optional) {
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

    /// Writes the optional registers that hardly any CPU needs.
    pub fn load_rare(&self, optional: Optional) {
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
            HDFGRTR2_EL2::write(self.hdfgrtr2);
            HDFGWTR2_EL2::write(self.hdfgrtr2);
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
    /// `HCRX_EL2`.
    pub const HCRX: u16 = 1 << 1;
    /// `MPAM2_EL2`.
    pub const MPAM: u16 = 1 << 2;
    /// The other registers of FEAT_FGT.
    pub const FGT: u16 = 1 << 3;
    /// The registers of FEAT_FGT2.
    pub const FGT2: u16 = 1 << 4;
    /// More than the observers that every CPU has ([`crate::debug`]).
    pub const OBSERVERS: u16 = 1 << 5;
    /// `AFSR0_EL1`, `AFSR1_EL1` and `AMAIR_EL1`.
    pub const AUXILIARY: u16 = 1 << 6;
    /// `ICC_SRE_EL2`, to trap `ICC_SRE_EL1`.
    pub const ICC_SRE: u16 = 1 << 7;
    /// There is `PMCR_EL0`.
    pub const PMU: u16 = 1 << 8;
    /// What hardly any CPU needs.
    pub const RARE: u16 = !(Self::HFGXTR | Self::PMU);

    /// All that the CPU has. EL1's registers are at their reset values
    /// afterwards, as far as this tries them out.
    pub fn all(features: &Features, observers: &Observers) -> Optional {
        let f = features;
        // Implementation-defined registers, most of which hold nothing.
        let auxiliary = AFSR0_EL1::holds_anything()
            || AFSR1_EL1::holds_anything()
            || AMAIR_EL1::holds_anything();
        // Without the GICv2 interface, ICC_SRE_EL1 cannot be changed, and a
        // guest may as well have it.
        ICC_SRE_EL1::write(0);
        let icc_sre = ICC_SRE_EL1::read() & 1 == 0;
        ICC_SRE_EL1::write(0x7);
        Optional(
            (f.hcx as u16 * Self::HCRX)
                | (f.mpam as u16 * Self::MPAM)
                | ((f.fgt >= 1) as u16 * (Self::HFGXTR | Self::FGT))
                | ((f.fgt >= 2) as u16 * Self::FGT2)
                | (observers.are_many() as u16 * Self::OBSERVERS)
                | (observers.pmu as u16 * Self::PMU)
                | (auxiliary as u16 * Self::AUXILIARY)
                | (icc_sre as u16 * Self::ICC_SRE),
        )
    }

    /// Those of them that a switch between two sets changes.
    pub fn between(self, a: &Controls, b: &Controls) -> Optional {
        let mut changed = Self::OBSERVERS | Self::PMU | Self::AUXILIARY | Self::ICC_SRE;
        let mut note = |bit: u16, differs: bool| changed |= differs as u16 * bit;
        note(Self::HCRX, a.hcrx != b.hcrx);
        note(Self::MPAM, a.mpam2 != b.mpam2);
        note(Self::HFGXTR, (a.hfgrtr, a.hfgwtr) != (b.hfgrtr, b.hfgwtr));
        let fgt = |c: &Controls| (c.hfgitr, c.hdfgrtr, c.hdfgwtr);
        note(Self::FGT, fgt(a) != fgt(b));
        note(Self::FGT2, a.hdfgrtr2 != b.hdfgrtr2);
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

/// `MDCR_EL2.HPMN`: all of the event counters are EL1's.
fn event_counters(features: &Features) -> u64 {
    if features.pmu { PMCR_EL0::read() >> 11 & 0x1f } else { 0 }
}

/// FEAT_SPE_FDS.
fn has_spe_data_source_filter(features: &Features) -> bool {
    features.spe != 0 && PMSIDR_EL1::read() >> 7 & 1 != 0
}

/// Sets what does not differ between the host and its guests, once for each
/// CPU. All of it is left UNKNOWN by reset or by the firmware.
pub(crate) fn init_constant(features: &Features) {
    let f = features;
    VPIDR_EL2::write(MIDR_EL1::read());
    HSTR_EL2::write(0);
    HACR_EL2::write(0);
    CNTHP_CTL_EL2::write(0);
    CNTVOFF_EL2::write(0);
    if f.lor {
        LORC_EL1::write(0);
    }
    if f.amu && f.fgt >= 1 {
        HAFGRTR_EL2::write(0);
    }
    if f.fgt >= 2 {
        HFGRTR2_EL2::write(0);
        HFGWTR2_EL2::write(0);
        HFGITR2_EL2::write(0);
    }
    if f.trf {
        // No tracing of EL2.
        TRFCR_EL2::write(0);
    }
    // The P bits say that the buffer belongs to a higher exception level.
    if f.spe != 0 && PMBIDR_EL1::read() >> 4 & 1 == 0 {
        // PCT, PA: the host may sample physical time stamps and addresses.
        PMSCR_EL2::write(1 << 6 | 1 << 4);
    }
    if f.brbe {
        // CC, MPRED: needed here as well for EL1 to record them.
        BRBCR_EL2::write(1 << 3 | 1 << 4);
    }
    if f.mpam && MPAMIDR_EL1::read() >> 17 & 1 != 0 {
        MPAMHCR_EL2::write(0);
    }
    if f.gcs {
        GCSCR_EL1::write(0);
        GCSCRE0_EL1::write(0);
    }
    // ICC_SRE_EL2.SRE must be in force before ICH_HCR_EL2 is touched
    // (IHI 0069, "ICC_SRE_EL2"), and CPTR_EL2 before ZCR_EL2 and SMCR_EL2.
    ICC_SRE_EL2::write(0xf);
    CPTR_EL2::write(
        cptr::RES1 & !if f.sve { cptr::TZ } else { 0 } & !if f.sme { cptr::TSM } else { 0 },
    );
    barrier::isb(barrier::SY);
    // The largest vector length; EL1 chooses below it.
    if f.sve {
        ZCR_EL2::write(0xf);
    }
    if f.sme {
        let fa64 = if f.sme_fa64 { 1 << 31 } else { 0 };
        let zt0 = if f.sme2 { 1 << 30 } else { 0 };
        SMCR_EL2::write(fa64 | zt0 | 0xf);
        if f.sme_priority {
            SMPRIMAP_EL2::write(0);
        }
    }
}
