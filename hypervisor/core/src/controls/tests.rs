// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table against the architecture.
//!
//! [`REGISTERS`] says of registers and instructions, not of features, when a CPU
//! has them and which bit of EL2's traps them. It was written from the
//! descriptions of the registers, not from the table, and it is what the
//! controls are held against.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::fields::*;
use super::ids::{Field, Kind};
use super::registers::{Reg, hcr};
use super::*;
use crate::errata::Midr;

/// When a bit traps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Set,
    Clear,
}

/// Something that EL1 or EL0 can name in an instruction.
struct Named {
    name: &'static str,
    /// The CPU has it if one of these fields has this value or a later one.
    with: &'static [(Field, u64)],
    /// One of these bits, set or clear, traps it.
    traps: &'static [(Reg, u32, When)],
}

macro_rules! registers {
    ($($name:literal [$($field:ident $from:literal),+] $($reg:ident $bit:literal $when:ident),+;)*) => {
        &[$(Named {
            name: $name,
            with: &[$(($field, $from)),+],
            traps: &[$((Reg::$reg, $bit, When::$when)),+],
        }),*]
    };
}

const REGISTERS: &[Named] = registers! {
    "V0" [PFR0_FP 0] Cptr 10 Set;
    "ZCR_EL1" [PFR0_SVE 1] Cptr 8 Set;
    "SVCR" [PFR1_SME 1] Cptr 12 Set;
    "TPIDR2_EL0, read" [PFR1_SME 1] Hfgrtr 55 Clear;
    "TPIDR2_EL0, written" [PFR1_SME 1] Hfgwtr 55 Clear;
    "SMPRI_EL1, read" [PFR1_SME 1] Hfgrtr 54 Clear;
    "SMPRI_EL1, written" [PFR1_SME 1] Hfgwtr 54 Clear;
    "APIAKeyLo_EL1" [ISAR1_APA 1, ISAR1_API 1, ISAR2_APA3 1] Hcr 40 Clear;
    "PACIA" [ISAR1_APA 1, ISAR1_API 1, ISAR2_APA3 1] Hcr 41 Clear;
    "GCR_EL1" [PFR1_MTE 2] Hcr 56 Clear;
    "GMID_EL1" [PFR1_MTE 2] Hcr 58 Set;
    "SCXTNUM_EL1" [PFR0_CSV2 2, PFR1_CSV2_FRAC 2] Hcr 53 Clear;
    "LORC_EL1" [MMFR1_LO 1] Hcr 35 Set;
    "ERRSELR_EL1" [PFR0_RAS 1] Hcr 36 Set;
    "ERXGSR_EL1" [PFR0_RAS 3] Hfgrtr2 1 Clear;
    "PFAR_EL1, read" [PFR1_PFAR 1] Hfgrtr2 0 Clear;
    "PFAR_EL1, written" [PFR1_PFAR 1] Hfgwtr2 0 Clear;
    "MPAM0_EL1" [PFR0_MPAM 1, PFR1_MPAM_FRAC 1] Mpam2 49 Set;
    "MPAM1_EL1" [PFR0_MPAM 1, PFR1_MPAM_FRAC 1] Mpam2 48 Set;
    "MPAMSM_EL1" [PFR0_MPAM 1, PFR1_MPAM_FRAC 1] Mpam2 50 Clear;
    "AMCR_EL0" [PFR0_AMU 1] Cptr 30 Set;
    "ICC_PMR_EL1" [PFR0_GIC 1] IchHcr 10 Set;
    "ICC_IAR0_EL1" [PFR0_GIC 1] IchHcr 11 Set;
    "ICC_IAR1_EL1" [PFR0_GIC 1] IchHcr 12 Set;
    "ICC_SRE_EL1" [PFR0_GIC 1] IccSre 3 Clear;
    "ICC_CR0_EL1, read" [PFR2_GCIE 1] IchHfgrtr 2 Clear;
    "ICC_CR0_EL1, written" [PFR2_GCIE 1] IchHfgwtr 2 Clear;
    "ICC_PPI_ENABLER0_EL1" [PFR2_GCIE 1] IchHfgrtr 17 Clear;
    "GICR CDIA" [PFR2_GCIE 1] IchHfgitr 9 Clear;
    "GIC CDEN" [PFR2_GCIE 1] IchHfgitr 0 Clear;
    "GCSCR_EL1, read" [PFR1_GCS 1] Hfgrtr 53 Clear;
    "GCSCR_EL1, written" [PFR1_GCS 1] Hfgwtr 53 Clear;
    "GCSPR_EL0, read" [PFR1_GCS 1] Hfgrtr 52 Clear;
    "GCSPR_EL0, written" [PFR1_GCS 1] Hfgwtr 52 Clear;
    "GCSPUSHM" [PFR1_GCS 1] Hfgitr 57 Clear;
    "GCSSTR" [PFR1_GCS 1] Hfgitr 58 Clear;
    "GCSPOPX" [PFR1_GCS 1] Hfgitr 59 Clear;
    "guarded control stack" [PFR1_GCS 1] Hcrx 22 Clear;
    "RCWMASK_EL1, read" [PFR1_THE 1] Hfgrtr 56 Clear;
    "RCWMASK_EL1, written" [PFR1_THE 1] Hfgwtr 56 Clear;
    "RCWSMASK_EL1, read" [PFR1_THE 1] Hfgrtr2 2 Clear;
    "RCWSMASK_EL1, written" [PFR1_THE 1] Hfgwtr2 2 Clear;
    "FPMR" [PFR2_FPMR 1] Hcrx 23 Clear;
    "LD64B" [ISAR1_LS64 1] Hcrx 1 Clear;
    "ST64BV" [ISAR1_LS64 2] Hcrx 2 Clear;
    "ST64BV0" [ISAR1_LS64 3] Hcrx 0 Clear;
    "ACCDATA_EL1, read" [ISAR1_LS64 3] Hfgrtr 50 Clear;
    "ACCDATA_EL1, written" [ISAR1_LS64 3] Hfgwtr 50 Clear;
    "CPYP" [ISAR2_MOPS 1] Hcrx 11 Clear;
    "TTBR0_EL1 as 128 bits" [ISAR2_SYSREG_128 1, MMFR3_D128 1] Hcrx 17 Clear;
    "PACM" [ISAR3_PACM 1] Hcrx 24 Clear;
    "TCR2_EL1" [MMFR3_TCRX 1] Hcrx 14 Clear;
    "SCTLR2_EL1" [MMFR3_SCTLRX 1] Hcrx 15 Clear;
    "PIRE0_EL1, read" [MMFR3_S1PIE 1] Hfgrtr 57 Clear;
    "PIRE0_EL1, written" [MMFR3_S1PIE 1] Hfgwtr 57 Clear;
    "PIR_EL1, read" [MMFR3_S1PIE 1] Hfgrtr 58 Clear;
    "PIR_EL1, written" [MMFR3_S1PIE 1] Hfgwtr 58 Clear;
    "POR_EL0, read" [MMFR3_S1POE 1] Hfgrtr 59 Clear;
    "POR_EL0, written" [MMFR3_S1POE 1] Hfgwtr 59 Clear;
    "POR_EL1, read" [MMFR3_S1POE 1] Hfgrtr 60 Clear;
    "POR_EL1, written" [MMFR3_S1POE 1] Hfgwtr 60 Clear;
    "S2POR_EL1, read" [MMFR3_S2POE 1] Hfgrtr 61 Clear;
    "S2POR_EL1, written" [MMFR3_S2POE 1] Hfgwtr 61 Clear;
    "MAIR2_EL1, read" [MMFR3_AIE 1] Hfgrtr 62 Clear;
    "MAIR2_EL1, written" [MMFR3_AIE 1] Hfgwtr 62 Clear;
    "AMAIR2_EL1, read" [MMFR3_AIE 1] Hfgrtr 63 Clear;
    "AMAIR2_EL1, written" [MMFR3_AIE 1] Hfgwtr 63 Clear;
    "DC CIVAPS" [MMFR4_POPS 1] Hfgitr2 1 Clear;
    "SCTLRMASK_EL1, read" [MMFR4_SRMASK 1] Hfgrtr2 4 Clear;
    "SCTLRMASK_EL1, written" [MMFR4_SRMASK 1] Hfgwtr2 4 Clear;
    "CPACRMASK_EL1, read" [MMFR4_SRMASK 1] Hfgrtr2 3 Clear;
    "ACTLRALIAS_EL1, written" [MMFR4_SRMASK 1] Hfgwtr2 14 Clear;
    "TRCPRGCTLR" [DFR0_TRACEVER 1] Cptr 20 Set;
    "PMCR_EL0" [DFR0_PMUVER 1] Mdcr 5 Set, Mdcr 6 Set;
    "PMCCNTR_EL0" [DFR0_PMUVER 1] Mdcr 6 Set;
    "PMUACR_EL1, read" [DFR0_PMUVER 9] Hdfgrtr2 4 Clear;
    "PMUACR_EL1, written" [DFR0_PMUVER 9] Hdfgwtr2 4 Clear;
    "PMZR_EL0" [DFR0_PMUVER 9] Hdfgwtr2 21 Clear;
    "PMICNTR_EL0, read" [DFR1_PMICNTR 1] Hdfgrtr2 2 Clear;
    "PMICFILTR_EL0, written" [DFR1_PMICNTR 1] Hdfgwtr2 3 Clear;
    "PMSSCR_EL1" [DFR0_PMSS 1] Hdfgrtr2 7 Clear;
    "PMCCNTSVR_EL1" [DFR0_PMSS 1] Hdfgrtr2 6 Clear;
    "PMECR_EL1" [DFR1_EBEP 1] Hdfgrtr2 0 Clear;
    "PMIAR_EL1" [DFR0_SEBEP 1] Hdfgwtr2 1 Clear;
    "SPMSELR_EL0, read" [DFR1_SPMU 1] Mdcr 15 Clear, Hdfgrtr2 10 Clear;
    "SPMSELR_EL0, written" [DFR1_SPMU 1] Mdcr 15 Clear, Hdfgwtr2 10 Clear;
    "SPMDEVAFF_EL1" [DFR1_SPMU 1] Mdcr 15 Clear, Hdfgrtr2 18 Clear;
    "SPMEVCNTR0_EL0, written" [DFR1_SPMU 1] Mdcr 15 Clear, Hdfgwtr2 8 Clear;
    "PMSCR_EL1" [DFR0_PMSVER 1] Mdcr 14 Set;
    "PMBLIMITR_EL1" [DFR0_PMSVER 1] Mdcr 12 Clear;
    "PMSNEVFR_EL1, read" [DFR0_PMSVER 3] Hdfgrtr 62 Clear;
    "PMSNEVFR_EL1, written" [DFR0_PMSVER 3] Hdfgwtr 62 Clear;
    "PMBMAR_EL1" [DFR2_SPE_NVM 1] Hdfgrtr2 24 Clear;
    "TRFCR_EL1" [DFR0_TRACEFILT 1] Mdcr 19 Set;
    "TRBLIMITR_EL1" [DFR0_TRACEBUFFER 1] Mdcr 24 Clear;
    "TRCITECR_EL1" [DFR1_ITE 1] Hdfgrtr2 20 Clear;
    "BRBIDR0_EL1" [DFR0_BRBE 1] Hdfgrtr 59 Clear;
    "BRBCR_EL1, read" [DFR0_BRBE 1] Hdfgrtr 60 Clear;
    "BRBCR_EL1, written" [DFR0_BRBE 1] Hdfgwtr 60 Clear;
    "BRBINF0_EL1" [DFR0_BRBE 1] Hdfgrtr 61 Clear;
    "BRBINFINJ_EL1" [DFR0_BRBE 1] Hdfgwtr 61 Clear;
    "BRB INJ" [DFR0_BRBE 1] Hfgitr 55 Clear;
    "BRB IALL" [DFR0_BRBE 1] Hfgitr 56 Clear;
    "MDSELR_EL1, read" [DFR0_DEBUGVER 11] Hdfgrtr2 5 Clear;
    "MDSELR_EL1, written" [DFR0_DEBUGVER 11] Hdfgwtr2 5 Clear;
    "MDSTEPOP_EL1" [DFR2_STEP 1] Mdcr 50 Clear, Hdfgrtr2 23 Clear;
};

