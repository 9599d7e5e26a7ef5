// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a measuring program prints on its machine's console: the payloads
//! `bench*` under Escrow and Xen, and the VMM under KVM.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use xtask::qemu::Machine;

use super::console::read_console;
use super::report::{BYTES, Row};

/// For a machine that shares this one with others.
const TIME_LIMIT: Duration = Duration::from_secs(900);
/// Ticks a second at which a tick is an instruction.
const TICK_PER_INSTRUCTION: u64 = 1_000_000_000;

/// What a program measured.
#[derive(Debug, Default)]
pub struct Measured {
    /// The counter at the program's first instruction, if it told.
    pub entered: Option<u64>,
    /// Its rows.
    pub rows: Vec<Row>,
    /// What else was on the console.
    pub lines: Vec<String>,
    /// What QEMU wrote to its log.
    pub log: String,
}

/// A line of a program's.
#[derive(Debug, PartialEq)]
enum Line {
    /// `bench: frequency F`: ticks a second.
    Frequency(u64),
    /// `bench: entered T`: the counter at the program's first instruction.
    Entered(u64),
    /// `bench: NAME min M total T n N per P`: N samples, each of P operations; or
    /// `bench: NAME bytes B of CALL`, or `bench: NAME count N of UNIT`.
    Row(Row),
    /// `payload NAME: N passed, M failed, …`: the end; whether all passed.
    End(bool),
    /// `test NAME ... FAILED: WHY`
    Failed(String),
}

/// Boots a machine that measures, to the end of its program.
///
/// # Errors
/// It fails or does not come to an end, or a tick is no instruction.
pub fn run(machine: &Machine, subject: &str) -> Result<Measured> {
    let (mut frequency, mut measured) = (None, Measured::default());
    measured.log = read_console(machine, TIME_LIMIT, |line| {
        match parse(line, subject)? {
            Some(Line::Frequency(ticks)) => frequency = Some(ticks),
            Some(Line::Entered(ticks)) => measured.entered = Some(ticks),
            Some(Line::Row(row)) => measured.rows.push(row),
            Some(Line::Failed(why)) => bail!("a test failed: {why}"),
            Some(Line::End(passed)) => {
                ensure!(passed, "parts of the program failed");
                return Ok(true);
            }
            None => measured.lines.push(line.into()),
        }
        Ok(false)
    })?;
    let frequency = frequency.context("the program did not tell the counter's frequency")?;
    ensure!(frequency == TICK_PER_INSTRUCTION, "the counter runs at {frequency} Hz");
    Ok(measured)
}

/// Boots a machine until its program tells at which tick it began.
///
/// # Errors
/// It does not.
pub fn entered(machine: &Machine) -> Result<u64> {
    let mut entered = None;
    read_console(machine, TIME_LIMIT, |line| {
        if let Some(Line::Entered(ticks)) = parse(line, "")? {
            entered = Some(ticks);
        }
        Ok(entered.is_some())
    })?;
    entered.context("the program did not tell when it was entered")
}

fn parse(line: &str, subject: &str) -> Result<Option<Line>> {
    let line = line.trim();
    if let Some(counts) = line.strip_prefix("payload ").and_then(|rest| rest.split_once(": ")) {
        // The line that announces a payload begins like that, too.
        let end = counts.1.contains(" passed, ");
        return Ok(end.then(|| Line::End(counts.1.contains(" 0 failed, 0 skipped"))));
    }
    if let Some(test) = line.strip_prefix("test ") {
        return Ok(test.contains(" ... FAILED").then(|| Line::Failed(test.into())));
    }
    let Some(rest) = line.strip_prefix("bench: ") else { return Ok(None) };
    let parsed = parse_words(rest, subject);
    parsed.with_context(|| format!("what does the program mean by {line:?}?")).map(Some)
}

fn parse_words(text: &str, subject: &str) -> Option<Line> {
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
            Some(Line::Row(Row::instructions(name, subject, min as f64 / per, mean, n)))
        }
        [name, "bytes", bytes, "of", _] => {
            let bytes = bytes.parse::<u64>().ok()? as f64;
            let unit = BYTES.into();
            let row = Row::instructions(name, subject, bytes, bytes, 1);
            Some(Line::Row(Row { unit, ..row }))
        }
        [name, "count", count, "of", unit] => {
            let count = count.parse::<u64>().ok()? as f64;
            let row = Row::instructions(name, subject, count, count, 1);
            Some(Line::Row(Row { unit: unit.into(), ..row }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn programs_are_understood() {
        let parse = |line: &str| parse(line, "escrow");
        let row = parse("bench: lend min 512 total 1536 n 2 per 512\r").unwrap();
        assert_eq!(row, Some(Line::Row(Row::instructions("lend", "escrow", 1.0, 1.5, 2))));
        let row = parse("bench: most bytes 4096 of lend").unwrap();
        assert!(matches!(row, Some(Line::Row(row)) if (row.mean, &*row.unit) == (4096.0, BYTES)));
        let row = parse("bench: idle count 7 of exits/s").unwrap();
        assert!(matches!(row, Some(Line::Row(row)) if (row.mean, &*row.unit) == (7.0, "exits/s")));
        assert_eq!(parse("bench: entered 17").unwrap(), Some(Line::Entered(17)));
        let failed = parse("test bench::a ... FAILED: no").unwrap();
        assert_eq!(failed, Some(Line::Failed("bench::a ... FAILED: no".into())));
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
