// SPDX-License-Identifier: MIT OR Apache-2.0

//! The trace of what the fake machine is told of tables, TLBs and memory, as
//! `docs/trace.md` has it. What CPUs do for [`Machine`]'s calls is what
//! `escrow-aarch64` does; that it really does is another test's business.
//!
//! [`Machine`]: crate::machine::Machine

use std::collections::BTreeMap;
use std::sync::Mutex;

use escrow_trace::event::{Dsb, Tlbi};
use escrow_trace::{Event, Finding, Record, Report, check};

use crate::addr::PAGE_SIZE;
use crate::ledger::VmId;
use crate::machine::{Note, Table};
use crate::stage2::Stage2Context;

/// Lines before a finding that tell how it came about.
const CONTEXT: usize = 24;

/// A trace.
#[derive(Default)]
pub struct Trace(Mutex<State>);

#[derive(Default)]
struct State {
    records: Vec<Record>,
    /// Where the fake memory's tables are, to the addresses that they stand for.
    tables: BTreeMap<usize, u64>,
}

impl Trace {
    /// Adds events of the one CPU that there is.
    fn push(&self, events: impl IntoIterator<Item = Event>) {
        let mut state = self.0.lock().unwrap();
        for event in events {
            let seq = state.records.len() as u64;
            // The header is line 1.
            state.records.push(Record { cpu: 0, seq, line: seq as usize + 2, event });
        }
    }

    /// Somebody gets hold of a table.
    pub fn found(&self, table: &Table, at: u64) {
        self.0.lock().unwrap().tables.insert(table.as_ptr().addr(), at);
    }

    /// A descriptor in a table that somebody got hold of is written.
    pub fn write(&self, slot: usize, old: u64, new: u64) {
        let table =
            self.0.lock().unwrap().tables.range(..=slot).next_back().map(|(&t, &at)| (t, at));
        let (table, page) = table.expect("a descriptor of a table");
        let offset = (slot - table) as u64;
        assert!(offset < PAGE_SIZE, "a descriptor of a table");
        self.push([Event::Write { at: page + offset, old, new, release: true }]);
    }

    /// Memory is zeroed, down to what those see who have their caches off.
    pub fn zero(&self, at: u64, size: u64) {
        self.push([Event::Zero { at, size }, Event::Dsb(Dsb::Sy)]);
    }

    /// New descriptors are made visible.
    pub fn publish(&self) {
        self.push([Event::Dsb(Dsb::Ishst)]);
    }

    /// TLB entries of ranges of a VM's addresses are removed.
    pub fn invalidate(&self, context: &Stage2Context, ranges: &[(u64, u64)]) {
        let vmid = vmid(context);
        self.push([Event::Dsb(Dsb::Ishst)]);
        let stage2 = |&(ipa, size)| Event::Tlbi(Tlbi::Ipas2e1is { vmid, ipa, size });
        self.push(ranges.iter().map(stage2));
        self.push([Event::Dsb(Dsb::Ish), Event::Tlbi(Tlbi::Vmalle1is { vmid })]);
        self.push([Event::Dsb(Dsb::Ish), Event::Isb]);
    }

    /// All TLB entries of a VM are removed.
    pub fn invalidate_all(&self, context: &Stage2Context) {
        let tlbi = Tlbi::Vmalls12e1is { vmid: vmid(context) };
        self.push([Event::Dsb(Dsb::Ishst), Event::Tlbi(tlbi), Event::Dsb(Dsb::Ish), Event::Isb]);
    }

    /// What the hypervisor says of itself.
    pub fn note(&self, note: Note<'_>) {
        let vm = |id: VmId| u32::from(id.vmid());
        self.push([match note {
            Note::Root(id, context) => root(vm(id), context),
            Note::Drop(id) => Event::Drop { vm: vm(id) },
            Note::Tables { at, size, zeroed: true } => Event::Table { at: at.0, size },
            Note::Tables { at, size, zeroed: false } => Event::Raw { at: at.0, size },
            Note::Record { at, size, record } => {
                Event::State { at: at.0, size, reach: record.reached_by().map(vm).collect() }
            }
            Note::Begin(function) => Event::Begin { call: format!("{function:#x}") },
            Note::End(answer) => Event::End { result: format!("{answer:#x}") },
        }]);
    }

    /// Holds the trace against the rules.
    ///
    /// # Panics
    /// It breaks one.
    pub fn check(&self) -> Report {
        let state = self.0.lock().unwrap();
        let report = check(&state.records);
        if let Some(finding) = report.findings.first() {
            panic!("{}", explain(&state.records, finding, report.findings.len()));
        }
        report
    }
}

fn vmid(context: &Stage2Context) -> u16 {
    (context.vttbr >> 48) as u16
}

/// The shape of the tables as `VTCR_EL2` says it, for the 4 KiB granule.
fn root(vm: u32, context: &Stage2Context) -> Event {
    let bits = 64 - (context.vtcr & 0x3f) as u8;
    let level = 2 - (context.vtcr >> 6 & 3) as u8;
    let in_root = u32::from(bits) - escrow_trace::descriptor::shift(level);
    Event::Root {
        vm,
        vmid: vmid(context),
        table: context.vttbr & 0x0000_ffff_ffff_f000,
        level,
        tables: 1 << in_root.saturating_sub(9),
        bits,
    }
}

/// A finding, with the lines that led to it.
fn explain(records: &[Record], finding: &Finding, count: usize) -> String {
    let mut text = format!("{count} findings, of which the first:\n{finding}\n");
    let since = finding.since.filter(|&since| since + CONTEXT < finding.line);
    for record in records {
        if Some(record.line) == since {
            text += &format!("line {}: {record}\n  ...\n", record.line);
        }
        if (finding.line.saturating_sub(CONTEXT)..=finding.line).contains(&record.line) {
            text += &format!("line {}: {record}\n", record.line);
        }
    }
    text
}
