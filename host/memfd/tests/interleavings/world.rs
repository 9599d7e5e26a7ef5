// SPDX-License-Identifier: MIT OR Apache-2.0

//! One folio and everybody who is after it: the kernel's reference count, its
//! lock, its mapping, the memory itself, and the hypervisor.

use escrow_memfd::{Borrower, Counts, Folio, How, References, Refusal, Report, State};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::{Mutex, MutexGuard, RwLock};
use loom::thread;

/// The kernel's reference count of a folio. Its operations that return what
/// they found are fully ordered; `folio_ref_unfreeze` is a release.
pub struct Count(AtomicU32);

impl Count {
    /// How many there are; 0 is frozen, or free.
    pub fn now(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// `folio_try_get`: not from zero.
    pub fn try_get(&self) -> bool {
        let mut count = self.0.load(Ordering::Relaxed);
        while count != 0 {
            match self.0.compare_exchange(count, count + 1, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => count = now,
            }
        }
        false
    }

    /// `folio_put_testzero`
    fn put_testzero(&self) -> bool {
        let before = self.0.fetch_sub(1, Ordering::SeqCst);
        assert_ne!(before, 0, "a frozen folio loses a reference");
        before == 1
    }
}

impl References for Count {
    /// `folio_get`: whoever calls it knows that there is a reference.
    fn get(&self) {
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        assert_ne!(before, 0, "a reference to a frozen folio");
    }

    fn put(&self) {
        assert!(!self.put_testzero(), "the memory's own reference");
    }

    fn freeze(&self, at: u32) -> Result<u32, u32> {
        self.0.compare_exchange(at, 0, Ordering::SeqCst, Ordering::Relaxed)
    }

    fn unfreeze(&self, to: u32) {
        assert_eq!(self.now(), 0, "somebody got a reference meanwhile");
        self.0.store(to, Ordering::Release);
    }

    fn is_poisoned(&self) -> bool {
        false
    }

    fn relax(&self) {
        thread::yield_now();
    }
}

/// How often a lender begins again, after all locks were free.
#[derive(Clone, Copy, Debug)]
pub struct Patience(pub u32);

/// What the hypervisor answers to one actor's calls, one after the other:
/// from the lowest bit on, 1 is a refusal.
#[derive(Clone, Copy, Debug)]
pub struct Answers(pub u32);

impl Answers {
    fn refuses(&mut self) -> bool {
        let refuses = self.0 & 1 != 0;
        self.0 >>= 1;
        refuses
    }
}

/// How a folio is when its story begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// In the host, in no program's tables.
    Home,
    /// In the host, in a program's tables.
    Mapped,
    /// With VM 3.
    Lent,
    /// With VM 3 as well.
    Shared,
    /// It should be home from VM 3.
    Quarantined,
}

/// Who comes by. Each does what it does once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Lends the folio to a VM.
    Lend(u64),
    /// The same without the folio lock, which is wrong, and by itself harmless.
    LendUnlocked(u64),
    /// Takes it back without the lock.
    FetchUnlocked,
    /// Opens it to a VM.
    Share(u64),
    /// A page fault in the host, which fetches it if it is away.
    Fault,
    /// GUP-fast: a pin through the mapping, without a lock.
    Pin,
    /// Whoever finds the folio by its frame: compaction, a look-up.
    Speculate,
    /// A kernel user that needs it to stay.
    Access,
    /// One with a safe reference, which is lent behind its back or not, and
    /// reads it if it is there.
    Hold,
    /// A hole: takes it back, and gives it up.
    Punch,
    /// The same at the end of the memory, where "no" is no answer.
    Release,
    /// Somebody who only looks.
    Look,
}

impl Actor {
    /// Those who do as they should.
    pub const ALL: [Actor; 11] = [
        Actor::Lend(1),
        Actor::Lend(2),
        Actor::Share(2),
        Actor::Fault,
        Actor::Pin,
        Actor::Speculate,
        Actor::Access,
        Actor::Hold,
        Actor::Punch,
        Actor::Release,
        Actor::Look,
    ];

