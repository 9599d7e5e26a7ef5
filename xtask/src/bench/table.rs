// SPDX-License-Identifier: MIT OR Apache-2.0

//! Results as tables: for the terminal, and for docs/performance.md.

use std::fmt::Write as _;

use super::report::{ESCROW, LINUX, PEERS, Report, Row};

/// Rows and columns of text. The first row is the head; the first column is
/// words, the others are numbers.
pub struct Table(Vec<Vec<String>>);

impl Table {
    fn new(head: &[&str]) -> Self {
        Self(vec![head.iter().map(|&cell| cell.into()).collect()])
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }

    /// Whether there is nothing but the head.
    pub fn is_empty(&self) -> bool {
        self.0.len() < 2
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let widths = self.widths();
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Writing to a string cannot fail.
                let _ = match column {
                    0 => write!(line, "{cell:<width$}  "),
                    _ => write!(line, "{cell:>width$}  "),
                };
            }
            format!("{}\n", line.trim_end())
        };
        self.0.iter().map(line).collect()
    }

    /// For a page of documentation.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for (number, row) in self.0.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if number == 0 {
                let rule = |n| if n == 0 { "---" } else { "---:" };
                let rules: Vec<_> = (0..row.len()).map(rule).collect();
                let _ = writeln!(text, "| {} |", rules.join(" | "));
            }
        }
        text
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths = Vec::new();
        for row in &self.0 {
            widths.resize(row.len().max(widths.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        widths
    }
}

/// Escrow's rows and those of the same kernel without it, but what grows. A goal
/// is held or missed by the mean.
pub fn own(report: &Report) -> Table {
    let mut table =
        Table::new(&["operation", "subject", "min", "mean", "n", "goal", "floor", "verdict"]);
    let is_own = |row: &&Row| [ESCROW, LINUX].contains(&row.subject.as_str());
    for row in report.0.iter().filter(is_own).filter(|row| !row.name.contains("_cpus_")) {
        let goal = report.goal(row);
        let verdict = match row.name.as_str() {
            "longest_stretch" => worst_stretch(report),
            _ => goal.most.map(|most| if row.mean <= most { "ok" } else { "over" }),
        };
        table.row([
            row.name.clone(),
            row.subject.clone(),
            number(row.min),
            number(row.mean),
            row.n.to_string(),
            goal.most.map(|most| format!("≤ {}", number(most))).unwrap_or_default(),
            goal.floor.map(number).unwrap_or_default(),
            verdict.unwrap_or_default().into(),
        ]);
    }
    table
}

/// Which call has the longest stretch with interrupts off.
fn worst_stretch(report: &Report) -> Option<&str> {
    let stretches = report.0.iter().filter(|row| row.name.starts_with("off_"));
    stretches.max_by(|a, b| a.mean.total_cmp(&b.mean)).map(|row| row.name.as_str())
}

/// Escrow's mean against the least that each peer takes, and how many times that
/// is Escrow's.
pub fn peers(report: &Report) -> Table {
    let mut head = vec!["operation", "escrow", "floor"];
    head.extend(PEERS.iter().flat_map(|peer| [*peer, "ratio"]));
    let mut table = Table::new(&head);
    for row in report.0.iter().filter(|row| row.subject == ESCROW) {
        let theirs = PEERS.map(|peer| report.find(&row.name, peer));
        if theirs.iter().all(Option::is_none) {
            continue;
        }
        let floor = report.goal(row).floor.map(number).unwrap_or_default();
        let theirs = theirs.into_iter().flat_map(|theirs| match theirs {
            Some(theirs) => [number(theirs.min), format!("{}×", number(theirs.min / row.mean))],
            None => ["–".into(), String::new()],
        });
        table.row([row.name.clone(), number(row.mean), floor].into_iter().chain(theirs));
    }
    table
}

/// What the peers take for what Escrow has no row of.
pub fn others(report: &Report) -> Table {
    let mut table = Table::new(&["operation", "subject", "min", "mean", "n"]);
    let is_other =
        |row: &&Row| PEERS.contains(&row.subject.as_str()) && report.own(&row.name).is_none();
    for row in report.0.iter().filter(is_other) {
        let (min, mean) = (number(row.min), number(row.mean));
        table.row([row.name.clone(), row.subject.clone(), min, mean, row.n.to_string()]);
    }
    table
}

/// How many pages a call lends, and how many CPUs lend at once.
pub const PAGES: [u32; 4] = [1, 8, 64, 512];
pub const CPUS: [u32; 4] = [1, 2, 4, 8];

/// Instructions a page of calls about so many pages: adjacent ones, or scattered.
pub fn per_page(report: &Report, pages: u32, scattered: bool) -> Option<f64> {
    let name = match (pages, scattered) {
        // One page is neither.
        (1, _) => "lend_4k".into(),
        (_, false) => format!("lend_{pages}x4k_per_page"),
        (_, true) => format!("lend_{pages}x4k_scattered_per_page"),
    };
    report.own(&name).map(|row| row.mean)
}

/// What CPUs that lend at once take, by what they lend: the row's name, and
/// what it is.
pub const AT_ONCE: [(&str, &str); 4] = [
    ("lend_4k", "a page, of a block of its own"),
    ("lend_4k_near_lists", "the same, all lists in one block"),
    ("lend_64x4k_per_page", "64 pages of a block of its own, each"),
    ("lend_4k_same_block", "a page, of a block for all"),
];

/// Instructions of each CPU's call, the mean of all, when so many lend at once.
pub fn at_once(report: &Report, what: &str, cpus: u32) -> Option<f64> {
    report.own(&format!("{what}_cpus_{cpus}")).map(|row| row.mean)
}

/// How lending grows with the pages of a call.
pub fn growth(report: &Report) -> Table {
    let mut table = Table::new(&["pages a call", "1", "8", "64", "512", "512 to 1"]);
    for (name, scattered) in [("adjacent, a page", false), ("scattered, a page", true)] {
        let cells = PAGES.map(|pages| per_page(report, pages, scattered));
        series(&mut table, name, cells);
    }
    table
}

/// How lending grows with the CPUs that lend at once.
pub fn cpus(report: &Report) -> Table {
    let mut table = Table::new(&["CPUs at once", "1", "2", "4", "8", "8 to 1"]);
    for (what, name) in AT_ONCE {
        series(&mut table, name, CPUS.map(|cpus| at_once(report, what, cpus)));
    }
    table
}

/// A row of values, and how many times the first the last is.
fn series(table: &mut Table, name: &str, values: [Option<f64>; 4]) {
    if values.iter().any(Option::is_some) {
        let ratio = values[0].zip(values[3]).map(|(first, last)| format!("{:.2}×", last / first));
        let cells = values.map(|value| value.map(number).unwrap_or_default());
        let row = [String::from(name)].into_iter().chain(cells);
        table.row(row.chain([ratio.unwrap_or_default()]));
    }
}

/// A number with its thousands apart; a decimal where there are few digits.
pub fn number(value: f64) -> String {
    if value < 1000.0 && value.fract() != 0.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{NVHE, PKVM, XEN};

    fn rows(rows: &[(&str, &str, f64)]) -> Report {
        let row = |&(name, subject, mean): &(&str, &str, f64)| {
            Row::instructions(name, subject, mean - 1.0, mean, 10)
        };
        Report(rows.iter().map(row).collect())
    }

    #[test]
    fn numbers_are_readable() {
        let shown = [0.0, 48.0, 52.25, 999.96, 1000.4, 2_000_000.0].map(number);
        assert_eq!(shown, ["0", "48", "52.2", "1000.0", "1,000", "2,000,000"]);
    }

    #[test]
    fn goals_missed_are_shown() {
        let report = rows(&[
            ("hvc_el2", ESCROW, 61.0),
            ("guest_exit", ESCROW, 450.0),
            ("unshare_4k", ESCROW, 450.0),
        ]);
        let table = own(&report).text();
        let ends: Vec<_> = table.lines().map(|l| l.rsplit(' ').next().unwrap()).collect();
        assert_eq!(ends[1..], ["over", "ok", "10"]);
    }

    #[test]
    fn the_workload_is_held_against_linux() {
        let report = |ours| rows(&[("workload", ESCROW, ours), ("workload", LINUX, 100_000.0)]);
        assert!(own(&report(101_000.0)).text().contains("ok"));
        assert!(own(&report(101_001.0)).text().contains("over"));
    }

    #[test]
    fn peers_stand_beside_escrow() {
        let report = rows(&[
            ("lend_4k", ESCROW, 250.0),
            ("lend_4k", PKVM, 2501.0),
            ("lend_4k", XEN, 501.0),
            ("lend_4k_with_host", NVHE, 7.0),
            ("boot_el2", ESCROW, 5.0),
        ]);
        let text = peers(&report).markdown();
        let expected = "| lend_4k | 250 | 71 | 2,500 | 10× | – |  | 500 | 2× |";
        assert_eq!(text.lines().skip(2).collect::<Vec<_>>(), [expected]);
        assert!(others(&report).text().contains("lend_4k_with_host"));
    }

    #[test]
    fn growth_is_by_name() {
        let report = rows(&[
            ("lend_4k", ESCROW, 250.0),
            ("lend_512x4k_scattered_per_page", ESCROW, 80.0),
            ("lend_4k_same_block_cpus_8", ESCROW, 900.0),
        ]);
        assert!(
            growth(&report).markdown().contains("| scattered, a page | 250 |  |  | 80 | 0.32× |")
        );
        assert!(cpus(&report).markdown().contains("a block for all |  |  |  | 900 |"));
    }
}
