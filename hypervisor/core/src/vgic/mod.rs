// SPDX-License-Identifier: MIT OR Apache-2.0

//! The interrupt controller of a guest: a GICv3, without an ITS (IHI 0069).
//!
//! It is state in memory and functions on that state. They are called by the runs and exits of vCPUs
//! (`vcpu/interrupts.rs`), and by the host's calls about SPIs (`hypervisor/interrupts.rs`).
//!
//! Its inputs are accesses to its frames
//! ([`Vgic::access`]), writes to the registers that send SGIs ([`Vgic::send`]) and to `ICC_DIR_EL1`
//! ([`Vgic::deactivate`]), levels of a vCPU's timers ([`Vgic::set_private`]), the host's inputs of
//! SPIs ([`Vgic::input`]), and the list registers of a CPU that has left a guest ([`Vgic::exit`]).
//! Its outputs are the values that are read, list registers ([`Vgic::enter`]), and which vCPUs have
//! to be interrupted or woken ([`Effects`]). The CPU answers the guest's accesses to its CPU
//! interface (`ICC_IAR1_EL1` and the like), from the list registers.
//!
//! **The host has [`Input`] only**: SPI n is high, high until done, low, or had an edge. It cannot
//! name SGIs, PPIs, list registers, enables, priorities or the vCPU that is interrupted, as its
//! calls take an [`Spi`] and an [`Input`] and nothing else.
//!
//! # Memory
//!
//! The state is in pages that the host donates for the VM, as vCPUs are. Layouts are fixed,
//! nothing is allocated:
//!
//! | page | how many | lock | what is in it |
//! | --- | --- | --- | --- |
//! | [`Bank`] | 1, or 2 if there are INTIDs from 512 on | its own | 512 SPIs: enables, groups, triggers, levels, priorities, routes, homes; bank 0 has `GICD_CTLR` |
//! | [`Cpu`] | one for each vCPU | its own | the redistributor, the queue, the list registers, interrupts that are active in none |
//!
//! # Where an interrupt's state is
//!
//! The state of an SPI that is neither pending for a vCPU nor active is in its bank alone. Once the SPI is
//! enabled and pending, it gets a *home*: the vCPU that its route selects. From then until it is
//! inactive again, the home's page has its state: in the queue, in a list register, or *outside*
//! (active, in no list register). Then its state is in the bank again. The home of a private interrupt is
//! always its own vCPU. A new event of an interrupt in a list register is noted as a *latch*, until EL2
//! *harvests* the register (reads it back): if the interrupt is still pending then, both are one event.
//!
//! # Locks
//!
//! The order is bank 0, bank 1, one vCPU. SGIs and timers take the vCPU's lock alone; an SPI takes its
//! bank's, and under it those of vCPUs, one after the other. The work under a lock is bounded: at most
//! one register of 32 interrupts, or all list registers. They are ticket locks, so a host
//! that waits for one waits for each vCPU of the guest at most once. When a vCPU takes SPIs for any vCPU of
//! other groups than before, all such SPIs are routed again: word by word, and the rest is left for later
//! when the CPU has an interrupt ([`Effects::unfinished`]).
//!
//! # Between CPUs
//!
//! While a CPU is in the guest, only that CPU accesses its list registers. A sender that has an
//! event for a vCPU changes the pages, sets [`Cpu::attention`], and then reads the vCPU's place.
//! *Inside* its guest: the sender interrupts the CPU (by an SGI that the host takes). *Asleep*: the
//! host has to run the vCPU again. *Out*: nothing, as the vCPU reads `attention` before it goes inside. The
//! vCPU writes its place and then reads `attention`. Both have a full barrier in between, so at least one
//! sees the store of the other ("store buffering", DDI 0487, "Barrier litmus tests"). A sender that finds
//! `attention` already set has nothing more to do, so many SGIs cause one interrupt.
//!
//! Some accesses need the state of a list register of another CPU that is in the guest: reads of
//! ISPENDR and ISACTIVER, writes of ICENABLER, ICPENDR, ISACTIVER, ICACTIVER and DIR, and clearing
//! a group. Such an access *waits*: the change is noted in the page of that vCPU, which makes it
//! when it harvests. The vCPU is interrupted, and when it has left its guest, the access is
//! complete ([`Access::Wait`]). A vCPU that waits is out of its guest with its own list registers
//! saved, so two that wait for each other both go on. So a write is complete when its instruction
//! is, and RWP always reads as 0.
//!
//! # List registers
//!
//! They are filled lazily. If a vCPU has no interrupt in them, and its `attention` is not set, its
//! entry and its exit access none. Otherwise an exit saves them, and they stay in the CPU as well:
//! the next entry writes only those that changed, or all if another vCPU ran on the CPU meanwhile.
//!
//! If a vCPU moves to a CPU with fewer list registers, interrupts without one stay in memory, as in the
//! table below.
//!
//! More interrupts than list registers:
//!
//! | not in a list register | what brings it into one |
//! | --- | --- |
//! | pending, of an enabled group | all list registers have pending interrupts of at least its priority; NPIE says when none of these is left |
//! | the same while both groups are enabled | VGrp0DIE, VGrp1DIE as well: the list registers may all have interrupts of the group that is disabled next |
//! | pending, of a group that is disabled in the CPU interface | VGrp0EIE, VGrp1EIE |
//! | active, EOImode 0 | EOIcount, LRENPIE: the guest ends what it acknowledged last, so the most urgent |
//! | active, EOImode 1 | writes to DIR trap (TDIR) |
//!
//! In EOImode 1 all writes to DIR trap, as the home of the interrupt may be another vCPU. (The
//! guest changes EOImode without a trap, so this is in force from its next exit on.)
//!
//! A level-sensitive interrupt asserts the maintenance interrupt when it is deactivated (EOI in its
//! list register): then its level decides whether it is pending again. An edge of an active
//! interrupt makes its list register "pending and active", so the guest acknowledges it without an
//! exit. If it may not be there (its priority, group or route has changed), the deactivation
//! asserts the maintenance interrupt as for level-sensitive ones.
//!
//! A timer that is *linked* with a physical interrupt ([`Vgic::link`]) is deactivated by the guest,
//! without an exit, for both. The physical one has to be active as long as [`Vgic::holds_link`].
//!
//! # Where the architecture leaves a choice
//!
//! Of several pending interrupts of one priority, any may come first. An interrupt for any vCPU (1
//! of N) goes to one that has its group enabled, is on and awake, and does not deny it (DPG): one
//! that is inside if there is one, else one that is out, else one that sleeps. A new priority does
//! not change what is active. An edge from the host makes a level-sensitive interrupt pending as a
//! message would. `GICR_WAKER` says "awake" at first, as firmware leaves it.
//!
//! # Where this differs from a GICv3
//!
//! EOIcount does not say which interrupt ended. With more active interrupts than list registers, in
//! EOImode 0, an EOI may end another active interrupt of the vCPU: if the guest ends one that it
//! did not acknowledge last (which is UNPREDICTABLE), if another vCPU has deactivated it meanwhile,
//! or if the guest changes its binary point while interrupts are active. A linked timer that the
//! guest masks after it became pending, and before it is acknowledged, comes all the same unless
//! the vCPU leaves its guest in between.

