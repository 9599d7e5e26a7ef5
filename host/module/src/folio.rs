// SPDX-License-Identifier: MIT OR Apache-2.0

//! Folios: their bookkeeping and the lists that name them.

use core::mem::MaybeUninit;

use escrow_abi::{MemEntry, Rights};
use escrow_memfd::{Ahead, Borrower, Counts, Folio, How, Moment, Refusal, Retry, State};
use escrow_vmcore::Errno;
use escrow_vmcore::hypercall::{self, CallError};

use crate::kernel::{BorrowerPtr, FolioPtr, Hvc, seen_through};
use crate::status;

/// `struct escrow_report`: what a folio's users are counted as.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CReport {
    pub(crate) refcount: u32,
    pub(crate) safe: u32,
    pub(crate) accessible: u32,
}

/// `struct escrow_refusal`: who uses a folio.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CRefusal {
    pub(crate) excess: i64,
    pub(crate) accessible: u32,
    pub(crate) reserved: u32,
}

/// How many counts a memory has.
pub const COUNTS: usize = 7;

/// The guest has the page already, just as was asked for.
pub const ALREADY_THERE: i32 = 1;
/// The host has not let the folio go, and says why.
pub const REFUSED: i32 = 2;
/// The folio was not in the state in which it must have been.
pub const OUT_OF_TURN: i32 = 3;

fn how_from(number: u32) -> How {
    if number == How::Shared as u32 { How::Shared } else { How::Lent }
}

/// A mistake in the order of calls: refused by the folio, without effect.
fn out_of_turn(result: Result<(), State>) -> i32 {
    status(result.map_err(|_| Errno::Busy))
}

/// Memory has been allocated and zeroed: `1 << order` pages.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_populate(ef: &Folio, order: u32, counts: &Counts) -> i32 {
    out_of_turn(ef.populate(order, counts))
}

/// The folio leaves the memory.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_remove(ef: &Folio, counts: &Counts) -> i32 {
    out_of_turn(ef.remove(counts))
}

/// Whether the host may map the folio.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_is_reachable(ef: &Folio) -> bool {
    ef.is_reachable()
}

/// Who has the folio, and where. → -1 no guest, 0 lent to `vm`, 1 shared with
/// `vm`
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_borrower(ef: &Folio, vm: &mut u64, guest: &mut u64) -> i32 {
    match ef.borrower() {
        Some((how, borrower)) => {
            (*vm, *guest) = (borrower.vm, borrower.guest);
            how as i32
        }
        None => -1,
    }
}

/// The kernel is about to read or write the folio. EBUSY: it is away.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_access(ef: &Folio) -> i32 {
    out_of_turn(ef.access())
}

/// The kernel has read or written the folio.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_end_access(ef: &Folio) {
    ef.end_access();
}

/// Begins lending or sharing. → 0, and `report` is written; or 1 if the guest
/// has it already
///
/// EAGAIN: somebody uses the folio, and `refusal` is written, with how many. EEXIST: it is
/// away, with another VM, at another address or in another way.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_begin_lend(
    ef: &Folio,
    folio: FolioPtr,
    how: u32,
    vm: u64,
    guest: u64,
    report: &mut MaybeUninit<CReport>,
    refusal: &mut MaybeUninit<CRefusal>,
) -> i32 {
    let (how, to) = (how_from(how), Borrower { vm, guest });
    let result = match how {
        How::Lent => ef.begin_lend(to, &folio).map(|counted| {
            report.write(CReport {
                refcount: counted.refcount,
                safe: counted.safe,
                accessible: counted.accessible,
            });
        }),
        How::Shared => ef.begin_share(to, &folio).map(|()| {
            report.write(CReport::default());
        }),
    };
    match result {
        Ok(()) => 0,
        Err(why) => not_begun(how, to, why, refusal),
    }
}

/// The result for C if lending or sharing could not begin. Out of line, as that is rare.
#[cold]
#[inline(never)]
fn not_begun(how: How, to: Borrower, why: Refusal, refusal: &mut MaybeUninit<CRefusal>) -> i32 {
    match why {
        Refusal::Away(now, borrower) if now == how && borrower == to => ALREADY_THERE,
        why => {
            let (errno, told) = refused(why);
            refusal.write(told);
            errno.to_return()
        }
    }
}

