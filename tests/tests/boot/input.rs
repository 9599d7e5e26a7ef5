// SPDX-License-Identifier: MIT OR Apache-2.0

//! Bad input: one clear line, and a halt.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::serial::Serial;
use escrow_tests::tree::{ESCROW, TREE, Tree};
use tempfile::TempDir;
use xtask::layout::{MIB, RAM_BASE};
use xtask::qemu::{Machine, Module};

/// Where the kernel and the ramdisk are that a tree names.
const KERNEL: u64 = RAM_BASE + 64 * MIB;
const RAMDISK: u64 = RAM_BASE + 96 * MIB;

fn payload() -> PathBuf {
    artefacts().payloads.join("runtime.img")
}

/// A machine with a payload for a host that boots.
fn machine() -> Machine {
    let mut machine = Machine::new(&artefacts().qemu, &artefacts().image);
    // No more than that one line.
    machine.append = "loglevel=error".into();
    machine.modules = vec![kernel(payload())];
    machine
}

fn kernel(file: PathBuf) -> Module {
    Module::Kernel { address: KERNEL, file, bootargs: String::new() }
}

/// Boots a machine on which Escrow says one line, which has all of these words,
/// and halts.
fn halts(name: &str, machine: &Machine, words: &[&str]) {
    let mut serial = Serial::boot(&format!("input-{name}"), machine, Duration::from_secs(30));
    let line = serial.next_line().unwrap_or_else(|| serial.fail("not a word"));
    let clear = line.starts_with("escrow: fatal: ") && line.ends_with("; halted");
    if !clear || !words.iter().all(|word| line.contains(word)) {
        serial.fail(&format!("expected a line about {words:?}"));
    }
    serial.is_silent_for(Duration::from_millis(500));
}

/// The tree of a machine with a kernel and a ramdisk in its place.
fn tree() -> Tree {
    let mut machine = machine();
    machine.modules.push(Module::Ramdisk { address: RAMDISK, file: payload() });
    Tree::of(&machine)
}

/// The bytes of the payload's file, which the tree names as the modules' size.
fn payload_size() -> u64 {
    fs::metadata(payload()).expect("the payload").len()
}

fn files() -> [(u64, PathBuf); 2] {
    [(KERNEL, payload()), (RAMDISK, payload())]
}

fn boot(tree: &Tree) -> Machine {
    let files = files();
    let files: Vec<(u64, &Path)> = files.iter().map(|(at, file)| (*at, file.as_path())).collect();
    tree.boot(true, &files)
}

#[test]
fn a_good_tree_boots() {
    // The unchanged tree, which the other tests break, boots.
    let tree = tree();
    let mut serial = Serial::boot("input-good", &boot(&tree), Duration::from_secs(60));
    serial.wait_for("payload runtime: 6 passed, 0 failed");
    serial.wait_for_end();
}

#[test]
fn entered_below_el2() {
    halts("el1", &Machine { el2: false, ..machine() }, &["EL1", "EL2"]);
}

#[test]
fn no_device_tree() {
    let tree = tree();
    halts("no-tree", &tree.boot(false, &[]), &["no device tree"]);
}

#[test]
fn broken_device_trees() {
    let broken = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut tree = tree();
        change(&mut tree.bytes);
        halts(name, &boot(&tree), &["device tree"]);
    };
    let put = |bytes: &mut Vec<u8>, at: usize, value: u32| {
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    };
    broken("tree-magic", &|bytes| bytes[0] = 0);
    broken("tree-noise", &|bytes| {
        bytes.iter_mut().enumerate().for_each(|(n, byte)| *byte = ((n * 37) >> 3) as u8);
    });
    broken("tree-zero", &|bytes| bytes.fill(0));
    broken("tree-structure", &|bytes| put(bytes, 8, u32::MAX - 3));
    broken("tree-strings", &|bytes| put(bytes, 12, u32::MAX));
    // To which version 17 is unknown.
    broken("tree-version", &|bytes| {
        put(bytes, 20, 99);
        put(bytes, 24, 99);
    });
    broken("tree-too-short", &|bytes| put(bytes, 4, 64));
    broken("tree-too-long", &|bytes| put(bytes, 4, u32::MAX));
    broken("tree-token", &|bytes| {
        let structure = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        put(bytes, structure + 8, 0x77);
    });
    broken("tree-cut", &|bytes| {
        // The end of the structure is gone.
        let size = u32::from_be_bytes([bytes[36], bytes[37], bytes[38], bytes[39]]);
        put(bytes, 36, (size / 2) & !3);
    });
}

#[test]
fn no_kernel() {
    halts("no-kernel", &Machine { modules: Vec::new(), ..machine() }, &["no kernel"]);
}

#[test]
fn no_memory() {
    let mut tree = tree();
    tree.replace(b"memory\0", b"memorx\0");
    halts("no-memory", &boot(&tree), &["no memory"]);
}