mod bank;
mod bits;
mod cpu;
mod frames;
mod lines;
mod lr;
mod queue;
mod run;
mod sgi;
#[cfg(test)]
mod tests;

pub use bank::{BANKS, Bank};
pub use bits::{Intid, Spi};
pub use cpu::Cpu;
pub use frames::{Access, DISTRIBUTOR_SIZE, Frame, Layout, REDISTRIBUTOR_SIZE};
pub use lr::{Interface, LIST_REGISTERS, splits_eoi};
pub use sgi::SgiRegister;

use bank::{BankState, ROUTE_ANY, WORDS};
pub(crate) use bits::ones;
use cpu::{ASLEEP, Harvest, INSIDE, OUT, eligible};
use lines::Change;
use lr::Groups;

use crate::sync::{Ordering, fence};
use crate::vcpu::Vcpu;
use crate::vm::MAX_VCPUS;

/// Where the pages of a guest's interrupt controller are.
pub trait Pages {
    /// A page of the distributor: 0 is always there, 1 if there are INTIDs from 512 on.
    fn bank(&self, n: usize) -> Option<&Bank>;
    /// The page of a vCPU.
    fn cpu(&self, index: u8) -> Option<&Cpu>;
    /// The number of INTIDs: from 64 to 1024, in steps of 32. INTIDs 1020 to 1023 are special
    /// (IHI 0069, "INTIDs"), no interrupts.
    fn intids(&self) -> u32;
    /// Whether a physical interrupt is pending for this CPU: work that can be left for later then is.
    fn is_interrupted(&self) -> bool;
}

