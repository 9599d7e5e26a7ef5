// SPDX-License-Identifier: MIT OR Apache-2.0

//! Function identifiers of Arm's Paravirtualized Time (DEN0057), and where a guest finds what.

/// function identifier → 0 if implemented
pub const FEATURES: u32 = 0xC500_0020;
/// → guest address of the calling vCPU's stolen time
pub const ST: u32 = 0xC500_0021;

/// Bytes of a vCPU's structure.
pub const STRUCTURE_SIZE: u64 = 64;
/// Where the stolen time is in it: nanoseconds, 64 bits. The 8 bytes before it are revision and
/// attributes, both 0.
pub const TIME: u64 = 8;
