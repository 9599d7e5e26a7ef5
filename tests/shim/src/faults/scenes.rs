// SPDX-License-Identifier: MIT OR Apache-2.0

//! What programs do with the module.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::call::{BELL_RECEIVE, MODIFY_SANITIZE, MODIFY_UNLOCK};
use escrow_shim_tests::access;
use escrow_shim_tests::facts::Facts;
use escrow_shim_tests::guest::{Guest, Order, RAM};
use escrow_shim_tests::gunyah::{PAGE, RWX, function, vcpu_function};
use escrow_shim_tests::holder::{Holder, Manner};
use escrow_shim_tests::runner::{Test, same};
use escrow_shim_tests::tree::{GICD, with_doorbells, with_gic};
use escrow_vmcore::uapi::{self, MAP_FORCE_SHARE, fdinfo};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use crate::walk::{Run, walk_through};

const ZERO: u64 = MODIFY_UNLOCK | MODIFY_SANITIZE;
/// Where guests of these scenes do what they are here for.
const AT: u64 = 16;

/// All of them.
pub const ALL: &[Test] = &[
    ("scenes::create_a_vm", || walk_through(create_a_vm)),
    ("scenes::create_a_memory", || walk_through(create_a_memory)),
    ("scenes::populate", || walk_through(populate)),
    ("scenes::bind", || walk_through(bind)),
    ("scenes::vcpus", || walk_through(vcpus)),
    ("scenes::start", || walk_through(start)),
    ("scenes::start_with_a_device_tree", || walk_through(start_with_a_device_tree)),
    ("scenes::lend_by_touch", || walk_through(|run| by_touch(run, 0))),
    ("scenes::share_by_touch", || walk_through(|run| by_touch(run, MAP_FORCE_SHARE))),
    ("scenes::lend_by_touch_far_apart", || walk_through(far_apart)),
    ("scenes::a_huge_page", || walk_through(a_huge_page)),
    ("scenes::split_a_huge_page", || walk_through(split_a_huge_page)),
    ("scenes::ioeventfd", || walk_through(ioeventfd)),
    ("scenes::irqfd", || walk_through(irqfd)),
    ("scenes::irqfd_with_a_gic", || walk_through(irqfd_with_a_gic)),
    ("scenes::console", || walk_through(console)),
    ("scenes::fetch_what_is_unlocked", || walk_through(fetch)),
    ("scenes::punch_what_is_unlocked", || walk_through(|run| clear(run, 0, Clear::Punch))),
    ("scenes::punch_what_is_shared", || {
        walk_through(|run| clear(run, MAP_FORCE_SHARE, Clear::Punch))
    }),
    ("scenes::shrink_what_is_unlocked", || walk_through(|run| clear(run, 0, Clear::Shrink))),
    ("scenes::shrink_what_is_shared", || {
        walk_through(|run| clear(run, MAP_FORCE_SHARE, Clear::Shrink))
    }),
    ("scenes::unbind_what_is_unlocked", || walk_through(|run| clear(run, 0, Clear::Unbind))),
    ("scenes::unbind_what_is_shared", || {
        walk_through(|run| clear(run, MAP_FORCE_SHARE, Clear::Unbind))
    }),
    ("scenes::from_guest_to_guest", || walk_through(from_guest_to_guest)),
    ("scenes::safe_references", || walk_through(safe_references)),
    ("scenes::a_dma_buf", || walk_through(a_dma_buf)),
    ("scenes::look_at_the_counts", || walk_through(look_at_the_counts)),
    ("scenes::end_by_the_vm", || walk_through(|run| end(run, 0, [0, 1, 2]))),
    ("scenes::end_by_the_vcpu", || walk_through(|run| end(run, 0, [1, 2, 0]))),
    ("scenes::end_by_the_memory", || walk_through(|run| end(run, MAP_FORCE_SHARE, [2, 0, 1]))),
];

fn create_a_vm(run: &Run) -> Result<()> {
    run.begin()?;
    let vm = run.attempt("CREATE_VM", || run.device.vm())?;
    run.end()?;
    drop(vm);
    Ok(())
}

