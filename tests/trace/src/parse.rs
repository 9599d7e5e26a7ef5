// SPDX-License-Identifier: MIT OR Apache-2.0

//! Traces as text. Whatever the text, the answer is a trace or an error that
//! names the line.

use std::str::SplitAsciiWhitespace;

use crate::descriptor::PAGE_SIZE;
use crate::event::{Dsb, Event, Record, Tlbi};
use crate::tables::ENTRIES;

/// The version of the format that is read here.
pub const VERSION: u64 = 1;

/// Addresses are below this: 52 bits.
const ADDRESS_END: u64 = 1 << 52;

/// Why a text is no trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// There is no `trace begin` line.
    #[error("no trace: there is no line `trace begin {VERSION}`")]
    NoTrace,
    /// The trace is of another version of the format.
    #[error("line {line}: the trace is of version {found}, and {VERSION} is known here")]
    Version {
        /// The line.
        line: usize,
        /// The version.
        found: String,
    },
    /// There is no `trace end` line.
    #[error("the trace that begins on line {line} is cut off: there is no `trace end` line")]
    CutOff {
        /// Where it begins.
        line: usize,
    },
    /// The writer had no room for events.
    #[error("line {line}: {lost} events were lost")]
    Lost {
        /// The line.
        line: usize,
        /// How many.
        lost: u64,
    },
    /// There are not as many events as `trace end` says.
    #[error("line {line}: the trace has {found} events, not {expected}")]
    Count {
        /// The line of `trace end`.
        line: usize,
        /// What it says.
        expected: u64,
        /// What there are.
        found: u64,
    },
    /// A number in the order of events is missing or there twice.
    #[error("line {line}: event {found} comes after {before}")]
    Order {
        /// The line.
        line: usize,
        /// The event's number.
        found: u64,
        /// The one before.
        before: u64,
    },
    /// A line that is no event.
    #[error("line {line}: {why}")]
    Line {
        /// The line.
        line: usize,
        /// What is wrong.
        why: LineError,
    },
}

/// Why a line is no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The line ends early.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The line goes on.
    #[error("`{0}` is too much")]
    TooMuch(String),
    /// Not a number, or out of range.
    #[error("`{text}` is no {what}")]
    Number {
        /// What it should be.
        what: &'static str,
        /// What it is.
        text: String,
    },
    /// Not an event, barrier or TLB maintenance instruction.
    #[error("`{0}` is not known here")]
    Unknown(String),
    /// Numbers that do not go together.
    #[error("{0}")]
    Inconsistent(&'static str),
}

/// Reads a trace: the text between `trace begin` and `trace end`, what comes
/// before and after being somebody else's. There may be several such parts;
/// together they are one trace. The result is in the order of events.
///
/// # Errors
/// The first thing that is wrong with the text.
pub fn parse(text: &str) -> Result<Vec<Record>, ParseError> {
    let mut records = Vec::new();
    let mut part: Option<(usize, u64)> = None;
    let mut parts = 0;
    for (line, content) in (1..).zip(text.lines()) {
        let content = content.split_once('#').map_or(content, |(before, _)| before).trim();
        let mut words = content.split_ascii_whitespace();
        match part {
            None => {
                if words.next() == Some("trace") && words.next() == Some("begin") {
                    let version = words.next().unwrap_or("");
                    if version.parse() != Ok(VERSION) {
                        return Err(ParseError::Version { line, found: version.into() });
                    }
                    part = Some((line, 0));
                    parts += 1;
                }
            }
            Some(_) if content.is_empty() => {}
            Some((begin, events)) => {
                let mut end = words.clone();
                if (end.next(), end.next()) == (Some("trace"), Some("end")) {
                    check_end(end, line, events)?;
                    part = None;
                    continue;
                }
                let before = records.len();
                parse_line(words, line, &mut records)
                    .map_err(|why| ParseError::Line { line, why })?;
                part = Some((begin, events + (records.len() - before) as u64));
            }
        }
    }
    if let Some((line, _)) = part {
        return Err(ParseError::CutOff { line });
    }
    if parts == 0 {
        return Err(ParseError::NoTrace);
    }
    records.sort_by_key(|record| record.seq);
    for pair in records.windows(2) {
        let [before, after] = [pair[0].seq, pair[1].seq];
        if before.checked_add(1) != Some(after) {
            return Err(ParseError::Order { line: pair[1].line, found: after, before });
        }
    }
    Ok(records)
}

