// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that differs from the device tree's description.

use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::serial::Serial;
use escrow_tests::tree::Tree;
use xtask::layout::{MIB, RAM_BASE};
use xtask::qemu::{Machine, Module};

/// Where the payload is loaded.
const KERNEL: u64 = RAM_BASE + 64 * MIB;
const RAM: u64 = 1024 * MIB;
/// RAM that the tree has and the machine has not. Too little for anything of Escrow's.
const ABSENT: u64 = 4 << 12;
/// Regions with `no-map`, of which something in the tree needs the second.
const NOBODYS: (u64, u64) = (0x5000_0000, 2 * MIB);
const NO_MAP: (u64, u64) = (0x5040_0000, 2 * MIB);

fn boots(name: &str, cpu: &str) {
    let payload = artefacts().payloads.join("broken.img");
    let mut machine = Machine::new(&artefacts().qemu, &artefacts().image);
    machine.cpu = cpu.into();
    machine.memory_mib = RAM / MIB;
    let kernel = Module::Kernel { address: KERNEL, file: payload.clone(), bootargs: String::new() };
    machine.modules = vec![kernel];
    let mut tree = Tree::of(&machine);
    tree.replace_range((RAM_BASE, RAM), (RAM_BASE, RAM + ABSENT));
    tree.reserve(&[(NOBODYS, None), (NO_MAP, Some(0xabcd))]);
    let machine = tree.boot(true, &[(KERNEL, &payload)]);
    let mut serial = Serial::boot(name, &machine, Duration::from_secs(120));
    serial.wait_for("payload broken: 7 passed, 0 failed");
    serial.wait_for_end();
}

#[test]
fn that_is_not_there() {
    boots("memory-broken-max", "max");
}

#[test]
fn that_is_not_there_on_an_old_cpu() {
    boots("memory-broken-a72", "cortex-a72");
}
