// SPDX-License-Identifier: MIT OR Apache-2.0

use core::cell::Cell;

use super::*;
/// A reference count that others can hold references in, and let go of while
/// a lender looks again.
struct Count {
    count: Cell<u32>,
    poisoned: Cell<bool>,
    relaxed: Cell<u32>,
    /// The others go the so many-th time.
    go_at: Cell<u32>,
    /// A host that counts wrong freezes one reference too many.
    errs: Cell<bool>,
}

impl Count {
    fn new(count: u32) -> Self {
        Count {
            count: Cell::new(count),
            poisoned: Cell::new(false),
            relaxed: Cell::new(0),
            go_at: Cell::new(0),
            errs: Cell::new(false),
        }
    }

    /// What the kernel's `folio_try_get` does.
    fn try_get(&self) -> bool {
        let count = self.count.get();
        if count != 0 {
            self.count.set(count + 1);
        }
        count != 0
    }
}

impl References for Count {
    fn get(&self) {
        assert!(self.try_get(), "a reference to a frozen folio");
    }

    fn put(&self) {
        assert!(self.count.get() > 1, "the last reference, or a frozen folio's");
        self.count.set(self.count.get() - 1);
    }

    fn freeze(&self, at: u32) -> Result<u32, u32> {
        let count = self.count.get();
        if count != at + u32::from(self.errs.get()) {
            return Err(count);
        }
        self.count.set(0);
        Ok(count)
    }

    fn unfreeze(&self, to: u32) {
        assert_eq!(self.count.get(), 0, "somebody got a reference to a frozen folio");
        self.count.set(to);
    }

    fn is_poisoned(&self) -> bool {
        self.poisoned.get()
    }

    fn relax(&self) {
        self.relaxed.set(self.relaxed.get() + 1);
        if self.relaxed.get() == self.go_at.get() {
            self.count.set(1);
        }
    }
}

const GUEST: Borrower = Borrower { vm: 0x0100_0001, guest: 0x8000_0000 };

fn present() -> (Folio, Counts) {
    let (folio, counts) = (Folio::default(), Counts::default());
    folio.populate(0, &counts).unwrap();
    (folio, counts)
}

fn lent(refs: &Count) -> (Folio, Counts) {
    let (folio, counts) = present();
    folio.begin_lend(GUEST, refs).unwrap();
    folio.lent(&counts).unwrap();
    (folio, counts)
}

#[test]
fn a_lent_folio_is_frozen_and_comes_home_with_its_count() {
    let refs = Count::new(1);
    let (folio, counts) = present();
    let report = folio.begin_lend(GUEST, &refs).unwrap();
    assert_eq!(report, Report { refcount: 1, safe: 1, accessible: 0 });
    assert_eq!(folio.state(), State::Lending);
    assert!(!refs.try_get(), "frozen from the first step on");
    folio.lent(&counts).unwrap();
    assert_eq!(folio.borrower(), Some((How::Lent, GUEST)));
    assert!(!folio.is_reachable());
    assert_eq!((counts.present(), counts.lent()), (0, 1));

    assert_eq!(folio.begin_take_back(&counts), Ok(How::Lent));
    assert!(!refs.try_get());
    folio.taken_back(&refs, &counts).unwrap();
    assert_eq!(refs.count.get(), 1);
    assert_eq!(folio.borrower(), None);
    assert_eq!((counts.present(), counts.lent()), (1, 0));
    folio.remove(&counts).unwrap();
    assert_eq!(counts.present(), 0);
}

#[test]
fn an_excess_is_named_and_changes_nothing() {
    let refs = Count::new(1 + 1024);
    let (folio, counts) = present();
    assert_eq!(folio.begin_lend(GUEST, &refs), Err(Refusal::Excess(1024)));
    assert_eq!(refs.relaxed.get(), Folio::TRIES - 1, "it was looked at again");
    assert_eq!(folio.state(), State::Present);
    assert_eq!(refs.count.get(), 1025);
    assert_eq!((counts.present(), counts.lent()), (1, 0));
}

#[test]
fn a_passing_reference_is_waited_for() {
    let refs = Count::new(2);
    refs.go_at.set(3);
    let (folio, _counts) = present();
    assert!(folio.begin_lend(GUEST, &refs).is_ok());
    assert_eq!(refs.relaxed.get(), 3);
}

