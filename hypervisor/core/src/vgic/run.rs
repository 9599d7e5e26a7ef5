// SPDX-License-Identifier: MIT OR Apache-2.0

//! Entry of a vCPU into its guest, exit, and sleep.

use arrayvec::ArrayVec;

use super::bank::{BANKS, BankState};
use super::bits::{Intid, ones};
use super::cpu::{ASLEEP, Cpu, CpuState, Harvest, INSIDE, OUT, eligible};
use super::lr::{Groups, Interface, LIST_REGISTERS, Vmcr, hcr};
use super::{Effects, Pages, Vgic};
use crate::sync::{Ordering, TicketMutexGuard, fence};

/// A bit of [`Cpu::used`] above the list registers: the maintenance interrupt may be asserted.
const WATCHED: u32 = 1 << LIST_REGISTERS;

/// The locks of the banks that are needed.
type Banks<'a> = [Option<TicketMutexGuard<'a, BankState>>; BANKS];

impl<P: Pages> Vgic<P> {
    /// A vCPU is about to enter its guest, on CPU number `on`. `all`: that CPU's virtual CPU
    /// interface has been used by another vCPU since, so all list registers are written.
    ///
    /// A sender that makes an interrupt pending meanwhile sets `attention` first and then looks
    /// where this vCPU is; this function writes where the vCPU is first and then looks at
    /// `attention`. At least one of them sees what the other has written.
    #[inline(always)]
    pub fn enter(
        &self,
        me: u8,
        interface: &mut impl Interface,
        on: u32,
        all: bool,
        effects: &mut Effects,
    ) {
        let Some(cpu) = self.pages().cpu(me) else { return };
        let goes_on = cpu.goes_inside(on);
        if !all && goes_on {
            if cpu.used.load(Ordering::Relaxed) == 0 {
                return;
            }
            let mut state = cpu.state.lock();
            if state.is_clean() {
                state.running = true;
                return;
            }
        }
        self.refill(me, cpu, interface, all, effects);
    }

    #[inline(never)]
    fn refill(
        &self,
        me: u8,
        cpu: &Cpu,
        interface: &mut impl Interface,
        all: bool,
        effects: &mut Effects,
    ) {
        // From here on a sender that sets `attention` interrupts this CPU: it counts as inside.
        cpu.attention.swap(0, Ordering::SeqCst);
        effects.filling = Some(me);
        let vmcr = Vmcr(interface.vmcr());
        if vmcr.controls() != cpu.controls.load(Ordering::Relaxed) {
            cpu.controls.store(vmcr.controls(), Ordering::Relaxed);
            let groups = eligible::GROUP_0 | eligible::GROUP_1;
            self.set_flags(cpu, groups, vmcr.groups().0.into(), Some(me), effects);
        } else if self.is_unfinished() {
            self.revisit_rest(Some(me), effects);
        }
        let banks = cpu.banks.load(Ordering::Relaxed);
        let mut state = match banks {
            0 => {
                let mut state = cpu.state.lock();
                harvest_all(&mut state, me, &mut [None, None], &mut ArrayVec::new());
                state
            }
            _ => self.harvest_spis(me, cpu, banks, effects),
        };
        let controls = state.fill(vmcr, interface.list_registers());
        state.write(interface, all);
        let before = interface.hcr();
        let after = before & !hcr::OURS | controls;
        if after != before {
            interface.set_hcr(after);
        }
        state.running = state.used != 0;
        let watched = if controls != 0 { WATCHED } else { 0 };
        cpu.used.store(u32::from(state.used) | watched, Ordering::Relaxed);
        cpu.banks.store(state.banks(), Ordering::Relaxed);
        effects.filling = None;
    }

