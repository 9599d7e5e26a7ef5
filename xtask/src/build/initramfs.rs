// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's user space: busybox, the modules, the `escrow` program.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use xtask::initramfs::Archive;

use super::Workspace;
use crate::setup::{Kernel, Setup};
use crate::shell::{run_quietly, write_if_changed};

/// Folders of the archive; a parent stands before its children.
const FOLDERS: &[&str] =
    &["bin", "dev", "etc", "lib", "lib/modules", "proc", "root", "run", "sys", "tmp"];

pub fn build(workspace: &Workspace, setup: &Setup, kernels: &[&Kernel]) -> Result<()> {
    let paths = workspace.paths();
    let sources = workspace.root().join("host/initramfs");
    let mut archive = Archive::new();
    for folder in FOLDERS {
        archive.directory(folder)?;
    }
    // The kernel opens it before anybody has mounted devtmpfs.
    archive.character_device("dev/console", 5, 1)?;
    archive.file("bin/busybox", 0o755, &read(setup.busybox()?)?)?;
    archive.symlink("bin/sh", "busybox")?;
    archive.file("bin/escrow", 0o755, &stripped(&paths.vmm(), "--strip-all")?)?;
    // One archive for every kernel that boots with it.
    for kernel in kernels {
        let folder = format!("lib/modules/{}", kernel.headers.release);
        archive.directory(&folder)?;
        let module = paths.modules().join(&kernel.headers.release).join("escrow.ko");
        let path = format!("{folder}/escrow.ko");
        archive.file(&path, 0o644, &stripped(&module, "--strip-debug")?)?;
    }
    archive.file("init", 0o755, &read(&sources.join("init"))?)?;
    archive.file("etc/profile", 0o644, &read(&sources.join("profile"))?)?;
    let bytes = archive.finish()?;
    write_if_changed(&paths.initramfs(), &bytes)?;
    Ok(())
}

/// The host's initramfs, and after it what guests are started from: `kernel`,
/// and an initramfs with busybox.
pub fn with_guest(workspace: &Workspace, setup: &Setup, kernel: &Path) -> Result<()> {
    let paths = workspace.paths();
    let mut guest = Archive::new();
    for folder in FOLDERS {
        guest.directory(folder)?;
    }
    guest.character_device("dev/console", 5, 1)?;
    guest.file("bin/busybox", 0o755, &read(setup.busybox()?)?)?;
    guest.symlink("bin/sh", "busybox")?;
    let init = workspace.root().join("host/initramfs/guest-init");
    guest.file("init", 0o755, &read(&init)?)?;

    let mut archive = Archive::new();
    archive.directory("boot")?;
    archive.file("boot/vmlinuz", 0o644, &read(kernel)?)?;
    archive.file("boot/guest-initrd", 0o644, &guest.finish()?)?;
    let mut bytes = read(&paths.initramfs())?;
    bytes.extend(archive.finish()?);
    write_if_changed(&paths.initramfs_with_guest(), &bytes)?;
    Ok(())
}

/// A file without what only a debugger reads.
pub fn stripped(path: &Path, how: &str) -> Result<Vec<u8>> {
    let bare = path.with_extension("stripped");
    let mut strip = Command::new("aarch64-linux-gnu-strip");
    run_quietly(strip.arg(how).arg("-o").args([&bare, path]))?;
    let bytes = read(&bare)?;
    fs::remove_file(&bare)?;
    Ok(bytes)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
