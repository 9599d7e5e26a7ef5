// SPDX-License-Identifier: MIT OR Apache-2.0

//! Unmapping of a guest's memory, for good or for a time, and restoring it.

use super::{GuestMap, Span, TableCount, take_table};
use crate::addr::Ipa;
use crate::machine::{Machine, Table};
use crate::stage2::{Descriptor, DescriptorCell, PagePool};

/// What stays in the place of memory that leaves a guest's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// Nothing.
    Free,
    /// An invalid entry that keeps address and rights: the guest owns the memory, and it can be restored.
    Away,
    /// A mark that keeps the address taken.
    Poisoned,
}

/// What happens to entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Unmap(Unmapped),
    /// Makes entries that are away valid again.
    Restore,
}

impl Change {
    const fn of(self, entry: Descriptor) -> Descriptor {
        match self {
            Change::Unmap(Unmapped::Free) => entry.emptied(),
            Change::Unmap(Unmapped::Away) => entry.away(),
            Change::Unmap(Unmapped::Poisoned) => entry.poisoned(),
            Change::Restore if entry.is_away() => entry.back(),
            Change::Restore => entry,
        }
    }
}

impl GuestMap {
    /// Counts the tables that taking pages out needs: one if an entry of 2 MiB
    /// has to be taken apart for it.
    #[inline]
    pub fn prepare_unmap<M: Machine>(
        &self,
        machine: &M,
        span: Span,
        to: Unmapped,
        count: &mut TableCount,
    ) {
        self.prepare_change(machine, span, Change::Unmap(to), count);
    }

    /// The same for [`Self::restore`].
    pub fn prepare_restore<M: Machine>(&self, machine: &M, span: Span, count: &mut TableCount) {
        self.prepare_change(machine, span, Change::Restore, count);
    }

    #[inline]
    fn prepare_change<M: Machine>(
        &self,
        machine: &M,
        span: Span,
        change: Change,
        count: &mut TableCount,
    ) {
        let (slot, level) = self.walk(machine, span.at, 2);
        let entry = slot.load();
        let changes =
            level == 2 && !(entry.is_table() || entry.is_free()) && change.of(entry) != entry;
        if changes && !(span.is_block && span.fills()) && !entry.has_table() {
            count.add(span.at, 3);
        }
    }

    /// Takes pages out of the map; the caller invalidates them afterwards.
    pub fn unmap<M: Machine>(&self, machine: &M, pool: &mut PagePool, span: Span, to: Unmapped) {
        self.change(machine, pool, span, Change::Unmap(to));
    }

    /// Maps pages again that were away; the caller publishes them.
    pub fn restore<M: Machine>(&self, machine: &M, pool: &mut PagePool, span: Span) {
        self.change(machine, pool, span, Change::Restore);
    }

    fn change<M: Machine>(&self, machine: &M, pool: &mut PagePool, span: Span, change: Change) {
        let (slot, level) = self.walk(machine, span.at, 2);
        let entry = slot.load();
        if level < 2 || change.of(entry) == entry && !entry.is_table() {
            return;
        }
        let table = if let Some(table) = entry.as_table() {
            machine.table(table)
        } else if span.fills() {
            let mut changed = change.of(entry);
            if !span.is_block && !entry.has_table() {
                pool.keep_back();
                changed = changed.with_table();
            }
            machine.write_descriptor(slot, changed);
            return;
        } else {
            match self.split(machine, pool, slot, entry, span.at) {
                Some(table) => table,
                None => return,
            }
        };
        for slot in span.slots(table) {
            let entry = slot.load();
            let changed = change.of(entry);
            if changed != entry {
                machine.write_descriptor(slot, changed);
            }
        }
    }

    /// Gives each page of an entry of 2 MiB its own.
    fn split<'m, M: Machine>(
        &self,
        machine: &'m M,
        pool: &mut PagePool,
        slot: &DescriptorCell,
        entry: Descriptor,
        at: Ipa,
    ) -> Option<&'m Table> {
        // The pool was checked to hold what `prepare_change` counted.
        let page = take_table(machine, pool, entry)?;
        let table = machine.table(page);
        let (mut to, step) = if entry.is_poisoned() {
            (Descriptor::POISONED, 0)
        } else {
            let page = Descriptor::page(entry.address(), entry.attributes());
            (if entry.is_valid() { page } else { page.away() }, 1)
        };
        for slot in table {
            machine.write_descriptor(slot, to);
            to = to.behind(step);
        }
        if entry.is_valid() {
            self.break_entry(machine, slot, at);
        }
        machine.write_descriptor(slot, Descriptor::table(page));
        machine.publish();
        Some(table)
    }
}
