// SPDX-License-Identifier: MIT OR Apache-2.0

//! Scenes, and walks through them: the first point fails, then the second, and
//! so on until a run passes fewer.

use std::cell::Cell;
use std::env;
use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use escrow_abi::Error;
use escrow_shim_tests::facts::Facts;
use escrow_shim_tests::guest::{ANSWER, Guest, Order};
use escrow_shim_tests::gunyah::{Device, Exit, Memory};
use escrow_shim_tests::say_part;
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;

use crate::plan::{Kind, Plan, State};

/// How long the module may take to bring home what Escrow has once kept: it
/// asks again every second.
const PATIENCE: Duration = Duration::from_secs(20);
/// More points than any scene has.
const TOO_MANY: u32 = 5000;

/// A scene: what it does between [`Run::begin`] and [`Run::end`] is walked
/// through. Whatever it has opened is closed when it returns.
pub type Scene = fn(&Run) -> Result<()>;

/// Numbers of a walk.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Runs with a point that failed.
    runs: u64,
    /// Of which a program was told.
    told: u64,
}

/// One run of a scene.
pub struct Run {
    /// `/dev/gunyah`.
    pub device: Device,
    plan: Option<Plan>,
    told: Cell<u64>,
    fired: Cell<bool>,
}

impl Run {
    /// Something fails from here on.
    pub fn begin(&self) -> Result<()> {
        self.plan.map_or(Ok(()), |plan| plan.arm())
    }

    /// Nothing fails any more.
    pub fn end(&self) -> Result<()> {
        if self.has_fired()? {
            self.fired.set(true);
        }
        Plan::disarm()
    }

    fn has_fired(&self) -> Result<bool> {
        Ok(self.plan.is_some() && State::read()?.failed > 0)
    }

    /// An errno that a program was told: there must have been a reason, and it
    /// must be one that the program understands.
    fn excuse(&self, what: &str, errno: Errno) -> Result<()> {
        ensure!(self.has_fired()?, "{what}: {errno}, and nothing had failed");
        ensure!(self.told.get() == 0, "{what}: {errno}, and what had failed was told before");
        self.told.set(1);
        let allowed = self.plan.map(|plan| plan.kind.errnos()).unwrap_or_default();
        // A page fault that a system call meets is an EFAULT for it; a page that
        // could not be fetched from another guest is still that guest's.
        let is_other = matches!(errno, Errno::EFAULT | Errno::EEXIST);
        ensure!(is_other || allowed.contains(&errno), "{what}: {errno} is no answer to that");
        Ok(())
    }

    /// Does something that may fail, and, if it has, once more.
    pub fn attempt<T>(&self, what: &str, op: impl Fn() -> Result<T, Errno>) -> Result<T> {
        op().or_else(|errno| {
            self.excuse(what, errno)?;
            op().with_context(|| format!("{what}, again after {errno}"))
        })
    }

    /// The same, and a failure changes nothing of the memory.
    pub fn attempt_on<T>(
        &self,
        memory: &Memory,
        what: &str,
        op: impl Fn() -> Result<T, Errno>,
    ) -> Result<T> {
        let before = counts(memory)?;
        op().or_else(|errno| {
            let after = counts(memory)?;
            ensure!(
                after == before,
                "{what}: {errno}, and pages went from {before:?} to {after:?}"
            );
            self.excuse(what, errno)?;
            op().with_context(|| format!("{what}, again after {errno}"))
        })
    }

    /// Has the guest do something, and lets it try again if it cannot.
    pub fn ask(&self, guest: &Guest, order: Order) -> Result<u64> {
        loop {
            let before = counts(&guest.memory)?;
            let errno = match guest.order(order) {
                Ok(Exit::Write(ANSWER, word)) => return Ok(word),
                Ok(Exit::PageFault(_, errno)) => errno,
                Ok(exit) => bail!("{order:x?} ended in {exit:x?}"),
                Err(error) => errno_of(error)?,
            };
            self.excuse(&format!("{order:x?}"), errno)?;
            // Pages that came before the one that did not may stay.
            let after = counts(&guest.memory)?;
            ensure!(after.iter().zip(before).all(|(now, then)| *now >= then), "{after:?}");
        }
    }
}