fn create_a_memory(run: &Run) -> Result<()> {
    run.begin()?;
    let memory = run.attempt("CREATE_GUEST_MEM", || run.device.memory(8))?;
    run.attempt_on(&memory, "ftruncate", || memory.resize(16 * PAGE))?;
    run.end()
}

fn populate(run: &Run) -> Result<()> {
    let memory = run.device.memory(16)?;
    let mapping = memory.map(0, 16)?;
    run.begin()?;
    run.attempt_on(&memory, "fallocate", || memory.fallocate(0, 0, 4 * PAGE))?;
    for page in 2..6 {
        run.attempt_on(&memory, "write", || access::write(&mapping, page * PAGE, page))?;
    }
    run.end()?;
    for page in 2..6 {
        same(access::read(&mapping, page * PAGE)?, page)?;
    }
    ensure!(memory.count(fdinfo::PRESENT)? >= 6);
    Ok(())
}

fn bind(run: &Run) -> Result<()> {
    let memory = run.device.memory(16)?;
    let vm = run.device.vm()?;
    run.begin()?;
    run.attempt("binding to lend", || vm.bind(RAM, RWX, &memory, 0, 8))?;
    run.attempt("binding to share", || {
        vm.bind(RAM + 8 * PAGE, RWX | MAP_FORCE_SHARE, &memory, 8, 8)
    })?;
    // Two halves are left.
    run.attempt("unbinding", || vm.unbind(RAM + 2 * PAGE, &memory, 2, 4))?;
    run.attempt("binding again", || vm.bind(RAM + 2 * PAGE, RWX, &memory, 2, 4))?;
    run.attempt("SET_DTB_CONFIG", || vm.set_dtb(RAM, PAGE))?;
    run.attempt("SET_BOOT_CONTEXT", || {
        vm.set_boot_context(&uapi::BootContext { reg: 0x100, reserved: 0, value: RAM })
    })?;
    run.end()?;
    same(vm.bind(RAM + 3 * PAGE, RWX, &memory, 0, 1), Err(Errno::EEXIST))
}

fn vcpus(run: &Run) -> Result<()> {
    let vm = run.device.vm()?;
    run.begin()?;
    let mut fds = Vec::new();
    for id in [0, 1] {
        let arg = uapi::VcpuArg { id };
        fds.push(run.attempt("ADD_FUNCTION", || vm.add(&vcpu_function(&arg)))?);
    }
    run.attempt("REMOVE_FUNCTION", || vm.remove_vcpu(1))?;
    run.end()?;
    same(vm.remove_vcpu(1), Err(Errno::ENOENT))
}

fn start(run: &Run) -> Result<()> {
    let guest = Guest::new(&run.device, 32, 0)?;
    run.begin()?;
    // What was lent before Escrow refused to start the VM stays lent: the guest
    // has not given it up.
    run.attempt("VM_START", || guest.vm.start())?;
    run.end()?;
    same(guest.ask(Order::Load(RAM + AT * PAGE))?, 0)
}

fn start_with_a_device_tree(run: &Run) -> Result<()> {
    let guest = Guest::new(&run.device, 32, 0)?;
    let tree = RAM + AT * PAGE;
    for page in AT..AT + 5 {
        access::write(&guest.mapping, page * PAGE, page)?;
    }
    guest.mapping.forget(AT, 5)?;
    guest.vm.set_dtb(tree, 5 * PAGE)?;
    run.begin()?;
    run.attempt("VM_START", || guest.vm.start())?;
    run.end()?;
    ensure!(guest.memory.count(fdinfo::LENT)? >= 5);
    for page in AT..AT + 5 {
        same(guest.ask(Order::Load(RAM + page * PAGE))?, page)?;
    }
    Ok(())
}

fn by_touch(run: &Run, flags: u32) -> Result<()> {
    let guest = Guest::started(&run.device, 32, flags)?;
    access::write(&guest.mapping, AT * PAGE, 7)?;
    run.begin()?;
    let seen = run.ask(&guest, Order::Load(RAM + AT * PAGE))?;
    run.end()?;
    same(seen, 7).context("what the host had written")
}

