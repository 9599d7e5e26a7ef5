// SPDX-License-Identifier: MIT OR Apache-2.0

//! The interrupt controller of a slot's VM: its pages, and the guest addresses of its frames.

use core::array;

use super::slot::Slot;
use crate::addr::Ipa;
use crate::machine::Machine;
use crate::stage2::{BankPage, PageCell};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::vgic::{BANKS, Bank, Cpu, Frame, Layout, Pages};
use crate::vm::MAX_VCPUS;

/// A VM's interrupt controller, if it has one. It is made before the VM starts, under the VM's lock,
/// and does not change until the VM is dead.
#[derive(Debug)]
pub struct Controller {
    /// [`Pages::intids`]; 0 without a controller.
    intids: AtomicU32,
    distributor: AtomicU64,
    redistributors: AtomicU64,
    banks: [PageCell<BankPage>; BANKS],
}

impl Controller {
    #[inline(always)]
    pub(super) fn new() -> Controller {
        Controller {
            intids: AtomicU32::new(0),
            distributor: AtomicU64::new(0),
            redistributors: AtomicU64::new(0),
            banks: array::from_fn(|_| PageCell::new()),
        }
    }

    /// Whether there is one.
    #[inline(always)]
    pub fn exists(&self) -> bool {
        self.intids.load(Ordering::Relaxed) != 0
    }

    /// Notes that there is one. Needs the VM's lock.
    pub(crate) fn open(&self, layout: &Layout, intids: u32, banks: [Option<BankPage>; BANKS]) {
        self.distributor.store(layout.distributor.0, Ordering::Relaxed);
        self.redistributors.store(layout.redistributors.0, Ordering::Relaxed);
        for (cell, page) in self.banks.iter().zip(banks) {
            if let Some(page) = page {
                cell.set(page);
            }
        }
        // Release: a CPU that reads this without the VM's lock sees the stores above.
        self.intids.store(intids, Ordering::Release);
    }

    /// Forgets its pages.
    pub(super) fn close(&self) {
        self.intids.store(0, Ordering::Relaxed);
        self.banks.iter().for_each(PageCell::clear);
    }

    /// Where the guest finds it.
    pub fn layout(&self) -> Layout {
        Layout {
            distributor: Ipa(self.distributor.load(Ordering::Relaxed)),
            redistributors: Ipa(self.redistributors.load(Ordering::Relaxed)),
        }
    }
}

/// The pages of the interrupt controller of a slot's VM. Code that has a value of this type is in a run of
/// the slot, or holds the VM's lock: so the pages are not freed meanwhile.
pub struct GuestPages<'a, M> {
    slot: &'a Slot,
    machine: &'a M,
}

impl<'a, M: Machine> GuestPages<'a, M> {
    /// The pages of the VM in a slot.
    #[inline(always)]
    pub(crate) fn new(slot: &'a Slot, machine: &'a M) -> GuestPages<'a, M> {
        GuestPages { slot, machine }
    }

    /// The frame of registers that a guest address is in, and the offset in it.
    #[inline(always)]
    pub(crate) fn find(&self, at: Ipa) -> Option<(Frame, u32)> {
        let found = self.slot.controller().layout().find(at, MAX_VCPUS as u8)?;
        match found {
            (Frame::Redistributor(index), _) if self.slot.vcpu(index).is_none() => None,
            _ => Some(found),
        }
    }
}

impl<M: Machine> Pages for GuestPages<'_, M> {
    #[inline(always)]
    fn bank(&self, n: usize) -> Option<&Bank> {
        let page = self.slot.controller().banks.get(n)?.get()?;
        Some(self.machine.bank(page))
    }

    #[inline(always)]
    fn cpu(&self, index: u8) -> Option<&Cpu> {
        let page = self.slot.vcpu(index)?;
        Some(self.machine.vcpu_interrupts(page))
    }

    #[inline(always)]
    fn intids(&self) -> u32 {
        self.slot.controller().intids.load(Ordering::Acquire)
    }

    fn is_interrupted(&self) -> bool {
        self.machine.interrupt_pending()
    }
}
