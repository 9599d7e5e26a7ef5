// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages of devices that the host cannot access directly.
//!
//! They never have an entry in the host's stage 2. A load or store of the host
//! there is an abort to EL2 ([`Traps::access`]), which emulates it
//! as the page's device does ([`Device`]). All other addresses outside RAM
//! are mapped for the host, and do not trap.
//!
//! The list of pages is set at boot and does not change, so an abort
//! searches a short list without a lock. An access takes at most one lock, held
//! for one access to a device: each access of the host costs EL2 a
//! bounded time.

mod fw_cfg;
#[cfg(test)]
mod tests;

use arrayvec::ArrayVec;

use crate::addr::{Ipa, PAGE_SIZE, PhysAddr, PhysRange};
use crate::machine::Machine;
use crate::vcpu::syndrome::Abort;
use crate::vcpu::{GeneralRegisters, is_aarch32, is_big_endian};
use fw_cfg::FwCfg;

/// Ranges that can be withheld.
pub const MAX_TRAPS: usize = 8;

/// Registers of a device that the host is not to reach by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Where they are. All pages that they touch are withheld.
    pub registers: PhysRange,
    /// How EL2 answers accesses to them.
    pub kind: TrapKind,
}

/// How EL2 answers accesses to the registers of a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrapKind {
    /// Nothing: every access is refused.
    Hidden,
    /// QEMU's firmware configuration, without its DMA.
    FwCfg,
}

/// Why traps cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrapError {
    /// More than [`MAX_TRAPS`].
    TooMany,
    /// One without registers, or beyond all addresses.
    OutOfRange,
    /// One whose registers are not where such a device has them.
    BadRegisters,
    /// Two that share a page.
    Overlap,
}

/// An access that a trap answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RegisterAccess {
    /// Offset from the beginning of the registers, in bytes; beyond all of them for an address
    /// that is before them in their page.
    offset: u64,
    /// Bytes: 1, 2, 4 or 8.
    size: u64,
    /// What is stored, as memory has it in little-endian order; `None` for a load.
    stored: Option<u64>,
}

/// A device that answers the accesses to a trap. `None` refuses the access; the value that is returned
/// for a store is ignored.
trait Device<M: Machine> {
    fn access(&self, machine: &M, access: RegisterAccess) -> Option<u64>;
}

/// The devices that there are.
enum Registers {
    Hidden,
    FwCfg(FwCfg),
}

impl<M: Machine> Device<M> for Registers {
    fn access(&self, machine: &M, access: RegisterAccess) -> Option<u64> {
        match self {
            Registers::Hidden => None,
            Registers::FwCfg(device) => device.access(machine, access),
        }
    }
}

struct Entry {
    pages: PhysRange,
    base: PhysAddr,
    registers: Registers,
}

/// All traps, in ascending order.
pub struct Traps(ArrayVec<Entry, MAX_TRAPS>);

/// An abort of the host at an address that its stage 2 does not map.
#[derive(Clone, Copy, Debug)]
pub struct HostFault {
    /// The address.
    pub at: Ipa,
    /// The abort.
    pub abort: Abort,
    /// The host's PSTATE, in the layout of `SPSR_EL2`.
    pub pstate: u64,
    /// `SCTLR_EL1`.
    pub sctlr: u64,
}

/// The host's general registers, wherever they are kept. Register 31 is XZR.
pub trait RegisterFile {
    /// Reads one.
    fn read(&self, n: usize) -> u64;
    /// Writes one.
    fn write(&mut self, n: usize, value: u64);
}

impl RegisterFile for GeneralRegisters {
    fn read(&self, n: usize) -> u64 {
        self.read(n)
    }

    fn write(&mut self, n: usize, value: u64) {
        self.write(n, value);
    }
}

/// The result of an access to a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trapped {
    /// It was emulated: the host goes on after the instruction.
    Done,
    /// It is refused: the host gets a fault.
    Refused,
}

impl Traps {
    /// The traps of a machine.
    ///
    /// # Errors
    ///
    /// See [`TrapError`].
    pub fn new(traps: &[Trap]) -> Result<Traps, TrapError> {
        let mut entries: ArrayVec<Entry, MAX_TRAPS> = ArrayVec::new();
        for Trap { registers, kind } in traps {
            let base = registers.base;
            let end =
                base.0.checked_add(registers.size).filter(|&end| base.0 < end && end < 1 << 52);
            let end = end.ok_or(TrapError::OutOfRange)?.next_multiple_of(PAGE_SIZE);
            let first = base.align_down(PAGE_SIZE);
            let pages = PhysRange { base: first, size: end - first.0 };
            if *kind == TrapKind::FwCfg && !FwCfg::fits(registers) {
                return Err(TrapError::BadRegisters);
            }
            let place = entries.partition_point(|entry| entry.pages.base < first);
            let before = place.checked_sub(1).and_then(|n| entries.get(n));
            if before.is_some_and(|entry| entry.pages.end() > first.0)
                || entries.get(place).is_some_and(|entry| entry.pages.base.0 < end)
            {
                return Err(TrapError::Overlap);
            }
            let registers = match kind {
                TrapKind::Hidden => Registers::Hidden,
                TrapKind::FwCfg => Registers::FwCfg(FwCfg::new(base)),
            };
            let entry = Entry { pages, base, registers };
            entries.try_insert(place, entry).map_err(|_| TrapError::TooMany)?;
        }
        Ok(Traps(entries))
    }

    /// The ranges that are withheld, in whole pages and ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = PhysRange> + '_ {
        self.0.iter().map(|entry| entry.pages)
    }

    /// Answers an access of the host; `None` if it is not to a trap.
    ///
    /// What can be answered is one load or store of a general register, which is what
    /// drivers do: the syndrome has to say which (ISV; DDI 0487, "ISS encoding for an
    /// exception from a Data Abort"). Pairs, vectors, atomics, exclusives, `DC ZVA`,
    /// addressing with write-back, fetches, table walks, and accesses of AArch32
    /// (whose IT state EL2 does not advance) are refused.
    pub fn access<M: Machine>(
        &self,
        machine: &M,
        fault: &HostFault,
        registers: &mut impl RegisterFile,
    ) -> Option<Trapped> {
        let at = fault.at.identity();
        let entry = self.0.iter().find(|entry| entry.pages.contains(at))?;
        Some(entry.answer(machine, fault, registers).map_or(Trapped::Refused, |()| Trapped::Done))
    }
}

impl Entry {
    fn answer<M: Machine>(
        &self,
        machine: &M,
        fault: &HostFault,
        registers: &mut impl RegisterFile,
    ) -> Option<()> {
        let HostFault { at, abort, pstate, sctlr } = *fault;
        if abort.is_cache_maintenance() && !abort.is_walk() {
            // There is no memory here, so there are no cache lines to maintain.
            return Some(());
        }
        let access = abort.access().filter(|_| !is_aarch32(pstate))?;
        let big_endian = is_big_endian(pstate, sctlr);
        let stored =
            access.is_write().then(|| access.stored(registers.read(access.register()), big_endian));
        let offset = at.0.wrapping_sub(self.base.0);
        let value = self
            .registers
            .access(machine, RegisterAccess { offset, size: access.size(), stored })?;
        if !access.is_write() {
            registers.write(access.register(), access.loaded(value, big_endian));
        }
        Some(())
    }
}
