// SPDX-License-Identifier: MIT OR Apache-2.0

//! How entries to EL2 are hardened against what a VM taught the branch
//! predictors of a CPU.
//!
//! Two things can be taught: where indirect branches go (CVE-2017-5715,
//! "Spectre v2"), and the history of branches by which a target is chosen among
//! those of EL2 itself (CVE-2022-23960, "Spectre-BHB"). What helps depends on the
//! CPU and is decided by [`Entry::choose`], once for each CPU, from its ID
//! registers and what the firmware says; the vectors do it (`vectors.S`). Arm's
//! "Cache Speculation Side-channels" and "Spectre-BHB" white papers are the source,
//! and for the lists of CPUs Linux's `arch/arm64/kernel/proton-pack.c`.

use escrow_abi::errata::{Hardening, OPEN};
use escrow_abi::psci::{NOT_SUPPORTED, SUCCESS};

use crate::errata::models::*;
use crate::errata::{Midr, Model};

/// SMCCC_ARCH_WORKAROUND_1: invalidates branch predictors (CVE-2017-5715).
pub const WORKAROUND_1: u32 = 0x8000_8000;
/// SMCCC_ARCH_WORKAROUND_2: switches the mitigation of CVE-2018-3639 on (1) or off
/// (0), on the calling CPU.
pub const WORKAROUND_2: u32 = 0x8000_7fff;
/// SMCCC_ARCH_WORKAROUND_3: what [`WORKAROUND_1`] does, and the same for branch history
/// (CVE-2022-23960).
pub const WORKAROUND_3: u32 = 0x8000_3fff;

/// SMCCC_ARCH_WORKAROUND_4: says that a data-dependent prefetcher is off (CVE-2024-7881).
pub const WORKAROUND_4: u32 = 0x8000_0004;

/// SMCCC_ARCH_FEATURES: the workaround is there, and this CPU does not need it.
const UNAFFECTED: u64 = 1;
/// SMCCC_ARCH_FEATURES about [`WORKAROUND_2`]: no CPU needs anybody to switch it.
const NOT_REQUIRED: u64 = -2i64 as u64;

/// What the firmware answers to SMCCC_ARCH_FEATURES about a workaround, on the
/// CPU that asks (DEN0028, "SMCCC_ARCH_WORKAROUND_1").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workaround {
    /// It has the call, and the CPU needs it.
    Needed,
    /// It has the call, and this CPU does not need it.
    NotNeeded,
    /// It does not know the call.
    Unknown,
}

impl Workaround {
    /// From the answer.
    pub const fn of(answer: i32) -> Workaround {
        match answer {
            0 => Workaround::Needed,
            1 => Workaround::NotNeeded,
            _ => Workaround::Unknown,
        }
    }
}

/// What a CPU and its firmware say of themselves: what [`Entry::choose`] depends on.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// `MIDR_EL1`.
    pub midr: Midr,
    /// `ID_AA64PFR0_EL1.CSV2`: 1 and more says that branch targets that are trained at
    /// one exception level or VM do not act on another.
    pub csv2: u8,
    /// `ID_AA64ISAR2_EL1.CLRBHB`.
    pub clrbhb: bool,
    /// `ID_AA64MMFR1_EL1.ECBHB`: exceptions clear the branch history.
    pub ecbhb: bool,
    /// The firmware's answer about [`WORKAROUND_1`].
    pub workaround_1: Workaround,
    /// The firmware's answer about [`WORKAROUND_3`].
    pub workaround_3: Workaround,
}

/// What an entry to EL2 does before its first indirect branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    Plain,
    /// `CLRBHB` and `ISB`.
    ClearHistory,
    /// A loop of so many taken branches, and barriers.
    Loop(u8),
    /// A call to the firmware with this function identifier.
    Firmware(u32),
}

/// CPUs whose branch targets cannot be trained from elsewhere, though they do not
/// say so (`CSV2` 0).
const TARGETS_SAFE: &[Model] = &[
    CORTEX_A35,
    CORTEX_A53,
    CORTEX_A55,
    BRAHMA_B53,
    TSV110,
    KRYO_2XX_SILVER,
    KRYO_3XX_SILVER,
    KRYO_4XX_SILVER,
];

