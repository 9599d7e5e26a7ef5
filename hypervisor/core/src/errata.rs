// SPDX-License-Identifier: MIT OR Apache-2.0

//! Errata of CPUs that bear on what EL2 promises, by `MIDR_EL1`.
//!
//! The table is data: which CPUs, in which revisions, have which erratum, and
//! what Escrow does about it ([`Remedy`]). It follows Arm's errata notices (SDEN),
//! TF-A's `lib/cpus`, Linux's `arch/arm64/kernel/cpu_errata.c` and its
//! `Documentation/arch/arm64/silicon-errata.rst`. Where a vendor's core is
//! derived from one of Arm's and the vendor has said nothing, it is taken to have
//! the erratum.
//!
//! Errata that do not bear on EL2 are not here; `docs/errata.md` says which of them
//! were looked at, and why each does not matter.

use core::fmt;

/// The value of `MIDR_EL1`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Midr(pub u32);

impl Midr {
    /// Implementer, architecture and part number: all but the revision.
    const MODEL: u32 = 0xff0f_fff0;

    /// Implementer and part number, with the revision clear.
    pub const fn model(self) -> Model {
        Model(self.0 & Self::MODEL)
    }

    /// Variant (the `n` of `rnpm`).
    pub const fn variant(self) -> u8 {
        (self.0 >> 20 & 0xf) as u8
    }

    /// Revision (the `m` of `rnpm`).
    pub const fn revision(self) -> u8 {
        (self.0 & 0xf) as u8
    }
}

impl fmt::Debug for Midr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x} (r{}p{})", self.0, self.variant(), self.revision())
    }
}

/// A CPU's implementer and part number, as they stand in `MIDR_EL1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model(u32);

impl Model {
    const fn new(implementer: u8, part: u16) -> Model {
        // Architecture 0xf: identified by the ID registers.
        Model((implementer as u32) << 24 | 0xf << 16 | (part as u32) << 4)
    }

    const fn arm(part: u16) -> Model {
        Model::new(0x41, part)
    }

    const fn qualcomm(part: u16) -> Model {
        Model::new(0x51, part)
    }
}

macro_rules! models {
    ($($name:ident = $model:expr;)*) => {$(
        #[doc = stringify!($name)]
        pub const $name: Model = $model;
    )*};
}

/// The CPUs that the tables name.
#[allow(missing_docs, reason = "each is the name of a CPU")]
pub mod models {
    use super::Model;

    models! {
        CORTEX_A35 = Model::arm(0xd04);
        CORTEX_A53 = Model::arm(0xd03);
        CORTEX_A55 = Model::arm(0xd05);
        CORTEX_A57 = Model::arm(0xd07);
        CORTEX_A72 = Model::arm(0xd08);
        CORTEX_A73 = Model::arm(0xd09);
        CORTEX_A75 = Model::arm(0xd0a);
        CORTEX_A76 = Model::arm(0xd0b);
        CORTEX_A76AE = Model::arm(0xd0e);
        CORTEX_A77 = Model::arm(0xd0d);
        CORTEX_A78 = Model::arm(0xd41);
        CORTEX_A78AE = Model::arm(0xd42);
        CORTEX_A78C = Model::arm(0xd4b);
        CORTEX_A510 = Model::arm(0xd46);
        CORTEX_A520 = Model::arm(0xd80);
        CORTEX_A710 = Model::arm(0xd47);
        CORTEX_A715 = Model::arm(0xd4d);
        CORTEX_A720 = Model::arm(0xd81);
        CORTEX_X1 = Model::arm(0xd44);
        CORTEX_X1C = Model::arm(0xd4c);
        CORTEX_X2 = Model::arm(0xd48);
        CORTEX_X3 = Model::arm(0xd4e);
        CORTEX_X4 = Model::arm(0xd82);
        CORTEX_X925 = Model::arm(0xd85);
        C1_ULTRA = Model::arm(0xd8c);
        C1_PREMIUM = Model::arm(0xd90);
        C1_PRO = Model::arm(0xd8b);
        NEOVERSE_N1 = Model::arm(0xd0c);
        NEOVERSE_N2 = Model::arm(0xd49);
        NEOVERSE_V1 = Model::arm(0xd40);
        NEOVERSE_V2 = Model::arm(0xd4f);
        NEOVERSE_V3 = Model::arm(0xd84);
        NEOVERSE_V3AE = Model::arm(0xd83);
        BRAHMA_B53 = Model::new(0x42, 0x100);
        THUNDERX = Model::new(0x43, 0x0a1);
        THUNDERX_81XX = Model::new(0x43, 0x0a2);
        TSV110 = Model::new(0x48, 0xd01);
        OLYMPUS = Model::new(0x4e, 0x010);
        KRYO = Model::qualcomm(0x200);
        // Derived from Cortex-A73 and A53.
        KRYO_2XX_GOLD = Model::qualcomm(0x800);
        KRYO_2XX_SILVER = Model::qualcomm(0x801);
        // Derived from Cortex-A75 and A55.
        KRYO_3XX_GOLD = Model::qualcomm(0x802);
        KRYO_3XX_SILVER = Model::qualcomm(0x803);
        // Derived from Cortex-A76 and A55. The big cores of Kryo 5xx have the MIDR of
        // Cortex-A77; its small cores have that of Kryo 4xx Silver.
        KRYO_4XX_GOLD = Model::qualcomm(0x804);
        KRYO_4XX_SILVER = Model::qualcomm(0x805);
        COBALT_100 = Model::new(0x6d, 0xd49);
        AMPERE_1 = Model::new(0xc0, 0xac3);
        AMPERE_1A = Model::new(0xc0, 0xac4);
    }
}

