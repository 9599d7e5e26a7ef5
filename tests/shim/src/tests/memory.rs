// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest memory on its own.

use anyhow::{Context as _, Result, ensure};
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use super::{refused, same};
use crate::access::{read, write};
use crate::gunyah::{Device, PAGE};

/// Pages appear as they are touched, with zeros, and mappings agree.
pub fn fresh_pages_are_zero() -> Result<()> {
    let memory = Device::open()?.memory(4)?;
    let (one, other) = (memory.map(0, 4)?, memory.map(0, 4)?);
    same(memory.count(fdinfo::PRESENT)?, 0)?;
    for page in 0..4 {
        same(read(&one, page * PAGE)?, 0)?;
        write(&one, page * PAGE + 8, page + 1)?;
        same(read(&other, page * PAGE + 8)?, page + 1)?;
    }
    same(memory.count(fdinfo::PRESENT)?, 4)?;
    same(memory.refusal()?, "none".to_owned())
}

/// `ftruncate` both ways, and `fallocate`.
pub fn its_size_changes() -> Result<()> {
    let memory = Device::open()?.memory(4)?;
    let mapping = memory.map(0, 8)?;
    same(nix::sys::stat::fstat(&memory)?.st_size, 4 * PAGE as i64)?;
    refused(read(&mapping, 4 * PAGE), Errno::EFAULT).context("beyond the end")?;
    write(&mapping, 3 * PAGE, 7)?;
    memory.resize(8 * PAGE)?;
    same(read(&mapping, 4 * PAGE)?, 0)?;
    same(read(&mapping, 3 * PAGE)?, 7)?;
    refused(memory.resize(PAGE + 1), Errno::EINVAL).context("half a page")?;
    memory.resize(3 * PAGE)?;
    refused(read(&mapping, 3 * PAGE), Errno::EFAULT).context("cut off")?;
    memory.resize(4 * PAGE)?;
    same(read(&mapping, 3 * PAGE)?, 0)?;

    for mode in [0, libc::FALLOC_FL_KEEP_SIZE] {
        refused(memory.fallocate(mode, 0, 5 * PAGE), Errno::EINVAL).context("past the end")?;
        refused(memory.fallocate(mode, 1, PAGE), Errno::EINVAL).context("not aligned")?;
        refused(memory.fallocate(mode, 0, PAGE / 2), Errno::EINVAL).context("not a page")?;
        memory.fallocate(mode, 0, 4 * PAGE)?;
        same(memory.count(fdinfo::PRESENT)?, 4)?;
    }
    let unknown = memory.fallocate(libc::FALLOC_FL_COLLAPSE_RANGE, 0, PAGE);
    refused(unknown, Errno::EOPNOTSUPP).context("another mode")?;
    memory.resize(0)?;
    same(memory.count(fdinfo::PRESENT)?, 0)
}

/// A hole reads zeros; one past the end is nothing.
pub fn holes() -> Result<()> {
    let memory = Device::open()?.memory(4)?;
    let mapping = memory.map(0, 4)?;
    for page in 0..4 {
        write(&mapping, page * PAGE, 9)?;
    }
    memory.punch(1, 1)?;
    same(memory.count(fdinfo::PRESENT)?, 3)?;
    same(read(&mapping, PAGE)?, 0)?;
    memory.punch(100, 1)?;
    memory.punch(3, 100)?;
    same([read(&mapping, 0)?, read(&mapping, 2 * PAGE)?, read(&mapping, 3 * PAGE)?], [9, 9, 0])
}

/// No private mapping, and no way but a mapping.
pub fn only_shared_mappings() -> Result<()> {
    let memory = Device::open()?.memory(1)?;
    let size = std::num::NonZeroUsize::new(PAGE as usize).context("a page")?;
    // SAFETY: a new mapping, should there be one.
    let private =
        unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, &memory, 0) };
    ensure!(private == Err(Errno::EINVAL), "a private mapping: {private:?}");
    refused(nix::unistd::read(&memory, &mut [0; 8]), Errno::EINVAL).context("read")?;
    refused(nix::unistd::write(&memory, &[0; 8]), Errno::EINVAL).context("write")
}
