// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a device's transport and its worker share.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use super::queue::Broken;
use crate::machine::InterruptLine;

/// The registers that worker and driver both change.
pub struct Status {
    name: String,
    status: AtomicU32,
    interrupts: AtomicU32,
    line: Arc<dyn InterruptLine>,
    /// The device's configuration, as the driver sees it.
    config: Mutex<Vec<u8>>,
    generation: AtomicU32,
    /// The worker is wanted: it breaks a long request off.
    hurry: AtomicBool,
    /// A fault of the driver's was told.
    told: AtomicBool,
}

impl Status {
    /// A device that was just reset.
    pub fn new(name: String, config: Vec<u8>, line: Arc<dyn InterruptLine>) -> Status {
        Status {
            name,
            status: AtomicU32::new(0),
            interrupts: AtomicU32::new(0),
            line,
            config: Mutex::new(config),
            generation: AtomicU32::new(0),
            hurry: AtomicBool::new(false),
            told: AtomicBool::new(false),
        }
    }

    /// The status register.
    pub fn get(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Sets bits of the status register.
    pub fn set(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    /// Back to how it was made, but for the configuration. The worker has
    /// stopped.
    pub fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.interrupts.store(0, Ordering::Release);
    }

    /// The interrupt status register.
    pub fn interrupts(&self) -> u32 {
        self.interrupts.load(Ordering::Acquire)
    }

    /// The driver has seen these interrupts.
    pub fn acknowledge(&self, bits: u32) {
        self.interrupts.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Interrupts the driver: a buffer was used.
    pub fn used_buffer(&self) {
        self.interrupt(VIRTIO_MMIO_INT_VRING);
    }

    fn interrupt(&self, reason: u32) {
        self.interrupts.fetch_or(reason, Ordering::AcqRel);
        // This fails only if the machine is ending.
        let _ = self.line.trigger();
    }

    /// Stops the device until the driver resets it.
    pub fn needs_reset(&self, Broken(reason): Broken) {
        self.set(VIRTIO_CONFIG_S_NEEDS_RESET);
        // §2.1.2: a driver that has not started yet is not told.
        if self.get() & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.interrupt(VIRTIO_MMIO_INT_CONFIG);
        }
        // Log this once for each device, so that a guest cannot fill a log.
        if !self.told.swap(true, Ordering::Relaxed) {
            eprintln!("escrow: {}: stopped until the guest resets it: {reason}", self.name);
        }
    }

    /// Reads from the configuration. What is behind its end is 0.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let at = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
        let length = data.len().min(config.len() - at);
        data[..length].copy_from_slice(&config[at..at + length]);
    }

    /// Changes the configuration from `offset` on, and tells the driver.
    pub fn set_config(&self, offset: usize, data: &[u8]) {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = config.get_mut(offset..offset + data.len())
            && place != data
        {
            place.copy_from_slice(data);
            self.generation.fetch_add(1, Ordering::AcqRel);
            if self.get() & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
                self.interrupt(VIRTIO_MMIO_INT_CONFIG);
            }
        }
    }

    /// Counts the changes of the configuration.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the worker has to break off what takes long.
    pub fn hurry(&self) -> bool {
        self.hurry.load(Ordering::Relaxed)
    }

    /// Says whether the worker has to break off what takes long.
    pub fn set_hurry(&self, hurry: bool) {
        self.hurry.store(hurry, Ordering::Relaxed);
    }
}
