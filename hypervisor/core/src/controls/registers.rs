// SPDX-License-Identifier: MIT OR Apache-2.0

//! EL2's registers that control EL1 and EL0, and their bits (DDI 0487).

#![allow(missing_docs)] // The names are the architecture's.

use super::fields::{
    MMFR0_FGT, MMFR1_HCX, PFR0_AMU, PFR0_GIC, PFR0_MPAM, PFR1_MPAM_FRAC, PFR2_GCIE,
};
use super::ids::Ids;

/// A register of EL2's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    Hcr,
    Cptr,
    Mdcr,
    Cnthctl,
    IchHcr,
    IccSre,
    Hcrx,
    Mpam2,
    Hfgrtr,
    Hfgwtr,
    Hfgitr,
    Hdfgrtr,
    Hdfgwtr,
    Hafgrtr,
    Hfgrtr2,
    Hfgwtr2,
    Hfgitr2,
    Hdfgrtr2,
    Hdfgwtr2,
    IchHfgrtr,
    IchHfgwtr,
    IchHfgitr,
}

impl Reg {
    pub const ALL: [Reg; 22] = [
        Reg::Hcr,
        Reg::Cptr,
        Reg::Mdcr,
        Reg::Cnthctl,
        Reg::IchHcr,
        Reg::IccSre,
        Reg::Hcrx,
        Reg::Mpam2,
        Reg::Hfgrtr,
        Reg::Hfgwtr,
        Reg::Hfgitr,
        Reg::Hdfgrtr,
        Reg::Hdfgwtr,
        Reg::Hafgrtr,
        Reg::Hfgrtr2,
        Reg::Hfgwtr2,
        Reg::Hfgitr2,
        Reg::Hdfgrtr2,
        Reg::Hdfgwtr2,
        Reg::IchHfgrtr,
        Reg::IchHfgwtr,
        Reg::IchHfgitr,
    ];

    /// Whether a CPU has it.
    pub fn is_in(self, cpu: &Ids) -> bool {
        match self {
            Reg::Hcr | Reg::Cptr | Reg::Mdcr | Reg::Cnthctl => true,
            Reg::IchHcr | Reg::IccSre => cpu.has(&PFR0_GIC, 1),
            Reg::Hcrx => cpu.has(&MMFR1_HCX, 1),
            Reg::Mpam2 => cpu.has(&PFR0_MPAM, 1) || cpu.has(&PFR1_MPAM_FRAC, 1),
            Reg::Hfgrtr | Reg::Hfgwtr | Reg::Hfgitr | Reg::Hdfgrtr | Reg::Hdfgwtr => {
                cpu.has(&MMFR0_FGT, 1)
            }
            Reg::Hafgrtr => cpu.has(&MMFR0_FGT, 1) && cpu.has(&PFR0_AMU, 1),
            Reg::Hfgrtr2 | Reg::Hfgwtr2 | Reg::Hfgitr2 | Reg::Hdfgrtr2 | Reg::Hdfgwtr2 => {
                cpu.has(&MMFR0_FGT, 2)
            }
            Reg::IchHfgrtr | Reg::IchHfgwtr | Reg::IchHfgitr => cpu.has(&PFR2_GCIE, 1),
        }
    }

