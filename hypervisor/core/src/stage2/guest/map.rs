// SPDX-License-Identifier: MIT OR Apache-2.0

//! Mapping of memory for a guest.

use super::{GuestMap, Span, TableCount, index, take_table};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::machine::{Machine, Table};
use crate::stage2::page::TablePage;
use crate::stage2::{Attributes, Descriptor, DescriptorCell, PagePool};

/// Where [`GuestMap::prepare_map`] found room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// The level-3 table, if there is one.
    pub table: Option<TablePage>,
}

/// What [`GuestMap::prepare_map_block`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockRoom {
    /// There is room.
    Free,
    /// The address is taken.
    Taken,
    /// A level-3 table is there; there is room if it is empty. That check reads all 512 entries, so
    /// the caller counts it as work.
    IfEmpty(TablePage),
}

impl GuestMap {
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
        let room = self.room_in_tables(machine, span, count);
        if !self.frames.may_meet(span.at, span.size()) {
            return room;
        }
        match (self.frames.first_in(span), room) {
            (None, room) => room,
            (Some(page), Ok(_)) => Err(page),
            (Some(page), Err(taken)) => Err(page.min(taken)),
        }
    }

    #[inline(always)]
    fn room_in_tables<M: Machine>(
        &self,
        machine: &M,
        span: Span,
        count: &mut TableCount,
    ) -> Result<Room, usize> {
        let (slot, level) = self.walk(machine, span.at, 2);
        let entry = slot.load();
        if let Some(table) = entry.as_table() {
            let slots = span.slots(machine.table(table));
            return match slots.iter().position(|slot| !self.has_room(slot.load(), span.at)) {
                Some(taken) => Err(taken),
                None => Ok(Room { table: Some(table) }),
            };
        }
        if !self.has_room(entry, span.at) {
            return Err(0);
        }
        if !entry.has_table() {
            for level in level + 1..=3 {
                count.add(span.at, level);
            }
        }
        Ok(Room { table: None })
    }

    /// The same for a block that is to be one entry whatever happens.
    #[inline]
    pub fn prepare_map_block<M: Machine>(
        &self,
        machine: &M,
        at: Ipa,
        count: &mut TableCount,
    ) -> BlockRoom {
        let span = Span { at, pages: PAGES_PER_BLOCK, is_block: true };
        if self.frames.may_meet(at, BLOCK_SIZE) && self.frames.first_in(span).is_some() {
            return BlockRoom::Taken;
        }
        let (slot, level) = self.walk(machine, at, 2);
        let entry = slot.load();
        if let Some(table) = entry.as_table() {
            return BlockRoom::IfEmpty(table);
        }
        for level in level + 1..=2 {
            count.add(at, level);
        }
        if self.has_room(entry, at) { BlockRoom::Free } else { BlockRoom::Taken }
    }

    /// Whether nothing is in a table that [`Self::prepare_map_block`] found at an address, and a block
    /// may come.
    pub fn is_empty<M: Machine>(&self, machine: &M, table: TablePage, at: Ipa) -> bool {
        machine.table(table).iter().all(|slot| self.has_room(slot.load(), at))
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
            entry = entry.behind(1);
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
        let entry = slot.load();
        if let Some(table) = entry.as_table() {
            return Some(machine.table(table));
        }
        if span.fills() && to.is_aligned(BLOCK_SIZE) {
            if !entry.has_table() {
                pool.keep_back();
            }
            machine.write_descriptor(slot, Descriptor::block(to, attributes).with_table());
            return None;
        }
        let table = take_table(machine, pool, entry)?;
        // The table was zeroed before this entry makes it visible.
        machine.write_descriptor(slot, Descriptor::table(table));
        Some(machine.table(table))
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
        let old = slot.load();
        if let Some(table) = old.as_table() {
            self.break_entry(machine, slot, at);
            if self.halves.is_some() {
                // No walker uses this table any more. Pages in the pool must be zeroed.
                for slot in machine.table(table) {
                    machine.write_descriptor(slot, Descriptor::INVALID);
                }
            }
            pool.push(machine, table.into_free());
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
    ) -> Option<&'m DescriptorCell> {
        let (mut slot, mut level) = self.walk(machine, at, 2);
        while level < 2 {
            // The pool was checked to hold what was counted.
            let table = take_table(machine, pool, slot.load())?;
            machine.write_descriptor(slot, Descriptor::table(table));
            level += 1;
            slot = &machine.table(table)[index(at, level)];
        }
        Some(slot)
    }

    /// The entry for a page, if there is one and it is free, and far from all [frames](super::Frames).
    #[inline(always)]
    pub fn free_page<'m, M: Machine>(&self, machine: &'m M, at: Ipa) -> Option<&'m DescriptorCell> {
        let (slot, level) = self.walk(machine, at, 3);
        let free = level == 3 && slot.load().is_free() && !self.frames.may_meet(at, PAGE_SIZE);
        free.then_some(slot)
    }

    /// The entry for a block, if there is one and it is free of anything, kept-back
    /// tables included, and far from all [frames](super::Frames).
    #[inline(always)]
    pub fn free_block<'m, M: Machine>(
        &self,
        machine: &'m M,
        at: Ipa,
    ) -> Option<&'m DescriptorCell> {
        let (slot, level) = self.walk(machine, at, 2);
        let free = level == 2 && slot.load() == Descriptor::INVALID;
        (free && !self.frames.may_meet(at, BLOCK_SIZE)).then_some(slot)
    }

    /// Makes 512 pages that fill 2 MiB, side by side and alike, one entry, and
    /// keeps their table back. Does nothing for any others.
    pub fn merge<M: Machine>(&self, machine: &M, pool: &mut PagePool, at: Ipa) {
        let (slot, level) = self.walk(machine, at, 2);
        let Some(page) = slot.load().as_table().filter(|_| level == 2) else { return };
        let table = machine.table(page);
        let first = table[0].load();
        let mut expected = first;
        let alike = first.is_valid()
            && first.address().is_aligned(BLOCK_SIZE)
            && table.iter().all(|slot| {
                let same = slot.load() == expected;
                expected = expected.behind(1);
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
        pool.push(machine, page.into_free());
        pool.keep_back();
    }
}
