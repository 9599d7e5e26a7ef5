// SPDX-License-Identifier: MIT OR Apache-2.0

//! Consoles: a PL011 whose accesses end in the kernel, and a file for the other end of its line.
//! An access that ends in the kernel is seen by what comes next: the guest's answer, without an
//! exit before it.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use escrow_vmcore::console::{INPUT, OUTPUT};
use escrow_vmcore::uapi::{ConsoleArg, FUNCTION_CONSOLE, fdinfo};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{refused, same};
use crate::facts::fdinfo as fact;
use crate::guest::{ANSWER, Guest, Order};
use crate::gunyah::{Device, Exit, Vm};
use crate::wait::{PATIENCE, until};

const UART: u64 = 0x900_0000;
const FR: u64 = UART + 0x18;
const FR_RXFE: u64 = 1 << 4;
const LCRH: u64 = UART + 0x2c;
const ID: u64 = UART + 0xfe0;

const AT: ConsoleArg = ConsoleArg { addr: UART, interrupt: 0, flags: 0 };

/// Adds a console.
pub fn add(vm: &Vm, arg: &ConsoleArg) -> Result<OwnedFd, Errno> {
    vm.add(&crate::gunyah::function(FUNCTION_CONSOLE, arg))
}

/// A guest that runs, and its console, which does not wait.
fn started() -> Result<(Guest, OwnedFd)> {
    let guest = Guest::started(&Device::open()?, 1, 0)?;
    let console = add(&guest.vm, &AT)?;
    wait_never(&console)?;
    Ok((guest, console))
}

