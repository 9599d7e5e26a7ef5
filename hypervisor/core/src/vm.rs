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

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use escrow_abi::{Error, FrameState, Handle, HandleKind};
use spin::mutex::{TicketMutex, TicketMutexGuard};

use crate::addr::{Ipa, PhysAddr};
use crate::capability::Capabilities;
use crate::doorbell::Doorbells;
use crate::ledger::VmId;
use crate::stage2::{GuestMap, PagePool, Stage2Context};
use crate::vcpu::Vcpu;

/// VMs at a time, the host included. Small enough for 8-bit VMIDs.
pub const MAX_VMS: usize = 64;
/// vCPUs of a VM.
pub const MAX_VCPUS: usize = 32;
/// Separate ranges of declared memory.
pub const MAX_MEMORY_RANGES: usize = 64;

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

/// Pages by state.
#[derive(Debug, Default)]
pub struct PageCounts([u64; FrameState::ALL.len()]);

impl PageCounts {
    /// None.
    pub const fn new() -> PageCounts {
        PageCounts([0; FrameState::ALL.len()])
    }

    /// How many are in a state.
    #[inline]
    pub const fn get(&self, state: FrameState) -> u64 {
        self.0[state as usize]
    }

    /// More are.
    #[inline(always)]
    pub fn add(&mut self, state: FrameState, pages: u64) {
        self.0[state as usize] += pages;
    }

    /// Fewer are.
    #[inline(always)]
    pub fn remove(&mut self, state: FrameState, pages: u64) {
        self.0[state as usize] -= pages;
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&pages| pages == 0)
    }

    /// Pages that a guest reaches.
    pub fn reachable(&self) -> u64 {
        self.0.iter().sum::<u64>() - self.get(FrameState::Metadata)
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
    pub counts: PageCounts,
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
    const fn new() -> Vm {
        Vm {
            life: Life::Free,
            live_handle: 0,
            generation: 0,
            map: None,
            pool: PagePool::new(),
            counts: PageCounts::new(),
            owned: 0,
            has_broken: false,
            capabilities: Capabilities::new(),
            ranges: MemoryRanges { ranges: ArrayVec::new_const() },
        }
    }

    /// Whether the guest's tables and vCPUs are in use or may come to be.
    pub fn is_alive(&self) -> bool {
        matches!(self.life, Life::Created | Life::Started | Life::Ending)
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
        }
    }
}

/// A slot that a VM lives in.
pub struct Slot {
    vm: TicketMutex<Vm>,
    /// The generation that lives here; 0 while none does.
    living_generation: AtomicU64,
    /// The generation that may run now; 0 while none may.
    running_generation: AtomicU64,
    /// CPUs inside a run of this VM, or about to find that they may not be.
    runs: AtomicU32,
    /// Why the guest is down, plus one; 0 while it is up.
    down: AtomicU64,
    /// The vCPUs' pages; 0 where there is none.
    vcpus: [AtomicU64; MAX_VCPUS],
    vttbr: AtomicU64,
    doorbells: Doorbells,
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

impl Slot {
    /// A free slot.
    pub const fn new() -> Slot {
        Slot {
            vm: TicketMutex::new(Vm::new()),
            living_generation: AtomicU64::new(0),
            running_generation: AtomicU64::new(0),
            runs: AtomicU32::new(0),
            down: AtomicU64::new(0),
            vcpus: [const { AtomicU64::new(0) }; MAX_VCPUS],
            vttbr: AtomicU64::new(0),
            doorbells: Doorbells::new(),
        }
    }

    /// Takes the VM's lock. Ordered before the locks of blocks, and after those of VMs
    /// in slots with lower numbers.
    #[inline(always)]
    pub fn lock(&self) -> TicketMutexGuard<'_, Vm> {
        self.vm.lock()
    }

    /// Makes `vm`, just created in this slot, ready to be put together.
    pub fn open(&self, context: &Stage2Context, generation: u64) {
        self.living_generation.store(generation, Ordering::Relaxed);
        self.vttbr.store(context.vttbr, Ordering::Relaxed);
        self.down.store(0, Ordering::Relaxed);
        for page in &self.vcpus {
            page.store(0, Ordering::Relaxed);
        }
        self.doorbells.open(generation);
    }

    /// Notes that the VM is dead. Needs the VM's lock.
    pub fn close(&self) {
        self.living_generation.store(0, Ordering::Relaxed);
    }

    /// Whether a generation lives here, without a lock: one that is dead stays so.
    pub fn lives(&self, generation: u64) -> bool {
        self.living_generation.load(Ordering::Relaxed) == generation
    }

