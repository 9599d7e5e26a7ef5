// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that changes its use, and VMs whose tables come and go.

use super::{At, Checker, Space};
use crate::descriptor::{self, PAGE_SIZE};
use crate::finding::Rule;
use crate::stale::Stale;
use crate::tables::{Place, Slot, split};

impl Checker {
    /// Memory is for tables from now on.
    pub(super) fn table(&mut self, at: At, from: u64, size: u64, zeroed: bool) {
        if let Some((page, place)) = self.tables.first_placed(from, size) {
            let text = format!("{page:#x} is a table of VM {} already", place.vm);
            self.find(Rule::Replay, at, None, text);
        } else if zeroed {
            self.tables.zero(from, size);
        } else {
            self.tables.raw(from, size);
        }
    }

    /// Memory is zeroed: whoever can still translate to it loses what it wrote,
    /// or writes to what is somebody else's from now on.
    pub(super) fn zero(&mut self, at: At, from: u64, size: u64) {
        if let Some((page, place)) = self.tables.first_placed(from, size) {
            let text = format!("{page:#x} is zeroed and a table of VM {}", place.vm);
            self.find(Rule::TableReuse, at, None, text);
            self.clear_placed(at, from, size);
        }
        self.check_reuse(at, from, size, None, "zeroed");
        self.tables.zero(from, size);
        self.cpu(at.cpu).zeroed.push((from, size, at.line));
    }

    /// The entries of tables that are zeroed where they stand are gone.
    fn clear_placed(&mut self, at: At, from: u64, size: u64) {
        let mut next = from;
        while let Some((page, place)) = self.tables.first_placed(next, from + size - next) {
            let words = self.tables.page(page).map(|page| page.words.clone());
            for (index, &word) in words.iter().flat_map(|words| words.iter().enumerate()) {
                self.leave(at, Slot::new(page, index, place), word);
            }
            if let Some(page) = self.tables.page(page) {
                page.place = None;
            }
            next = page + PAGE_SIZE;
            if next >= from + size {
                return;
            }
        }
    }

    /// Memory gets another use, with `keeper` the translation that it gets, if
    /// any, as VM and guest address: an old one of the same is not in the way.
    pub(super) fn check_reuse(
        &mut self,
        at: At,
        from: u64,
        size: u64,
        keeper: Option<(u32, u64)>,
        what: &str,
    ) {
        let overlaps = |start: u64, len: u64| start < from + size && from < start + len;
        let in_the_way = |stale: &Stale| {
            if let Some((pa, len)) = stale.memory() {
                let same = keeper.is_some_and(|(vm, ipa)| {
                    vm == stale.slot.vm && ipa.wrapping_sub(from) == stale.slot.ipa.wrapping_sub(pa)
                });
                return overlaps(pa, len) && !same;
            }
            stale.table().is_some_and(|table| overlaps(table, PAGE_SIZE))
        };
        let found = self.stales.iter().position(|stale| !stale.reported && in_the_way(stale));
        let Some(found) = found else { return };
        let stale = &self.stales[found];
        let (vmid, ipa) = (stale.vmid, stale.slot.ipa);
        if let Some(table) = stale.table() {
            let text = format!("{table:#x} is {what} and may be walked as a table of VMID {vmid}");
            self.find_stale(Rule::TableReuse, at, found, text);
        } else {
            let text = format!(
                "{from:#x} ({size:#x} bytes) is {what} and VMID {vmid} may reach it, or part of \
                 it, at {ipa:#x}"
            );
            self.find_stale(Rule::EarlyReuse, at, found, text);
        }
    }

    /// A VM's tables may be walked from now on.
    pub(super) fn root(&mut self, at: At, vm: u32, space: Space) {
        if self.spaces.contains_key(&vm) {
            self.find(Rule::Replay, at, None, format!("VM {vm} has tables already"));
            return;
        }
        let vmid = space.vmid;
        if let Some((other, _)) = self.spaces.iter().find(|(_, other)| other.vmid == vmid) {
            let text = format!("VMID {vmid} is VM {other}'s already");
            self.find(Rule::Vmid, at, None, text);
        }
        let old = self.stales.iter().position(|stale| !stale.reported && stale.vmid == vmid);
        if let Some(old) = old {
            let text = format!("VM {vm} gets VMID {vmid} and old translations of it may live");
            self.find_stale(Rule::Vmid, at, old, text);
        }
        self.spaces.insert(vm, space);
        for (page, ipa) in space.root_tables() {
            self.link(at, page, Place { vm, level: space.level, ipa }, false);
        }
    }

    /// A VM's tables are not walked from now on, but what TLBs made of them
    /// lives until it is invalidated.
    pub(super) fn drop_space(&mut self, at: At, vm: u32) {
        let Some(space) = self.spaces.get(&vm).copied() else {
            self.find(Rule::Replay, at, None, format!("VM {vm} has no tables"));
            return;
        };
        let before = self.stales.len();
        for (page, ipa) in space.root_tables() {
            let place = Place { vm, level: space.level, ipa };
            self.unlink(at, page, place);
            self.stales.push(Stale::root(page, place, space.vmid, at.cpu, at.line));
        }
        for stale in &mut self.stales[before..] {
            // Nothing was written: it is the VMID that walks no longer use.
            stale.show(self.repeats);
        }
        self.spaces.remove(&vm);
    }

    /// The VMID of a VM, for entries of its tables.
    pub(super) fn vmid(&self, vm: u32) -> u16 {
        self.spaces.get(&vm).map_or(0, |space| space.vmid)
    }

    /// Whether a slot's page is one that walkers may know from what TLBs hold.
    pub(super) fn stale_table(&self, slot: u64) -> Option<usize> {
        let (page, _) = split(slot);
        self.stales.iter().position(|stale| !stale.reported && stale.table() == Some(page))
    }
}

impl Space {
    /// Its root tables, and the guest addresses from which on they stand.
    fn root_tables(self) -> impl Iterator<Item = (u64, u64)> {
        let each = descriptor::size(self.level) << 9;
        (0..u64::from(self.tables))
            .map(move |n| (self.root + n * PAGE_SIZE, n * each))
            .filter(move |&(_, ipa)| ipa >> self.bits == 0)
    }
}
