// SPDX-License-Identifier: MIT OR Apache-2.0

//! The queue of a vCPU's pending interrupts, by priority.
//!
//! Two levels of bitmaps: for each group and each of the 32 priorities, a word has a bit for each
//! 32 INTIDs of which at least one is queued. So a search for the highest priority checks 32 interrupts
//! at most, and mostly one.

use super::bits::{Bits, Intid, ones};
use super::lr::Groups;

/// Priority, group and kind of an interrupt that is in the queue, in a list register, or active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Note(u8);

impl Note {
    const GROUP: u8 = 1 << 5;
    const TOLD: u8 = 1 << 6;

    /// `level`: the upper five bits of its priority, which is as many as all virtual CPU
    /// interfaces have at least (IHI 0069, "ICH_VTR_EL2", PRIbits). `told`: its deactivation
    /// asserts the maintenance interrupt.
    #[inline(always)]
    pub const fn new(level: u8, group: u8, told: bool) -> Note {
        Note(level & 31 | (group & 1) << 5 | if told { Note::TOLD } else { 0 })
    }

    pub const fn level(self) -> u8 {
        self.0 & 31
    }

    pub const fn group(self) -> u8 {
        (self.0 & Note::GROUP) >> 5
    }

    pub const fn is_told(self) -> bool {
        self.0 & Note::TOLD != 0
    }

    pub const fn with_told(self, told: bool) -> Note {
        Note(self.0 & !Note::TOLD | if told { Note::TOLD } else { 0 })
    }
}

/// Where the waiting interrupts of a group are.
#[derive(Clone, Debug)]
struct Waiting {
    /// For each level, the words of [`Queue::intids`] with an interrupt of that level: a bit each.
    words: [u32; 32],
    /// The levels that have any.
    levels: u32,
}

/// The interrupts that wait for a vCPU.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    intids: Bits<32>,
    groups: [Waiting; 2],
    notes: [Note; 1024],
}

impl Queue {
    pub const fn new() -> Queue {
        const NONE: Waiting = Waiting { words: [0; 32], levels: 0 };
        Queue { intids: Bits::EMPTY, groups: [NONE; 2], notes: [Note(0); 1024] }
    }

    /// The note of an interrupt that was written last.
    #[inline(always)]
    pub fn note(&self, intid: Intid) -> Note {
        self.notes[intid.number() as usize % 1024]
    }

    /// Changes the note of an interrupt. That of one in the queue must keep its level and group.
    #[inline(always)]
    pub fn set_note(&mut self, intid: Intid, note: Note) {
        self.notes[intid.number() as usize % 1024] = note;
    }

    #[inline(always)]
    pub fn contains(&self, intid: Intid) -> bool {
        self.intids.get(intid)
    }

    /// The first interrupt of a level and a group among the bits `of` of a word.
    #[inline(always)]
    fn find(&self, word: usize, of: u32, level: u8, group: u8) -> Option<Intid> {
        ones(of).filter_map(|bit| Intid::new(word as u32 * 32 + u32::from(bit))).find(|&intid| {
            let note = self.note(intid);
            note.level() == level && note.group() == group
        })
    }

    /// Adds an interrupt that is not in the queue.
    #[inline(always)]
    pub fn insert(&mut self, intid: Intid, note: Note) {
        self.set_note(intid, note);
        self.intids.set(intid, true);
        let waiting = &mut self.groups[usize::from(note.group())];
        waiting.words[usize::from(note.level())] |= 1 << intid.word();
        waiting.levels |= 1 << note.level();
    }

    /// Takes an interrupt out, if it is in.
    #[inline(always)]
    pub fn remove(&mut self, intid: Intid) {
        if !self.intids.replace(intid, false) {
            return;
        }
        let (note, word) = (self.note(intid), intid.word());
        let others = self.intids.word(word);
        if others != 0 && self.find(word, others, note.level(), note.group()).is_some() {
            return;
        }
        let waiting = &mut self.groups[usize::from(note.group())];
        let words = &mut waiting.words[usize::from(note.level())];
        *words &= !(1 << word);
        if *words == 0 {
            waiting.levels &= !(1 << note.level());
        }
    }

    /// The interrupt of the highest priority among those of `groups`.
    #[inline(always)]
    pub fn top(&self, groups: Groups) -> Option<Intid> {
        let levels = |group: u8| {
            let levels = self.groups[usize::from(group & 1)].levels;
            if groups.contains(group) { levels } else { 0 }
        };
        let (zero, one) = (levels(0), levels(1));
        if zero | one == 0 {
            return None;
        }
        let group = u8::from(one.trailing_zeros() < zero.trailing_zeros());
        let level = (zero | one).trailing_zeros() as u8 % 32;
        let words = self.groups[usize::from(group)].words[usize::from(level)];
        let word = words.trailing_zeros() as usize % 32;
        self.find(word, self.intids.word(word), level, group)
    }

    #[inline(always)]
    pub fn is_empty(&self, groups: Groups) -> bool {
        (0..2)
            .all(|group| !groups.contains(group) || self.groups[usize::from(group & 1)].levels == 0)
    }
}
