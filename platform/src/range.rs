// SPDX-License-Identifier: MIT OR Apache-2.0

//! Ranges of physical addresses, and sets of them.

use core::fmt;

use arrayvec::ArrayVec;

/// Physical addresses from `start` up to, and not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// One past the last address; never below `start`.
    pub end: u64,
}

impl Range {
    /// The addresses from `start` up to `end`; empty if `end` is below.
    pub const fn new(start: u64, end: u64) -> Range {
        Range { start, end: if end < start { start } else { end } }
    }

    /// `size` bytes from `start`; `None` if that runs past the end of the
    /// address space.
    pub const fn with_size(start: u64, size: u64) -> Option<Range> {
        match start.checked_add(size) {
            Some(end) => Some(Range { start, end }),
            None => None,
        }
    }

    /// Bytes.
    pub const fn size(&self) -> u64 {
        self.end - self.start
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether all of `other` is in it.
    pub const fn contains(&self, other: &Range) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether it has an address in common with `other`.
    pub const fn overlaps(&self, other: &Range) -> bool {
        self.start < other.end && other.start < self.end && !self.is_empty() && !other.is_empty()
    }

    /// What it has in common with `other`; empty if nothing.
    pub fn intersection(&self, other: &Range) -> Range {
        Range::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The smallest range around it that begins and ends at a multiple of
    /// `align`, a power of two. `None` if that runs past the address space.
    pub fn aligned_out(&self, align: u64) -> Option<Range> {
        Some(Range::new(self.start & !(align - 1), align_up(self.end, align)?))
    }
}

/// The next multiple of `align`, a power of two.
pub const fn align_up(value: u64, align: u64) -> Option<u64> {
    match value.checked_add(align - 1) {
        Some(value) => Some(value & !(align - 1)),
        None => None,
    }
}

/// As first and last address, the way Linux prints resources.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end.saturating_sub(1).max(self.start))
    }
}

/// More ranges than the set has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A set of addresses as up to `N` ranges: in order, apart from each other, none empty.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RangeSet<const N: usize> {
    ranges: ArrayVec<Range, N>,
}

impl<const N: usize> RangeSet<N> {
    /// The empty set.
    pub fn new() -> Self {
        Self { ranges: ArrayVec::new() }
    }

    /// The ranges, in order.
    pub fn iter(&self) -> core::slice::Iter<'_, Range> {
        self.ranges.iter()
    }

    /// The ranges, in order.
    pub fn as_slice(&self) -> &[Range] {
        &self.ranges
    }

    /// Bytes in the set.
    pub fn size(&self) -> u64 {
        self.ranges.iter().map(Range::size).sum()
    }

    /// Adds a range; what touches or overlaps it becomes one with it.
    ///
    /// # Errors
    ///
    /// [`Full`], and the set is unchanged.
    pub fn insert(&mut self, mut range: Range) -> Result<(), Full> {
        if range.is_empty() {
            return Ok(());
        }
        let first = self.ranges.iter().take_while(|r| r.end < range.start).count();
        let joined = self.ranges.iter().skip(first).take_while(|r| r.start <= range.end).count();
        for old in self.ranges.iter().skip(first).take(joined) {
            range = Range::new(range.start.min(old.start), range.end.max(old.end));
        }
        if joined == 0 {
            return self.ranges.try_insert(first, range).map_err(|_| Full);
        }
        self.ranges.drain(first + 1..first + joined);
        if let Some(slot) = self.ranges.get_mut(first) {
            *slot = range;
        }
        Ok(())
    }

    /// Takes a range out.
    ///
    /// # Errors
    ///
    /// [`Full`] if that would leave more than `N` ranges, and the set is
    /// unchanged.
    pub fn remove(&mut self, range: Range) -> Result<(), Full> {
        if range.is_empty() {
            return Ok(());
        }
        let mut left: ArrayVec<Range, N> = ArrayVec::new();
        for old in &self.ranges {
            let below = Range::new(old.start, old.end.min(range.start));
            let above = Range::new(old.start.max(range.end), old.end);
            for piece in [below, above] {
                if !piece.is_empty() {
                    left.try_push(piece).map_err(|_| Full)?;
                }
            }
        }
        self.ranges = left;
        Ok(())
    }

    /// Whether all of `range` is in the set.
    pub fn contains(&self, range: &Range) -> bool {
        range.is_empty() || self.ranges.iter().any(|r| r.contains(range))
    }

    /// The first range of the set that overlaps `range`.
    pub fn overlapping(&self, range: &Range) -> Option<Range> {
        self.ranges.iter().find(|r| r.overlaps(range)).copied()
    }

    /// The lowest `size` bytes at a multiple of `align`, a power of two.
    pub fn lowest_fit(&self, size: u64, align: u64) -> Option<Range> {
        self.ranges.iter().find_map(|r| {
            let fit = Range::with_size(align_up(r.start, align)?, size)?;
            r.contains(&fit).then_some(fit)
        })
    }

    /// The highest `size` bytes at a multiple of `align`, a power of two.
    pub fn highest_fit(&self, size: u64, align: u64) -> Option<Range> {
        self.ranges.iter().rev().find_map(|r| {
            let fit = Range::with_size(r.end.checked_sub(size)? & !(align - 1), size)?;
            r.contains(&fit).then_some(fit)
        })
    }
}

