// SPDX-License-Identifier: MIT OR Apache-2.0

//! Protected VMs: memory that guests open by Arm's Realm Services Interface.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use escrow_abi::{psci, rsi};
use escrow_vmcore::uapi::{self, DEBUGFS_DIR, fdinfo};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::{refused, same};
use crate::access::{Pin, load, read, write};
use crate::guest::{ANSWER, Guest, Order, RAM};
use crate::gunyah::{Device, Exit, Memory, PAGE, RWX};

/// Pages of a block.
const BLOCK: u64 = 512;

/// What the guest tells of a range that EL2 has not changed.
const REJECTED: u64 = 0x100;

/// The guest's address of a page.
const fn at(page: u64) -> u64 {
    RAM + page * PAGE
}

struct Protected {
    guest: Guest,
    shared: u64,
    pages: u64,
}

impl Protected {
    /// One that has not been started.
    fn new(device: &Device, memory: Memory, pages: u64) -> Result<Protected> {
        let vm = device.vm()?;
        let shared = vm.protect().context("VM_PROTECT")?;
        let guest = Guest::in_vm(vm, memory, pages, 0)?;
        // Devices are in the shared half: the guest looks for its orders there.
        let reg = uapi::boot_register(uapi::REG_SET_X, 5);
        guest.vm.set_boot_context(&uapi::BootContext { reg, reserved: 0, value: shared })?;
        Ok(Protected { guest, shared, pages })
    }

    /// One that runs, and has said that all of its memory is RAM.
    fn started(device: &Device, memory: Memory, pages: u64) -> Result<Protected> {
        let protected = Protected::new(device, memory, pages)?;
        protected.start()?;
        Ok(protected)
    }

    fn start(&self) -> Result<()> {
        self.guest.vm.start().context("VM_START")?;
        self.set(0, self.pages, rsi::RAM)
    }

    fn ask(&self, order: Order) -> Result<u64> {
        self.guest.ask(order)
    }

    /// Pages from one to another.
    fn set(&self, first: u64, end: u64, ripas: u64) -> Result<()> {
        let answer = self.ask(Order::SetRipas(at(first), at(end), ripas))?;
        same(answer, 0).with_context(|| format!("pages {first} to {end}: RIPAS {ripas}"))
    }

    /// The guest loads from a page in the shared half.
    fn peek(&self, page: u64) -> Result<u64> {
        self.ask(Order::Load(at(page) | self.shared))
    }

    fn counts(&self) -> Result<[u64; 2]> {
        let memory = &self.guest.memory;
        Ok([memory.count(fdinfo::LENT)?, memory.count(fdinfo::SHARED)?])
    }
}

/// Before bindings, functions and the start, and once; and bindings are in the protected half.
pub fn is_asked_for_first() -> Result<()> {
    let device = Device::open()?;
    let vm = device.vm()?;
    let shared = vm.protect()?;
    ensure!(shared > 1 << 31, "{shared:#x}");
    refused(vm.protect(), Errno::EBUSY).context("again")?;
    let memory = device.memory(4)?;
    refused(vm.bind(shared, RWX, &memory, 0, 1), Errno::EINVAL).context("in the shared half")?;
    refused(vm.bind(shared - PAGE, RWX, &memory, 0, 2), Errno::EINVAL).context("a part of it")?;
    vm.bind(shared - PAGE, RWX, &memory, 0, 1)?;

    let vm = device.vm()?;
    vm.bind(RAM, RWX, &memory, 1, 1)?;
    refused(vm.protect(), Errno::EBUSY).context("behind a binding")?;
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;
    refused(vm.protect(), Errno::EBUSY).context("behind a vCPU")?;
    drop(vcpu);
    let guest = Guest::started(&device, 2, 0)?;
    refused(guest.vm.protect(), Errno::EBUSY).context("behind the start")?;
    // Its guest has no such interface.
    same(guest.ask(Order::Realm(rsi::VERSION, rsi::VERSION_1_0))?, psci::NOT_SUPPORTED)
}

