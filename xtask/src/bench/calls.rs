// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the payload `bench` measures in the host's place, and the boot that
//! leads to it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use xtask::artefacts::Artefacts;
use xtask::qemu::Machine;

use super::console::read_console;
use super::report::{ESCROW, Row};

const TIME_LIMIT: Duration = Duration::from_secs(120);
/// Ticks a second at which a tick is an instruction.
const TICK_PER_INSTRUCTION: u64 = 1_000_000_000;

/// A line of the payload's.
#[derive(Debug, PartialEq)]
enum Line {
    /// `bench: frequency F`: ticks a second.
    Frequency(u64),
    /// `bench: entered T`: the counter at the payload's first instruction.
    Entered(u64),
    /// `bench: NAME min M total T n N per P`: N samples, each of P operations.
    Row(Row),
    /// `payload bench: N passed, M failed, …`: the end; whether all passed.
    End(bool),
    /// `test bench::NAME ... FAILED: WHY`
    Failed(String),
}

/// Measures under Escrow, and how much of the boot is QEMU's own.
pub fn measure(artefacts: &Artefacts) -> Result<Vec<Row>> {
    let payload = artefacts.payloads.join("bench.img");
    let stub = entered_directly(artefacts, &payload)?;
    let mut machine = Machine::new(&artefacts.qemu, &artefacts.image);
    machine.smp = 1;
    machine.icount = true;
    machine.load_host(&payload, None, "")?;
    let (mut entered, mut frequency, mut rows) = (None, None, Vec::new());
    read_console(&machine, TIME_LIMIT, |line| {
        match parse(line)? {
            Some(Line::Frequency(ticks)) => frequency = Some(ticks),
            Some(Line::Entered(ticks)) => entered = Some(ticks),
            Some(Line::Row(row)) => rows.push(row),
            Some(Line::Failed(why)) => bail!("the payload failed: {why}"),
            Some(Line::End(passed)) => {
                ensure!(passed, "parts of the payload failed");
                return Ok(true);
            }
            None => {}
        }
        Ok(false)
    })?;
    let frequency = frequency.context("the payload did not tell the counter's frequency")?;
    ensure!(frequency == TICK_PER_INSTRUCTION, "the counter runs at {frequency} Hz");
    let entered = entered.context("the payload did not tell when it was entered")?;
    let boot = entered.checked_sub(stub).context("the boot took less than nothing")? as f64;
    rows.push(Row::instructions("boot_el2", ESCROW, boot, boot, 1));
    Ok(rows)
}

/// The counter at the payload's first instruction when QEMU starts it
/// directly: what QEMU's few instructions before any kernel take.
fn entered_directly(artefacts: &Artefacts, payload: &PathBuf) -> Result<u64> {
    let mut machine = Machine::new(&artefacts.qemu, payload);
    machine.smp = 1;
    machine.icount = true;
    machine.el2 = false;
    let mut entered = None;
    read_console(&machine, TIME_LIMIT, |line| {
        if let Some(Line::Entered(ticks)) = parse(line)? {
            entered = Some(ticks);
        }
        Ok(entered.is_some())
    })?;
    entered.context("the payload did not tell when it was entered")
}

fn parse(line: &str) -> Result<Option<Line>> {
    let line = line.trim();
    if let Some(counts) = line.strip_prefix("payload bench: ") {
        // The line that announces the payload begins like that, too.
        let end = counts.contains(" passed, ");
        return Ok(end.then(|| Line::End(counts.contains(" 0 failed, 0 skipped"))));
    }
    if let Some(test) = line.strip_prefix("test bench::") {
        return Ok(test.contains(" ... FAILED").then(|| Line::Failed(test.into())));
    }
    let Some(rest) = line.strip_prefix("bench: ") else { return Ok(None) };
    parse_words(rest).with_context(|| format!("what does the payload mean by {line:?}?")).map(Some)
}

fn parse_words(text: &str) -> Option<Line> {
    let words: Vec<_> = text.split_whitespace().collect();
    match words[..] {
        ["frequency", ticks] => Some(Line::Frequency(ticks.parse().ok()?)),
        ["entered", ticks] => Some(Line::Entered(ticks.parse().ok()?)),
        [name, "min", min, "total", total, "n", n, "per", per] => {
            let number = |text: &str| text.parse::<u64>().ok();
            let (min, total, n, per) = (number(min)?, number(total)?, number(n)?, number(per)?);
            if n == 0 || per == 0 {
                return None;
            }
            let per = per as f64;
            let mean = total as f64 / n as f64 / per;
            Some(Line::Row(Row::instructions(name, ESCROW, min as f64 / per, mean, n)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_understood() {
        let row = parse("bench: lend min 512 total 1536 n 2 per 512\r").unwrap();
        assert_eq!(row, Some(Line::Row(Row::instructions("lend", ESCROW, 1.0, 1.5, 2))));
        assert_eq!(parse("bench: entered 17").unwrap(), Some(Line::Entered(17)));
        let failed = parse("test bench::a ... FAILED: no").unwrap();
        assert_eq!(failed, Some(Line::Failed("a ... FAILED: no".into())));
        for line in ["something else", "test bench::a ... ok", "payload bench: 9 tests"] {
            assert_eq!(parse(line).unwrap(), None, "{line}");
        }
        let end = |passed| Some(Line::End(passed));
        assert_eq!(parse("payload bench: 9 passed, 0 failed, 0 skipped").unwrap(), end(true));
        for bad in ["8 passed, 1 failed, 0 skipped", "8 passed, 0 failed, 1 skipped"] {
            assert_eq!(parse(&format!("payload bench: {bad}")).unwrap(), end(false));
        }
        for bad in ["bench: lend min 1 total 1 n 0 per 1", "bench: lend", "bench: entered x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
