// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's memory, lent through the shim page by page as the guest touches it
//! and taken back, and the same with pKVM. Both run Debian's newer kernel, so
//! that what Linux does differently is not the kernel's doing.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use xtask::artefacts::Artefacts;
use xtask::initramfs::Archive;
use xtask::qemu::Machine;

use super::report::{ESCROW, Row};
use super::{payload, peers};

/// RAM of the machine.
pub const MEMORY_MIB: u64 = 1024;
/// For the host: quiet, without random addresses.
const BOOTARGS: &str = "console=ttyAMA0 quiet panic=-1 nokaslr norandmaps escrow.init=script";
const SCRIPT: &str = "#!/bin/sh\nexec /bin/shim-bench\n";

/// The programs that count.
pub struct Programs<'a> {
    /// With the shim.
    pub shim: &'a Path,
    /// With KVM.
    pub kvm: &'a Path,
}

/// Measures both, at the same time.
pub fn measure(artefacts: &Artefacts, programs: &Programs<'_>, folder: &Path) -> Result<Vec<Row>> {
    let initrd = initramfs(artefacts, programs.shim, SCRIPT, folder)?;
    let peers_initrd = peers::initramfs(programs.kvm, folder)?;
    thread::scope(|scope| {
        let escrow = scope.spawn(|| escrow(artefacts, &initrd).context("with the shim"));
        let pkvm = scope.spawn(|| peers::lending(artefacts, &peers_initrd).context("with pKVM"));
        let mut rows = Vec::new();
        for run in [escrow, pkvm] {
            rows.extend(run.join().map_err(|_| anyhow!("a thread died"))??);
        }
        Ok(rows)
    })
}

/// The host's initramfs with the program added, and what it is to do.
pub fn initramfs(
    artefacts: &Artefacts,
    program: &Path,
    script: &str,
    folder: &Path,
) -> Result<PathBuf> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut addition = Archive::new();
    addition.file("bin/shim-bench", 0o755, &read(program)?)?;
    addition.file("test.sh", 0o755, script.as_bytes())?;
    let mut archive = read(&artefacts.initramfs)?;
    archive.extend(addition.finish()?);
    let path = folder.join("shim.cpio.gz");
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, archive))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn escrow(artefacts: &Artefacts, initrd: &Path) -> Result<Vec<Row>> {
    Ok(payload::run(&machine(artefacts, MEMORY_MIB, initrd)?, ESCROW)?.rows)
}

/// The machine that counts with the shim.
pub fn machine(artefacts: &Artefacts, memory_mib: u64, initrd: &Path) -> Result<Machine> {
    let mut machine = Machine::new(&artefacts.qemu, &artefacts.image);
    machine.memory_mib = memory_mib;
    machine.smp = 1;
    machine.icount = true;
    machine.load_host(&artefacts.newer_kernel, Some(initrd), BOOTARGS)?;
    Ok(machine)
}
