// SPDX-License-Identifier: MIT OR Apache-2.0

//! The features of a CPU that EL2 itself uses or has to handle.

use core::fmt;

use super::fields::*;
use super::ids::{Field, Ids, Other};
use crate::errata::models::{CORTEX_A35, CORTEX_A53, CORTEX_A57, CORTEX_A72, CORTEX_A73};
use crate::errata::{Errata, Midr, Model, Remedy};
use crate::stage2::Stage2Features;

/// The identification registers of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its identification registers.
    pub ids: Ids,
    /// `MIDR_EL1`, of which the upper half is RES0.
    pub midr: Midr,
    /// `REVIDR_EL1`.
    pub revidr: u32,
    /// `CTR_EL0`.
    pub ctr: u64,
    /// `DCZID_EL0`.
    pub dczid: u64,
    /// `PMCR_EL0.N`; 0 without performance monitors.
    pub event_counters: u8,
}

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

impl Cpu {
    /// Whether Escrow can use it.
    ///
    /// # Errors
    ///
    /// The first feature found missing that Escrow needs.
    pub fn check(&self) -> Result<(), MissingFeature> {
        let ids = &self.ids;
        let refused = self.errata().among(Errata::with(Remedy::Refused));
        if !refused.is_empty() {
            return Err(MissingFeature::Soundness(refused));
        }
        if !ids.has(&PFR0_EL1, 1) {
            return Err(MissingFeature::Aarch64El1);
        }
        // TGran4_2: 0 defers to TGran4, 1 is "not supported".
        if !ids.has(&MMFR0_TGRAN4, 0) || ids.get(&MMFR0_TGRAN4_2) == 1 {
            return Err(MissingFeature::Pages4K);
        }
        if !ids.has(&PFR0_GIC, 1) {
            return Err(MissingFeature::GicSystemRegisters);
        }
        // Negative means that HCR_EL2.E2H is RES1.
        if !ids.has(&MMFR4_E2H0, 0) {
            return Err(MissingFeature::E2h0);
        }
        Ok(())
    }

    /// Its errata.
    pub fn errata(&self) -> Errata {
        Errata::of(self.midr, self.revidr)
    }

    /// What the CPU has, without features that an erratum spoils.
    pub fn sound(&self) -> Ids {
        let hidden = self.errata().among(Errata::with(Remedy::Hidden));
        let mut ids = self.ids;
        for (erratum, field) in
            [(Errata::SME_COMPLETION, &PFR1_SME), (Errata::TRACE_BUFFER, &DFR0_TRACEBUFFER)]
        {
            if hidden.has(erratum) {
                ids.hide(field);
            }
        }
        ids
    }

    /// Whether `AFSR0_EL1`, `AFSR1_EL1` and `AMAIR_EL1` may hold anything. They are
    /// IMPLEMENTATION DEFINED. Arm's own cores have them as RES0, and QEMU's `max` (implementer 0)
    /// as 0. EL2 decides by the implementer and does not probe them by a write, whose effect is
    /// IMPLEMENTATION DEFINED as well.
    pub const fn has_auxiliary_registers(&self) -> bool {
        !matches!(self.implementer(), SOFTWARE | ARM)
    }

    /// Whether the GIC's CPU interface may also be that of a GICv2, so that
    /// `ICC_SRE_EL1` can be changed. Arm's cores from Cortex-A55 and A75 on do
    /// not have it; `ICC_SRE_EL1.SRE` is RAO/WI there, and a guest may as well
    /// have the register. It is not found out by clearing SRE, for which the
    /// results are UNPREDICTABLE (IHI 0069, "ICC_SRE_EL1").
    pub fn has_gicv2_interface(&self) -> bool {
        const OLD: [Model; 5] = [CORTEX_A35, CORTEX_A53, CORTEX_A57, CORTEX_A72, CORTEX_A73];
        match self.implementer() {
            SOFTWARE => false,
            ARM => OLD.contains(&self.midr.model()),
            _ => true,
        }
    }

    const fn implementer(&self) -> u32 {
        self.midr.0 >> 24
    }
}

/// Implementers, as `MIDR_EL1` has them: reserved for software, which QEMU uses
/// for `max`; Arm.
const SOFTWARE: u32 = 0x00;
const ARM: u32 = 0x41;