/// The inputs that the host can set for an SPI. It can do nothing else to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Its level is high.
    High,
    /// Its level is high until the guest has deactivated it. Then the host is told
    /// ([`Vgic::take_done`]), and sets it again if the device still asserts it.
    HighUntilDone,
    /// Its level is low.
    Low,
    /// An edge, or a message: it is pending until the guest acknowledges it, also if the
    /// guest calls it level-sensitive.
    Edge,
}

/// What the caller has to do so that other vCPUs, or the host, see a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// vCPUs in their guest on other CPUs: a bit each. Those CPUs are to be interrupted.
    pub inside: u32,
    /// vCPUs whose host is to run them again.
    pub asleep: u32,
    /// There is something to tell the host: [`Vgic::take_done`].
    pub done: bool,
    /// A physical interrupt is pending for this CPU, so work was left for the vCPU's next entry.
    pub unfinished: bool,
    /// vCPUs that have to leave their guest before the access is complete: a bit each.
    waits: u32,
    /// The vCPU whose list registers are about to be filled: it need not be notified.
    filling: Option<u8>,
    /// The access has waited, and the vCPUs have left their guest.
    after_wait: bool,
}

/// A guest's interrupt controller.
pub struct Vgic<P>(P);

/// The vCPU of an affinity, as in `GICD_IROUTER<n>` and `MPIDR_EL1`, Aff3 being 0.
fn vcpu_of_affinity(affinity: u32) -> Option<u8> {
    let index = affinity >> 8 << 4 | affinity & 0xf;
    let exists = index < MAX_VCPUS as u32 && Vcpu::affinity_of(index as u8) == u64::from(affinity);
    exists.then_some(index as u8)
}

impl<P: Pages> Vgic<P> {
    /// The interrupt controller whose state is in these pages.
    pub fn new(pages: P) -> Vgic<P> {
        Vgic(pages)
    }

    /// Its pages.
    pub fn pages(&self) -> &P {
        &self.0
    }

    #[cfg(test)]
    fn into_pages(self) -> P {
        self.0
    }

    /// The vCPUs that there are.
    fn cpus(&self) -> impl Iterator<Item = (u8, &Cpu)> {
        (0..MAX_VCPUS as u8).filter_map(|index| Some((index, self.0.cpu(index)?)))
    }

    /// The CPU that has a vCPU in its guest; `None` if none has. It may have left meanwhile.
    pub fn cpu_of(&self, vcpu: u8) -> Option<u32> {
        self.0.cpu(vcpu)?.place.load(Ordering::Relaxed).checked_sub(INSIDE)
    }

    /// A vCPU joins: its page is among [`Self::pages`] by now. `on`: it is switched on.
    pub fn admit(&self, vcpu: u8, on: bool, effects: &mut Effects) {
        let Some(bank) = self.0.bank(0) else { return };
        let Some(cpu) = self.0.cpu(vcpu) else { return };
        let bank = bank.state.lock();
        cpu.state.lock().enabled_groups = bank.enabled_groups;
        drop(bank);
        self.set_power(vcpu, on, effects);
    }

    /// The host sets the input of an SPI.
    pub fn input(&self, spi: Spi, input: Input, effects: &mut Effects) {
        let intid = spi.intid();
        self.with_bank(intid, |bank| {
            if input != Input::Edge {
                bank.set_once(intid, input == Input::HighUntilDone);
            }
            let change = match input {
                Input::High | Input::HighUntilDone => Change::Input(true),
                Input::Low => Change::Input(false),
                Input::Edge => Change::Pend,
            };
            self.change(bank, intid, change, None, effects);
        });
    }

