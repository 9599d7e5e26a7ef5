// SPDX-License-Identifier: MIT OR Apache-2.0

//! QEMU's firmware configuration: all of it that moves bytes through the CPU, and
//! nothing of its DMA, which would reach every page of the machine.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use escrow_abi::{BLOCK_SIZE, PAGE_SIZE};
use escrow_payloads::expect::is_taken_away;
use escrow_payloads::guest::{Agent, FREE};
use escrow_payloads::host::{fill, is_filled, page_at, peek, poke, refused};
use escrow_payloads::{
    Failure, Host, Outcome, Test, board, check, check_eq, cpus, fail, mmu, probe, tests,
};

pub const TESTS: &[Test] = tests![
    items_are_read_by_accesses_of_every_size,
    a_load_fills_the_register_that_it_names,
    a_store_takes_the_register_that_it_names,
    the_device_says_that_it_has_no_dma,
    dma_does_what_it_is_told_without_escrow,
    dma_reaches_no_page,
    other_accesses_fault,
    neighbours_are_devices_as_before,
    cpus_that_trap_at_once_all_get_on,
];

/// Items.
const SIGNATURE: u16 = 0;
const ID: u16 = 1;
/// One that is not there: it reads as zeros.
const NONE: u16 = 0x3fff;

/// Bits of a descriptor's control word.
const READ: u32 = 2;
const SELECT: u32 = 8;

/// Registers.
#[derive(Clone, Copy)]
struct FwCfg(u64);

impl FwCfg {
    fn find() -> Outcome<FwCfg> {
        let tree = board::tree();
        let node = tree.find_compatible(&["qemu,fw-cfg-mmio"]);
        let region = node.and_then(|node| node.reg()?.next());
        match region {
            Some(region) => Ok(FwCfg(region.starting_address as u64)),
            None => fail!("no fw_cfg in the device tree"),
        }
    }

    fn dma(self) -> u64 {
        self.0 + 16
    }

    fn select(self, item: u16) {
        let (at, key) = (self.0 + 8, item.to_be() as u64);
        // SAFETY: the device's selector. A volatile store may become one with
        // write-back, which no syndrome describes.
        unsafe { asm!("strh {0:w}, [{1}]", in(reg) key, in(reg) at, options(nostack)) };
    }

    fn byte(self) -> u8 {
        let byte: u64;
        // SAFETY: the device's data register; the instruction as above.
        unsafe { asm!("ldrb {0:w}, [{1}]", out(reg) byte, in(reg) self.0, options(nostack)) };
        byte as u8
    }

    fn item(self, item: u16) -> [u8; 4] {
        self.select(item);
        core::array::from_fn(|_| self.byte())
    }
}

/// Makes a descriptor: `length` bytes of an item to `to`. Returns its address as the
/// DMA register takes it.
fn descriptor(at: u64, item: u16, length: u32, to: u64) -> u64 {
    let control = (item as u32) << 16 | SELECT | READ;
    // Big-endian: control, length, address.
    poke(at, (control.to_be() as u64) | (length.to_be() as u64) << 32);
    poke(at + 8, to.to_be());
    mmu::clean(at, 16);
    at.to_be()
}

fn items_are_read_by_accesses_of_every_size(_: &mut Host) -> Outcome {
    let device = FwCfg::find()?;
    check_eq!(device.item(SIGNATURE), *b"QEMU");
    check_eq!(device.item(NONE), [0; 4]);
    let signature = u32::from_le_bytes(*b"QEMU") as u64;
    for (name, expected) in [
        ("load8", signature & 0xff),
        ("load16", signature & 0xffff),
        ("load32", signature),
        ("load64", signature),
    ] {
        device.select(SIGNATURE);
        let Some(access) = probe::ACCESSES.iter().find(|access| access.name == name) else {
            fail!("no {name}");
        };
        check_eq!(access.run(device.0, 0), Ok(expected), "{name}");
    }
    Ok(())
}

