// SPDX-License-Identifier: MIT OR Apache-2.0

//! Safe references of users in the kernel: they hinder no lend; an access
//! does, and its holder is told, waited for a little, and named.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use escrow_abi::call::MODIFY_UNLOCK;
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;

use super::same;
use crate::access::{Pin, read, write};
use crate::facts::{fdinfo, fdinfo_all};
use crate::guest::{ANSWER, Guest, Order, RAM};
use crate::gunyah::{Device, Exit, PAGE, RWX};
use crate::holder::{Holder, Manner, NAME};

/// The pages that are held, and where the guest has the first.
const HELD: u64 = 8;
const PAGES: u64 = 2;
const AT: u64 = RAM + HELD * PAGE;
const HOSTS: u64 = 0x1122_3344_5566_7788;
const GUESTS: u64 = 0x99aa_bbcc_ddee_ff00;
const REFUSED: Exit = Exit::PageFault(AT, Errno::EAGAIN);
/// What the shim waits for who can be told.
const LET_GO: Duration = Duration::from_millis(200);

fn held(manner: Manner) -> Result<(Guest, Holder)> {
    let guest = Guest::started(&Device::open()?, 16, 0)?;
    write(&guest.mapping, HELD * PAGE, HOSTS)?;
    let holder = Holder::open()?;
    holder.take(&guest.memory, HELD, PAGES, manner)?;
    Ok((guest, holder))
}

fn refused_by(guest: &Guest) -> Result<String> {
    use std::os::fd::AsFd as _;
    fdinfo(guest.memory.as_fd(), fdinfo::REFUSED_BY)
}

/// The page is with the guest, and comes home with what it wrote.
fn goes_and_comes(guest: &Guest) -> Result<()> {
    same(guest.ask(Order::Store(AT, GUESTS))?, 0)?;
    same(read(&guest.mapping, HELD * PAGE), Err(Errno::EFAULT))?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    same(read(&guest.mapping, HELD * PAGE)?, GUESTS)
}

/// A reference stays while the page is away, and reaches it only at home.
pub fn hinder_no_lend() -> Result<()> {
    use std::os::fd::AsFd as _;
    let (guest, holder) = held(Manner::Ends)?;
    let line = format!("{NAME} offset=0x8000 size=0x2000 references=2 accesses=0");
    same(fdinfo_all(guest.memory.as_fd(), fdinfo::HOLDER)?, vec![line])?;
    same(holder.read(HELD)?, HOSTS).context("at home")?;
    same(guest.ask(Order::Load(AT))?, HOSTS).context("lent with a safe reference")?;
    same(holder.told()?, 0).context("nobody was in the way")?;
    same(holder.read(HELD), Err(Errno::EFAULT)).context("lent")?;
    same(holder.begin(HELD, PAGES), Err(Errno::EFAULT)).context("one of two is lent")?;
    same(holder.read(HELD + 1)?, 0).context("the other one")?;

    // It comes home for who asks, as for a page fault.
    same(guest.ask(Order::Store(AT, GUESTS))?, 0)?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    same(holder.read(HELD)?, GUESTS).context("given up by the guest")?;
    goes_and_comes(&guest)?;

    // Given up, and taken anew, while it is away.
    same(guest.ask(Order::Store(AT, GUESTS))?, 0)?;
    holder.release()?;
    same(fdinfo_all(guest.memory.as_fd(), fdinfo::HOLDER)?, Vec::<String>::new())?;
    holder.take(&guest.memory, HELD, PAGES, Manner::Ends)?;
    holder.release()?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    same(read(&guest.mapping, HELD * PAGE)?, GUESTS)?;
    // Each reference was counted, and none is left: else this would fail.
    goes_and_comes(&guest)
}

/// A pin beside a safe reference is an excess like any other.
pub fn cover_for_no_pin() -> Result<()> {
    let (guest, _holder) = held(Manner::Ends)?;
    let pin = Pin::take(&guest.mapping, HELD)?;
    same(guest.order(Order::Load(AT))?, REFUSED)?;
    same(guest.memory.refusal()?, "offset=0x8000 excess=1 accessible=0".to_owned())?;
    same(refused_by(&guest)?, "a pin".to_owned())?;
    drop(pin);
    same(guest.run()?, Exit::Write(ANSWER, HOSTS))
}

