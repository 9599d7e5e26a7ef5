// SPDX-License-Identifier: MIT OR Apache-2.0

//! What other hypervisors take for the nearest that they have to each of
//! Escrow's operations. How near that is, docs/performance.md says.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use xtask::artefacts::Artefacts;
use xtask::initramfs::Archive;
use xtask::qemu::Machine;

use super::report::{NVHE, PKVM, Row, XEN};
use super::{calls, payload};
use crate::setup::Peers;

/// For KVM: quiet, without random addresses; its mode follows.
const KVM_BOOTARGS: &str = "console=ttyAMA0 quiet panic=-1 nokaslr norandmaps kvm-arm.mode=";
/// For Xen: as quick a boot as it can do. Dom0 gets a part of the memory, because
/// Xen needs it in one piece.
const XEN_BOOTARGS: &str = "console=dtuart dtuart=/pl011@9000000 loglvl=none guest_loglvl=none \
    dom0_mem=512M dom0_max_vcpus=1 bootscrub=0";

/// Measures all of them, two at a time. `program` is the VMM for KVM.
pub fn measure(
    artefacts: &Artefacts,
    peers: &Peers,
    program: &Path,
    folder: &Path,
) -> Result<Vec<Row>> {
    let initrd = initramfs(program, folder)?;
    let mut rows = xen(artefacts, peers).context("on Xen")?;
    thread::scope(|scope| {
        let initrd = &initrd;
        let runs = [(PKVM, "protected"), (NVHE, "nvhe")].map(|(subject, mode)| {
            let run = move || kvm(artefacts, initrd, mode, subject);
            scope.spawn(move || run().with_context(|| format!("on {subject}")))
        });
        for run in runs {
            rows.extend(run.join().map_err(|_| anyhow!("a thread died"))??);
        }
        Ok(rows)
    })
}

/// An initramfs whose only program is the VMM.
pub fn initramfs(program: &Path, folder: &Path) -> Result<PathBuf> {
    let program =
        fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let mut archive = Archive::new();
    archive.directory("dev")?;
    archive.directory("proc")?;
    // The kernel opens it before anybody has mounted devtmpfs.
    archive.character_device("dev/console", 5, 1)?;
    archive.file("init", 0o755, &program)?;
    let path = folder.join("peers.cpio.gz");
    fs::create_dir_all(folder)?;
    fs::write(&path, archive.finish()?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// KVM, of the guests' kernel: the newest there is.
fn kvm(artefacts: &Artefacts, initrd: &Path, arguments: &str, subject: &str) -> Result<Vec<Row>> {
    Ok(payload::run(&kvm_machine(artefacts, initrd, arguments), subject)?.rows)
}

fn kvm_machine(artefacts: &Artefacts, initrd: &Path, arguments: &str) -> Machine {
    let mut machine = Machine::new(&artefacts.qemu, &artefacts.guest_kernel);
    machine.smp = 1;
    machine.icount = true;
    machine.initrd = Some(initrd.into());
    machine.append = format!("{KVM_BOOTARGS}{arguments}");
    machine
}

/// What KVM takes for a guest's exits, and for the boot of Linux with so many bytes of RAM, whose
/// initramfs is to be at `place`.
pub fn guests(
    artefacts: &Artefacts,
    initrd: &Path,
    memory_mib: u64,
    ram: u64,
    place: u64,
) -> Result<Vec<Row>> {
    let mut machine = kvm_machine(artefacts, initrd, &format!("nvhe bench=guests:{ram}:{place}"));
    machine.memory_mib = memory_mib;
    Ok(payload::run(&machine, NVHE)?.rows)
}

/// What pKVM takes for a guest's whole memory.
pub fn lending(artefacts: &Artefacts, initrd: &Path) -> Result<Vec<Row>> {
    kvm(artefacts, initrd, "protected bench=lending", PKVM)
}

fn xen(artefacts: &Artefacts, peers: &Peers) -> Result<Vec<Row>> {
    let mut machine = Machine::new(&artefacts.qemu, &peers.xen);
    machine.smp = 1;
    machine.icount = true;
    machine.append = XEN_BOOTARGS.into();
    // Without a command line for dom0, Xen takes its own for dom0's.
    machine.load_host(&artefacts.payloads.join("bench_xen.img"), None, "dom0")?;
    let mut measured = payload::run(&machine, XEN)?;
    measured.rows.push(calls::boot(artefacts, XEN, measured.entered)?);
    Ok(measured.rows)
}