    /// How many calls to the hypervisor it makes, at most.
    pub const fn calls(self) -> u32 {
        match self {
            // The page may be with another VM: it is asked for first.
            Actor::Lend(_) | Actor::Share(_) => 2,
            Actor::LendUnlocked(_) | Actor::FetchUnlocked => 1,
            Actor::Fault | Actor::Punch | Actor::Release => 1,
            Actor::Pin | Actor::Speculate | Actor::Access | Actor::Hold | Actor::Look => 0,
        }
    }
}

pub struct World {
    folio: Folio,
    counts: Counts,
    refs: Count,
    /// Exclusive for those who take the folio out of the memory, shared for
    /// those who found it there.
    invalidate: RwLock<()>,
    /// The folio lock.
    lock: Mutex<()>,
    /// Whether a program's tables hold it. Changes under the folio lock.
    mapped: AtomicBool,
    /// Whether a guest reaches the folio, and how: the hypervisor's ledger.
    el2: Mutex<Option<(How, u64)>>,
    /// What is in the folio. Loom sees to it that whoever writes it, guest,
    /// hypervisor or next owner, comes after all who read it before.
    contents: UnsafeCell<u64>,
}

impl World {
    pub fn new(start: Start) -> World {
        let world = World {
            folio: Folio::default(),
            counts: Counts::default(),
            refs: Count(AtomicU32::new(1)),
            invalidate: RwLock::new(()),
            lock: Mutex::new(()),
            mapped: AtomicBool::new(false),
            el2: Mutex::new(None),
            contents: UnsafeCell::new(0),
        };
        world.folio.populate(0, &world.counts).unwrap();
        let patience = Patience(0);
        match start {
            Start::Home => {}
            Start::Mapped => world.act(Actor::Fault, Answers(0), patience),
            Start::Lent => world.act(Actor::Lend(3), Answers(0), patience),
            Start::Shared => world.act(Actor::Share(3), Answers(0), patience),
            Start::Quarantined => {
                world.act(Actor::Lend(3), Answers(0), patience);
                world.act(Actor::Release, Answers(1), patience);
            }
        }
        world
    }

    pub fn act(&self, actor: Actor, mut answers: Answers, patience: Patience) {
        let answers = &mut answers;
        match actor {
            Actor::Lend(vm) => self.lend(vm, answers, patience),
            Actor::FetchUnlocked => self.fetch_unlocked(answers),
            Actor::LendUnlocked(vm) => {
                self.lend_if_home(vm, answers);
            }
            Actor::Share(vm) => self.share(vm, answers),
            Actor::Fault => self.fault(answers),
            Actor::Pin => self.pin(),
            Actor::Speculate => self.speculate(),
            Actor::Access => self.access(),
            Actor::Hold => self.hold(),
            Actor::Punch => self.clear(false, answers),
            Actor::Release => self.clear(true, answers),
            Actor::Look => self.look(),
        }
    }

    /// The hypervisor is asked to give the folio to a VM.
    fn give(&self, how: How, vm: u64, report: Option<Report>, answers: &mut Answers) -> bool {
        let mut ledger = self.el2.lock().unwrap();
        assert_eq!(*ledger, None, "what a guest has is offered to another");
        if answers.refuses() {
            return false;
        }
        if let Some(Report { refcount, safe, accessible }) = report {
            assert_eq!((refcount, accessible), (safe, 0), "a lend with an excess");
            assert!(safe >= 1, "the memory's own");
            assert_eq!(self.refs.now(), 0, "a lend that is not frozen");
            self.write(vm);
        }
        *ledger = Some((how, vm));
        true
    }

    /// The hypervisor is asked for the folio.
    fn take(&self, answers: &mut Answers) -> bool {
        let mut ledger = self.el2.lock().unwrap();
        let (how, _) = ledger.expect("nobody has what is asked for");
        if answers.refuses() {
            return false;
        }
        if how == How::Lent {
            assert_eq!(self.refs.now(), 0, "a lent folio is not frozen");
            self.write(0);
        }
        *ledger = None;
        true
    }