    /// Whether any does.
    pub fn has_life(&self) -> bool {
        self.living_generation.load(Ordering::Relaxed) != 0
    }

    /// Allows runs of `generation`. Needs the VM's lock.
    pub fn allow_runs(&self, generation: u64) {
        self.running_generation.store(generation, Ordering::SeqCst);
    }

    /// Allows no further run; `true` if none is under way either. Needs the
    /// VM's lock.
    pub fn stop_runs(&self) -> bool {
        self.running_generation.store(0, Ordering::SeqCst);
        self.runs.load(Ordering::SeqCst) == 0
    }

    /// Ends the VM: its handles are worth nothing any more, its doorbells are gone,
    /// and no run begins. `true` if none is under way either.
    pub fn end(&self, vm: &mut Vm) -> bool {
        vm.end();
        self.doorbells.close();
        self.stop_runs()
    }

    /// Whether runs of the VM were stopped.
    pub fn is_stopped(&self) -> bool {
        self.running_generation.load(Ordering::Relaxed) == 0
    }

    /// Enters a run, if runs of `generation` are allowed.
    ///
    /// [`Self::stop_runs`] writes the generation and reads the count, this
    /// writes the count and reads the generation, all sequentially consistent:
    /// at least one of the two sees the other.
    pub fn enter(&self, generation: u64) -> Option<Entered<'_>> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let entered = Entered { slot: self };
        (self.running_generation.load(Ordering::SeqCst) == generation).then_some(entered)
    }

    /// The page of a vCPU. Valid while the VM is alive.
    pub fn vcpu(&self, index: u8) -> Option<PhysAddr> {
        let page = self.vcpus.get(index as usize)?.load(Ordering::Relaxed);
        (page != 0).then_some(PhysAddr(page))
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.vcpus.iter().filter(|page| page.load(Ordering::Relaxed) != 0).count()
    }

    /// Notes the page of a vCPU. Needs the VM's lock.
    pub fn set_vcpu(&self, index: u8, page: PhysAddr) {
        if let Some(slot) = self.vcpus.get(index as usize) {
            slot.store(page.0, Ordering::Relaxed);
        }
    }

    /// The VM's doorbells.
    #[inline(always)]
    pub fn doorbells(&self) -> &Doorbells {
        &self.doorbells
    }

    /// `VTTBR_EL2` of the VM.
    pub fn vttbr(&self) -> u64 {
        self.vttbr.load(Ordering::Relaxed)
    }

    /// Why the guest is down: 0 switched off, 1 reset asked for.
    pub fn down(&self) -> Option<u64> {
        self.down.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Notes that the guest is down.
    pub fn set_down(&self, reason: u64) {
        self.down.store(reason + 1, Ordering::Relaxed);
    }
}

/// A CPU's presence in a run; ends when dropped.
pub struct Entered<'a> {
    slot: &'a Slot,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.slot.runs.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A vCPU that this CPU has to itself, to run it.
pub struct Run<'a> {
    // Fields drop in this order: the vCPU is given back before its VM may die.
    vcpu: TicketMutexGuard<'a, Vcpu>,
    entered: Entered<'a>,
    id: VmId,
    context: Stage2Context,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        vcpu: TicketMutexGuard<'a, Vcpu>,
        entered: Entered<'a>,
        id: VmId,
        vtcr: u64,
    ) -> Run<'a> {
        let context = Stage2Context { vttbr: entered.slot.vttbr(), vtcr };
        Run { vcpu, entered, id, context }
    }

    /// The VM.
    pub fn id(&self) -> VmId {
        self.id
    }

    /// The registers that select the guest's address space.
    pub fn context(&self) -> &Stage2Context {
        &self.context
    }

    /// The VM's slot.
    pub fn slot(&self) -> &'a Slot {
        self.entered.slot
    }

    /// Whether the vCPU has a virtual interrupt pending: the first one has, as long as a
    /// doorbell of its VM rings.
    #[inline(always)]
    pub fn has_interrupt(&self) -> bool {
        self.entered.slot.doorbells.is_ringing() && self.takes_interrupts()
    }

    /// Whether the vCPU, which is about to wait for an interrupt, has one pending.
    #[inline(always)]
    pub(crate) fn has_interrupt_to_wait_for(&self) -> bool {
        self.entered.slot.doorbells.is_ringing_for_sleeper() && self.takes_interrupts()
    }

    fn takes_interrupts(&self) -> bool {
        self.vcpu.affinity() == Vcpu::affinity_of(0)
    }
}

impl Deref for Run<'_> {
    type Target = Vcpu;

    fn deref(&self) -> &Vcpu {
        &self.vcpu
    }
}

