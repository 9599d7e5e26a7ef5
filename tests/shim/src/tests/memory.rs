// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest memory on its own.

use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use super::{refused, same};
use crate::access::{frame, read, write};
use crate::gunyah::{Device, Mapping, Memory, PAGE};
use crate::wait::until;

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

/// The inode outlives the memory in an `O_PATH` descriptor, and whatever can be done with that
/// is an error or does nothing.
pub fn a_path_outlives_the_file() -> Result<()> {
    let device = Device::open()?;
    for size in [0, PAGE, 131_072] {
        let memory = device.memory(16)?;
        let mapping = memory.map(0, 16)?;
        write(&mapping, 0, 1)?;
        let path = path_of(&memory)?;
        drop((memory, mapping));
        through(&path)?;
        // SAFETY: a path that lives through the call.
        let _ = unsafe { libc::truncate(path.1.as_ptr(), size as i64) };
        through(&path)?;
    }
    Ok(())
}

/// The same while the last descriptor is closed.
pub fn a_path_races_with_the_close() -> Result<()> {
    const ROUNDS: u32 = 300;
    let device = Device::open()?;
    for round in 0..ROUNDS {
        let memory = device.memory(64)?;
        memory.fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, 64 * PAGE)?;
        let path = path_of(&memory)?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for step in 0..4u64 {
                    let size = (u64::from(round) + step) % 64 * PAGE;
                    // SAFETY: as above.
                    let _ = unsafe { libc::truncate(path.1.as_ptr(), size as i64) };
                }
            });
            drop(memory);
        });
    }
    Ok(())
}

/// A descriptor of a memory's inode that is none of its file, and the path to it.
pub fn path_of(memory: &Memory) -> Result<(OwnedFd, CString)> {
    let name = CString::new(format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd()))?;
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: a path that lives through the call; what it returns is ours.
    let fd = unsafe {
        Errno::result(libc::open(name.as_ptr(), flags)).map(|fd| OwnedFd::from_raw_fd(fd))
    }
    .context("O_PATH")?;
    let path = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok((fd, path))
}

/// What else there is to be done with an inode: none of it may end in an oops.
fn through((fd, path): &(OwnedFd, CString)) -> Result<()> {
    let times = [libc::timespec { tv_sec: 1, tv_nsec: 0 }; 2];
    // SAFETY: paths and times that live through the calls.
    unsafe {
        let _ = libc::chmod(path.as_ptr(), 0o600);
        let _ = libc::chown(path.as_ptr(), 0, 0);
        let _ = libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0);
        same(libc::open(path.as_ptr(), libc::O_RDWR), -1).context("opened again")?;
    }
    nix::sys::stat::fstat(fd)?;
    Ok(())
}

/// One `FUTEX_WAIT` or `FUTEX_WAKE` of a word of a mapping.
fn futex(mapping: &Mapping, operation: i32, value: u32, limit: Duration) -> Result<i64, Errno> {
    let limit =
        libc::timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    // SAFETY: the kernel reads the word, and copes with what it cannot reach.
    let result = unsafe {
        libc::syscall(libc::SYS_futex, mapping.at(0), operation, value, &raw const limit, 0, 0)
    };
    Errno::result(result)
}

/// Shared between mappings and processes, as in any shared memory.
pub fn shared_futexes() -> Result<()> {
    let device = Device::open()?;
    let short = Duration::from_millis(1);
    for memory in [device.memory(4)?, device.huge_memory_if_any(512)?] {
        let (one, other) = (memory.map(0, 4)?, memory.map(0, 4)?);
        write(&one, 0, 1)?;
        refused(futex(&one, libc::FUTEX_WAIT, 1, short), Errno::ETIMEDOUT)?;
        refused(futex(&one, libc::FUTEX_WAIT, 2, short), Errno::EAGAIN)?;
        thread::scope(|scope| -> Result<()> {
            let sleeper = scope.spawn(|| futex(&one, libc::FUTEX_WAIT, 1, Duration::from_secs(20)));
            until("somebody to wake", || Ok(futex(&other, libc::FUTEX_WAKE, 1, short)? == 1))?;
            same(sleeper.join().map_err(|_| anyhow!("a thread died"))?, Ok(0))
        })?;
    }
    Ok(())
}

/// A fault brings along what is there around it, and makes nothing.
pub fn neighbours_are_mapped_along() -> Result<()> {
    let memory = Device::open()?.memory(64)?;
    memory.fallocate(0, 0, 40 * PAGE)?;
    let mapping = memory.map(0, 64)?;
    let start = mapping.at(0) as u64;
    let mapped = || -> Result<Vec<u64>> {
        let frames = (0..64).map(|page| Ok(frame(&mapping, page * PAGE)?.map(|_| page)));
        Ok(frames.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    };
    // Windows begin at addresses that are aligned.
    let window = |page: u64| {
        let first = ((start + page * PAGE) & !0xffff).saturating_sub(start) / PAGE;
        let end = (((start + page * PAGE) & !0xffff) + 0x1_0000 - start) / PAGE;
        (first..end.min(40)).collect::<Vec<_>>()
    };
    same(read(&mapping, 3 * PAGE)?, 0)?;
    same(mapped()?, window(3)).context("a load")?;
    mapping.forget(0, 64)?;
    write(&mapping, 35 * PAGE, 1)?;
    same(mapped()?, window(35)).context("a store")?;
    same(memory.count(fdinfo::PRESENT)?, 40)
}