fn wait_never(console: &OwnedFd) -> Result<()> {
    fcntl(console, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

fn read(console: impl AsFd) -> Result<Vec<u8>, Errno> {
    let mut text = vec![0; 2 * OUTPUT];
    let count = nix::unistd::read(console, &mut text)?;
    text.truncate(count);
    Ok(text)
}

fn write(console: impl AsFd, text: &[u8]) -> Result<usize, Errno> {
    nix::unistd::write(console, text)
}

fn say(guest: &Guest, text: &[u8]) -> Result<()> {
    for (at, &character) in text.iter().enumerate() {
        guest.ask(Order::Write(UART, character.into(), 1 << (at % 4)))?;
    }
    Ok(())
}

/// What the guest hears, until there is no more.
fn hear(guest: &Guest) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    while guest.ask(Order::Load(FR))? & FR_RXFE == 0 {
        text.push(guest.ask(Order::Load(UART))? as u8);
    }
    Ok(text)
}

fn count(console: &OwnedFd, name: &str) -> Result<usize> {
    Ok(fact(console.as_fd(), name)?.parse()?)
}

fn poll(console: BorrowedFd<'_>, milliseconds: i32) -> Result<i16> {
    let events = libc::POLLIN | libc::POLLOUT;
    let mut poll = libc::pollfd { fd: console.as_raw_fd(), events, revents: 0 };
    // SAFETY: one structure, which lives through the call.
    Errno::result(unsafe { libc::poll(&raw mut poll, 1, milliseconds) })?;
    Ok(poll.revents)
}

/// The guest is told what it is; both ways, in accesses of any size; and a break.
pub fn both_ways() -> Result<()> {
    let (guest, console) = started()?;
    let ids = (0..4).map(|n| guest.ask(Order::Load(ID + 4 * n)));
    let ids = ids.collect::<Result<Vec<_>>>()?;
    same(ids, vec![0x11, 0x10, 0x34, 0])?;
    refused(read(&console), Errno::EAGAIN)?;
    for text in [&b"hello\n"[..], b"login: "] {
        say(&guest, text)?;
        same(read(&console)?, text.to_vec())?;
        refused(read(&console), Errno::EAGAIN)?;
    }
    same(hear(&guest)?, vec![])?;
    for text in [&b"root\r"[..], &[7; 100]] {
        same(write(&console, text)?, text.len())?;
        same(hear(&guest)?, text.to_vec())?;
    }
    // Parts of it, and nothing of it.
    say(&guest, b"abc")?;
    let mut two = [0; 2];
    same((nix::unistd::read(&console, &mut two)?, two), (2, *b"ab"))?;
    same((nix::unistd::read(&console, &mut [])?, write(&console, b"")?), (0, 0))?;
    same(read(&console)?, b"c".to_vec())?;
    refused(nix::unistd::lseek(&console, 0, nix::unistd::Whence::SeekSet), Errno::ESPIPE)?;

    // SAFETY: takes a number.
    Errno::result(unsafe { libc::ioctl(console.as_raw_fd(), libc::TCSBRK as _, 0) })?;
    same(guest.ask(Order::Load(UART))?, 0x500).context("a break")?;
    say(&guest, b"xyz")?;
    let mut waiting = 0i32;
    // SAFETY: writes one number.
    let told = unsafe { libc::ioctl(console.as_raw_fd(), libc::FIONREAD as _, &raw mut waiting) };
    same((Errno::result(told)?, waiting), (0, 3))
}

/// A guest is not slower for nobody who reads: the oldest characters go, and are counted. Who writes
/// does not lose any.
pub fn full_rings() -> Result<()> {
    let (guest, console) = started()?;
    let lost = 3000;
    // 1 is the last.
    guest.ask(Order::CountDown(UART, (OUTPUT + lost) as u64))?;
    same(count(&console, fdinfo::WAITING)?, OUTPUT)?;
    same(count(&console, fdinfo::LOST)?, lost)?;
    let text = read(&console)?;
    let expected: Vec<u8> = (1..=OUTPUT).rev().map(|number| number as u8).collect();
    ensure!(text == expected, "other characters were kept");
    same(count(&console, fdinfo::WAITING)?, 0)?;
    refused(read(&console), Errno::EAGAIN)?;

    let text: Vec<u8> = (0..2 * INPUT).map(|n| (n % 251) as u8).collect();
    let sent = write(&console, &text)?;
    // One is in the PL011, whose FIFO is off.
    same(sent, INPUT + 1)?;
    refused(write(&console, &text), Errno::EAGAIN)?;
    same(count(&console, fdinfo::UNREAD)?, INPUT)?;
    guest.ask(Order::Write(LCRH, 0x10, 4))?;
    same(write(&console, &text[sent..])?, 31).context("in the FIFO")?;
    same(poll(console.as_fd(), 0)? & libc::POLLOUT, 0)?;
    for &expected in text.iter().take(200) {
        same(guest.ask(Order::Load(UART))?, expected.into())?;
    }
    same(write(&console, &text[sent + 31..])?, 200)
}

/// Who reads, writes or polls sleeps, and is woken by a line, by less than one, by room, and by the
/// end.
pub fn wakes_who_waits() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 1, 0)?;
    let console = add(&guest.vm, &AT)?;
    for text in [&b"a line\n"[..], b"p", b"\n"] {
        thread::scope(|scope| {
            let reader = scope.spawn(|| read(&console));
            thread::sleep(Duration::from_millis(20));
            ensure!(!reader.is_finished(), "nothing to read");
            say(&guest, text)?;
            let mut got = reader.join().expect("the thread ends")?;
            while got.len() < text.len() {
                got.extend(read(&console)?);
            }
            same(got, text.to_vec())
        })?;
    }
    thread::scope(|scope| {
        let poller = scope.spawn(|| {
            // It can be written to all the time.
            let mut poll =
                libc::pollfd { fd: console.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure, which lives through the call.
            Errno::result(unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as i32) })?;
            Ok::<_, Errno>(poll.revents)
        });
        thread::sleep(Duration::from_millis(20));
        say(&guest, b"$")?;
        same(poller.join().expect("the thread ends")?, libc::POLLIN)
    })?;
    same(read(&console)?, b"$".to_vec())?;

    let text: Vec<u8> = (0..INPUT + 100).map(|n| (n % 251) as u8).collect();
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(&console, &text));
        until("a full line", || Ok(count(&console, fdinfo::UNREAD)? == INPUT))?;
        ensure!(!writer.is_finished(), "there is no room");
        for &expected in text.iter().take(INPUT / 2 + 100) {
            same(guest.ask(Order::Load(UART))?, expected.into())?;
        }
        same(writer.join().expect("the thread ends")?, text.len())
    })?;

    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&console));
        let writer = scope.spawn(|| {
            let first = write(&console, &[0; 2 * INPUT]);
            (first, write(&console, b"more"))
        });
        until("a full line", || Ok(count(&console, fdinfo::UNREAD)? == INPUT))?;
        guest.vm.remove_function(FUNCTION_CONSOLE, &AT)?;
        same(reader.join().expect("the thread ends")?, vec![])?;
        let (first, second) = writer.join().expect("the thread ends");
        ensure!(first.is_ok_and(|count| count > 0), "what had room was written: {first:?}");
        refused(second, Errno::ENODEV)
    })
}

