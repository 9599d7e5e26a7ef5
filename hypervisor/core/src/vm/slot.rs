// SPDX-License-Identifier: MIT OR Apache-2.0

//! The slots that VMs live in.
//!
//! A VM's number in the ledger is that of its slot, and so is its VMID. How many
//! there are is a setting of boot, which sets their memory aside.

use core::array;

use escrow_nospec as nospec;

use super::controller::Controller;
use super::{Counts, MAX_VCPUS, Vm};
use crate::doorbell::Doorbells;
use crate::ledger::GuestId;
use crate::stage2::{PageCell, Stage2Context, TimePage, VcpuPage};
use crate::sync::{AtomicU32, AtomicU64, Ordering, TicketMutex, TicketMutexGuard};
use crate::vcpu::StolenTime;

/// All slots.
pub struct Slots(&'static [Slot]);

impl Slots {
    /// Slots for as many guests, numbered from 1: 0 is the host's number.
    pub const fn new(slots: &'static [Slot]) -> Slots {
        Slots(slots)
    }

    /// The slot of a guest; `None` for numbers beyond the last.
    #[inline(always)]
    pub fn get(&self, id: GuestId) -> Option<&'static Slot> {
        self.numbered(id.get())
    }

    /// The same for a number that may be none of a guest's.
    #[inline(always)]
    pub fn numbered(&self, number: u16) -> Option<&'static Slot> {
        // 0 is beyond the last as well.
        nospec::get(self.0, usize::from(number).wrapping_sub(1))
    }

    /// All slots, and whose they are.
    pub fn iter(&self) -> impl Iterator<Item = (GuestId, &'static Slot)> + use<> {
        (1..).map_while(GuestId::new).zip(self.0)
    }
}

/// A slot that a VM lives in.
///
/// What each run works on comes first, within reach of an instruction's offset.
#[repr(C)]
pub struct Slot {
    /// The number of CPUs in a run of this VM, and in [`Self::enter`] before the check whether they may run it.
    runs: AtomicU32,
    id: GuestId,
    /// The generation that lives here; 0 while none does.
    living_generation: AtomicU64,
    /// The generation that may run now; 0 while none may.
    running_generation: AtomicU64,
    /// What a run checks before it begins, 0 for most VMs: the reason why the guest is down, plus one, and
    /// [`MORE`].
    first: AtomicU64,
    /// The vCPUs' pages.
    vcpus: [PageCell<VcpuPage>; MAX_VCPUS],
    vttbr: AtomicU64,
    doorbells: Doorbells,
    /// Which vCPUs are on, a bit each, by index. Other vCPUs read it without the vCPU's lock.
    on: AtomicU32,
    /// How often its guest used a system register that it does not have.
    unknown: AtomicU32,
    controller: Controller,
    /// Where its vCPUs' stolen time is, for EL2 and for the guest.
    time_page: PageCell<TimePage>,
    time_at: AtomicU64,
    /// Whether its VM is protected, for readers without its lock.
    protected: AtomicU32,
    counts: &'static Counts,
    vm: TicketMutex<Vm>,
}

/// Its vCPUs have a GIC, or are told their stolen time.
const MORE: u64 = 1 << 63;

/// What a run has to look at before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// The guest is down, for this reason.
    Down(u64),
    /// Its vCPUs have a GIC, or are told their stolen time.
    More,
}

impl Slot {
    /// The free slot of a guest's number, whose VM is counted there. Inlined, so that it is made where
    /// it is to be, not copied there.
    #[inline(always)]
    pub fn new(id: GuestId, counts: &'static Counts) -> Slot {
        Slot {
            runs: AtomicU32::new(0),
            id,
            living_generation: AtomicU64::new(0),
            running_generation: AtomicU64::new(0),
            first: AtomicU64::new(0),
            vcpus: array::from_fn(|_| PageCell::new()),
            vttbr: AtomicU64::new(0),
            doorbells: Doorbells::new(),
            on: AtomicU32::new(0),
            unknown: AtomicU32::new(0),
            controller: Controller::new(),
            time_page: PageCell::new(),
            time_at: AtomicU64::new(0),
            protected: AtomicU32::new(0),
            counts,
            vm: TicketMutex::new(Vm::new(counts)),
        }
    }

