// SPDX-License-Identifier: MIT OR Apache-2.0

//! How many tables a change will need.

use super::level_shift;
use crate::addr::Ipa;

/// Counts the tables that a change will need, over addresses in ascending
/// order. In another order the count may be too high, never too low.
#[derive(Debug)]
pub struct TableCount {
    /// For each level, the last table that was counted as new.
    counted: [u64; 4],
    tables: u64,
}

impl TableCount {
    /// Nothing yet.
    pub const fn new() -> TableCount {
        TableCount { counted: [u64::MAX; 4], tables: 0 }
    }

    /// How many.
    #[inline]
    pub fn tables(&self) -> u64 {
        self.tables
    }

    pub(super) fn add(&mut self, at: Ipa, level: u8) {
        let prefix = at.0 >> level_shift(level - 1);
        let counted = &mut self.counted[level as usize % 4];
        if *counted != prefix {
            *counted = prefix;
            self.tables += 1;
        }
    }
}

impl Default for TableCount {
    fn default() -> Self {
        Self::new()
    }
}
