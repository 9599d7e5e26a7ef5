// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Escrow hypervisor: from the boot loader's jump to the host's first
//! instruction.
//!
//! | module | subject |
//! | --- | --- |
//! | `entry.S` | where CPUs enter, MMU off |
//! | [`early`] | the map that it takes to switch the MMU on |
//! | [`mmu`] | EL2's own translation |
//! | [`memory`] | working memory, stacks, the map of all RAM |
//! | [`pool`] | the boot pool |
//! | [`host`] | the host's kernel and device tree |
//! | [`smp`] | CPUs and PSCI |
//! | [`console`] | log and last words |

#![no_std]
#![no_main]

mod console;
mod early;
mod gic;
mod host;
mod image;
mod memory;
mod mmu;
mod pool;
mod smp;

extern crate alloc;

use alloc::boxed::Box;

use core::panic::PanicInfo;

use aarch64_cpu::registers::{CNTPCT_EL0, Readable};
use arrayvec::ArrayVec;
use escrow_aarch64::{Cpu as Identity, Hardware, Installed, LAST_WORDS, Promise, identify};
use escrow_core::addr::PhysRange;
use escrow_core::hypervisor::{Hypervisor, Setup, Sizes, max_guests};
use escrow_core::ledger::{Gib, GuestId};
use escrow_core::trap::{Trap, TrapKind};
use escrow_core::vm::{Counts, Slot};
use escrow_platform::board::{Board, Console, MAX_RAM, MAX_RESERVED, Outline};
use escrow_platform::fdt::Fdt;
use escrow_platform::host_tree::Changes;
use escrow_platform::layout::{BLOCK, Layout, Loaded, MAX_PIECES, Needs};
use escrow_platform::options::Options;
use escrow_platform::range::Range;
use escrow_platform::uart::Uart;

use console::fatal;
use early::Early;
use memory::{Arena, STACKS, phys, stacks_size, tables_for};
use mmu::{CpuStart, El2Map, PAGE, Use};

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
    escrow_aarch64::stop_vms();
    log::error!(target: LAST_WORDS, "bug at EL2: {info}");
    escrow_aarch64::backtrace();
    log::error!(target: LAST_WORDS, "==== Escrow has failed: this machine stops here ====");
    escrow_aarch64::stop_machine()
}

