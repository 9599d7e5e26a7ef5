// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that the host loses sight of.

use anyhow::{Context as _, Result};
use escrow_abi::call::{MODIFY_SANITIZE, MODIFY_UNLOCK};
use escrow_vmcore::uapi::{self, fdinfo};
use nix::errno::Errno;

use super::{refused, same};
use crate::access::{Pin, read, write};
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, Exit, PAGE, RWX};

const AT: u64 = RAM + 8 * PAGE;
const ANSWER: u64 = 0x6020;

/// Out with the host's contents, home with what the guest wants.
pub fn pages_leave_and_come_home() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 16, 0)?;
    guest.vm.start().context("the second start")?;
    write(&guest.mapping, 8 * PAGE, 0x1234)?;
    same(guest.ask(Order::Load(AT))?, 0x1234)?;
    same(guest.memory.count(fdinfo::LENT)?, 2)?;
    refused(read(&guest.mapping, 8 * PAGE), Errno::EFAULT).context("read")?;
    refused(write(&guest.mapping, 8 * PAGE, 0), Errno::EFAULT).context("write")?;
    refused(Pin::take(&guest.mapping, 8), Errno::EFAULT).context("vmsplice")?;

    guest.ask(Order::Store(AT, 0x55))?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    same(read(&guest.mapping, 8 * PAGE)?, 0x55)?;
    same(guest.ask(Order::Load(AT))?, 0x55)?;
    refused(read(&guest.mapping, 8 * PAGE), Errno::EFAULT).context("lent again")?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK | MODIFY_SANITIZE))?, 0)?;
    same(read(&guest.mapping, 8 * PAGE)?, 0)?;

    guest.ask(Order::Store(AT, 0x66))?;
    let Guest { memory, mapping, vm, vcpu } = guest;
    drop((vm, vcpu));
    same(read(&mapping, 8 * PAGE)?, 0)?;
    same(memory.count(fdinfo::LENT)?, 0)
}

/// Whatever the host tries, the guest keeps it.
pub fn a_locked_page_stays() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 16, 0)?;
    guest.ask(Order::Store(AT, 0x55))?;
    refused(guest.vm.unbind(AT, &guest.memory, 8, 1), Errno::EBUSY).context("unbind")?;
    refused(guest.memory.resize(8 * PAGE), Errno::EBUSY).context("ftruncate")?;
    refused(guest.memory.punch(7, 2), Errno::EBUSY).context("a hole")?;
    same(nix::sys::stat::fstat(&guest.memory)?.st_size, 16 * PAGE as i64)?;
    same(guest.ask(Order::Load(AT))?, 0x55)?;
    guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?;
    guest.memory.punch(7, 2)?;
    same(guest.ask(Order::Load(AT))?, 0)
}

/// A page that is held is named; the guest waits for it.
pub fn a_pin_is_named_and_waited_for() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 16, 0)?;
    write(&guest.mapping, 8 * PAGE, 1)?;
    let pin = Pin::take(&guest.mapping, 8)?;
    let refusal = Exit::PageFault(AT, Errno::EAGAIN);
    same(guest.order(Order::Load(AT))?, refusal)?;
    same(guest.memory.refusal()?, "offset=0x8000 excess=1 accessible=0".to_owned())?;
    write(&guest.mapping, 8 * PAGE, 2)?;
    same(guest.run()?, refusal)?;
    pin.drain()?;
    same(guest.run()?, Exit::Write(ANSWER, 2))?;
    same(guest.memory.count(fdinfo::LENT)?, 2)
}

/// The program may refuse in the shim's place.
pub fn a_refused_page_is_an_abort() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 16, 0)?;
    let pin = Pin::take(&guest.mapping, 8)?;
    same(guest.order(Order::Load(AT))?, Exit::PageFault(AT, Errno::EAGAIN))?;
    guest.vcpu.refuse_page(7);
    refused(guest.vcpu.run(), Errno::EINVAL).context("no such action")?;
    guest.vcpu.refuse_page(uapi::RESUME_FAULT);
    let exit = guest.run()?;
    guest.expect_abort_now(exit)?;
    pin.drain()?;
    Ok(())
}

/// A page is with one guest, and bound at one address of it.
pub fn one_guest_at_a_time() -> Result<()> {
    let device = Device::open()?;
    let (one, two) = (Guest::started(&device, 16, 0)?, Guest::started(&device, 1, 0)?);
    one.ask(Order::Store(AT, 0x66))?;
    two.vm.bind(RAM + 64 * PAGE, RWX, &one.memory, 8, 1)?;
    refused(one.vm.bind(RAM + 64 * PAGE, RWX, &one.memory, 8, 1), Errno::EEXIST)?;
    let taken = Exit::PageFault(RAM + 64 * PAGE, Errno::EEXIST);
    same(two.order(Order::Load(RAM + 64 * PAGE))?, taken)?;
    one.ask(Order::Unlock(AT, MODIFY_UNLOCK | MODIFY_SANITIZE))?;
    same(two.run()?, Exit::Write(ANSWER, 0)).context("once it is given up")?;
    same(one.order(Order::Load(AT))?, Exit::PageFault(AT, Errno::EEXIST))
}

/// Nothing is written to what may only be read.
pub fn rights_are_kept() -> Result<()> {
    let device = Device::open()?;
    let (guest, memory) = (Guest::started(&device, 1, 0)?, device.memory(1)?);
    guest.vm.bind(AT, uapi::MAP_READ, &memory, 0, 1)?;
    guest.expect_abort(Order::Store(AT, 1)).context("before the first load")?;
    same(guest.ask(Order::Load(AT))?, 0)?;
    guest.expect_abort(Order::Store(AT, 1)).context("after it")
}

/// A binding may be larger than its memory, which may grow.
pub fn beyond_the_end() -> Result<()> {
    let device = Device::open()?;
    let (guest, memory) = (Guest::started(&device, 1, 0)?, device.memory(1)?);
    guest.vm.bind(AT, RWX, &memory, 0, 2)?;
    let end = AT + PAGE;
    same(guest.order(Order::Load(end))?, Exit::PageFault(end, Errno::EINVAL))?;
    memory.resize(2 * PAGE)?;
    same(guest.run()?, Exit::Write(ANSWER, 0))
}

/// Where it was is MMIO; beside it all is as before.
pub fn part_of_a_binding_goes() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 16, 0)?;
    for page in 8..11 {
        guest.ask(Order::Store(RAM + page * PAGE, page))?;
    }
    guest.ask(Order::Unlock(RAM + 9 * PAGE, MODIFY_UNLOCK))?;
    guest.vm.unbind(RAM + 9 * PAGE, &guest.memory, 9, 1)?;
    same(guest.ask(Order::Load(RAM + 8 * PAGE))?, 8)?;
    same(guest.ask(Order::Load(RAM + 10 * PAGE))?, 10)?;
    same(guest.order(Order::Load(RAM + 9 * PAGE))?, Exit::Read(RAM + 9 * PAGE, 8))?;
    guest.vcpu.answer(0x99);
    same(guest.run()?, Exit::Write(ANSWER, 0x99))?;
    same(read(&guest.mapping, 9 * PAGE)?, 9)?;
    guest.vm.bind(RAM + 9 * PAGE, RWX, &guest.memory, 9, 1)?;
    same(guest.ask(Order::Load(RAM + 9 * PAGE))?, 9)
}
