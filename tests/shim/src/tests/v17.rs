// SPDX-License-Identifier: MIT OR Apache-2.0

//! What programs for Gunyah's v17 interface do, call by call, and what v17's driver
//! answers: `drivers/virt/gunyah` of the series, whose text is the reference.

use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use escrow_abi::psci;
use escrow_shim_tests::say_part;
use escrow_vmcore::uapi::{
    self, FUNCTION_IOEVENTFD, IOEVENTFD_DATAMATCH, IoeventfdArg, MAP_EXEC, MAP_FORCE_LEND,
    MAP_FORCE_SHARE, MAP_READ, MAP_UNMAP, MAP_WRITE, MEM_ALLOW_HUGEPAGE, fdinfo,
};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{refused, same};
use crate::access::{self, Pin, read, write};
use crate::guest::{self, ANSWER, Guest, Order, RAM, WINDOW};
use crate::gunyah::{Device, Exit, PAGE, RWX, ask};
use crate::tree::with_doorbells;

/// Pages of a block.
const BLOCK: u64 = 512;
/// Where a second memory is bound.
const AT: u64 = RAM + 64 * BLOCK * PAGE;
const MMIO: u64 = 0x7000;

/// `_IO` calls: the register has what the caller left in it.
pub fn arguments_of_calls_without_any() -> Result<()> {
    const LEFT: u64 = 0xdead_beef_0001;
    let device = Device::open()?;
    refused(ask(&device, uapi::CREATE_VM, LEFT), Errno::EINVAL).context("that v17 looks at")?;
    let guest = Guest::new(&device, 2, 0)?;
    same(ask(&guest.vm, uapi::VM_START, LEFT).context("VM_START")?, 0)?;
    let size = ask(&guest.vcpu, uapi::VCPU_MMAP_SIZE, LEFT).context("VCPU_MMAP_SIZE")?;
    same(size as u64, PAGE)?;
    same(ask(&guest.vcpu, uapi::VCPU_RUN, LEFT).context("VCPU_RUN")?, 0)?;
    // It ended in the first read of an order, so that the next one is for the second.
    same(guest.run()?, Exit::Read(WINDOW + 8, 8))
}

/// Padding, reserved fields, the upper half of a register's number, an empty memory, a
/// device tree after the start.
pub fn fields_that_nobody_looks_at() -> Result<()> {
    let device = Device::open()?;
    let memory = device.create_mem(&uapi::CreateMem { flags: 0, size: 0, reserved: [1; 6] })?;
    memory.resize(2 * PAGE)?;
    let mapping = memory.map(0, 2)?;
    write(&mapping, PAGE, 5)?;
    same(read(&mapping, PAGE)?, 5).context("a memory that was empty")?;

    let guest = Guest::new(&device, 2, 0)?;
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
    let fd = event.as_raw_fd();
    let irqfd = uapi::IrqfdArg { fd: fd as u32, label: 1, resample_fd: 7, ..Default::default() };
    guest.vm.add_function(uapi::FUNCTION_IRQFD, &irqfd).context("IRQFD")?;
    let write = IoeventfdArg { addr: MMIO, fd, padding: 7, ..Default::default() };
    guest.vm.add_function(FUNCTION_IOEVENTFD, &write).context("IOEVENTFD")?;
    let context = uapi::BootContext { reg: 0x5555_0005, reserved: 9, value: 1 };
    guest.vm.set_boot_context(&context).context("VM_SET_BOOT_CONTEXT")?;
    guest.vm.start()?;
    guest.vm.set_dtb(RAM, PAGE).context("VM_SET_DTB_CONFIG after the start")?;
    refused(guest.vm.set_boot_context(&context), Errno::EINVAL).context("a register after it")?;
    guest.vm.start().context("VM_START again")
}

