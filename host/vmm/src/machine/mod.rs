// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine of a guest that is an operating system.

// The devices that use them come one by one.
#[expect(unused)]
mod device;

#[expect(unused_imports)]
pub use device::{InterruptLine, MmioDevice};
