// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages of a VM that broke, until the program has been told of each.

/// Reported once in the place of all pages that found no room among [`Losses::MAX`]. It is
/// not page-aligned, so it is no page's address.
pub const MORE: u64 = u64::MAX;

/// A queue of guest addresses. All-zero bytes are a valid value: nothing to tell.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Losses {
    at: [u64; Losses::MAX],
    count: u64,
    /// 1: there were more.
    more: u64,
}

const _: () = assert!(size_of::<Losses>() == 144);

impl Losses {
    /// So many addresses are kept.
    pub const MAX: usize = 16;

    /// The page at a guest address broke. One that is in the queue is told of once.
    pub fn add(&mut self, guest: u64) {
        let count = self.queued().len();
        if self.queued().contains(&guest) {
            return;
        }
        match self.at.get_mut(count) {
            Some(place) => {
                *place = guest;
                self.count += 1;
            }
            None => self.more = 1,
        }
    }

    /// Takes the next address to report, the oldest one first; at the end [`MORE`] if others
    /// found no room.
    pub fn tell(&mut self) -> Option<u64> {
        if let Some(&guest) = self.queued().first() {
            self.at.rotate_left(1);
            self.count -= 1;
            return Some(guest);
        }
        (core::mem::take(&mut self.more) != 0).then_some(MORE)
    }

    fn queued(&self) -> &[u64] {
        let count = usize::try_from(self.count).unwrap_or(Self::MAX);
        self.at.get(..count).unwrap_or(&self.at)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn told(losses: &mut Losses) -> Vec<u64> {
        core::iter::from_fn(|| losses.tell()).collect()
    }

    #[test]
    fn each_page_is_told_of_once_and_in_order() {
        let mut losses = Losses::default();
        assert_eq!(told(&mut losses), []);
        for guest in [0x3000, 0x1000, 0x3000, 0] {
            losses.add(guest);
        }
        assert_eq!(losses.tell(), Some(0x3000));
        losses.add(0x3000);
        assert_eq!(told(&mut losses), [0x1000, 0, 0x3000]);
        assert_eq!(told(&mut losses), []);
    }

    #[test]
    fn what_finds_no_room_is_told_of_as_more() {
        let mut losses = Losses::default();
        let pages: Vec<u64> = (0..Losses::MAX as u64).map(|page| page << 12).collect();
        pages.iter().for_each(|&page| losses.add(page));
        losses.add(pages[3]);
        assert_eq!(losses.tell(), Some(0), "one that is there is not one more");
        losses.add(0x100_0000);
        losses.add(0x200_0000);
        let rest = [&pages[1..], &[0x100_0000, MORE]].concat();
        assert_eq!(told(&mut losses), rest);
        assert_eq!(told(&mut losses), []);
    }
}
