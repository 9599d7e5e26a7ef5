// SPDX-License-Identifier: MIT OR Apache-2.0

//! SIGKILL at every stage of a VM's life, with holders on its pages: whatever
//! was held or lent, all of it comes home.

use std::convert::Infallible;
use std::io::Write as _;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::call::{MODIFY_SANITIZE, MODIFY_UNLOCK};
use escrow_shim_tests::facts::Facts;
use escrow_shim_tests::runner::{Ending, Lacking};
use escrow_shim_tests::say;
use escrow_vmcore::uapi::MAP_FORCE_SHARE;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, getpid};

use super::sockets::Sent;
use super::uring::Registered;
use super::{AT, HELD, HOSTS, Holder, OFFSET, at_home, lend};
use crate::access::{Pin, write};
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, Exit, PAGE, RWX};
use crate::nbd::{self, BLOCK, SLOW};
use crate::tests::same;
use crate::uffd::Trap;
use crate::wait::until;

/// Tells that the stage is reached.
struct Reached(std::io::PipeWriter);

impl Reached {
    fn tell(&mut self) -> Result<()> {
        Ok(self.0.write_all(&[1])?)
    }

    /// Tells, and stays for ever.
    fn stay(mut self) -> Result<Infallible> {
        self.tell()?;
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
}

type Stage = fn(Reached) -> Result<Infallible>;

const STAGES: &[(&str, Stage)] = &[
    ("a memory", |reached| {
        let memory = Device::open()?.memory(64)?;
        memory.fallocate(0, 0, 64 * PAGE)?;
        reached.stay()
    }),
    ("a binding and a vCPU", |reached| {
        let _guest = Guest::new(&Device::open()?, 16, 0)?;
        reached.stay()
    }),
    ("started", |reached| {
        let _guest = at_home()?;
        reached.stay()
    }),
    ("lent", |reached| {
        let guest = at_home()?;
        lend(&guest)?;
        reached.stay()
    }),
    ("lent to two, shared with a third", |reached| {
        let device = Device::open()?;
        let one = at_home()?;
        let two = Guest::started(&device, 1, 0)?;
        let three = Guest::started(&device, 1, MAP_FORCE_SHARE)?;
        two.vm.bind(AT, RWX, &one.memory, HELD + 1, 1)?;
        three.vm.bind(AT, RWX | MAP_FORCE_SHARE, &one.memory, HELD + 2, 1)?;
        for guest in [&one, &two, &three] {
            lend(guest)?;
        }
        reached.stay()
    }),
    ("given up, and not fetched", |reached| {
        let guest = at_home()?;
        lend(&guest)?;
        guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?;
        reached.stay()
    }),
    ("held by a pipe", |reached| {
        let guest = at_home()?;
        let _pin = Pin::take(&guest.mapping, HELD)?;
        same(guest.order(Order::Load(AT))?, Exit::PageFault(AT, Errno::EAGAIN))?;
        reached.stay()
    }),
    ("held by a ring", |reached| {
        let guest = at_home()?;
        let _ring = Registered::take(&guest.mapping, HELD)?;
        same(guest.order(Order::Load(AT))?, Exit::PageFault(AT, Errno::EAGAIN))?;
        reached.stay()
    }),
    ("held by a socket", |reached| {
        let guest = at_home()?;
        let _sent = Sent::take(&guest.mapping, HELD)?;
        same(guest.order(Order::Load(AT))?, Exit::PageFault(AT, Errno::EAGAIN))?;
        reached.stay()
    }),
    ("held by direct I/O", |reached| {
        let device = nbd::Device::serve()?;
        let file = device.open()?;
        let guest = at_home()?;
        let buffer = guest.mapping.at(OFFSET) as u64;
        thread::spawn(move || {
            use std::os::fd::AsRawFd as _;
            let at = (SLOW * BLOCK) as i64;
            // SAFETY: the kernel checks the address; nothing has a reference
            // to what is there.
            unsafe { libc::pread(file.as_raw_fd(), buffer as *mut _, PAGE as usize, at) }
        });
        device.wait()?;
        same(guest.order(Order::Load(AT))?, Exit::PageFault(AT, Errno::EAGAIN))?;
        reached.stay()
    }),
    ("held by a copy that waits", |reached| {
        let guest = at_home()?;
        let trap = Trap::new()?;
        let (local, remote) = (trap.at() as u64, guest.mapping.at(OFFSET) as u64);
        thread::spawn(move || {
            let local = libc::iovec { iov_base: local as *mut _, iov_len: 8 };
            let remote = libc::iovec { iov_base: remote as *mut _, iov_len: 8 };
            // SAFETY: as above.
            unsafe { libc::process_vm_readv(getpid().as_raw(), &local, 1, &remote, 1, 0) }
        });
        trap.wait()?;
        same(guest.order(Order::Load(AT))?, Exit::PageFault(AT, Errno::EAGAIN))?;
        reached.stay()
    }),
    ("inside the guest", |mut reached| {
        let guest = at_home()?;
        guest.order(Order::Loop)?;
        reached.tell()?;
        loop {
            guest.run()?;
        }
    }),
    ("asleep for the guest", |mut reached| {
        let guest = Guest::new(&Device::open()?, 16, 0)?;
        let second = guest.vm.vcpu(1)?;
        guest.vm.start()?;
        reached.tell()?;
        loop {
            second.run()?;
        }
    }),
    ("trying again and again for a page that is held", |mut reached| {
        let guest = at_home()?;
        let _pin = Pin::take(&guest.mapping, HELD)?;
        guest.order(Order::Load(AT))?;
        reached.tell()?;
        loop {
            guest.run()?;
        }
    }),
    ("pages that come and go under holes", |mut reached| {
        let guest = at_home()?;
        guest.order(Order::ComeAndGo(RAM + PAGE, 12, MODIFY_UNLOCK | MODIFY_SANITIZE))?;
        reached.tell()?;
        thread::scope(|scope| {
            scope.spawn(|| {
                loop {
                    let _ = guest.memory.punch(1, 12);
                }
            });
            loop {
                guest.run()?;
            }
        })
    }),
    ("a start of 512 pages", |mut reached| {
        let device = Device::open()?;
        reached.tell()?;
        loop {
            let guest = Guest::new(&device, 514, 0)?;
            guest.vm.set_dtb(RAM + PAGE, 512 * PAGE)?;
            write(&guest.mapping, 512 * PAGE, HOSTS)?;
            let pin = Pin::take(&guest.mapping, 512)?;
            let _ = guest.vm.start();
            drop(pin);
            // A tree that is mapped may still be written.
            guest.mapping.forget(512, 1)?;
            guest.vm.start()?;
        }
    }),
];

/// Each several times; what is in flight then differs.
pub fn at_every_stage() -> Result<()> {
    let before = Facts::read()?;
    let mut lacking = None;
    for (name, stage) in STAGES {
        for round in 0..3u32 {
            if killed(*stage, round).context(*name)? == Ending::LeftOut {
                lacking = Some(*name);
            }
            until("Escrow's counts", || Ok(Facts::read()? == before)).context(*name)?;
        }
    }
    // The host goes on as if nothing had been.
    let guest = at_home()?;
    lend(&guest)?;
    match lacking {
        Some(name) => Err(Lacking(format!("way to be {name}")).into()),
        None => Ok(()),
    }
}

fn killed(stage: Stage, round: u32) -> Result<Ending> {
    let (mut reader, writer) = std::io::pipe()?;
    // SAFETY: the tests run in a process with one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(reader);
            let Err(error) = stage(Reached(writer));
            say!("{error:#}");
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(Ending::status(&error)) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut byte = [0];
            let reached = std::io::Read::read(&mut reader, &mut byte)?;
            if reached == 0 && waitpid(child, None)? == WaitStatus::Exited(child, Ending::LEFT_OUT)
            {
                return Ok(Ending::LeftOut);
            }
            ensure!(reached == 1, "the stage is not reached");
            // Not the same moment each time.
            for _ in 0..round * 50 {
                thread::yield_now();
            }
            kill(child, Signal::SIGKILL)?;
            let status = waitpid(child, None)?;
            ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
            Ok(Ending::Passed)
        }
    }
}
