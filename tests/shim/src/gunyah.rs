// SPDX-License-Identifier: MIT OR Apache-2.0

//! The shim's ioctls, as they are: arguments go through unchecked, so that
//! tests can be wrong on purpose.

use std::fs::{self, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr::NonNull;

use anyhow::{Context as _, Result, ensure};
use escrow_vmcore::uapi;
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, delete_module};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::facts::fdinfo;
use crate::runner::Lacking;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// All that a guest may do.
pub const RWX: u32 = uapi::MAP_READ | uapi::MAP_WRITE | uapi::MAP_EXEC;

/// An ioctl that takes a structure, or nothing.
///
/// # Safety
/// `arg` is what the request wants: a number, or the address of a structure
/// that lives through the call.
unsafe fn ioctl(fd: impl AsFd, request: u32, arg: u64) -> Result<i32, Errno> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request as _, arg) };
    Errno::result(result)
}

/// An ioctl with a structure.
fn tell<T>(fd: impl AsFd, request: u32, structure: &T) -> Result<i32, Errno> {
    // SAFETY: the shim reads the structure, whose size the request carries.
    unsafe { ioctl(fd, request, std::ptr::from_ref(structure) as u64) }
}

/// An ioctl with a number, 0 where the interface wants none.
pub fn ask(fd: impl AsFd, request: u32, number: u64) -> Result<i32, Errno> {
    // SAFETY: numbers that are no addresses of this process's are refused or
    // not read.
    unsafe { ioctl(fd, request, number) }
}

/// Whether the kernel has large folios that programs can map (not on PREEMPT_RT).
pub fn has_huge_pages() -> Result<bool> {
    Ok(fs::exists("/sys/kernel/mm/transparent_hugepage")?)
}

/// Asks the kernel to unload the shim.
pub fn unload() -> Result<(), Errno> {
    delete_module(c"escrow", DeleteModuleFlags::O_NONBLOCK)
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the shim has just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `/dev/gunyah`.
pub struct Device(OwnedFd);

impl Device {
    /// Opens it.
    pub fn open() -> Result<Device> {
        let file = OpenOptions::new().read(true).write(true).open(uapi::DEVICE);
        Ok(Device(file.with_context(|| format!("cannot open {}", uapi::DEVICE))?.into()))
    }

    /// Creates a memory.
    pub fn create_mem(&self, args: &uapi::CreateMem) -> Result<Memory, Errno> {
        tell(&self.0, uapi::CREATE_GUEST_MEM, args).map(|fd| Memory(owned(fd)))
    }

    /// Creates a memory of so many pages.
    pub fn memory(&self, pages: u64) -> Result<Memory, Errno> {
        self.create_mem(&uapi::CreateMem {
            flags: uapi::MEM_CLOEXEC,
            size: pages * PAGE,
            reserved: [0; 6],
        })
    }

    /// Creates a memory of so many pages that may come in blocks of 512.
    ///
    /// # Errors
    /// [`Lacking`] where there are no blocks.
    pub fn huge_memory(&self, pages: u64) -> Result<Memory> {
        ensure!(has_huge_pages()?, Lacking("huge pages".to_owned()));
        Ok(self.huge_memory_if_any(pages)?)
    }

    /// The same, and where there are no blocks, it comes in pages.
    pub fn huge_memory_if_any(&self, pages: u64) -> Result<Memory, Errno> {
        self.create_mem(&uapi::CreateMem {
            flags: uapi::MEM_CLOEXEC | uapi::MEM_ALLOW_HUGEPAGE,
            size: pages * PAGE,
            reserved: [0; 6],
        })
    }

    /// Creates a VM.
    pub fn vm(&self) -> Result<Vm, Errno> {
        ask(&self.0, uapi::CREATE_VM, 0).map(|fd| Vm(owned(fd)))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A guest memory.
pub struct Memory(OwnedFd);

impl Memory {
    /// Maps a run of pages, as they are shared with everybody who maps them.
    pub fn map(&self, page: u64, pages: u64) -> Result<Mapping> {
        Mapping::new(self, page, pages)
    }

    /// `MEM_EXPORT_DMABUF`
    pub fn export_with(&self, args: &uapi::ExportDmabuf) -> Result<OwnedFd, Errno> {
        tell(&self.0, uapi::MEM_EXPORT_DMABUF, args).map(owned)
    }

    /// A run of pages as a dma-buf.
    pub fn export(&self, page: u64, pages: u64) -> Result<OwnedFd, Errno> {
        self.export_with(&uapi::ExportDmabuf {
            offset: page * PAGE,
            size: pages * PAGE,
            flags: uapi::EXPORT_CLOEXEC | uapi::EXPORT_WRITE,
            reserved: 0,
        })
    }

    /// Makes a hole.
    pub fn punch(&self, page: u64, pages: u64) -> Result<(), Errno> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.fallocate(mode, page * PAGE, pages * PAGE)
    }

    /// `fallocate`
    pub fn fallocate(&self, mode: i32, offset: u64, size: u64) -> Result<(), Errno> {
        // SAFETY: changes the file, which this program only reaches by ways
        // that bear it.
        let result =
            unsafe { libc::fallocate(self.0.as_raw_fd(), mode, offset as i64, size as i64) };
        Errno::result(result).map(drop)
    }

    /// `ftruncate`
    pub fn resize(&self, size: u64) -> Result<(), Errno> {
        nix::unistd::ftruncate(self, size as i64)
    }

    /// How many pages are in a state, by its name in [`uapi::fdinfo`].
    pub fn count(&self, state: &str) -> Result<u64> {
        Ok(fdinfo(self.as_fd(), state)?.parse()?)
    }

    /// The last refusal to lend.
    pub fn refusal(&self) -> Result<String> {
        fdinfo(self.as_fd(), uapi::fdinfo::LAST_REFUSAL)
    }
}

impl From<OwnedFd> for Memory {
    fn from(fd: OwnedFd) -> Memory {
        Memory(fd)
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Pages of this process. Only touched through system calls
/// ([`crate::access`]), which survive what a load or store would not.
pub struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping is memory of the process, and no reference to it is
// ever made.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: impl AsFd, page: u64, pages: u64) -> Result<Mapping> {
        let size = NonZeroUsize::new((pages * PAGE) as usize).context("no pages")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let offset = (page * PAGE) as i64;
        // SAFETY: a new mapping; nothing that exists is replaced.
        let start = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, file, offset) };
        Ok(Mapping { start: start.context("mmap")?.cast(), size: size.get() })
    }

    /// The first pages of something else that is mapped.
    pub fn of(file: impl AsFd, pages: u64) -> Result<Mapping> {
        Mapping::new(file, 0, pages)
    }

    /// Address of a byte.
    ///
    /// # Panics
    /// Outside the mapping.
    pub fn at(&self, offset: u64) -> *mut u8 {
        assert!((offset as usize) < self.size, "outside the mapping");
        self.start.as_ptr().wrapping_add(offset as usize)
    }
}

