// SPDX-License-Identifier: MIT OR Apache-2.0

/// A moment of a clock that ticks for ever, in as many bits as a folio's record has room
/// for; or none. Ticks count modulo 2³².
///
/// It answers one question, whether it is less than so many ticks ago, from their
/// difference. To ask whether one moment is before another, by the sign of the difference,
/// would be wrong for half of all time: with 250 ticks a second, for the second hundred
/// days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The low bits of the clock, of which the last one is set; 0: never.
    ticks: u32,
}

impl Moment {
    /// The moment at which the clock shows `now`.
    pub const fn at(now: u64) -> Self {
        Moment { ticks: now as u32 | 1 }
    }

    /// What [`to_number`](Self::to_number) made; 0: none.
    pub const fn from_number(ticks: u32) -> Self {
        Moment { ticks }
    }

    /// A number to keep.
    pub const fn to_number(self) -> u32 {
        self.ticks
    }

    /// Whether it is less than so many ticks ago, or one more.
    pub const fn is_within(self, now: u64, ticks: u32) -> bool {
        // The lowest bit is always set, to tell a moment from 0: without it, the moment is
        // never in the future.
        let begin = self.ticks & !1;
        self.ticks != 0 && (now as u32).wrapping_sub(begin) <= ticks
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const WAIT: u32 = 62;

    #[test]
    fn never_is_not_within() {
        for now in [0, 1, 61, u64::from(u32::MAX), 1 << 32] {
            assert!(!Moment::from_number(0).is_within(now, WAIT));
            assert!(!Moment::default().is_within(now, WAIT));
        }
    }

    #[test]
    fn a_while_begins_at_once_and_ends() {
        for begin in [0, 1, 1000, 1001, u64::from(u32::MAX) - 1, u64::from(u32::MAX), 5 << 31] {
            let moment = Moment::from_number(Moment::at(begin).to_number());
            for now in begin..begin + u64::from(WAIT) {
                assert!(moment.is_within(now, WAIT), "{begin} {now}");
            }
            for now in begin + u64::from(WAIT) + 1..begin + 4 * u64::from(WAIT) {
                assert!(!moment.is_within(now, WAIT), "{begin} {now}");
            }
        }
    }

    #[test]
    fn what_is_over_is_over_until_the_clock_is_where_it_was() {
        let moment = Moment::at(1000);
        for shift in 7..32 {
            assert!(!moment.is_within(1000 + (1 << shift), WAIT), "2^{shift} ticks later");
        }
        assert!(!moment.is_within(1000 + u64::from(u32::MAX) - 1, WAIT));
    }
}
