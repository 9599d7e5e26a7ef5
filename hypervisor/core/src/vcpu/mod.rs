// SPDX-License-Identifier: MIT OR Apache-2.0

//! Virtual CPUs: their registers ([`Vcpu`]), and what EL2 does when a guest
//! leaves its own code ([`Vcpu::handle`]).
//!
//! All of it works on register state in memory; the machine half loads and
//! stores it, reads the syndrome registers, and calls in here.

mod context;
mod exception;
mod resume;
pub mod syndrome;

pub use context::{
    El1Registers, FpRegisters, GeneralRegisters, PSTATE_RESET, SCTLR_EL1_RESET, TimerRegisters,
    Vcpu, VcpuCell,
};
pub use exception::{Entry, Exception, PstateFeatures};
pub use resume::Pending;
