// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages: their bookkeeping and the lists that name them.

use escrow_abi::{MemEntry, ORDER_PAGE, Rights};
use escrow_memfd::{Borrower, Counts, Folio, How, Refusal, State};
use escrow_vmcore::Errno;

use crate::kernel::{FolioPtr, Task};
use crate::status;

/// `struct escrow_report`: what a folio's users are counted as.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CReport {
    refcount: u32,
    safe: u32,
    accessible: u32,
}

/// `struct escrow_refusal`: who uses a folio.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CRefusal {
    excess: i64,
    accessible: u32,
    reserved: u32,
}

/// The guest has the page already, just as was asked for.
const ALREADY_THERE: i32 = 1;

fn how_from(number: u32) -> How {
    if number == How::Shared as u32 { How::Shared } else { How::Lent }
}

/// A mistake in the order of calls: refused by the folio, without effect.
fn out_of_turn(result: Result<(), State>) -> i32 {
    status(result.map_err(|_| Errno::Busy))
}

/// Memory has been allocated and zeroed.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_page_populate(page: &Folio, counts: &Counts) -> i32 {
    out_of_turn(page.populate(counts))
}

/// The page leaves the memory.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_page_remove(page: &Folio, counts: &Counts) -> i32 {
    out_of_turn(page.remove(counts))
}

/// Whether the host may map the page.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_page_is_reachable(page: &Folio) -> bool {
    page.is_reachable()
}

/// Who has the page. → -1 no guest, 0 lent to `vm`, 1 shared with `vm`
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_page_borrower(page: &Folio, vm: &mut u64) -> i32 {
    match page.borrower() {
        Some((how, borrower)) => {
            *vm = borrower.vm;
            how as i32
        }
        None => -1,
    }
}

/// Begins lending or sharing. → 0, or 1 if the guest has it already
///
/// EAGAIN: somebody uses the folio, and `refusal` says how many. EEXIST: it is
/// away, with another VM, at another address or in another way.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_page_begin_give(
    page: &Folio,
    folio: FolioPtr,
    how: u32,
    vm: u64,
    guest: u64,
    report: &mut CReport,
    refusal: &mut CRefusal,
) -> i32 {
    *refusal = CRefusal::default();
    let how = how_from(how);
    let result = match how {
        How::Lent => page.begin_lend(&folio, &Task).map(|counted| {
            *report = CReport {
                refcount: counted.refcount,
                safe: counted.safe,
                accessible: counted.accessible,
            };
        }),
        How::Shared => page.begin_share(&folio).map(|()| *report = CReport::default()),
    };
    let errno = match result {
        Ok(()) => return 0,
        Err(Refusal::Away(now, borrower)) if now == how && borrower == (Borrower { vm, guest }) => {
            return ALREADY_THERE;
        }
        Err(Refusal::Away(..)) => Errno::Exists,
        Err(Refusal::Excess(excess)) => {
            refusal.excess = excess;
            Errno::Again
        }
        Err(Refusal::Accessible(accessible)) => {
            refusal.accessible = accessible;
            Errno::Again
        }
        Err(Refusal::Poisoned) => Errno::Poisoned,
        Err(Refusal::State(_)) => Errno::Busy,
    };
    errno.to_return()
}

/// Ends lending or sharing: Escrow has done it, or has not.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_page_end_give(
    page: &Folio,
    counts: &Counts,
    folio: FolioPtr,
    how: u32,
    vm: u64,
    guest: u64,
    done: bool,
) -> i32 {
    let to = Borrower { vm, guest };
    out_of_turn(match (how_from(how), done) {
        (How::Lent, true) => page.lent(to, counts),
        (How::Lent, false) => page.lend_cancelled(&folio),
        (How::Shared, true) => page.shared(to, counts),
        (How::Shared, false) => page.share_cancelled(),
    })
}

/// Begins to take the page back. → 0 it was lent, 1 shared
///
/// ENOENT: no guest has it.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_page_begin_take_back(page: &Folio, counts: &Counts) -> i32 {
    match page.begin_take_back(counts) {
        Ok(how) => how as i32,
        Err(_) => Errno::NotFound.to_return(),
    }
}

/// Escrow has given the page back.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_page_taken_back(page: &Folio, counts: &Counts, folio: FolioPtr) -> i32 {
    out_of_turn(page.taken_back(&folio, counts))
}

/// Escrow has kept the page; with `quarantine` it should not have.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_page_kept(page: &Folio, counts: &Counts, quarantine: bool) -> i32 {
    out_of_turn(page.kept(quarantine, counts))
}

/// The four counts of a memory: present, lent, shared, quarantined.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_counts(counts: &Counts, out: &mut [u64; 4]) {
    *out = [counts.present(), counts.lent(), counts.shared(), counts.quarantined()];
}

/// Writes an entry of a list.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_list_entry(
    entry: &mut MemEntry,
    frame: u64,
    guest: u64,
    rights: u32,
    report: &CReport,
) {
    let rights = Rights::from_bits(rights.into()).unwrap_or(Rights::NONE);
    *entry = MemEntry::new(frame, ORDER_PAGE, guest, rights).with_report(
        report.refcount,
        report.safe,
        report.accessible,
    );
}
