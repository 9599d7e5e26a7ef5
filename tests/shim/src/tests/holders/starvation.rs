// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program that pins a page again before it lets go of its last pin: against it
//! a lend never succeeds, unless the memory's owner has asked that lends go first.

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use escrow_vmcore::uapi::{self, fdinfo};
use nix::errno::Errno;

use super::{AT, HELD, HOSTS, OFFSET};
use crate::access::{Pin, write};
use crate::facts::{fdinfo, fdinfo_all};
use crate::guest::{ANSWER, Guest, Order};
use crate::gunyah::{Device, Exit, Mapping};
use crate::tests::same;

/// Tries of a VMM that does not give up at once.
const TRIES: usize = 40;

/// Pins the page for as long as it is in reach: there is always one more pin
/// before the last one goes.
fn pin_on(mapping: &Mapping, over: &AtomicBool, pins: &AtomicU64) -> Result<()> {
    let mut last = None;
    while !over.load(Ordering::Relaxed) {
        match Pin::take(mapping, HELD) {
            Ok(pin) => {
                pins.fetch_add(1, Ordering::Relaxed);
                last = Some(pin);
            }
            Err(Errno::EFAULT) => drop(last.take()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// How many tries it took to lend the page, if that many were enough.
fn tries(flags: u64) -> Result<Option<usize>> {
    let guest = Guest::with_memory(&Device::open()?, 16, flags)?;
    guest.vm.start()?;
    write(&guest.mapping, OFFSET, HOSTS)?;
    let (over, pins) = (AtomicBool::new(false), AtomicU64::new(0));
    let tried = thread::scope(|scope| {
        let pinning = scope.spawn(|| pin_on(&guest.mapping, &over, &pins));
        while pins.load(Ordering::Relaxed) < 2 && !pinning.is_finished() {}
        let tried = try_to_lend(&guest);
        over.store(true, Ordering::Relaxed);
        pinning.join().map_err(|_| anyhow::anyhow!("the pinning thread ended"))??;
        tried
    })?;
    if tried.is_none() {
        // What fdinfo says: a pin, and who maps the page and may have it.
        same(fdinfo(guest.memory.as_fd(), fdinfo::REFUSED_BY)?, "a pin".to_owned())?;
        let mapped = fdinfo_all(guest.memory.as_fd(), fdinfo::MAPPED_BY)?;
        same(mapped, vec![format!("{} shim-tests", std::process::id())])?;
        same(guest.run()?, Exit::Write(ANSWER, HOSTS))?;
    }
    Ok(tried)
}

fn try_to_lend(guest: &Guest) -> Result<Option<usize>> {
    let mut exit = guest.order(Order::Load(AT))?;
    for tried in 1..=TRIES {
        match exit {
            Exit::Write(ANSWER, word) => {
                same(word, HOSTS)?;
                return Ok(Some(tried));
            }
            Exit::PageFault(AT, Errno::EAGAIN) => {}
            other => return Err(anyhow::anyhow!("{other:?}")),
        }
        exit = guest.run()?;
    }
    Ok(None)
}

/// It starves without the flag, and not with it.
pub fn by_pins_without_end() -> Result<()> {
    let starved = tries(0)?;
    ensure!(starved.is_none(), "a lend succeeded at try {starved:?} against pins without end");
    let tried = tries(uapi::MEM_LEND_FIRST)?;
    ensure!(tried.is_some(), "lends do not go first");
    Ok(())
}