/// CPUs on which a VM's branch history does not influence predictions at EL2.
const HISTORY_SAFE: &[Model] = &[
    CORTEX_A35,
    CORTEX_A53,
    CORTEX_A55,
    CORTEX_A510,
    CORTEX_A520,
    BRAHMA_B53,
    KRYO_2XX_SILVER,
    KRYO_3XX_SILVER,
    KRYO_4XX_SILVER,
];

/// How many branches overwrite the history of a CPU.
const HISTORY_LENGTH: &[(u8, &[Model])] = &[
    (8, &[CORTEX_A57, CORTEX_A72]),
    (11, &[AMPERE_1]),
    (24, &[CORTEX_A76, CORTEX_A76AE, CORTEX_A77, NEOVERSE_N1, KRYO_4XX_GOLD]),
    (
        32,
        &[
            CORTEX_A78,
            CORTEX_A78AE,
            CORTEX_A78C,
            CORTEX_X1,
            CORTEX_X1C,
            CORTEX_A710,
            CORTEX_X2,
            NEOVERSE_N2,
            COBALT_100,
            NEOVERSE_V1,
            TSV110,
        ],
    ),
    (38, &[CORTEX_A715, CORTEX_A720]),
    (132, &[CORTEX_X3, NEOVERSE_V2]),
];

impl Entry {
    /// What a CPU needs, and what stays open for want of the firmware's help.
    pub fn choose(cpu: &Cpu) -> (Entry, Hardening) {
        let model = cpu.midr.model();
        if cpu.csv2 == 0 && !TARGETS_SAFE.contains(&model) {
            // The call for branch history covers branch targets too (DEN0028,
            // "SMCCC_ARCH_WORKAROUND_3"), and on CPUs that need a call for their targets, that
            // one covers the history.
            match (cpu.workaround_3, cpu.workaround_1) {
                (Workaround::Needed, _) => return firmware(WORKAROUND_3),
                (_, Workaround::Needed) => return firmware(WORKAROUND_1),
                // The firmware's answer counts more than the table.
                (_, Workaround::NotNeeded) => {}
                (_, Workaround::Unknown) => {
                    // Nothing is known for branch targets, but the history can be cleared.
                    return (Entry::history(cpu).0, Hardening::OpenTargets);
                }
            }
        }
        Entry::history(cpu)
    }

    /// What a CPU needs for its branch history.
    fn history(cpu: &Cpu) -> (Entry, Hardening) {
        let model = cpu.midr.model();
        // CSV2 3: the history of another context has no influence. ECBHB: the exception
        // that came here has cleared it.
        if cpu.csv2 >= 3 || cpu.ecbhb || HISTORY_SAFE.contains(&model) {
            return (Entry::Plain, Hardening::NotNeeded);
        }
        if cpu.clrbhb {
            return (Entry::ClearHistory, Hardening::ClearHistory);
        }
        if let Some((length, _)) = HISTORY_LENGTH.iter().find(|(_, cpus)| cpus.contains(&model)) {
            return (Entry::Loop(*length), Hardening::Loop);
        }
        match cpu.workaround_3 {
            Workaround::Needed => firmware(WORKAROUND_3),
            Workaround::NotNeeded => (Entry::Plain, Hardening::NotNeeded),
            Workaround::Unknown => (Entry::Plain, Hardening::OpenHistory),
        }
    }
}

/// What a guest is told about a workaround, by SMCCC_ARCH_FEATURES.
///
/// The guest's call is an entry to EL2, and those are hardened: that is all that the
/// call has to do. Guests move between CPUs, so they are told what the CPUs need of
/// which any needs most. Nothing is promised where something is open.
pub fn guest_features(hardening: u64, function: u32) -> u64 {
    let any = |these: &[Hardening]| these.iter().any(|one| hardening & one.bit() != 0);
    use Hardening::{ClearHistory, Firmware, Loop};
    let needed = match function {
        WORKAROUND_1 => any(&[Firmware]),
        WORKAROUND_3 => any(&[Firmware, Loop, ClearHistory]),
        _ => return NOT_SUPPORTED,
    };
    match (hardening & OPEN != 0, needed) {
        (true, _) => NOT_SUPPORTED,
        (_, true) => SUCCESS,
        (_, false) => UNAFFECTED,
    }
}

