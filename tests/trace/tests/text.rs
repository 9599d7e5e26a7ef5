// SPDX-License-Identifier: MIT OR Apache-2.0

//! Traces as text: what is written is read back, and nothing that is read
//! makes parser or checker fail.

use escrow_trace::event::{Dsb, Tlbi};
use escrow_trace::{Event, LineError, ParseError, Record, check, parse};
use proptest::prelude::*;

fn trace(lines: &[&str]) -> String {
    let events = lines.join("\n");
    format!("noise\ntrace begin 1\n{events}\ntrace end {} 0\nnoise", lines.len())
}

#[test]
fn a_trace_may_stand_in_a_log() {
    let log = "boot\ntrace begin 1\n0 5 isb # a comment\n\n# another\n1 6 isb\ntrace end 2 0\n\
               more\ntrace begin 1\n0 7 isb\ntrace end 1 0\n";
    let records = parse(log).unwrap();
    assert_eq!(
        records.iter().map(|r| (r.cpu, r.seq, r.line)).collect::<Vec<_>>(),
        [(0, 5, 3), (1, 6, 6), (0, 7, 10)]
    );
}

#[test]
fn errors_name_their_lines() {
    let line = |event: &str, why: LineError| {
        let found = parse(&trace(&["0 1 isb", &format!("0 2 {event}")]));
        assert_eq!(found, Err(ParseError::Line { line: 4, why }), "{event}");
    };
    let number = |what, text: &str| LineError::Number { what, text: text.into() };
    line("", LineError::Missing("the event"));
    line("jump", LineError::Unknown("jump".into()));
    line("isb 1", LineError::TooMuch("1".into()));
    line("dsb nsh", LineError::Unknown("nsh".into()));
    line("tlbi vae1is", LineError::Unknown("vae1is".into()));
    line("tlbi vmalle1is 65536", number("VMID", "65536"));
    line("write 0x1004 0 1", number("address of a descriptor", "0x1004"));
    line("write 0x1008 0", LineError::Missing("descriptor"));
    line("zero 0x1000 0x10", number("size in whole pages", "0x10"));
    line("zero 0x1000 -0", number("size in whole pages", "-0"));
    line("zero +4096 4096", number("address of a page", "+4096"));
    line("zero 0x+1000 4096", number("address of a page", "0x+1000"));
    let range = LineError::Inconsistent("the range is empty or goes beyond the address space");
    line("zero 0x1000 0", range.clone());
    line("zero 0xffffffffff000 0x2000", range);
    line("state 0 0x1000", LineError::Missing("who reaches the memory"));
    line(
        "root 0 0 0 1 3 40",
        LineError::Inconsistent("the number of root tables is no power of two"),
    );
    line("root 0 0 0 1 1 40", LineError::Inconsistent("the root does not fit the address bits"));
    line("root 0 0 0 2 1 21", LineError::Inconsistent("the root does not fit the address bits"));
}

#[test]
fn a_line_may_stand_for_many_descriptors() {
    let text = "trace begin 1\n0 5 fill 0x1ff0 2 0x100 1 0x4000 0x1000\n0 7 isb\ntrace end 3 0";
    let write = |n: u64| Record {
        cpu: 0,
        seq: 5 + n,
        line: 2,
        event: Event::Write {
            at: 0x1ff0 + 8 * n,
            old: 0x100 + n,
            new: 0x4000 + n * 0x1000,
            release: true,
        },
    };
    assert_eq!(parse(text).unwrap()[..2], [write(0), write(1)]);
    let beyond = LineError::Inconsistent("the descriptors are not some of one table");
    for fill in ["0x1ff0 3 0 0 1 1", "0x1000 0 0 0 1 1"] {
        let found = parse(&trace(&[&format!("0 5 fill {fill}")]));
        assert_eq!(found, Err(ParseError::Line { line: 3, why: beyond.clone() }));
    }
    // Down to nothing, and on: numbers wrap.
    let down = trace(&["0 18446744073709551615 fill 0x1000 1 0 0 0 0xfffffffffffff000"]);
    assert!(parse(&down).is_ok());
}

#[test]
fn a_trace_that_is_not_whole_is_none() {
    assert_eq!(parse(""), Err(ParseError::NoTrace));
    let version = ParseError::Version { line: 1, found: "2".into() };
    assert_eq!(parse("trace begin 2\ntrace end 0 0"), Err(version));
    assert_eq!(parse("\ntrace begin 1\n0 1 isb"), Err(ParseError::CutOff { line: 2 }));
    let lost = ParseError::Lost { line: 3, lost: 7 };
    assert_eq!(parse("trace begin 1\n0 1 isb\ntrace end 1 7"), Err(lost));
    let count = ParseError::Count { line: 3, expected: 2, found: 1 };
    assert_eq!(parse("trace begin 1\n0 1 isb\ntrace end 2 0"), Err(count));
    for (second, line) in [("0 3 isb", 4), ("0 1 isb", 4)] {
        let order =
            ParseError::Order { line, found: if second == "0 3 isb" { 3 } else { 1 }, before: 1 };
        assert_eq!(parse(&trace(&["0 1 isb", second])), Err(order));
    }
}

