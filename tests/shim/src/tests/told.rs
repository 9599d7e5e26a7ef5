// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the shim tells: counts in sysfs, lists in debugfs, trace events.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::call::MODIFY_UNLOCK;
use escrow_vmcore::uapi::{self, MAP_FORCE_SHARE, fdinfo};
use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::{refused, same};
use crate::access::{Pin, read, write};
use crate::facts::{fdinfo_all, shim};
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, Exit, PAGE};

const TRACING: &str = "/sys/kernel/tracing";
const PAGES: u64 = 16;
const AT: u64 = RAM + 8 * PAGE;

/// One page is lent, refused and unlocked: a program's page, and the one with
/// the guest's code.
fn a_short_life(guest: &Guest) -> Result<()> {
    write(&guest.mapping, 8 * PAGE, 1)?;
    let pin = Pin::take(&guest.mapping, 8)?;
    same(guest.order(Order::Load(AT))?, Exit::PageFault(AT, Errno::EAGAIN))?;
    pin.drain()?;
    same(guest.run()?, Exit::Write(0x6020, 1))?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    same(read(&guest.mapping, 8 * PAGE)?, 1)
}

/// fdinfo examines a limited number of mappings of a page, and says if there are more.
pub fn mappers_have_a_limit() -> Result<()> {
    const MAPPINGS: usize = 4200;
    let guest = Guest::started(&Device::open()?, PAGES, 0)?;
    let mappings: Result<Vec<_>> = (0..MAPPINGS).map(|_| guest.memory.map(8, 1)).collect();
    let mappings = mappings?;
    write(&guest.mapping, 8 * PAGE, 1)?;
    let pin = Pin::take(&guest.mapping, 8)?;
    same(guest.order(Order::Load(AT))?, Exit::PageFault(AT, Errno::EAGAIN))?;
    let mapped = || fdinfo_all(guest.memory.as_fd(), fdinfo::MAPPED_BY);
    same(mapped()?.last().map(String::as_str), Some("0 ..."))?;
    drop(mappings);
    let few = mapped()?;
    same(few.len(), 1)?;
    ensure!(!few.contains(&"0 ...".to_owned()), "{few:?}");
    drop(pin);
    same(guest.run()?, Exit::Write(0x6020, 1))
}

/// Each event is counted once, where it belongs; what there is, is listed.
pub fn counts_and_lists() -> Result<()> {
    let events =
        || -> Result<Vec<u64>> { uapi::SHIM_EVENTS.iter().map(|name| shim(name)).collect() };
    let totals =
        || -> Result<Vec<u64>> { uapi::SHIM_TOTALS.iter().map(|name| shim(name)).collect() };
    let (none, before) = (totals()?, events()?);
    let guest = Guest::started(&Device::open()?, PAGES, 0)?;
    a_short_life(&guest)?;

    let grown: Vec<_> = events()?.iter().zip(&before).map(|(now, then)| now - then).collect();
    let grew = |name: &str| {
        let at = uapi::SHIM_EVENTS.iter().position(|event| *event == name);
        at.and_then(|at| grown.get(at)).copied().context("a count")
    };
    for (name, by) in
        [("lends", 2), ("shares", 0), ("refusals", 1), ("reclaims", 1), ("unlocks", 1)]
    {
        same(grew(name)?, by).with_context(|| name.to_owned())?;
    }
    ensure!(grew("retries")? >= 1, "nobody waited for the pin");
    same(shim("memories")?, 1)?;
    same(shim("vms")?, 1)?;
    same(shim("lent")?, 1)?;
    ensure!(shim("metadata")? >= 4, "a VM without metadata");

    let inode = fstat(guest.memory.as_fd())?.st_ino.to_string();
    let list = |name: &str| fs::read_to_string(Path::new(uapi::DEBUGFS_DIR).join(name));
    let memories = list("memories")?;
    let line = memories.lines().find(|line| line.split(' ').next() == Some(&inode));
    let line = line.with_context(|| format!("no memory {inode} in {memories}"))?;
    let me = format!(" {} shim-tests", std::process::id());
    ensure!(
        line.starts_with(&format!("{inode} {} ", PAGES * PAGE)) && line.ends_with(&me),
        "{line}"
    );
    let vms = list("vms")?;
    let line = vms.lines().nth(1).context("no VM")?;
    ensure!(line.contains(" started 1 1 ") && line.ends_with(&me), "{line}");

    drop(guest);
    same(totals()?, none).context("when all is closed")
}

