// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guest VMs: their state at EL2, and their states from creation to death.
//!
//! | state | handles | what may happen |
//! | --- | --- | --- |
//! | free | none | the slot may be taken |
//! | created | valid | configured, filled, given vCPUs |
//! | started | valid | its vCPUs run |
//! | ending | only to repeat the call that ends it | runs end, none begin |
//! | dead | none | its pages return to their owners; with the last one the slot is free |

mod controller;
mod ranges;
mod run;
mod slot;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use escrow_abi::{FrameState, Handle, HandleKind};

use crate::capability::Capabilities;
use crate::stage2::{GuestMap, PagePool};
pub use controller::{Controller, GuestPages};
pub use ranges::{MAX_MEMORY_RANGES, MemoryRanges};
pub use run::Run;
pub use slot::{Entered, First, Slot, Slots};

/// vCPUs of a VM.
pub const MAX_VCPUS: usize = 32;

/// The states of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// There is none.
    Free,
    /// It is being configured.
    Created,
    /// Its vCPUs may run.
    Started,
    /// No run may begin any more.
    Ending,
    /// No run is left; its pages return to their owners.
    Dead,
}

/// The part of a VM's state that is read without its lock: the number of its pages, by state, and
/// whether the slot has a VM. Written under the lock.
#[derive(Debug, Default)]
pub struct Counts {
    pages: [AtomicU64; FrameState::ALL.len()],
    taken: AtomicBool,
}

impl Counts {
    /// How many pages are in a state.
    #[inline]
    pub fn get(&self, state: FrameState) -> u64 {
        self.pages[state as usize].load(Ordering::Relaxed)
    }

    /// Adds pages to a state's number.
    #[inline(always)]
    pub fn add(&self, state: FrameState, pages: u64) {
        // The lock makes a read and a write one step.
        self.pages[state as usize].store(self.get(state) + pages, Ordering::Relaxed);
    }

    /// Subtracts pages from a state's number.
    #[inline(always)]
    pub fn remove(&self, state: FrameState, pages: u64) {
        self.pages[state as usize].store(self.get(state) - pages, Ordering::Relaxed);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        FrameState::ALL.into_iter().all(|state| self.get(state) == 0)
    }

    /// Pages that a guest reaches.
    pub fn reachable(&self) -> u64 {
        let states = FrameState::ALL.into_iter().filter(|&state| state != FrameState::Metadata);
        states.map(|state| self.get(state)).sum()
    }

    /// Whether the slot has a VM, also a dead one some of whose pages have not been returned.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    fn set_taken(&self, taken: bool) {
        self.taken.store(taken, Ordering::Relaxed);
    }
}

/// What is covered by a VM's lock.
#[derive(Debug)]
pub struct Vm {
    /// Its state.
    pub life: Life,
    /// Its handle while that is valid, 0 otherwise.
    pub live_handle: u64,
    /// How many VMs have lived in this slot, this one included.
    pub generation: u64,
    /// Its stage 2, from creation to death.
    pub map: Option<GuestMap>,
    /// Donated pages not in use.
    pub pool: PagePool,
    /// Pages that it has, by state: those that it borrows, those that are its own and
    /// not lent on, those donated for its tables and vCPUs.
    pub counts: &'static Counts,
    /// Pages that it owns, lent on or not.
    pub owned: u64,
    /// Memory that it had turned out to be broken.
    pub has_broken: bool,
    /// What it may do with other VMs.
    pub capabilities: Capabilities,
    /// Guest addresses declared as memory: sorted, disjoint `(base, end)`.
    pub ranges: MemoryRanges,
}

impl Vm {
    const fn new(counts: &'static Counts) -> Vm {
        Vm {
            life: Life::Free,
            live_handle: 0,
            generation: 0,
            map: None,
            pool: PagePool::new(),
            counts,
            owned: 0,
            has_broken: false,
            capabilities: Capabilities::new(),
            ranges: MemoryRanges::new(),
        }
    }

    /// Whether the guest's tables and vCPUs are in use or may come to be.
    pub fn is_alive(&self) -> bool {
        matches!(self.life, Life::Created | Life::Started | Life::Ending)
    }

    /// A new VM is in the free slot; returns its generation.
    pub fn begin(&mut self, map: GuestMap) -> u64 {
        self.map = Some(map);
        self.ranges.clear();
        self.has_broken = false;
        self.generation += 1;
        self.life = Life::Created;
        self.capabilities = Capabilities::new();
        self.counts.set_taken(true);
        self.generation
    }

    /// Makes its handle invalid for all calls but the one that ends it.
    fn end(&mut self) {
        self.life = Life::Ending;
        self.live_handle = 0;
    }

    /// Whether its handles are valid: created or started.
    pub fn is_live(&self) -> bool {
        matches!(self.life, Life::Created | Life::Started)
    }

    /// Frees the slot of a dead VM when its last page was returned.
    pub fn free_if_empty(&mut self) {
        if self.life == Life::Dead && self.owned == 0 && self.counts.is_empty() {
            self.life = Life::Free;
            self.counts.set_taken(false);
        }
    }
}

/// The handle of a VM in a slot.
pub const fn vm_handle(slot: u16, generation: u64) -> Handle {
    Handle { generation, kind: HandleKind::Vm, slot, index: 0 }
}
