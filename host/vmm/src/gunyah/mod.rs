// SPDX-License-Identifier: MIT OR Apache-2.0

//! `/dev/gunyah`, as safe Rust.

mod memory;
mod vcpu;
mod vm;

use std::fs::{File, OpenOptions};
use std::os::fd::{FromRawFd, OwnedFd};

use escrow_vmcore::uapi;
use nix::errno::Errno;

pub use memory::{GuestMemory, Mapping, Protection};
pub use vcpu::{Exit, MmioAccess, Stopper, Vcpu};
pub use vm::{Access, Binding, Vm};

/// Bytes in a page of the host's and of guests.
pub const PAGE_SIZE: u64 = escrow_abi::PAGE_SIZE;

/// A call to the shim failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Which call.
    pub call: &'static str,
    /// What the shim answered.
    pub errno: Errno,
}

impl Error {
    /// The answer of the system call that just failed.
    fn last(call: &'static str) -> Error {
        Error { call, errno: Errno::last() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.call, self.errno)
    }
}

impl std::error::Error for Error {}

/// The result of a call to the shim.
pub type Result<T> = std::result::Result<T, Error>;

/// The device that VMs and guest memories come from.
pub struct Device(File);

impl Device {
    /// Opens the device. ENOENT if the shim is not loaded.
    pub fn open() -> Result<Device> {
        let file =
            OpenOptions::new().read(true).write(true).open(uapi::DEVICE).map_err(|e| Error {
                call: "open /dev/gunyah",
                errno: e.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            })?;
        Ok(Device(file))
    }

    /// Creates a VM.
    pub fn create_vm(&self) -> Result<Vm> {
        let fd = call_with_value("CREATE_VM", &self.0, uapi::CREATE_VM, 0)?;
        Ok(Vm::new(new_descriptor(fd)))
    }

    /// Creates a guest memory of `size` bytes, a multiple of [`PAGE_SIZE`].
    pub fn create_memory(&self, size: u64, folios: Folios) -> Result<GuestMemory> {
        let flags = uapi::MEM_CLOEXEC
            | match folios {
                Folios::Small => 0,
                Folios::Large => uapi::MEM_ALLOW_HUGEPAGE,
            };
        let argument = uapi::CreateMem { flags, size, reserved: [0; 6] };
        let fd = call_with_ref("CREATE_GUEST_MEM", &self.0, uapi::CREATE_GUEST_MEM, &argument)?;
        Ok(GuestMemory::new(new_descriptor(fd).into()))
    }
}

/// What a guest memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folios {
    /// Pages.
    Small,
    /// 2 MiB each, where the host has them; pages elsewhere.
    Large,
}

/// Takes the descriptor that an ioctl has just made.
fn new_descriptor(fd: i32) -> OwnedFd {
    // SAFETY: only called with the fresh result of an ioctl that answers a new
    // file descriptor, which nobody else knows.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// An ioctl whose argument is a number that is no address.
fn call_with_value(
    call: &'static str,
    fd: &impl std::os::fd::AsRawFd,
    request: u32,
    value: u64,
) -> Result<i32> {
    // SAFETY: `_IO` calls of the shim take no pointer.
    let result =
        unsafe { vmm_sys_util::ioctl::ioctl_with_val(fd, request.into(), value as libc::c_ulong) };
    if result < 0 { Err(Error::last(call)) } else { Ok(result) }
}

/// An ioctl that reads a structure.
fn call_with_ref<T>(
    call: &'static str,
    fd: &impl std::os::fd::AsRawFd,
    request: u32,
    argument: &T,
) -> Result<i32> {
    debug_assert_eq!(request as usize >> 16 & 0x3fff, size_of::<T>());
    // SAFETY: `_IOW` calls of the shim read the structure, whose size is part
    // of the request number, and keep no pointer to it.
    let result = unsafe { vmm_sys_util::ioctl::ioctl_with_ref(fd, request.into(), argument) };
    if result < 0 { Err(Error::last(call)) } else { Ok(result) }
}
