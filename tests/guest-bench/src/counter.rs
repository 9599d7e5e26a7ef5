// SPDX-License-Identifier: MIT OR Apache-2.0

//! What counts instructions.

use std::arch::asm;

use anyhow::{Context, Result};
use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

/// The virtual counter.
pub fn now() -> u64 {
    let now: u64;
    // SAFETY: reads a register.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) now, options(nomem, nostack)) };
    now
}

/// Its ticks a second.
pub fn frequency() -> u64 {
    let frequency: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack)) };
    frequency
}

/// What counts all that the machine executes.
pub enum Instructions {
    /// The PMU: of a machine without a hypervisor. The virtual counter would count there how
    /// long a device takes that is QEMU's own: it runs on while the CPU waits.
    Pmu(Counter),
    /// The virtual counter: of a guest, which sees no PMU. Its devices are programs of the
    /// same CPU, which does not wait.
    Ticks,
}

impl Instructions {
    /// Starts counting.
    ///
    /// # Errors
    /// There is a PMU, and the kernel does not let this program count.
    pub fn start() -> Result<Instructions> {
        let mut builder = Builder::new(Hardware::INSTRUCTIONS);
        builder.one_cpu(0).any_pid().pinned(true);
        builder.exclude_user(false).exclude_kernel(false).exclude_hv(true);
        match builder.build() {
            Ok(mut counter) => {
                counter.enable().context("the PMU cannot be switched on")?;
                Ok(Instructions::Pmu(counter))
            }
            Err(_) => Ok(Instructions::Ticks),
        }
    }

    /// Instructions up to now, and some constant.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn read(&mut self) -> Result<u64> {
        match self {
            Instructions::Pmu(counter) => counter.read().context("the PMU does not tell"),
            Instructions::Ticks => Ok(now()),
        }
    }
}