/// Who accesses the page is told, and the same run goes on when it has ended.
pub fn an_access_ends_when_told() -> Result<()> {
    let (guest, holder) = held(Manner::Ends)?;
    holder.begin(HELD, PAGES)?;
    same(guest.ask(Order::Load(AT))?, HOSTS)?;
    same(holder.told()?, 1)?;
    same(guest.memory.refusal()?, "none".to_owned())
}

/// Who keeps it is waited for, not for long, and named; also who is asleep
/// for long when it is told.
pub fn who_keeps_is_named() -> Result<()> {
    // An emulated machine may be slow once, not always.
    const TRIES: u32 = 5;
    let mut late = 0;
    let mut manners = vec![Manner::Keeps, Manner::Sleeps, Manner::Static];
    while let Some(manner) = manners.pop() {
        let (guest, holder) = held(manner)?;
        holder.begin(HELD, 1)?;
        let begin = Instant::now();
        same(guest.order(Order::Load(AT))?, REFUSED).with_context(|| format!("{manner:?}"))?;
        let waited = begin.elapsed();
        let most = if manner == Manner::Static {
            same(holder.told()?, 0)?;
            LET_GO / 2
        } else {
            ensure!(waited >= LET_GO, "{waited:?} only");
            same(holder.told()?, 1)?;
            5 * LET_GO
        };
        if waited >= most {
            late += 1;
            ensure!(late < TRIES, "{waited:?} for {manner:?}, {late} times too long");
            manners.push(manner);
        }
        same(guest.memory.refusal()?, "offset=0x8000 excess=0 accessible=1".to_owned())?;
        same(refused_by(&guest)?, NAME.to_owned())?;
        same(read(&guest.mapping, HELD * PAGE)?, HOSTS).context("nothing has changed")?;
        holder.release()?;
        same(guest.run()?, Exit::Write(ANSWER, HOSTS)).with_context(|| format!("{manner:?}"))?;
    }
    Ok(())
}

/// The callback itself releases the reference; the program does it again, and
/// ends accesses that it has not begun.
pub fn let_go_twice() -> Result<()> {
    let (guest, holder) = held(Manner::Releases)?;
    holder.begin(HELD, PAGES)?;
    same(guest.ask(Order::Load(AT))?, HOSTS)?;
    same(holder.told()?, 1)?;
    holder.release()?;
    holder.release()?;
    holder.end(HELD, PAGES)?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    same(read(&guest.mapping, HELD * PAGE)?, HOSTS)?;
    holder.take(&guest.memory, HELD, PAGES, Manner::Keeps)?;
    same(holder.take(&guest.memory, HELD, PAGES, Manner::Keeps), Err(Errno::EBUSY))?;
    holder.end(HELD, PAGES)?;
    goes_and_comes(&guest).context("no access is counted that was not there")?;
    holder.begin(HELD, PAGES)?;
    holder.end(HELD, PAGES)?;
    holder.end(HELD, PAGES)?;
    goes_and_comes(&guest)
}

/// Who has been told begins no other access, and has the page no more.
pub fn no_way_back_once_told() -> Result<()> {
    let (guest, holder) = held(Manner::Returns)?;
    holder.begin(HELD, PAGES)?;
    same(guest.ask(Order::Load(AT))?, HOSTS)?;
    holder.did_not_return()
}

/// What somebody counts on is neither a hole nor cut off.
pub fn hold_off_holes() -> Result<()> {
    let (guest, holder) = held(Manner::Ends)?;
    same(guest.memory.punch(HELD + 1, 1), Err(Errno::EBUSY))?;
    same(guest.memory.resize((HELD + 1) * PAGE), Err(Errno::EBUSY))?;
    same(read(&guest.mapping, HELD * PAGE)?, HOSTS)?;
    guest.memory.punch(HELD - 1, 1)?;
    holder.release()?;
    guest.memory.punch(HELD, PAGES)?;
    same(guest.ask(Order::Load(AT))?, 0)
}

