// SPDX-License-Identifier: MIT OR Apache-2.0

//! Those who only look: at tables, at frames, at what a program leaves behind.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::poison::frame_of;
use super::{AT, GUESTS, HOSTS, OFFSET, at_home, lend, on_a_lent_page};
use crate::access::{frame, read, write};
use crate::guest::Order;
use crate::gunyah::PAGE;
use crate::tests::{refused, same};

fn word_of(file: &str, frame: u64) -> Result<u64> {
    let mut word = [0; 8];
    File::open(file)?.read_exact_at(&mut word, frame * 8).context(file.to_owned())?;
    Ok(u64::from_le_bytes(word))
}

/// `/proc/PID/pagemap`, `smaps`, `/proc/kpageflags`, `/proc/kpagecount`,
/// `mincore`, `msync`
pub fn page_tables_and_frames() -> Result<()> {
    let guest = at_home()?;
    let place = frame_of(&guest)?;
    same(word_of("/proc/kpagecount", place)?, 1).context("mappings of it")?;
    on_a_lent_page(&guest, || {
        same(frame(&guest.mapping, OFFSET)?, None).context("the tables")?;
        same(word_of("/proc/kpagecount", place)?, 0).context("mappings of it")?;
        word_of("/proc/kpageflags", place)?;
        let maps = fs::read_to_string("/proc/self/smaps")?;
        ensure!(maps.contains("gunyah-mem"), "no mapping of guest memory");
        let start = guest.mapping.at(OFFSET).cast();
        let mut is_there = [0xff; 1];
        // SAFETY: the kernel writes a byte for the page.
        Errno::result(unsafe { libc::mincore(start, PAGE as usize, is_there.as_mut_ptr()) })?;
        same(is_there[0] & 1, 0).context("mincore")?;
        // SAFETY: changes nothing.
        let sync = Errno::result(unsafe { libc::msync(start, PAGE as usize, libc::MS_SYNC) });
        refused(sync, Errno::EINVAL).context("msync")
    })?;
    // The same frame has come home.
    same(frame(&guest.mapping, OFFSET)?, Some(place))
}

/// A program that dies with guest memory mapped leaves none of it behind.
pub fn core_dumps() -> Result<()> {
    const CORE: &str = "/tmp/core-of-a-test";
    fs::write("/proc/sys/kernel/core_pattern", CORE)?;
    const HALF: u64 = PAGE / 2;
    let guest = at_home()?;
    lend(&guest)?;
    guest.ask(Order::Store(AT + HALF, GUESTS))?;
    for at in [OFFSET + PAGE, OFFSET + PAGE + HALF] {
        write(&guest.mapping, at, HOSTS)?;
        same(read(&guest.mapping, at)?, HOSTS)?;
    }
    // SAFETY: the tests run in a process with one thread.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            let limit =
                libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: ends this process, with a core file.
            unsafe {
                libc::setrlimit(libc::RLIMIT_CORE, &limit);
                libc::abort();
            }
        }
        ForkResult::Parent { child } => child,
    };
    let status = waitpid(child, None)?;
    ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGABRT, true)), "{status:?}");
    let core = fs::read(CORE)?;
    fs::remove_file(CORE)?;
    // What this program itself says of the words is in its text and on its
    // stack, perhaps where a page begins; a page of guest memory has them there and in
    // its middle.
    let has = |word: u64| {
        let word = word.to_le_bytes();
        core.as_chunks::<{ PAGE as usize }>()
            .0
            .iter()
            .any(|page| page.starts_with(&word) && page[HALF as usize..].starts_with(&word))
    };
    ensure!(core.len() > PAGE as usize, "an empty core file");
    ensure!(!has(GUESTS), "the guest's page is in the core file");
    ensure!(!has(HOSTS), "guest memory is in the core file");
    same(guest.ask(Order::Load(AT))?, GUESTS)
}