fn check_end(
    mut words: SplitAsciiWhitespace<'_>,
    line: usize,
    found: u64,
) -> Result<(), ParseError> {
    let at_line = |why| ParseError::Line { line, why };
    let expected = number(words.next(), "count of events", u64::MAX).map_err(at_line)?;
    let lost = number(words.next(), "count of lost events", u64::MAX).map_err(at_line)?;
    end(words).map_err(at_line)?;
    if lost != 0 {
        return Err(ParseError::Lost { line, lost });
    }
    if expected != found {
        return Err(ParseError::Count { line, expected, found });
    }
    Ok(())
}

/// Reads a line into one record, or as many as it stands for.
fn parse_line(
    mut words: SplitAsciiWhitespace<'_>,
    line: usize,
    records: &mut Vec<Record>,
) -> Result<(), LineError> {
    let words = &mut words;
    let cpu = number(words.next(), "number of a CPU", 4095)? as u16;
    let seq = number(words.next(), "number of an event", u64::MAX)?;
    let name = words.next().ok_or(LineError::Missing("the event"))?;
    let mut push = |seq, event| records.push(Record { cpu, seq, line, event });
    let event = match name {
        "root" => root(words)?,
        "drop" => Event::Drop { vm: vm(words.next())? },
        "table" => {
            let (at, size) = pages(words)?;
            Event::Table { at, size }
        }
        "raw" => {
            let (at, size) = pages(words)?;
            Event::Raw { at, size }
        }
        "write" | "release" => {
            let at = address(words.next(), "address of a descriptor", 8)?;
            let old = number(words.next(), "descriptor", u64::MAX)?;
            let new = number(words.next(), "descriptor", u64::MAX)?;
            Event::Write { at, old, new, release: name == "release" }
        }
        "zero" => {
            let (at, size) = pages(words)?;
            Event::Zero { at, size }
        }
        "dsb" => {
            Event::Dsb(match words.next().ok_or(LineError::Missing("the barrier's kind"))? {
                "ishst" => Dsb::Ishst,
                "ish" => Dsb::Ish,
                "sy" => Dsb::Sy,
                other => return Err(LineError::Unknown(other.into())),
            })
        }
        "isb" => Event::Isb,
        "erratum" => match words.next().ok_or(LineError::Missing("the erratum"))? {
            "repeat-tlbi" => Event::RepeatTlbi,
            "speculative-at" => Event::SpeculativeAt,
            other => return Err(LineError::Unknown(other.into())),
        },
        "tcr" => Event::Tcr(number(words.next(), "value of TCR_EL1", u64::MAX)?),
        "sctlr" => Event::Sctlr(number(words.next(), "value of SCTLR_EL1", u64::MAX)?),
        "vttbr" => Event::Vttbr(number(words.next(), "value of VTTBR_EL2", u64::MAX)?),
        "tlbi" => Event::Tlbi(tlbi(words)?),
        "state" => {
            let (at, size) = pages(words)?;
            Event::State { at, size, reach: reach(words)? }
        }
        "fill" => {
            let fill = fill(words)?;
            end(words.clone())?;
            (0..).zip(fill).for_each(|(n, event)| push(seq.wrapping_add(n), event));
            return Ok(());
        }
        "begin" => Event::Begin { call: rest(words) },
        "end" => Event::End { result: rest(words) },
        other => return Err(LineError::Unknown(other.into())),
    };
    end(words.clone())?;
    push(seq, event);
    Ok(())
}

/// Descriptors side by side that get values in a row.
fn fill(
    words: &mut SplitAsciiWhitespace<'_>,
) -> Result<impl Iterator<Item = Event> + use<>, LineError> {
    let at = address(words.next(), "address of a descriptor", 8)?;
    let count = number(words.next(), "count of descriptors", ENTRIES as u64)?;
    let mut row = || -> Result<_, LineError> {
        let first = number(words.next(), "descriptor", u64::MAX)?;
        let step = number(words.next(), "difference of descriptors", u64::MAX)?;
        Ok(move |n: u64| first.wrapping_add(n.wrapping_mul(step)))
    };
    let (old, new) = (row()?, row()?);
    if count == 0 || at % PAGE_SIZE + 8 * count > PAGE_SIZE {
        return Err(LineError::Inconsistent("the descriptors are not some of one table"));
    }
    Ok((0..count).map(move |n| Event::Write {
        at: at + 8 * n,
        old: old(n),
        new: new(n),
        release: true,
    }))
}

