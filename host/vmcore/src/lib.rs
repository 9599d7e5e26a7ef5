// SPDX-License-Identifier: MIT OR Apache-2.0

//! The shim's decisions about VMs, bindings and exits, free of any kernel.
//!
//! The kernel's side asks and does; this crate answers. What it asks with
//! comes from user space ([`uapi`]) or from Escrow ([`hypercall`]), and none
//! of it is believed before it has been checked here.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod args;
pub mod binding;
pub mod console;
pub mod doorbell;
mod errno;
pub mod exit;
pub mod function;
pub mod hypercall;
pub mod interrupts;
pub mod ioeventfd;
pub mod lifecycle;
pub mod line;
pub mod losses;
pub mod metadata;
pub mod pl011;
pub mod ring;
pub mod stolen;
pub mod tree;
pub mod uapi;
pub mod vcpus;
pub mod vm;

pub use errno::Errno;
