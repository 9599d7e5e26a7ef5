// SPDX-License-Identifier: MIT OR Apache-2.0

//! The physical timer of a vCPU with a GIC (`CNTP_*_EL0`), which EL2 emulates: the CPU's own is
//! the host's (`CNTHCTL_EL2.EL1PCEN` 0).
//!
//! | its time comes | what interrupts |
//! | --- | --- |
//! | while the vCPU is inside its guest | the physical timer of EL2 (`CNTHP_*_EL2`), which is set to it: the *alarm* |
//! | while the guest waits | its host runs it at the deadline ([`EXPECTS_WAKEUP`](escrow_abi::run::EXPECTS_WAKEUP)) |
//! | otherwise | the next run begins with it |
//!
//! Its interrupt is level-sensitive. EL2 computes the level when it may have changed: at an access to the
//! timer, at the beginning of a run, before the guest waits, and at the alarm.

use super::context::Vcpu;
use super::interrupts::GuestCpu;
use super::policy::Next;
use super::syndrome::SystemAccess;
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use crate::vgic::{Effects, Intid};
use crate::vm::Run;

/// The INTID of a guest's physical timer (BSA, "PPI assignments").
pub const PHYSICAL_TIMER: u32 = 30;
/// The INTID of EL2's physical timer (likewise).
pub const ALARM: u32 = 26;

/// The registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysicalTimer {
    /// `CNTP_CTL_EL0`: bit 0 enable, bit 1 masked.
    ctl: u64,
    /// `CNTP_CVAL_EL0`.
    cval: u64,
    /// The level of its interrupt that the vGIC was last given: true is asserted.
    asserted: bool,
}

/// One of them, by op2 of its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Tval,
    Ctl,
    Cval,
}

impl PhysicalTimer {
    const ENABLE: u64 = 1 << 0;
    const IMASK: u64 = 1 << 1;
    const ISTATUS: u64 = 1 << 2;

    /// Whether EL2 has to compute its level: it is enabled, or the vGIC was last told that it asserts
    /// its interrupt.
    #[inline(always)]
    pub(super) const fn is_in_use(&self) -> bool {
        self.ctl & Self::ENABLE != 0 || self.asserted
    }

    const fn may_fire(&self) -> bool {
        self.ctl & (Self::ENABLE | Self::IMASK) == Self::ENABLE
    }

    /// DDI 0487, "Operation of the CompareValue views of the timers".
    const fn is_met(&self, now: u64) -> bool {
        now >= self.cval
    }

    /// Whether it asserts its interrupt.
    const fn asserts(&self, now: u64) -> bool {
        self.may_fire() && self.is_met(now)
    }

    /// When it will assert its interrupt, if it does not.
    const fn alarm(&self, now: u64) -> Option<u64> {
        if self.may_fire() && !self.is_met(now) { Some(self.cval) } else { None }
    }

    /// When a guest that waits has to be woken for it; `None` if the vGIC has its interrupt already.
    pub(super) const fn deadline(&self) -> Option<u64> {
        if self.may_fire() && !self.asserted { Some(self.cval) } else { None }
    }

    /// The timer after a reset. `asserted` stays: the vGIC keeps the level until it gets another one.
    pub(super) const fn reset(&self) -> PhysicalTimer {
        PhysicalTimer { ctl: 0, cval: 0, asserted: self.asserted }
    }

    fn read(&self, register: Register, now: u64) -> u64 {
        match register {
            // 32 bits, signed, of which the upper half is RES0 (DDI 0487, "CNTP_TVAL_EL0").
            Register::Tval => self.cval.wrapping_sub(now) as u32 as u64,
            Register::Ctl if self.ctl & Self::ENABLE != 0 && self.is_met(now) => {
                self.ctl | Self::ISTATUS
            }
            Register::Ctl => self.ctl,
            Register::Cval => self.cval,
        }
    }

    fn write(&mut self, register: Register, value: u64, now: u64) {
        match register {
            Register::Tval => self.cval = now.wrapping_add(value as i32 as u64),
            Register::Ctl => self.ctl = value & (Self::ENABLE | Self::IMASK),
            Register::Cval => self.cval = value,
        }
    }
}

/// The earlier of two deadlines.
fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}

const INTID: Intid = match Intid::new(PHYSICAL_TIMER) {
    Some(timer) => timer,
    None => panic!("an INTID"),
};

impl Register {
    fn of(access: SystemAccess) -> Option<Register> {
        match access.encoding() {
            (3, 3, 14, 2, 0) => Some(Register::Tval),
            (3, 3, 14, 2, 1) => Some(Register::Ctl),
            (3, 3, 14, 2, 2) => Some(Register::Cval),
            _ => None,
        }
    }
}

