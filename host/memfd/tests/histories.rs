// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random histories of three folios of one memory, on the real bookkeeping and
//! on a model of it that is meant to be read. After every step the two agree
//! on the answer and on all that can be seen.
//!
//! `PROPTEST_CASES=1000000` plays more. Seeds of histories that failed are in
//! `proptest-regressions/histories.txt` and are played first.

#![cfg(not(loom))]

use std::cell::Cell;
use std::env;

use escrow_memfd::{Borrower, Counts, Folio, How, References, Refusal, Report, Retry, State};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

const REGRESSIONS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/histories.txt");
const CASES: u32 = 20_000;
const FOLIOS: usize = 3;

/// What happens to a folio.
#[derive(Clone, Copy, Debug)]
enum Step {
    Populate {
        order: u32,
    },
    Remove,
    /// Somebody lets go of a reference, or of an access, while the lender looks
    /// again.
    BeginLend {
        to: Borrower,
        put_at: Option<u32>,
        end_access_at: Option<u32>,
    },
    /// The lender sleeps, if it has the patience, and begins from the start.
    Retry {
        refusal: Refusal,
    },
    Lent,
    LendCancelled,
    BeginShare {
        with: Borrower,
    },
    Shared,
    ShareCancelled,
    BeginTakeBack,
    TakenBack,
    Kept {
        quarantine: bool,
    },
    Broken,
    /// A kernel user comes, with a safe reference.
    Hold,
    Unhold,
    BeginSplit,
    Split,
    BrokenAtHome,
    RestTakenBack,
    RemoveBroken,
    Access,
    EndAccess,
    TryGet,
    Put,
    Break,
}

/// Where a folio is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Home,
    /// The hypervisor is asked to give it away.
    Leaving(How, Borrower),
    Away {
        how: How,
        to: Borrower,
        overdue: bool,
    },
    /// The hypervisor is asked for it.
    Returning {
        how: How,
        from: Borrower,
    },
    /// Broken in a guest's hands, or at home.
    Lost(Option<(How, Borrower)>),
}

/// Whom a folio is frozen for that is to be split.
const NOBODY: Borrower = Borrower { vm: 0, guest: 0 };

/// The model of a folio.
#[derive(Clone, Copy, Debug)]
struct Model {
    place: Place,
    /// References of others; the memory has one of its own while the folio is
    /// anywhere.
    others: u32,
    /// Safe references of kernel users.
    holders: u32,
    /// Kernel users that are told that it stays.
    users: u32,
    broken: bool,
    order: u32,
}

impl Model {
    const NEW: Model =
        Model { place: Place::Nowhere, others: 0, holders: 0, users: 0, broken: false, order: 0 };

    /// Lent, or on the way there or back: nobody gets a reference.
    fn is_frozen(&self) -> bool {
        matches!(
            self.place,
            Place::Leaving(How::Lent, _)
                | Place::Lost(Some((How::Lent, _)))
                | Place::Away { how: How::Lent, .. }
                | Place::Returning { how: How::Lent, .. }
        )
    }

    fn state(&self) -> State {
        match self.place {
            Place::Nowhere => State::Hole,
            Place::Home => State::Present,
            Place::Leaving(How::Lent, _) => State::Lending,
            Place::Leaving(How::Shared, _) => State::Sharing,
            Place::Away { overdue: true, .. } => State::Quarantined,
            Place::Away { how: How::Lent, .. } => State::Lent,
            Place::Away { how: How::Shared, .. } => State::Shared,
            Place::Returning { .. } => State::TakingBack,
            Place::Lost(_) => State::Poisoned,
        }
    }

    fn borrower(&self) -> Option<(How, Borrower)> {
        match self.place {
            Place::Away { how, to, .. } => Some((how, to)),
            Place::Returning { how, from } => Some((how, from)),
            _ => None,
        }
    }

    /// Why it cannot be given away, if it is not at home.
    fn elsewhere(&self) -> Result<(), Refusal> {
        match self.place {
            Place::Home => Ok(()),
            Place::Away { how, to, overdue: false } => Err(Refusal::Away(how, to)),
            Place::Lost(_) => Err(Refusal::Poisoned),
            _ => Err(Refusal::State(self.state())),
        }
    }

