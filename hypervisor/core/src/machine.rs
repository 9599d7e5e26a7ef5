// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the machine-independent half needs from the machine.

use core::sync::atomic::AtomicU64;

use escrow_abi::MemEntry;

use crate::addr::{Ipa, PhysAddr};
use crate::stage2::Stage2Context;
use crate::vcpu::{Vcpu, VcpuCell};

/// A translation table: one page of descriptors.
pub type Table = [AtomicU64; 512];

/// Memory, TLBs and caches of the machine.
///
/// Implemented by `escrow-aarch64` for the hardware and by the tests for fake
/// memory. The ledger decides which address is handed in: a table or a vCPU is
/// only ever looked up in a page that belongs to Escrow or was donated to it,
/// and memory is only zeroed while no VM has a claim to its contents.
pub trait Machine: Sync {
    /// The translation table in a page.
    fn table(&self, page: PhysAddr) -> &Table;

    /// Puts a vCPU into a page that is the hypervisor's, for [`Self::vcpu`] to
    /// find.
    fn place_vcpu(&self, page: PhysAddr, vcpu: Vcpu);

    /// The vCPU that was placed in a page.
    fn vcpu(&self, page: PhysAddr) -> &VcpuCell;

    /// Reads a list entry out of a VM's memory, which that VM may be writing
    /// to at this very moment: each field is read once.
    fn read_entry(&self, at: PhysAddr) -> MemEntry;

    /// Zeroes memory, so that every observer sees zeros, also one whose
    /// caches are off.
    fn zero(&self, at: PhysAddr, size: u64);

    /// Whether memory that moves from the host to a guest needs
    /// [`Self::clean_to_poc`]: not where stage 2 forces the guest's accesses to
    /// be cacheable (FEAT_S2FWB) and fetches see what data caches hold.
    fn needs_clean(&self) -> bool;

    /// Makes what VMs wrote visible to one whose caches are off, and to
    /// instruction fetches.
    fn clean_to_poc(&self, at: PhysAddr, size: u64);

    /// Makes new valid descriptors visible to all table walkers.
    fn publish(&self);

    /// Removes what TLBs hold of a range of a VM's addresses, after its
    /// descriptors were made invalid. May be called several times before
    /// [`Self::invalidate_finish`] waits for all of them; not complete before.
    fn invalidate_range(&self, context: &Stage2Context, base: Ipa, size: u64);

    /// Waits for the invalidations begun on this CPU, and removes what TLBs
    /// hold of combined stage 1 and 2 translations of the VM.
    fn invalidate_finish(&self, context: &Stage2Context);

    /// Removes all that TLBs hold of a VM, and waits.
    fn invalidate_all(&self, context: &Stage2Context);
}
