// SPDX-License-Identifier: MIT OR Apache-2.0

//! The identification registers of a CPU, and their fields.

use super::fields::{self, ALL};

/// Where a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// `S3_0_C0_C<CRm>_<op2>`, the ID registers of AArch64 (CRm 4 to 7).
    Space(u8, u8),
    /// One of those outside that space.
    Other(Other),
}

/// Identification registers that exist only with the feature that they
/// describe, outside the space that `HCR_EL2.TID3` traps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Other {
    /// `SMIDR_EL1`.
    Smidr,
    /// `MPAMIDR_EL1`.
    Mpamidr,
    /// `PMSIDR_EL1`.
    Pmsidr,
    /// `PMBIDR_EL1`.
    Pmbidr,
    /// `TRBIDR_EL1`.
    Trbidr,
}

impl Other {
    /// All of them, each with the field that says that it exists.
    pub const ALL: [(Other, Field); 5] = [
        (Other::Smidr, fields::PFR1_SME),
        (Other::Mpamidr, fields::PFR0_MPAM),
        (Other::Pmsidr, fields::DFR0_PMSVER),
        (Other::Pmbidr, fields::DFR0_PMSVER),
        (Other::Trbidr, fields::DFR0_TRACEBUFFER),
    ];
}

/// How the values of a field are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A larger value has all that a smaller one has; 0 is the least.
    Unsigned,
    /// The same in two's complement; −1 is the least that is common.
    Signed,
    /// A larger value has all that a smaller one has, but all ones stand for
    /// something that is not the architecture's (DDI 0487, "PMUVer").
    Version,
    /// Values do not contain each other: CPUs have the same, or none.
    Exact,
}

/// A field of an identification register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The register.
    pub register: Register,
    /// Register and field as DDI 0487 names them.
    pub name: &'static str,
    /// Its lowest bit.
    pub shift: u8,
    /// Its width in bits.
    pub width: u8,
    /// How its values are ordered.
    pub kind: Kind,
    /// What says that the feature is not there.
    pub absent: u64,
    /// The newest value that the table of features takes into account.
    pub newest: u64,
}

impl Field {
    /// Its bits in the register.
    pub const fn mask(&self) -> u64 {
        (u64::MAX >> (64 - self.width)) << self.shift
    }

    /// The value as a number that can be compared: signed fields below 0,
    /// what is not the architecture's as nothing.
    pub const fn rank(&self, value: u64) -> i64 {
        let ones = u64::MAX >> (64 - self.width);
        match self.kind {
            Kind::Signed => ((value << (64 - self.width)) as i64) >> (64 - self.width),
            Kind::Version if value == ones => 0,
            _ => value as i64,
        }
    }

    /// A value that is not beyond `most`.
    pub const fn at_most(&self, value: u64, most: u64) -> u64 {
        if self.rank(value) > self.rank(most) { most } else { value }
    }

    /// `value` if it is before `from`, else the newest value that is: what a party sees from
    /// which `from` is hidden.
    pub const fn before(&self, value: u64, from: u64) -> u64 {
        if self.rank(from) <= 0 {
            self.absent
        } else if self.rank(value) < self.rank(from) {
            value
        } else if matches!(self.kind, Kind::Exact) {
            self.absent
        } else {
            from - 1
        }
    }

    /// What two CPUs have in common.
    const fn common(&self, a: u64, b: u64) -> u64 {
        if a == b {
            return a;
        }
        let (a_rank, b_rank) = (self.rank(a), self.rank(b));
        match self.kind {
            Kind::Exact => self.absent,
            // What is not the architecture's is on one of them only.
            Kind::Version if a_rank == 0 || b_rank == 0 => self.absent,
            _ if a_rank < b_rank => a,
            _ => b,
        }
    }
}

/// The identification registers of one CPU, or what several have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// CRm 1 to 7.
    space: [[u64; 8]; 7],
    other: [u64; Other::ALL.len()],
}

impl Ids {
    /// From registers: `space(CRm, op2)` for CRm 1 to 7, op2 0 to 7, and
    /// `other` for those that the CPU has.
    pub fn new(space: impl Fn(u8, u8) -> u64, other: impl Fn(Other) -> u64) -> Ids {
        let mut ids = Ids { space: [[0; 8]; 7], other: [0; Other::ALL.len()] };
        for (row, crm) in ids.space.iter_mut().zip(1..) {
            for (register, op2) in row.iter_mut().zip(0..) {
                *register = space(crm, op2);
            }
        }
        for (which, shown_by) in Other::ALL {
            if ids.get(&shown_by) != 0 {
                ids.other[which as usize] = other(which);
            }
        }
        ids
    }

