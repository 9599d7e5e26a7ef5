// SPDX-License-Identifier: MIT OR Apache-2.0

//! Numbers that a seed makes again.

/// Marsaglia's xorshift: random enough to get in each other's way.
pub struct Random(u64);

impl Random {
    /// A seed of its own for each number.
    pub fn new(seed: u64) -> Random {
        // Small seeds are alike, and zero stays zero.
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // The upper bits are the better ones.
        (self.next() >> 16) % end.max(1)
    }

    /// One of them.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.below(all.len() as u64) as usize)
    }
}
