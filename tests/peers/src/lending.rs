// SPDX-License-Identifier: MIT OR Apache-2.0

//! 256 MiB on the way to a guest that touches them page by page, and back.
//!
//! The memory is there and mapped in the program that runs the guest, with
//! something in every page. What counts is all that happens between a guest's
//! load and its next instruction: the exit, the host's work, EL2's work and the
//! entry; and what the program waits for when it closes the VM.

use anyhow::{Context as _, Result, ensure};

use crate::counter::Counters;
use crate::guest::{BLOCK, PAGE, PAGES_PER_BLOCK, Telling, Vcpu, What, Work, block, run};
use crate::row::Row;

/// Blocks that are lent: 256 MiB.
pub const BLOCKS: u64 = (256 << 20) / BLOCK;
/// How often all of it is done.
const ROUNDS: usize = 2;

/// A hypervisor, seen from the host's user space.
pub trait Lender {
    /// A VM with its memory.
    type Vm: Vcpu;

    /// Makes a VM whose memory is one block with the program and so many
    /// behind it, each of whose pages holds its guest address.
    ///
    /// # Errors
    /// What goes wrong.
    fn vm(&self, blocks: u64) -> Result<Self::Vm>;

    /// Ends a VM. When this is back, all its pages are home. What is done with
    /// them afterwards is the closure's that it returns.
    ///
    /// # Errors
    /// What goes wrong.
    fn end(&self, vm: Self::Vm) -> Result<impl FnOnce() -> Result<()>>;
}

/// Samples of one operation, of so many pages each: what it took, and where its
/// instructions were spent.
#[derive(Default)]
pub struct Samples {
    all: Vec<i64>,
    host: Vec<i64>,
    el2: Vec<i64>,
}

impl Samples {
    /// Adds one: all instructions, counted with the PMU off.
    pub fn add_all(&mut self, all: i64) {
        self.all.push(all);
    }

    /// Adds one: instructions of the host, and of EL2.
    pub fn add(&mut self, host: i64, el2: i64) {
        self.host.push(host);
        self.el2.push(el2);
    }

    /// Prints three rows, each for one of `per` operations that a sample is of. Without
    /// samples of all, the first is the sum of the others.
    ///
    /// # Errors
    /// A row is nonsense.
    pub fn print(self, name: &str, per: u64) -> Result<()> {
        let both = || self.host.iter().zip(&self.el2).map(|(host, el2)| host + el2).collect();
        let all = if self.all.is_empty() { both() } else { self.all };
        Row::new(name, per, all).print()?;
        Row::new(format!("{name}_host"), per, self.host).print()?;
        Row::new(format!("{name}_el2"), per, self.el2).print()
    }
}

/// What the names of rows begin with, and the pages that a row is about.
#[derive(Clone, Copy)]
pub struct Rows {
    /// Of the lend's rows.
    pub lend: &'static str,
    /// Of the reclaim's rows.
    pub reclaim: &'static str,
    /// How many parts of a block a row is about one of.
    pub parts: u64,
}

fn touch(number: u64) -> Work {
    Work::new(What::Loads, block(number), PAGE, PAGES_PER_BLOCK)
}

/// Lends all of it with the PMU off. What each block takes.
///
/// # Errors
/// What goes wrong.
pub fn totals(lender: &impl Lender, counters: &mut Counters) -> Result<Vec<i64>> {
    let mut all = Vec::new();
    counters.observe(false)?;
    for _ in 0..ROUNDS {
        let mut vm = lender.vm(BLOCKS)?;
        let overhead = overhead(&mut vm, counters)?;
        for number in 0..BLOCKS {
            all.push(lend(&mut vm, touch(number), overhead, counters)?.0);
        }
        lender.end(vm)?()?;
    }
    Ok(all)
}

/// Lends all of it and takes it back, and prints rows of that.
///
/// # Errors
/// What goes wrong.
pub fn measure(lender: &impl Lender, rows: &[Rows], counters: &mut Counters) -> Result<()> {
    let all = totals(lender, counters)?;
    let (mut lends, mut reclaims) = (Vec::new(), Vec::new());
    counters.observe(true)?;
    for _ in 0..ROUNDS {
        let mut vm = lender.vm(BLOCKS)?;
        let overhead = overhead(&mut vm, counters)?;
        for number in 0..BLOCKS {
            lends.push(lend_by_level(&mut vm, touch(number), overhead, counters)?);
        }
        let before = (counters.lower()?, counters.el2()?);
        let check = lender.end(vm)?;
        reclaims.push((counters.lower()? - before.0, counters.el2()? - before.1));
        check()?;
    }
    for rows in rows {
        let mut samples = Samples::default();
        all.iter().for_each(|&all| samples.add_all(all));
        lends.iter().for_each(|&(host, el2)| samples.add(host, el2));
        samples.print(rows.lend, rows.parts)?;
        let mut samples = Samples::default();
        reclaims.iter().for_each(|&(host, el2)| samples.add(host, el2));
        samples.print(rows.reclaim, rows.parts * BLOCKS)?;
    }
    Ok(())
}

/// What the counter counts around nothing.
///
/// # Errors
/// What goes wrong.
pub fn overhead(vm: &mut impl Vcpu, counters: &mut Counters) -> Result<u64> {
    let nothing = Work::new(What::Nothing, 0, 0, 32);
    let done = run(vm, nothing, Telling::Each, counters)?;
    done.ticks.iter().copied().min().context("no ticks")
}

/// Has the guest touch pages that it does not have yet. What that takes, and how much
/// was spent at EL2 during the guest's whole run, if the PMU counts.
///
/// # Errors
/// What goes wrong, or the guest finds something else than the pages' addresses.
pub fn lend(
    vm: &mut impl Vcpu,
    touch: Work,
    overhead: u64,
    counters: &mut Counters,
) -> Result<(i64, i64)> {
    let done = run(vm, touch, Telling::Sum, counters)?;
    let address = |n: u64| touch.first.wrapping_add(n.wrapping_mul(touch.stride));
    let expected = (0..touch.count).map(address).sum();
    ensure!(done.sum == expected, "the guest found {:#x} from {:#x} on", done.sum, touch.first);
    let &[_, sum] = done.ticks.as_slice() else { anyhow::bail!("no sum of ticks") };
    Ok((sum as i64 - (touch.count * overhead) as i64, done.el2))
}

/// The same with the PMU. Instructions of the host, and of EL2.
///
/// # Errors
/// As for [`lend`].
pub fn lend_by_level(
    vm: &mut impl Vcpu,
    touch: Work,
    overhead: u64,
    counters: &mut Counters,
) -> Result<(i64, i64)> {
    // The guest's program is there, so these loads are of the same exits but
    // faults. An interrupt may come in any of them, and adds an exit.
    let idle = Work::new(What::Loads, crate::guest::MEMORY, 0, touch.count);
    let mut nothing = i64::MAX;
    for _ in 0..3 {
        nothing = nothing.min(run(vm, idle, Telling::Sum, counters)?.el2);
    }
    let (all, el2) = lend(vm, touch, overhead, counters)?;
    let el2 = el2 - nothing;
    Ok((all - el2, el2))
}
