// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine whose memory one guest takes: its VMM is killed, and nobody else.

use std::io::{PipeWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, ensure};
use escrow_shim_tests::guest::{Guest, Order, RAM};
use escrow_shim_tests::gunyah::{Device, PAGE, Vm, function};
use escrow_shim_tests::runner::same;
use escrow_vmcore::uapi::{ConsoleArg, FUNCTION_CONSOLE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pause};

use crate::added::meminfo;

/// Programs with memory of their own that have nothing to do with the guest.
const BYSTANDERS: usize = 3;
const OWN: usize = 20 << 20;
/// How long the guest may take to have all memory, and the other program to hear of its end, in
/// milliseconds.
const PATIENCE: u16 = 60_000;

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

/// Another program that has the files of a VM and of its console, which it reads: it says who it
/// is, and how much it has read.
fn reads_a_console(vm: &Vm, mut to: PipeWriter) -> Result<()> {
    let at = ConsoleArg { addr: 0x900_0000, interrupt: 0, flags: 0 };
    let console = vm.add(&function(FUNCTION_CONSOLE, &at))?;
    // SAFETY: as above.
    if let ForkResult::Child = unsafe { fork() }.context("fork")? {
        let _ = writeln!(to, "{}", std::process::id());
        let read = nix::unistd::read(&console, &mut [0; 16]);
        let _ = writeln!(to, "read {read:?}");
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(0) }
    }
    Ok(())
}

/// A guest touches more pages than there are. Its VMM is killed, though it has next to
/// no memory of its own, and what the guest had is back before anybody else has to go. Another program
/// that has files of the VM sees its console's end.
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
    let (mut from_other, to_other) = std::io::pipe()?;
    // SAFETY: the tests run in a process with one thread.
    let vmm = match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            drop(reader);
            let mut writer = writer;
            drop(from_other);
            let touched = Guest::started(&device, pages, 0).and_then(|guest| {
                reads_a_console(&guest.vm, to_other)?;
                guest.order(Order::Visit(RAM + PAGE, pages - 1))
            });
            let _ = write!(writer, "{touched:?}");
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => child,
    };
    drop((writer, to_other));
    let mut told = String::new();
    let other = {
        let mut line = [0; 16];
        let count = from_other.read(&mut line)?;
        String::from_utf8_lossy(&line[..count]).trim().parse().context("the other program")?
    };
    let mut ends = [PollFd::new(from_other.as_fd(), PollFlags::POLLIN)];
    let has_read = poll(&mut ends, PollTimeout::from(PATIENCE))? > 0;
    // It has the other end of the pipe as well.
    if !has_read {
        kill(Pid::from_raw(other), Signal::SIGKILL)?;
    }
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
    ensure!(has_read, "the VM has ended, and who reads its console waits");
    let mut read = String::new();
    from_other.read_to_string(&mut read)?;
    same(read.trim(), "read Ok(0)")?;
    same(killed()? - before, 1).context("whom the kernel has killed")?;
    // The guest's memory among it, which is more than what the kernel keeps to itself.
    let after = meminfo("MemAvailable")?;
    ensure!(after > free / 4 * 3, "{free} bytes were free, {after} are");
    Ok(())
}
