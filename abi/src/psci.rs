// SPDX-License-Identifier: MIT OR Apache-2.0

//! Function identifiers and return codes of PSCI 1.1 (Arm DEN0022).

/// → version, `major << 16 | minor`
pub const VERSION: u32 = 0x8400_0000;
/// power state, entry point, context
pub const CPU_SUSPEND_32: u32 = 0x8400_0001;
/// [`CPU_SUSPEND_32`] with 64-bit arguments.
pub const CPU_SUSPEND_64: u32 = 0xC400_0001;
/// Switches the calling CPU off.
pub const CPU_OFF: u32 = 0x8400_0002;
/// target affinity, entry point, context
pub const CPU_ON_32: u32 = 0x8400_0003;
/// [`CPU_ON_32`] with 64-bit arguments.
pub const CPU_ON_64: u32 = 0xC400_0003;
/// target affinity, lowest level → 0 on, 1 off, 2 on pending
pub const AFFINITY_INFO_32: u32 = 0x8400_0004;
/// [`AFFINITY_INFO_32`] with 64-bit arguments.
pub const AFFINITY_INFO_64: u32 = 0xC400_0004;
/// → 2: no migration of a trusted OS
pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
/// Switches the machine off.
pub const SYSTEM_OFF: u32 = 0x8400_0008;
/// Resets the machine.
pub const SYSTEM_RESET: u32 = 0x8400_0009;
/// function identifier → 0 or feature flags if implemented
pub const FEATURES: u32 = 0x8400_000A;
/// entry point, context
pub const SYSTEM_SUSPEND_32: u32 = 0x8400_000E;
/// [`SYSTEM_SUSPEND_32`] with 64-bit arguments.
pub const SYSTEM_SUSPEND_64: u32 = 0xC400_000E;
/// reset type, cookie
pub const SYSTEM_RESET2_32: u32 = 0x8400_0012;
/// [`SYSTEM_RESET2_32`] with 64-bit arguments.
pub const SYSTEM_RESET2_64: u32 = 0xC400_0012;

/// Done.
pub const SUCCESS: u64 = 0;
/// No such function.
pub const NOT_SUPPORTED: u64 = -1i64 as u64;
/// An argument is wrong.
pub const INVALID_PARAMETERS: u64 = -2i64 as u64;
/// Refused.
pub const DENIED: u64 = -3i64 as u64;
/// The CPU is on already.
pub const ALREADY_ON: u64 = -4i64 as u64;
/// The CPU is being switched on.
pub const ON_PENDING: u64 = -5i64 as u64;
/// Something went wrong inside.
pub const INTERNAL_FAILURE: u64 = -6i64 as u64;
/// The entry point is no address that can be entered.
pub const INVALID_ADDRESS: u64 = -9i64 as u64;
