// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guests with an interrupt controller: what the host says of SPIs, and what it is told. An
//! interrupt that does not come leaves a guest waiting for ever, and with it the test, whose time
//! is limited.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use escrow_abi::psci;
use escrow_vmcore::uapi::{
    ConsoleArg, EXIT_TYPE_POWER_OFF, FUNCTION_CONSOLE, FUNCTION_IRQFD, IRQFD_LEVEL, IRQFD_RESAMPLE,
    IrqfdArg, STATUS_EXITED,
};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::console;
use super::irqfd::{is_asleep, put};
use super::{refused, same};
use crate::access;
use crate::guest::{self, Guest, Order, RAM};
use crate::gunyah::{Device, Exit, PAGE, Vcpu, Vm, vcpu_function};
use crate::tree::{GICD, GICR, with_gic};
use crate::wait::until;

/// SPIs of the tree, by their INTIDs; the labels are the same numbers.
const EDGE: u32 = 40;
const LEVEL: u32 = 41;
/// Of another bank.
const FAR: u32 = 600;
/// A console's, which the tree does not name.
const UART_SPI: u32 = 33;
const UART: u64 = 0x900_0000;
const TIMER: u64 = 27;
/// No interrupt.
const SPURIOUS: u64 = 1023;
/// `ISR_EL1.I`.
const INTERRUPT: u64 = 1 << 7;

fn labels() -> [(u32, u32, u32); 3] {
    [(EDGE, EDGE - 32, 1), (LEVEL, LEVEL - 32, 4), (FAR, FAR - 32, 4)]
}

fn event() -> Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}

/// How often it was signalled since the last time.
fn count(event: &EventFd) -> Result<u64> {
    match event.read() {
        Err(Errno::EAGAIN) => Ok(0),
        result => Ok(result?),
    }
}

fn signal(event: &EventFd) -> Result<()> {
    event.write(1)?;
    Ok(())
}

fn irqfd(event: &EventFd, label: u32) -> IrqfdArg {
    IrqfdArg { fd: event.as_raw_fd() as u32, label, ..Default::default() }
}

fn add(vm: &Vm, arg: &IrqfdArg) -> Result<()> {
    Ok(vm.add_function(FUNCTION_IRQFD, arg)?)
}

/// One with a GICv3 in its tree that has not been started, and more vCPUs.
fn created(vcpus: u32) -> Result<(Guest, Vec<Vcpu>)> {
    let guest = Guest::new(&Device::open()?, 8, 0)?;
    let more = (1..vcpus).map(|id| guest.vm.vcpu(id)).collect::<Result<Vec<_>>>()?;
    put(&guest, &with_gic(GICD, 4, labels())?)?;
    guest.vm.set_dtb(RAM + PAGE, 4 * PAGE)?;
    Ok((guest, more))
}

/// One that runs, and takes these interrupts, at vCPU 0.
fn started(intids: &[u32]) -> Result<Guest> {
    let (guest, _) = created(1)?;
    guest.vm.start()?;
    set_up(&guest, intids)?;
    Ok(guest)
}

fn write(guest: &Guest, at: u64, word: u32) -> Result<()> {
    same(guest.ask(Order::Write(at, word.into(), 4))?, 0)
}

/// Enables the GIC, and interrupts in it.
fn set_up(guest: &Guest, intids: &[u32]) -> Result<()> {
    // GICD_CTLR: affinity routing, group 1.
    write(guest, GICD, 1 << 4 | 1 << 1)?;
    for &intid in intids {
        let (word, bit) = (u64::from(intid / 32 * 4), 1 << (intid % 32));
        // GICD_IGROUPR, GICD_ICFGR, GICD_ISENABLER.
        write(guest, GICD + 0x80 + word, u32::MAX)?;
        if intid == EDGE {
            write(guest, GICD + 0xc00 + u64::from(intid / 16 * 4), 2 << (intid % 16 * 2))?;
        }
        write(guest, GICD + 0x100 + word, bit)?;
    }
    same(guest.ask(Order::GicOn)?, 0)
}

