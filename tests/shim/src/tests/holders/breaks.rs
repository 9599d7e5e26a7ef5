// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages that break while the host maps them, while a guest has them, and one after the
//! other: each is out of reach on every path, and nothing else is.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use escrow_vmcore::losses::{Losses, MORE};
use escrow_vmcore::uapi::{MAP_FORCE_SHARE, fdinfo};
use nix::errno::Errno;

use super::huge::{FOLIO, HOSTS, Huge, PLACES, address};
use super::poison::{break_frame, frame_of, is_told};
use super::{AT, HELD, OFFSET, at_home};
use crate::access::{Pin, frame, load, read, write};
use crate::guest::{ANSWER, Guest, Order, RAM, WINDOW, order_after};
use crate::gunyah::{Device, Exit, Mapping, PAGE};
use crate::tests::{refused, same};
use crate::wait::until;

/// A page of a folio that breaks, neither its first nor its last.
const BROKEN: u64 = 255;

/// The page goes from a mapping, and a program that loads from it is told why.
fn is_gone(mapping: &Mapping, page: u64) -> Result<()> {
    until("the mapping to go", || Ok(read(mapping, page * PAGE).is_err()))?;
    same(load(mapping, page * PAGE)?, Err(libc::BUS_MCEERR_AR))?;
    ensure!(Pin::take(mapping, page).is_err(), "broken memory is pinned");
    Ok(())
}

/// All of the folio's other pages are there.
fn others_are_there(huge: &Huge) -> Result<()> {
    for page in PLACES.into_iter().chain(0..FOLIO).filter(|&page| page != BROKEN) {
        let word = if PLACES.contains(&page) { HOSTS + page } else { 0 };
        same(read(&huge.mapping, page * PAGE).with_context(|| format!("page {page}"))?, word)?;
    }
    Ok(())
}

/// Breaks a page of a huge memory that is mapped.
fn break_page(huge: &Huge, page: u64) -> Result<()> {
    break_frame(frame(&huge.mapping, page * PAGE)?.context("the page is nowhere")?)
}

/// A mapping that there was loses the page, new ones do not get it.
pub fn a_mapped_page() -> Result<()> {
    let guest = at_home()?;
    let memory = &guest.memory;
    write(&guest.mapping, OFFSET + PAGE, 7)?;
    let present = memory.count(fdinfo::PRESENT)?;
    break_frame(frame_of(&guest)?)?;
    is_gone(&guest.mapping, HELD)?;
    is_gone(&memory.map(0, 16)?, HELD)?;
    same(read(&guest.mapping, OFFSET + PAGE)?, 7).context("a neighbour")?;
    same([memory.count(fdinfo::PRESENT)?, memory.count(fdinfo::POISONED)?], [present - 1, 1])?;
    memory.punch(HELD, 1)?;
    same(read(&guest.mapping, OFFSET)?, 0).context("a fresh page")?;
    same(memory.count(fdinfo::POISONED)?, 0)
}

/// One of a folio that is mapped by one entry. The others are as any pages, and the
/// guest gets them.
pub fn a_page_of_a_mapped_folio() -> Result<()> {
    let huge = Huge::new(&Device::open()?)?;
    break_page(&huge, BROKEN)?;
    is_gone(&huge.mapping, BROKEN)?;
    let fresh = huge.memory.map(0, 2 * FOLIO)?;
    same(load(&fresh, (BROKEN + 1) * PAGE)?, Ok(0)).context("the next page, first")?;
    is_gone(&fresh, BROKEN)?;
    others_are_there(&huge)?;
    same(huge.memory.count(fdinfo::POISONED)?, 1)?;
    same(huge.memory.count(fdinfo::PRESENT)?, 2 * FOLIO - 1)?;
    for page in [0, 1, BROKEN + 1, FOLIO - 1] {
        let word = if PLACES.contains(&page) { HOSTS + page } else { 0 };
        same(huge.load(page)?, word)?;
    }
    same(huge.lent()?, 4)?;
    let at = address(BROKEN);
    same(huge.guest.order(Order::Load(at))?, Exit::PageFault(at, Errno::EHWPOISON))?;
    huge.give_up()?;
    for page in [0, 1, BROKEN + 1, FOLIO - 1] {
        huge.unlock(page, 1)?;
    }
    huge.memory.punch(0, FOLIO)?;
    same(huge.load(BROKEN)?, 0).context("a fresh folio")
}

