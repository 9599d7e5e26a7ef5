// SPDX-License-Identifier: MIT OR Apache-2.0

//! Running a machine whose console tells what it measured.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use xtask::console::{Event, Session};
use xtask::qemu::Machine;

/// How much of the console is shown when a run fails.
const TAIL_LINES: usize = 20;

/// Boots a machine and hands each line of its console to `read`, which says
/// when it has seen enough: `Ok(true)`. Returns what QEMU wrote to its log.
///
/// # Errors
/// `read` fails, time is up, or QEMU ends before `read` has seen enough.
pub fn read_console(
    machine: &Machine,
    limit: Duration,
    mut read: impl FnMut(&str) -> Result<bool>,
) -> Result<String> {
    let deadline = Instant::now() + limit;
    let mut session = Session::start(machine.command())?;
    let mut lines = Vec::new();
    let why = loop {
        match session.next(deadline) {
            Event::Line(line) => {
                let enough = read(&line);
                lines.push(line);
                match enough {
                    Ok(true) => return Ok(session.finish()?.errors),
                    Ok(false) => {}
                    Err(error) => break format!("{error:#}"),
                }
            }
            Event::End => break "the machine stopped too early".into(),
            Event::TimeUp => break format!("no result within {} s", limit.as_secs()),
        }
    };
    let ending = session.finish()?;
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    bail!("{why}; the console's last lines:\n{tail}\n{}", ending.errors)
}
