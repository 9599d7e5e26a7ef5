// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the machine asks of a device, and what a device asks of the machine.

use std::io;

/// A device whose registers the guest reaches by memory accesses that are
/// emulated.
///
/// `offset` is in bytes from the first register. `data` is 1, 2, 4 or 8 bytes
/// long, little-endian, and lies inside the device's window. The guest chooses
/// all of it: a device answers to each access, and never panics.
pub trait MmioDevice: Send {
    /// The guest reads: fills `data`, which is zeros before.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device's interrupt.
pub trait InterruptLine: Send + Sync {
    /// Interrupts the guest. An interrupt that the guest has not taken yet and
    /// a second one are one.
    fn trigger(&self) -> io::Result<()>;
}