/// A block goes as one with a reference to a part of it; it is not made into
/// pages for a binding that it does not fit.
pub fn to_a_part_of_a_block() -> Result<()> {
    const BLOCK: u64 = 512;
    let device = Device::open()?;
    let guest = Guest::started(&device, 1, 0)?;
    let memory = device.huge_memory(BLOCK)?;
    let mapping = memory.map(0, BLOCK)?;
    write(&mapping, HELD * PAGE, HOSTS)?;
    same(memory.count(fdinfo::PRESENT)?, BLOCK).context("a large folio")?;
    let holder = Holder::open()?;
    holder.take(&memory, HELD, PAGES, Manner::Keeps)?;
    same(holder.read(HELD)?, HOSTS)?;

    let base = RAM + 0x20_0000;
    guest.vm.bind(base, RWX, &memory, 0, BLOCK)?;
    same(guest.ask(Order::Load(base + HELD * PAGE))?, HOSTS)?;
    same(memory.count(fdinfo::LENT)?, BLOCK).context("the whole block")?;
    same(holder.read(HELD), Err(Errno::EFAULT))?;
    same(guest.ask(Order::UnlockRun(base, BLOCK * PAGE, MODIFY_UNLOCK))?, 0)?;
    same(holder.read(HELD)?, HOSTS)?;
    guest.vm.unbind(base, &memory, 0, BLOCK)?;

    let odd = base + PAGE;
    guest.vm.bind(odd, RWX, &memory, 0, BLOCK)?;
    let at = odd + HELD * PAGE;
    same(guest.order(Order::Load(at))?, Exit::PageFault(at, Errno::EAGAIN))?;
    {
        use std::os::fd::AsFd as _;
        same(fdinfo(memory.as_fd(), fdinfo::REFUSED_BY)?, NAME.to_owned())?;
    }
    holder.release()?;
    same(guest.run()?, Exit::Write(ANSWER, HOSTS))
}

/// The holder keeps the memory when all its files are closed.
pub fn outlive_the_memory_s_files() -> Result<()> {
    let device = Device::open()?;
    let holder = Holder::open()?;
    {
        let memory = device.memory(2)?;
        write(&memory.map(0, 2)?, 0, HOSTS)?;
        holder.take(&memory, 0, 2, Manner::Ends)?;
    }
    same(holder.read(0)?, HOSTS)?;
    holder.release().context("the memory goes with the last reference")
}

/// What is no memory, and what is not in it.
pub fn arguments_are_checked() -> Result<()> {
    let device = Device::open()?;
    let (memory, holder) = (device.memory(4)?, Holder::open()?);
    same(holder.take(&device, 0, 1, Manner::Ends), Err(Errno::EBADF))?;
    for (offset, size) in [(0, 0), (1, PAGE), (0, PAGE + 1), (0, 5 * PAGE), (4 * PAGE, PAGE)] {
        let taken = holder.take_bytes(&memory, offset, size, Manner::Ends);
        same(taken, Err(Errno::EINVAL)).with_context(|| format!("{offset:#x} {size:#x}"))?;
    }
    let wraps = holder.take_bytes(&memory, 0u64.wrapping_sub(PAGE), 2 * PAGE, Manner::Ends);
    same(wraps, Err(Errno::EINVAL))?;
    same(holder.begin(0, 1), Err(Errno::EINVAL)).context("without a reference")?;
    holder.take(&memory, 1, 2, Manner::Ends)?;
    for (page, pages) in [(0, 1), (2, 2), (1, 0), (3, 1)] {
        same(holder.begin(page, pages), Err(Errno::EINVAL))
            .with_context(|| format!("pages {page} {pages}"))?;
    }
    holder.begin(1, 2)?;
    holder.begin(2, 1).context("accesses nest")?;
    holder.end(2, 1)?;
    Ok(holder.end(1, 2)?)
}
