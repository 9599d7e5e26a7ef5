// SPDX-License-Identifier: MIT OR Apache-2.0

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use escrow_vmcore::uapi::{self, VcpuRun};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{Error, Result, call_with_value};

/// The call that runs a vCPU, as [`Error::call`] names it.
const RUN: &str = "VCPU_RUN";

/// A virtual CPU and the page that it shares with this process.
pub struct Vcpu {
    fd: OwnedFd,
    run: Arc<RunPage>,
}

/// A mapping of the page that a vCPU shares with this process.
struct RunPage {
    run: NonNull<VcpuRun>,
    mapped: usize,
}

// SAFETY: all but one byte of the page is used by `Vcpu`'s methods alone, which
// borrow the vCPU; that byte is only accessed atomically.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// [`VcpuRun::immediate_exit`].
    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the page is mapped as long as `self` is borrowed; a byte is
        // aligned, and no access to this one is other than atomic, except the
        // copy in `Vcpu::exit`, which ignores it.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run.as_ptr()).immediate_exit) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; references into it have ended with the
        // borrows of `self`.
        let result = unsafe { munmap(self.run.cast(), self.mapped) };
        debug_assert!(result.is_ok(), "munmap: {result:?}");
    }
}

/// Keeps a vCPU from running, from any thread.
#[derive(Clone)]
pub struct Stopper(Arc<RunPage>);

impl Stopper {
    /// The vCPU's runs from now on end at once with [`Exit::Interrupted`]. A
    /// present one goes on until a signal arrives at its thread.
    pub fn stop(&self) {
        self.0.immediate_exit().store(1, Ordering::SeqCst);
    }
}

/// An access to a guest address with nothing behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmioAccess {
    /// A load; [`Vcpu::complete_read`] answers it.
    Read {
        /// Guest address.
        address: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: u32,
    },
    /// A store.
    Write {
        /// Guest address.
        address: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: u32,
        /// What is stored, zero-extended.
        value: u64,
    },
}

/// Why a vCPU stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A signal, or [`Vcpu::request_exit`].
    Interrupted,
    /// An access that wants emulating.
    Mmio(MmioAccess),
    /// A page that could not be brought in. Running again tries again.
    PageFault {
        /// Guest address.
        address: u64,
        /// Why.
        errno: Errno,
    },
    /// The VM has ended.
    Ended {
        /// `STATUS_*` of [`uapi`].
        status: u32,
        /// `EXIT_TYPE_*` of [`uapi`].
        kind: u16,
    },
}

impl Vcpu {
    pub(super) fn new(fd: OwnedFd) -> Result<Vcpu> {
        let size = call_with_value("VCPU_MMAP_SIZE", &fd, uapi::VCPU_MMAP_SIZE, 0)?;
        let call = "mmap of a vCPU";
        let length = usize::try_from(size).ok().filter(|&size| size >= size_of::<VcpuRun>());
        let length = length
            .and_then(std::num::NonZeroUsize::new)
            .ok_or(Error { call: "VCPU_MMAP_SIZE", errno: Errno::EPROTO })?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches
        // no memory that Rust knows of.
        let run = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &fd, 0) }
            .map_err(|errno| Error { call, errno })?;
        let run = Arc::new(RunPage { run: run.cast(), mapped: length.get() });
        Ok(Vcpu { fd, run })
    }

    /// Runs the vCPU until it needs this program.
    ///
    /// An error is the shim's refusal to run it; an exit that the guest caused
    /// is none.
    pub fn run(&mut self) -> Result<Exit> {
        let result = call_with_value(RUN, &self.fd, uapi::VCPU_RUN, 0);
        self.exit(result)
    }

    /// Makes an [`Exit`] of what the call to run the vCPU answered.
    fn exit(&self, result: Result<i32>) -> Result<Exit> {
        match result {
            Err(Error { errno: Errno::EINTR, .. }) => return Ok(Exit::Interrupted),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        // SAFETY: the page is mapped as long as `self` is, and the kernel
        // writes it only during the call. Every bit pattern is a valid
        // `VcpuRun`.
        let run = unsafe { self.run.run.as_ptr().read_volatile() };
        let unknown = Err(Error { call: RUN, errno: Errno::EPROTO });
        match run.exit_reason {
            uapi::EXIT_MMIO => {
                // SAFETY: all members of the union are plain numbers.
                let mmio = unsafe { run.exit.mmio };
                if !matches!(mmio.len, 1 | 2 | 4 | 8) {
                    return unknown;
                }
                let (address, size) = (mmio.phys_addr, mmio.len);
                Ok(Exit::Mmio(if mmio.is_write == 0 {
                    MmioAccess::Read { address, size }
                } else {
                    let mask = u64::MAX >> (64 - 8 * size);
                    let value = u64::from_le_bytes(mmio.data) & mask;
                    MmioAccess::Write { address, size, value }
                }))
            }
            uapi::EXIT_STATUS => {
                // SAFETY: as above.
                let status = unsafe { run.exit.status };
                Ok(Exit::Ended { status: status.status, kind: status.kind })
            }
            uapi::EXIT_PAGE_FAULT => {
                // SAFETY: as above.
                let fault = unsafe { run.exit.page_fault };
                let errno = Errno::from_raw(fault.attempt.wrapping_neg());
                Ok(Exit::PageFault { address: fault.phys_addr, errno })
            }
            _ => unknown,
        }
    }

    /// Answers the [`MmioAccess::Read`] that ended the last run.
    pub fn complete_read(&mut self, value: u64) {
        // SAFETY: the page is mapped, and the kernel does not look at it
        // between runs. The place is inside `VcpuRun`.
        unsafe {
            (&raw mut (*self.run.run.as_ptr()).exit.mmio.data).write_volatile(value.to_le_bytes())
        }
    }

    /// Has the access that ended the last run end in an abort in the guest.
    pub fn refuse_access(&mut self) {
        // SAFETY: as in `complete_read`.
        unsafe {
            (&raw mut (*self.run.run.as_ptr()).exit.mmio.resume_action)
                .write_volatile(uapi::RESUME_FAULT);
        }
    }

    /// The flag that makes the next (or the present) run end at once if it is
    /// not 0. A signal handler may set it.
    pub fn immediate_exit(&self) -> &AtomicU8 {
        self.run.immediate_exit()
    }

    /// What keeps it from running, for other threads.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.run))
    }

    /// As [`Self::run`], but the system call is made by `enter`, which gets
    /// the descriptor and the request and answers what the kernel answers: a
    /// negative errno, or 0.
    pub fn run_by(&mut self, enter: impl FnOnce(RawFd, u32) -> i64) -> Result<Exit> {
        let result = match enter(self.fd.as_raw_fd(), uapi::VCPU_RUN) {
            failure if failure < 0 => {
                Err(Error { call: RUN, errno: Errno::from_raw(-failure as i32) })
            }
            _ => Ok(0),
        };
        self.exit(result)
    }
}

impl AsFd for Vcpu {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