/// v17's stage 2 has no memory that is written or executed and not read.
pub fn rights_imply_reading() -> Result<()> {
    let device = Device::open()?;
    let guest = Guest::started(&device, 2, 0)?;
    let memory = device.memory(2)?;
    guest.vm.bind(AT, MAP_WRITE, &memory, 0, 1)?;
    guest.vm.bind(AT + PAGE, MAP_EXEC | MAP_FORCE_SHARE, &memory, 1, 1)?;
    guest.ask(Order::Store(AT, 7))?;
    same(guest.ask(Order::Load(AT))?, 7)?;
    same(guest.ask(Order::Load(AT + PAGE))?, 0)?;
    guest.expect_abort(Order::Store(AT + PAGE, 7))
}

/// With the flags that mapping took, with some of them, with none; with others, ENOENT.
pub fn unmapping_names_how_it_is_bound() -> Result<()> {
    let device = Device::open()?;
    let (vm, memory) = (device.vm()?, device.memory(16)?);
    let unmap = |flags, page| vm.bind(RAM + page * PAGE, MAP_UNMAP | flags, &memory, page, 1);
    vm.bind(RAM, RWX | MAP_FORCE_SHARE, &memory, 0, 4)?;
    vm.bind(RAM + 4 * PAGE, MAP_READ | MAP_WRITE | MAP_FORCE_LEND, &memory, 4, 4)?;
    vm.bind(RAM + 8 * PAGE, RWX, &memory, 8, 4)?;
    for (what, flags, page) in [
        ("lent for shared", MAP_FORCE_LEND | RWX, 0),
        ("lent for shared, without rights", MAP_FORCE_LEND, 0),
        ("shared for lent", MAP_FORCE_SHARE | MAP_READ | MAP_WRITE, 4),
        ("shared for what is lent by default", MAP_FORCE_SHARE | RWX, 8),
        ("other rights", MAP_FORCE_SHARE | MAP_READ, 0),
        ("more rights", RWX, 4),
    ] {
        refused(unmap(flags, page), Errno::ENOENT).context(what)?;
    }
    for flags in [MAP_FORCE_LEND | MAP_FORCE_SHARE, 4, 0x80, 0x200] {
        refused(unmap(flags | RWX, 0), Errno::EINVAL).with_context(|| format!("{flags:#x}"))?;
    }
    for (what, flags, page) in [
        ("as it was shared", MAP_FORCE_SHARE | RWX, 0),
        ("the way alone", MAP_FORCE_SHARE, 1),
        ("the rights alone", RWX, 2),
        ("nothing", 0, 3),
        ("as it was lent", MAP_FORCE_LEND | MAP_READ | MAP_WRITE, 4),
        ("the default", RWX, 8),
        ("what the default is", MAP_FORCE_LEND | RWX, 9),
    ] {
        unmap(flags, page).context(what)?;
        refused(unmap(flags, page), Errno::ENOENT).with_context(|| format!("{what}, again"))?;
    }
    Ok(())
}

/// From the front, from the back, from the middle, of a binding that does not begin where
/// its memory does.
pub fn unmapping_in_parts() -> Result<()> {
    let device = Device::open()?;
    let guest = Guest::started(&device, 2, 0)?;
    let memory = device.memory(32)?;
    let mapping = memory.map(0, 32)?;
    for page in 0..32 {
        write(&mapping, page * PAGE, 0x100 + page)?;
    }
    // Guest page n is page 8 + n of the memory.
    let flags = RWX | MAP_FORCE_SHARE;
    guest.vm.bind(AT, flags, &memory, 8, 16)?;
    let unmap =
        |page, pages| guest.vm.bind(AT + page * PAGE, MAP_UNMAP | flags, &memory, 8 + page, pages);
    let mut bound = [true; 16];
    for (page, pages) in [(0, 2), (14, 2), (6, 3), (3, 1)] {
        unmap(page, pages)?;
        bound[page as usize..][..pages as usize].fill(false);
        for (page, &bound) in (0u64..).zip(&bound) {
            let at = AT + page * PAGE;
            if bound {
                same(guest.ask(Order::Load(at))?, 0x108 + page)
            } else {
                let exit = guest.order(Order::Load(at))?;
                guest.vcpu.answer(0x77);
                same(exit, Exit::Read(at, 8))?;
                same(guest.run()?, Exit::Write(ANSWER, 0x77))
            }
            .with_context(|| format!("page {page}"))?;
        }
    }
    refused(unmap(2, 2), Errno::ENOENT).context("a part of it is gone")?;
    let at = AT + 4 * PAGE;
    refused(guest.vm.unbind(at, &memory, 4, 1), Errno::ENOENT).context("at another offset")?;
    // What is gone can come back, at another place of the guest's, too.
    guest.vm.bind(AT + 64 * PAGE, flags, &memory, 8, 2)?;
    same(guest.ask(Order::Load(AT + 65 * PAGE))?, 0x109)
}

