// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the kernel finds when it reaches for a program's memory on the
//! program's behalf: the system call ends in EFAULT.

use std::ffi::c_void;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use escrow_shim_tests::runner::same;
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::{middle_home, middle_lent};
use crate::device::{Liar, Way};
use crate::region::{PAGE, Region, load, store};

const EFAULT: i64 = -(libc::EFAULT as i64);

/// The functions that system calls are made of.
pub fn of_the_kernel_s_functions() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::private(3)?);
    let expected = [
        // Those that count say that all is left to do.
        (Way::CopyFromUser, 64),
        (Way::CopyToUser, 64),
        (Way::ClearUser, 64),
        (Way::GetUser, EFAULT),
        (Way::PutUser, EFAULT),
        (Way::StrncpyFromUser, EFAULT),
        (Way::StrnlenUser, 0),
        (Way::FromUserNoFault, EFAULT),
    ];
    let (borrower, lent) = middle_lent(&liar, &region)?;
    for (way, expected) in expected {
        for at in [lent, lent + 8, lent + 0xf80] {
            same(liar.probe(way, at, 64, 0)?.1, expected).with_context(|| format!("{way:?}"))?;
        }
    }
    // A copy that has begun says what is left of it, which may be more than
    // what is out of reach.
    for way in [Way::CopyFromUser, Way::CopyToUser, Way::ClearUser] {
        let left = liar.probe(way, lent - 16, 64, 0)?.1;
        ensure!((48..=64).contains(&left), "{way:?}: {left}");
    }
    region.fill_page(0);
    // A string that ends at the edge is read by words that do not.
    store(lent - 8, u64::from_le_bytes(*b"xxxxabc\0"));
    same(liar.probe(Way::StrncpyFromUser, lent - 4, 64, 0)?.1, 3)?;
    same(liar.probe(Way::StrnlenUser, lent - 4, 64, 0)?.1, 4)?;
    region.fill_page(0);
    middle_home(borrower, &region)?;
    for (way, _) in expected {
        let seen = liar.probe(way, lent, 64, 0)?.1;
        ensure!(seen >= 0 && seen != 64 || way == Way::StrncpyFromUser, "{way:?}: {seen}");
    }
    region.fill();
    Ok(())
}

/// A file of a tmpfs, gone when it is closed.
fn file(direct: bool) -> Result<File> {
    let path = "/tmp/uaccess";
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    if direct {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(path).with_context(|| format!("cannot make {path}"))?;
    std::fs::remove_file(path)?;
    file.set_len(2 * PAGE as u64)?;
    Ok(file)
}

fn read(fd: RawFd, at: usize) -> i64 {
    // SAFETY: the kernel copes with faults, and no Rust object is there.
    unsafe { libc::read(fd, at as *mut c_void, PAGE) as i64 }
}

fn write(fd: RawFd, at: usize) -> i64 {
    // SAFETY: as for `read`.
    unsafe { libc::write(fd, at as *const c_void, PAGE) as i64 }
}

/// System calls whose buffers or structures are lent.
pub fn of_system_calls() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::private(3)?);
    let (borrower, lent) = middle_lent(&liar, &region)?;
    let refused = |what: &str, result: i64| {
        let seen = (result, Errno::last());
        same(seen, (-1, Errno::EFAULT)).with_context(|| what.to_owned())
    };

    let (mut reader, mut writer) = std::io::pipe()?;
    refused("write to a pipe", write(writer.as_raw_fd(), lent))?;
    writer.write_all(b"kept")?;
    refused("read from a pipe", read(reader.as_raw_fd(), lent))?;
    let mut kept = [0; 4];
    reader.read_exact(&mut kept)?;
    same(&kept, b"kept")?;

    for direct in [false, true] {
        let file = file(direct)?;
        refused("write to a file", write(file.as_raw_fd(), lent))?;
        refused("read from a file", read(file.as_raw_fd(), lent))?;
    }
    refused("read of zeros", read(File::open("/dev/zero")?.as_raw_fd(), lent))?;
    refused("read of random numbers", read(File::open("/dev/urandom")?.as_raw_fd(), lent))?;
    refused("read of a file of proc", read(File::open("/proc/self/maps")?.as_raw_fd(), lent))?;
    refused("read of a file of sys", read(File::open("/sys/kernel/notes")?.as_raw_fd(), lent))?;

    let (one, _other) = std::os::unix::net::UnixStream::pair()?;
    refused("write to a socket", write(one.as_raw_fd(), lent))?;

    let at = lent as *mut c_void;
    // SAFETY: the kernel copes with faults, and no Rust object is there; so
    // for all that follow.
    let result = unsafe { libc::syscall(libc::SYS_getrandom, at, 64, 0) };
    refused("getrandom", result)?;
    // SAFETY: as above.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_REALTIME, at) };
    refused("clock_gettime", result)?;
    // SAFETY: as above.
    refused("uname", unsafe { libc::syscall(libc::SYS_uname, at) })?;
    // SAFETY: as above.
    let result = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, at, libc::O_RDONLY) };
    refused("openat", result)?;
    // SAFETY: as above.
    let result =
        unsafe { libc::syscall(libc::SYS_newfstatat, libc::AT_FDCWD, c"/".as_ptr(), at, 0) };
    refused("newfstatat", result)?;
    // SAFETY: as above.
    let result = unsafe { libc::syscall(libc::SYS_ppoll, at, 1, 0, 0, 0) };
    refused("ppoll", result)?;
    // SAFETY: as above.
    let result = unsafe { libc::syscall(libc::SYS_writev, writer.as_raw_fd(), at, 1) };
    refused("writev", result)?;
    // SAFETY: as above.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, 0, at, 0, 8) };
    refused("rt_sigprocmask", result)?;
    // SAFETY: as above.
    let result = unsafe { libc::syscall(libc::SYS_execve, at, 0, 0) };
    refused("execve", result)?;
    middle_home(borrower, &region)
}

