// SPDX-License-Identifier: MIT OR Apache-2.0

//! Function identifiers of Arm's True Random Number Generator Firmware Interface 1.0 (DEN0098),
//! which guests find. Errors that have no name here are PSCI's.

/// → version, `major << 16 | minor`
pub const VERSION: u32 = 0x8400_0050;
/// function identifier → 0 if implemented
pub const FEATURES: u32 = 0x8400_0051;
/// → [`UUID`], in x0 to x3
pub const GET_UUID: u32 = 0x8400_0052;
/// number of bits, 1 to 96 → them, 32 each in x3, x2 and x1, the least significant in x3
pub const RND_32: u32 = 0x8400_0053;
/// number of bits, 1 to 192 → them, 64 each in x3, x2 and x1
pub const RND_64: u32 = 0xC400_0053;

/// There are no random numbers now; there may be later.
pub const NO_ENTROPY: u64 = -3i64 as u64;

/// Who makes the random numbers: d1a46c3e-9b52-4f0d-8c77-5e2b90f4a613, of Escrow.
pub const UUID: [u32; 4] = [0x3e6c_a4d1, 0x0d4f_529b, 0x2b5e_778c, 0x13a6_f490];
