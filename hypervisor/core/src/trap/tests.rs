// SPDX-License-Identifier: MIT OR Apache-2.0

use std::sync::atomic::Ordering;

use super::*;
use crate::hypervisor::HostAbort;
use crate::hypervisor::tests::fake::{FREE, Host, LITTLE_RAM, TRAPS};
use crate::vcpu::syndrome::{Ec, IL, Syndrome, abort};

const EL1: u64 = 0x5;
const EL0: u64 = 0x0;
const SCTLR_EE: u64 = 1 << 25;
const SCTLR_E0E: u64 = 1 << 24;

/// Where the firmware's configuration is.
const BASE: u64 = TRAPS[0].registers.base.0;
const DMA: u64 = BASE + 16;

/// A syndrome of a load or store.
fn access(size: u64, register: u64, write: bool) -> u64 {
    let sas = size.trailing_zeros() as u64;
    Ec::DATA_ABORT_LOWER.bits()
        | IL
        | abort::ISV
        | sas << abort::SAS_SHIFT
        | register << abort::SRT_SHIFT
        | if write { abort::WNR } else { 0 }
        | 0x7
}

struct World {
    host: Host,
    registers: GeneralRegisters,
}

impl World {
    fn new() -> World {
        let mut registers = GeneralRegisters::default();
        for (n, x) in (0u64..).zip(&mut registers.x) {
            *x = 0xdead_0000_0000_0000 | n;
        }
        World { host: Host::on(LITTLE_RAM), registers }
    }

    fn abort_in(&mut self, at: u64, esr: u64, pstate: u64, sctlr: u64) -> HostAbort {
        let Syndrome::Abort(abort) = Syndrome::of(esr) else { panic!("{esr:#x} is no abort") };
        let fault = HostFault { at: Ipa(at), abort, pstate, sctlr };
        self.host.escrow.host_abort(&fault, &mut self.registers)
    }

    fn abort(&mut self, at: u64, esr: u64) -> HostAbort {
        self.abort_in(at, esr, EL1, 0)
    }

    /// The device's registers hold this.
    fn holds(&self, value: u64) {
        self.host.escrow.machine.device_value.store(value, Ordering::Relaxed);
    }

    /// What came to devices since the last look.
    fn accesses(&self) -> Vec<(u64, u64, Option<u64>)> {
        std::mem::take(&mut *self.host.escrow.machine.device_accesses.lock().unwrap())
    }

    fn load(&mut self, size: u64) -> u64 {
        assert_eq!(self.abort(BASE, access(size, 0, false)), HostAbort::Skip);
        self.registers.x[0]
    }

    fn select(&mut self, key: u16) {
        self.registers.x[1] = 0xabcd_0000 | key.swap_bytes() as u64;
        assert_eq!(self.abort(BASE + 8, access(2, 1, true)), HostAbort::Skip);
    }
}

#[test]
fn loads_of_every_size_and_sign_fill_the_register_they_name() {
    let mut world = World::new();
    world.holds(0x8182_8384_8586_8788);
    let cases = [
        (1, 0x88, 0xffff_ffff_ffff_ff88),
        (2, 0x8788, 0xffff_ffff_ffff_8788),
        (4, 0x8586_8788, 0xffff_ffff_8586_8788),
        (8, 0x8182_8384_8586_8788, 0x8182_8384_8586_8788),
    ];
    for register in 0..31 {
        for (size, zero_extended, sign_extended) in cases {
            let esr = access(size, register, false);
            for (bits, value) in [
                (0, zero_extended & if size == 8 { 0xffff_ffff } else { !0 }),
                (abort::SF, zero_extended),
                (abort::SF | abort::SSE, sign_extended),
                (abort::SSE, sign_extended & 0xffff_ffff),
            ] {
                world.registers = World::new().registers;
                let before = world.registers.clone();
                assert_eq!(world.abort(BASE, esr | bits), HostAbort::Skip);
                assert_eq!(world.registers.x[register as usize], value, "{size} {bits:#x}");
                world.registers.x[register as usize] = before.x[register as usize];
                assert_eq!(world.registers, before, "no other register");
                assert_eq!(world.accesses(), [(BASE, size, None)]);
            }
        }
    }
    // To XZR: the device has been read all the same.
    let before = world.registers.clone();
    assert_eq!(world.abort(BASE, access(4, 31, false)), HostAbort::Skip);
    assert_eq!((world.registers.clone(), world.accesses().len()), (before, 1));
}

#[test]
fn stores_bring_the_register_they_name() {
    let mut world = World::new();
    for register in 0..32u64 {
        world.registers = World::new().registers;
        assert_eq!(world.abort(BASE + 8, access(2, register, true)), HostAbort::Skip);
        let value = if register == 31 { 0 } else { register };
        assert_eq!(world.accesses(), [(BASE + 8, 2, Some(value))]);
    }
}

#[test]
fn a_big_endian_host_has_its_bytes_in_its_order() {
    let mut world = World::new();
    world.holds(0x1122_3344);
    for (pstate, sctlr) in [(EL1, SCTLR_EE), (EL0, SCTLR_E0E)] {
        world.abort_in(BASE, access(4, 0, false), pstate, sctlr);
        assert_eq!(world.registers.x[0], 0x4433_2211);
        world.registers.x[1] = 0x0019;
        world.accesses();
        world.abort_in(BASE + 8, access(2, 1, true), pstate, sctlr);
        assert_eq!(world.accesses(), [(BASE + 8, 2, Some(0x1900))]);
    }
    // Each is about its own level.
    for (pstate, sctlr) in [(EL1, SCTLR_E0E), (EL0, SCTLR_EE)] {
        world.abort_in(BASE, access(4, 0, false), pstate, sctlr);
        assert_eq!(world.registers.x[0], 0x1122_3344);
    }
}