/// The features of a CPU that EL2 uses, or has to handle.
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
    /// FEAT_FPMR.
    pub fpmr: bool,
    /// FEAT_SME2.
    pub sme2: bool,
    /// Streaming-mode priorities are implemented (`SMIDR_EL1.SMPS`).
    pub sme_priority: bool,
    /// FEAT_PAuth.
    pub pauth: bool,
    /// FEAT_MTE2 or later.
    pub mte2: bool,
    /// FEAT_NMI.
    pub nmi: bool,
    /// FEAT_AMUv1.
    pub amu: bool,
    /// FEAT_GCS.
    pub gcs: bool,
    /// FEAT_MPAM.
    pub mpam: bool,
    /// FEAT_LOR.
    pub lor: bool,
    /// The performance monitors of the architecture exist.
    pub pmu: bool,
    /// Version of the Statistical Profiling Extension, 0 none.
    pub spe: u8,
    /// FEAT_TRBE.
    pub trbe: bool,
    /// FEAT_TRF.
    pub trf: bool,
    /// FEAT_BRBE.
    pub brbe: bool,
    /// System registers of a trace unit.
    pub etm: bool,
    /// Size of a block that `DC ZVA` zeroes, in bytes; 0 if it is not allowed.
    pub zva_block: u16,
    /// FEAT_MOPS: instructions that set memory.
    pub sets_memory: bool,
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
    /// Those of one CPU, of which the host sees `ids`: what the host cannot use
    /// holds nothing that would have to be put aside.
    pub fn of(cpu: &Cpu, ids: &Ids) -> Features {
        let has = |field: &Field| ids.has(field, 1);
        let sme = has(&PFR1_SME);
        Features {
            stage2: Stage2Features {
                // 52-bit addresses need FEAT_LPA2 tables, which Escrow does
                // not write.
                pa_bits: [32, 36, 40, 42, 44, 48]
                    .get(cpu.ids.get(&MMFR0_PARANGE) as usize)
                    .copied()
                    .unwrap_or(48),
                force_write_back: cpu.ids.has(&MMFR2_FWB, 1),
                vmid16: cpu.ids.has(&MMFR1_VMIDBITS, 2),
            },
            sve: has(&PFR0_SVE),
            sme,
            sme_fa64: sme && has(&SMFR0_FA64),
            fpmr: has(&PFR2_FPMR),
            sme2: ids.has(&PFR1_SME, 2),
            sme_priority: sme && ids.other(Other::Smidr) >> 15 & 1 != 0,
            pauth: [ISAR1_APA, ISAR1_API, ISAR1_GPA, ISAR1_GPI, ISAR2_GPA3, ISAR2_APA3]
                .iter()
                .any(has),
            mte2: ids.has(&PFR1_MTE, 2),
            nmi: has(&PFR1_NMI),
            amu: has(&PFR0_AMU),
            gcs: has(&PFR1_GCS),
            mpam: has(&PFR0_MPAM) || has(&PFR1_MPAM_FRAC),
            lor: has(&MMFR1_LO),
            pmu: has(&DFR0_PMUVER),
            spe: ids.get(&DFR0_PMSVER) as u8,
            trbe: has(&DFR0_TRACEBUFFER),
            trf: has(&DFR0_TRACEFILT),
            brbe: has(&DFR0_BRBE),
            etm: has(&DFR0_TRACEVER),
            // BS is log2 of words of 4 bytes; DZP prohibits.
            zva_block: if cpu.dczid & 1 << 4 == 0 { 4 << (cpu.dczid & 0xf) } else { 0 },
            sets_memory: cpu.ids.has(&ISAR2_MOPS, 1),
            cache_line: 4 << (cpu.ctr >> 16 & 0xf),
            idc: cpu.ctr >> 28 & 1 != 0,
            dic: cpu.ctr >> 29 & 1 != 0,
            tlb_ranges: cpu.ids.has(&ISAR0_TLB, 2),
        }
    }

    /// What both this CPU and another one can do in stage 2 and with their
    /// caches, for what is shared by all CPUs.
    pub fn least(&self, other: &Features) -> Features {
        let (a, b) = (self.stage2, other.stage2);
        Features {
            stage2: Stage2Features {
                pa_bits: a.pa_bits.min(b.pa_bits),
                force_write_back: a.force_write_back && b.force_write_back,
                vmid16: a.vmid16 && b.vmid16,
            },
            zva_block: if self.zva_block == other.zva_block { self.zva_block } else { 0 },
            sets_memory: self.sets_memory && other.sets_memory,
            cache_line: self.cache_line.min(other.cache_line),
            idc: self.idc && other.idc,
            dic: self.dic && other.dic,
            tlb_ranges: self.tlb_ranges && other.tlb_ranges,
            ..*self
        }
    }
}
