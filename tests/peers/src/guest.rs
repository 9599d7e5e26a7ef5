// SPDX-License-Identifier: MIT OR Apache-2.0

//! The guest of `guest.S`, whoever runs it.

use std::arch::global_asm;

use anyhow::{Result, bail, ensure};

use crate::counter::Counters;

global_asm!(include_str!("guest.S"));

unsafe extern "C" {
    static peer_guest_begin: u8;
    static peer_guest_end: u8;
}

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of a block.
pub const BLOCK: u64 = 2 << 20;
/// Pages of a block.
pub const PAGES_PER_BLOCK: u64 = BLOCK / PAGE;

/// Guest address of the memory. Its first block holds the program, at its very
/// beginning, where vCPU 0 starts.
pub const MEMORY: u64 = 0x4000_0000;
/// Where the guest has no memory; X28 of vCPU 0.
pub const DEVICE: u64 = 0x0900_0000;
/// Where it has none either. Who runs it answers the first load from here by this number, and
/// each one after it by the next.
pub const ECHO: u64 = 0x0901_0000;

/// The program.
pub fn program() -> &'static [u8] {
    let (begin, end) = (&raw const peer_guest_begin, &raw const peer_guest_end);
    // SAFETY: the program lies between the two symbols, and nobody changes it.
    unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) }
}

/// Guest address of one of the blocks behind the first.
pub fn block(number: u64) -> u64 {
    MEMORY + (1 + number) * BLOCK
}

/// The sum of the addresses of pages, which is what a guest finds in them if
/// each holds its own.
pub fn addresses(at: u64, pages: u64) -> u64 {
    (0..pages).map(|n| at + n * PAGE).sum()
}

/// What the guest is to do.
#[derive(Clone, Copy)]
pub enum What {
    /// Calls of a function, with `first` as their argument.
    Calls(u64),
    /// Loads from `first` on.
    Loads,
    /// Nothing: as calls, with a NOP in their place.
    Nothing,
    /// Escrow's and Gunyah's `MODIFY_PAGES`, with these flags, of `stride`
    /// bytes each from `first` on.
    Modify(u64),
}

/// How much the guest tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// That it is done.
    Done,
    /// The ticks that loads took, together.
    Sum,
    /// The ticks of each load or call, by an exit of its own.
    Each,
}

/// Work for the guest.
#[derive(Clone, Copy)]
pub struct Work {
    /// What is done.
    pub what: What,
    /// Argument of the first call, or address of the first load.
    pub first: u64,
    /// What is added to it each time.
    pub stride: u64,
    /// How often it is done.
    pub count: u64,
}

impl Work {
    /// So much of it.
    pub const fn new(what: What, first: u64, stride: u64, count: u64) -> Work {
        Work { what, first, stride, count }
    }
}

/// What the guest did.
pub struct Done {
    /// Instructions at EL2, the exits before and after the work among them,
    /// and perhaps the guest's own.
    pub el2: i64,
    /// Sum of the answers or of the loaded words.
    pub sum: u64,
    /// Ticks of each; or the least of them and their sum.
    pub ticks: Vec<u64>,
}

/// What a guest does where it has no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load of eight bytes.
    Load(u64),
    /// A store of eight bytes, and what is stored.
    Store(u64, u64),
}

/// Whoever runs the guest.
pub trait Vcpu {
    /// Runs the guest up to its next access to where it has no memory. If that
    /// is a load, the guest gets `answer`.
    ///
    /// # Errors
    /// The guest ends otherwise, or cannot be run.
    fn run(&mut self, answer: u64) -> Result<Access>;
}

/// Has the guest do something. Counts what EL2 does meanwhile.
///
/// # Errors
/// The guest does something else.
pub fn run(
    vcpu: &mut impl Vcpu,
    work: Work,
    telling: Telling,
    counters: &mut Counters,
) -> Result<Done> {
    let (number, function) = match (work.what, telling) {
        (What::Calls(function), Telling::Done) => (0, function),
        (What::Loads, Telling::Done) => (1, 0),
        (What::Calls(function), Telling::Each) => (2, function),
        (What::Loads, Telling::Each) => (3, 0),
        (What::Nothing, Telling::Each) => (4, 0),
        (What::Nothing, Telling::Done) => (5, 0),
        (What::Loads, Telling::Sum) => (6, 0),
        (What::Modify(flags), Telling::Done) => (7, flags),
        (_, telling) => bail!("the guest cannot tell {telling:?} of that"),
    };
    for word in [number, function, work.first, work.stride, work.count] {
        let access = vcpu.run(word)?;
        ensure!(access == Access::Load(DEVICE), "the guest asks for nothing: {access:x?}");
    }
    let mut ticks = Vec::new();
    let before = counters.el2_of_vm()?;
    let mut answer = ECHO;
    let sum = loop {
        match vcpu.run(answer)? {
            Access::Load(address) if address >> 16 == ECHO >> 16 => answer += 1,
            Access::Store(DEVICE, value) => break value,
            Access::Store(address, value) if address == DEVICE + 8 => ticks.push(value),
            access => bail!("the guest does not do its work: {access:x?}"),
        }
    };
    let el2 = counters.el2_of_vm()? - before;
    let told = match telling {
        Telling::Done => 0,
        Telling::Sum => 2,
        Telling::Each => work.count,
    };
    ensure!(ticks.len() as u64 == told, "the guest told {} of {told}", ticks.len());
    Ok(Done { el2, sum, ticks })
}