/// Tables are needed for each touch, so donations are as well.
fn far_apart(run: &Run) -> Result<()> {
    const PAGES: u64 = 3;
    let guest = Guest::started(&run.device, 2, 0)?;
    let memory = run.device.memory(PAGES)?;
    for page in 0..PAGES {
        guest.vm.bind(RAM + ((page + 1) << 30), RWX, &memory, page, 1)?;
    }
    run.begin()?;
    for page in 0..PAGES {
        run.ask(&guest, Order::Store(RAM + ((page + 1) << 30), page))?;
    }
    run.end()?;
    same(memory.count(fdinfo::LENT)?, PAGES)
}

fn a_huge_page(run: &Run) -> Result<()> {
    let memory = run.device.huge_memory(1024)?;
    let mapping = memory.map(0, 1024)?;
    let guest = Guest::started(&run.device, 2, 0)?;
    let far = RAM + (1 << 30);
    guest.vm.bind(far, RWX, &memory, 0, 1024)?;
    run.begin()?;
    run.attempt_on(&memory, "write", || access::write(&mapping, 600 * PAGE, 600))?;
    let seen = run.ask(&guest, Order::Load(far + 600 * PAGE))?;
    run.ask(&guest, Order::Unlock(far + 600 * PAGE, ZERO))?;
    run.end()?;
    same(seen, 600)
}

/// A block that goes where no block can go is made into pages.
fn split_a_huge_page(run: &Run) -> Result<()> {
    let memory = run.device.huge_memory(512)?;
    let mapping = memory.map(0, 512)?;
    access::write(&mapping, 300 * PAGE, 300)?;
    let guest = Guest::started(&run.device, 2, 0)?;
    let far = RAM + (1 << 30) + PAGE;
    guest.vm.bind(far, RWX, &memory, 0, 512)?;
    run.begin()?;
    let seen = run.ask(&guest, Order::Load(far + 300 * PAGE))?;
    run.end()?;
    same(seen, 300)
}

fn ioeventfd(run: &Run) -> Result<()> {
    let vm = run.device.vm()?;
    let event = EventFd::new().context("eventfd")?;
    let arg = |at: u64| uapi::IoeventfdArg {
        addr: 0x7000 + at,
        len: 4,
        fd: event.as_raw_fd(),
        ..Default::default()
    };
    run.begin()?;
    for at in [0, 8, 16] {
        run.attempt("IOEVENTFD", || vm.add_function(uapi::FUNCTION_IOEVENTFD, &arg(at)))?;
    }
    run.attempt("the end of one", || vm.remove_function(uapi::FUNCTION_IOEVENTFD, &arg(8)))?;
    run.end()?;
    let again = vm.remove_function(uapi::FUNCTION_IOEVENTFD, &arg(8)).map(drop);
    same(again, Err(Errno::ENOENT))
}

/// Of each kind, before and after the start.
fn irqfd(run: &Run) -> Result<()> {
    let guest = Guest::new(&run.device, 32, 0)?;
    let tree = with_doorbells(0..4)?;
    access::write_all(&guest.mapping, AT * PAGE, &tree)?;
    guest.mapping.forget(AT, 1)?;
    guest.vm.set_dtb(RAM + AT * PAGE, PAGE)?;
    let event = EventFd::new().context("eventfd")?;
    let arg = |label, flags| uapi::IrqfdArg {
        fd: event.as_raw_fd() as u32,
        label,
        flags,
        ..Default::default()
    };
    let add = |label, flags| guest.vm.add_function(uapi::FUNCTION_IRQFD, &arg(label, flags));
    run.begin()?;
    run.attempt("IRQFD", || add(0, 0))?;
    run.attempt("IRQFD", || add(1, uapi::IRQFD_LEVEL))?;
    run.attempt("VM_START", || guest.vm.start())?;
    run.attempt("IRQFD", || add(2, 0))?;
    run.attempt("IRQFD", || add(3, uapi::IRQFD_LEVEL))?;
    run.attempt("the end of one", || guest.vm.remove_function(uapi::FUNCTION_IRQFD, &arg(1, 0)))?;
    run.end()?;
    event.write(1)?;
    for (label, flags) in [(0, 1), (1, 0), (2, 1), (3, 0)] {
        same(guest.ask(Order::CallForX1(BELL_RECEIVE, label, 1))?, flags)?;
    }
    Ok(())
}

