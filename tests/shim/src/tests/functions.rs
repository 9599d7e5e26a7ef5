// SPDX-License-Identifier: MIT OR Apache-2.0

//! What VM_ADD_FUNCTION and VM_REMOVE_FUNCTION take for a function.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use escrow_vmcore::uapi::{
    FUNCTION_CONSOLE, FUNCTION_IOEVENTFD, FUNCTION_IRQFD, FUNCTION_VCPU, IRQFD_RESAMPLE,
    IoeventfdArg, IrqfdArg, VcpuArg,
};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use super::refused;
use crate::gunyah::{Device, function};

const MMIO: u64 = 0x7000;

fn ioeventfd(event: &EventFd) -> IoeventfdArg {
    IoeventfdArg { addr: MMIO, len: 4, fd: event.as_raw_fd(), ..Default::default() }
}

/// Each type, with each thing about its argument that can be wrong. What is
/// malformed cannot be added; nor is it there to be removed.
pub fn are_checked() -> Result<()> {
    let device = Device::open()?;
    let vm = device.vm()?;
    let event = EventFd::new()?;
    let memory = device.memory(1)?;

    let good = ioeventfd(&event);
    for (what, bad) in [
        ("3 bytes", IoeventfdArg { len: 3, ..good }),
        ("16 bytes", IoeventfdArg { len: 16, ..good }),
        ("a value of no size", IoeventfdArg { len: 0, flags: 1, ..good }),
        ("an unknown flag", IoeventfdArg { flags: 2, ..good }),
        ("the end of the space", IoeventfdArg { addr: u64::MAX - 2, ..good }),
    ] {
        refused(vm.add_function(FUNCTION_IOEVENTFD, &bad), Errno::EINVAL).context(what)?;
        refused(vm.remove_function(FUNCTION_IOEVENTFD, &bad), Errno::ENOENT).context(what)?;
    }
    let with_fd = |fd| vm.add_function(FUNCTION_IOEVENTFD, &IoeventfdArg { fd, ..good });
    refused(with_fd(1 << 20), Errno::EBADF).context("no file")?;
    refused(with_fd(-1), Errno::EBADF).context("no descriptor")?;
    let file = std::os::fd::AsFd::as_fd(&memory).as_raw_fd();
    refused(with_fd(file), Errno::EINVAL).context("no eventfd")?;

    let good = IrqfdArg { fd: event.as_raw_fd() as u32, ..Default::default() };
    let bad = IrqfdArg { flags: 2, ..good };
    refused(vm.add_function(FUNCTION_IRQFD, &bad), Errno::EINVAL).context("an unknown flag")?;
    let with_fd = |fd| vm.add_function(FUNCTION_IRQFD, &IrqfdArg { fd, ..good });
    refused(with_fd(1 << 20), Errno::EBADF).context("no file")?;
    refused(with_fd(u32::MAX), Errno::EBADF).context("no descriptor")?;
    refused(with_fd(file as u32), Errno::EINVAL).context("no eventfd")?;

    let with_resample = |resample_fd| {
        let flags = IRQFD_RESAMPLE;
        vm.add_function(FUNCTION_IRQFD, &IrqfdArg { flags, resample_fd, ..good })
    };
    refused(with_resample(1 << 20), Errno::EBADF).context("no file for the way back")?;
    refused(with_resample(u32::MAX), Errno::EBADF).context("no descriptor for the way back")?;
    refused(with_resample(file as u32), Errno::EINVAL).context("no eventfd for the way back")?;

    for kind in [FUNCTION_VCPU, FUNCTION_IRQFD, FUNCTION_IOEVENTFD, FUNCTION_CONSOLE] {
        for size in [0, 3, 5, 15, 17, 31, 33, 256] {
            let wrong = [0u8; 256];
            let mut desc = function(kind, &wrong);
            desc.arg_size = size;
            let what = format!("type {kind} with {size} bytes");
            refused(vm.add(&desc), Errno::EINVAL).with_context(|| what.clone())?;
            refused(vm.remove(&desc), Errno::ENOENT).with_context(|| what)?;
        }
        let mut desc = function(kind, &[0u8; 4]);
        desc.arg = 8;
        refused(vm.add(&desc), Errno::EFAULT).context("a bad address")?;
        refused(vm.remove(&desc), Errno::EFAULT).context("a bad address")?;
        desc.arg_size = 257;
        refused(vm.add(&desc), Errno::EINVAL).context("a large argument")?;
    }
    for kind in [0, 4, u32::MAX] {
        refused(vm.add(&function(kind, &0u32)), Errno::ENOENT).context("a type")?;
        refused(vm.remove(&function(kind, &0u32)), Errno::ENOENT).context("a type")?;
    }
    Ok(())
}

/// What is there is not there twice, and is removed once, by what tells it
/// from others and not by its descriptor.
pub fn are_told_apart() -> Result<()> {
    let device = Device::open()?;
    let vm = device.vm()?;
    let (event, other) = (EventFd::new()?, EventFd::new()?);
    let good = ioeventfd(&event);
    let add = |arg: &IoeventfdArg| vm.add_function(FUNCTION_IOEVENTFD, arg);
    let remove = |arg: &IoeventfdArg| vm.remove_function(FUNCTION_IOEVENTFD, arg);

    refused(remove(&good), Errno::ENOENT).context("before there is one")?;
    add(&good)?;
    for (what, same) in [
        ("the same", good),
        ("for another event", IoeventfdArg { fd: other.as_raw_fd(), ..good }),
        ("of any size", IoeventfdArg { len: 0, ..good }),
        ("of another size", IoeventfdArg { len: 8, ..good }),
        ("of one value", IoeventfdArg { flags: 1, datamatch: 5, ..good }),
    ] {
        refused(add(&same), Errno::EEXIST).context(what)?;
    }
    let different = IoeventfdArg { addr: MMIO + 2, ..good };
    refused(remove(&different), Errno::ENOENT).context("another address")?;
    add(&different).context("another address")?;
    refused(remove(&IoeventfdArg { len: 8, ..good }), Errno::ENOENT).context("another size")?;
    remove(&IoeventfdArg { fd: -1, ..good })?;
    refused(remove(&good), Errno::ENOENT).context("twice")?;

    for value in [5, 6] {
        add(&IoeventfdArg { flags: 1, datamatch: value, ..good })?;
    }
    refused(add(&good), Errno::EEXIST).context("of any value")?;
    refused(remove(&good), Errno::ENOENT).context("of any value")?;
    remove(&IoeventfdArg { flags: 1, datamatch: 5, ..good })?;
    refused(remove(&IoeventfdArg { flags: 1, datamatch: 5, ..good }), Errno::ENOENT)?;
    remove(&IoeventfdArg { flags: 1, datamatch: 6, ..good })?;

    let vcpu = vm.vcpu(7)?;
    refused(vm.remove_function(FUNCTION_VCPU, &VcpuArg { id: 6 }), Errno::ENOENT)?;
    vm.remove_function(FUNCTION_VCPU, &VcpuArg { id: 7 })?;
    drop(vcpu);
    // What an IOEVENTFD's argument looks like does not make it another type's.
    refused(vm.remove(&function(FUNCTION_IRQFD, &good)), Errno::ENOENT)
}
