// SPDX-License-Identifier: MIT OR Apache-2.0

//! Escrow says no when it hurts most: at the end of a VM, whose program is
//! gone and cannot try again.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::{Error, call};
use escrow_shim_tests::access;
use escrow_shim_tests::facts::shim;
use escrow_shim_tests::guest::{Guest, Order, RAM};
use escrow_shim_tests::gunyah::{Device, PAGE, unload};
use escrow_shim_tests::runner::same;
use escrow_shim_tests::tests;
use escrow_vmcore::uapi::{MAP_FORCE_SHARE, fdinfo};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use crate::plan::{self, Kind, Plan, State};
use crate::refusals;
use crate::walk::{balance, settles};

tests! {
    refusals::of_pages,
    refusals::of_pages_of_a_closed_memory,
    refusals::of_the_vm,
    refusals::of_the_vm_that_is_busy,
    refusals::of_a_vm_without_memory,
    refusals::of_shared_pages,
    refusals::of_one_of_the_shared_pages,
    refusals::of_shared_pages_for_want_of_a_table,
    refusals::of_pages_that_break_on_their_way,
    refusals::of_pages_that_others_look_at,
    refusals::of_the_vm_with_shared_pages,
    refusals::of_a_killed_process,
}

/// Longer than the module takes to ask a second time.
const A_WHILE: Duration = Duration::from_millis(1300);
const AT: u64 = 16;
const PAGES: u64 = 6;

fn guest_with_pages(flags: u32) -> Result<Guest> {
    let guest = Guest::started(&Device::open()?, 32, flags)?;
    guest.ask(Order::Visit(RAM + AT * PAGE, PAGES))?;
    Ok(guest)
}

/// Escrow keeps what a dead guest had: it is out of use and counted, for as
/// long as that lasts, and comes home by itself.
pub fn of_pages() -> Result<()> {
    let before = balance()?;
    let Guest { memory, mapping, vm, vcpu } = guest_with_pages(0)?;
    let lent = memory.count(fdinfo::LENT)?;
    ensure!(lent >= PAGES);
    Plan::each(call::MEM_RECLAIM, Error::Busy).arm()?;
    drop((vm, vcpu));
    for _ in 0..2 {
        same(memory.count(fdinfo::QUARANTINED)?, lent).context("pages out of use")?;
        same(memory.count(fdinfo::LENT)?, 0)?;
        same(access::read(&mapping, AT * PAGE), Err(Errno::EFAULT)).context("a read")?;
        same(memory.punch(AT, 1), Err(Errno::EBUSY)).context("a hole")?;
        same(memory.resize(AT * PAGE), Err(Errno::EBUSY)).context("ftruncate")?;
        thread::sleep(A_WHILE);
    }
    Plan::disarm()?;
    settles(|| memory.count(fdinfo::QUARANTINED), &0)?;
    same(access::read(&mapping, AT * PAGE)?, 0).context("what the guest had written")?;
    drop((memory, mapping));
    settles(balance, &before)
}

/// The same, and the memory's own files are closed as well.
pub fn of_pages_of_a_closed_memory() -> Result<()> {
    ends_while_refused(0, call::MEM_RECLAIM, Error::WrongState)
}

/// The VM does not end.
pub fn of_the_vm() -> Result<()> {
    ends_while_refused(0, call::VM_DESTROY, Error::Denied)
}

/// It does not end because somebody runs it, says Escrow.
pub fn of_the_vm_that_is_busy() -> Result<()> {
    ends_while_refused(0, call::VM_DESTROY, Error::Busy)
}

/// No file of a memory holds the module for this one: it does so itself.
pub fn of_a_vm_without_memory() -> Result<()> {
    let before = balance()?;
    let vm = Device::open()?.vm()?;
    Plan::each(call::VM_DESTROY, Error::Denied).arm()?;
    drop(vm);
    same(shim("zombies")?, 1)?;
    same(unload(), Err(Errno::EWOULDBLOCK)).context("unloading")?;
    Plan::disarm()?;
    settles(balance, &before)?;
    same(shim("zombies")?, 0)
}

/// What it shared comes home with it, if not before.
pub fn of_shared_pages() -> Result<()> {
    let before = balance()?;
    let guest = guest_with_pages(MAP_FORCE_SHARE)?;
    Plan::each(call::MEM_UNSHARE, Error::Busy).arm()?;
    drop(guest);
    settles(balance, &before)?;
    Plan::disarm()
}

