// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tables as they are in memory: what each page holds, and where in which
//! VM's tables it stands.

use std::collections::BTreeMap;
use std::ops::Range;

use rangemap::RangeSet;

use crate::descriptor::{self, Kind, PAGE_SIZE};

/// Descriptors of a table.
pub const ENTRIES: usize = 512;

/// Where a table stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The VM whose tables it is one of.
    pub vm: u32,
    /// Its level.
    pub level: u8,
    /// The first guest address that it stands for.
    pub ipa: u64,
}

/// Where a descriptor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its address.
    pub at: u64,
    /// The VM whose tables it is in.
    pub vm: u32,
    /// Its level.
    pub level: u8,
    /// The first guest address that it stands for.
    pub ipa: u64,
}

impl Slot {
    /// A descriptor of a table.
    pub fn new(page: u64, index: usize, place: Place) -> Slot {
        let ipa = place.ipa + ((index as u64) << descriptor::shift(place.level));
        Slot { at: page + 8 * index as u64, vm: place.vm, level: place.level, ipa }
    }

    /// Bytes that it stands for.
    pub fn size(self) -> u64 {
        descriptor::size(self.level)
    }

    /// What a descriptor says here.
    pub fn decode(self, value: u64) -> Kind {
        descriptor::decode(value, self.level)
    }

    /// Where the table below it stands, if it leads to one.
    pub fn below(self) -> Place {
        Place { vm: self.vm, level: self.level + 1, ipa: self.ipa }
    }
}

/// A page that was written to as a table.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its descriptors.
    pub words: Box<[u64; ENTRIES]>,
    /// Which of them nobody knows: one that EL2 has not written to since it took
    /// the page into use with what was in it.
    unknown: Option<Box<[bool; ENTRIES]>>,
    /// CPUs that wrote to it and have made no DSB since, with the line.
    pub unpublished: Vec<(u16, usize)>,
    /// Where it stands, if walkers can find it.
    pub place: Option<Place>,
}

/// All table pages.
#[derive(Debug, Default)]
pub struct Tables {
    pages: BTreeMap<u64, Page>,
    /// Memory that holds zeros and is in nobody's map.
    zeros: RangeSet<u64>,
    /// Memory for tables that holds anything.
    raw: RangeSet<u64>,
}

impl Page {
    /// Writes a descriptor. Returns what it held, which was `old` if nobody else
    /// knows.
    pub fn write(&mut self, index: usize, old: u64, new: u64) -> u64 {
        let unknown = self.unknown.as_mut().map(|unknown| &mut unknown[index]);
        let unknown = unknown.is_some_and(std::mem::take);
        let held = std::mem::replace(&mut self.words[index], new);
        if unknown { old } else { held }
    }

    /// Whether all that it holds is known.
    pub fn is_known(&self) -> bool {
        self.unknown.as_ref().is_none_or(|unknown| !unknown.contains(&true))
    }
}

/// The page of an address, and the descriptor in it.
pub fn split(at: u64) -> (u64, usize) {
    (at & !(PAGE_SIZE - 1), (at % PAGE_SIZE / 8) as usize)
}

impl Tables {
    /// Memory holds zeros now. Pages in it are forgotten.
    pub fn zero(&mut self, at: u64, size: u64) {
        self.forget(at, size);
        self.zeros.insert(at..at + size);
    }

    /// Memory for tables holds anything.
    pub fn raw(&mut self, at: u64, size: u64) {
        self.forget(at, size);
        self.raw.insert(at..at + size);
    }

    fn forget(&mut self, at: u64, size: u64) {
        let gone: Vec<u64> = self.pages.range(at..at + size).map(|(&page, _)| page).collect();
        for page in gone {
            self.pages.remove(&page);
        }
        self.zeros.remove(at..at + size);
        self.raw.remove(at..at + size);
    }

    /// Memory is somebody's who may write to it.
    pub fn forget_zeros(&mut self, at: u64, size: u64) {
        self.zeros.remove(at..at + size);
        self.raw.remove(at..at + size);
        let unplaced: Vec<u64> = self
            .pages
            .range(at..at + size)
            .filter(|(_, page)| page.place.is_none())
            .map(|(&at, _)| at)
            .collect();
        for page in unplaced {
            self.pages.remove(&page);
        }
    }

    /// A page whose contents are known.
    pub fn page(&mut self, at: u64) -> Option<&mut Page> {
        if !self.pages.contains_key(&at) {
            let unknown = if self.zeros.contains(&at) {
                None
            } else if self.raw.contains(&at) {
                Some(Box::new([true; ENTRIES]))
            } else {
                return None;
            };
            self.zeros.remove(at..at + PAGE_SIZE);
            self.raw.remove(at..at + PAGE_SIZE);
            let words = Box::new([0; ENTRIES]);
            self.pages.insert(at, Page { words, unknown, unpublished: Vec::new(), place: None });
        }
        self.pages.get_mut(&at)
    }

    /// The first table in a range that walkers can find.
    pub fn first_placed(&self, at: u64, size: u64) -> Option<(u64, Place)> {
        let mut pages = self.pages.range(at..at + size);
        pages.find_map(|(&at, page)| page.place.map(|place| (at, place)))
    }
}

/// Blocks and pages that walkers can find, by the memory that they lead to.
#[derive(Debug, Default)]
pub struct Leaves {
    /// Memory, VM and guest address, to the level.
    by_memory: BTreeMap<(u64, u32, u64), u8>,
}

/// A block or page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The memory that it leads to.
    pub pa: u64,
    /// Its VM.
    pub vm: u32,
    /// The first guest address that it stands for.
    pub ipa: u64,
    /// Bytes.
    pub size: u64,
}

impl Leaves {
    /// A block or page became valid.
    pub fn insert(&mut self, pa: u64, slot: Slot) {
        self.by_memory.insert((pa, slot.vm, slot.ipa), slot.level);
    }

    /// It is no longer.
    pub fn remove(&mut self, pa: u64, slot: Slot) {
        self.by_memory.remove(&(pa, slot.vm, slot.ipa));
    }

    /// Those that lead to memory of a range.
    pub fn overlapping(&self, memory: Range<u64>) -> impl Iterator<Item = Leaf> {
        // One that begins before the range and reaches into it is a block, and
        // aligned to its size.
        let blocks = [1, 2].map(|level| memory.start & !(descriptor::size(level) - 1));
        let before = blocks.into_iter().filter(move |&block| block < memory.start);
        let mut seen = None;
        let before = before.filter(move |&block| seen.replace(block) != Some(block));
        let range = memory.clone();
        before
            .flat_map(|block| self.by_memory.range((block, 0, 0)..=(block, u32::MAX, u64::MAX)))
            .chain(self.by_memory.range((memory.start, 0, 0)..(memory.end, 0, 0)))
            .map(|(&(pa, vm, ipa), &level)| Leaf { pa, vm, ipa, size: descriptor::size(level) })
            .filter(move |leaf| leaf.pa < range.end && range.start < leaf.pa + leaf.size)
    }
}
