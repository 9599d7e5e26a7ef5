// SPDX-License-Identifier: MIT OR Apache-2.0

//! The report for people.

use std::fmt::Write as _;

use escrow_abi::{FrameState, PAGE_SIZE};

use super::guests::Guest;
use super::read::{Holder, Memory, Refused, Report, Vm};
use crate::run::Status;

/// The terminal, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Columns; longer lines are cut.
    width: usize,
    /// Lines; the rest is left out when the screen is redrawn.
    height: usize,
    /// Whether reports overwrite each other.
    redraw: bool,
}

impl Screen {
    /// The terminal of standard output, or a file without limits.
    pub fn of(is_terminal: bool) -> Screen {
        match terminal_size::terminal_size() {
            Some((width, height)) if is_terminal && width.0 > 0 && height.0 > 0 => {
                Screen { width: width.0.into(), height: height.0.into(), redraw: true }
            }
            _ => Screen { width: usize::MAX, height: usize::MAX, redraw: false },
        }
    }
}

/// The report as text; `before` is there if it is one of several.
pub fn render(report: &Report, before: Option<&Report>, screen: Screen) -> String {
    fit(lines(report, before), before.is_some(), screen)
}

/// Guests as text, likewise.
pub fn render_guests(guests: &[Guest], before: Option<&[Guest]>, screen: Screen) -> String {
    fit(guest_lines(guests, before), before.is_some(), screen)
}

/// Lines as they are printed; `repeats` if they are some of several.
fn fit(mut lines: Vec<String>, repeats: bool, screen: Screen) -> String {
    let mut text = String::new();
    match (repeats, screen.redraw) {
        (true, true) => {
            // Cursor home, then erase below: this does not flicker as a cleared screen does.
            text.push_str("\x1b[H\x1b[J");
            // The last line stays free for the cursor.
            lines.truncate(screen.height.saturating_sub(1));
        }
        // An empty line shows where the next report begins.
        (true, false) => lines.push(String::new()),
        (false, _) => {}
    }
    for line in lines {
        text.extend(line.trim_end().chars().take(screen.width));
        text.push('\n');
    }
    text
}

