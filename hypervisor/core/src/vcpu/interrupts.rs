// SPDX-License-Identifier: MIT OR Apache-2.0

//! Interrupts in the runs and exits of vCPUs with a GIC.
//!
//! [`Vgic`] has the state and decides. This module calls it from the runs of a vCPU and the exits of
//! its guest, connects it with the CPU that runs the vCPU ([`GuestCpu`]), and tells the host which vCPUs to
//! run and which SPIs are done.
//!
//! `Vgic::enter` marks a vCPU as inside its guest: a CPU that makes an interrupt pending for it then
//! interrupts its CPU. Before an exit reads or changes the state of the list registers, and before the
//! host gets the CPU, the vCPU *leaves* (`Vgic::exit`); it *enters* again before it goes on.
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
//! EL2 takes its physical interrupt while a guest with a GIC runs: EL2 acknowledges it, and puts the virtual one
//! into a list register that is linked with it (`ICH_LR<n>_EL2.HW`). The guest's deactivation deactivates both,
//! without an exit. So each time the timer fires, there is one exit, and the host is not involved. From the
//! acknowledgement to the deactivation, the CPU *holds* the physical interrupt
//! ([`GuestCpu::holds_timer`]). EL2 deactivates it at the end of the run at the latest. If the timer still
//! asserts it when the next run begins, on any CPU, it interrupts that CPU at once, and is held
//! again.
//!
//! The physical timer is emulated ([`physical_timer`](super::physical_timer)).
//!
//! The host can make the physical interrupt pending without the timer (GICR_ISPENDR0). So EL2 acknowledges
//! it only if the guest's timer asserts it.

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

/// What this module needs of the CPU that runs a vCPU with a GIC.
pub trait GuestCpu: Interface {
    /// Its affinity: Aff3 to Aff0, a byte each.
    fn affinity(&self) -> u32;
    /// The INTID of the physical interrupt that is pending, if one is (`ICC_HPPIR1_EL1`).
    fn pending(&self) -> u32;
    /// [`Interface::has_maintenance`], after registers were written that decide about it.
    fn still_has_maintenance(&self) -> bool;
    /// Acknowledges the virtual timer's physical interrupt, which is pending and whose timer asserts
    /// it, and drops its priority: it is active from here on, so it is not signalled again. `false` if the CPU
    /// interface acknowledged another interrupt.
    fn hold_timer(&mut self) -> bool;
    /// Whether the CPU holds that interrupt: acknowledged, and not yet released by [`Self::release_timer`].
    fn holds_timer(&self) -> bool;
    /// Deactivates that interrupt, unless the guest has.
    fn release_timer(&mut self);
    /// Sets [`ALARM`] to this value of the physical counter, or off. It is off after the end of the run.
    fn set_alarm(&mut self, at: Option<u64>);
}

/// An access of a guest to its GIC that waits for other vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GicWait {
    /// vCPUs that have to leave their guests.
    waits: u32,
    /// For a load: the register to read when the wait is over.
    read: Option<(Frame, u32, DataAccess)>,
}

/// The answer for the host that these effects require, if any.
fn for_host(effects: &Effects) -> Option<Answer> {
    match (effects.done, effects.asleep) {
        (true, asleep) => Some(answer(run::SPI_DONE, [asleep.into(), 0, 0])),
        // Work was left because this CPU has an interrupt, which the host takes.
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

    /// Interrupts the CPUs of vCPUs that are inside their guests, other than `me`: that one runs this
    /// code, and looks at its interrupts before it enters its guest.
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

    /// Begins a run of a vCPU with a GIC, whose registers are loaded. The run may end before the guest is
    /// entered ([`Next::Exit`]). Whenever one of these functions returns `Exit`, the vCPU has left.
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
        // With a GIC, `until` is never `None`: the vGIC decides whether an interrupt is pending.
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
            // Only from asserted to not asserted: a timer that becomes asserted interrupts the
            // CPU, and that exit tells the vGIC.
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
    /// the guest waits but has an interrupt, the vCPU enters again instead.
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
                // If there is another answer first, the next run answers POWERED_OFF.
                return Next::Exit(for_host(&effects).unwrap_or(ends));
            }
            _ => {}
        }
        Next::Exit(ends)
    }

    /// Switches on a vCPU, which is locked, with its CPU interface reset. Returns the vCPUs
    /// that the host has to run because of it, a bit each.
    #[inline(never)]
    pub(super) fn gic_switched_on(&self, slot: &Slot, vcpu: u8) -> u32 {
        let vgic = self.vgic(slot);
        let mut effects = Effects::default();
        vgic.set_power(vcpu, true, &mut effects);
        self.interrupt_inside(&vgic, &effects, None);
        effects.asleep
    }

    /// Gives the vGIC the level of the virtual timer of a vCPU, which has left.
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
            // Only if the timer asserts it: then it stays pending, as the guest cannot change its timer
            // now. Otherwise it may not be pending any more, and EL2 would acknowledge one of the host's.
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
            // If the virtual CPU interface does not assert it, the host has made it pending, and takes it.
            MAINTENANCE if cpu.has_maintenance() => {
                vgic.exit(me, cpu);
                let next = self.gic_enter(run, cpu, false, Effects::default());
                if next == Next::Enter && cpu.still_has_maintenance() {
                    // It would cause an exit at once, for ever, and the host would never get an interrupt.
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

    /// A vCPU that is inside leaves, `what` runs, and the vCPU enters again.
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

    /// Handles an exit other than by an instruction that waits. [`Vcpu::decode`] says which registers must
    /// be in memory.
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
            // Cache maintenance of a register's address does nothing. Another access without a valid
            // syndrome cannot be emulated: an external abort, as a device gives for an access that it
            // does not support.
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
        // An access that does not depend on the list registers: the vCPU stays inside.
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

    /// Completes an access: the guest goes on at the next instruction.
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

    /// An access waits until other vCPUs have left their guests. This vCPU has left its own, so no other
    /// waits for it, and there is no deadlock. If the host has an interrupt or something to do meanwhile, the run
    /// ends, and the next run continues the access.
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
                // This vCPU's list registers were not written: the CPU has those of the vCPU before.
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

    /// Handles a trapped access to a register of the CPU interface or the physical timer; `None` for other
    /// registers.
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