    /// What the architecture calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Reg::Hcr => "HCR_EL2",
            Reg::Cptr => "CPTR_EL2",
            Reg::Mdcr => "MDCR_EL2",
            Reg::Cnthctl => "CNTHCTL_EL2",
            Reg::IchHcr => "ICH_HCR_EL2",
            Reg::IccSre => "ICC_SRE_EL2",
            Reg::Hcrx => "HCRX_EL2",
            Reg::Mpam2 => "MPAM2_EL2",
            Reg::Hfgrtr => "HFGRTR_EL2",
            Reg::Hfgwtr => "HFGWTR_EL2",
            Reg::Hfgitr => "HFGITR_EL2",
            Reg::Hdfgrtr => "HDFGRTR_EL2",
            Reg::Hdfgwtr => "HDFGWTR_EL2",
            Reg::Hafgrtr => "HAFGRTR_EL2",
            Reg::Hfgrtr2 => "HFGRTR2_EL2",
            Reg::Hfgwtr2 => "HFGWTR2_EL2",
            Reg::Hfgitr2 => "HFGITR2_EL2",
            Reg::Hdfgrtr2 => "HDFGRTR2_EL2",
            Reg::Hdfgwtr2 => "HDFGWTR2_EL2",
            Reg::IchHfgrtr => "ICH_HFGRTR_EL2",
            Reg::IchHfgwtr => "ICH_HFGWTR_EL2",
            Reg::IchHfgitr => "ICH_HFGITR_EL2",
        }
    }
}

/// `HCR_EL2`.
pub mod hcr {
    pub const VM: u64 = 1 << 0;
    pub const SWIO: u64 = 1 << 1;
    pub const PTW: u64 = 1 << 2;
    pub const FMO: u64 = 1 << 3;
    pub const IMO: u64 = 1 << 4;
    pub const AMO: u64 = 1 << 5;
    pub const FB: u64 = 1 << 9;
    pub const BSU_INNER: u64 = 1 << 10;
    pub const TWI: u64 = 1 << 13;
    pub const TID1: u64 = 1 << 16;
    pub const TID3: u64 = 1 << 18;
    pub const TSC: u64 = 1 << 19;
    pub const TIDCP: u64 = 1 << 20;
    pub const TACR: u64 = 1 << 21;
    pub const TSW: u64 = 1 << 22;
    pub const RW: u64 = 1 << 31;
    pub const TLOR: u64 = 1 << 35;
    pub const TERR: u64 = 1 << 36;
    pub const TEA: u64 = 1 << 37;
    pub const APK: u64 = 1 << 40;
    pub const API: u64 = 1 << 41;
    pub const FWB: u64 = 1 << 46;
    pub const ENSCXT: u64 = 1 << 53;
    pub const ATA: u64 = 1 << 56;
    pub const TID5: u64 = 1 << 58;
}