    /// Who is in the way of a lend, if anybody is.
    fn obstacle(&self) -> Option<Refusal> {
        if self.broken {
            Some(Refusal::Poisoned)
        } else if self.users > 0 {
            Some(Refusal::Accessible(self.users))
        } else if self.others > 0 {
            Some(Refusal::Excess(self.others.into()))
        } else {
            None
        }
    }
}

/// What the bookkeeping has said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Wrong(State),
    Report(Report),
    Refused(Refusal),
    How(How),
    /// Whether there was a reference to be had.
    Got(bool),
    /// The step was not one that anybody could take.
    Nothing,
}

impl From<Result<(), State>> for Answer {
    fn from(result: Result<(), State>) -> Self {
        result.map_or_else(Answer::Wrong, |()| Answer::Done)
    }
}

/// How often a lender looks again before it gives up.
const LOOKS: u32 = 4;
/// How often it begins again after it has slept.
const PAUSES: u32 = 6;

fn step_model(model: &mut Model, patience: &mut u32, step: Step) -> Answer {
    let wrong = Answer::Wrong(model.state());
    match (step, model.place) {
        (Step::Populate { order }, Place::Nowhere) => {
            *model = Model { place: Place::Home, order, ..Model::NEW };
            Answer::Done
        }
        // Whoever still has a reference keeps the folio, which is no longer
        // this memory's; whoever accesses it keeps the memory as it is.
        (Step::Remove, _) if model.users > 0 => Answer::Nothing,
        // Whoever has a safe reference keeps the record, which counts it.
        (Step::Remove, Place::Home) if model.holders > 0 => wrong,
        (Step::Remove, Place::Home) => {
            *model = Model::NEW;
            Answer::Done
        }
        (Step::BeginLend { to, put_at, end_access_at }, _) => {
            if let Err(refusal) = model.elsewhere() {
                return Answer::Refused(refusal);
            }
            for look in 0.. {
                let Some(obstacle) = model.obstacle() else { break };
                if obstacle == Refusal::Poisoned || look == LOOKS {
                    return Answer::Refused(obstacle);
                }
                if put_at == Some(look) {
                    model.others = model.others.saturating_sub(1);
                }
                if end_access_at == Some(look) {
                    model.users = model.users.saturating_sub(1);
                }
            }
            model.place = Place::Leaving(How::Lent, to);
            let safe = 1 + model.holders;
            Answer::Report(Report { refcount: safe, safe, accessible: 0 })
        }
        (Step::Retry { refusal: Refusal::Excess(_) | Refusal::Accessible(_) }, _) => {
            let goes_on = *patience < PAUSES;
            *patience += u32::from(goes_on);
            Answer::Got(goes_on)
        }
        (Step::Retry { .. }, _) => Answer::Got(false),
        (Step::Lent, Place::Leaving(How::Lent, to)) => {
            model.place = Place::Away { how: How::Lent, to, overdue: false };
            Answer::Done
        }
        (Step::BeginShare { with }, _) => {
            let refusal = model.elsewhere().err();
            let refusal = refusal.or(model.broken.then_some(Refusal::Poisoned));
            if let Some(refusal) = refusal {
                return Answer::Refused(refusal);
            }
            model.place = Place::Leaving(How::Shared, with);
            Answer::Done
        }
        (Step::Shared, Place::Leaving(How::Shared, to)) => {
            model.place = Place::Away { how: How::Shared, to, overdue: false };
            Answer::Done
        }
        (Step::LendCancelled, Place::Leaving(How::Lent, _))
        | (Step::ShareCancelled, Place::Leaving(How::Shared, _))
        | (Step::TakenBack, Place::Returning { .. }) => {
            model.place = Place::Home;
            Answer::Done
        }
        (Step::BeginTakeBack, Place::Away { how, to: from, .. }) => {
            model.place = Place::Returning { how, from };
            Answer::How(how)
        }
        (Step::Kept { quarantine: overdue }, Place::Returning { how, from: to }) => {
            model.place = Place::Away { how, to, overdue };
            Answer::Done
        }
        (Step::Broken, Place::Returning { how, from }) => {
            model.place = Place::Lost(Some((how, from)));
            Answer::Done
        }
        (Step::BeginSplit, _) => {
            if let Err(refusal) = model.elsewhere() {
                return Answer::Refused(refusal);
            }
            if model.holders > 0 {
                return Answer::Refused(Refusal::Excess(model.holders.into()));
            }
            let sound = Model { broken: false, ..*model };
            if let Some(obstacle) = sound.obstacle() {
                return Answer::Refused(obstacle);
            }
            model.place = Place::Leaving(How::Lent, NOBODY);
            Answer::Done
        }
        // Its pages are folios of their own, which are not looked at here.
        (Step::Split, Place::Leaving(How::Lent, _)) if model.holders == 0 => {
            *model = Model::NEW;
            Answer::Done
        }
        (Step::BrokenAtHome, Place::Home) if model.order == 0 => {
            model.place = Place::Lost(None);
            Answer::Done
        }
        (Step::RestTakenBack, Place::Lost(Some(_))) if model.order != 0 => {
            model.place = Place::Home;
            Answer::Done
        }
        (Step::RemoveBroken, _) if model.users > 0 => Answer::Nothing,
        (Step::RemoveBroken, Place::Lost(_)) if model.holders == 0 => {
            *model = Model::NEW;
            Answer::Done
        }
        (Step::Hold, Place::Home | Place::Away { .. }) => {
            model.holders += 1;
            Answer::Done
        }
        (Step::Unhold, Place::Home | Place::Away { .. } | Place::Lost(_)) if model.holders > 0 => {
            model.holders -= 1;
            Answer::Done
        }
        (Step::Access, _) => match model.state() {
            State::Present | State::Sharing | State::Shared => {
                model.users += 1;
                Answer::Done
            }
            _ => wrong,
        },
        (Step::EndAccess, _) if model.users > 0 => {
            model.users -= 1;
            Answer::Done
        }
        (Step::TryGet, _) => {
            let there = model.place != Place::Nowhere && !model.is_frozen();
            model.others += u32::from(there);
            Answer::Got(there)
        }
        (Step::Put, _) if model.others > 0 => {
            model.others -= 1;
            Answer::Done
        }
        (Step::Break, _) => {
            model.broken = model.place != Place::Nowhere;
            Answer::Done
        }
        (Step::EndAccess | Step::Put, _) => Answer::Nothing,
        _ => wrong,
    }
}