    fn write(&self, word: u64) {
        // SAFETY: loom panics if somebody else's access may overlap.
        self.contents.with_mut(|contents| unsafe { *contents = word });
    }

    /// A read by the host, which must never see a guest's word.
    fn read(&self) {
        // SAFETY: as above.
        self.contents.with(|contents| assert_eq!(unsafe { *contents }, 0, "a guest's secret"));
    }

    fn put(&self) {
        if self.refs.put_testzero() {
            assert_eq!(*self.el2.lock().unwrap(), None, "a folio is freed that a guest has");
            // The next owner's.
            self.write(u64::MAX);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap()
    }

    /// Whether the memory still has the folio. With the folio locked.
    fn is_there(&self) -> bool {
        self.folio.state() != State::Hole
    }

    /// `unmap_mapping_range`. With the folio locked, so that no page fault
    /// brings the mapping back.
    fn unmap(&self) {
        if self.mapped.swap(false, Ordering::SeqCst) {
            self.put();
        }
    }

    /// Asks for the folio if a guest has it. With the folio locked.
    fn fetch(&self, quarantine: bool, answers: &mut Answers) -> bool {
        if self.folio.borrower().is_none() {
            return true;
        }
        self.folio.begin_take_back(&self.counts).unwrap();
        let home = self.take(answers);
        if home {
            self.folio.taken_back(&self.refs, &self.counts).unwrap();
        } else {
            self.folio.kept(quarantine, &self.counts).unwrap();
        }
        home
    }

    fn fetch_unlocked(&self, answers: &mut Answers) {
        if self.folio.begin_take_back(&self.counts).is_err() {
            // Another does, or nobody has it.
        } else if self.take(answers) {
            self.folio.taken_back(&self.refs, &self.counts).unwrap();
        } else {
            self.folio.kept(false, &self.counts).unwrap();
        }
    }

    fn lend(&self, vm: u64, answers: &mut Answers, patience: Patience) {
        for _ in 0..=patience.0 {
            let _shared = self.invalidate.read().unwrap();
            let _lock = self.lock();
            if !self.is_there() {
                return;
            }
            self.fetch(false, answers);
            self.unmap();
            if self.lend_if_home(vm, answers) {
                return;
            }
        }
    }

    /// Whether there is nothing to wait for.
    fn lend_if_home(&self, vm: u64, answers: &mut Answers) -> bool {
        let to = Borrower { vm, guest: 0 };
        let report = match self.folio.begin_lend(to, &self.refs) {
            Ok(report) => report,
            Err(refusal) => {
                let is_sound = match refusal {
                    Refusal::Excess(excess) => excess > 0,
                    Refusal::Accessible(users) => users > 0,
                    Refusal::Away(..) | Refusal::State(_) => true,
                    Refusal::Poisoned => false,
                };
                assert!(is_sound, "{refusal:?}");
                return !refusal.is_transient();
            }
        };
        if self.give(How::Lent, vm, Some(report), answers) {
            self.folio.lent(&self.counts).unwrap();
        } else {
            self.folio.lend_cancelled(&self.refs).unwrap();
        }
        true
    }

    fn share(&self, vm: u64, answers: &mut Answers) {
        let _shared = self.invalidate.read().unwrap();
        let _lock = self.lock();
        if !self.is_there() {
            return;
        }
        self.fetch(false, answers);
        if self.folio.begin_share(Borrower { vm, guest: 0 }, &self.refs).is_err() {
            assert!(self.folio.borrower().is_some(), "refused while it is home");
        } else if self.give(How::Shared, vm, None, answers) {
            self.folio.shared(&self.counts).unwrap();
        } else {
            self.folio.share_cancelled().unwrap();
        }
    }

    fn fault(&self, answers: &mut Answers) {
        let _shared = self.invalidate.read().unwrap();
        let _lock = self.lock();
        if !self.is_there() {
            return;
        }
        if !self.folio.is_reachable() && !self.fetch(false, answers) {
            return;
        }
        assert!(self.folio.is_reachable());
        self.refs.get();
        if self.mapped.swap(true, Ordering::SeqCst) {
            // Another thread's fault has brought it in.
            self.put();
        }
        self.read();
    }

    fn pin(&self) {
        if !self.mapped.load(Ordering::SeqCst) || !self.refs.try_get() {
            return;
        }
        // The entry is read a second time, now with the reference.
        if self.mapped.load(Ordering::SeqCst) {
            self.read();
        }
        self.put();
    }

    fn speculate(&self) {
        if self.refs.try_get() {
            self.read();
            self.put();
        }
    }

    fn access(&self) {
        let _shared = self.invalidate.read().unwrap();
        if self.folio.access().is_ok() {
            self.read();
            self.folio.end_access();
        }
    }

    fn hold(&self) {
        {
            let _shared = self.invalidate.read().unwrap();
            let _lock = self.lock();
            // A hole may have been there first.
            if self.folio.hold(&self.refs).is_err() {
                assert!(!self.is_there(), "a folio that nobody can hold");
                return;
            }
        }
        // Without a lock, as DMA is begun.
        if self.folio.access().is_ok() {
            self.read();
            self.folio.end_access();
        }
        {
            let _shared = self.invalidate.read().unwrap();
            let _lock = self.lock();
            self.folio.unhold(&self.refs).unwrap();
        }
    }

    fn clear(&self, quarantine: bool, answers: &mut Answers) {
        let exclusive = self.invalidate.write().unwrap();
        let lock = self.lock();
        if !self.is_there() || !self.fetch(quarantine, answers) {
            return;
        }
        if self.folio.holders() != 0 {
            assert_eq!(self.folio.remove(&self.counts), Err(self.folio.state()));
            return;
        }
        self.unmap();
        self.folio.remove(&self.counts).unwrap();
        drop((lock, exclusive));
        self.put();
    }

    fn look(&self) {
        // Without a lock, what is seen may be over, but never nonsense.
        if let Some((_, borrower)) = self.folio.borrower() {
            assert!((1..=3).contains(&borrower.vm), "nobody's");
        }
        let _lock = self.lock();
        let ledger = *self.el2.lock().unwrap();
        let lent = matches!(ledger, Some((How::Lent, _)));
        if self.folio.is_reachable() {
            assert!(!lent, "lent and reachable at once");
            assert_ne!(self.refs.now(), 0, "frozen and reachable at once");
        }
        assert_eq!(self.folio.borrower().map(|(how, of)| (how, of.vm)), ledger);
    }

    /// What must hold when nobody is there any more, and that nothing is lost
    /// for good.
    pub fn check(&self) {
        self.look();
        assert_eq!(self.folio.holders(), 0, "a safe reference is left behind");
        let counts = &self.counts;
        let seen = [counts.present(), counts.lent(), counts.shared(), counts.quarantined()];
        let mapped = u32::from(self.mapped.load(Ordering::SeqCst));
        let (expected, refs) = match self.folio.state() {
            State::Hole => ([0, 0, 0, 0], 0),
            State::Present => ([1, 0, 0, 0], 1 + mapped),
            State::Lent => ([0, 1, 0, 0], 0),
            State::Shared => ([0, 0, 1, 0], 1 + mapped),
            State::Quarantined => match self.folio.borrower() {
                Some((How::Lent, _)) => ([0, 0, 0, 1], 0),
                _ => ([0, 0, 0, 1], 1 + mapped),
            },
            state => panic!("stuck in {state:?}"),
        };
        assert_eq!((seen, self.refs.now()), (expected, refs), "{:?}", self.folio.state());
        if self.folio.state() == State::Hole {
            return;
        }
        // With a hypervisor that agrees, it comes home, goes once more, and ends.
        self.lend(1, &mut Answers(0), Patience(0));
        assert_eq!(self.folio.state(), State::Lent, "somebody is left behind");
        self.clear(true, &mut Answers(0));
        assert_eq!((self.folio.state(), self.refs.now()), (State::Hole, 0));
        assert_eq!(
            [counts.present(), counts.lent(), counts.shared(), counts.quarantined()],
            [0; 4]
        );
    }
}