/// Loads a sign-extended byte into each register.
macro_rules! load_into {
    ($device:expr, $($register:literal)*) => {$({
        let (value, narrow): (u64, u64);
        $device.select(SIGNATURE);
        // SAFETY: the device's data register; what the register held is put back.
        unsafe {
            asm!(
                concat!("mov x9, x", $register),
                concat!("ldrb w", $register, ", [x12]"),
                concat!("mov x10, x", $register),
                concat!("ldrsb x", $register, ", [x12]"),
                concat!("mov x11, x", $register),
                concat!("mov x", $register, ", x9"),
                out("x9") _,
                out("x10") value,
                out("x11") narrow,
                in("x12") $device.0,
                options(nostack),
            );
        }
        check_eq!((value, narrow), (b'Q' as u64, b'E' as u64), "x{}", $register);
    })*};
}

fn a_load_fills_the_register_that_it_names(_: &mut Host) -> Outcome {
    let device = FwCfg::find()?;
    load_into!(device, 18 19 20 21 22 23 24 25 26 27 28 29 30);
    let (low, high): (u64, u64);
    device.select(SIGNATURE);
    // SAFETY: as above.
    unsafe {
        asm!(
            "ldrh w0, [x12]",
            "ldrh w17, [x12]",
            in("x12") device.0,
            out("x0") low,
            out("x17") high,
            options(nostack),
        );
    }
    check_eq!((low, high), (0x4551, 0x554d));
    Ok(())
}

fn a_store_takes_the_register_that_it_names(_: &mut Host) -> Outcome {
    let device = FwCfg::find()?;
    let at = device.0 + 8;
    macro_rules! store_from {
        ($($register:literal)*) => {$({
            device.select(NONE);
            // SAFETY: the device's selector; the register is put back.
            unsafe {
                asm!(
                    concat!("mov x9, x", $register),
                    concat!("mov w", $register, ", wzr"),
                    concat!("strh w", $register, ", [x12]"),
                    concat!("mov x", $register, ", x9"),
                    out("x9") _,
                    in("x12") at,
                    options(nostack),
                );
            }
            check_eq!(device.byte(), b'Q', "x{}", $register);
        })*};
    }
    store_from!(18 19 20 21 22 23 24 25 26 27 28 29 30);
    device.select(NONE);
    // SAFETY: as above.
    unsafe { asm!("strh wzr, [{at}]", at = in(reg) at, options(nostack)) };
    check_eq!(device.byte(), b'Q');
    Ok(())
}

fn the_device_says_that_it_has_no_dma(host: &mut Host) -> Outcome {
    let device = FwCfg::find()?;
    let expected = if host.board.has_escrow { 1 } else { 3 };
    check_eq!(device.item(ID), [expected, 0, 0, 0]);
    device.select(ID);
    check_eq!(probe::read(device.0), Ok(expected as u64));
    Ok(())
}

fn dma_does_what_it_is_told_without_escrow(host: &mut Host) -> Outcome {
    if host.board.has_escrow {
        return Err(Failure::Skipped("not with Escrow"));
    }
    let device = FwCfg::find()?;
    let [page, target] = [host.page(), host.page()];
    fill(target, 1);
    let command = descriptor(page, SIGNATURE, 4, target);
    check_eq!(probe::write(device.dma(), command), Ok(()));
    check_eq!(peek(page) as u32, 0, "it is done");
    check_eq!(peek(target) as u32, u32::from_le_bytes(*b"QEMU"));
    Ok(())
}

