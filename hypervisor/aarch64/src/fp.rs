// SPDX-License-Identifier: MIT OR Apache-2.0

//! Floating point, SIMD and the vector extensions.

/// The host's vector registers at the largest vector length that the
/// architecture has.
#[derive(Clone)]
#[repr(C, align(16))]
pub(crate) struct HostVectors {
    /// Z0 to Z31, or V0 to V31 at the start of their slots on a CPU without SVE.
    pub z: [[u8; 256]; 32],
    /// P0 to P15.
    pub p: [[u8; 32]; 16],
    /// FFR.
    pub ffr: [u8; 32],
    pub fpsr: u64,
    pub fpcr: u64,
    pub svcr: u64,
}