/// Enables a private interrupt of a vCPU.
fn set_up_private(guest: &Guest, vcpu: u64, intid: u32) -> Result<()> {
    let frame = GICR + vcpu * 0x2_0000 + 0x1_0000;
    write(guest, frame + 0x80, u32::MAX)?;
    write(guest, frame + 0x100, 1 << intid)
}

fn is_pending(guest: &Guest) -> Result<bool> {
    Ok(guest.ask(Order::Pending)? & INTERRUPT != 0)
}

/// The guest takes an interrupt, and there is no other.
fn take(guest: &Guest, intid: u32) -> Result<()> {
    same(guest.ask(Order::Acknowledge)?, intid.into())?;
    ensure!(!is_pending(guest)?, "another one");
    Ok(())
}

fn end(guest: &Guest, intid: u32) -> Result<()> {
    same(guest.ask(Order::End(intid.into()))?, 0)
}

/// An edge is one interrupt, however often it is signalled before the guest takes it.
pub fn edges() -> Result<()> {
    let guest = started(&[EDGE])?;
    let event = event()?;
    // The tree says that it is an edge.
    let arg = IrqfdArg { flags: IRQFD_LEVEL, ..irqfd(&event, EDGE) };
    add(&guest.vm, &arg)?;
    ensure!(!is_pending(&guest)?, "before it is signalled");
    same(guest.ask(Order::Acknowledge)?, SPURIOUS)?;
    for _ in 0..3 {
        signal(&event)?;
        signal(&event)?;
        same(guest.ask(Order::Wait)?, 1)?;
        take(&guest, EDGE)?;
        // It is active: one more to come.
        signal(&event)?;
        ensure!(!is_pending(&guest)?, "while it is active");
        end(&guest, EDGE)?;
        same(guest.ask(Order::Spin)?, 1)?;
        take(&guest, EDGE)?;
        end(&guest, EDGE)?;
        ensure!(!is_pending(&guest)?, "ended");
    }
    guest.vm.remove_function(FUNCTION_IRQFD, &arg)?;
    signal(&event)?;
    ensure!(!is_pending(&guest)?, "removed");
    Ok(())
}

/// A level is high until the guest is done with it, and once more if it was signalled meanwhile.
pub fn levels() -> Result<()> {
    let guest = started(&[LEVEL, FAR])?;
    for intid in [LEVEL, FAR] {
        let event = event()?;
        let arg = irqfd(&event, intid);
        add(&guest.vm, &arg)?;
        for meanwhile in [false, true, false] {
            signal(&event)?;
            same(guest.ask(Order::Wait)?, 1)?;
            take(&guest, intid)?;
            if meanwhile {
                signal(&event)?;
                signal(&event)?;
                end(&guest, intid)?;
                same(guest.ask(Order::Wait)?, 1).context("signalled meanwhile")?;
                take(&guest, intid)?;
            }
            end(&guest, intid)?;
            ensure!(!is_pending(&guest)?, "ended");
        }
        // It goes with the function.
        signal(&event)?;
        ensure!(is_pending(&guest)?, "signalled");
        guest.vm.remove_function(FUNCTION_IRQFD, &arg)?;
        ensure!(!is_pending(&guest)?, "removed");
        same(guest.ask(Order::Acknowledge)?, SPURIOUS)?;
    }
    Ok(())
}