    /// The register `S3_0_C0_C<crm>_<op2>`; 0 outside CRm 1 to 7.
    pub fn register(&self, crm: u8, op2: u8) -> u64 {
        crm.checked_sub(1)
            .and_then(|row| self.space.get(row as usize)?.get(op2 as usize).copied())
            .unwrap_or(0)
    }

    /// One of the registers elsewhere; 0 if the CPU does not have it.
    pub fn other(&self, which: Other) -> u64 {
        self.other[which as usize]
    }

    /// The value of a field.
    pub fn get(&self, field: &Field) -> u64 {
        let register = match field.register {
            Register::Space(crm, op2) => self.register(crm, op2),
            Register::Other(which) => self.other(which),
        };
        (register & field.mask()) >> field.shift
    }

    /// Sets a field.
    pub fn set(&mut self, field: &Field, value: u64) {
        let register = match field.register {
            Register::Space(crm, op2) => crm
                .checked_sub(1)
                .and_then(|row| self.space.get_mut(row as usize)?.get_mut(op2 as usize)),
            Register::Other(which) => self.other.get_mut(which as usize),
        };
        if let Some(register) = register {
            *register = *register & !field.mask() | value << field.shift & field.mask();
        }
    }

    /// Whether a field has a value or one that contains it.
    pub fn has(&self, field: &Field, from: u64) -> bool {
        field.rank(self.get(field)) >= field.rank(from)
    }

    /// What these CPUs and another one have in common.
    ///
    /// In AArch64's registers, fields that no feature of the table is shown by
    /// are gone where they differ. AArch32's registers (CRm 1 to 3) are made of
    /// fields of four bits, nearly all of them unsigned: where two differ, the
    /// lesser field stands.
    pub fn common(&self, other: &Ids) -> Ids {
        let mut both = Ids { space: [[0; 8]; 7], other: [0; Other::ALL.len()] };
        for (row, registers) in both.space.iter_mut().enumerate() {
            for (op2, register) in registers.iter_mut().enumerate() {
                let (a, b) = (self.space[row][op2], other.space[row][op2]);
                *register = match row {
                    0..3 => nibbles_in_common(a, b),
                    _ if a == b => a,
                    _ => 0,
                };
            }
        }
        for (which, register) in both.other.iter_mut().enumerate() {
            *register = self.other[which] & other.other[which];
        }
        for field in ALL.iter().filter(|field| matches!(field.register, Register::Space(..))) {
            both.set(field, field.common(self.get(field), other.get(field)));
        }
        // Generic authentication has the keys and the traps of that of
        // addresses: both go, where the algorithms differ.
        let addresses = [fields::ISAR1_APA, fields::ISAR1_API, fields::ISAR2_APA3];
        if addresses.iter().all(|field| both.get(field) == 0) {
            for field in [fields::ISAR1_GPA, fields::ISAR1_GPI, fields::ISAR2_GPA3] {
                both.set(&field, 0);
            }
        }
        both
    }

    /// Whether the registers of the ID space are the same.
    pub fn same_space(&self, other: &Ids) -> bool {
        self.space == other.space
    }

    /// Forgets the registers whose feature is not there.
    pub(super) fn drop_orphans(&mut self) {
        let has = |field: &Field| self.has(field, 1);
        let (sve, sme) = (has(&fields::PFR0_SVE), has(&fields::PFR1_SME));
        // ID_AA64ZFR0_EL1, ID_AA64SMFR0_EL1, ID_AA64FPFR0_EL1.
        for (op2, there) in [(4, sve || sme), (5, sme), (7, has(&fields::PFR2_FPMR))] {
            if !there {
                self.space[3][op2] = 0;
            }
        }
        for (which, shown_by) in Other::ALL {
            if self.get(&shown_by) == 0 {
                self.other[which as usize] = 0;
            }
        }
    }

    /// A copy without any bit outside the fields that `keep` knows.
    pub(super) fn masked(&self, keep: impl Fn(u8, u8) -> u64) -> Ids {
        let mut ids = *self;
        for (row, registers) in ids.space.iter_mut().enumerate() {
            for (op2, register) in registers.iter_mut().enumerate() {
                *register &= keep(row as u8 + 1, op2 as u8);
            }
        }
        ids
    }
}

fn nibbles_in_common(a: u64, b: u64) -> u64 {
    (0..64).step_by(4).fold(0, |all, at| all | (a >> at & 0xf).min(b >> at & 0xf) << at)
}
