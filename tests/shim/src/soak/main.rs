// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many lives of VMs, and a crowd that does everything at once: afterwards
//! nothing is missing, neither to Escrow nor to the kernel.
//!
//! `SOAK_CYCLES` lives (300), `SOAK_AT_ONCE` at a time (1), each with `SOAK_PAGES`
//! pages (64, 8 at least) and none after `SOAK_MINUTES`, then `SOAK_SECONDS` (15) of `SOAK_PROCESSES` (8), then
//! a third as long threads that close what others are making;
//! `SOAK_SEED` makes the same numbers again, if not the same order.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod closers;
mod crowd;
mod cycles;
mod random;
mod shared;

use std::env;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use escrow_shim_tests::facts::{Facts, KernelMemory};
use escrow_shim_tests::gunyah::Device;
use escrow_shim_tests::say;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crowd::{Place, Tally};
use cycles::Lives;
use random::Random;
use shared::Shared;

/// Memory (KiB) that the kernel may keep to itself in the end: what it caches
/// for each CPU and of each kind of object. A page for each of 10,000 lives
/// would be ten times as much.
const BOUND: i64 = 4096;
/// What is done before the first look at the memory, so that caches are filled.
const WARM_UP: u64 = 40;
/// How long the kernel may take to clean up behind processes that have ended.
const CLEAN_UP: Duration = Duration::from_secs(30);
/// An interval in which a process's guests give it back its thread, in µs.
const TICK: i64 = 20_000;

/// The longest time (in µs) between two killings in the crowd.
const MOURNING: u64 = 200_000;

fn number(name: &str, default: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is no number: {text}")),
        Err(_) => Ok(default),
    }
}

extern "C" fn ignore(_: libc::c_int) {}

/// Interrupts this process's system calls at intervals: a guest that runs in
/// circles does not keep it.
fn tick() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGALRM, &action) }.context("sigaction")?;
    let interval = libc::timeval { tv_sec: 0, tv_usec: TICK };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: the structure lives through the call, and the old one is not wanted.
    let result = unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
    ensure!(result == 0, "setitimer: {}", nix::errno::Errno::last());
    Ok(())
}

fn spawn(places: &[Rc<Place>], seed: u64, tally: &Shared<Tally>) -> Result<Pid> {
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let lived = tick().and_then(|()| crowd::live(places, seed, tally));
            if let Err(error) = &lived {
                say!("FAILED: seed {seed}: {error:#}");
            }
            // SAFETY: ends this process without what the parent set up for
            // its own end.
            unsafe { libc::_exit(lived.is_err().into()) }
        }
        ForkResult::Parent { child } => Ok(child),
    }
}

/// So many processes at once, for so long; whoever ends has a successor. On a slow machine
/// it goes on until everything was done once, for `patience` at most.
fn crowd(
    processes: u64,
    time: Duration,
    patience: Duration,
    random: &mut Random,
) -> Result<Shared<Tally>> {
    let device = Device::open()?;
    let places = [Place::new(&device, random)?, Place::new(&device, random)?].map(Rc::new);
    let tally = Shared::new(Tally::default())?;
    let mut children = Vec::new();
    for _ in 0..processes {
        children.push(spawn(&places, random.next(), &tally)?);
    }
    let begin = Instant::now();
    while begin.elapsed() < time || begin.elapsed() < patience && tally.check().is_err() {
        thread::sleep(Duration::from_micros(random.below(MOURNING)));
        let unlucky = random.of(&children).copied();
        unlucky.map_or(Ok(()), |child| kill(child, Signal::SIGKILL))?;
        for child in &mut children {
            match waitpid(*child, Some(WaitPidFlag::WNOHANG)).context("waitpid")? {
                WaitStatus::StillAlive => continue,
                WaitStatus::Exited(_, 0) | WaitStatus::Signaled(_, Signal::SIGKILL, _) => {}
                status => bail!("a process of the crowd: {status:?}"),
            }
            tally.lives.fetch_add(1, Ordering::Relaxed);
            *child = spawn(&places, random.next(), &tally)?;
        }
    }
    for child in children {
        kill(child, Signal::SIGKILL)?;
        waitpid(child, None)?;
    }
    Ok(tally)
}

fn wait_for(before: &Facts) -> Result<()> {
    let deadline = Instant::now() + CLEAN_UP;
    loop {
        let now = Facts::read()?;
        if now == *before {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "Escrow's counts were {before:?}, are {now:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn soak() -> Result<()> {
    let (lives, seconds) = (number("SOAK_CYCLES", 300)?, number("SOAK_SECONDS", 15)?);
    let (processes, seed) = (number("SOAK_PROCESSES", 8)?, number("SOAK_SEED", 1)?);
    let (at_once, pages) = (number("SOAK_AT_ONCE", 1)?, number("SOAK_PAGES", 64)?);
    ensure!(at_once > 0 && pages >= 8, "SOAK_AT_ONCE {at_once}, SOAK_PAGES {pages}");
    let time = Duration::from_secs(60 * number("SOAK_MINUTES", 24 * 60)?);
    let mut random = Random::new(seed);
    let facts = Facts::read()?;
    cycles::cycles(Lives { number: WARM_UP, at_once, pages, time }, &mut random)?;
    crowd(processes, Duration::from_secs(3), Duration::ZERO, &mut random)?;
    closers::race(Duration::from_secs(1))?;
    wait_for(&facts)?;
    let before = KernelMemory::read()?;

    let begin = Instant::now();
    let stages = cycles::cycles(Lives { number: lives, at_once, pages, time }, &mut random)?;
    wait_for(&facts)?;
    let (took, lives) = (begin.elapsed().as_secs(), stages.iter().sum::<u64>());
    say!(
        "{lives} cycles in {took} s: killed before its start, before its pages, running: {stages:?}"
    );
    let [unstarted, without, running] = stages;
    ensure!(unstarted + without > 0 && running > 0, "not every stage has been seen");
    let between = KernelMemory::read()?;
    say!("memory: {before:?} before, {between:?} after the cycles");
    between.check_since(&before, BOUND)?;

    let time = Duration::from_secs(seconds);
    let tally = crowd(processes, time, time * 8, &mut random)?;
    wait_for(&facts)?;
    let lives = tally.lives.load(Ordering::Relaxed);
    say!("{processes} processes, {seconds} s, {lives} lives, done+refused: {}", tally.report());
    tally.check()?;
    let after = KernelMemory::read()?;
    say!("memory: {after:?} after the crowd");
    after.check_since(&before, BOUND)?;

    let race = closers::race(Duration::from_secs(seconds.div_ceil(3)))?;
    wait_for(&facts)?;
    say!("closers: {race}");
    let last = KernelMemory::read()?;
    say!("memory: {last:?} after the closers");
    last.check_since(&before, BOUND)
}

fn main() -> ExitCode {
    match soak() {
        Ok(()) => {
            say!("soaked");
            ExitCode::SUCCESS
        }
        Err(error) => {
            say!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