/// With a second eventfd, the program is told that the guest is done, and says itself whether the
/// level is high still.
pub fn a_way_back() -> Result<()> {
    let guest = started(&[LEVEL, EDGE])?;
    let (event, back) = (event()?, event()?);
    let arg = IrqfdArg {
        flags: IRQFD_RESAMPLE,
        resample_fd: back.as_raw_fd() as u32,
        ..irqfd(&event, LEVEL)
    };
    add(&guest.vm, &arg)?;
    for _ in 0..3 {
        signal(&event)?;
        same(guest.ask(Order::Wait)?, 1)?;
        take(&guest, LEVEL)?;
        signal(&event)?;
        same(count(&back)?, 0).context("not done")?;
        end(&guest, LEVEL)?;
        ensure!(!is_pending(&guest)?, "the program was asked");
        same(count(&back)?, 1)?;
    }
    // Asserted still.
    for _ in 0..3 {
        signal(&event)?;
        take(&guest, LEVEL)?;
        end(&guest, LEVEL)?;
        guest.ask(Order::Pending)?;
        same(count(&back)?, 1)?;
    }
    guest.vm.remove_function(FUNCTION_IRQFD, &arg)?;

    // An eventfd that is its own way back: an interrupt that does not end.
    let own = IrqfdArg { resample_fd: event.as_raw_fd() as u32, ..arg };
    add(&guest.vm, &own)?;
    signal(&event)?;
    for _ in 0..10 {
        same(guest.ask(Order::Wait)?, 1)?;
        take(&guest, LEVEL)?;
        end(&guest, LEVEL)?;
    }
    guest.vm.remove_function(FUNCTION_IRQFD, &own)?;
    ensure!(!is_pending(&guest)?, "removed");

    // The way back may be the way to another interrupt.
    let edge = event_to(&guest.vm, EDGE)?;
    let chained = IrqfdArg { resample_fd: edge.as_raw_fd() as u32, ..arg };
    add(&guest.vm, &chained)?;
    signal(&event)?;
    take(&guest, LEVEL)?;
    end(&guest, LEVEL)?;
    same(guest.ask(Order::Wait)?, 1)?;
    take(&guest, EDGE)?;
    end(&guest, EDGE)
}

fn event_to(vm: &Vm, label: u32) -> Result<EventFd> {
    let event = event()?;
    add(vm, &irqfd(&event, label))?;
    Ok(event)
}

/// Starts the other vCPUs of a guest; each waits for its next order then.
fn start_others(guest: &Guest, others: &[Vcpu]) -> Result<()> {
    for (id, other) in (1..).zip(others) {
        same(guest.ask(Order::Call(psci::CPU_ON_64, id, RAM))?, psci::SUCCESS)?;
        same(guest::ask(other, Order::GicOn)?, 0)?;
    }
    Ok(())
}

/// The vCPU that the guest routes it to, asleep, on the way there, or running.
pub fn the_guest_says_who_is_interrupted() -> Result<()> {
    const ROUNDS: u64 = 200;
    let (guest, others) = created(2)?;
    guest.vm.start()?;
    set_up(&guest, &[EDGE])?;
    start_others(&guest, &others)?;
    // GICD_IROUTER: vCPU 1.
    same(guest.ask(Order::Write(GICD + 0x6000 + 8 * u64::from(EDGE), 1, 8))?, 0)?;
    let event = event_to(&guest.vm, EDGE)?;
    let (runner, round) = (AtomicI32::new(0), AtomicBool::new(false));
    thread::scope(|scope| -> Result<()> {
        let other = scope.spawn(|| -> Result<()> {
            runner.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
            for number in 0..ROUNDS {
                let order = if number % 4 == 3 { Order::Spin } else { Order::Wait };
                round.store(true, Ordering::SeqCst);
                same(guest::ask(&others[0], order)?, 1)?;
                same(guest::ask(&others[0], Order::Acknowledge)?, EDGE.into())?;
                same(guest::ask(&others[0], Order::End(EDGE.into()))?, 0)?;
            }
            Ok(())
        });
        for number in 0..ROUNDS {
            while !round.swap(false, Ordering::SeqCst) {
                ensure!(!other.is_finished(), "the guest has ended");
                thread::yield_now();
            }
            if number % 4 < 2 {
                until("a vCPU that sleeps", || is_asleep(runner.load(Ordering::SeqCst)))?;
            }
            signal(&event)?;
        }
        other.join().expect("the thread ends")
    })?;
    same(guest.ask(Order::Acknowledge)?, SPURIOUS).context("vCPU 0")
}

