// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guests: what EL2 keeps of each, and how a guest lives and dies.
//!
//! | state | handles | what may happen |
//! | --- | --- | --- |
//! | free | none | the slot may be taken |
//! | created | valid | configured, filled, given vCPUs |
//! | started | valid | its vCPUs run |
//! | ending | only to ask again for its end | runs end, none begin |
//! | dead | none | its pages go home; with the last one the slot is free |

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

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// There is none.
    Free,
    /// Being put together.
    Created,
    /// Its vCPUs may run.
    Started,
    /// No run may begin any more.
    Ending,
    /// No run is left; pages go home.
    Dead,
}

/// What is known of a slot's VM without its lock: pages that it has, by state, and
/// whether there is one. Written under the lock.
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

    /// More are.
    #[inline(always)]
    pub fn add(&self, state: FrameState, pages: u64) {
        // The lock makes a read and a write one step.
        self.pages[state as usize].store(self.get(state) + pages, Ordering::Relaxed);
    }

    /// Fewer are.
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

    /// Whether there is a VM in the slot, be it a dead one whose pages are not all home.
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
    /// Where it is in its life.
    pub life: Life,
    /// Its handle as long as that is worth something, 0 otherwise.
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

    /// No call but the one for its end is to name it any more.
    fn end(&mut self) {
        self.life = Life::Ending;
        self.live_handle = 0;
    }

    /// Whether its handles are worth something: created or started.
    pub fn is_live(&self) -> bool {
        matches!(self.life, Life::Created | Life::Started)
    }

    /// Frees the slot of a dead VM whose last page is home.
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
