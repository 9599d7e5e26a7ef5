// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lives of VMs: a process makes one, runs its guest, and is killed at a moment
//! that it does not know.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use escrow_abi::call::{MODIFY_SANITIZE, MODIFY_UNLOCK};
use escrow_shim_tests::facts::KernelMemory;
use escrow_shim_tests::guest::{Guest, Order, RAM};
use escrow_shim_tests::gunyah::{Device, PAGE};
use escrow_shim_tests::say;
use escrow_vmcore::uapi::MAP_FORCE_SHARE;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::random::Random;
use crate::shared::Shared;

/// A look at the kernel's memory after so many.
const LOOK: u64 = 250;

/// What lives are like.
#[derive(Clone, Copy)]
pub struct Lives {
    /// How many.
    pub number: u64,
    /// How many at a time.
    pub at_once: u64,
    /// Pages of a guest's memory.
    pub pages: u64,
    /// No life begins after this time.
    pub time: Duration,
}

impl Lives {
    /// Pages that a guest stores to before it is grown up.
    fn visited(self) -> u64 {
        self.pages * 5 / 8
    }

    /// The first of the pages that come and go, and their number.
    fn coming_and_going(self) -> (u64, u64) {
        (self.pages / 4, self.pages / 2)
    }
}

/// How far they came.
#[derive(Default)]
struct Stages {
    begun: AtomicU64,
    ended: AtomicU64,
    started: AtomicU64,
    ran: AtomicU64,
}

/// The longest life, in µs. A life ends at any moment until then.
struct Longest(u64);

impl Longest {
    /// A quarter longer than it takes to get a guest to run.
    fn first(lives: Lives) -> Result<Longest> {
        Ok(Longest(youth(lives)?.as_micros() as u64 * 5 / 4))
    }

    /// A life is over. How long one takes changes with what else the machine does, so
    /// this is kept where every fifth has its pages before its end: a sixteenth less
    /// for one, a sixty-fourth more for each of four.
    fn follow(&mut self, has_run: bool) {
        self.0 = if has_run { self.0 - self.0 / 16 } else { self.0 + self.0 / 64 + 1 };
    }
}

/// How many were killed before their guest was started, before it had its pages, and
/// after that: together as many as there were.
pub fn cycles(lives: Lives, random: &mut Random) -> Result<[u64; 3]> {
    let stages = Shared::new(Stages::default())?;
    let minders =
        (0..lives.at_once).map(|_| mind(lives, &stages, random)).collect::<Result<Vec<_>>>()?;
    for minder in minders {
        let status = waitpid(minder, None)?;
        ensure!(matches!(status, WaitStatus::Exited(_, 0)), "who minds the lives: {status:?}");
    }
    let all = [&stages.ended, &stages.started, &stages.ran];
    let [ended, started, ran] = all.map(|number| number.load(Ordering::Relaxed));
    Ok([ended - started, started - ran, ran])
}

/// A process that has one life after the other, until all of these have had enough.
fn mind(lives: Lives, stages: &Stages, random: &mut Random) -> Result<Pid> {
    let mut random = Random::new(random.next());
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let minded = mind_all(lives, stages, &mut random);
            if let Err(error) = &minded {
                say!("FAILED: {error:#}");
            }
            // SAFETY: ends this process without what the parent set up for
            // its own end.
            unsafe { libc::_exit(minded.is_err().into()) }
        }
        ForkResult::Parent { child } => Ok(child),
    }
}

fn mind_all(lives: Lives, stages: &Stages, random: &mut Random) -> Result<()> {
    let (mut longest, begin) = (Longest::first(lives)?, Instant::now());
    let has_run = Shared::new(AtomicBool::new(false))?;
    loop {
        let cycle = stages.begun.fetch_add(1, Ordering::Relaxed);
        if cycle >= lives.number || begin.elapsed() >= lives.time {
            return Ok(());
        }
        if cycle > 0 && cycle.is_multiple_of(LOOK) {
            let took = begin.elapsed().as_secs();
            let Longest(most) = longest;
            let memory = KernelMemory::read()?;
            say!("{cycle} cycles after {took} s, the longest {most} us, memory: {memory:?}");
        }
        let (kind, life) = (random.next(), random.below(longest.0));
        has_run.store(false, Ordering::Relaxed);
        // SAFETY: this process has one thread.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                if let Err(error) = live(lives, kind, stages, &has_run) {
                    say!("cycle {cycle}: {error:#}");
                }
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(1) }
            }
            ForkResult::Parent { child } => {
                thread::sleep(Duration::from_micros(life));
                kill(child, Signal::SIGKILL)?;
                let status = waitpid(child, None)?;
                let is_killed = matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
                ensure!(is_killed, "cycle {cycle}: {status:?}");
                stages.ended.fetch_add(1, Ordering::Relaxed);
                longest.follow(has_run.load(Ordering::Relaxed));
            }
        }
    }
}

/// How long it takes here and now until a guest has its pages.
fn youth(lives: Lives) -> Result<Duration> {
    let shortest = Shared::new(AtomicU64::new(u64::MAX))?;
    for kind in 0..4 {
        let begin = Instant::now();
        // SAFETY: this process has one thread.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                let grown = grow_up(lives, kind, &Stages::default());
                // Its end takes as long again.
                shortest.fetch_min(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(grown.is_err().into()) }
            }
            ForkResult::Parent { child } => {
                let status = waitpid(child, None)?;
                ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
            }
        }
    }
    Ok(Duration::from_micros(shortest.load(Ordering::Relaxed)))
}

fn grow_up(lives: Lives, kind: u64, stages: &Stages) -> Result<Guest> {
    let flags = if kind & 1 == 0 { 0 } else { MAP_FORCE_SHARE };
    let guest = Guest::started(&Device::open()?, lives.pages, flags)?;
    stages.started.fetch_add(1, Ordering::Relaxed);
    guest.ask(Order::Visit(RAM + PAGE, lives.visited()))?;
    stages.ran.fetch_add(1, Ordering::Relaxed);
    Ok(guest)
}

/// Lives for ever.
fn live(lives: Lives, kind: u64, stages: &Stages, has_run: &AtomicBool) -> Result<()> {
    let guest = grow_up(lives, kind, stages)?;
    has_run.store(true, Ordering::Relaxed);
    let (first, pages) = lives.coming_and_going();
    guest.order(if kind & 6 == 0 {
        Order::ComeAndGo(RAM + first * PAGE, pages, MODIFY_UNLOCK | MODIFY_SANITIZE)
    } else {
        Order::Loop
    })?;
    loop {
        guest.run()?;
    }
}