/// Bindings that follow on each other go in one call, also in part.
pub fn unmapping_across_bindings() -> Result<()> {
    let device = Device::open()?;
    let guest = Guest::started(&device, 2, 0)?;
    let memory = device.memory(16)?;
    let mapping = memory.map(0, 16)?;
    for page in 0..16 {
        write(&mapping, page * PAGE, 0x100 + page)?;
    }
    let flags = RWX | MAP_FORCE_SHARE;
    for (page, pages) in [(0, 4), (4, 2), (6, 10)] {
        guest.vm.bind(AT + page * PAGE, flags, &memory, page, pages)?;
    }
    for page in 0..16 {
        same(guest.ask(Order::Load(AT + page * PAGE))?, 0x100 + page)?;
    }
    guest.vm.bind(AT + 2 * PAGE, MAP_UNMAP | flags, &memory, 2, 8)?;
    for page in 0..16 {
        let at = AT + page * PAGE;
        if (2..10).contains(&page) {
            same(guest.order(Order::Load(at))?, Exit::Read(at, 8))?;
            guest.vcpu.answer(0);
            same(guest.run()?, Exit::Write(ANSWER, 0))?;
        } else {
            same(guest.ask(Order::Load(at))?, 0x100 + page)?;
        }
    }
    same(memory.count(fdinfo::SHARED)?, 8)
}

/// Again at another address, at the same one in another way, in part.
pub fn a_page_is_bound_once() -> Result<()> {
    let device = Device::open()?;
    let (vm, memory) = (device.vm()?, device.memory(16)?);
    let bind = |guest, flags, page, pages| vm.bind(guest, flags, &memory, page, pages);
    bind(RAM, RWX, 4, 4)?;
    for (what, result) in [
        ("elsewhere", bind(AT, RWX, 4, 4)),
        ("in another way", bind(RAM, RWX | MAP_FORCE_SHARE, 4, 4)),
        ("with other rights", bind(RAM, MAP_READ, 4, 4)),
        ("the same", bind(RAM, RWX, 4, 4)),
        ("its last page elsewhere", bind(AT, RWX, 7, 2)),
        ("its first page elsewhere", bind(AT, RWX, 0, 5)),
        ("all around it", bind(AT, RWX, 0, 16)),
    ] {
        refused(result, Errno::EEXIST).context(what)?;
    }
    bind(AT, RWX, 0, 4)?;
    bind(AT + 16 * PAGE, RWX, 8, 4)
        .map_err(anyhow::Error::from)
        .context("what is left of the memory")
}

fn event() -> Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}

fn count(event: &EventFd) -> Result<u64> {
    match event.read() {
        Err(Errno::EAGAIN) => Ok(0),
        result => Ok(result?),
    }
}

fn ioeventfd(event: &EventFd, len: u32, datamatch: Option<u64>) -> IoeventfdArg {
    IoeventfdArg {
        datamatch: datamatch.unwrap_or(0),
        addr: MMIO,
        len,
        fd: event.as_raw_fd(),
        flags: if datamatch.is_some() { IOEVENTFD_DATAMATCH } else { 0 },
        padding: 0,
    }
}

