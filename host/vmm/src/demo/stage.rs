// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the steps share.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result, anyhow};
use escrow_vmcore::uapi;
use nix::fcntl::{Flock, FlockArg};

use crate::guest::{Command, Interpreter, program};
use crate::gunyah::{
    Access, Binding, Device, GuestMemory, Mapping, PAGE_SIZE, Protection, Vcpu, Vm,
};
use crate::host::{Facts, Taint};

/// Guest address of the memory's first byte.
pub const MEMORY_BASE: u64 = 0x8000_0000;
/// Size of the memory in bytes.
pub const MEMORY_SIZE: u64 = 64 * PAGE_SIZE;
/// Offset in the memory of the page that the demo is about.
pub const PAGE_OFFSET: u64 = 4 * PAGE_SIZE;
/// Its guest address.
pub const PAGE_ADDRESS: u64 = MEMORY_BASE + PAGE_OFFSET;
/// Offset in the memory of the guest's program.
pub const PROGRAM_OFFSET: u64 = 16 * PAGE_SIZE;

/// Guest address of a page that the host never touches.
pub const SPARE_ADDRESS: u64 = MEMORY_BASE + 40 * PAGE_SIZE;

/// The whole memory, bound where the guests expect it.
pub const ALL: Binding = Binding { guest: MEMORY_BASE, offset: 0, size: MEMORY_SIZE };
/// The page, bound there.
pub const PAGE: Binding = Binding { guest: PAGE_ADDRESS, offset: PAGE_OFFSET, size: PAGE_SIZE };

/// How things are before anything has happened.
pub struct Baseline {
    /// What Escrow says.
    pub facts: Facts,
    /// What has happened to the kernel already.
    pub taint: Taint,
    /// The way to the shim.
    pub device: Device,
    /// Held as long as the demo runs.
    _alone: Flock<File>,
}

impl Baseline {
    /// Makes sure that no other demo runs, and looks around.
    pub fn take() -> Result<Baseline> {
        let facts = Facts::read()?;
        let device = Device::open().context("are you root?")?;
        let file = File::open(uapi::DEVICE).with_context(|| format!("opening {}", uapi::DEVICE))?;
        let alone = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            anyhow!(errno).context("another demo runs, and each counts all pages of the machine")
        })?;
        Ok(Baseline { facts, taint: Taint::read()?, device, _alone: alone })
    }
}

/// The first step's work: a guest memory with a program and a message in it.
pub struct Prepared<'a> {
    /// How it was before.
    pub baseline: &'a Baseline,
    /// The memory.
    pub memory: GuestMemory,
    /// The host's mapping of the page and of the one behind it, which is never
    /// lent. It is there all the time.
    pub page: Mapping,
    /// The host's mapping of the program.
    pub program: Option<Mapping>,
    /// Where in RAM the page is.
    pub physical: u64,
    /// What the host wrote into the page.
    pub message: Vec<u8>,
    /// What the guest fills the page with.
    pub secret: u64,
}

/// A VM with one vCPU, not started yet.
pub struct Unstarted {
    /// The VM.
    pub vm: Vm,
    /// Its vCPU.
    pub vcpu: Vcpu,
}

/// A started VM.
pub struct Guest {
    /// The VM.
    pub vm: Vm,
    /// The way to its program.
    pub interpreter: Interpreter,
}

impl Guest {
    /// Has the guest do a command, and returns its answer.
    pub fn answer(&mut self, command: Command) -> Result<u64> {
        let reply = self.interpreter.execute(command);
        let reply = reply.with_context(|| format!("the guest was told to {command:x?}"))?;
        Ok(reply.answer)
    }

    /// How many words of the page differ from the secret, as the guest sees
    /// it, in words for people.
    pub fn view_of(&mut self, secret: u64) -> Result<String> {
        Ok(match self.answer(Command::Differences(PAGE_ADDRESS, PAGE_SIZE, secret))? {
            0 => "the secret".to_owned(),
            count => format!("{count} wrong words"),
        })
    }
}

/// Creates a VM that starts at the program, with the whole of `memory` to be
/// lent to it.
pub fn create_vm(device: &Device, memory: &GuestMemory) -> Result<Unstarted> {
    let vm = device.create_vm()?;
    vm.lend(memory, ALL, Access::All)?;
    let vcpu = vm.add_vcpu(0)?;
    vm.set_boot_pc(MEMORY_BASE + PROGRAM_OFFSET)?;
    Ok(Unstarted { vm, vcpu })
}

/// Writes the guest's program to its place, and returns the mapping of it.
pub fn write_program(memory: &GuestMemory) -> Result<Mapping> {
    let program = program();
    let size = (program.len() as u64).next_multiple_of(PAGE_SIZE);
    let mapping = memory.map(PROGRAM_OFFSET, size, Protection::ReadWrite)?;
    mapping.write(0, program);
    Ok(mapping)
}

/// A number that nobody has guessed, so that nothing that is found in memory
/// can be left over from another run.
pub fn random() -> Result<u64> {
    let path = "/dev/urandom";
    let mut bytes = [0; 8];
    let result = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    result.with_context(|| format!("reading {path}"))?;
    Ok(u64::from_le_bytes(bytes))
}

/// What an earlier step made, or the reason why this one cannot be tried.
pub fn after<T>(step: usize, made: Option<T>) -> Result<T> {
    made.ok_or_else(|| anyhow!("not tried, because step {step} did not come to its end"))
}