/// The report is what was read, so that EL2's check sees a mistake of the host's.
#[test]
fn a_count_that_was_frozen_wrong_is_reported_as_it_was() {
    let refs = Count::new(2);
    refs.errs.set(true);
    let (folio, _counts) = present();
    let report = folio.begin_lend(GUEST, &refs).unwrap();
    assert_eq!(report, Report { refcount: 2, safe: 1, accessible: 0 });
    folio.lend_cancelled(&refs).unwrap();
    assert_eq!(refs.count.get(), 2, "whoever had it has it");
}

#[test]
fn safe_references_hinder_no_lend_and_outlive_it() {
    let refs = Count::new(1);
    let (folio, counts) = present();
    folio.hold(&refs).unwrap();
    folio.hold(&refs).unwrap();
    assert_eq!((folio.holders(), refs.count.get()), (2, 3));
    let report = folio.begin_lend(GUEST, &refs).unwrap();
    assert_eq!(report, Report { refcount: 3, safe: 3, accessible: 0 });
    folio.lent(&counts).unwrap();

    assert_eq!(folio.access(), Err(State::Lent), "but it is out of their reach");
    folio.unhold(&refs).unwrap();
    folio.hold(&refs).unwrap();
    folio.unhold(&refs).unwrap();
    assert_eq!((folio.holders(), refs.count.get()), (1, 0), "it stays frozen");

    folio.begin_take_back(&counts).unwrap();
    folio.taken_back(&refs, &counts).unwrap();
    assert_eq!(refs.count.get(), 2, "the memory's, and that of who stayed");
    assert_eq!(folio.remove(&counts), Err(State::Present), "the record counts a reference");
    folio.unhold(&refs).unwrap();
    assert_eq!(folio.unhold(&refs), Err(State::Present), "there is none to give up");
    assert_eq!(refs.count.get(), 1);
    folio.remove(&counts).unwrap();
}

#[test]
fn safe_references_do_not_cover_for_others() {
    let refs = Count::new(1);
    let (folio, _counts) = present();
    folio.hold(&refs).unwrap();
    assert!(refs.try_get());
    assert_eq!(folio.begin_lend(GUEST, &refs), Err(Refusal::Excess(1)));
    assert_eq!((folio.holders(), refs.count.get()), (1, 3));
}

#[test]
fn fewer_references_than_safe_ones_refuse_too() {
    let refs = Count::new(0);
    let (folio, _counts) = present();
    assert_eq!(folio.begin_lend(GUEST, &refs), Err(Refusal::Excess(-1)));
}

#[test]
fn an_accessible_folio_is_not_lent() {
    let refs = Count::new(1);
    let (folio, _counts) = present();
    folio.access().unwrap();
    assert_eq!(folio.begin_lend(GUEST, &refs), Err(Refusal::Accessible(1)));
    assert_eq!(refs.count.get(), 1);
    folio.end_access();
    assert!(folio.begin_lend(GUEST, &refs).is_ok());
    assert_eq!(folio.access(), Err(State::Lending), "and a lent one is not accessed");
    folio.lend_cancelled(&refs).unwrap();
    assert_eq!(refs.count.get(), 1);
    assert!(folio.access().is_ok());
}

#[test]
fn a_broken_folio_does_not_leave() {
    let refs = Count::new(1);
    refs.poisoned.set(true);
    let (folio, _counts) = present();
    assert_eq!(folio.begin_lend(GUEST, &refs), Err(Refusal::Poisoned));
    assert_eq!(refs.relaxed.get(), 0, "no waiting for what does not pass");
    assert_eq!(folio.begin_share(GUEST, &refs), Err(Refusal::Poisoned));
    assert_eq!(folio.state(), State::Present);
}

#[test]
fn a_shared_folio_stays_reachable_and_is_not_lent() {
    let refs = Count::new(7);
    let (folio, counts) = present();
    folio.begin_share(GUEST, &refs).unwrap();
    folio.shared(&counts).unwrap();
    assert!(folio.is_reachable() && refs.try_get());
    assert_eq!((counts.present(), counts.shared()), (0, 1));
    assert_eq!(folio.begin_lend(GUEST, &refs), Err(Refusal::Away(How::Shared, GUEST)));
    assert_eq!(folio.begin_take_back(&counts), Ok(How::Shared));
    folio.taken_back(&refs, &counts).unwrap();
    assert_eq!(refs.count.get(), 8, "nothing was frozen, nothing is thawed");
    assert_eq!(
        folio.begin_lend(GUEST, &refs),
        Err(Refusal::Excess(7)),
        "the guest's reach does not count any more"
    );
}