/// Pages that are shared, and what is asked back in vain.
pub fn counts_shares_and_what_is_kept() -> Result<()> {
    let events = || -> Result<[u64; 5]> {
        let [lends, shares, reclaims, unlocks, kept] =
            ["lends", "shares", "reclaims", "unlocks", "kept"].map(shim);
        Ok([lends?, shares?, reclaims?, unlocks?, kept?])
    };
    let since = |then: [u64; 5]| -> Result<[u64; 5]> {
        let now = events()?;
        Ok(std::array::from_fn(|i| now[i] - then[i]))
    };
    let before = events()?;
    let guest = Guest::started(&Device::open()?, PAGES, MAP_FORCE_SHARE)?;
    guest.ask(Order::Store(AT, 1))?;
    same(since(before)?, [0, 2, 0, 0, 0]).context("shared")?;
    same((shim("shared")?, shim("lent")?), (2, 0))?;
    guest.memory.punch(8, 1)?;
    same(since(before)?, [0, 2, 1, 0, 0]).context("no longer")?;
    drop(guest);
    same(since(before)?, [0, 2, 2, 0, 0]).context("at the end")?;

    let before = events()?;
    let guest = Guest::started(&Device::open()?, PAGES, 0)?;
    guest.ask(Order::Store(AT, 1))?;
    for times in 1..=2 {
        refused(guest.memory.punch(8, 1), Errno::EBUSY)?;
        same(since(before)?, [2, 0, 0, 0, times]).context("kept")?;
    }
    drop(guest);
    same(since(before)?, [2, 0, 2, 0, 2]).context("lent, at the end")
}

/// The events of one guest, in their order.
pub fn traces() -> Result<()> {
    if !Path::new(TRACING).join("events").exists() {
        nix::mount::mount(
            Some("tracefs"),
            TRACING,
            Some("tracefs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .context("mounting tracefs")?;
    }
    let set = |file: &str, value: &str| {
        fs::write(format!("{TRACING}/{file}"), value).with_context(|| format!("{file} = {value}"))
    };
    set("trace", "")?;
    set("events/escrow/enable", "1")?;
    let guest = Guest::started(&Device::open()?, PAGES, 0)?;
    let inode = fstat(guest.memory.as_fd())?.st_ino;
    a_short_life(&guest)?;
    drop(guest);
    set("events/escrow/enable", "0")?;
    let trace = fs::read_to_string(format!("{TRACING}/trace"))?;
    let memory = format!("memory={inode} ");
    let lines = trace.lines().filter(|line| !line.starts_with('#') && line.contains(&memory));
    let told: Vec<_> = lines
        .filter_map(|line| {
            let (event, rest) = line.split_once("escrow_")?.1.split_once(": ")?;
            let offset = rest.split(' ').find_map(|word| word.strip_prefix("offset="))?;
            Some((event.to_owned(), offset.to_owned()))
        })
        .collect();
    let told: Vec<_> = told.iter().map(|(event, at)| (event.as_str(), at.as_str())).collect();
    let expected = [
        ("lend", "0x0"),
        ("refuse", "0x8000"),
        ("lend", "0x8000"),
        ("reclaim", "0x8000"),
        ("unlock", "0x8000"),
        // Its end.
        ("reclaim", "0x0"),
    ];
    same(told.as_slice(), expected.as_slice()).context(trace)
}
