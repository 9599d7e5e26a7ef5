// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counts what calls and guest exits take.
//!
//! On a QEMU that counts instructions, at a counter frequency of 1 GHz, a tick
//! of the counter is an instruction, at whatever exception level. Each sample
//! is the difference between a call and nothing: the `HVC` itself and what EL2
//! does until the instruction after it. The lines that `cargo xtask bench`
//! reads:
//!
//! ```text
//! bench: frequency F             ticks a second
//! bench: entered T               the counter at the payload's first instruction
//! bench: NAME min M total T n N per P
//!                                N samples, each of P operations
//! bench: NAME bytes B of CALL    bytes that a call touches
//! ```

#![no_std]
#![no_main]

mod borrower;
mod exits;
mod guest_calls;
mod interrupts;
mod longest;
mod memory;
mod sample;

use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, Readable as _};
use escrow_abi::call;
use escrow_payloads::samples::Samples;
use escrow_payloads::{Host, Outcome, Test, check_eq, println, runner, tests};

/// The counter at the payload's first instruction.
static ENTERED: AtomicU64 = AtomicU64::new(0);

const CALLS: &[Test] = tests![entered, hvc_el2];

/// Where the runtime's assembly goes on the boot CPU, with the device tree's
/// address and the counter as it was at the payload's first instruction.
#[unsafe(no_mangle)]
extern "C" fn payload_start(tree: usize, entered: u64) -> ! {
    ENTERED.store(entered, Ordering::Relaxed);
    runner::main(
        "bench",
        tree,
        &[
            CALLS,
            exits::TESTS,
            guest_calls::TESTS,
            interrupts::TESTS,
            memory::TESTS,
            longest::TESTS,
        ],
    )
}

/// Tells what the boot took.
fn entered(_host: &mut Host) -> Outcome {
    println!("bench: frequency {}", CNTFRQ_EL0.get());
    println!("bench: entered {}", ENTERED.load(Ordering::Relaxed));
    Ok(())
}

/// The shortest call there is.
fn hvc_el2(_host: &mut Host) -> Outcome {
    let mut samples = Samples::new("hvc_el2");
    for _ in 0..1000 {
        let mut registers = [call::HYP_IDENTIFY as u64, 0, 0, 0, 0, 0, 0, 0];
        samples.add(sample::hvc(&mut registers));
        check_eq!(registers, [call::IDENTIFY_INFO, 0, 0, 0, 0, 0, 0, 0], "identified");
    }
    println!("{samples}");
    Ok(())
}
