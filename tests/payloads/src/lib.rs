// SPDX-License-Identifier: MIT OR Apache-2.0

//! The runtime of the test payloads.
//!
//! A payload is an arm64 `Image` that Escrow starts in the host's place, at
//! EL1. It finds its machine through the device tree, runs a list of tests,
//! and says on the serial port how each ended; the test suite reads that:
//!
//! ```text
//! payload NAME: N tests
//! test NAME ... ok
//! test NAME ... FAILED: WHY
//! test NAME ... skipped: WHY
//! payload NAME: N passed, M failed, S skipped
//! ```
//!
//! Then it switches the machine off. See [`payload!`] for how one is written.

#![no_std]

pub mod arena;
pub mod board;
pub mod check;
pub mod console;
pub mod cpus;
pub mod exception;
pub mod expect;
pub mod gic_guest;
pub mod guest;
pub mod host;
pub mod hvc;
pub mod interrupts;
pub mod mmu;
pub mod probe;
pub mod random;
pub mod runner;
pub mod samples;
pub mod shape;
pub mod smc;
pub mod spoil;

use core::arch::global_asm;
use core::cell::UnsafeCell;

pub use check::{Failure, Outcome};
pub use host::Host;
pub use runner::Test;

/// Bytes of stack for each CPU.
const STACK_SIZE: usize = 256 << 10;

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_SIZE]>);

// SAFETY: Rust code never touches it; entry.S gives each CPU its own.
unsafe impl Sync for Stack {}

#[unsafe(export_name = "stacks")]
#[unsafe(link_section = ".noinit")]
static STACKS: [Stack; cpus::MAX_CPUS] =
    [const { Stack(UnsafeCell::new([0; STACK_SIZE])) }; cpus::MAX_CPUS];

global_asm!(
    include_str!("entry.S"),
    STACK_SIZE = const STACK_SIZE,
    FRAME_SIZE = const size_of::<exception::Frame>(),
);
global_asm!(include_str!("call.S"));
global_asm!(include_str!("probe.S"));

/// Makes a payload of lists of tests.
///
/// ```ignore
/// escrow_payloads::payload!("name", FIRST_TESTS, MORE_TESTS);
/// ```
#[macro_export]
macro_rules! payload {
    ($name:literal, $($tests:expr),+ $(,)?) => {
        /// Where the runtime's assembly goes on the boot CPU, with the device
        /// tree's address.
        #[unsafe(no_mangle)]
        extern "C" fn payload_start(tree: usize) -> ! {
            $crate::runner::main($name, tree, &[$($tests),+])
        }
    };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("payload panicked: {info}");
    smc::system_off()
}