/// Boots, with the MMU on; called by `entry.S`. `entered` is the counter's
/// value at the first instruction.
#[unsafe(no_mangle)]
extern "C" fn boot_main(early: &mut Early, entered: u64) -> ! {
    escrow_aarch64::install_vectors();
    let (fdt, tree) = open_tree(early);
    let outline = Outline::of(&fdt);
    let options = open_console(&outline, &mut early.stage1);
    let board = Board::read(&outline).unwrap_or_else(|error| fatal!("{error}"));
    describe(&board);
    let identity = identify();
    identity.check().unwrap_or_else(|error| fatal!("{error}"));

    let ram: ArrayVec<PhysRange, MAX_RAM> = board.ram.iter().map(phys).collect();
    let guests = guests(&options, &Promise::of(&identity));
    let sizes = Sizes::of(&ram, guests).unwrap_or_else(|error| fatal!("memory: {error:?}"));
    let layout = plan(&fdt, tree, &board, &sizes, &mut early.stage1);
    for piece in &layout.working {
        log::info!("memory: image {}, ledger and tables {piece}", layout.image);
    }

    let cpus = board.cpus.len();
    let tables = el2_tables(&board, &sizes);
    // SAFETY: the layout found working memory to be free.
    let (mut arena, stacks) =
        unsafe { memory::map_own(&mut early.stage1, tables, layout.working.clone(), cpus) }
            .unwrap_or_else(|error| fatal!("{error}"));
    let pool = pool_size(cpus);
    let Some(start) = arena.take(pool, pool) else { fatal!("working memory is too small") };
    // SAFETY: fresh memory, mapped as data.
    unsafe { pool::give(start, pool) };
    if let Some(registers) = board.fw_cfg {
        // SAFETY: the tree says that these are a device's registers.
        if let Err(error) = unsafe { early.stage1.map(registers, Use::Device) } {
            fatal!("cannot map fw_cfg at {registers}: {error}");
        }
    }
    let el2 =
        memory::prepare_changes(&mut early.stage1, &mut arena, &board.ram, sizes.metadata_tables)
            .unwrap_or_else(|error| fatal!("{error}"));
    // SAFETY: the tree says that these are the redistributors' registers.
    let redistributors =
        unsafe { gic::Redistributors::map(&board.gic, &board.cpus, &mut early.stage1) };
    let start = early.stage1.cpu_start();
    let Some(slots) = smp::Slots::new(&stacks, &board.cpus, &start, &redistributors) else {
        fatal!("the device tree does not describe the CPU that boots")
    };
    let promise = slots.ask(&identity);
    describe_promise(&identity, &promise);
    let guests = guests.min(max_guests(&promise.features.stage2).into());
    let hypervisor =
        set_up(&mut arena, &ram, &board, &layout, guests, Hardware::new(&promise, el2));
    let cpus = smp::Cpus::new(slots, hypervisor, promise);
    let installed = Box::leak(Box::new(Installed { hypervisor, firmware: cpus }));
    escrow_aarch64::install(installed);
    pool::close();

    // SAFETY: only this CPU runs, and the layout's ranges for the host are free.
    unsafe { host::prepare(&board, &fdt, &layout, &mut early.stage1) };
    // From here on there is neither the tree nor what was read of it.
    // SAFETY: the host has all that it needs, and what is left to be done is done in
    // Escrow's own memory.
    unsafe { memory::leave_ram(&mut early.stage1, &board.ram, &layout.escrow()) }
        .unwrap_or_else(|error| fatal!("{error}"));
    let ticks = CNTPCT_EL0.get().wrapping_sub(entered);
    log::info!("host: kernel at {:#x}; EL2's boot took {ticks} ticks", layout.kernel.start);
    escrow_aarch64::announce(&hypervisor.machine, &identity);
    console::leave_to_host();
    // SAFETY: the machine is set up, this is the boot CPU, and what is on its
    // stack is not used by others.
    unsafe { cpus.start_host(layout.kernel.start, layout.host_tree.start) }
}

/// The device tree and where it is; without one, there is nothing but to say
/// so.
fn open_tree(early: &mut Early) -> (Fdt<'static>, Range) {
    let tree = early.tree.and_then(|range| {
        // SAFETY: it was mapped as data, and only EL2 runs.
        let fdt = unsafe { early::read_tree(range) }.map_err(early::TreeError::Broken)?;
        Ok((fdt, range))
    });
    tree.unwrap_or_else(|error| {
        // SAFETY: this CPU halts now.
        if let Some(uart) = unsafe { early::last_resort(&mut early.stage1) } {
            console::install(uart);
            console::start_log_of_errors();
        }
        fatal!("{error}")
    })
}

fn open_console(outline: &Outline<'_, '_>, stage1: &mut El2Map) -> Options {
    let arguments = outline.own_arguments();
    let options = Options::parse(arguments, |_| {});
    console::start_log(&options);
    if let Some(Console { registers, kind }) = Console::find(outline) {
        // SAFETY: the tree says that these are a device's registers.
        if unsafe { stage1.map(registers, Use::Device) }.is_ok() {
            // SAFETY: mapped just now, for good.
            let uart = unsafe { Uart::new(kind, registers.start as usize) };
            console::install(uart);
        }
    }
    log::info!("Escrow {} at {:#x}", env!("CARGO_PKG_VERSION"), image::whole().start);
    Options::parse(arguments, |word| {
        log::warn!("unknown option: {}", word.escape_ascii());
    });
    options
}

/// How many guests there may be at a time: as many as were asked for, as far as VMIDs go.
fn guests(options: &Options, promise: &Promise) -> usize {
    let most = max_guests(&promise.features.stage2);
    if options.guests.get() > most {
        log::warn!("guests={}: this CPU's VMIDs are enough for {most}", options.guests);
    }
    options.guests.get().min(most).into()
}