fn dma_reaches_no_page(host: &mut Host) -> Outcome {
    if !host.board.has_escrow {
        return Err(Failure::Skipped("not without Escrow"));
    }
    let device = FwCfg::find()?;
    let agent = Agent::start(host)?;
    let lent = host.page();
    fill(lent, 1);
    host.lists.lend(agent.vm, &[page_at(lent, FREE)]).map_err(refused("MEM_LEND"))?;
    agent.store(FREE, 0x5ec7e7)?;
    let [page, own] = [host.page(), host.page()];
    fill(own, 2);
    for target in [lent, own] {
        // Writes what it reads, or zeros.
        for item in [SIGNATURE, NONE] {
            let command = descriptor(page, item, PAGE_SIZE as u32, target);
            let before = peek(page);
            match probe::write(device.dma(), command) {
                Err(fault) => is_taken_away(fault, device.dma(), true)?,
                Ok(()) => fail!("the DMA register takes {command:#x}"),
            }
            // In two halves, the second of which starts it.
            for (offset, half) in [(0, command as u32), (4, (command >> 32) as u32)] {
                let at = device.dma() + offset;
                match store32(at, half) {
                    Err(fault) => is_taken_away(fault, at, true)?,
                    Ok(_) => fail!("the DMA register takes half of {command:#x}"),
                }
            }
            check_eq!(peek(page), before, "the device has seen the descriptor");
        }
    }
    check_eq!(agent.load(FREE)?, 0x5ec7e7);
    check!(is_filled(own, 2));
    host.end(agent.vm)
}

fn store32(at: u64, value: u32) -> Result<u64, probe::Fault> {
    let access = probe::ACCESSES.iter().find(|access| access.name == "store32");
    access.map_or(Ok(0), |access| access.run(at, value.into()))
}

fn other_accesses_fault(host: &mut Host) -> Outcome {
    if !host.board.has_escrow {
        return Err(Failure::Skipped("not without Escrow"));
    }
    let device = FwCfg::find()?;
    // What the syndrome does not describe.
    for access in probe::ACCESSES {
        let single = ["load8", "load16", "load32", "load64", "load_acquire"];
        if single.contains(&access.name) {
            continue;
        }
        match access.run(device.0, 0) {
            Ok(_) => fail!("{} works", access.name),
            Err(fault) => is_taken_away(fault, device.0, access.is_write)?,
        }
    }
    // Where there is no register, to the end of the page.
    for at in (device.0 + 8..(device.0 & !(PAGE_SIZE - 1)) + PAGE_SIZE).step_by(8) {
        match probe::read(at) {
            Ok(value) => fail!("{at:#x} reads {value:#x}"),
            Err(fault) => is_taken_away(fault, at, false)?,
        }
    }
    // A fetch, through a mapping that lets it.
    let (table, view) = (host.page(), 300 * mmu::GIB + device.0 % BLOCK_SIZE);
    for n in 0..512 {
        poke(table + n * 8, mmu::block_entry(device.0 & !(BLOCK_SIZE - 1)));
    }
    mmu::set_table(300, table);
    let fetch = probe::fetch(view).map_err(|f| (f.class(), f.status(), f.far));
    mmu::clear_table(300);
    check_eq!(fetch, Err((0x21, 0x10, view)));
    // All is as before.
    check_eq!(device.item(SIGNATURE), *b"QEMU");
    Ok(())
}

fn neighbours_are_devices_as_before(host: &mut Host) -> Outcome {
    let device = FwCfg::find()?;
    // QEMU's real-time clock is in the 64 KiB before, PL061 in those behind: their
    // cells of identification (PrimeCell).
    for (at, low) in [(device.0 - 0x1_0000, 0x31), (device.0 + 0x1_0000, 0x61)] {
        check_eq!(probe::read(at + 0xfe0).map(|id| id & 0xff), Ok(low), "{at:#x}");
    }
    check!(host.board.distributor.is_some_and(|at| probe::read(at).is_ok()));
    Ok(())
}

fn cpus_that_trap_at_once_all_get_on(_: &mut Host) -> Outcome {
    cpus::need(2)?;
    let device = FwCfg::find()?;
    let bad = AtomicU64::new(0);
    // Which item is selected is the machine's, so they all read the same one: each byte is
    // one of its four, and no CPU waits for ever.
    device.select(SIGNATURE);
    cpus::on_all(|_| {
        for _ in 0..2000 {
            device.select(SIGNATURE);
            if !b"QEMU\0".contains(&device.byte()) {
                bad.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    check_eq!(bad.load(Ordering::Relaxed), 0);
    Ok(())
}