/// Pages with guests, and out of use.
fn counts(memory: &Memory) -> Result<[u64; 3]> {
    Ok([
        memory.count(fdinfo::LENT)?,
        memory.count(fdinfo::SHARED)?,
        memory.count(fdinfo::QUARANTINED)?,
    ])
}

fn errno_of(error: anyhow::Error) -> Result<Errno> {
    match error.downcast_ref::<Errno>() {
        Some(&errno) => Ok(errno),
        None => Err(error),
    }
}

/// Everything is as it was before: Escrow's counts, and the module's memory.
pub fn settles<T: PartialEq + Debug>(now: impl Fn() -> Result<T>, before: &T) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let after = now()?;
        if after == *before {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "it was {before:?}, is {after:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What must not change.
pub fn balance() -> Result<(Facts, i64)> {
    Ok((Facts::read()?, State::read()?.blocks))
}

/// Runs a scene once. Whether a point failed, and whether a program was told.
fn run(scene: Scene, plan: Option<Plan>, before: &(Facts, i64)) -> Result<(bool, u64)> {
    let (told, fired) = (Cell::new(0), Cell::new(false));
    let run = Run { device: Device::open()?, plan, told, fired };
    let done = scene(&run);
    Plan::disarm()?;
    done?;
    settles(balance, before)?;
    Ok((run.fired.get(), run.told.get()))
}

/// Points that are walked one by one. What comes after them is more of the same
/// (512 pages that are allocated one after the other), and steps get longer.
const SINGLE: u32 = 40;

/// Walks through a scene with one kind of failure.
fn walk(scene: Scene, kind: Kind, tally: &mut Tally) -> Result<()> {
    let before = balance()?;
    let mut nth = 0;
    while nth < TOO_MANY {
        nth += 1 + nth.saturating_sub(SINGLE) / 4;
        let (fired, told) = run(scene, Some(Plan::nth(kind, nth)), &before)
            .with_context(|| format!("{kind:?}, point {nth}"))?;
        if !fired {
            return Ok(());
        }
        tally.runs += 1;
        tally.told += told;
    }
    bail!("{kind:?}: there is no end to it");
}

/// Runs a scene in which nothing fails.
fn rehearse(scene: Scene) -> Result<()> {
    run(scene, None, &balance()?).map(drop)
}

/// What Escrow answers in a normal run: it wants more pages, a guest has them,
/// somebody in the host has them.
const ERRORS: [Error; 3] = [Error::NoMemory, Error::Busy, Error::Excess];

fn errors() -> Vec<Error> {
    if env::var("FAULT_ERRORS").is_ok_and(|errors| errors == "all") {
        // These two tell of what has happened, and change more than the call's end: the VM is
        // gone (a revoked handle is no refusal), and a page is broken, which EL2 then keeps.
        // `refusals` has a page break in the call.
        let happened = [Error::HandleRevoked, Error::BrokenMemory];
        return Error::ALL.iter().copied().filter(|e| !happened.contains(e)).collect();
    }
    ERRORS.to_vec()
}

/// Runs a scene in which nothing fails, and then walks through it with all that
/// can.
pub fn walk_through(scene: Scene) -> Result<()> {
    rehearse(scene).context("with nothing that fails")?;
    let mut tally = Tally::default();
    let calls = errors().into_iter().map(Kind::Call);
    for kind in [Kind::Alloc, Kind::Lock].into_iter().chain(calls) {
        walk(scene, kind, &mut tally)?;
    }
    ensure!(tally.runs > 0, "nothing was passed that may fail");
    say_part!("({} runs, {} told) ", tally.runs, tally.told);
    Ok(())
}
