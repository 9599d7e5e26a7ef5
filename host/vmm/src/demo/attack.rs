// SPDX-License-Identifier: MIT OR Apache-2.0

//! Steps 5 and 6: the host wants the page, and does not get it.

use std::fmt::Display;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::WaitStatus;
use nix::unistd::getpid;

use super::checks::{Checks, contents, outcome};
use super::stage::{Guest, PAGE_OFFSET, Prepared};
use crate::gunyah::{PAGE_SIZE, Protection};
use crate::host::{
    Facts, Kcore, Pin, Taint, Touch, copy_to_pipe, in_child, read_by_process_vm, read_proc_mem,
    touch,
};

/// Checks that look at the host, too, each time.
struct Attempts<'a> {
    checks: &'a mut Checks,
    before: Taint,
    made: usize,
    survived: usize,
    /// What was wrong with the host when it was not alive.
    symptoms: Vec<String>,
}

impl Attempts<'_> {
    /// Notes what an attempt came to, and looks whether the host is alive.
    fn note(&mut self, what: &str, expected: impl Display, seen: impl Display) {
        self.checks.equal(what, expected, seen);
        self.made += 1;
        match alive(self.before) {
            Ok(()) => self.survived += 1,
            Err(symptom) => self.symptoms.push(format!("after {what}: {symptom:#}")),
        }
    }

    fn finish(self) {
        let expected = format!("alive after {} of {}", self.made, self.made);
        let mut seen = format!("alive after {} of {}", self.survived, self.made);
        if !self.symptoms.is_empty() {
            seen = format!("{seen} ({})", self.symptoms.join("; "));
        }
        self.checks.equal("the host is", expected, seen);
    }
}

/// Whether the kernel can still make and end processes and talk to EL2, and
/// has had no oops, warning or bad page.
fn alive(before: Taint) -> Result<()> {
    let child = in_child(|| 0).context("fork")?;
    anyhow::ensure!(matches!(child, WaitStatus::Exited(_, 0)), "a child ended as {child:?}");
    Facts::read().context("asking EL2")?;
    let harm = Taint::read()?.since(before);
    anyhow::ensure!(harm.is_none(), "{harm}");
    Ok(())
}

/// Step 5: the ways that user space has to read memory, all of them on a page
/// that a guest has.
pub fn peek(checks: &mut Checks, prepared: &Prepared<'_>, guest: &mut Guest) -> Result<()> {
    let Prepared { page, memory, .. } = prepared;
    let size = PAGE_SIZE as usize;
    let mut attempts = Attempts {
        checks,
        before: prepared.baseline.taint,
        made: 0,
        survived: 0,
        symptoms: Vec::new(),
    };

    attempts.note("load", "SIGBUS", touch(page.address(), Touch::Load));
    attempts.note("store", "SIGBUS", touch(page.address() + 8, Touch::Store(0)));
    let fresh = memory.map(PAGE_OFFSET, PAGE_SIZE, Protection::Read)?;
    attempts.note("load by a new mapping", "SIGBUS", touch(fresh.address(), Touch::Load));

    let end = in_child(|| {
        // With the default action, the signal kills the process.
        // SAFETY: no handler is installed.
        let _ = unsafe { signal(Signal::SIGBUS, SigHandler::SigDfl) };
        page.read(0, 1).first().copied().unwrap_or(0) & 1
    })?;
    let end = match end {
        WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
        other => format!("{other:?}"),
    };
    attempts.note("another process's load", "killed by SIGBUS", end);

    let me = getpid();
    let address = page.address();
    let readv = from_child(|| read_by_process_vm(me, address, size).map(drop))?;
    attempts.note("process_vm_readv", "EFAULT", readv);
    let mem = from_child(|| read_proc_mem(me, address, size).map(drop))?;
    attempts.note("/proc/PID/mem", "EIO", mem);
    // The same calls succeed for the next page, so it is not the calls that fail.
    let neighbour = address + size;
    let readv = from_child(|| read_by_process_vm(me, neighbour, size).map(drop))?;
    attempts.note("process_vm_readv of the next page", "done", readv);
    let mem = from_child(|| read_proc_mem(me, neighbour, size).map(drop))?;
    attempts.note("/proc/PID/mem of it", "done", mem);

    attempts.note("write to a pipe", "EFAULT", outcome(&copy_to_pipe(page, 0, size)));
    attempts.note("vmsplice", "EFAULT", outcome(&Pin::take(page, 0, size)));

    let linear = Kcore::open()?.read(prepared.physical, size)?;
    let secret = prepared.secret.to_le_bytes();
    let known: &[(&str, &[u8])] = &[("the secret", &secret), ("the message", &prepared.message)];
    attempts.note("/proc/kcore", "zeros", contents(&linear, known));
    attempts.finish();

    checks.equal("the guest still has", "the secret", guest.view_of(prepared.secret)?);
    Ok(())
}

/// How a call ends that another process makes.
fn from_child(call: impl FnOnce() -> Result<(), Errno>) -> Result<String> {
    let status = in_child(|| match call() {
        Ok(()) => 0,
        Err(errno) => errno as i32 as u8,
    })?;
    Ok(match status {
        WaitStatus::Exited(_, 0) => outcome::<_, Errno>(&Ok(())),
        WaitStatus::Exited(_, errno) => format!("{:?}", Errno::from_raw(errno)),
        other => format!("{other:?}"),
    })
}

/// Step 6: the host wants to free the page.
pub fn punch(checks: &mut Checks, prepared: &Prepared<'_>, guest: &mut Guest) -> Result<()> {
    let before = Facts::read()?;
    let punched = prepared.memory.punch_hole(PAGE_OFFSET, PAGE_SIZE).map_err(|error| error.errno);
    checks.equal("the hole", "EBUSY", outcome(&punched));
    let difference = before.difference(&Facts::read()?);
    checks.equal("EL2's counts", "unchanged", difference.as_deref().unwrap_or("unchanged"));
    checks.equal("the guest still has", "the secret", guest.view_of(prepared.secret)?);
    let load = touch(prepared.page.address(), Touch::Load);
    checks.equal("the host's load", "SIGBUS", load);
    alive(prepared.baseline.taint).context("the host is not well")
}
