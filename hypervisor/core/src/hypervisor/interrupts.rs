// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's calls about a VM's interrupt controller: it is made, the inputs of its SPIs change,
//! and the host asks which SPIs are done.

use escrow_abi::{Error, HandleKind, call};

use super::{Hypervisor, Refusal};
use crate::addr::Ipa;
use crate::machine::Machine;
use crate::stage2::Frames;
use crate::vcpu::{VIRTUAL_TIMER, virtual_timer};
use crate::vgic::{BANKS, Bank, Effects, Input, Layout, Pages as _, Spi, Vgic};
use crate::vm::{GuestPages, Life, MAX_VCPUS, Slot, Vm};

/// Frames begin at multiples of this.
const FRAME_SIZE: u64 = 0x1_0000;

impl<M: Machine> Hypervisor<M> {
    pub(super) fn vm_vgic(
        &self,
        vm: u64,
        distributor: u64,
        redistributors: u64,
        spis: u64,
    ) -> Result<(), Refusal> {
        let (_, _, slot, mut vm) = self.lock_named(vm, HandleKind::Vm)?;
        let exists = slot.controller().exists();
        let Vm { life: Life::Created, map: Some(map), pool, .. } = &mut *vm else {
            return Err(Error::Denied.into());
        };
        if exists {
            return Err(Error::Denied.into());
        }
        let whole = spis.is_multiple_of(32) && (call::SPIS_MIN..call::SPIS_MAX).contains(&spis);
        if !whole && spis != call::SPIS_MAX {
            return Err(Error::InvalidSize.into());
        }
        if !(distributor | redistributors).is_multiple_of(FRAME_SIZE) {
            return Err(Error::Misaligned.into());
        }
        if (distributor | redistributors) & map.shared_bit().unwrap_or(0) != 0 {
            return Err(Error::Denied.into());
        }
        let layout = Layout { distributor: Ipa(distributor), redistributors: Ipa(redistributors) };
        let there = (0..MAX_VCPUS as u8).filter(|&index| slot.vcpu(index).is_some());
        // The first one's is taken whether or not it is there.
        let vcpus = there.fold(1, |vcpus, index| vcpus | 1 << index);
        let frames = Frames::new(layout, vcpus, map.frames_end())?;
        map.must_be_free(&self.machine, &frames)?;
        // With the four INTIDs that are none.
        let intids = (32 + spis as u32).next_multiple_of(32);
        let banks = intids.div_ceil(512) as usize;
        let free = pool.len();
        if free < banks as u64 {
            return Err(Refusal { detail: banks as u64 - free, ..Error::NoMemory.into() });
        }
        let mut pages = [None; BANKS];
        for page in pages.iter_mut().take(banks) {
            let none = Refusal { detail: 1, ..Error::NoMemory.into() };
            let free = pool.pop(&self.machine).ok_or(none)?;
            *page = Some(free.place_bank(&self.machine, Bank::new()));
        }
        map.keep_free(frames);
        slot.controller().open(&layout, intids, pages);
        slot.set_more();
        for index in 0..MAX_VCPUS as u8 {
            if let Some(page) = slot.vcpu(index) {
                // Nobody else holds this lock: the vCPU has never run, and the VM's lock is held.
                self.machine.vcpu(page).lock().has_gic = true;
                self.admit(slot, index);
            }
        }
        Ok(())
    }

    /// A vCPU that was made joins the VM's interrupt controller. Needs the VM's lock, or that the vCPU cannot
    /// run yet.
    pub(super) fn admit(&self, slot: &Slot, index: u8) {
        // It is off, or the VM has not started: nobody has to be told of its effects.
        let on = index == 0 && slot.is_stopped();
        let vgic = self.vgic(slot);
        vgic.link(index, virtual_timer(), VIRTUAL_TIMER as u16);
        vgic.admit(index, on, &mut Effects::default());
    }

    /// Works on the interrupt controller of a VM that is created or started, if the other arguments
    /// are right.
    fn with_vgic<A, T>(
        &self,
        vm: u64,
        arguments: Option<A>,
        work: impl FnOnce(&Vgic<GuestPages<'_, M>>, A) -> Result<T, Error>,
    ) -> Result<T, Refusal> {
        let (handle, _, slot) = self.slot(vm, HandleKind::Vm)?;
        // As a run does: meanwhile no page goes home.
        let entered = slot.enter(handle.generation);
        let created = match &entered {
            Some(_) => None,
            None => {
                let (_, _, _, vm) = self.lock_named(vm, HandleKind::Vm)?;
                if vm.life == Life::Ending {
                    return Err(Error::HandleRevoked.into());
                }
                Some(vm)
            }
        };
        let arguments = arguments.ok_or(Error::InvalidArgument)?;
        if !slot.controller().exists() {
            return Err(Error::Denied.into());
        }
        let result = work(&self.vgic(slot), arguments)?;
        drop((entered, created));
        Ok(result)
    }

    pub(super) fn spi_input(&self, vm: u64, intid: u64, input: u64) -> Result<u64, Refusal> {
        let input = match input {
            call::INPUT_LOW => Some(Input::Low),
            call::INPUT_HIGH => Some(Input::High),
            call::INPUT_HIGH_UNTIL_DONE => Some(Input::HighUntilDone),
            call::INPUT_EDGE => Some(Input::Edge),
            _ => None,
        };
        let spi = u32::try_from(intid).ok().and_then(Spi::new);
        self.with_vgic(vm, spi.zip(input), |vgic, (spi, input)| {
            if spi.intid().number() >= vgic.pages().intids() {
                return Err(Error::InvalidArgument);
            }
            let mut effects = Effects::default();
            vgic.input(spi, input, &mut effects);
            self.interrupt_inside(vgic, &effects, None);
            Ok(effects.asleep.into())
        })
    }

    pub(super) fn spi_done(&self, vm: u64) -> Result<u64, Refusal> {
        self.with_vgic(vm, Some(()), |vgic, ()| {
            Ok(vgic.take_done().map_or(0, |spi| spi.intid().number().into()))
        })
    }
}
