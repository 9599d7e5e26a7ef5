// SPDX-License-Identifier: MIT OR Apache-2.0

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use escrow_vmcore::uapi;

use super::{GuestMemory, Result, Vcpu, call_with_ref, call_with_value, new_descriptor};

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

impl Vm {
    pub(super) fn new(fd: OwnedFd) -> Vm {
        Vm(fd)
    }

    /// Binds memory to be lent when the guest first touches it.
    pub fn lend(&self, memory: &GuestMemory, binding: Binding, access: Access) -> Result<()> {
        let access = match access {
            Access::ReadWrite => uapi::MAP_READ | uapi::MAP_WRITE,
            Access::All => uapi::MAP_READ | uapi::MAP_WRITE | uapi::MAP_EXEC,
        };
        self.map("VM_MAP_MEM", memory, binding, uapi::MAP_FORCE_LEND | access)
    }

    /// Takes a range, or a part of one, out of the guest.
    pub fn unbind(&self, memory: &GuestMemory, binding: Binding) -> Result<()> {
        self.map("VM_MAP_MEM(UNMAP)", memory, binding, uapi::MAP_UNMAP)
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
        let description = uapi::FunctionDesc {
            kind: uapi::FUNCTION_VCPU,
            arg_size: size_of_val(&argument) as u32,
            arg: &raw const argument as u64,
        };
        let fd =
            call_with_ref("VM_ADD_FUNCTION(VCPU)", &self.0, uapi::VM_ADD_FUNCTION, &description)?;
        Vcpu::new(new_descriptor(fd))
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
