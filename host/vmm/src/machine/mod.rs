// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine of a guest that is an operating system.

// Until a machine has devices.
#[allow(dead_code)]
mod device;

pub use device::{InterruptLine, MmioDevice};