impl Vcpu {
    /// The earliest deadline of the timers that do not assert their interrupt yet.
    #[inline(always)]
    pub(super) fn deadline_with_gic(&self) -> Option<u64> {
        let virtual_timer = self.timer.next_deadline();
        if self.begins_anew {
            earlier(virtual_timer, self.physical_timer.deadline())
        } else {
            virtual_timer
        }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// A trapped access to a register of the timer, by a vCPU that is inside; `None` if it is none.
    #[inline(always)]
    pub(super) fn physical_timer(
        &self,
        run: &mut Run<'_>,
        cpu: &mut impl GuestCpu,
        access: SystemAccess,
    ) -> Option<Next> {
        let register = Register::of(access)?;
        Some(self.access_physical_timer(run, cpu, access, register))
    }

    #[inline(never)]
    fn access_physical_timer(
        &self,
        run: &mut Run<'_>,
        cpu: &mut impl GuestCpu,
        access: SystemAccess,
        register: Register,
    ) -> Next {
        let now = self.machine.now();
        run.skip_instruction();
        if access.is_read() {
            let value = run.physical_timer.read(register, now);
            run.regs.write(access.register(), value);
            return Next::Enter;
        }
        let value = run.regs.read(access.register());
        run.physical_timer.write(register, value, now);
        run.begins_anew = true;
        self.physical_timer_fires(run, cpu)
    }

    /// Updates the level of a vCPU that is inside, when its timer may have fired or was changed.
    pub(super) fn physical_timer_fires(&self, run: &mut Run<'_>, cpu: &mut impl GuestCpu) -> Next {
        self.gic_comes_back(run, cpu, |run, cpu, effects| {
            self.follow_physical_timer(run, cpu, effects);
        })
    }

    /// Gives the vGIC the level of the timer of a vCPU, which has left, and sets the alarm.
    pub(super) fn follow_physical_timer(
        &self,
        run: &mut Run<'_>,
        cpu: &mut impl GuestCpu,
        effects: &mut Effects,
    ) {
        let now = self.machine.now();
        let asserts = run.physical_timer.asserts(now);
        if asserts != run.physical_timer.asserted {
            run.physical_timer.asserted = asserts;
            let me = run.index();
            self.vgic(run.slot()).set_private(me, INTID, asserts, effects);
            // The vCPU is in its run, so the host need not be told to run it.
            effects.asleep &= !(1 << me);
        }
        cpu.set_alarm(run.physical_timer.alarm(now));
    }

    /// Whether the alarm is due. Once the vGIC has the timer's level, the alarm is off: an interrupt of it
    /// that comes then was made pending by the host.
    pub(super) fn is_due(&self, run: &Run<'_>) -> bool {
        let timer = &run.physical_timer;
        !timer.asserted && timer.asserts(self.machine.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CTL: Register = Register::Ctl;
    const CVAL: Register = Register::Cval;
    const TVAL: Register = Register::Tval;

    #[test]
    fn its_registers() {
        let mut timer = PhysicalTimer::default();
        timer.write(CVAL, 1000, 0);
        assert_eq!([CTL, CVAL, TVAL].map(|r| timer.read(r, 10)), [0, 1000, 990]);
        // ISTATUS cannot be written, and nothing else is there.
        timer.write(CTL, u64::MAX, 10);
        assert_eq!(timer.read(CTL, 999), 3);
        assert_eq!(timer.read(CTL, 1000), 7);
        timer.write(CTL, 0, 10);
        assert_eq!(timer.read(CTL, 1000), 0, "off: it says nothing of its time");
        // TVAL is what is left, signed, in 32 bits.
        assert_eq!(timer.read(TVAL, 1001), 0xffff_ffff);
        timer.write(TVAL, 0xffff_0000_0000_0010, 500);
        assert_eq!(timer.read(CVAL, 500), 516);
        timer.write(TVAL, 0xffff_fff0, 500);
        assert_eq!(timer.read(CVAL, 500), 484);
        timer.write(TVAL, 0x8000_0000, 0);
        assert_eq!(timer.read(CVAL, 0), 0xffff_ffff_8000_0000);
    }

    #[test]
    fn when_it_asserts_its_interrupt() {
        let mut timer = PhysicalTimer::default();
        timer.write(CVAL, 1000, 0);
        assert_eq!((timer.asserts(2000), timer.alarm(0), timer.deadline()), (false, None, None));
        timer.write(CTL, 1, 0);
        assert!(timer.is_in_use());
        assert_eq!((timer.asserts(999), timer.alarm(999)), (false, Some(1000)));
        assert_eq!((timer.asserts(1000), timer.alarm(1000)), (true, None));
        // Masked.
        timer.write(CTL, 3, 0);
        assert_eq!((timer.asserts(1000), timer.alarm(0), timer.deadline()), (false, None, None));
        // The far end of the counter, and beyond.
        timer.write(CTL, 1, 0);
        timer.write(CVAL, u64::MAX, 0);
        assert_eq!((timer.asserts(u64::MAX - 1), timer.asserts(u64::MAX)), (false, true));
    }

    #[test]
    fn what_wakes_a_guest() {
        let mut timer = PhysicalTimer { ctl: 1, cval: 50, asserted: false };
        assert_eq!(timer.deadline(), Some(50));
        timer.asserted = true;
        assert_eq!(timer.deadline(), None, "the GIC decides");
        assert_eq!(timer.reset(), PhysicalTimer { ctl: 0, cval: 0, asserted: true });
        assert!(timer.reset().is_in_use(), "the GIC is to be told");
        assert!(!PhysicalTimer::default().is_in_use());
        assert_eq!(earlier(Some(3), Some(2)), Some(2));
        assert_eq!([earlier(None, Some(2)), earlier(Some(2), None)], [Some(2); 2]);
        assert_eq!(earlier(None, None), None);
    }
}
