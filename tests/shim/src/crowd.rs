// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs that are in the way of the machine's end, and of the module's: many VMs that keep
//! their pages (`shim-tests --crowd VMS`), and VMs that come and go (`shim-tests --storm`).

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, bail, ensure};
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;

use escrow_shim_tests::guest::{Guest, Order, RAM};
use escrow_shim_tests::gunyah::{Device, PAGE};
use escrow_shim_tests::runner::same;
use escrow_shim_tests::say;

/// Pages of a VM of the crowd, and of the storm.
const CROWDS: u64 = 96;
const STORMS: u64 = 8;

/// Keeps so many VMs until somebody else has ended them all, and says so.
pub fn crowd(vms: usize) -> Result<()> {
    let device = Device::open()?;
    let mut guests = Vec::new();
    for _ in 0..vms {
        let guest = Guest::started(&device, CROWDS, 0)?;
        guest.ask(Order::Visit(RAM + PAGE, CROWDS - 1))?;
        same(guest.memory.count(fdinfo::LENT)?, CROWDS)?;
        guests.push(guest);
    }
    say!("a crowd of {vms}");
    while guests.iter().any(|guest| guest.memory.count(fdinfo::LENT).is_ok_and(|lent| lent > 0)) {
        thread::sleep(Duration::from_millis(1));
    }
    for guest in &guests {
        let errno = guest.run().err().and_then(|error| errno(&error));
        same(errno, Some(Errno::ENODEV)).context("a run")?;
    }
    say!("the crowd is gone");
    Ok(())
}

/// VMs live and die, while the module may go and come back, until no more can be created.
pub fn storm() -> Result<()> {
    let (mut lives, mut missed) = (0, 0);
    loop {
        let device = match Device::open() {
            Ok(device) => device,
            Err(error) => {
                // While the module is away there is no such file, or nobody behind it.
                let error = error.downcast::<io::Error>()?.raw_os_error();
                let is_away = matches!(error, Some(libc::ENOENT | libc::ENODEV | libc::ENXIO));
                ensure!(is_away, "opening the device: {error:?}");
                missed += 1;
                continue;
            }
        };
        let begin = Instant::now();
        match live(&device) {
            Ok(()) => lives += 1,
            Err(error) if errno(&error) == Some(Errno::ENODEV) => break,
            Err(error) => bail!("after {lives} lives: {error:#}"),
        }
        // As long again, nobody holds the module.
        drop(device);
        thread::sleep(begin.elapsed());
    }
    say!("a storm of {lives} lives; {missed} times there was no device");
    Ok(())
}

fn live(device: &Device) -> Result<()> {
    let guest = Guest::started(device, STORMS, 0)?;
    guest.ask(Order::Visit(RAM + PAGE, STORMS - 1)).map(drop)
}

fn errno(error: &Error) -> Option<Errno> {
    error.downcast_ref().copied()
}
