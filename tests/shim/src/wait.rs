// SPDX-License-Identifier: MIT OR Apache-2.0

//! Waiting for what becomes true by itself.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// How long the kernel may take for what it does behind a program's back.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until the test succeeds.
pub fn until(what: &str, mut test: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !test()? {
        ensure!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::yield_now();
    }
    Ok(())
}