/// Whatever the lengths. Values of one length, and lengths with a value, are told apart.
pub fn one_ioeventfd_to_an_address() -> Result<()> {
    let vm = Device::open()?.vm()?;
    let event = event()?;
    let add = |len, data| vm.add_function(FUNCTION_IOEVENTFD, &ioeventfd(&event, len, data));
    let remove = |len, data| vm.remove_function(FUNCTION_IOEVENTFD, &ioeventfd(&event, len, data));
    for first in [0, 1, 2, 4, 8] {
        add(first, None)?;
        for second in [0, 1, 2, 4, 8] {
            let what = || format!("{second} bytes after {first}");
            refused(add(second, None), Errno::EEXIST).with_context(what)?;
            if second != 0 {
                refused(add(second, Some(1)), Errno::EEXIST).with_context(what)?;
            }
            if second != first {
                refused(remove(second, None), Errno::ENOENT).with_context(what)?;
            }
        }
        remove(first, None)?;
    }
    add(4, Some(1))?;
    add(4, Some(2))?;
    add(8, Some(1))?;
    refused(add(4, Some(2)), Errno::EEXIST).context("the same value")?;
    refused(add(2, None), Errno::EEXIST).context("any value")?;
    refused(add(0, Some(3)), Errno::EINVAL).context("a value of no length")
}

/// Without a value, v17 signals the event for a write of any length.
pub fn an_ioeventfd_s_length_counts_with_a_value() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 1, 0)?;
    let event = event()?;
    let arg = ioeventfd(&event, 4, None);
    guest.vm.add_function(FUNCTION_IOEVENTFD, &arg)?;
    for size in [1, 2, 4, 8] {
        guest.ask(Order::Write(MMIO, 7, size))?;
        same(count(&event)?, 1).with_context(|| format!("{size} bytes"))?;
    }
    guest.vm.remove_function(FUNCTION_IOEVENTFD, &arg)?;
    guest.vm.add_function(FUNCTION_IOEVENTFD, &ioeventfd(&event, 4, Some(7)))?;
    guest.ask(Order::Write(MMIO, 7, 4))?;
    same(count(&event)?, 1)?;
    let exit = guest.order(Order::Write(MMIO, 7, 8))?;
    same((exit, count(&event)?), (Exit::Write(MMIO, 7), 0)).context("of another length")
}

/// Those of a guest's pages that are memory still have their contents, and the one that is
/// not is an MMIO exit.
fn only_is_gone(guest: &Guest, from: u64, pages: &[u64], gone: u64) -> Result<()> {
    for &page in pages {
        let at = from + page * PAGE;
        let exit = guest.order(Order::Load(at))?;
        if page == gone {
            same(exit, Exit::Read(at, 8)).with_context(|| format!("page {page}, gone"))?;
            guest.vcpu.answer(0);
            same(guest.run()?, Exit::Write(ANSWER, 0))?;
        } else {
            let expected = Exit::Write(ANSWER, 0x100 + page);
            same(exit, expected).with_context(|| format!("page {page}"))?;
        }
    }
    Ok(())
}

/// A hole, which the guest's next touch fills; then the page is unmapped. Neighbours that
/// the guest has and those that it has not are memory all the time.
pub fn a_shared_page_goes_and_its_neighbours_stay() -> Result<()> {
    let device = Device::open()?;
    let guest = Guest::started(&device, 2, 0)?;
    let memory = device.memory(16)?;
    let mapping = memory.map(0, 16)?;
    guest.vm.bind(AT, RWX | MAP_FORCE_SHARE, &memory, 0, 16)?;
    for page in 4..13 {
        write(&mapping, page * PAGE, 0x100 + page)?;
    }
    for page in 7..10 {
        same(guest.ask(Order::Load(AT + page * PAGE))?, 0x100 + page)?;
    }
    memory.punch(8, 1)?;
    for (page, word) in [(9, 0x109), (7, 0x107), (10, 0x10a), (8, 0), (6, 0x106)] {
        let seen = guest.ask(Order::Load(AT + page * PAGE));
        same(seen.context("after a hole")?, word).with_context(|| format!("page {page}"))?;
    }
    guest.ask(Order::Store(AT + 8 * PAGE, 0x108))?;
    same(read(&mapping, 8 * PAGE)?, 0x108)?;
    guest.vm.bind(AT + 8 * PAGE, MAP_UNMAP | MAP_FORCE_SHARE | RWX, &memory, 8, 1)?;
    only_is_gone(&guest, AT, &[9, 7, 8, 10, 5, 11, 8, 9], 8)?;
    same(read(&mapping, 8 * PAGE)?, 0x108)
}