/// Says what of this CPU the host does not see.
fn describe_promise(own: &Identity, promise: &Promise) {
    let hidden = promise.hidden_of(own).count();
    if hidden != 0 {
        log::info!("CPUs: {hidden} ID fields are not the host's");
    }
    for field in promise.hidden_of(own) {
        log::debug!("the host does not see {}", field.name);
    }
}

fn describe(board: &Board<'_>) {
    log::info!(
        "board: {}, {} CPUs, {} MiB of RAM, GICv3 at {:#x}",
        board.model.escape_ascii(),
        board.cpus.len(),
        board.ram.size() >> 20,
        board.gic.distributor.start,
    );
    for range in &board.ram {
        log::debug!("RAM {range}");
    }
    for range in &board.reserved {
        log::debug!("reserved {range}");
    }
    for range in &board.gic.redistributors {
        log::debug!("redistributors {range}");
    }
    log::debug!("host kernel {}", board.kernel.range);
    if let Some(module) = board.ramdisk {
        log::debug!("host ramdisk {}", module.range);
    }
}

/// Where everything goes, after a look at what is there.
fn plan(
    fdt: &Fdt<'_>,
    tree: Range,
    board: &Board<'_>,
    sizes: &Sizes,
    stage1: &mut El2Map,
) -> Layout {
    let loaded = Loaded {
        ram: board.ram.as_slice(),
        reserved: board.reserved.as_slice(),
        image: image::whole(),
        tree,
        kernel: board.kernel.range,
        ramdisk: board.ramdisk.map(|module| module.range),
    };
    let free = loaded.check().unwrap_or_else(|error| fatal!("{error}"));
    let changes = Changes { escrow: &[], ramdisk: None, arguments: board.kernel.arguments };
    let needs = Needs {
        kernel: host::read_image(&board.kernel, stage1),
        working_size: working_size(board, sizes),
        working_unit: working_unit(board, sizes),
        host_tree_size: changes.size_bound(fdt) as u64,
    };
    free.plan(&needs).unwrap_or_else(|error| fatal!("{error}"))
}

/// Working memory that Escrow needs, in bytes, in whole blocks.
fn working_size(board: &Board<'_>, sizes: &Sizes) -> u64 {
    let pages = sizes.tables + sizes.frames + sizes.zeroed + sizes.metadata_tables;
    let gibs = sizes.gibs * (size_of::<Gib>() + align_of::<Gib>());
    // The pool may have to begin at a multiple of its size.
    let rest = fixed_size(board, sizes) + 2 * pool_size(board.cpus.len()) + gibs as u64 + 4 * PAGE;
    let rest = rest + directory_size(sizes) + slots_size(sizes) + trace_size();
    (pages as u64 * PAGE + rest).next_multiple_of(BLOCK)
}

/// The most that is taken of working memory at a time, in bytes. What may be in
/// several pieces (records, tables) is taken by the page.
fn working_unit(board: &Board<'_>, sizes: &Sizes) -> u64 {
    let pool = 2 * pool_size(board.cpus.len());
    // A root of 16 tables at a multiple of its size.
    let root = 32 * PAGE;
    let gib = (size_of::<Gib>() + align_of::<Gib>()) as u64;
    let lists = [directory_size(sizes), slots_size(sizes), trace_size()];
    let all = [fixed_size(board, sizes), pool, root, gib].into_iter().chain(lists);
    all.max().unwrap_or(0)
}

/// Bytes of EL2's own tables and of the stacks.
fn fixed_size(board: &Board<'_>, sizes: &Sizes) -> u64 {
    el2_tables(board, sizes) as u64 * PAGE + stacks_size(board.cpus.len())
}

/// Tables of EL2's own map.
fn el2_tables(board: &Board<'_>, sizes: &Sizes) -> usize {
    // Escrow's pieces, with a hole for each stack's guard; what boot needs of the host's:
    // kernel, where it goes, tree; the redistributors, at least 8 to 2 MiB.
    let redistributors = board.gic.redistributors.len() + board.cpus.len().div_ceil(8);
    let pieces = MAX_PIECES + STACKS * board.cpus.len() + 3 + redistributors;
    tables_for(pieces, sizes.gibs + board.ram.as_slice().len())
}

