// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a start needs, and how runs end.

use std::time::Duration;

use anyhow::{Context as _, Result};
use escrow_vmcore::uapi::{self, fdinfo};
use nix::errno::Errno;

use super::{refused, same};
use crate::access::{Pin, read, write};
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, PAGE};

/// Without a vCPU, without memory, with the program pinned: an error each time, and then it starts.
pub fn nothing_half_started() -> Result<()> {
    let device = Device::open()?;
    let vm = device.vm()?;
    refused(vm.start(), Errno::EINVAL).context("nothing")?;
    let _vcpu = vm.vcpu(0)?;
    refused(vm.start(), Errno::ENOENT).context("no memory")?;
    let memory = device.memory(2)?;
    vm.bind(RAM, uapi::MAP_READ | uapi::MAP_WRITE, &memory, 0, 1)?;
    refused(vm.start(), Errno::EINVAL).context("no code")?;
    drop(vm);

    let guest = Guest::new(&device, 2, 0)?;
    guest.vm.set_dtb(RAM + PAGE, 2 * PAGE)?;
    refused(guest.vm.start(), Errno::ENOENT).context("half a device tree")?;
    guest.vm.set_dtb(RAM + PAGE, PAGE)?;
    same(guest.memory.count(fdinfo::LENT)?, 0)?;
    guest.vm.start()?;
    same(guest.memory.count(fdinfo::LENT)?, 1)?;
    guest.ask(Order::Load(RAM + PAGE))?;
    Ok(())
}

/// 512 pages in one call: one of them is pinned and mapped, then only mapped.
pub fn a_device_tree_comes_whole_or_not_at_all() -> Result<()> {
    const PAGES: u64 = 512;
    let guest = Guest::new(&Device::open()?, 2 + PAGES, 0)?;
    guest.vm.set_dtb(RAM + PAGE, PAGES * PAGE)?;
    write(&guest.mapping, 300 * PAGE, 0x300)?;
    let pin = Pin::take(&guest.mapping, 300)?;
    refused(guest.vm.start(), Errno::EAGAIN)?;
    same(guest.memory.refusal()?, "offset=0x12c000 excess=2 accessible=0".to_owned())?;
    same(guest.memory.count(fdinfo::LENT)?, 0)?;
    same(read(&guest.mapping, 300 * PAGE)?, 0x300)?;
    guest.mapping.forget(300, 1)?;
    refused(guest.vm.start(), Errno::EAGAIN)?;
    same(guest.memory.refusal()?, "offset=0x12c000 excess=1 accessible=0".to_owned())?;
    same(guest.memory.count(fdinfo::LENT)?, 0)?;
    pin.drain()?;
    same(read(&guest.mapping, 300 * PAGE)?, 0x300)?;
    refused(guest.vm.start(), Errno::EAGAIN).context("somebody may be writing it")?;
    // With those that came along.
    guest.mapping.forget(1, PAGES)?;
    guest.vm.start()?;
    same(guest.memory.count(fdinfo::LENT)?, PAGES)?;
    for page in [1, 300, PAGES] {
        refused(read(&guest.mapping, page * PAGE), Errno::EFAULT).context("lent")?;
    }
    same(read(&guest.mapping, (PAGES + 1) * PAGE)?, 0)?;
    same(guest.ask(Order::Load(RAM + 300 * PAGE))?, 0x300)?;
    same(guest.ask(Order::Load(RAM + (PAGES + 1) * PAGE))?, 0)
}

/// Lets SIGALRM end system calls and do nothing else.
pub(super) fn ignore_alarms() -> Result<()> {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: the handler does nothing, which is safe at any moment.
    unsafe {
        let handler = nix::sys::signal::SigHandler::Handler(nothing);
        let action = nix::sys::signal::SigAction::new(
            handler,
            nix::sys::signal::SaFlags::empty(),
            nix::sys::signal::SigSet::empty(),
        );
        nix::sys::signal::sigaction(nix::sys::signal::SIGALRM, &action)?;
    }
    Ok(())
}

/// Has one sent to this process in a while.
pub(super) fn set_alarm() -> Result<()> {
    let timer = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval {
            tv_sec: 0,
            tv_usec: Duration::from_millis(20).subsec_micros().into(),
        },
    };
    // SAFETY: sets a timer of this process.
    let set = unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
    Ok(Errno::result(set).map(drop)?)
}

/// By `immediate_exit`, and by a signal to a thread that is inside.
pub fn runs_end_when_asked() -> Result<()> {
    ignore_alarms()?;
    let guest = Guest::started(&Device::open()?, 2, 0)?;
    guest.vcpu.set_immediate_exit(true);
    refused(guest.vcpu.run(), Errno::EINTR).context("immediate exit")?;
    guest.vcpu.set_immediate_exit(false);
    guest.order(Order::Loop)?;
    for _ in 0..5 {
        set_alarm()?;
        refused(guest.vcpu.run(), Errno::EINTR).context("a signal")?;
    }
    Ok(())
}
