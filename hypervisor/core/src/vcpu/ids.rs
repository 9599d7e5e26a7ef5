// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a guest reads of the CPU in its ID registers: the fields on a list,
//! and zeros for the rest.
//!
//! What is not on the list is what the traps of the machine half keep from
//! the guest, or what EL2 does not save; a field that a later CPU gives a
//! meaning to is off until somebody has looked at it.

/// How a guest sees one field, four bits wide.
#[derive(Clone, Copy)]
enum Rule {
    /// As the CPU has it.
    Pass,
    /// As the CPU has it, but not above this.
    AtMost(u64),
    /// This, whatever the CPU has.
    Always(u64),
}

use Rule::{Always, AtMost, Pass};

/// A register, as (CRm, op2), and its fields by the position of their lowest
/// bit.
type Register = ((u8, u8), &'static [(u32, Rule)]);

const REGISTERS: &[Register] = &[
    // ID_AA64PFR0_EL1: EL0 and EL1 in AArch64 only, FP, AdvSIMD, DIT, CSV2
    // (2 would offer SCXTNUM_EL1, which is trapped), CSV3.
    (
        (4, 0),
        &[
            (0, Always(1)),
            (4, Always(1)),
            (16, Pass),
            (20, Pass),
            (48, Pass),
            (56, AtMost(1)),
            (60, Pass),
        ],
    ),
    // ID_AA64PFR1_EL1: BT, SSBS.
    ((4, 1), &[(0, Pass), (4, Pass)]),
    // ID_AA64DFR0_EL1: DebugVer (Armv8.0, the least), no DoubleLock.
    ((5, 0), &[(0, Always(6)), (36, Always(0xf))]),
    // ID_AA64ISAR0_EL1: AES, SHA1, SHA2, CRC32, Atomic, RDM, SHA3, SM3, SM4,
    // DP, FHM, TS, TLB, RNDR.
    (
        (6, 0),
        &[
            (4, Pass),
            (8, Pass),
            (12, Pass),
            (16, Pass),
            (20, Pass),
            (28, Pass),
            (32, Pass),
            (36, Pass),
            (40, Pass),
            (44, Pass),
            (48, Pass),
            (52, Pass),
            (56, Pass),
            (60, Pass),
        ],
    ),
    // ID_AA64ISAR1_EL1: DPB, APA, API, JSCVT, FCMA, LRCPC, GPA, GPI, FRINTTS,
    // SB, SPECRES, BF16, DGH, I8MM.
    (
        (6, 1),
        &[
            (0, Pass),
            (4, Pass),
            (8, Pass),
            (12, Pass),
            (16, Pass),
            (20, Pass),
            (24, Pass),
            (28, Pass),
            (32, Pass),
            (36, Pass),
            (40, Pass),
            (44, Pass),
            (48, Pass),
            (52, Pass),
        ],
    ),
    // ID_AA64ISAR2_EL1: RPRES, GPA3, APA3, MOPS, BC, PAC_frac, CLRBHB, RPRFM, CSSC.
    (
        (6, 2),
        &[
            (4, Pass),
            (8, Pass),
            (12, Pass),
            (16, Pass),
            (20, Pass),
            (24, Pass),
            (28, Pass),
            (48, Pass),
            (52, Pass),
        ],
    ),
    // ID_AA64MMFR0_EL1: ASIDBits, BigEnd, BigEndEL0, TGran16, TGran64, TGran4,
    // ExS. PARange is set by `GuestIds::new`.
    ((7, 0), &[(4, Pass), (8, Pass), (16, Pass), (20, Pass), (24, Pass), (28, Pass), (44, Pass)]),
    // ID_AA64MMFR1_EL1: HAFDBS (beyond 2 needs TCR2_EL1), HPDS, PAN, ETS, AFP,
    // nTLBPA, ECBHB.
    (
        (7, 1),
        &[(0, AtMost(2)), (12, Pass), (20, Pass), (36, Pass), (44, Pass), (48, Pass), (60, Pass)],
    ),
    // ID_AA64MMFR2_EL1: CnP, UAO, LSM, VARange, CCIDX, ST, AT, IDS, TTL, BBM,
    // E0PD.
    (
        (7, 2),
        &[
            (0, Pass),
            (4, Pass),
            (8, Pass),
            (16, Pass),
            (20, Pass),
            (28, Pass),
            (32, Pass),
            (36, Pass),
            (48, Pass),
            (52, Pass),
            (60, Pass),
        ],
    ),
];

/// The registers of the AArch64 ID space, CRm 4 to 7, as guests see them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestIds {
    registers: [[u64; 8]; 4],
}

