// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a program's own instructions find: SIGBUS, with the address.

use std::fs::File;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::{BLOCK_SIZE, ORDER_BLOCK};
use escrow_shim_tests::runner::same;
use nix::sys::signal::Signal;

use super::{in_child, killed_by, middle_home, middle_lent};
use crate::access::{Fault, LDADD, LDR, PLAIN, PRFM, STR, STRB, ZVA, access, call};
use crate::borrower::Borrower;
use crate::device::Liar;
use crate::region::{HUGE, PAGE, Region, load, store};

/// All accesses to one page.
fn all_fault(page: usize) -> Result<()> {
    for &one in PLAIN {
        for offset in [0, 0x40, 0xf80] {
            let seen = access(one, page + offset);
            same(seen, Some(Fault::data(page + offset))).context(one.name)?;
        }
    }
    if has_lse() {
        let seen = access(LDADD, page + 8);
        same(seen, Some(Fault::data(page + 8))).context(LDADD.name)?;
    }
    // The last byte.
    same(access(STRB, page + PAGE - 1), Some(Fault::data(page + PAGE - 1)))?;
    // A hint stays one.
    same(access(PRFM, page), None).context(PRFM.name)
}

/// All accesses to one page.
fn none_faults(page: usize) -> Result<()> {
    for &one in PLAIN {
        same(access(one, page + 0x40), None).context(one.name)?;
    }
    Ok(())
}

fn has_lse() -> bool {
    // SAFETY: reads what the kernel told this process at its start.
    unsafe { libc::getauxval(libc::AT_HWCAP) & libc::HWCAP_ATOMICS != 0 }
}

/// Memory of the process alone.
pub fn loads_and_stores_of_anonymous_memory() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::private(3)?);
    none_faults(region.page(1))?;
    region.fill();
    let (borrower, lent) = middle_lent(&liar, &region)?;
    all_fault(lent)?;
    // The page is still there as far as Linux knows: it is the same fault the
    // second time.
    all_fault(lent)?;
    same(access(ZVA, region.page(2)), None)?;
    region.fill_page(2);
    middle_home(borrower, &region)?;
    none_faults(lent)
}

/// A block that is one folio to Linux, and one record to EL2.
pub fn loads_and_stores_of_a_huge_page() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::huge()?);
    let frame = liar.hold(region.page(0))?.frame;
    ensure!(frame.is_multiple_of(BLOCK_SIZE), "the kernel gave no huge page");
    same(liar.hold(region.page(HUGE - 1))?.frame, frame + BLOCK_SIZE - PAGE as u64)?;
    let mut borrower = Borrower::new(&liar)?;
    borrower.lend_folio(frame, ORDER_BLOCK)?;
    for page in [0, 1, 300, HUGE - 1] {
        all_fault(region.page(page))?;
    }
    borrower.home()?;
    ensure!((0..HUGE).all(|page| region.is_zero(page)), "it has come home with something in it");
    none_faults(region.page(300))
}

/// The page cache's, through two mappings and from two processes.
pub fn loads_and_stores_of_a_file() -> Result<()> {
    let path = "/tmp/lent";
    let file = File::options().read(true).write(true).create_new(true).open(path);
    let file = file.with_context(|| format!("cannot make {path}"))?;
    std::fs::remove_file(path)?;
    file.set_len(3 * PAGE as u64)?;
    let (liar, region, other) = (Liar::open()?, Region::file(&file, 3)?, Region::file(&file, 3)?);
    region.fill();
    ensure!(other.is_filled(1), "two mappings of one file differ");
    let (borrower, lent) = middle_lent(&liar, &region)?;
    all_fault(lent)?;
    all_fault(other.page(1))?;
    let child = in_child(|| all_fault(other.page(1)))?;
    ensure!(matches!(child, nix::sys::wait::WaitStatus::Exited(_, 0)), "{child:?}");
    middle_home(borrower, &region)
}

/// Accesses of which a part is in reach.
pub fn accesses_over_the_edge() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::private(3)?);
    let (borrower, lent) = middle_lent(&liar, &region)?;
    for at in [lent - 4, lent + PAGE - 4] {
        for one in [LDR, STR] {
            let Some(fault) = access(one, at) else {
                anyhow::bail!("{} at {at:#x} has no fault", one.name)
            };
            // The first byte, or the first that is not in reach.
            ensure!((at..=at + 4).contains(&fault.address), "{fault:x?} at {at:#x}");
            same(fault, Fault::data(fault.address))?;
        }
    }
    middle_home(borrower, &region)
}

/// Fetches: as of memory that is broken.
pub fn instructions() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::private(3)?);
    let ret = 0xd65f_03c0;
    store(region.page(1), ret);
    clean(region.page(1));
    same(call(region.page(1)), None)?;
    let (borrower, lent) = middle_lent(&liar, &region)?;
    for at in [lent, lent + 0x40, lent] {
        same(call(at), Some(Fault::fetch(at)))?;
    }
    middle_home(borrower, &region)?;
    store(lent, ret);
    clean(lent);
    same(call(lent), None)
}

/// Makes instructions that were written to a line be fetched.
fn clean(line: usize) {
    // SAFETY: cache maintenance changes nothing.
    unsafe {
        std::arch::asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) line)
    };
}

/// The default of SIGBUS ends that process, and nobody else.
pub fn who_does_not_handle_it_dies_alone() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::shared(3)?);
    let (borrower, lent) = middle_lent(&liar, &region)?;
    for n in 0..8 {
        let status = in_child(|| {
            if n % 2 == 0 {
                load(lent);
            } else {
                store(lent, 1);
            }
            Ok(())
        })?;
        same(killed_by(status), Some(Signal::SIGBUS))?;
    }
    middle_home(borrower, &region)
}
