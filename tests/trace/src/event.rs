// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a trace tells, and how it is written. `docs/trace.md` is the format's
//! definition; [`Event`]'s `Display` and `crate::parse` follow it.

use std::fmt;

/// A line of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The CPU on which it happened.
    pub cpu: u16,
    /// Its place in the order of all events of all CPUs.
    pub seq: u64,
    /// The line of the file, from 1; for messages.
    pub line: usize,
    /// What happened.
    pub event: Event,
}

/// What happened on a CPU. Addresses and sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// From here on, CPUs may walk a VM's tables under a VMID.
    Root {
        /// The VM's number; it stays, whatever becomes of its VMID.
        vm: u32,
        /// `VTTBR_EL2.VMID`.
        vmid: u16,
        /// Its root table, the first one if there are several.
        table: u64,
        /// The level of the root, 0 to 2.
        level: u8,
        /// How many tables stand side by side at the root, a power of two up to 16.
        tables: u8,
        /// Bits of guest address, 25 to 48.
        bits: u8,
    },
    /// From here on, no CPU begins to walk a VM's tables.
    Drop {
        /// The VM's number.
        vm: u32,
    },
    /// Memory that EL2 uses for tables from here on. It holds zeros that table
    /// walkers see.
    Table {
        /// First address.
        at: u64,
        /// Bytes.
        size: u64,
    },
    /// The same, but that nobody knows what it holds: all of a table is written
    /// before it is linked.
    Raw {
        /// First address.
        at: u64,
        /// Bytes.
        size: u64,
    },
    /// A descriptor is written.
    Write {
        /// The address of the descriptor.
        at: u64,
        /// What it held.
        old: u64,
        /// What it holds now.
        new: u64,
        /// Whether the store orders all earlier ones before it.
        release: bool,
    },
    /// Memory is zeroed.
    Zero {
        /// First address.
        at: u64,
        /// Bytes.
        size: u64,
    },
    /// A DSB has completed.
    Dsb(Dsb),
    /// An ISB, or another context synchronization event.
    Isb,
    /// `VTTBR_EL2` is written.
    Vttbr(u64),
    /// `TCR_EL1` is written.
    Tcr(u64),
    /// `SCTLR_EL1` is written.
    Sctlr(u64),
    /// A TLB maintenance instruction is issued, broadcast to the Inner
    /// Shareable domain.
    Tlbi(Tlbi),
    /// From here on the completion of a broadcast TLBI does not wait for all stores
    /// that what it removes has translated: another one has to (Arm erratum 4118414
    /// and its like).
    RepeatTlbi,
    /// The CPU may execute `AT` instructions of EL2 speculatively (Arm erratum 1165522
    /// and its like).
    SpeculativeAt,
    /// The ledger says anew who may reach memory.
    State {
        /// First address.
        at: u64,
        /// Bytes.
        size: u64,
        /// The VMs, in ascending order.
        reach: Vec<u32>,
    },
    /// The CPU begins to serve a call.
    Begin {
        /// Which one, for people.
        call: String,
    },
    /// The CPU is about to return to its caller.
    End {
        /// What it answers, for people.
        result: String,
    },
}

/// What a DSB waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dsb {
    /// Stores, Inner Shareable.
    Ishst,
    /// Loads and stores, Inner Shareable: TLB maintenance as well.
    Ish,
    /// Loads and stores, full system: TLB maintenance as well.
    Sy,
}

impl Dsb {
    /// Whether it waits for TLB maintenance: it has to apply to loads and
    /// stores (R_PSMWS).
    pub fn completes_maintenance(self) -> bool {
        self != Dsb::Ishst
    }
}

/// A TLB maintenance instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tlbi {
    /// `IPAS2E1IS` or `RIPAS2E1IS`: stage-2 entries of a range of addresses.
    Ipas2e1is {
        /// The VMID in force.
        vmid: u16,
        /// First guest address.
        ipa: u64,
        /// Bytes.
        size: u64,
    },
    /// `VMALLE1IS`: all that holds stage-1 information of a VMID, so also what
    /// combines both stages.
    Vmalle1is {
        /// The VMID in force.
        vmid: u16,
    },
    /// `VMALLS12E1IS`: all of a VMID.
    Vmalls12e1is {
        /// The VMID in force.
        vmid: u16,
    },
    /// `ALLE1IS`: all of every VMID.
    Alle1is,
    /// `VAE2IS`: nothing of any VMID. What counts is that it is broadcast.
    Vae2is,
}

impl Tlbi {
    /// The VMID that it is about; `None` for all.
    pub fn vmid(self) -> Option<u16> {
        match self {
            Tlbi::Ipas2e1is { vmid, .. }
            | Tlbi::Vmalle1is { vmid }
            | Tlbi::Vmalls12e1is { vmid } => Some(vmid),
            Tlbi::Alle1is | Tlbi::Vae2is => None,
        }
    }
}

impl fmt::Display for Dsb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dsb::Ishst => "ishst",
            Dsb::Ish => "ish",
            Dsb::Sy => "sy",
        })
    }
}

impl fmt::Display for Tlbi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tlbi::Ipas2e1is { vmid, ipa, size } => {
                write!(f, "ipas2e1is {vmid} {ipa:#x} {size:#x}")
            }
            Tlbi::Vmalle1is { vmid } => write!(f, "vmalle1is {vmid}"),
            Tlbi::Vmalls12e1is { vmid } => write!(f, "vmalls12e1is {vmid}"),
            Tlbi::Alle1is => write!(f, "alle1is"),
            Tlbi::Vae2is => write!(f, "vae2is"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Root { vm, vmid, table, level, tables, bits } => {
                write!(f, "root {vm} {vmid} {table:#x} {level} {tables} {bits}")
            }
            Event::Drop { vm } => write!(f, "drop {vm}"),
            Event::Table { at, size } => write!(f, "table {at:#x} {size:#x}"),
            Event::Raw { at, size } => write!(f, "raw {at:#x} {size:#x}"),
            Event::Write { at, old, new, release } => {
                let order = if *release { "release" } else { "write" };
                write!(f, "{order} {at:#x} {old:#x} {new:#x}")
            }
            Event::Zero { at, size } => write!(f, "zero {at:#x} {size:#x}"),
            Event::Dsb(kind) => write!(f, "dsb {kind}"),
            Event::Isb => write!(f, "isb"),
            Event::Vttbr(value) => write!(f, "vttbr {value:#x}"),
            Event::Tcr(value) => write!(f, "tcr {value:#x}"),
            Event::Sctlr(value) => write!(f, "sctlr {value:#x}"),
            Event::Tlbi(kind) => write!(f, "tlbi {kind}"),
            Event::RepeatTlbi => write!(f, "erratum repeat-tlbi"),
            Event::SpeculativeAt => write!(f, "erratum speculative-at"),
            Event::State { at, size, reach } => {
                write!(f, "state {at:#x} {size:#x}")?;
                if reach.is_empty() {
                    write!(f, " -")?;
                }
                reach.iter().try_for_each(|vm| write!(f, " {vm}"))
            }
            Event::Begin { call } => write!(f, "begin {call}"),
            Event::End { result } => write!(f, "end {result}"),
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.cpu, self.seq, self.event)
    }
}
