// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine's virtio devices: which ones there are, and how they are wired.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::bus::Bus;
use super::device_tree::Interrupt;
use super::parts::Parts;
use super::{InterruptLine, Specification, layout};
use crate::gunyah::Vm;
use crate::virtio::{
    Backend, Block, Console, DeviceMemory, Entropy, Net, QUEUE_NOTIFY, Transport, Vsock,
};

/// The devices of a machine whose guest they can reach.
pub fn make(machine: &Specification, parts: &Parts) -> Result<Vec<Box<dyn Backend>>> {
    let mut devices: Vec<Box<dyn Backend>> = vec![Box::new(Entropy)];
    if let Some(door) = parts.console() {
        let console = Console::new(door).context("the virtio console")?;
        devices.push(Box::new(console));
    }
    for (n, (disk, file)) in machine.disks.iter().zip(&parts.disks).enumerate() {
        let name = format!("disk-{n}");
        let file = file.try_clone()?;
        let block =
            Block::new(&name, file, disk.read_only, &name).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => anyhow::anyhow!("it is in use as a disk already"),
                _ => error.into(),
            });
        let block = block.with_context(|| format!("the disk {}", disk.path.display()))?;
        devices.push(Box::new(block));
    }
    for (n, (mac, link)) in parts.nets.iter().enumerate() {
        devices.push(Box::new(Net::new(&format!("net-{n}"), mac.0, link.link())));
    }
    if let (Some(cid), Some(door)) = (machine.vsock, &parts.vsock) {
        let vsock = Vsock::new(cid, Arc::clone(door)).context("the socket device (vsock)")?;
        devices.push(Box::new(vsock));
    }
    if devices.len() > layout::VIRTIO_DEVICES {
        bail!("a guest has {} devices at the most", layout::VIRTIO_DEVICES);
    }
    Ok(devices)
}

/// Puts device `n` into a machine.
pub fn attach(
    vm: &Vm,
    bus: &mut Bus,
    memory: &DeviceMemory,
    n: usize,
    backend: Box<dyn Backend>,
) -> Result<()> {
    let name = backend.identity().name;
    let failed = || format!("the device {name}");
    let line = Line::new(vm, layout::virtio_interrupt(n)).with_context(failed)?;
    let device = Transport::new(backend, memory.clone(), Arc::new(line)).with_context(failed)?;
    let window = layout::virtio(n);
    for (index, kick) in (0..).zip(device.kicks()) {
        vm.add_ioeventfd(kick.as_fd(), window.start + QUEUE_NOTIFY, index).with_context(failed)?;
    }
    bus.add(window, Box::new(device));
    Ok(())
}

/// An SPI, through an eventfd.
pub struct Line(EventFd);

impl Line {
    /// The line of a device's interrupt.
    pub fn new(vm: &Vm, interrupt: Interrupt) -> Result<Line> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let eventfd = EventFd::from_value_and_flags(0, flags)?;
        vm.add_irqfd(eventfd.as_fd(), interrupt.label(), !interrupt.edge)?;
        Ok(Line(eventfd))
    }
}

impl InterruptLine for Line {
    fn trigger(&self) -> io::Result<()> {
        match self.0.write(1) {
            // The count is at its maximum, so the eventfd is signalled already.
            Err(nix::errno::Errno::EAGAIN) => Ok(()),
            result => result.map(drop).map_err(Into::into),
        }
    }
}
