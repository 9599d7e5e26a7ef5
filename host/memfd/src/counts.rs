// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::State;
use crate::sync::{AtomicU64, Ordering};

/// How many 4 KiB pages of a memory are where, and how often lending them did
/// not go smoothly. For people to read: nothing is decided on these numbers,
/// and reading them stops nobody.
///
/// All-zero bytes are a valid, empty value.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Counts {
    present: AtomicU64,
    lent: AtomicU64,
    shared: AtomicU64,
    quarantined: AtomicU64,
    poisoned: AtomicU64,
    refusals: AtomicU64,
    retries: AtomicU64,
}

const _: () = assert!(cfg!(loom) || size_of::<Counts>() == 56);

impl Counts {
    /// Pages that only the host reaches.
    pub fn present(&self) -> u64 {
        self.present.load(Ordering::Relaxed)
    }

    /// Pages that are lent.
    pub fn lent(&self) -> u64 {
        self.lent.load(Ordering::Relaxed)
    }

    /// Pages that are shared.
    pub fn shared(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }

    /// Pages that the hypervisor did not give back.
    pub fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Pages of broken folios. While a guest has the rest of one that broke in a part,
    /// all of it counts.
    pub fn poisoned(&self) -> u64 {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// How many times a folio was not lent because somebody used it.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// How many times a lend waited for a user of the folio to go away.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// A lender has given up.
    pub fn refused(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves so many pages from the count of `from` to the count of `to`.
    /// States that are on the way to another count as neither.
    pub(crate) fn moved(&self, from: State, to: State, pages: u64) {
        if let Some(count) = self.of(from) {
            count.fetch_sub(pages, Ordering::Relaxed);
        }
        if let Some(count) = self.of(to) {
            count.fetch_add(pages, Ordering::Relaxed);
        }
    }

    fn of(&self, state: State) -> Option<&AtomicU64> {
        match state {
            State::Present => Some(&self.present),
            State::Lent => Some(&self.lent),
            State::Shared => Some(&self.shared),
            State::Quarantined => Some(&self.quarantined),
            State::Poisoned => Some(&self.poisoned),
            State::Hole | State::Lending | State::Sharing | State::TakingBack => None,
        }
    }
}
