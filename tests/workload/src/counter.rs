// SPDX-License-Identifier: MIT OR Apache-2.0

//! The virtual counter, which Linux lets user space read.

use std::arch::asm;
use std::time::Duration;

/// Ticks since the counter's start.
pub fn now() -> u64 {
    let ticks: u64;
    // SAFETY: reads a register. The barrier keeps the read where it stands
    // (DDI 0487, D12.1.2: the counter may be read early).
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nostack)) };
    ticks
}

/// Ticks a second.
pub fn frequency() -> u64 {
    let frequency: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack)) };
    frequency
}

/// Time since the counter's start.
pub fn uptime() -> Duration {
    Duration::from_secs_f64(now() as f64 / frequency().max(1) as f64)
}
