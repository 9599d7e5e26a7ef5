// SPDX-License-Identifier: MIT OR Apache-2.0

//! What crosses `hvc #0` between Escrow, its host and its guests.
//!
//! Every number of the interface has its one definition here: function
//! identifiers ([`call`]), errors ([`Error`]), the memory lists
//! ([`MemEntry`]), and what [`call::VCPU_RUN`] answers ([`run`]). EL2, the
//! Linux shim and the tests share this crate; it holds no logic beyond packing
//! and unpacking.
//!
//! The calling convention is the SMC Calling Convention 1.2 (Arm DEN0028): the
//! function identifier in `w0`, arguments from `x1`, results from `x0`. `x0`
//! of every vendor-hypervisor call is an [`Error`] as a sign-extended number,
//! and `x1` upwards are results. Registers that a call does not name are
//! reserved: arguments must be zero, results are zero.

#![no_std]
#![forbid(unsafe_code)]

pub mod call;
pub mod errata;
mod error;
mod handle;
mod memory;
pub mod psci;
pub mod pv_time;
pub mod rsi;
pub mod run;
pub mod trng;

pub use error::Error;
pub use handle::{Handle, HandleKind};
pub use memory::{
    BLOCK_SIZE, CREATE_BLOCKS_MAX, FrameState, LIST_MAX, MODIFY_MAX, MemEntry, ORDER_BLOCK,
    ORDER_PAGE, PAGE_SIZE, Rights,
};
