// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the module is told to let fail: see `host/module/arch/inject.c`.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::{Error, call};
use escrow_shim_tests::runner::same;
use nix::errno::Errno;

const PARAMETERS: &str = "/sys/module/escrow/parameters";

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An allocation, of memory or of a file.
    Alloc,
    /// A lock, because of a signal.
    Lock,
    /// A freeze, because somebody has a reference at that moment.
    Reference,
    /// A call: Escrow is not asked, and answers this.
    Call(Error),
}

impl Kind {
    /// What a program may be told then.
    pub fn errnos(self) -> Vec<Errno> {
        match self {
            Kind::Alloc => vec![Errno::ENOMEM, Errno::EMFILE, Errno::ENFILE],
            Kind::Lock => vec![Errno::EINTR],
            Kind::Reference => vec![Errno::EAGAIN],
            Kind::Call(error) => {
                let errno = escrow_vmcore::Errno::from(error);
                // Where the program has asked for its pages back, what it
                // is told is that somebody has them.
                vec![Errno::from_raw(-errno.to_return()), Errno::EBUSY]
            }
        }
    }
}

/// Which of the points fail.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What fails.
    pub kind: Kind,
    /// From which point on, of those of its kind; the first is 1.
    pub nth: u32,
    /// How many of them.
    pub times: u32,
    /// The only call that is concerned, if it is one.
    pub function: u32,
    /// Whether the points of other processes, and of the kernel's threads,
    /// count as well.
    pub anybodys: bool,
}

impl Plan {
    /// The nth point of a kind that this process passes, and only that.
    pub fn nth(kind: Kind, nth: u32) -> Plan {
        Plan { kind, nth, times: 1, function: 0, anybodys: false }
    }

    /// Every such call from now on, whoever makes it.
    pub fn each(function: u32, error: Error) -> Plan {
        let kind = Kind::Call(error);
        Plan { kind, nth: 1, times: u32::MAX, function, anybodys: true }
    }

    /// From now on.
    pub fn arm(&self) -> Result<()> {
        let (kinds, error) = match self.kind {
            Kind::Alloc => (1, 0),
            Kind::Call(error) => (2, error.to_register()),
            Kind::Lock => (4, 0),
            Kind::Reference => (8, 0),
        };
        let tgid = if self.anybodys { 0 } else { std::process::id() };
        let Plan { nth, times, function, .. } = self;
        write(&format!("{kinds} {nth} {times} {error} {function} {tgid}"))
    }

    /// Nothing fails any more.
    pub fn disarm() -> Result<()> {
        write("0 0 0 0 0 0")
    }
}

/// Before the next call of that function, the first page of its list breaks.
pub fn break_at(function: u32) -> Result<()> {
    let path = format!("{PARAMETERS}/fault_break");
    let text = format!("{function} {}", call::MEM_POISON);
    fs::write(&path, text).with_context(|| format!("cannot write {path}"))
}

/// From now on the module freezes folios with so many references more than it
/// counts: the mistake of a host that has lost count.
pub fn miscount(surplus: u32) -> Result<()> {
    let path = format!("{PARAMETERS}/fault_surplus");
    fs::write(&path, surplus.to_string()).with_context(|| format!("cannot write {path}"))
}

fn write(plan: &str) -> Result<()> {
    let path = format!("{PARAMETERS}/fault_arm");
    fs::write(&path, plan).with_context(|| format!("cannot write {path}: no module for tests?"))
}

/// What has come of the plan, and what the module holds.
#[derive(Clone, Copy)]
pub struct State {
    /// Points that failed since it was armed.
    pub failed: i64,
    /// Blocks of memory that the module has.
    pub blocks: i64,
}

impl State {
    /// Asks the module.
    pub fn read() -> Result<State> {
        let text = fs::read_to_string(format!("{PARAMETERS}/fault_state"))?;
        let number = |name: &str| -> Result<i64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(line.with_context(|| format!("no {name}"))?.parse()?)
        };
        Ok(State { failed: number("failed")?, blocks: number("blocks")? })
    }
}

/// A place in the module's source that may fail.
#[derive(Clone, Debug)]
pub struct Site {
    /// File, line and name.
    pub name: String,
    /// How often it failed.
    pub failed: u64,
}

/// All that were ever passed.
pub fn sites() -> Result<Vec<Site>> {
    let text = fs::read_to_string(format!("{PARAMETERS}/fault_sites"))?;
    // A page is all that a parameter can say.
    ensure!(text.len() < 4000, "there are more sites than can be told");
    let sites = text.lines().map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        same(fields.len(), 4)?;
        Ok(Site { name: format!("{} {}", fields[0], fields[1]), failed: fields[3].parse()? })
    });
    sites.collect()
}
