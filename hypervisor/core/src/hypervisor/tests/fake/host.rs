// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host: a machine's addresses, its calls, and what it sees of the ledger.

use std::sync::atomic::Ordering;

use escrow_abi::{Error, FrameState, MemEntry, Rights, call};

use super::machine::Fake;
use super::memory::Memory;
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PhysAddr, PhysRange};
use crate::hypervisor::{HostAbort, Hypervisor, Reply, Scratch, Setup, SetupError, Sizes};
use crate::ledger::GuestId;
use crate::log::LogRing;
use crate::stage2::{Stage2Context, Stage2Features};
use crate::trap::{HostFault, Trap, TrapKind};
use crate::vcpu::syndrome::{Ec, IL, Syndrome};
use crate::vcpu::{GeneralRegisters, GuestIds};
use crate::vm::{Counts, Slot};

/// A few blocks, then a whole GiB.
pub const RAM: PhysRange = PhysRange::new(0x7f00_0000, 0x4160_0000);
/// The same few blocks, and a few more.
pub const LITTLE_RAM: PhysRange = PhysRange::new(0x7f00_0000, 0x0180_0000);
/// Escrow's own: the two blocks after the first.
pub const ESCROW: PhysRange = PhysRange::new(0x7f20_0000, 2 * BLOCK_SIZE);
/// Firmware's.
pub const PINNED: PhysRange = PhysRange::new(0x7f80_1000, 0x2000);
/// Devices that the host reaches through EL2 alone: firmware's configuration, and two
/// pages of which it sees nothing.
pub const TRAPS: [Trap; 2] = [
    Trap { registers: PhysRange::new(0x0902_0000, 0x18), kind: TrapKind::FwCfg },
    Trap { registers: PhysRange::new(0x0a00_0e00, 0x400), kind: TrapKind::Hidden },
];
/// Firmware's as well, and nobody may look.
pub const WITHHELD: PhysRange = PhysRange::new(0x7f80_4000, 0x1000);
/// Where the host's lists are.
pub const LIST: u64 = 0x7fa0_0000;
/// Where the host takes the pages from that it donates.
pub const METADATA: u64 = 0x7fb0_0000;
/// Host memory for the tests, in a GiB that is all the host's.
pub const FREE: u64 = 0x8000_0000;

/// Guests that there may be at a time.
pub const GUESTS: usize = 63;

const FEATURES: Stage2Features =
    Stage2Features { pa_bits: 40, force_write_back: false, vmid16: false };

/// Free slots.
pub fn slots(guests: usize) -> &'static [Slot] {
    // There may be more than there are numbers, for that to be refused.
    let id = |n: usize| GuestId::new((n as u16 + 1).min(GuestId::MAX)).unwrap();
    let slot = |n| Slot::new(id(n), Box::leak(Box::<Counts>::default()));
    Vec::leak((0..guests).map(slot).collect())
}

/// The host's side of the tests.
pub struct Host {
    pub escrow: Hypervisor<Fake>,
    pub(super) scratch: Scratch,
    metadata: u64,
    pub(super) ids: GuestIds,
    /// How much the last call had done when it was refused: `x3`.
    pub done: u64,
    /// How often calls were made again for an interrupt.
    pub restarts: u64,
    /// Where its lists are: elsewhere while a call with a list is under way.
    pub list_at: u64,
}

/// An error with its index and detail.
pub type Refused = (Error, u64, u64);

impl Host {
    /// On a machine with all of [`RAM`].
    pub fn new() -> Host {
        Host::on(RAM)
    }

    pub fn on(ram: PhysRange) -> Host {
        Host::with(Fake::default(), &[ram], GUESTS, FEATURES).unwrap()
    }

    /// On a machine with RAM from address 0 on as well.
    pub fn with_ram_at_0() -> Host {
        let ram = [PhysRange::new(0, 2 * BLOCK_SIZE), RAM];
        Host::with(Fake::default(), &ram, GUESTS, FEATURES).unwrap()
    }

    /// On a machine that tells what happens to tables.
    pub fn traced(ram: PhysRange) -> Host {
        Host::with(Fake::traced(), &[ram], GUESTS, FEATURES).unwrap()
    }

    /// On a machine with room for so many guests.
    pub fn for_guests(guests: usize, vmid16: bool) -> Result<Host, SetupError> {
        Host::with(Fake::default(), &[RAM], guests, Stage2Features { vmid16, ..FEATURES })
    }