/// What a guest opens, its host first sees as zeros; what it takes back, its host sees no more.
pub fn pages_are_opened_and_taken_back() -> Result<()> {
    let device = Device::open()?;
    let protected = Protected::new(&device, device.memory(64)?, 64)?;
    let Protected { guest, shared, .. } = &protected;
    write(&guest.mapping, 8 * PAGE, 0x1234)?;
    let other = device.memory(1024)?;
    write(&other.map(0, 1024)?, 700 * PAGE, 0x700)?;
    guest.vm.bind(at(4096), RWX, &other, 0, 1024)?;
    protected.start()?;
    same(protected.counts()?, [2, 0]).context("all that is there is lent at the start")?;
    let others = [other.count(fdinfo::LENT)?, other.count(fdinfo::PRESENT)?];
    same(others, [1, 0]).context("and nothing else")?;
    same(protected.ask(Order::Load(at(4096 + 700)))?, 0x700)?;
    refused(read(&guest.mapping, 8 * PAGE), Errno::EFAULT).context("at once")?;
    same(protected.ask(Order::Load(at(8)))?, 0x1234)?;
    // From then on, the host chooses nothing that the guest sees.
    write(&guest.mapping, 9 * PAGE, 0x99)?;
    same(protected.ask(Order::Load(at(9)))?, 0)?;
    same(protected.ask(Order::Realm(rsi::VERSION, rsi::VERSION_1_0))?, 0)?;
    same(protected.ask(Order::Realm(rsi::REALM_CONFIG, at(12)))?, 0)?;
    same(1u64 << (protected.ask(Order::Load(at(12)))? - 1), *shared)?;

    protected.ask(Order::Store(at(10), 0x66))?;
    guest.expect_abort(Order::Load(at(10) | shared)).context("it has not given it up")?;
    same(protected.ask(Order::Load(at(10)))?, 0x66)?;
    protected.set(10, 11, rsi::EMPTY)?;
    same(protected.ask(Order::GetRipas(at(10), at(20)))?, at(11) | rsi::EMPTY)?;
    same(protected.peek(10)?, 0)?;
    same(protected.counts()?, [4, 1])?;
    same(read(&guest.mapping, 10 * PAGE)?, 0).context("what the host sees first")?;
    protected.ask(Order::Store(at(10) | shared, 0x77))?;
    same(read(&guest.mapping, 10 * PAGE)?, 0x77)?;
    write(&guest.mapping, 10 * PAGE, 0x88)?;
    same(protected.peek(10)?, 0x88)?;
    guest.expect_abort(Order::Load(at(10))).context("the protected half has nothing there")?;
    // One that the host fetches, and one that nobody ever had.
    protected.ask(Order::Store(at(8), 0x55))?;
    protected.set(8, 9, rsi::EMPTY)?;
    same(read(&guest.mapping, 8 * PAGE)?, 0)?;
    write(&guest.mapping, 8 * PAGE, 0x44)?;
    same(protected.peek(8)?, 0x44)?;
    protected.set(40, 41, rsi::EMPTY)?;
    protected.ask(Order::Store(at(40) | shared, 3))?;
    same(read(&guest.mapping, 40 * PAGE)?, 3)?;

    protected.set(10, 11, rsi::RAM)?;
    same(protected.peek(10)?, 0x88).context("until it is touched")?;
    same(protected.ask(Order::Load(at(10)))?, 0).context("not the host's words")?;
    refused(read(&guest.mapping, 10 * PAGE), Errno::EFAULT)?;
    same(load(&guest.mapping, 10 * PAGE)?, Err(libc::BUS_ADRERR))?;
    guest.expect_abort(Order::Load(at(10) | shared))?;
    same(protected.counts()?, [4, 2])?;
    let vms = fs::read_to_string(format!("{DEBUGFS_DIR}/vms")).context("debugfs")?;
    let column = |name: &str| -> Result<u64> {
        let mut lines = vms.lines();
        let names = lines.next().context("names")?.split(' ');
        let row = lines.next().context("a VM")?;
        let word = names.zip(row.split(' ')).find(|(it, _)| *it == name);
        Ok(word.with_context(|| format!("{name} in {vms}"))?.1.parse()?)
    };
    same([column("opened")?, column("taken_back")?], [3, 1])
}

/// As any lend: who has the page in the host has to let go first.
pub fn a_pin_holds_off_taking_back() -> Result<()> {
    let device = Device::open()?;
    let protected = Protected::started(&device, device.memory(16)?, 16)?;
    let guest = &protected.guest;
    protected.set(10, 11, rsi::EMPTY)?;
    protected.ask(Order::Store(at(10) | protected.shared, 5))?;
    let pin = Pin::take(&guest.mapping, 10)?;
    protected.set(10, 11, rsi::RAM)?;
    let refusal = Exit::PageFault(at(10), Errno::EAGAIN);
    same(guest.order(Order::Load(at(10)))?, refusal)?;
    same(guest.memory.refusal()?, "offset=0xa000 excess=1 accessible=0".to_owned())?;
    same(guest.run()?, refusal).context("again")?;
    same(pin.drain()?[0], 5)?;
    same(guest.run()?, Exit::Write(ANSWER, 0))?;
    refused(read(&guest.mapping, 10 * PAGE), Errno::EFAULT)
}

