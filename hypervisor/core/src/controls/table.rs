// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table: each feature of the architecture, how an ID register shows it,
//! what the host and guests get of it, and the controls that decide.
//!
//! Sources are DDI 0487's descriptions of the registers that a row names. A
//! feature that needs no control has none: its instructions work at EL0 and EL1
//! whatever EL2 does.

use super::fields::*;
use super::ids::{Field, Ids};
use super::registers::{Reg, cptr, hcr, hcrx, hdfg, hdfg2, hfg, hfg2, hfgi, hfgi2, mdcr};
use Treatment::{Emulated, Hidden, OnDemand, Open, Switched, Trapped};

/// What a party gets of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// All of it. It has no registers that EL2 would have to switch, or none
    /// that the other party reaches.
    Open,
    /// All of it, with registers of its own: they are put aside whenever the
    /// other party runs.
    Switched,
    /// The same, from the first use on: until then it is trapped, and shown.
    OnDemand,
    /// Nothing: its registers and instructions are undefined, and the ID
    /// registers say that the CPU has none.
    Trapped,
    /// Its registers are trapped and answered by EL2, as if they held nothing.
    Emulated,
    /// Nothing is shown of it, and there is nothing to trap: it is EL2's or
    /// EL3's own, or instructions that reach no more than what the party has
    /// anyway.
    Hidden,
}

impl Treatment {
    /// Whether ID registers show it.
    pub const fn shows(self) -> bool {
        matches!(self, Open | Switched | OnDemand | Emulated)
    }

    /// Whether its controls are open when the party is entered.
    pub const fn opens(self) -> bool {
        matches!(self, Open | Switched)
    }
}

/// Bits of one of EL2's registers that decide about a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// The register.
    pub register: Reg,
    /// The bits.
    pub mask: u64,
    /// Their value when EL1 and EL0 have the feature.
    pub open: u64,
    /// Their value when they do not.
    pub closed: u64,
}

/// Bits that trap when they are set.
const fn trap(register: Reg, bits: u64) -> Control {
    Control { register, mask: bits, open: 0, closed: bits }
}

/// Bits that trap, or switch off, when they are clear.
const fn enable(register: Reg, bits: u64) -> Control {
    Control { register, mask: bits, open: bits, closed: 0 }
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// What it is called.
    pub name: &'static str,
    /// The fields that show it, each with the least value that does; one of
    /// them is enough. None: every CPU has it.
    pub shown: &'static [(Field, u64)],
    /// What the host gets.
    pub host: Treatment,
    /// What guests get.
    pub guest: Treatment,
    /// What decides about it.
    pub controls: &'static [Control],
    /// Registers of EL1 and EL0 that hold its state, as the assembler knows
    /// them.
    pub state: &'static [&'static str],
    /// The reason, where it is not obvious.
    pub why: &'static str,
}

impl Feature {
    /// Whether these registers show it.
    pub fn is_in(&self, ids: &Ids) -> bool {
        self.shown.is_empty() || self.shown.iter().any(|(field, from)| ids.has(field, *from))
    }
}

macro_rules! features {
    (@state) => { &[] };
    (@state $state:expr) => { $state };
    ($($name:literal [$($field:ident $from:literal),*] $host:ident $guest:ident
       $({ $($control:expr),* $(,)? })? $(holds $state:expr)?; $why:literal)*) => {
        /// All of them.
        pub const FEATURES: &[Feature] = &[$(Feature {
            name: $name,
            shown: &[$(($field, $from)),*],
            host: $host,
            guest: $guest,
            controls: &[$($($control),*)?],
            state: features!(@state $($state)?),
            why: $why,
        }),*];
    };
}

