// SPDX-License-Identifier: MIT OR Apache-2.0

//! Attestation tokens of protected guests (`docs/protected.md`), in the format of Arm's CCA: the
//! RMM specification 1.0 (Arm DEN0137, section A7.2), draft-ffm-rats-cca-token.
//!
//! EL2 writes them, anybody verifies them. Nothing here allocates.
//!
//! | module | subject |
//! | --- | --- |
//! | [`platform`] | the claims about the machine and EL2 |
//! | [`realm`] | the claims about a guest |
//! | [`cose`] | `COSE_Sign1`: what is signed, and how it is packed |
//! | [`token`] | both parts together; how a token is verified |
//! | [`keys`] | private keys and what they are derived from |
//! | [`signing`] | signatures in steps |

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod cose;
pub mod keys;
pub mod platform;
pub mod realm;
pub mod signing;
pub mod token;

mod cbor;
mod claims;
mod writers;

pub use claims::{ClaimError, HashAlgorithm};
pub use writers::Window;
