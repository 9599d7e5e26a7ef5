// SPDX-License-Identifier: MIT OR Apache-2.0

//! How far loading is, for who sits at a terminal.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::machine::Step;
use crate::machine::layout::MIB;

/// What is quicker than this needs no telling.
const PATIENCE: Duration = Duration::from_millis(300);
/// Between two lines.
const PACE: Duration = Duration::from_millis(100);

/// A line on the terminal that changes.
pub struct Progress {
    /// When to show the next step; `None` without a terminal.
    next: Option<Instant>,
    shown: bool,
}

impl Progress {
    /// Nothing so far.
    pub fn new() -> Progress {
        let terminal = io::stderr().is_terminal();
        Progress { next: terminal.then(|| Instant::now() + PATIENCE), shown: false }
    }

    /// Shows a step, if it is time.
    pub fn show(&mut self, step: Step) {
        let now = Instant::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + PACE);
        self.shown = true;
        let Step { what, bytes } = step;
        // Progress that cannot be shown is no failure.
        // Without a wrap (DECAWM), it stays one line on a narrow terminal; with one write, a signal
        // leaves nothing half done.
        let line = format!("\r\x1b[K\x1b[?7lloading the {what}: {} MiB\x1b[?7h", bytes / MIB);
        let _ = io::stderr().write_all(line.as_bytes());
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
