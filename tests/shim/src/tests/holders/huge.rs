// SPDX-License-Identifier: MIT OR Apache-2.0

//! Folios of 2 MiB: one page that is held keeps all 512, and all 512 come and
//! go together. A large folio counts pins one by one (`_pincount` tells them
//! from references), not by 1024.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::call::MODIFY_UNLOCK;
use escrow_vmcore::uapi::{RESUME_FAULT, fdinfo};
use nix::errno::Errno;

use super::advice::{MADV_COLLAPSE, madvise_range};
use super::poison::{break_frame, is_told};
use super::uring::Registered;
use super::{Holder, refusal};
use crate::access::{Pin, frame, read, write};
use crate::guest::{ANSWER, Guest, Order, RAM};
use crate::gunyah::{Device, Exit, Mapping, Memory, PAGE, RWX};
use crate::tests::{refused, same};

/// Pages in a folio.
pub const FOLIO: u64 = 512;
/// Where the guest has the memory: aligned as its folios are.
const BASE: u64 = RAM + 0x20_0000;
/// Pages that are looked at: at the edges of the folio, and between.
pub const PLACES: [u64; 4] = [0, 1, 255, FOLIO - 1];
/// What the host has written to a page, by its number.
pub const HOSTS: u64 = 0x4000_0000_0000_0001;

/// A guest with memory of two large folios, beside the one with its program.
pub struct Huge {
    /// The guest.
    pub guest: Guest,
    /// The memory.
    pub memory: Memory,
    /// All of it, mapped.
    pub mapping: Mapping,
}

/// Where the guest has a page of the memory.
pub fn address(page: u64) -> u64 {
    BASE + page * PAGE
}

impl Huge {
    /// Both folios at home, with words in them.
    pub fn new(device: &Device) -> Result<Huge> {
        let guest = Guest::started(device, 1, 0)?;
        let huge = Huge::beside(device, guest)?;
        huge.guest.vm.bind(BASE, RWX, &huge.memory, 0, 2 * FOLIO)?;
        Ok(huge)
    }

    /// The same, not bound.
    pub fn beside(device: &Device, guest: Guest) -> Result<Huge> {
        let memory = device.huge_memory(2 * FOLIO)?;
        let mapping = memory.map(0, 2 * FOLIO)?;
        let huge = Huge { guest, memory, mapping };
        for first in [0, FOLIO] {
            huge.write(first)?;
            // Without a free block there are small folios, and nothing here
            // would be a test.
            same(huge.memory.count(fdinfo::PRESENT)?, first + FOLIO).context("a large folio")?;
        }
        for page in PLACES.into_iter().chain(PLACES.map(|page| FOLIO + page)) {
            huge.write(page)?;
        }
        Ok(huge)
    }

    fn write(&self, page: u64) -> Result<()> {
        Ok(write(&self.mapping, page * PAGE, HOSTS + page)?)
    }

    pub fn lent(&self) -> Result<u64> {
        self.memory.count(fdinfo::LENT)
    }

    /// The host's words are in the places of the first folio.
    fn is_home(&self) -> Result<()> {
        for page in PLACES {
            same(read(&self.mapping, page * PAGE)?, HOSTS + page)?;
        }
        Ok(())
    }

    /// None of the first folio is in reach.
    fn is_away(&self) -> Result<()> {
        for page in PLACES {
            refused(read(&self.mapping, page * PAGE), Errno::EFAULT)
                .with_context(|| format!("page {page}"))?;
        }
        Ok(())
    }

    /// The guest's touch of a page is refused, for so many references to its
    /// folio. The guest is left there.
    fn is_held(&self, page: u64, references: u64) -> Result<()> {
        let refused_page = Exit::PageFault(address(page), Errno::EAGAIN);
        let lent = self.lent()?;
        same(self.guest.order(Order::Load(address(page)))?, refused_page)?;
        same(self.memory.refusal()?, refusal(page / FOLIO * FOLIO, references))?;
        same(self.lent()?, lent)?;
        self.is_home()
    }

    /// The guest leaves the page at which it was left.
    pub fn give_up(&self) -> Result<()> {
        self.guest.vcpu.refuse_page(RESUME_FAULT);
        let exit = self.guest.run()?;
        self.guest.expect_abort_now(exit)
    }

    pub fn load(&self, page: u64) -> Result<u64> {
        self.guest.ask(Order::Load(address(page)))
    }

