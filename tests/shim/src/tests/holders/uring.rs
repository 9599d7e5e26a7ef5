// SPDX-License-Identifier: MIT OR Apache-2.0

//! Buffers that are registered with an io_uring: pinned for as long as the
//! program likes.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

use super::pipes::word_of;
use super::{HELD, HOSTS, Holder, OFFSET, PIN, at_home, comes, held, story_of};
use crate::access::read;
use crate::gunyah::{Mapping, PAGE};

/// A ring with one page as its only buffer.
pub struct Registered {
    ring: IoUring,
    buffer: *mut u8,
}

impl Registered {
    /// Writes the buffer to a pipe, as the ring does.
    fn write_out(&mut self) -> Result<u64> {
        let (mut reader, writer) = std::io::pipe()?;
        let write = opcode::WriteFixed::new(Fd(writer.as_raw_fd()), self.buffer, PAGE as u32, 0);
        // SAFETY: the buffer is registered, and the pipe lives until the
        // kernel has answered.
        unsafe { self.ring.submission().push(&write.build()) }?;
        self.ring.submit_and_wait(1)?;
        let answer = self.ring.completion().next().context("no completion")?.result();
        ensure!(answer == PAGE as i32, "the ring says {answer}");
        word_of(&mut reader)
    }
}

impl Holder for Registered {
    const REFERENCES: u64 = PIN;

    fn take(mapping: &Mapping, page: u64) -> Result<Registered> {
        let ring = IoUring::new(4)?;
        let buffer = mapping.at(page * PAGE);
        let iovec = libc::iovec { iov_base: buffer.cast(), iov_len: PAGE as usize };
        // SAFETY: the kernel checks and pins the page; this program has no
        // reference to what is in it.
        unsafe { ring.submitter().register_buffers(&[iovec]) }?;
        Ok(Registered { ring, buffer })
    }

    fn release(mut self) -> Result<u64> {
        let word = self.write_out()?;
        self.ring.submitter().unregister_buffers()?;
        Ok(word)
    }
}

/// Pinned until it is unregistered.
pub fn registered_buffers() -> Result<()> {
    story_of::<Registered>()
}

/// Pinned until the ring is gone, which ends behind the program's back; that
/// the mapping has gone before does not matter.
pub fn registered_buffers_of_a_closed_ring() -> Result<()> {
    let guest = at_home()?;
    let elsewhere = guest.memory.map(HELD, 1)?;
    let mut holder = Registered::take(&elsewhere, 0)?;
    drop(elsewhere);
    held(&guest, PIN)?;
    ensure!(holder.write_out()? == HOSTS, "the ring reads something else");
    drop(holder);
    comes(&guest, HOSTS)
}

/// A page that the kernel takes buffers' addresses from: pinned, and mapped by
/// the kernel itself.
struct Buffers(IoUring);

impl Holder for Buffers {
    const REFERENCES: u64 = PIN;

    fn take(mapping: &Mapping, page: u64) -> Result<Buffers> {
        let ring = IoUring::new(4)?;
        let at = mapping.at(page * PAGE) as u64;
        // SAFETY: 256 entries of 16 bytes are the page; the kernel checks and
        // pins it.
        unsafe { ring.submitter().register_buf_ring_with_flags(at, 256, 0, 0) }?;
        Ok(Buffers(ring))
    }

    fn release(self) -> Result<u64> {
        self.0.submitter().unregister_buf_ring(0)?;
        Ok(HOSTS)
    }
}

/// A ring of provided buffers.
pub fn buffer_rings() -> Result<()> {
    story_of::<Buffers>()?;
    let guest = at_home()?;
    let buffers = Buffers::take(&guest.mapping, HELD)?;
    held(&guest, PIN)?;
    drop(buffers);
    ensure!(read(&guest.mapping, OFFSET)? == HOSTS);
    comes(&guest, HOSTS)
}