/// Lends the folio to the guest, from the freeze to the counting: what a guest's touch of a page
/// asks for, in one call. → as `escrow_rs_folio_begin_lend` when it has not begun, but
/// 2 for EAGAIN, which is EL2's here; 3: out of turn, which is a mistake of the caller's
///
/// All other errors are EL2's, or the donor's; the folio is then as it was.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_lend(
    ef: &Folio,
    folio: FolioPtr,
    counts: &Counts,
    donor: BorrowerPtr,
    vm: u64,
    guest: u64,
    frame: u64,
    rights: u32,
    refusal: &mut MaybeUninit<CRefusal>,
) -> i32 {
    let to = Borrower { vm, guest };
    let counted = match ef.begin_lend(to, &folio) {
        Ok(counted) => counted,
        Err(why) => {
            let told = not_begun(How::Lent, to, why, refusal);
            return if told == Errno::Again.to_return() { REFUSED } else { told };
        }
    };
    let rights = Rights::from_bits(rights.into()).unwrap_or(Rights::NONE);
    let entry = MemEntry::new(frame, ef.order(), guest, rights).with_report(
        counted.refcount,
        counted.safe,
        counted.accessible,
    );
    let mut donor = donor;
    match hypercall::mem_lend_one(&mut Hvc, &mut donor, vm, &entry) {
        Ok(()) => ef.lent(counts).map_or(OUT_OF_TURN, |()| 0),
        Err(error) => not_lent(ef, folio, error),
    }
}

/// EL2 has not taken the folio.
#[cold]
#[inline(never)]
fn not_lent(ef: &Folio, folio: FolioPtr, error: CallError) -> i32 {
    if let CallError::Refused(refused) = error
        && Errno::from(refused) == Errno::Again
        && refused.index == 0
    {
        seen_through(refused.index, refused.detail);
    }
    ef.lend_cancelled(&folio).map_or(OUT_OF_TURN, |()| Errno::from(error).to_return())
}

/// A refusal as C gets it.
fn refused(why: Refusal) -> (Errno, CRefusal) {
    let nobody = CRefusal::default();
    match why {
        Refusal::Away(..) => (Errno::Exists, nobody),
        Refusal::Excess(excess) => (Errno::Again, CRefusal { excess, ..nobody }),
        Refusal::Accessible(accessible) => (Errno::Again, CRefusal { accessible, ..nobody }),
        Refusal::Poisoned => (Errno::Poisoned, nobody),
        Refusal::State(_) => (Errno::Busy, nobody),
    }
}

/// What to do after a refusal. → microseconds to sleep before the next try,
/// without a lock; 0 to give up
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_retry(retry: &mut Retry, refusal: &CRefusal, counts: &Counts) -> u32 {
    let refusal = match refusal.accessible {
        0 => Refusal::Excess(refusal.excess),
        users => Refusal::Accessible(users),
    };
    retry.after(&refusal, counts).unwrap_or(0)
}

/// A moment, as it is kept. `now`: of a clock that ticks for ever.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_moment(now: u64) -> u32 {
    Moment::at(now).to_number()
}

/// Whether a moment that was kept was less than so many ticks ago.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_moment_is_within(moment: u32, now: u64, ticks: u32) -> bool {
    Moment::from_number(moment).is_within(now, ticks)
}

/// A lender has given up, because somebody uses the folio.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_counts_refused(counts: &Counts) {
    counts.refused();
}

/// Takes a safe reference, with the folio's transitions held off. ENOENT: there
/// is no folio, or it is lost.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_hold(ef: &Folio, folio: FolioPtr) -> i32 {
    status(ef.hold(&folio).map_err(|_| Errno::NotFound))
}

/// Gives up what `escrow_rs_folio_hold` took.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_unhold(ef: &Folio, folio: FolioPtr) -> i32 {
    out_of_turn(ef.unhold(&folio))
}

/// How many safe references there are besides the memory's own.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_holders(ef: &Folio) -> u32 {
    ef.holders()
}

/// Ends lending or sharing: Escrow has done it, or has not.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_end_lend(
    ef: &Folio,
    counts: &Counts,
    folio: FolioPtr,
    done: bool,
) -> i32 {
    out_of_turn(match (ef.state(), done) {
        (State::Sharing, true) => ef.shared(counts),
        (State::Sharing, false) => ef.share_cancelled(),
        (_, true) => ef.lent(counts),
        (_, false) => ef.lend_cancelled(&folio),
    })
}

/// Begins to take the folio back. → 0 it was lent, 1 shared
///
/// ENOENT: no guest has it.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_begin_reclaim(ef: &Folio, counts: &Counts) -> i32 {
    match ef.begin_take_back(counts) {
        Ok(how) => how as i32,
        Err(_) => Errno::NotFound.to_return(),
    }
}

