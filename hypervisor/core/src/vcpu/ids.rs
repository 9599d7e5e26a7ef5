// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's ID registers: the features that the table in [`crate::controls`] lets guests
//! use, and zeros for the rest.

use crate::controls::fields::MMFR0_PARANGE;
use crate::controls::{El1, Ids};

/// The registers of the AArch64 ID space, CRm 4 to 7, as guests see them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestIds(Ids);

impl GuestIds {
    /// From the registers of CPUs: `read(CRm, op2)` for CRm 4 to 7, op2 0 to
    /// 7; and the bits of address that guests have.
    pub fn new(read: impl Fn(u8, u8) -> u64, address_bits: u8) -> GuestIds {
        let ids = Ids::new(read, |_| 0);
        GuestIds::of(&ids.seen_by(El1::Guest), address_bits)
    }

    /// From what guests see of the CPUs, and the bits of address that they
    /// have.
    pub fn of(seen: &Ids, address_bits: u8) -> GuestIds {
        let mut ids = *seen;
        // PARange, rounded up to a size that has an encoding: Linux uses no output address beyond it
        // (TCR_EL1.IPS), and the highest address bit selects the shared half. An address between the
        // end of the IPA space and that size faults at stage 2.
        let sizes = [32u8, 36, 40, 42, 44];
        let most = sizes.iter().filter(|&&bits| bits < address_bits).count() as u64;
        ids.set(&MMFR0_PARANGE, ids.get(&MMFR0_PARANGE).min(most));
        GuestIds(ids)
    }

    /// What a guest reads from the register `S3_0_C0_C<crm>_<op2>`, CRm 1 to 7.
    /// AArch32's registers (CRm 1 to 3) and the unallocated ones read zero.
    pub fn read(&self, crm: u8, op2: u8) -> u64 {
        if crm < 4 { 0 } else { self.0.register(crm, op2) }
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
        // A field's value that is newer than the table reads as the newest one in the table.
        assert_eq!(fields(ids.read(4, 0), &[0, 4, 16, 20, 56]), [1, 1, 1, 1, 1]);
        assert_eq!(fields(ids.read(6, 1), &[4, 8, 24, 28]), [2, 2, 1, 1]);
        assert_eq!(fields(ids.read(6, 0), &[4, 20]), [2; 2]);
        assert_eq!(ids.read(7, 0) & 0xf, 2);
        // No DoubleLock.
        assert_eq!(fields(ids.read(5, 0), &[36]), [0xf]);
        // Armv8.0's debug registers, whatever the CPU's are.
        for version in 6..=0xf {
            let ids = GuestIds::new(|_, _| version, 40);
            assert_eq!(ids.read(5, 0) & 0xf, 6);
        }
    }

    #[test]
    fn addresses_fit_the_guest_and_the_cpu() {
        let range = |raw, bits| GuestIds::new(move |_, _| raw, bits).read(7, 0) & 0xf;
        assert_eq!([36, 37, 39, 40, 41].map(|bits| range(6, bits)), [1, 2, 2, 2, 3]);
        assert_eq!([42, 44, 45, 48].map(|bits| range(6, bits)), [3, 4, 5, 5]);
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
