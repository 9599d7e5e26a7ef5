// SPDX-License-Identifier: MIT OR Apache-2.0

//! The gate: whether new VMs may be created. It is shut while the machine ends, that is,
//! while guests are ended and memory is zeroed before a reset or power-off.

use crate::sync::{AtomicBool, Ordering};

/// Open, or shut by one CPU.
#[derive(Debug, Default)]
pub struct Gate {
    shut: AtomicBool,
}

/// The gate is shut as long as this exists.
#[must_use = "the gate is open again when this is dropped"]
pub struct Shut<'a> {
    gate: &'a Gate,
}

impl Gate {
    /// An open gate.
    pub fn new() -> Gate {
        Gate { shut: AtomicBool::new(false) }
    }

    /// Shuts the gate; `None` if it is shut already.
    pub fn shut(&self) -> Option<Shut<'_>> {
        // The CPU that shuts the gate then examines the slots, each under its lock. A CPU
        // that has passed the gate holds the lock of the new VM's slot. Whichever takes that
        // lock second sees what the other has written before.
        let shuts = self.shut.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        shuts.is_ok().then(|| Shut { gate: self })
    }

    /// Whether a VM may be created. Needs the lock of the slot that it is to be in.
    pub fn is_open(&self) -> bool {
        !self.shut.load(Ordering::Relaxed)
    }
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.gate.shut.store(false, Ordering::Release);
    }
}
