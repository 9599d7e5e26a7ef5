// SPDX-License-Identifier: MIT OR Apache-2.0

//! Eventfds that ring in the guest. One that is not heard leaves a guest waiting
//! for ever, and with it the test, whose time is limited.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::Error;
use escrow_abi::call::{BELL_RECEIVE, BELL_SEND, DOORBELLS_MAX};
use escrow_vmcore::uapi::{FUNCTION_IRQFD, IRQFD_LEVEL, IrqfdArg};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{refused, same};
use crate::access;
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, PAGE, Vm};
use crate::tree::with_doorbells as tree;
use crate::wait::until;

const LABEL: u32 = 5;
/// Another one of the same tree.
const OTHER: u32 = 0x102;
/// `ISR_EL1.I`.
const INTERRUPT: u64 = 1 << 7;

fn event() -> Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}

fn signal(event: &EventFd) -> Result<()> {
    event.write(1)?;
    Ok(())
}

fn edge(event: &EventFd, label: u32) -> IrqfdArg {
    IrqfdArg { fd: event.as_raw_fd() as u32, label, ..Default::default() }
}

fn add(vm: &Vm, arg: &IrqfdArg) -> Result<()> {
    Ok(vm.add_function(FUNCTION_IRQFD, arg)?)
}

/// Puts a tree behind the program, and the host's hands off it.
pub fn put(guest: &Guest, tree: &[u8]) -> Result<()> {
    access::write_all(&guest.mapping, PAGE, tree)?;
    guest.mapping.forget(1, tree.len().div_ceil(PAGE as usize) as u64)?;
    Ok(())
}

/// One that has a tree with these doorbells and has not been started.
fn with_bells(labels: impl IntoIterator<Item = u32>) -> Result<Guest> {
    let guest = Guest::new(&Device::open()?, 8, 0)?;
    put(&guest, &tree(labels)?)?;
    // It need not end with a page.
    guest.vm.set_dtb(RAM + PAGE, 6 * PAGE + 8)?;
    Ok(guest)
}

fn started() -> Result<Guest> {
    let guest = with_bells([LABEL, OTHER])?;
    guest.vm.start()?;
    Ok(guest)
}

/// The guest hears a doorbell: the flags that it finds.
fn receive(guest: &Guest, label: u32) -> Result<u64> {
    guest.ask(Order::CallForX1(BELL_RECEIVE, label.into(), 1))
}

fn is_pending(guest: &Guest) -> Result<bool> {
    Ok(guest.ask(Order::Pending)? & INTERRUPT != 0)
}

/// As long as nobody receives it, by either kind; and only where it is meant.
pub fn rings_in_the_guest() -> Result<()> {
    let (guest, neighbour) = (started()?, started()?);
    for (flags, found) in [(0, 1), (IRQFD_LEVEL, 0), (0, 1)] {
        let event = event()?;
        let arg = IrqfdArg { flags, ..edge(&event, LABEL) };
        add(&guest.vm, &arg)?;
        ensure!(!is_pending(&guest)?, "before it is signalled");
        for _ in 0..3 {
            signal(&event)?;
            ensure!(is_pending(&guest)? && is_pending(&guest)?, "signalled");
            same(guest.ask(Order::Wait)?, 1)?;
            ensure!(is_pending(&guest)?, "taken, but not received");
            same(guest.ask(Order::WaitMasked)?, INTERRUPT)?;
            // What rings is one of several.
            same(receive(&guest, OTHER)?, 0)?;
            ensure!(is_pending(&guest)?, "another one was received");
            // A level-triggered one has been acknowledged for the host.
            same(receive(&guest, LABEL)?, found)?;
            ensure!(!is_pending(&guest)?, "received");
        }
        ensure!(!is_pending(&neighbour)?, "in another VM");
        guest.vm.remove_function(FUNCTION_IRQFD, &arg)?;
        signal(&event)?;
        ensure!(!is_pending(&guest)?, "removed");
        same(receive(&guest, LABEL)?, 0)?;
    }
    // Ringing is the host's part.
    let send = guest.ask(Order::Call(BELL_SEND, LABEL.into(), 1))?;
    same(Error::from_register(send), Some(Error::Denied))
}

