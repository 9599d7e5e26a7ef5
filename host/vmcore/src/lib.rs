// SPDX-License-Identifier: MIT OR Apache-2.0

//! The shim's decisions about VMs, bindings and exits, free of any kernel.

#![no_std]
#![forbid(unsafe_code)]

pub mod uapi;