/// Bytes of the ledger's directory.
fn directory_size(sizes: &Sizes) -> u64 {
    (sizes.directory * size_of::<Option<&Gib>>()) as u64
}

/// Bytes of guests' slots and of their counts.
fn slots_size(sizes: &Sizes) -> u64 {
    (sizes.guests * (size_of::<Slot>() + size_of::<Counts>()) + align_of::<Slot>()) as u64
}

/// Bytes of the trace, in builds that write one.
const fn trace_size() -> u64 {
    #[cfg(feature = "trace")]
    let size = TRACE_EVENTS * size_of::<escrow_aarch64::trace::Cell>();
    #[cfg(not(feature = "trace"))]
    let size = 0;
    size as u64
}

/// Bytes of the boot pool.
fn pool_size(cpus: usize) -> u64 {
    let fixed = [size_of::<Hypervisor<Hardware>>(), size_of::<Installed>(), PAGE as usize];
    pool::size_for(fixed.into_iter().chain(smp::allocations(cpus)))
}

/// Events that a trace may have: 48 MiB of them.
#[cfg(feature = "trace")]
const TRACE_EVENTS: usize = 3 << 19;

/// Has everything that happens to stage-2 tables from here on written down.
#[cfg(feature = "trace")]
fn install_trace(arena: &mut Arena) {
    // SAFETY: a cell is a few words, and zeros are one.
    match unsafe { arena.zeroed_slice(TRACE_EVENTS) } {
        Some(cells) => escrow_aarch64::trace::install(cells),
        None => fatal!("working memory is too small"),
    }
}

/// Free slots for guests.
fn guest_slots(arena: &mut Arena, guests: usize) -> Option<&'static [Slot]> {
    // SAFETY: counts are words, and zeros are some.
    let counts: &'static [Counts] = unsafe { arena.zeroed_slice(guests) }?;
    let size = guests * size_of::<Slot>();
    let first = arena.take(size as u64, align_of::<Slot>() as u64)?.cast::<Slot>();
    for (n, counts) in counts.iter().enumerate() {
        let id = GuestId::new(n as u16 + 1)?;
        // SAFETY: fresh memory for as many slots as there are counts.
        unsafe { first.add(n).write(Slot::new(id, counts)) };
    }
    // SAFETY: all of them were written, and nobody else has them.
    Some(unsafe { core::slice::from_raw_parts(first.as_ptr(), guests) })
}

/// Builds the hypervisor: ledger and host stage 2.
fn set_up(
    arena: &mut Arena,
    ram: &[PhysRange],
    board: &Board<'_>,
    layout: &Layout,
    guests: usize,
    hardware: Hardware,
) -> &'static Hypervisor<Hardware> {
    #[cfg(feature = "trace")]
    install_trace(arena);
    let pinned: ArrayVec<PhysRange, MAX_RESERVED> = board.reserved.iter().map(phys).collect();
    let withheld: ArrayVec<PhysRange, MAX_RESERVED> = board.withheld.iter().map(phys).collect();
    let escrow: ArrayVec<PhysRange, { MAX_PIECES + 1 }> =
        layout.escrow().iter().map(phys).collect();
    // Its DMA reaches all memory.
    let fw_cfg = |registers| Trap { registers: phys(registers), kind: TrapKind::FwCfg };
    let traps: ArrayVec<Trap, 1> = board.fw_cfg.iter().map(fw_cfg).collect();
    let Some(slots) = guest_slots(arena, guests) else { fatal!("working memory is too small") };
    let setup = Setup {
        ram,
        escrow: &escrow,
        pinned: &pinned,
        withheld: &withheld,
        traps: &traps,
        reserve: arena,
        slots,
        log: &console::LOG,
        features: hardware.stage2(),
    };
    // It is large; this way it is moved least.
    let place = Box::new_uninit();
    match Hypervisor::new(hardware, setup) {
        Ok(hypervisor) => Box::leak(Box::write(place, hypervisor)),
        Err(error) => fatal!("cannot set up the ledger: {error:?}"),
    }
}
