// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use escrow_vmcore::uapi;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{Error, GuestMemory, Result, Vcpu, call_with_ref, call_with_value, new_descriptor};

/// A virtual machine.
pub struct Vm(OwnedFd);

/// What a guest may do with bound memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads and stores.
    ReadWrite,
    /// Loads, stores and instruction fetches.
    All,
}

/// A range of guest addresses and the part of a guest memory behind it. All
/// numbers in bytes and page-aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// First guest address.
    pub guest: u64,
    /// Offset in the guest memory.
    pub offset: u64,
    /// Size.
    pub size: u64,
}

impl Access {
    fn flags(self) -> u32 {
        match self {
            Access::ReadWrite => uapi::MAP_READ | uapi::MAP_WRITE,
            Access::All => uapi::MAP_READ | uapi::MAP_WRITE | uapi::MAP_EXEC,
        }
    }
}

impl Vm {
    pub(super) fn new(fd: OwnedFd) -> Vm {
        Vm(fd)
    }

    /// Binds memory to be lent when the guest first touches it.
    pub fn lend(&self, memory: &GuestMemory, binding: Binding, access: Access) -> Result<()> {
        self.map("VM_MAP_MEM", memory, binding, uapi::MAP_FORCE_LEND | access.flags())
    }

    /// Binds memory to be shared with the guest, from its first touch on.
    pub fn share(&self, memory: &GuestMemory, binding: Binding, access: Access) -> Result<()> {
        self.map("VM_MAP_MEM", memory, binding, uapi::MAP_FORCE_SHARE | access.flags())
    }

    /// Takes a range, or a part of one, out of the guest.
    pub fn unbind(&self, memory: &GuestMemory, binding: Binding) -> Result<()> {
        self.map("VM_MAP_MEM(UNMAP)", memory, binding, uapi::MAP_UNMAP)
    }

    /// Makes it a protected VM: its guest opens pages to the host, and takes them back. How many bits
    /// the guest's addresses have: the highest is 1 in what is shared. `None` if this host
    /// has no such VMs.
    pub fn protect(&self) -> Result<Option<u32>> {
        match call_with_value("ESCROW_VM_PROTECT", &self.0, uapi::VM_PROTECT, 0) {
            Ok(bits) => Ok(u32::try_from(bits).ok()),
            // EL2 has not got the call; the shim has not.
            Err(Error { errno: Errno::EOPNOTSUPP | Errno::ENOTTY, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn map(&self, call: &'static str, memory: &GuestMemory, at: Binding, flags: u32) -> Result<()> {
        let argument = uapi::MapMem {
            guest_addr: at.guest,
            flags,
            guest_mem_fd: memory.as_fd().as_raw_fd() as u32,
            offset: at.offset,
            size: at.size,
        };
        call_with_ref(call, &self.0, uapi::VM_MAP_MEM, &argument).map(drop)
    }

    /// Adds a vCPU; `id` is also what its `MPIDR_EL1` shows.
    pub fn add_vcpu(&self, id: u32) -> Result<Vcpu> {
        let argument = uapi::VcpuArg { id };
        let fd = self.add("VM_ADD_FUNCTION(VCPU)", uapi::FUNCTION_VCPU, &argument)?;
        Vcpu::new(new_descriptor(fd))
    }

    /// Has each signal of `eventfd` interrupt the guest, by the interrupt that
    /// `label` means in its device tree.
    pub fn add_irqfd(&self, eventfd: BorrowedFd, label: u32, level: bool) -> Result<()> {
        let argument = uapi::IrqfdArg {
            fd: eventfd.as_raw_fd() as u32,
            label,
            flags: if level { uapi::IRQFD_LEVEL } else { 0 },
            ..Default::default()
        };
        self.add("VM_ADD_FUNCTION(IRQFD)", uapi::FUNCTION_IRQFD, &argument).map(drop)
    }

    /// Has each 4-byte write of `value` to a guest address signal `eventfd`.
    pub fn add_ioeventfd(&self, eventfd: BorrowedFd, address: u64, value: u32) -> Result<()> {
        let argument = uapi::IoeventfdArg {
            datamatch: value.into(),
            addr: address,
            len: size_of_val(&value) as u32,
            fd: eventfd.as_raw_fd(),
            flags: uapi::IOEVENTFD_DATAMATCH,
            ..Default::default()
        };
        self.add("VM_ADD_FUNCTION(IOEVENTFD)", uapi::FUNCTION_IOEVENTFD, &argument).map(drop)
    }

    /// Adds a serial line at a guest address, with an SPI. The descriptor, which
    /// does not block, is its other end.
    pub fn add_console(&self, address: u64, interrupt: u32) -> Result<File> {
        let argument = uapi::ConsoleArg { addr: address, interrupt, flags: 0 };
        let call = "VM_ADD_FUNCTION(CONSOLE)";
        let fd = new_descriptor(self.add(call, uapi::FUNCTION_CONSOLE, &argument)?);
        let fail = |errno| Error { call, errno };
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).map_err(fail)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(fail)?;
        Ok(fd.into())
    }

    /// Adds a function whose argument is a structure without pointers.
    fn add<T>(&self, call: &'static str, kind: u32, argument: &T) -> Result<i32> {
        let description = uapi::FunctionDesc {
            kind,
            arg_size: size_of_val(argument) as u32,
            arg: std::ptr::from_ref(argument) as u64,
        };
        call_with_ref(call, &self.0, uapi::VM_ADD_FUNCTION, &description)
    }

    /// Says where the device tree is. The guest gets its memory when it starts,
    /// and its address in X0.
    pub fn set_device_tree(&self, address: u64, size: u64) -> Result<()> {
        let argument = uapi::DtbConfig { guest_phys_addr: address, size };
        call_with_ref("VM_SET_DTB_CONFIG", &self.0, uapi::VM_SET_DTB_CONFIG, &argument).map(drop)
    }

    /// Sets the guest address that the first vCPU starts at.
    pub fn set_boot_pc(&self, address: u64) -> Result<()> {
        let reg = uapi::boot_register(uapi::REG_SET_PC, 0);
        let argument = uapi::BootContext { reg, reserved: 0, value: address };
        call_with_ref("VM_SET_BOOT_CONTEXT", &self.0, uapi::VM_SET_BOOT_CONTEXT, &argument)
            .map(drop)
    }

    /// Starts the VM. EAGAIN if somebody in the host still uses the page that
    /// it starts on; then nothing has changed.
    pub fn start(&self) -> Result<()> {
        call_with_value("VM_START", &self.0, uapi::VM_START, 0).map(drop)
    }
}