/// The same where all of it is one folio of 2 MiB.
pub fn a_page_of_a_shared_block_goes_and_its_neighbours_stay() -> Result<()> {
    let device = Device::open()?;
    let guest = Guest::started(&device, 2, 0)?;
    let memory = device.huge_memory(2 * BLOCK)?;
    let mapping = memory.map(0, 2 * BLOCK)?;
    guest.vm.bind(AT, RWX | MAP_FORCE_SHARE, &memory, 0, 2 * BLOCK)?;
    let pages = [0, 7, 8, 9, BLOCK - 1, BLOCK];
    for page in pages {
        write(&mapping, page * PAGE, 0x100 + page)?;
        same(guest.ask(Order::Load(AT + page * PAGE))?, 0x100 + page)?;
    }
    memory.punch(8, 1)?;
    for page in pages {
        let word = if page == 8 { 0 } else { 0x100 + page };
        let seen = guest.ask(Order::Load(AT + page * PAGE));
        same(seen.context("after a hole")?, word).with_context(|| format!("page {page}"))?;
    }
    write(&mapping, 8 * PAGE, 0x108)?;
    guest.vm.bind(AT + 8 * PAGE, MAP_UNMAP | MAP_FORCE_SHARE | RWX, &memory, 8, 1)?;
    only_is_gone(&guest, AT, &[9, 8, 7, 0, BLOCK - 1, BLOCK, 8, 9], 8)?;
    same(read(&mapping, 8 * PAGE)?, 0x108)?;
    same(read(&mapping, 9 * PAGE)?, 0x109)
}

/// Memory on both sides is one access. Where one side is not memory, Gunyah reports what
/// the CPU does: the whole access, at the address that faulted, and no half is done.
pub fn accesses_across_a_page_s_end() -> Result<()> {
    let device = Device::open()?;
    let guest = Guest::new(&device, 2, 0)?;
    access::write_all(&guest.mapping, PAGE, &guest::identity())?;
    guest.vm.start()?;
    guest.ask(Order::Translate(RAM + PAGE))?;
    let memory = device.memory(16)?;
    let mapping = memory.map(0, 16)?;
    for flags in [MAP_FORCE_SHARE, MAP_FORCE_LEND] {
        guest.vm.bind(AT, RWX | flags, &memory, 0, 4)?;
        write(&mapping, 2 * PAGE - 8, 0x1111_2222_3333_4444)?;
        write(&mapping, 2 * PAGE, 0x5555_6666_7777_8888)?;
        // Neither page is with the guest yet.
        let across = AT + 2 * PAGE - 4;
        same(guest.ask(Order::Load(across))?, 0x7777_8888_1111_2222)?;
        guest.ask(Order::Store(across, 0xaaaa_bbbb_cccc_dddd))?;
        same(guest.ask(Order::Load(AT + 2 * PAGE - 8))?, 0xcccc_dddd_3333_4444)?;
        same(guest.ask(Order::Load(AT + 2 * PAGE))?, 0x5555_6666_aaaa_bbbb)?;

        // The end of the binding, and its start.
        let word = 0x0123_4567_89ab_cdef;
        for (at, seen_at) in [(AT + 4 * PAGE - 4, AT + 4 * PAGE), (AT - 4, AT - 4)] {
            same(guest.order(Order::Load(at))?, Exit::Read(seen_at, 8))?;
            guest.vcpu.answer(word);
            same(guest.run()?, Exit::Write(ANSWER, word)).context("all of it is answered")?;
            same(guest.order(Order::Store(at, word))?, Exit::Write(seen_at, word))?;
            same(guest.run()?, Exit::Write(ANSWER, 0))?;
        }
        same(guest.ask(Order::Load(AT + 4 * PAGE - 8))?, 0).context("no half is stored")?;
        same(guest.ask(Order::Load(AT))?, 0).context("no half is stored")?;
        if flags == MAP_FORCE_SHARE {
            guest.vm.unbind(AT, &memory, 0, 4)?;
        }
    }
    Ok(())
}

