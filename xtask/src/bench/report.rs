// SPDX-License-Identifier: MIT OR Apache-2.0

//! Results: rows, as JSON for programs, and what they are held against.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// Whose number a row has.
pub const ESCROW: &str = "escrow";
/// The same kernel without a hypervisor.
pub const LINUX: &str = "linux";
/// KVM with `kvm-arm.mode=protected`, and a protected VM.
pub const PKVM: &str = "pkvm";
/// KVM with `kvm-arm.mode=nvhe`.
pub const NVHE: &str = "kvm-nvhe";
/// Xen, and its dom0.
pub const XEN: &str = "xen";
/// Other hypervisors, in the order of columns and bars.
pub const PEERS: [&str; 3] = [PKVM, NVHE, XEN];
/// What everything is counted in.
pub const INSTRUCTIONS: &str = "instructions";
/// What little is counted in besides.
pub const BYTES: &str = "bytes";

/// One operation, measured a number of times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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

/// All results.
#[derive(Clone, Debug, Default)]
pub struct Report(pub Vec<Row>);

impl Report {
    /// Reads what [`write`](Self::write) wrote.
    pub fn read(path: &Path) -> Result<Self> {
        let json = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let rows = serde_json::from_slice(&json);
        Ok(Self(rows.with_context(|| format!("{} is no list of rows", path.display()))?))
    }

    /// Writes the rows as a JSON list.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(&self.0)?;
        ensure!(!self.0.is_empty(), "nothing was measured");
        fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// A subject's row.
    pub fn find(&self, name: &str, subject: &str) -> Option<&Row> {
        self.0.iter().find(|row| row.name == name && row.subject == subject)
    }

    /// Escrow's row.
    pub fn own(&self, name: &str) -> Option<&Row> {
        self.find(name, ESCROW)
    }

    /// What a row is held against.
    pub fn goal(&self, row: &Row) -> Goal {
        if row.subject != ESCROW {
            return Goal::default();
        }
        if let Some(without) = self.find(&row.name, LINUX) {
            let factor = FACTORS.iter().find(|(name, _)| row.name.starts_with(name));
            // A disk that is QEMU's own answers when the build machine gets to it, and the kernel
            // has timers meanwhile.
            let least = row.name.starts_with("blk_");
            let floor = if least { without.min } else { without.mean };
            return Goal { most: factor.map(|(_, factor)| floor * factor), floor: Some(floor) };
        }
        let goal = GOALS.iter().find(|(name, _)| *name == row.name);
        goal.map(|(_, goal)| *goal).unwrap_or_default()
    }
}

/// What an operation should take at the most, and what hand-written code
/// that does no more than it must takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Goal {
    pub most: Option<f64>,
    pub floor: Option<f64>,
}

const fn goal(most: f64, floor: f64) -> Goal {
    Goal { most: Some(most), floor: Some(floor) }
}

const GOALS: &[(&str, Goal)] = &[
    ("hvc_el2", goal(60.0, 48.0)),
    ("guest_exit", goal(450.0, 159.0)),
    ("guest_exit_gic", Goal { most: Some(450.0), floor: None }),
    ("vgic_mmio_read", Goal { most: Some(300.0), floor: None }),
    ("vgic_mmio_write", Goal { most: Some(300.0), floor: None }),
    ("id_reg_trap", Goal { most: Some(150.0), floor: None }),
    ("timer_irq", Goal { most: Some(250.0), floor: None }),
    ("sgi_running", Goal { most: Some(2_500.0), floor: None }),
    ("lend_4k", goal(250.0, 71.0)),
    ("lend_512x4k_per_page", goal(60.0, 23.0)),
    ("lend_2m", goal(400.0, 100.0)),
    // A lend the other way, and the zeroing.
    ("reclaim_4k", Goal { most: None, floor: Some(71.0 + 64.0) }),
    ("reclaim_2m", goal(80_000.0, 100.0 + 32_768.0)),
    // A third of what pKVM takes for the least of its faults.
    ("shim_lend_4k", Goal { most: Some(7_190.0 / 3.0), floor: None }),
    ("shim_lend_4k_scattered", Goal { most: Some(7_190.0 / 3.0), floor: None }),
    ("shim_lend_2m", Goal { most: Some(4_000.0), floor: None }),
    // Half of what KVM was first measured to take.
    ("mmio_user", Goal { most: Some(5_840.0 / 2.0), floor: None }),
    ("exit_with_host", Goal { most: Some(900.0), floor: None }),
    ("guest_boot_exits", Goal { most: Some(1_300.0), floor: None }),
    ("guest_idle_exits", Goal { most: Some(50.0), floor: None }),
    ("boot_el2", Goal { most: Some(2_000_000.0), floor: None }),
];

/// How many times what it takes without Escrow a row may take, by what its name begins with.
const FACTORS: &[(&str, f64)] = &[
    ("workload", 1.01),
    ("guest_boot_4k", 1.08),
    ("guest_boot_verbose", 1.10),
    ("guest_boot", 1.03),
    // At 40 % of the speed.
    ("blk_read_1m", 1.0 / 0.40),
    ("blk_read_4k", 3.0),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench.json");
        let report = Report(vec![Row::of_samples("lend_4k", PKVM, &[4, 6]).unwrap()]);
        report.write(&path).unwrap();
        let read = Report::read(&path).unwrap();
        assert_eq!(read.0, report.0);
        assert_eq!(read.find("lend_4k", PKVM).map(|row| row.mean), Some(5.0));
        assert!(read.own("lend_4k").is_none());
        assert!(Report::default().write(&path).is_err());
    }

    #[test]
    fn only_escrow_has_goals() {
        let row = |name: &str, subject: &str| Row::instructions(name, subject, 1.0, 100.0, 1);
        let report = Report(vec![row("workload", ESCROW), row("workload", LINUX)]);
        assert_eq!(report.goal(&report.0[0]).most, Some(101.0));
        assert_eq!(report.goal(&report.0[1]).most, None);
        assert_eq!(report.goal(&row("lend_4k", ESCROW)).most, Some(250.0));
        assert_eq!(report.goal(&row("lend_4k", PKVM)).most, None);
    }
}
