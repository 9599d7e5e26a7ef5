// SPDX-License-Identifier: MIT OR Apache-2.0

//! What programs advise about mappings: of pages at home and of pages that are
//! lent. None moves a page, or brings one home that a guest keeps.

use anyhow::{Context as _, Result};
use escrow_abi::call::MODIFY_UNLOCK;
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;

use super::huge::FOLIO;
use super::{AT, GUESTS, HELD, HOSTS, OFFSET, at_home, lend, on_a_lent_page};
use crate::access::{frame, read, write};
use crate::guest::Order;
use crate::gunyah::{Device, Exit, Mapping, PAGE, has_huge_pages};
use crate::tests::{refused, same};

/// From Linux 5.14 to 6.1; not all in libc yet.
const MADV_POPULATE_READ: i32 = 22;
pub const MADV_POPULATE_WRITE: i32 = 23;
pub const MADV_COLLAPSE: i32 = 25;

/// Advises about the page.
pub fn madvise(mapping: &Mapping, advice: i32) -> Result<(), Errno> {
    madvise_range(mapping, HELD, 1, advice)
}

/// Advises about some pages of a mapping.
pub fn madvise_range(mapping: &Mapping, page: u64, pages: u64, advice: i32) -> Result<(), Errno> {
    let (start, size) = (mapping.at(page * PAGE), (pages * PAGE) as usize);
    // SAFETY: of a shared mapping to which nothing refers.
    Errno::result(unsafe { libc::madvise(start.cast(), size, advice) }).map(drop)
}

/// The same about a process that is named, itself.
fn process_madvise(mapping: &Mapping, advice: i32) -> Result<(), Errno> {
    let iovec = libc::iovec { iov_base: mapping.at(OFFSET).cast(), iov_len: PAGE as usize };
    // SAFETY: makes a descriptor.
    let process =
        Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) })?;
    // SAFETY: as in `madvise`.
    let result = Errno::result(unsafe {
        libc::syscall(libc::SYS_process_madvise, process, &iovec, 1, advice, 0)
    });
    // SAFETY: opened above.
    unsafe { libc::close(process as i32) };
    result.map(drop)
}

type Answer = Result<(), Errno>;
type Advise = fn(&Mapping, i32) -> Result<(), Errno>;

