// SPDX-License-Identifier: MIT OR Apache-2.0

//! Rows, as `cargo xtask bench` reads them.

use std::io::{self, Write as _};

use anyhow::{Result, ensure};

use crate::guest::Done;

/// The samples of a row, each of `per` operations.
pub struct Row {
    name: String,
    per: u64,
    samples: Vec<i64>,
}

impl Row {
    /// A row of these samples.
    pub fn new(name: impl Into<String>, per: u64, samples: Vec<i64>) -> Row {
        Row { name: name.into(), per, samples }
    }

    /// Ticks of single operations, less `overhead` each.
    pub fn of_ticks(name: &str, done: &Done, overhead: u64) -> Row {
        Row::new(name, 1, done.ticks.iter().map(|&t| t as i64 - overhead as i64).collect())
    }

    /// The same samples, of another row as well.
    pub fn named(&self, name: &str) -> Row {
        Row::new(name, self.per, self.samples.clone())
    }

    /// The samples.
    pub fn samples(&self) -> &[i64] {
        &self.samples
    }

    /// The least sample, 0 if there is none.
    pub fn min(&self) -> i64 {
        self.samples.iter().copied().min().unwrap_or(0)
    }

    /// The mean of the samples.
    pub fn mean(&self) -> f64 {
        self.samples.iter().sum::<i64>() as f64 / self.samples.len().max(1) as f64
    }

    /// Tells the row.
    ///
    /// # Errors
    /// It is nonsense.
    pub fn print(&self) -> Result<()> {
        let Row { name, per, samples } = self;
        let (min, total) = (self.min(), samples.iter().sum::<i64>());
        ensure!(min >= 0 && total > 0, "{name} takes less than nothing: {samples:?}");
        writeln!(
            io::stdout(),
            "bench: {name} min {min} total {total} n {} per {per}",
            samples.len()
        )?;
        Ok(())
    }
}