    fn with(
        machine: Fake,
        ram: &[PhysRange],
        guests: usize,
        features: Stage2Features,
    ) -> Result<Host, SetupError> {
        let sizes = Sizes::of(ram, guests).unwrap();
        // Escrow's tables are in its own memory.
        let mut reserve = Memory::new(ESCROW, sizes.zeroed);
        let setup = Setup {
            ram,
            escrow: &[ESCROW],
            pinned: &[PINNED, WITHHELD],
            withheld: &[WITHHELD],
            traps: &TRAPS,
            log: Box::leak(Box::new(LogRing::new())),
            reserve: &mut reserve,
            slots: slots(sizes.guests),
            features,
        };
        let escrow = Hypervisor::new(machine, setup)?;
        let ids = GuestIds::new(|_, _| 0, 39);
        Ok(Host {
            escrow,
            scratch: Scratch::new(),
            metadata: METADATA,
            ids,
            done: 0,
            restarts: 0,
            list_at: LIST,
        })
    }

    /// What becomes of a load that stage 2 does not let through, by an instruction that
    /// the syndrome does not describe.
    pub fn touches(&mut self, at: u64) -> HostAbort {
        let esr = Ec::DATA_ABORT_LOWER.bits() | IL | 0x7;
        let Syndrome::Abort(abort) = Syndrome::of(esr) else { panic!("no abort") };
        let fault = HostFault { at: Ipa(at), abort, pstate: 0x5, sctlr: 0 };
        self.escrow.host_abort(&fault, &mut GeneralRegisters::default())
    }

    /// A call of the host.
    pub fn call(&mut self, function: u32, args: &[u64]) -> Result<[u64; 4], Refused> {
        let mut x = [0; 8];
        x[0] = function as u64;
        x[1..=args.len()].copy_from_slice(args);
        while !self.makes_call(&mut x) {}
        self.done = if x[0] == 0 { 0 } else { x[3] };
        match x {
            [0, x1, x2, x3, x4, ..] => Ok([x1, x2, x3, x4]),
            [x0, x1, x2, ..] => Err((Error::from_register(x0).unwrap(), x1, x2)),
        }
    }

    /// Makes a call of the host, or makes it again, as the machine half does it. Whether
    /// it is answered.
    pub fn makes_call(&mut self, x: &mut [u64; 8]) -> bool {
        self.escrow.machine.begin_call();
        let answered = match x[0] as u32 {
            call::MEM_LEND => self.escrow.host_lends_list_of_one(x),
            call::MEM_LEND_ONE => self.escrow.host_lends_one(x),
            call::VCPU_RUN => {
                assert!(self.escrow.host_runs(x).is_none(), "a run");
                true
            }
            _ => false,
        };
        if answered {
            return true;
        }
        let before = *x;
        match self.escrow.host_call(&mut self.scratch, x) {
            Reply::Answer => {
                assert!(x[7] == 0 || x[7] == before[7], "no progress is left over");
                true
            }
            Reply::Again => {
                assert_eq!(x[..7], before[..7], "nothing but the progress has changed");
                assert_ne!(x[7], before[7], "no progress");
                self.restarts += 1;
                false
            }
        }
    }

    /// Writes a list into the host's memory; returns its arguments.
    pub fn list(&mut self, entries: &[MemEntry]) -> [u64; 2] {
        self.write_list(entries, |page| self.list_at + page * PAGE_SIZE);
        [self.list_at, entries.len() as u64]
    }

    /// Writes a list into pages of somebody's memory.
    pub fn write_list(&self, entries: &[MemEntry], page: impl Fn(u64) -> u64) {
        const IN_PAGE: usize = PAGE_SIZE as usize / 32;
        for (n, entries) in entries.chunks(IN_PAGE).enumerate() {
            let words = entries.iter().flat_map(MemEntry::words);
            for (at, value) in (page(n as u64)..).step_by(8).zip(words) {
                self.escrow.machine.word(PhysAddr(at)).store(value, Ordering::Relaxed);
            }
        }
    }

    pub fn give(&mut self, function: u32, vm: u64, entries: &[MemEntry]) -> Result<(), Refused> {
        let [list, count] = self.list(entries);
        self.call(function, &[vm, list, count]).map(drop)
    }

    pub fn lend(&mut self, vm: u64, entries: &[MemEntry]) -> Result<(), Refused> {
        self.give(call::MEM_LEND, vm, entries)
    }

    /// With the entry in registers.
    pub fn lend_one(&mut self, vm: u64, entry: &MemEntry) -> Result<(), Refused> {
        let [frame, guest, references, users] = entry.words();
        self.call(call::MEM_LEND_ONE, &[vm, frame, guest, references, users]).map(drop)
    }

