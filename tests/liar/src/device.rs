// SPDX-License-Identifier: MIT OR Apache-2.0

//! `/dev/liar`: see `module/liar.h`, which has the same structures.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use escrow_abi::Error;
use nix::errno::Errno;

/// Arguments and results of a hypercall.
#[repr(C)]
pub struct Call {
    x: [u64; 8],
}

/// A page that is not freed as long as the device is open.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Page {
    at: u64,
    level: u32,
    reserved: u32,
    /// Physical address.
    pub frame: u64,
    /// Address in the kernel.
    pub linear: u64,
}

/// One access by the kernel.
#[repr(C)]
pub struct Probe {
    kind: u32,
    length: u32,
    at: u64,
    value: u64,
    result: i64,
}

const _: () = assert!(size_of::<Call>() == 64 && size_of::<Page>() == 32);
const _: () = assert!(size_of::<Probe>() == 32);

nix::ioctl_readwrite!(liar_hvc, b'L', 0x10, Call);
nix::ioctl_readwrite!(liar_hold, b'L', 0x11, Page);
nix::ioctl_readwrite!(liar_pair, b'L', 0x12, Page);
nix::ioctl_readwrite!(liar_code, b'L', 0x13, Page);
nix::ioctl_readwrite!(liar_table, b'L', 0x14, Page);
nix::ioctl_none!(liar_restore, b'L', 0x15);
nix::ioctl_readwrite!(liar_probe, b'L', 0x16, Probe);

/// Ways of the kernel to reach memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Way {
    /// A load of the ioctl's task.
    Load = 0,
    /// A store.
    Store = 1,
    /// An atomic addition.
    Atomic = 2,
    /// A jump.
    Call = 3,
    /// A load of a kernel thread; the result is how it ended.
    ThreadLoad = 4,
    /// `copy_from_kernel_nofault`
    NoFault = 5,
    /// `get_kernel_nofault`
    GetNoFault = 6,
    /// `load_unaligned_zeropad`
    ZeroPad = 7,
    /// `full_name_hash`
    Hash = 8,
    /// `copy_from_user`
    CopyFromUser = 16,
    /// `copy_to_user`
    CopyToUser = 17,
    /// `clear_user`
    ClearUser = 18,
    /// `get_user`
    GetUser = 19,
    /// `put_user`
    PutUser = 20,
    /// `strncpy_from_user`
    StrncpyFromUser = 21,
    /// `strnlen_user`
    StrnlenUser = 22,
    /// `copy_from_user_nofault`
    FromUserNoFault = 23,
    /// `AT S1E0R`; the value is `PAR_EL1`
    Translate = 24,
}

/// What Escrow says to a call that it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error, if its number is one.
    pub error: Option<Error>,
    /// `x1` and `x2`.
    pub details: [u64; 2],
}

/// The device.
pub struct Liar(File);

impl Liar {
    /// Opens it.
    pub fn open() -> Result<Liar> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/liar");
        Ok(Liar(file.context("cannot open /dev/liar")?))
    }

    /// Makes a hypercall. `x1` to `x4`.
    pub fn hypercall(&self, number: u32, arguments: &[u64]) -> Result<[u64; 4], Refusal> {
        let mut call = Call { x: [0; 8] };
        call.x[0] = number.into();
        call.x[1..][..arguments.len()].copy_from_slice(arguments);
        // SAFETY: the structure is the device's, and lives through the call.
        let done = unsafe { liar_hvc(self.0.as_raw_fd(), &mut call) };
        let [x0, x1, x2, x3, x4, ..] = call.x;
        if done.is_ok() && x0 == 0 {
            return Ok([x1, x2, x3, x4]);
        }
        Err(Refusal { error: Error::from_register(x0), details: [x1, x2] })
    }

    /// Holds the page at an address of this process's.
    pub fn hold(&self, at: usize) -> Result<Page, Errno> {
        let mut page = Page { at: at as u64, ..Page::default() };
        // SAFETY: the structure is the device's, and lives through the call.
        unsafe { liar_hold(self.0.as_raw_fd(), &mut page) }?;
        Ok(page)
    }

    /// A page of the kernel's, right behind another.
    pub fn pair(&self) -> Result<Page, Errno> {
        let mut page = Page::default();
        // SAFETY: as for `hold`.
        unsafe { liar_pair(self.0.as_raw_fd(), &mut page) }?;
        Ok(page)
    }

    /// A page of the kernel's with a function that returns.
    pub fn code(&self) -> Result<Page, Errno> {
        let mut page = Page::default();
        // SAFETY: as for `hold`.
        unsafe { liar_code(self.0.as_raw_fd(), &mut page) }?;
        Ok(page)
    }

    /// The page of this process's tables by which `at` is translated.
    pub fn table(&self, at: usize, level: u32) -> Result<Page, Errno> {
        let mut page = Page { at: at as u64, level, ..Page::default() };
        // SAFETY: as for `hold`.
        unsafe { liar_table(self.0.as_raw_fd(), &mut page) }?;
        Ok(page)
    }

    /// Puts back what was in those tables.
    pub fn restore(&self) -> Result<(), Errno> {
        // SAFETY: the request has no argument.
        unsafe { liar_restore(self.0.as_raw_fd()) }.map(drop)
    }

    /// Has the kernel reach for an address. The value, and what the kernel's
    /// function returned.
    pub fn probe(&self, way: Way, at: usize, length: u32, value: u64) -> Result<(u64, i64)> {
        let mut probe = Probe { kind: way as u32, length, at: at as u64, value, result: 0 };
        // SAFETY: as for `hold`. What the access does to the memory that it is
        // made to is what the test wants.
        unsafe { liar_probe(self.0.as_raw_fd(), &mut probe) }
            .with_context(|| format!("{way:?}"))?;
        Ok((probe.value, probe.result))
    }
}
