// SPDX-License-Identifier: MIT OR Apache-2.0

//! Direct I/O of a block device: the page is pinned while the device reads
//! from it or writes to it. The device is a server in the same process, and
//! the I/O is done when the test says so.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::thread;

use anyhow::{Context as _, Result, bail};
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use nix::errno::Errno;

use super::{AT, HELD, HOSTS, OFFSET, PIN, at_home, comes, held, on_a_lent_page, refusal};
use crate::access::read as read_word;
use crate::gunyah::{Exit, PAGE};
use crate::nbd::{BLOCK, Device, SLOW};
use crate::tests::{refused, same};

/// What the device has, and the page gets.
const DEVICES: u64 = 0x0d0e_0a0d_0b0e_0e0f;

/// An address that another thread may have.
#[derive(Clone, Copy)]
struct Buffer(*mut u8);

// SAFETY: only system calls, which check it, are given the address.
unsafe impl Send for Buffer {}

impl Buffer {
    fn read(self, file: &File) -> Result<isize, Errno> {
        // SAFETY: the kernel checks the address; nothing in this program has
        // a reference to what is there.
        Errno::result(unsafe {
            libc::pread(file.as_raw_fd(), self.0.cast(), PAGE as usize, (SLOW * BLOCK) as i64)
        })
    }

    fn write(self, file: &File) -> Result<isize, Errno> {
        // SAFETY: as above.
        Errno::result(unsafe {
            libc::pwrite(file.as_raw_fd(), self.0.cast(), PAGE as usize, (SLOW * BLOCK) as i64)
        })
    }
}

/// The device is about to write to the page.
pub fn a_read_in_flight() -> Result<()> {
    story(Buffer::read, DEVICES)
}

/// The device is about to read from the page.
pub fn a_write_in_flight() -> Result<()> {
    story(Buffer::write, HOSTS)
}

/// The page holds `word` when the I/O is done, and the device then has it too.
fn story(io: fn(Buffer, &File) -> Result<isize, Errno>, word: u64) -> Result<()> {
    let device = Device::serve()?;
    let file = &device.open()?;
    let guest = at_home()?;
    device.set_word(DEVICES)?;
    let elsewhere = guest.memory.map(HELD, 1)?;
    let buffer = Buffer(elsewhere.at(0));
    thread::scope(|scope| {
        let io = scope.spawn(move || io(buffer, file));
        device.wait()?;
        // Of two mappings, the one that the I/O began with is gone.
        drop(elsewhere);
        held(&guest, PIN)?;
        device.complete()?;
        let Ok(result) = io.join() else { bail!("the thread has panicked") };
        same(result?, PAGE as isize)
    })?;
    same(device.word()?, word).context("in the device")?;
    comes(&guest, word)?;

    let buffer = Buffer(guest.mapping.at(OFFSET));
    on_a_lent_page(&guest, || {
        refused(buffer.read(file), Errno::EFAULT).context("read")?;
        refused(buffer.write(file), Errno::EFAULT).context("write")
    })?;
    same(device.word()?, word).context("in the device, untouched")
}

/// A buffer that was pinned before: the I/O adds nothing to its pin, and its
/// end takes nothing away.
pub fn a_fixed_buffer_in_flight() -> Result<()> {
    let device = Device::serve()?;
    let file = device.open()?;
    let guest = at_home()?;
    device.set_word(DEVICES)?;
    let mut ring = IoUring::new(4)?;
    let buffer = guest.mapping.at(OFFSET);
    let iovec = libc::iovec { iov_base: buffer.cast(), iov_len: PAGE as usize };
    // SAFETY: the kernel checks and pins the page; this program has no
    // reference to what is in it.
    unsafe { ring.submitter().register_buffers(&[iovec]) }?;
    let read = opcode::ReadFixed::new(Fd(file.as_raw_fd()), buffer, PAGE as u32, 0);
    // SAFETY: the buffer is registered, and the file stays open until the
    // kernel has answered.
    unsafe { ring.submission().push(&read.offset(SLOW * BLOCK).build()) }?;
    ring.submit()?;
    device.wait()?;
    held(&guest, PIN).context("in flight")?;
    device.complete()?;
    ring.submit_and_wait(1)?;
    let answer = ring.completion().next().context("no completion")?.result();
    same(answer, PAGE as i32)?;
    same(read_word(&guest.mapping, OFFSET)?, DEVICES)?;
    same(guest.run()?, Exit::PageFault(AT, Errno::EAGAIN)).context("done")?;
    same(guest.memory.refusal()?, refusal(HELD, PIN))?;
    ring.submitter().unregister_buffers()?;
    comes(&guest, DEVICES)
}
