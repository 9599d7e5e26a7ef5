// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program that has lent pages to a running guest, and keeps all its files
//! until the shim ends the guest behind its back: `shim-tests --hold PAGES`.

use anyhow::{Context as _, Result, bail, ensure};
use escrow_vmcore::uapi::{self, fdinfo};
use nix::errno::Errno;

use escrow_shim_tests::access::read;
use escrow_shim_tests::facts::Facts;
use escrow_shim_tests::guest::{Guest, Order, RAM};
use escrow_shim_tests::gunyah::{Device, PAGE, RWX};
use escrow_shim_tests::runner::same;
use escrow_shim_tests::say;

use crate::wait::until;

/// Lends so many pages, and says `holding N pages`; runs the guest; and, when
/// it has been ended from outside, looks at what is left and says `all is
/// home`.
pub fn hold(pages: u64) -> Result<()> {
    let before = Facts::read()?;
    let device = Device::open()?;
    // One more for the guest's program.
    let guest = Guest::started(&device, pages + 1, 0)?;
    guest.ask(Order::Visit(RAM + PAGE, pages))?;
    say!("holding {} pages", guest.memory.count(fdinfo::LENT)?);
    guest.order(Order::Loop)?;
    let errno = loop {
        match guest.vcpu.run() {
            Err(Errno::EINTR) => {}
            Err(errno) => break errno,
            Ok(exit) => bail!("an endless loop ended in {exit:?}"),
        }
    };
    same(errno, Errno::ENODEV).context("the run")?;

    gone(guest.vcpu.run()).context("another run")?;
    gone(guest.vm.start()).context("VM_START")?;
    gone(guest.vm.bind(RAM + 64 * PAGE, RWX, &guest.memory, 0, 1)).context("VM_MAP_MEM")?;
    gone(guest.vm.unbind(RAM, &guest.memory, 0, 1)).context("VM_MAP_MEM, UNMAP")?;
    gone(guest.vm.set_dtb(RAM, PAGE)).context("VM_SET_DTB_CONFIG")?;
    let context = uapi::BootContext { reg: 0, reserved: 0, value: 0 };
    gone(guest.vm.set_boot_context(&context)).context("VM_SET_BOOT_CONTEXT")?;
    gone(guest.vm.vcpu(1).map_err(|error| error.downcast().unwrap_or(Errno::EIO)))
        .context("VM_ADD_FUNCTION")?;
    gone(guest.vm.remove_vcpu(0)).context("VM_REMOVE_FUNCTION")?;
    gone(device.vm()).context("CREATE_VM")?;
    gone(device.memory(1)).context("CREATE_GUEST_MEM")?;

    same(guest.memory.count(fdinfo::LENT)?, 0)?;
    for page in [0, 1, pages / 2, pages] {
        same(read(&guest.mapping, page * PAGE)?, 0).context("a page that was lent")?;
    }
    // Others' VMs may be ending still.
    let is_as_before = || Ok(Facts::read()? == before);
    until("Escrow's counts", is_as_before)?;
    drop(guest);
    until("Escrow's counts, with all closed", is_as_before)?;
    say!("all is home");
    Ok(())
}

fn gone<T>(result: Result<T, Errno>) -> Result<()> {
    let errno = result.err();
    ensure!(errno == Some(Errno::ENODEV), "{errno:?} instead of ENODEV");
    Ok(())
}
