// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's stage 2, in pages that its host donated.
//!
//! All of it is covered by the VM's lock. A change has two steps: first
//! [`TableCount`] counts the tables that it will need; then, if the pool has
//! as many, the change is made. This file reads the tables; [`map`] maps
//! memory, [`change`] unmaps and restores it, and [`frames`] has the addresses where none may
//! be mapped.
//!
//! An entry is valid, or free, or *away* (the VM owns the memory and
//! cannot access it at the moment), or it marks broken memory. 512 adjacent pages that were mapped
//! one by one and fill 2 MiB are merged into one entry; their table page is kept
//! back for that entry, so that splitting it again never needs a
//! page.

mod change;
mod count;
mod frames;
mod map;
mod ripas;

use escrow_abi::Error;

use super::page::{FreePage, TablePage};
use super::{Descriptor, DescriptorCell, Geometry, PagePool, Stage2Context, level_shift};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::machine::{Machine, Table};

pub use change::Unmapped;
pub use count::TableCount;
pub use frames::Frames;
pub use map::{BlockRoom, Room};
pub use ripas::Found;

/// The tables of a guest.
#[derive(Debug)]
pub struct GuestMap {
    geometry: Geometry,
    root: TablePage,
    context: Stage2Context,
    halves: Option<Halves>,
    /// Where no memory comes.
    frames: Frames,
}

/// How the addresses of a protected VM's guest are divided.
#[derive(Clone, Copy, Debug)]
struct Halves {
    /// This bit is 1 in the shared half.
    shared: u64,
    /// The VM has started: memory may be mapped only where the guest has declared RAM.
    started: bool,
}

/// The level at which walks start: a constant, so that they need not compute it.
const START_LEVEL: u8 = 1;

/// What a guest address leads to.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// The descriptor, perhaps invalid.
    pub entry: Descriptor,
    /// Its level.
    pub level: u8,
}

/// Pages that lie side by side in 2 MiB of a guest's addresses.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Address of the first.
    pub at: Ipa,
    /// How many: 1 to 512.
    pub pages: usize,
    /// They are one entry of a list. For 512 pages that are not one entry, the pool must have a table
    /// page, in whatever order the list has them.
    pub is_block: bool,
}

impl Span {
    /// The slots of its pages in their level-3 table.
    #[inline(always)]
    fn slots(self, table: &Table) -> &[DescriptorCell] {
        let first = index(self.at, 3);
        table.get(first..first + self.pages).unwrap_or_default()
    }

    /// Bytes.
    #[inline(always)]
    const fn size(self) -> u64 {
        self.pages as u64 * PAGE_SIZE
    }

    /// Whether it fills 2 MiB.
    #[inline(always)]
    const fn fills(self) -> bool {
        self.pages == PAGES_PER_BLOCK
    }
}

