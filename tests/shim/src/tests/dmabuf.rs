// SPDX-License-Identifier: MIT OR Apache-2.0

//! A part of a guest memory as a dma-buf, and what imports it.

use std::fs::{self, File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, anyhow, ensure};
use escrow_abi::call::MODIFY_UNLOCK;
use escrow_shim_tests::runner::Lacking;
use escrow_vmcore::uapi::{self, fdinfo};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use super::same;
use crate::access::{read, write};
use crate::facts::{fdinfo, fdinfo_all};
use crate::guest::{ANSWER, Guest, Order, RAM};
use crate::gunyah::{Device, Exit, Mapping, PAGE};
use crate::holder::{Holder, IMPORTER, Manner};
use crate::modules;

const FIRST: u64 = 8;
const PAGES: u64 = 3;
const AT: u64 = RAM + FIRST * PAGE;
const HOSTS: u64 = 0x1122_3344_5566_7788;
const REFUSED: Exit = Exit::PageFault(AT, Errno::EAGAIN);

fn exported() -> Result<(Guest, OwnedFd)> {
    let guest = Guest::started(&Device::open()?, 16, 0)?;
    write(&guest.mapping, FIRST * PAGE, HOSTS)?;
    match guest.memory.export(FIRST, PAGES) {
        Ok(buffer) => Ok((guest, buffer)),
        Err(Errno::EOPNOTSUPP) => Err(Lacking("dma-bufs".to_owned()).into()),
        Err(error) => Err(error.into()),
    }
}

fn refused_by(guest: &Guest) -> Result<String> {
    fdinfo(guest.memory.as_fd(), fdinfo::REFUSED_BY)
}

fn holders(guest: &Guest) -> Result<usize> {
    Ok(fdinfo_all(guest.memory.as_fd(), fdinfo::HOLDER)?.len())
}

/// Programs that map it map the memory, and its pages go from them as well.
pub fn is_the_memory() -> Result<()> {
    let (guest, buffer) = exported()?;
    let mapping = Mapping::of(&buffer, PAGES)?;
    same(read(&mapping, 0)?, HOSTS)?;
    write(&mapping, 2 * PAGE, 7)?;
    same(read(&guest.mapping, (FIRST + 2) * PAGE)?, 7)?;
    same(guest.ask(Order::Load(AT))?, HOSTS).context("a buffer alone hinders no lend")?;
    same(read(&mapping, 0), Err(Errno::EFAULT))?;
    same(read(&mapping, 2 * PAGE)?, 7)?;
    same(guest.memory.punch(FIRST + 1, 1), Err(Errno::EBUSY)).context("a hole in a buffer")?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    same(read(&mapping, 0)?, HOSTS)?;
    drop((mapping, buffer));
    // The last reference goes when the kernel gets round to it.
    while holders(&guest)? != 0 {}
    Ok(guest.memory.punch(FIRST + 1, 1)?)
}

/// One that is not for writing is not mapped for it.
pub fn is_read_only_if_so_exported() -> Result<()> {
    let (guest, _buffer) = exported()?;
    let buffer = guest.memory.export_with(&uapi::ExportDmabuf {
        offset: FIRST * PAGE,
        size: PAGE,
        flags: uapi::EXPORT_CLOEXEC,
        reserved: 0,
    })?;
    let size = NonZeroUsize::new(PAGE as usize).context("a page")?;
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, which is not to be.
    let mapped = unsafe { mmap(None, size, both, MapFlags::MAP_SHARED, &buffer, 0) };
    same(mapped.err(), Some(Errno::EACCES))
}

/// An importer that cannot be told is in the way for as long as it is there.
pub fn a_static_importer_keeps_its_pages() -> Result<()> {
    let (guest, buffer) = exported()?;
    let holder = Holder::open()?;
    holder.attach(&buffer, Manner::Static)?;
    same(holder.map()?, HOSTS).context("what the device reads")?;
    same(guest.order(Order::Load(AT))?, REFUSED)?;
    same(refused_by(&guest)?, IMPORTER.to_owned())?;
    same(read(&guest.mapping, FIRST * PAGE)?, HOSTS)?;
    holder.detach()?;
    same(guest.run()?, Exit::Write(ANSWER, HOSTS))?;
    // What is lent is not imported, and no harm is done.
    ensure!(holder.attach(&buffer, Manner::Static).and_then(|()| holder.map().map(drop)).is_err());
    same(guest.ask(Order::Load(AT))?, HOSTS)
}