/// Trapped at first, though shown: what a guest gets when it first uses it.
const ON_DEMAND: [&str; 3] = ["V0", "APIAKeyLo_EL1", "PACIA"];

impl Named {
    fn is_in(&self, ids: &Ids) -> bool {
        self.with.iter().any(|(field, from)| ids.has(field, *from))
    }

    fn is_trapped(&self, controls: &Controls) -> bool {
        let hit = |&(register, bit, when): &(Reg, u32, When)| {
            (controls.register(register) >> bit & 1 != 0) == (when == When::Set)
        };
        self.traps.iter().any(hit)
    }
}

fn cpu(ids: Ids) -> Cpu {
    Cpu { ids, midr: Midr(0), revidr: 0, ctr: 0x8444_c004, dczid: 4, event_counters: 6 }
}

/// As the architecture has it: the traps of a feature come with it.
fn as_architected(mut ids: Ids) -> Ids {
    ids.set(&PFR0_EL1, ids.get(&PFR0_EL1).max(1));
    ids.set(&PFR0_GIC, ids.get(&PFR0_GIC).max(1));
    ids.set(&PFR0_ADVSIMD, ids.get(&PFR0_FP));
    if [ISAR1_APA, ISAR1_API, ISAR2_APA3].iter().all(|field| ids.get(field) == 0) {
        for field in [ISAR1_GPA, ISAR1_GPI, ISAR2_GPA3] {
            ids.set(&field, 0);
        }
    }
    for named in REGISTERS {
        if !named.is_in(&ids) {
            continue;
        }
        for &(register, ..) in named.traps {
            let (field, least) = match register {
                Reg::Hcrx => (MMFR1_HCX, 1),
                Reg::Hfgrtr | Reg::Hfgwtr | Reg::Hfgitr | Reg::Hdfgrtr | Reg::Hdfgwtr => {
                    (MMFR0_FGT, 1)
                }
                Reg::Hfgrtr2 | Reg::Hfgwtr2 | Reg::Hfgitr2 | Reg::Hdfgrtr2 | Reg::Hdfgwtr2 => {
                    (MMFR0_FGT, 2)
                }
                _ => continue,
            };
            ids.set(&field, ids.get(&field).max(least));
        }
    }
    ids
}