/// A tree in the room that a program gives it, which the rest of is zeros; its header may
/// count these zeros or not.
pub fn a_tree_of_several_blocks() -> Result<()> {
    const PAGES: u64 = 4 * BLOCK;
    const ROOM: u64 = PAGES * PAGE;
    let device = Device::open()?;
    for (flags, padded) in [(MEM_ALLOW_HUGEPAGE, true), (0, false)] {
        let guest = Guest::with_memory(&device, 5 * BLOCK, flags)?;
        let mut tree = with_doorbells([7])?;
        if padded {
            tree[4..8].copy_from_slice(&(ROOM as u32).to_be_bytes());
        }
        let at = BLOCK * PAGE;
        access::write_all(&guest.mapping, at, &tree)?;
        write(&guest.mapping, at + ROOM - PAGE, 0x99)?;
        guest.mapping.forget(BLOCK, PAGES)?;
        guest.vm.set_dtb(RAM + at, ROOM).context("VM_SET_DTB_CONFIG")?;
        let event = event()?;
        let fd = event.as_raw_fd() as u32;
        let irqfd = uapi::IrqfdArg { fd, label: 7, ..Default::default() };
        guest.vm.add_function(uapi::FUNCTION_IRQFD, &irqfd)?;
        guest.vm.start().context("VM_START")?;
        ensure!(guest.memory.count(fdinfo::LENT)? >= PAGES, "a part of it is the host's");
        for page in [BLOCK, 3 * BLOCK, 5 * BLOCK - 1] {
            refused(read(&guest.mapping, page * PAGE), Errno::EFAULT).context("lent")?;
        }
        same(
            guest.ask(Order::Load(RAM + at))? as u32,
            u32::from_le_bytes([0xd0, 0x0d, 0xfe, 0xed]),
        )?;
        same(guest.ask(Order::Load(RAM + at + ROOM - PAGE))?, 0x99)?;
        // The doorbells are those of the tree.
        event.write(1)?;
        let receive = Order::CallForX1(escrow_abi::call::BELL_RECEIVE, 7, 1);
        same(guest.ask(receive)?, 1)?;
    }
    Ok(())
}

/// One page of it that the host keeps, far behind, and none is lent.
pub fn a_tree_of_several_blocks_whole_or_not_at_all() -> Result<()> {
    const PAGES: u64 = 3 * BLOCK;
    let guest = Guest::with_memory(&Device::open()?, 1 + PAGES, 0)?;
    guest.vm.set_dtb(RAM + PAGE, PAGES * PAGE)?;
    let late = PAGES - 3;
    write(&guest.mapping, late * PAGE, 0x300)?;
    let pin = Pin::take(&guest.mapping, late)?;
    guest.mapping.forget(late, 1)?;
    refused(guest.vm.start(), Errno::EAGAIN)?;
    same(guest.memory.count(fdinfo::LENT)?, 0)?;
    same(read(&guest.mapping, PAGE)?, 0).context("the host has its first page")?;
    pin.drain()?;
    guest.mapping.forget(0, 1 + PAGES)?;
    guest.vm.start()?;
    same(guest.memory.count(fdinfo::LENT)?, PAGES)?;
    same(guest.ask(Order::Load(RAM + late * PAGE))?, 0x300)
}

