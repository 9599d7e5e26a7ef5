// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine-independent half of Escrow.
//!
//! Who holds which page ([`ledger`]), how that shows in the stage-2 tables
//! ([`stage2`]), the VMs and their vCPUs ([`vm`], [`vcpu`]), and the calls that
//! change any of it ([`hypervisor`]); what EL2 lets EL1 do, from identification registers to
//! control registers ([`controls`]); what must not watch a guest ([`observers`]); devices
//! that the host reaches through EL2 ([`trap`]). Nothing here touches a register, a barrier
//! or a board: what is needed of the machine comes in through
//! [`machine::Machine`], so `cargo test` runs all of it on the build machine.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod addr;
pub mod capability;
pub mod controls;
pub mod doorbell;
pub mod errata;
pub mod gate;
pub mod hardening;
pub mod hypervisor;
pub mod ledger;
pub mod log;
pub mod machine;
pub mod observers;
pub mod psci;
pub mod stage2;
mod sync;
pub mod trap;
pub mod vcpu;
pub mod vgic;
pub mod vm;