/// After the function, or the VM, has gone: what the guest said is there, then the end. The guest's
/// accesses are the program's again.
pub fn ends() -> Result<()> {
    let (guest, console) = started()?;
    same(poll(console.as_fd(), 0)?, libc::POLLOUT)?;
    say(&guest, b"last words")?;
    same(poll(console.as_fd(), 0)?, libc::POLLIN | libc::POLLOUT)?;
    guest.vm.remove_function(FUNCTION_CONSOLE, &ConsoleArg { interrupt: 40, ..AT })?;
    refused(guest.vm.remove_function(FUNCTION_CONSOLE, &AT), Errno::ENOENT)?;
    same(poll(console.as_fd(), 0)?, libc::POLLIN | libc::POLLHUP)?;
    refused(write(&console, b"x"), Errno::ENODEV)?;
    same((read(&console)?, read(&console)?), (b"last words".to_vec(), vec![]))?;
    let exit = guest.order(Order::Write(UART, 65, 4))?;
    same(exit, Exit::Write(UART, 65))?;
    same(guest.run()?, Exit::Write(ANSWER, 0))?;

    // Another one, whose file goes while it runs.
    let second = add(&guest.vm, &AT)?;
    drop(second);
    say(&guest, b"nobody reads")?;
    refused(add(&guest.vm, &AT), Errno::EEXIST)?;
    guest.vm.remove_function(FUNCTION_CONSOLE, &AT)?;

    // The VM ends with its last file, which a console's is not.
    let third = add(&guest.vm, &AT)?;
    wait_never(&third)?;
    say(&guest, b"bye")?;
    same(read(&console)?, vec![]).context("the first one's end stays")?;
    drop(guest);
    until("the end", || Ok(poll(third.as_fd(), 0)? & libc::POLLHUP != 0))?;
    same((read(&third)?, read(&third)?), (b"bye".to_vec(), vec![]))?;
    refused(write(&third, b"x"), Errno::ENODEV)
}

