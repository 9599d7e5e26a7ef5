// SPDX-License-Identifier: MIT OR Apache-2.0

//! The whole stack: Debian as the host, the shim, the `escrow` program, guests.

mod attack;
mod demo;
mod devices;
mod dump;
mod faults;
mod guest;
mod liar;
mod long;
mod machine;
mod module;
mod power;
mod shim;
mod soak;
mod stat;
