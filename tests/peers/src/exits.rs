// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's loads where it has no memory, each of which the program answers that runs
//! the guest: the exit, the way to user space and back, and the entry.

use anyhow::{Result, ensure};

use crate::counter::Counters;
use crate::guest::{ECHO, Telling, Vcpu, What, Work, run};
use crate::lending;
use crate::row::Row;

/// How many there are in a row.
pub const COUNT: u64 = 1000;
/// From one load to the next.
const STRIDE: u64 = 8;

/// Counts them.
///
/// # Errors
/// What goes wrong, or the guest does not find what the program has answered.
pub fn mmio_user(vcpu: &mut impl Vcpu, counters: &mut Counters) -> Result<Row> {
    let overhead = lending::overhead(vcpu, counters)?;
    let loads = Work::new(What::Loads, ECHO, STRIDE, COUNT);
    let done = run(vcpu, loads, Telling::Each, counters)?;
    let answers: u64 = (ECHO..ECHO + COUNT).sum();
    ensure!(done.sum == answers, "the guest found {:#x}, not {answers:#x}", done.sum);
    Ok(Row::of_ticks("mmio_user", &done, overhead))
}
