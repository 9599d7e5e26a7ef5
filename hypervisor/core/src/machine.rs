// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the machine-independent half needs from the machine.

use escrow_abi::Error;

use crate::addr::{Ipa, PhysAddr};
use crate::errata::Errata;
use crate::ledger::{Record, VmId};
use crate::stage2::{
    BankPage, Descriptor, DescriptorCell, FreePage, Stage2Context, TablePage, TimePage, VcpuPage,
};
use crate::vcpu::{Vcpu, VcpuCell};
use crate::vgic;

/// A translation table: one page of descriptors.
pub type Table = [DescriptorCell; 512];

/// What a trace of table writes tells beside them, and beside what TLBs and
/// caches are told (`docs/trace.md`).
#[derive(Clone, Copy, Debug)]
pub enum Note<'a> {
    /// From here on CPUs may walk a VM's tables.
    Root(VmId, &'a Stage2Context),
    /// From here on no CPU begins to walk them.
    Drop(VmId),
    /// Memory is for tables from here on.
    Tables {
        /// First address.
        at: PhysAddr,
        /// Bytes.
        size: u64,
        /// It holds zeros, that walkers see.
        zeroed: bool,
    },
    /// The ledger's record of memory has changed: which VMs may access it.
    Record {
        /// First address.
        at: PhysAddr,
        /// Bytes.
        size: u64,
        /// The first page's record; the others' say the same.
        record: Record,
    },
    /// The CPU begins to serve a call of this number.
    Begin(u64),
    /// It has served it, with this answer, and is about to return.
    End(u64),
}

/// EL2 could not work on memory: it does not answer, or what it holds is
/// broken. The access ended in an external abort or an SError.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryError;

impl From<MemoryError> for Error {
    fn from(_: MemoryError) -> Error {
        Error::BrokenMemory
    }
}

/// Memory, TLBs and caches of the machine.
///
/// Implemented by `escrow-aarch64` for the hardware and by the tests for fake
/// memory. The ledger decides which address is handed in: memory is only zeroed while no
/// VM has a claim to its contents. Tables and vCPUs are looked up by what says that they
/// are there ([`TablePage`], [`VcpuPage`], [`BankPage`]).
///
/// What EL2 does to memory that a VM names may fail, for the memory itself may:
/// firmware's description of RAM may be wrong, and memory may break. Such a
/// method returns [`MemoryError`], and the machine goes on.
pub trait Machine: Sync {
    /// A translation table.
    fn table(&self, page: TablePage) -> &Table;

    /// Writes a descriptor that table walkers may be reading: the one way in
    /// which a stage-2 entry changes. What it leads to, if that is a table, is
    /// seen filled by whoever sees the entry.
    #[inline]
    fn write_descriptor(&self, slot: &DescriptorCell, to: Descriptor) {
        slot.store(to);
    }

    /// Puts a vCPU into a page, with interrupts of its own as a new one has them
    /// ([`FreePage::place_vcpu`]).
    fn place_vcpu(&self, page: &FreePage, vcpu: Vcpu);

    /// The vCPU that was placed in a page.
    fn vcpu(&self, page: VcpuPage) -> &VcpuCell;

    /// The interrupts of the vCPU that was placed in a page.
    fn vcpu_interrupts(&self, page: VcpuPage) -> &vgic::Cpu;

    /// Puts a bank of SPIs into a page ([`FreePage::place_bank`]).
    fn place_bank(&self, page: &FreePage, bank: vgic::Bank);

    /// The bank that was placed in a page.
    fn bank(&self, page: BankPage) -> &vgic::Bank;

    /// Interrupts a CPU that is in a guest, so that it leaves it. `affinity` is that of
    /// the CPU, as [`vgic::Vgic::enter`] was told it.
    fn interrupt_cpu(&self, affinity: u32);

    /// Reads a list entry ([`MemEntry`](escrow_abi::MemEntry)), as four words,
    /// out of a VM's memory, which that VM may be writing to at this very
    /// moment: each word is read once.
    ///
    /// # Errors
    /// [`MemoryError`]
    fn read_entry(&self, at: PhysAddr) -> Result<[u64; 4], MemoryError>;

