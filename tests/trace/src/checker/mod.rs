// SPDX-License-Identifier: MIT OR Apache-2.0

//! Replays the tables of a trace and holds every event against the rules.
//!
//! What a TLB may hold at a moment is bounded from above: any descriptor that
//! walkers could find since it was written, and none that is invalid (I_WZCBG).
//! The order of events of different CPUs is that of the trace. That is no more
//! than one of the orders in which they may have taken effect, but all that the
//! rules need: a CPU's own order, and that of CPUs which hand over to each other
//! under a lock, are in every one of them.

mod calls;
mod entries;
mod memory;
mod walks;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use rangemap::{RangeMap, RangeSet};

use crate::event::{Dsb, Event, Record, Tlbi};
use crate::finding::{Finding, Missing, Rule};
use crate::stale::Stale;
use crate::tables::{Leaves, Tables};
use walks::Walks;

/// What came of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong, in the order of events.
    pub findings: Vec<Finding>,
    /// Lines on which a valid descriptor got other permissions without
    /// break-before-make, which is allowed.
    pub permission_changes: Vec<usize>,
    /// What there was to check.
    pub counts: Counts,
}

/// How many events of each sort a trace has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub events: usize,
    /// Descriptors written.
    pub writes: usize,
    /// Of these, valid ones that became invalid where walkers could find them.
    pub breaks: usize,
    /// TLB maintenance instructions.
    pub tlbis: usize,
    /// DSBs.
    pub dsbs: usize,
    /// Calls that returned.
    pub calls: usize,
    /// CPUs that came with the erratum for which TLB maintenance is repeated.
    pub repeating: usize,
    /// Writes of `VTTBR_EL2` with walks held off, by CPUs that have to.
    pub held_off: usize,
}

/// A VM's tables, as long as CPUs may walk them.
#[derive(Clone, Copy, Debug)]
struct Space {
    vmid: u16,
    root: u64,
    tables: u8,
    level: u8,
    bits: u8,
}

/// What a CPU has still to wait for.
#[derive(Clone, Debug, Default)]
struct Cpu {
    in_call: bool,
    /// The first valid descriptor that it wrote since its last DSB.
    made: Option<usize>,
    /// Tables that it wrote to since.
    written: BTreeSet<u64>,
    /// Memory that it zeroed since.
    zeroed: Vec<(u64, u64, usize)>,
    /// It has issued TLB maintenance since its last DSB ISH.
    maintaining: bool,
    /// Its last DSB that completed TLB maintenance, without ISB since.
    unsynchronized: Option<usize>,
    /// The VMID that it last wrote to `VTTBR_EL2`, and where, if there was no
    /// ISB since.
    vmid: Option<(u16, Option<usize>)>,
    /// It executes `AT` speculatively.
    speculates: bool,
    walks: Walks,
    /// Memory whose state or mappings it changed in this call.
    touched: RangeSet<u64>,
}

/// The state of a check. Usually all that is needed is [`check`].
#[derive(Debug, Default)]
pub struct Checker {
    spaces: BTreeMap<u32, Space>,
    tables: Tables,
    leaves: Leaves,
    /// In the order in which they left the tables.
    stales: Vec<Stale>,
    cpus: BTreeMap<u16, Cpu>,
    /// A CPU has the erratum that `Event::RepeatTlbi` speaks of.
    repeats: bool,
    /// Who reaches memory, as far as the trace says.
    ledger: RangeMap<u64, Vec<u32>>,
    /// Which CPU changed memory's state or mappings last: it answers for both
    /// when its call returns.
    touched_by: RangeMap<u64, u16>,
    /// What was found to be reached by those who must not, memory and VM.
    trespassed: BTreeSet<(u64, u32)>,
    last_line: usize,
    report: Report,
}

/// Where and by whom an event happens.
#[derive(Clone, Copy, Debug)]
struct At {
    cpu: u16,
    line: usize,
}

/// Checks a whole trace, in the order of its events.
pub fn check<'a>(records: impl IntoIterator<Item = &'a Record>) -> Report {
    let mut checker = Checker::default();
    for record in records {
        checker.step(record);
    }
    checker.finish()
}

impl Checker {
    /// Takes the next event.
    pub fn step(&mut self, record: &Record) {
        let at = At { cpu: record.cpu, line: record.line };
        self.last_line = record.line;
        self.report.counts.events += 1;
        match &record.event {
            &Event::Root { vm, vmid, table, level, tables, bits } => {
                self.root(at, vm, Space { vmid, root: table, tables, level, bits });
            }
            &Event::Drop { vm } => self.drop_space(at, vm),
            &Event::Table { at: page, size } => self.table(at, page, size, true),
            &Event::Raw { at: page, size } => self.table(at, page, size, false),
            &Event::Write { at: slot, old, new, release } => {
                self.report.counts.writes += 1;
                self.write(at, slot, old, new, release);
            }
            &Event::Zero { at: from, size } => self.zero(at, from, size),
            &Event::Dsb(kind) => self.dsb(at, kind),
            Event::Isb => {
                let cpu = self.cpu(at.cpu);
                cpu.unsynchronized = None;
                cpu.vmid = cpu.vmid.map(|(vmid, _)| (vmid, None));
                cpu.walks.synchronize();
            }
            &Event::Tcr(value) => self.tcr(at, value),
            &Event::Sctlr(value) => self.sctlr(at, value),
            &Event::Vttbr(value) => {
                self.switches(at);
                self.cpu(at.cpu).vmid = Some(((value >> 48) as u16, Some(at.line)));
            }
            &Event::Tlbi(tlbi) => self.tlbi(at, tlbi),
            Event::RepeatTlbi => {
                self.report.counts.repeating += 1;
                self.repeats = true;
            }
            Event::SpeculativeAt => {
                let cpu = self.cpu(at.cpu);
                cpu.speculates = true;
                // Its registers are as reset left them.
                cpu.walks = Walks::default();
            }
            Event::State { at: from, size, reach } => {
                self.ledger.insert(*from..from + size, reach.clone());
                self.touch(at, *from, *size);
            }
            Event::Begin { .. } => {
                self.settle(at);
                self.cpu(at.cpu).in_call = true;
            }
            Event::End { .. } => {
                self.report.counts.calls += 1;
                self.settle(at);
                self.cpu(at.cpu).in_call = false;
            }
        }
    }

