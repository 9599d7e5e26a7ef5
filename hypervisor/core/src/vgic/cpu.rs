// SPDX-License-Identifier: MIT OR Apache-2.0

//! A vCPU's page: the state of its redistributor, its queue and its list registers.

use super::bank::BankState;
use super::bits::{Bits, Intid, ones};
use super::lines::{Change, Line, Lines};
use super::lr::{Groups, Interface, LIST_REGISTERS, ListRegister, Vmcr, hcr};
use super::queue::{Note, Queue};
use crate::sync::{AtomicU32, TicketMutex};

mod fill;

/// The interrupt part of a vCPU, in a page that its host has donated.
pub struct Cpu {
    /// Something has changed since its list registers were filled.
    pub(super) attention: AtomicU32,
    /// Its place: [`OUT`], [`ASLEEP`], or [`INSIDE`] plus the number of the CPU.
    pub(super) place: AtomicU32,
    /// The list registers that are in use. Written under the lock.
    pub(super) used: AtomicU32,
    /// The banks that may have interrupts in its list registers, or active at it: a bit
    /// each. Written under the lock.
    pub(super) banks: AtomicU32,
    /// [`Vmcr::controls`], when its list registers were filled.
    pub(super) controls: AtomicU32,
    /// Which interrupts for any vCPU it takes: bits of [`eligible`].
    pub(super) flags: AtomicU32,
    pub(super) state: TicketMutex<CpuState>,
}

/// Not in its guest; its next entry reads [`Cpu::attention`].
pub(super) const OUT: u32 = 0;
/// Its host does not run it until it is woken.
pub(super) const ASLEEP: u32 = 1;
/// In its guest, on a CPU.
pub(super) const INSIDE: u32 = 2;

/// Bits of [`Cpu::flags`].
pub(super) mod eligible {
    /// Group 0 was enabled in the vCPU's CPU interface at its last exit.
    pub const GROUP_0: u32 = 1 << 0;
    /// Group 1 was.
    pub const GROUP_1: u32 = 1 << 1;
    /// `GICR_CTLR.DPG0`: the vCPU takes no interrupts for any vCPU of group 0.
    pub const DPG0: u32 = 1 << 2;
    /// `GICR_CTLR.DPG1NS`: none of group 1.
    pub const DPG1: u32 = 1 << 3;
    /// `GICR_WAKER.ProcessorSleep`.
    pub const SLEEPS: u32 = 1 << 4;
    /// Switched on.
    pub const ON: u32 = 1 << 5;

    /// Groups of which a vCPU takes interrupts that are for any.
    pub const fn takes(flags: u32) -> super::Groups {
        if flags & (SLEEPS | ON) != ON {
            return super::Groups(0);
        }
        super::Groups((flags & !(flags >> 2)) as u8 & 3)
    }
}

/// What the lock of a [`Cpu`] covers.
///
/// An interrupt is in at most one of three places: in a list register, in [`Self::queue`]
/// (pending, not active), or in [`Self::outside`] (active). If it is in a list register, its
/// state is what that says, except for a new event, which waits in [`Lines::latch`].
#[derive(Debug)]
pub(super) struct CpuState {
    /// The vCPU is in its guest, so the CPU has its list registers: [`Self::lr`] is out of date.
    pub running: bool,
    /// List registers in use.
    pub used: u16,
    /// List registers that are to be written.
    dirty: u16,
    /// Changes that wait for the next harvest ([`Self::post`]): a bit for each list register.
    clear_pending: u16,
    clear_active: u16,
    set_active: u16,
    /// vCPUs that wait for the list registers to be read.
    pub waiters: u32,
    lr: [u64; LIST_REGISTERS],
    /// Deactivations by the guest of interrupts that were in no list register (EOIcount).
    eoi_count: u32,
    /// `GICD_CTLR.EnableGrp0` and `EnableGrp1`.
    pub enabled_groups: Groups,
    /// `GICR_WAKER.ProcessorSleep`.
    pub sleeps: bool,
    /// Groups of which it takes interrupts for any vCPU.
    pub takes: Groups,
    /// Groups with an interrupt for any vCPU that no vCPU takes: the first to enable the group is
    /// to look for it.
    pub wanted: Groups,
    /// Its own interrupts.
    pub lines: Lines<1, 32>,
    /// Pending, not active, in no list register.
    queue: Queue,
    /// Active, in no list register.
    outside: Bits<32>,
    /// How many are in [`Self::outside`].
    outside_count: u32,
    /// Interrupts in one of the three places that are pending by an event (not by a level), which
    /// their acknowledgement ends. Those that are active as well are pending again.
    held: Bits<32>,
    /// Active interrupts that a write to ISACTIVER made active: the guest has not acknowledged
    /// them, so no write to EOIR ends them.
    unacknowledged: Bits<32>,
    /// A PPI that is linked with a physical one.
    link: Option<(Intid, u16)>,
}

