// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hypervisor: the ledger, the host's map and the guests, and the calls
//! that change them.

mod broken;
mod calls;
mod capabilities;
mod doorbells;
mod extents;
pub(crate) mod guest_calls;
mod interrupts;
mod lend_one;
mod list;
mod memory;
mod oracle;
mod parties;
mod pieces;
mod portions;
mod prepared;
pub(crate) mod protect;
mod ranges;
mod reset;
mod take;
mod touch;
mod vms;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use escrow_abi::{Error, FrameState, Rights};

use crate::addr::{BLOCK_SIZE, PAGE_SIZE, PhysAddr, PhysRange};
use crate::gate::Gate;
use crate::ledger::{FRAMES_PER_BLOCK, GuestId, Ledger, RamError, RamMap, Record, Reserve, VmId};
use crate::log::{Line, LogRing};
use crate::machine::{Machine, Note};
use crate::stage2::{
    Attributes, Geometry, GuestMap, HostMap, HostMapError, MmioMap, Stage2Context, Stage2Features,
};
use crate::trap::{HostFault, RegisterFile, Trap, TrapError, Trapped, Traps};
use crate::vm::{Slot, Slots};
pub use calls::{LENDS_ONE, Reply, immediate};
pub use extents::Scratch;
pub use reset::{Closed, WipeProgress};
pub(crate) use touch::Touched;

/// Guests see at most this many bits of address, so that one page is the root
/// of their tables.
pub const GUEST_ADDRESS_BITS: u8 = 39;

/// What the hypervisor is built from.
pub struct Setup<'a> {
    /// RAM of the machine.
    pub ram: &'a [PhysRange],
    /// Escrow's own RAM, in whole 2 MiB blocks.
    pub escrow: &'a [PhysRange],
    /// RAM that stays the host's: firmware or devices use it.
    pub pinned: &'a [PhysRange],
    /// The part of `pinned` that is not even the host's: no CPU may touch it.
    pub withheld: &'a [PhysRange],
    /// Devices that the host reaches through EL2 alone; what EL2 accesses in its place
    /// is mapped at EL2.
    pub traps: &'a [Trap],
    /// Escrow's log, for the host to read.
    pub log: &'static LogRing,
    /// Memory for all this, as much as [`Sizes`] says.
    pub reserve: &'a mut dyn Reserve,
    /// [`Sizes::guests`] free slots, [`max_guests`] at the most.
    pub slots: &'static [Slot],
    /// What the CPUs' stage 2 can do.
    pub features: Stage2Features,
}

/// How much memory [`Setup`] wants for a machine, by the functions of [`Reserve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Entries of the directory.
    pub directory: usize,
    /// GiB.
    pub gibs: usize,
    /// Blocks' worth of frames' records.
    pub frames: usize,
    /// Pages for tables.
    pub tables: usize,
    /// Zeroed pages, at the most.
    pub zeroed: usize,
    /// Slots of guests.
    pub guests: usize,
    /// Pages for tables of the machine's own, in which metadata is mapped at EL2: one
    /// for each block.
    pub metadata_tables: usize,
}

impl Sizes {
    /// For a machine with this RAM, and so many guests at a time.
    pub fn of(ram: &[PhysRange], guests: usize) -> Result<Sizes, SetupError> {
        let map = RamMap::new(ram).map_err(SetupError::Ram)?;
        Ok(Sizes {
            directory: map.directory(),
            gibs: map.gibs(),
            frames: map.blocks() * FRAMES_PER_BLOCK,
            tables: map.blocks(),
            zeroed: HostMap::pages_needed(&map),
            guests,
            metadata_tables: map.blocks(),
        })
    }
}

/// Why the hypervisor cannot be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// The RAM cannot be described.
    Ram(RamError),
    /// There is not enough memory for the ledger.
    LedgerTooSmall,
    /// One of Escrow's ranges is no RAM or not in whole blocks.
    BadEscrowRange,
    /// The traps cannot be set.
    Trap(TrapError),
    /// The host's tables cannot be built.
    Map(HostMapError),
    /// More slots than there are VMIDs.
    TooManyGuests,
}

/// How many guests there may be at a time: each has a VMID of its own, and the host
/// has 0.
pub const fn max_guests(features: &Stage2Features) -> u16 {
    if features.vmid16 { GuestId::MAX } else { 255 }
}

/// Escrow's state. One for the machine.
pub struct Hypervisor<M: Machine> {
    /// The machine.
    pub machine: M,
    ledger: Ledger,
    host: HostMap,
    traps: Traps,
    guest_geometry: Geometry,
    /// By the bits of the guest's rights.
    guest_attributes: [Attributes; 8],
    /// `VTCR_EL2` of all guests.
    guest_vtcr: u64,
    slots: Slots,
    cpus: AtomicU32,
    log: &'static LogRing,
    /// Pages that are broken.
    poisoned: AtomicU64,
    /// Pages that were in each state when the host began.
    at_boot: [u64; FrameState::ALL.len()],
    /// Shut while the machine is about to end: no VM is created then.
    gate: Gate,
}

/// What to do after a stage-2 fault of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAbort {
    /// The access is allowed now: make it again.
    Retry,
    /// The access is done: go on behind its instruction.
    Skip,
    /// The host has nothing there: hand it a fault that it can recover from.
    Inject,
}

