// SPDX-License-Identifier: MIT OR Apache-2.0

//! Boots with a device tree of the test's own making, good or bad: a stub in
//! place of the kernel hands Escrow whatever address it is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use xtask::layout::RAM_BASE;
use xtask::qemu::Machine;

use crate::artefacts;

/// Where Escrow's image is loaded.
pub const ESCROW: u64 = RAM_BASE + (16 << 20);
/// Where the tree is loaded.
pub const TREE: u64 = RAM_BASE + (48 << 20);

/// A tree as QEMU would hand it over, to be changed and booted.
pub struct Tree {
    folder: TempDir,
    machine: Machine,
    /// The tree's bytes.
    pub bytes: Vec<u8>,
}

impl Tree {
    /// The tree of a machine.
    ///
    /// # Panics
    /// QEMU does not tell.
    pub fn of(machine: &Machine) -> Tree {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dump = folder.path().join("dump.dtb");
        let mut command = Command::new(&machine.qemu);
        for argument in machine.arguments() {
            // `-M virt,…` becomes `-M virt,…,dumpdtb=…`: QEMU writes the tree and ends.
            let text = argument.to_string_lossy();
            if text.starts_with("virt,") {
                command.arg(format!("{text},dumpdtb={}", dump.display()));
            } else {
                command.arg(&argument);
            }
        }
        let output = command.output().expect("QEMU starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bytes = fs::read(&dump).expect("QEMU wrote the tree");
        Tree { folder, machine: machine.clone(), bytes }
    }

    /// Replaces each occurrence of `old` by `new`, of the same length.
    ///
    /// # Panics
    /// There is none.
    pub fn replace(&mut self, old: &[u8], new: &[u8]) {
        assert_eq!(old.len(), new.len());
        let mut found = 0;
        for at in 0..self.bytes.len() - old.len() {
            if self.bytes[at..].starts_with(old) {
                self.bytes[at..at + new.len()].copy_from_slice(new);
                found += 1;
            }
        }
        assert!(found > 0, "the tree has no {:?}", String::from_utf8_lossy(old));
    }

    /// Replaces two big-endian 64-bit cells, an address and a size.
    ///
    /// # Panics
    /// There are none with these values.
    pub fn replace_range(&mut self, old: (u64, u64), new: (u64, u64)) {
        let cells = |(base, size): (u64, u64)| [base.to_be_bytes(), size.to_be_bytes()].concat();
        self.replace(&cells(old), &cells(new));
    }

    /// Adds a `/reserved-memory` of `no-map` regions, with their phandles.
    ///
    /// # Panics
    /// The tree is none, or has such a node.
    pub fn reserve(&mut self, regions: &[((u64, u64), Option<u32>)]) {
        let names = ["#address-cells", "#size-cells", "ranges", "reg", "no-map", "phandle"];
        let word = |bytes: &[u8], at: usize| {
            u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
        };
        let [structure, strings] = [word(&self.bytes, 8), word(&self.bytes, 12)];
        let [strings_size, structure_size] = [word(&self.bytes, 32), word(&self.bytes, 36)];
        let mut node = Vec::new();
        let begin = |node: &mut Vec<u8>, name: &str| {
            node.extend(1u32.to_be_bytes());
            node.extend(name.as_bytes());
            node.push(0);
            node.resize(node.len().next_multiple_of(4), 0);
        };
        let property = |node: &mut Vec<u8>, name: &str, value: &[u8]| {
            let before = names.iter().take_while(|other| **other != name);
            let offset = strings_size + before.map(|other| other.len() + 1).sum::<usize>();
            node.extend(3u32.to_be_bytes());
            node.extend((value.len() as u32).to_be_bytes());
            node.extend((offset as u32).to_be_bytes());
            node.extend(value);
        };
        begin(&mut node, "reserved-memory");
        property(&mut node, "#address-cells", &2u32.to_be_bytes());
        property(&mut node, "#size-cells", &2u32.to_be_bytes());
        property(&mut node, "ranges", &[]);
        for ((base, size), phandle) in regions {
            begin(&mut node, &format!("region@{base:x}"));
            property(&mut node, "reg", &[base.to_be_bytes(), size.to_be_bytes()].concat());
            property(&mut node, "no-map", &[]);
            if let Some(phandle) = phandle {
                property(&mut node, "phandle", &phandle.to_be_bytes());
            }
            node.extend(2u32.to_be_bytes());
        }
        node.extend(2u32.to_be_bytes());
        // The structure ends with the end of the root and that of all.
        let end = structure + structure_size;
        assert_eq!(self.bytes[end - 8..end], [2u32.to_be_bytes(), 9u32.to_be_bytes()].concat());
        assert!(strings >= end, "QEMU's trees have their strings last");
        let added: Vec<u8> = names.iter().flat_map(|name| name.bytes().chain([0])).collect();
        let after = strings + strings_size;
        self.bytes.splice(after..after, added.iter().copied());
        self.bytes.splice(end - 8..end - 8, node.iter().copied());
        let (more, strings_more) = (node.len(), added.len());
        let mut put = |at: usize, value: usize| {
            self.bytes[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
        };
        put(12, strings + more);
        put(32, strings_size + strings_more);
        put(36, structure_size + more);
        let total = word(&self.bytes, 4) + more + strings_more;
        self.bytes[4..8].copy_from_slice(&(total as u32).to_be_bytes());
    }

    /// The machine that boots Escrow with this tree, with its address in X0 if
    /// `told`. `files` are loaded at their addresses.
    ///
    /// # Panics
    /// A file cannot be written.
    pub fn boot(&self, told: bool, files: &[(u64, &Path)]) -> Machine {
        let write = |name: &str, bytes: &[u8]| -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, bytes).expect("a temporary file");
            path
        };
        let tree = write("tree.dtb", &self.bytes);
        let stub = write("stub.img", &stub(if told { TREE } else { 0 }));
        let mut machine = self.machine.clone();
        machine.kernel = stub;
        machine.append = String::new();
        machine.modules.clear();
        let all = [(TREE, tree.as_path()), (ESCROW, artefacts().image.as_path())];
        for (address, file) in all.iter().chain(files) {
            let file = file.display().to_string().replace(',', ",,");
            let loader = format!("loader,file={file},addr={address:#x},force-raw=on");
            machine.extra.extend(["-device".into(), loader.into()]);
        }
        machine
    }
}

/// An `Image` that enters Escrow with `tree` in X0.
fn stub(tree: u64) -> Vec<u8> {
    let mut image = vec![0; 64];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0x1400_0010_u32.to_le_bytes()); // b #64
    put(16, &0x1000_u64.to_le_bytes()); // size in memory
    put(24, &0b1010_u64.to_le_bytes()); // little-endian, 4 KiB pages, anywhere
    put(56, b"ARM\x64");
    for word in [
        0x5800_0080_u32, // ldr x0, tree
        0x5800_00b0,     // ldr x16, escrow
        0xd61f_0200,     // br x16
        0xd503_201f,     // nop
    ] {
        image.extend(word.to_le_bytes());
    }
    image.extend(tree.to_le_bytes());
    image.extend(ESCROW.to_le_bytes());
    image
}
