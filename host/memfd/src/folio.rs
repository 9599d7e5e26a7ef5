// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::{Counts, Refusal};

/// Where a folio of a guest memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum State {
    /// Nowhere: no memory has been allocated.
    Hole = 0,
    /// In the host, which alone reaches it.
    Present = 1,
    /// Frozen, or about to be, on its way to a guest.
    Lending = 2,
    /// With a guest, which alone reaches it. Frozen.
    Lent = 3,
    /// On its way to be reached by a guest as well.
    Sharing = 4,
    /// Reached by the host and by a guest.
    Shared = 5,
    /// The hypervisor is being asked for it.
    TakingBack = 6,
    /// Should be home, but the hypervisor keeps it: out of use until it does
    /// not. Reached only from states in which a guest had it.
    Quarantined = 7,
    /// Broken: out of use for good. The folio stays frozen, if it was when it
    /// broke.
    Poisoned = 8,
}

impl State {
    const ALL: [State; 9] = [
        State::Hole,
        State::Present,
        State::Lending,
        State::Lent,
        State::Sharing,
        State::Shared,
        State::TakingBack,
        State::Quarantined,
        State::Poisoned,
    ];

    fn from_number(number: u32) -> State {
        // Only `as u32` of a `State` is ever stored, so no other number occurs. If one
        // did, `Poisoned` keeps everybody from the folio.
        Self::ALL.get(number as usize).copied().unwrap_or(State::Poisoned)
    }
}

/// The way in which a guest has a folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum How {
    /// Lent: the host does not reach it.
    Lent = 0,
    /// Shared: both reach it.
    Shared = 1,
}

/// Who has a folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Borrower {
    /// The VM's handle.
    pub vm: u64,
    /// The guest address, or 0 for metadata of the VM.
    pub guest: u64,
}

/// What the hypervisor is told about a folio's users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// All references, as counted when they were frozen.
    pub refcount: u32,
    /// Those of holders that agree.
    pub safe: u32,
    /// Kernel users that need to reach the folio.
    pub accessible: u32,
}

/// A folio's reference count, which is the kernel's.
pub trait References {
    /// One more. The caller knows that there is one, and that the count is not
    /// frozen.
    fn get(&self);

    /// One less, which is not the last one.
    fn put(&self);

    /// Blocks the count if it is `at`: from then on, nobody gets a reference.
    /// One atomic step. → the count that was found and blocked
    ///
    /// # Errors
    /// The count as it is, if it is another.
    fn freeze(&self, at: u32) -> Result<u32, u32>;

    /// Ends a freeze. The count is `to` again.
    fn unfreeze(&self, to: u32);

    /// Whether the memory behind the folio is known to be broken.
    fn is_poisoned(&self) -> bool;

    /// Some cycles pass, in which a speculative reference may go.
    fn relax(&self);
}

/// What is kept about one folio. All-zero bytes are a valid value: a hole.
///
/// Transitions out of a state that the folio is not in are refused and change
/// nothing, so that a mistake of the caller's stays visible and harmless.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Folio {
    state: AtomicU32,
    safe: AtomicU32,
    accessible: AtomicU32,
    /// What the reference count was frozen at, 0 if it is not.
    frozen: AtomicU32,
    vm: AtomicU64,
    guest: AtomicU64,
    /// The folio is `1 << order` pages.
    order: AtomicU32,
}

const _: () = assert!(cfg!(loom) || size_of::<Folio>() == 40);

impl Folio {
    /// The largest order: far more than any kernel allocates.
    const ORDER_MAX: u32 = 31;
    /// Tries to freeze a folio that are made at once: look-ups without a lock
    /// hold a reference for some cycles.
    const TRIES: u32 = 5;

    /// Where the folio is.
    pub fn state(&self) -> State {
        State::from_number(self.state.load(Ordering::Acquire))
    }

    /// Order of the folio: it is `1 << order` pages.
    pub fn order(&self) -> u32 {
        self.order.load(Ordering::Relaxed)
    }

    fn pages(&self) -> u64 {
        1 << self.order()
    }

    /// Who has the folio, and how, if it is in a state in which a guest may
    /// have it, and the host may ask for it.
    pub fn borrower(&self) -> Option<(How, Borrower)> {
        match self.state() {
            State::Hole | State::Present | State::Lending | State::Sharing | State::Poisoned => {
                None
            }
            State::Lent | State::Shared | State::TakingBack | State::Quarantined => Some((
                self.how(),
                Borrower {
                    vm: self.vm.load(Ordering::Relaxed),
                    guest: self.guest.load(Ordering::Relaxed),
                },
            )),
        }
    }

