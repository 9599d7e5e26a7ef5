// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the payload `bench` measures in the host's place, and the boot that
//! leads to it.

use anyhow::{Context, Result, ensure};
use xtask::artefacts::Artefacts;
use xtask::qemu::Machine;

use super::payload;
use super::report::{ESCROW, Row};

/// Measures under Escrow, and how much of the boot is QEMU's own.
pub fn measure(artefacts: &Artefacts) -> Result<Vec<Row>> {
    let program = artefacts.payloads.join("bench.img");
    let mut machine = Machine::new(&artefacts.qemu, &artefacts.image);
    machine.smp = 1;
    machine.icount = true;
    machine.load_host(&program, None, "")?;
    let mut measured = payload::run(&machine, ESCROW)?;
    measured.rows.push(boot(artefacts, ESCROW, measured.entered)?);
    measured.rows.extend(between_cpus(artefacts)?);
    Ok(measured.rows)
}

/// What takes two CPUs.
fn between_cpus(artefacts: &Artefacts) -> Result<Vec<Row>> {
    let mut machine = Machine::new(&artefacts.qemu, &artefacts.image);
    machine.smp = 2;
    machine.icount = true;
    machine.load_host(&artefacts.payloads.join("bench.img"), None, "only=sgi_running")?;
    let rows = payload::run(&machine, ESCROW)?.rows;
    ensure!(!rows.is_empty(), "nothing was measured on two CPUs");
    Ok(rows)
}

/// The row of a boot at the end of which the host's first instruction saw the
/// counter at `entered`.
pub fn boot(artefacts: &Artefacts, subject: &str, entered: Option<u64>) -> Result<Row> {
    let entered = entered.context("the program did not tell when it was entered")?;
    let boot = entered.checked_sub(entered_directly(artefacts)?);
    let boot = boot.context("the boot took less than nothing")? as f64;
    Ok(Row::instructions("boot_el2", subject, boot, boot, 1))
}

/// The counter at a payload's first instruction when QEMU starts it directly:
/// what QEMU's few instructions before any kernel take.
fn entered_directly(artefacts: &Artefacts) -> Result<u64> {
    let mut machine = Machine::new(&artefacts.qemu, artefacts.payloads.join("bench.img"));
    machine.smp = 1;
    machine.icount = true;
    machine.el2 = false;
    payload::entered(&machine)
}
