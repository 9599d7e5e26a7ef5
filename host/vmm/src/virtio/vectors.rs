// SPDX-License-Identifier: MIT OR Apache-2.0

//! I/O between files and guest memory.
//!
//! The kernel copies. A page of guest memory that this program has no access
//! to at that moment is an error of the system call (EFAULT) then, where a
//! load or store would be a signal.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};

use libc::iovec;
use vm_memory::VolatileSlice;

/// The most vectors that a system call takes (`UIO_MAXIOV`).
const MOST: usize = 1024;

/// Pieces of guest memory for a system call.
#[derive(Default)]
pub struct Vectors<'m> {
    vectors: Vec<iovec>,
    /// The first one that is not used up.
    first: usize,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl<'m> Vectors<'m> {
    /// Appends a piece.
    pub fn push(&mut self, slice: VolatileSlice<'m>) {
        let base = slice.ptr_guard_mut().as_ptr().cast();
        self.vectors.push(iovec { iov_base: base, iov_len: slice.len() });
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.left().iter().map(|vector| vector.iov_len).sum()
    }

    fn left(&self) -> &[iovec] {
        &self.vectors[self.first..]
    }

    /// How many vectors to give to a system call.
    fn count(&self) -> i32 {
        self.left().len().min(MOST) as i32
    }

    /// Takes the first `length` bytes away.
    pub fn advance(&mut self, mut length: usize) {
        while let Some(vector) = self.vectors.get_mut(self.first) {
            let taken = vector.iov_len.min(length);
            vector.iov_base = vector.iov_base.wrapping_byte_add(taken);
            vector.iov_len -= taken;
            length -= taken;
            if vector.iov_len > 0 {
                return;
            }
            self.first += 1;
        }
    }

    /// Fills memory from a place in a file: `preadv`.
    pub fn read_at(&mut self, file: &impl AsFd, offset: u64) -> io::Result<usize> {
        // SAFETY: see `call`.
        self.call(|vectors, count| unsafe {
            libc::preadv(file.as_fd().as_raw_fd(), vectors, count, offset as libc::off_t)
        })
    }

    /// Puts memory at a place in a file: `pwritev`.
    pub fn write_at(&mut self, file: &impl AsFd, offset: u64) -> io::Result<usize> {
        // SAFETY: see `call`.
        self.call(|vectors, count| unsafe {
            libc::pwritev(file.as_fd().as_raw_fd(), vectors, count, offset as libc::off_t)
        })
    }

    /// Fills memory from a file: `readv`.
    pub fn read(&mut self, file: &impl AsFd) -> io::Result<usize> {
        // SAFETY: see `call`.
        self.call(|vectors, count| unsafe { libc::readv(file.as_fd().as_raw_fd(), vectors, count) })
    }

    /// Puts memory into a file: `writev`.
    pub fn write(&mut self, file: &impl AsFd) -> io::Result<usize> {
        // SAFETY: see `call`.
        self.call(|vectors, count| unsafe {
            libc::writev(file.as_fd().as_raw_fd(), vectors, count)
        })
    }

    /// Fills the first piece with random bytes of the kernel's: `getrandom`.
    pub fn fill_first(&mut self) -> io::Result<usize> {
        // SAFETY: see `call`.
        self.call(|vectors, count| unsafe {
            if count == 0 {
                return 0;
            }
            libc::getrandom((*vectors).iov_base, (*vectors).iov_len, 0)
        })
    }

    /// Makes a system call on the vectors that are left, and takes away what it
    /// has used; again if a signal interrupts it.
    ///
    /// The vectors are valid for reads and writes by the kernel: each is (the
    /// rest of) a slice of guest memory that stays mapped for `'m`. No Rust
    /// reference to that memory exists: all accesses are volatile, as the guest
    /// writes there too.
    fn call(&mut self, call: impl Fn(*const iovec, i32) -> isize) -> io::Result<usize> {
        loop {
            let result = call(self.left().as_ptr(), self.count());
            if let Ok(done) = usize::try_from(result) {
                self.advance(done);
                return Ok(done);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}
