// SPDX-License-Identifier: MIT OR Apache-2.0

//! Virtual CPUs: their registers ([`Vcpu`]), and what EL2 does when a guest
//! leaves its own code ([`Hypervisor::guest_exit`]).
//!
//! All of it works on register state in memory; the machine half loads and
//! stores it, reads the syndrome registers, and calls in here.
//!
//! [`Hypervisor::guest_exit`]: crate::hypervisor::Hypervisor::guest_exit

mod context;
mod exception;
mod exit;
mod ids;
mod interrupts;
mod physical_timer;
mod policy;
mod resume;
mod smccc;
mod stolen;
pub mod syndrome;
#[cfg(test)]
mod tests;
mod trapped;
mod trng;
mod unknown;

pub use context::{
    El1Registers, FpRegisters, GeneralRegisters, GicRegisters, NOWHERE, PSTATE_RESET, Power,
    SCTLR_EL1_RESET, TimerRegisters, Vcpu, VcpuCell, VcpuContents, VcpuGuard,
};
pub(crate) use exception::is_aarch32;
pub use exception::{Exception, ExceptionEntry, PstateFeatures, after_instruction};
pub use exit::{Answer, FaultAddress, GuestExit, Outcome, READY, Stage2Abort, Waiting};
pub use ids::GuestIds;
pub(crate) use interrupts::virtual_timer;
pub use interrupts::{GicWait, GuestCpu, MAINTENANCE, VIRTUAL_TIMER};
pub use physical_timer::{ALARM, PHYSICAL_TIMER, PhysicalTimer};
pub use policy::{Next, Waited};
pub use resume::Pending;
pub(crate) use resume::is_big_endian;
pub use smccc::Service;
pub use stolen::StolenTime;
pub use trng::TrngCall;
