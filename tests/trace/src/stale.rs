// SPDX-License-Identifier: MIT OR Apache-2.0

//! Translations that left the tables and may live on in TLBs.
//!
//! TLBs hold entries of stage 2 (from blocks, pages and, as walk caches, tables)
//! and entries that combine both stages. The way of an old translation out of
//! all of them, each step of which may be made by another CPU but for the DSBs,
//! which must be made by the CPU that made what they wait for:
//!
//! ```text
//! write  --DSB by the writer-->  visible  --TLBI IPAS2E1IS-->  --DSB ISH-->
//!        --TLBI VMALLE1IS-->  --DSB ISH-->  gone
//! ```
//!
//! `VMALLS12E1IS` and `ALLE1IS` take both TLBI steps at once.
//!
//! Where CPUs have the erratum, the translation is gone then, and stores that it translated may
//! still be on their way, until
//!
//! ```text
//!        --any broadcast TLBI-->  --DSB ISH-->  gone
//! ```

use crate::descriptor::Kind;
use crate::event::{Dsb, Tlbi};
use crate::finding::Missing;
use crate::tables::{ENTRIES, Place, Slot};

/// What an old descriptor led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Memory.
    Memory(u64),
    /// The next level's table.
    Table(u64),
    /// Nothing else than now, but with more permissions.
    Permissions,
    /// A root table, which no descriptor leads to: maintenance by address does
    /// not reach it.
    Root(u64),
}

/// A translation that left the tables.
#[derive(Clone, Debug)]
pub struct Stale {
    /// The VMID that TLB entries of it carry.
    pub vmid: u16,
    /// The descriptor, and where it stood.
    pub slot: Slot,
    /// What it was.
    pub value: u64,
    /// How many bytes it stood for.
    pub size: u64,
    /// What it led to.
    pub target: Target,
    /// The CPU that took it away.
    pub cpu: u16,
    /// The line on which it did.
    pub line: usize,
    /// Whether it was reported; once is enough.
    pub reported: bool,
    /// The change is visible to walkers.
    pub visible: bool,
    stage2: Maintenance,
    combined: Maintenance,
    /// A CPU had the erratum when walkers saw the change. One that comes later has
    /// never seen what was there before.
    repeats: bool,
    repetition: Maintenance,
    near: Option<Near>,
}

#[derive(Clone, Debug, Default)]
struct Maintenance {
    /// CPUs that have issued it and not waited yet.
    issued: Vec<u16>,
    complete: bool,
}

impl Maintenance {
    fn issue(&mut self, cpu: u16) {
        if !self.issued.contains(&cpu) {
            self.issued.push(cpu);
        }
    }
}

/// A TLBI that looks as if it was meant, and why it did not help.
#[derive(Clone, Copy, Debug)]
enum Near {
    NotVisible(usize),
    NotCovered(usize),
    OtherVmid(usize, u16),
    Stage2NotComplete(usize),
}

impl Stale {
    /// A descriptor that a CPU has just taken away, on a line.
    pub fn entry(slot: Slot, value: u64, vmid: u16, cpu: u16, line: usize) -> Stale {
        let target = match slot.decode(value) {
            Kind::Leaf(pa) => Target::Memory(pa),
            Kind::Table(page) => Target::Table(page),
            Kind::Invalid => Target::Permissions,
        };
        Stale {
            vmid,
            slot,
            value,
            size: slot.size(),
            target,
            cpu,
            line,
            reported: false,
            visible: false,
            stage2: Maintenance::default(),
            combined: Maintenance::default(),
            repeats: false,
            repetition: Maintenance::default(),
            near: None,
        }
    }

    /// A root table that is not walked any more. Nothing was written for that.
    pub fn root(page: u64, place: Place, vmid: u16, cpu: u16, line: usize) -> Stale {
        let slot = Slot::new(page, 0, place);
        Stale {
            size: slot.size() * ENTRIES as u64,
            target: Target::Root(page),
            visible: true,
            ..Stale::entry(slot, 0, vmid, cpu, line)
        }
    }

    /// The same, but that the descriptor came back with other permissions.
    pub fn with_permissions(self, cpu: u16, line: usize) -> Stale {
        let Stale { slot, value, vmid, .. } = self;
        Stale { target: Target::Permissions, ..Stale::entry(slot, value, vmid, cpu, line) }
    }

    /// Whether it stood for an address of a range.
    pub fn overlaps_ipa(&self, ipa: u64, size: u64) -> bool {
        self.slot.ipa < ipa + size && ipa < self.slot.ipa + self.size
    }

