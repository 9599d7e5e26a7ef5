// SPDX-License-Identifier: MIT OR Apache-2.0

//! What this CPU has, as far as EL2 has to know.

use core::fmt;

use escrow_core::errata::{Errata, Remedy};
use escrow_core::stage2::Stage2Features;

use crate::errata;
use crate::sysreg::*;

/// A feature that Escrow cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingFeature {
    /// AArch64 at EL1.
    Aarch64El1,
    /// 4 KiB pages in both stages of translation.
    Pages4K,
    /// System registers of a GICv3 or later.
    GicSystemRegisters,
    /// The original EL2, without the Virtualization Host Extensions in force
    /// (FEAT_E2H0).
    E2h0,
    /// Hardware without errata that there is no way around.
    Soundness(Errata),
}

impl fmt::Display for MissingFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MissingFeature::Soundness(errata) => {
                return write!(f, "this CPU lacks soundness that EL2 needs: {errata}");
            }
            MissingFeature::Aarch64El1 => "this CPU lacks AArch64 at EL1",
            MissingFeature::Pages4K => "this CPU lacks 4 KiB pages in stage 1 or stage 2",
            MissingFeature::GicSystemRegisters => {
                "this CPU lacks the GICv3 system registers (GICv2 is not supported)"
            }
            MissingFeature::E2h0 => "this CPU lacks FEAT_E2H0: its EL2 is VHE only",
        })
    }
}

impl core::error::Error for MissingFeature {}

/// The features of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// What stage 2 can do.
    pub stage2: Stage2Features,
    /// FEAT_SVE.
    pub sve: bool,
    /// FEAT_SME.
    pub sme: bool,
    /// FEAT_SME_FA64: all A64 instructions in streaming mode.
    pub sme_fa64: bool,
    /// FEAT_SME2.
    pub sme2: bool,
    /// Streaming-mode priorities are implemented (`SMIDR_EL1.SMPS`).
    pub sme_priority: bool,
    /// FEAT_PAuth.
    pub pauth: bool,
    /// FEAT_MTE2 or later.
    pub mte2: bool,
    /// FEAT_CSV2_2: `SCXTNUM_ELx` exist.
    pub scxtnum: bool,
    /// FEAT_RAS.
    pub ras: bool,
    /// FEAT_AMUv1.
    pub amu: bool,
    /// Version of the fine-grained traps: 0 none, 1 FEAT_FGT, 2 FEAT_FGT2.
    pub fgt: u8,
    /// FEAT_HCX: `HCRX_EL2` exists.
    pub hcx: bool,
    /// FEAT_MOPS.
    pub mops: bool,
    /// FEAT_TCR2.
    pub tcr2: bool,
    /// FEAT_SCTLR2.
    pub sctlr2: bool,
    /// FEAT_S1PIE.
    pub s1pie: bool,
    /// FEAT_S1POE.
    pub s1poe: bool,
    /// FEAT_AIE: `MAIR2_EL1` and `AMAIR2_EL1` exist.
    pub aie: bool,
    /// FEAT_D128.
    pub d128: bool,
    /// FEAT_THE: `RCWMASK_EL1` exists.
    pub the: bool,
    /// FEAT_GCS.
    pub gcs: bool,
    /// FEAT_FPMR.
    pub fpmr: bool,
    /// Level of FEAT_LS64, 0 to 3.
    pub ls64: u8,
    /// FEAT_NMI.
    pub nmi: bool,
    /// FEAT_MPAM.
    pub mpam: bool,
    /// FEAT_LOR.
    pub lor: bool,
    /// The performance monitors of the architecture exist.
    pub pmu: bool,
    /// FEAT_PMUv3p9.
    pub pmu_v3p9: bool,
    /// Version of the Statistical Profiling Extension, 0 none.
    pub spe: u8,
    /// FEAT_TRBE.
    pub trbe: bool,
    /// FEAT_TRF.
    pub trf: bool,
    /// FEAT_BRBE.
    pub brbe: bool,
    /// Size of a block that `DC ZVA` zeroes, in bytes; 0 if it is not allowed.
    pub zva_block: u16,
    /// Size of the smallest data cache line, in bytes.
    pub cache_line: u16,
    /// `CTR_EL0.IDC`: data need not be cleaned for instruction fetches.
    pub idc: bool,
    /// `CTR_EL0.DIC`: instruction caches need not be invalidated.
    pub dic: bool,
    /// FEAT_TLBIRANGE.
    pub tlb_ranges: bool,
}

