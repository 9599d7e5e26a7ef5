// SPDX-License-Identifier: MIT OR Apache-2.0

//! Exceptions that EL2 injects into EL1: what the CPU does when it takes one
//! (DDI 0487, pseudocode `AArch64.TakeException`). Guests' registers are in memory,
//! the host's in the CPU; both use this.

use super::syndrome::{Abort, Ec, IL, abort};

/// A synchronous exception to be taken at EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The value for `ESR_EL1`.
    pub esr: u64,
    /// The value for `FAR_EL1`; `None` leaves it as it is.
    pub far: Option<u64>,
}

/// Where EL1 goes on when it takes an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExceptionEntry {
    /// The vector.
    pub pc: u64,
    /// PSTATE there, in the layout of `SPSR_EL2`.
    pub pstate: u64,
}

/// Bits of PSTATE as `SPSR_ELx` lays them out for AArch64.
pub(super) mod pstate {
    pub const M: u64 = 0xf;
    pub const EL0T: u64 = 0x0;
    pub const EL1T: u64 = 0x4;
    pub const EL1H: u64 = 0x5;
    pub const AARCH32: u64 = 1 << 4;
    pub const DAIF: u64 = 0xf << 6;
    pub const BTYPE: u64 = 0x3 << 10;
    pub const SSBS: u64 = 1 << 12;
    pub const ALLINT: u64 = 1 << 13;
    pub const SS: u64 = 1 << 21;
    pub const PAN: u64 = 1 << 22;
    pub const DIT: u64 = 1 << 24;
    pub const DIT_AARCH32: u64 = 1 << 21;
    pub const TCO: u64 = 1 << 25;
    pub const NZCV: u64 = 0xf << 28;
}

/// Bits of `SCTLR_EL1`.
mod sctlr {
    pub const SPAN: u64 = 1 << 23;
    pub const DSSBS: u64 = 1 << 44;
    pub const SPINTMASK: u64 = 1 << 62;
}

/// Features of EL1 that have a PSTATE bit which exception entry sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PstateFeatures {
    /// FEAT_MTE: PSTATE.TCO.
    pub mte: bool,
    /// FEAT_NMI: PSTATE.ALLINT.
    pub nmi: bool,
}

impl ExceptionEntry {
    /// Where EL1 goes from `interrupted` (a PSTATE), given its `SCTLR_EL1` and
    /// `VBAR_EL1`.
    pub const fn new(
        interrupted: u64,
        sctlr: u64,
        vbar: u64,
        features: PstateFeatures,
    ) -> ExceptionEntry {
        let from32 = interrupted & pstate::AARCH32 != 0;
        let offset = if from32 {
            0x600
        } else {
            match interrupted & pstate::M {
                pstate::EL0T => 0x400,
                pstate::EL1T => 0x000,
                _ => 0x200,
            }
        };
        let mut next = pstate::EL1H | pstate::DAIF | interrupted & (pstate::NZCV | pstate::PAN);
        let dit = if from32 { pstate::DIT_AARCH32 } else { pstate::DIT };
        if interrupted & dit != 0 {
            next |= pstate::DIT;
        }
        if sctlr & sctlr::SPAN == 0 {
            next |= pstate::PAN;
        }
        if sctlr & sctlr::DSSBS != 0 {
            next |= pstate::SSBS;
        }
        if features.mte {
            next |= pstate::TCO;
        }
        if features.nmi && sctlr & sctlr::SPINTMASK == 0 {
            next |= pstate::ALLINT;
        }
        ExceptionEntry { pc: (vbar & !0x7ff).wrapping_add(offset), pstate: next }
    }
}

/// Whether a PSTATE is one of AArch32.
pub(crate) const fn is_aarch32(pstate: u64) -> bool {
    pstate & pstate::AARCH32 != 0
}

/// The PSTATE after an instruction, executed by the VM or by EL2 in its place: a single step
/// and BTYPE end with it. For AArch64, which has no IT state.
pub const fn after_instruction(pstate: u64) -> u64 {
    pstate & !(pstate::SS | pstate::BTYPE)
}

/// Whether a PSTATE is one of EL0.
const fn is_el0(pstate: u64) -> bool {
    is_aarch32(pstate) || pstate & pstate::M == pstate::EL0T
}

impl Exception {
    /// An undefined instruction.
    pub const UNDEFINED: Exception = Exception { esr: IL, far: None };

    /// The synchronous external abort that EL1 takes for an abort which interrupted it in the PSTATE
    /// `interrupted`.
    pub const fn external_abort(abort: Abort, far: u64, interrupted: u64) -> Exception {
        let status = if abort.is_walk() {
            // On a table walk: the level of the table, as stage 2 reports it.
            abort::EXTERNAL_ON_WALK | abort.esr() & 0x3
        } else {
            abort::EXTERNAL
        };
        Self::with_status(abort, far, interrupted, status)
    }

