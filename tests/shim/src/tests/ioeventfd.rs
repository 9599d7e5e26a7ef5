// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guest writes that signal an eventfd. A write that is swallowed is seen by
//! what comes next: the guest's answer, without an exit before it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use escrow_vmcore::uapi::{FUNCTION_IOEVENTFD, IOEVENTFD_DATAMATCH, IoeventfdArg};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{refused, same};
use crate::guest::{Guest, Order};
use crate::gunyah::{Device, Exit, Vm};

const MMIO: u64 = 0x7000;

fn event() -> Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}

/// How often it was signalled since the last time.
fn count(event: impl AsFd) -> Result<u64> {
    let mut word = [0; 8];
    match nix::unistd::read(event, &mut word) {
        Err(Errno::EAGAIN) => Ok(0),
        result => {
            same(result?, word.len())?;
            Ok(u64::from_ne_bytes(word))
        }
    }
}

fn any(event: &EventFd, addr: u64, len: u32) -> IoeventfdArg {
    IoeventfdArg { addr, len, fd: event.as_raw_fd(), ..Default::default() }
}

fn add(vm: &Vm, arg: &IoeventfdArg) -> Result<()> {
    Ok(vm.add_function(FUNCTION_IOEVENTFD, arg)?)
}

/// The guest writes, and the program hears of it.
fn exits(guest: &Guest, order: Order) -> Result<()> {
    let exit = guest.order(order)?;
    let Order::Write(at, word, _) = order else { bail!("no write: {order:x?}") };
    ensure!(exit == Exit::Write(at, word), "{order:x?} ended in {exit:x?}");
    // The guest's answer.
    guest.run().map(drop)
}

/// Of each size, at the address that the event is for; and of the size, if it is for a
/// value.
pub fn a_write_ends_in_the_kernel() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 1, 0)?;
    for size in [1u32, 2, 4, 8] {
        let event = event()?;
        let arg = any(&event, MMIO, size);
        add(&guest.vm, &arg)?;
        for round in 1..=3 {
            guest.ask(Order::Write(MMIO, round, size.into()))?;
        }
        same(count(&event)?, 3)?;
        exits(&guest, Order::Write(MMIO + 8, 7, size.into())).context("another address")?;
        same(count(&event)?, 0)?;
        guest.vm.remove_function(FUNCTION_IOEVENTFD, &arg)?;
        exits(&guest, Order::Write(MMIO, 7, size.into())).context("removed")?;
        same(count(&event)?, 0)?;

        let arg = IoeventfdArg { flags: IOEVENTFD_DATAMATCH, datamatch: 7, ..arg };
        add(&guest.vm, &arg)?;
        guest.ask(Order::Write(MMIO, 7, size.into()))?;
        same(count(&event)?, 1)?;
        for other in [1, 2, 4, 8].into_iter().filter(|&other| other != size) {
            exits(&guest, Order::Write(MMIO, 7, other.into())).context("another size")?;
        }
        same(count(&event)?, 0)?;
        guest.vm.remove_function(FUNCTION_IOEVENTFD, &arg)?;
    }
    let event = event()?;
    add(&guest.vm, &any(&event, MMIO, 0))?;
    for size in [1, 2, 4, 8] {
        guest.ask(Order::Write(MMIO, 7, size)).context("any size")?;
    }
    same(count(&event)?, 4)
}

/// Several events at one address, each for a value; and a value that no event
/// is for.
pub fn values_are_told_apart() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 1, 0)?;
    let events = [event()?, event()?, event()?];
    for (queue, event) in (0..).zip(&events) {
        let arg =
            IoeventfdArg { flags: IOEVENTFD_DATAMATCH, datamatch: queue, ..any(event, MMIO, 4) };
        add(&guest.vm, &arg)?;
    }
    for queue in [2, 0, 2] {
        guest.ask(Order::Write(MMIO, queue, 4))?;
    }
    // Bytes above the four are not written.
    guest.ask(Order::Write(MMIO, 1 << 40 | 1, 4))?;
    let counts = events.iter().map(count).collect::<Result<Vec<_>>>()?;
    same(counts, vec![1, 1, 2])?;
    exits(&guest, Order::Write(MMIO, 3, 4)).context("another value")?;
    exits(&guest, Order::Write(MMIO, 0, 8)).context("another size")?;
    let counts = events.iter().map(count).collect::<Result<Vec<_>>>()?;
    same(counts, vec![0, 0, 0])
}

/// Reads, writes beside it, and writes to memory at the same address of another
/// VM.
pub fn other_accesses_are_the_programs() -> Result<()> {
    let device = Device::open()?;
    let (guest, other) = (Guest::started(&device, 1, 0)?, Guest::started(&device, 1, 0)?);
    let event = event()?;
    add(&guest.vm, &any(&event, MMIO, 0))?;
    let exit = guest.order(Order::Load(MMIO))?;
    ensure!(exit == Exit::Read(MMIO, 8), "a read ended in {exit:x?}");
    guest.vcpu.answer(0x1234);
    let exit = guest.run()?;
    ensure!(matches!(exit, Exit::Write(_, 0x1234)), "{exit:x?}");
    exits(&guest, Order::Write(MMIO + 1, 7, 1)).context("beside it")?;
    exits(&guest, Order::Write(MMIO - 4, 7, 4)).context("before it")?;
    exits(&other, Order::Write(MMIO, 7, 4)).context("another VM")?;
    same(count(&event)?, 0)
}