/// What [`CpuState::harvest`] did with a list register's interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harvest {
    /// It is still in the list register.
    Kept,
    /// It was released. An SPI has no home now: [`super::Vgic::settle`] routes it again.
    Released(Intid),
}

impl Cpu {
    /// The interrupts of a vCPU that was just made.
    pub fn new() -> Cpu {
        let mut lines = Lines::new();
        for sgi in (0..16).filter_map(Intid::new) {
            lines.edge.set(sgi, true);
        }
        Cpu {
            attention: AtomicU32::new(0),
            place: AtomicU32::new(OUT),
            used: AtomicU32::new(0),
            banks: AtomicU32::new(0),
            controls: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            state: TicketMutex::new(CpuState {
                running: false,
                used: 0,
                dirty: 0,
                clear_pending: 0,
                clear_active: 0,
                set_active: 0,
                waiters: 0,
                lr: [0; LIST_REGISTERS],
                eoi_count: 0,
                enabled_groups: Groups(0),
                sleeps: false,
                takes: Groups(0),
                wanted: Groups(0),
                lines,
                queue: Queue::new(),
                outside: Bits::EMPTY,
                outside_count: 0,
                held: Bits::EMPTY,
                unacknowledged: Bits::EMPTY,
                link: None,
            }),
        }
    }
}

impl Default for Cpu {
    fn default() -> Cpu {
        Cpu::new()
    }
}

const _: () = assert!(size_of::<Cpu>() <= escrow_abi::PAGE_SIZE as usize);

impl CpuState {
    /// Links a PPI with a physical interrupt: see [`super::Vgic::link`].
    pub fn link(&mut self, ppi: Intid, physical: u16) {
        self.link = Some((ppi, physical));
    }

    /// Whether the linked PPI is pending or active, by the state of the last harvest. Meanwhile the physical
    /// interrupt has to be active.
    pub fn holds_link(&self) -> bool {
        self.link.is_some_and(|(ppi, _)| {
            self.resident(ppi).is_some() || self.queue.contains(ppi) || self.outside.get(ppi)
        })
    }

    /// Groups whose interrupts are forwarded to the CPU interface.
    pub fn forwarded(&self) -> Groups {
        if self.sleeps { Groups(0) } else { self.enabled_groups }
    }

    /// The list register that an interrupt is in.
    pub fn resident(&self, intid: Intid) -> Option<usize> {
        ones(self.used.into())
            .map(|n| usize::from(n) % LIST_REGISTERS)
            .find(|&n| ListRegister(self.lr[n]).number() == intid.number())
    }

    /// Whether an interrupt whose home this is is pending beyond what its line says, and
    /// whether it is active.
    pub fn state_of(&self, intid: Intid) -> (bool, bool) {
        match self.resident(intid) {
            Some(n) => self.state_in(n),
            None => (self.queue.contains(intid) || self.held.get(intid), self.outside.get(intid)),
        }
    }

    /// The same of an interrupt in a list register, with the posted changes applied.
    fn state_in(&self, n: usize) -> (bool, bool) {
        let n = n % LIST_REGISTERS;
        let (lr, bit) = (ListRegister(self.lr[n]), 1u16 << n);
        let pending = lr.is_pending() && self.clear_pending & bit == 0;
        let active = (lr.is_active() || self.set_active & bit != 0) && self.clear_active & bit == 0;
        (pending, active)
    }

