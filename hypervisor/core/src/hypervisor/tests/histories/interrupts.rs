// SPDX-License-Identifier: MIT OR Apache-2.0

//! What VMs are given besides memory: vCPUs, an interrupt controller, stolen time. And the inputs of
//! their SPIs.

use escrow_abi::{Handle, call};
use escrow_spec::{Guest, Life};

use super::steps::{Frames, To, VMS};
use super::world::{Pair, World};
use crate::ledger::GuestId;
use crate::vgic::{Access, Effects, Frame};
use crate::vm::Slot;

/// `GICD_ISPENDR<n>`.
const ISPENDR: u32 = 0x200;

impl World {
    pub(super) fn create_vcpu(&mut self, vm: usize, index: u64) {
        // Mostly one whose redistributor needs room.
        let with_gic = |vm: &usize| {
            let pair = self.vms[*vm].as_ref();
            pair.is_some_and(|pair| self.spec.guest(pair.id).gic.is_some())
        };
        let vm = if index == 0 { vm } else { (0..VMS).find(with_gic).unwrap_or(vm) };
        let Some(pair) = self.vms[vm].clone() else { return };
        let real = self.host.call(call::VCPU_CREATE, &[pair.handle, index]);
        let spec = self.spec.create_vcpu(pair.id, index);
        self.agree("create vCPU", None, &real, &spec);
        if let (Ok([vcpu, ..]), 0, Some(pair)) = (real, index, &mut self.vms[vm]) {
            pair.vcpu = Some(vcpu);
        }
    }

    pub(super) fn vgic(&mut self, to: To, frames: Frames) {
        let (handle, target) = self.host_target(self.rather(to, is_created));
        let Frames { distributor, redistributors, spis } = frames;
        let real = self.host.call(call::VM_VGIC, &[handle, distributor, redistributors, spis]);
        let spec = self.spec.vgic(target, distributor, redistributors, spis);
        self.agree("vGIC", None, &real, &spec);
    }

    pub(super) fn pv_time(&mut self, to: To, at: u64) {
        let (handle, target) = self.host_target(self.rather(to, is_created));
        let real = self.host.call(call::VM_PV_TIME, &[handle, at]);
        let slot = Handle::from_register(handle).and_then(|handle| self.slot(handle.slot));
        let page = slot.and_then(Slot::time_page).filter(|_| real.is_ok());
        let spec = self.spec.pv_time(target, at, page.map(|page| page.address().0));
        self.agree("stolen time", None, &real, &spec);
    }

    pub(super) fn spi_input(&mut self, to: To, intid: u64, input: u64) {
        let (handle, target) = self.host_target(self.rather(to, has_gic));
        let real = self.host.call(call::SPI_INPUT, &[handle, intid, input]);
        let spec = self.spec.spi_input(target, intid, input);
        self.agree("SPI input", None, &real, &spec);
        assert_eq!(real.ok(), spec.ok().map(|vcpus| [vcpus, 0, 0, 0]));
    }

    pub(super) fn spi_done(&mut self, to: To) {
        let (handle, target) = self.host_target(self.rather(to, has_gic));
        let real = self.host.call(call::SPI_DONE, &[handle]);
        let spec = self.spec.spi_done(target);
        self.agree("SPI done", None, &real, &spec);
        assert_eq!(real.ok(), spec.ok().map(|intid| [intid, 0, 0, 0]));
    }

    /// What a guest would read of its SPIs.
    pub(super) fn check_interrupts(&self, pair: &Pair) {
        let guest = self.spec.guest(pair.id);
        let slot = Handle::from_register(pair.handle).and_then(|handle| self.slot(handle.slot));
        let (Some(slot), true) = (slot, guest.life != Life::Dead) else { return };
        assert_eq!(slot.controller().exists(), guest.gic.is_some(), "{pair:x?}");
        assert_eq!(slot.time_page().map(|page| page.address().0), guest.time, "{pair:x?}");
        let Some(gic) = &guest.gic else { return };
        let vgic = self.host.escrow.vgic(slot);
        for word in 1..32 {
            let mut effects = Effects::default();
            let at = ISPENDR + 4 * word;
            let seen = vgic.access(0, Frame::Distributor, at, 4, None, &mut effects);
            assert_eq!(seen, Access::Done(gic.pending(word).into()), "{pair:x?}, word {word}");
        }
    }

    /// A VM that a call can be about, in the place of every second one that is named.
    fn rather(&self, to: To, fits: fn(&Guest) -> bool) -> To {
        let mut there = self.vms.iter().flatten().map(|pair| fits(self.spec.guest(pair.id)));
        match (to, there.position(|fits| fits)) {
            (To::Vm(0 | 1), Some(fitting)) => To::Vm(fitting),
            _ => to,
        }
    }

    fn slot(&self, number: u16) -> Option<&'static Slot> {
        self.host.escrow.slots.get(GuestId::new(number)?)
    }
}

fn is_created(guest: &Guest) -> bool {
    guest.life == Life::Created
}

fn has_gic(guest: &Guest) -> bool {
    guest.gic.is_some()
}