/// Somebody holds another page of it, so that it stays one folio for a while.
pub fn a_page_of_a_held_folio() -> Result<()> {
    let huge = Huge::new(&Device::open()?)?;
    let pin = Pin::take(&huge.mapping, 3)?;
    break_page(&huge, BROKEN)?;
    is_gone(&huge.mapping, BROKEN)?;
    same(load(&huge.memory.map(0, FOLIO)?, (BROKEN + 1) * PAGE)?, Ok(0))?;
    is_gone(&huge.mapping, BROKEN)?;
    others_are_there(&huge)?;
    same(huge.guest.order(Order::Load(address(0)))?, Exit::PageFault(address(0), Errno::EAGAIN))?;
    drop(pin);
    same(huge.guest.run()?, Exit::Write(ANSWER, HOSTS)).context("nobody holds it")?;
    same(huge.memory.count(fdinfo::POISONED)?, 1)?;
    same(huge.lent()?, 1)
}

/// Both lose the page, and both keep the others.
pub fn a_page_of_a_shared_folio() -> Result<()> {
    let device = Device::open()?;
    let huge = Huge::beside(&device, Guest::started(&device, 1, 0)?)?;
    let rights = crate::gunyah::RWX | MAP_FORCE_SHARE;
    huge.guest.vm.bind(address(0), rights, &huge.memory, 0, 2 * FOLIO)?;
    same(huge.load(0)?, HOSTS)?;
    same(huge.memory.count(fdinfo::SHARED)?, FOLIO)?;
    break_page(&huge, BROKEN)?;
    is_told(&huge.guest, address(BROKEN))?;
    is_gone(&huge.mapping, BROKEN)?;
    huge.guest.expect_abort(Order::Load(address(BROKEN)))?;
    others_are_there(&huge)?;
    same(huge.load(FOLIO - 1)?, HOSTS + FOLIO - 1)?;
    write(&huge.mapping, (FOLIO - 1) * PAGE, 9)?;
    same(huge.load(FOLIO - 1)?, 9).context("still shared")?;
    same(huge.memory.count(fdinfo::POISONED)?, 1)
}

/// A guest that has nothing of a folio is unbound from it, whatever broke there.
pub fn a_page_of_another_s_folio() -> Result<()> {
    let device = Device::open()?;
    let huge = Huge::new(&device)?;
    let other = device.vm()?;
    other.bind(RAM, crate::gunyah::RWX, &huge.memory, 0, 2 * FOLIO)?;
    let place = frame(&huge.mapping, BROKEN * PAGE)?.context("the page is nowhere")?;
    huge.load(0)?;
    break_frame(place)?;
    is_told(&huge.guest, address(BROKEN))?;
    other.unbind(RAM, &huge.memory, 0, 2 * FOLIO).context("the other's binding")?;
    same(huge.load(FOLIO - 1)?, HOSTS + FOLIO - 1).context("the rest of it")?;
    drop(other);
    same(huge.load(FOLIO - 1)?, HOSTS + FOLIO - 1).context("when the other has ended")
}

/// What is whole of a lent folio comes home as the guest gives it up, or with its end.
pub fn the_rest_of_a_lent_folio() -> Result<()> {
    for is_killed in [false, true] {
        let huge = Huge::new(&Device::open()?)?;
        let place = frame(&huge.mapping, BROKEN * PAGE)?.context("the page is nowhere")?;
        huge.load(0)?;
        break_frame(place)?;
        is_told(&huge.guest, address(BROKEN))?;
        refused(read(&huge.mapping, 0), Errno::EFAULT).context("the guest's")?;
        if is_killed {
            let Huge { guest, memory, mapping } = huge;
            drop(guest);
            for page in [0, BROKEN - 1, BROKEN + 1, FOLIO - 1] {
                same(read(&mapping, page * PAGE)?, 0).with_context(|| format!("page {page}"))?;
            }
            is_gone(&mapping, BROKEN)?;
            same(memory.count(fdinfo::PRESENT)?, 2 * FOLIO - 1)?;
            same(memory.count(fdinfo::POISONED)?, 1)?;
            continue;
        }
        huge.unlock(0, BROKEN)?;
        refused(read(&huge.mapping, 0), Errno::EFAULT).context("a part is the guest's")?;
        huge.unlock(BROKEN + 1, FOLIO - BROKEN - 1)?;
        others_are_there(&huge)?;
        is_gone(&huge.mapping, BROKEN)?;
        same(huge.load(FOLIO - 1)?, HOSTS + FOLIO - 1).context("lent again")?;
        same(huge.lent()?, 1)?;
        same(huge.memory.count(fdinfo::POISONED)?, 1)?;
    }
    Ok(())
}

