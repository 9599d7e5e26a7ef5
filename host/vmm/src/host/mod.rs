// SPDX-License-Identifier: MIT OR Apache-2.0

//! What this program does to its host, as any process could: reaching memory
//! in every way that user space has, and asking the kernel what it knows.

mod child;
mod facts;
mod kcore;
mod peek;
mod physical;
#[cfg(target_arch = "aarch64")]
mod probe;
mod refusal;
mod taint;
mod watchdog;

pub use child::{Child, in_child};
pub use facts::Facts;
pub use kcore::Kcore;
pub use peek::{Pin, copy_to_pipe, read_by_process_vm, read_proc_mem};
pub use physical::physical_address;
#[cfg(target_arch = "aarch64")]
pub use probe::{Touch, Touched, touch};
pub use refusal::Refusal;
pub use taint::Taint;
pub use watchdog::Watchdog;
