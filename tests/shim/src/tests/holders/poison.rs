// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that breaks, as the kernel's own injector says it does
//! (`mm/hwpoison-inject.c`).

use std::fs;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::call::MODIFY_UNLOCK;
use escrow_vmcore::uapi::{MAP_FORCE_SHARE, fdinfo};
use nix::errno::Errno;

use super::advice::madvise;
use super::{AT, GUESTS, HELD, HOSTS, OFFSET, at_home, lend};
use crate::access::{Pin, frame, read, write};
use crate::guest::{ANSWER, Guest, Order, RAM};
use crate::gunyah::{Device, Exit, PAGE};
use crate::tests::{refused, same};
use crate::wait::until;

const INJECTOR: &str = "/sys/kernel/debug/hwpoison";

/// Breaks a frame. The kernel does not know whose it is, so it cannot take it
/// away from anybody (EBUSY or EIO), but it remembers. There is no way back:
/// the injector's own (`unpoison-pfn`) drops a reference that only pages have
/// which the kernel could take away.
pub fn break_frame(frame: u64) -> Result<()> {
    crate::modules::load("hwpoison-inject", "", INJECTOR)?;
    let told = fs::write(format!("{INJECTOR}/corrupt-pfn"), frame.to_string());
    if let Err(error) = told {
        let known = [Some(libc::EBUSY), Some(libc::EIO)].contains(&error.raw_os_error());
        ensure!(known, "injecting: {error}");
    }
    Ok(())
}

/// The frame that the page is in.
pub fn frame_of(guest: &Guest) -> Result<u64> {
    frame(&guest.mapping, OFFSET)?.context("the page is nowhere")
}

/// EHWPOISON, whoever asks; a hole replaces it.
pub fn a_poisoned_page_is_not_lent() -> Result<()> {
    let guest = at_home()?;
    let place = frame_of(&guest)?;
    break_frame(place)?;
    is_refused(&guest)?;
    guest.memory.punch(HELD, 1)?;
    same(guest.run()?, Exit::Write(ANSWER, 0)).context("a fresh page")?;
    lend(&guest)?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    same(read(&guest.mapping, OFFSET)?, GUESTS)?;
    ensure!(frame_of(&guest)? != place, "broken memory is used again");

    // A guest that shares the memory does not get it either.
    let guest = Guest::started(&Device::open()?, 16, MAP_FORCE_SHARE)?;
    write(&guest.mapping, OFFSET, HOSTS)?;
    break_frame(frame_of(&guest)?)?;
    is_refused(&guest)
}

/// The guest cannot have it; the host has lost it as well, for good.
fn is_refused(guest: &Guest) -> Result<()> {
    let refused_page = Exit::PageFault(AT, Errno::EHWPOISON);
    same(guest.order(Order::Load(AT))?, refused_page)?;
    same(guest.run()?, refused_page).context("again")?;
    // Its entry in the tables outlives the injection; the next one is refused.
    madvise(&guest.mapping, libc::MADV_DONTNEED)?;
    ensure!(read(&guest.mapping, OFFSET).is_err(), "broken memory is read");
    ensure!(Pin::take(&guest.mapping, HELD).is_err(), "broken memory is pinned");
    same(guest.run()?, refused_page).context("after that")
}

/// The guest's own page breaks: it goes out of use, the guest and its VMM hear
/// of it, and the host lives.
pub fn a_lent_page_breaks() -> Result<()> {
    let guest = at_home()?;
    let place = frame_of(&guest)?;
    guest.ask(Order::Store(AT + PAGE, 9))?;
    lend(&guest)?;
    break_frame(place)?;
    is_told(&guest, AT)?;
    same(guest.memory.count(fdinfo::POISONED)?, 1)?;
    guest.expect_abort(Order::Load(AT))?;
    guest.expect_abort(Order::Store(AT, 1))?;
    same(guest.ask(Order::Load(AT + PAGE))?, 9).context("a neighbour")?;
    ensure!(read(&guest.mapping, OFFSET).is_err(), "broken memory is read");
    ensure!(Pin::take(&guest.mapping, HELD).is_err(), "broken memory is pinned");
    // A hole over it, and the host has a fresh page there.
    guest.memory.punch(HELD, 1)?;
    write(&guest.mapping, OFFSET, 1)?;
    ensure!(frame_of(&guest)? != place, "broken memory is used again");
    guest.expect_abort(Order::Load(AT)).context("where the guest had it")
}

/// A run ends once to say that memory is broken.
pub fn is_told(guest: &Guest, at: u64) -> Result<()> {
    let told = Exit::PageFault(at, Errno::EHWPOISON);
    until("the news of broken memory", || {
        let exit = guest.order(Order::Load(RAM))?;
        ensure!(exit == told || matches!(exit, Exit::Write(ANSWER, _)), "{exit:x?}");
        Ok(exit == told)
    })?;
    guest.ask(Order::Load(RAM)).map(drop).context("once")
}

/// madvise: of a page at home as above, and of a lent one not at all.
pub fn programs_that_say_so() -> Result<()> {
    let guest = at_home()?;
    let place = frame_of(&guest)?;
    ensure!(madvise(&guest.mapping, libc::MADV_SOFT_OFFLINE).is_err(), "moved elsewhere");
    same(frame(&guest.mapping, OFFSET)?, Some(place))?;
    same(read(&guest.mapping, OFFSET)?, HOSTS)?;
    super::on_a_lent_page(&guest, || {
        refused(madvise(&guest.mapping, libc::MADV_HWPOISON), Errno::EFAULT).context("broken")?;
        refused(madvise(&guest.mapping, libc::MADV_SOFT_OFFLINE), Errno::EFAULT).context("worn")
    })?;
    ensure!(madvise(&guest.mapping, libc::MADV_HWPOISON).is_err(), "taken from the memory");
    is_refused(&guest)?;
    guest.memory.punch(HELD, 1)?;
    same(guest.run()?, Exit::Write(ANSWER, 0)).context("a fresh page")
}
