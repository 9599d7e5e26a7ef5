// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every interleaving of a lend with those who come by without a lock.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p escrow-memfd --test interleavings`

#![cfg(loom)]

use escrow_memfd::{Borrower, Counts, Folio, Pause, References, Refusal, Sleeper, State};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;

/// The kernel's reference count of a folio.
struct Count(AtomicU32);

impl Count {
    /// `folio_try_get`: not from zero.
    fn try_get(&self) -> bool {
        let mut count = self.0.load(Ordering::Relaxed);
        while count != 0 {
            match self.0.compare_exchange(count, count + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return true,
                Err(now) => count = now,
            }
        }
        false
    }

    fn put(&self) {
        assert!(self.0.fetch_sub(1, Ordering::SeqCst) > 1, "the last reference is the memory's");
    }
}

impl References for Count {
    fn freeze(&self, at: u32) -> Result<(), u32> {
        self.0.compare_exchange(at, 0, Ordering::SeqCst, Ordering::SeqCst).map(drop)
    }

    fn unfreeze(&self, to: u32) {
        assert_eq!(self.0.swap(to, Ordering::SeqCst), 0, "somebody got a reference meanwhile");
    }

    fn is_poisoned(&self) -> bool {
        false
    }
}

/// Has no patience, so that loom need not explore it.
struct Impatient;

impl Sleeper for Impatient {
    fn pause(&self, _: Pause) -> bool {
        false
    }
}

struct Page {
    folio: Folio,
    counts: Counts,
    refs: Count,
    /// Whether a guest has it, which nobody in the host may overlap with.
    away: AtomicBool,
}

const GUEST: Borrower = Borrower { vm: 1, guest: 0 };

fn page() -> Arc<Page> {
    let page = Page {
        folio: Folio::default(),
        counts: Counts::default(),
        refs: Count(AtomicU32::new(1)),
        away: AtomicBool::new(false),
    };
    page.folio.populate(&page.counts).unwrap();
    Arc::new(page)
}

/// Lends the page and takes it back.
fn there_and_back(page: &Page) -> Result<(), Refusal> {
    page.folio.begin_lend(&page.refs, &Impatient)?;
    page.away.store(true, Ordering::SeqCst);
    page.folio.lent(GUEST, &page.counts).unwrap();
    page.folio.begin_take_back(&page.counts).unwrap();
    page.away.store(false, Ordering::SeqCst);
    page.folio.taken_back(&page.refs, &page.counts).unwrap();
    Ok(())
}

#[test]
fn a_reference_and_a_lend_exclude_each_other() {
    loom::model(|| {
        let page = page();
        let other = page.clone();
        let speculative = thread::spawn(move || {
            let got = other.refs.try_get();
            if got {
                assert!(!other.away.load(Ordering::SeqCst), "a reference to a lent folio");
                other.refs.put();
            }
            got
        });
        let lent = there_and_back(&page);
        let got = speculative.join().unwrap();
        assert!(lent.is_ok() || lent == Err(Refusal::Excess(1)));
        assert!(got || lent.is_ok(), "one of them at least gets its way");
        assert_eq!(page.folio.state(), State::Present);
        assert_eq!(page.refs.0.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn an_access_and_a_lend_exclude_each_other() {
    loom::model(|| {
        let page = page();
        let other = page.clone();
        let user = thread::spawn(move || {
            let accessed = other.folio.access();
            if accessed.is_ok() {
                assert!(!other.away.load(Ordering::SeqCst), "an access to a lent folio");
                other.folio.end_access();
            }
        });
        let lent = there_and_back(&page);
        user.join().unwrap();
        assert!(lent.is_ok() || lent == Err(Refusal::Accessible(1)));
        assert_eq!(page.folio.state(), State::Present);
        assert!(there_and_back(&page).is_ok(), "no user is left behind");
    });
}

#[test]
fn one_of_two_lenders_wins() {
    loom::model(|| {
        let page = page();
        let other = page.clone();
        let begin = |page: &Page| page.folio.begin_lend(&page.refs, &Impatient).is_ok();
        let second = thread::spawn(move || begin(&other));
        let first = begin(&page);
        assert!(first ^ second.join().unwrap());
        page.folio.lend_cancelled(&page.refs).unwrap();
        assert_eq!(page.refs.0.load(Ordering::SeqCst), 1);
    });
}
