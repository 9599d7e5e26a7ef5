// SPDX-License-Identifier: MIT OR Apache-2.0

//! Samples of the counter.

use core::arch::global_asm;

use escrow_abi::psci;
use escrow_payloads::gic_guest::{GICD, GICR};

global_asm!(include_str!("sample.S"));
global_asm!(
    include_str!("bench.S"),
    GICD = const GICD,
    GICR = const GICR,
    CPU_ON = const psci::CPU_ON_64,
);

unsafe extern "C" {
    fn sample_nothing(registers: *mut [u64; 8]) -> u64;
    fn sample_hvc(registers: *mut [u64; 8]) -> u64;
    fn sample_hvc_vectors(registers: *mut [u64; 8]) -> u64;
}

/// What the counter counts around nothing.
fn overhead() -> u64 {
    // SAFETY: reads the counter twice.
    unsafe { sample_nothing(&mut [0; 8]) }
}

/// Ticks that an `HVC #0` takes, with X0 to X7 before and after.
pub fn hvc(registers: &mut [u64; 8]) -> u64 {
    // SAFETY: a call of Escrow's changes no memory but pages that are in its
    // lists, and those come from the arena.
    let ticks = unsafe { sample_hvc(registers) };
    ticks - overhead()
}

/// [`hvc`], and one instruction after it that changes a vector register.
pub fn hvc_vectors(registers: &mut [u64; 8]) -> u64 {
    // SAFETY: as for `hvc`; compiled code has no use for vector registers on
    // this target.
    let ticks = unsafe { sample_hvc_vectors(registers) };
    ticks - overhead()
}
