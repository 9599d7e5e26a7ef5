// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a vCPU is to be offered next.
//!
//! For each group and each of the 32 levels of priority, a word says in which words of the
//! INTIDs something waits; the levels are kept bit by bit, in five planes. So who is next is
//! found in a number of steps that does not depend on how many wait.

use super::bits::{Bits, Intid};
use super::lr::Groups;

/// Bits of a priority that are implemented: all virtual CPU interfaces have at least as many
/// (IHI 0069, "ICH_VTR_EL2", PRIbits).
pub(super) const PRIORITY_BITS: usize = 5;

#[derive(Clone, Debug)]
struct Waiting {
    intids: Bits<32>,
    /// For each level, the words of `intids` with something of that level.
    words: [u32; 32],
    /// Levels of which there is something.
    levels: u32,
}

/// The interrupts that wait for a vCPU.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    groups: [Waiting; 2],
    planes: [Bits<32>; PRIORITY_BITS],
}

impl Queue {
    pub const fn new() -> Queue {
        const NONE: Waiting = Waiting { intids: Bits::EMPTY, words: [0; 32], levels: 0 };
        Queue { groups: [NONE; 2], planes: [const { Bits::EMPTY }; PRIORITY_BITS] }
    }

    /// The level of an interrupt that was noted last.
    #[inline(always)]
    pub fn level(&self, intid: Intid) -> u8 {
        (0u8..).zip(&self.planes).map(|(n, plane)| u8::from(plane.get(intid)) << n).sum()
    }

    pub fn contains(&self, intid: Intid) -> bool {
        self.groups.iter().any(|waiting| waiting.intids.get(intid))
    }

    /// Interrupts of a word that have a level, among those in `of`.
    fn of_level(&self, word: usize, level: u8, of: u32) -> u32 {
        (0u8..).zip(&self.planes).fold(of, |left, (n, plane)| {
            let bits = plane.word(word);
            left & if level >> n & 1 != 0 { bits } else { !bits }
        })
    }

    /// Notes the level of an interrupt that is not in it.
    pub fn note_level(&mut self, intid: Intid, level: u8) {
        for (n, plane) in (0u8..).zip(&mut self.planes) {
            plane.set(intid, level >> n & 1 != 0);
        }
    }

    /// Adds an interrupt that is not in it.
    pub fn insert(&mut self, intid: Intid, level: u8, group: u8) {
        self.note_level(intid, level);
        let waiting = &mut self.groups[usize::from(group & 1)];
        waiting.intids.set(intid, true);
        waiting.words[usize::from(level % 32)] |= 1 << intid.word();
        waiting.levels |= 1 << (level % 32);
    }

    /// Takes an interrupt out; `true` if it was in.
    pub fn remove(&mut self, intid: Intid) -> bool {
        let Some(group) = self.groups.iter().position(|waiting| waiting.intids.get(intid)) else {
            return false;
        };
        let (level, word) = (self.level(intid), intid.word());
        let others = self.groups[group % 2].intids.word(word) & !intid.bit();
        let others = self.of_level(word, level, others);
        let waiting = &mut self.groups[group % 2];
        waiting.intids.set(intid, false);
        if others == 0 {
            let words = &mut waiting.words[usize::from(level % 32)];
            *words &= !(1 << word);
            if *words == 0 {
                waiting.levels &= !(1 << (level % 32));
            }
        }
        true
    }

    /// The interrupt of the highest priority, its level and its group.
    #[inline(always)]
    pub fn top(&self, groups: Groups) -> Option<(Intid, u8, u8)> {
        let levels = |group: u8| {
            let levels = self.groups[usize::from(group & 1)].levels;
            if groups.contains(group) { levels } else { 0 }
        };
        let (zero, one) = (levels(0), levels(1));
        let group = u8::from(one.trailing_zeros() < zero.trailing_zeros());
        let level = (zero | one).trailing_zeros() as u8;
        if level == 32 {
            return None;
        }
        let waiting = &self.groups[usize::from(group & 1)];
        let word = waiting.words[usize::from(level % 32)].trailing_zeros() as usize % 32;
        let bits = self.of_level(word, level, waiting.intids.word(word));
        let intid = Intid::new(word as u32 * 32 + bits.trailing_zeros())?;
        Some((intid, level, group))
    }

    pub fn is_empty(&self, groups: Groups) -> bool {
        (0..2)
            .all(|group| !groups.contains(group) || self.groups[usize::from(group & 1)].levels == 0)
    }
}
