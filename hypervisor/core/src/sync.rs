// SPDX-License-Identifier: MIT OR Apache-2.0

//! The atomics and the lock of the protocols between CPUs: the real ones, or loom's
//! under `--cfg loom`, which tries all orders in which their steps can be seen
//! (`tests/interleavings.rs`).

#[cfg(not(loom))]
pub(crate) use core::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use spin::mutex::{TicketMutex, TicketMutexGuard};

#[cfg(loom)]
pub(crate) use loom::{
    hint::spin_loop,
    sync::MutexGuard as TicketMutexGuard,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
};

/// loom's lock with the interface of the real one.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct TicketMutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> TicketMutex<T> {
    pub fn new(value: T) -> TicketMutex<T> {
        TicketMutex(loom::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> TicketMutexGuard<'_, T> {
        // The lock is poisoned if a thread has panicked, which fails the test anyway.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
