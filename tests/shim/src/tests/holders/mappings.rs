// SPDX-License-Identifier: MIT OR Apache-2.0

//! Mappings hold nothing: however many there are, and whosever, the page is
//! taken out of all of them.

use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};

use super::{AT, GUESTS, HELD, HOSTS, OFFSET, at_home, lend, on_a_lent_page};
use crate::access::{read, write};
use crate::guest::Order;
use crate::gunyah::{Mapping, Memory, PAGE};
use crate::tests::{refused, same};

/// What a child ends with if it reads the host's word, or the guest's.
const READS_HOSTS: i32 = 40;
const READS_GUESTS: i32 = 41;

/// Starts a process that waits for a byte, and then loads from the page as any
/// program does.
fn a_reader(mapping: &Mapping) -> Result<(Pid, std::io::PipeWriter)> {
    let (reader, writer) = std::io::pipe()?;
    // SAFETY: the tests run in a process with one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(writer);
            let _ = nix::unistd::read(&reader, &mut [0]);
            // SAFETY: aligned, and mapped; if the page is not in reach, this
            // process ends here, which is what is tested.
            let word = unsafe { mapping.at(OFFSET).cast::<u64>().read_volatile() };
            let status = match word {
                HOSTS => READS_HOSTS,
                GUESTS => READS_GUESTS,
                _ => 1,
            };
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => Ok((child, writer)),
    }
}

fn end_of((child, mut go): (Pid, std::io::PipeWriter)) -> Result<WaitStatus> {
    // Closing it would not do: later children have it as well.
    std::io::Write::write_all(&mut go, &[1])?;
    Ok(waitpid(child, None)?)
}

fn ends_by_sigbus(reader: (Pid, std::io::PipeWriter)) -> Result<()> {
    let status = end_of(reader)?;
    ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGBUS, _)), "{status:?}");
    Ok(())
}

fn reads(reader: (Pid, std::io::PipeWriter), what: i32) -> Result<()> {
    let status = end_of(reader)?;
    ensure!(matches!(status, WaitStatus::Exited(_, end) if end == what), "{status:?}");
    Ok(())
}

/// Before the lend and after it, in parent and child.
pub fn fork_in_parent_and_child() -> Result<()> {
    let guest = at_home()?;
    reads(a_reader(&guest.mapping)?, READS_HOSTS)?;
    let before = a_reader(&guest.mapping)?;
    let last = a_reader(&guest.mapping)?;
    same(read(&guest.mapping, OFFSET)?, HOSTS)?;
    on_a_lent_page(&guest, || {
        ends_by_sigbus(before).context("a child from before")?;
        ends_by_sigbus(a_reader(&guest.mapping)?).context("a child of now")?;
        refused(read(&guest.mapping, OFFSET), Errno::EFAULT).context("the parent")
    })?;
    reads(last, READS_GUESTS).context("home again")
}

/// `mremap`, as a plain call.
fn mremap(mapping: &Mapping, old: u64, new: u64, flags: i32) -> Result<*mut u8, Errno> {
    // SAFETY: moves a mapping to where the kernel finds room; nothing refers
    // to what is in it, and the caller unmaps where it has gone.
    let at = unsafe { libc::mremap(mapping.at(0).cast(), old as usize, new as usize, flags) };
    if at == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(at.cast()) }
}

/// A mapping that has moved is found where it is; one that is lent moves, and
/// is no nearer to it.
pub fn moved() -> Result<()> {
    let guest = at_home()?;
    // A second page, so that the mapping has a rest to be moved on.
    let moving = guest.memory.map(HELD, 2)?;
    same(read(&moving, 0)?, HOSTS)?;
    refused(mremap(&moving, PAGE, 3 * PAGE, libc::MREMAP_MAYMOVE), Errno::EFAULT)
        .context("growing")?;
    refused(
        mremap(&moving, PAGE, PAGE, libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP),
        Errno::EINVAL,
    )
    .context("moving the contents")?;

    let place = guest.memory.map(0, 1)?;
    let to = place.at(0);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: over a mapping of this test's own, to which nothing refers.
    let at = unsafe { libc::mremap(moving.at(0).cast(), PAGE as usize, PAGE as usize, flags, to) };
    same(at.cast(), to)?;
    same(read(&place, 0)?, HOSTS).context("where it has gone")?;
    refused(read(&moving, 0), Errno::EFAULT).context("where it was")?;
    on_a_lent_page(&guest, || {
        refused(read(&place, 0), Errno::EFAULT)?;
        let back = moving.at(0);
        // SAFETY: to where it came from.
        let at = unsafe { libc::mremap(to.cast(), PAGE as usize, PAGE as usize, flags, back) };
        same(at.cast(), back)?;
        refused(read(&moving, 0), Errno::EFAULT).context("moved while it is lent")
    })?;
    same(read(&moving, 0)?, GUESTS)
}

