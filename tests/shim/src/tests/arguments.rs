// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is wrong is refused, with the errno that says how.

use anyhow::{Context as _, Result};
use escrow_vmcore::uapi;
use nix::errno::Errno;

use super::refused;
use crate::guest::RAM;
use crate::gunyah::{Device, PAGE, RWX, ask, vcpu_function};

/// CREATE_GUEST_MEM
pub fn of_memories() -> Result<()> {
    let device = Device::open()?;
    let good = uapi::CreateMem { flags: 0, size: PAGE, reserved: [0; 6] };
    for (what, args) in [
        ("half a page", uapi::CreateMem { size: PAGE / 2, ..good }),
        ("a negative size", uapi::CreateMem { size: 1 << 63, ..good }),
        ("an unknown flag", uapi::CreateMem { flags: 4, ..good }),
    ] {
        refused(device.create_mem(&args), Errno::EINVAL).context(what)?;
    }
    device.create_mem(&good)?;
    device.create_mem(&uapi::CreateMem { flags: uapi::MEM_ALLOW_HUGEPAGE, ..good })?;
    refused(ask(&device, uapi::CREATE_GUEST_MEM, 8), Errno::EFAULT).context("a bad address")?;
    refused(ask(&device, uapi::CREATE_VM, 1), Errno::EINVAL).context("a type of VM")?;
    refused(ask(&device, 0x4799, 0), Errno::ENOTTY).context("no call")
}

/// VM_MAP_MEM
pub fn of_bindings() -> Result<()> {
    let device = Device::open()?;
    let (vm, memory) = (device.vm()?, device.memory(16)?);
    let bind = |guest, flags, pages| vm.bind(guest, flags, &memory, 0, pages);
    for (what, result) in [
        ("no rights", bind(RAM, 0, 1)),
        ("lend and share", bind(RAM, RWX | uapi::MAP_FORCE_LEND | uapi::MAP_FORCE_SHARE, 1)),
        ("an unknown flag", bind(RAM, RWX | 0x1000, 1)),
        ("half a page on", bind(RAM + PAGE / 2, RWX, 1)),
        ("nothing", bind(RAM, RWX, 0)),
    ] {
        refused(result, Errno::EINVAL).context(what)?;
    }
    let wrap = 0u64.wrapping_sub(PAGE);
    refused(bind(wrap, RWX, 1), Errno::EOVERFLOW).context("the end of the space")?;
    let map = |fd: u32| {
        vm.map(&uapi::MapMem {
            guest_addr: RAM,
            flags: RWX,
            guest_mem_fd: fd,
            offset: 0,
            size: PAGE,
        })
    };
    refused(map(1 << 20), Errno::EINVAL).context("no file")?;
    refused(map(0), Errno::EINVAL).context("another file")?;

    bind(RAM, RWX, 4)?;
    refused(bind(RAM + 3 * PAGE, RWX, 2), Errno::EEXIST).context("the last page twice")?;
    refused(bind(RAM - PAGE, RWX, 16), Errno::EEXIST).context("all of it twice")?;
    refused(bind(RAM + 4 * PAGE, RWX, 1), Errno::EEXIST).context("a page at two addresses")?;
    vm.bind(RAM + 4 * PAGE, RWX, &memory, 8, 1)?;
    let other = device.memory(4)?;
    for (what, result) in [
        ("not bound", vm.unbind(RAM + 8 * PAGE, &memory, 8, 1)),
        ("at another offset", vm.unbind(RAM, &memory, 1, 1)),
        ("another memory", vm.unbind(RAM, &other, 0, 1)),
        ("more than is bound there", vm.unbind(RAM + 2 * PAGE, &memory, 2, 3)),
    ] {
        refused(result, Errno::ENOENT).context(what)?;
    }
    Ok(vm.unbind(RAM, &memory, 0, 4)?)
}

/// VM_SET_BOOT_CONTEXT, VM_SET_DTB_CONFIG
pub fn of_vms() -> Result<()> {
    let device = Device::open()?;
    let vm = device.vm()?;
    let set = |reg, reserved| vm.set_boot_context(&uapi::BootContext { reg, reserved, value: 1 });
    for reg in [32, 0x101, 0x203, 0x300, 0xffff_ff00] {
        refused(set(reg, 0), Errno::EINVAL).with_context(|| format!("register {reg:#x}"))?;
    }
    for reg in [0, 30, 0x100, 0x200, 0x201] {
        set(reg, 0)?;
    }
    refused(vm.set_dtb(u64::MAX, 2), Errno::EOVERFLOW).context("a device tree that wraps")
}

/// VM_ADD_FUNCTION, VM_REMOVE_FUNCTION, and a vCPU's calls
pub fn of_functions() -> Result<()> {
    let device = Device::open()?;
    let vm = device.vm()?;
    let arg = uapi::VcpuArg { id: 0 };
    let good = vcpu_function(&arg);
    let none = uapi::FunctionDesc { kind: 9, ..good };
    refused(vm.add(&none), Errno::ENOENT).context("no function")?;
    let large = uapi::FunctionDesc { arg_size: uapi::FUNCTION_ARG_MAX + 1, ..good };
    refused(vm.add(&large), Errno::EINVAL).context("a large argument")?;
    let short = uapi::FunctionDesc { arg_size: 2, ..good };
    refused(vm.add(&short), Errno::EINVAL).context("a short argument")?;
    let nowhere = uapi::FunctionDesc { arg: 8, ..good };
    refused(vm.add(&nowhere), Errno::EFAULT).context("a bad address")?;
    let large = uapi::VcpuArg { id: 32 };
    refused(vm.add(&vcpu_function(&large)), Errno::EINVAL).context("a large number")?;

    let first = vm.vcpu(0)?;
    refused(vm.add(&good), Errno::EEXIST).context("the same number twice")?;
    refused(first.run(), Errno::ENODEV).context("a run before the start")?;
    refused(ask(&first, uapi::VM_START, 0), Errno::ENOTTY).context("a call of the VM's")?;
    vm.remove_vcpu(0)?;
    refused(vm.remove_vcpu(0), Errno::ENOENT).context("removed twice")?;
    let _second = vm.vcpu(0)?;
    refused(first.run(), Errno::ENODEV).context("a run of the one removed")
}
