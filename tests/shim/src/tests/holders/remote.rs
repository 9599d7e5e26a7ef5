// SPDX-License-Identifier: MIT OR Apache-2.0

//! Those who reach into a process from outside.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd as _;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};

use super::{AT, HELD, HOSTS, OFFSET, PIN, at_home, comes, held, on_a_lent_page};
use crate::access::{read, write};
use crate::guest::Order;
use crate::gunyah::{Mapping, PAGE};
use crate::tests::{refused, same};
use crate::uffd::Trap;

/// An address of this process.
#[derive(Clone, Copy)]
struct Address(*mut u8);

// SAFETY: only system calls, which check it, are given the address.
unsafe impl Send for Address {}

type Call = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> isize;

/// `process_vm_readv` or `process_vm_writev` of this process.
fn copy(call: Call, local: Address, remote: Address) -> Result<isize, Errno> {
    let iovec = |address: Address| libc::iovec { iov_base: address.0.cast(), iov_len: 8 };
    // SAFETY: the kernel checks the addresses; nothing has a reference to
    // what is there.
    Errno::result(unsafe { call(getpid().as_raw(), &iovec(local), 1, &iovec(remote), 1, 0) })
}

/// The kernel has pinned the page and is about to write to a buffer that
/// faults, and the fault waits.
pub fn process_vm_readv() -> Result<()> {
    let trap = slow_copy(libc::process_vm_readv, 0, HOSTS)?;
    same(trap.word(), HOSTS).context("what was read")
}

/// The same with a buffer that it reads from.
pub fn process_vm_writev() -> Result<()> {
    const WRITTEN: u64 = 0x7777;
    slow_copy(libc::process_vm_writev, WRITTEN, WRITTEN).map(drop)
}

/// The page has `word` in the end; the buffer gets `fill`.
fn slow_copy(call: Call, fill: u64, word: u64) -> Result<Trap> {
    let guest = at_home()?;
    let trap = Trap::new()?;
    let (local, remote) = (Address(trap.at()), Address(guest.mapping.at(OFFSET)));
    thread::scope(|scope| {
        let copying = scope.spawn(move || copy(call, local, remote));
        trap.wait()?;
        held(&guest, PIN)?;
        trap.open(fill)?;
        let Ok(count) = copying.join() else { bail!("the thread has panicked") };
        same(count?, 8)
    })?;
    comes(&guest, word)?;
    on_a_lent_page(&guest, || refused(copy(call, local, remote), Errno::EFAULT))?;
    Ok(trap)
}

/// `/proc/PID/mem`, which also reaches what the process may not.
pub fn proc_mem() -> Result<()> {
    let guest = at_home()?;
    let file = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
    let at = guest.mapping.at(OFFSET) as i64;
    let get = || {
        let mut word = [0; 8];
        // SAFETY: eight bytes of this frame; the kernel checks the address.
        Errno::result(unsafe { libc::pread(file.as_raw_fd(), word.as_mut_ptr().cast(), 8, at) })
            .map(|_| u64::from_le_bytes(word))
    };
    let put = |word: u64, at: i64| {
        let word = word.to_le_bytes();
        // SAFETY: as above.
        Errno::result(unsafe { libc::pwrite(file.as_raw_fd(), word.as_ptr().cast(), 8, at) })
    };
    same(get()?, HOSTS)?;
    put(HOSTS + 1, at)?;
    same(guest.ask(Order::Load(AT))?, HOSTS + 1)?;
    on_a_lent_page(&guest, || {
        refused(get(), Errno::EIO).context("read")?;
        refused(put(1, at), Errno::EIO).context("write")
    })?;

    // A shared mapping is not copied for the one who forces his way in.
    let readable = guest.memory.map(HELD, 1)?;
    // SAFETY: a mapping of its own, to which nothing refers.
    let protected =
        unsafe { libc::mprotect(readable.at(0).cast(), PAGE as usize, libc::PROT_READ) };
    Errno::result(protected)?;
    let word = read(&guest.mapping, OFFSET)?;
    refused(put(1, readable.at(0) as i64), Errno::EIO).context("where only reading is allowed")?;
    same(read(&guest.mapping, OFFSET)?, word)
}

/// A process that is traced: it shares the mapping, and sleeps.
struct Traced(Pid);

impl Traced {
    fn new() -> Result<Traced> {
        // SAFETY: the tests run in a process with one thread.
        match unsafe { fork() }? {
            ForkResult::Child => loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            },
            ForkResult::Parent { child } => {
                nix::sys::ptrace::attach(child)?;
                let status = waitpid(child, None)?;
                ensure!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
                Ok(Traced(child))
            }
        }
    }

    fn peek(&self, mapping: &Mapping) -> Result<u64, Errno> {
        nix::sys::ptrace::read(self.0, mapping.at(OFFSET).cast()).map(|word| word as u64)
    }

    fn poke(&self, mapping: &Mapping, word: u64) -> Result<(), Errno> {
        nix::sys::ptrace::write(self.0, mapping.at(OFFSET).cast(), word as i64)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// PTRACE_PEEKDATA, PTRACE_POKEDATA
pub fn ptrace() -> Result<()> {
    let guest = at_home()?;
    let traced = Traced::new()?;
    same(traced.peek(&guest.mapping)?, HOSTS)?;
    traced.poke(&guest.mapping, HOSTS + 1)?;
    same(guest.ask(Order::Load(AT))?, HOSTS + 1)?;
    on_a_lent_page(&guest, || {
        refused(traced.peek(&guest.mapping), Errno::EIO).context("peek")?;
        refused(traced.poke(&guest.mapping, 1), Errno::EIO).context("poke")
    })?;
    write(&guest.mapping, OFFSET, HOSTS)?;
    same(traced.peek(&guest.mapping)?, HOSTS).context("at home again")
}
