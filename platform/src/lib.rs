// SPDX-License-Identifier: MIT OR Apache-2.0

//! Boards and their devices, found through the device tree.
//!
//! What Escrow has to know of a machine before it can run there: its memory,
//! CPUs, console, interrupt controller and firmware ([`board`]), the host that
//! the boot loader put into memory ([`image`]), where everything goes
//! ([`layout`]), the device tree that the host gets to see ([`host_tree`]), and
//! the tables that translate EL2's own addresses ([`stage1`]). All of it is
//! computed from bytes and runs under `cargo test`; the only thing here that
//! touches hardware is [`uart`].

#![cfg_attr(not(test), no_std)]

pub mod board;
pub mod fdt;
pub mod gicr;
pub mod host_tree;
pub mod image;
pub mod layout;
pub mod options;
pub mod range;
#[cfg(test)]
mod sample;
pub mod stage1;
pub mod uart;