    /// Harvests the list registers of a vCPU that has SPIs, and settles those that were released.
    #[inline(never)]
    fn harvest_spis<'a>(
        &self,
        me: u8,
        cpu: &'a Cpu,
        which: u32,
        effects: &mut Effects,
    ) -> TicketMutexGuard<'a, CpuState> {
        let mut banks: Banks<'_> = [0, 1].map(|n| {
            let bank = if which & 1 << n != 0 { self.pages().bank(n) } else { None };
            bank.map(|bank| bank.state.lock())
        });
        loop {
            let mut released = ArrayVec::new();
            let mut state = cpu.state.lock();
            harvest_all(&mut state, me, &mut banks, &mut released);
            if released.is_empty() {
                return state;
            }
            // Locks of other vCPUs are next.
            drop(state);
            for intid in released {
                if let Some(bank) = &mut banks[BankState::of(intid) % BANKS] {
                    self.settle(bank, intid, effects);
                    effects.done |= bank.has_done();
                }
            }
        }
    }

    /// A vCPU has left its guest. Its virtual CPU interface is as the guest left it. Afterwards other
    /// CPUs, or the host, may use its state.
    #[inline(always)]
    pub fn exit(&self, me: u8, interface: &mut impl Interface) {
        let Some(cpu) = self.pages().cpu(me) else { return };
        if cpu.is_idle(interface) {
            cpu.place.store(OUT, Ordering::Relaxed);
        } else {
            self.save(cpu, interface);
        }
    }

    #[inline(never)]
    fn save(&self, cpu: &Cpu, interface: &mut impl Interface) {
        if Vmcr(interface.vmcr()).controls() != cpu.controls.load(Ordering::Relaxed) {
            cpu.attention.store(1, Ordering::Relaxed);
        }
        if cpu.used.load(Ordering::Relaxed) != 0 {
            let mut state = cpu.state.lock();
            let due = state.save(interface);
            state.running = false;
            state.waiters = 0;
            if due {
                cpu.attention.store(1, Ordering::Relaxed);
            }
            let watched = cpu.used.load(Ordering::Relaxed) & WATCHED;
            cpu.used.store(u32::from(state.used) | watched, Ordering::Relaxed);
        }
        cpu.place.store(OUT, Ordering::Relaxed);
    }

    /// A vCPU that has left its guest waits for an interrupt: `true` if it sleeps until it is
    /// woken, `false` if there is an interrupt, or may be.
    ///
    /// As in [`Self::enter`], the place is written before `attention` is read.
    pub fn sleep(&self, me: u8, interface: &impl Interface) -> bool {
        let Some(cpu) = self.pages().cpu(me) else { return true };
        if cpu.used.load(Ordering::Relaxed) != 0
            && cpu.state.lock().signals(Vmcr(interface.vmcr()), running_priority(interface))
        {
            return false;
        }
        cpu.falls_asleep()
    }

    /// A vCPU is switched on or off, with its CPU interface reset.
    pub fn set_power(&self, me: u8, on: bool, effects: &mut Effects) {
        let Some(cpu) = self.pages().cpu(me) else { return };
        cpu.state.lock().reset();
        cpu.controls.store(0, Ordering::Relaxed);
        let groups = eligible::GROUP_0 | eligible::GROUP_1;
        let flags = if on { eligible::ON } else { 0 };
        // No vCPU (`None`): all work is done at once, as a vCPU that is off has no next entry.
        self.set_flags(cpu, groups | eligible::ON, flags, None, effects);
        self.notify(me, effects);
    }

    /// The vCPU's timer has fired and caused an exit: its input is high. The fast path of
    /// [`Self::exit`], [`Self::set_private`] and [`Self::enter`] in one; `false` if [`Self::enter`] has to
    /// follow.
    #[inline(always)]
    pub fn interrupt(&self, me: u8, ppi: Intid, interface: &mut impl Interface) -> bool {
        let Some(cpu) = self.pages().cpu(me).filter(|_| ppi.is_private()) else { return true };
        let mut state = cpu.state.lock();
        let is_in = state.insert(ppi, interface);
        if is_in {
            let watched = cpu.used.load(Ordering::Relaxed) & WATCHED;
            cpu.used.store(u32::from(state.used) | watched, Ordering::Relaxed);
        } else {
            drop(state);
            self.exit(me, interface);
            cpu.attention.store(1, Ordering::Relaxed);
        }
        is_in
    }

    /// Changes which interrupts for any vCPU a vCPU takes, and routes the pending ones again.
    pub(super) fn set_flags(
        &self,
        cpu: &Cpu,
        which: u32,
        to: u32,
        by: Option<u8>,
        effects: &mut Effects,
    ) {
        let before = cpu.flags.load(Ordering::Relaxed);
        if before & which == to {
            return;
        }
        let mut state = cpu.state.lock();
        let flags = cpu.flags.load(Ordering::Relaxed) & !which | to;
        cpu.flags.store(flags, Ordering::Relaxed);
        state.takes = eligible::takes(flags);
        state.wanted = Groups(0);
        drop(state);
        self.revisit(by, effects);
    }
}

