// SPDX-License-Identifier: MIT OR Apache-2.0

//! The AArch64 half of Escrow: all that is at EL2 and speaks to the CPU.
//!
//! | module | subject |
//! | --- | --- |
//! | [`features`] | what the CPU has |
//! | `controls` | what EL2 lets EL1 do, for the host and for guests |
//! | `init` | bringing a CPU under Escrow, entering the host |
//! | `vectors.S`, `host` | exceptions of the host |
//! | `guest` | entering a guest, and its exits |
//! | `switch`, `switch.S`, `fp`, `debug` | the switch between the host and a guest |
//! | `vgic` | a vCPU's virtual CPU interface, and EL2's use of the physical one |
//! | `walks` | table walks for EL1, blocked while the CPU's registers belong to two VMs |
//! | `errata` | what the CPU's errata and predictors ask for |
//! | `random` | random numbers for guests |
//! | `window`, `access.S` | EL2's own map, and how it reaches the memory of VMs |
//! | `apart` | guests' data in EL2's own memory, kept apart to be wiped |
//! | `machine` | page tables, TLBs and caches for `escrow-core` |
//! | `percpu`, `smc`, `sysreg` | each CPU's data, calls to the firmware, system registers |
//! | `fault` | reporting a bug |
//! | `trace` | the trace of table writes, in test builds |
//!
//! The boot code has each CPU [`identify`] itself, places a [`PerCpu`] for each CPU, builds
//! the `Hypervisor` over [`Hardware`], [`install`]s it, and then has each CPU
//! call [`init_cpu`] and [`enter_host`].

#![no_std]
#![cfg(target_arch = "aarch64")]

mod apart;
mod controls;
mod debug;
mod errata;
mod fault;
pub mod features;
mod fp;
mod guest;
mod host;
mod init;
mod machine;
mod percpu;
mod random;
mod smc;
mod switch;
mod sysreg;
pub mod trace;
mod vgic;
mod walks;
mod window;

pub use apart::NoRuns;
pub use errata::announce;
pub use fault::{LAST_WORDS, backtrace, halt, stop_machine, stop_vms};
pub use features::{Broken, Cpu, Features, MissingFeature, Promise, identify};
pub use host::Firmware;
pub use init::{enter_host, init_cpu, install_vectors};
pub use machine::{Hardware, Installed, install};
pub use percpu::{PerCpu, STACK_SIZE, cpu_index};
pub use smc::smc;
pub use window::{BLOCK_WINDOWS, El2Tables, PAGE_WINDOWS};

core::arch::global_asm!(include_str!("fp.S"));
core::arch::global_asm!(include_str!("access.S"));
core::arch::global_asm!(
    include_str!("switch.S"),
    cpu_mpidr = const percpu::offsets::MPIDR,
    cpu_host = const percpu::offsets::HOST,
    cpu_host_stage2 = const percpu::offsets::HOST_STAGE2,
    cpu_host_controls = const percpu::offsets::HOST_CONTROLS,
    cpu_guest_controls = const percpu::offsets::GUEST_CONTROLS,
    cpu_optional = const percpu::offsets::OPTIONAL,
    cpu_guest_vectors = const percpu::offsets::GUEST_VECTORS,
    host_pc = const core::mem::offset_of!(percpu::HostRegisters, pc),
    host_timer_ctl = const core::mem::offset_of!(percpu::HostRegisters, timer_ctl),
    controls_hcr = const core::mem::offset_of!(controls::Controls, hcr),
    controls_mdcr = const core::mem::offset_of!(controls::Controls, mdcr),
    controls_ich_hcr = const core::mem::offset_of!(controls::Controls, ich_hcr),
    controls_hfgrtr = const core::mem::offset_of!(controls::Controls, hfgrtr),
    vcpu_el1 = const core::mem::offset_of!(escrow_core::vcpu::Vcpu, el1),
    vcpu_vmpidr = const core::mem::offset_of!(escrow_core::vcpu::Vcpu, vmpidr),
);

core::arch::global_asm!(
    include_str!("vectors.S"),
    hardening = const percpu::offsets::HARDENING,
    stack_top = const percpu::offsets::STACK_TOP,
    host_frame = const size_of::<host::HostFrame>(),
    fault_stack_top = const percpu::FAULT_STACK_TOP,
    lends_one = const escrow_core::hypervisor::LENDS_ONE,
    vcpu_run = const escrow_abi::call::VCPU_RUN,
);
