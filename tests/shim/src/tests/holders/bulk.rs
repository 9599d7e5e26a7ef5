// SPDX-License-Identifier: MIT OR Apache-2.0

//! The device tree's range comes in one call, 512 pages at the most: all of
//! them or none, whichever is not to be had.

use anyhow::{Context as _, Result};
use escrow_shim_tests::facts::Facts;
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;

use super::advice::madvise_range;
use super::poison::break_frame;
use super::uring::Registered;
use super::{HOSTS, Holder, PIN, fails, refusal};
use crate::access::{Pin, frame, read, write, write_all};
use crate::guest::{Guest, Order, RAM, program};
use crate::gunyah::{Device, Exit, PAGE, RWX};
use crate::tests::{refused, same};

/// Pages in the range, which begins with the program.
const PAGES: u64 = 512;
/// The first, one in the middle, the last.
const PLACES: [u64; 3] = [0, 255, PAGES - 1];

/// A VM that has not started, whose range the first pages are; each has its
/// own number in its second word.
fn unstarted(device: &Device) -> Result<Guest> {
    let guest = Guest::new(device, PAGES + 2, 0)?;
    guest.vm.set_dtb(RAM, PAGES * PAGE)?;
    for page in 0..PAGES + 2 {
        write(&guest.mapping, page * PAGE + 4088, HOSTS + page)?;
    }
    Ok(guest)
}

/// Starts it with the range mapped by nobody, as it must be; what holds a page
/// does so without its mapping.
fn start(guest: &Guest) -> Result<(), Errno> {
    madvise_range(&guest.mapping, 0, PAGES, libc::MADV_DONTNEED)?;
    guest.vm.start()
}

/// Nothing has left, here or at EL2, and nothing has changed.
fn none_is_lent(guest: &Guest, before: &Facts) -> Result<()> {
    same(guest.memory.count(fdinfo::LENT)?, 0)?;
    same(&Facts::read()?, before).context("Escrow's counts")?;
    for page in 0..PAGES + 2 {
        same(read(&guest.mapping, page * PAGE + 4088)?, HOSTS + page)
            .with_context(|| format!("page {page}"))?;
    }
    Ok(())
}

/// All 512 have left, with what was in them.
fn all_are_lent(guest: &Guest) -> Result<()> {
    start(guest)?;
    same(guest.memory.count(fdinfo::LENT)?, PAGES)?;
    for page in PLACES {
        refused(read(&guest.mapping, page * PAGE), Errno::EFAULT)?;
        same(guest.ask(Order::Load(RAM + page * PAGE + 4088))?, HOSTS + page)?;
    }
    // A neighbour comes when it is touched.
    same(guest.ask(Order::Load(RAM + PAGES * PAGE + 4088))?, HOSTS + PAGES)?;
    same(guest.memory.count(fdinfo::LENT)?, PAGES + 1)
}

/// Each place is named; and of several the first.
pub fn one_of_many_is_held() -> Result<()> {
    let device = Device::open()?;
    let guest = unstarted(&device)?;
    // EL2 has metadata for the VM from the first try on.
    let pin = Pin::take(&guest.mapping, 1)?;
    refused(start(&guest), Errno::EAGAIN)?;
    pin.drain()?;
    let before = Facts::read()?;
    for page in PLACES {
        let pin = Pin::take(&guest.mapping, page)?;
        refused(start(&guest), Errno::EAGAIN)?;
        same(guest.memory.refusal()?, refusal(page, 1))?;
        none_is_lent(&guest, &before).context("by a pipe")?;
        drop(pin);

        let ring = Registered::take(&guest.mapping, page)?;
        refused(start(&guest), Errno::EAGAIN)?;
        same(guest.memory.refusal()?, refusal(page, PIN))?;
        none_is_lent(&guest, &before).context("by a ring")?;
        ring.release()?;
    }
    let [first, middle, last] = PLACES.map(|page| Pin::take(&guest.mapping, page));
    let pins = [first?, middle?, last?];
    for (pin, page) in pins.into_iter().zip(PLACES) {
        refused(start(&guest), Errno::EAGAIN)?;
        same(guest.memory.refusal()?, refusal(page, 1))?;
        drop(pin);
    }
    all_are_lent(&guest)?;
    fails(Registered::take(&guest.mapping, PAGES - 1), Errno::EFAULT)
}

/// Another guest has one of them.
pub fn one_of_many_is_away() -> Result<()> {
    let device = Device::open()?;
    let other = Guest::started(&device, 1, 0)?;
    for page in PLACES {
        let guest = unstarted(&device)?;
        let also_at = RAM + 0x40_0000;
        other.vm.bind(also_at, RWX, &guest.memory, page, 1)?;
        same(other.ask(Order::Load(also_at + 4088))?, HOSTS + page)?;
        refused(start(&guest), Errno::EEXIST)?;
        same(guest.memory.count(fdinfo::LENT)?, 1)?;
        refused(read(&guest.mapping, page * PAGE), Errno::EFAULT)?;
        for beside in PLACES.into_iter().filter(|beside| *beside != page) {
            same(read(&guest.mapping, beside * PAGE + 4088)?, HOSTS + beside)?;
        }
        same(other.ask(Order::Load(also_at + 4088))?, HOSTS + page)?;
        // Nothing of the other guest's comes along.
        let flags = escrow_abi::call::MODIFY_UNLOCK;
        same(other.ask(Order::Unlock(also_at, flags))?, 0)?;
        all_are_lent(&guest)?;
        let exit = other.order(Order::Load(also_at))?;
        same(exit, Exit::PageFault(also_at, Errno::EEXIST))?;
        other.vcpu.refuse_page(escrow_vmcore::uapi::RESUME_FAULT);
        let exit = other.run()?;
        other.expect_abort_now(exit)?;
        other.vm.unbind(also_at, &guest.memory, page, 1)?;
    }
    Ok(())
}

/// The memory behind one of them is broken; a hole replaces it.
pub fn one_of_many_is_broken() -> Result<()> {
    let device = Device::open()?;
    let guest = unstarted(&device)?;
    for page in PLACES {
        let place = frame(&guest.mapping, page * PAGE)?.context("the page is nowhere")?;
        break_frame(place)?;
        refused(start(&guest), Errno::EHWPOISON)?;
        same(guest.memory.count(fdinfo::LENT)?, 0)?;
        for other in PLACES.into_iter().filter(|other| *other != page) {
            same(read(&guest.mapping, other * PAGE + 4088)?, HOSTS + other)?;
        }
        guest.memory.punch(page, 1)?;
        if page == 0 {
            write_all(&guest.mapping, 0, &program())?;
        }
        write(&guest.mapping, page * PAGE + 4088, HOSTS + page)?;
    }
    all_are_lent(&guest)
}