    /// Takes one SPI that the host had set to [`Input::HighUntilDone`] and that the guest has
    /// deactivated; `None` if there is none.
    pub fn take_done(&self) -> Option<Spi> {
        (0..BANKS).find_map(|n| {
            let intid = self.0.bank(n)?.state.lock().take_done(n * 16)?;
            Spi::new(intid.number())
        })
    }

    /// The level of a private interrupt of a vCPU: its timers'.
    pub fn set_private(&self, vcpu: u8, ppi: Intid, high: bool, effects: &mut Effects) {
        let Some(cpu) = self.0.cpu(vcpu).filter(|_| ppi.is_private()) else { return };
        let mut state = cpu.state.lock();
        let change = Change::Input(high);
        if state.lines.is_moot(ppi, change) {
            return;
        }
        // If the vCPU is out, its list registers are harvested: an interrupt that was pending by its
        // level may not be pending any more.
        state.change_private(ppi, vcpu, change);
        drop(state);
        self.notify(vcpu, effects);
    }

    /// Links a PPI of a vCPU with a physical one (`ICH_LR<n>_EL2.HW`): while it is in a list
    /// register, the guest's deactivation also deactivates the physical interrupt. To be called
    /// before the vCPU runs.
    pub fn link(&self, vcpu: u8, ppi: Intid, physical: u16) {
        if let Some(cpu) = self.0.cpu(vcpu) {
            cpu.state.lock().link(ppi, physical);
        }
    }

    /// Whether the linked PPI of a vCPU is pending or active: its physical interrupt has to
    /// be active while the guest runs, for the guest to be interrupted once.
    pub fn holds_link(&self, vcpu: u8) -> bool {
        self.0.cpu(vcpu).is_some_and(|cpu| cpu.state.lock().holds_link())
    }

    /// A vCPU in EOImode 1 has written `ICC_DIR_EL1`. It has left its guest.
    pub fn deactivate(&self, me: u8, number: u32, effects: &mut Effects) -> Access {
        if let Some(intid) = Intid::new(number) {
            if intid.is_private() {
                self.change_private(me, intid, Change::Deactivate, me, effects);
            } else {
                self.with_bank(intid, |bank| {
                    self.change(bank, intid, Change::Deactivate, Some(me), effects);
                });
            }
        }
        Access::of(0, effects)
    }

    /// Of the vCPUs that [`Access::Wait`] named, those that have yet to leave their guest.
    pub fn poll(&self, me: u8, waits: u32) -> u32 {
        let waits_for = |index: &u16| {
            let cpu = self.0.cpu(*index as u8);
            cpu.is_some_and(|cpu| cpu.state.lock().waiters & 1 << me != 0)
        };
        ones(waits).filter(waits_for).map(|index| 1 << index).sum()
    }

    /// Calls `f` with the locked bank of an SPI, if the guest has such an SPI.
    fn with_bank(&self, intid: Intid, f: impl FnOnce(&mut BankState)) {
        if intid.is_private() || intid.number() >= self.0.intids() {
            return;
        }
        if let Some(bank) = self.0.bank(BankState::of(intid)) {
            f(&mut bank.state.lock());
        }
    }

    /// Sets a vCPU's `attention`, and notes in `effects` whether it has to be interrupted or woken.
    fn notify(&self, vcpu: u8, effects: &mut Effects) {
        let Some(cpu) = self.0.cpu(vcpu) else { return };
        if effects.filling == Some(vcpu) || cpu.attention.swap(1, Ordering::AcqRel) != 0 {
            // Its list registers are being filled; or the sender that set `attention` first has
            // notified it.
            return;
        }
        fence(Ordering::SeqCst);
        match cpu.place.load(Ordering::Relaxed) {
            OUT => {}
            ASLEEP => {
                let (asleep, out) = (Ordering::Relaxed, Ordering::Relaxed);
                if cpu.place.compare_exchange(ASLEEP, OUT, asleep, out).is_ok() {
                    effects.asleep |= 1 << vcpu;
                }
            }
            _ => effects.inside |= 1 << vcpu,
        }
    }

