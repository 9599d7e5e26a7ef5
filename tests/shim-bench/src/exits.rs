// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a guest's exits take that the host answers: the program, or the shim for it.

use anyhow::{Context as _, Result, ensure};
use escrow_peers::counter::Counters;
use escrow_peers::exits;
use escrow_peers::guest::{MEMORY, PAGE, Telling, What, Work, run};
use escrow_peers::lending;
use escrow_peers::row::Row;
use escrow_shim_tests::gunyah::{Mapping, Vm, function};
use escrow_shim_tests::tree::{GICD, with_gic};
use escrow_vmcore::uapi::{ConsoleArg, FUNCTION_CONSOLE};

use crate::lender::Shim;

/// Where the tree is in the first block: behind the program.
const TREE: u64 = 8 * PAGE;
/// The guest address of a console.
const CONSOLE: u64 = 0x0902_0000;
/// The offset of its flag register (PrimeCell UART, DDI 0183, 3.3.3).
const FLAGS: u64 = 0x18;
/// What is there while nothing is on the line: both FIFOs are empty, and the modem is ready.
const EMPTY: u64 = 1 << 7 | 1 << 4 | 0b111;

/// Both.
pub fn measure(shim: &Shim<'_>, counters: &mut Counters) -> Result<()> {
    to_user(shim, counters)?;
    in_kernel(shim, counters)
}

/// An interrupt controller in the VM's tree, as Linux' guests have it.
fn gic(vm: &Vm, mapping: &Mapping) -> Result<()> {
    let tree = with_gic(GICD, 1, [])?;
    ensure!(tree.len() as u64 <= PAGE, "a tree of {} bytes", tree.len());
    // SAFETY: within the mapping; nobody has a reference to it, and no VM has it yet.
    unsafe { mapping.at(TREE).copy_from_nonoverlapping(tree.as_ptr(), tree.len()) };
    // The start needs the page for itself.
    mapping.forget(TREE / PAGE, 1)?;
    vm.set_dtb(MEMORY + TREE, PAGE).context("VM_SET_DTB_CONFIG")
}

/// Loads that the program answers.
fn to_user(shim: &Shim<'_>, counters: &mut Counters) -> Result<()> {
    counters.observe(false)?;
    let (mut vm, ()) = shim.prepared(0, gic)?;
    exits::mmio_user(&mut vm, counters)?.print()
}

/// Loads that the shim's vCPU loop answers: the flags of a console.
fn in_kernel(shim: &Shim<'_>, counters: &mut Counters) -> Result<()> {
    counters.observe(false)?;
    let (mut vm, _console) = shim.prepared(0, |vm, mapping| {
        gic(vm, mapping)?;
        let console = ConsoleArg { addr: CONSOLE, interrupt: 0, flags: 0 };
        vm.add(&function(FUNCTION_CONSOLE, &console)).context("a console")
    })?;
    let overhead = lending::overhead(&mut vm, counters)?;
    let loads = Work::new(What::Loads, CONSOLE + FLAGS, 0, exits::COUNT);
    let done = run(&mut vm, loads, Telling::Each, counters)?;
    ensure!(done.sum == exits::COUNT * EMPTY, "the console's flags: {:#x} in all", done.sum);
    Row::of_ticks("exit_with_host", &done, overhead).print()
}
