// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine whose memory one guest takes: its VMM is killed, and nobody else.

use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, ensure};
use escrow_shim_tests::guest::{Guest, Order, RAM};
use escrow_shim_tests::gunyah::{Device, PAGE};
use escrow_shim_tests::runner::same;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pause};

use crate::added::meminfo;

/// Programs with memory of their own that have nothing to do with the guest.
const BYSTANDERS: usize = 3;
const OWN: usize = 20 << 20;

/// Does something in a child, which then waits to be killed.
fn in_a_child(run: impl FnOnce() -> Result<()>) -> Result<Pid> {
    let (mut reader, mut writer) = std::io::pipe()?;
    // SAFETY: the tests run in a process with one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            drop(reader);
            let told = run().and_then(|()| Ok(writer.write_all(&[0])?));
            while told.is_ok() {
                pause();
            }
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            reader.read_exact(&mut [0]).context("the child")?;
            Ok(child)
        }
    }
}

/// Whether a child is still there.
fn lives(child: Pid) -> Result<bool> {
    Ok(waitpid(child, Some(WaitPidFlag::WNOHANG))? == WaitStatus::StillAlive)
}

/// How many the kernel has killed for want of memory.
fn killed() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/vmstat")?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    Ok(count.context("the kernel does not count whom it kills")?.parse()?)
}

/// A guest touches more pages than there are. Its VMM is killed, though it has next to
/// no memory of its own, and what the guest had is back before anybody else has to go.
pub fn the_vmm_is_killed() -> Result<()> {
    let device = Device::open()?;
    let (before, free) = (killed()?, meminfo("MemAvailable")?);
    let mut bystanders = Vec::new();
    for _ in 0..BYSTANDERS {
        bystanders.push(in_a_child(|| {
            let own = vec![1u8; OWN];
            // It stays where it is for as long as the child is there.
            std::mem::forget(own);
            Ok(())
        })?);
    }
    let pages = meminfo("MemTotal")? / PAGE;
    let (mut reader, writer) = std::io::pipe()?;
    // SAFETY: the tests run in a process with one thread.
    let vmm = match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            drop(reader);
            let mut writer = writer;
            let touched = Guest::started(&device, pages, 0)
                .and_then(|guest| guest.order(Order::Visit(RAM + PAGE, pages - 1)));
            let _ = write!(writer, "{touched:?}");
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(writer);
    let mut told = String::new();
    reader.read_to_string(&mut told)?;
    let end = waitpid(vmm, None)?;
    let (alive, gone) = bystanders.iter().try_fold((0, 0), |(alive, gone), &child| {
        let lives = lives(child)?;
        if lives {
            kill(child, Signal::SIGKILL)?;
            waitpid(child, None)?;
        }
        anyhow::Ok(if lives { (alive + 1, gone) } else { (alive, gone + 1) })
    })?;
    ensure!(
        matches!(end, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
        "the VMM was not killed, {gone} others were: {end:?} {told}"
    );
    same(alive, BYSTANDERS)?;
    same(killed()? - before, 1).context("whom the kernel has killed")?;
    // The guest's memory among it, which is more than what the kernel keeps to itself.
    let after = meminfo("MemAvailable")?;
    ensure!(after > free / 4 * 3, "{free} bytes were free, {after} are");
    Ok(())
}