/// Addresses of few pages, so that events meet.
fn page() -> impl Strategy<Value = u64> {
    (0..24u64).prop_map(|n| 0x10_0000 + n * 0x1000)
}

fn descriptor() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => Just(0),
        4 => page().prop_map(|at| at | 3),
        2 => page().prop_map(|at| at | 0x7ff),
        1 => page().prop_map(|at| at | 0x77f),
        1 => (0..4u64).prop_map(|n| n << 21 | 0x7fd),
        1 => any::<u64>(),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let vm = || 0..3u32;
    let vmid = || 0..3u16;
    let size = || (1..4u64).prop_map(|n| n * 0x1000);
    prop_oneof![
        2 => (vm(), vmid(), page(), 0..3u8, 0..3u32).prop_map(|(vm, vmid, table, level, log)| {
            let bits = (48 - 9 * level + log as u8).min(48);
            Event::Root { vm, vmid, table, level, tables: 1 << log, bits }
        }),
        1 => vm().prop_map(|vm| Event::Drop { vm }),
        1 => (page(), size()).prop_map(|(at, size)| Event::Table { at, size }),
        1 => (page(), size()).prop_map(|(at, size)| Event::Raw { at, size }),
        12 => (page(), 0..4u64, descriptor(), descriptor(), any::<bool>()).prop_map(
            |(page, n, old, new, release)| Event::Write { at: page + 8 * n, old, new, release }
        ),
        2 => (page(), size()).prop_map(|(at, size)| Event::Zero { at, size }),
        2 => prop::sample::select(vec![Dsb::Ishst, Dsb::Ish, Dsb::Sy]).prop_map(Event::Dsb),
        1 => Just(Event::Isb),
        1 => any::<u64>().prop_map(Event::Vttbr),
        1 => any::<u64>().prop_map(Event::Tcr),
        1 => any::<u64>().prop_map(Event::Sctlr),
        2 => (vmid(), page(), size())
            .prop_map(|(vmid, ipa, size)| Event::Tlbi(Tlbi::Ipas2e1is { vmid, ipa, size })),
        1 => vmid().prop_map(|vmid| Event::Tlbi(Tlbi::Vmalle1is { vmid })),
        1 => vmid().prop_map(|vmid| Event::Tlbi(Tlbi::Vmalls12e1is { vmid })),
        1 => Just(Event::Tlbi(Tlbi::Alle1is)),
        1 => Just(Event::Tlbi(Tlbi::Vae2is)),
        1 => Just(Event::RepeatTlbi),
        1 => Just(Event::SpeculativeAt),
        2 => (page(), size(), prop::collection::btree_set(vm(), 0..3)).prop_map(
            |(at, size, reach)| Event::State { at, size, reach: reach.into_iter().collect() }
        ),
        1 => Just(Event::Begin { call: "call".into() }),
        1 => Just(Event::End { result: "0".into() }),
    ]
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    prop::collection::vec((0..3u16, event()), 0..200).prop_map(|events| {
        let number = |(n, (cpu, event))| Record { cpu, seq: n as u64, line: n + 2, event };
        events.into_iter().enumerate().map(number).collect()
    })
}

/// Words that traces are made of, and some that they are not.
fn word() -> impl Strategy<Value = String> {
    let known = [
        "trace",
        "begin",
        "end",
        "root",
        "drop",
        "table",
        "raw",
        "write",
        "release",
        "zero",
        "dsb",
        "ishst",
        "ish",
        "sy",
        "isb",
        "vttbr",
        "tlbi",
        "ipas2e1is",
        "vmalle1is",
        "vmalls12e1is",
        "alle1is",
        "vae2is",
        "erratum",
        "repeat-tlbi",
        "state",
        "-",
        "#",
        "0",
        "1",
        "2",
        "39",
        "0x1000",
        "0x100000",
        "0x7ff",
        "0xfffffffffffff000",
        "18446744073709551616",
        "0x",
    ];
    prop_oneof![
        8 => prop::sample::select(known.to_vec()).prop_map(str::to_owned),
        1 => "\\PC{0,8}",
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(records in records()) {
        let mut text = String::from("trace begin 1\n");
        for record in &records {
            text += &format!("{record}\n");
        }
        text += &format!("trace end {} 0\n", records.len());
        prop_assert_eq!(parse(&text), Ok(records));
    }

    #[test]
    fn no_trace_makes_the_checker_fail(records in records()) {
        let report = check(&records);
        prop_assert_eq!(report.counts.events, records.len());
        for finding in report.findings {
            prop_assert!(finding.line >= 2 && !finding.to_string().is_empty());
        }
    }

    #[test]
    fn no_text_makes_the_parser_fail(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_line_makes_the_parser_fail(
        lines in prop::collection::vec(prop::collection::vec(word(), 0..9), 0..30),
    ) {
        let lines: Vec<_> = lines.iter().map(|words| words.join(" ")).collect();
        let text = format!("trace begin 1\n{}\ntrace end {} 0\n", lines.join("\n"), lines.len());
        let _ = parse(&text);
    }
}