/// One that can is told, gives its mapping up, and has none while a guest has a
/// page.
pub fn a_dynamic_importer_is_told() -> Result<()> {
    let (guest, buffer) = exported()?;
    let holder = Holder::open()?;
    holder.attach(&buffer, Manner::Ends)?;
    same(holder.map()?, HOSTS)?;
    same(guest.ask(Order::Load(AT))?, HOSTS).context("the same run goes on")?;
    same(holder.told()?, 1)?;
    let refused = holder.map();
    ensure!(matches!(refused, Err(Errno::EAGAIN | Errno::EFAULT)), "{refused:?}");
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    // For a moment after it was told, it is not let in.
    while holder.map() == Err(Errno::EAGAIN) {}
    holder.unmap()?;
    same(holder.map()?, HOSTS)?;
    Ok(holder.unmap()?)
}

/// One that should let go and does not, and one that wants it back at once.
pub fn importers_that_misbehave() -> Result<()> {
    let (guest, buffer) = exported()?;
    let holder = Holder::open()?;
    holder.attach(&buffer, Manner::Keeps)?;
    holder.map()?;
    same(guest.order(Order::Load(AT))?, REFUSED)?;
    same(refused_by(&guest)?, IMPORTER.to_owned())?;
    holder.detach()?;
    same(guest.run()?, Exit::Write(ANSWER, HOSTS))?;

    let (guest, buffer) = exported()?;
    holder.attach(&buffer, Manner::Returns)?;
    holder.map()?;
    same(guest.ask(Order::Load(AT))?, HOSTS)?;
    holder.did_not_return()
}

/// The kernel cannot map it for itself, at home or lent, and warns of nothing.
pub fn drivers_do_not_map_it() -> Result<()> {
    let (guest, buffer) = exported()?;
    let holder = Holder::open()?;
    holder.attach(&buffer, Manner::Ends)?;
    same(holder.vmap(), Err(Errno::EINVAL))?;
    same(guest.ask(Order::Load(AT))?, HOSTS)?;
    same(holder.vmap(), Err(Errno::EINVAL))
}

/// Whoever of buffer, importer, memory and VM is closed first.
pub fn closed_in_any_order() -> Result<()> {
    for order in 0..4 {
        let (guest, buffer) = exported()?;
        let holder = Holder::open()?;
        holder.attach(&buffer, Manner::Ends)?;
        holder.map()?;
        let mapping = Mapping::of(&buffer, PAGES)?;
        match order {
            0 => drop((holder, buffer, mapping, guest)),
            1 => drop((guest, holder, mapping, buffer)),
            2 => drop((buffer, guest, mapping, holder)),
            _ => drop((mapping, buffer, holder, guest)),
        }
    }
    Ok(())
}

/// What is no part of the memory, or not there.
pub fn arguments_are_checked() -> Result<()> {
    let (guest, buffer) = exported()?;
    drop(buffer);
    let good = uapi::ExportDmabuf { offset: 0, size: PAGE, flags: 0, reserved: 0 };
    for (bad, errno) in [
        (uapi::ExportDmabuf { offset: 16 * PAGE, ..good }, Errno::EINVAL),
        (uapi::ExportDmabuf { size: 17 * PAGE, ..good }, Errno::EINVAL),
        (uapi::ExportDmabuf { size: 0, ..good }, Errno::EINVAL),
        (uapi::ExportDmabuf { offset: 8, ..good }, Errno::EINVAL),
        (uapi::ExportDmabuf { flags: 8, ..good }, Errno::EINVAL),
        (uapi::ExportDmabuf { reserved: 1, ..good }, Errno::EINVAL),
        // The guest has its first page.
        (good, Errno::EFAULT),
    ] {
        same(guest.memory.export_with(&bad).err(), Some(errno))
            .with_context(|| format!("{bad:x?}"))?;
    }
    while holders(&guest)? != 0 {}
    // So many of one memory.
    let buffers: Result<Vec<_>, Errno> =
        (0..256).map(|_| guest.memory.export(FIRST, PAGES)).collect();
    let buffers = buffers?;
    same(guest.memory.export(FIRST, PAGES).err(), Some(Errno::ENOSPC))?;
    same(guest.ask(Order::Load(AT))?, HOSTS).context("they hinder no lend")?;
    drop(buffers);
    Ok(())
}

/// `struct drm_prime_handle`
#[repr(C)]
struct Prime {
    handle: u32,
    flags: u32,
    fd: i32,
}

/// `struct drm_gem_close`
#[repr(C)]
struct GemClose {
    handle: u32,
    pad: u32,
}

const PRIME_FD_TO_HANDLE: u32 = 0xc00c_642e;
const GEM_CLOSE: u32 = 0x4008_6409;