use models::*;

/// Revisions of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revisions {
    model: Model,
    /// (variant, revision), both included.
    first: (u8, u8),
    last: (u8, u8),
    /// Bits of `REVIDR_EL1` of which any says that the last of these revisions
    /// has the erratum fixed.
    mended: u32,
}

/// All revisions.
const fn all(model: Model) -> Revisions {
    range(model, (0, 0), (0xf, 0xf))
}

/// From one revision to another, both included.
const fn range(model: Model, first: (u8, u8), last: (u8, u8)) -> Revisions {
    Revisions { model, first, last, mended: 0 }
}

impl Revisions {
    const fn unless(self, mended: u32) -> Revisions {
        Revisions { mended, ..self }
    }

    /// Whether a CPU is among them.
    pub fn contain(&self, midr: Midr, revidr: u32) -> bool {
        let revision = (midr.variant(), midr.revision());
        midr.model() == self.model
            && (self.first..=self.last).contains(&revision)
            && !(revision == self.last && revidr & self.mended != 0)
    }
}

/// Whether a CPU is on a list.
pub fn on_list(list: &[Revisions], midr: Midr, revidr: u32) -> bool {
    list.iter().any(|cpus| cpus.contain(midr, revidr))
}

/// What Escrow does about an erratum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// EL2's own code works around it.
    Covered,
    /// The feature that has it is hidden from all VMs.
    Hidden,
    /// Only the firmware can work around it, and EL2 cannot see whether it did:
    /// it is named in the log.
    Firmware,
    /// There is no way around it: the CPU is not used.
    Refused,
}

/// A set of errata. Their bits are what
/// [`INFO_ERRATA`](escrow_abi::call::INFO_ERRATA) answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errata(u32);

