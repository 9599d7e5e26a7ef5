// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stage-1 tables that are lent. The CPU's walk ends in an external abort,
//! from which nothing recovers that task; nobody else is harmed, and it does
//! not go round in circles.

use std::mem::ManuallyDrop;

use anyhow::{Context as _, Result, bail, ensure};
use escrow_shim_tests::runner::same;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::{REMOTE, in_child, killed_by};
use crate::access::{LDR, STR, access};
use crate::borrower::Borrower;
use crate::device::{Liar, Way};
use crate::log;
use crate::region::{Region, load, store};

/// How a process ends that does this with an address whose table is lent, for
/// each table between the topmost and the page.
fn each_level(
    run: impl Fn(&Liar, usize) -> Result<()>,
    check: impl Fn(WaitStatus) -> Result<()>,
) -> Result<()> {
    let liar = Liar::open()?;
    let told = Region::shared(1)?;
    for level in [3, 2, 1] {
        let mut borrower = Borrower::new(&liar)?;
        store(told.page(0), 0);
        log::clear()?;
        let status = in_child(|| {
            // Never unmapped: that is a walk of the kernel's own, in software.
            let at = ManuallyDrop::new(Region::at(REMOTE, 1)?).page(0);
            let table = liar.table(at, level)?;
            borrower.lend(table.frame)?;
            store(told.page(0), table.frame);
            run(&liar, at)
        })?;
        let frame = load(told.page(0));
        ensure!(frame != 0, "no table is lent: {status:?}");
        borrower.lent_elsewhere(frame);
        let checked = check(status);
        borrower.home()?;
        liar.restore()?;
        checked?;
    }
    Ok(())
}

fn killed(status: WaitStatus) -> Result<()> {
    same(killed_by(status), Some(Signal::SIGKILL))
}

/// A load of the process's own.
pub fn of_user_loads() -> Result<()> {
    let run = |_: &Liar, at| same(access(LDR, at), None);
    each_level(run, killed)
}

/// A store of its own.
pub fn of_user_stores() -> Result<()> {
    let run = |_: &Liar, at| same(access(STR, at), None);
    each_level(run, killed)
}

/// An instruction fetch of its own.
pub fn of_user_fetches() -> Result<()> {
    let run = |_: &Liar, at| same(crate::access::call(at), None);
    each_level(run, killed)
}

/// A task that the kernel ends, for an access by `function` or by one of whose
/// name nothing is known.
fn ended(status: WaitStatus, function: &str) -> Result<()> {
    same(killed_by(status), Some(Signal::SIGSEGV))?;
    let oops = log::oops()?;
    let error = oops.error.split(": ").next().unwrap_or_default();
    // The level is that at which stage 2 missed the table.
    let is_walk = error.starts_with("level ") && error.ends_with("(translation table walk)");
    ensure!(is_walk && oops.function.starts_with(function), "{oops:x?}");
    Ok(())
}

/// The kernel on behalf of a program. Linux takes an external abort for the
/// end, whatever its exception tables say.
pub fn of_uaccess() -> Result<()> {
    for (way, function) in [
        (Way::CopyFromUser, "__arch_copy_from_user"),
        (Way::CopyToUser, "__arch_copy_to_user"),
        (Way::ClearUser, "__arch_clear_user"),
        (Way::GetUser, ""),
        (Way::FromUserNoFault, "__arch_copy_from_user"),
    ] {
        let run = |liar: &Liar, at| {
            let seen = liar.probe(way, at, 64, 0)?;
            bail!("{way:?} answers {seen:x?}")
        };
        each_level(run, |status| ended(status, function).with_context(|| format!("{way:?}")))?;
    }
    Ok(())
}

/// An address translation instruction of the kernel's.
pub fn of_at() -> Result<()> {
    let run = |liar: &Liar, at| {
        let seen = liar.probe(Way::Translate, at, 0, 0)?;
        bail!("it says {seen:x?}")
    };
    each_level(run, |status| ended(status, "liar_translate"))
}