fn lines(report: &Report, before: Option<&Report>) -> Vec<String> {
    let Report { escrow, shim, .. } = report;
    let mut lines = vec![
        format!("Escrow {}: {} CPUs, {} VMs", escrow.version, escrow.cpus, escrow.vms),
        String::new(),
        format!("{:<26}{:>10}{:>12}", "ESCROW'S PAGES", "4 KIB", "SIZE"),
    ];
    for state in FrameState::ALL {
        let pages = escrow.pages_in(state);
        lines.push(format!("{:<26}{pages:>10}{:>12}", state.name(), size(pages * PAGE_SIZE)));
    }
    lines.push(String::new());

    lines
        .push(format!("{:<14}{:>10}    {:<14}{:>10}", "THE SHIM NOW", "", "SINCE IT IS", "LOADED"));
    let now = [
        ("memories", shim.memories),
        ("present", shim.present),
        ("lent", shim.lent),
        ("shared", shim.shared),
        ("quarantined", shim.quarantined),
        ("poisoned", shim.poisoned),
        ("VMs", shim.vms),
        ("metadata", shim.metadata),
        ("zombies", shim.zombies),
    ];
    let old = before.map(|before| &before.shim);
    let since = [
        ("lends", shim.lends, old.map(|old| old.lends)),
        ("shares", shim.shares, old.map(|old| old.shares)),
        ("refusals", shim.refusals, old.map(|old| old.refusals)),
        ("retries", shim.retries, old.map(|old| old.retries)),
        ("reclaims", shim.reclaims, old.map(|old| old.reclaims)),
        ("unlocks", shim.unlocks, old.map(|old| old.unlocks)),
        ("kept", shim.kept, old.map(|old| old.kept)),
    ];
    let mut since = since.iter();
    for (name, value) in now {
        let mut line = format!("{name:<14}{value:>10}");
        if let Some((name, value, old)) = since.next() {
            // Writing to a String cannot fail.
            let _ = write!(line, "    {name:<14}{value:>10}");
            if let Some(more) = old.map(|old| value.saturating_sub(old)).filter(|&more| more > 0) {
                let _ = write!(line, "  +{more}");
            }
        }
        lines.push(line);
    }
    lines.push(String::new());

    if !report.guests.is_empty() {
        lines.extend(guest_lines(&report.guests, before.map(|before| &before.guests[..])));
        lines.push(String::new());
    }
    if let Some(why) = &report.lists_missing {
        lines.push(format!("no list of memories and VMs: {why}"));
    }
    if let Some(memories) = &report.memories {
        lines.push(format!(
            "{:<8}{:>11}{:>9}{:>9}{:>9}{:>12}{:>9}  {}",
            "MEMORY", "SIZE", "PRESENT", "LENT", "SHARED", "QUARANTINED", "REFUSED", "CREATOR"
        ));
        lines.extend(memories.iter().map(memory));
        lines.push(String::new());
    }
    if let Some(vms) = &report.vms {
        lines.push(format!(
            "{:<20}{:<9}{:>6}{:>10}{:>10}{:>7}{:>9}{:>11}  {}",
            "VM", "STATE", "VCPUS", "MAPPED", "METADATA", "FREE", "OPENED", "TAKEN BACK", "CREATOR"
        ));
        lines.extend(vms.iter().map(|it| vm(it, &report.guests)));
    }
    if let Some(holders) = report.holders.as_ref().filter(|holders| !holders.is_empty()) {
        lines.push(String::new());
        lines.push(format!(
            "{:<8}{:>13}{:>11}{:>12}{:>10}  {}",
            "MEMORY", "OFFSET", "SIZE", "REFERENCES", "ACCESSES", "HOLDER"
        ));
        lines.extend(holders.iter().map(holder));
    }
    if let Some(refused) = report.refused.as_ref().filter(|refused| !refused.is_empty()) {
        lines.push(String::new());
        lines.push(format!(
            "{:<8}{:>13}{:>9}{:>12}  {}",
            "MEMORY", "OFFSET", "EXCESS", "ACCESSIBLE", "LAST REFUSED FOR"
        ));
        lines.extend(refused.iter().map(refusal));
    }
    lines
}

fn guest_lines(guests: &[Guest], before: Option<&[Guest]>) -> Vec<String> {
    let head = format!(
        "{:<20}{:>8}{:>6}{:>10}{:>10}{:>11}{:>11}{:>8}",
        "GUEST", "PID", "VCPUS", "LENT", "SHARED", "EXITS", "MMIO", "FAULTS"
    );
    let lines = guests.iter().map(|Guest { status, pages }| {
        let Status { name, pid, cpus, exits, mmio, faults, boots, .. } = status;
        let count = |value: Option<u64>| value.map_or("?".to_owned(), |value| value.to_string());
        let [lent, shared] = [pages.map(|pages| pages.lent), pages.map(|pages| pages.shared)];
        let (lent, shared) = (count(lent), count(shared));
        let mut line = format!(
            "{name:<20}{pid:>8}{cpus:>6}{lent:>10}{shared:>10}{exits:>11}{mmio:>11}{faults:>8}"
        );
        // Since a reset they are counted anew.
        let old = before.unwrap_or_default().iter().map(|guest| &guest.status);
        let old = old.filter(|old| (old.name == *name, old.pid, old.boots) == (true, *pid, *boots));
        for more in old.map(|old| exits.saturating_sub(old.exits)).filter(|&more| more > 0) {
            // Writing to a String cannot fail.
            let _ = write!(line, "  +{more} exits");
        }
        line
    });
    std::iter::once(head).chain(lines).collect()
}

fn memory(memory: &Memory) -> String {
    let Memory { inode, present, lent, shared, quarantined, refusals, creator, .. } = memory;
    format!(
        "{inode:<8}{:>11}{present:>9}{lent:>9}{shared:>9}{quarantined:>12}{refusals:>9}  {creator} {}",
        size(memory.size),
        printable(&memory.name),
    )
}

