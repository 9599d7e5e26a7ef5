// SPDX-License-Identifier: MIT OR Apache-2.0

//! A VM with the guest of `guest.S` in it.

use std::arch::global_asm;

use anyhow::{Context as _, Result, bail, ensure};
use escrow_vmcore::uapi;
use nix::errno::Errno;

use crate::access;
use crate::gunyah::{Device, Exit, Mapping, Memory, PAGE, RWX, Vcpu, Vm};

global_asm!(include_str!("guest.S"), options(raw));

/// Guest address of the memory's first page, where the program is.
pub const RAM: u64 = 0x8000_0000;
/// Where the guest reads its orders.
pub const WINDOW: u64 = 0x6000;
/// Where it answers.
pub const ANSWER: u64 = WINDOW + 0x20;
/// Where it tells of an exception.
const EXCEPTION: u64 = WINDOW + 0x28;

/// Exception class of a data abort without a change of level.
pub const DATA_ABORT: u64 = 0x25;

/// The guest's program.
pub fn program() -> Vec<u8> {
    unsafe extern "C" {
        static shim_guest_start: u8;
        static shim_guest_end: u8;
    }
    let (start, end) = (&raw const shim_guest_start, &raw const shim_guest_end);
    let bytes = end.addr() - start.addr();
    // SAFETY: the program lies between the two symbols.
    unsafe { std::slice::from_raw_parts(start, bytes) }.to_vec()
}

/// What the guest is told.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Load a word.
    Load(u64),
    /// Store a word.
    Store(u64, u64),
    /// Unlock a page, with flags.
    Unlock(u64, u64),
    /// Unlock so many bytes, with flags.
    UnlockRun(u64, u64, u64),
    /// Loop for ever.
    Loop,
    /// Switch off.
    Off,
    /// Store into each page of a run.
    Visit(u64, u64),
    /// The same, then unlock each with flags, for ever.
    ComeAndGo(u64, u64, u64),
    /// Store the low bytes of a word, as many as the last number says.
    Write(u64, u64, u64),
    /// Store 4 bytes so many times, counting down to 1.
    CountDown(u64, u64),
    /// Make a call with two arguments; the answer is its X0.
    Call(u32, u64, u64),
    /// The same; the answer is its X1, if X0 is 0.
    CallForX1(u32, u64, u64),
    /// Wait for an interrupt and take it; the answer is how many there were.
    Wait,
    /// The same, awake.
    Spin,
    /// Wait for an interrupt and do not take it; the answer is ISR_EL1.
    WaitMasked,
    /// The answer is ISR_EL1.
    Pending,
    /// Translate by the table of [`identity`] at that address, so that memory bears
    /// unaligned accesses.
    Translate(u64),
    /// Enable the GIC's CPU interface, for interrupts of group 1.
    GicOn,
    /// Acknowledge an interrupt; the answer is its INTID, 1023 if there is none.
    Acknowledge,
    /// End the interrupt with that INTID.
    End(u64),
    /// Write to ICC_SGI1R_EL1.
    Sgi(u64),
    /// Let the virtual timer expire in so many ticks, and wait for its interrupt; the answer is how
    /// many ticks that took.
    Timer(u64),
    /// Switch it off, and with it its interrupt, which is a level.
    TimerOff,
    /// Give pages that RIPAS, from an address to another; the answer is 0 if all have it.
    SetRipas(u64, u64, u64),
    /// Ask for it: the answer is how far there is one alike, and that.
    GetRipas(u64, u64),
    /// Make a call of the Realm Services Interface with one argument; the answer is its X0.
    Realm(u32, u64),
}

/// A level 1 table: the first 4 GiB where they are, as normal memory.
pub fn identity() -> Vec<u8> {
    const BLOCK: u64 = 0b01 | 3 << 8 | 1 << 10;
    (0..4u64).flat_map(|gib| (gib << 30 | BLOCK).to_le_bytes()).collect()
}

impl Order {
    /// What the guest reads, word by word, from [`WINDOW`] on.
    pub fn words(self) -> [u64; 4] {
        match self {
            Order::Load(at) => [0, at, 0, 0],
            Order::Store(at, word) => [1, at, word, 0],
            Order::Unlock(at, flags) => [2, at, PAGE, flags],
            Order::UnlockRun(at, size, flags) => [2, at, size, flags],
            Order::Loop => [3, 0, 0, 0],
            Order::Off => [4, 0, 0, 0],
            Order::Visit(at, pages) => [5, at, pages, 0],
            Order::ComeAndGo(at, pages, flags) => [6, at, pages, flags],
            Order::Write(at, word, size) => [0x10, at, word, size],
            Order::CountDown(at, times) => [0x11, at, times, 0],
            Order::Call(function, first, second) => [0x12, function.into(), first, second],
            Order::CallForX1(function, first, second) => [0x13, function.into(), first, second],
            Order::Wait => [0x14, 0, 0, 0],
            Order::Spin => [0x15, 0, 0, 0],
            Order::WaitMasked => [0x16, 0, 0, 0],
            Order::Pending => [0x17, 0, 0, 0],
            Order::Translate(table) => [0x18, table, 0, 0],
            Order::GicOn => [0x19, 0, 0, 0],
            Order::Acknowledge => [0x1a, 0, 0, 0],
            Order::End(intid) => [0x1b, intid, 0, 0],
            Order::Sgi(to) => [0x1c, to, 0, 0],
            Order::Timer(ticks) => [0x1d, ticks, 0, 0],
            Order::TimerOff => [0x1e, 0, 0, 0],
            Order::SetRipas(base, top, ripas) => [0x1f, base, top, ripas],
            Order::GetRipas(base, top) => [0x20, base, top, 0],
            Order::Realm(function, arg) => [0x21, function.into(), arg, 0],
        }
    }

