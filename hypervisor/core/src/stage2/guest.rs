// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's stage 2, in pages that its host donated.
//!
//! All of it is covered by the VM's lock. A change has two halves: first
//! [`TableCount`] says how many tables it will need, then, when the pool is
//! known to hold as many, it is made.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{Attributes, Descriptor, Geometry, Stage2Context, level_shift};
use crate::addr::{BLOCK_SIZE, Ipa, Order, PAGE_SIZE, PhysAddr};
use crate::machine::{Machine, Table};

/// Pages that are the VM's and not in use, chained through their first words.
#[derive(Debug, Default)]
pub struct PagePool {
    head: u64,
    pages: u64,
}

impl PagePool {
    /// No pages.
    pub const fn new() -> PagePool {
        PagePool { head: 0, pages: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.pages
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Puts a zeroed page in.
    pub fn push<M: Machine>(&mut self, machine: &M, page: PhysAddr) {
        machine.table(page)[0].store(self.head, Ordering::Relaxed);
        self.head = page.0;
        self.pages += 1;
    }

    /// Takes a zeroed page out.
    pub fn pop<M: Machine>(&mut self, machine: &M) -> Option<PhysAddr> {
        if self.pages == 0 {
            return None;
        }
        let page = PhysAddr(self.head);
        self.head = machine.table(page)[0].swap(0, Ordering::Relaxed);
        self.pages -= 1;
        Some(page)
    }
}

/// The tables of a guest.
#[derive(Debug)]
pub struct GuestMap {
    geometry: Geometry,
    root: PhysAddr,
    context: Stage2Context,
}

/// A place in a guest's tables, for many changes near each other: the walk to
/// a level-3 table is made once for all pages in it.
///
/// The tables must not be changed but through the cursor while there is one.
pub struct Cursor<'m, M> {
    map: &'m GuestMap,
    machine: &'m M,
    /// The 2 MiB of guest addresses that `here` is about.
    block: u64,
    here: Place<'m>,
}

#[derive(Clone, Copy)]
enum Place<'m> {
    /// There is a level-3 table.
    Table(&'m Table),
    /// There is nothing, and the tables for it have been counted.
    Counted,
    /// Anything else.
    Other,
}

impl<'m, M: Machine> Cursor<'m, M> {
    /// A cursor over a map.
    pub fn new(map: &'m GuestMap, machine: &'m M) -> Cursor<'m, M> {
        Cursor { map, machine, block: u64::MAX, here: Place::Other }
    }

    /// See [`GuestMap::prepare_map`].
    #[inline]
    pub fn prepare_map(&mut self, at: Ipa, order: Order, count: &mut TableCount) -> bool {
        if order == Order::Page {
            self.seek(at);
            match self.here {
                Place::Table(table) => {
                    return !Descriptor(table[index(at, 3)].load(Ordering::Relaxed)).is_valid();
                }
                Place::Counted => return true,
                Place::Other => {}
            }
        }
        let room = self.map.prepare_map(self.machine, at, order, count);
        if room && order == Order::Page {
            self.here = Place::Counted;
        }
        room
    }

    /// See [`GuestMap::map`].
    #[inline]
    pub fn map(
        &mut self,
        pool: &mut PagePool,
        at: Ipa,
        to: PhysAddr,
        order: Order,
        attributes: Attributes,
    ) {
        if order == Order::Page {
            self.seek(at);
            if let Place::Table(table) = self.here {
                let entry = Descriptor::page(to, attributes);
                table[index(at, 3)].store(entry.0, Ordering::Relaxed);
                return;
            }
        }
        self.map.map(self.machine, pool, at, to, order, attributes);
        self.block = u64::MAX;
    }

    #[inline]
    fn seek(&mut self, at: Ipa) {
        let block = at.0 / BLOCK_SIZE;
        if block != self.block {
            self.block = block;
            self.here = match self.map.level3_table(self.machine, at) {
                Some(table) => Place::Table(table),
                None => Place::Other,
            };
        }
    }
}