/// Escrow has given the folio back.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_reclaimed(ef: &Folio, counts: &Counts, folio: FolioPtr) -> i32 {
    out_of_turn(ef.taken_back(&folio, counts))
}

/// Escrow has kept the folio; with `quarantine` it should not have.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_kept(ef: &Folio, counts: &Counts, quarantine: bool) -> i32 {
    out_of_turn(ef.kept(quarantine, counts))
}

/// The folio is broken, and Escrow lets nobody at what is.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_broken(ef: &Folio, counts: &Counts) -> i32 {
    out_of_turn(ef.broken(counts))
}

/// The folio, one page, has broken at home.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_broken_at_home(ef: &Folio, counts: &Counts) -> i32 {
    out_of_turn(ef.broken_at_home(counts))
}

/// Whether the folio is out of use because it broke.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_is_broken(ef: &Folio) -> bool {
    ef.state() == State::Poisoned
}

/// Whether a guest has the sound pages of a broken folio; which one, and the folio's guest
/// address.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_has_rest(ef: &Folio, vm: &mut u64, guest: &mut u64) -> bool {
    let borrower = ef.borrower_of_rest();
    if let Some(borrower) = borrower {
        (*vm, *guest) = (borrower.vm, borrower.guest);
    }
    borrower.is_some()
}

/// Escrow has given back what is whole of a broken folio.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_rest_reclaimed(
    ef: &Folio,
    counts: &Counts,
    folio: FolioPtr,
) -> i32 {
    out_of_turn(ef.rest_taken_back(&folio, counts))
}

/// The broken folio leaves the memory.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_remove_broken(
    ef: &Folio,
    counts: &Counts,
    folio: FolioPtr,
) -> i32 {
    out_of_turn(ef.remove_broken(&folio, counts))
}

/// Freezes a folio that is to be split. EAGAIN: it is in use, and `refusal` has the
/// excess.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_begin_split(
    ef: &Folio,
    folio: FolioPtr,
    refusal: &mut CRefusal,
) -> i32 {
    let (errno, told) = match ef.begin_split(&folio) {
        Ok(()) => return 0,
        Err(why) => refused(why),
    };
    *refusal = told;
    errno.to_return()
}

/// The folio's pages are folios of their own.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_split(ef: &Folio, counts: &Counts) -> i32 {
    out_of_turn(ef.split(counts))
}

/// A lent folio's pages are folios of their own: who has them is written. EBUSY: it is not lent, or
/// somebody has a safe reference.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_split_lent(
    ef: &Folio,
    counts: &Counts,
    vm: &mut u64,
    guest: &mut u64,
) -> i32 {
    out_of_turn(ef.split_lent(counts).map(|borrower| (*vm, *guest) = (borrower.vm, borrower.guest)))
}

/// One of these pages, of which the caller has the one reference. EAGAIN: somebody looks at it, for
/// a moment.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_folio_populate_lent(
    ef: &Folio,
    counts: &Counts,
    folio: FolioPtr,
    vm: u64,
    guest: u64,
) -> i32 {
    status(ef.populate_lent(Borrower { vm, guest }, &folio, counts).map_err(|why| refused(why).0))
}

/// How many pages to share from a page on that a guest touches. `is_next`: it is right behind those
/// that came last.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_ahead_window(ahead: &mut Ahead, page: u64, is_next: &mut bool) -> u64 {
    let window = ahead.window(page);
    *is_next = window.is_next;
    window.pages
}

/// So far, they have come.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_ahead_came(ahead: &mut Ahead, end: u64) {
    ahead.came(end);
}

/// The counts of a memory, in the order of `enum escrow_count`.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_counts(counts: &Counts, out: &mut [u64; COUNTS]) {
    *out = [
        counts.present(),
        counts.lent(),
        counts.shared(),
        counts.quarantined(),
        counts.poisoned(),
        counts.refusals(),
        counts.retries(),
    ];
}

/// Writes an entry of a list.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_list_entry(
    entry: &mut MemEntry,
    frame: u64,
    order: u32,
    guest: u64,
    rights: u32,
    report: &CReport,
) {
    let rights = Rights::from_bits(rights.into()).unwrap_or(Rights::NONE);
    *entry = MemEntry::new(frame, order, guest, rights).with_report(
        report.refcount,
        report.safe,
        report.accessible,
    );
}