impl<'s, const N: usize> IntoIterator for &'s RangeSet<N> {
    type Item = &'s Range;
    type IntoIter = core::slice::Iter<'s, Range>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_do_not_wrap() {
        assert_eq!(Range::with_size(u64::MAX, 2), None);
        assert!(Range::new(5, 3).is_empty());
        assert_eq!(Range::new(1, u64::MAX).aligned_out(0x1000), None);
    }

    #[test]
    fn fits_are_aligned_and_inside() {
        let mut set = RangeSet::<4>::new();
        set.insert(Range::new(0x1800, 0x9000)).unwrap();
        set.insert(Range::new(0x10000, 0x10800)).unwrap();
        assert_eq!(set.lowest_fit(0x1000, 0x1000), Some(Range::new(0x2000, 0x3000)));
        assert_eq!(set.highest_fit(0x1000, 0x1000), Some(Range::new(0x8000, 0x9000)));
        assert_eq!(set.highest_fit(0x800, 0x800), Some(Range::new(0x10000, 0x10800)));
        assert_eq!(set.lowest_fit(0x8000, 0x1000), None);
        assert_eq!(set.highest_fit(u64::MAX, 1), None);
    }

    #[test]
    fn a_full_set_refuses_and_stays() {
        let mut set = RangeSet::<2>::new();
        set.insert(Range::new(0, 1)).unwrap();
        set.insert(Range::new(10, 20)).unwrap();
        let before = set.clone();
        assert_eq!(set.insert(Range::new(5, 6)), Err(Full));
        assert_eq!(set.remove(Range::new(12, 13)), Err(Full));
        assert_eq!(set, before);
    }

    proptest! {
        /// The set against a bitmap of 64 addresses.
        #[test]
        fn agrees_with_a_bitmap(ops in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..64), 0..40)) {
            let mut set = RangeSet::<64>::new();
            let mut model = 0u64;
            for (add, a, b) in ops {
                let range = Range::new(a, b);
                let mask = (range.start..range.end).fold(0, |m, bit| m | 1u64 << bit);
                if add {
                    set.insert(range).unwrap();
                    model |= mask;
                } else {
                    set.remove(range).unwrap();
                    model &= !mask;
                }
                let seen = set.iter().flat_map(|r| r.start..r.end).fold(0, |m, bit| m | 1u64 << bit);
                prop_assert_eq!(seen, model);
                for pair in set.as_slice().windows(2) {
                    prop_assert!(pair[0].end < pair[1].start);
                }
                prop_assert!(set.iter().all(|r| !r.is_empty()));
            }
        }
    }
}