    /// Whether the host may map the folio: it is there and not frozen.
    pub fn is_reachable(&self) -> bool {
        matches!(self.state(), State::Present | State::Shared)
    }

    /// `1 << order` pages have been allocated and zeroed, and the memory itself
    /// holds the one reference to them, which is a safe one.
    ///
    /// # Errors
    /// The state, if it is not [`State::Hole`].
    pub fn populate(&self, order: u32, counts: &Counts) -> Result<(), State> {
        self.expect(State::Hole)?;
        self.safe.store(1, Ordering::Relaxed);
        // The page counts of larger orders would overflow.
        self.order.store(order.min(Self::ORDER_MAX), Ordering::Relaxed);
        self.step(State::Hole, State::Present)?;
        counts.moved(State::Hole, State::Present, self.pages());
        Ok(())
    }

    /// The folio leaves the memory; the caller drops its reference. Whoever
    /// has one that is not counted as safe keeps the folio alive for itself.
    ///
    /// # Errors
    /// The state, if it is not [`State::Present`], or if somebody else has a
    /// safe reference: this record counts it.
    pub fn remove(&self, counts: &Counts) -> Result<(), State> {
        if self.holders() != 0 {
            return Err(self.state());
        }
        self.step(State::Present, State::Hole)?;
        counts.moved(State::Present, State::Hole, self.pages());
        Ok(())
    }

