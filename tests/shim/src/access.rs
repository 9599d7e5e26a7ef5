// SPDX-License-Identifier: MIT OR Apache-2.0

//! Ways to reach mapped pages that fail instead of killing, and ways to hold
//! on to them.

use std::fs::File;
use std::io::{IoSlice, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::slice;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, vmsplice};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::gunyah::{Mapping, PAGE};

/// Reads a word through the mapping, as the kernel does for a `write` from
/// there: through the page's entry in this process's tables, faulting it in.
///
/// # Errors
/// EFAULT if the page is out of reach.
pub fn read(mapping: &Mapping, offset: u64) -> Result<u64, Errno> {
    let (mut reader, writer) = std::io::pipe().map_err(|_| Errno::EMFILE)?;
    // SAFETY: the address is the mapping's; the kernel copes with faults.
    let count = unsafe { libc::write(writer.as_raw_fd(), mapping.at(offset).cast(), 8) };
    Errno::result(count)?;
    let mut word = [0; 8];
    reader.read_exact(&mut word).map_err(|_| Errno::EIO)?;
    Ok(u64::from_le_bytes(word))
}

/// Writes a word through the mapping.
///
/// # Errors
/// EFAULT if the page is out of reach.
pub fn write(mapping: &Mapping, offset: u64, word: u64) -> Result<(), Errno> {
    let (reader, writer) = std::io::pipe().map_err(|_| Errno::EMFILE)?;
    nix::unistd::write(&writer, &word.to_le_bytes())?;
    // SAFETY: the address is the mapping's; the kernel copes with faults.
    let count = unsafe { libc::read(reader.as_raw_fd(), mapping.at(offset).cast(), 8) };
    Errno::result(count).map(drop)
}

/// The frame behind a byte of the mapping, if its tables have one
/// (`Documentation/admin-guide/mm/pagemap.rst`).
pub fn frame(mapping: &Mapping, offset: u64) -> Result<Option<u64>> {
    frame_behind(mapping.at(offset) as u64)
}

/// The same for an address of this process.
pub fn frame_behind(at: u64) -> Result<Option<u64>> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?
        .read_exact_at(&mut entry, at / PAGE * 8)
        .context("pagemap")?;
    let entry = u64::from_le_bytes(entry);
    Ok((entry & PRESENT != 0).then_some(entry & FRAME))
}

/// Writes bytes through the mapping, at most as many as a pipe takes.
///
/// # Errors
/// EFAULT if a page is out of reach; what lies before it has been written.
pub fn write_all(mapping: &Mapping, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    let (reader, writer) = std::io::pipe().map_err(|_| Errno::EMFILE)?;
    if nix::unistd::write(&writer, bytes)? != bytes.len() {
        return Err(Errno::EMSGSIZE);
    }
    let place = mapping.at(offset).cast();
    // SAFETY: the address is the mapping's; the kernel copes with faults.
    let count = unsafe { libc::read(reader.as_raw_fd(), place, bytes.len()) };
    if Errno::result(count)? == bytes.len() as isize { Ok(()) } else { Err(Errno::EFAULT) }
}

/// What a load from there does to a program: a word, or the `si_code` of its SIGBUS
/// (`BUS_ADRERR` and the like). A child tries.
pub fn load(mapping: &Mapping, offset: u64) -> Result<Result<u64, i32>> {
    /// What the child ends with is more than this by the code.
    const CODES: i32 = 100;
    extern "C" fn told(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel's, with SA_SIGINFO; and a process may end in a handler.
        unsafe { libc::_exit(CODES + (*info).si_code) }
    }
    let (mut reader, writer) = std::io::pipe()?;
    // SAFETY: the child calls what a signal handler may call, and ends.
    if let ForkResult::Parent { child } = unsafe { fork() }? {
        drop(writer);
        let mut word = [0; 8];
        let whole = reader.read_exact(&mut word).is_ok();
        return match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) if whole => Ok(Ok(u64::from_le_bytes(word))),
            WaitStatus::Exited(_, code) if code > CODES => Ok(Err(code - CODES)),
            status => bail!("a load ends in {status:?}"),
        };
    }
    let action = SigAction::new(SigHandler::SigAction(told), SaFlags::SA_SIGINFO, SigSet::empty());
    // SAFETY: the handler ends the process. The address is aligned and the mapping's;
    // if it is not in reach, the handler runs.
    let status = unsafe {
        let set = sigaction(Signal::SIGBUS, &action).is_ok();
        let word = mapping.at(offset).cast::<u64>().read_volatile();
        !set || nix::unistd::write(&writer, &word.to_le_bytes()) != Ok(8)
    };
    // SAFETY: ends the child at once.
    unsafe { libc::_exit(status.into()) }
}

/// A reference to a page that outlives its mapping: the page is in a pipe.
pub struct Pin {
    reader: std::io::PipeReader,
    _writer: std::io::PipeWriter,
}

impl Pin {
    /// Takes one.
    ///
    /// # Errors
    /// EFAULT if the page is out of reach.
    pub fn take(mapping: &Mapping, page: u64) -> Result<Pin, Errno> {
        let (reader, writer) = std::io::pipe().map_err(|_| Errno::EMFILE)?;
        // SAFETY: the kernel takes the address and the length; nothing is
        // read through the slice here.
        let bytes = unsafe { slice::from_raw_parts(mapping.at(page * PAGE), PAGE as usize) };
        let count = vmsplice(writer.as_fd(), &[IoSlice::new(bytes)], SpliceFFlags::empty())?;
        if count != PAGE as usize {
            return Err(Errno::EIO);
        }
        Ok(Pin { reader, _writer: writer })
    }

    /// Lets go by reading what the page holds.
    pub fn drain(mut self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE as usize];
        self.reader.read_exact(&mut bytes).context("draining the pipe")?;
        ensure!(bytes.len() == PAGE as usize);
        Ok(bytes)
    }
}

impl AsFd for Pin {
    /// What the page is read from.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
