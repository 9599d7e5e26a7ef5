// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::{Counts, Refusal};

/// The patience with users of a folio that may let go by themselves:
/// `process_vm_readv` and ptrace hold references for the time of a copy.
/// A user that holds one for longer than [`Retry::MAX_MICROSECONDS`] does so on
/// purpose. `folio_put` wakes no waiter, so the lend can only look again after a
/// pause.
///
/// It belongs to one lend. Between two tries the lender holds no lock: those
/// who have the folio may need any of them to let go.
///
/// All-zero bytes are a fresh start.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Retry {
    pauses: u32,
}

impl Retry {
    const PAUSES: u32 = 6;
    const FIRST: u32 = 20;

    /// The longest time that is slept before giving up.
    pub const MAX_MICROSECONDS: u32 = Self::FIRST * ((1 << Self::PAUSES) - 1);

    /// A fresh start.
    pub const fn new() -> Self {
        Retry { pauses: 0 }
    }

    /// For how many microseconds to sleep before the next try; `None`: give
    /// up.
    pub fn after(&mut self, refusal: &Refusal, counts: &Counts) -> Option<u32> {
        if !refusal.is_transient() || self.pauses >= Self::PAUSES {
            return None;
        }
        let microseconds = Self::FIRST << self.pauses;
        self.pauses += 1;
        counts.retried();
        Some(microseconds)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_after_the_time_it_states() {
        let (mut retry, counts) = (Retry::new(), Counts::default());
        let mut slept = 0;
        while let Some(microseconds) = retry.after(&Refusal::Excess(1), &counts) {
            assert!(microseconds > 0, "the folio is looked at again at once by begin_lend alone");
            slept += microseconds;
        }
        assert_eq!(slept, Retry::MAX_MICROSECONDS);
        assert_eq!(counts.retries(), Retry::PAUSES.into());
        assert_eq!(retry.after(&Refusal::Excess(1), &counts), None, "and does not start again");
    }

    #[test]
    fn lasting_reasons_are_not_waited_for() {
        let counts = Counts::default();
        assert_eq!(Retry::new().after(&Refusal::Poisoned, &counts), None);
        assert!(Retry::new().after(&Refusal::Accessible(1), &counts).is_some());
        assert!(Retry::new().after(&Refusal::Excess(-1), &counts).is_some());
    }
}
