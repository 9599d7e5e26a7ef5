// SPDX-License-Identifier: MIT OR Apache-2.0

//! `/dev/holder`, a user of safe references and of dma-bufs in the kernel: see
//! `tests/holder/module/holder.h`, which has the same structure and numbers.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;

use crate::gunyah::PAGE;
use crate::modules;

/// What it does when it is told to let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Manner {
    /// Ends its access, as it should.
    Ends = 0,
    /// Nothing.
    Keeps = 1,
    /// Sleeps for three seconds, and ends it then.
    Sleeps = 2,
    /// Releases the reference.
    Releases = 3,
    /// Ends it, and tries to begin another at once.
    Returns = 4,
    /// Cannot be told.
    Static = 5,
}

#[repr(C)]
#[derive(Default)]
struct Args {
    fd: i32,
    manner: u32,
    offset: u64,
    size: u64,
    value: u64,
    result: i64,
}

const _: () = assert!(size_of::<Args>() == 40);

const fn request(number: u32) -> u32 {
    3 << 30 | (size_of::<Args>() as u32) << 16 | (b'H' as u32) << 8 | number
}

const TAKE: u32 = request(0x10);
const RELEASE: u32 = request(0x11);
const BEGIN: u32 = request(0x12);
const END: u32 = request(0x13);
const READ: u32 = request(0x14);
const TOLD: u32 = request(0x15);
const ATTACH: u32 = request(0x20);
const DETACH: u32 = request(0x21);
const MAP: u32 = request(0x22);
const UNMAP: u32 = request(0x23);
const VMAP: u32 = request(0x24);

/// What fdinfo calls its safe references.
pub const NAME: &str = "test_holder";
/// What fdinfo calls its attachments to dma-bufs.
pub const IMPORTER: &str = "dma-buf:holder";

/// An open file of it: one safe reference and one attached buffer at the most.
pub struct Holder(Option<File>);

impl Holder {
    /// Loads the module, and opens the device.
    pub fn open() -> Result<Holder> {
        modules::load_ours("holder")?;
        let file = OpenOptions::new().read(true).write(true).open("/dev/holder");
        Ok(Holder(Some(file.context("cannot open /dev/holder")?)))
    }

    fn tell(&self, request: u32, mut args: Args) -> Result<Args, Errno> {
        let file = self.0.as_ref().ok_or(Errno::EBADF)?;
        // SAFETY: the structure is the device's, and lives through the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &raw mut args) };
        Errno::result(result).map(|_| args)
    }

    /// Takes a safe reference to pages of a memory.
    pub fn take(
        &self,
        memory: impl AsFd,
        page: u64,
        pages: u64,
        manner: Manner,
    ) -> Result<(), Errno> {
        self.take_bytes(memory, page * PAGE, pages * PAGE, manner)
    }

    /// The same, in bytes.
    pub fn take_bytes(
        &self,
        memory: impl AsFd,
        offset: u64,
        size: u64,
        manner: Manner,
    ) -> Result<(), Errno> {
        let fd = memory.as_fd().as_raw_fd();
        self.tell(TAKE, Args { fd, manner: manner as u32, offset, size, ..Args::default() })
            .map(drop)
    }

    /// Gives it up, also if there is none.
    pub fn release(&self) -> Result<(), Errno> {
        self.tell(RELEASE, Args::default()).map(drop)
    }

    /// Begins an access.
    pub fn begin(&self, page: u64, pages: u64) -> Result<(), Errno> {
        let (offset, size) = (page * PAGE, pages * PAGE);
        self.tell(BEGIN, Args { offset, size, ..Args::default() }).map(drop)
    }

    /// Ends one, also if none has begun.
    pub fn end(&self, page: u64, pages: u64) -> Result<(), Errno> {
        let (offset, size) = (page * PAGE, pages * PAGE);
        self.tell(END, Args { offset, size, ..Args::default() }).map(drop)
    }

    /// Reads the first word of a page, with an access around it.
    pub fn read(&self, page: u64) -> Result<u64, Errno> {
        let args = Args { offset: page * PAGE, ..Args::default() };
        self.tell(READ, args).map(|args| args.value)
    }

    /// How often it was told to let go.
    pub fn told(&self) -> Result<u64, Errno> {
        self.tell(TOLD, Args::default()).map(|args| args.value)
    }

    /// Its attempt to begin again was refused. The lend does not wait for the end of
    /// the attempt, so this does, for a while: 0 is also what there is before.
    pub fn did_not_return(&self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let begin = Instant::now();
        loop {
            let result = self.tell(TOLD, Args::default())?.result;
            let errno = Errno::from_raw(-result as i32);
            match result {
                0 => ensure!(begin.elapsed() < PATIENCE, "it was let in"),
                _ if matches!(errno, Errno::EAGAIN | Errno::EFAULT) => return Ok(()),
                _ => bail!("{errno}"),
            }
        }
    }

    /// Attaches a dma-buf.
    pub fn attach(&self, buffer: impl AsFd, manner: Manner) -> Result<(), Errno> {
        let fd = buffer.as_fd().as_raw_fd();
        self.tell(ATTACH, Args { fd, manner: manner as u32, ..Args::default() }).map(drop)
    }

    /// Detaches it.
    pub fn detach(&self) -> Result<(), Errno> {
        self.tell(DETACH, Args::default()).map(drop)
    }

    /// Maps it for the device. → the first word that the device reads
    pub fn map(&self) -> Result<u64, Errno> {
        self.tell(MAP, Args::default()).map(|args| args.value)
    }

    /// Gives the mapping up.
    pub fn unmap(&self) -> Result<(), Errno> {
        self.tell(UNMAP, Args::default()).map(drop)
    }

    /// Maps it for the kernel, and reads the first word there.
    pub fn vmap(&self) -> Result<u64, Errno> {
        self.tell(VMAP, Args::default()).map(|args| args.value)
    }
}

impl Drop for Holder {
    /// The module goes as well, so that the shim can.
    fn drop(&mut self) {
        self.0 = None;
        modules::unload(c"holder");
    }
}