/// What can be wrong about one, and how many there can be.
pub fn are_checked() -> Result<()> {
    let device = Device::open()?;
    let vm = device.vm()?;
    for (what, bad) in [
        ("within a page", ConsoleArg { addr: UART + 8, ..AT }),
        ("a flag", ConsoleArg { flags: 1, ..AT }),
        ("an SGI", ConsoleArg { interrupt: 5, ..AT }),
        ("a PPI", ConsoleArg { interrupt: 31, ..AT }),
        ("no interrupt", ConsoleArg { interrupt: 1020, ..AT }),
    ] {
        refused(add(&vm, &bad), Errno::EINVAL).context(what)?;
    }
    let at = |number: u64| ConsoleArg { addr: UART + number * 0x1000, ..AT };
    let consoles = (0..4).map(|number| add(&vm, &at(number))).collect::<Result<Vec<_>, _>>()?;
    refused(add(&vm, &at(4)), Errno::ENOSPC)?;
    refused(add(&vm, &at(3)), Errno::EEXIST)?;
    vm.remove_function(FUNCTION_CONSOLE, &at(1))?;
    drop(consoles);
    drop(add(&vm, &at(4))?);
    // They are told apart, and so are two VMs' at one address.
    let (guest, console) = started()?;
    let (other, third) = (started()?, add(&guest.vm, &at(1))?);
    wait_never(&third)?;
    guest.ask(Order::Write(UART + 0x1000, 66, 4))?;
    say(&other.0, b"C")?;
    same((read(&third)?, read(&other.1)?), (b"B".to_vec(), b"C".to_vec()))?;
    refused(read(&console), Errno::EAGAIN)?;
    // Memory that is bound there comes first.
    drop(third);
    guest.vm.bind(UART + 0x1000, crate::gunyah::RWX, &device.memory(1)?, 0, 1)?;
    guest.ask(Order::Store(UART + 0x1000, 7))?;
    same(guest.ask(Order::Load(UART + 0x1000))?, 7)
}

/// The function and its files come and go while the guest writes, others read and write, and at
/// last the VM ends.
pub fn comes_and_goes_under_a_guest() -> Result<()> {
    let rounds = 400;
    let guest = Guest::started(&Device::open()?, 1, 0)?;
    let over = AtomicBool::new(false);
    let Guest { vm, vcpu, memory, mapping } = guest;
    thread::scope(|scope| -> Result<()> {
        let (over, vcpu) = (&over, &vcpu);
        let runs = scope.spawn(move || -> Result<u64> {
            let words = Order::CountDown(UART, 1 << 40).words();
            let mut exits = 0;
            while !over.load(Ordering::Relaxed) {
                match vcpu.run() {
                    Err(Errno::EINTR) => {}
                    Ok(Exit::Read(at, 8)) => vcpu.answer(words[((at - 0x6000) / 8) as usize]),
                    Ok(Exit::Write(at, _)) if at == UART => exits += 1,
                    other => bail!("{other:?}"),
                }
            }
            Ok(exits)
        });
        let changes = || -> Result<()> {
            for round in 0..rounds {
                let begin = Instant::now();
                ensure!(!runs.is_finished(), "the guest has ended");
                let console = add(&vm, &AT)?;
                if round % 3 == 0 {
                    wait_never(&console)?;
                }
                thread::scope(|scope| -> Result<()> {
                    let reader = scope.spawn(|| {
                        loop {
                            match read(&console) {
                                Err(Errno::EAGAIN) if begin.elapsed() < PATIENCE * 4 => {}
                                Ok(text) if !text.is_empty() => {}
                                other => break other,
                            }
                        }
                    });
                    let writer = scope.spawn(|| {
                        loop {
                            match write(&console, &[1; 600]) {
                                Err(Errno::EAGAIN) | Ok(_) if begin.elapsed() < PATIENCE * 4 => {}
                                other => break other,
                            }
                        }
                    });
                    let looks = if round % 2 == 0 { 1 } else { 20 };
                    for _ in 0..looks {
                        poll(console.as_fd(), 0)?;
                        count(&console, fdinfo::WAITING)?;
                    }
                    vm.remove_function(FUNCTION_CONSOLE, &AT)?;
                    same(reader.join().expect("the thread ends")?, vec![])?;
                    refused(writer.join().expect("the thread ends"), Errno::ENODEV)
                })?;
            }
            Ok(())
        };
        let done = changes();
        over.store(true, Ordering::Relaxed);
        vcpu.set_immediate_exit(true);
        ensure!(runs.join().expect("the thread ends")? > 0, "no access between consoles");
        done
    })?;
    // Somebody waits while the VM ends.
    let console = add(&vm, &AT)?;
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&console));
        thread::sleep(Duration::from_millis(20));
        drop((vm, vcpu, memory, mapping));
        same(reader.join().expect("the thread ends")?, vec![])
    })
}
