// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every value of `ESR_EL2`, decoded here a second time, as the manual's tables have the fields.

use std::env;

use super::*;
use crate::hypervisor::tests::fake::exit_of;
use crate::vcpu::{Exception, GuestExit, GuestIds, Outcome, Pending, Vcpu};

const EC_WAIT: u64 = 0x01;
const EC_SYSTEM: u64 = 0x18;
const EC_FETCH: u64 = 0x20;
const EC_DATA: u64 = 0x24;

/// Bits `high` to `low`.
fn bits(esr: u64, high: u32, low: u32) -> u64 {
    esr << (63 - high) >> (63 - high + low)
}

/// Values of the lower 32 bits: all combinations of the 13 lower and of the 12 upper bits of
/// the ISS, each with some of the others, for every class; with `ESCROW_ALL_SYNDROMES` all that there are.
fn each(mut f: impl FnMut(u64)) {
    if env::var_os("ESCROW_ALL_SYNDROMES").is_some() {
        (0..1 << 32).for_each(f);
        return;
    }
    const SOME: [u64; 6] = [0, !0, 0x5555_5555, 0xaaaa_aaaa, 0x01f0_0007, 0x1234_5678];
    const LOW: u64 = (1 << 13) - 1;
    const HIGH: u64 = ((1 << 25) - 1) & !LOW;
    for class in 0..1 << 7 {
        let class = class << 25;
        for some in SOME {
            (0..=LOW).for_each(|low| f(class | some & HIGH | low));
            (0..1 << 12).for_each(|high| f(class | high << 13 | some & LOW));
        }
    }
}

fn checks_abort(esr: u64, abort: Abort) {
    let data = bits(esr, 31, 26) == EC_DATA;
    assert_eq!(abort.esr(), esr);
    assert_eq!(abort.is_fetch(), !data, "{esr:#x}");
    assert_eq!(abort.is_walk(), bits(esr, 7, 7) == 1, "{esr:#x}");
    assert_eq!(abort.is_cache_maintenance(), data && bits(esr, 8, 8) == 1, "{esr:#x}");
    assert_eq!(abort.is_write(), data && bits(esr, 6, 6) == 1 && bits(esr, 8, 8) == 0, "{esr:#x}");
    // DFSC: 0b0001LL translation, 0b0010LL access flag, 0b0011LL permission, 0b0100xx and 0b0101LL
    // external, 0b0110xx and 0b0111LL parity or ECC; level -1: 0b101011, 0b010011 and 0b011011.
    let status = bits(esr, 5, 0);
    let fault = match (bits(status, 5, 2), bits(status, 1, 0)) {
        (0b0001 | 0b0010, _) | (0b1010, 0b11) => Fault::Translation,
        (0b0011, _) => Fault::Permission,
        (0b0100 | 0b0110, 0b00 | 0b11) | (0b0101 | 0b0111, _) => Fault::External,
        _ => Fault::Other,
    };
    assert_eq!(abort.fault(), fault, "{esr:#x}");
    let described = data && bits(esr, 24, 24) == 1 && bits(esr, 8, 7) == 0;
    assert_eq!(abort.access().is_some(), described, "{esr:#x}");
    let Some(access) = abort.access() else { return };
    assert_eq!(access.size(), [1, 2, 4, 8][bits(esr, 23, 22) as usize], "{esr:#x}");
    assert_eq!(access.register() as u64, bits(esr, 20, 16), "{esr:#x}");
    assert_eq!(access.is_write(), bits(esr, 6, 6) == 1, "{esr:#x}");
    // A value with the top bit of each byte set: what is loaded shows the size, and how it is extended.
    let all = [0xf1, 0xf2f1, 0xf4f3_f2f1, 0xf8f7_f6f5_f4f3_f2f1];
    let (signed, wide) = (bits(esr, 21, 21) == 1, bits(esr, 15, 15) == 1);
    let mut loaded = all[bits(esr, 23, 22) as usize];
    if signed && access.size() < 8 {
        loaded |= u64::MAX << (8 * access.size());
    }
    if !wide {
        loaded &= 0xffff_ffff;
    }
    assert_eq!(access.loaded(all[3], false), loaded, "{esr:#x}");
    assert_eq!(access.stored(all[3], false), all[bits(esr, 23, 22) as usize], "{esr:#x}");
}