    /// Changes something about an SPI, for a vCPU or for the host.
    fn change(
        &self,
        bank: &mut BankState,
        intid: Intid,
        change: Change,
        by: Option<u8>,
        effects: &mut Effects,
    ) {
        if bank.lines.is_moot(intid, change) {
            return;
        }
        if bank.is_quiet(intid) && change.is_set_up() {
            // Fast path: the change does not make the SPI pending for a vCPU.
            bank.lines.apply(intid, change);
            if let Change::Route(route) = change {
                bank.set_route(intid, route);
            }
            return;
        }
        if let Some(home) = bank.home(intid)
            && let Some(cpu) = self.0.cpu(home)
        {
            let mut state = cpu.state.lock();
            if let Some(n) = state.resident(intid) {
                if state.running {
                    let offered = state.is_offered(n);
                    bank.lines.apply(intid, change);
                    if let Change::Route(route) = change {
                        bank.set_route(intid, route);
                    }
                    state.post(n, change);
                    let urgent = match change {
                        // A level is evaluated when the interrupt is deactivated.
                        Change::Input(true) => bank.lines.edge.get(intid),
                        Change::Input(false) => offered,
                        _ => true,
                    };
                    wait_for(&mut state.waiters, home, change, by, effects);
                    if urgent {
                        self.notify(home, effects);
                    }
                    return;
                }
                if state.harvest(n, home, Some(bank)) == Harvest::Kept {
                    state.unload(n);
                }
                self.notify(home, effects);
            }
            if bank.home(intid).is_some() {
                if state.dequeue(intid) {
                    bank.lines.latch.set(intid, true);
                }
                if !state.is_outside(intid) {
                    bank.set_home(intid, None, false);
                }
            }
        }
        bank.lines.apply(intid, change);
        match change {
            Change::Route(route) => bank.set_route(intid, route),
            Change::Activate if bank.home(intid).is_none() => bank.set_active(intid, true),
            Change::Deactivate => self.end(bank, intid),
            _ => {}
        }
        self.settle(bank, intid, effects);
        effects.done |= bank.has_done();
    }

    /// An SPI that is in no list register is not active any more.
    fn end(&self, bank: &mut BankState, intid: Intid) {
        let home = bank.home(intid).and_then(|home| self.0.cpu(home));
        if let Some(cpu) = home {
            run::end_outside(&mut cpu.state.lock(), Some(bank), intid);
        } else if bank.is_active(intid) {
            bank.set_active(intid, false);
            bank.finish(intid);
        }
    }

    /// Puts an SPI that is in no list register and no queue where its state requires: into the queue of
    /// the vCPU that it is for, or nowhere.
    fn settle(&self, bank: &mut BankState, intid: Intid, effects: &mut Effects) {
        let line = bank.lines.line(intid);
        if let Some(home) = bank.home(intid) {
            // It is active at its home.
            if let Some(cpu) = self.0.cpu(home) {
                let mut state = cpu.state.lock();
                let stays = bank.is_for(intid, home, state.takes);
                let waits = state.hold(intid, &line, stays);
                drop(state);
                bank.lines.latch.set(intid, waits);
            }
            self.notify(home, effects);
        } else if line.enabled && line.is_pending() && !bank.is_active(intid) {
            let Some((index, cpu)) = self.target(bank.route(intid), line.group, effects) else {
                return;
            };
            let latch = bank.lines.latch.replace(intid, false);
            cpu.state.lock().enqueue(intid, &line, latch);
            bank.set_home(intid, Some(index), false);
            self.notify(index, effects);
        }
    }

    /// The vCPU that an SPI goes to. For an SPI for any vCPU (1 of N): one that is inside, else one that is
    /// out, else one that is asleep.
    fn target(&self, route: u32, group: u8, effects: &mut Effects) -> Option<(u8, &Cpu)> {
        if route & ROUTE_ANY == 0 {
            let index = vcpu_of_affinity(route)?;
            return Some((index, self.0.cpu(index)?));
        }
        let takes = |cpu: &Cpu| eligible::takes(cpu.flags.load(Ordering::Relaxed)).contains(group);
        let effort = |cpu: &Cpu| match cpu.place.load(Ordering::Relaxed) {
            ASLEEP => 2,
            OUT => 1,
            _ => 0,
        };
        let found = self.cpus().filter(|(_, cpu)| takes(cpu)).min_by_key(|(_, cpu)| effort(cpu));
        if found.is_none() {
            // No vCPU takes it. The first that enables the group looks for it.
            for (index, cpu) in self.cpus() {
                let mut state = cpu.state.lock();
                if !state.wanted.contains(group) {
                    state.wanted = Groups(state.wanted.0 | Groups::one(group).0);
                    drop(state);
                    self.notify(index, effects);
                }
            }
        }
        found
    }