macro_rules! errata {
    ($($(#[$doc:meta])* $name:ident = $erratum:ident, $remedy:ident, [$($cpus:expr),* $(,)?];)*) => {
        impl Errata {
            $($(#[$doc])* pub const $name: Errata = Errata(1 << Erratum::$erratum as u32);)*
        }

        /// The table.
        const TABLE: &[(Errata, Remedy, &[Revisions])] =
            &[$((Errata::$name, Remedy::$remedy, &[$($cpus),*]),)*];
    };
}

use escrow_abi::errata::Erratum;

errata! {
    /// A broadcast `TLBI` and its `DSB` may complete before stores (and, for the
    /// older ones, loads) of other CPUs that were translated by what it removes:
    /// such a store may land after the `DSB`. Another broadcast `TLBI` with a `DSB`
    /// waits for them. Arm 1286807, 2441007, 2441009; CVE-2025-10263 (XSA-493):
    /// 4118414, 4193780 to 4193801; NVIDIA T410-OLY-1029; Qualcomm Falkor 1009.
    REPEAT_TLBI = RepeatTlbi, Covered, [
        all(CORTEX_A55),
        range(CORTEX_A510, (0, 0), (1, 1)),
        all(CORTEX_A76), all(CORTEX_A76AE), all(CORTEX_A77),
        all(CORTEX_A78), all(CORTEX_A78AE), all(CORTEX_A78C),
        all(CORTEX_A710),
        all(CORTEX_X1), all(CORTEX_X1C), all(CORTEX_X2), all(CORTEX_X3), all(CORTEX_X4),
        all(CORTEX_X925),
        all(C1_ULTRA), all(C1_PREMIUM),
        all(NEOVERSE_N1), all(NEOVERSE_N2),
        all(NEOVERSE_V1), all(NEOVERSE_V2), all(NEOVERSE_V3), all(NEOVERSE_V3AE),
        all(OLYMPUS), all(COBALT_100),
        all(KRYO),
        all(KRYO_3XX_SILVER),
        // Falkor, which has erratum 1009, has the part number of Kryo 2xx Gold.
        range(KRYO_2XX_GOLD, (0, 0), (0, 0)),
        all(KRYO_4XX_GOLD), all(KRYO_4XX_SILVER),
    ];
    /// An `AT` instruction that is executed speculatively at EL2 may fill TLBs
    /// from EL1 registers of one VM and the stage 2 of another. Arm 1165522
    /// (Cortex-A76), 1319367 (A72), 1319537 (A57), 1530923 (A55), 1530924 (A53).
    SPECULATIVE_AT = SpeculativeAt, Covered, [
        all(CORTEX_A53),
        range(CORTEX_A55, (0, 0), (2, 0)),
        all(CORTEX_A57),
        all(CORTEX_A72),
        range(CORTEX_A76, (0, 0), (2, 0)),
        all(BRAHMA_B53),
        all(KRYO_2XX_SILVER),
        all(KRYO_3XX_SILVER),
        // Kryo 4xx count variants and revisions from 0xc: rcpe is r0p0, rdpe r1p0, repe r2p0.
        range(KRYO_4XX_GOLD, (0, 0), (0xe, 0xe)),
        range(KRYO_4XX_SILVER, (0, 0), (0xe, 0xe)),
    ];
    /// One `TSB CSYNC` may not flush the trace buffer: what is left could be
    /// written through the next VM's translation. A second one does. Arm 2054223,
    /// 2067961.
    TSB_FLUSH = TsbFlush, Covered, [
        all(CORTEX_A710), all(NEOVERSE_N2), all(COBALT_100),
    ];
    /// The trace buffer does not stop when it is told to, or its registers do not
    /// take what is written to them. Arm 2064142, 2038923, 1902691.
    TRACE_BUFFER = TraceBuffer, Hidden, [
        range(CORTEX_A510, (0, 0), (0, 2)),
    ];
    /// Stores of the matrix unit may land after a `TLBI` and its `DSB`, however
    /// often they are repeated. Arm 4193714, CVE-2026-0995.
    SME_COMPLETION = SmeCompletion, Hidden, [
        range(C1_PRO, (0, 0), (1, 2)).unless(1 << 0),
    ];
    /// Where the CPU merges pages in its TLB (hardware page aggregation), an access
    /// may go around stage 2. The firmware switches merging off, in `CPUECTLR_EL1`,
    /// which EL2 keeps from all VMs. CVE-2024-5660.
    PAGE_AGGREGATION = PageAggregation, Firmware, [
        all(CORTEX_A77), all(CORTEX_A78), all(CORTEX_A78AE), all(CORTEX_A78C),
        all(CORTEX_A710),
        all(CORTEX_X1), all(CORTEX_X1C), all(CORTEX_X2), all(CORTEX_X3), all(CORTEX_X4),
        all(CORTEX_X925),
        all(NEOVERSE_N2),
        all(NEOVERSE_V1), all(NEOVERSE_V2), all(NEOVERSE_V3), all(NEOVERSE_V3AE),
        all(COBALT_100),
    ];
    /// Accesses to Device memory or exclusives around a read of `PAR_EL1` may hang
    /// the CPU, whichever level does it: any VM could. The firmware patches a
    /// barrier in. Arm 1508412.
    PAR_DEADLOCK = ParDeadlock, Firmware, [
        range(CORTEX_A77, (0, 0), (1, 0)),
    ];
    /// A write of `HCR_EL2` may corrupt translations that are under way, unless it
    /// stands between barriers that a world switch here does not have. Ampere
    /// AC04_CPU_23.
    HCR_WRITE = HcrWrite, Refused, [
        all(AMPERE_1A),
    ];
    /// A broadcast `TLBI` may corrupt instruction caches. Cavium 27456.
    TLBI_CORRUPTS = TlbiCorrupts, Refused, [
        range(THUNDERX, (0, 0), (1, 1)),
        range(THUNDERX_81XX, (0, 0), (0, 0)),
    ];
}

impl Errata {
    /// None.
    pub const NONE: Errata = Errata(0);

    /// The errata of a CPU, by its `MIDR_EL1` and `REVIDR_EL1`.
    pub fn of(midr: Midr, revidr: u32) -> Errata {
        TABLE
            .iter()
            .filter(|(_, _, cpus)| on_list(cpus, midr, revidr))
            .fold(Errata::NONE, |errata, &(erratum, ..)| errata.and(erratum))
    }

    /// All errata of the table with this remedy.
    pub fn with(remedy: Remedy) -> Errata {
        TABLE
            .iter()
            .filter(|&&(_, with, _)| with == remedy)
            .fold(Errata::NONE, |errata, &(erratum, ..)| errata.and(erratum))
    }

    /// The union of two sets.
    pub const fn and(self, others: Errata) -> Errata {
        Errata(self.0 | others.0)
    }

    /// The intersection of two sets.
    pub const fn among(self, others: Errata) -> Errata {
        Errata(self.0 & others.0)
    }

    /// Whether any of `errata` is in the set.
    #[inline(always)]
    pub const fn has(self, errata: Errata) -> bool {
        self.0 & errata.0 != 0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as a word with a bit for each [`Erratum`].
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set that such a word stands for.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Errata {
        Errata(bits)
    }
}

impl fmt::Display for Errata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (n, erratum) in Erratum::in_word(self.0.into()).enumerate() {
            write!(f, "{}{}", if n == 0 { "" } else { ", " }, erratum.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn midr(model: Model, variant: u32, revision: u32) -> Midr {
        Midr(model.0 | variant << 20 | revision)
    }

    /// The revisions of a CPU that have an erratum, as (variant, revision).
    fn affected(erratum: Errata, model: Model) -> Vec<(u32, u32)> {
        let all = (0..16).flat_map(|variant| (0..16).map(move |revision| (variant, revision)));
        all.filter(|&(v, r)| Errata::of(midr(model, v, r), 0).has(erratum)).collect()
    }

    /// The first and the last of them; none may be missing in between.
    fn borders(erratum: Errata, model: Model) -> Option<((u32, u32), (u32, u32))> {
        let affected = affected(erratum, model);
        let (&first, &last) = (affected.first()?, affected.last()?);
        let number = |(v, r): (u32, u32)| v * 16 + r;
        assert_eq!(affected.len() as u32, number(last) - number(first) + 1, "{erratum:?}");
        Some((first, last))
    }

    const EVERY: Option<((u32, u32), (u32, u32))> = Some(((0, 0), (15, 15)));

    #[test]
    fn a_midr_is_taken_apart() {
        // Cortex-A76 r4p1, as QEMU's has it.
        let a76 = Midr(0x414f_d0b1);
        assert_eq!(a76.model(), CORTEX_A76);
        assert_eq!((a76.variant(), a76.revision()), (4, 1));
        assert_eq!(format!("{a76:?}"), "0x414fd0b1 (r4p1)");
        // Qualcomm QRB5165 (Kryo 585): small and big.
        assert_eq!(Midr(0x51df_805e).model(), KRYO_4XX_SILVER);
        assert_eq!(Midr(0x411f_d0d0).model(), CORTEX_A77);
        // With another architecture number, the MIDR names another CPU.
        assert_ne!(Midr(0x4140_d0b1).model(), CORTEX_A76);
        // QEMU's `max` has no implementer.
        assert_eq!(Errata::of(Midr(0x000f_0510), 0), Errata::NONE);
    }

    #[test]
    fn tlbi_completion() {
        let of = |model| borders(Errata::REPEAT_TLBI, model);
        for model in [
            CORTEX_A55,
            CORTEX_A76,
            CORTEX_A76AE,
            CORTEX_A77,
            CORTEX_A78,
            CORTEX_A710,
            CORTEX_X1,
            CORTEX_X4,
            CORTEX_X925,
            C1_ULTRA,
            C1_PREMIUM,
            NEOVERSE_N1,
            NEOVERSE_N2,
            NEOVERSE_V1,
            NEOVERSE_V2,
            NEOVERSE_V3,
            NEOVERSE_V3AE,
            OLYMPUS,
            COBALT_100,
            KRYO_4XX_GOLD,
            KRYO_4XX_SILVER,
        ] {
            assert_eq!(of(model), EVERY, "{model:?}");
        }
        assert_eq!(of(CORTEX_A510), Some(((0, 0), (1, 1))));
        assert_eq!(of(KRYO_2XX_GOLD), Some(((0, 0), (0, 0))));
        for model in [CORTEX_A53, CORTEX_A57, CORTEX_A72, CORTEX_A73, CORTEX_A75, CORTEX_A720] {
            assert_eq!(of(model), None, "{model:?}");
        }
    }

    #[test]
    fn speculative_at() {
        let of = |model| borders(Errata::SPECULATIVE_AT, model);
        for model in [CORTEX_A53, CORTEX_A57, CORTEX_A72] {
            assert_eq!(of(model), EVERY, "{model:?}");
        }
        assert_eq!(of(CORTEX_A55), Some(((0, 0), (2, 0))));
        assert_eq!(of(CORTEX_A76), Some(((0, 0), (2, 0))));
        assert_eq!(of(KRYO_4XX_SILVER), Some(((0, 0), (14, 14))));
        assert_eq!(of(KRYO_4XX_GOLD), Some(((0, 0), (14, 14))));
        assert_eq!(of(NEOVERSE_N1), None);
        assert_eq!(of(CORTEX_A77), None);
    }

    #[test]
    fn what_is_hidden_or_refused() {
        assert_eq!(borders(Errata::TRACE_BUFFER, CORTEX_A510), Some(((0, 0), (0, 2))));
        assert_eq!(borders(Errata::SME_COMPLETION, C1_PRO), Some(((0, 0), (1, 2))));
        assert_eq!(borders(Errata::TSB_FLUSH, CORTEX_A710), EVERY);
        assert_eq!(borders(Errata::TSB_FLUSH, CORTEX_X2), None);
        assert_eq!(borders(Errata::TLBI_CORRUPTS, THUNDERX), Some(((0, 0), (1, 1))));
        assert_eq!(borders(Errata::TLBI_CORRUPTS, THUNDERX_81XX), Some(((0, 0), (0, 0))));
        assert_eq!(borders(Errata::HCR_WRITE, AMPERE_1A), EVERY);
        assert_eq!(borders(Errata::HCR_WRITE, AMPERE_1), None);
        assert_eq!(borders(Errata::PAR_DEADLOCK, CORTEX_A77), Some(((0, 0), (1, 0))));
        assert_eq!(borders(Errata::PAGE_AGGREGATION, NEOVERSE_V1), EVERY);
        assert_eq!(borders(Errata::PAGE_AGGREGATION, NEOVERSE_N1), None);
    }

    #[test]
    fn a_mended_revision_says_so_in_revidr() {
        let of = |revision, revidr| {
            Errata::of(midr(C1_PRO, 1, revision), revidr).has(Errata::SME_COMPLETION)
        };
        assert!(of(2, 0) && of(2, 1 << 1));
        assert!(!of(2, 1 << 0));
        // Only of that revision.
        assert!(of(1, 1 << 0));
        assert!(!of(3, 0));
    }

    #[test]
    fn every_erratum_has_its_bit_and_one_remedy() {
        let remedies = [Remedy::Covered, Remedy::Hidden, Remedy::Firmware, Remedy::Refused];
        let mut seen = Errata::NONE;
        for remedy in remedies {
            let with = Errata::with(remedy);
            assert!(!with.is_empty() && !with.has(seen), "{remedy:?}");
            seen = seen.and(with);
        }
        assert_eq!(u64::from(seen.bits()), Erratum::ALL.iter().fold(0, |all, one| all | one.bit()));
        assert_eq!(TABLE.len(), Erratum::ALL.len());
    }

    #[test]
    fn they_are_named() {
        assert_eq!(Errata::NONE.to_string(), "none");
        // Cortex-A76 r1p0.
        let a76 = Errata::of(midr(CORTEX_A76, 1, 0), 0);
        assert_eq!(
            a76.to_string(),
            "TLBI-completion (TLBI is repeated), speculative-AT (walks are held off)"
        );
        assert_eq!(Errata::from_bits(a76.bits()), a76);
        assert_eq!(a76.among(Errata::SPECULATIVE_AT), Errata::SPECULATIVE_AT);
    }
}