/// One vCPU interrupts another, which sleeps in the host.
pub fn sgis_wake_who_sleeps() -> Result<()> {
    const ROUNDS: u64 = 200;
    let (guest, others) = created(3)?;
    guest.vm.start()?;
    set_up(&guest, &[])?;
    start_others(&guest, &others)?;
    for vcpu in 1..3 {
        set_up_private(&guest, vcpu, 5)?;
    }
    let runners = [AtomicI32::new(0), AtomicI32::new(0)];
    let taken = [AtomicI32::new(0), AtomicI32::new(0)];
    thread::scope(|scope| -> Result<()> {
        let threads = others.iter().zip(&runners).zip(&taken).map(|((vcpu, runner), taken)| {
            scope.spawn(move || -> Result<()> {
                runner.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
                for _ in 0..ROUNDS {
                    same(guest::ask(vcpu, Order::Wait)?, 1)?;
                    same(guest::ask(vcpu, Order::Acknowledge)?, 5)?;
                    same(guest::ask(vcpu, Order::End(5))?, 0)?;
                    taken.fetch_add(1, Ordering::SeqCst);
                }
                Ok(())
            })
        });
        let threads: Vec<_> = threads.collect();
        for number in 0..ROUNDS {
            for runner in &runners {
                if number % 2 == 0 {
                    until("a vCPU that sleeps", || {
                        let runner = runner.load(Ordering::SeqCst);
                        Ok(runner != 0 && is_asleep(runner)?)
                    })?;
                }
            }
            // ICC_SGI1R_EL1: SGI 5, targets 1 and 2.
            same(guest.ask(Order::Sgi(5 << 24 | 0b110))?, 0)?;
            until("both", || {
                ensure!(!threads.iter().any(|it| it.is_finished()) || number + 1 == ROUNDS);
                Ok(taken.iter().all(|taken| taken.load(Ordering::SeqCst) as u64 > number))
            })?;
        }
        threads.into_iter().try_for_each(|thread| thread.join().expect("the thread ends"))
    })
}

/// The virtual timer ends a sleep in the host, and interrupts.
pub fn a_timer_interrupts_who_sleeps() -> Result<()> {
    let guest = started(&[])?;
    set_up_private(&guest, 0, TIMER as u32)?;
    for ticks in [1_000, 100_000, 5_000_000] {
        let begin = Instant::now();
        let took = guest.ask(Order::Timer(ticks))?;
        ensure!(took >= ticks, "{took} of {ticks} ticks");
        ensure!(begin.elapsed() < Duration::from_secs(10), "{ticks} ticks: {:?}", begin.elapsed());
        same(guest.ask(Order::Acknowledge)?, TIMER)?;
        same(guest.ask(Order::TimerOff)?, 0)?;
        same(guest.ask(Order::End(TIMER))?, 0)?;
        ensure!(!is_pending(&guest)?, "ended");
    }
    Ok(())
}

const CONSOLE: ConsoleArg = ConsoleArg { addr: UART, interrupt: UART_SPI, flags: 0 };
const DR: u64 = UART;
const IMSC: u64 = UART + 0x38;
const RX: u32 = 1 << 4;

fn type_in(console: &OwnedFd, text: &[u8]) -> Result<()> {
    same(nix::unistd::write(console, text)?, text.len())
}