    /// Routes all pending SPIs for any vCPU again. See [`Self::revisit_rest`].
    fn revisit(&self, by: Option<u8>, effects: &mut Effects) {
        for bank in (0..BANKS).filter_map(|n| self.0.bank(n)) {
            bank.rest.store((1 << WORDS) - 1, Ordering::Release);
        }
        self.revisit_rest(by, effects);
    }

    /// Does the words that are left of that. `by` is the vCPU whose guest this CPU is about to enter. If a physical
    /// interrupt is pending, the rest is left to the next entry of any vCPU of the VM; at least one word is
    /// done, so each entry makes progress. Without `by`, all words are done.
    fn revisit_rest(&self, by: Option<u8>, effects: &mut Effects) {
        for (n, bank) in (0..BANKS).filter_map(|n| Some((n, self.0.bank(n)?))) {
            for word in ones(bank.rest.load(Ordering::Relaxed)) {
                // Cleared before the work: a change that comes meanwhile sets the bit again.
                let before = bank.rest.fetch_and(!(1 << word), Ordering::AcqRel);
                if before & 1 << word == 0 {
                    continue;
                }
                self.revisit_word(bank, n * WORDS + usize::from(word), effects);
                if let Some(cpu) = by.and_then(|me| self.0.cpu(me))
                    && self.0.is_interrupted()
                    && self.is_unfinished()
                {
                    cpu.attention.store(1, Ordering::Relaxed);
                    effects.unfinished = true;
                    return;
                }
            }
        }
    }

    /// Whether SPIs for any vCPU are still to be routed again.
    fn is_unfinished(&self) -> bool {
        (0..BANKS).filter_map(|n| self.0.bank(n)).any(|b| b.rest.load(Ordering::Relaxed) != 0)
    }

    /// Routes the SPIs of one word again, under one hold of the bank's lock: others wait for 32 SPIs at most.
    /// The vCPU's changed state was stored before, so each SPI is routed by the new state.
    fn revisit_word(&self, bank: &Bank, word: usize, effects: &mut Effects) {
        let mut bank = bank.state.lock();
        let lines = &bank.lines;
        let pending = lines.latch.word(word) | lines.input.word(word) | bank.homed(word);
        for bit in ones(lines.enabled.word(word) & pending) {
            let Some(intid) = Intid::new(word as u32 * 32 + u32::from(bit)) else { continue };
            let route = bank.route(intid);
            if route & ROUTE_ANY != 0 {
                self.change(&mut bank, intid, Change::Route(route), None, effects);
            }
        }
    }

    /// Changes something about a private interrupt of a vCPU, for another or itself.
    fn change_private(
        &self,
        vcpu: u8,
        intid: Intid,
        change: Change,
        by: u8,
        effects: &mut Effects,
    ) {
        let Some(cpu) = self.0.cpu(vcpu) else { return };
        let mut state = cpu.state.lock();
        if state.lines.is_moot(intid, change) {
            return;
        }
        if state.change_private(intid, vcpu, change).is_some() {
            wait_for(&mut state.waiters, vcpu, change, Some(by), effects);
        }
        drop(state);
        self.notify(vcpu, effects);
    }
}

/// Notes that vCPU `by` waits for vCPU `vcpu` to leave its guest, if the change needs that: the
/// interrupt is in a list register of `vcpu`, which only its CPU can access meanwhile.
fn wait_for(waiters: &mut u32, vcpu: u8, change: Change, by: Option<u8>, effects: &mut Effects) {
    let waits = matches!(
        change,
        Change::Enable(false) | Change::Unpend | Change::Activate | Change::Deactivate
    );
    if let Some(by) = by.filter(|_| waits) {
        *waiters |= 1 << by;
        effects.waits |= 1 << vcpu;
    }
}
