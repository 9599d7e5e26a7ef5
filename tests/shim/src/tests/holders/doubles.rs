// SPDX-License-Identifier: MIT OR Apache-2.0

//! A page that two want.

use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use escrow_abi::call::{MODIFY_SANITIZE, MODIFY_UNLOCK};
use escrow_vmcore::uapi::{MAP_FORCE_SHARE, RESUME_FAULT, fdinfo};
use nix::errno::Errno;

use super::{AT, GUESTS, HELD, HOSTS, OFFSET, at_home};
use crate::access::{read, write};
use crate::guest::{ANSWER, Guest, Order, RAM};
use crate::gunyah::{Device, Exit, PAGE, RWX};
use crate::tests::{refused, same};

/// Where the other guest has the page.
const ALSO_AT: u64 = RAM + 64 * PAGE;

/// Two guests touch it at the same time, over and over: each time one gets it,
/// and the other is told so.
pub fn two_guests_at_once() -> Result<()> {
    let device = Device::open()?;
    let one = at_home()?;
    let two = Guest::started(&device, 1, 0)?;
    two.vm.bind(ALSO_AT, RWX, &one.memory, HELD, 1)?;
    let mut won = [0; 2];
    for round in 0..60 {
        write(&one.mapping, OFFSET, HOSTS + round)?;
        let (first, second) = thread::scope(|scope| {
            let other = scope.spawn(|| two.order(Order::Load(ALSO_AT)));
            let first = one.order(Order::Load(AT));
            (first, other.join())
        });
        let Ok(second) = second else { bail!("the thread has panicked") };
        let (first, second) = (first?, second?);
        let word = Exit::Write(ANSWER, HOSTS + round);
        let (winner, loser, at) = match (first, second) {
            (first, Exit::PageFault(ALSO_AT, Errno::EEXIST)) if first == word => (&one, &two, AT),
            (Exit::PageFault(AT, Errno::EEXIST), second) if second == word => (&two, &one, ALSO_AT),
            both => bail!("round {round}: {both:x?}"),
        };
        won[usize::from(at != AT)] += 1;
        same(one.memory.refusal()?, "none".to_owned()).context("nobody held it")?;
        loser.vcpu.refuse_page(RESUME_FAULT);
        let exit = loser.run()?;
        loser.expect_abort_now(exit)?;
        same(winner.ask(Order::Unlock(at, MODIFY_UNLOCK | MODIFY_SANITIZE))?, 0)?;
        same(read(&one.mapping, OFFSET)?, 0).context("home again")?;
    }
    ensure!(won[0] + won[1] == 60);
    Ok(())
}

/// Lent here and shared there: whoever comes second is refused, and changes nothing.
pub fn lent_and_shared() -> Result<()> {
    let device = Device::open()?;
    let one = at_home()?;
    let two = Guest::started(&device, 1, 0)?;
    let give_up = |guest: &Guest| -> Result<()> {
        guest.vcpu.refuse_page(RESUME_FAULT);
        let exit = guest.run()?;
        guest.expect_abort_now(exit)
    };

    same(one.ask(Order::Store(AT, GUESTS))?, 0)?;
    for (flags, at) in [(0, ALSO_AT), (MAP_FORCE_SHARE, ALSO_AT + PAGE)] {
        let twice = one.vm.bind(at, RWX | flags, &one.memory, HELD, 1);
        refused(twice, Errno::EEXIST).context("at two addresses of one guest")?;
        two.vm.bind(at, RWX | flags, &one.memory, HELD, 1)?;
        same(two.order(Order::Load(at))?, Exit::PageFault(at, Errno::EEXIST))?;
        give_up(&two)?;
        two.vm.unbind(at, &one.memory, HELD, 1).context("UNMAP of what is elsewhere")?;
    }
    refused(read(&one.mapping, OFFSET), Errno::EFAULT)?;
    same(one.ask(Order::Load(AT))?, GUESTS)?;
    same(one.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;

    // Now it is shared with the other, and not to be lent to anybody.
    two.vm.bind(ALSO_AT, RWX | MAP_FORCE_SHARE, &one.memory, HELD, 1)?;
    same(two.ask(Order::Load(ALSO_AT))?, GUESTS)?;
    same(one.memory.count(fdinfo::SHARED)?, 1)?;
    same(one.order(Order::Load(AT))?, Exit::PageFault(AT, Errno::EEXIST))?;
    write(&one.mapping, OFFSET, HOSTS)?;
    same(two.ask(Order::Load(ALSO_AT))?, HOSTS).context("still shared")?;
    two.vm.unbind(ALSO_AT, &one.memory, HELD, 1)?;
    same(one.run()?, Exit::Write(ANSWER, HOSTS)).context("shared no more")?;
    same(one.memory.count(fdinfo::SHARED)?, 0)
}