/// A console's interrupt is a level: it is there as long as there is something to read.
pub fn a_console_interrupts() -> Result<()> {
    let (guest, _) = created(1)?;
    let before = console::add(&guest.vm, &CONSOLE)?;
    guest.vm.start()?;
    set_up(&guest, &[UART_SPI])?;
    let mut console = before;
    for _ in 0..2 {
        type_in(&console, b"masked")?;
        ensure!(!is_pending(&guest)?, "masked");
        for _ in 0..6 {
            guest.ask(Order::Load(DR))?;
        }
        write(&guest, IMSC, RX)?;
        ensure!(!is_pending(&guest)?, "nothing to read");
        thread::scope(|scope| {
            let waits = scope.spawn(|| guest.ask(Order::Wait));
            thread::sleep(Duration::from_millis(10));
            type_in(&console, b"ab")?;
            same(waits.join().expect("the thread ends")?, 1)
        })?;
        take(&guest, UART_SPI)?;
        end(&guest, UART_SPI)?;
        ensure!(is_pending(&guest)?, "it was not read");
        take(&guest, UART_SPI)?;
        same((guest.ask(Order::Load(DR))?, guest.ask(Order::Load(DR))?), (0x61, 0x62))?;
        end(&guest, UART_SPI)?;
        ensure!(!is_pending(&guest)?, "it was read");
        type_in(&console, b"c")?;
        ensure!(is_pending(&guest)?, "typed");
        // The level goes with the function, and the next one begins anew.
        guest.vm.remove_function(FUNCTION_CONSOLE, &CONSOLE)?;
        ensure!(!is_pending(&guest)?, "removed");
        console = console::add(&guest.vm, &CONSOLE)?;
    }
    let none = ConsoleArg { addr: UART + PAGE, interrupt: 1000, flags: 0 };
    refused(console::add(&guest.vm, &none), Errno::EINVAL).context("an SPI that there is not")
}

/// Signals before the function is added, and before the VM starts.
pub fn what_came_before_is_not_lost() -> Result<()> {
    let (guest, _) = created(1)?;
    let (early, late) = (event()?, event()?);
    signal(&early)?;
    add(&guest.vm, &irqfd(&early, EDGE))?;
    add(&guest.vm, &irqfd(&late, LEVEL))?;
    signal(&late)?;
    // A start that fails, as the tree is still mapped; then with other labels.
    access::write_all(&guest.mapping, PAGE, &with_gic(GICD, 4, [(EDGE, 100, 4), labels()[2]])?)?;
    refused(guest.vm.start(), Errno::EAGAIN)?;
    put(&guest, &with_gic(GICD, 4, labels())?)?;
    guest.vm.start()?;
    set_up(&guest, &[EDGE, LEVEL, 132])?;
    let mut seen = [0; 2];
    for intid in &mut seen {
        *intid = guest.ask(Order::Acknowledge)?;
        same(guest.ask(Order::End(*intid))?, 0)?;
    }
    seen.sort_unstable();
    same(seen, [u64::from(EDGE), LEVEL.into()])?;
    same(guest.ask(Order::Acknowledge)?, SPURIOUS).context("of the tree before")
}

/// A console with an interrupt in a VM that has no GICv3.
pub fn a_vm_without_one_polls() -> Result<()> {
    let guest = Guest::new(&Device::open()?, 1, 0)?;
    let console = console::add(&guest.vm, &CONSOLE)?;
    guest.vm.start()?;
    write(&guest, IMSC, RX)?;
    type_in(&console, b"x")?;
    ensure!(!is_pending(&guest)?, "interrupted");
    same(guest.ask(Order::Load(DR))?, b'x'.into())
}

/// A GICv3 that cannot be, or that does not fit the VM, refuses the start, and the next one may
/// succeed.
pub fn trees_are_checked() -> Result<()> {
    let (guest, others) = created(3)?;
    for (what, bad) in [
        ("a frame that is not aligned", with_gic(GICD + 0x1000, 4, [])?),
        ("frames that overlap", with_gic(GICR, 4, [])?),
        ("too few redistributors", with_gic(GICD, 2, [])?),
        ("a PPI", with_gic(GICD, 4, [(1, 2000, 4)])?),
        ("a falling edge", with_gic(GICD, 4, [(1, 8, 2)])?),
    ] {
        put(&guest, &bad)?;
        refused(guest.vm.start(), Errno::EINVAL).context(what)?;
    }
    // Refused by what follows: the GICv3 is the VM's for good.
    access::write_all(&guest.mapping, PAGE, &with_gic(GICD, 4, [])?)?;
    refused(guest.vm.start(), Errno::EAGAIN)?;
    for (what, other) in [
        ("elsewhere", with_gic(0x700_0000, 4, labels())?),
        ("no GICv3", crate::tree::with_doorbells([5])?),
        ("more SPIs", with_gic(GICD, 4, [(1, 900, 4)])?),
    ] {
        put(&guest, &other)?;
        refused(guest.vm.start(), Errno::EINVAL).context(what)?;
    }
    put(&guest, &with_gic(GICD, 4, [(EDGE, EDGE - 32, 1)])?)?;
    guest.vm.start()?;
    set_up(&guest, &[EDGE])?;
    start_others(&guest, &others)?;
    let event = event_to(&guest.vm, EDGE)?;
    signal(&event)?;
    take(&guest, EDGE)?;
    // There is room for one more vCPU.
    drop(guest.vm.vcpu(3)?);
    let vcpu = guest.vm.add(&vcpu_function(&escrow_vmcore::uapi::VcpuArg { id: 4 }));
    refused(vcpu, Errno::EINVAL).context("no room for its redistributor")
}

