// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::Refusal;

/// How long to wait before the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Some cycles: a speculative reference is held for that long.
    Spin,
    /// So many microseconds, asleep.
    Sleep(u32),
}

/// What can wait.
pub trait Sleeper {
    /// Waits. `false` if there is no point in going on, for instance because
    /// the task is being killed.
    fn pause(&self, pause: Pause) -> bool;
}

/// The patience with references that may go away by themselves: look-ups
/// without a lock hold one for some cycles, `process_vm_readv` and ptrace for
/// the time of a copy. Whoever holds one for longer than
/// [`Retry::MAX_MICROSECONDS`] has it on purpose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retry {
    tries: u32,
}

impl Retry {
    const SPINS: u32 = 4;
    const SLEEPS: u32 = 6;
    const FIRST_SLEEP: u32 = 20;

    /// The longest time that is slept before giving up.
    pub const MAX_MICROSECONDS: u32 = Self::FIRST_SLEEP * ((1 << Self::SLEEPS) - 1);

    /// A fresh start.
    pub const fn new() -> Self {
        Retry { tries: 0 }
    }

    /// What to do after this refusal; `None`: give up.
    pub fn after(&mut self, refusal: &Refusal) -> Option<Pause> {
        if !refusal.is_transient() {
            return None;
        }
        let tries = self.tries;
        self.tries = tries.saturating_add(1);
        if tries < Self::SPINS {
            Some(Pause::Spin)
        } else if tries < Self::SPINS + Self::SLEEPS {
            Some(Pause::Sleep(Self::FIRST_SLEEP << (tries - Self::SPINS)))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_after_the_time_it_states() {
        let mut retry = Retry::new();
        let mut slept = 0;
        let mut spins = 0;
        while let Some(pause) = retry.after(&Refusal::Excess(1)) {
            match pause {
                Pause::Spin => {
                    assert_eq!(slept, 0, "cheap tries come first");
                    spins += 1;
                }
                Pause::Sleep(microseconds) => slept += microseconds,
            }
        }
        assert_eq!(spins, Retry::SPINS);
        assert_eq!(slept, Retry::MAX_MICROSECONDS);
        assert_eq!(retry.after(&Refusal::Excess(1)), None, "and does not start again");
    }

    #[test]
    fn lasting_reasons_are_not_waited_for() {
        assert_eq!(Retry::new().after(&Refusal::Poisoned), None);
        assert!(Retry::new().after(&Refusal::Accessible(1)).is_some());
        assert!(Retry::new().after(&Refusal::Excess(-1)).is_some());
    }
}