/// Comes and goes while a vCPU writes: each write is an event or an exit, none
/// is both or neither, and none is an event once the removal has returned.
pub fn goes_under_a_running_vcpu() -> Result<()> {
    const WRITES: u64 = 30_000;
    let guest = Guest::started(&Device::open()?, 1, 0)?;
    let event = event()?;
    let arg = any(&event, MMIO, 4);
    let over = AtomicBool::new(false);
    let (exits, events, rounds) = thread::scope(|scope| -> Result<_> {
        let changes = scope.spawn(|| -> Result<(u64, u64)> {
            let (mut events, mut rounds) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                add(&guest.vm, &arg)?;
                thread::yield_now();
                guest.vm.remove_function(FUNCTION_IOEVENTFD, &arg)?;
                events += count(&event)?;
                thread::yield_now();
                same(count(&event)?, 0).context("after its removal")?;
                rounds += 1;
            }
            Ok((events, rounds))
        });
        let writes = || -> Result<u64> {
            let mut exits = 0;
            let mut exit = guest.order(Order::CountDown(MMIO, WRITES))?;
            let mut last = WRITES + 1;
            while let Exit::Write(MMIO, value) = exit {
                ensure!(value < last, "{value} after {last}");
                last = value;
                exits += 1;
                exit = guest.run()?;
            }
            ensure!(matches!(exit, Exit::Write(_, WRITES)), "{exit:x?}");
            Ok(exits)
        };
        let exits = writes();
        over.store(true, Ordering::Relaxed);
        let (events, rounds) = changes.join().expect("the thread ends")?;
        Ok((exits?, events, rounds))
    })?;
    same(exits + events, WRITES)?;
    ensure!(exits > 0 && events > 0 && rounds > 1, "{exits} exits, {events} events, {rounds}");
    Ok(())
}

/// The kernel's number of the event itself, whatever descriptors it has: the
/// lowest that no other event has.
fn number(event: &EventFd) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", event.as_raw_fd());
    let text = fs::read_to_string(&path)?;
    let number = text.lines().find_map(|line| line.strip_prefix("eventfd-id:"));
    Ok(number.with_context(|| format!("{path} has no number"))?.trim().parse()?)
}

/// The event lives as long as the function, and no longer.
pub fn lets_go_of_its_event() -> Result<()> {
    let vm = Device::open()?.vm()?;
    let free = || -> Result<u64> { number(&event()?) };
    let first = free()?;
    same(free()?, first).context("of one that is closed")?;

    let one = event()?;
    let arg = any(&one, MMIO, 4);
    add(&vm, &arg)?;
    drop(one);
    ensure!(free()? != first, "the event has gone with its descriptor");
    vm.remove_function(FUNCTION_IOEVENTFD, &arg)?;
    same(free()?, first).context("after its removal")?;

    let one = event()?;
    let arg = any(&one, MMIO, 4);
    add(&vm, &arg)?;
    let other = event()?;
    refused(vm.add_function(FUNCTION_IOEVENTFD, &any(&other, MMIO, 4)), Errno::EEXIST)?;
    let second = number(&other)?;
    drop((one, other));
    same(free()?, second).context("after it was refused")?;
    drop(vm);
    same(free()?, first).context("after the VM's end")
}

/// Whoever closes first: nobody hears the event any more, and the write ends in
/// the kernel all the same.
pub fn outlives_its_descriptor_and_dies_with_the_vm() -> Result<()> {
    let device = Device::open()?;
    for round in 0..4 {
        let guest = Guest::started(&device, 1, 0)?;
        let event = event()?;
        let arg = any(&event, MMIO, 4);
        add(&guest.vm, &arg)?;
        guest.ask(Order::Write(MMIO, 7, 4))?;
        let heard = event.as_fd().try_clone_to_owned()?;
        match round {
            0 => {
                drop(event);
                guest.ask(Order::Write(MMIO, 7, 4))?;
                same(count(&heard)?, 2).context("by another descriptor")?;
                drop(heard);
                guest.ask(Order::Write(MMIO, 7, 4))?;
                guest.vm.remove_function(FUNCTION_IOEVENTFD, &arg)?;
                exits(&guest, Order::Write(MMIO, 7, 4))?;
            }
            1 => {
                let Guest { vm, vcpu, .. } = guest;
                drop(vm);
                // The vCPU still has its VM, and that its functions.
                let exit = vcpu.run()?;
                ensure!(matches!(exit, Exit::Read(..)), "{exit:x?}");
                drop(vcpu);
                same(count(&event)?, 1)?;
            }
            2 => {
                drop(event);
                drop(heard);
                drop(guest);
            }
            _ => {
                guest.order(Order::Off)?;
                refused(guest.vm.add_function(FUNCTION_IOEVENTFD, &arg), Errno::EEXIST)?;
                guest.vm.remove_function(FUNCTION_IOEVENTFD, &arg)?;
            }
        }
    }
    Ok(())
}