#[test]
fn the_dma_register_is_out_of_reach() {
    let mut world = World::new();
    for at in DMA..DMA + 8 {
        for size in [1, 2, 4, 8] {
            for write in [false, true] {
                let esr = access(size, 2, write);
                assert_eq!(world.abort(at, esr), HostAbort::Inject, "{size} at {at:#x}");
            }
        }
    }
    assert_eq!(world.accesses(), []);
    assert_eq!(world.registers, World::new().registers);
}

#[test]
fn only_accesses_that_the_device_takes_are_made() {
    let mut world = World::new();
    for offset in 0..PAGE_SIZE {
        for size in [1, 2, 4, 8] {
            for write in [false, true] {
                let taken = match (offset, write) {
                    (0, false) => true,
                    (8, true) => size == 2,
                    _ => false,
                };
                let abort = world.abort(BASE + offset, access(size, 2, write));
                let expected = if taken { HostAbort::Skip } else { HostAbort::Inject };
                assert_eq!(abort, expected, "{size} at {offset:#x}, write: {write}");
                assert_eq!(world.accesses().len(), taken as usize);
            }
        }
    }
}

#[test]
fn what_the_syndrome_does_not_describe_is_refused() {
    let mut world = World::new();
    let load = access(8, 0, false);
    for (esr, pstate) in [
        (load & !abort::ISV, EL1),
        (load | abort::S1PTW, EL1),
        (Ec::INSTRUCTION_ABORT_LOWER.bits() | IL | 0x7, EL1),
        (load, 1 << 4 | EL0),
        (load, 1 << 4 | 0x13),
    ] {
        assert_eq!(world.abort_in(BASE, esr, pstate, 0), HostAbort::Inject, "{esr:#x}");
    }
    assert_eq!(world.accesses(), []);
    // Cache maintenance has nothing to maintain.
    let clean = (load & !abort::ISV) | abort::CM | abort::WNR;
    assert_eq!(world.abort(DMA, clean), HostAbort::Skip);
    assert_eq!((world.accesses(), world.registers), (vec![], World::new().registers));
}

#[test]
fn the_device_has_no_dma_to_show() {
    let mut world = World::new();
    world.holds(0xffff_ffff_ffff_ffff);
    // Of FW_CFG_ID the first byte lacks a bit, and only that, however it is read.
    for size in [1, 2, 4] {
        world.select(1);
        let all = !0 >> (64 - 8 * size);
        assert_eq!(world.load(size), all & !2, "{size}");
        assert_eq!(world.load(size), all, "what follows");
    }
    // With the key for writing, too, and of no other item.
    world.select(0x4001);
    assert_eq!(world.load(1), 0xfd);
    for key in [0, 0x19, 0x8001, 0x100] {
        world.select(1);
        world.select(key);
        assert_eq!(world.load(1), 0xff, "{key:#x}");
    }
}

#[test]
fn a_hidden_page_refuses_everything() {
    let mut world = World::new();
    let pages = 0xa00_0000..0xa00_2000;
    for at in pages.step_by(8) {
        for write in [false, true] {
            assert_eq!(world.abort(at, access(8, 0, write)), HostAbort::Inject);
        }
        assert!(!world.host.reaches(at));
    }
    assert_eq!(world.accesses(), []);
    assert!(world.host.reaches(0xa00_2000) && world.host.reaches(0x9ff_f000));
}

#[test]
fn other_faults_are_no_affair_of_traps() {
    let mut world = World::new();
    for at in [BASE - 8, BASE + PAGE_SIZE, FREE - 8] {
        assert_eq!(world.abort(at, access(8, 0, false)), HostAbort::Retry, "{at:#x}");
    }
    assert_eq!(world.abort(1 << 41, access(8, 0, false)), HostAbort::Inject);
    assert_eq!(world.accesses(), []);
}

#[test]
fn traps_are_apart_and_few() {
    let trap = |base, size, kind| Trap { registers: PhysRange::new(base, size), kind };
    let hidden = |base, size| trap(base, size, TrapKind::Hidden);
    let why = |traps: &[Trap]| Traps::new(traps).err();
    assert_eq!(why(&[hidden(0x1000, 8), hidden(0x1ff8, 8)]), Some(TrapError::Overlap));
    assert_eq!(why(&[hidden(0x3000, 8), hidden(0x1000, 0x2001)]), Some(TrapError::Overlap));
    assert_eq!(why(&[hidden(0x1000, 0x2001), hidden(0x3000, 8)]), Some(TrapError::Overlap));
    assert_eq!(why(&[hidden(0x1000, 0)]), Some(TrapError::OutOfRange));
    assert_eq!(why(&[hidden(!0xfff, 0x1000)]), Some(TrapError::OutOfRange));
    for (base, size) in [(0x1004, 0x18), (0x1000, 8)] {
        assert_eq!(why(&[trap(base, size, TrapKind::FwCfg)]), Some(TrapError::BadRegisters));
    }
    let many: Vec<_> = (0..=MAX_TRAPS as u64).rev().map(|n| hidden(n << 12, 8)).collect();
    assert_eq!(why(&many), Some(TrapError::TooMany));
    let traps = Traps::new(&many[1..]).unwrap();
    let bases: Vec<_> = traps.ranges().map(|range| range.base.0 >> 12).collect();
    assert_eq!(bases, (0..MAX_TRAPS as u64).collect::<Vec<_>>());
}