/// What a guest's call of a workaround returns.
pub fn guest_call(hardening: u64, function: u32) -> u64 {
    if guest_features(hardening, function) == NOT_SUPPORTED { NOT_SUPPORTED } else { SUCCESS }
}

/// What the host is told about [`WORKAROUND_2`], by what the firmware answers to
/// SMCCC_ARCH_FEATURES, and what its call of it answers: where there is anything to
/// switch on, EL2 has done so for good.
pub fn store_bypass(answer: i32, asked: bool) -> u64 {
    match (answer < 0, asked) {
        (true, true) => answer as u64,
        (true, false) => NOT_SUPPORTED,
        (false, true) => NOT_REQUIRED,
        (false, false) => SUCCESS,
    }
}

fn firmware(function: u32) -> (Entry, Hardening) {
    (Entry::Firmware(function), Hardening::Firmware)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU that says nothing good of itself, over firmware that knows nothing.
    fn cpu(midr: u32) -> Cpu {
        Cpu {
            midr: Midr(midr),
            csv2: 0,
            clrbhb: false,
            ecbhb: false,
            workaround_1: Workaround::Unknown,
            workaround_3: Workaround::Unknown,
        }
    }

    const A53: u32 = 0x410f_d034;
    const A57: u32 = 0x411f_d070;
    const A72: u32 = 0x410f_d083;
    const A73: u32 = 0x410f_d090;
    const A76: u32 = 0x414f_d0b1;
    const X3: u32 = 0x411f_d4e0;
    const NOBODY: u32 = 0x000f_0510;

    #[test]
    fn in_order_cpus_need_nothing() {
        assert_eq!(Entry::choose(&cpu(A53)), (Entry::Plain, Hardening::NotNeeded));
    }

    #[test]
    fn cpus_that_say_so_need_nothing() {
        let says = [Cpu { csv2: 3, ..cpu(NOBODY) }, Cpu { csv2: 1, ecbhb: true, ..cpu(A76) }];
        for cpu in says {
            assert_eq!(Entry::choose(&cpu), (Entry::Plain, Hardening::NotNeeded), "{cpu:?}");
        }
        // 2 is FEAT_CSV2_2, which says nothing of the history.
        let cpu = Cpu { csv2: 2, ..cpu(NOBODY) };
        assert_eq!(Entry::choose(&cpu), (Entry::Plain, Hardening::OpenHistory));
    }

    #[test]
    fn history_is_overwritten_or_cleared() {
        let csv2 = |midr| Cpu { csv2: 1, ..cpu(midr) };
        assert_eq!(Entry::choose(&csv2(A76)), (Entry::Loop(24), Hardening::Loop));
        assert_eq!(Entry::choose(&csv2(X3)), (Entry::Loop(132), Hardening::Loop));
        // A72 r1 has CSV2 and a history.
        assert_eq!(Entry::choose(&csv2(A72)), (Entry::Loop(8), Hardening::Loop));
        let clears = Cpu { clrbhb: true, ..csv2(A76) };
        assert_eq!(Entry::choose(&clears), (Entry::ClearHistory, Hardening::ClearHistory));
    }

    #[test]
    fn a_cpu_on_no_list_asks_the_firmware() {
        let csv2 = Cpu { csv2: 1, ..cpu(NOBODY) };
        let with = |workaround_3| Entry::choose(&Cpu { workaround_3, ..csv2 });
        assert_eq!(with(Workaround::Needed), (Entry::Firmware(WORKAROUND_3), Hardening::Firmware));
        assert_eq!(with(Workaround::NotNeeded), (Entry::Plain, Hardening::NotNeeded));
        assert_eq!(with(Workaround::Unknown), (Entry::Plain, Hardening::OpenHistory));
    }

    #[test]
    fn branch_targets_are_the_firmware_s() {
        use Workaround::{Needed, NotNeeded, Unknown};
        let with = |midr, workaround_1, workaround_3| {
            Entry::choose(&Cpu { workaround_1, workaround_3, ..cpu(midr) })
        };
        assert_eq!(with(A73, Needed, Needed), (Entry::Firmware(WORKAROUND_3), Hardening::Firmware));
        assert_eq!(
            with(A57, Needed, Unknown),
            (Entry::Firmware(WORKAROUND_1), Hardening::Firmware)
        );
        assert_eq!(
            with(A57, Needed, NotNeeded),
            (Entry::Firmware(WORKAROUND_1), Hardening::Firmware)
        );
        // The firmware says that branch targets are safe, so only the history is cleared.
        assert_eq!(with(A72, NotNeeded, Unknown), (Entry::Loop(8), Hardening::Loop));
        // The firmware knows no call: the history is cleared, and open targets are reported.
        assert_eq!(with(A57, Unknown, Unknown), (Entry::Loop(8), Hardening::OpenTargets));
        assert_eq!(with(A73, Unknown, Unknown), (Entry::Plain, Hardening::OpenTargets));
    }

    #[test]
    fn guests_are_told_what_is_done() {
        use Hardening::{ClearHistory, Firmware, Loop, NotNeeded, OpenHistory, OpenTargets};
        let told = |all: &[Hardening], function| {
            guest_features(all.iter().fold(0, |word, one| word | one.bit()), function)
        };
        let both = |all: &[Hardening]| [told(all, WORKAROUND_1), told(all, WORKAROUND_3)];
        assert_eq!(both(&[NotNeeded]), [UNAFFECTED, UNAFFECTED]);
        assert_eq!(both(&[NotNeeded, Loop]), [UNAFFECTED, SUCCESS]);
        assert_eq!(both(&[ClearHistory]), [UNAFFECTED, SUCCESS]);
        assert_eq!(both(&[Firmware, Loop]), [SUCCESS, SUCCESS]);
        for open in [OpenTargets, OpenHistory] {
            assert_eq!(both(&[NotNeeded, Firmware, open]), [NOT_SUPPORTED; 2], "{open:?}");
        }
        // The answer for branches says nothing of stores, or of later calls.
        assert_eq!(told(&[NotNeeded], WORKAROUND_2), NOT_SUPPORTED);
        assert_eq!(told(&[NotNeeded], WORKAROUND_4), NOT_SUPPORTED);
        assert_eq!(guest_call(Loop.bit(), WORKAROUND_3), SUCCESS);
        assert_eq!(guest_call(NotNeeded.bit(), WORKAROUND_1), SUCCESS);
        assert_eq!(guest_call(OpenTargets.bit(), WORKAROUND_1), NOT_SUPPORTED);
        assert_eq!(guest_call(NotNeeded.bit(), WORKAROUND_2), NOT_SUPPORTED);
    }

    #[test]
    fn the_host_has_no_switch_for_stores() {
        // Both answers mean that the workaround is on for good or not needed.
        for answer in [0, 1] {
            assert_eq!(store_bypass(answer, true), NOT_REQUIRED);
            assert_eq!(store_bypass(answer, false), SUCCESS);
        }
        assert_eq!(store_bypass(-2, true), NOT_REQUIRED);
        assert_eq!(store_bypass(-1, true), NOT_SUPPORTED);
        assert_eq!([-2, -1].map(|answer| store_bypass(answer, false)), [NOT_SUPPORTED; 2]);
    }

    #[test]
    fn answers_of_the_firmware() {
        assert_eq!(Workaround::of(0), Workaround::Needed);
        assert_eq!(Workaround::of(1), Workaround::NotNeeded);
        for unknown in [-1, -2, 2, i32::MIN] {
            assert_eq!(Workaround::of(unknown), Workaround::Unknown);
        }
    }
}
