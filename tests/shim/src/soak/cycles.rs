// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lives of VMs, one after the other: a process makes one, runs its guest, and
//! is killed at a moment that it does not know.

use std::sync::atomic::{AtomicU64, Ordering};
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
use nix::unistd::{ForkResult, fork};

use crate::random::Random;
use crate::shared::Shared;

/// How far they came.
#[derive(Default)]
struct Stages {
    started: AtomicU64,
    ran: AtomicU64,
}

/// So many lives. How many were killed before their guest was started, before
/// it had its pages, and after that.
pub fn cycles(number: u64, random: &mut Random) -> Result<[u64; 3]> {
    // The longest life is a quarter longer than it takes to get a guest to run.
    let longest = youth()? * 5 / 4;
    let stages = Shared::new(Stages::default())?;
    for cycle in 0..number {
        if cycle > 0 && cycle % 1000 == 0 {
            say!("{cycle} cycles, memory: {:?}", KernelMemory::read()?);
        }
        let (kind, life) = (random.next(), random.below(longest.as_micros() as u64));
        // SAFETY: this process has one thread.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                if let Err(error) = live(kind, &stages) {
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
            }
        }
    }
    let [started, ran] = [&stages.started, &stages.ran].map(|n| n.load(Ordering::Relaxed));
    Ok([number - started, started - ran, ran])
}

/// How long it takes here and now until a guest has its pages.
fn youth() -> Result<Duration> {
    let shortest = Shared::new(AtomicU64::new(u64::MAX))?;
    for kind in 0..4 {
        let begin = Instant::now();
        // SAFETY: this process has one thread.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                let grown = grow_up(kind, &Stages::default());
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

fn grow_up(kind: u64, stages: &Stages) -> Result<Guest> {
    let flags = if kind & 1 == 0 { 0 } else { MAP_FORCE_SHARE };
    let guest = Guest::started(&Device::open()?, 64, flags)?;
    stages.started.fetch_add(1, Ordering::Relaxed);
    guest.ask(Order::Visit(RAM + PAGE, 40))?;
    stages.ran.fetch_add(1, Ordering::Relaxed);
    Ok(guest)
}

/// Lives for ever.
fn live(kind: u64, stages: &Stages) -> Result<()> {
    let guest = grow_up(kind, stages)?;
    guest.order(if kind & 6 == 0 {
        Order::ComeAndGo(RAM + 16 * PAGE, 32, MODIFY_UNLOCK | MODIFY_SANITIZE)
    } else {
        Order::Loop
    })?;
    loop {
        guest.run()?;
    }
}