/// Why a call is refused, with the entry and the detail that go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub error: Error,
    /// The list entry that it is about, or 0.
    pub index: u64,
    /// What the error says in `x2`, or 0.
    pub detail: u64,
    /// How much of the call was done before, in `x3`: entries of its list, with what was
    /// broken of them, or pages of its range.
    pub done: u64,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal { error, index: 0, detail: 0, done: 0 }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Sets the hypervisor up: all RAM is the host's, but for Escrow's own.
    pub fn new(machine: M, setup: Setup<'_>) -> Result<Hypervisor<M>, SetupError> {
        if setup.slots.len() > max_guests(&setup.features).into() {
            return Err(SetupError::TooManyGuests);
        }
        let map = RamMap::new(setup.ram).map_err(SetupError::Ram)?;
        let ledger =
            Ledger::new(map, setup.ram, setup.reserve).ok_or(SetupError::LedgerTooSmall)?;
        for range in setup.withheld {
            set_aside(&ledger, range, Record::HYPERVISOR);
        }
        for range in setup.pinned {
            set_aside(&ledger, range, Record::PINNED);
        }
        for range in setup.escrow {
            if !range.base.is_aligned(BLOCK_SIZE) || range.size % BLOCK_SIZE != 0 {
                return Err(SetupError::BadEscrowRange);
            }
            for at in (range.base.0..range.end()).step_by(BLOCK_SIZE as usize) {
                let block = ledger.locate(PhysAddr(at)).ok_or(SetupError::BadEscrowRange)?;
                ledger.set_block(block, Record::HYPERVISOR);
            }
        }
        let traps = Traps::new(setup.traps).map_err(SetupError::Trap)?;
        let host = HostMap::new(&machine, &ledger, &setup.features, &traps, setup.reserve)
            .map_err(SetupError::Map)?;
        machine.note(|| Note::Root(VmId::Host, host.context()));
        oracle::begin(&ledger);
        let at_boot = FrameState::ALL.map(|state| ledger.count(state));
        let guest_geometry = Geometry::new(setup.features.pa_bits.min(GUEST_ADDRESS_BITS));
        if !GuestMap::fits(&guest_geometry) {
            return Err(SetupError::Map(HostMapError::AddressesTooSmall));
        }
        Ok(Hypervisor {
            machine,
            ledger,
            host,
            traps,
            guest_geometry,
            guest_attributes: core::array::from_fn(|bits| {
                let rights = Rights::from_bits(bits as u64).unwrap_or(Rights::NONE);
                Attributes::guest_ram(rights, &setup.features)
            }),
            guest_vtcr: guest_geometry.vtcr(&setup.features),
            slots: Slots::new(setup.slots),
            cpus: AtomicU32::new(0),
            log: setup.log,
            poisoned: AtomicU64::new(0),
            at_boot,
            gate: Gate::new(),
        })
    }

    /// The registers that select the host's address space.
    pub fn host_context(&self) -> &Stage2Context {
        self.host.context()
    }

    /// The ledger, to look at.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The host's map, to look at.
    pub fn host_map(&self) -> &HostMap {
        &self.host
    }

    /// Where guests' addresses end.
    pub(crate) fn guest_address_end(&self) -> u64 {
        self.guest_geometry.end()
    }

    /// Adds a line to the log.
    pub(crate) fn log(&self, line: &Line) {
        self.log.push(line);
    }

    /// Notes that one more CPU runs under Escrow.
    pub fn cpu_started(&self) {
        self.cpus.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that one CPU less does.
    pub fn cpu_stopped(&self) {
        self.cpus.fetch_sub(1, Ordering::Relaxed);
    }

    /// Decides about a stage-2 translation or access-flag fault of the host, and makes
    /// the access if it is to a device that EL2 keeps.
    pub fn host_abort(&self, fault: &HostFault, registers: &mut impl RegisterFile) -> HostAbort {
        match self.traps.access(&self.machine, fault, registers) {
            Some(Trapped::Done) => return HostAbort::Skip,
            Some(Trapped::Refused) => return HostAbort::Inject,
            None => {}
        }
        let at = fault.at.identity();
        let Some(block) = self.ledger.locate(at) else {
            let mapped = self.host.map_mmio(&self.machine, at.identity());
            // For a trace this ends as a call does: the host goes on.
            self.machine.note(|| Note::End(0));
            return match mapped {
                MmioMap::Mapped => HostAbort::Retry,
                MmioMap::Refused => HostAbort::Inject,
            };
        };
        // Splits and merges of the block hold its lock, so the entry is never half-way here.
        self.ledger.lock(block);
        let record = self.ledger.get_in(block, at);
        self.ledger.unlock(block);
        if record.host_reaches() || record == Record::NO_RAM {
            HostAbort::Retry
        } else {
            HostAbort::Inject
        }
    }
}

/// Checks a range of guest addresses; returns its end.
pub(crate) fn check_range(base: u64, size: u64, address_end: u64) -> Result<u64, Error> {
    if !base.is_multiple_of(PAGE_SIZE) || !size.is_multiple_of(PAGE_SIZE) {
        return Err(Error::Misaligned);
    }
    if size == 0 {
        return Err(Error::InvalidSize);
    }
    base.checked_add(size).filter(|&end| end <= address_end).ok_or(Error::AddressOverflow)
}

/// Gives all RAM of a range that is the host's this record, in whole blocks where it can.
fn set_aside(ledger: &Ledger, range: &PhysRange, record: Record) {
    let mut at = range.base.align_down(PAGE_SIZE);
    while at.0 < range.end() {
        let block = ledger.locate(at);
        let whole = at.is_aligned(BLOCK_SIZE) && range.end() - at.0 >= BLOCK_SIZE;
        match block {
            Some(block) if whole && ledger.whole_block(block) == Some(Record::HOME) => {
                ledger.set_block(block, record);
                at = at.add(BLOCK_SIZE);
                continue;
            }
            Some(block) if ledger.get_in(block, at) == Record::HOME => {
                ledger.set(at, record);
            }
            _ => {}
        }
        at = at.add(PAGE_SIZE);
    }
}

#[cfg(test)]
pub(crate) mod tests;
