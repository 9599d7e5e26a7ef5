// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the guest of a protected VM has said of addresses at which nothing is mapped: they are RAM, or
//! they are empty. A bit of their invalid entries says so, which hardware ignores.

use super::{GuestMap, index, take_table};
use crate::addr::{Ipa, PAGE_SIZE};
use crate::machine::Machine;
use crate::stage2::{Descriptor, PagePool, level_shift};

/// What the tables have at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent {
        /// The guest has said that it is RAM.
        ram: bool,
    },
    /// Memory, in reach or away.
    Present,
    /// A mark of broken memory.
    Broken,
}

impl GuestMap {
    /// What is at an address inside the space, and how many bytes from there on are in the same entry.
    pub fn find<M: Machine>(&self, machine: &M, at: Ipa) -> (Found, u64) {
        let (slot, level) = self.walk(machine, at, 3);
        let entry = slot.load();
        let found = if entry.is_poisoned() {
            Found::Broken
        } else if entry.is_free() {
            Found::Absent { ram: entry.is_ram() }
        } else {
            Found::Present
        };
        (found, rest_of_entry(at, level))
    }

    /// Marks absent memory from an address on, which is one of a page's, as RAM or as empty, up to
    /// `end` or the end of an entry. Returns how many bytes that was.
    ///
    /// # Errors
    /// How many pages for tables are missing at the most.
    pub fn mark<M: Machine>(
        &self,
        machine: &M,
        pool: &mut PagePool,
        at: Ipa,
        end: u64,
        ram: bool,
    ) -> Result<u64, u64> {
        let (mut slot, mut level) = self.walk(machine, at, 3);
        loop {
            let entry = slot.load();
            let rest = rest_of_entry(at, level);
            let size = rest.min(end - at.0);
            if entry.is_ram() == ram {
                return Ok(size);
            }
            if level == 3 || size == 1 << level_shift(level) {
                machine.write_descriptor(slot, entry.marked(ram));
                return Ok(size);
            }
            if !entry.has_table() && pool.is_empty() {
                return Err(3 - u64::from(level));
            }
            let Some(table) = take_table(machine, pool, entry) else { return Err(1) };
            // It is filled before it is seen.
            machine.write_descriptor(slot, Descriptor::table(table));
            level += 1;
            slot = &machine.table(table)[index(at, level)];
        }
    }
}

/// Bytes from an address to the end of the entry of a level that it is in.
fn rest_of_entry(at: Ipa, level: u8) -> u64 {
    let size = 1 << level_shift(level.min(3));
    size - (at.0 & (size - 1) & !(PAGE_SIZE - 1))
}
