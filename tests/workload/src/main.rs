// SPDX-License-Identifier: MIT OR Apache-2.0

//! A fixed amount of work, the same at each run, that leans on the kernel in
//! the ways programs do: system calls, page faults, processes, pipes, files.
//!
//! The virtual counter tells what each repetition cost. On a QEMU that counts
//! instructions (`-icount shift=0`) at a counter frequency of 1 GHz, a tick is
//! an instruction, at EL0, EL1 and EL2 together. One line a repetition:
//!
//! ```text
//! workload: rep 0 total 81234567 syscalls 1234 faults 2345 processes 3456 pipe 4567 files 5678
//! ```
//!
//! The booting kernel's own work must be over before that: the program waits
//! until the counter has run for [`QUIET_AFTER`].

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod counter;
mod work;

use std::io::{self, Write as _};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// When the kernel's threads have done what they do after a boot, in time
/// since the counter's start.
const QUIET_AFTER: Duration = Duration::from_secs(25);
/// How often the work is repeated and counted.
const REPETITIONS: usize = 10;

/// A part of the work.
type Part = (&'static str, fn() -> Result<()>);

const PARTS: &[Part] = &[
    ("syscalls", work::system_calls),
    ("faults", work::page_faults),
    ("processes", work::processes),
    ("pipe", work::pipe),
    ("files", work::files),
];

fn main() -> Result<()> {
    writeln!(io::stdout(), "workload: frequency {}", counter::frequency())?;
    // What the first time costs more is nobody's subject: caches of the
    // kernel's fill, the program's own pages are touched.
    repetition()?;
    while let Some(rest) = QUIET_AFTER.checked_sub(counter::uptime()) {
        thread::sleep(rest);
    }
    for number in 0..REPETITIONS {
        let counts = repetition()?;
        let total: u64 = counts.iter().sum();
        let parts = PARTS.iter().zip(&counts);
        let parts: String = parts.map(|((name, _), count)| format!(" {name} {count}")).collect();
        writeln!(io::stdout(), "workload: rep {number} total {total}{parts}")?;
    }
    writeln!(io::stdout(), "workload: done")?;
    Ok(())
}

/// Does all the work once. Ticks of each part.
fn repetition() -> Result<Vec<u64>> {
    let count = |(name, part): &Part| {
        let start = counter::now();
        part().with_context(|| format!("the part {name} failed"))?;
        Ok(counter::now() - start)
    };
    PARTS.iter().map(count).collect()
}