/// What is in reach of a buffer is transferred.
pub fn part_of_a_buffer() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::private(3)?);
    let (borrower, lent) = middle_lent(&liar, &region)?;
    let file = file(false)?;
    let count = write(file.as_raw_fd(), lent - 64);
    ensure!((1..=64).contains(&count), "{count} bytes of 64 written");
    let mut seen = vec![0; count as usize];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut seen, 0)?;
    for (n, word) in seen.chunks_exact(8).enumerate() {
        same(word, &load(lent - 64 + n * 8).to_le_bytes()[..])?;
    }
    same(
        write(file.as_raw_fd(), lent - 64 + count as usize).min(0),
        if count == 64 { -1 } else { 0 },
    )?;
    middle_home(borrower, &region)
}

fn futex(at: usize, operation: i32, value: u32, more: [usize; 3]) -> i64 {
    let [timeout, at2, value3] = more;
    // SAFETY: the kernel copes with faults; the words are in a region.
    unsafe { libc::syscall(libc::SYS_futex, at, operation, value, timeout, at2, value3) }
}

/// Those that look at the word.
pub fn futexes() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::private(3)?);
    let (borrower, lent) = middle_lent(&liar, &region)?;
    for private in [0, libc::FUTEX_PRIVATE_FLAG] {
        for operation in [libc::FUTEX_WAIT, libc::FUTEX_CMP_REQUEUE] {
            let seen = futex(lent, operation | private, 1, [0, region.page(0), 1]);
            let seen = (seen, Errno::last());
            same(seen, (-1, Errno::EFAULT)).with_context(|| format!("operation {operation}"))?;
        }
        // Nobody waits there, and the word is nothing to this one.
        same(futex(lent, libc::FUTEX_WAKE | private, 1, [0; 3]), 0)?;
    }
    middle_home(borrower, &region)
}

/// Those that change the word: Linux finds nothing wrong with its own tables,
/// and tries again and again. That task cannot go on until the page is home;
/// the others do.
pub fn a_futex_operation_waits_for_the_page() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::shared(3)?);
    let begun = Region::shared(1)?;
    store(begun.page(0), 0);
    let (borrower, lent) = middle_lent(&liar, &region)?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            store(begun.page(0), 1);
            let add_one = 1 << 28 | 1 << 12;
            let woken = futex(region.page(0), libc::FUTEX_WAKE_OP, 1, [1, lent, add_one]);
            // SAFETY: ends this process without what the parent set up for
            // its own end.
            unsafe { libc::_exit((woken != 0).into()) }
        }
        ForkResult::Parent { child } => {
            while load(begun.page(0)) == 0 {
                std::thread::yield_now();
            }
            // It is in the kernel soon; if it should be late, it meets a page
            // that is home, which is right as well.
            for _ in 0..1000 {
                std::thread::yield_now();
            }
            let early = waitpid(child, Some(nix::sys::wait::WaitPidFlag::WNOHANG))?;
            same(early, WaitStatus::StillAlive)?;
            borrower.home()?;
            same(waitpid(child, None)?, WaitStatus::Exited(child, 0))?;
        }
    }
    // It has done it, once.
    // SAFETY: the word is in a region, and whoever changed it is gone.
    let word = unsafe { AtomicU32::from_ptr(lent as *mut u32) };
    same(word.load(Ordering::Relaxed), 1)
}
