// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine of fake memory, and the hypervisor on top of it as its host sees
//! it.

mod guests;
mod host;
mod machine;
mod memory;
mod tables;

pub use guests::{Called, HVC, exit_of, guest};
pub use host::*;
pub use machine::{Fake, Interrupts};
pub use memory::Memory;
