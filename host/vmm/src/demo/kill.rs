// SPDX-License-Identifier: MIT OR Apache-2.0

//! Step 9: nothing is left over, however a VM ends.

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use escrow_abi::FrameState;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use procfs::process::Process;

use super::checks::{Checks, contents};
use super::stage::{Baseline, Guest, MEMORY_BASE, MEMORY_SIZE, create_vm, random, write_program};
use crate::guest::{Command, Interpreter};
use crate::gunyah::{Exit, Folios, GuestMemory, PAGE_SIZE, Protection};
use crate::host::{Child, Facts, Kcore, Taint, Touch, Touched, physical_address, touch};

/// Pages, from the start of the memory, that the guest fills with a secret.
const SECRET_PAGES: u64 = 16;
/// What the child sends when its guest is about to loop.
const READY: &str = "ready";
/// How long the kernel may take to clean up behind a process that is gone
/// already. Nothing is left to wait for, so this is much.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// Kills a process while its guest loops, and counts the pages.
///
/// This process keeps the guest memory, so that it can look at the pages
/// afterwards; the VM is the killed process's alone.
pub fn in_a_run(checks: &mut Checks, baseline: &Baseline) -> Result<()> {
    let memory = baseline.device.create_memory(MEMORY_SIZE, Folios::Small)?;
    drop(write_program(&memory)?);
    let secret = random()? | 0x0101_0101_0101_0101;
    let physical = touch_secret_pages(&memory)?;

    let (reader, writer) = nix::unistd::pipe().context("pipe")?;
    let child = Child::spawn(|| host_of_a_loop(baseline, &memory, secret, writer.into()))?;
    let mut said = [0; 256];
    let count = File::from(reader).read(&mut said)?;
    let said = String::from_utf8_lossy(&said[..count]).into_owned();
    if said != READY {
        bail!("the process to be killed says: {said}");
    }
    runs_for_a_while(child.pid())?;
    let during = Facts::read()?;
    let lent = |facts: &Facts| i128::from(facts.pages_in(FrameState::Lent));
    let program_pages = 1;
    checks.equal(
        "pages lent meanwhile",
        i128::from(SECRET_PAGES + program_pages),
        lent(&during) - lent(&baseline.facts),
    );
    checks.equal("VMs meanwhile", baseline.facts.vms + 1, during.vms);

    child.signal(Signal::SIGKILL)?;
    let end = match child.wait()? {
        WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
        other => format!("{other:?}"),
    };
    checks.equal("the process was", "killed by SIGKILL", end);

    let home = eventually(|| pages_read(&memory, secret), |seen| seen == "zeros")?;
    checks.equal("its pages read", "zeros", home);
    let kcore = Kcore::open()?;
    let mut linear = Vec::new();
    for address in physical {
        linear.extend(kcore.read(address, PAGE_SIZE as usize)?);
    }
    let known: &[(&str, &[u8])] = &[("the secret", &secret.to_le_bytes())];
    checks.equal("/proc/kcore shows", "zeros", contents(&linear, known));

    drop(memory);
    let difference = || {
        let difference = baseline.facts.difference(&Facts::read()?);
        Ok(difference.unwrap_or_else(|| "as before step 1".to_owned()))
    };
    let counts = eventually(difference, |seen| seen == "as before step 1")?;
    checks.equal("EL2's counts", "as before step 1", counts);
    let harm = Taint::read()?.since(baseline.taint);
    checks.equal("the kernel", "unharmed", harm);
    Ok(())
}

/// Has the host own the pages that will be lent, and returns where they are.
fn touch_secret_pages(memory: &GuestMemory) -> Result<Vec<u64>> {
    let mapping = memory.map(0, SECRET_PAGES * PAGE_SIZE, Protection::ReadWrite)?;
    (0..SECRET_PAGES)
        .map(|page| {
            let offset = (page * PAGE_SIZE) as usize;
            mapping.write(offset, b"the host was here");
            physical_address(mapping.address() + offset)
        })
        .collect()
}

/// The process that is going to be killed: its guest fills pages with a secret
/// and loops for ever.
fn host_of_a_loop(baseline: &Baseline, memory: &GuestMemory, secret: u64, mut to: File) -> u8 {
    let looping = || -> Result<Guest> {
        let created = create_vm(&baseline.device, memory)?;
        created.vm.start()?;
        let mut guest = Guest { vm: created.vm, interpreter: Interpreter::new(created.vcpu) };
        guest.answer(Command::Fill(MEMORY_BASE, SECRET_PAGES * PAGE_SIZE, secret))?;
        guest.answer(Command::Spin)?;
        Ok(guest)
    };
    let mut guest = match looping() {
        Ok(guest) => guest,
        Err(error) => {
            let _ = to.write_all(format!("{error:#}").as_bytes());
            return 1;
        }
    };
    if to.write_all(READY.as_bytes()).is_err() {
        return 1;
    }
    loop {
        match guest.interpreter.run_on() {
            Ok(Exit::Interrupted) => {}
            // The guest has left its loop, or the shim does not let it run.
            _ => return 2,
        }
    }
}

/// Waits until a process has used enough time to be sure that it runs its
/// guest.
fn runs_for_a_while(pid: Pid) -> Result<()> {
    /// In clock ticks of 10 ms.
    const ENOUGH: u64 = 10;
    let used = || -> Result<u64> {
        let stat = Process::new(pid.as_raw()).and_then(|process| process.stat());
        let stat = stat.with_context(|| format!("reading /proc/{pid}/stat"))?;
        if !matches!(stat.state, 'R' | 'S' | 'D') {
            bail!("the process to be killed is in state {}", stat.state);
        }
        Ok(stat.utime + stat.stime + stat.guest_time.unwrap_or(0))
    };
    let start = used()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while used()? < start + ENOUGH {
        if Instant::now() > deadline {
            bail!("the process to be killed does not run its guest");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What the host finds in the pages that were lent.
fn pages_read(memory: &GuestMemory, secret: u64) -> Result<String> {
    let mapping = memory.map(0, SECRET_PAGES * PAGE_SIZE, Protection::Read)?;
    for page in 0..SECRET_PAGES {
        let address = mapping.address() + (page * PAGE_SIZE) as usize;
        if let signal @ Touched::Signal(_) = touch(address, Touch::Load) {
            return Ok(format!("{signal} at page {page}"));
        }
    }
    let secret = secret.to_le_bytes();
    let known: &[(&str, &[u8])] = &[("the secret", &secret), ("the host's text", b"the host was")];
    Ok(contents(&mapping.read(0, mapping.len()), known))
}

/// Looks again until what it sees is good or the time for cleaning up is over.
fn eventually(
    mut look: impl FnMut() -> Result<String>,
    good: impl Fn(&str) -> bool,
) -> Result<String> {
    let deadline = Instant::now() + CLEAN_UP;
    loop {
        let seen = look()?;
        if good(&seen) || Instant::now() > deadline {
            return Ok(seen);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