    /// The private interrupts that are pending, those that are active (a bit each), and whether
    /// any is in a list register.
    pub fn private_state(&self) -> (u32, u32, bool) {
        let lines = &self.lines;
        let mut pending = lines.latch.word(0) | lines.input.word(0) & !lines.edge.word(0);
        let mut active = self.outside.word(0);
        let mut residents = 0;
        for n in ones(self.used.into()).map(usize::from) {
            let intid = self.intid_in(n).filter(|intid| intid.is_private());
            let Some(bit) = intid.map(Intid::bit) else { continue };
            let (p, a) = self.state_in(n);
            pending |= if p { bit } else { 0 };
            active |= if a { bit } else { 0 };
            residents |= bit;
        }
        pending |= self.held.word(0) & !residents;
        let any = residents != 0;
        (pending, active, any)
    }

    /// Whether a list register was offered (pending, not active) when it was last saved or loaded.
    pub fn is_offered(&self, n: usize) -> bool {
        ListRegister(self.lr[n % LIST_REGISTERS]).is_offered()
    }

    /// Saves the list registers of a CPU that has left the guest; `true` if one of them has to be
    /// harvested before the guest goes on.
    pub fn save(&mut self, interface: &mut impl Interface) -> bool {
        let mut due = interface.has_maintenance();
        for n in ones(self.used.into()).map(usize::from) {
            let lr = interface.list_register(n);
            self.lr[n % LIST_REGISTERS] = lr;
            due |= ListRegister(lr).is_idle() && !self.release_idle(n);
        }
        if self.outside_count != 0 {
            let value = interface.hcr();
            self.eoi_count += hcr::eoi_count(value);
            interface.set_hcr(value & !hcr::EOI_COUNT);
        }
        due
    }

    /// The fast path of [`Self::harvest`], for a private interrupt that was deactivated and has
    /// no event or posted change. `false` if the fast path does not apply.
    #[inline(always)]
    fn release_idle(&mut self, n: usize) -> bool {
        let n = n % LIST_REGISTERS;
        let (lr, bit) = (ListRegister(self.lr[n]), 1u16 << n);
        let posted = self.clear_pending | self.clear_active | self.set_active;
        let Some(intid) = Intid::new(lr.number()).filter(|intid| intid.is_private()) else {
            return false;
        };
        if lr.is_told() || posted & bit != 0 || self.lines.latch.get(intid) {
            return false;
        }
        if lr.is_linked() {
            self.lines.input.set(intid, false);
        } else if !self.lines.edge.get(intid) {
            return false;
        }
        self.forget_idle(n, intid);
        true
    }

    /// Frees the list register of a private interrupt that was deactivated. Posted changes count as
    /// made before the deactivation, so they have no effect any more.
    #[inline(always)]
    fn forget_idle(&mut self, n: usize, intid: Intid) {
        let bit = 1u16 << (n % LIST_REGISTERS);
        // The CPU's register is empty already, so it need not be written.
        self.lr[n % LIST_REGISTERS] = 0;
        self.used &= !bit;
        for posted in [&mut self.clear_pending, &mut self.clear_active, &mut self.set_active] {
            *posted &= !bit;
        }
        self.held.set(intid, false);
        self.unacknowledged.set(intid, false);
    }

    /// Sets the input of a private interrupt high, and puts the interrupt into a list register of the CPU,
    /// which then goes on in the guest. `false` if the list registers have to be filled
    /// again instead.
    #[inline(always)]
    pub fn insert(&mut self, intid: Intid, interface: &mut impl Interface) -> bool {
        if self.used != 0
            && let Some(n) = self.resident(intid)
        {
            let lr = ListRegister(interface.list_register(n));
            if !lr.is_linked() || !lr.is_idle() {
                // Its level is evaluated when it is deactivated.
                self.lines.input.set(intid, true);
                return true;
            }
            // The guest has deactivated it and the linked physical interrupt: otherwise that could
            // not have been signalled again.
            self.forget_idle(n, intid);
        }
        self.lines.input.set(intid, true);
        let line = self.lines.line(intid);
        if !line.enabled {
            // Its level is evaluated when it is enabled.
            return true;
        }
        let count = interface.list_registers().min(LIST_REGISTERS);
        let free = !u32::from(self.used) & ((1 << count) - 1);
        if free == 0
            || line.edge
            || !self.is_clean()
            || self.queue.contains(intid)
            || self.outside.get(intid)
            || !self.forwarded().contains(line.group)
        {
            self.refresh(intid);
            return false;
        }
        let n = free.trailing_zeros() as usize % LIST_REGISTERS;
        self.queue.set_note(intid, Note::new(line.level, line.group, true));
        self.held.set(intid, false);
        self.load(n, intid, true, false);
        self.dirty = 0;
        self.running = true;
        interface.set_list_register(n, self.lr[n]);
        true
    }

