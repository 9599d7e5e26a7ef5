// SPDX-License-Identifier: MIT OR Apache-2.0

//! Accesses to system registers, and system instructions, that trap from EL1.
//!
//! All others are undefined instructions for the VM.

use super::ids::GuestIds;
use super::syndrome::SystemAccess;
use crate::controls::Ids;
use crate::controls::fields::PFR0_GIC;

impl SystemAccess {
    /// What the host reads; a write is ignored. `None`: the host has no such register.
    ///
    /// Two kinds of registers trap: ID registers, where the host sees less than the CPU has, and
    /// IMPLEMENTATION DEFINED ones, which read as 0. Kernels access the latter because a device tree
    /// names the CPU's model, and would not survive an undefined instruction there.
    pub fn by_host(self, seen: &Ids) -> Option<u64> {
        let read = self.is_read();
        match self.encoding() {
            (3, 0, 0, crm @ 1..=7, op2) if read => Some(seen.register(crm, op2)),
            // DDI 0487, "HCR_EL2", TIDCP.
            (1 | 3, _, 11 | 15, _, _) => Some(0),
            _ => None,
        }
    }
}

/// What a guest reads; a write is ignored. `None`: the guest has no such register.
pub(super) fn emulate(access: SystemAccess, ids: &GuestIds, has_gic: bool) -> Option<u64> {
    let read = access.is_read();
    match access.encoding() {
        // ID_AA64PFR0_EL1 of a VM with a GIC: system registers of a GICv3.
        (3, 0, 0, 4, 0) if read && has_gic => Some(ids.read(4, 0) | 1 << PFR0_GIC.shift),
        // REVIDR_EL1, AIDR_EL1: IMPLEMENTATION DEFINED revisions, which guests do not see.
        (3, 0, 0, 0, 6) | (3, 1, 0, 0, 7) if read => Some(0),
        // The ID registers.
        (3, 0, 0, crm @ 1..=7, op2) if read => Some(ids.read(crm, op2)),
        // ACTLR_EL1: no auxiliary controls.
        (3, 0, 1, 0, 1) => Some(0),
        // OSLSR_EL1: the OS Lock is implemented (OSLM 0b10) and unlocked.
        (2, 0, 1, 1, 4) if read => Some(1 << 3),
        // The debug registers, which every Armv8 CPU has: RAZ/WI.
        (2, 0 | 3, 0 | 1 | 7, _, _) => Some(0),
        // DC ISW, CSW, CISW do nothing. Maintenance by set/way is for software that powers a cache
        // down, which a guest never does; EL2 cleans a guest's memory when its owner changes.
        (1, 0, 7, 6 | 10 | 14, 2) if !read => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::syndrome::{Ec, IL, Instruction, Syndrome};

    fn access(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8, read: bool) -> SystemAccess {
        let esr = (op0 as u64) << 20
            | (op2 as u64) << 17
            | (op1 as u64) << 14
            | (crn as u64) << 10
            | (crm as u64) << 1
            | read as u64;
        let esr = Ec::SYSTEM.bits() | IL | 0x1f << 5 | esr;
        match Syndrome::of(esr) {
            Syndrome::Trapped(trapped) => match trapped.instruction() {
                Instruction::System(access) => access,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn ids() -> GuestIds {
        GuestIds::new(|_, _| 0x1111_1111_1111_1111, 40)
    }

    #[test]
    fn id_registers_read_and_cannot_be_written() {
        let ids = ids();
        assert_eq!(emulate(access(3, 0, 0, 4, 0, true), &ids, false), Some(ids.read(4, 0)));
        assert_ne!(ids.read(4, 0), 0);
        assert_eq!(emulate(access(3, 0, 0, 2, 0, true), &ids, false), Some(0));
        assert_eq!(emulate(access(3, 0, 0, 4, 0, false), &ids, false), None);
        // With a GIC, one field says so; no other register changes.
        assert_eq!(
            emulate(access(3, 0, 0, 4, 0, true), &ids, true),
            Some(ids.read(4, 0) | 1 << 24)
        );
        assert_eq!(emulate(access(3, 0, 0, 4, 1, true), &ids, true), Some(ids.read(4, 1)));
        assert_eq!(emulate(access(3, 0, 0, 4, 0, false), &ids, true), None);
    }

    #[test]
    fn the_host_reads_what_it_is_shown_and_nothing_of_the_implementation() {
        let seen = Ids::new(|crm, op2| (crm as u64) << 8 | op2 as u64, |_| 0);
        for (crm, op2) in [(1, 0), (4, 0), (5, 3), (7, 7)] {
            let value = (crm as u64) << 8 | op2 as u64;
            assert_eq!(access(3, 0, 0, crm, op2, true).by_host(&seen), Some(value));
            assert_eq!(access(3, 0, 0, crm, op2, false).by_host(&seen), None);
        }
        // CPUECTLR_EL1 of a Cortex-A72, an IC of the implementer's.
        for (op0, op1, crn, crm, op2) in [(3, 1, 15, 2, 1), (1, 0, 11, 3, 0)] {
            for read in [false, true] {
                assert_eq!(access(op0, op1, crn, crm, op2, read).by_host(&seen), Some(0));
            }
        }
        // MIDR_EL1 is not in that space; PMCR_EL0 is not identification.
        for (op1, crn, crm, op2) in [(0, 0, 0, 0), (3, 9, 12, 0), (0, 0, 8, 0)] {
            assert_eq!(access(3, op1, crn, crm, op2, true).by_host(&seen), None);
        }
    }

    #[test]
    fn debug_registers_hold_nothing() {
        // MDSCR_EL1, DBGBVR0_EL1, OSLAR_EL1, OSDLR_EL1, MDCCSR_EL0.
        for (op1, crn, crm, op2) in
            [(0, 0, 2, 2), (0, 0, 0, 4), (0, 1, 0, 4), (0, 1, 3, 4), (3, 0, 1, 0)]
        {
            for read in [false, true] {
                assert_eq!(emulate(access(2, op1, crn, crm, op2, read), &ids(), false), Some(0));
            }
        }
        assert_eq!(emulate(access(2, 0, 1, 1, 4, true), &ids(), false), Some(8));
    }

    #[test]
    fn hidden_registers_are_undefined() {
        for (op0, op1, crn, crm, op2) in [
            (3, 3, 9, 12, 0),  // PMCR_EL0
            (3, 0, 1, 2, 0),   // ZCR_EL1
            (3, 0, 12, 12, 5), // ICC_SRE_EL1
            (3, 3, 14, 2, 1),  // CNTP_CTL_EL0
            (3, 0, 10, 4, 3),  // LORC_EL1
            (3, 0, 5, 3, 0),   // ERRIDR_EL1
            (3, 3, 13, 0, 5),  // TPIDR2_EL0
            (3, 1, 0, 0, 6),   // SMIDR_EL1
            (3, 1, 0, 0, 4),   // GMID_EL1
            (2, 1, 0, 0, 1),   // trace
            (3, 0, 11, 0, 0),  // implementation defined
        ] {
            assert_eq!(emulate(access(op0, op1, crn, crm, op2, true), &ids(), false), None);
            assert_eq!(emulate(access(op0, op1, crn, crm, op2, false), &ids(), false), None);
        }
    }
}