impl GuestIds {
    /// From the CPU's own registers: `read(CRm, op2)` for CRm 4 to 7, op2 0 to
    /// 7; and the bits of address that guests have.
    pub fn new(read: impl Fn(u8, u8) -> u64, address_bits: u8) -> GuestIds {
        let mut ids = GuestIds { registers: [[0; 8]; 4] };
        for &((crm, op2), fields) in REGISTERS {
            let raw = read(crm, op2);
            let mut value = 0;
            for &(shift, rule) in fields {
                let field = raw >> shift & 0xf;
                let field = match rule {
                    Pass => field,
                    AtMost(most) => field.min(most),
                    Always(this) => this,
                };
                value |= field << shift;
            }
            if (crm, op2) == (7, 0) {
                // PARange, rounded down to a size that has a number.
                let sizes = [32u8, 36, 40, 42, 44, 48];
                let fits = sizes.iter().filter(|&&bits| bits <= address_bits).count();
                value |= (fits.saturating_sub(1) as u64).min(raw & 0xf);
            }
            if let Some(slot) = ids.slot(crm, op2) {
                *slot = value;
            }
        }
        ids
    }

    fn slot(&mut self, crm: u8, op2: u8) -> Option<&mut u64> {
        self.registers.get_mut(crm.checked_sub(4)? as usize)?.get_mut(op2 as usize)
    }

    /// What a guest reads from the register `S3_0_C0_C<crm>_<op2>`, CRm 1 to 7.
    /// AArch32's registers (CRm 1 to 3) and the unallocated ones read zero.
    pub fn read(&self, crm: u8, op2: u8) -> u64 {
        crm.checked_sub(4)
            .and_then(|row| self.registers.get(row as usize)?.get(op2 as usize).copied())
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each field from a list of positions.
    fn fields(value: u64, shifts: &[u32]) -> Vec<u64> {
        shifts.iter().map(|shift| value >> shift & 0xf).collect()
    }

    #[test]
    fn what_is_trapped_is_hidden() {
        // A CPU with 1 in each field there is.
        let ids = GuestIds::new(|_, _| 0x1111_1111_1111_1111, 48);
        // EL2, EL3, GIC, RAS, SVE, SEL2, MPAM, AMU, RME.
        assert_eq!(fields(ids.read(4, 0), &[8, 12, 24, 28, 32, 36, 40, 44, 52]), [0; 9]);
        // MTE, SME, CSV2_frac, NMI, GCS, THE.
        assert_eq!(fields(ids.read(4, 1), &[8, 24, 32, 36, 44, 48]), [0; 6]);
        // SVE and SME features, debug features 1.
        assert_eq!([ids.read(4, 4), ids.read(4, 5), ids.read(5, 1)], [0; 3]);
        // PMUVer, TraceVer, breakpoints beyond the least, SPE, TRF, TRBE, BRBE.
        assert_eq!(fields(ids.read(5, 0), &[4, 8, 12, 20, 28, 32, 40, 44, 52]), [0; 9]);
        // TME; LS64, XS; WFxT, SYSREG_128, SYSINSTR_128.
        assert_eq!(fields(ids.read(6, 0), &[24]), [0]);
        assert_eq!(fields(ids.read(6, 1), &[56, 60]), [0; 2]);
        assert_eq!(fields(ids.read(6, 2), &[0, 32, 36]), [0; 3]);
        // FGT, ECV; VMID, VHE, LOR, XNX, TWED, HCX; NV, FWB, EVT; all of MMFR3.
        assert_eq!(fields(ids.read(7, 0), &[56, 60]), [0; 2]);
        assert_eq!(fields(ids.read(7, 1), &[4, 8, 16, 28, 32, 40]), [0; 6]);
        assert_eq!(fields(ids.read(7, 2), &[24, 40, 56]), [0; 3]);
        assert_eq!(ids.read(7, 3), 0);
        assert_eq!(ids.read(7, 4), 0);
    }

    #[test]
    fn what_works_is_shown() {
        let ids = GuestIds::new(|_, _| 0x2222_2222_2222_2222, 40);
        assert_eq!(fields(ids.read(4, 0), &[0, 4, 16, 20, 56]), [1, 1, 2, 2, 1]);
        assert_eq!(fields(ids.read(6, 1), &[4, 8, 24, 28]), [2; 4]);
        assert_eq!(fields(ids.read(6, 0), &[4, 20]), [2; 2]);
        assert_eq!(fields(ids.read(5, 0), &[0]), [6]);
        assert_eq!(ids.read(7, 0) & 0xf, 2);
    }

    #[test]
    fn addresses_fit_the_guest_and_the_cpu() {
        let range = |raw, bits| GuestIds::new(move |_, _| raw, bits).read(7, 0) & 0xf;
        assert_eq!(range(6, 39), 1);
        assert_eq!(range(6, 48), 5);
        assert_eq!(range(1, 48), 1);
        assert_eq!(range(6, 32), 0);
    }

    #[test]
    fn the_rest_of_the_space_reads_zero() {
        let ids = GuestIds::new(|_, _| u64::MAX, 48);
        for crm in 0..4 {
            assert_eq!(ids.read(crm, 0), 0);
        }
        assert_eq!(ids.read(9, 9), 0);
    }
}
