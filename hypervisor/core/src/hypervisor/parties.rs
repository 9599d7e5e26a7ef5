// SPDX-License-Identifier: MIT OR Apache-2.0

//! The VMs that a call is about, and what they have.

use super::Hypervisor;
use crate::ledger::{GuestId, Record};
use crate::machine::Machine;
use crate::sync::TicketMutexGuard;
use crate::vm::Vm;

/// A VM that is locked.
pub(super) struct Party<'a> {
    pub id: GuestId,
    pub vm: &'a mut Vm,
}

/// The guests among a call's parties: one, two, or none when pages are the host's alone.
pub(super) struct Parties<'a>([Option<(GuestId, &'a mut Vm)>; 2]);

/// A VM's lock, or none for the host.
pub(super) type MaybeLocked<'a> = Option<TicketMutexGuard<'a, Vm>>;

impl<'a> Parties<'a> {
    pub fn new(a: Option<&'a mut Party<'_>>, b: Option<&'a mut Party<'_>>) -> Self {
        let [a, b] = [a.map(|a| (a.id, &mut *a.vm)), b.map(|b| (b.id, &mut *b.vm))];
        Parties([a, b])
    }

    fn vm(&mut self, id: GuestId) -> Option<&mut Vm> {
        self.0.iter_mut().flatten().find(|party| party.0 == id).map(|party| &mut *party.1)
    }

    /// Counts pages that went from one record to another.
    pub fn recount(&mut self, old: Record, new: Record, pages: u64) {
        if let (Some(vm), Some(state)) = (old.holder().and_then(|id| self.vm(id)), old.state()) {
            vm.counts.remove(state, pages);
        }
        if let (Some(vm), Some(state)) = (new.holder().and_then(|id| self.vm(id)), new.state()) {
            vm.counts.add(state, pages);
        }
        if old.owner() != new.owner() {
            if let Some(vm) = old.owner().guest().and_then(|id| self.vm(id)) {
                vm.owned -= pages;
            }
            if let Some(vm) = new.owner().guest().and_then(|id| self.vm(id)) {
                vm.owned += pages;
            }
        }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Takes the locks of two guests, the one with the lower number first.
    pub(super) fn lock_pair(
        &self,
        a: Option<GuestId>,
        b: Option<GuestId>,
    ) -> (MaybeLocked<'_>, MaybeLocked<'_>) {
        let lock = |id: Option<GuestId>| Some(self.slots.get(id?)?.lock());
        if a == b {
            return (lock(a), None);
        }
        if a < b {
            let first = lock(a);
            (first, lock(b))
        } else {
            let first = lock(b);
            (lock(a), first)
        }
    }
}
