// SPDX-License-Identifier: MIT OR Apache-2.0

//! Instructions that the machine's CPU executes, by exception level.
//!
//! The PMU counts those itself, but pKVM stops it while it runs a protected VM,
//! its own work around that included. So what EL2 does for a running VM is
//! what the virtual counter counts and the PMU does not at EL0 and EL1. A
//! guest's instructions are in one or the other: they cancel out between two
//! runs of equal length, one that exits and one that does not. (The virtual
//! counter runs on while the CPU idles; a VM that runs does not idle.)

use std::arch::asm;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

/// What counts. There is one CPU, and whatever runs on it counts.
pub struct Counters {
    lower: Counter,
    own: Counter,
    /// Ticks that a reading takes at the least.
    reading: u64,
}

/// Readings at most, of which one is to be without an interrupt.
const READINGS: u32 = 64;

impl Counters {
    /// Starts counting.
    ///
    /// # Errors
    /// The kernel does not let this program count.
    pub fn start() -> Result<Counters> {
        let counter = |lower: bool| -> Result<Counter> {
            let mut builder = Builder::new(Hardware::INSTRUCTIONS);
            builder.one_cpu(0).any_pid().pinned(true);
            builder.exclude_user(!lower).exclude_kernel(!lower).exclude_hv(lower);
            let mut counter = builder.build().context("the PMU cannot count instructions")?;
            counter.enable()?;
            Ok(counter)
        };
        let (lower, own) = (counter(true)?, counter(false)?);
        let mut counters = Counters { lower, own, reading: u64::MAX };
        for _ in 0..READINGS {
            let (took, _) = counters.one_reading()?;
            counters.reading = counters.reading.min(took);
        }
        Ok(counters)
    }

    /// Has the PMU count, or not.
    ///
    /// # Errors
    /// The kernel does not let this program.
    pub fn observe(&mut self, on: bool) -> Result<()> {
        for counter in [&mut self.lower, &mut self.own] {
            let switched = if on { counter.enable() } else { counter.disable() };
            switched.context("the PMU cannot be switched")?;
        }
        Ok(())
    }

    /// Instructions at EL2 up to now while VMs run, and some constant.
    ///
    /// # Errors
    /// Somebody else uses the PMU.
    pub fn el2_of_vm(&mut self) -> Result<i64> {
        // What comes between the two counters would count in one of them only: an
        // interrupt of 4,000 instructions would be EL2's, or missing there.
        for _ in 0..READINGS {
            let (took, difference) = self.one_reading()?;
            if took <= self.reading + self.reading / 8 {
                return Ok(difference);
            }
        }
        bail!("each reading of the counters is interrupted")
    }

    /// How long it took, and the virtual counter less the PMU's.
    fn one_reading(&mut self) -> Result<(u64, i64)> {
        let before = ticks();
        let lower = read(&mut self.lower)?;
        Ok((ticks() - before, before as i64 - lower))
    }

    /// Instructions at EL2 up to now while no VM runs.
    ///
    /// # Errors
    /// Somebody else uses the PMU.
    pub fn el2(&mut self) -> Result<i64> {
        read(&mut self.own)
    }

    /// Instructions at EL0 and EL1 up to now while no VM runs.
    ///
    /// # Errors
    /// Somebody else uses the PMU.
    pub fn lower(&mut self) -> Result<i64> {
        read(&mut self.lower)
    }
}

fn read(counter: &mut Counter) -> Result<i64> {
    let data = counter.read_full()?;
    let times = data.time_enabled().zip(data.time_running());
    ensure!(times.is_none_or(|(enabled, running)| enabled == running), "the PMU was shared");
    Ok(data.count() as i64)
}

/// The virtual counter.
fn ticks() -> u64 {
    let now: u64;
    // SAFETY: reads a register.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) now, options(nomem, nostack)) };
    now
}

/// Ticks of the virtual counter a second.
pub fn frequency() -> u64 {
    let frequency: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack)) };
    frequency
}

/// Time since the counter's start.
pub fn uptime() -> Duration {
    Duration::from_secs_f64(ticks() as f64 / frequency().max(1) as f64)
}
