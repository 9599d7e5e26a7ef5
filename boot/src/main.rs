// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Escrow hypervisor: from the boot loader's jump to the host's first
//! instruction.

#![no_std]
#![no_main]

mod console;
mod early;
mod image;
mod mmu;

use core::panic::PanicInfo;

use escrow_platform::board::{self, Board, Console};
use escrow_platform::fdt::Fdt;
use escrow_platform::options::Options;
use escrow_platform::uart::Pl011;

use console::fatal;
use early::Early;
use mmu::{CpuStart, Stage1, Use};

core::arch::global_asm!(
    ".equ EARLY_SIZE, {early_size}",
    ".equ CPU_START_STACK, {cpu_start_stack}",
    ".equ SCTLR_OFF, {sctlr_off}",
    include_str!("entry.S"),
    early_size = const size_of::<Early>(),
    cpu_start_stack = const core::mem::offset_of!(CpuStart, stack_top),
    sctlr_off = const mmu::SCTLR_OFF,
);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fatal!("bug at EL2: {}", info)
}

/// Boots, with the MMU on; called by `entry.S`.
#[unsafe(no_mangle)]
extern "C" fn boot_main(early: &mut Early, _tree: u64, _entered: u64) -> ! {
    let fdt = open_tree(early);
    let stage1 = &mut early.stage1;
    open_console(&fdt, stage1);
    log::info!("Escrow {} at {:#x}", env!("CARGO_PKG_VERSION"), image::whole().start);
    let board = Board::read(&fdt).unwrap_or_else(|error| fatal!("{error}"));
    describe(&board);
    fatal!("the end")
}

/// The device tree; without one, there is nothing but to say so.
fn open_tree(early: &mut Early) -> Fdt<'static> {
    let tree = early.tree.and_then(|range| {
        // SAFETY: it was mapped to be read, and only EL2 runs.
        unsafe { early::read_tree(range) }.map_err(early::TreeError::Broken)
    });
    tree.unwrap_or_else(|error| {
        // SAFETY: this CPU halts now.
        if let Some(uart) = unsafe { early::last_resort(&mut early.stage1) } {
            console::install(uart, log::LevelFilter::Error);
        }
        fatal!("{error}")
    })
}

fn open_console(fdt: &Fdt<'static>, stage1: &mut Stage1) {
    let mut unknown = None;
    let options = Options::parse(board::own_arguments(fdt), |word| {
        unknown.get_or_insert(word.len());
    });
    let Some(Console { registers }) = Console::find(fdt) else { return };
    // SAFETY: the tree says that these are a device's registers.
    if unsafe { stage1.map(registers, Use::Device) }.is_ok() {
        // SAFETY: mapped just now, for good.
        let uart = unsafe { Pl011::new(registers.start as usize) };
        console::install(uart, options.log_level);
    }
}

#[unsafe(no_mangle)]
extern "C" fn secondary_main(_argument: u64) -> ! {
    console::halt()
}

fn describe(board: &Board<'_>) {
    log::info!("board: {}", board.model.escape_ascii());
}
