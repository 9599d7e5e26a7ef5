// SPDX-License-Identifier: MIT OR Apache-2.0

//! A queue of fixed size.

use alloc::vec::Vec;

use crate::Errno;

/// A queue of fixed size. What goes through it has *positions*: the first entry ever is 0.
#[derive(Debug)]
pub struct Ring<T> {
    /// The entry at position `p` is at `p` modulo its length.
    entries: Vec<T>,
    /// Position of the oldest entry.
    start: u64,
    /// Position behind the newest one.
    end: u64,
}

impl<T: Copy + Default> Ring<T> {
    /// An empty one, with room for `size` entries.
    ///
    /// # Errors
    /// `NoMemory`
    pub fn new(size: usize) -> Result<Ring<T>, Errno> {
        let mut entries = Vec::new();
        entries.try_reserve_exact(size).map_err(|_| Errno::NoMemory)?;
        entries.resize(size, T::default());
        Ok(Ring { entries, start: 0, end: 0 })
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        // The length never exceeds the ring's size, so it fits.
        (self.end - self.start) as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether there is no room.
    pub fn is_full(&self) -> bool {
        self.len() >= self.entries.len()
    }

    fn place(&mut self, position: u64) -> Option<&mut T> {
        let at = position.checked_rem(self.entries.len() as u64)?;
        self.entries.get_mut(at as usize)
    }

    /// Adds an entry. false: there is no room.
    pub fn push(&mut self, entry: T) -> bool {
        let end = self.end;
        let room = !self.is_full();
        if let Some(place) = self.place(end).filter(|_| room) {
            *place = entry;
            self.end += 1;
        }
        room
    }

    /// Takes the oldest entry.
    pub fn pop(&mut self) -> Option<T> {
        let start = self.start;
        let entry = (!self.is_empty()).then(|| self.place(start).copied()).flatten()?;
        self.start += 1;
        Some(entry)
    }

    /// Copies the oldest entries, which stay. → the position of the first, and how many
    pub fn peek(&mut self, to: &mut [T]) -> (u64, usize) {
        let (start, count) = (self.start, self.len().min(to.len()));
        for (to, position) in to.iter_mut().take(count).zip(start..) {
            *to = self.place(position).copied().unwrap_or_default();
        }
        (start, count)
    }

    /// Drops the entries before a position, as far as they are still there.
    pub fn skip_to(&mut self, position: u64) {
        self.start = position.clamp(self.start, self.end);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_dropped_meanwhile_is_not_dropped_twice() {
        let mut ring = Ring::new(4).unwrap();
        assert!((0..4u8).all(|entry| ring.push(entry)) && !ring.push(4));
        let mut seen = [0; 3];
        assert_eq!((ring.peek(&mut seen), seen), ((0, 3), [0, 1, 2]));
        // Two of the three that were peeked at are taken by `pop`.
        assert_eq!((ring.pop(), ring.pop(), ring.push(4)), (Some(0), Some(1), true));
        ring.skip_to(3);
        assert_eq!((ring.pop(), ring.pop(), ring.pop()), (Some(3), Some(4), None));
        ring.skip_to(1);
        ring.skip_to(99);
        assert_eq!((ring.len(), ring.push(5), ring.pop()), (0, true, Some(5)));
    }

    #[test]
    fn without_room_there_is_none() {
        let mut ring = Ring::new(0).unwrap();
        assert_eq!((ring.push(1), ring.pop(), ring.is_full()), (false, None, true));
    }

    proptest! {
        #[test]
        fn is_a_queue(
            size in 1usize..9,
            steps in prop::collection::vec((0u8..4, any::<u8>()), 0..200),
        ) {
            let mut ring = Ring::new(size).unwrap();
            let mut model = VecDeque::new();
            let mut gone = 0;
            for (step, value) in steps {
                match step {
                    0 | 1 => {
                        let room = model.len() < size;
                        prop_assert_eq!(ring.push(value), room);
                        if room {
                            model.push_back(value);
                        }
                    }
                    2 => {
                        let entry = model.pop_front();
                        gone += u64::from(entry.is_some());
                        prop_assert_eq!(ring.pop(), entry);
                    }
                    _ => {
                        let mut seen = [0; 8];
                        let (at, count) = ring.peek(&mut seen[..usize::from(value % 9)]);
                        prop_assert_eq!(at, gone);
                        prop_assert_eq!(count, model.len().min(usize::from(value % 9)));
                        prop_assert!(model.iter().zip(&seen[..count]).all(|(a, b)| a == b));
                        ring.skip_to(at + count as u64);
                        model.drain(..count);
                        gone += count as u64;
                    }
                }
                prop_assert_eq!(ring.len(), model.len());
            }
        }
    }
}