/// INTIDs from 512 on need another page of EL2's, and a console's SPI counts.
pub fn as_many_spis_as_are_named() -> Result<()> {
    for (label, spi) in [(None, 255 - 32), (None, 987), (Some(987), 4)] {
        let guest = Guest::new(&Device::open()?, 8, 0)?;
        put(&guest, &with_gic(GICD, 1, label.map(|spi| (7, spi, 4)))?)?;
        guest.vm.set_dtb(RAM + PAGE, 4 * PAGE)?;
        let console = console::add(&guest.vm, &ConsoleArg { interrupt: 32 + spi, ..CONSOLE })?;
        guest.vm.start()?;
        set_up(&guest, &[32 + spi])?;
        write(&guest, IMSC, RX)?;
        type_in(&console, b"x")?;
        take(&guest, 32 + spi)?;
        if let Some(spi) = label {
            set_up(&guest, &[32 + spi])?;
            let event = event_to(&guest.vm, 7)?;
            signal(&event)?;
            same(guest.ask(Order::Load(DR))?, b'x'.into())?;
            end(&guest, 32 + 4)?;
            take(&guest, 32 + spi)?;
        }
    }
    Ok(())
}

/// Eventfds and consoles are signalled from several threads while the VM runs, ends and is gone.
pub fn signals_outlive_the_vm() -> Result<()> {
    for round in 0..12 {
        let guest = started(&[EDGE, LEVEL, UART_SPI])?;
        let back = event()?;
        let (edge, level) = (event_to(&guest.vm, EDGE)?, event()?);
        let arg = IrqfdArg {
            flags: IRQFD_RESAMPLE,
            resample_fd: back.as_raw_fd() as u32,
            ..irqfd(&level, LEVEL)
        };
        add(&guest.vm, &arg)?;
        let console = console::add(&guest.vm, &CONSOLE)?;
        write(&guest, IMSC, RX)?;
        let over = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let over = &over;
            for event in [&edge, &level] {
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let _ = event.write(1);
                    }
                });
            }
            let console = &console;
            scope.spawn(move || while nix::unistd::write(console, b"y").is_ok() {});
            let done = (|| {
                for _ in 0..20 {
                    guest.ask(Order::Wait)?;
                    let intid = guest.ask(Order::Acknowledge)?;
                    match u32::try_from(intid)? {
                        UART_SPI => drop(guest.ask(Order::Load(DR))?),
                        EDGE | LEVEL => {}
                        other => bail!("interrupt {other}"),
                    }
                    guest.ask(Order::End(intid))?;
                }
                match round % 3 {
                    0 => {
                        let end = Exit::Status(STATUS_EXITED, EXIT_TYPE_POWER_OFF);
                        same(guest.order(Order::Off)?, end)?;
                    }
                    1 => guest.vm.remove_function(FUNCTION_IRQFD, &arg)?,
                    _ => {}
                }
                Ok(())
            })();
            drop(guest);
            thread::sleep(Duration::from_millis(5));
            over.store(true, Ordering::Relaxed);
            done
        })?;
    }
    Ok(())
}