impl Cpu {
    /// Whether an exit has nothing to do: no list register is in use, no maintenance interrupt is enabled, and
    /// the guest has not changed the controls that filling depends on.
    #[inline(always)]
    pub fn is_idle(&self, interface: &impl Interface) -> bool {
        self.used.load(Ordering::Relaxed) == 0
            && Vmcr(interface.vmcr()).controls() == self.controls.load(Ordering::Relaxed)
    }

    /// The fast path of [`Vgic::enter`] for a vCPU whose virtual CPU interface is as it left it: `true` if it
    /// is inside, on the CPU `on`, and nothing else is to be done.
    #[inline(always)]
    pub fn enters_idle(&self, on: u32) -> bool {
        self.goes_inside(on) && self.used.load(Ordering::Relaxed) == 0
    }

    /// The fast path of [`Vgic::exit`] and [`Vgic::sleep`]: `true` if the vCPU sleeps.
    #[inline(always)]
    pub fn sleeps_idle(&self, interface: &impl Interface) -> bool {
        self.is_idle(interface) && self.falls_asleep()
    }

    /// Marks the vCPU as inside. `false` if its `attention` is set.
    #[inline(always)]
    fn goes_inside(&self, on: u32) -> bool {
        self.place.store(INSIDE + on, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.attention.load(Ordering::Relaxed) == 0
    }

    /// Marks the vCPU as asleep, unless its `attention` is set.
    #[inline(always)]
    fn falls_asleep(&self) -> bool {
        self.place.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let sleeps = self.attention.load(Ordering::Relaxed) == 0;
        if !sleeps {
            self.place.store(OUT, Ordering::Relaxed);
        }
        sleeps
    }
}

/// Harvests all list registers of a vCPU that is out of its guest, and ends the interrupts outside
/// of them that the guest has deactivated. SPIs that have no home any more are added to `released`,
/// as many as fit: if there are any, it has to be called again.
#[inline(always)]
fn harvest_all(
    state: &mut CpuState,
    me: u8,
    banks: &mut Banks<'_>,
    released: &mut ArrayVec<Intid, LIST_REGISTERS>,
) {
    for n in ones(state.used.into()).map(usize::from) {
        let bank = state.intid_in(n).and_then(|intid| bank_of(banks, intid));
        if let Harvest::Released(intid) = state.harvest(n, me, bank)
            && !intid.is_private()
        {
            // As many as there are list registers.
            let _ = released.try_push(intid);
        }
    }
    while !released.is_full()
        && let Some(intid) = state.ended_outside()
    {
        if end_outside(state, bank_of(banks, intid), intid) {
            let _ = released.try_push(intid);
        }
    }
}

fn bank_of<'a>(banks: &'a mut Banks<'_>, intid: Intid) -> Option<&'a mut BankState> {
    if intid.is_private() {
        return None;
    }
    banks[BankState::of(intid) % BANKS].as_deref_mut()
}

/// Ends the activity of an interrupt that is in no list register of its vCPU. `true` if it is an
/// SPI, which has no home any more.
pub(super) fn end_outside(
    state: &mut CpuState,
    bank: Option<&mut BankState>,
    intid: Intid,
) -> bool {
    if intid.is_private() {
        state.end_private(intid);
        return false;
    }
    let Some(bank) = bank else { return false };
    state.end(intid);
    if state.dequeue(intid) {
        bank.lines.latch.set(intid, true);
    }
    bank.set_home(intid, None, false);
    bank.finish(intid);
    true
}

/// The priority that an interrupt has to exceed (ICV_RPR_EL1).
fn running_priority(interface: &impl Interface) -> u8 {
    let words = interface.active_priorities();
    let first = (0u32..).zip(words).find(|&(_, word)| word != 0);
    first.map_or(0xff, |(n, word)| {
        ((n * 32 + word.trailing_zeros()) << interface.preemption_shift()) as u8
    })
}
