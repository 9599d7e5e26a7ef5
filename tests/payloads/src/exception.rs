// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a payload does with an exception: nothing, unless a probe expects it, or a test lets
//! interrupts in.

use crate::{interrupts, probe};

/// What the vectors save.
#[repr(C)]
pub struct Frame {
    /// X0 to X30.
    pub x: [u64; 31],
    /// Where the exception was taken.
    pub elr: u64,
    /// PSTATE there.
    pub spsr: u64,
    /// The syndrome.
    pub esr: u64,
    /// The address of the access, if it was one.
    pub far: u64,
    /// The stack pointer stays a multiple of 16.
    _padding: u64,
}

const _: () = assert!(size_of::<Frame>() == 288 && core::mem::offset_of!(Frame, far) == 272);

/// The vector of synchronous exceptions from EL1 with its own stack pointer.
const SYNCHRONOUS: u64 = 4;
/// That of its interrupts.
const INTERRUPT: u64 = 5;

#[unsafe(no_mangle)]
extern "C" fn payload_exception(frame: &mut Frame, vector: u64) {
    let handled = match vector {
        SYNCHRONOUS => probe::handle(frame),
        INTERRUPT => {
            interrupts::handle(frame);
            true
        }
        _ => false,
    };
    if !handled {
        panic!(
            "unexpected exception, vector {vector}: ESR {:#x} FAR {:#x} ELR {:#x} (image + {:#x}) LR {:#x}",
            frame.esr,
            frame.far,
            frame.elr,
            frame.elr.wrapping_sub(crate::board::image().start),
            frame.x[30],
        );
    }
}