/// Of each kind, before and after the start, and with a way back.
fn irqfd_with_a_gic(run: &Run) -> Result<()> {
    let guest = Guest::new(&run.device, 32, 0)?;
    // SPIs of both of EL2's pages.
    let tree = with_gic(GICD, 1, [(0, 8, 1), (1, 9, 4), (2, 900, 4)])?;
    access::write_all(&guest.mapping, AT * PAGE, &tree)?;
    guest.mapping.forget(AT, 1)?;
    guest.vm.set_dtb(RAM + AT * PAGE, PAGE)?;
    let (event, back) = (EventFd::new().context("eventfd")?, EventFd::new().context("eventfd")?);
    let arg = |label, flags| uapi::IrqfdArg {
        fd: event.as_raw_fd() as u32,
        label,
        flags,
        resample_fd: back.as_raw_fd() as u32,
    };
    let add = |label, flags| guest.vm.add_function(uapi::FUNCTION_IRQFD, &arg(label, flags));
    run.begin()?;
    run.attempt("IRQFD", || add(0, 0))?;
    run.attempt("VM_START", || guest.vm.start())?;
    run.attempt("IRQFD", || add(1, uapi::IRQFD_RESAMPLE))?;
    run.attempt("IRQFD", || add(2, 0))?;
    run.attempt("the end of one", || guest.vm.remove_function(uapi::FUNCTION_IRQFD, &arg(1, 0)))?;
    run.end()?;
    event.write(1)?;
    guest.ask(Order::Load(RAM)).map(drop)
}

/// Before and after the start.
fn console(run: &Run) -> Result<()> {
    let guest = Guest::new(&run.device, 32, 0)?;
    let arg = |addr| uapi::ConsoleArg { addr, interrupt: 33, flags: 0 };
    let add = |addr| {
        let arg = arg(addr);
        guest.vm.add(&function(uapi::FUNCTION_CONSOLE, &arg))
    };
    run.begin()?;
    let first = run.attempt("a console", || add(0x900_0000))?;
    run.attempt("VM_START", || guest.vm.start())?;
    let second = run.attempt("a console", || add(0x900_1000))?;
    run.attempt("the end of one", || {
        guest.vm.remove_function(uapi::FUNCTION_CONSOLE, &arg(0x900_1000))
    })?;
    run.end()?;
    guest.ask(Order::Write(0x900_0000, 65, 4))?;
    let mut text = [0; 8];
    same((nix::unistd::read(&first, &mut text)?, text[0]), (1, 65))?;
    same(nix::unistd::read(&second, &mut text)?, 0)
}