    /// Posts a change to the interrupt in a list register of a CPU that is in the guest: the next
    /// harvest applies it.
    pub fn post(&mut self, n: usize, change: Change) {
        let bit = 1u16 << (n % LIST_REGISTERS);
        match change {
            Change::Unpend => self.clear_pending |= bit,
            Change::Activate => {
                self.set_active |= bit;
                self.clear_active &= !bit;
            }
            Change::Deactivate => {
                self.clear_active |= bit;
                self.set_active &= !bit;
            }
            _ => {}
        }
    }

    /// Harvests a list register: updates the state of its interrupt from it, applies the posted
    /// changes, and empties it if the interrupt must not stay. `bank` is that of the
    /// interrupt if it is an SPI; for an SPI without it, nothing happens.
    pub fn harvest(&mut self, n: usize, me: u8, mut bank: Option<&mut BankState>) -> Harvest {
        let n = n % LIST_REGISTERS;
        let (lr, bit) = (ListRegister(self.lr[n]), 1u16 << n);
        let Some(intid) = Intid::new(lr.number()) else { return Harvest::Kept };
        let spi = !intid.is_private();
        let line = match &bank {
            Some(bank) if spi => bank.lines.line(intid),
            None if spi => return Harvest::Kept,
            _ => self.lines.line(intid),
        };
        let (mut pending, mut active) = self.state_in(n);
        let mut latch = line.latch;
        // Acknowledged, or cleared.
        let mut held = self.held.get(intid) && pending;
        let deactivated = lr.is_idle() || lr.is_active() && self.clear_active & bit != 0;
        for posted in [&mut self.clear_pending, &mut self.clear_active, &mut self.set_active] {
            *posted &= !bit;
        }
        let mut input = line.input;
        if deactivated {
            match &mut bank {
                Some(bank) if spi => input = bank.finish(intid),
                _ if lr.is_linked() => {
                    // If the timer still asserts it, the physical interrupt is signalled again.
                    self.lines.input.set(intid, false);
                    input = false;
                }
                _ => {}
            }
        }
        let line = Line { input, ..line };
        let forwarded = line.enabled && self.forwarded().contains(line.group);
        let stays = bank.as_ref().is_none_or(|bank| !spi || bank.is_for(intid, me, self.takes));
        let mut told = lr.is_told();
        let kept = if active {
            // A list register has one priority and group: it may be "pending and active" only if
            // the new event has the same.
            let same = lr.level() == line.level && lr.group() == line.group;
            if line.edge && forwarded && same && stays {
                held |= latch;
                latch = false;
            } else {
                latch |= held;
                held = false;
            }
            pending = held;
            told = !line.edge || latch;
            true
        } else if pending {
            held |= latch;
            latch = false;
            forwarded && (held || line.input && !line.edge) && self.is_as_loaded(lr, &line) && stays
        } else {
            false
        };
        if !kept {
            latch |= held;
            held = false;
            // A write to ISACTIVER may have made it active just now.
            active = false;
            self.forget(n);
            self.unacknowledged.set(intid, false);
        } else {
            let now = lr.with(pending, active).with_told(told);
            if now != lr {
                self.lr[n] = now.0;
                self.dirty |= bit;
            }
            self.queue.set_note(intid, self.queue.note(intid).with_told(told));
            if !active || !lr.is_active() {
                // Pending, or active not by its acknowledgement, but by a write to ISACTIVER.
                self.unacknowledged.set(intid, active);
            }
        }
        self.held.set(intid, held);
        match bank {
            Some(bank) if spi => {
                bank.lines.latch.set(intid, latch);
                if !kept {
                    bank.set_home(intid, None, active);
                }
            }
            _ => {
                self.lines.latch.set(intid, latch);
                if !kept {
                    self.refresh(intid);
                }
            }
        }
        if kept { Harvest::Kept } else { Harvest::Released(intid) }
    }