fn vm(vm: &Vm, guests: &[Guest]) -> String {
    let Vm { handle, state, vcpus, mapped, metadata, free, opened, taken_back, creator, .. } = vm;
    let mut line = format!(
        "{handle:<20}{state:<9}{vcpus:>6}{mapped:>10}{metadata:>10}{free:>7}{opened:>9}{taken_back:>11}  {creator} {}",
        printable(&vm.name),
    );
    // The guest that the process runs has its own name.
    if let Some(guest) = guests.iter().find(|guest| guest.status.pid == *creator) {
        let _ = write!(line, " ({})", guest.status.name);
    }
    line
}

fn holder(holder: &Holder) -> String {
    let Holder { inode, offset, references, accesses, .. } = holder;
    format!(
        "{inode:<8}{offset:>#13x}{:>11}{references:>12}{accesses:>10}  {}",
        size(holder.size),
        printable(&holder.name),
    )
}

fn refusal(refused: &Refused) -> String {
    let Refused { inode, offset, excess, accessible, by } = refused;
    format!("{inode:<8}{offset:>#13x}{excess:>9}{accessible:>12}  {}", printable(by))
}

/// A process may call itself anything; a terminal obeys some of it.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Bytes, for people: at least two digits, and one behind the point.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0);
    format!("{value:.digits$} {}", UNITS.get(unit).unwrap_or(&""))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::host::Facts;
    use crate::stat::guests::Pages;
    use crate::stat::read::Shim;

    const FILE: Screen = Screen { width: usize::MAX, height: usize::MAX, redraw: false };

    fn guest(exits: u64) -> Guest {
        let status = Status {
            name: "web".into(),
            pid: 77,
            cpus: 2,
            exits,
            mmio: 60,
            faults: 3,
            ..Status::default()
        };
        Guest { status, pages: Some(Pages { present: 1, lent: 300, shared: 2 }) }
    }

    fn report() -> Report {
        let pages: BTreeMap<_, _> = FrameState::ALL
            .into_iter()
            .map(|state| (state.name(), if state == FrameState::Lent { 300 } else { 0 }))
            .collect();
        Report {
            time_ms: 1,
            escrow: Facts {
                version: "1.2.3".into(),
                cpus: 2,
                vms: 1,
                errata: Vec::new(),
                hardening: Vec::new(),
                pages,
            },
            shim: Shim { lent: 300, lends: 305, refusals: 4, ..Shim::default() },
            memories: Some(vec![Memory {
                inode: 41,
                size: 3 << 20,
                present: 1,
                lent: 300,
                shared: 2,
                quarantined: 3,
                poisoned: 0,
                refusals: 9,
                retries: 12,
                creator: 77,
                name: "bad\x1b[2Jname".into(),
            }]),
            vms: Some(vec![Vm {
                handle: "0x10001".into(),
                state: "started".into(),
                vcpus: 2,
                mapped: 302,
                metadata: 20,
                free: 5,
                opened: 11,
                taken_back: 10,
                creator: 77,
                name: "vmm".into(),
            }]),
            holders: Some(vec![Holder {
                inode: 41,
                offset: 0x8000,
                size: 8192,
                references: 2,
                accesses: 1,
                name: "dma-buf:vgem".into(),
            }]),
            refused: Some(vec![Refused {
                inode: 41,
                offset: 0x9000,
                excess: 1024,
                accessible: 0,
                by: "a pin".into(),
            }]),
            lists_missing: None,
            guests: vec![guest(100)],
        }
    }

    fn line_with<'a>(text: &'a str, start: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn everything_has_a_line() {
        let text = render(&report(), None, FILE);
        assert_eq!(line_with(&text, "Escrow 1"), "Escrow 1.2.3: 2 CPUs, 1 VMs");
        let words = |start: &str| line_with(&text, start).split_whitespace().collect::<Vec<_>>();
        assert_eq!(words("lent  ")[..], ["lent", "300", "1.2", "MiB"]);
        assert_eq!(words("memories")[..], ["memories", "0", "lends", "305"]);
        let memory = ["41", "3.0", "MiB", "1", "300", "2", "3", "9", "77", "bad?[2Jname"];
        assert_eq!(words("41")[..], memory);
        let vm = ["0x10001", "started", "2", "302", "20", "5", "11", "10", "77", "vmm", "(web)"];
        assert_eq!(words("0x10001")[..], vm);
        assert!(!text.contains('\x1b'));
        let line = |part: &str| {
            let line = text.lines().find(|line| line.contains(part)).unwrap();
            line.split_whitespace().collect::<Vec<_>>()
        };
        let holder = ["41", "0x8000", "8", "KiB", "2", "1", "dma-buf:vgem"];
        assert_eq!(line("0x8000")[..], holder);
        assert_eq!(line("0x9000")[..], ["41", "0x9000", "1024", "0", "a", "pin"]);
    }

    #[test]
    fn what_has_come_is_told() {
        let before = report();
        let mut now = report();
        now.shim.lends += 7;
        let text = render(&now, Some(&before), FILE);
        assert!(line_with(&text, "memories").ends_with("312  +7"), "{text}");
        assert!(!line_with(&text, "lent  ").contains('+'));
        // A module that was loaded again counts from 0.
        let text = render(&before, Some(&now), FILE);
        assert!(!text.contains('+'));
        assert!(text.ends_with("\n\n"), "one report ends where the next begins");
    }

    #[test]
    fn guests_are_told_by_name() {
        let text = render(&report(), None, FILE);
        let words: Vec<_> = line_with(&text, "web").split_whitespace().collect();
        assert_eq!(words, ["web", "77", "2", "300", "2", "100", "60", "3"]);
        let words = |text: &str| {
            let line = line_with(text, "web").split_whitespace().map(str::to_owned);
            line.collect::<Vec<_>>()
        };
        // Another user's, twice.
        let others = [Guest { pages: None, ..guest(100) }];
        let later = [Guest { pages: None, ..guest(105) }];
        let text = render_guests(&later, Some(&others), FILE);
        assert_eq!(words(&text)[3..], ["?", "?", "105", "60", "3", "+5", "exits"]);
        assert!(text.starts_with("GUEST") && text.ends_with("\n\n"));
        let mut reset = guest(5);
        reset.status.boots = 9;
        assert_eq!(words(&render_guests(&[reset], Some(&others), FILE)).len(), 8);
    }

    #[test]
    fn without_lists() {
        let report = Report {
            memories: None,
            vms: None,
            holders: None,
            refused: None,
            lists_missing: Some("why".into()),
            ..report()
        };
        let text = render(&report, None, FILE);
        assert!(text.contains("no list of memories and VMs: why\n"));
        assert!(!text.contains("MEMORY"));
    }

    #[test]
    fn a_screen_is_kept() {
        let screen = Screen { width: 20, height: 6, redraw: true };
        let text = render(&report(), Some(&report()), screen);
        let text = text.strip_prefix("\x1b[H\x1b[J").unwrap();
        assert_eq!(text.lines().count(), 5);
        assert!(text.lines().all(|line| line.chars().count() <= 20));
        // A single report is not cut: a terminal can scroll back.
        let text = render(&report(), None, screen);
        assert!(text.lines().count() > 20 && !text.contains('\x1b'));
    }

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 KiB"),
            (4096, "4 KiB"),
            (1 << 20, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn json_has_the_documented_names() {
        let value = serde_json::to_value(report()).unwrap();
        for path in [
            "/time_ms",
            "/escrow/version",
            "/escrow/pages/lent",
            "/shim/refusals",
            "/shim/quarantined",
            "/memories/0/inode",
            "/memories/0/creator",
            "/vms/0/handle",
            "/vms/0/metadata",
            "/holders/0/accesses",
            "/refused/0/by",
            "/lists_missing",
            "/guests/0/name",
            "/guests/0/exits",
            "/guests/0/pages/lent",
        ] {
            assert!(value.pointer(path).is_some(), "{path}");
        }
    }
}
