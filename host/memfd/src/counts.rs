// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::State;
use crate::sync::{AtomicU64, Ordering};

/// How many folios of a memory are where. For people to read: nothing is
/// decided on these numbers, and reading them stops nobody.
///
/// All-zero bytes are a valid, empty value.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Counts {
    present: AtomicU64,
    lent: AtomicU64,
    shared: AtomicU64,
    quarantined: AtomicU64,
}

impl Counts {
    /// Folios that only the host reaches.
    pub fn present(&self) -> u64 {
        self.present.load(Ordering::Relaxed)
    }

    /// Folios that are lent.
    pub fn lent(&self) -> u64 {
        self.lent.load(Ordering::Relaxed)
    }

    /// Folios that are shared.
    pub fn shared(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }

    /// Folios that the hypervisor did not give back.
    pub fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// Moves one folio from the count of `from` to the count of `to`. States
    /// that are on the way to another count as neither.
    pub(crate) fn moved(&self, from: State, to: State) {
        if let Some(count) = self.of(from) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(count) = self.of(to) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn of(&self, state: State) -> Option<&AtomicU64> {
        match state {
            State::Present => Some(&self.present),
            State::Lent => Some(&self.lent),
            State::Shared => Some(&self.shared),
            State::Quarantined => Some(&self.quarantined),
            State::Hole | State::Lending | State::Sharing | State::TakingBack => None,
        }
    }
}
