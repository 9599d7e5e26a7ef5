// SPDX-License-Identifier: MIT OR Apache-2.0

//! Holes, truncation and closing, of what is lent and of what is held.

use anyhow::{Context as _, Result};
use escrow_abi::call::MODIFY_UNLOCK;
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;

use super::pipes::first_word;
use super::{AT, GUESTS, HELD, HOSTS, OFFSET, at_home, lend};
use crate::access::{Pin, read, write};
use crate::guest::{ANSWER, Guest, Order, RAM};
use crate::gunyah::{Device, Exit, PAGE};
use crate::tests::{refused, same};

/// A range with one lent page in it stays as it is, all of it.
pub fn over_what_is_lent() -> Result<()> {
    let guest = at_home()?;
    lend(&guest)?;
    write(&guest.mapping, OFFSET - PAGE, 7)?;
    // Given up, and not fetched yet.
    guest.ask(Order::Store(AT + PAGE, 9))?;
    guest.ask(Order::Unlock(AT + PAGE, MODIFY_UNLOCK))?;
    guest.ask(Order::Store(AT + 2 * PAGE, 10))?;
    let size = nix::sys::stat::fstat(&guest.memory)?.st_size;

    refused(guest.memory.punch(HELD - 1, 4), Errno::EBUSY).context("a hole")?;
    refused(guest.memory.punch(0, 16), Errno::EBUSY).context("a hole of all")?;
    refused(guest.memory.resize(OFFSET), Errno::EBUSY).context("truncation to it")?;
    refused(guest.memory.resize(0), Errno::EBUSY).context("truncation of all")?;
    refused(guest.memory.resize(OFFSET + PAGE), Errno::EBUSY).context("behind it")?;
    same(nix::sys::stat::fstat(&guest.memory)?.st_size, size)?;
    same(read(&guest.mapping, OFFSET - PAGE)?, 7).context("what is at home")?;
    for (at, word) in [(AT, GUESTS), (AT + PAGE, 9), (AT + 2 * PAGE, 10)] {
        same(guest.ask(Order::Load(at))?, word).context("what the guest has")?;
    }
    // Around it there are holes.
    guest.memory.punch(HELD - 2, 2)?;
    same(read(&guest.mapping, OFFSET - PAGE)?, 0)?;
    guest.ask(Order::Unlock(AT + 2 * PAGE, MODIFY_UNLOCK))?;
    guest.ask(Order::Unlock(AT + PAGE, MODIFY_UNLOCK))?;
    guest.memory.resize(OFFSET + PAGE)?;
    refused(read(&guest.mapping, OFFSET + PAGE), Errno::EFAULT).context("beyond the end")?;
    same(guest.ask(Order::Load(AT))?, GUESTS)?;
    same(guest.memory.count(fdinfo::LENT)?, 2)
}

/// The page leaves the memory, its holder keeps it, and a fresh one can be
/// lent at once.
pub fn under_a_holder() -> Result<()> {
    let guest = at_home()?;
    for cut in [
        (|guest: &Guest| guest.memory.punch(HELD, 1)) as fn(&Guest) -> Result<(), Errno>,
        |guest| guest.memory.resize(OFFSET).and_then(|()| guest.memory.resize(16 * PAGE)),
    ] {
        write(&guest.mapping, OFFSET, HOSTS)?;
        let pin = Pin::take(&guest.mapping, HELD)?;
        let refusal = Exit::PageFault(AT, Errno::EAGAIN);
        same(guest.order(Order::Load(AT))?, refusal)?;
        cut(&guest)?;
        same(guest.run()?, Exit::Write(ANSWER, 0)).context("a fresh page")?;
        lend(&guest)?;
        same(first_word(&pin.drain()?)?, HOSTS).context("what the holder has")?;
        same(guest.ask(Order::Load(AT))?, GUESTS)?;
        same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    }
    Ok(())
}

/// The memory's last descriptor is closed, and its last mapping gone: the VM
/// has it, and what is held of it, all the same.
pub fn memory_closed_first() -> Result<()> {
    let guest = at_home()?;
    lend(&guest)?;
    let pin = Pin::take(&guest.mapping, HELD + 1)?;
    let Guest { memory, mapping, vm, vcpu } = guest;
    drop((memory, mapping));
    let at = AT + PAGE;
    // The guest asks for its next order: a load, word by word.
    for word in [0, at, 0, 0] {
        vcpu.run()?;
        vcpu.answer(word);
    }
    same(vcpu.run()?, Exit::PageFault(at, Errno::EAGAIN)).context("held")?;
    drop(pin);
    same(vcpu.run()?, Exit::Write(ANSWER, 0))?;
    drop((vm, vcpu));
    // A pin outlives them all.
    let guest = Guest::started(&Device::open()?, 2, 0)?;
    write(&guest.mapping, PAGE, HOSTS)?;
    let pin = Pin::take(&guest.mapping, 1)?;
    same(guest.order(Order::Load(RAM + PAGE))?, Exit::PageFault(RAM + PAGE, Errno::EAGAIN))?;
    drop(guest);
    same(first_word(&pin.drain()?)?, HOSTS)
}