    /// How many safe references there are besides the memory's own.
    pub fn holders(&self) -> u32 {
        self.safe.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Takes a safe reference for a kernel user, which hinders no lend by
    /// itself: the user reaches the folio only within
    /// [`access`](Self::access). The reference and its count change together,
    /// as the caller keeps transitions of the folio off. A frozen folio has its
    /// new reference when it is thawed.
    ///
    /// # Errors
    /// The state, if there is no folio, if it is lost, or if it is in a
    /// transition.
    pub fn hold(&self, refs: &impl References) -> Result<(), State> {
        match self.state() {
            State::Present | State::Shared | State::Lent | State::Quarantined => {}
            state => return Err(state),
        }
        match self.frozen.load(Ordering::Relaxed) {
            0 => refs.get(),
            count => self.frozen.store(count + 1, Ordering::Relaxed),
        }
        self.safe.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Gives up what a successful [`hold`](Self::hold) took, wherever the folio
    /// is by now. As there, the caller keeps transitions off.
    ///
    /// # Errors
    /// The state, if the folio is in a transition, or nobody has a safe
    /// reference but the memory.
    pub fn unhold(&self, refs: &impl References) -> Result<(), State> {
        match self.state() {
            State::Present | State::Shared | State::Lent => {}
            State::Quarantined | State::Poisoned => {}
            state => return Err(state),
        }
        if self.holders() == 0 {
            return Err(self.state());
        }
        self.safe.fetch_sub(1, Ordering::Relaxed);
        match self.frozen.load(Ordering::Relaxed) {
            0 => refs.put(),
            count => self.frozen.store(count - 1, Ordering::Relaxed),
        }
        Ok(())
    }

    /// Freezes the folio for lending it to that borrower. Its user mappings
    /// are gone and nobody can make new ones until the transition is over.
    /// Tries a few times, without sleeping: see [`Retry`](crate::Retry).
    ///
    /// # Errors
    /// A [`Refusal`]; the folio is then as it was.
    pub fn begin_lend(&self, to: Borrower, refs: &impl References) -> Result<Report, Refusal> {
        self.step(State::Present, State::Lending).map_err(|state| self.why_not(state))?;
        let report = self.freeze_in_a_few_tries(|refs: &_| self.freeze_if_sound(refs), refs)?;
        self.meant_for(to);
        Ok(report)
    }

    /// Freezes the folio for making smaller ones of it, as for a lend; that a page of
    /// it is broken is a reason to, and not one against it. Safe references are one:
    /// they are to this folio.
    ///
    /// # Errors
    /// A [`Refusal`]; the folio is then as it was.
    pub fn begin_split(&self, refs: &impl References) -> Result<(), Refusal> {
        self.step(State::Present, State::Lending).map_err(|state| self.why_not(state))?;
        let alone = |refs: &_| match self.holders() {
            0 => self.freeze(refs),
            holders => Err(Refusal::Excess(holders.into())),
        };
        self.freeze_in_a_few_tries(alone, refs)?;
        self.meant_for(Borrower { vm: 0, guest: 0 });
        Ok(())
    }

    /// The folio is no more: its pages are folios of their own. Whoever made them has
    /// ended the freeze.
    ///
    /// # Errors
    /// The state, if it is not [`State::Lending`], or somebody has a safe reference.
    pub fn split(&self, counts: &Counts) -> Result<(), State> {
        self.expect(State::Lending)?;
        if self.holders() != 0 {
            return Err(State::Lending);
        }
        self.frozen.store(0, Ordering::Relaxed);
        self.settle(State::Hole);
        counts.moved(State::Present, State::Hole, self.pages());
        Ok(())
    }

    /// A lent folio, of which the guest may give up a part, is no more: its pages are folios of
    /// their own, for [`populate_lent`](Self::populate_lent). Whoever made them has ended the
    /// freeze. → who has them
    ///
    /// # Errors
    /// The state, if it is not [`State::Lent`], if it is one page, or if somebody has a safe
    /// reference: that is to this folio.
    pub fn split_lent(&self, counts: &Counts) -> Result<Borrower, State> {
        let borrower = match self.borrower() {
            Some((How::Lent, borrower)) if self.order() != 0 && self.holders() == 0 => borrower,
            _ => return Err(self.state()),
        };
        self.step(State::Lent, State::Hole)?;
        self.frozen.store(0, Ordering::Relaxed);
        counts.moved(State::Lent, State::Hole, self.pages());
        Ok(borrower)
    }

    /// One page of a folio that [`split_lent`](Self::split_lent) has ended, with the memory's
    /// one reference: it is with the guest, and frozen.
    ///
    /// # Errors
    /// A [`Refusal`] while somebody else has a reference for a moment. Nothing has changed
    /// then: nobody maps the page, so nobody keeps one.
    pub fn populate_lent(
        &self,
        to: Borrower,
        refs: &impl References,
        counts: &Counts,
    ) -> Result<(), Refusal> {
        self.expect(State::Hole).map_err(Refusal::State)?;
        let count = refs.freeze(1).map_err(|count| Refusal::Excess(i64::from(count) - 1))?;
        self.safe.store(1, Ordering::Relaxed);
        self.order.store(0, Ordering::Relaxed);
        self.frozen.store(count, Ordering::Relaxed);
        self.meant_for(to);
        self.settle(State::Lent);
        counts.moved(State::Hole, State::Lent, 1);
        Ok(())
    }

    fn freeze_in_a_few_tries<R: References>(
        &self,
        freeze: impl Fn(&R) -> Result<Report, Refusal>,
        refs: &R,
    ) -> Result<Report, Refusal> {
        match freeze(refs) {
            Ok(report) => Ok(report),
            Err(refusal) => self.freeze_again(refusal, freeze, refs),
        }
    }

    /// The tries after the first. Out of line: nearly all lends need no second try, and
    /// each of them would save the registers that this uses.
    #[cold]
    #[inline(never)]
    fn freeze_again<R: References>(
        &self,
        mut refusal: Refusal,
        freeze: impl Fn(&R) -> Result<Report, Refusal>,
        refs: &R,
    ) -> Result<Report, Refusal> {
        for _ in 1..Self::TRIES {
            if !refusal.is_transient() {
                break;
            }
            refs.relax();
            match freeze(refs) {
                Ok(report) => return Ok(report),
                Err(next) => refusal = next,
            }
        }
        self.settle(State::Present);
        Err(refusal)
    }

    fn freeze_if_sound(&self, refs: &impl References) -> Result<Report, Refusal> {
        if refs.is_poisoned() { Err(Refusal::Poisoned) } else { self.freeze(refs) }
    }

    /// The report has what was read: the count that was frozen, and the
    /// safe references, read again now that none can be taken. The two
    /// are equal unless this host has miscounted; then EL2 refuses.
    fn freeze(&self, refs: &impl References) -> Result<Report, Refusal> {
        // Orders the change of the state before the reading of the count; `access` has the
        // fence of the other side.
        fence(Ordering::SeqCst);
        let accessible = self.accessible.load(Ordering::Acquire);
        if accessible != 0 {
            return Err(Refusal::Accessible(accessible));
        }
        let safe = self.safe.load(Ordering::Relaxed);
        let refcount = refs
            .freeze(safe)
            .map_err(|refcount| Refusal::Excess(i64::from(refcount) - i64::from(safe)))?;
        self.frozen.store(refcount, Ordering::Relaxed);
        Ok(Report { refcount, safe: self.safe.load(Ordering::Relaxed), accessible })
    }

    /// The hypervisor has taken the folio.
    ///
    /// # Errors
    /// The state, if it is not [`State::Lending`].
    pub fn lent(&self, counts: &Counts) -> Result<(), State> {
        self.expect(State::Lending)?;
        self.settle(State::Lent);
        counts.moved(State::Present, State::Lent, self.pages());
        Ok(())
    }

    /// The hypervisor has refused the folio, or was not asked.
    ///
    /// # Errors
    /// The state, if it is not [`State::Lending`].
    pub fn lend_cancelled(&self, refs: &impl References) -> Result<(), State> {
        self.expect(State::Lending)?;
        self.thaw(refs);
        self.settle(State::Present);
        Ok(())
    }

    /// Prepares the folio for sharing it with that borrower: a guest's reach is
    /// one more user that needs the folio to stay.
    ///
    /// # Errors
    /// A [`Refusal`]; the folio is then as it was.
    pub fn begin_share(&self, with: Borrower, refs: &impl References) -> Result<(), Refusal> {
        self.step(State::Present, State::Sharing).map_err(|state| self.why_not(state))?;
        if refs.is_poisoned() {
            self.settle(State::Present);
            return Err(Refusal::Poisoned);
        }
        self.meant_for(with);
        self.accessible.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The hypervisor has opened the folio to the guest.
    ///
    /// # Errors
    /// The state, if it is not [`State::Sharing`].
    pub fn shared(&self, counts: &Counts) -> Result<(), State> {
        self.expect(State::Sharing)?;
        self.settle(State::Shared);
        counts.moved(State::Present, State::Shared, self.pages());
        Ok(())
    }

    /// The hypervisor has refused to share the folio, or was not asked.
    ///
    /// # Errors
    /// The state, if it is not [`State::Sharing`].
    pub fn share_cancelled(&self) -> Result<(), State> {
        self.expect(State::Sharing)?;
        self.accessible.fetch_sub(1, Ordering::Release);
        self.settle(State::Present);
        Ok(())
    }

    /// The hypervisor is about to be asked for the folio.
    ///
    /// # Errors
    /// The state, if no guest has the folio.
    pub fn begin_take_back(&self, counts: &Counts) -> Result<How, State> {
        for from in [State::Lent, State::Shared, State::Quarantined] {
            if self.step(from, State::TakingBack).is_ok() {
                counts.moved(from, State::TakingBack, self.pages());
                return Ok(self.how());
            }
        }
        Err(self.state())
    }

    /// The hypervisor has given the folio back.
    ///
    /// # Errors
    /// The state, if it is not [`State::TakingBack`].
    pub fn taken_back(&self, refs: &impl References, counts: &Counts) -> Result<(), State> {
        self.expect(State::TakingBack)?;
        self.came_home(refs);
        self.settle(State::Present);
        counts.moved(State::TakingBack, State::Present, self.pages());
        Ok(())
    }

    fn came_home(&self, refs: &impl References) {
        match self.how() {
            How::Lent => self.thaw(refs),
            How::Shared => {
                self.accessible.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// The hypervisor has kept the folio. With `quarantine` it should not
    /// have: its borrower is, or is about to be, dead.
    ///
    /// # Errors
    /// The state, if it is not [`State::TakingBack`].
    pub fn kept(&self, quarantine: bool, counts: &Counts) -> Result<(), State> {
        self.expect(State::TakingBack)?;
        let to = match (quarantine, self.how()) {
            (true, _) => State::Quarantined,
            (false, How::Lent) => State::Lent,
            (false, How::Shared) => State::Shared,
        };
        self.settle(to);
        counts.moved(State::TakingBack, to, self.pages());
        Ok(())
    }

    /// The folio is broken, wholly or in a part, and the hypervisor lets nobody
    /// at it any more.
    ///
    /// # Errors
    /// The state, if it is not [`State::TakingBack`].
    pub fn broken(&self, counts: &Counts) -> Result<(), State> {
        self.expect(State::TakingBack)?;
        self.settle(State::Poisoned);
        counts.moved(State::TakingBack, State::Poisoned, self.pages());
        Ok(())
    }

    /// The folio, one page, has broken at home.
    ///
    /// # Errors
    /// The state, if it is not [`State::Present`]. Of a larger folio only a part is
    /// broken: that has to be split first.
    pub fn broken_at_home(&self, counts: &Counts) -> Result<(), State> {
        if self.order() != 0 {
            return Err(self.state());
        }
        self.step(State::Present, State::Poisoned)?;
        self.meant_for(Borrower { vm: 0, guest: 0 });
        counts.moved(State::Present, State::Poisoned, 1);
        Ok(())
    }

    /// The guest that has the sound pages of a large folio with a broken one.
    pub fn borrower_of_rest(&self) -> Option<Borrower> {
        let vm = self.vm.load(Ordering::Relaxed);
        let guest = self.guest.load(Ordering::Relaxed);
        (self.state() == State::Poisoned && vm != 0).then_some(Borrower { vm, guest })
    }

    /// What is whole of a folio that broke in a part is home: the folio is like one
    /// that broke there.
    ///
    /// # Errors
    /// The state, if it is not [`State::Poisoned`] or the folio is one page, which has
    /// no rest.
    pub fn rest_taken_back(&self, refs: &impl References, counts: &Counts) -> Result<(), State> {
        self.expect(State::Poisoned)?;
        if self.order() == 0 {
            return Err(State::Poisoned);
        }
        self.came_home(refs);
        self.settle(State::Present);
        counts.moved(State::Poisoned, State::Present, self.pages());
        Ok(())
    }

    /// The broken folio leaves the memory; the caller drops its reference, and the
    /// allocator knows not to use it again.
    ///
    /// # Errors
    /// The state, if it is not [`State::Poisoned`], or somebody has a safe reference.
    pub fn remove_broken(&self, refs: &impl References, counts: &Counts) -> Result<(), State> {
        self.expect(State::Poisoned)?;
        if self.holders() != 0 {
            return Err(State::Poisoned);
        }
        // A folio that broke at home has not been frozen, so there is nothing to thaw.
        if self.how() == How::Lent || self.vm.load(Ordering::Relaxed) != 0 {
            self.came_home(refs);
        }
        self.settle(State::Hole);
        counts.moved(State::Poisoned, State::Hole, self.pages());
        Ok(())
    }

    /// A kernel user is about to read or write the folio, and needs it to
    /// stay until [`end_access`](Self::end_access).
    ///
    /// Needs no lock: it counts itself first and looks at the state then,
    /// while a lender changes the state first and looks at the count then.
    /// With a sequentially consistent fence between the two steps of each, at
    /// least one of them sees the other.
    ///
    /// # Errors
    /// The state, if the host does not reach the folio.
    pub fn access(&self) -> Result<(), State> {
        self.accessible.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        match self.state() {
            State::Present | State::Sharing | State::Shared => Ok(()),
            state => {
                self.end_access();
                Err(state)
            }
        }
    }

    /// Ends what a successful [`access`](Self::access) began.
    pub fn end_access(&self) {
        self.accessible.fetch_sub(1, Ordering::Release);
    }

    fn how(&self) -> How {
        if self.frozen.load(Ordering::Relaxed) != 0 { How::Lent } else { How::Shared }
    }

    fn why_not(&self, state: State) -> Refusal {
        match (state, self.borrower()) {
            (State::Lent | State::Shared, Some((how, borrower))) => Refusal::Away(how, borrower),
            (State::Poisoned, _) => Refusal::Poisoned,
            (state, _) => Refusal::State(state),
        }
    }

    fn thaw(&self, refs: &impl References) {
        let count = self.frozen.swap(0, Ordering::Relaxed);
        if count != 0 {
            refs.unfreeze(count);
        }
    }

    /// Published by the state that follows.
    fn meant_for(&self, to: Borrower) {
        self.vm.store(to.vm, Ordering::Relaxed);
        self.guest.store(to.guest, Ordering::Relaxed);
    }

    fn step(&self, from: State, to: State) -> Result<(), State> {
        self.state
            .compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(State::from_number)
    }

    fn expect(&self, state: State) -> Result<(), State> {
        match self.state() {
            now if now == state => Ok(()),
            now => Err(now),
        }
    }

    /// Ends a transition that this caller began, so nobody else can be in it.
    fn settle(&self, to: State) {
        self.state.store(to as u32, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
