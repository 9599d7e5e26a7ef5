// SPDX-License-Identifier: MIT OR Apache-2.0

//! The AArch64 half of Escrow: all that is at EL2 and speaks to the CPU.
//!
//! | module | subject |
//! | --- | --- |
//! | [`features`] | what the CPU has |
//! | `controls` | what EL2 lets EL1 do, for the host and for guests |
//! | `init` | bringing a CPU under Escrow, entering the host |
//! | `vectors.S`, `host` | exceptions of the host |
//! | `world`, `fp`, `debug` | running a guest |
//! | `machine` | page tables, TLBs and caches for `escrow-core` |
//! | `fault` | reporting a bug |
//!
//! The boot code detects [`Features`], places a [`PerCpu`] for each CPU, builds
//! the `Hypervisor` over [`Hardware`], [`install`]s it, and then has each CPU
//! call [`init_cpu`] and [`enter_host`].

#![no_std]
#![cfg(target_arch = "aarch64")]

mod controls;
mod debug;
mod fault;
pub mod features;
mod fp;
mod host;
mod init;
mod machine;
mod percpu;
mod smc;
mod sysreg;
mod world;

pub use fault::{backtrace, halt, stop_machine};
pub use features::{Features, MissingFeature};
pub use host::Firmware;
pub use init::{enter_host, init_cpu, install_vectors};
pub use machine::{Hardware, Installed, install};
pub use percpu::{PerCpu, cpu_index};
pub use smc::smc;

core::arch::global_asm!(include_str!("fp.S"));
core::arch::global_asm!(include_str!("switch.S"));

core::arch::global_asm!(
    include_str!("vectors.S"),
    vcpu = const percpu::VCPU_OFFSET,
    fault_stack_top = const percpu::FAULT_STACK_TOP,
    fault_stack_size = const percpu::FAULT_STACK_SIZE,
);