fn fetch(run: &Run) -> Result<()> {
    let guest = Guest::started(&run.device, 32, 0)?;
    guest.ask(Order::Visit(RAM + AT * PAGE, 3))?;
    for page in AT..AT + 3 {
        guest.ask(Order::Unlock(RAM + page * PAGE, ZERO))?;
    }
    run.begin()?;
    for page in AT..AT + 3 {
        let what = "a read of what the guest has given up";
        let seen =
            run.attempt_on(&guest.memory, what, || access::read(&guest.mapping, page * PAGE))?;
        same(seen, 0).context(what)?;
    }
    run.end()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Clear {
    Punch,
    Shrink,
    Unbind,
}

fn clear(run: &Run, flags: u32, how: Clear) -> Result<()> {
    let Guest { memory, mapping, vm, vcpu } = {
        let guest = Guest::started(&run.device, 32, flags)?;
        guest.ask(Order::Visit(RAM + AT * PAGE, 5))?;
        if flags == 0 {
            for page in AT..AT + 5 {
                guest.ask(Order::Unlock(RAM + page * PAGE, MODIFY_UNLOCK))?;
            }
        }
        guest
    };
    let with_guests =
        || -> Result<u64> { Ok(memory.count(fdinfo::LENT)? + memory.count(fdinfo::SHARED)?) };
    let before = with_guests()?;
    run.begin()?;
    match how {
        Clear::Punch => run.attempt_on(&memory, "a hole", || memory.punch(AT, 5))?,
        Clear::Shrink => run.attempt_on(&memory, "ftruncate", || memory.resize(AT * PAGE))?,
        // Where the binding ends may be the last thing that fails, with the
        // pages home: the guest brings them in again when it needs them.
        Clear::Unbind => {
            run.attempt("UNMAP", || vm.unbind(RAM + AT * PAGE, &memory, AT, 5))?;
        }
    }
    run.end()?;
    same(with_guests()?, before - 5)?;
    if how == Clear::Punch {
        same(access::read(&mapping, AT * PAGE)?, 0).context("a hole is zeros")?;
    }
    drop(vcpu);
    Ok(())
}

fn from_guest_to_guest(run: &Run) -> Result<()> {
    let one = Guest::started(&run.device, 32, 0)?;
    let other = Guest::started(&run.device, 32, 0)?;
    let far = RAM + (1 << 30);
    other.vm.bind(far, RWX, &one.memory, AT, 1)?;
    one.ask(Order::Store(RAM + AT * PAGE, 7))?;
    one.ask(Order::Unlock(RAM + AT * PAGE, MODIFY_UNLOCK))?;
    run.begin()?;
    let seen = run.ask(&other, Order::Load(far))?;
    run.end()?;
    same(seen, 7).context("what the first has given up comes with what it had written")
}

fn safe_references(run: &Run) -> Result<()> {
    let memory = run.device.memory(16)?;
    let holder = Holder::open()?;
    run.begin()?;
    run.attempt_on(&memory, "escrow_ref_take", || holder.take(&memory, 1, 4, Manner::Ends))?;
    run.attempt_on(&memory, "escrow_ref_begin_access", || holder.begin(1, 4))?;
    run.attempt_on(&memory, "escrow_ref_end_access", || holder.end(1, 4))?;
    run.attempt_on(&memory, "escrow_ref_release", || holder.release())?;
    run.end()?;
    memory.punch(0, 16).context("nobody has a reference")
}

fn a_dma_buf(run: &Run) -> Result<()> {
    let memory = run.device.memory(16)?;
    if memory.export(1, 4).err() == Some(Errno::EOPNOTSUPP) {
        return Ok(()); // a kernel without dma-bufs
    }
    let holder = Holder::open()?;
    run.begin()?;
    let buffer = run.attempt_on(&memory, "MEM_EXPORT_DMABUF", || memory.export(1, 4))?;
    run.attempt_on(&memory, "attaching it", || holder.attach(&buffer, Manner::Ends))?;
    run.attempt_on(&memory, "mapping it", || holder.map())?;
    run.attempt_on(&memory, "unmapping it", || holder.unmap())?;
    run.end()?;
    holder.detach()?;
    drop(buffer);
    Ok(())
}

fn look_at_the_counts(run: &Run) -> Result<()> {
    run.begin()?;
    let read = || Facts::read().map_err(|_| Errno::EBUSY);
    let facts = run.attempt("reading the counts", read);
    run.end()?;
    same(facts?, Facts::read()?)
}

/// Closes the VM (0), its vCPU (1) and the memory (2) in this order.
fn end(run: &Run, flags: u32, order: [u8; 3]) -> Result<()> {
    let guest = Guest::started(&run.device, 32, flags)?;
    guest.ask(Order::Visit(RAM + AT * PAGE, 5))?;
    let Guest { memory, mapping, vm, vcpu } = guest;
    drop(mapping);
    let (mut vm, mut vcpu, mut memory) = (Some(vm), Some(vcpu), Some(memory));
    run.begin()?;
    for which in order {
        match which {
            0 => drop(vm.take()),
            1 => drop(vcpu.take()),
            _ => drop(memory.take()),
        }
    }
    run.end()
}