/// Hidden exactly where trapped, for both parties, on each of these CPUs.
fn check(cpus: &[Cpu]) -> Result<(), String> {
    let first = Promise::of(&cpus[0]);
    let promise = cpus[1..].iter().fold(first, |promise, cpu| promise.and(cpu));
    for cpu in cpus {
        promise.is_kept_by(cpu).or_else(|error| match error {
            Broken::Missing(_) => Ok(()),
            error => Err(format!("a CPU does not keep what it was asked about: {error}")),
        })?;
        let host = Controls::host(cpu, &promise);
        let guest = Controls::guest(cpu, &promise);
        for named in REGISTERS.iter().filter(|named| named.is_in(&cpu.ids)) {
            let name = named.name;
            if named.is_trapped(&host) == named.is_in(&promise.host) {
                return Err(format!("host, {name}: trapped {}", named.is_trapped(&host)));
            }
            let trapped = named.is_trapped(&guest);
            if trapped == named.is_in(&promise.guest) && !(trapped && ON_DEMAND.contains(&name)) {
                return Err(format!("guest, {name}: trapped {trapped}"));
            }
        }
        // ID registers trap if, and only if, the host must not see the CPU's values.
        let differs = !cpu.ids.same_space(&promise.host);
        if (host.hcr & hcr::TID3 != 0) != differs {
            return Err("the ID registers are trapped where they need not be, or not".into());
        }
        for register in Reg::ALL.into_iter().filter(|register| !register.is_in(&cpu.ids)) {
            if (host.register(register), guest.register(register)) != (0, 0) {
                return Err(format!("{} is written", register.name()));
            }
        }
    }
    for (el1, seen) in [(El1::Host, &promise.host), (El1::Guest, &promise.guest)] {
        for feature in FEATURES.iter().filter(|feature| !feature.treatment(el1).shows()) {
            for (field, from) in feature.shown {
                // If the least value is hidden, so is the whole field.
                let whole = field.rank(*from) <= 0;
                if if whole { seen.get(field) != field.absent } else { seen.has(field, *from) } {
                    return Err(format!("{el1:?} sees {}", feature.name));
                }
            }
        }
        for crm in 4..8 {
            for op2 in 0..8 {
                let known = ALL.iter().filter(|f| f.register == Register::Space(crm, op2));
                let mask = known.fold(0, |mask, field| mask | field.mask());
                if seen.register(crm, op2) & !mask != 0 {
                    return Err(format!("{el1:?} sees what nobody knows in {crm}, {op2}"));
                }
            }
        }
        for field in ALL.iter().filter(|f| matches!(f.register, Register::Space(..))) {
            if field.rank(seen.get(field)) > field.rank(field.newest) {
                return Err(format!("{el1:?} sees a {} from the future", field.name));
            }
        }
    }
    Ok(())
}

