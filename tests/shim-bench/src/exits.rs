// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a guest's exits take that the host answers: the program, or the shim for it.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, ensure};
use escrow_peers::counter::Counters;
use escrow_peers::exits;
use escrow_peers::guest::{Done, ECHO, MEMORY, PAGE, Telling, What, Work, run};
use escrow_peers::lending;
use escrow_peers::row::Row;
use escrow_shim_tests::gunyah::{self, Mapping, function};
use escrow_shim_tests::tree::{GICD, with_gic};
use escrow_vmcore::uapi::{ConsoleArg, FUNCTION_CONSOLE};

use crate::lender::{Shim, Vm};

/// Where the tree is in the first block: behind the program.
const TREE: u64 = 8 * PAGE;
/// The guest address of a console.
const CONSOLE: u64 = 0x0902_0000;
/// The offset of its flag register (PrimeCell UART, DDI 0183, 3.3.3).
const FLAGS: u64 = 0x18;
/// What is there while nothing is on the line: both FIFOs are empty, and the modem is ready.
const EMPTY: u64 = 1 << 7 | 1 << 4 | 0b111;

/// An interrupt controller in the VM's tree, as Linux' guests have it.
fn gic(vm: &gunyah::Vm, mapping: &Mapping) -> Result<()> {
    let tree = with_gic(GICD, 1, [])?;
    ensure!(tree.len() as u64 <= PAGE, "a tree of {} bytes", tree.len());
    // SAFETY: within the mapping; nobody has a reference to it, and no VM has it yet.
    unsafe { mapping.at(TREE).copy_from_nonoverlapping(tree.as_ptr(), tree.len()) };
    // The start needs the page for itself.
    mapping.forget(TREE / PAGE, 1)?;
    vm.set_dtb(MEMORY + TREE, PAGE).context("VM_SET_DTB_CONFIG")
}

/// A VM whose loads the program answers.
fn answered_by_program(shim: &Shim<'_>) -> Result<Vm> {
    Ok(shim.prepared(0, gic)?.0)
}

/// A VM with a console, and its file.
fn with_console(shim: &Shim<'_>) -> Result<(Vm, OwnedFd)> {
    shim.prepared(0, |vm, mapping| {
        gic(vm, mapping)?;
        let console = ConsoleArg { addr: CONSOLE, interrupt: 0, flags: 0 };
        vm.add(&function(FUNCTION_CONSOLE, &console)).context("a console")
    })
}

/// Loads that the shim's vCPU loop answers: the flags of a console.
fn flags(vm: &mut Vm, telling: Telling, counters: &mut Counters) -> Result<Done> {
    let loads = Work::new(What::Loads, CONSOLE + FLAGS, 0, exits::COUNT);
    let done = run(vm, loads, telling, counters)?;
    ensure!(done.sum == exits::COUNT * EMPTY, "the console's flags: {:#x} in all", done.sum);
    Ok(done)
}

/// Both rows.
pub fn measure(shim: &Shim<'_>, counters: &mut Counters) -> Result<()> {
    counters.observe(false)?;
    exits::mmio_user(&mut answered_by_program(shim)?, counters)?.print()?;
    let (mut vm, _console) = with_console(shim)?;
    let overhead = lending::overhead(&mut vm, counters)?;
    let done = flags(&mut vm, Telling::Each, counters)?;
    Row::of_ticks("exit_with_host", &done, overhead).print()
}

/// One row's loads, with no exits in between.
pub fn only(shim: &Shim<'_>, row: &str, counters: &mut Counters) -> Result<()> {
    counters.observe(false)?;
    if row == "mmio_user" {
        let loads = Work::new(What::Loads, ECHO, 0, exits::COUNT);
        run(&mut answered_by_program(shim)?, loads, Telling::Sum, counters)?;
    } else {
        let (mut vm, _console) = with_console(shim)?;
        flags(&mut vm, Telling::Sum, counters)?;
    }
    Ok(())
}