/// Advice, what is said to it at home, and what of a lent page.
const ALL: &[(&str, Advise, i32, Answer, Answer)] = &[
    ("NORMAL", madvise, libc::MADV_NORMAL, Ok(()), Ok(())),
    ("RANDOM", madvise, libc::MADV_RANDOM, Ok(()), Ok(())),
    ("SEQUENTIAL", madvise, libc::MADV_SEQUENTIAL, Ok(()), Ok(())),
    ("WILLNEED", madvise, libc::MADV_WILLNEED, Ok(()), Ok(())),
    ("DONTNEED", madvise, libc::MADV_DONTNEED, Ok(()), Ok(())),
    ("FREE", madvise, libc::MADV_FREE, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    ("COLD", madvise, libc::MADV_COLD, Ok(()), Ok(())),
    ("PAGEOUT", madvise, libc::MADV_PAGEOUT, Ok(()), Ok(())),
    ("POPULATE_READ", madvise, MADV_POPULATE_READ, Ok(()), Err(Errno::EFAULT)),
    ("POPULATE_WRITE", madvise, MADV_POPULATE_WRITE, Ok(()), Err(Errno::EFAULT)),
    ("COLLAPSE", madvise, MADV_COLLAPSE, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    ("HUGEPAGE", madvise, libc::MADV_HUGEPAGE, Ok(()), Ok(())),
    ("NOHUGEPAGE", madvise, libc::MADV_NOHUGEPAGE, Ok(()), Ok(())),
    ("MERGEABLE", madvise, libc::MADV_MERGEABLE, Ok(()), Ok(())),
    ("UNMERGEABLE", madvise, libc::MADV_UNMERGEABLE, Ok(()), Ok(())),
    ("DODUMP", madvise, libc::MADV_DODUMP, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    ("WIPEONFORK", madvise, libc::MADV_WIPEONFORK, Err(Errno::EINVAL), Err(Errno::EINVAL)),
    ("process COLD", process_madvise, libc::MADV_COLD, Ok(()), Ok(())),
    ("process PAGEOUT", process_madvise, libc::MADV_PAGEOUT, Ok(()), Ok(())),
    ("process WILLNEED", process_madvise, libc::MADV_WILLNEED, Ok(()), Ok(())),
    ("process COLLAPSE", process_madvise, MADV_COLLAPSE, Err(Errno::EINVAL), Err(Errno::EINVAL)),
];

/// Each at home, where the page stays where it is and leaves when it is asked
/// for, and each on a lent page.
pub fn every_advice() -> Result<()> {
    let guest = at_home()?;
    let place = frame(&guest.mapping, OFFSET)?;
    // A kernel without huge pages (PREEMPT_RT) knows no advice about them.
    let has_huge_pages = has_huge_pages()?;
    for &(name, advise, advice, at_home, on_lent) in ALL {
        let (at_home, on_lent) = match advice {
            libc::MADV_HUGEPAGE | libc::MADV_NOHUGEPAGE if !has_huge_pages => {
                (Err(Errno::EINVAL), Err(Errno::EINVAL))
            }
            _ => (at_home, on_lent),
        };
        let story = || -> Result<()> {
            write(&guest.mapping, OFFSET, HOSTS)?;
            same(advise(&guest.mapping, advice), at_home).context("at home")?;
            same(read(&guest.mapping, OFFSET)?, HOSTS)?;
            same(frame(&guest.mapping, OFFSET)?, place).context("the page's place")?;
            same(guest.ask(Order::Load(AT))?, HOSTS).context("the lend")?;
            on_a_lent_page(&guest, || {
                same(advise(&guest.mapping, advice), on_lent)?;
                refused(read(&guest.mapping, OFFSET), Errno::EFAULT)
            })
        };
        story().with_context(|| format!("MADV_{name}"))?;
    }
    Ok(())
}

/// Linux splits large folios that it reclaims a part of. It cannot split these, and a kernel
/// without huge pages cannot split any: the advice ends all the same, and the contents stay.
pub fn of_a_part_of_a_block() -> Result<()> {
    let memory = Device::open()?.huge_memory_if_any(FOLIO)?;
    let mapping = memory.map(0, FOLIO)?;
    for page in 0..FOLIO {
        write(&mapping, page * PAGE, page)?;
    }
    for advice in [libc::MADV_COLD, libc::MADV_PAGEOUT] {
        madvise_range(&mapping, 50, 100, advice)?;
    }
    for page in 0..FOLIO {
        same(read(&mapping, page * PAGE)?, page)?;
    }
    same(memory.count(fdinfo::PRESENT)?, FOLIO)
}

/// mlock and its kin: the mapping is exempt, so no batch of the kernel's keeps
/// a reference.
pub fn locks() -> Result<()> {
    let guest = at_home()?;
    let start = guest.mapping.at(OFFSET).cast();
    // SAFETY: these change no contents.
    let lock = || Errno::result(unsafe { libc::mlock(start, PAGE as usize) }).map(drop);
    let on_fault = || {
        // SAFETY: as above.
        Errno::result(unsafe { libc::mlock2(start, PAGE as usize, libc::MLOCK_ONFAULT) }).map(drop)
    };
    // SAFETY: as above.
    let unlock = || Errno::result(unsafe { libc::munlock(start, PAGE as usize) }).map(drop);
    // SAFETY: as above.
    let all = |flags| Errno::result(unsafe { libc::mlockall(flags) }).map(drop);
    for round in 0..20 {
        lock()?;
        on_fault()?;
        if round % 2 == 0 {
            unlock()?;
        }
        all(libc::MCL_CURRENT | libc::MCL_FUTURE)?;
        // Not one try is refused.
        let word = read(&guest.mapping, OFFSET)?;
        same(guest.ask(Order::Load(AT))?, word)?;
        on_a_lent_page(&guest, || {
            refused(lock(), Errno::ENOMEM).context("mlock")?;
            refused(on_fault(), Errno::ENOMEM).context("mlock2")?;
            Ok(unlock()?)
        })?;
    }
    Ok(())
}

/// MADV_REMOVE makes a hole, and a hole is not made over what a guest keeps.
pub fn removal_is_a_hole() -> Result<()> {
    let guest = at_home()?;
    madvise(&guest.mapping, libc::MADV_REMOVE)?;
    same(read(&guest.mapping, OFFSET)?, 0)?;
    lend(&guest)?;
    refused(madvise(&guest.mapping, libc::MADV_REMOVE), Errno::EBUSY)?;
    same(guest.ask(Order::Load(AT))?, GUESTS)?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    madvise(&guest.mapping, libc::MADV_REMOVE).context("of what the guest has given up")?;
    same(guest.order(Order::Load(AT))?, Exit::Write(crate::guest::ANSWER, 0))
}