#[test]
fn a_cancelled_share_leaves_no_user_behind() {
    let refs = Count::new(1);
    let (folio, _counts) = present();
    folio.begin_share(GUEST, &refs).unwrap();
    folio.share_cancelled().unwrap();
    assert!(folio.begin_lend(GUEST, &refs).is_ok());
}

#[test]
fn a_second_lend_names_the_first_borrower() {
    let refs = Count::new(1);
    let (folio, _counts) = lent(&refs);
    assert_eq!(folio.begin_lend(GUEST, &refs), Err(Refusal::Away(How::Lent, GUEST)));
    assert_eq!(folio.begin_share(GUEST, &refs), Err(Refusal::Away(How::Lent, GUEST)));
}

#[test]
fn what_the_hypervisor_keeps_stays_frozen() {
    let refs = Count::new(1);
    let (folio, counts) = lent(&refs);
    folio.begin_take_back(&counts).unwrap();
    folio.kept(false, &counts).unwrap();
    assert_eq!(folio.borrower(), Some((How::Lent, GUEST)));
    assert_eq!(counts.lent(), 1);

    folio.begin_take_back(&counts).unwrap();
    folio.kept(true, &counts).unwrap();
    assert_eq!(folio.state(), State::Quarantined);
    assert_eq!((counts.lent(), counts.quarantined()), (0, 1));
    assert!(!refs.try_get() && !folio.is_reachable());
    assert_eq!(folio.remove(&counts), Err(State::Quarantined), "never freed");

    assert_eq!(folio.begin_take_back(&counts), Ok(How::Lent), "but asked for again");
    folio.taken_back(&refs, &counts).unwrap();
    assert_eq!(refs.count.get(), 1);
    assert_eq!((counts.present(), counts.quarantined()), (1, 0));
}

#[test]
fn what_breaks_with_a_guest_never_comes_home() {
    let refs = Count::new(1);
    let (folio, counts) = lent(&refs);
    folio.begin_take_back(&counts).unwrap();
    folio.broken(&counts).unwrap();
    assert_eq!((counts.lent(), counts.poisoned()), (0, 1));
    assert!(!refs.try_get() && !folio.is_reachable());
    assert_eq!(folio.borrower(), None, "nobody is asked for it");
    assert_eq!(folio.begin_take_back(&counts), Err(State::Poisoned));
    assert_eq!(folio.remove(&counts), Err(State::Poisoned));
    assert_eq!(folio.access(), Err(State::Poisoned));
}

#[test]
fn counts_are_of_pages() {
    let refs = Count::new(1);
    let (folio, counts) = (Folio::default(), Counts::default());
    folio.populate(9, &counts).unwrap();
    assert_eq!((folio.order(), counts.present()), (9, 512));
    folio.begin_lend(GUEST, &refs).unwrap();
    folio.lent(&counts).unwrap();
    assert_eq!((counts.present(), counts.lent()), (0, 512));
    folio.begin_take_back(&counts).unwrap();
    folio.taken_back(&refs, &counts).unwrap();
    folio.remove(&counts).unwrap();
    assert_eq!(counts.present(), 0);
}

