// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{Error, Result};

/// A guest memory: a file whose pages may be lent to guests.
pub struct GuestMemory(File);

/// What a [`Mapping`] may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Loads.
    Read,
    /// Loads and stores.
    ReadWrite,
}

impl GuestMemory {
    pub(super) fn new(file: File) -> GuestMemory {
        GuestMemory(file)
    }

    /// Maps the `size` bytes at `offset` for this process, shared.
    pub fn map(&self, offset: u64, size: u64, protection: Protection) -> Result<Mapping> {
        let call = "mmap of guest memory";
        let error = |errno| Error { call, errno };
        let length = usize::try_from(size).ok().and_then(NonZeroUsize::new);
        let length = length.ok_or(error(nix::errno::Errno::EINVAL))?;
        let protection = match protection {
            Protection::Read => ProtFlags::PROT_READ,
            Protection::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        let flags = MapFlags::MAP_SHARED;
        // SAFETY: a new mapping at an address of the kernel's choice touches
        // no memory that Rust knows of.
        let address =
            unsafe { mmap(None, length, protection, flags, &self.0, offset as libc::off_t) };
        Ok(Mapping { address: address.map_err(error)?, length: length.get() })
    }

    /// Gives the pages in a range back to the host: they read as zero
    /// afterwards.
    pub fn punch_hole(&self, offset: u64, size: u64) -> Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.0, flags, offset as libc::off_t, size as libc::off_t)
            .map_err(|errno| Error { call: "fallocate(PUNCH_HOLE) of guest memory", errno })
    }

    /// Has the host make the pages of a range, those that are not there yet, so
    /// that a want of memory is an error here and not a signal later.
    pub fn populate(&self, offset: u64, size: u64) -> Result<()> {
        fallocate(&self.0, FallocateFlags::empty(), offset as libc::off_t, size as libc::off_t)
            .map_err(|errno| Error { call: "fallocate of guest memory", errno })
    }

    /// Another descriptor of the file.
    pub fn file(&self) -> std::io::Result<File> {
        self.0.try_clone()
    }

    /// The lines of the file's `/proc/self/fdinfo`.
    pub fn fdinfo(&self) -> std::io::Result<String> {
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))
    }
}

impl AsFd for GuestMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A mapping of guest memory in this process.
///
/// Its contents may change or go away at any time: it is reached by volatile
/// accesses only, and each raises SIGBUS while a guest has the page.
pub struct Mapping {
    address: NonNull<libc::c_void>,
    length: usize,
}

impl Mapping {
    /// The address of the first byte.
    pub fn address(&self) -> usize {
        self.address.as_ptr() as usize
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    fn byte(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.length, "offset {offset:#x} of a mapping of {:#x}", self.length);
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.address.as_ptr().cast::<u8>().add(offset) }
    }

    /// Copies bytes out. Panics if they are not inside the mapping.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        (offset..offset + length)
            .map(|at| {
                // SAFETY: `byte` checks the place; any byte is a valid u8, and
                // the access is volatile because guests write there too.
                unsafe { self.byte(at).read_volatile() }
            })
            .collect()
    }

    /// Copies bytes in. Panics if they do not fit, or dies of SIGSEGV if the
    /// mapping is read-only.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            // SAFETY: as in `read`.
            unsafe { self.byte(at).write_volatile(*byte) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it exists.
        let result = unsafe { munmap(self.address, self.length) };
        debug_assert!(result.is_ok(), "munmap: {result:?}");
    }
}