fn checks_wait(esr: u64, wait: Wait) {
    assert_eq!(wait.is_for_event(), bits(esr, 0, 0) == 1, "{esr:#x}");
    let limit = match (bits(esr, 1, 1), bits(esr, 2, 2)) {
        (0, _) => Limit::None,
        (_, 0) => Limit::Unknown,
        _ => Limit::Register(bits(esr, 9, 5) as usize),
    };
    assert_eq!(wait.limit(), limit, "{esr:#x}");
}

fn checks_system(esr: u64, access: SystemAccess) {
    let encoding = [
        bits(esr, 21, 20),
        bits(esr, 16, 14),
        bits(esr, 13, 10),
        bits(esr, 4, 1),
        bits(esr, 19, 17),
    ];
    let (op0, op1, crn, crm, op2) = access.encoding();
    assert_eq!([op0, op1, crn, crm, op2].map(u64::from), encoding, "{esr:#x}");
    assert_eq!(access.is_read(), bits(esr, 0, 0) == 1, "{esr:#x}");
    assert_eq!(access.register() as u64, bits(esr, 9, 5), "{esr:#x}");
}

#[test]
fn every_syndrome_is_what_the_manual_says() {
    each(|esr| {
        let class = bits(esr, 31, 26);
        let trapped = match (Syndrome::of(esr), class) {
            (Syndrome::Abort(abort), EC_FETCH | EC_DATA) => return checks_abort(esr, abort),
            (Syndrome::Wait(wait), EC_WAIT) => return checks_wait(esr, wait),
            (Syndrome::Trapped(trapped), _) => trapped,
            _ => panic!("{esr:#x}"),
        };
        let uses = match class {
            0x07 => Some(Lazy::Vectors),
            0x09 => Some(Lazy::Keys),
            // MRS or MSR of S3_0_C2_C<1-3>_<op2>.
            EC_SYSTEM if esr >> 10 & 0xfff == 0xc02 | (bits(esr, 19, 17) << 7) => {
                (1..=3).contains(&bits(esr, 4, 1)).then_some(Lazy::Keys)
            }
            _ => None,
        };
        assert_eq!(trapped.uses(), uses, "{esr:#x}");
        match (class, trapped.instruction()) {
            (0x07, Instruction::Vectors) | (0x09, Instruction::Keys) => {}
            (0x16, Instruction::Call(Call { conduit: Conduit::Hvc, immediate }))
            | (0x17, Instruction::Call(Call { conduit: Conduit::Smc, immediate })) => {
                assert_eq!(u64::from(immediate), bits(esr, 15, 0), "{esr:#x}");
            }
            (EC_SYSTEM, Instruction::System(access)) => checks_system(esr, access),
            (EC_WAIT | 0x07 | 0x09 | 0x16..=0x18 | EC_FETCH | EC_DATA, _) => panic!("{esr:#x}"),
            (_, instruction) => assert_eq!(instruction, Instruction::Undefined, "{esr:#x}"),
        }
    });
}

/// The fields of `ESR_EL2` that are above bit 31 (ISS2) change nothing.
#[test]
fn what_is_above_bit_31_does_not_count() {
    for iss2 in [1 << 32, 0x00ff_ffff << 32] {
        for esr in (0..1 << 32).step_by(0x3_1417) {
            match (Syndrome::of(esr), Syndrome::of(esr | iss2)) {
                (Syndrome::Abort(low), Syndrome::Abort(high)) => {
                    assert_eq!((low.fault(), low.is_write()), (high.fault(), high.is_write()));
                    let value = |access: DataAccess| {
                        (access.register(), access.size(), access.loaded(!0, false))
                    };
                    assert_eq!(low.access().map(value), high.access().map(value));
                }
                (Syndrome::Wait(low), Syndrome::Wait(high)) => {
                    assert_eq!(low.limit(), high.limit())
                }
                (Syndrome::Trapped(low), Syndrome::Trapped(high)) => {
                    match (low.instruction(), high.instruction()) {
                        (Instruction::System(low), Instruction::System(high)) => {
                            assert_eq!(low.encoding(), high.encoding());
                            assert_eq!(low.register(), high.register());
                        }
                        (low, high) => assert_eq!(low, high),
                    }
                }
                (low, high) => panic!("{low:?}, {high:?}"),
            }
        }
    }
}