    /// The exception that a Linux host takes for an access to memory that it
    /// does not own.
    ///
    /// A data access gets an alignment fault. Linux retries a translation or permission
    /// fault for ever, and dies of an external abort without a look at its exception tables. An
    /// alignment fault is the only abort for which it looks for a fixup and does not retry.
    /// For an instruction fetch and a table walk there are no fixups; they get an external abort.
    pub const fn for_host(abort: Abort, far: u64, interrupted: u64) -> Exception {
        if !abort.is_fetch() && !abort.is_walk() {
            Self::with_status(abort, far, interrupted, abort::ALIGNMENT)
        } else {
            Self::external_abort(abort, far, interrupted)
        }
    }

    const fn with_status(abort: Abort, far: u64, interrupted: u64, status: u64) -> Exception {
        let data = !abort.is_fetch();
        let ec = match (data, is_el0(interrupted)) {
            (true, true) => Ec::DATA_ABORT_LOWER,
            (true, false) => Ec::DATA_ABORT_SAME,
            (false, true) => Ec::INSTRUCTION_ABORT_LOWER,
            (false, false) => Ec::INSTRUCTION_ABORT_SAME,
        };
        // The fields of the syndrome that mean the same at EL1. ISV and the fields that it
        // validates are for stage-2 aborts, which EL1 does not take.
        let kept = if data { IL | abort::WNR | abort::CM | abort::FNV } else { IL | abort::FNV };
        Exception { esr: ec.bits() | abort.esr() & kept | status, far: Some(far) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::syndrome::Syndrome;

    fn for_host(esr: u64, far: u64, interrupted: u64) -> Exception {
        match Syndrome::of(esr) {
            Syndrome::Abort(abort) => Exception::for_host(abort, far, interrupted),
            other => panic!("{other:?}"),
        }
    }

    const SPAN: u64 = sctlr::SPAN;
    const NONE: PstateFeatures = PstateFeatures { mte: false, nmi: false };

    #[test]
    fn vectors_by_where_from() {
        let vector = |from| ExceptionEntry::new(from, SPAN, 0xffff_0000_0800_0800, NONE).pc & 0x7ff;
        assert_eq!(vector(pstate::EL0T), 0x400);
        assert_eq!(vector(pstate::EL1T), 0x000);
        assert_eq!(vector(pstate::EL1H), 0x200);
        assert_eq!(vector(pstate::AARCH32), 0x600);
        assert_eq!(
            ExceptionEntry::new(pstate::EL0T, SPAN, 0xffff_0000_0800_0800, NONE).pc,
            0xffff_0000_0800_0c00
        );
    }

    #[test]
    fn pstate_as_the_cpu_would_have_it() {
        // Flags and PAN stay, step and BTYPE go, interrupts are masked.
        let from = pstate::NZCV | 1 << 21 | 0x3 << 10 | pstate::DIT | pstate::SSBS;
        let entry = ExceptionEntry::new(from, SPAN, 0, NONE);
        assert_eq!(entry.pstate, pstate::NZCV | pstate::DIT | pstate::DAIF | pstate::EL1H);
        // SCTLR_EL1.SPAN clear sets PAN, DSSBS sets SSBS.
        let entry = ExceptionEntry::new(pstate::EL1H, sctlr::DSSBS, 0, NONE);
        assert_eq!(entry.pstate, pstate::PAN | pstate::SSBS | pstate::DAIF | pstate::EL1H);
        let all = PstateFeatures { mte: true, nmi: true };
        let entry = ExceptionEntry::new(0, SPAN, 0, all);
        assert_eq!(entry.pstate, pstate::TCO | pstate::ALLINT | pstate::DAIF | pstate::EL1H);
        // AArch32 keeps DIT where AArch64 has SS.
        let entry = ExceptionEntry::new(pstate::AARCH32 | pstate::DIT_AARCH32, SPAN, 0, NONE);
        assert_eq!(entry.pstate, pstate::DIT | pstate::DAIF | pstate::EL1H);
    }

    #[test]
    fn the_host_hears_of_data_aborts_as_alignment_faults() {
        // A store from EL0 with a valid syndrome, translation fault level 3.
        let esr = Ec::DATA_ABORT_LOWER.bits() | IL | 1 << 24 | abort::WNR | 0x7;
        let exception = for_host(esr, 0x1234, pstate::EL0T);
        assert_eq!(exception.esr, 0x24 << 26 | IL | abort::WNR | 0x21);
        assert_eq!(exception.far, Some(0x1234));
        let exception = for_host(esr & !abort::WNR, 0x1234, pstate::EL1H);
        assert_eq!(exception.esr, 0x25 << 26 | IL | 0x21);
        // From AArch32 EL0.
        let exception = for_host(esr, 0, pstate::AARCH32 | 0x10);
        assert_eq!(exception.esr >> 26, 0x24);
    }

    #[test]
    fn fetches_and_walks_of_the_host_end_in_external_aborts() {
        let fetch = Ec::INSTRUCTION_ABORT_LOWER.bits() | IL | 0x7;
        assert_eq!(for_host(fetch, 8, pstate::EL0T).esr, 0x20 << 26 | IL | 0x10);
        assert_eq!(for_host(fetch, 8, pstate::EL1H).esr, 0x21 << 26 | IL | 0x10);
        let walk = Ec::DATA_ABORT_LOWER.bits() | IL | abort::S1PTW | 0x6;
        assert_eq!(for_host(walk, 8, pstate::EL1H).esr, 0x25 << 26 | IL | 0x16);
    }
}
