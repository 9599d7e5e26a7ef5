// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's stage 2, in pages that its host donated.
//!
//! All of it is covered by the VM's lock. A change has two halves: first
//! [`TableCount`] says how many tables it will need, then, when the pool is
//! known to hold as many, it is made.
//!
//! An entry is valid, or free, or *away*: the VM owns the memory behind it and
//! cannot reach it at the moment; or it marks memory that broke. What came as
//! 512 pages and fills 2 MiB is one entry all the same; the table page that it
//! does without is kept back for it, so that taking it apart again never needs
//! one.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{Attributes, Descriptor, Geometry, PagePool, Stage2Context, level_shift};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::machine::{Machine, Table};

/// The tables of a guest.
#[derive(Debug)]
pub struct GuestMap {
    geometry: Geometry,
    root: PhysAddr,
    context: Stage2Context,
}

/// Where walks begin: known, so that they need not find out.
const START_LEVEL: u8 = 1;

/// What a guest address leads to.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// The descriptor, perhaps invalid.
    pub entry: Descriptor,
    /// Its level.
    pub level: u8,
}

/// What stays in the place of memory that leaves a guest's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing.
    Nothing,
    /// What the guest needs to have it back: it is the owner.
    Away,
    /// A mark that keeps the address taken.
    Poisoned,
}

/// What happens to entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Leave(Leave),
    /// What is away comes back.
    Restore,
}

impl Change {
    const fn of(self, entry: Descriptor) -> Descriptor {
        match self {
            Change::Leave(Leave::Nothing) => entry.emptied(),
            Change::Leave(Leave::Away) => entry.away(),
            Change::Leave(Leave::Poisoned) => entry.poisoned(),
            Change::Restore if entry.is_away() => entry.back(),
            Change::Restore => entry,
        }
    }
}

/// Pages that lie side by side in 2 MiB of a guest's addresses.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Address of the first.
    pub at: Ipa,
    /// How many: 1 to 512.
    pub pages: usize,
    /// They are one entry of a list. 512 pages that are not have a table of their own as
    /// far as the pool is concerned, whatever their order in the list.
    pub is_block: bool,
}

/// Where [`GuestMap::prepare_map`] found room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// The level-3 table, if there is one.
    pub table: Option<PhysAddr>,
}

/// Counts the tables that a change will need, over addresses in ascending
/// order. In another order the count may be too high, never too low.
#[derive(Debug)]
pub struct TableCount {
    /// For each level, the last table that was counted as new.
    counted: [u64; 4],
    tables: u64,
}

impl TableCount {
    /// Nothing yet.
    pub const fn new() -> TableCount {
        TableCount { counted: [u64::MAX; 4], tables: 0 }
    }

    /// How many.
    #[inline]
    pub fn tables(&self) -> u64 {
        self.tables
    }

    fn add(&mut self, at: Ipa, level: u8) {
        let prefix = at.0 >> level_shift(level - 1);
        let counted = &mut self.counted[level as usize % 4];
        if *counted != prefix {
            *counted = prefix;
            self.tables += 1;
        }
    }
}

impl Default for TableCount {
    fn default() -> Self {
        Self::new()
    }
}

impl Span {
    /// The slots of its pages in their level-3 table.
    #[inline(always)]
    fn slots(self, table: &Table) -> &[AtomicU64] {
        let first = index(self.at, 3);
        table.get(first..first + self.pages).unwrap_or_default()
    }

    /// Whether it fills 2 MiB.
    #[inline(always)]
    const fn fills(self) -> bool {
        self.pages == PAGES_PER_BLOCK
    }
}

impl GuestMap {
    /// An empty map. `root` is a zeroed page; the geometry is one that begins
    /// with one table at level 1 ([`GuestMap::fits`]).
    pub fn new(geometry: Geometry, root: PhysAddr, context: Stage2Context) -> GuestMap {
        GuestMap { geometry, root, context }
    }

    /// Whether guests may have tables of this shape: 31 to 39 bits of address.
    pub const fn fits(geometry: &Geometry) -> bool {
        geometry.start_level == START_LEVEL && geometry.root_tables == 1
    }