/// Where the guest address of an abort is read, and what is made of it.
#[test]
fn an_abort_s_address_is_read_where_it_is_valid() {
    const FAR: u64 = 0xffff_8000_1234_5678;
    // FIPA[51:12] in bits 43:4, and bits that are not the address.
    const HPFAR: u64 = 1 << 63 | 0xf | 0x9876_5432 << 4;
    const PAR: u64 = 0xff << 56 | 0x0004_4332_2110_0000 | 0xb80;
    for class in [EC_FETCH, EC_DATA] {
        for low in 0..1 << 8 {
            let Syndrome::Abort(abort) = Syndrome::of(class << 26 | low) else { panic!() };
            let (mut reads, mut walks) = (0, 0);
            let mut ipa = |par: Option<u64>| {
                (reads, walks) = (0, 0);
                let hpfar = || {
                    reads += 1;
                    HPFAR
                };
                let translate = || {
                    walks += 1;
                    par
                };
                let ipa = abort.ipa(FAR, hpfar, translate);
                (ipa.map(|ipa| ipa.0), reads, walks)
            };
            match (abort.fault(), abort.is_walk()) {
                (Fault::Permission, false) => {
                    assert_eq!(ipa(Some(PAR)), (Some(0x0004_4332_2110_0678), 0, 1));
                    // PAR_EL1.F: the guest's tables have changed since.
                    assert_eq!(ipa(Some(PAR | 1)), (None, 0, 1));
                    assert_eq!(ipa(None), (None, 0, 1));
                }
                (Fault::Translation | Fault::Permission, _) => {
                    assert_eq!(ipa(None), (Some(0x0987_6543_2678), 1, 0));
                }
                _ => assert_eq!(ipa(Some(PAR)), (None, 0, 0)),
            }
        }
    }
}

/// What each exit comes to: nothing but what is listed is more than an undefined instruction, and
/// where a vCPU goes on follows from it.
#[test]
fn every_exit_ends_in_what_its_class_says() {
    let ids = GuestIds::new(|_, _| 0, 39);
    let mut vcpu = Vcpu::new(0);
    each(|esr| {
        for ipa in [None, Some(Ipa(0x900_0018))] {
            vcpu.regs.pc = 0x1000;
            vcpu.pending = Pending::None;
            let exit = exit_of(esr, ipa);
            let (abort, outcome) = match exit {
                GuestExit::Abort(abort, _) => (Some(abort), vcpu.decode(exit, &ids)),
                _ => (None, vcpu.decode(exit, &ids)),
            };
            let behind = vcpu.regs.pc == 0x1004;
            assert!(behind || vcpu.regs.pc == 0x1000, "{esr:#x}");
            let fits = match outcome {
                Outcome::Inject(Exception::UNDEFINED) => abort.is_none() && !behind,
                Outcome::Unknown(_) => bits(esr, 31, 26) == 0x18 && !behind,
                Outcome::Inject(_) => abort.map(Abort::fault) == Some(Fault::External),
                Outcome::Exit(_) => abort.map(Abort::fault) == Some(Fault::Other) && !behind,
                Outcome::Abort(stage2) => abort.is_some() && Some(stage2.at) == ipa,
                Outcome::Wait(_) => bits(esr, 31, 26) == 0x01 && behind,
                // A retry of the access, or an instruction that was done.
                Outcome::Resume if abort.is_some() => ipa.is_none() && !behind,
                Outcome::Resume | Outcome::Service(_) => {
                    behind == matches!(bits(esr, 31, 26), 0x17 | 0x18)
                }
            };
            assert!(fits, "{esr:#x}: {outcome:?}");
            // An access that could be emulated, where there is no memory.
            if let (Outcome::Abort(stage2), Some(access)) = (outcome, abort.and_then(Abort::access))
            {
                let Outcome::Exit([_, at, size, _]) = vcpu.settle(&stage2, false) else {
                    panic!("{esr:#x}")
                };
                assert_eq!((at, size), (0x900_0018, access.size()), "{esr:#x}");
            }
        }
    });
}
