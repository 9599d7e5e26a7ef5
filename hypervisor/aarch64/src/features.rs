// SPDX-License-Identifier: MIT OR Apache-2.0

//! The identification registers of the calling CPU.

pub use escrow_core::controls::{Broken, Cpu, Features, MissingFeature, Promise};
use escrow_core::controls::{Ids, Other, fields};
use escrow_core::errata::Midr;

use crate::sysreg::*;

/// Reads the identification registers of the calling CPU.
pub fn identify() -> Cpu {
    let ids = Ids::new(id_register, |which| match which {
        Other::Smidr => SMIDR_EL1::read(),
        Other::Mpamidr => MPAMIDR_EL1::read(),
        Other::Pmsidr => PMSIDR_EL1::read(),
        Other::Pmbidr => PMBIDR_EL1::read(),
        Other::Trbidr => TRBIDR_EL1::read(),
    });
    let pmu = ids.has(&fields::DFR0_PMUVER, 1);
    Cpu {
        ids,
        // The upper half is RES0.
        midr: Midr(MIDR_EL1::read() as u32),
        revidr: REVIDR_EL1::read() as u32,
        ctr: CTR_EL0::read(),
        dczid: DCZID_EL0::read(),
        event_counters: if pmu { (PMCR_EL0::read() >> 11 & 0x1f) as u8 } else { 0 },
    }
}

/// The register `S3_0_C0_C<crm>_<op2>`; 0 outside CRm 1 to 7. All of this space
/// can be read: what is not allocated reads as 0 (DDI 0487, "Instruction
/// encodings for non-Debug System register accesses").
fn id_register(crm: u8, op2: u8) -> u64 {
    macro_rules! register {
        ($crm:literal, $op2:literal) => {{
            let value;
            // SAFETY: reading an identification register changes nothing.
            unsafe {
                core::arch::asm!(
                    concat!("mrs {}, s3_0_c0_c", $crm, "_", $op2),
                    out(reg) value,
                    options(nomem, nostack, preserves_flags),
                );
            }
            value
        }};
    }
    macro_rules! row {
        ($crm:literal) => {
            match op2 {
                0 => register!($crm, 0),
                1 => register!($crm, 1),
                2 => register!($crm, 2),
                3 => register!($crm, 3),
                4 => register!($crm, 4),
                5 => register!($crm, 5),
                6 => register!($crm, 6),
                7 => register!($crm, 7),
                _ => 0,
            }
        };
    }
    match crm {
        1 => row!(1),
        2 => row!(2),
        3 => row!(3),
        4 => row!(4),
        5 => row!(5),
        6 => row!(6),
        7 => row!(7),
        _ => 0,
    }
}
