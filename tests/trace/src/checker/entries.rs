// SPDX-License-Identifier: MIT OR Apache-2.0

//! Descriptors that walkers can find from now on, or no longer.

use super::{At, Checker};
use crate::descriptor::{self, Kind, PAGE_SIZE};
use crate::finding::Rule;
use crate::stale::{Stale, Target};
use crate::tables::{Place, Slot};

impl Checker {
    /// An entry leaves the tables, with all below it.
    pub(super) fn leave(&mut self, at: At, slot: Slot, value: u64) {
        match slot.decode(value) {
            Kind::Invalid => return,
            Kind::Leaf(pa) => {
                self.leaves.remove(pa, slot);
                self.touch(at, pa, slot.size());
            }
            Kind::Table(page) => self.unlink(at, page, slot.below()),
        }
        let vmid = self.vmid(slot.vm);
        self.stales.push(Stale::entry(slot, value, vmid, at.cpu, at.line));
    }

    /// A table leaves its place.
    pub(super) fn unlink(&mut self, at: At, page_at: u64, place: Place) {
        let Some(page) = self.tables.page(page_at) else { return };
        if page.place != Some(place) {
            // It was linked twice, and reported.
            return;
        }
        page.place = None;
        let words = page.words.clone();
        for (index, &word) in words.iter().enumerate() {
            self.leave(at, Slot::new(page_at, index, place), word);
        }
    }

    /// An entry comes into the tables, with all below it.
    pub(super) fn enter(&mut self, at: At, slot: Slot, value: u64, release: bool) {
        match slot.decode(value) {
            Kind::Invalid => {}
            Kind::Leaf(pa) => {
                self.check_early(at, slot, value);
                self.check_mapped(at, slot, pa);
                self.leaves.insert(pa, slot);
                self.tables.forget_zeros(pa, slot.size());
                self.touch(at, pa, slot.size());
            }
            Kind::Table(page) => {
                self.check_early(at, slot, value);
                self.link(at, page, slot.below(), release);
            }
        }
    }

    /// A block or page is mapped: nobody may have it in a TLB for another
    /// address, and no walker as a table.
    fn check_mapped(&mut self, at: At, slot: Slot, pa: u64) {
        let (vm, ipa, size) = (slot.vm, slot.ipa, slot.size());
        let what = format!("mapped to VM {vm} at {ipa:#x}");
        self.check_reuse(at, pa, size, Some((vm, ipa)), &what);
        if let Some((page, place)) = self.tables.first_placed(pa, size) {
            let text = format!("{page:#x} is {what} and a table of VM {}", place.vm);
            self.find(Rule::TableReuse, at, None, text);
        }
    }

    /// An entry must not become valid before what TLBs hold of its
    /// predecessors is gone.
    fn check_early(&mut self, at: At, slot: Slot, value: u64) {
        let (ipa, size) = (slot.ipa, slot.size());
        let vmid = self.vmid(slot.vm);
        let table = matches!(slot.decode(value), Kind::Table(_));
        let mut n = 0;
        while n < self.stales.len() {
            let stale = &self.stales[n];
            // A table is no other translation than those of smaller pieces that
            // went before: what is in it is, and comes by here itself.
            let conflicts = stale.vmid == vmid
                && stale.target != Target::Permissions
                && stale.overlaps_ipa(ipa, size)
                && !(table && stale.size < size);
            if !conflicts || stale.reported {
                n += 1;
                continue;
            }
            if stale.slot.at == slot.at && self.is_back(at, n, value, table) {
                // What TLBs hold is true again.
                self.stales.remove(n);
                continue;
            }
            let text = format!(
                "the descriptor at {:#x} becomes valid and TLBs may hold what it replaces at \
                 {:#x} of VMID {vmid}",
                slot.at,
                ipa.max(self.stales[n].slot.ipa)
            );
            self.find_stale(Rule::EarlyMake, at, n, text);
            // One is enough for an event.
            return;
        }
    }

    /// Whether the old entry came back, at most with other permissions.
    fn is_back(&mut self, at: At, stale: usize, value: u64, table: bool) -> bool {
        let old = &self.stales[stale];
        if old.value == value {
            return true;
        }
        let same = !table && descriptor::differ_in_permissions_only(old.value, value);
        if same {
            self.permissions(at, old.clone(), value);
        }
        same
    }

    /// A table comes to its place.
    pub(super) fn link(&mut self, at: At, page_at: u64, place: Place, release: bool) {
        let Some(page) = self.tables.page(page_at).filter(|page| page.is_known()) else {
            let text = format!("{page_at:#x} becomes a table and what it holds is not known");
            self.find(Rule::Replay, at, None, text);
            return;
        };
        if let Some(other) = page.place {
            let text = format!(
                "{page_at:#x} becomes a table of VM {} and is one of VM {} already, at {:#x}",
                place.vm, other.vm, other.ipa
            );
            self.find(Rule::TableReuse, at, None, text);
            return;
        }
        page.place = Some(place);
        let words = page.words.clone();
        let unpublished = page.unpublished.first().map(|&(_, line)| line);
        if !release {
            self.check_published(at, page_at, unpublished);
        }
        self.check_reuse(at, page_at, PAGE_SIZE, None, "linked as a table");
        let mapped = self.leaves.overlapping(page_at..page_at + PAGE_SIZE).next();
        if let Some(leaf) = mapped {
            let text = format!("{page_at:#x} becomes a table and is mapped to VM {}", leaf.vm);
            self.find(Rule::TableReuse, at, None, text);
        }
        for (index, &word) in words.iter().enumerate() {
            self.enter(at, Slot::new(page_at, index, place), word, release);
        }
    }

    /// Whoever finds a table must find what was written to it.
    fn check_published(&mut self, at: At, page: u64, written: Option<usize>) {
        let zeroed =
            self.cpus.values().flat_map(|cpu| &cpu.zeroed).find_map(|&(from, size, line)| {
                (from <= page && page < from + size).then_some(line)
            });
        if let Some(since) = written.or(zeroed) {
            let text = format!(
                "{page:#x} is linked as a table by a plain store, and walkers may find what it \
                 held before it was written to"
            );
            self.find(Rule::UnpublishedTable, at, Some(since), text);
        }
    }
}