/// What a guest address leads to.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// The descriptor, perhaps invalid.
    pub entry: Descriptor,
    /// Its level.
    pub level: u8,
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
    pub fn new() -> TableCount {
        TableCount { counted: [u64::MAX; 4], tables: 0 }
    }

    /// How many.
    pub fn tables(&self) -> u64 {
        self.tables
    }

    fn add(&mut self, at: Ipa, level: u8) {
        let prefix = at.0 >> level_shift(level - 1);
        let counted = &mut self.counted[level as usize];
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

const fn leaf_level(order: Order) -> u8 {
    match order {
        Order::Page => 3,
        Order::Block => 2,
    }
}

impl GuestMap {
    /// An empty map. `root` is a zeroed page; the geometry has one root table.
    pub fn new(geometry: Geometry, root: PhysAddr, context: Stage2Context) -> GuestMap {
        GuestMap { geometry, root, context }
    }

    /// The registers that select this map.
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
        Leaf { entry: Descriptor(slot.load(Ordering::Relaxed)), level }
    }

    /// Counts the tables that mapping `order` at `at` needs; `false` if
    /// something is mapped there already.
    pub fn prepare_map<M: Machine>(
        &self,
        machine: &M,
        at: Ipa,
        order: Order,
        count: &mut TableCount,
    ) -> bool {
        let target = leaf_level(order);
        let (slot, level) = self.walk(machine, at, target);
        let entry = Descriptor(slot.load(Ordering::Relaxed));
        if entry.is_valid() {
            // A table where a block is to go is in the way unless it is empty.
            return level == target
                && order == Order::Block
                && entry.is_table()
                && is_empty(machine.table(entry.address()));
        }
        for level in level + 1..=target {
            count.add(at, level);
        }
        true
    }

    /// Maps `order` at `at`, where [`Self::prepare_map`] found room. The
    /// caller publishes it.
    pub fn map<M: Machine>(
        &self,
        machine: &M,
        pool: &mut PagePool,
        at: Ipa,
        to: PhysAddr,
        order: Order,
        attributes: Attributes,
    ) {
        let target = leaf_level(order);
        let (mut slot, mut level) = self.walk(machine, at, target);
        while level < target {
            // The pool was checked to hold what `prepare_map` counted.
            let Some(page) = pool.pop(machine) else { return };
            // The table is empty before it is seen.
            slot.store(Descriptor::table(page).0, Ordering::Release);
            level += 1;
            slot = &machine.table(page)[index(at, level)];
        }
        let old = Descriptor(slot.load(Ordering::Relaxed));
        if old.is_table() && order == Order::Block {
            self.break_entry(machine, slot, at.align_down(BLOCK_SIZE), BLOCK_SIZE);
            pool.push(machine, old.address());
        }
        let entry = match order {
            Order::Page => Descriptor::page(to, attributes),
            Order::Block => Descriptor::block(to, attributes),
        };
        slot.store(entry.0, Ordering::Relaxed);
    }

    /// Counts the tables that unmapping `order` at `at` needs: one if a block
    /// must be split for it.
    pub fn prepare_unmap<M: Machine>(
        &self,
        machine: &M,
        at: Ipa,
        order: Order,
        count: &mut TableCount,
    ) {
        let (slot, level) = self.walk(machine, at, 3);
        let entry = Descriptor(slot.load(Ordering::Relaxed));
        if order == Order::Page && level == 2 && entry.is_valid() {
            count.add(at, 3);
        }
    }

    /// Takes `order` at `at` out of the map; the caller invalidates it
    /// afterwards. A block of which a page goes is split first.
    pub fn unmap<M: Machine>(&self, machine: &M, pool: &mut PagePool, at: Ipa, order: Order) {
        if order == Order::Block && !at.is_aligned(BLOCK_SIZE) {
            // A block of frames that went to the guest page by page may be
            // anywhere; only an aligned one has a table to itself.
            for n in 0..Order::Block.pages() {
                self.unmap(machine, pool, at.add(n * PAGE_SIZE), Order::Page);
            }
            return;
        }
        let (slot, level) = self.walk(machine, at, 3);
        let entry = Descriptor(slot.load(Ordering::Relaxed));
        match (order, level) {
            (Order::Page, 2) if entry.is_valid() => {
                let Some(table) = self.split(machine, pool, slot, entry, at) else { return };
                table[index(at, 3)].store(Descriptor::INVALID.0, Ordering::Relaxed);
            }
            (Order::Block, 3) => {
                // The block was split, or mapped page by page.
                let (block, _) = self.walk(machine, at, 2);
                let table = Descriptor(block.load(Ordering::Relaxed)).address();
                for slot in machine.table(table) {
                    slot.store(Descriptor::INVALID.0, Ordering::Relaxed);
                }
            }
            _ => slot.store(Descriptor::INVALID.0, Ordering::Relaxed),
        }
    }

    fn split<'m, M: Machine>(
        &self,
        machine: &'m M,
        pool: &mut PagePool,
        slot: &AtomicU64,
        entry: Descriptor,
        at: Ipa,
    ) -> Option<&'m Table> {
        // The pool was checked to hold what `prepare_unmap` counted.
        let page = pool.pop(machine)?;
        let table = machine.table(page);
        for (n, slot) in table.iter().enumerate() {
            let to = entry.address().add(n as u64 * PAGE_SIZE);
            slot.store(Descriptor::page(to, entry.attributes()).0, Ordering::Relaxed);
        }
        self.break_entry(machine, slot, at.align_down(BLOCK_SIZE), BLOCK_SIZE);
        slot.store(Descriptor::table(page).0, Ordering::Release);
        machine.publish();
        Some(table)
    }

    /// The first half of break-before-make (DDI 0487, D8.16.1): the one place
    /// where a guest's live entry goes so that another shape can take its
    /// place.
    fn break_entry<M: Machine>(&self, machine: &M, slot: &AtomicU64, base: Ipa, size: u64) {
        slot.store(Descriptor::INVALID.0, Ordering::Relaxed);
        machine.invalidate_range(&self.context, base, size);
        machine.invalidate_finish(&self.context);
    }

    /// The level-3 table of an address, if there is one.
    fn level3_table<'m, M: Machine>(&self, machine: &'m M, at: Ipa) -> Option<&'m Table> {
        let (slot, level) = self.walk(machine, at, 2);
        let entry = Descriptor(slot.load(Ordering::Relaxed));
        (level == 2 && entry.is_table()).then(|| machine.table(entry.address()))
    }

    /// Follows tables towards `target`; stops at it, or at the first entry
    /// that is no table.
    #[inline]
    fn walk<'m, M: Machine>(&self, machine: &'m M, at: Ipa, target: u8) -> (&'m AtomicU64, u8) {
        let mut level = self.geometry.start_level;
        let mut slot = &machine.table(self.root)[index(at, level)];
        while level < target {
            let entry = Descriptor(slot.load(Ordering::Relaxed));
            if !entry.is_table() {
                break;
            }
            level += 1;
            slot = &machine.table(entry.address())[index(at, level)];
        }
        (slot, level)
    }
}

#[inline]
fn index(at: Ipa, level: u8) -> usize {
    (at.0 >> level_shift(level)) as usize % 512
}

fn is_empty(table: &Table) -> bool {
    table.iter().all(|slot| !Descriptor(slot.load(Ordering::Relaxed)).is_valid())
}