    /// The memory that it led to, as first address and size.
    pub fn memory(&self) -> Option<(u64, u64)> {
        match self.target {
            Target::Memory(pa) => Some((pa, self.size)),
            _ => None,
        }
    }

    /// The table that it led to.
    pub fn table(&self) -> Option<u64> {
        match self.target {
            Target::Table(page) | Target::Root(page) => Some(page),
            _ => None,
        }
    }

    /// Walkers see the change. `repeats` says whether a CPU has the erratum.
    pub fn show(&mut self, repeats: bool) {
        self.visible = true;
        self.repeats = repeats;
    }

    /// A TLBI by `cpu`.
    pub fn maintain(&mut self, cpu: u16, tlbi: Tlbi, line: usize) {
        if self.combined.complete {
            self.repetition.issue(cpu);
            return;
        }
        let hit = match tlbi {
            // One address inside of a block or page is enough for all that TLBs
            // made of it (R_TVTYQ), and for the table entry of a walk.
            Tlbi::Vae2is => return,
            Tlbi::Ipas2e1is { ipa, size, .. } => {
                !matches!(self.target, Target::Root(_)) && self.overlaps_ipa(ipa, size)
            }
            _ => true,
        };
        if tlbi.vmid().is_some_and(|vmid| vmid != self.vmid) {
            if hit && cpu == self.cpu && !self.stage2.complete {
                self.near.get_or_insert(Near::OtherVmid(line, tlbi.vmid().unwrap_or_default()));
            }
            return;
        }
        if !self.visible {
            if hit {
                self.near = Some(Near::NotVisible(line));
            }
            return;
        }
        match tlbi {
            Tlbi::Ipas2e1is { .. } if hit => self.stage2.issue(cpu),
            Tlbi::Ipas2e1is { .. } => {
                if !self.stage2.complete && self.stage2.issued.is_empty() {
                    self.near.get_or_insert(Near::NotCovered(line));
                }
            }
            Tlbi::Vmalle1is { .. } if self.stage2.complete => self.combined.issue(cpu),
            Tlbi::Vmalle1is { .. } => {
                if !self.stage2.issued.is_empty() {
                    self.near = Some(Near::Stage2NotComplete(line));
                }
            }
            Tlbi::Vae2is => {}
            Tlbi::Vmalls12e1is { .. } | Tlbi::Alle1is => {
                self.stage2.issue(cpu);
                self.combined.issue(cpu);
            }
        }
    }

    /// A DSB by `cpu`. Returns whether the translation is gone, and what it
    /// translated is over. `repeats` says whether a CPU has the erratum.
    pub fn wait(&mut self, cpu: u16, kind: Dsb, repeats: bool) -> bool {
        if cpu == self.cpu && !self.visible {
            self.show(repeats);
        }
        if kind.completes_maintenance() {
            self.stage2.complete |= self.stage2.issued.contains(&cpu);
            self.combined.complete |= self.combined.issued.contains(&cpu);
            self.repetition.complete |= self.repetition.issued.contains(&cpu);
        }
        self.combined.complete && (self.repetition.complete || !self.repeats)
    }

    /// The first step that it lacks.
    pub fn missing(&self) -> Missing {
        if !self.visible {
            Missing::VisibleBreak
        } else if !self.stage2.complete {
            let issued = !self.stage2.issued.is_empty();
            if issued { Missing::Stage2Dsb } else { Missing::Stage2 }
        } else if self.combined.complete {
            Missing::Repetition
        } else if self.combined.issued.is_empty() {
            Missing::Combined
        } else {
            Missing::CombinedDsb
        }
    }

    /// A TLBI that did not help and may have been meant to, in words.
    pub fn hint(&self) -> String {
        match (self.near, self.missing()) {
            (Some(Near::NotVisible(line)), Missing::VisibleBreak | Missing::Stage2) => format!(
                "; the TLBI on line {line} came before the DSB that makes the change visible"
            ),
            (Some(Near::NotCovered(line)), Missing::Stage2) => {
                format!("; the TLBI on line {line} is of other addresses")
            }
            (Some(Near::OtherVmid(line, vmid)), Missing::VisibleBreak | Missing::Stage2) => {
                format!("; the TLBI on line {line} is of VMID {vmid}, not {}", self.vmid)
            }
            (Some(Near::Stage2NotComplete(line)), _) => {
                format!("; the VMALLE1IS on line {line} came before the DSB that completes stage 2")
            }
            _ => String::new(),
        }
    }
}
