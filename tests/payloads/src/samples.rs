// SPDX-License-Identifier: MIT OR Apache-2.0

//! Samples of an operation that is measured, as `cargo xtask bench` reads them.

use core::fmt;

/// Samples of one operation. Displayed as the line that the bench reads:
///
/// ```text
/// bench: NAME min M total T n N per P
/// ```
#[derive(Clone, Debug)]
pub struct Samples {
    name: &'static str,
    per: u64,
    /// The least of them, of all `per` operations.
    pub min: u64,
    total: u64,
    n: u64,
}

impl Samples {
    /// None yet; each will be of one operation.
    pub const fn new(name: &'static str) -> Samples {
        Self::per(name, 1)
    }

    /// None yet; each will be of `per` operations.
    pub const fn per(name: &'static str, per: u64) -> Samples {
        Samples { name, per, min: u64::MAX, total: 0, n: 0 }
    }

    /// Adds one.
    pub fn add(&mut self, ticks: u64) {
        self.min = self.min.min(ticks);
        self.total += ticks;
        self.n += 1;
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Samples { name, per, min, total, n } = self;
        write!(f, "bench: {name} min {min} total {total} n {n} per {per}")
    }
}