    pub fn share(&mut self, vm: u64, entries: &[MemEntry]) -> Result<(), Refused> {
        self.give(call::MEM_SHARE, vm, entries)
    }

    pub fn take(&mut self, function: u32, frames: &[(u64, u32)]) -> Result<(), Refused> {
        let entries: Vec<_> =
            frames.iter().map(|&(at, order)| MemEntry::new(at, order, 0, Rights::NONE)).collect();
        let [list, count] = self.list(&entries);
        self.call(function, &[list, count]).map(drop)
    }

    pub fn reclaim(&mut self, frames: &[(u64, u32)]) -> Result<(), Refused> {
        self.take(call::MEM_RECLAIM, frames)
    }

    /// Pages for the host to donate; each is used once.
    pub fn fresh_metadata(&mut self, pages: u64) -> Vec<MemEntry> {
        let from = self.metadata;
        self.metadata += pages * PAGE_SIZE;
        (0..pages)
            .map(|n| {
                let at = from + n * PAGE_SIZE;
                self.escrow.machine.scribble(at);
                MemEntry::new(at, 0, 0, Rights::NONE)
            })
            .collect()
    }

    /// A VM of `pages` donated pages; returns its handle and the pages.
    pub fn create(&mut self, pages: u64) -> (u64, Vec<(u64, u32)>) {
        let entries = self.fresh_metadata(pages);
        let [list, count] = self.list(&entries);
        let [vm, ..] = self.call(call::VM_CREATE, &[list, count]).unwrap();
        (vm, entries.iter().map(|e| (e.frame, 0)).collect())
    }

    /// All of the log.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        loop {
            let [next, words @ ..] = self.escrow.log.read(text.len() as u64);
            if next == text.len() as u64 {
                return String::from_utf8(text).unwrap();
            }
            let bytes = words.iter().flat_map(|word| word.to_le_bytes());
            text.extend(bytes.take(next as usize - text.len()));
        }
    }

    pub fn reaches(&self, at: u64) -> bool {
        self.escrow.host_map().reaches(&self.escrow.machine, PhysAddr(at))
    }

    /// The registers that select a guest's address space.
    pub fn guest_context(&self, id: u16) -> Stage2Context {
        let vm = self.escrow.slots.get(GuestId::new(id).unwrap()).unwrap().lock();
        *vm.map.as_ref().unwrap().context()
    }

    /// What a guest address of a VM leads to.
    pub fn guest_frame(&self, vm: u64, at: u64) -> Option<u64> {
        let slot = escrow_abi::Handle::from_register(vm).unwrap().slot;
        let vm = self.escrow.slots.get(GuestId::new(slot).unwrap()).unwrap().lock();
        let leaf = vm.map.as_ref()?.lookup(&self.escrow.machine, Ipa(at));
        let offset = if leaf.level == 2 { at % BLOCK_SIZE } else { 0 };
        leaf.entry.is_valid().then_some(leaf.entry.address().0 + offset)
    }

    /// What a guest may do at an address of its own.
    pub fn guest_rights(&self, vm: u64, at: u64) -> Rights {
        let slot = escrow_abi::Handle::from_register(vm).unwrap().slot;
        let vm = self.escrow.slots.get(GuestId::new(slot).unwrap()).unwrap().lock();
        vm.map.as_ref().unwrap().lookup(&self.escrow.machine, Ipa(at)).entry.rights().unwrap()
    }

    /// What a guest reads.
    pub fn guest_word(&self, vm: u64, at: u64) -> u64 {
        let frame = self.guest_frame(vm, at & !(PAGE_SIZE - 1)).expect("it is mapped");
        self.word_of(frame + at % PAGE_SIZE)
    }

    /// What is in memory.
    pub fn word_of(&self, at: u64) -> u64 {
        self.escrow.machine.word(PhysAddr(at)).load(Ordering::Relaxed)
    }

    /// All that the ledger counts, and which pages of each block the host
    /// reaches: one answer for a block that is one record, 512 for others.
    pub fn snapshot(&self) -> (Vec<u64>, Vec<Vec<bool>>) {
        let ledger = self.escrow.ledger();
        let counts = FrameState::ALL.iter().map(|&s| self.escrow.pages(s)).collect();
        let ram = ledger.ram().ranges();
        let blocks = ram.flat_map(|r| (r.base.0..r.end()).step_by(BLOCK_SIZE as usize));
        let reached = blocks.map(|base| {
            let split = ledger.is_split(ledger.locate(PhysAddr(base)).unwrap());
            let pages = if split { 512 } else { 1 };
            (0..pages).map(|n| self.reaches(base + n * PAGE_SIZE)).collect()
        });
        (counts, reached.collect())
    }
}