/// Several at once, at different offsets, one of them of the same page twice.
pub fn several() -> Result<()> {
    let guest = at_home()?;
    let one = guest.memory.map(HELD, 1)?;
    let from_before = guest.memory.map(HELD - 2, 5)?;
    let all = guest.memory.map(0, 16)?;
    let twice = guest.memory.map(0, 4)?;
    // Page HELD in the place of the second page of the mapping.
    // SAFETY: within a mapping of this test's own, to which nothing refers.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_remap_file_pages, twice.at(PAGE), PAGE, 0, HELD, 0)
    })?;
    let places = [
        (&one, 0),
        (&from_before, 2 * PAGE),
        (&all, OFFSET),
        (&twice, PAGE),
        (&guest.mapping, OFFSET),
    ];
    for (mapping, at) in places {
        same(read(mapping, at)?, HOSTS)?;
    }
    on_a_lent_page(&guest, || {
        for (mapping, at) in places {
            refused(read(mapping, at), Errno::EFAULT)?;
            refused(write(mapping, at, 1), Errno::EFAULT)?;
        }
        same(read(&all, OFFSET + PAGE)?, 0).context("a neighbour")?;
        same(read(&from_before, PAGE)?, 0).context("a neighbour")
    })?;
    for (mapping, at) in places {
        same(read(mapping, at)?, GUESTS)?;
    }
    Ok(())
}

/// A mapping in pieces of different rights, and a page of it mapped anew.
pub fn split_and_replaced() -> Result<()> {
    let guest = at_home()?;
    let split = guest.memory.map(0, 16)?;
    let protect = |page: u64, rights| {
        // SAFETY: of a mapping to which nothing refers.
        Errno::result(unsafe {
            libc::mprotect(split.at(page * PAGE).cast(), PAGE as usize, rights)
        })
    };
    protect(HELD, libc::PROT_READ)?;
    protect(HELD + 1, libc::PROT_NONE)?;
    same(read(&split, OFFSET)?, HOSTS)?;
    on_a_lent_page(&guest, || {
        refused(read(&split, OFFSET), Errno::EFAULT)?;
        protect(HELD, libc::PROT_READ | libc::PROT_WRITE)?;
        refused(read(&split, OFFSET), Errno::EFAULT).context("with other rights")?;
        // SAFETY: in the place of a page of a mapping of this test's own.
        let again = unsafe {
            libc::mmap(
                split.at(OFFSET).cast(),
                PAGE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE,
                guest.memory.as_fd().as_raw_fd(),
                OFFSET as i64,
            )
        };
        ensure!(again != libc::MAP_FAILED, "mmap: {}", Errno::last());
        refused(read(&split, OFFSET), Errno::EFAULT).context("mapped anew")
    })?;
    same(read(&split, OFFSET)?, GUESTS)
}

/// A program that was given the file maps it for itself.
pub fn of_another_program() -> Result<()> {
    let guest = at_home()?;
    let (told, tell) = std::io::pipe()?;
    let parent = getpid();
    let memory = guest.memory.as_fd().as_raw_fd();
    // SAFETY: the tests run in a process with one thread.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            drop(tell);
            let look = || -> Result<()> {
                // By its number in the other program, as a debugger takes it.
                // SAFETY: makes descriptors.
                let process = Errno::result(unsafe {
                    libc::syscall(libc::SYS_pidfd_open, parent.as_raw(), 0)
                })?;
                // SAFETY: as above.
                let file = Errno::result(unsafe {
                    libc::syscall(libc::SYS_pidfd_getfd, process, memory, 0)
                })?;
                // SAFETY: it is new, and nobody else's.
                let file = Memory::from(unsafe { OwnedFd::from_raw_fd(file as i32) });
                let _ = nix::unistd::read(&told, &mut [0]);
                let mapping = file.map(HELD, 1)?;
                refused(read(&mapping, 0), Errno::EFAULT)?;
                refused(file.punch(HELD, 1), Errno::EBUSY)?;
                refused(file.resize(PAGE), Errno::EBUSY)
            };
            let failed = look().is_err();
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(failed.into()) }
        }
        ForkResult::Parent { child } => child,
    };
    lend(&guest)?;
    drop(tell);
    let status = waitpid(child, None)?;
    if !matches!(status, WaitStatus::Exited(_, 0)) {
        bail!("{status:?}");
    }
    same(guest.ask(Order::Load(AT))?, GUESTS)
}