impl DerefMut for Run<'_> {
    fn deref_mut(&mut self) -> &mut Vcpu {
        &mut self.vcpu
    }
}

/// The handle of a VM in a slot.
pub const fn vm_handle(slot: usize, generation: u64) -> Handle {
    Handle { generation, kind: HandleKind::Vm, slot: slot as u16, index: 0 }
}

/// Guest addresses declared as memory.
#[derive(Debug, Default)]
pub struct MemoryRanges {
    ranges: ArrayVec<(u64, u64), MAX_MEMORY_RANGES>,
}

impl MemoryRanges {
    /// Whether an address is declared.
    pub fn contains(&self, at: Ipa) -> bool {
        let after = self.ranges.partition_point(|r| r.0 <= at.0);
        after > 0 && at.0 < self.ranges[after - 1].1
    }

    /// Declares `base..end`; joins what touches it.
    pub fn add(&mut self, base: u64, end: u64) -> Result<(), Error> {
        let (mut base, mut end) = (base, end);
        let first = self.ranges.partition_point(|r| r.1 < base);
        let last = self.ranges.partition_point(|r| r.0 <= end);
        if first < last {
            base = base.min(self.ranges[first].0);
            end = end.max(self.ranges[last - 1].1);
            self.ranges.drain(first..last);
        }
        self.ranges.try_insert(first, (base, end)).map_err(|_| Error::TableFull)
    }

    /// Withdraws `base..end`, wherever it is declared.
    pub fn remove(&mut self, base: u64, end: u64) -> Result<(), Error> {
        let first = self.ranges.partition_point(|r| r.1 <= base);
        let last = self.ranges.partition_point(|r| r.0 < end);
        if first >= last {
            return Ok(());
        }
        let head = (self.ranges[first].0, base);
        let tail = (end, self.ranges[last - 1].1);
        let kept = [head, tail].into_iter().filter(|r| r.0 < r.1);
        if self.ranges.len() - (last - first) + kept.clone().count() > MAX_MEMORY_RANGES {
            return Err(Error::TableFull);
        }
        self.ranges.drain(first..last);
        for (n, range) in kept.enumerate() {
            self.ranges.insert(first + n, range);
        }
        Ok(())
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(ranges: &MemoryRanges) -> Vec<(u64, u64)> {
        ranges.ranges.to_vec()
    }

    #[test]
    fn ranges_join_and_split() {
        let mut ranges = MemoryRanges::default();
        ranges.add(0x4000, 0x6000).unwrap();
        ranges.add(0x1000, 0x2000).unwrap();
        ranges.add(0x2000, 0x3000).unwrap();
        assert_eq!(declared(&ranges), [(0x1000, 0x3000), (0x4000, 0x6000)]);
        ranges.add(0x3000, 0x4000).unwrap();
        assert_eq!(declared(&ranges), [(0x1000, 0x6000)]);
        ranges.remove(0x2000, 0x3000).unwrap();
        assert_eq!(declared(&ranges), [(0x1000, 0x2000), (0x3000, 0x6000)]);
        ranges.remove(0x0, 0x4000).unwrap();
        assert_eq!(declared(&ranges), [(0x4000, 0x6000)]);
        assert!(ranges.contains(Ipa(0x4000)) && ranges.contains(Ipa(0x5fff)));
        assert!(!ranges.contains(Ipa(0x3fff)) && !ranges.contains(Ipa(0x6000)));
    }

    #[test]
    fn a_full_set_of_ranges_refuses_and_keeps() {
        let mut ranges = MemoryRanges::default();
        for n in 0..MAX_MEMORY_RANGES as u64 {
            ranges.add(n * 0x10000, n * 0x10000 + 0x4000).unwrap();
        }
        let before = declared(&ranges);
        assert_eq!(ranges.add(0xfff0_0000, 0xfff0_1000), Err(Error::TableFull));
        assert_eq!(ranges.remove(0x1000, 0x2000), Err(Error::TableFull));
        assert_eq!(declared(&ranges), before);
        // Joining needs no room.
        ranges.add(0x4000, 0x5000).unwrap();
    }

    #[test]
    fn no_run_begins_after_runs_are_stopped() {
        let slot = Slot::default();
        assert!(slot.enter(1).is_none());
        slot.allow_runs(1);
        assert!(slot.enter(2).is_none());
        let entered = slot.enter(1).unwrap();
        assert!(!slot.stop_runs());
        assert!(slot.enter(1).is_none());
        drop(entered);
        assert!(slot.stop_runs());
    }
}