/// What the host has written into shared pages is there when their VM has ended.
fn shares_keep_contents(plan: &Plan) -> Result<()> {
    let before = balance()?;
    let Guest { memory, mapping, vm, vcpu } = guest_with_pages(MAP_FORCE_SHARE)?;
    for page in AT..AT + PAGES {
        access::write(&mapping, page * PAGE, page)?;
    }
    plan.arm()?;
    drop((vm, vcpu));
    let failed = State::read()?.failed;
    Plan::disarm()?;
    same(failed, plan.times.into()).context("calls that Escrow has refused")?;
    settles(|| Ok((memory.count(fdinfo::SHARED)?, memory.count(fdinfo::QUARANTINED)?)), &(0, 0))?;
    for page in AT..AT + PAGES {
        same(access::read(&mapping, page * PAGE)?, page)?;
    }
    drop((memory, mapping));
    settles(balance, &before)
}

fn some(function: u32, error: Error, times: u32) -> Plan {
    Plan { times, ..Plan::each(function, error) }
}

/// Escrow refuses the list, the list when it is sent again, and, page by page, the first, which
/// has the guest's program. All others come home as they are.
pub fn of_one_of_the_shared_pages() -> Result<()> {
    shares_keep_contents(&some(call::MEM_UNSHARE, Error::Busy, 3))
}

/// What is lacking is donated, and the list is sent again.
pub fn of_shared_pages_for_want_of_a_table() -> Result<()> {
    shares_keep_contents(&some(call::MEM_UNSHARE, Error::NoMemory, 1))
}

/// A page breaks on its way to a VM that does not come to be: Escrow keeps the page, and the
/// module keeps nothing.
pub fn of_pages_that_break_on_their_way() -> Result<()> {
    let before = balance()?;
    let device = Device::open()?;
    plan::break_at(call::VM_CREATE)?;
    ensure!(device.vm().is_err(), "a VM of broken memory");
    settles(balance, &before)?;
    same(shim("zombies")?, 0)?;
    drop(device.vm().context("the next")?);
    settles(balance, &before)
}

/// Nobody else has pages that are to be metadata, but somebody may walk over all that there are.
/// Other pages are taken then, so many times.
pub fn of_pages_that_others_look_at() -> Result<()> {
    /// Of a page: `escrow_memfd`'s `Folio::TRIES`.
    const TRIES: u32 = 5;
    /// Pages that are taken in vain: `ESCROW_LOOKERS`.
    const PAGES: u32 = 16;
    let before = balance()?;
    let device = Device::open()?;
    let look = |times| Plan { times, ..Plan::nth(Kind::Reference, 1) }.arm();
    for times in [TRIES, PAGES * TRIES] {
        look(times)?;
        let vm = device.vm();
        let failed = State::read()?.failed;
        Plan::disarm()?;
        drop(vm.with_context(|| format!("{times} looks"))?);
        same(failed, times.into())?;
    }
    look(u32::MAX)?;
    let vm = device.vm().map(drop);
    Plan::disarm()?;
    same(vm, Err(Errno::EAGAIN)).context("at all of them")?;
    settles(balance, &before)
}

/// And of shared pages whose VM does not end.
pub fn of_the_vm_with_shared_pages() -> Result<()> {
    ends_while_refused(MAP_FORCE_SHARE, call::VM_DESTROY, Error::Denied)
}

/// All is closed while Escrow refuses: all stays where it is. When it does no
/// longer, all comes home.
fn ends_while_refused(flags: u32, function: u32, error: Error) -> Result<()> {
    let before = balance()?;
    let guest = guest_with_pages(flags)?;
    let with_guest = balance()?;
    Plan::each(function, error).arm()?;
    drop(guest);
    for _ in 0..2 {
        let kept = balance()?;
        ensure!(kept != before, "all is gone: {kept:?}");
        if function == call::VM_DESTROY && flags == 0 {
            same(&kept.0, &with_guest.0).context("a VM that lives keeps all of its pages")?;
        }
        ensure!(kept.1 > before.1, "the module has forgotten it: {kept:?}");
        same(shim("zombies")?, 1)?;
        same(unload(), Err(Errno::EWOULDBLOCK)).context("unloading")?;
        thread::sleep(A_WHILE);
    }
    Plan::disarm()?;
    settles(balance, &before)?;
    same(shim("zombies")?, 0)
}

/// The process is killed meanwhile.
pub fn of_a_killed_process() -> Result<()> {
    let before = balance()?;
    let (mut reader, writer) = std::io::pipe()?;
    // SAFETY: tests run in a process with one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let guest = guest_with_pages(0);
            drop((writer, reader));
            if guest.is_ok() {
                thread::sleep(Duration::from_secs(100));
            }
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            // The guest has its pages when the pipe ends.
            std::io::Read::read_to_end(&mut reader, &mut Vec::new())?;
            Plan::each(call::MEM_RECLAIM, Error::Busy).arm()?;
            kill(child, Signal::SIGKILL)?;
            waitpid(child, None)?;
        }
    }
    thread::sleep(A_WHILE);
    ensure!(balance()? != before, "all is gone, though Escrow has kept it");
    Plan::disarm()?;
    settles(balance, &before)
}
