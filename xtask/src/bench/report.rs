// SPDX-License-Identifier: MIT OR Apache-2.0

//! Results, as a table for people and as JSON for programs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// Whose number a row has.
pub const ESCROW: &str = "escrow";
/// The same kernel without a hypervisor.
pub const LINUX: &str = "linux";
/// What everything is counted in.
pub const INSTRUCTIONS: &str = "instructions";

/// One operation, measured a number of times.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Who did it: [`ESCROW`] or a peer.
    pub subject: String,
    /// What `min` and `mean` count.
    pub unit: String,
    /// The least of all samples.
    pub min: f64,
    /// Their mean.
    pub mean: f64,
    /// How many there were.
    pub n: u64,
}

impl Row {
    /// A row of instructions.
    pub fn instructions(name: &str, subject: &str, min: f64, mean: f64, n: u64) -> Self {
        Self { name: name.into(), subject: subject.into(), unit: INSTRUCTIONS.into(), min, mean, n }
    }

    /// A row of these samples.
    pub fn of_samples(name: &str, subject: &str, samples: &[u64]) -> Result<Self> {
        let min = *samples.iter().min().with_context(|| format!("no samples of {name}"))?;
        let mean = samples.iter().sum::<u64>() as f64 / samples.len() as f64;
        Ok(Self::instructions(name, subject, min as f64, mean, samples.len() as u64))
    }
}

/// What an operation should take at the most, and what hand-written code
/// that does no more than it must takes.
struct Goal {
    name: &'static str,
    most: f64,
    floor: Option<f64>,
}

const fn goal(name: &'static str, most: f64, floor: Option<f64>) -> Goal {
    Goal { name, most, floor }
}

const GOALS: &[Goal] = &[
    goal("hvc_el2", 60.0, Some(48.0)),
    goal("guest_exit", 450.0, Some(159.0)),
    goal("lend_4k", 250.0, Some(71.0)),
    goal("lend_512x4k_per_page", 60.0, Some(23.0)),
    goal("lend_2m", 400.0, Some(100.0)),
    goal("boot_el2", 2_000_000.0, None),
];

/// How much more than without Escrow the workload may take: one percent.
const WORKLOAD_FACTOR: f64 = 1.01;

/// The goal for a row: most, and the floor where one is known.
fn goal_of(row: &Row, rows: &[Row]) -> Option<(f64, Option<f64>)> {
    if row.subject != ESCROW {
        return None;
    }
    let same = |r: &&Row| r.name == row.name && r.subject == LINUX;
    if let Some(baseline) = rows.iter().find(same) {
        return Some((baseline.mean * WORKLOAD_FACTOR, Some(baseline.mean)));
    }
    let goal = GOALS.iter().find(|goal| goal.name == row.name)?;
    Some((goal.most, goal.floor))
}

/// The table. A goal is held or missed by the mean.
pub fn table(rows: &[Row]) -> String {
    let head = ["operation", "subject", "min", "mean", "n", "goal", "floor", ""];
    let mut cells = vec![head.map(String::from)];
    for row in rows {
        let (goal, floor, verdict) = match goal_of(row, rows) {
            Some((most, floor)) => {
                let verdict = if row.mean <= most { "ok" } else { "over" };
                (format!("<= {}", number(most)), floor.map(number).unwrap_or_default(), verdict)
            }
            None => Default::default(),
        };
        cells.push([
            row.name.clone(),
            row.subject.clone(),
            number(row.min),
            number(row.mean),
            row.n.to_string(),
            goal,
            floor,
            verdict.into(),
        ]);
    }
    let mut text = String::new();
    let widths: [usize; 8] =
        std::array::from_fn(|column| cells.iter().map(|row| row[column].len()).max().unwrap_or(0));
    for row in &cells {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // Words to the left, numbers to the right.
            let word = matches!(column, 0 | 1 | 7);
            // Writing to a string cannot fail.
            let _ = if word {
                write!(line, "{cell:<width$}  ")
            } else {
                write!(line, "{cell:>width$}  ")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Writes the rows as a JSON list.
pub fn write(rows: &[Row], path: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(rows)?;
    ensure!(!rows.is_empty(), "nothing was measured");
    fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// A number with its thousands apart; a decimal where there are few digits.
fn number(value: f64) -> String {
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

    #[test]
    fn numbers_are_readable() {
        let shown = [0.0, 48.0, 52.25, 999.96, 1000.4, 2_000_000.0].map(number);
        assert_eq!(shown, ["0", "48", "52.2", "1000.0", "1,000", "2,000,000"]);
    }

    #[test]
    fn goals_missed_are_shown() {
        let rows = [
            Row::instructions("hvc_el2", ESCROW, 59.0, 61.0, 10),
            Row::instructions("guest_exit", ESCROW, 400.0, 450.0, 10),
            Row::instructions("share_4k", ESCROW, 400.0, 450.0, 10),
        ];
        let table = table(&rows);
        let ends: Vec<_> = table.lines().map(|l| l.rsplit(' ').next().unwrap()).collect();
        assert_eq!(ends[1..], ["over", "ok", "10"]);
    }

    #[test]
    fn the_workload_is_held_against_linux() {
        let rows = |ours| {
            [
                Row::of_samples("workload", ESCROW, &[ours, ours]).unwrap(),
                Row::of_samples("workload", LINUX, &[100_000, 100_000]).unwrap(),
            ]
        };
        assert!(table(&rows(101_000)).contains("ok"));
        assert!(table(&rows(101_001)).contains("over"));
    }
}