/// Asleep, on the way there, or not yet.
pub fn wakes_who_sleeps() -> Result<()> {
    const ROUNDS: u64 = 300;
    let guest = started()?;
    let event = event()?;
    add(&guest.vm, &edge(&event, LABEL))?;
    let runner = AtomicI32::new(0);
    let round = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let guest = scope.spawn(|| -> Result<()> {
            runner.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
            for number in 0..ROUNDS {
                let order = if number % 2 == 0 { Order::Wait } else { Order::WaitMasked };
                let expected = if number % 2 == 0 { 1 } else { INTERRUPT };
                round.store(true, Ordering::SeqCst);
                same(guest.ask(order)?, expected)?;
                same(receive(&guest, LABEL)?, 1)?;
            }
            Ok(())
        });
        for number in 0..ROUNDS {
            while !round.swap(false, Ordering::SeqCst) {
                ensure!(!guest.is_finished(), "the guest has ended");
                thread::yield_now();
            }
            if number % 3 != 0 {
                until("a vCPU that sleeps", || is_asleep(runner.load(Ordering::SeqCst)))?;
            }
            signal(&event)?;
        }
        guest.join().expect("the thread ends")
    })
}

/// Whether a thread of this process sleeps.
pub fn is_asleep(thread: i32) -> Result<bool> {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat"))?;
    // The name may have anything in it, but ends with the last parenthesis.
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    Ok(state.context("a state")? == "S")
}

/// A guest that makes no exit of its own.
pub fn interrupts_who_runs() -> Result<()> {
    let guest = started()?;
    let event = event()?;
    add(&guest.vm, &IrqfdArg { flags: IRQFD_LEVEL, ..edge(&event, OTHER) })?;
    for _ in 0..50 {
        thread::scope(|scope| {
            let spinning = scope.spawn(|| guest.ask(Order::Spin));
            thread::yield_now();
            signal(&event)?;
            same(spinning.join().expect("the thread ends")?, 1)
        })?;
        same(receive(&guest, OTHER)?, 0)?;
    }
    Ok(())
}

/// Signals before the function is added, and before the VM starts.
pub fn what_came_before_is_not_lost() -> Result<()> {
    let guest = with_bells([LABEL, OTHER])?;
    let (early, late) = (event()?, event()?);
    signal(&early)?;
    add(&guest.vm, &edge(&early, LABEL))?;
    add(&guest.vm, &edge(&late, OTHER))?;
    signal(&late)?;
    guest.vm.start()?;
    same(guest.ask(Order::Wait)?, 1)?;
    same((receive(&guest, LABEL)?, receive(&guest, OTHER)?), (1, 1))?;
    ensure!(!is_pending(&guest)?, "received");
    // A signal that was removed with its function is over.
    guest.vm.remove_function(FUNCTION_IRQFD, &edge(&late, OTHER))?;
    add(&guest.vm, &edge(&late, OTHER))?;
    ensure!(!is_pending(&guest)?, "of the function before");
    Ok(())
}

/// One function for each label; one that the tree does not know rings nothing.
pub fn labels_are_those_of_the_tree() -> Result<()> {
    let guest = with_bells([LABEL])?;
    let (event, other) = (event()?, event()?);
    add(&guest.vm, &edge(&event, LABEL))?;
    add(&guest.vm, &edge(&other, OTHER))?;
    for flags in [0, IRQFD_LEVEL] {
        let twice = IrqfdArg { flags, ..edge(&other, LABEL) };
        refused(guest.vm.add_function(FUNCTION_IRQFD, &twice), Errno::EEXIST)?;
    }
    guest.vm.start()?;
    signal(&other)?;
    ensure!(!is_pending(&guest)?, "a label that nobody has");
    let none = guest.ask(Order::Call(BELL_RECEIVE, OTHER.into(), 1))?;
    same(Error::from_register(none), Some(Error::HandleNull))?;
    signal(&event)?;
    same(receive(&guest, LABEL)?, 1)?;
    // Whatever the descriptor.
    let removed = IrqfdArg { fd: u32::MAX, flags: IRQFD_LEVEL, ..edge(&event, LABEL) };
    guest.vm.remove_function(FUNCTION_IRQFD, &removed)?;
    refused(guest.vm.remove_function(FUNCTION_IRQFD, &removed), Errno::ENOENT)?;
    guest.vm.remove_function(FUNCTION_IRQFD, &edge(&other, OTHER))?;
    signal(&other)?;
    add(&guest.vm, &edge(&other, LABEL)).context("after the start")?;
    same(receive(&guest, LABEL)?, 1).context("signalled before")
}