/// Holes, a smaller memory and unbinding take open pages, and leave what is the guest's alone.
pub fn what_goes_while_it_is_open() -> Result<()> {
    let device = Device::open()?;
    let protected = Protected::started(&device, device.memory(64)?, 64)?;
    let (guest, shared) = (&protected.guest, protected.shared);
    protected.ask(Order::Store(at(13), 0x13))?;
    protected.set(8, 12, rsi::EMPTY)?;
    protected.ask(Order::Visit(at(8) | shared, 4))?;
    guest.memory.punch(8, 1)?;
    same(protected.peek(8)?, 0)?;
    same(protected.peek(9)?, at(9) | shared).context("its neighbour")?;
    refused(guest.memory.punch(12, 2), Errno::EBUSY).context("what it has for itself")?;
    guest.vm.unbind(at(11), &guest.memory, 11, 1)?;
    same(guest.order(Order::Load(at(11) | shared))?, Exit::Read(at(11), 8))?;
    guest.vcpu.answer(0x5a);
    same(guest.run()?, Exit::Write(ANSWER, 0x5a))?;
    same(read(&guest.mapping, 11 * PAGE)?, at(11) | shared).context("its contents stay")?;
    same(protected.ask(Order::Load(at(13)))?, 0x13)?;
    // Where nothing is bound, nothing becomes RAM.
    same(protected.ask(Order::SetRipas(at(11), at(12), rsi::RAM))?, REJECTED)?;
    guest.expect_abort(Order::Load(at(11)))?;
    // All that is away comes home.
    let Protected { guest: Guest { memory, mapping, vm, vcpu }, .. } = protected;
    drop((vm, vcpu));
    same([memory.count(fdinfo::LENT)?, memory.count(fdinfo::SHARED)?], [0, 0])?;
    same(read(&mapping, 9 * PAGE)?, at(9) | shared)?;
    same(read(&mapping, 13 * PAGE)?, 0)
}

/// More tables than a VM begins with.
pub fn tables_come_when_a_call_lacks_them() -> Result<()> {
    const PAGES: u64 = 64 * BLOCK;
    let device = Device::open()?;
    let protected = Protected::started(&device, device.memory(PAGES)?, PAGES)?;
    for n in 1..64 {
        let page = n * BLOCK + 1;
        protected.set(page, page + 2, rsi::EMPTY).with_context(|| format!("table {n}"))?;
        let told = protected.ask(Order::GetRipas(at(page), at(page + BLOCK - 1)))?;
        same(told, at(page + 2) | rsi::EMPTY)?;
    }
    // What is not its memory takes none.
    let beyond = PAGES + 7 * BLOCK + 1;
    same(protected.ask(Order::SetRipas(at(beyond), at(beyond + 1), rsi::RAM))?, REJECTED)
}

/// RAM that the guest has and that does not come any more ends it: its host answers no access to RAM with an
/// abort.
pub fn ram_that_is_gone_ends_the_guest() -> Result<()> {
    let device = Device::open()?;
    let protected = Protected::started(&device, device.memory(16)?, 16)?;
    let guest = &protected.guest;
    guest.vm.unbind(at(9), &guest.memory, 9, 1)?;
    let end = Exit::PageFault(at(9), Errno::EPERM);
    same(guest.order(Order::Load(at(9)))?, end)?;
    same(guest.run()?, end).context("again")?;
    guest.vcpu.refuse_page(uapi::RESUME_FAULT);
    refused(guest.vcpu.run(), Errno::EINVAL).context("an abort")
}