    /// The same for entries side by side in one page. Returns how many it read: if that
    /// is not all, the next could not be read.
    fn read_entries(&self, at: PhysAddr, entries: &mut [[u64; 4]]) -> usize;

    /// Writes four words into a guest's memory, at a multiple of 32.
    ///
    /// # Errors
    /// [`MemoryError`]
    fn write_entry(&self, at: PhysAddr, words: [u64; 4]) -> Result<(), MemoryError>;

    /// A page comes to the hypervisor, for a table, a vCPU or a bank of SPIs: from here on
    /// [`Self::table`] and the like may be asked for it.
    fn map_metadata(&self, page: PhysAddr);

    /// Metadata pages leave the hypervisor: none of them is asked for any more.
    fn unmap_metadata(&self, at: PhysAddr, size: u64);

    /// Shows what of RAM the hypervisor itself has mapped: addresses and sizes. For
    /// checks.
    fn each_mapped(&self, f: &mut dyn FnMut(PhysAddr, u64));

    /// Zeroes memory, so that every observer sees zeros, also one whose
    /// caches are off.
    ///
    /// # Errors
    /// [`MemoryError`] if it failed anywhere. All the rest is zeroed
    /// nevertheless.
    fn zero(&self, at: PhysAddr, size: u64) -> Result<(), MemoryError>;

    /// Whether memory that moves from the host to a guest needs
    /// [`Self::clean_to_poc`]: not where stage 2 forces the guest's accesses to
    /// be cacheable (FEAT_S2FWB) and fetches see what data caches hold.
    fn needs_clean(&self) -> bool;

    /// Makes what VMs wrote visible to one whose caches are off; after
    /// [`Self::sync_fetches`] to instruction fetches as well.
    ///
    /// # Errors
    /// [`MemoryError`]
    fn clean_to_poc(&self, at: PhysAddr, size: u64) -> Result<(), MemoryError>;

    /// Instruction fetches of all CPUs see what was zeroed or cleaned before,
    /// and nothing older. Once for each call that has memory change hands.
    fn sync_fetches(&self);

    /// Loads from a device's register that is mapped at EL2: `size` bytes, 1, 2, 4
    /// or 8, at an address that is a multiple of it. The order of bytes is little-endian.
    fn read_device(&self, at: PhysAddr, size: u64) -> u64;

    /// Stores to a device's register, as [`Self::read_device`] loads.
    fn write_device(&self, at: PhysAddr, size: u64, value: u64);

    /// Makes new valid descriptors visible to all table walkers.
    fn publish(&self);

    /// Removes what TLBs hold of ranges of a VM's addresses, stage 2 and
    /// combined, after their descriptors were made invalid, and waits. Sizes
    /// are in bytes, whole pages.
    fn invalidate(&self, context: &Stage2Context, ranges: impl Iterator<Item = (Ipa, u64)>);

    /// Removes all that TLBs hold of a VM, and waits.
    fn invalidate_all(&self, context: &Stage2Context);

    /// Whether an interrupt waits for this CPU, which EL2 masks.
    fn interrupt_pending(&self) -> bool;

    /// The errata of the CPUs that have run a VM so far.
    fn errata(&self) -> Errata;

    /// How their entries to EL2 are hardened: a bit for each
    /// [`Hardening`](escrow_abi::errata::Hardening).
    fn hardening(&self) -> u64;

    /// Whether there is a source of random numbers, of the CPUs or of the firmware.
    fn has_random(&self) -> bool;

    /// Fills words with random numbers, for a guest: `false` if it could not fill them all, for
    /// the source has run dry or is broken. It takes a bounded time.
    fn random(&self, words: &mut [u64]) -> bool;

    /// Stores a number into a page that a guest reads ([`TimePage`]), at an offset that is a
    /// multiple of 8, little-endian. The guest sees it as a whole.
    fn store_time(&self, page: TimePage, offset: u64, value: u64);

    /// The physical counter.
    fn now(&self) -> u64;

    /// What it counts in a second.
    fn ticks_per_second(&self) -> u64;

    /// Takes a note for a trace, in test builds; in others nobody even writes it.
    #[inline(always)]
    fn note<'a>(&self, _note: impl FnOnce() -> Note<'a>) {}
}