    pub fn unlock(&self, page: u64, pages: u64) -> Result<()> {
        let order = Order::UnlockRun(address(page), pages * PAGE, MODIFY_UNLOCK);
        same(self.guest.ask(order)?, 0).context("unlocking")
    }
}

/// Any one of them, held in any way, and touched anywhere.
pub fn one_held_page_keeps_all() -> Result<()> {
    let device = Device::open()?;
    let huge = Huge::new(&device)?;
    for page in PLACES {
        let pin = Pin::take(&huge.mapping, page)?;
        for touched in PLACES {
            huge.is_held(touched, 1)?;
            huge.give_up()?;
        }
        let ring = Registered::take(&huge.mapping, FOLIO - 1 - page)?;
        huge.is_held(page, 2).context("by a ring as well")?;
        drop(pin);
        same(huge.guest.run()?, Exit::PageFault(address(page), Errno::EAGAIN))?;
        same(huge.memory.refusal()?, refusal(0, 1))?;
        ring.release()?;
        huge.give_up()?;
    }

    let pins = [Pin::take(&huge.mapping, 3)?, Pin::take(&huge.mapping, 4)?];
    huge.is_held(0, 2)?;
    huge.give_up()?;
    // The neighbour comes, all of it at one touch.
    same(huge.load(FOLIO + 255)?, HOSTS + FOLIO + 255)?;
    same(huge.lent()?, FOLIO)?;
    refused(read(&huge.mapping, FOLIO * PAGE), Errno::EFAULT)?;
    drop(pins);
    same(huge.load(1)?, HOSTS + 1)?;
    same(huge.lent()?, 2 * FOLIO)?;
    huge.is_away()?;
    for page in PLACES {
        refused(Pin::take(&huge.mapping, page), Errno::EFAULT)?;
        same(huge.load(page)?, HOSTS + page)?;
    }
    Ok(())
}

/// A folio goes home when the guest has given up the last of its pages.
pub fn a_part_given_up_stays_away() -> Result<()> {
    let huge = Huge::new(&Device::open()?)?;
    huge.load(0)?;
    same(huge.lent()?, FOLIO)?;
    for (page, pages) in [(255, 1), (0, 1), (1, 254), (256, 255)] {
        huge.unlock(page, pages)?;
        huge.is_away()?;
        refused(huge.memory.punch(page, 1), Errno::EBUSY).context("a hole there")?;
        refused(huge.memory.punch(0, FOLIO), Errno::EBUSY).context("a hole of all")?;
        refused(huge.memory.resize(page * PAGE), Errno::EBUSY).context("truncation")?;
        refused(huge.guest.vm.unbind(BASE, &huge.memory, 0, FOLIO), Errno::EBUSY)
            .context("UNMAP")?;
        same(huge.lent()?, FOLIO)?;
        for page in PLACES {
            same(huge.load(page)?, HOSTS + page).context("what the guest has")?;
        }
    }
    huge.unlock(FOLIO - 1, 1)?;
    huge.is_home()?;
    same(huge.lent()?, 0)?;
    same(huge.load(255)?, HOSTS + 255).context("a second time")?;
    same(huge.lent()?, FOLIO)
}

/// A hole in a part of a folio leaves the rest of it, at home; in a folio that
/// is lent there is none.
pub fn a_hole_in_a_part() -> Result<()> {
    let huge = Huge::new(&Device::open()?)?;
    huge.write(100)?;
    huge.memory.punch(100, 155)?;
    huge.is_home()?;
    same(read(&huge.mapping, 100 * PAGE)?, 0).context("in the hole")?;
    same(huge.load(100)?, 0)?;
    for page in PLACES {
        same(huge.load(page)?, HOSTS + page)?;
    }
    for (page, pages) in [(0, 1), (100, 155), (511, 1), (511, 2), (0, FOLIO)] {
        refused(huge.memory.punch(page, pages), Errno::EBUSY)?;
    }
    for page in PLACES {
        same(huge.load(page)?, HOSTS + page).context("after holes that were refused")?;
    }
    // Over the edge between one that is lent and one that is at home.
    same(read(&huge.mapping, FOLIO * PAGE)?, HOSTS + FOLIO).context("the folio at home")?;
    huge.unlock(0, FOLIO)?;
    huge.memory.punch(511, 2)?;
    same([511, 512].map(|page| read(&huge.mapping, page * PAGE)), [Ok(0), Ok(0)])?;
    same(read(&huge.mapping, 513 * PAGE)?, HOSTS + 513)?;
    same(read(&huge.mapping, 255 * PAGE)?, HOSTS + 255)
}