/// A block that is lent, or open, as one is divided when its pages are no longer alike.
pub fn parts_of_blocks() -> Result<()> {
    const PAGES: u64 = 3 * BLOCK;
    let device = Device::open()?;
    let protected = Protected::started(&device, device.huge_memory(PAGES)?, PAGES)?;
    let guest = &protected.guest;
    same(protected.counts()?, [BLOCK, 0]).context("the block with the program")?;
    for page in [2, 5, BLOCK + 9] {
        protected.ask(Order::Store(at(page), page))?;
    }
    same(protected.counts()?, [2 * BLOCK, 0])?;
    // A part of a lent one.
    protected.set(3, 5, rsi::EMPTY)?;
    same([protected.peek(3)?, protected.peek(4)?], [0, 0])?;
    same(protected.counts()?, [2 * BLOCK - 2, 2])?;
    same([protected.ask(Order::Load(at(2)))?, protected.ask(Order::Load(at(5)))?], [2, 5])?;
    for page in [2, 5, BLOCK + 9] {
        refused(read(&guest.mapping, page * PAGE), Errno::EFAULT).context("the rest is lent")?;
    }
    same(read(&guest.mapping, 3 * PAGE)?, 0)?;
    // All of one, which goes as one.
    protected.set(BLOCK, 2 * BLOCK, rsi::EMPTY)?;
    same(protected.peek(BLOCK + 9)?, 0)?;
    same(protected.counts()?, [BLOCK - 2, BLOCK + 2])?;
    write(&guest.mapping, (BLOCK + 8) * PAGE, 8)?;
    // A part of it is taken back.
    protected.set(BLOCK + 9, BLOCK + 10, rsi::RAM)?;
    same(protected.ask(Order::Load(at(BLOCK + 9)))?, 0)?;
    refused(read(&guest.mapping, (BLOCK + 9) * PAGE), Errno::EFAULT)?;
    same(protected.peek(BLOCK + 8)?, 8)?;
    same(protected.counts()?, [BLOCK - 1, 3])?;
    // One that nobody has touched, of which the guest wants a page for each half.
    protected.set(2 * BLOCK, 2 * BLOCK + 1, rsi::EMPTY)?;
    protected.ask(Order::Store(at(2 * BLOCK) | protected.shared, 7))?;
    protected.ask(Order::Store(at(2 * BLOCK + 1), 1))?;
    same(read(&guest.mapping, 2 * BLOCK * PAGE)?, 7)?;
    same(protected.peek(2 * BLOCK)?, 7)?;
    refused(read(&guest.mapping, (2 * BLOCK + 1) * PAGE), Errno::EFAULT)?;
    same(protected.ask(Order::Load(at(2 * BLOCK + 1)))?, 1)
}

/// As Linux does with its bounce buffers: gives many up, and then touches one after the other.
pub fn a_long_run_is_opened() -> Result<()> {
    const PAGES: u64 = 2048;
    let device = Device::open()?;
    let protected = Protected::started(&device, device.memory(PAGES + 64)?, PAGES + 64)?;
    let (mapping, shared) = (&protected.guest.mapping, protected.shared);
    // Some of them it has had.
    protected.ask(Order::Visit(at(100), 500))?;
    protected.set(64, 64 + PAGES, rsi::EMPTY)?;
    protected.ask(Order::Visit(at(64) | shared, PAGES))?;
    same(protected.counts()?, [1, PAGES])?;
    for page in [64, 99, 100, 599, 600, 63 + PAGES] {
        same(read(mapping, page * PAGE)?, at(page) | shared)?;
    }
    // Every second one it takes back, and they are zero.
    for page in (64..164).step_by(2) {
        protected.set(page, page + 1, rsi::RAM)?;
        same(protected.ask(Order::Load(at(page)))?, 0)?;
        refused(read(mapping, page * PAGE), Errno::EFAULT)?;
        same(read(mapping, (page + 1) * PAGE)?, at(page + 1) | shared)?;
    }
    same(protected.counts()?, [51, PAGES - 50])
}

/// SIGKILL to processes whose guests open pages and take them back.
pub fn killed_at_any_moment() -> Result<()> {
    for round in 0..16u64 {
        // SAFETY: the tests run in a process with one thread.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                let life = || -> Result<()> {
                    let device = Device::open()?;
                    let pages = 2 * BLOCK;
                    let memory = match round & 1 {
                        0 => device.memory(pages)?,
                        _ => device.huge_memory_if_any(pages)?,
                    };
                    let protected = Protected::started(&device, memory, pages)?;
                    for n in 0.. {
                        let first = 16 + n * 37 % 900;
                        protected.ask(Order::Visit(at(first), 20))?;
                        protected.set(first, first + 20, rsi::EMPTY)?;
                        protected.ask(Order::Visit(at(first) | protected.shared, 20))?;
                        protected.set(first + 5, first + 15, rsi::RAM)?;
                    }
                    Ok(())
                };
                let _ = life();
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(1) }
            }
            ForkResult::Parent { child } => {
                thread::sleep(Duration::from_micros(2_000 + round * 7919 % 60_000));
                kill(child, Signal::SIGKILL)?;
                let status = waitpid(child, None)?;
                ensure!(
                    matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
                    "round {round}: {status:?}"
                );
            }
        }
    }
    Ok(())
}
