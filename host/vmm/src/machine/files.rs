// SPDX-License-Identifier: MIT OR Apache-2.0

//! The files that a machine is made of. They are opened once, before this
//! program gives up what it needs for that; each start of the guest reads them
//! from their beginning.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Seek as _, SeekFrom};

use anyhow::{Context as _, Result, bail};

use super::Specification;
use super::kernel::{self, Kernel};

/// Open files.
pub struct Files {
    kernel: File,
    initrd: Option<File>,
    /// In the order of [`Specification::disks`].
    pub(super) disks: Vec<File>,
}

impl Files {
    /// Opens what `machine` names.
    pub fn open(machine: &Specification) -> Result<Files> {
        let kernel = File::open(&machine.kernel);
        let kernel = kernel.with_context(|| format!("the kernel {}", machine.kernel.display()))?;
        let initrd = machine.initrd.as_ref().map(|path| {
            File::open(path).with_context(|| format!("the initramfs {}", path.display()))
        });
        let disks = machine.disks.iter().map(|disk| {
            let file = OpenOptions::new().read(true).write(!disk.read_only).open(&disk.path);
            file.with_context(|| format!("the disk {}", disk.path.display()))
        });
        Ok(Files { kernel, initrd: initrd.transpose()?, disks: disks.collect::<Result<_>>()? })
    }

    /// The kernel.
    pub(super) fn kernel(&self) -> Result<Kernel<'_>, kernel::Error> {
        if self.kernel.metadata()?.is_dir() {
            return Err(kernel::Error::Foreign("a directory"));
        }
        (&self.kernel).seek(SeekFrom::Start(0))?;
        Kernel::new(BufReader::with_capacity(1 << 18, &self.kernel))
    }

    /// The initramfs and its size.
    pub(super) fn initrd(&self) -> Result<Option<(&File, u64)>> {
        let Some(mut file) = self.initrd.as_ref() else { return Ok(None) };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            bail!("it is no file");
        }
        if metadata.len() == 0 {
            bail!("it is empty");
        }
        file.seek(SeekFrom::Start(0))?;
        Ok(Some((file, metadata.len())))
    }
}
