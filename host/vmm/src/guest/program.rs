// SPDX-License-Identifier: MIT OR Apache-2.0

use std::arch::global_asm;

use super::protocol::{self, op};

global_asm!(
    include_str!("program.S"),
    WINDOW = const protocol::WINDOW,
    OPERATION = const protocol::OPERATION,
    ARGUMENTS = const protocol::ARGUMENTS,
    ANSWER = const protocol::ANSWER,
    DATA = const protocol::DATA,
    EXCEPTION_FAR = const protocol::EXCEPTION_FAR,
    EXCEPTION_ESR = const protocol::EXCEPTION_ESR,
    EXCEPTION = const protocol::EXCEPTION,
    OP_COUNT = const op::COUNT,
    SYSTEM_OFF = const escrow_abi::psci::SYSTEM_OFF,
);

/// The guest's program. It runs at any guest address that is a multiple of
/// 2 KiB, from its first byte.
pub fn program() -> &'static [u8] {
    unsafe extern "C" {
        static escrow_guest_program: u8;
        static escrow_guest_program_end: u8;
    }
    let start = &raw const escrow_guest_program;
    let end = &raw const escrow_guest_program_end;
    let size = end as usize - start as usize;
    // SAFETY: program.S defines both symbols around one stretch of .rodata,
    // which is initialised, never written, and there as long as the program is.
    unsafe { std::slice::from_raw_parts(start, size) }
}