    /// The number of the guest in it.
    #[inline(always)]
    pub fn id(&self) -> GuestId {
        self.id
    }

    /// Takes the VM's lock. Ordered before the locks of blocks, and after those of VMs
    /// in slots with lower numbers.
    #[inline(always)]
    pub fn lock(&self) -> TicketMutexGuard<'_, Vm> {
        self.vm.lock()
    }

    /// The part of the VM's state that is read without its lock.
    pub fn counts(&self) -> &'static Counts {
        self.counts
    }

    /// Initialises the slot for a VM that was just created in it.
    pub fn open(&self, context: &Stage2Context, generation: u64) {
        self.living_generation.store(generation, Ordering::Relaxed);
        self.vttbr.store(context.vttbr, Ordering::Relaxed);
        self.first.store(0, Ordering::Relaxed);
        self.on.store(0, Ordering::Relaxed);
        self.unknown.store(0, Ordering::Relaxed);
        self.protected.store(0, Ordering::Relaxed);
        self.doorbells.open(generation);
    }

    /// Notes that the VM is dead, and forgets the pages of its vCPUs and its interrupt
    /// controller. Needs the VM's lock; no run may be in progress.
    pub fn close(&self) {
        self.living_generation.store(0, Ordering::Relaxed);
        self.controller.close();
        self.time_page.clear();
        for page in &self.vcpus {
            page.clear();
        }
    }

    /// Whether a generation lives here. Needs no lock: a generation that is dead stays dead.
    pub fn lives(&self, generation: u64) -> bool {
        self.living_generation.load(Ordering::Relaxed) == generation
    }

    /// Whether any does.
    pub fn has_life(&self) -> bool {
        self.living_generation.load(Ordering::Relaxed) != 0
    }

    /// Allows runs of `generation`. Needs the VM's lock.
    pub fn allow_runs(&self, generation: u64) {
        // Release: a CPU that enters sees the complete VM.
        self.running_generation.store(generation, Ordering::Release);
    }

    /// Allows no further run. `true` if no run is in progress either, and the stores of all runs are
    /// visible. Needs the VM's lock.
    pub fn stop_runs(&self) -> bool {
        self.running_generation.store(0, Ordering::Relaxed);
        // An addition, not a load: see `enter`.
        self.runs.fetch_add(0, Ordering::AcqRel) == 0
    }

    /// Ends the VM: its handles become invalid, its doorbells are removed,
    /// and no run begins. `true` if no run is in progress either.
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
    /// This adds to the count, then reads the generation; [`Self::stop_runs`] writes the
    /// generation, then adds 0 to the count. The second of the two additions reads the value of the
    /// first: either `stop_runs` reads the run's count, or this function acquires the generation that
    /// was written before.
    pub fn enter(&self, generation: u64) -> Option<Entered<'_>> {
        self.runs.fetch_add(1, Ordering::Acquire);
        let entered = Entered { slot: self };
        (self.running_generation.load(Ordering::Acquire) == generation).then_some(entered)
    }

    /// The page of a vCPU, as long as the VM lives.
    pub fn vcpu(&self, index: u8) -> Option<VcpuPage> {
        if index as usize >= self.vcpus.len() {
            return None;
        }
        // The remainder is a valid index, also in speculation.
        self.vcpus[index as usize % self.vcpus.len()].get()
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.vcpus.iter().filter(|page| page.get().is_some()).count()
    }

    /// Notes the page of a vCPU, which siblings that run may find at once. Needs the VM's
    /// lock.
    pub fn set_vcpu(&self, index: u8, page: VcpuPage) {
        if let Some(slot) = nospec::get(&self.vcpus, index as usize) {
            slot.set(page);
        }
    }

    /// Whether a vCPU is on.
    pub fn is_on(&self, index: u8) -> bool {
        // Acquire: a reader that finds the vCPU off sees the stores of its runs.
        self.on.load(Ordering::Acquire) & 1 << (index & 31) != 0
    }

    /// Notes that a vCPU is switched on or off. Needs the vCPU's lock, or the VM's before the
    /// start.
    pub fn set_on(&self, index: u8, on: bool) {
        let bit = 1 << (index & 31);
        if on {
            self.on.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.on.fetch_and(!bit, Ordering::Release);
        }
    }

    /// Counts a use of a system register that the guest does not have. Whether it is the first.
    pub fn count_unknown(&self) -> bool {
        let more = |count: u32| count.checked_add(1);
        self.unknown.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) == Ok(0)
    }

    /// How many there were.
    pub fn unknown(&self) -> u32 {
        self.unknown.load(Ordering::Relaxed)
    }

    /// The VM's doorbells.
    #[inline(always)]
    pub fn doorbells(&self) -> &Doorbells {
        &self.doorbells
    }

    /// The VM's interrupt controller, as far as it is not in pages of its own.
    #[inline(always)]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// `VTTBR_EL2` of the VM.
    pub fn vttbr(&self) -> u64 {
        self.vttbr.load(Ordering::Relaxed)
    }

    /// What a run has to look at before it begins, if anything.
    #[inline(always)]
    pub fn first(&self) -> Option<First> {
        match self.first.load(Ordering::Relaxed) {
            0 => None,
            first => Some(match (first & !MORE).checked_sub(1) {
                Some(reason) => First::Down(reason),
                None => First::More,
            }),
        }
    }

    /// Notes that the guest is down: 0 switched off, 1 reset asked for.
    pub fn set_down(&self, reason: u64) {
        self.first.store(reason + 1, Ordering::Relaxed);
    }

    /// Its vCPUs are told their stolen time, in a page that the guest has at this address.
    /// Needs the VM's lock; it is not started.
    pub fn tell_time(&self, page: TimePage, at: u64) {
        self.time_page.set(page);
        self.time_at.store(at, Ordering::Relaxed);
        self.set_more();
    }

    /// Notes that runs of its vCPUs do [more](super::Run::does_more) than those of most. Needs the VM's
    /// lock; it is not started.
    pub fn set_more(&self) {
        self.first.fetch_or(MORE, Ordering::Relaxed);
    }

    /// Notes that the VM is a protected one. Needs its lock.
    pub fn set_protected(&self) {
        self.protected.store(1, Ordering::Relaxed);
    }

    /// Whether it is, without the lock.
    pub fn is_protected(&self) -> bool {
        self.protected.load(Ordering::Relaxed) != 0
    }

    /// The stolen time of a vCPU that is about to exist. Needs the VM's lock.
    pub fn time_of(&self, index: u8) -> Option<StolenTime> {
        let at = self.time_at.load(Ordering::Relaxed);
        self.time_page().map(|_| StolenTime::new(at, index))
    }

    /// The page of its vCPUs' stolen time, as long as the VM lives.
    pub fn time_page(&self) -> Option<TimePage> {
        self.time_page.get()
    }
}

/// A CPU's presence in a run; ends when dropped.
pub struct Entered<'a> {
    slot: &'a Slot,
}

impl<'a> Entered<'a> {
    /// Where.
    #[inline(always)]
    pub fn slot(&self) -> &'a Slot {
        self.slot
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // Release: a CPU that finds no run left sees all that this one did.
        self.slot.runs.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_run_begins_after_runs_are_stopped() {
        let slot = Slot::new(GuestId::new(1).unwrap(), Box::leak(Box::default()));
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