/// Every method from every state: it either is the one that belongs there, or
/// it is refused and the folio is as it was.
#[test]
fn transitions_out_of_turn_change_nothing() {
    for state in State::ALL {
        let belongs: &[usize] = match state {
            State::Hole => &[0],
            State::Present => &[1, 2, 3, 12],
            State::Lending => &[4, 5],
            State::Sharing => &[6, 7],
            State::Lent | State::Shared | State::Quarantined => &[8, 12],
            State::TakingBack => &[9, 10, 11],
            State::Poisoned => &[],
        };
        for method in 0..=13 {
            let (refs, folio, counts) = (Count::new(1), Folio::default(), Counts::default());
            folio.safe.store(1, Ordering::Relaxed);
            folio.state.store(state as u32, Ordering::Relaxed);
            // In these states the real folio is frozen.
            if matches!(state, State::Lending | State::Lent | State::Quarantined | State::Poisoned)
            {
                refs.freeze(1).unwrap();
                folio.frozen.store(1, Ordering::Relaxed);
            }
            // What these transitions subtract must have been added before.
            folio.accessible.store(u32::from(state == State::Sharing), Ordering::Relaxed);
            if state == State::TakingBack {
                folio.accessible.store(1, Ordering::Relaxed);
            }
            counts.moved(State::Hole, state, 1);
            let frozen = refs.count.get() == 0;
            let done = match method {
                0 => folio.populate(0, &counts).is_ok(),
                1 => folio.remove(&counts).is_ok(),
                2 => folio.begin_lend(GUEST, &refs).is_ok(),
                3 => folio.begin_share(GUEST, &refs).is_ok(),
                4 => folio.lent(&counts).is_ok(),
                5 => folio.lend_cancelled(&refs).is_ok(),
                6 => folio.shared(&counts).is_ok(),
                7 => folio.share_cancelled().is_ok(),
                8 => folio.begin_take_back(&counts).is_ok(),
                9 => folio.taken_back(&refs, &counts).is_ok(),
                10 => folio.kept(true, &counts).is_ok(),
                11 => folio.broken(&counts).is_ok(),
                12 => folio.hold(&refs).is_ok(),
                // Refused: the memory's is the only safe reference.
                _ => folio.unhold(&refs).is_ok(),
            };
            assert_eq!(done, belongs.contains(&method), "{state:?}, method {method}");
            if !done {
                assert_eq!(folio.state(), state, "method {method}");
                assert_eq!(refs.count.get() == 0, frozen, "{state:?}, method {method}");
            }
        }
    }
}

#[test]
fn a_lent_folio_becomes_lent_pages() {
    let refs = Count::new(1);
    let (folio, counts) = (Folio::default(), Counts::default());
    folio.populate(2, &counts).unwrap();
    assert_eq!(folio.split_lent(&counts), Err(State::Present), "at home it is split otherwise");
    folio.begin_lend(GUEST, &refs).unwrap();
    assert_eq!(folio.split_lent(&counts), Err(State::Lending));
    folio.lent(&counts).unwrap();
    folio.hold(&refs).unwrap();
    assert_eq!(folio.split_lent(&counts), Err(State::Lent), "a safe reference is to all of it");
    folio.unhold(&refs).unwrap();
    assert_eq!(folio.split_lent(&counts), Ok(GUEST));
    assert_eq!((folio.state(), counts.lent(), counts.present()), (State::Hole, 0, 0));
    for n in 0..4 {
        // As the kernel makes them: each with one reference.
        let refs = Count::new(1);
        let (page, to) = (Folio::default(), Borrower { guest: GUEST.guest + n * 0x1000, ..GUEST });
        assert!(refs.try_get(), "somebody looks at it");
        assert_eq!(page.populate_lent(to, &refs, &counts), Err(Refusal::Excess(1)));
        assert_eq!((page.state(), counts.lent()), (State::Hole, n));
        refs.put();
        page.populate_lent(to, &refs, &counts).unwrap();
        assert!(!refs.try_get(), "frozen");
        assert_eq!(page.populate_lent(to, &refs, &counts), Err(Refusal::State(State::Lent)));
        assert_eq!(page.borrower(), Some((How::Lent, to)));
        assert_eq!(counts.lent(), n + 1);
    }
    // It comes home as any other.
    let refs = Count::new(1);
    let page = Folio::default();
    page.populate_lent(GUEST, &refs, &counts).unwrap();
    assert_eq!(page.begin_take_back(&counts), Ok(How::Lent));
    page.taken_back(&refs, &counts).unwrap();
    assert_eq!((refs.count.get(), page.state()), (1, State::Present));
    page.remove(&counts).unwrap();
    assert_eq!((counts.lent(), counts.present()), (4, 0));
}

#[test]
fn a_lent_page_is_not_split() {
    let refs = Count::new(1);
    let (folio, counts) = lent(&refs);
    assert_eq!(folio.split_lent(&counts), Err(State::Lent));
    assert!(!refs.try_get());
}