/// What the program is told until it has been told of so many pages.
fn all_told(guest: &Guest, count: usize) -> Result<Vec<u64>> {
    let mut told = Vec::new();
    until("the news of broken memory", || {
        match guest.order(Order::Load(RAM))? {
            Exit::PageFault(at, Errno::EHWPOISON) => told.push(at),
            exit => ensure!(matches!(exit, Exit::Write(ANSWER, _)), "{exit:x?}"),
        }
        Ok(told.len() >= count)
    })?;
    guest.ask(Order::Load(RAM)).context("nothing more is told")?;
    told.sort_unstable();
    Ok(told)
}

/// Both are told of: two of one folio, and two folios.
pub fn one_after_the_other() -> Result<()> {
    let huge = Huge::new(&Device::open()?)?;
    // Where a folio is not mapped by one entry (PREEMPT_RT), a page is mapped at a touch.
    let places = [10, 300].map(|page| {
        read(&huge.mapping, page * PAGE)?;
        frame(&huge.mapping, page * PAGE)
    });
    huge.load(0)?;
    for place in places {
        break_frame(place?.context("the page is nowhere")?)?;
    }
    same(all_told(&huge.guest, 2)?, vec![address(10), address(300)])?;
    for page in [10, 300] {
        huge.guest.expect_abort(Order::Load(address(page)))?;
    }
    same(huge.load(11)?, 0)?;

    let guest = at_home()?;
    write(&guest.mapping, OFFSET + PAGE, 1)?;
    let places = [OFFSET, OFFSET + PAGE].map(|offset| frame(&guest.mapping, offset));
    guest.ask(Order::Load(AT))?;
    guest.ask(Order::Load(AT + PAGE))?;
    for place in places {
        break_frame(place?.context("the page is nowhere")?)?;
    }
    same(all_told(&guest, 2)?, vec![AT, AT + PAGE])
}

/// If nobody listens, what is told in the end is that there was more.
pub fn more_than_can_be_told() -> Result<()> {
    const PAGES: u64 = Losses::MAX as u64 + 2;
    let guest = Guest::started(&Device::open()?, 1 + PAGES, 0)?;
    let mut places = Vec::new();
    for page in 1..=PAGES {
        write(&guest.mapping, page * PAGE, page)?;
        places.push(frame(&guest.mapping, page * PAGE)?.context("the page is nowhere")?);
        guest.ask(Order::Load(RAM + page * PAGE))?;
    }
    for &place in &places {
        break_frame(place)?;
    }
    until("all of them", || Ok(guest.memory.count(fdinfo::POISONED)? == PAGES))?;
    let told = all_told(&guest, Losses::MAX + 1)?;
    same(told.last().copied(), Some(MORE))?;
    let pages = &told[..Losses::MAX];
    ensure!(pages.iter().all(|at| (RAM + PAGE..=RAM + PAGES * PAGE).contains(at)), "{pages:x?}");
    for page in 1..=PAGES {
        guest.expect_abort(Order::Load(RAM + page * PAGE))?;
    }
    Ok(())
}

/// Breaks a lent page, and waits until it is known that `count` of the memory's are broken.
fn break_lent(guest: &Guest, place: u64, count: u64) -> Result<()> {
    break_frame(place)?;
    until("the page to be out of use", || Ok(guest.memory.count(fdinfo::POISONED)? == count))?;
    // The VM hears of it next.
    thread::sleep(Duration::from_millis(100));
    Ok(())
}

/// A program that answers its guest's accesses is told with the run that brings an answer,
/// before the guest's next access: also a guest that does nothing else. The answer has
/// arrived.
pub fn is_told_with_the_next_answer() -> Result<()> {
    let guest = at_home()?;
    let pages = [AT, AT + PAGE, AT + 2 * PAGE];
    let mut places = Vec::new();
    for at in pages {
        write(&guest.mapping, at - RAM, at)?;
        places.push(frame(&guest.mapping, at - RAM)?.context("the page is nowhere")?);
        guest.ask(Order::Load(at))?;
    }
    break_lent(&guest, places[0], 1)?;
    let told = |at| Exit::PageFault(at, Errno::EHWPOISON);
    same(guest.run()?, told(pages[0])).context("after a store")?;

    let order = Order::Load(pages[2]);
    for (index, word) in (0..).zip(&order.words()[..2]) {
        same(guest.run()?, Exit::Read(WINDOW + index * 8, 8))?;
        guest.vcpu.answer(*word);
    }
    break_lent(&guest, places[1], 2)?;
    same(guest.run()?, told(pages[1])).context("after a load")?;
    same(order_after(&guest.vcpu, guest.run()?, order)?, Exit::Write(ANSWER, pages[2]))
}