    fn is_endless(self) -> bool {
        matches!(self, Order::Loop | Order::ComeAndGo(..))
    }
}

/// A VM whose memory holds the program in its first page.
pub struct Guest {
    /// The memory.
    pub memory: Memory,
    /// All of it, mapped.
    pub mapping: Mapping,
    /// The VM.
    pub vm: Vm,
    /// Its vCPU 0.
    pub vcpu: Vcpu,
}

impl Guest {
    /// One that has not been started. `flags` are those of the memory's
    /// binding, beside its rights.
    pub fn new(device: &Device, pages: u64, flags: u32) -> Result<Guest> {
        Guest::of(device, device.memory(pages)?, pages, flags)
    }

    /// The same on a memory with flags of its own.
    pub fn with_memory(device: &Device, pages: u64, memory_flags: u64) -> Result<Guest> {
        let flags = uapi::MEM_CLOEXEC | memory_flags;
        let memory =
            device.create_mem(&uapi::CreateMem { flags, size: pages * PAGE, reserved: [0; 6] })?;
        Guest::of(device, memory, pages, 0)
    }

    fn of(device: &Device, memory: Memory, pages: u64, flags: u32) -> Result<Guest> {
        Guest::in_vm(device.vm()?, memory, pages, flags)
    }

    /// The same in a VM that is there already.
    pub fn in_vm(vm: Vm, memory: Memory, pages: u64, flags: u32) -> Result<Guest> {
        let mapping = memory.map(0, pages)?;
        access::write_all(&mapping, 0, &program())?;
        vm.bind(RAM, RWX | flags, &memory, 0, pages)?;
        let vcpu = vm.vcpu(0)?;
        Ok(Guest { memory, mapping, vm, vcpu })
    }

    /// One that runs.
    pub fn started(device: &Device, pages: u64, flags: u32) -> Result<Guest> {
        let guest = Guest::new(device, pages, flags)?;
        guest.vm.start().context("VM_START")?;
        Ok(guest)
    }

    /// Runs it, whatever signals come.
    pub fn run(&self) -> Result<Exit> {
        run(&self.vcpu)
    }

    /// Gives an order, and returns the exit that is the answer to it or
    /// something else. An endless one is answered by having been taken.
    pub fn order(&self, order: Order) -> Result<Exit> {
        let first = self.run()?;
        order_after(&self.vcpu, first, order)
    }

    /// Gives an order and returns the guest's answer.
    pub fn ask(&self, order: Order) -> Result<u64> {
        ask(&self.vcpu, order)
    }

    /// Gives an order that ends in a data abort, and lets the guest go on to
    /// the answer behind it.
    pub fn expect_abort(&self, order: Order) -> Result<()> {
        let exit = self.order(order)?;
        self.expect_abort_now(exit)
    }

    /// An exit that tells of a data abort.
    pub fn expect_abort_now(&self, exit: Exit) -> Result<()> {
        ensure!(exit == Exit::Write(EXCEPTION, DATA_ABORT), "no abort but {exit:x?}");
        let exit = self.run()?;
        ensure!(matches!(exit, Exit::Write(ANSWER, _)), "no answer but {exit:x?}");
        Ok(())
    }
}

/// [`Guest::ask`] for any vCPU.
pub fn ask(vcpu: &Vcpu, order: Order) -> Result<u64> {
    match order_after(vcpu, run(vcpu)?, order)? {
        Exit::Write(ANSWER, word) => Ok(word),
        exit => bail!("{order:x?} ended in {exit:x?}"),
    }
}

/// Runs a vCPU, whatever signals come.
pub fn run(vcpu: &Vcpu) -> Result<Exit> {
    loop {
        match vcpu.run() {
            Err(Errno::EINTR) => {}
            result => return result.context("VCPU_RUN"),
        }
    }
}

/// Whether a vCPU that was left with that exit asks for its next order.
pub fn wants_order(exit: Exit) -> bool {
    exit == Exit::Read(WINDOW, 8)
}

/// [`Guest::order`] for any vCPU, which was left with an exit. One that asks for
/// its next order twice has gone through the program's start between.
pub fn order_after(vcpu: &Vcpu, exit: Exit, order: Order) -> Result<Exit> {
    let words = order.words();
    let mut exit = exit;
    let mut taken = false;
    loop {
        let Exit::Read(at @ WINDOW..ANSWER, 8) = exit else { return Ok(exit) };
        if wants_order(exit) && taken {
            return Ok(exit);
        }
        taken = true;
        let index = ((at - WINDOW) / 8) as usize;
        vcpu.answer(words[index]);
        if order.is_endless() && index + 1 == words.len() {
            return Ok(exit);
        }
        exit = run(vcpu)?;
    }
}