impl GuestMap {
    /// An empty map. The geometry is one that begins with one table at
    /// level 1 ([`GuestMap::fits`]).
    pub fn new(geometry: Geometry, root: FreePage, context: Stage2Context) -> GuestMap {
        let halves = None;
        GuestMap { geometry, root: root.into_table(), context, halves, frames: Frames::NONE }
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

    /// Divides the addresses into two halves, for a protected VM. Returns the bit that is 1 in the
    /// shared one; `None` if something was mapped before.
    pub fn protect<M: Machine>(&mut self, machine: &M) -> Option<u64> {
        let empty = machine.table(self.root).iter().all(|slot| slot.load() == Descriptor::INVALID);
        let shared = self.geometry.end() >> 1;
        empty.then(|| self.halves = Some(Halves { shared, started: false }))?;
        Some(shared)
    }

    /// The VM starts.
    pub fn start(&mut self) {
        if let Some(halves) = &mut self.halves {
            halves.started = true;
        }
    }

    /// The bit that is 1 in the shared half, if the VM is protected.
    #[inline(always)]
    pub fn shared_bit(&self) -> Option<u64> {
        self.halves.map(|halves| halves.shared)
    }

    /// Whether memory has to be zeroed before it is mapped: after its start, the guest of a protected VM
    /// must not read contents that its host chose.
    #[inline]
    pub fn zeroes(&self) -> bool {
        self.halves.is_some_and(|halves| halves.started)
    }

    /// Whether memory may be mapped in the place of this entry.
    #[inline(always)]
    fn has_room(&self, entry: Descriptor, at: Ipa) -> bool {
        match self.halves {
            Some(Halves { shared, started: true }) if at.0 & shared == 0 => entry.is_ram(),
            _ => entry.is_free(),
        }
    }

    /// The first address beyond the guest's space.
    pub fn end(&self) -> u64 {
        self.geometry.end()
    }

    /// The addresses where no memory may be mapped.
    #[inline]
    pub fn frames(&self) -> &Frames {
        &self.frames
    }

    /// Where the addresses end that frames can be at: those of the protected half, if the VM is
    /// protected.
    #[inline]
    pub fn frames_end(&self) -> u64 {
        self.shared_bit().unwrap_or(self.end())
    }

    /// Whether frames can be where they are.
    ///
    /// # Errors
    /// [`Error::GuestMapped`]: something is at one of their addresses.
    pub fn must_be_free<M: Machine>(&self, machine: &M, frames: &Frames) -> Result<(), Error> {
        if frames.iter().all(|(at, size)| self.has_nothing(machine, at, size)) {
            Ok(())
        } else {
            Err(Error::GuestMapped)
        }
    }

    /// Reserves the addresses of frames, which are free: no memory can be mapped there from now on.
    pub fn keep_free(&mut self, frames: Frames) {
        self.frames = frames;
    }

    /// Whether no page of a range of addresses inside the space leads anywhere.
    fn has_nothing<M: Machine>(&self, machine: &M, base: u64, size: u64) -> bool {
        let mut at = base;
        while at < base + size {
            let Leaf { entry, level } = self.lookup(machine, Ipa(at));
            // Memory may come where the guest of a protected VM has RAM.
            if !entry.is_free() || entry.is_ram() {
                return false;
            }
            at = (at | ((1 << level_shift(level)) - 1)) + 1;
        }
        true
    }

    /// What a guest address leads to. The address must be inside the space.
    pub fn lookup<M: Machine>(&self, machine: &M, at: Ipa) -> Leaf {
        let (slot, level) = self.walk(machine, at, 3);
        Leaf { entry: slot.load(), level }
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

    /// Whether the 512 pages at an address, which have entries of their own, are those of
    /// the block at `to`, in reach or away.
    pub fn leads_to_block<M: Machine>(&self, machine: &M, at: Ipa, to: PhysAddr) -> bool {
        let (slot, level) = self.walk(machine, at, 2);
        let mut pages = (to.0..).step_by(PAGE_SIZE as usize);
        let Some(table) = slot.load().as_table() else { return false };
        level == 2
            && machine.table(table).iter().map(DescriptorCell::load).all(|entry| {
                (entry.is_valid() || entry.is_away()) && pages.next() == Some(entry.address().0)
            })
    }

    /// The first half of break-before-make (DDI 0487, D8.16.1 "Using
    /// break-before-make when updating translation table entries"): the one
    /// place where a guest's live entry goes so that another shape can take its
    /// place.
    fn break_entry<M: Machine>(&self, machine: &M, slot: &DescriptorCell, at: Ipa) {
        machine.write_descriptor(slot, Descriptor::INVALID);
        machine
            .invalidate(&self.context, core::iter::once((at.align_down(BLOCK_SIZE), BLOCK_SIZE)));
    }

    /// Follows tables towards `target`; stops at it, or at the first entry
    /// that is no table.
    #[inline(always)]
    fn walk<'m, M: Machine>(
        &self,
        machine: &'m M,
        at: Ipa,
        target: u8,
    ) -> (&'m DescriptorCell, u8) {
        let mut level = START_LEVEL;
        let mut slot = &machine.table(self.root)[index(at, level)];
        while level < target {
            let Some(table) = slot.load().as_table() else { break };
            level += 1;
            slot = &machine.table(table)[index(at, level)];
        }
        (slot, level)
    }
}

/// A page for the table in the place of `entry`, in which all is RAM to the guest if that was.
fn take_table<M: Machine>(
    machine: &M,
    pool: &mut PagePool,
    entry: Descriptor,
) -> Option<TablePage> {
    if entry.has_table() {
        pool.release();
    }
    let page = pool.pop(machine).map(FreePage::into_table)?;
    if entry.is_ram() {
        for slot in machine.table(page) {
            machine.write_descriptor(slot, Descriptor::RAM);
        }
    }
    Some(page)
}

#[inline(always)]
fn index(at: Ipa, level: u8) -> usize {
    (at.0 >> level_shift(level)) as usize % 512
}