impl Features {
    /// Reads the identification registers of the calling CPU.
    ///
    /// # Errors
    ///
    /// The first feature found missing that Escrow needs.
    pub fn detect() -> Result<Features, MissingFeature> {
        let pfr0 = ID_AA64PFR0_EL1::read();
        let pfr1 = ID_AA64PFR1_EL1::read();
        let pfr2 = ID_AA64PFR2_EL1::read();
        let mmfr0 = ID_AA64MMFR0_EL1::read();
        let mmfr1 = ID_AA64MMFR1_EL1::read();
        let mmfr2 = ID_AA64MMFR2_EL1::read();
        let mmfr3 = ID_AA64MMFR3_EL1::read();
        let mmfr4 = ID_AA64MMFR4_EL1::read();
        let isar0 = ID_AA64ISAR0_EL1::read();
        let isar1 = ID_AA64ISAR1_EL1::read();
        let isar2 = ID_AA64ISAR2_EL1::read();
        let dfr0 = ID_AA64DFR0_EL1::read();
        let smfr0 = ID_AA64SMFR0_EL1::read();
        let ctr = CTR_EL0::read();
        let dczid = DCZID_EL0::read();

        let errata = errata::of_this_cpu();
        let refused = errata.among(Errata::with(Remedy::Refused));
        if !refused.is_empty() {
            return Err(MissingFeature::Soundness(refused));
        }
        if id_field(pfr0, 4) == 0 {
            return Err(MissingFeature::Aarch64El1);
        }
        // TGran4: 0b1111 is "not supported". TGran4_2: 0 defers to TGran4, 1 is
        // "not supported".
        if id_field(mmfr0, 28) == 0xf || id_field(mmfr0, 40) == 1 {
            return Err(MissingFeature::Pages4K);
        }
        if id_field(pfr0, 24) == 0 {
            return Err(MissingFeature::GicSystemRegisters);
        }
        // E2H0 is signed: negative means that HCR_EL2.E2H is RES1.
        if id_field(mmfr4, 24) & 0x8 != 0 {
            return Err(MissingFeature::E2h0);
        }

        let csv2 = id_field(pfr0, 56);
        let csv2_frac = id_field(pfr1, 32);
        let hidden = |erratum| errata.among(Errata::with(Remedy::Hidden)).has(erratum);
        let sme = if hidden(Errata::SME_COMPLETION) { 0 } else { id_field(pfr1, 24) };
        let pmu = id_field(dfr0, 8);
        let spe = id_field(dfr0, 32);
        let present = |register: u64, shift: u32| id_field(register, shift) != 0;
        Ok(Features {
            stage2: Stage2Features {
                // 52-bit addresses need FEAT_LPA2 tables, which Escrow does
                // not write.
                pa_bits: [32, 36, 40, 42, 44, 48]
                    .get(id_field(mmfr0, 0) as usize)
                    .copied()
                    .unwrap_or(48),
                force_write_back: present(mmfr2, 40),
                vmid16: id_field(mmfr1, 4) == 2,
            },
            sve: present(pfr0, 32),
            sme: sme != 0,
            sme_fa64: sme != 0 && smfr0 >> 63 != 0,
            sme2: sme >= 2,
            sme_priority: sme != 0 && SMIDR_EL1::read() >> 15 & 1 != 0,
            pauth: [4, 8, 24, 28].iter().any(|&shift| present(isar1, shift))
                || present(isar2, 8)
                || present(isar2, 12),
            mte2: id_field(pfr1, 8) >= 2,
            scxtnum: csv2 >= 2 || (csv2 == 1 && csv2_frac >= 2),
            ras: present(pfr0, 28),
            amu: present(pfr0, 44),
            fgt: id_field(mmfr0, 56).min(2),
            hcx: present(mmfr1, 40),
            mops: present(isar2, 16),
            tcr2: present(mmfr3, 0),
            sctlr2: present(mmfr3, 4),
            s1pie: present(mmfr3, 8),
            s1poe: present(mmfr3, 16),
            aie: present(mmfr3, 24),
            d128: present(mmfr3, 32),
            the: present(pfr1, 48),
            gcs: present(pfr1, 44),
            fpmr: present(pfr2, 32),
            ls64: id_field(isar1, 60).min(3),
            nmi: present(pfr1, 36),
            mpam: present(pfr0, 40) || present(pfr1, 16),
            lor: present(mmfr1, 16),
            pmu: pmu != 0 && pmu != 0xf,
            pmu_v3p9: (9..0xf).contains(&pmu),
            spe,
            trbe: present(dfr0, 44) && !hidden(Errata::TRACE_BUFFER),
            trf: present(dfr0, 40),
            brbe: present(dfr0, 52),
            // BS is log2 of words of 4 bytes; DZP prohibits.
            zva_block: if dczid & 1 << 4 == 0 { 4 << (dczid & 0xf) } else { 0 },
            cache_line: 4 << (ctr >> 16 & 0xf),
            idc: ctr >> 28 & 1 != 0,
            dic: ctr >> 29 & 1 != 0,
            tlb_ranges: id_field(isar0, 56) == 2,
        })
    }

    /// What both this CPU and those of `others` can do in stage 2 and with
    /// their caches, for what is shared by all CPUs: the hypervisor and its
    /// [`Hardware`](crate::Hardware).
    pub fn least(&self, others: &Features) -> Features {
        let (a, b) = (self.stage2, others.stage2);
        Features {
            stage2: Stage2Features {
                pa_bits: a.pa_bits.min(b.pa_bits),
                force_write_back: a.force_write_back && b.force_write_back,
                vmid16: a.vmid16 && b.vmid16,
            },
            zva_block: if self.zva_block == others.zva_block { self.zva_block } else { 0 },
            cache_line: self.cache_line.min(others.cache_line),
            idc: self.idc && others.idc,
            dic: self.dic && others.dic,
            tlb_ranges: self.tlb_ranges && others.tlb_ranges,
            ..*self
        }
    }
}

/// The ID register `S3_0_C0_C<crm>_<op2>`, of those that guests see a part of.
pub(crate) fn id_register(crm: u8, op2: u8) -> u64 {
    match (crm, op2) {
        (4, 0) => ID_AA64PFR0_EL1::read(),
        (4, 1) => ID_AA64PFR1_EL1::read(),
        (5, 0) => ID_AA64DFR0_EL1::read(),
        (6, 0) => ID_AA64ISAR0_EL1::read(),
        (6, 1) => ID_AA64ISAR1_EL1::read(),
        (6, 2) => ID_AA64ISAR2_EL1::read(),
        (7, 0) => ID_AA64MMFR0_EL1::read(),
        (7, 1) => ID_AA64MMFR1_EL1::read(),
        (7, 2) => ID_AA64MMFR2_EL1::read(),
        _ => 0,
    }
}
