// SPDX-License-Identifier: MIT OR Apache-2.0

//! What [`call::VCPU_RUN`](crate::call::VCPU_RUN) answers: a state in `x1` and
//! data in `x2`–`x4`, and the resume data that the next call brings along.
//!
//! States below 0x100 are Gunyah's.

/// A physical interrupt, or another reason that is the host's own, ended the
/// run. Call again.
pub const READY: u64 = 0;
/// The guest waits for an interrupt. data 0: 0; data 1: 0; data 2: the counter
/// value (`CNTVCT_EL0` of the host) at which its timer fires, all ones if none is armed.
pub const EXPECTS_WAKEUP: u64 = 1;
/// The vCPU is switched off (PSCI CPU_OFF, or never switched on). A sibling's
/// run that ends in [`SWITCHED_ON`] says when to call again.
pub const POWERED_OFF: u64 = 2;
/// The guest reads MMIO. data 0: guest address; data 1: size in bytes (1, 2,
/// 4 or 8). Resume data 0: the value read; resume data 1: an `ACTION_*`.
pub const MMIO_READ: u64 = 4;
/// The guest writes MMIO. data 0: guest address; data 1: size in bytes;
/// data 2: the value. Resume data 1: an `ACTION_*`.
pub const MMIO_WRITE: u64 = 5;
/// The guest touched declared memory that is not there, or not with the
/// rights it needs. data 0: guest address; data 1: size of the missing piece
/// (bytes); data 2: bit 0 set for a write, bit 1 for an instruction fetch.
/// Resume data 1: an `ACTION_*`, where `ACTION_EMULATE` counts as a retry.
pub const PAGE_FAULT: u64 = 7;
/// The guest is down. data 0: 0 switched off, 1 reset asked for.
pub const SYSTEM_DOWN: u64 = 0x100;
/// The guest did what cannot be emulated, for instance MMIO by an instruction without a
/// syndrome. data 0: `ESR_EL2`; data 1: guest address. Resume data 1:
/// `ACTION_FAULT` injects an abort into the guest, `ACTION_RETRY` runs the
/// instruction again.
pub const FAULT: u64 = 0x101;
/// The guest asks its host to lose sight of pages that it had opened
/// ([`MEM_ASK_BACK`](crate::call::MEM_ASK_BACK)). data 0: guest address; data
/// 1: size (bytes). The host lets go of the pages and makes
/// [`MEM_TAKE_BACK`](crate::call::MEM_TAKE_BACK), or does not; the guest learns
/// which from EL2 when its vCPU runs again.
pub const TAKE_BACK: u64 = 0x102;

/// The guest has switched a vCPU on (PSCI CPU_ON). data 0: its index. That
/// vCPU's run, if it has ended in [`POWERED_OFF`], is to begin again; the one
/// that ended with this goes on like after [`READY`].
pub const SWITCHED_ON: u64 = 0x103;

/// The guest has interrupted vCPUs that wait ([`EXPECTS_WAKEUP`]): by an SGI, or by changing
/// where an interrupt goes. It may have switched one of them on as well, as [`SWITCHED_ON`] says of
/// one alone, or itself off. data 0: which ones, a bit each by index. Their runs are to begin again,
/// as for [`SPI_INPUT`](crate::call::SPI_INPUT); the one that ended with this goes on like after
/// [`READY`].
pub const WAKE: u64 = 0x104;
/// The guest is done with an SPI that was
/// [`INPUT_HIGH_UNTIL_DONE`](crate::call::INPUT_HIGH_UNTIL_DONE). The host makes
/// [`SPI_DONE`](crate::call::SPI_DONE) calls until there is none left. data 0: vCPUs to
/// run as well, as for [`WAKE`]. The run goes on like after [`READY`].
pub const SPI_DONE: u64 = 0x105;
/// A call of the guest needs pages for the VM's tables. data 0: how many are missing. The host tops
/// the VM up ([`VM_TOP_UP`](crate::call::VM_TOP_UP)), and the guest makes its call again when
/// its vCPU runs again. The run goes on like after [`READY`].
pub const TOP_UP: u64 = 0x106;

/// Resume action: done, with the value in resume data 0 for a read.
pub const ACTION_EMULATE: u64 = 0;
/// Resume action: run the instruction again.
pub const ACTION_RETRY: u64 = 1;
/// Resume action: inject a synchronous external abort into the guest.
pub const ACTION_FAULT: u64 = 2;

/// [`PAGE_FAULT`]'s data 2: the access is a write.
pub const FAULT_WRITE: u64 = 1 << 0;
/// [`PAGE_FAULT`]'s data 2: the access is an instruction fetch.
pub const FAULT_EXECUTE: u64 = 1 << 1;