impl Mapping {
    /// Takes pages out of this process's tables; the next access brings them
    /// back.
    pub fn forget(&self, page: u64, pages: u64) -> Result<(), Errno> {
        let (start, size) = (self.at(page * PAGE), (pages * PAGE) as usize);
        // SAFETY: the pages belong to the mapping, whose contents are a file's.
        let result = unsafe { libc::madvise(start.cast(), size, libc::MADV_DONTNEED) };
        Errno::result(result).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into it.
        let _ = unsafe { munmap(self.start.cast(), self.size) };
    }
}

/// A VM.
pub struct Vm(OwnedFd);

impl Vm {
    /// `VM_MAP_MEM`
    pub fn map(&self, args: &uapi::MapMem) -> Result<(), Errno> {
        tell(&self.0, uapi::VM_MAP_MEM, args).map(drop)
    }

    /// Binds pages of a memory.
    pub fn bind(
        &self,
        guest: u64,
        flags: u32,
        memory: &Memory,
        page: u64,
        pages: u64,
    ) -> Result<(), Errno> {
        self.map(&uapi::MapMem {
            guest_addr: guest,
            flags,
            guest_mem_fd: memory.0.as_raw_fd() as u32,
            offset: page * PAGE,
            size: pages * PAGE,
        })
    }

    /// Takes pages of a memory out.
    pub fn unbind(&self, guest: u64, memory: &Memory, page: u64, pages: u64) -> Result<(), Errno> {
        self.bind(guest, uapi::MAP_UNMAP, memory, page, pages)
    }

    /// `VM_SET_DTB_CONFIG`
    pub fn set_dtb(&self, guest_phys_addr: u64, size: u64) -> Result<(), Errno> {
        tell(&self.0, uapi::VM_SET_DTB_CONFIG, &uapi::DtbConfig { guest_phys_addr, size }).map(drop)
    }

    /// `VM_SET_BOOT_CONTEXT`
    pub fn set_boot_context(&self, context: &uapi::BootContext) -> Result<(), Errno> {
        tell(&self.0, uapi::VM_SET_BOOT_CONTEXT, context).map(drop)
    }

    /// `VM_ADD_FUNCTION`
    pub fn add(&self, function: &uapi::FunctionDesc) -> Result<OwnedFd, Errno> {
        tell(&self.0, uapi::VM_ADD_FUNCTION, function).map(owned)
    }

    /// `VM_ADD_FUNCTION` of what has no file descriptor.
    pub fn add_function<T>(&self, kind: u32, arg: &T) -> Result<(), Errno> {
        match tell(&self.0, uapi::VM_ADD_FUNCTION, &function(kind, arg))? {
            0 => Ok(()),
            // Whatever it is, it is open now.
            _ => Err(Errno::EPROTO),
        }
    }

    /// `VM_REMOVE_FUNCTION`
    pub fn remove_function<T>(&self, kind: u32, arg: &T) -> Result<(), Errno> {
        self.remove(&function(kind, arg))
    }