    /// The registers that select this map.
    #[inline]
    pub fn context(&self) -> &Stage2Context {
        &self.context
    }

    /// The first address beyond the guest's space.
    pub fn end(&self) -> u64 {
        self.geometry.end()
    }

    /// What a guest address leads to. The address must be inside the space.
    pub fn lookup<M: Machine>(&self, machine: &M, at: Ipa) -> Leaf {
        let (slot, level) = self.walk(machine, at, 3);
        Leaf { entry: load(slot), level }
    }

    /// The page that a guest address leads to, in reach or away; `None` if there is none.
    pub fn frame<M: Machine>(&self, machine: &M, at: Ipa) -> Option<(PhysAddr, Leaf)> {
        let leaf = self.lookup(machine, at);
        if !(leaf.entry.is_valid() || leaf.entry.is_away()) || leaf.level < 2 {
            return None;
        }
        let in_block = if leaf.level == 2 { at.0 % BLOCK_SIZE } else { 0 };
        Some((leaf.entry.address().add(in_block & !(PAGE_SIZE - 1)), leaf))
    }

    /// Shows all entries that lead to memory, in reach or away, in the order of their
    /// addresses. What happens to an entry once it has been shown is not seen.
    pub fn for_each_leaf<M: Machine>(&self, machine: &M, mut f: impl FnMut(Ipa, Leaf)) {
        self.leaves_of(machine, self.root, START_LEVEL, Ipa(0), &mut f);
    }

    fn leaves_of<M: Machine>(
        &self,
        machine: &M,
        table: PhysAddr,
        level: u8,
        base: Ipa,
        f: &mut impl FnMut(Ipa, Leaf),
    ) {
        for (n, slot) in (0u64..).zip(machine.table(table)) {
            let entry = load(slot);
            let at = base.add(n << level_shift(level));
            if level < 3 && entry.is_table() {
                self.leaves_of(machine, entry.address(), level + 1, at, f);
            } else if entry.is_valid() || entry.is_away() {
                f(at, Leaf { entry, level });
            }
        }
    }

    /// Finds room for pages, and counts the tables that mapping them needs.
    ///
    /// # Errors
    /// How many of the pages there is room for before the first whose address
    /// is taken.
    #[inline(always)]
    pub fn prepare_map<M: Machine>(
        &self,
        machine: &M,
        span: Span,
        count: &mut TableCount,
    ) -> Result<Room, usize> {
        let (slot, level) = self.walk(machine, span.at, 2);
        let entry = load(slot);
        if level == 2 && entry.is_table() {
            let table = machine.table(entry.address());
            return match span.slots(table).iter().position(|slot| !load(slot).is_free()) {
                Some(taken) => Err(taken),
                None => Ok(Room { table: Some(entry.address()) }),
            };
        }
        if !entry.is_free() {
            return Err(0);
        }
        if !entry.has_table() {
            for level in level + 1..=3 {
                count.add(span.at, level);
            }
        }
        Ok(Room { table: None })
    }

    /// The same for a block that is to be one entry whatever happens. Where its
    /// table was is room enough, if that is empty.
    #[inline]
    pub fn prepare_map_block<M: Machine>(
        &self,
        machine: &M,
        at: Ipa,
        count: &mut TableCount,
    ) -> bool {
        let (slot, level) = self.walk(machine, at, 2);
        let entry = load(slot);
        if level == 2 && entry.is_table() {
            return machine.table(entry.address()).iter().all(|slot| load(slot).is_free());
        }
        for level in level + 1..=2 {
            count.add(at, level);
        }
        entry.is_free()
    }

