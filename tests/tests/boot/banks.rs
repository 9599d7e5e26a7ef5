// SPDX-License-Identifier: MIT OR Apache-2.0

//! Machines whose RAM is in several banks, and machines that are nearly full.

use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::serial::Serial;
use escrow_tests::tree::Tree;
use tempfile::TempDir;
use xtask::layout::{MIB, RAM_BASE};
use xtask::qemu::{Machine, Module};

const KERNEL: u64 = RAM_BASE + 64 * MIB;

fn payload(name: &str) -> PathBuf {
    artefacts().payloads.join(format!("{name}.img"))
}

/// Waits for a payload to pass, and returns all lines.
fn passes(name: &str, machine: &Machine, payload: &str) -> Vec<String> {
    let mut serial = Serial::boot(name, machine, Duration::from_secs(120));
    serial.wait_for(&format!("payload {payload}: "));
    let sum = serial.wait_for(&format!("payload {payload}: "));
    if !sum.contains(" passed, 0 failed") {
        serial.fail(&sum);
    }
    serial.wait_for_end();
    serial.lines().to_vec()
}

/// A machine whose tree has a memory node for each of three NUMA nodes, of 256, 256
/// and 512 MiB.
fn numa() -> Machine {
    let mut machine = Machine::new(&artefacts().qemu, &artefacts().image);
    machine.append = "loglevel=debug".into();
    machine.modules =
        vec![Module::Kernel { address: KERNEL, file: payload("pages"), bootargs: String::new() }];
    for (node, mib) in [256, 256, 512].into_iter().enumerate() {
        let object = format!("memory-backend-ram,id=ram{node},size={mib}M");
        let numa = format!("node,nodeid={node},memdev=ram{node}");
        let arguments = ["-object".into(), object, "-numa".into(), numa];
        machine.extra.extend(arguments.map(OsString::from));
    }
    machine
}

#[test]
fn adjacent_banks_are_one() {
    let lines = passes("banks-adjacent", &numa(), "pages");
    let ram: Vec<_> = lines.iter().filter(|line| line.contains("debug: RAM ")).collect();
    assert_eq!(ram, ["escrow: debug: RAM 0x40000000-0x7fffffff"]);
}

#[test]
fn banks_apart() {
    let mut tree = Tree::of(&numa());
    // Holes within a block of 2 MiB, and of many blocks.
    tree.replace_range((0x5000_0000, 256 * MIB), (0x5010_1000, 32 * MIB + 0x3000));
    tree.replace_range((0x6000_0000, 512 * MIB), (0x6040_0000, 256 * MIB));
    let file = payload("pages");
    let machine = tree.boot(true, &[(KERNEL, Path::new(&file))]);
    let lines = passes("banks-apart", &machine, "pages");
    let ram: Vec<_> = lines.iter().filter(|line| line.contains("debug: RAM ")).collect();
    assert_eq!(
        ram,
        [
            "escrow: debug: RAM 0x40000000-0x4fffffff",
            "escrow: debug: RAM 0x50101000-0x52103fff",
            "escrow: debug: RAM 0x60400000-0x703fffff"
        ]
    );
}

#[test]
fn working_memory_in_pieces() {
    // 8 GiB want 52 MiB of working memory. What the kernel and the ramdisk leave free
    // are 28 MiB at the beginning of RAM and 32 MiB at its end.
    const SIZE: u64 = 8192 * MIB;
    const KERNEL: u64 = RAM_BASE + 130 * MIB;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut image = fs::read(payload("runtime")).expect("the payload");
    let memory_size = RAM_BASE + SIZE - 32 * MIB - KERNEL;
    image[16..24].copy_from_slice(&memory_size.to_le_bytes());
    let mut machine = Machine::new(&artefacts().qemu, &artefacts().image);
    machine.memory_mib = SIZE / MIB;
    machine.modules = vec![
        Module::Kernel {
            address: KERNEL,
            file: write(&folder, "kernel", &image),
            bootargs: String::new(),
        },
        Module::Ramdisk { address: RAM_BASE + 32 * MIB, file: zeros(&folder, 95 * MIB) },
    ];
    let lines = passes("banks-pieces", &machine, "runtime");
    let pieces: Vec<_> = lines.iter().filter(|line| line.contains("ledger and tables")).collect();
    assert_eq!(pieces.len(), 2, "{pieces:?}");
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).expect("a temporary file");
    path
}

fn zeros(folder: &TempDir, size: u64) -> PathBuf {
    let path = folder.path().join("zeros");
    File::create(&path).and_then(|file| file.set_len(size)).expect("a temporary file");
    path
}