/// `CPTR_EL2` with `HCR_EL2.E2H` clear.
pub mod cptr {
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

/// `MDCR_EL2`.
pub mod mdcr {
    pub const TPMCR: u64 = 1 << 5;
    pub const TPM: u64 = 1 << 6;
    pub const TDA: u64 = 1 << 9;
    pub const TDOSA: u64 = 1 << 10;
    pub const TDRA: u64 = 1 << 11;
    pub const E2PB: u64 = 0b11 << 12;
    /// The buffer is EL1's, and its registers are trapped.
    pub const E2PB_TRAPPED: u64 = 0b10 << 12;
    pub const TPMS: u64 = 1 << 14;
    pub const ENSPM: u64 = 1 << 15;
    pub const TTRF: u64 = 1 << 19;
    pub const E2TB: u64 = 0b11 << 24;
    /// As `E2PB_TRAPPED`.
    pub const E2TB_TRAPPED: u64 = 0b10 << 24;
    pub const PMSSE: u64 = 0b11 << 30;
    pub const PMEE: u64 = 0b11 << 40;
    pub const EBWE: u64 = 1 << 43;
    pub const ENSTEPOP: u64 = 1 << 50;
}

/// `HCRX_EL2`.
pub mod hcrx {
    pub const ENAS0: u64 = 1 << 0;
    pub const ENALS: u64 = 1 << 1;
    pub const ENASR: u64 = 1 << 2;
    pub const MSCEN: u64 = 1 << 11;
    pub const TCR2EN: u64 = 1 << 14;
    pub const SCTLR2EN: u64 = 1 << 15;
    pub const D128EN: u64 = 1 << 17;
    pub const ENIDCP128: u64 = 1 << 21;
    pub const GCSEN: u64 = 1 << 22;
    pub const ENFPM: u64 = 1 << 23;
    pub const PACMEN: u64 = 1 << 24;
    pub const SRMASKEN: u64 = 1 << 26;
}

/// `HFGRTR_EL2` and `HFGWTR_EL2`.
pub mod hfg {
    pub const NACCDATA: u64 = 1 << 50;
    pub const NGCS_EL0: u64 = 1 << 52;
    pub const NGCS_EL1: u64 = 1 << 53;
    pub const NSMPRI: u64 = 1 << 54;
    pub const NTPIDR2: u64 = 1 << 55;
    pub const NRCWMASK: u64 = 1 << 56;
    pub const NPIRE0: u64 = 1 << 57;
    pub const NPIR: u64 = 1 << 58;
    pub const NPOR_EL0: u64 = 1 << 59;
    pub const NPOR_EL1: u64 = 1 << 60;
    pub const NS2POR: u64 = 1 << 61;
    pub const NMAIR2: u64 = 1 << 62;
    pub const NAMAIR2: u64 = 1 << 63;
}

/// `HFGITR_EL2`.
pub mod hfgi {
    pub const NBRBINJ: u64 = 1 << 55;
    pub const NBRBIALL: u64 = 1 << 56;
    pub const NGCSPUSHM: u64 = 1 << 57;
    pub const NGCSSTR: u64 = 1 << 58;
    pub const NGCSEPP: u64 = 1 << 59;
}

/// `HDFGRTR_EL2` and `HDFGWTR_EL2`.
pub mod hdfg {
    /// Of `HDFGRTR_EL2` only.
    pub const NBRBIDR: u64 = 1 << 59;
    pub const NBRBCTL: u64 = 1 << 60;
    pub const NBRBDATA: u64 = 1 << 61;
    pub const NPMSNEVFR: u64 = 1 << 62;
}

/// `HFGRTR2_EL2` and `HFGWTR2_EL2`.
pub mod hfg2 {
    pub const NPFAR: u64 = 1 << 0;
    /// Of `HFGRTR2_EL2` only.
    pub const NERXGSR: u64 = 1 << 1;
    pub const NRCWSMASK: u64 = 1 << 2;
    /// `nCPACRMASK_EL1` to `nACTLRALIAS_EL1`.
    pub const MASKS: u64 = 0x7ff8;
}

/// `HFGITR2_EL2`.
pub mod hfgi2 {
    pub const NDCCIVAPS: u64 = 1 << 1;
}

/// `HDFGRTR2_EL2` and `HDFGWTR2_EL2`.
pub mod hdfg2 {
    pub const NPMECR: u64 = 1 << 0;
    pub const NPMIAR: u64 = 1 << 1;
    pub const NPMICNTR: u64 = 1 << 2;
    pub const NPMICFILTR: u64 = 1 << 3;
    pub const NPMUACR: u64 = 1 << 4;
    pub const NMDSELR: u64 = 1 << 5;
    /// Of `HDFGRTR2_EL2` only.
    pub const NPMSSDATA: u64 = 1 << 6;
    pub const NPMSSCR: u64 = 1 << 7;
    /// `nSPMEVCNTRn_EL0` to `nSPMDEVAFF_EL1`.
    pub const SPMU_READ: u64 = 0x7_ff00;
    /// `nSPMEVCNTRn_EL0` to `nSPMSCR_EL1`: the identification cannot be written.
    pub const SPMU_WRITE: u64 = 0x1_ff00;
    pub const NPMSDSFR: u64 = 1 << 19;
    pub const NTRCITECR: u64 = 1 << 20;
    /// Of `HDFGWTR2_EL2` only.
    pub const NPMZR: u64 = 1 << 21;
    pub const NTRBMPAM: u64 = 1 << 22;
    pub const NMDSTEPOP: u64 = 1 << 23;
    pub const NPMBMAR: u64 = 1 << 24;
}
