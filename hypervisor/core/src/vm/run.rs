// SPDX-License-Identifier: MIT OR Apache-2.0

//! A vCPU while a CPU runs it.

use core::ops::{Deref, DerefMut};

use super::slot::{Entered, Slot};
use crate::ledger::GuestId;
use crate::vcpu::{Vcpu, VcpuGuard};
use crate::vgic;

/// A vCPU that this CPU has to itself, to run it.
pub struct Run<'a> {
    // Fields drop in this order: the vCPU is given back before its VM may die.
    vcpu: VcpuGuard<'a>,
    entered: Entered<'a>,
    /// The vCPU's interrupts, if it has a GIC or is told its stolen time.
    more: Option<&'a vgic::Cpu>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        vcpu: VcpuGuard<'a>,
        entered: Entered<'a>,
        more: Option<&'a vgic::Cpu>,
    ) -> Run<'a> {
        Run { vcpu, entered, more }
    }

    /// The vCPU has a GIC, or is told its stolen time. The runs of all others are compiled without
    /// what only these do.
    #[inline(always)]
    pub fn does_more(&self) -> bool {
        self.more.is_some()
    }

    /// Does something with the interrupts of a vCPU that has a GIC.
    #[inline(always)]
    pub(crate) fn has_interrupts(&self, which: impl FnOnce(&vgic::Cpu) -> bool) -> bool {
        self.more.is_some_and(which)
    }

    /// The VM.
    pub fn id(&self) -> GuestId {
        self.entered.slot().id()
    }

    /// The VM's slot.
    pub fn slot(&self) -> &'a Slot {
        self.entered.slot()
    }

    /// Whether the vCPU has a virtual interrupt pending: vCPU 0 has while a doorbell of its VM has
    /// unmasked flags set.
    #[inline(always)]
    pub fn has_interrupt(&self) -> bool {
        self.entered.slot().doorbells().is_ringing() && self.takes_interrupts()
    }

    /// Whether the vCPU, which is about to wait for an interrupt, has one pending.
    #[inline(always)]
    pub(crate) fn has_interrupt_to_wait_for(&self) -> bool {
        self.entered.slot().doorbells().is_ringing_for_sleeper() && self.takes_interrupts()
    }

    /// Whether doorbells are virtual IRQs (HCR_EL2.VI): not for a guest with a GIC, whose only interrupts
    /// are the GIC's.
    fn takes_interrupts(&self) -> bool {
        !self.vcpu.has_gic && self.vcpu.affinity() == Vcpu::affinity_of(0)
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
