// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guest addresses that the host has declared as memory.

use arrayvec::ArrayVec;
use escrow_abi::Error;

use crate::addr::Ipa;

/// Separate ranges of declared memory.
pub const MAX_MEMORY_RANGES: usize = 64;

/// Guest addresses declared as memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryRanges {
    ranges: ArrayVec<(u64, u64), MAX_MEMORY_RANGES>,
}

impl MemoryRanges {
    /// None.
    pub const fn new() -> MemoryRanges {
        MemoryRanges { ranges: ArrayVec::new_const() }
    }

    /// Whether nothing is declared.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether an address is declared.
    pub fn contains(&self, at: Ipa) -> bool {
        let after = self.ranges.partition_point(|r| r.0 <= at.0);
        after > 0 && at.0 < self.ranges[after - 1].1
    }

    /// The same, and where that changes next.
    pub fn look(&self, at: Ipa) -> (bool, u64) {
        let ends = self.ranges.iter().flat_map(|&(base, end)| [(false, base), (true, end)]);
        let next = ends.into_iter().find(|&(_, to)| at.0 < to);
        next.unwrap_or((false, u64::MAX))
    }

    /// Declares `base..end`; joins what touches it.
    pub fn add(&mut self, base: u64, end: u64) -> Result<(), Error> {
        let (mut base, mut end) = (base, end);
        let first = self.ranges.partition_point(|r| r.1 < base);
        let last = self.ranges.partition_point(|r| r.0 <= end);
        if first < last {
            base = base.min(self.ranges[first].0);
            end = end.max(self.ranges[last - 1].1);
            self.ranges.drain(first..last);
        }
        self.ranges.try_insert(first, (base, end)).map_err(|_| Error::TableFull)
    }

    /// Withdraws `base..end`, wherever it is declared.
    pub fn remove(&mut self, base: u64, end: u64) -> Result<(), Error> {
        let first = self.ranges.partition_point(|r| r.1 <= base);
        let last = self.ranges.partition_point(|r| r.0 < end);
        if first >= last {
            return Ok(());
        }
        let head = (self.ranges[first].0, base);
        let tail = (end, self.ranges[last - 1].1);
        let kept = [head, tail].into_iter().filter(|r| r.0 < r.1);
        if self.ranges.len() - (last - first) + kept.clone().count() > MAX_MEMORY_RANGES {
            return Err(Error::TableFull);
        }
        self.ranges.drain(first..last);
        for (n, range) in kept.enumerate() {
            self.ranges.insert(first + n, range);
        }
        Ok(())
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(ranges: &MemoryRanges) -> Vec<(u64, u64)> {
        ranges.ranges.to_vec()
    }

    #[test]
    fn ranges_join_and_split() {
        let mut ranges = MemoryRanges::default();
        ranges.add(0x4000, 0x6000).unwrap();
        ranges.add(0x1000, 0x2000).unwrap();
        ranges.add(0x2000, 0x3000).unwrap();
        assert_eq!(declared(&ranges), [(0x1000, 0x3000), (0x4000, 0x6000)]);
        ranges.add(0x3000, 0x4000).unwrap();
        assert_eq!(declared(&ranges), [(0x1000, 0x6000)]);
        ranges.remove(0x2000, 0x3000).unwrap();
        assert_eq!(declared(&ranges), [(0x1000, 0x2000), (0x3000, 0x6000)]);
        ranges.remove(0x0, 0x4000).unwrap();
        assert_eq!(declared(&ranges), [(0x4000, 0x6000)]);
        assert!(ranges.contains(Ipa(0x4000)) && ranges.contains(Ipa(0x5fff)));
        assert!(!ranges.contains(Ipa(0x3fff)) && !ranges.contains(Ipa(0x6000)));
        let looks = [0x3fff, 0x4000, 0x5fff, 0x6000].map(|at| ranges.look(Ipa(at)));
        let expected = [(false, 0x4000), (true, 0x6000), (true, 0x6000), (false, u64::MAX)];
        assert_eq!(looks, expected);
    }

    #[test]
    fn a_full_set_of_ranges_refuses_and_keeps() {
        let mut ranges = MemoryRanges::default();
        for n in 0..MAX_MEMORY_RANGES as u64 {
            ranges.add(n * 0x10000, n * 0x10000 + 0x4000).unwrap();
        }
        let before = declared(&ranges);
        assert_eq!(ranges.add(0xfff0_0000, 0xfff0_1000), Err(Error::TableFull));
        assert_eq!(ranges.remove(0x1000, 0x2000), Err(Error::TableFull));
        assert_eq!(declared(&ranges), before);
        // Joining needs no room.
        ranges.add(0x4000, 0x5000).unwrap();
    }
}