/// Registers as CPUs have them: small numbers, zeros, all ones, noise.
fn any_ids() -> impl Strategy<Value = Ids> {
    let nibble = prop_oneof![4 => Just(0u64), 4 => 0..4u64, 1 => 0..16u64];
    let register = prop_oneof![
        8 => prop::collection::vec(nibble, 16).prop_map(|nibbles| {
            nibbles.iter().enumerate().fold(0, |all, (at, value)| all | value << (4 * at))
        }),
        2 => Just(0u64),
        1 => any::<u64>(),
    ];
    (prop::collection::vec(register, 32), any::<[u64; 5]>()).prop_map(|(space, other)| {
        let space = |crm: u8, op2: u8| match crm {
            4.. => space[(crm as usize - 4) * 8 + op2 as usize],
            _ => 0,
        };
        as_architected(Ids::new(space, |which| other[which as usize]))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn hidden_exactly_where_trapped(ids in any_ids()) {
        prop_assert_eq!(check(&[cpu(ids)]), Ok(()));
    }

    #[test]
    fn and_on_cpus_that_differ(a in any_ids(), b in any_ids(), c in any_ids()) {
        prop_assert_eq!(check(&[cpu(a), cpu(b), cpu(c)]), Ok(()));
    }

    #[test]
    fn what_cpus_have_in_common_does_not_depend_on_their_order(a in any_ids(), b in any_ids()) {
        prop_assert_eq!(a.common(&b), b.common(&a));
        prop_assert_eq!(a.common(&a), a);
        let both = a.common(&b);
        prop_assert_eq!(both.common(&a), both);
    }
}

/// A CPU with nothing but what Escrow needs, and with all of the traps.
fn bases() -> [Ids; 2] {
    let plain = as_architected(Ids::new(|_, _| 0, |_| 0));
    let mut trapping = plain;
    trapping.set(&MMFR0_FGT, 2);
    trapping.set(&MMFR1_HCX, 1);
    [plain, trapping]
}

#[test]
fn every_value_of_every_field_and_every_pair_of_a_row() {
    // No control is in two rows (see below), so the fields of one row decide about
    // its controls.
    for base in bases() {
        for feature in FEATURES {
            for (first, _) in feature.shown {
                for a in values(first) {
                    let mut ids = base;
                    ids.set(first, a);
                    assert_eq!(check(&[cpu(as_architected(ids))]), Ok(()), "{} {a}", first.name);
                    for (second, _) in feature.shown.iter().take(3) {
                        for b in values(second) {
                            ids.set(second, b);
                            let found = check(&[cpu(as_architected(ids))]);
                            assert_eq!(found, Ok(()), "{} {a} {} {b}", first.name, second.name);
                        }
                    }
                }
            }
        }
    }
}

fn values(field: &Field) -> impl Iterator<Item = u64> + use<> {
    let most = u64::MAX >> (64 - field.width);
    (0..=most.min(15)).chain([most])
}

#[test]
fn a_control_has_one_row() {
    let mut taken = BTreeSet::new();
    for feature in FEATURES {
        for control in feature.controls {
            assert_eq!(control.open & !control.mask, 0, "{}", feature.name);
            assert_eq!(control.closed & !control.mask, 0, "{}", feature.name);
            assert_ne!(control.open, control.closed, "{}", feature.name);
            for bit in (0..64).filter(|bit| control.mask >> bit & 1 != 0) {
                let new = taken.insert((control.register.name(), bit));
                assert!(new, "{}: {} bit {bit}", feature.name, control.register.name());
            }
        }
    }
}

#[test]
fn every_field_has_a_row_and_every_trap_its_control() {
    for field in ALL.iter().filter(|field| matches!(field.register, Register::Space(..))) {
        let rows = FEATURES.iter().filter(|row| row.shown.iter().any(|(f, _)| f == field));
        assert_ne!(rows.count(), 0, "{} has no row", field.name);
    }
    for feature in FEATURES {
        for el1 in [El1::Host, El1::Guest] {
            let treatment = feature.treatment(el1);
            if treatment == Treatment::Trapped {
                assert!(!feature.controls.is_empty(), "{} is not trapped", feature.name);
            }
            if treatment == Treatment::Hidden {
                assert!(feature.controls.is_empty(), "{} has traps", feature.name);
            }
        }
    }
    // Each bit that traps when it is clear is in a row: a register that is in none stays
    // closed.
    for named in REGISTERS {
        for &(register, bit, _) in named.traps {
            let has = |row: &&Feature| {
                row.controls.iter().any(|c| c.register == register && c.mask >> bit & 1 != 0)
            };
            let alone = register == Reg::Cptr && bit == 20;
            assert!(alone || FEATURES.iter().any(|row| has(&row)), "{}", named.name);
        }
    }
}

#[test]
fn switched_exactly_where_open() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../aarch64/src");
    let code: String = ["switch.S", "fp.S", "switch.rs", "debug.rs"]
        .iter()
        .map(|file| fs::read_to_string(sources.join(file)).expect("it is there").to_lowercase())
        .collect();
    for feature in FEATURES {
        let switched = matches!(feature.guest, Treatment::Switched | Treatment::OnDemand);
        assert_eq!(switched, !feature.state.is_empty(), "{}", feature.name);
        for register in feature.state {
            assert!(code.contains(register), "{}: {register} is not switched", feature.name);
        }
        // No feature of the host is switched: its state stays in the CPU where guests do not
        // have the feature.
        assert!(!matches!(feature.host, Treatment::Switched | Treatment::OnDemand));
    }
}

#[test]
fn a_cpu_of_the_future_is_seen_as_one_of_today() {
    let future = as_architected(Ids::new(|_, _| 0x7777_7777_7777_7777, |_| 0));
    let cpu = cpu(future);
    let promise = Promise::of(&cpu);
    assert_eq!(check(&[cpu]), Ok(()));
    let host = Controls::host(&cpu, &promise);
    assert_ne!(host.hcr & hcr::TID3, 0);
    assert_eq!(promise.host.get(&PFR0_SVE), 1);
    assert_eq!(promise.host.get(&DFR0_PMUVER), 7);
    // Bits 20 to 23 of ID_AA64PFR1_EL1, and all of what has no name, are gone.
    assert_eq!(promise.host.register(4, 1) >> 20 & 0xf, 0);
    assert_eq!(promise.host.register(4, 3), 0);
    // Registers that no row opens stay closed for guests.
    let guest = Controls::guest(&cpu, &promise);
    assert_eq!((guest.hfgrtr2, guest.hfgwtr2, guest.hfgitr2), (0, 0, 0));
    assert_eq!((guest.hdfgrtr2, guest.hdfgwtr2), (0, 0));
    assert_eq!((guest.hfgrtr, guest.hfgwtr, guest.hfgitr), (0, 0, 0));
}

/// ID registers as Linux prints them: PFR0, PFR1, DFR0, ISAR0, ISAR1, MMFR0,
/// MMFR1, MMFR2.
fn known(values: [u64; 8]) -> Cpu {
    let [pfr0, pfr1, dfr0, isar0, isar1, mmfr0, mmfr1, mmfr2] = values;
    let space = move |crm, op2| match (crm, op2) {
        (4, 0) => pfr0,
        (4, 1) => pfr1,
        (5, 0) => dfr0,
        (6, 0) => isar0,
        (6, 1) => isar1,
        (7, 0) => mmfr0,
        (7, 1) => mmfr1,
        (7, 2) => mmfr2,
        _ => 0,
    };
    cpu(Ids::new(space, |_| 0))
}

/// Cortex-A53, as its manual has it, with a GICv3's registers.
fn cortex_a53() -> Cpu {
    known([0x0100_2222, 0, 0x1030_5106, 0x0001_1120, 0, 0x1122, 0, 0])
}

/// Cortex-A76: Armv8.2, with RAS, atomics and the rest; no pointer authentication.
fn cortex_a76() -> Cpu {
    known([
        0x1100_0000_1111_1112,
        0x10,
        0x1030_5408,
        0x0010_1000_1021_1120,
        0x0010_0001,
        0x10_1122,
        0x1021_2122,
        0x1011,
    ])
}

#[test]
fn the_host_sees_usual_cpus_as_they_are() {
    for cpu in [cortex_a53(), cortex_a76()] {
        let promise = Promise::of(&cpu);
        assert!(cpu.ids.same_space(&promise.host));
        assert_eq!(Controls::host(&cpu, &promise).hcr & hcr::TID3, 0);
        assert_eq!(promise.is_kept_by(&cpu), Ok(()));
    }
}

#[test]
fn big_and_little_show_what_both_have() {
    let (big, little) = (cortex_a76(), cortex_a53());
    let promise = Promise::of(&big).and(&little);
    let reverse = Promise::of(&little).and(&big);
    assert_eq!((promise.host, promise.guest), (reverse.host, reverse.guest));
    for cpu in [&big, &little] {
        assert_eq!(promise.is_kept_by(cpu), Ok(()));
    }
    // The promise has neither RAS nor atomics, and 40 bits of address.
    assert_eq!(promise.host.get(&PFR0_RAS), 0);
    assert_eq!(promise.host.get(&ISAR0_ATOMIC), 0);
    assert_eq!(promise.features.stage2.pa_bits, 40);
    // On the big CPU, EL2 answers for the ID registers, and the RAS registers are closed.
    let (on_big, on_little) = (Controls::host(&big, &promise), Controls::host(&little, &promise));
    assert_ne!(on_big.hcr & hcr::TID3, 0);
    assert_ne!(on_big.hcr & hcr::TERR, 0);
    assert_eq!(on_little.hcr & hcr::TERR, 0);
    assert_eq!(check(&[big, little]), Ok(()));
}

#[test]
fn a_cpu_that_lacks_what_was_promised_is_refused_by_name() {
    let (big, little) = (cortex_a76(), cortex_a53());
    let promise = Promise::of(&big);
    let why = promise.is_kept_by(&little).unwrap_err();
    assert!(matches!(why, Broken::Field { field, .. } if field == PFR0_FP), "{why}");
    assert_eq!(why.to_string(), "its PFR0.FP is 0x0, the host was promised 0x1");
    // A CPU that has more than was promised is accepted.
    let mut less = big;
    less.ids.set(&PFR0_RAS, 0);
    assert_eq!(Promise::of(&less).is_kept_by(&big), Ok(()));
    // Caches and stage 2 are compared, too, though no ID field shows them to the host.
    let mut other = big;
    other.dczid = 5;
    assert_eq!(promise.is_kept_by(&other), Err(Broken::Memory));
    assert_eq!(promise.and(&other).features.zva_block, 0);
    // Escrow cannot use a CPU without GICv3.
    let mut other = big;
    other.ids.set(&PFR0_GIC, 0);
    let missing = Broken::Missing(MissingFeature::GicSystemRegisters);
    assert_eq!(promise.is_kept_by(&other), Err(missing));
}

#[test]
fn pointer_authentication_of_some_cpus_is_nobody_s() {
    let with = |api| {
        let mut cpu = cortex_a76();
        cpu.ids.set(&ISAR1_API, api);
        cpu
    };
    // As on QCS8300; and with different algorithms.
    for (a, b) in [(with(1), with(0)), (with(1), with(3))] {
        let promise = Promise::of(&a).and(&b);
        assert_eq!(promise.host.get(&ISAR1_API), 0);
        assert!(!promise.features.pauth);
        assert_eq!(Controls::host(&a, &promise).hcr & (hcr::API | hcr::APK), 0);
    }
    let same = Promise::of(&with(1)).and(&with(1));
    assert_eq!(same.host.get(&ISAR1_API), 1);
    assert_ne!(Controls::host(&with(1), &same).hcr & hcr::API, 0);
}

#[test]
fn a_field_s_values_have_an_order() {
    assert_eq!(PFR0_FP.rank(0xf), -1);
    assert_eq!(PFR0_FP.at_most(2, 1), 1);
    assert_eq!(PFR0_FP.at_most(0xf, 1), 0xf);
    assert_eq!(DFR0_PMUVER.rank(0xf), 0);
    assert_eq!(PFR0_CSV2.before(3, 2), 1);
    assert_eq!(ISAR1_APA.before(5, 1), 0);
    assert_eq!(DFR0_DOUBLELOCK.before(0, 0), 0xf);
    let common = |field: &Field, a, b| {
        let mut ids = [Ids::new(|_, _| 0, |_| 0); 2];
        ids[0].set(field, a);
        ids[1].set(field, b);
        ids[0].common(&ids[1]).get(field)
    };
    // PMUv3 on one CPU and 0xf on the other have nothing in common.
    assert_eq!(common(&DFR0_PMUVER, 0xf, 4), 0);
    assert_eq!(common(&DFR0_PMUVER, 0xf, 0xf), 0xf);
    assert_eq!(common(&DFR0_PMUVER, 4, 9), 4);
    assert_eq!(common(&PFR0_FP, 0xf, 1), 0xf);
    assert_eq!(common(&ISAR1_APA, 1, 2), 0);
    assert_eq!(common(&DFR0_DOUBLELOCK, 0, 0xf), 0xf);
    for field in ALL {
        assert!(field.rank(field.newest) >= field.rank(field.absent), "{}", field.name);
        assert!(field.kind != Kind::Version || field.width == 4);
    }
}