    /// `VM_REMOVE_FUNCTION`
    pub fn remove(&self, function: &uapi::FunctionDesc) -> Result<(), Errno> {
        tell(&self.0, uapi::VM_REMOVE_FUNCTION, function).map(drop)
    }

    /// Adds a vCPU.
    pub fn vcpu(&self, id: u32) -> Result<Vcpu> {
        let arg = uapi::VcpuArg { id };
        let fd = self.add(&vcpu_function(&arg));
        Vcpu::new(fd.with_context(|| format!("adding vCPU {id}"))?)
    }

    /// Takes a vCPU away.
    pub fn remove_vcpu(&self, id: u32) -> Result<(), Errno> {
        self.remove_function(uapi::FUNCTION_VCPU, &uapi::VcpuArg { id })
    }

    /// `VM_PROTECT`: the bit that is 1 in the shared half of the guest's addresses.
    pub fn protect(&self) -> Result<u64, Errno> {
        let bits = ask(&self.0, uapi::VM_PROTECT, 0)?;
        1u64.checked_shl((bits - 1) as u32).ok_or(Errno::EPROTO)
    }

    /// `VM_START`
    pub fn start(&self) -> Result<(), Errno> {
        ask(&self.0, uapi::VM_START, 0).map(drop)
    }
}

impl From<OwnedFd> for Vm {
    fn from(fd: OwnedFd) -> Vm {
        Vm(fd)
    }
}

impl AsFd for Vm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The description of a function, with the address of `arg`, which must live
/// as long as it is used.
pub fn function<T>(kind: u32, arg: &T) -> uapi::FunctionDesc {
    let arg_size = size_of::<T>() as u32;
    uapi::FunctionDesc { kind, arg_size, arg: std::ptr::from_ref(arg) as u64 }
}

/// The description of a vCPU, likewise.
pub fn vcpu_function(arg: &uapi::VcpuArg) -> uapi::FunctionDesc {
    function(uapi::FUNCTION_VCPU, arg)
}

/// What a run has ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest reads.
    Read(u64, u32),
    /// The guest writes.
    Write(u64, u64),
    /// A page does not come, with this errno.
    PageFault(u64, Errno),
    /// The VM has ended: status and type.
    Status(u32, u16),
}

/// A vCPU and its run page.
pub struct Vcpu {
    fd: OwnedFd,
    run: NonNull<uapi::VcpuRun>,
}

// SAFETY: the run page is memory of the process, and accesses are volatile.
unsafe impl Send for Vcpu {}
// SAFETY: as above; the kernel and other threads may write to it at any time.
unsafe impl Sync for Vcpu {}

impl Vcpu {
    fn new(fd: OwnedFd) -> Result<Vcpu> {
        let size = ask(&fd, uapi::VCPU_MMAP_SIZE, 0).context("VCPU_MMAP_SIZE")?;
        let size = NonZeroUsize::new(size as usize).context("nothing to map")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping; nothing that exists is replaced.
        let run = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, &fd, 0) };
        Ok(Vcpu { fd, run: run.context("mapping the run page")?.cast() })
    }

    /// Runs it once.
    pub fn run(&self) -> Result<Exit, Errno> {
        ask(&self.fd, uapi::VCPU_RUN, 0)?;
        // SAFETY: the page is mapped as long as `self` lives; all bit
        // patterns are valid for its plain numbers.
        let run = unsafe { self.run.read_volatile() };
        // SAFETY: as above, for each of the union's structures.
        let (mmio, status, fault) =
            unsafe { (run.exit.mmio, run.exit.status, run.exit.page_fault) };
        Ok(match run.exit_reason {
            uapi::EXIT_MMIO if mmio.is_write == 0 => Exit::Read(mmio.phys_addr, mmio.len),
            uapi::EXIT_MMIO => Exit::Write(mmio.phys_addr, u64::from_le_bytes(mmio.data)),
            uapi::EXIT_PAGE_FAULT => {
                Exit::PageFault(fault.phys_addr, Errno::from_raw(-fault.attempt))
            }
            uapi::EXIT_STATUS => Exit::Status(status.status, status.kind),
            other => panic!("exit reason {other}"),
        })
    }

    /// Answers a read.
    pub fn answer(&self, value: u64) {
        // SAFETY: as in `run`; a projection into the mapped page.
        unsafe {
            (&raw mut (*self.run.as_ptr()).exit.mmio.data).write_volatile(value.to_le_bytes())
        }
    }

    /// Has the guest take an abort for the page fault.
    pub fn refuse_page(&self, action: u8) {
        // SAFETY: as in `answer`.
        unsafe {
            (&raw mut (*self.run.as_ptr()).exit.page_fault.resume_action).write_volatile(action);
        }
    }

    /// Asks a run to end at once.
    pub fn set_immediate_exit(&self, value: bool) {
        // SAFETY: as in `answer`.
        unsafe { (&raw mut (*self.run.as_ptr()).immediate_exit).write_volatile(value.into()) }
    }
}

impl AsFd for Vcpu {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into it.
        let _ = unsafe { munmap(self.run.cast(), PAGE as usize) };
    }
}
