// SPDX-License-Identifier: MIT OR Apache-2.0

//! vCPUs with a GIC: what their runs and exits do about interrupts.
//!
//! [`Vgic`] has the state and decides. This connects it: to the runs of a vCPU and the exits of
//! its guest, to the CPU that runs it ([`GuestCpu`]), and to its host, which learns which vCPUs to
//! run and which SPIs are done.
//!
//! While a vCPU is inside its guest, the vGIC knows (`Vgic::enter`), and whoever has an interrupt for it
//! interrupts its CPU. Before an exit changes or reads what the list registers hold, and before the
//! host gets the CPU, the vCPU leaves (`Vgic::exit`), and enters again on its way back.
//!
//! | exit | what happens |
//! | --- | --- |
//! | load or store in a frame of the GIC | leave, [`Vgic::access`], enter |
//! | write to `ICC_SGI1R_EL1` and the like | [`Vgic::send`]; leave and enter if it is for the sender as well |
//! | write to `ICC_DIR_EL1` | leave, [`Vgic::deactivate`], enter |
//! | the virtual timer's physical interrupt | [`Vgic::interrupt`]: straight into a list register |
//! | the maintenance interrupt | leave, enter |
//! | another physical interrupt | leave; the host takes it |
//! | WFI, CPU_SUSPEND | leave, [`Vgic::sleep`]: enter, or the host waits |
//!
//! # The virtual timer
//!
//! Its physical interrupt is EL2's while a guest with a GIC runs: EL2 acknowledges it, and puts the virtual one
//! into a list register that is linked with it (ICH_LR.HW). The guest deactivates both, without an
//! exit. So the timer interrupts the guest's CPU once for each time that it fires, without the host. From the
//! acknowledgement to the deactivation, the CPU *holds* the physical interrupt
//! ([`GuestCpu::holds_timer`]). That ends at the end of the run at the latest. If the timer is still
//! asserted when the next run begins, on whatever CPU, it interrupts that one at once, and is held
//! again.
//!
//! The physical timer is emulated ([`physical_timer`](super::physical_timer)).
//!
//! The host can make the physical interrupt pending without the timer. So it counts only if the
//! guest's own timer is asserted.

use escrow_abi::run;

use super::context::{NOWHERE, Power, TimerRegisters, Vcpu};
use super::exception::Exception;
use super::exit::{Answer, GuestExit, READY, Stage2Abort, answer};
use super::ids::GuestIds;
use super::physical_timer::ALARM;
use super::policy::{Next, Waited};
use super::resume::Pending;
use super::syndrome::{DataAccess, Instruction, SystemAccess, Wait};
use crate::hypervisor::{Hypervisor, Scratch};
use crate::machine::Machine;
use crate::vgic::{Access, Effects, Frame, Interface, Intid, SgiRegister, Vgic, ones, splits_eoi};
use crate::vm::{GuestPages, Run, Slot};

/// The INTID of the virtual timer, the guest's and the physical one (BSA, "PPI assignments").
pub const VIRTUAL_TIMER: u32 = 27;
/// The INTID of the physical maintenance interrupt (likewise).
pub const MAINTENANCE: u32 = 25;

/// The CPU that runs a vCPU with a GIC, by which the vCPU's interrupts come and go.
pub trait GuestCpu: Interface {
    /// Its affinity: Aff3 to Aff0, a byte each.
    fn affinity(&self) -> u32;
    /// The INTID of the physical interrupt that is pending, if one is (`ICC_HPPIR1_EL1`).
    fn pending(&self) -> u32;
    /// [`Interface::has_maintenance`], after registers were written that decide about it.
    fn still_has_maintenance(&self) -> bool;
    /// Acknowledges the virtual timer's physical interrupt, which is pending and whose timer asserts
    /// it, and drops its priority: it is active from here on, and interrupts nobody. `false` if it
    /// was not the one that is acknowledged.
    fn hold_timer(&mut self) -> bool;
    /// Whether that was done, and [`Self::release_timer`] not.
    fn holds_timer(&self) -> bool;
    /// Deactivates that interrupt, if the guest has not.
    fn release_timer(&mut self);
    /// Has [`ALARM`] come at this value of the physical counter, or not at all. Without effect once the
    /// run has ended.
    fn set_alarm(&mut self, at: Option<u64>);
}

/// What an access of a guest waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GicWait {
    /// vCPUs that have to leave their guests.
    waits: u32,
    /// How it ends; `None` if there is nothing to be read.
    read: Option<(Frame, u32, DataAccess)>,
}

