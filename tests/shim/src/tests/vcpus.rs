// SPDX-License-Identifier: MIT OR Apache-2.0

//! Several vCPUs, and those that are switched off. A wake-up that is lost leaves a
//! run asleep for ever, and with it the test, whose time is limited.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, available_parallelism};

use anyhow::{Context as _, Result, bail, ensure};
use escrow_abi::psci;
use escrow_vmcore::args::VCPUS_MAX;
use escrow_vmcore::uapi;
use nix::errno::Errno;

use super::start::{ignore_alarms, set_alarm};
use super::{refused, same};
use crate::guest::{self, Guest, Order, RAM};
use crate::gunyah::{Device, Exit, vcpu_function};
use crate::wait::until;

/// Switches vCPU 1 on, at the start of the program.
const ON: Order = Order::Call(psci::CPU_ON_64, 1, RAM);
const OFF: Order = Order::Call(psci::CPU_OFF, 0, 0);

/// vCPU 1 switches itself off as soon as it is on, and vCPU 0 switches it on
/// again: as it goes to sleep, as it sleeps, before it has got there.
pub fn switch_each_other_on() -> Result<()> {
    const ROUNDS: u64 = 200;
    let guest = Guest::new(&Device::open()?, 1, 0)?;
    let second = guest.vm.vcpu(1)?;
    guest.vm.start()?;
    let starts = AtomicU64::new(0);
    thread::scope(|scope| {
        let other = scope.spawn(|| -> Result<Exit> {
            let mut exit = guest::run(&second)?;
            while guest::wants_order(exit) {
                starts.fetch_add(1, Ordering::SeqCst);
                exit = guest::order_after(&second, exit, OFF)?;
            }
            Ok(exit)
        });
        for round in 1..=ROUNDS {
            loop {
                // Without it, a vCPU that is on and that nobody runs is ALREADY_ON for ever.
                ensure!(!other.is_finished(), "the other vCPU has ended");
                match guest.ask(ON)? {
                    psci::SUCCESS => break,
                    psci::ALREADY_ON => {}
                    other => bail!("CPU_ON answers {other:#x}"),
                }
            }
            while starts.load(Ordering::SeqCst) < round {
                ensure!(!other.is_finished(), "the other vCPU has ended");
                thread::yield_now();
            }
            same(starts.load(Ordering::SeqCst), round)?;
        }
        guest.order(Order::Off)?;
        let exit = other.join().expect("the thread ends")?;
        same(exit, Exit::Status(uapi::STATUS_EXITED, uapi::EXIT_TYPE_POWER_OFF))
    })
}

/// By a signal, by `immediate_exit`, by its removal.
pub fn that_are_off_are_woken_when_asked() -> Result<()> {
    ignore_alarms()?;
    let guest = Guest::new(&Device::open()?, 1, 0)?;
    let second = guest.vm.vcpu(1)?;
    guest.vm.start()?;
    second.set_immediate_exit(true);
    refused(second.run(), Errno::EINTR).context("immediate exit")?;
    second.set_immediate_exit(false);
    for _ in 0..5 {
        set_alarm()?;
        refused(second.run(), Errno::EINTR).context("a signal")?;
    }
    // Whether it sleeps already or is about to.
    thread::scope(|scope| {
        let asleep = scope.spawn(|| second.run());
        guest.vm.remove_vcpu(1)?;
        refused(asleep.join().expect("the thread ends"), Errno::ENODEV).context("removed")
    })
}

/// As many as a VM can have, all of which want a CPU of the host's, and one that is
/// asked something meanwhile.
pub fn more_than_there_are_cpus() -> Result<()> {
    ensure!(available_parallelism()?.get() < VCPUS_MAX as usize, "as many CPUs");
    let guest = Guest::new(&Device::open()?, 1, 0)?;
    let others = (1..VCPUS_MAX).map(|id| guest.vm.vcpu(id)).collect::<Result<Vec<_>>>()?;
    let more = guest.vm.add(&vcpu_function(&uapi::VcpuArg { id: VCPUS_MAX }));
    refused(more, Errno::EINVAL).context("one more")?;
    guest.vm.start().context("the start")?;
    let started = AtomicU64::new(0);
    thread::scope(|scope| {
        let run = |vcpu| -> Result<Exit> {
            let exit = guest::run(vcpu)?;
            ensure!(guest::wants_order(exit), "{exit:x?}");
            let exit = guest::order_after(vcpu, exit, Order::Loop)?;
            ensure!(matches!(exit, Exit::Read(..)), "{exit:x?}");
            started.fetch_add(1, Ordering::SeqCst);
            guest::run(vcpu)
        };
        let threads: Vec<_> = others.iter().map(|vcpu| scope.spawn(move || run(vcpu))).collect();
        for id in 1..u64::from(VCPUS_MAX) {
            // The affinity that the guest names it by: 16 to a cluster.
            let affinity = (id % 16) | ((id / 16) << 8);
            same(guest.ask(Order::Call(psci::CPU_ON_64, affinity, RAM))?, psci::SUCCESS)?;
        }
        until("all vCPUs", || Ok(started.load(Ordering::SeqCst) == u64::from(VCPUS_MAX) - 1))?;
        for _ in 0..3 {
            guest.ask(Order::Load(RAM))?;
        }
        let end = Exit::Status(uapi::STATUS_EXITED, uapi::EXIT_TYPE_POWER_OFF);
        same(guest.order(Order::Off)?, end)?;
        for thread in threads {
            same(thread.join().expect("the thread ends")?, end)?;
        }
        Ok(())
    })
}