// Name, fields with the value from which on it is there, host, guest, controls,
// state, reason.
features! {
    // What every CPU has.
    "EL1 and EL0" [PFR0_EL0 1, PFR0_EL1 1] Open Switched holds EL1; ""
    "AArch32 at EL0" [PFR0_EL0 2] Open Hidden; "a guest's EL0 in AArch32 has registers X0 to X30 and V0 to V31 only"
    "AArch32 at EL1" [PFR0_EL1 2] Open Hidden; "HCR_EL2.RW: EL1 is AArch64's"
    "virtual timer" [] Open Switched holds &["cntv_ctl_el0", "cntv_cval_el0", "cntkctl_el1"]; ""
    "physical timer" [] Open Trapped { enable(Reg::Cnthctl, 1 << 1) }; "EL1PCEN; it is the host's, and EL2 emulates one for guests with a GIC"
    "implementation-defined registers" [] Emulated Trapped { trap(Reg::Hcr, hcr::TIDCP) };
        "they may weaken EL2 or another VM; the host reads 0 and writes nothing, as some kernels look at them"
    "auxiliary control register" [] Open Emulated { trap(Reg::Hcr, hcr::TACR) };
        "ACTLR_EL2 is 0, so that what ACTLR_EL1 opens is closed by EL2"
    "set/way cache maintenance" [] Open Emulated { trap(Reg::Hcr, hcr::TSW) };
        "EL2 cleans what changes hands; for a guest they do nothing"
    "debug registers" [] Open Emulated { trap(Reg::Mdcr, mdcr::TDA | mdcr::TDOSA | mdcr::TDRA) };
        "a guest finds an open OS lock and nothing else; MDSCR_EL1 is 0 while it runs"

    // ID_AA64PFR0_EL1.
    "EL2" [PFR0_EL2 1] Open Hidden; ""
    "EL3" [PFR0_EL3 1] Open Hidden; ""
    "FP and Advanced SIMD" [PFR0_FP 0, PFR0_ADVSIMD 0] Open OnDemand { trap(Reg::Cptr, cptr::TFP) } holds FP; ""
    "GICv3 CPU interface" [PFR0_GIC 1] Open Trapped {
        trap(Reg::IchHcr, 1 << 10 | 1 << 11 | 1 << 12),
        enable(Reg::IccSre, 1 << 3),
    }; "TC, TALL0, TALL1 of ICH_HCR_EL2, Enable of ICC_SRE_EL2"
    "FEAT_RASv1p1" [PFR1_RAS_FRAC 1] Open Hidden; "it comes with FEAT_RAS"
    "FEAT_RAS" [PFR0_RAS 1] Open Trapped { trap(Reg::Hcr, hcr::TERR | hcr::TEA) };
        "a guest's external aborts are EL2's; error injection (HCR_EL2.FIEN 0) is neither's"
    "FEAT_RASv2" [PFR0_RAS 3] Open Trapped { enable(Reg::Hfgrtr2, hfg2::NERXGSR) }; ""
    "FEAT_SVE" [PFR0_SVE 1] Open Trapped { trap(Reg::Cptr, cptr::TZ) };
        "the host's Z and P registers are put aside with its V registers"
    "SVE and SME in detail" [ZFR0_SVEVER 1, ZFR0_AES 1, ZFR0_ELTPERM 1, ZFR0_BITPERM 1, ZFR0_BF16 1,
        ZFR0_B16B16 1, ZFR0_SHA3 1, ZFR0_SM4 1, ZFR0_I8MM 1, ZFR0_F16MM 1, ZFR0_F32MM 1, ZFR0_F64MM 1,
        SMFR0_SMOP4 1, SMFR0_STMOP 1, SMFR0_SFEXPA 1, SMFR0_AES 1, SMFR0_SBITPERM 1, SMFR0_SF8DP2 1,
        SMFR0_SF8DP4 1, SMFR0_SF8FMA 1, SMFR0_F32F32 1, SMFR0_BI32I32 1, SMFR0_B16F32 1, SMFR0_F16F32 1,
        SMFR0_I8I32 1, SMFR0_F8F32 1, SMFR0_F8F16 1, SMFR0_F16F16 1, SMFR0_B16B16 1, SMFR0_I16I32 1,
        SMFR0_F64F64 1, SMFR0_I16I64 1, SMFR0_SMEVER 1, SMFR0_LUTV2 1, SMFR0_LUT6 1, SMFR0_FA64 1] Open Hidden;
        "they go with FEAT_SVE and FEAT_SME"
    "FEAT_SEL2" [PFR0_SEL2 1] Open Hidden; "EL3's"
    "FEAT_MPAM" [PFR0_MPAM 1, PFR1_MPAM_FRAC 1] Open Trapped {
        trap(Reg::Mpam2, 1 << 58 | 1 << 49 | 1 << 48),
        enable(Reg::Mpam2, 1 << 50),
    }; "TIDR, TRAPMPAM0EL1, TRAPMPAM1EL1; EnMPAMSM"
    "FEAT_AMUv1" [PFR0_AMU 1] Trapped Trapped { trap(Reg::Cptr, cptr::TAM) }; "EL2 cannot stop the counters: they count guests as well, so the host does not read them"
    "FEAT_DIT" [PFR0_DIT 1] Open Open; ""
    "FEAT_RME" [PFR0_RME 1] Open Hidden; "EL3's"
    "FEAT_CSV2" [PFR0_CSV2 1] Open Open; ""
    "FEAT_CSV2_1p1" [PFR1_CSV2_FRAC 1] Open Hidden; ""
    "FEAT_CSV2_2" [PFR0_CSV2 2, PFR1_CSV2_FRAC 2] Open Trapped { enable(Reg::Hcr,
        hcr::ENSCXT) }; "SCXTNUM_EL0 and _EL1"
    "FEAT_CSV3" [PFR0_CSV3 1] Open Open; ""

    // ID_AA64PFR1_EL1.
    "FEAT_BTI" [PFR1_BT 1] Open Open; ""
    "FEAT_SSBS" [PFR1_SSBS 1] Open Open; "a bit of PSTATE, which is the VM's own"
    "FEAT_MTE" [PFR1_MTE 1] Open Hidden; "instructions on addresses"
    "FEAT_MTE2" [PFR1_MTE 2] Open Trapped { enable(Reg::Hcr, hcr::ATA), trap(Reg::Hcr, hcr::TID5) }; ""
    "MTE's fraction and FEAT_MTE4" [PFR1_MTEX 1, PFR1_MTE_FRAC 0] Open Hidden; ""
    "FEAT_MTE_PERM and others" [PFR2_MTEPERM 1, PFR2_MTESTOREONLY 1,
        PFR2_MTEFAR 1] Open Hidden; "they come with FEAT_MTE2"
    "FEAT_SME" [PFR1_SME 1] Open Trapped {
        trap(Reg::Cptr, cptr::TSM),
        enable(Reg::Hfgrtr, hfg::NTPIDR2 | hfg::NSMPRI),
        enable(Reg::Hfgwtr, hfg::NTPIDR2 | hfg::NSMPRI),
    }; "ZA and ZT0 stay where they are; the streaming mode's registers are put aside with the V registers"
    "FEAT_RNG_TRAP" [PFR1_RNDR_TRAP 1] Open Hidden; "EL3's"
    "FEAT_NMI" [PFR1_NMI 1] Open Hidden; "a bit of PSTATE, which is the VM's own, and GIC registers,
        which are trapped"
    "FEAT_GCS" [PFR1_GCS 1] Open Trapped {
        enable(Reg::Hcrx, hcrx::GCSEN),
        enable(Reg::Hfgrtr, hfg::NGCS_EL0 | hfg::NGCS_EL1),
        enable(Reg::Hfgwtr, hfg::NGCS_EL0 | hfg::NGCS_EL1),
        enable(Reg::Hfgitr, hfgi::NGCSEPP | hfgi::NGCSSTR | hfgi::NGCSPUSHM),
    }; ""
    "FEAT_THE" [PFR1_THE 1] Open Trapped {
        enable(Reg::Hfgrtr, hfg::NRCWMASK), enable(Reg::Hfgwtr, hfg::NRCWMASK),
        enable(Reg::Hfgrtr2, hfg2::NRCWSMASK), enable(Reg::Hfgwtr2, hfg2::NRCWSMASK),
    }; ""
    "FEAT_DoubleFault2" [PFR1_DF2 1] Open Hidden; "SCTLR2_EL1 enables it"
    "FEAT_PFAR" [PFR1_PFAR 1] Open Trapped { enable(Reg::Hfgrtr2, hfg2::NPFAR), enable(Reg::Hfgwtr2,
        hfg2::NPFAR) }; ""

    // ID_AA64PFR2_EL1, ID_AA64FPFR0_EL1.
    "FEAT_GCIE" [PFR2_GCIE 1] Trapped Trapped {
        enable(Reg::IchHfgrtr, 0x1f_00f7), enable(Reg::IchHfgwtr, 0x1f_0065), enable(Reg::IchHfgitr, 0x7ff),
    }; "the host's interrupts are a GICv3's"
    "FEAT_UINJ" [PFR2_UINJ 1] Open Hidden; ""
    "FEAT_FPMR" [PFR2_FPMR 1] Open Trapped { enable(Reg::Hcrx, hcrx::ENFPM) }; "FPMR; without it,
        FEAT_FP8 is out of reach"
    "FEAT_FP8 in detail" [FPFR0_F8E5M2 1, FPFR0_F8E4M3 1, FPFR0_F16MM2 1, FPFR0_F8MM4 1, FPFR0_F8MM8 1,
        FPFR0_F8DP2 1, FPFR0_F8DP4 1, FPFR0_F8FMA 1, FPFR0_F8CVT 1] Open Hidden; "they go with FEAT_FPMR"

    // ID_AA64DFR0_EL1, DFR1, DFR2.
    "Armv8.0 debug" [DFR0_DEBUGVER 6] Open Emulated; "see debug registers"
    "later debug" [DFR0_DEBUGVER 7] Open Hidden; "see debug registers"
    "FEAT_Debugv8p9" [DFR0_DEBUGVER 11] Open Trapped {
        enable(Reg::Mdcr, mdcr::EBWE), enable(Reg::Hdfgrtr2, hdfg2::NMDSELR), enable(Reg::Hdfgwtr2, hdfg2::NMDSELR),
    }; "MDSELR_EL1"
    "breakpoints and watchpoints" [DFR0_BRPS 1, DFR0_WRPS 1, DFR0_CTX_CMPS 1, DFR1_BRPS 1, DFR1_WRPS 1,
        DFR1_CTX_CMPS 1, DFR1_ABL_CMPS 1, DFR1_ABLE 1, DFR2_BWE 1] Open Hidden; "see debug registers"
    "FEAT_DoubleLock" [DFR0_DOUBLELOCK 0] Open Hidden; "see debug registers"
    "trace registers" [DFR0_TRACEVER 1] Open Trapped { trap(Reg::Cptr, cptr::TTA) }; ""
    "FEAT_PMUv3" [DFR0_PMUVER 1] Open Trapped { trap(Reg::Mdcr, mdcr::TPM | mdcr::TPMCR) }; ""
    "FEAT_PMUv3p9" [DFR0_PMUVER 9] Open Trapped {
        enable(Reg::Hdfgrtr2, hdfg2::NPMUACR), enable(Reg::Hdfgwtr2, hdfg2::NPMUACR | hdfg2::NPMZR),
    }; "PMUACR_EL1, PMZR_EL0"
    "FEAT_PMUv3_ICNTR" [DFR1_PMICNTR 1] Open Trapped {
        enable(Reg::Hdfgrtr2, hdfg2::NPMICNTR | hdfg2::NPMICFILTR),
        enable(Reg::Hdfgwtr2, hdfg2::NPMICNTR | hdfg2::NPMICFILTR),
    }; ""
    "FEAT_PMUv3_SS" [DFR0_PMSS 1] Trapped Trapped {
        enable(Reg::Hdfgrtr2, hdfg2::NPMSSDATA | hdfg2::NPMSSCR), enable(Reg::Hdfgwtr2, hdfg2::NPMSSCR),
        enable(Reg::Mdcr, mdcr::PMSSE),
    }; "EL2 would have to delegate the snapshots"
    "FEAT_EBEP and FEAT_SEBEP" [DFR1_EBEP 1, DFR0_SEBEP 1] Trapped Trapped {
        enable(Reg::Hdfgrtr2, hdfg2::NPMECR | hdfg2::NPMIAR), enable(Reg::Hdfgwtr2, hdfg2::NPMECR | hdfg2::NPMIAR),
        enable(Reg::Mdcr, mdcr::PMEE),
    }; "EL2 would have to delegate the exceptions"
    "PMU, smaller things" [DFR0_MTPMU 0, DFR0_HPMN0 1, DFR1_DPFZS 1, DFR1_SYSPMUID 1] Open Hidden; ""
    "FEAT_SPMU" [DFR1_SPMU 1] Trapped Trapped {
        enable(Reg::Mdcr, mdcr::ENSPM), enable(Reg::Hdfgrtr2, hdfg2::SPMU_READ), enable(Reg::Hdfgwtr2, hdfg2::SPMU_WRITE),
    }; "they count what others do on the same hardware, guests included"
    "FEAT_SPE" [DFR0_PMSVER 1] Open Trapped {
        trap(Reg::Mdcr, mdcr::TPMS),
        Control { register: Reg::Mdcr, mask: mdcr::E2PB, open: mdcr::E2PB, closed: mdcr::E2PB_TRAPPED },
    }; "trapped, the buffer stays EL1's (E2PB 0b10): as EL2's it would write through EL2's translation"
    "FEAT_SPEv1p2" [DFR0_PMSVER 3] Open Trapped {
        enable(Reg::Hdfgrtr, hdfg::NPMSNEVFR), enable(Reg::Hdfgwtr, hdfg::NPMSNEVFR),
    }; "PMSNEVFR_EL1"
    "FEAT_SPE_FDS" [PMSIDR_FDS 1] Open Trapped {
        enable(Reg::Hdfgrtr2, hdfg2::NPMSDSFR), enable(Reg::Hdfgwtr2, hdfg2::NPMSDSFR),
    }; "PMSDSFR_EL1"
    "FEAT_SPE_nVM" [DFR2_SPE_NVM 1] Open Trapped {
        enable(Reg::Hdfgrtr2, hdfg2::NPMBMAR), enable(Reg::Hdfgwtr2, hdfg2::NPMBMAR),
    }; "PMBMAR_EL1; stage 2 applies to the buffer all the same"
    "FEAT_SPE_EXC and FEAT_TRBE_EXC" [DFR2_SPE_EXC 1, DFR2_TRBE_EXC 1] Hidden Hidden;
        "EL2 would have to delegate the exceptions, and does not: the buffers interrupt as before"
    "FEAT_TRF" [DFR0_TRACEFILT 1] Open Trapped { trap(Reg::Mdcr, mdcr::TTRF) }; ""
    "FEAT_TRBE" [DFR0_TRACEBUFFER 1] Open Trapped {
        Control { register: Reg::Mdcr, mask: mdcr::E2TB, open: mdcr::E2TB, closed: mdcr::E2TB_TRAPPED },
    }; "as FEAT_SPE (E2TB)"
    "FEAT_TRBE_MPAM" [TRBIDR_MPAM 1] Open Trapped {
        enable(Reg::Hdfgrtr2, hdfg2::NTRBMPAM), enable(Reg::Hdfgwtr2, hdfg2::NTRBMPAM),
    }; "TRBMPAM_EL1"
    "external trace buffers" [DFR0_EXTTRCBUFF 1] Open Hidden; ""
    "FEAT_ITE" [DFR1_ITE 1] Open Trapped {
        enable(Reg::Hdfgrtr2, hdfg2::NTRCITECR), enable(Reg::Hdfgwtr2, hdfg2::NTRCITECR),
    }; "TRCITECR_EL1"
    "FEAT_BRBE" [DFR0_BRBE 1] Open Trapped {
        enable(Reg::Hdfgrtr, hdfg::NBRBIDR | hdfg::NBRBCTL | hdfg::NBRBDATA),
        enable(Reg::Hdfgwtr, hdfg::NBRBCTL | hdfg::NBRBDATA),
        enable(Reg::Hfgitr, hfgi::NBRBINJ | hfgi::NBRBIALL),
    }; ""
    "FEAT_STEP2" [DFR2_STEP 1] Open Trapped {
        enable(Reg::Mdcr, mdcr::ENSTEPOP),
        enable(Reg::Hdfgrtr2, hdfg2::NMDSTEPOP), enable(Reg::Hdfgwtr2, hdfg2::NMDSTEPOP),
    }; "MDSTEPOP_EL1"
    "auxiliary features" [AFR0_ALL 1] Open Hidden; "the implementer's"

    // ID_AA64ISAR0_EL1 to ISAR3: instructions.
    "cryptography" [ISAR0_AES 1, ISAR0_SHA1 1, ISAR0_SHA2 1, ISAR0_SHA3 1, ISAR0_SM3 1, ISAR0_SM4 1] Open Open; ""
    "integer, vector and memory instructions" [ISAR0_CRC32 1, ISAR0_ATOMIC 1, ISAR0_RDM 1, ISAR0_DP 1, ISAR0_FHM 1,
        ISAR0_TS 1, ISAR0_RNDR 1, ISAR1_DPB 1, ISAR1_JSCVT 1, ISAR1_FCMA 1, ISAR1_LRCPC 1, ISAR1_FRINTTS 1,
        ISAR1_SB 1, ISAR1_BF16 1, ISAR1_DGH 1, ISAR1_I8MM 1, ISAR2_RPRES 1, ISAR2_BC 1, ISAR2_CLRBHB 1,
        ISAR2_RPRFM 1, ISAR2_CSSC 1] Open Open; ""
    "TLB maintenance" [ISAR0_TLB 1] Open Open; "by VMID, and on all CPUs for guests (HCR_EL2.FB)"
    "FEAT_SPECRES" [ISAR1_SPECRES 1] Open Open; ""
    "FEAT_PAuth" [ISAR1_APA 1, ISAR1_API 1, ISAR1_GPA 1, ISAR1_GPI 1, ISAR2_GPA3 1, ISAR2_APA3 1] Open OnDemand {
        enable(Reg::Hcr, hcr::API | hcr::APK),
    } holds KEYS; ""
    "FEAT_CONSTPACFIELD" [ISAR2_PAC_FRAC 1] Open Open; ""
    "FEAT_XS" [ISAR1_XS 1] Open Hidden; ""
    "FEAT_LS64" [ISAR1_LS64 1] Open Trapped { enable(Reg::Hcrx, hcrx::ENALS) }; ""
    "FEAT_LS64_V" [ISAR1_LS64 2] Open Trapped { enable(Reg::Hcrx, hcrx::ENASR) }; ""
    "FEAT_LS64_ACCDATA" [ISAR1_LS64 3] Open Trapped {
        enable(Reg::Hcrx, hcrx::ENAS0), enable(Reg::Hfgrtr, hfg::NACCDATA), enable(Reg::Hfgwtr, hfg::NACCDATA),
    }; "ACCDATA_EL1"
    "FEAT_WFxT" [ISAR2_WFXT 1] Open Hidden; "waits are trapped, with and without an end"
    "FEAT_MOPS" [ISAR2_MOPS 1] Open Open { enable(Reg::Hcrx, hcrx::MSCEN) }; ""
    "FEAT_D128" [MMFR3_D128 1, MMFR3_D128_2 1, ISAR2_SYSREG_128 1, ISAR2_SYSINSTR_128 1] Trapped Trapped {
        enable(Reg::Hcrx, hcrx::D128EN | hcrx::ENIDCP128),
    }; "registers of 128 bits, of which the world switch knows 64"
    "later instructions" [ISAR2_PRFMSLC 1, ISAR2_PCDPHINT 1, ISAR2_LUT 1, ISAR2_ATS1A 1, ISAR3_CPA 1,
        ISAR3_FAMINMAX 1, ISAR3_TLBIW 1, ISAR3_LSFE 1, ISAR3_OCCMO 1, ISAR3_LSUI 1, ISAR3_FPRCVT 1] Open Hidden; ""
    "FEAT_PAuth_LR, PACM" [ISAR3_PACM 1] Open Trapped { enable(Reg::Hcrx, hcrx::PACMEN) }; ""

    // ID_AA64MMFR0_EL1 to MMFR4: memory.
    "addresses" [MMFR0_PARANGE 1] Open Open; "a guest sees the smallest size that holds its guest addresses"
    "translation of EL1&0" [MMFR0_ASIDBITS 1, MMFR0_BIGEND 1, MMFR0_BIGENDEL0 1, MMFR0_TGRAN16 1, MMFR0_TGRAN64 0,
        MMFR0_TGRAN4 0, MMFR0_EXS 1, MMFR1_HAFDBS 1, MMFR1_HPDS 1, MMFR1_PAN 1, MMFR1_ETS 1, MMFR1_AFP 1,
        MMFR1_NTLBPA 1, MMFR1_ECBHB 1, MMFR2_CNP 1, MMFR2_UAO 1, MMFR2_LSM 1, MMFR2_VARANGE 1, MMFR2_CCIDX 1,
        MMFR2_ST 1, MMFR2_AT 1, MMFR2_IDS 1, MMFR2_TTL 1, MMFR2_BBM 1, MMFR2_E0PD 1] Open Open; "TCR_EL1 and SCTLR_EL1 enable it"
    "FEAT_HAFT and FEAT_HDBSS" [MMFR1_HAFDBS 3] Open Hidden; "TCR2_EL1 enables it, or it is EL2's"
    "stage 2 and EL2" [MMFR0_SNSMEM 1, MMFR0_TGRAN16_2 1, MMFR0_TGRAN64_2 1, MMFR0_TGRAN4_2 1, MMFR0_FGT 1,
        MMFR0_ECV 1,
        MMFR1_VMIDBITS 1, MMFR1_VH 1, MMFR1_SPECSEI 1, MMFR1_XNX 1, MMFR1_TWED 1, MMFR1_HCX 1, MMFR1_TIDCP1 1,
        MMFR1_CMOW 1, MMFR2_IESB 1, MMFR2_NV 1, MMFR2_FWB 1, MMFR2_EVT 1, MMFR3_S2PIE 1, MMFR3_MEC 1,
        MMFR3_SNERR 1, MMFR3_ANERR 1, MMFR3_SDERR 1, MMFR3_ADERR 1, MMFR3_SPEC_FPACC 1, MMFR4_EIESB 1,
        MMFR4_ASID2 1, MMFR4_HACDBS 1, MMFR4_FGWTE3 1, MMFR4_NV_FRAC 1, MMFR4_E2H0 14, MMFR4_RMEGDI 1,
        MMFR4_EAESR 1, MMFR4_E3DSE 1] Open Hidden; "EL2's or EL3's own"
    "FEAT_LOR" [MMFR1_LO 1] Open Trapped { trap(Reg::Hcr, hcr::TLOR) }; ""
    "FEAT_TCR2" [MMFR3_TCRX 1] Open Trapped { enable(Reg::Hcrx,
        hcrx::TCR2EN) }; "the host's TCR2_EL1 stays and acts as 0"
    "FEAT_SCTLR2" [MMFR3_SCTLRX 1] Open Trapped { enable(Reg::Hcrx,
        hcrx::SCTLR2EN) }; "the host's SCTLR2_EL1 stays and acts as 0"
    "FEAT_S1PIE" [MMFR3_S1PIE 1] Open Trapped {
        enable(Reg::Hfgrtr, hfg::NPIRE0 | hfg::NPIR), enable(Reg::Hfgwtr, hfg::NPIRE0 | hfg::NPIR),
    }; "TCR2_EL1 enables it"
    "FEAT_S1POE" [MMFR3_S1POE 1] Open Trapped {
        enable(Reg::Hfgrtr, hfg::NPOR_EL0 | hfg::NPOR_EL1), enable(Reg::Hfgwtr, hfg::NPOR_EL0 | hfg::NPOR_EL1),
    }; "TCR2_EL1 enables it"
    "FEAT_S2POE" [MMFR3_S2POE 1] Trapped Trapped {
        enable(Reg::Hfgrtr, hfg::NS2POR), enable(Reg::Hfgwtr, hfg::NS2POR),
    }; "stage 2 has no overlays"
    "FEAT_AIE" [MMFR3_AIE 1] Open Trapped {
        enable(Reg::Hfgrtr, hfg::NMAIR2 | hfg::NAMAIR2), enable(Reg::Hfgwtr, hfg::NMAIR2 | hfg::NAMAIR2),
    }; "TCR2_EL1 enables it"
    "FEAT_PoPS" [MMFR4_POPS 1] Open Trapped { enable(Reg::Hfgitr2, hfgi2::NDCCIVAPS) }; ""
    "FEAT_SRMASK" [MMFR4_SRMASK 1] Trapped Trapped {
        enable(Reg::Hcrx, hcrx::SRMASKEN), enable(Reg::Hfgrtr2, hfg2::MASKS), enable(Reg::Hfgwtr2, hfg2::MASKS),
    }; "the masks would stand between the world switch and EL1's registers"
}

/// What every VM has of EL1 and EL0.
const EL1: &[&str] = &[
    "sctlr_el1",
    "cpacr_el1",
    "ttbr0_el1",
    "ttbr1_el1",
    "tcr_el1",
    "mair_el1",
    "vbar_el1",
    "contextidr_el1",
    "elr_el1",
    "spsr_el1",
    "esr_el1",
    "far_el1",
    "par_el1",
    "tpidrro_el0",
    "tpidr_el0",
    "tpidr_el1",
    "sp_el0",
    "sp_el1",
    "csselr_el1",
    "afsr0_el1",
    "afsr1_el1",
    "amair_el1",
    "mdscr_el1",
];

/// Of FEAT_PAuth, by encoding.
const KEYS: &[&str] = &[
    "s3_0_c2_c1_0",
    "s3_0_c2_c1_1",
    "s3_0_c2_c1_2",
    "s3_0_c2_c1_3",
    "s3_0_c2_c2_0",
    "s3_0_c2_c2_1",
    "s3_0_c2_c2_2",
    "s3_0_c2_c2_3",
    "s3_0_c2_c3_0",
    "s3_0_c2_c3_1",
];

/// Of floating point.
const FP: &[&str] = &["q0", "q31", "fpcr", "fpsr"];
