// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reaching memory by way of the kernel.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::gunyah::Mapping;

/// Reads memory of a process by `process_vm_readv`.
pub fn read_by_process_vm(pid: Pid, address: usize, length: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; length];
    let mut local = [std::io::IoSliceMut::new(&mut bytes)];
    let remote = [RemoteIoVec { base: address, len: length }];
    let count = process_vm_readv(pid, &mut local, &remote)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// Reads memory of a process by its `/proc/PID/mem`.
pub fn read_proc_mem(pid: Pid, address: usize, length: usize) -> Result<Vec<u8>, Errno> {
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let file = File::open(format!("/proc/{pid}/mem")).map_err(errno)?;
    let mut bytes = vec![0; length];
    let count = file.read_at(&mut bytes, address as u64).map_err(errno)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// Has the kernel copy memory of this process into a pipe by `write`.
pub fn copy_to_pipe(mapping: &Mapping, offset: usize, length: usize) -> Result<usize, Errno> {
    assert!(offset + length <= mapping.len());
    let (_reader, writer) = nix::unistd::pipe()?;
    // SAFETY: inside the mapping, as just checked; the kernel reads the bytes,
    // or reports EFAULT.
    let count = unsafe {
        libc::write(writer.as_raw_fd(), (mapping.address() + offset) as *const _, length)
    };
    Errno::result(count).map(|count| count as usize)
}

/// A page that a pipe holds: a reference that outlives the mapping it was
/// taken through.
pub struct Pin {
    reader: File,
    length: usize,
}

impl Pin {
    /// Has a pipe hold a part of a mapping, by `vmsplice`.
    pub fn take(mapping: &Mapping, offset: usize, length: usize) -> Result<Pin, Errno> {
        assert!(offset + length <= mapping.len());
        let (reader, writer) = nix::unistd::pipe()?;
        let piece =
            libc::iovec { iov_base: (mapping.address() + offset) as *mut _, iov_len: length };
        // SAFETY: the kernel reads one iovec, and takes references to pages
        // inside the mapping without writing to them.
        let count = unsafe { libc::vmsplice(writer.as_raw_fd(), &piece, 1, 0) };
        match Errno::result(count)? as usize {
            all if all == length => Ok(Pin { reader: reader.into(), length }),
            _ => Err(Errno::EIO),
        }
    }

    /// Drains the pipe, which lets the page go.
    pub fn drain(mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.length];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
