// SPDX-License-Identifier: MIT OR Apache-2.0

//! userfaultfd: page faults that wait for this program
//! (`linux/userfaultfd.h`).

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::NonNull;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::gunyah::PAGE;

/// `_IOWR(0xaa, number, T)`
const fn request<T>(number: u64) -> u64 {
    3 << 30 | (size_of::<T>() as u64) << 16 | 0xaa << 8 | number
}

const API: u64 = 0xaa;
/// Modes of a registration.
pub const MISSING: u64 = 1;
/// As above.
pub const WRITE_PROTECT: u64 = 2;
/// As above.
pub const MINOR: u64 = 4;
/// Write protection that the kernel resolves by itself, and that any mapping
/// may have.
pub const WP_ASYNC: u64 = 1 << 15;
/// Write protection of what is not there.
pub const WP_UNPOPULATED: u64 = 1 << 13;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

/// A userfaultfd.
pub struct Uffd(OwnedFd);

impl Uffd {
    /// One with those features.
    ///
    /// # Errors
    /// EINVAL: the kernel has not all of them.
    pub fn new(features: u64) -> Result<Uffd, Errno> {
        // SAFETY: makes a descriptor.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })?;
        // SAFETY: it is new, and nobody else's.
        let uffd = Uffd(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        uffd.ioctl(0x3f, &mut Api { api: API, features, ioctls: 0 })?;
        Ok(uffd)
    }

    fn ioctl<T>(&self, number: u64, structure: &mut T) -> Result<(), Errno> {
        let structure = std::ptr::from_mut(structure);
        // SAFETY: the request says the structure's size, and it lives.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), request::<T>(number) as _, structure) };
        Errno::result(result).map(drop)
    }

    /// Faults of pages from `start` on are this program's.
    pub fn register(&self, start: *mut u8, size: u64, mode: u64) -> Result<(), Errno> {
        self.ioctl(0, &mut Register { start: start as u64, len: size, mode, ioctls: 0 })
    }

    /// Takes away, or gives back, the right to write.
    pub fn write_protect(&self, start: *mut u8, size: u64, protect: bool) -> Result<(), Errno> {
        self.ioctl(6, &mut WriteProtect { start: start as u64, len: size, mode: protect.into() })
    }

    /// Resolves a fault with a page that begins with a word.
    pub fn resolve(&self, at: *mut u8, word: u64) -> Result<(), Errno> {
        #[repr(align(4096))]
        struct Page([u64; 512]);
        let mut page = Page([0; 512]);
        page.0[0] = word;
        let src = std::ptr::from_ref(&page) as u64;
        self.ioctl(3, &mut Copy { dst: at as u64, src, len: PAGE, mode: 0, copy: 0 })
    }

    /// Waits for a fault.
    pub fn wait(&self) -> Result<()> {
        // A `struct uffd_msg`.
        let mut message = [0; 32];
        let count = nix::unistd::read(&self.0, &mut message).context("waiting for a fault")?;
        ensure!(count == message.len(), "{count} bytes of a message");
        Ok(())
    }
}

/// A page of this process whose first touch waits until it is told to go on.
pub struct Trap {
    uffd: Uffd,
    start: NonNull<u8>,
}

// SAFETY: only system calls are given the address.
unsafe impl Send for Trap {}
// SAFETY: as above.
unsafe impl Sync for Trap {}

impl Trap {
    /// Sets one.
    pub fn new() -> Result<Trap> {
        let uffd = Uffd::new(0).context("userfaultfd")?;
        let size = NonZeroUsize::new(PAGE as usize).context("a page")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping; nothing that exists is replaced.
        let start = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_PRIVATE) }?;
        let start = start.cast::<u8>();
        uffd.register(start.as_ptr(), PAGE, MISSING).context("a page of its own")?;
        Ok(Trap { uffd, start })
    }

    /// Where it is.
    pub fn at(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Waits until somebody is in it.
    pub fn wait(&self) -> Result<()> {
        self.uffd.wait()
    }

    /// Lets them go on, with that word in the page.
    pub fn open(&self, word: u64) -> Result<()> {
        Ok(self.uffd.resolve(self.at(), word)?)
    }

    /// The first word, once it is open.
    pub fn word(&self) -> u64 {
        // SAFETY: the page is mapped as long as `self` lives, and aligned.
        unsafe { self.start.cast::<u64>().read_volatile() }
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into it.
        let _ = unsafe { munmap(self.start.cast(), PAGE as usize) };
    }
}