    /// The end of the trace. What CPUs inside of a call have still to do is not
    /// held against them.
    pub fn finish(mut self) -> Report {
        let outside: Vec<u16> =
            self.cpus.iter().filter(|(_, cpu)| !cpu.in_call).map(|(&cpu, _)| cpu).collect();
        for cpu in outside {
            self.settle(At { cpu, line: self.last_line });
        }
        self.report
    }

    fn cpu(&mut self, cpu: u16) -> &mut Cpu {
        self.cpus.entry(cpu).or_default()
    }

    fn find(&mut self, rule: Rule, at: At, since: Option<usize>, text: String) {
        let finding = Finding { rule, line: at.line, since, missing: None, text };
        self.report.findings.push(finding);
    }

    /// Reports that an old translation is in the way of something.
    fn find_stale(&mut self, rule: Rule, at: At, stale: usize, what: String) {
        let stale = &mut self.stales[stale];
        stale.reported = true;
        let text = what + &stale.hint();
        let (since, missing) = (Some(stale.line), Some(stale.missing()));
        self.report.findings.push(Finding { rule, line: at.line, since, missing, text });
    }

    fn dsb(&mut self, at: At, kind: Dsb) {
        self.report.counts.dsbs += 1;
        let repeats = self.repeats;
        self.stales.retain_mut(|stale| !stale.wait(at.cpu, kind, repeats));
        let cpu = self.cpus.entry(at.cpu).or_default();
        cpu.made = None;
        cpu.zeroed.clear();
        for page in std::mem::take(&mut cpu.written) {
            if let Some(page) = self.tables.page(page) {
                page.unpublished.retain(|&(writer, _)| writer != at.cpu);
            }
        }
        if kind.completes_maintenance() && std::mem::take(&mut cpu.maintaining) {
            cpu.unsynchronized = Some(at.line);
        }
    }

    fn tlbi(&mut self, at: At, tlbi: Tlbi) {
        self.report.counts.tlbis += 1;
        let cpu = self.cpu(at.cpu);
        cpu.maintaining = true;
        if let (Some((written, pending)), Some(vmid)) = (cpu.vmid, tlbi.vmid()) {
            if let Some(since) = pending {
                let text = "a TLBI is issued while the write of its VMID to VTTBR_EL2 may not \
                            have taken effect: there is no ISB in between";
                self.find(Rule::Vmid, at, Some(since), text.into());
            }
            if written != vmid {
                let text = format!("the TLBI is of VMID {vmid} and VTTBR_EL2 holds {written}");
                self.find(Rule::Vmid, at, None, text);
            }
        }
        for stale in &mut self.stales {
            stale.maintain(at.cpu, tlbi, at.line);
        }
    }

    /// A change of permissions only, in one direction or the other.
    fn permissions(&mut self, at: At, stale: Stale, new: u64) {
        self.report.permission_changes.push(at.line);
        if crate::descriptor::takes_away(stale.value, new) {
            self.stales.push(stale.with_permissions(at.cpu, at.line));
        }
    }

    /// What a CPU must have waited for before it returns to its caller.
    fn settle(&mut self, at: At) {
        let mut lacking: BTreeMap<Missing, (usize, usize)> = BTreeMap::new();
        for (n, stale) in self.stales.iter_mut().enumerate() {
            if stale.cpu == at.cpu && !stale.reported {
                stale.reported = true;
                lacking.entry(stale.missing()).or_insert((n, 0)).1 += 1;
            }
        }
        for (_, (first, count)) in lacking {
            let vmid = self.stales[first].vmid;
            let plural = if count == 1 { "translation" } else { "translations" };
            let text = format!("the CPU returns and {count} old {plural} of VMID {vmid} may live");
            self.find_stale(Rule::Return, at, first, text);
        }
        let cpu = self.cpu(at.cpu);
        let made = cpu.made.take();
        let unsynchronized = cpu.unsynchronized.take();
        if let Some(since) = made {
            let text = "the CPU returns and walkers may not see a new descriptor".into();
            self.find(Rule::Return, at, Some(since), text);
            self.lacks(Missing::VisibleMake);
        }
        if let Some(since) = unsynchronized {
            let text = "the CPU returns and its own TLB may not be done".into();
            self.find(Rule::Return, at, Some(since), text);
            self.lacks(Missing::Synchronization);
        }
        self.settle_access(at);
    }

    /// Says what the finding just made lacks.
    fn lacks(&mut self, missing: Missing) {
        if let Some(finding) = self.report.findings.last_mut() {
            finding.missing = Some(missing);
        }
    }
}