    /// Whether priority, group and kind in a list register are still those of the line.
    fn is_as_loaded(&self, lr: ListRegister, line: &Line) -> bool {
        lr.level() == line.level
            && lr.group() == line.group
            && (lr.is_linked() || lr.is_told() != line.edge)
    }

    /// Empties a list register.
    fn forget(&mut self, n: usize) {
        let bit = 1u16 << (n % LIST_REGISTERS);
        self.used &= !bit;
        self.dirty |= bit;
        self.lr[n % LIST_REGISTERS] = 0;
    }

    /// Moves an interrupt that is pending or active from its list register to the queue, or outside.
    pub fn unload(&mut self, n: usize) {
        let lr = ListRegister(self.lr[n % LIST_REGISTERS]);
        let Some(intid) = Intid::new(lr.number()) else { return };
        if lr.is_idle() {
            // It is not pending or active: the harvest releases it.
            return;
        }
        self.forget(n);
        if lr.is_active() {
            self.set_outside(intid, true);
        } else if lr.is_pending() {
            self.queue.insert(intid, Note::new(lr.level(), lr.group(), lr.is_told()));
        }
    }

    fn set_outside(&mut self, intid: Intid, to: bool) {
        let before = self.outside.replace(intid, to);
        self.outside_count = self.outside_count + u32::from(to) - u32::from(before);
    }

    /// Adds a pending, inactive interrupt to the queue. `held`: it is pending by an event, not by its level.
    pub fn enqueue(&mut self, intid: Intid, line: &Line, held: bool) {
        self.held.set(intid, held);
        self.queue.insert(intid, Note::new(line.level, line.group, !line.edge));
    }

    /// Takes an interrupt that is in no list register out of the queue, if it is in it (it may be
    /// active). Returns whether it was pending by an event.
    pub fn dequeue(&mut self, intid: Intid) -> bool {
        self.queue.remove(intid);
        self.held.replace(intid, false)
    }

    /// Whether an interrupt in no list register is active.
    pub fn is_outside(&self, intid: Intid) -> bool {
        self.outside.get(intid)
    }

    /// Ends the activity of an interrupt that is in no list register.
    pub fn end(&mut self, intid: Intid) {
        self.set_outside(intid, false);
        self.unacknowledged.set(intid, false);
    }

    /// Notes a possible new event of an interrupt that is active, in no list register. Returns whether the
    /// event has to wait for the deactivation (in `latch`). Otherwise it is held here, and the interrupt is
    /// "pending and active". `stays`: the interrupt is still for this vCPU.
    pub fn hold(&mut self, intid: Intid, line: &Line, stays: bool) -> bool {
        let note = self.queue.note(intid);
        let same = note.level() == line.level && note.group() == line.group;
        let held = line.latch && line.edge && line.enabled && same && stays;
        let waits = line.latch && !held;
        self.held.set(intid, held);
        self.queue.set_note(intid, note.with_told(!line.edge || waits));
        waits
    }

    /// Adds a private interrupt that is in no list register to the queue, or removes it, by the present
    /// state of its line.
    pub fn refresh(&mut self, intid: Intid) {
        let latch = self.lines.latch.get(intid) | self.dequeue(intid);
        let line = Line { latch, ..self.lines.line(intid) };
        let latch = if self.outside.get(intid) {
            self.hold(intid, &line, true)
        } else if line.enabled && line.is_pending() {
            self.enqueue(intid, &line, latch);
            false
        } else {
            latch
        };
        self.lines.latch.set(intid, latch);
    }