    /// Maps pages where [`Self::prepare_map`] found room. The caller publishes
    /// them.
    #[inline(always)]
    pub fn map<M: Machine>(
        &self,
        machine: &M,
        pool: &mut PagePool,
        span: Span,
        room: Room,
        to: PhysAddr,
        attributes: Attributes,
    ) {
        let table = match room.table {
            Some(page) => machine.table(page),
            None => match self.make_room(machine, pool, span, to, attributes) {
                Some(table) => table,
                None => return,
            },
        };
        let mut entry = Descriptor::page(to, attributes);
        for slot in span.slots(table) {
            machine.write_descriptor(slot, entry);
            entry.0 += PAGE_SIZE;
        }
        if span.fills() {
            self.merge(machine, pool, span.at);
        }
    }

    /// Makes the level-3 table for pages; `None` if it turned out that they can
    /// be one entry, and are now.
    #[inline(never)]
    fn make_room<'m, M: Machine>(
        &self,
        machine: &'m M,
        pool: &mut PagePool,
        span: Span,
        to: PhysAddr,
        attributes: Attributes,
    ) -> Option<&'m Table> {
        let slot = self.level2_slot(machine, pool, span.at)?;
        let entry = load(slot);
        if entry.is_table() {
            return Some(machine.table(entry.address()));
        }
        if span.fills() && to.is_aligned(BLOCK_SIZE) {
            if !entry.has_table() {
                pool.keep_back();
            }
            machine.write_descriptor(slot, Descriptor::block(to, attributes).with_table());
            return None;
        }
        let page = take_table(machine, pool, entry)?;
        // The table is empty before it is seen.
        machine.write_descriptor(slot, Descriptor::table(page));
        Some(machine.table(page))
    }

    /// Maps a block as one entry where [`Self::prepare_map_block`] found room.
    /// The caller publishes it.
    #[inline]
    pub fn map_block<M: Machine>(
        &self,
        machine: &M,
        pool: &mut PagePool,
        at: Ipa,
        to: PhysAddr,
        attributes: Attributes,
    ) {
        let Some(slot) = self.level2_slot(machine, pool, at) else { return };
        let old = load(slot);
        if old.is_table() {
            self.break_entry(machine, slot, at);
            pool.push(machine, old.address());
        } else if old.has_table() {
            pool.release();
        }
        machine.write_descriptor(slot, Descriptor::block(to, attributes));
    }

    /// The level-2 entry of an address; makes the table that it is in.
    fn level2_slot<'m, M: Machine>(
        &self,
        machine: &'m M,
        pool: &mut PagePool,
        at: Ipa,
    ) -> Option<&'m AtomicU64> {
        let (mut slot, mut level) = self.walk(machine, at, 2);
        while level < 2 {
            // The pool was checked to hold what was counted.
            let page = pool.pop(machine)?;
            machine.write_descriptor(slot, Descriptor::table(page));
            level += 1;
            slot = &machine.table(page)[index(at, level)];
        }
        Some(slot)
    }

    /// The entry for a page, if there is one and it is free.
    #[inline(always)]
    pub fn free_page<'m, M: Machine>(&self, machine: &'m M, at: Ipa) -> Option<&'m AtomicU64> {
        let (slot, level) = self.walk(machine, at, 3);
        (level == 3 && load(slot).is_free()).then_some(slot)
    }

    /// The entry for a block, if there is one and it is free of anything, kept-back
    /// tables included.
    #[inline(always)]
    pub fn free_block<'m, M: Machine>(&self, machine: &'m M, at: Ipa) -> Option<&'m AtomicU64> {
        let (slot, level) = self.walk(machine, at, 2);
        (level == 2 && load(slot) == Descriptor::INVALID).then_some(slot)
    }

    /// Counts the tables that taking pages out needs: one if an entry of 2 MiB
    /// has to be taken apart for it.
    #[inline]
    pub fn prepare_unmap<M: Machine>(
        &self,
        machine: &M,
        span: Span,
        leave: Leave,
        count: &mut TableCount,
    ) {
        self.prepare_change(machine, span, Change::Leave(leave), count);
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
        let entry = load(slot);
        let changes =
            level == 2 && !(entry.is_table() || entry.is_free()) && change.of(entry) != entry;
        if changes && !(span.is_block && span.fills()) && !entry.has_table() {
            count.add(span.at, 3);
        }
    }

    /// Takes pages out of the map; the caller invalidates them afterwards.
    pub fn unmap<M: Machine>(&self, machine: &M, pool: &mut PagePool, span: Span, leave: Leave) {
        self.change(machine, pool, span, Change::Leave(leave));
    }

    /// Puts pages that were away back into reach; the caller publishes them.
    pub fn restore<M: Machine>(&self, machine: &M, pool: &mut PagePool, span: Span) {
        self.change(machine, pool, span, Change::Restore);
    }

    fn change<M: Machine>(&self, machine: &M, pool: &mut PagePool, span: Span, change: Change) {
        let (slot, level) = self.walk(machine, span.at, 2);
        let entry = load(slot);
        if level < 2 || change.of(entry) == entry && !entry.is_table() {
            return;
        }
        let table = if entry.is_table() {
            machine.table(entry.address())
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
            let entry = load(slot);
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
        slot: &AtomicU64,
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
            (if entry.is_valid() { page } else { page.away() }, PAGE_SIZE)
        };
        for slot in table {
            machine.write_descriptor(slot, to);
            to.0 += step;
        }
        if entry.is_valid() {
            self.break_entry(machine, slot, at);
        }
        machine.write_descriptor(slot, Descriptor::table(page));
        machine.publish();
        Some(table)
    }

    /// Makes 512 pages that fill 2 MiB, side by side and alike, one entry, and
    /// keeps their table back. Does nothing for any others.
    pub fn merge<M: Machine>(&self, machine: &M, pool: &mut PagePool, at: Ipa) {
        let (slot, level) = self.walk(machine, at, 2);
        let entry = load(slot);
        if level != 2 || !entry.is_table() {
            return;
        }
        let page = entry.address();
        let table = machine.table(page);
        let first = load(&table[0]);
        let mut expected = first;
        let alike = first.is_valid()
            && first.address().is_aligned(BLOCK_SIZE)
            && table.iter().all(|slot| {
                let same = load(slot) == expected;
                expected.0 += PAGE_SIZE;
                same
            });
        if !alike {
            return;
        }
        self.break_entry(machine, slot, at);
        let block = Descriptor::block(first.address(), first.attributes()).with_table();
        machine.write_descriptor(slot, block);
        machine.publish();
        for slot in table {
            // No walker comes here any more.
            machine.write_descriptor(slot, Descriptor::INVALID);
        }
        pool.push(machine, page);
        pool.keep_back();
    }

    /// The first half of break-before-make (DDI 0487, D8.16.1 "Using
    /// break-before-make when updating translation table entries"): the one
    /// place where a guest's live entry goes so that another shape can take its
    /// place.
    fn break_entry<M: Machine>(&self, machine: &M, slot: &AtomicU64, at: Ipa) {
        machine.write_descriptor(slot, Descriptor::INVALID);
        machine
            .invalidate(&self.context, core::iter::once((at.align_down(BLOCK_SIZE), BLOCK_SIZE)));
    }

    /// Follows tables towards `target`; stops at it, or at the first entry
    /// that is no table.
    #[inline(always)]
    fn walk<'m, M: Machine>(&self, machine: &'m M, at: Ipa, target: u8) -> (&'m AtomicU64, u8) {
        let mut level = START_LEVEL;
        let mut slot = &machine.table(self.root)[index(at, level)];
        while level < target {
            let entry = load(slot);
            if !entry.is_table() {
                break;
            }
            level += 1;
            slot = &machine.table(entry.address())[index(at, level)];
        }
        (slot, level)
    }
}

/// A zeroed page for the table in the place of `entry`.
fn take_table<M: Machine>(machine: &M, pool: &mut PagePool, entry: Descriptor) -> Option<PhysAddr> {
    if entry.has_table() {
        pool.release();
    }
    pool.pop(machine)
}

#[inline(always)]
fn index(at: Ipa, level: u8) -> usize {
    (at.0 >> level_shift(level)) as usize % 512
}

#[inline(always)]
fn load(slot: &AtomicU64) -> Descriptor {
    Descriptor(slot.load(Ordering::Relaxed))
}
