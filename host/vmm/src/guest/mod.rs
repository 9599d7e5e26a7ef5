// SPDX-License-Identifier: MIT OR Apache-2.0

//! A small guest that does what the host tells it: a command interpreter that
//! reads its orders by MMIO and answers the same way.
//!
//! One program serves all steps of the demo, and whoever wants to see the
//! host's side of an exit: [`Interpreter::execute`] hands the guest a
//! [`Command`] and runs the vCPU until the answer is there.

#[cfg(target_arch = "aarch64")]
pub mod cpu;
#[cfg(target_arch = "aarch64")]
mod init;
mod interpreter;
#[cfg(target_arch = "aarch64")]
mod program;
mod protocol;

#[cfg(target_arch = "aarch64")]
pub use init::init;
pub use interpreter::{Failure, Interpreter, Surroundings};
#[cfg(target_arch = "aarch64")]
pub use program::program;
pub use protocol::{Command, SCRATCH, WINDOW, Width};