    /// Changes a private interrupt. If it is in a list register of a CPU in the guest, returns the
    /// register's number: the change is complete when that CPU has left.
    pub fn change_private(&mut self, intid: Intid, me: u8, change: Change) -> Option<usize> {
        if let Some(n) = self.resident(intid) {
            if self.running {
                self.lines.apply(intid, change);
                self.post(n, change);
                return Some(n);
            }
            if self.harvest(n, me, None) == Harvest::Kept {
                self.unload(n);
            }
        }
        let held = self.dequeue(intid);
        if held {
            self.lines.latch.set(intid, true);
        }
        self.lines.apply(intid, change);
        match change {
            Change::Activate if !self.outside.get(intid) => {
                let line = self.lines.line(intid);
                self.queue.set_note(intid, Note::new(line.level, line.group, !line.edge));
                self.unacknowledged.set(intid, true);
                self.set_outside(intid, true);
            }
            Change::Deactivate if self.outside.get(intid) => self.end_private(intid),
            _ => {}
        }
        self.refresh(intid);
        None
    }

    /// Ends the activity of a private interrupt that is in no list register.
    pub fn end_private(&mut self, intid: Intid) {
        self.end(intid);
        if self.link.is_some_and(|(linked, _)| linked == intid) {
            self.lines.input.set(intid, false);
        }
        self.refresh(intid);
    }

    /// The fast path of [`Self::change_private`] for an event or a new input level of a private interrupt,
    /// which does not access list registers. `false` if nothing changes for the vCPU.
    #[inline(always)]
    pub fn event(&mut self, intid: Intid, change: Change) -> bool {
        if self.queue.contains(intid) && change == Change::Pend {
            return !self.held.replace(intid, true);
        }
        self.lines.apply(intid, change);
        if self.used == 0 || self.resident(intid).is_none() {
            self.refresh(intid);
        }
        true
    }

    /// The interrupt in no list register that the guest has deactivated, for one count of EOIcount:
    /// of those that it has acknowledged, the one of the highest priority, which it acknowledged
    /// last.
    pub fn ended_outside(&mut self) -> Option<Intid> {
        if self.eoi_count == 0 {
            return None;
        }
        let ended = self.highest_outside(|intid| !self.unacknowledged.get(intid));
        // No such interrupt is left: the guest has written EOIR for inactive interrupts.
        self.eoi_count = if ended.is_some() { self.eoi_count - 1 } else { 0 };
        ended
    }

    fn highest_outside(&self, fits: impl Fn(Intid) -> bool) -> Option<Intid> {
        if self.outside_count == 0 {
            return None;
        }
        let fits = |&intid: &Intid| fits(intid);
        self.outside.iter().filter(fits).min_by_key(|&intid| self.queue.note(intid).level())
    }

    /// The banks of the SPIs that are in a list register or outside: a bit each.
    pub fn banks(&self) -> u32 {
        let mut banks = 0;
        let residents = ones(self.used.into()).filter_map(|n| {
            Intid::new(ListRegister(self.lr[usize::from(n) % LIST_REGISTERS]).number())
        });
        for intid in residents {
            banks |= BankState::bit_of(intid);
        }
        if self.outside_count != 0 {
            for intid in self.outside.iter() {
                banks |= BankState::bit_of(intid);
            }
        }
        banks
    }

    /// The SPI or private interrupt in a list register.
    pub fn intid_in(&self, n: usize) -> Option<Intid> {
        Intid::new(ListRegister(self.lr[n % LIST_REGISTERS]).number())
    }

    /// Whether the guest can go on with the list registers unchanged.
    pub fn is_clean(&self) -> bool {
        self.dirty | self.clear_pending | self.clear_active | self.set_active == 0
    }

    /// Whether its CPU interface, as the guest has set it up, signals an interrupt.
    pub fn signals(&self, vmcr: Vmcr, running: u8) -> bool {
        ones(self.used.into()).map(usize::from).any(|n| {
            let lr = ListRegister(self.lr[n % LIST_REGISTERS]);
            let priority = lr.level() << 3;
            lr.is_offered()
                && vmcr.groups().contains(lr.group())
                && priority < vmcr.mask()
                && vmcr.group_priority(priority, lr.group()) < running
        })
    }

    /// Resets the CPU interface: its list registers are empty.
    pub fn reset(&mut self) {
        for n in ones(self.used.into()).map(usize::from) {
            self.unload(n);
        }
        self.eoi_count = 0;
    }
}
