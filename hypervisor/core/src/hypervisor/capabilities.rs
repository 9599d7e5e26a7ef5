// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's calls about what guests may do with each other.

use escrow_abi::{Error, HandleKind};

use super::{Hypervisor, Refusal};
use crate::capability::Capability;
use crate::ledger::VmId;
use crate::machine::Machine;

impl<M: Machine> Hypervisor<M> {
    /// Gives a guest a handle on another.
    pub(super) fn cap_grant(
        &self,
        to: u64,
        object: u64,
        rights: u64,
        base: u64,
        size: u64,
    ) -> Result<u64, Refusal> {
        let (to, id, _) = self.slot(to, HandleKind::Vm)?;
        let (object, object_id, _) = self.slot(object, HandleKind::Vm)?;
        if id == object_id {
            return Err(Error::InvalidArgument.into());
        }
        let named = (object_id, object.generation);
        let end = self.guest_geometry.end();
        let capability = Capability::new(named, rights, (base, size), end)?;
        let (mut holder, target) = self.lock_pair(Some(id), Some(object_id));
        let holder = holder.as_deref_mut().ok_or(Error::HandleNull)?;
        if holder.generation != to.generation || !holder.is_live() {
            return Err(Error::HandleRevoked.into());
        }
        let Some(target) = target.filter(|vm| vm.generation == object.generation && vm.is_live())
        else {
            return Err(Error::HandleRevoked.into());
        };
        // Whatever comes to the guest of a protected VM is zeroed, or opened by itself.
        if target.map.as_ref().is_some_and(|map| map.shared_bit().is_some()) {
            return Err(Error::Denied.into());
        }
        // A dead VM stays dead. If a VM ends after this check, its entry stays for now.
        let is_dead = |entry: &Capability| {
            let slot = self.slots.get(entry.object);
            !slot.is_some_and(|slot| slot.lives(entry.generation))
        };
        Ok(holder.capabilities.insert(capability, is_dead)?.to_register())
    }

    /// Takes a guest's handle away. Calls that it allowed hold the guest's
    /// lock, so none is under way afterwards.
    pub(super) fn cap_revoke(&self, from: u64, handle: u64) -> Result<(), Refusal> {
        let (_, mut vm) = self.lock_live_vm(from)?;
        let &Capability { object, generation, .. } = vm.capabilities.get(handle)?;
        if !self.slots.get(object).is_some_and(|slot| slot.lives(generation)) {
            return Err(Error::HandleRevoked.into());
        }
        vm.capabilities.revoke(handle)?;
        Ok(())
    }

    /// Whether a VM that owns pages is dead, without a lock. The host never is.
    pub(super) fn is_dead(&self, owner: VmId) -> bool {
        let has_life = |id| self.slots.get(id).is_some_and(|slot| slot.has_life());
        owner.guest().is_some_and(|id| !has_life(id))
    }
}