/// What is no tree has no doorbells, and more of them than there can be are
/// refused before anything has started; then, another one does.
pub fn trees_that_are_none() -> Result<()> {
    let whole = tree([LABEL])?;
    let mut long = whole.clone();
    long[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut torn = whole.clone();
    torn[8..12].copy_from_slice(&0x7fff_fff0u32.to_be_bytes());
    for bad in [&[0; 64], &long[..], &torn[..], &whole[..6]] {
        let guest = with_bells([])?;
        put(&guest, bad)?;
        let event = event()?;
        add(&guest.vm, &edge(&event, LABEL))?;
        guest.vm.start()?;
        signal(&event)?;
        ensure!(!is_pending(&guest)?, "no tree");
        let none = guest.ask(Order::Call(BELL_RECEIVE, LABEL.into(), 1))?;
        same(Error::from_register(none), Some(Error::HandleNull))?;
    }

    // In the place of a tree whose start failed, because it was still mapped.
    let guest = with_bells([LABEL])?;
    access::write_all(&guest.mapping, PAGE, &whole)?;
    refused(guest.vm.start(), Errno::EAGAIN)?;
    put(&guest, &[0; 64])?;
    let stale = event()?;
    add(&guest.vm, &edge(&stale, LABEL))?;
    guest.vm.start()?;
    signal(&stale)?;
    ensure!(!is_pending(&guest)?, "of the tree before");

    let most = DOORBELLS_MAX as u32;
    let guest = with_bells(0..=most)?;
    refused(guest.vm.start(), Errno::ENOSPC).context("too many")?;
    put(&guest, &tree(0..most)?)?;
    let event = event()?;
    let last = most - 1;
    add(&guest.vm, &edge(&event, last))?;
    guest.vm.start()?;
    signal(&event)?;
    same(guest.ask(Order::Spin)?, 1)?;
    same(receive(&guest, last)?, 1)
}

/// The function comes and goes while another thread signals, and a vCPU waits.
pub fn comes_and_goes_under_signals() -> Result<()> {
    const ROUNDS: u32 = 2_000;
    let guest = started()?;
    let event = event()?;
    let arg = edge(&event, LABEL);
    let over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let signals = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                signal(&event)?;
            }
            Ok(())
        });
        let rounds = || -> Result<()> {
            for round in 0..ROUNDS {
                let flags = if round % 3 == 0 { IRQFD_LEVEL } else { 0 };
                add(&guest.vm, &IrqfdArg { flags, ..arg })?;
                if round % 100 == 0 {
                    guest.ask(Order::Wait)?;
                }
                guest.vm.remove_function(FUNCTION_IRQFD, &arg)?;
                if round % 100 == 50 {
                    receive(&guest, LABEL)?;
                    ensure!(!is_pending(&guest)?, "removed");
                }
            }
            Ok(())
        };
        let done = rounds();
        over.store(true, Ordering::Relaxed);
        signals.join().expect("the thread ends")?;
        done
    })?;
    receive(&guest, LABEL)?;
    add(&guest.vm, &arg)?;
    signal(&event)?;
    same(guest.ask(Order::Wait)?, 1)
}

/// Event, VM and vCPU.
pub fn closed_in_any_order() -> Result<()> {
    for round in 0..5 {
        let guest = started()?;
        let event = event()?;
        add(&guest.vm, &edge(&event, LABEL))?;
        // One event may ring in several places.
        add(&guest.vm, &edge(&event, OTHER))?;
        match round {
            0 => {
                drop(event);
                ensure!(!is_pending(&guest)?, "its descriptor's closing is no signal");
                drop(guest);
            }
            1 => {
                drop(guest);
                signal(&event)?;
            }
            2 => {
                let Guest { vm, vcpu, .. } = guest;
                drop(vm);
                // The vCPU still has its VM, and that its functions.
                signal(&event)?;
                drop(vcpu);
                signal(&event)?;
            }
            3 => {
                guest.order(Order::Off)?;
                signal(&event)?;
                refused(
                    guest.vm.add_function(FUNCTION_IRQFD, &edge(&event, LABEL)),
                    Errno::EEXIST,
                )?;
                guest.vm.remove_function(FUNCTION_IRQFD, &edge(&event, LABEL))?;
            }
            _ => {
                signal(&event)?;
                drop(event);
                ensure!(is_pending(&guest)?, "rung by one that is closed by now");
                same((receive(&guest, LABEL)?, receive(&guest, OTHER)?), (1, 1))?;
            }
        }
    }
    Ok(())
}
