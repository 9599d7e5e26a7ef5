// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which interrupts of a vCPU are in its list registers.

use super::CpuState;
use crate::vgic::bits::{Intid, ones};
use crate::vgic::lr::{Groups, Interface, Kind, LIST_REGISTERS, ListRegister, Vmcr, hcr};

impl CpuState {
    /// Fills the list registers with the most urgent interrupts. Returns what `ICH_HCR_EL2` needs.
    ///
    /// Pending interrupts of groups that the guest has enabled come first, by priority, and
    /// replace active ones where there is no room. So if some of them are left out, all list
    /// registers are pending at entry, and when none is pending any more, the maintenance
    /// interrupt (NPIE) brings in the next.
    pub fn fill(&mut self, vmcr: Vmcr, registers: usize) -> u64 {
        let registers = registers.min(LIST_REGISTERS);
        let all = ((1u32 << registers) - 1) as u16;
        // The vCPU's last CPU may have had more list registers.
        for n in ones(u32::from(self.used & !all)).map(usize::from) {
            self.unload(n);
        }
        let forwarded = self.forwarded();
        let (first, second) = (forwarded.and(vmcr.groups()), forwarded.without(vmcr.groups()));
        while let Some(intid) = self.queue.top(first) {
            let free = !self.used & all;
            let n = if free != 0 {
                free.trailing_zeros() as usize
            } else if let Some(victim) = self.victim(self.queue.note(intid).level(), first) {
                self.unload(victim);
                victim
            } else {
                break;
            };
            self.queue.remove(intid);
            self.load(n, intid, true, false);
        }
        while self.used != all
            && let Some(intid) = self.highest_outside(|intid| {
                // An active interrupt with an event is "pending and active" in a list register, and is
                // signalled even if the distributor does not forward its group: keep it outside.
                !self.held.get(intid) || forwarded.contains(self.queue.note(intid).group())
            })
        {
            self.set_outside(intid, false);
            let n = (!self.used & all).trailing_zeros() as usize;
            self.load(n, intid, self.held.get(intid), true);
        }
        while self.used != all
            && let Some(intid) = self.queue.top(second)
        {
            self.queue.remove(intid);
            let n = (!self.used & all).trailing_zeros() as usize;
            self.load(n, intid, true, false);
        }
        self.controls(vmcr, first, second)
    }

    /// What `ICH_HCR_EL2` needs, beside `En`.
    fn controls(&self, vmcr: Vmcr, first: Groups, second: Groups) -> u64 {
        let mut value = 0;
        if !self.queue.is_empty(first) {
            value |= hcr::NPIE;
            if first == Groups::BOTH {
                // Those left out may be of one group, and those in list registers of the other.
                // (Only if both are enabled: QEMU 10.0 asserts VGrp0D by VENG1.)
                value |= hcr::VGRP0DIE | hcr::VGRP1DIE;
            }
        }
        if self.outside_count != 0 {
            value |= hcr::LRENPIE;
        }
        for (group, bit) in [(0, hcr::VGRP0EIE), (1, hcr::VGRP1EIE)] {
            let disabled = !vmcr.groups().contains(group);
            let waits = second.contains(group) && !self.queue.is_empty(Groups::one(group));
            if disabled && (waits || self.wanted.contains(group)) {
                value |= bit;
            }
        }
        if vmcr.splits_eoi() {
            value |= hcr::TDIR;
        }
        value
    }

    /// The list register to make room in for a pending interrupt of an enabled group.
    fn victim(&self, level: u8, first: Groups) -> Option<usize> {
        let worth = |n: usize| {
            let lr = ListRegister(self.lr[n % LIST_REGISTERS]);
            if lr.is_active() {
                Some((2, lr.level()))
            } else if !first.contains(lr.group()) {
                Some((1, lr.level()))
            } else {
                (lr.level() > level).then_some((0, lr.level()))
            }
        };
        let all = ones(self.used.into()).map(usize::from);
        all.filter_map(|n| Some((worth(n)?, n))).max().map(|(_, n)| n)
    }

    /// Puts an interrupt into a list register that is free.
    #[inline(always)]
    pub(super) fn load(&mut self, n: usize, intid: Intid, pending: bool, active: bool) {
        let note = self.queue.note(intid);
        let kind = match self.link {
            Some((linked, physical)) if linked == intid => Kind::Linked(physical),
            _ if note.is_told() => Kind::Told,
            _ => Kind::Plain,
        };
        let lr = ListRegister::new(intid, note.level(), note.group(), kind);
        self.lr[n % LIST_REGISTERS] = lr.with(pending, active).0;
        self.used |= 1 << (n % LIST_REGISTERS);
        self.dirty |= 1 << (n % LIST_REGISTERS);
    }

    /// Writes the list registers that have changed, or all.
    pub fn write(&mut self, interface: &mut impl Interface, all: bool) {
        let count = interface.list_registers().min(LIST_REGISTERS);
        let there = ((1u32 << count) - 1) as u16;
        let dirty = if all { there } else { self.dirty & there };
        for n in ones(dirty.into()).map(usize::from) {
            interface.set_list_register(n, self.lr[n % LIST_REGISTERS]);
        }
        self.dirty = 0;
    }
}