/// What the host has to know of the effects of something, if anything.
fn for_host(effects: &Effects) -> Option<Answer> {
    match (effects.done, effects.asleep) {
        (true, asleep) => Some(answer(run::SPI_DONE, [asleep.into(), 0, 0])),
        // It is its CPU that has an interrupt.
        (false, 0) => effects.unfinished.then_some(READY),
        (false, asleep) => Some(answer(run::WAKE, [asleep.into(), 0, 0])),
    }
}

/// [`VIRTUAL_TIMER`] as an INTID's type.
pub(crate) fn virtual_timer() -> Intid {
    const TIMER: Intid = match Intid::new(VIRTUAL_TIMER) {
        Some(timer) => timer,
        None => panic!("an INTID"),
    };
    TIMER
}

impl TimerRegisters {
    /// When the timer will assert its interrupt, if it does not yet.
    pub(super) const fn next_deadline(&self) -> Option<u64> {
        if self.is_pending() { None } else { self.deadline() }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// The interrupt controller of the VM in a slot that was entered, or whose VM is locked.
    #[inline(always)]
    pub(crate) fn vgic<'a>(&'a self, slot: &'a Slot) -> Vgic<GuestPages<'a, M>> {
        Vgic::new(GuestPages::new(slot, &self.machine))
    }

    /// Interrupts the CPUs of vCPUs that are inside their guests. `me` is not among them: it
    /// sees for itself.
    #[inline(always)]
    pub(crate) fn interrupt_inside<'a>(
        &'a self,
        vgic: &Vgic<GuestPages<'a, M>>,
        effects: &Effects,
        me: Option<u8>,
    ) {
        let others = effects.inside & !me.map_or(0, |me| 1 << me);
        if others != 0 {
            self.interrupt_all(vgic, others);
        }
    }