/// It lies nowhere, ends beyond its binding, goes on in the next one, or has no room.
pub fn a_tree_that_is_not_bound() -> Result<()> {
    let device = Device::open()?;
    let guest = Guest::new(&device, 4, 0)?;
    let more = device.memory(4)?;
    guest.vm.bind(RAM + 4 * PAGE, RWX, &more, 0, 4)?;
    for (what, at, size, errno) in [
        ("nowhere", AT, PAGE, Errno::ENOENT),
        ("at address 0", 0, PAGE, Errno::ENOENT),
        ("before the memory", RAM - PAGE, 2 * PAGE, Errno::ENOENT),
        ("in two bindings", RAM + 2 * PAGE, 4 * PAGE, Errno::ENOENT),
        ("empty", RAM + PAGE, 0, Errno::EINVAL),
    ] {
        guest.vm.set_dtb(at, size).context(what)?;
        refused(guest.vm.start(), errno).context(what)?;
        refused(guest.vcpu.run(), Errno::ENODEV).context(what)?;
    }
    guest.vm.set_dtb(RAM + 2 * PAGE, 2 * PAGE)?;
    guest.mapping.forget(0, 4)?;
    guest.vm.start()?;
    same(guest.ask(Order::Load(RAM + 2 * PAGE))?, 0)
}

/// Refused at once, or where v17's driver is content, by the start.
pub fn registers_that_there_are_not() -> Result<()> {
    let device = Device::open()?;
    let guest = Guest::new(&device, 2, 0)?;
    let set = |reg| guest.vm.set_boot_context(&uapi::BootContext { reg, reserved: 0, value: 1 });
    for reg in [32, 33, 0xff, 0x101, 0x1ff, 0x203, 0x300, 0xff00] {
        refused(set(reg), Errno::EINVAL).with_context(|| format!("{reg:#x}"))?;
    }
    for reg in [0, 30, 0x200, 0x201] {
        set(reg)?;
    }
    guest.vm.start()?;
    for reg in [31, 0x202] {
        let guest = Guest::new(&device, 2, 0)?;
        let one_too_many = uapi::BootContext { reg, reserved: 0, value: 1 };
        guest.vm.set_boot_context(&one_too_many).with_context(|| format!("{reg:#x}"))?;
        refused(guest.vm.start(), Errno::EINVAL).with_context(|| format!("{reg:#x}"))?;
        same(guest.memory.count(fdinfo::LENT)?, 0)?;
    }
    Ok(())
}

/// It is off until a sibling switches it on, and so is one that was removed and comes back.
pub fn a_vcpu_comes_after_the_start() -> Result<()> {
    let guest = Guest::started(&Device::open()?, 2, 0)?;
    let on = Order::Call(psci::CPU_ON_64, 1, RAM);
    same(guest.ask(on)?, psci::INVALID_PARAMETERS).context("nobody yet")?;
    let late = guest.vm.vcpu(1).context("after the start")?;
    refused(
        guest.vm.vcpu(1).map_err(|error| error.downcast().unwrap_or(Errno::EIO)),
        Errno::EEXIST,
    )
    .context("the same number twice")?;
    same(guest.ask(on)?, psci::SUCCESS)?;
    let exit = guest::run(&late)?;
    ensure!(guest::wants_order(exit), "{exit:x?}");
    let exit = guest::order_after(&late, exit, Order::Store(RAM + PAGE, 0x55))?;
    same(exit, Exit::Write(ANSWER, 0))?;
    same(guest.ask(Order::Load(RAM + PAGE))?, 0x55)?;
    guest.vm.remove_vcpu(1)?;
    refused(late.run(), Errno::ENODEV).context("removed")?;
    let again = guest.vm.vcpu(1).context("once more")?;
    let exit = guest::run(&again)?;
    ensure!(guest::wants_order(exit), "{exit:x?}");
    let exit = guest::order_after(&again, exit, Order::Load(RAM + PAGE))?;
    same(exit, Exit::Write(ANSWER, 0x55)).context("where it was")
}

