// SPDX-License-Identifier: MIT OR Apache-2.0

//! Measurements of protected VMs: their values, and the records that the initial measurement is made
//! of (`docs/protected.md`, "The initial measurement").

/// Bytes of a measurement. A shorter digest is followed by zeros.
pub const VALUE_SIZE: usize = 64;

/// A measurement.
pub type Value = [u8; VALUE_SIZE];

/// The algorithm of a VM's measurements. Its number is that of
/// [`rsi::CONFIG_HASH_ALGORITHM`](crate::rsi::CONFIG_HASH_ALGORITHM).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256.
    Sha256 = 0,
    /// SHA-512.
    Sha512 = 1,
}

impl Algorithm {
    /// The algorithm of a number.
    pub const fn from_number(number: u64) -> Option<Algorithm> {
        match number {
            0 => Some(Algorithm::Sha256),
            1 => Some(Algorithm::Sha512),
            _ => None,
        }
    }

    /// Bytes of a digest.
    pub const fn size(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }
}

/// Measurements that a guest extends: Realm Extensible Measurements, REMs.
pub const EXTENSIBLE: usize = 4;

/// What is measured of a protected VM that has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurements {
    /// The algorithm of all of them.
    pub algorithm: Algorithm,
    /// The Realm Initial Measurement: what the guest started with.
    pub initial: Value,
    /// What the guest has extended.
    pub extensible: [Value; EXTENSIBLE],
    /// The Realm Personalization Value: a number that the host has chosen, which is no part of the
    /// initial measurement.
    pub personalization: Value,
}

/// Bytes of a record of the initial measurement.
pub const RECORD_SIZE: usize = 128;
/// Kind of the first record: "EscrowRM" in memory order. 1 (the version of this format), algorithm, the bit of guest
/// addresses that is 1 in the shared half.
pub const RECORD_BEGIN: u64 = u64::from_le_bytes(*b"EscrowRM");
/// Kind of a record: the VM has an interrupt controller. Address of the distributor, of the
/// redistributors, number of SPIs.
pub const RECORD_CONTROLLER: u64 = 1;
/// Kind of a record: the VM has a page of stolen time. Its address.
pub const RECORD_STOLEN_TIME: u64 = 2;
/// Kind of three records, one behind the other, whose kind the first one alone has: a vCPU. Index, X0 to X30,
/// PC, SP_EL0, SP_EL1.
pub const RECORD_VCPU: u64 = 3;
/// Kind of a record that the contents of a page follow: the page is not all zeros. Address, rights.
pub const RECORD_PAGE: u64 = 4;
/// Kind of a record: RAM. Address of the first page, address behind the last.
pub const RECORD_RAM: u64 = 5;

/// Version of the format.
pub const RECORD_VERSION: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_algorithm_has_one_number() {
        for (number, size) in [(0, 32), (1, 64)] {
            let algorithm = Algorithm::from_number(number).unwrap();
            assert_eq!((algorithm as u64, algorithm.size()), (number, size));
            assert!(size <= VALUE_SIZE);
        }
        assert_eq!(Algorithm::from_number(2), None);
    }

    #[test]
    fn records_are_told_apart() {
        let kinds = [
            RECORD_BEGIN,
            RECORD_CONTROLLER,
            RECORD_STOLEN_TIME,
            RECORD_VCPU,
            RECORD_PAGE,
            RECORD_RAM,
        ];
        for (n, kind) in kinds.iter().enumerate() {
            assert!(!kinds[..n].contains(kind));
        }
        assert_eq!(RECORD_BEGIN.to_le_bytes(), *b"EscrowRM");
    }
}
