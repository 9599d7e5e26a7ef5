// SPDX-License-Identifier: MIT OR Apache-2.0

//! A thread that runs a guest which never leaves by itself is one as all others to the
//! host: its time is told and limited, and it is frozen, stopped and traced.

use std::fs;
use std::io::{Read as _, Write as _};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use escrow_shim_tests::runner::Lacking;

use super::accounting::Group;
use super::same;
use crate::guest::{Guest, Order};
use crate::gunyah::Device;
use crate::wait::until;

/// For how long is watched whether a process runs.
const WHILE: Duration = Duration::from_millis(500);
/// For how long a process is watched that may run for a part of the time.
const LONG: Duration = Duration::from_secs(3);
/// How long a process that may run for a part of the time may take to end.
const KILLED: Duration = Duration::from_secs(10);
/// What the kernel counts processor time in for programs (`USER_HZ`).
const TICKS_A_SECOND: u64 = 100;

/// A process whose one thread runs a guest that loops.
struct Runner(Pid);

impl Runner {
    /// One whose guest loops.
    fn start() -> Result<Runner> {
        let (mut reader, mut writer) = std::io::pipe()?;
        // SAFETY: this process has one thread, so the child may do anything.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                drop(reader);
                let error = match Runner::run(&mut writer) {
                    Ok(()) => "the guest has left".to_owned(),
                    Err(error) => format!("{error:#}"),
                };
                let _ = writer.write_all(error.as_bytes());
                // SAFETY: ends this process without what the parent set up.
                unsafe { libc::_exit(1) }
            }
            ForkResult::Parent { child } => {
                let runner = Runner(child);
                drop(writer);
                let mut ready = [0];
                reader.read_exact(&mut ready)?;
                if ready[0] != b'.' {
                    let mut told = String::new();
                    reader.read_to_string(&mut told)?;
                    bail!("{}{told}", char::from(ready[0]));
                }
                runner.goes_on()?;
                Ok(runner)
            }
        }
    }

    fn run(ready: &mut impl std::io::Write) -> Result<()> {
        // SAFETY: sets an attribute of this process.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let guest = Guest::started(&Device::open()?, 1, 0)?;
        guest.order(Order::Loop)?;
        ready.write_all(b".")?;
        guest.run().map(drop)
    }

    /// A number of `/proc/PID/stat`, by its place in proc_pid_stat(5).
    fn stat(&self, place: usize) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        // The third follows the name, which may have anything in it.
        let (_, rest) = stat.rsplit_once(") ").context("no name")?;
        Ok(rest.split(' ').nth(place - 3).context("too short")?.trim().parse()?)
    }

    /// Processor time that it has had, in ticks.
    fn time(&self) -> Result<u64> {
        Ok(self.stat(14)? + self.stat(15)?)
    }

    /// Its guest's part of that.
    fn guest_time(&self) -> Result<u64> {
        self.stat(43)
    }

    fn goes_on(&self) -> Result<()> {
        let before = self.time()?;
        until("the guest", || Ok(self.time()? > before + 5))
    }

    fn stands_still(&self) -> Result<()> {
        let before = self.time()?;
        sleep(WHILE);
        let ticks = self.time()? - before;
        ensure!(ticks <= 1, "it has run for {ticks} ticks meanwhile");
        Ok(())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// Ticks of all processes, and those of guests among them, as the host tells.
fn ticks_of_the_host() -> Result<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks = |place| -> Result<u64> {
        Ok(stat.split_whitespace().nth(place).context("/proc/stat is short")?.parse()?)
    };
    // cpu, user with its guests, nice, system, idle, iowait, irq, softirq, steal, guest.
    Ok((ticks(1)? + ticks(3)?, ticks(9)?))
}

/// As a guest's, in the process's figures and in the host's. The two are compared with
/// what is counted as they are, by the tick: a process's whole time is measured, and a
/// machine that is emulated loses ticks.
pub fn guest_time_is_told() -> Result<()> {
    let runner = Runner::start()?;
    let (guest, (ticks, guests)) = (runner.guest_time()?, ticks_of_the_host()?);
    sleep(LONG);
    let (ticks_now, guests_now) = ticks_of_the_host()?;
    let (ticks, guests) = (ticks_now - ticks, guests_now - guests);
    let guest = runner.guest_time()? - guest;
    ensure!(guests >= 5, "{guests} ticks of guests");
    ensure!(guests * 10 >= ticks * 7, "{guests} of {ticks} ticks are guests'");
    ensure!(guest + 2 >= guests, "{guest} of {guests} ticks are the process's");
    Ok(())
}

/// `cpu.max`: by the millisecond, throughout, and a signal is answered all the same.
pub fn a_quota_holds() -> Result<()> {
    let group = Group::with("quota", "cpu")?;
    ensure!(group.has("cpu.max")?, Lacking("quotas of processor time".to_owned()));
    group.set("cpu.max", "20000 100000")?;
    let runner = Runner::start()?;
    group.set("cgroup.procs", &runner.0.to_string())?;
    for _ in 0..2 {
        let (begin, before) = (Instant::now(), runner.time()?);
        sleep(LONG);
        let ticks = runner.time()? - before;
        let most = begin.elapsed().as_millis() as u64 * TICKS_A_SECOND / 1000 * 35 / 100;
        ensure!(ticks <= most, "{ticks} ticks, and {most} are the most that is right");
        ensure!(ticks >= 5, "it stands still: {ticks} ticks");
    }
    let begin = Instant::now();
    kill(runner.0, Signal::SIGTERM)?;
    same(waitpid(runner.0, None)?, WaitStatus::Signaled(runner.0, Signal::SIGTERM, false))?;
    // Its end has a fifth of a CPU as well, which may be an emulated one.
    ensure!(begin.elapsed() < KILLED, "killed after {:?}", begin.elapsed());
    Ok(())
}

/// `cgroup.freeze`.
pub fn freezes_and_thaws() -> Result<()> {
    let group = Group::with("frozen", "cpu")?;
    let runner = Runner::start()?;
    group.set("cgroup.procs", &runner.0.to_string())?;
    for _ in 0..3 {
        group.set("cgroup.freeze", "1")?;
        until("the freezer", || Ok(group.get("cgroup.events")?.contains("frozen 1")))?;
        runner.stands_still()?;
        group.set("cgroup.freeze", "0")?;
        runner.goes_on()?;
    }
    Ok(())
}

/// SIGSTOP and SIGCONT.
pub fn stops_and_continues() -> Result<()> {
    let runner = Runner::start()?;
    for _ in 0..3 {
        kill(runner.0, Signal::SIGSTOP)?;
        let stopped = waitpid(runner.0, Some(WaitPidFlag::WUNTRACED))?;
        same(stopped, WaitStatus::Stopped(runner.0, Signal::SIGSTOP))?;
        runner.stands_still()?;
        kill(runner.0, Signal::SIGCONT)?;
        runner.goes_on()?;
    }
    Ok(())
}

/// As by a debugger.
pub fn is_traced() -> Result<()> {
    let runner = Runner::start()?;
    for _ in 0..3 {
        ptrace::attach(runner.0).context("attach")?;
        same(waitpid(runner.0, None)?, WaitStatus::Stopped(runner.0, Signal::SIGSTOP))?;
        runner.stands_still()?;
        ptrace::detach(runner.0, None).context("detach")?;
        runner.goes_on()?;
    }
    Ok(())
}