/// The kernel's side of a folio.
#[derive(Default)]
struct Kernel {
    count: Cell<u32>,
    broken: Cell<bool>,
}

impl References for Kernel {
    fn get(&self) {
        assert_ne!(self.count.get(), 0, "a reference to a frozen folio");
        self.count.set(self.count.get() + 1);
    }

    fn put(&self) {
        assert!(self.count.get() > 1, "the memory's own reference goes, or a frozen folio's");
        self.count.set(self.count.get() - 1);
    }

    fn freeze(&self, at: u32) -> Result<u32, u32> {
        match self.count.get() {
            count if count == at => Ok(self.count.replace(0)),
            count => Err(count),
        }
    }

    fn unfreeze(&self, to: u32) {
        assert_eq!(self.count.get(), 0, "thawed without having been frozen");
        self.count.set(to);
    }

    fn is_poisoned(&self) -> bool {
        self.broken.get()
    }

    fn relax(&self) {}
}

/// A folio as it is, with what the model says of the others who use it.
#[derive(Default)]
struct Real {
    folio: Folio,
    kernel: Kernel,
}

/// The kernel's count, and others who let go while a lender looks again.
struct Looks<'a> {
    real: &'a Real,
    others: Cell<u32>,
    users: Cell<u32>,
    seen: Cell<u32>,
    put_at: Option<u32>,
    end_access_at: Option<u32>,
}

impl References for Looks<'_> {
    fn get(&self) {
        self.real.kernel.get();
    }

    fn put(&self) {
        self.real.kernel.put();
    }

    fn freeze(&self, at: u32) -> Result<u32, u32> {
        self.real.kernel.freeze(at)
    }

    fn unfreeze(&self, to: u32) {
        self.real.kernel.unfreeze(to);
    }

    fn is_poisoned(&self) -> bool {
        self.real.kernel.is_poisoned()
    }

    fn relax(&self) {
        let look = Some(self.seen.replace(self.seen.get() + 1));
        if look == self.put_at && self.others.get() > 0 {
            self.others.set(self.others.get() - 1);
            self.real.kernel.put();
        }
        if look == self.end_access_at && self.users.get() > 0 {
            self.users.set(self.users.get() - 1);
            self.real.folio.end_access();
        }
    }
}

