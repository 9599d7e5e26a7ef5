// SPDX-License-Identifier: MIT OR Apache-2.0

//! For each rule a trace that keeps it, and the same trace with a fault.
//!
//! Lines that begin with `-` are in the good trace only, those with `+` in the
//! faulty one only. A comment `here` marks the line that the finding must name,
//! `since` the one on which it must say that the fault began.

mod breaks;
mod calls;
mod errata;
mod reuse;

use escrow_trace::{Finding, Missing, Rule, check, parse};

/// Two VMs. VM 0 has a table at each level, with two pages and a block; VM 1
/// has a table at each level and nothing in them.
const BEFORE: &str = "
    0 table 0x100000 0x10000
    0 release 0x100000 0 0x101003
    0 release 0x101000 0 0x102003
    0 release 0x102000 0 0x800007ff
    0 release 0x102008 0 0x800017ff
    0 release 0x101008 0 0x802007fd
    0 release 0x104000 0 0x105003
    0 release 0x105000 0 0x106003
    0 dsb ishst
    0 root 0 7 0x100000 1 1 39
    0 root 1 8 0x104000 1 1 39
";

/// The numbered text of a trace, and the lines of its marks.
struct Numbered {
    text: String,
    here: Option<usize>,
    since: Option<usize>,
}

fn numbered(lines: &str, drop: char) -> Numbered {
    let mut text = String::from("trace begin 1\n");
    let (mut line, mut events, mut here, mut since) = (1, 0, None, None);
    for content in BEFORE.lines().chain(lines.lines()).map(str::trim) {
        let (content, mark) = content.split_once('#').unwrap_or((content, ""));
        if content.is_empty() || content.starts_with(drop) {
            continue;
        }
        let content = content.trim_start_matches(['-', '+']).trim();
        let (cpu, event) = content.split_once(' ').unwrap();
        line += 1;
        text += &format!("{cpu} {events} {event}\n");
        let fill = event.strip_prefix("fill ").and_then(|fill| fill.split(' ').nth(1));
        events += fill.map_or(1, |count| count.parse().unwrap());
        match mark.trim() {
            "here" => here = Some(line),
            "since" => since = Some(line),
            _ => {}
        }
    }
    text += &format!("trace end {events} 0\n");
    Numbered { text, here, since }
}

fn findings(text: &str) -> Vec<Finding> {
    check(&parse(text).unwrap()).findings
}

/// The trace without the fault is sound.
#[track_caller]
fn sound(lines: &str) {
    let found = findings(&numbered(lines, '+').text);
    assert!(found.is_empty(), "{found:#?}");
}

/// The trace is sound, and with the fault it is found: that and no other.
#[track_caller]
fn planted(rule: Rule, missing: Option<Missing>, lines: &str) -> String {
    sound(lines);
    let faulty = numbered(lines, '-');
    let found = findings(&faulty.text);
    let [finding] = &found[..] else { panic!("{found:#?}\n{}", faulty.text) };
    assert_eq!((finding.rule, finding.missing), (rule, missing), "{finding}");
    assert_eq!(Some(finding.line), faulty.here, "{finding}");
    assert_eq!(finding.since, faulty.since, "{finding}");
    finding.to_string()
}