/// The memory ends within a folio: what is before the end stays, if nobody
/// holds the folio and no guest has it.
pub fn truncation_to_the_middle() -> Result<()> {
    let huge = Huge::new(&Device::open()?)?;
    let middle = 200 * PAGE;
    let pin = Pin::take(&huge.mapping, 300)?;
    refused(huge.memory.resize(middle), Errno::EBUSY).context("held")?;
    same(nix::sys::stat::fstat(&huge.memory)?.st_size, (2 * FOLIO * PAGE) as i64)?;
    huge.is_home()?;
    drop(pin);
    same(huge.load(0)?, HOSTS)?;
    refused(huge.memory.resize(middle), Errno::EBUSY).context("lent")?;
    same(huge.load(255)?, HOSTS + 255)?;
    huge.unlock(0, FOLIO)?;

    huge.memory.resize(middle)?;
    for page in PLACES {
        match read(&huge.mapping, page * PAGE) {
            Ok(word) => same((page < 200, word), (true, HOSTS + page))?,
            Err(error) => same((page < 200, error), (false, Errno::EFAULT))?,
        }
    }
    same(huge.load(1)?, HOSTS + 1)?;
    ensure!(huge.lent()? < FOLIO, "what is beyond the end is lent");
    let at = address(255);
    same(huge.guest.order(Order::Load(at))?, Exit::PageFault(at, Errno::EINVAL))?;
    huge.memory.resize(2 * FOLIO * PAGE)?;
    same(huge.guest.run()?, Exit::Write(ANSWER, 0)).context("grown again")
}

/// Where the binding and the folio do not go together, it is lent page by
/// page; to be broken up for that, nobody may hold it.
pub fn broken_up_for_its_binding() -> Result<()> {
    let device = Device::open()?;
    let guest = Guest::started(&device, 1, 0)?;
    let huge = Huge::beside(&device, guest)?;
    // One page off.
    huge.guest.vm.bind(BASE + PAGE, RWX, &huge.memory, 0, 2 * FOLIO)?;
    let pin = Pin::take(&huge.mapping, 300)?;
    let at = address(256);
    let refused_page = Exit::PageFault(at, Errno::EAGAIN);
    same(huge.guest.order(Order::Load(at))?, refused_page)?;
    same(huge.memory.refusal()?, refusal(0, 1))?;
    huge.is_home()?;
    drop(pin);
    same(huge.guest.run()?, Exit::Write(ANSWER, HOSTS + 255))?;
    same(huge.lent()?, 1)?;
    refused(read(&huge.mapping, 255 * PAGE), Errno::EFAULT)?;
    same(read(&huge.mapping, PAGE)?, HOSTS + 1).context("another page of it")?;
    // Its pages are now held one by one.
    let _pin = Pin::take(&huge.mapping, 0)?;
    same(huge.guest.ask(Order::Load(address(2)))?, HOSTS + 1)?;
    let at = address(1);
    same(huge.guest.order(Order::Load(at))?, Exit::PageFault(at, Errno::EAGAIN))?;
    same(huge.memory.refusal()?, refusal(0, 1))
}

/// One broken page: the guest has it refused, and gets all others.
pub fn one_broken_page_keeps_no_other() -> Result<()> {
    let huge = Huge::new(&Device::open()?)?;
    let place = frame(&huge.mapping, 255 * PAGE)?.context("the page is nowhere")?;
    break_frame(place)?;
    let refused_page = Exit::PageFault(address(255), Errno::EHWPOISON);
    same(huge.guest.order(Order::Load(address(255)))?, refused_page)?;
    huge.give_up()?;
    same(huge.lent()?, 0)?;
    for page in [0, 1, FOLIO - 1] {
        same(read(&huge.mapping, page * PAGE)?, HOSTS + page)?;
        same(huge.load(page)?, HOSTS + page)?;
    }
    same(huge.lent()?, 3)?;
    same(huge.load(FOLIO)?, HOSTS + FOLIO).context("the neighbour")?;
    for page in [0, 1, FOLIO - 1] {
        huge.unlock(page, 1)?;
    }
    huge.memory.punch(0, FOLIO)?;
    same(huge.load(255)?, 0).context("a fresh folio")
}