fn step_real(
    real: &Real,
    counts: &Counts,
    retry: &mut Retry,
    before: &Model,
    step: Step,
) -> Answer {
    let Real { folio, kernel } = real;
    match step {
        Step::Populate { order } => {
            let result = folio.populate(order, counts);
            if result.is_ok() {
                kernel.count.set(1);
                kernel.broken.set(false);
            }
            result.into()
        }
        Step::Remove if before.users > 0 => Answer::Nothing,
        Step::Remove => {
            let result = folio.remove(counts);
            if result.is_ok() {
                kernel.count.set(0);
            }
            result.into()
        }
        Step::BeginLend { to, put_at, end_access_at } => {
            let looks = Looks {
                real,
                others: before.others.into(),
                users: before.users.into(),
                seen: 0.into(),
                put_at,
                end_access_at,
            };
            folio.begin_lend(to, &looks).map_or_else(Answer::Refused, Answer::Report)
        }
        Step::Retry { refusal } => Answer::Got(retry.after(&refusal, counts).is_some()),
        Step::Lent => folio.lent(counts).into(),
        Step::LendCancelled => folio.lend_cancelled(kernel).into(),
        Step::BeginShare { with } => {
            folio.begin_share(with, kernel).map_or_else(Answer::Refused, |()| Answer::Done)
        }
        Step::Shared => folio.shared(counts).into(),
        Step::ShareCancelled => folio.share_cancelled().into(),
        Step::BeginTakeBack => {
            folio.begin_take_back(counts).map_or_else(Answer::Wrong, Answer::How)
        }
        Step::TakenBack => folio.taken_back(kernel, counts).into(),
        Step::Kept { quarantine } => folio.kept(quarantine, counts).into(),
        Step::Broken => folio.broken(counts).into(),
        Step::Hold => folio.hold(kernel).into(),
        Step::Unhold => folio.unhold(kernel).into(),
        Step::BeginSplit => {
            let result = folio.begin_split(kernel);
            result.map_or_else(Answer::Refused, |()| Answer::Done)
        }
        // What a kernel makes of it has a reference each; that is not this folio's.
        Step::Split => folio.split(counts).into(),
        Step::BrokenAtHome => folio.broken_at_home(counts).into(),
        Step::RestTakenBack => folio.rest_taken_back(kernel, counts).into(),
        Step::RemoveBroken if before.users > 0 => Answer::Nothing,
        Step::RemoveBroken => {
            let result = folio.remove_broken(kernel, counts);
            if result.is_ok() {
                assert_eq!(kernel.count.get(), 1 + before.others, "thawed, to be let go of");
                kernel.count.set(0);
            }
            result.into()
        }
        Step::Access => folio.access().into(),
        Step::EndAccess if before.users == 0 => Answer::Nothing,
        Step::EndAccess => {
            folio.end_access();
            Answer::Done
        }
        Step::TryGet => {
            let count = kernel.count.get();
            kernel.count.set(if count == 0 { 0 } else { count + 1 });
            Answer::Got(count != 0)
        }
        Step::Put if before.others == 0 => Answer::Nothing,
        Step::Put => {
            kernel.count.set(kernel.count.get() - 1);
            Answer::Done
        }
        Step::Break => {
            kernel.broken.set(before.place != Place::Nowhere);
            Answer::Done
        }
    }
}

fn compare(real: &Real, model: &Model) {
    let Real { folio, kernel } = real;
    assert_eq!(folio.state(), model.state());
    assert_eq!(folio.borrower(), model.borrower());
    let rest_of = match model.place {
        Place::Lost(Some((_, borrower))) if borrower.vm != 0 => Some(borrower),
        _ => None,
    };
    assert_eq!(folio.borrower_of_rest(), rest_of);
    let reachable = matches!(model.state(), State::Present | State::Shared);
    assert_eq!(folio.is_reachable(), reachable);
    assert_eq!(folio.holders(), model.holders, "safe references");
    let there = model.place != Place::Nowhere && !model.is_frozen();
    let safe = if there { 1 + model.holders } else { 0 };
    assert_eq!(kernel.count.get(), safe + model.others, "references");
}

