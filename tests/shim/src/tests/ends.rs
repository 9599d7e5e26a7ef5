// SPDX-License-Identifier: MIT OR Apache-2.0

//! Ends of VMs. That nothing is left over is seen by whoever runs the tests.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::call::{MODIFY_SANITIZE, MODIFY_UNLOCK};
use escrow_vmcore::uapi::{self, MAP_FORCE_SHARE};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::same;
use crate::access::read;
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, Exit, PAGE};

/// Files keep their objects alive, whichever is closed first.
pub fn in_any_order() -> Result<()> {
    let device = Device::open()?;
    for order in 0..6 {
        let guest = Guest::started(&device, 16, if order & 1 == 0 { 0 } else { MAP_FORCE_SHARE })?;
        guest.ask(Order::Store(RAM + 8 * PAGE, 1))?;
        let Guest { memory, mapping, vm, vcpu } = guest;
        match order {
            0 | 1 => {
                drop(memory);
                drop(vm);
                // The vCPU still has its VM, and that its memory.
                let exit = vcpu.run().context("the last file")?;
                ensure!(matches!(exit, Exit::Read(_, 8)), "{exit:x?}");
                drop(vcpu);
                drop(mapping);
            }
            2 | 3 => {
                drop(vcpu);
                drop(mapping);
                drop(memory);
                drop(vm);
            }
            _ => {
                drop(vm);
                drop(vcpu);
                let contents = read(&mapping, 8 * PAGE)?;
                same(contents, if order & 1 == 0 { 0 } else { 1 })?;
                drop(memory);
            }
        }
    }
    Ok(())
}

/// One vCPU switches the VM off; the other's run, which sleeps, ends as well.
pub fn of_all_vcpus_at_once() -> Result<()> {
    let guest = Guest::new(&Device::open()?, 2, 0)?;
    let second = guest.vm.vcpu(1)?;
    guest.vm.start()?;
    let off = Exit::Status(uapi::STATUS_EXITED, uapi::EXIT_TYPE_POWER_OFF);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| second.run());
        same(guest.order(Order::Off)?, off)?;
        let exit = waiting.join().expect("the thread ends")?;
        same(exit, off)
    })?;
    same(guest.run()?, off).context("again")?;
    same(guest.vm.vcpu(2)?.run()?, off).context("one that comes later")
}

/// SIGKILL to processes whose guests do this and that, after different times.
pub fn killed_at_any_moment() -> Result<()> {
    const ZERO: u64 = MODIFY_UNLOCK | MODIFY_SANITIZE;
    for round in 0..16u64 {
        // SAFETY: the tests run in a process with one thread.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                let flags = if round & 1 == 0 { 0 } else { MAP_FORCE_SHARE };
                let life = || -> Result<()> {
                    let guest = Guest::started(&Device::open()?, 256, flags)?;
                    guest.ask(Order::Visit(RAM + PAGE, 200))?;
                    guest.order(match round % 3 {
                        0 => Order::ComeAndGo(RAM + 16 * PAGE, 64, ZERO),
                        _ => Order::Loop,
                    })?;
                    loop {
                        guest.run()?;
                    }
                };
                let _ = life();
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(1) }
            }
            ForkResult::Parent { child } => {
                thread::sleep(Duration::from_micros(500 + round * 7919 % 60_000));
                kill(child, Signal::SIGKILL)?;
                let status = waitpid(child, None)?;
                ensure!(
                    matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
                    "round {round}: {status:?}"
                );
            }
        }
    }
    Ok(())
}