fn root(words: &mut SplitAsciiWhitespace<'_>) -> Result<Event, LineError> {
    let vm = vm(words.next())?;
    let vmid = vmid(words.next())?;
    let table = address(words.next(), "address of a table", PAGE_SIZE)?;
    let level = number(words.next(), "level of a root", 2)? as u8;
    let tables = number(words.next(), "number of tables", 16)? as u8;
    let bits = number(words.next(), "number of address bits", 48)? as u8;
    if !tables.is_power_of_two() {
        return Err(LineError::Inconsistent("the number of root tables is no power of two"));
    }
    let reach = crate::descriptor::shift(level) + 9 + tables.ilog2();
    if u32::from(bits) > reach || u32::from(bits) <= crate::descriptor::shift(level) {
        return Err(LineError::Inconsistent("the root does not fit the address bits"));
    }
    if table + u64::from(tables) * PAGE_SIZE > ADDRESS_END {
        return Err(LineError::Inconsistent("the root goes beyond the address space"));
    }
    Ok(Event::Root { vm, vmid, table, level, tables, bits })
}

fn tlbi(words: &mut SplitAsciiWhitespace<'_>) -> Result<Tlbi, LineError> {
    match words.next().ok_or(LineError::Missing("the TLB maintenance instruction"))? {
        "ipas2e1is" => {
            let vmid = vmid(words.next())?;
            let (ipa, size) = pages(words)?;
            Ok(Tlbi::Ipas2e1is { vmid, ipa, size })
        }
        "vmalle1is" => Ok(Tlbi::Vmalle1is { vmid: vmid(words.next())? }),
        "vmalls12e1is" => Ok(Tlbi::Vmalls12e1is { vmid: vmid(words.next())? }),
        "alle1is" => Ok(Tlbi::Alle1is),
        "vae2is" => Ok(Tlbi::Vae2is),
        other => Err(LineError::Unknown(other.into())),
    }
}

fn reach(words: &mut SplitAsciiWhitespace<'_>) -> Result<Vec<u32>, LineError> {
    let first = words.next().ok_or(LineError::Missing("who reaches the memory"))?;
    if first == "-" {
        return Ok(Vec::new());
    }
    let mut reach = vec![vm(Some(first))?];
    for word in words {
        reach.push(vm(Some(word))?);
    }
    reach.sort_unstable();
    reach.dedup();
    Ok(reach)
}

fn rest(words: &mut SplitAsciiWhitespace<'_>) -> String {
    words.collect::<Vec<_>>().join(" ")
}

fn end(mut words: SplitAsciiWhitespace<'_>) -> Result<(), LineError> {
    words.next().map_or(Ok(()), |word| Err(LineError::TooMuch(word.into())))
}

fn vm(word: Option<&str>) -> Result<u32, LineError> {
    Ok(number(word, "number of a VM", u32::MAX.into())? as u32)
}

fn vmid(word: Option<&str>) -> Result<u16, LineError> {
    Ok(number(word, "VMID", u16::MAX.into())? as u16)
}

/// A range of whole pages, not empty.
fn pages(words: &mut SplitAsciiWhitespace<'_>) -> Result<(u64, u64), LineError> {
    let at = address(words.next(), "address of a page", PAGE_SIZE)?;
    let size = address(words.next(), "size in whole pages", PAGE_SIZE)?;
    if size == 0 || at + size > ADDRESS_END {
        return Err(LineError::Inconsistent("the range is empty or goes beyond the address space"));
    }
    Ok((at, size))
}

fn address(word: Option<&str>, what: &'static str, align: u64) -> Result<u64, LineError> {
    let value = number(word, what, ADDRESS_END - 1)?;
    if value.is_multiple_of(align) {
        return Ok(value);
    }
    Err(LineError::Number { what, text: word.unwrap_or_default().into() })
}

/// A decimal number, or a hexadecimal one after `0x`, up to `max`.
fn number(word: Option<&str>, what: &'static str, max: u64) -> Result<u64, LineError> {
    let word = word.ok_or(LineError::Missing(what))?;
    let value = match word.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        None if !word.starts_with('+') => word.parse().ok(),
        _ => None,
    };
    value.filter(|&value| value <= max).ok_or_else(|| LineError::Number { what, text: word.into() })
}