fn vgem() -> Result<File> {
    const CARDS: &str = "/dev/dri";
    // In the order in which they need each other.
    for needed in ["drm", "drm_kms_helper", "drm_shmem_helper"] {
        modules::load_if_there(needed)?;
    }
    modules::load("vgem", "", CARDS)?;
    let cards = fs::read_dir(CARDS)?.flatten().map(|entry| entry.path());
    let card = cards.into_iter().find(|path| path.to_string_lossy().contains("card"));
    let card = card.ok_or_else(|| Lacking("card of vgem's".to_owned()))?;
    Ok(OpenOptions::new().read(true).write(true).open(card)?)
}

/// A driver of Linux's own: it keeps what it imports mapped.
pub fn vgem_imports_it() -> Result<()> {
    let (guest, buffer) = exported()?;
    let card = vgem()?;
    let mut prime = Prime { handle: 0, flags: 0, fd: buffer.as_raw_fd() };
    // SAFETY: the structure is the request's, and lives through the call.
    let result = unsafe { libc::ioctl(card.as_raw_fd(), PRIME_FD_TO_HANDLE as _, &raw mut prime) };
    Errno::result(result).context("PRIME_FD_TO_HANDLE")?;
    same(guest.order(Order::Load(AT))?, REFUSED)?;
    same(refused_by(&guest)?, "dma-buf:vgem".to_owned())?;
    let mut close = GemClose { handle: prime.handle, pad: 0 };
    // SAFETY: as above.
    let result = unsafe { libc::ioctl(card.as_raw_fd(), GEM_CLOSE as _, &raw mut close) };
    Errno::result(result).context("GEM_CLOSE")?;
    same(guest.run()?, Exit::Write(ANSWER, HOSTS))
}

/// Buffers come and go while others make holes where they are: either is first, and no
/// page is left behind that nobody finds any more.
pub fn races_with_holes() -> Result<()> {
    const TRIES: u32 = 4000;
    let memory = Device::open()?.memory(16)?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let holes = scope.spawn(|| -> Result<()> {
            while !ended.load(Ordering::Relaxed) {
                match memory.punch(FIRST, PAGES) {
                    Ok(()) | Err(Errno::EBUSY) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        });
        let exports = (0..TRIES).try_for_each(|_| match memory.export(FIRST, PAGES) {
            // ENOSPC: the last ones are not quite gone.
            Ok(_) | Err(Errno::ENOSPC) => Ok(()),
            Err(Errno::EOPNOTSUPP) => Err(Lacking("dma-bufs".to_owned()).into()),
            Err(error) => Err(error.into()),
        });
        ended.store(true, Ordering::Relaxed);
        holes.join().map_err(|_| anyhow!("a thread has panicked"))??;
        exports
    })?;
    while memory.punch(FIRST, PAGES) == Err(Errno::EBUSY) {}
    same(memory.count(fdinfo::PRESENT)?, 0)
}

/// A program with a buffer can access that part of the memory, and by no system call another
/// part.
pub fn is_no_more_than_its_part() -> Result<()> {
    let (_guest, buffer) = exported()?;
    let remap = |mapping: &Mapping, page: u64| {
        let start = mapping.at(0);
        // SAFETY: the mapping is this test's own, and only system calls touch it.
        let result = unsafe { libc::syscall(libc::SYS_remap_file_pages, start, PAGE, 0, page, 0) };
        Errno::result(result).map(drop)
    };
    for page in [0, FIRST - 1, FIRST + PAGES, 1 << 40] {
        // Linux has unmapped what was there when it asks for the new mapping.
        let mapping = Mapping::of(&buffer, PAGES)?;
        same(remap(&mapping, page), Err(Errno::EINVAL)).with_context(|| format!("page {page}"))?;
    }
    let mapping = Mapping::of(&buffer, PAGES)?;
    same(read(&mapping, 0)?, HOSTS).context("nothing has changed")?;
    write(&mapping, 2 * PAGE, 5)?;
    same(remap(&mapping, FIRST + 2), Ok(())).context("another page of the part")?;
    same(read(&mapping, 0)?, 5)?;
    // A buffer that is gone leaves its mappings as they are, and no way to holes.
    drop(buffer);
    // SAFETY: as above.
    let removed = unsafe { libc::madvise(mapping.at(0).cast(), PAGE as usize, libc::MADV_REMOVE) };
    same(Errno::result(removed).err(), Some(Errno::EOPNOTSUPP))?;
    same(read(&mapping, 0)?, 5)
}