#[test]
fn no_psci() {
    let mut tree = tree();
    tree.replace(
        b"arm,psci-1.0\0arm,psci-0.2\0arm,psci\0",
        b"arm,pscj-1.0\0arm,pscj-0.2\0arm,pscj\0",
    );
    halts("no-psci", &boot(&tree), &["no PSCI"]);
}

#[test]
fn psci_of_another_hypervisor() {
    let mut tree = tree();
    tree.replace(b"smc\0", b"hvc\0");
    halts("psci-hvc", &boot(&tree), &["PSCI", "HVC"]);
}

#[test]
fn no_gicv3() {
    halts("gicv2", &Machine { gic: 2, ..machine() }, &["no GICv3"]);
}

#[test]
fn foreign_kernels() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let boots = |name: &str, bytes: &[u8], word: &str| {
        let file = write(&folder, name, bytes);
        let machine = Machine { modules: vec![kernel(file)], ..machine() };
        halts(&format!("kernel-{name}"), &machine, &["host's kernel", word]);
    };
    let image = fs::read(payload()).expect("the payload");
    boots("gzip", &[b"\x1f\x8b\x08\0", image.as_slice()].concat(), "gzip");
    boots("elf", &fs::read(&artefacts().elf).expect("escrow.elf")[..4096], "ELF");
    boots("text", &b"This is no kernel.\n".repeat(100), "no arm64 Image");
    boots("zeros", &[0; 8192], "no arm64 Image");
    let with = |at: usize, value: u64| {
        let mut image = image.clone();
        image[at..at + 8].copy_from_slice(&value.to_le_bytes());
        image
    };
    boots("big-endian", &with(24, 0b1011), "big-endian");
    boots("no-size", &with(16, 0), "how much memory");
    boots("offset", &with(8, 3 << 20), "text offset");
}

#[test]
fn truncated_kernels() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let debian = fs::read(&artefacts().host_kernel).expect("the host's kernel");
    for (name, size) in [("32", 32), ("4096", 4096), ("half", debian.len() / 2)] {
        let file = write(&folder, name, &debian[..size]);
        let machine = Machine { modules: vec![kernel(file)], ..machine() };
        halts(&format!("truncated-{name}"), &machine, &["host's kernel is truncated"]);
    }
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).expect("a temporary file");
    path
}

#[test]
fn modules_over_something_else() {
    let size = payload_size();
    let moved = |name: &str, from: u64, to: (u64, u64), words: &[&str]| {
        let mut tree = tree();
        tree.replace_range((from, size), to);
        halts(name, &boot(&tree), words);
    };
    let escrow = (ESCROW + 0x1000, size);
    moved("kernel-over-escrow", KERNEL, escrow, &["kernel", "overlaps", "Escrow"]);
    moved("ramdisk-over-escrow", RAMDISK, escrow, &["ramdisk", "overlaps", "Escrow"]);
    let end = (ESCROW - size + 1, size);
    moved("ramdisk-into-escrow", RAMDISK, end, &["ramdisk", "overlaps", "Escrow"]);
    let each_other = (KERNEL + size - 1, size);
    moved("modules-overlap", RAMDISK, each_other, &["ramdisk", "overlaps", "kernel"]);
    moved("kernel-over-tree", KERNEL, (TREE, size), &["kernel", "overlaps", "device tree"]);
    let outside = (RAM_BASE + (1 << 30), size);
    moved("ramdisk-outside", RAMDISK, outside, &["ramdisk", "outside RAM"]);
    moved("kernel-wraps", KERNEL, (!0xfff, size), &["kernel"]);
    moved("kernel-empty", KERNEL, (KERNEL, 0), &["kernel", "no address or no size"]);
}

#[test]
fn too_little_memory() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut image = fs::read(payload()).expect("the payload");
    // A kernel that wants more than there is.
    image[16..24].copy_from_slice(&(2_u64 << 30).to_le_bytes());
    let file = write(&folder, "huge", &image);
    let machine = Machine { modules: vec![kernel(file)], ..machine() };
    halts("huge-kernel", &machine, &["too little memory", "kernel"]);
    // A machine of 8 MiB that is full: a ramdisk below Escrow, the tree above
    // it, and the kernel in the last 2 MiB.
    image[16..24].copy_from_slice(&(2 * MIB).to_le_bytes());
    let ramdisk = vec![0; 2 * MIB as usize - 4096];
    let modules = vec![
        Module::Kernel {
            address: RAM_BASE + 6 * MIB,
            file: write(&folder, "last", &image),
            bootargs: String::new(),
        },
        Module::Ramdisk { address: RAM_BASE, file: write(&folder, "first", &ramdisk) },
    ];
    let full = Machine { memory_mib: 8, modules, ..self::machine() };
    halts("full", &full, &["too little memory", "Escrow"]);
}