    #[inline(never)]
    fn interrupt_all<'a>(&'a self, vgic: &Vgic<GuestPages<'a, M>>, vcpus: u32) {
        for index in ones(vcpus).map(|index| index as u8) {
            if let Some(affinity) = vgic.cpu_of(index) {
                self.machine.interrupt_cpu(affinity);
            }
        }
    }

    /// The vCPU enters its guest: a run begins, or goes on after an exit for which the vCPU has left.
    /// `all`: another vCPU has used the CPU's virtual CPU interface since this one did.
    #[inline(always)]
    fn gic_enter(
        &self,
        run: &mut Run<'_>,
        cpu: &mut impl GuestCpu,
        all: bool,
        mut effects: Effects,
    ) -> Next {
        let me = run.index();
        let slot = run.slot();
        let vgic = self.vgic(slot);
        let on = cpu.affinity();
        vgic.enter(me, cpu, on, all, &mut effects);
        self.interrupt_inside(&vgic, &effects, Some(me));
        let leaves = for_host(&effects).or_else(|| slot.is_stopped().then_some(READY));
        match leaves {
            Some(answer) => {
                vgic.exit(me, cpu);
                Next::Exit(answer)
            }
            None => Next::Enter,
        }
    }

    /// Begins a run of a vCPU with a GIC, whose registers are in the CPU by now. The run may end
    /// before the guest is entered ([`Next::Exit`]). If one of these functions returns that, the vCPU
    /// has left.
    #[inline(always)]
    pub fn gic_begins(&self, run: &mut Run<'_>, cpu: &mut impl GuestCpu, all: bool) -> Next {
        if !all
            && !run.begins_anew
            && run.has_interrupts(|interrupts| interrupts.enters_idle(cpu.affinity()))
            && !run.slot().is_stopped()
        {
            return Next::Enter;
        }
        self.gic_begins_anew(run, cpu, all)
    }

    /// Handles an exit by an instruction that waits.
    #[inline(always)]
    pub fn gic_waits(&self, run: &mut Run<'_>, cpu: &mut impl GuestCpu, wait: Wait) -> Waited {
        if wait.is_plain()
            && !run.begins_anew
            && !run.timer.is_pending()
            && run.has_interrupts(|interrupts| interrupts.sleeps_idle(cpu))
        {
            run.skip_instruction();
            let deadline = run.timer.deadline().unwrap_or(u64::MAX);
            return Waited::Exit(answer(run::EXPECTS_WAKEUP, [0, 0, deadline]));
        }
        self.gic_waits_anew(run, cpu, wait)
    }

    #[inline(never)]
    fn gic_waits_anew(&self, run: &mut Run<'_>, cpu: &mut impl GuestCpu, wait: Wait) -> Waited {
        // There is always something to end it with, as the GIC decides what is pending.
        let ends = run.wait(wait, true).until.unwrap_or(READY);
        match self.gic_ends(run, cpu, ends) {
            Next::Exit(answer) => Waited::Exit(answer),
            _ => Waited::Enter { interrupt: false },
        }
    }

    #[inline(never)]
    fn gic_begins_anew(&self, run: &mut Run<'_>, cpu: &mut impl GuestCpu, all: bool) -> Next {
        let mut effects = Effects::default();
        if run.timer_asserted {
            // It cannot have become asserted since without interrupting a CPU.
            run.timer_asserted = run.timer.is_pending();
            if !run.timer_asserted {
                let vgic = self.vgic(run.slot());
                vgic.set_private(run.index(), virtual_timer(), false, &mut effects);
            }
        }
        run.begins_anew = run.timer_asserted || run.physical_timer.is_in_use();
        if run.physical_timer.is_in_use() {
            self.follow_physical_timer(run, cpu, &mut effects);
        }
        match run.pending {
            Pending::Gic(wait) => self.gic_wait(run, cpu, all, wait, effects),
            _ => self.gic_enter(run, cpu, all, effects),
        }
    }

    /// A run is about to end with an answer for the host, and the vCPU is still inside: it leaves. If
    /// it was to wait and has an interrupt, it enters again instead.
    pub fn gic_ends(&self, run: &mut Run<'_>, cpu: &mut impl GuestCpu, ends: Answer) -> Next {
        let me = run.index();
        let slot = run.slot();
        let vgic = self.vgic(slot);
        vgic.exit(me, cpu);
        match ends[0] {
            run::EXPECTS_WAKEUP => {
                let mut effects = Effects::default();
                self.gic_follow_timer(run, cpu, &mut effects);
                if run.physical_timer.is_in_use() {
                    self.follow_physical_timer(run, cpu, &mut effects);
                }
                if !vgic.sleep(me, cpu) {
                    return self.gic_enter(run, cpu, false, effects);
                }
            }
            run::POWERED_OFF if run.power == Power::Off => {
                let mut effects = Effects::default();
                vgic.set_power(me, false, &mut effects);
                self.interrupt_inside(&vgic, &effects, None);
                // The next run says that it is off.
                return Next::Exit(for_host(&effects).unwrap_or(ends));
            }
            _ => {}
        }
        Next::Exit(ends)
    }

    /// Switches on a vCPU, which is locked: its interrupts are as reset leaves them. Returns the vCPUs
    /// that have to run because of it, a bit each.
    #[inline(never)]
    pub(super) fn gic_switched_on(&self, slot: &Slot, vcpu: u8) -> u32 {
        let vgic = self.vgic(slot);
        let mut effects = Effects::default();
        vgic.set_power(vcpu, true, &mut effects);
        self.interrupt_inside(&vgic, &effects, None);
        effects.asleep
    }

    /// Tells the GIC whether the timer of a vCPU, which has left, asserts its interrupt.
    fn gic_follow_timer(&self, run: &mut Run<'_>, cpu: &mut impl GuestCpu, effects: &mut Effects) {
        let me = run.index();
        let vgic = self.vgic(run.slot());
        run.timer_asserted = run.timer.is_pending();
        run.begins_anew |= run.timer_asserted;
        vgic.set_private(me, virtual_timer(), run.timer_asserted, effects);
        if cpu.holds_timer() && !vgic.holds_link(me) {
            cpu.release_timer();
        }
    }

    /// Handles an exit by a physical interrupt.
    #[inline(always)]
    fn gic_interrupted(&self, run: &mut Run<'_>, cpu: &mut impl GuestCpu) -> Next {
        let me = run.index();
        let slot = run.slot();
        let vgic = self.vgic(slot);
        match cpu.pending() {
            // Only if the timer asserts it: then it stays, as the guest does not run. Otherwise it may
            // be gone by now, and EL2 would acknowledge an interrupt of the host's.
            VIRTUAL_TIMER if run.timer.is_pending() && cpu.hold_timer() => {
                run.timer_asserted = true;
                run.begins_anew = true;
                if !vgic.interrupt(me, virtual_timer(), cpu) {
                    return self.gic_enter(run, cpu, false, Effects::default());
                }
                if slot.is_stopped() {
                    vgic.exit(me, cpu);
                    return Next::Exit(READY);
                }
                Next::Enter
            }
            ALARM if self.is_due(run) => self.physical_timer_fires(run, cpu),
            // If the interface does not assert it, the host has made it pending.
            MAINTENANCE if cpu.has_maintenance() => {
                vgic.exit(me, cpu);
                let next = self.gic_enter(run, cpu, false, Effects::default());
                if next == Next::Enter && cpu.still_has_maintenance() {
                    // It would end the guest's part at once, again and again, and hide the host's interrupts.
                    vgic.exit(me, cpu);
                    return Next::Exit(READY);
                }
                next
            }
            _ => {
                vgic.exit(me, cpu);
                Next::Exit(READY)
            }
        }
    }

    /// A vCPU that is inside leaves, `what` is done, and it enters again.
    #[inline(always)]
    pub(super) fn gic_comes_back<C: GuestCpu>(
        &self,
        run: &mut Run<'_>,
        cpu: &mut C,
        what: impl FnOnce(&mut Run<'_>, &mut C, &mut Effects),
    ) -> Next {
        let mut effects = Effects::default();
        self.vgic(run.slot()).exit(run.index(), cpu);
        what(run, cpu, &mut effects);
        self.gic_enter(run, cpu, false, effects)
    }

    /// Handles an exit other than by an instruction that waits. See [`Vcpu::decode`] for what of the
    /// registers must be in memory.
    #[inline(always)]
    pub fn gic_exit(
        &self,
        scratch: &mut Scratch,
        run: &mut Run<'_>,
        cpu: &mut impl GuestCpu,
        exit: GuestExit,
        ids: &GuestIds,
    ) -> Next {
        match exit {
            GuestExit::Interrupt => return self.gic_interrupted(run, cpu),
            GuestExit::Trapped(trapped) => {
                if let Instruction::System(access) = trapped.instruction()
                    && let Some(next) = self.gic_register(run, cpu, access)
                {
                    return next;
                }
            }
            GuestExit::Abort(abort, address) => {
                if let Some(abort) = Stage2Abort::of(abort, &address)
                    && let pages = GuestPages::new(run.slot(), &self.machine)
                    && let Some((frame, offset)) = pages.find(abort.at)
                {
                    return self.gic_access(run, cpu, &abort, frame, offset);
                }
            }
            GuestExit::Wait(_) | GuestExit::SError => {}
        }
        match self.guest_exit(scratch, run, exit, ids) {
            Next::Exit(answer) => self.gic_ends(run, cpu, answer),
            next => next,
        }
    }

    #[inline(never)]
    fn gic_access(
        &self,
        run: &mut Run<'_>,
        cpu: &mut impl GuestCpu,
        abort: &Stage2Abort,
        frame: Frame,
        offset: u32,
    ) -> Next {
        let Some(access) = abort.access() else {
            // Cache maintenance of a register's address does nothing. Another access without a
            // syndrome ends in an external abort, as an access that a device refuses.
            return match abort.is_cache_maintenance() {
                true => {
                    run.skip_instruction();
                    Next::Enter
                }
                false => Next::Inject(run.external_abort(abort)),
            };
        };
        let vgic = self.vgic(run.slot());
        let size = access.size() as u32;
        let value = access.is_write().then(|| run.stored(access));
        // It stays inside: what has become of its list registers, if there is anything in them, is not asked.
        if let Some(read) = vgic.access_quickly(frame, offset, size, value) {
            if !access.is_write() {
                run.load(access, read);
            }
            run.skip_instruction();
            return match run.slot().is_stopped() {
                true => self.gic_ends(run, cpu, READY),
                false => Next::Enter,
            };
        }
        let me = run.index();
        let mut effects = Effects::default();
        vgic.exit(me, cpu);
        if cpu.holds_timer() {
            self.gic_follow_timer(run, cpu, &mut effects);
        }
        let read = (!access.is_write()).then_some((frame, offset, access));
        match vgic.access(me, frame, offset, size, value, &mut effects) {
            Access::Done(value) => {
                self.gic_completes(run, cpu, false, effects, value, read.map(|(.., access)| access))
            }
            Access::Wait(waits) => self.gic_wait(run, cpu, false, GicWait { waits, read }, effects),
        }
    }

    /// An access is done: the guest goes on behind it.
    #[inline(always)]
    fn gic_completes(
        &self,
        run: &mut Run<'_>,
        cpu: &mut impl GuestCpu,
        all: bool,
        effects: Effects,
        value: u64,
        read: Option<DataAccess>,
    ) -> Next {
        if let Some(access) = read {
            run.load(access, value);
        }
        run.skip_instruction();
        if cpu.holds_timer() && !self.vgic(run.slot()).holds_link(run.index()) {
            cpu.release_timer();
        }
        self.gic_enter(run, cpu, all, effects)
    }

    /// An access waits until vCPUs have left their guests. This vCPU has left its own, so it cannot be one
    /// that another waits for. If the host has an interrupt meanwhile, or something to do, the run ends, and the next
    /// one goes on with the access.
    #[inline(never)]
    fn gic_wait(
        &self,
        run: &mut Run<'_>,
        cpu: &mut impl GuestCpu,
        all: bool,
        wait: GicWait,
        effects: Effects,
    ) -> Next {
        let me = run.index();
        let slot = run.slot();
        let vgic = self.vgic(slot);
        run.pending = Pending::Gic(wait);
        run.begins_anew = true;
        self.interrupt_inside(&vgic, &effects, Some(me));
        let mut ends = for_host(&effects);
        while ends.is_none() && vgic.poll(me, wait.waits) != 0 {
            if self.machine.interrupt_pending() || slot.is_stopped() {
                ends = Some(READY);
            }
            core::hint::spin_loop();
        }
        if let Some(answer) = ends {
            if all {
                // The list registers are still those of the vCPU that ran here before.
                run.interface_on = NOWHERE;
            }
            return Next::Exit(answer);
        }
        run.pending = Pending::None;
        let (value, read) = match wait.read {
            Some((frame, offset, access)) => {
                let size = access.size() as u32;
                (vgic.read_after_wait(me, frame, offset, size), Some(access))
            }
            None => (0, None),
        };
        self.gic_completes(run, cpu, all, Effects::default(), value, read)
    }

    /// A trapped access to a register of the CPU interface; `None` if it is none.
    #[inline(always)]
    fn gic_register(
        &self,
        run: &mut Run<'_>,
        cpu: &mut impl GuestCpu,
        access: SystemAccess,
    ) -> Option<Next> {
        let (3, 0, 12, crm, op2) = access.encoding() else {
            return self.physical_timer(run, cpu, access);
        };
        let register = match (crm, op2, access.is_read()) {
            (11, 5, false) => SgiRegister::Group1,
            (11, 6, false) => SgiRegister::OtherGroup1,
            (11, 7, false) => SgiRegister::Group0,
            (11, 1, false) => return Some(self.gic_deactivate(run, cpu, access)),
            // ICC_SRE_EL1: system registers only (SRE), no bypass of interrupts (DFB, DIB).
            (12, 5, read) => {
                if read {
                    run.regs.write(access.register(), 7);
                }
                run.skip_instruction();
                return Some(Next::Enter);
            }
            _ => return None,
        };
        Some(self.gic_send(run, cpu, register, access))
    }

    #[inline(never)]
    fn gic_send(
        &self,
        run: &mut Run<'_>,
        cpu: &mut impl GuestCpu,
        register: SgiRegister,
        access: SystemAccess,
    ) -> Next {
        let me = run.index();
        let slot = run.slot();
        let vgic = self.vgic(slot);
        let mut effects = Effects::default();
        vgic.send(me, register, run.regs.read(access.register()), &mut effects);
        run.skip_instruction();
        if effects.inside & 1 << me == 0 && effects.asleep == 0 && !slot.is_stopped() {
            self.interrupt_inside(&vgic, &effects, Some(me));
            return Next::Enter;
        }
        vgic.exit(me, cpu);
        self.gic_enter(run, cpu, false, effects)
    }

    /// A write to `ICC_DIR_EL1`.
    #[inline(never)]
    fn gic_deactivate(
        &self,
        run: &mut Run<'_>,
        cpu: &mut impl GuestCpu,
        access: SystemAccess,
    ) -> Next {
        let me = run.index();
        let vgic = self.vgic(run.slot());
        let mut effects = Effects::default();
        vgic.exit(me, cpu);
        if !splits_eoi(cpu.vmcr()) {
            // UNPREDICTABLE (IHI 0069, "ICC_DIR_EL1"); ignoring it is one of the choices.
            return self.gic_completes(run, cpu, false, effects, 0, None);
        }
        let number = run.regs.read(access.register()) as u32 & 0xff_ffff;
        match vgic.deactivate(me, number, &mut effects) {
            Access::Done(_) => self.gic_completes(run, cpu, false, effects, 0, None),
            Access::Wait(waits) => {
                self.gic_wait(run, cpu, false, GicWait { waits, read: None }, effects)
            }
        }
    }
}

impl Vcpu {
    /// The value that a store writes.
    fn stored(&self, access: DataAccess) -> u64 {
        access.stored(self.regs.read(access.register()), self.is_big_endian())
    }

    /// Puts the value that a load has read into its register.
    fn load(&mut self, access: DataAccess, value: u64) {
        let value = access.loaded(value, self.is_big_endian());
        self.regs.write(access.register(), value);
    }

    fn external_abort(&self, abort: &Stage2Abort) -> Exception {
        abort.external(self.regs.pstate)
    }
}

#[cfg(test)]
mod tests;