/// A hole in shared memory and a guest's touch, again and again: as fast at the end as at
/// the start. `SHIM_HOLES` says how often.
pub fn many_holes() -> Result<()> {
    const PARTS: usize = 4;
    let times = setting("SHIM_HOLES", 1000)?;
    let guest = Guest::started(&Device::open()?, 16, MAP_FORCE_SHARE)?;
    let part = || -> Result<Duration> {
        let start = Instant::now();
        for round in 0..times / PARTS as u64 {
            let page = 2 + round % 8;
            guest.ask(Order::Store(RAM + page * PAGE, round + 1))?;
            guest.memory.punch(page, 1)?;
            same(guest.ask(Order::Load(RAM + page * PAGE))?, 0)?;
        }
        Ok(start.elapsed())
    };
    let parts = (0..PARTS).map(|_| part()).collect::<Result<Vec<_>>>()?;
    same(guest.memory.count(fdinfo::SHARED)?, 9)?;
    // Others use the machine as well.
    let (first, last) = (parts[0], parts[PARTS - 1]);
    ensure!(last < 5 * first + Duration::from_secs(1), "{times} holes, in quarters: {parts:?}");
    Ok(())
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(default), |number| Ok(number.parse()?))
}

/// All vCPUs touch the same pages, each from the first on: every page is lent once, whoever
/// comes first, and the last ones as fast as the first. `SHIM_RACE_PAGES` says how many.
pub fn vcpus_race_for_pages() -> Result<()> {
    const PARTS: u64 = 4;
    let pages = setting("SHIM_RACE_PAGES", 2048)?;
    let device = Device::open()?;
    let guest = Guest::new(&device, 1, 0)?;
    let memory = device.memory(pages)?;
    guest.vm.bind(AT, RWX, &memory, 0, pages)?;
    let cpus = thread::available_parallelism()?.get().min(8) as u64;
    let others = (1..cpus as u32).map(|id| guest.vm.vcpu(id)).collect::<Result<Vec<_>>>()?;
    guest.vm.start()?;
    for id in 1..cpus {
        same(guest.ask(Order::Call(psci::CPU_ON_64, id, RAM))?, psci::SUCCESS)?;
    }
    let part = |n: u64| -> Result<Duration> {
        let (first, end) = (pages * n / PARTS, pages * (n + 1) / PARTS);
        let visit = Order::Visit(AT + first * PAGE, end - first);
        let start = Instant::now();
        thread::scope(|scope| -> Result<()> {
            let visits: Vec<_> = others
                .iter()
                .map(|vcpu| {
                    scope.spawn(|| -> Result<Exit> {
                        let exit = guest::run(vcpu)?;
                        guest::order_after(vcpu, exit, visit)
                    })
                })
                .collect();
            same(guest.ask(visit)?, end - first)?;
            for visit in visits {
                let exit = visit.join().expect("the thread ends")?;
                same(exit, Exit::Write(ANSWER, end - first))?;
            }
            Ok(())
        })?;
        Ok(start.elapsed())
    };
    let parts = (0..PARTS).map(part).collect::<Result<Vec<_>>>()?;
    say_part!("({pages} pages by {cpus} vCPUs, in quarters: {parts:.1?}) ");
    // Others use the machine as well.
    ensure!(
        parts[3] < 5 * parts[0] + Duration::from_secs(1),
        "{pages} pages, in quarters: {parts:?}"
    );
    same(memory.count(fdinfo::LENT)?, pages)?;
    for page in [0, 1, pages / 2, pages - 1] {
        let at = AT + page * PAGE;
        same(guest.ask(Order::Load(at))?, at)?;
    }
    Ok(())
}
