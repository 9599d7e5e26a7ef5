// SPDX-License-Identifier: MIT OR Apache-2.0

//! A host that has lost count of a reference: what it reports to Escrow is what
//! it read, so Escrow's check sees what the host's own has missed.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::call::MODIFY_UNLOCK;
use escrow_shim_tests::access::{Pin, read, write};
use escrow_shim_tests::facts::Facts;
use escrow_shim_tests::guest::{ANSWER, Guest, Order, RAM};
use escrow_shim_tests::gunyah::{Device, Exit, PAGE};
use escrow_shim_tests::holder::{Holder, Manner};
use escrow_shim_tests::runner::same;
use escrow_shim_tests::tests;
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;

use crate::miscount;
use crate::plan;

tests! {
    miscount::of_one_reference,
    miscount::beside_a_safe_one,
}

const HELD: u64 = 8;
const AT: u64 = RAM + HELD * PAGE;
const HOSTS: u64 = 0x1122_3344_5566_7788;

/// What the kernel has said since the file was opened.
fn said(log: &mut File) -> String {
    let mut text = Vec::new();
    let mut record = [0; 8192];
    // A record a read; EAGAIN at the end.
    while let Ok(size @ 1..) = log.read(&mut record) {
        text.extend_from_slice(&record[..size]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Escrow refuses the page, the pin keeps its contents, and nothing is lost.
fn is_seen(guest: &Guest) -> Result<()> {
    let pin = Pin::take(&guest.mapping, HELD)?;
    plan::miscount(1)?;
    let before = (Facts::read()?, guest.memory.count(fdinfo::LENT)?);
    let exit = guest.order(Order::Load(AT));
    plan::miscount(0)?;
    same(exit?, Exit::PageFault(AT, Errno::EAGAIN)).context("lent with a pin")?;
    same((Facts::read()?, guest.memory.count(fdinfo::LENT)?), before)?;
    same(guest.memory.refusal()?, "none".to_owned()).context("the host saw nothing wrong")?;
    let word = pin.drain()?;
    same(word.first_chunk().copied(), Some(HOSTS.to_le_bytes()))?;
    same(guest.run()?, Exit::Write(ANSWER, HOSTS)).context("the count is as it was")?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    same(read(&guest.mapping, HELD * PAGE)?, HOSTS)
}

fn at_home() -> Result<Guest> {
    let guest = Guest::started(&Device::open()?, 16, 0)?;
    write(&guest.mapping, HELD * PAGE, HOSTS)?;
    Ok(guest)
}

/// One reference too many, and nobody else's.
pub fn of_one_reference() -> Result<()> {
    let mut log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    said(&mut log);
    is_seen(&at_home()?)?;
    // Once a module's life.
    let text = said(&mut log);
    ensure!(text.contains("refused by EL2, entry 0, detail 1"), "the kernel says {text:?}");
    Ok(())
}

/// One beside those that are counted as safe.
pub fn beside_a_safe_one() -> Result<()> {
    let guest = at_home()?;
    let holder = Holder::open()?;
    holder.take(guest.memory.as_fd(), HELD, 2, Manner::Ends)?;
    is_seen(&guest)
}