/// A page of a lent folio breaks: the guest keeps the others, and the folio
/// stays where it is until the guest's end.
pub fn one_page_breaks_while_lent() -> Result<()> {
    let huge = Huge::new(&Device::open()?)?;
    let place = frame(&huge.mapping, 255 * PAGE)?.context("the page is nowhere")?;
    huge.load(0)?;
    same(huge.lent()?, FOLIO)?;
    break_frame(place)?;
    is_told(&huge.guest, address(255))?;
    huge.guest.expect_abort(Order::Load(address(255)))?;
    for page in [0, 1, FOLIO - 1] {
        same(huge.load(page)?, HOSTS + page)?;
    }
    for page in PLACES {
        ensure!(read(&huge.mapping, page * PAGE).is_err(), "page {page} is read");
    }
    refused(huge.memory.punch(0, FOLIO), Errno::EBUSY).context("a hole")?;
    same(huge.load(FOLIO)?, HOSTS + FOLIO).context("the neighbour")?;
    let Huge { guest, memory, .. } = huge;
    drop(guest);
    same(memory.count(fdinfo::LENT)?, 0).context("the guest is dead")?;
    same(memory.count(fdinfo::POISONED)?, 1).context("what is whole is home")
}

/// The kernel is asked to split large folios, to make some, to move and to
/// drop them: they stay, and are lent as wholes.
pub fn stays_whole() -> Result<()> {
    const SPLIT: &str = "/sys/kernel/debug/split_huge_pages";
    let huge = Huge::new(&Device::open()?)?;
    let places = PLACES.map(|page| frame(&huge.mapping, page * PAGE));
    let start = huge.mapping.at(0) as u64;
    let end = start + 2 * FOLIO * PAGE;
    let disturb = || -> Result<()> {
        // Whether it does anything is told in the log alone.
        let _ = fs::write(SPLIT, format!("{},{start:#x},{end:#x}", std::process::id()));
        let _ = fs::write(SPLIT, "1");
        fs::write("/proc/sys/vm/compact_memory", "1")?;
        for (pages, advice) in [
            (2 * FOLIO, libc::MADV_COLD),
            (100, libc::MADV_COLD),
            (100, libc::MADV_PAGEOUT),
            (2 * FOLIO, libc::MADV_PAGEOUT),
            (2 * FOLIO, MADV_COLLAPSE),
            (100, libc::MADV_DONTNEED),
        ] {
            let _ = madvise_range(&huge.mapping, 50, pages.min(2 * FOLIO - 50), advice);
        }
        Ok(())
    };
    disturb()?;
    huge.is_home()?;
    for (page, place) in PLACES.into_iter().zip(places) {
        same(frame(&huge.mapping, page * PAGE)?, place?).context("where it is")?;
    }
    same(huge.load(255)?, HOSTS + 255)?;
    same(huge.lent()?, FOLIO).context("all at one touch")?;
    disturb()?;
    huge.is_away()?;
    for page in PLACES {
        same(huge.load(page)?, HOSTS + page)?;
    }
    Ok(())
}

/// The device tree's range is one folio, which comes as a whole or not at all.
pub fn a_start_brings_one() -> Result<()> {
    let device = Device::open()?;
    let guest = Guest::new(&device, 1, 0)?;
    let huge = Huge::beside(&device, guest)?;
    huge.guest.vm.bind(BASE, RWX, &huge.memory, 0, 2 * FOLIO)?;
    // The first instruction's page comes when the guest touches it.
    huge.guest.vm.set_dtb(BASE, FOLIO * PAGE)?;
    for page in PLACES {
        let pin = Pin::take(&huge.mapping, page)?;
        unmap(&huge)?;
        refused(huge.guest.vm.start(), Errno::EAGAIN)?;
        same(huge.memory.refusal()?, refusal(0, 1))?;
        same(huge.lent()?, 0)?;
        huge.is_home()?;
        drop(pin);
    }
    unmap(&huge)?;
    huge.guest.vm.start()?;
    same(huge.lent()?, FOLIO)?;
    huge.is_away()?;
    for page in PLACES {
        same(huge.load(page)?, HOSTS + page)?;
    }
    Ok(())
}

/// The range must not be mapped when the VM starts.
fn unmap(huge: &Huge) -> Result<()> {
    Ok(madvise_range(&huge.mapping, 0, 2 * FOLIO, libc::MADV_DONTNEED)?)
}
