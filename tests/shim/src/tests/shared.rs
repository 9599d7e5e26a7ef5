// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that host and guest reach at once.

use anyhow::Result;
use escrow_vmcore::uapi::{MAP_FORCE_SHARE, fdinfo};
use nix::errno::Errno;

use super::{refused, same};
use crate::access::{Pin, read, write};
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, Exit, PAGE, RWX};

/// Each sees what the other writes, and a pin is no obstacle.
pub fn both_see_both() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 16, MAP_FORCE_SHARE)?;
    let pin = Pin::take(&guest.mapping, 8)?;
    write(&guest.mapping, 8 * PAGE, 0x5a)?;
    same(guest.ask(Order::Load(RAM + 8 * PAGE))?, 0x5a)?;
    guest.ask(Order::Store(RAM + 8 * PAGE, 0xa5))?;
    same(read(&guest.mapping, 8 * PAGE)?, 0xa5)?;
    // That page, and the program's.
    same(guest.memory.count(fdinfo::SHARED)?, 2)?;
    pin.drain()?;
    Ok(())
}

/// The guest's next touch gets a fresh page, and so does the host's.
pub fn a_hole_takes_the_page_from_the_guest() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 16, MAP_FORCE_SHARE)?;
    guest.ask(Order::Store(RAM + 8 * PAGE, 1))?;
    guest.memory.punch(8, 1)?;
    same(guest.memory.count(fdinfo::SHARED)?, 1)?;
    same(guest.ask(Order::Load(RAM + 8 * PAGE))?, 0)?;
    guest.ask(Order::Store(RAM + 8 * PAGE, 2))?;
    same(read(&guest.mapping, 8 * PAGE)?, 2)?;

    guest.vm.unbind(RAM + 8 * PAGE, &guest.memory, 8, 1)?;
    let exit = guest.order(Order::Load(RAM + 8 * PAGE))?;
    same(exit, Exit::Read(RAM + 8 * PAGE, 8))?;
    same(read(&guest.mapping, 8 * PAGE)?, 2)
}

/// What a guest has left in a shared page is the host's to read, and the page
/// is the host's to lend.
pub fn contents_outlive_the_vm() -> Result<()> {
    let device = Device::open()?;
    let guest = Guest::started(&device, 16, MAP_FORCE_SHARE)?;
    guest.ask(Order::Store(RAM + 8 * PAGE, 0x77))?;
    let other = Guest::started(&device, 1, 0)?;
    other.vm.bind(RAM + 64 * PAGE, RWX, &guest.memory, 8, 1)?;
    let exit = other.order(Order::Load(RAM + 64 * PAGE))?;
    same(exit, Exit::PageFault(RAM + 64 * PAGE, Errno::EEXIST))?;

    let Guest { memory, mapping, vm, vcpu } = guest;
    drop((vm, vcpu));
    same(memory.count(fdinfo::SHARED)?, 0)?;
    same(read(&mapping, 8 * PAGE)?, 0x77)?;
    // The other guest's load is still to be done.
    same(other.run()?, Exit::Write(0x6020, 0x77))?;
    refused(read(&mapping, 8 * PAGE), Errno::EFAULT)
}