fn compare_counts(counts: &Counts, models: &[Model]) {
    let sum = |filter: &dyn Fn(&Model) -> bool| {
        models.iter().filter(|model| filter(model)).map(|model| 1 << model.order).sum::<u64>()
    };
    let of = |wanted| sum(&|model| model.state() == wanted);
    // What is on its way out still counts as present, what is on its way home
    // as nothing.
    let present = of(State::Present) + sum(&|model| matches!(model.place, Place::Leaving(..)));
    assert_eq!(counts.present(), present, "present");
    assert_eq!(counts.lent(), of(State::Lent), "lent");
    assert_eq!(counts.shared(), of(State::Shared), "shared");
    assert_eq!(counts.quarantined(), of(State::Quarantined), "quarantined");
    assert_eq!(counts.poisoned(), of(State::Poisoned), "poisoned");
}

fn play(history: &[(usize, Step)]) {
    let counts = Counts::default();
    let reals: [Real; FOLIOS] = Default::default();
    let mut models = [Model::NEW; FOLIOS];
    let (mut retry, mut patience) = (Retry::new(), 0);
    for &(which, step) in history {
        let (real, model) = (&reals[which], &mut models[which]);
        let seen = step_real(real, &counts, &mut retry, model, step);
        assert_eq!(seen, step_model(model, &mut patience, step), "{step:?}, folio {which}");
        compare(real, model);
        compare_counts(&counts, &models);
        assert_eq!(counts.retries(), u64::from(patience));
    }
    // All comes home, and leaves nothing behind.
    for (real, model) in reals.iter().zip(&mut models) {
        let mut steps = vec![Step::LendCancelled, Step::ShareCancelled];
        steps.extend([Step::BeginTakeBack, Step::TakenBack]);
        steps.extend(vec![Step::EndAccess; model.users as usize]);
        steps.extend(vec![Step::Put; model.others as usize]);
        steps.extend(vec![Step::Unhold; model.holders as usize]);
        steps.push(Step::Remove);
        for step in steps {
            let seen = step_real(real, &counts, &mut retry, model, step);
            assert_eq!(seen, step_model(model, &mut patience, step), "{step:?} at the end");
        }
        compare(real, model);
        let is_lost = matches!(model.place, Place::Lost(_));
        assert_eq!(model.state(), if is_lost { State::Poisoned } else { State::Hole });
    }
    compare_counts(&counts, &models);
}

fn borrower() -> impl Strategy<Value = Borrower> {
    (1..4u64, 0..4u64).prop_map(|(vm, guest)| Borrower { vm, guest: guest << 12 })
}

fn moment() -> impl Strategy<Value = Option<u32>> {
    // One more than there are.
    prop::option::weighted(0.3, 0..=LOOKS)
}

/// The steps of a life come often, so that histories get anywhere.
fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![Just(0), Just(9)].prop_map(|order| Step::Populate { order }),
        1 => Just(Step::Remove),
        8 => (borrower(), moment(), moment())
            .prop_map(|(to, put_at, end_access_at)| Step::BeginLend { to, put_at, end_access_at }),
        1 => prop_oneof![
            Just(Refusal::Excess(1)),
            Just(Refusal::Accessible(1)),
            Just(Refusal::Poisoned)
        ]
        .prop_map(|refusal| Step::Retry { refusal }),
        8 => Just(Step::Lent),
        2 => Just(Step::LendCancelled),
        4 => borrower().prop_map(|with| Step::BeginShare { with }),
        6 => Just(Step::Shared),
        2 => Just(Step::ShareCancelled),
        8 => Just(Step::BeginTakeBack),
        6 => Just(Step::TakenBack),
        4 => any::<bool>().prop_map(|quarantine| Step::Kept { quarantine }),
        1 => Just(Step::Broken),
        3 => Just(Step::Hold),
        3 => Just(Step::Unhold),
        2 => Just(Step::BeginSplit),
        1 => Just(Step::Split),
        1 => Just(Step::BrokenAtHome),
        1 => Just(Step::RestTakenBack),
        1 => Just(Step::RemoveBroken),
        2 => Just(Step::Access),
        3 => Just(Step::EndAccess),
        2 => Just(Step::TryGet),
        3 => Just(Step::Put),
        1 => Just(Step::Break),
    ]
}

#[test]
fn the_bookkeeping_does_as_the_model() {
    let cases = env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = Config {
        cases: cases.unwrap_or(CASES),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        ..Config::default()
    };
    let history = prop::collection::vec((0..FOLIOS, step()), 1..80);
    let played = TestRunner::new(config).run(&history, |history| {
        play(&history);
        Ok(())
    });
    if let Err(error) = played {
        panic!("{error}");
    }
}
