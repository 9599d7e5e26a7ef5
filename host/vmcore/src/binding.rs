// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which guest addresses stand for which part of which memory.

use alloc::vec::Vec;
use core::ops::Range;

use escrow_abi::{Rights, run};

use crate::Errno;
use crate::args::BINDINGS_MAX;

/// How a guest gets the pages of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Give {
    /// The host loses sight of them.
    Lend,
    /// Both reach them.
    Share,
}

/// One run of guest addresses. `M` names a memory; a clone keeps it alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding<M> {
    /// Guest addresses, page-aligned.
    pub guest: Range<u64>,
    /// The memory.
    pub memory: M,
    /// Where in the memory the first of them is, in bytes.
    pub offset: u64,
    /// How the guest gets the pages.
    pub give: Give,
    /// What the guest may do with them.
    pub rights: Rights,
}

impl<M> Binding<M> {
    /// Whether the two have a part of a memory in common.
    fn shares_memory_with(&self, other: &Binding<M>) -> bool
    where
        M: PartialEq,
    {
        self.memory == other.memory
            && self.offset < other.offset_of(other.guest.end)
            && other.offset < self.offset_of(self.guest.end)
    }

    /// Where in the memory a guest address of this binding is.
    pub fn offset_of(&self, guest: u64) -> u64 {
        self.offset + (guest - self.guest.start)
    }

    /// Whether the guest may make that access (`FAULT_*` bits of a page
    /// fault).
    pub fn allows(&self, access: u64) -> bool {
        (access & run::FAULT_WRITE == 0 || self.rights.write())
            && (access & run::FAULT_EXECUTE == 0 || self.rights.execute())
    }
}

/// Where in the guest a folio of a memory belongs: `size` bytes (a power of
/// two) at `offset` of the memory, by a binding of `length` bytes at `guest` to
/// the memory at `start`. `None` if it does not fit as a whole: a part of it is
/// not bound, or the guest's addresses are not aligned as the folio is.
pub fn place_of(guest: u64, start: u64, length: u64, offset: u64, size: u64) -> Option<u64> {
    let skipped = offset.checked_sub(start)?;
    if skipped.checked_add(size)? > length {
        return None;
    }
    let at = guest.checked_add(skipped)?;
    (at & size.wrapping_sub(1) == 0).then_some(at)
}

/// The bindings of one VM, [`BINDINGS_MAX`] at the most. They overlap neither in guest
/// addresses nor in memories: what walks them all comes by each page once.
#[derive(Debug)]
pub struct Bindings<M> {
    /// Sorted by guest address.
    list: Vec<Binding<M>>,
}

impl<M> Default for Bindings<M> {
    fn default() -> Self {
        Bindings { list: Vec::new() }
    }
}

impl<M: Clone + PartialEq> Bindings<M> {
    /// The binding at this place of the sorted list.
    pub fn get(&self, index: usize) -> Option<&Binding<M>> {
        self.list.get(index)
    }

    /// The one that covers a guest address.
    pub fn find(&self, guest: u64) -> Option<&Binding<M>> {
        let after = self.list.partition_point(|binding| binding.guest.start <= guest);
        let binding = self.list.get(after.checked_sub(1)?)?;
        binding.guest.contains(&guest).then_some(binding)
    }

    /// Makes room for one more.
    fn reserve(&mut self) -> Result<(), Errno> {
        if self.list.len() >= BINDINGS_MAX {
            return Err(Errno::NoSpace);
        }
        self.list.try_reserve(1).map_err(|_| Errno::NoMemory)
    }

    /// Makes sure that [`remove`](Self::remove) of that range does not fail.
    ///
    /// # Errors
    /// `NoSpace` if what is left of a binding would be one too many, `NoMemory`.
    pub fn prepare_removal(&mut self, guest: &Range<u64>) -> Result<(), Errno> {
        let cuts = |binding: &Binding<M>| {
            binding.guest.start < guest.start && guest.end < binding.guest.end
        };
        if self.find(guest.start).is_some_and(cuts) { self.reserve() } else { Ok(()) }
    }

    /// Adds a binding.
    ///
    /// # Errors
    /// `Exists` if its guest addresses or its part of the memory are bound already,
    /// `NoSpace` if there are [`BINDINGS_MAX`], `NoMemory`.
    pub fn insert(&mut self, binding: Binding<M>) -> Result<(), Errno> {
        let at = self.list.partition_point(|other| other.guest.end <= binding.guest.start);
        if self.list.get(at).is_some_and(|other| other.guest.start < binding.guest.end)
            || self.list.iter().any(|other| other.shares_memory_with(&binding))
        {
            return Err(Errno::Exists);
        }
        self.reserve()?;
        self.list.insert(at, binding);
        Ok(())
    }

    /// Checks that each address of the range is bound to that part of that
    /// memory, in that way and with these rights where they are given.
    ///
    /// # Errors
    /// `NotFound`
    pub fn check(
        &self,
        guest: &Range<u64>,
        memory: &M,
        offset: u64,
        give: Option<Give>,
        rights: Option<Rights>,
    ) -> Result<(), Errno> {
        let mut at = guest.start;
        while at < guest.end {
            let binding = self.find(at).ok_or(Errno::NotFound)?;
            let is_meant = binding.memory == *memory
                && binding.offset_of(at) == offset + (at - guest.start)
                && give.is_none_or(|give| give == binding.give)
                && rights.is_none_or(|rights| rights == binding.rights);
            if !is_meant {
                return Err(Errno::NotFound);
            }
            at = binding.guest.end;
        }
        Ok(())
    }

    /// Takes a range out. What is left of a binding at its edges stays.
    ///
    /// # Errors
    /// As [`prepare_removal`](Self::prepare_removal), and not after that; nothing has
    /// changed.
    pub fn remove(&mut self, guest: &Range<u64>) -> Result<(), Errno> {
        self.prepare_removal(guest)?;
        let mut at = self.list.partition_point(|binding| binding.guest.end <= guest.start);
        while let Some(binding) = self.list.get_mut(at) {
            if binding.guest.start >= guest.end {
                break;
            }
            let old = binding.guest.clone();
            let rest_offset = binding.offset.saturating_add(guest.end.saturating_sub(old.start));
            match (old.start < guest.start, guest.end < old.end) {
                (false, false) => {
                    self.list.remove(at);
                    continue;
                }
                (true, false) => binding.guest.end = guest.start,
                (false, true) => {
                    binding.guest.start = guest.end;
                    binding.offset = rest_offset;
                }
                (true, true) => {
                    let mut rest = binding.clone();
                    rest.guest.start = guest.end;
                    rest.offset = rest_offset;
                    binding.guest.end = guest.start;
                    self.list.insert(at + 1, rest);
                }
            }
            at += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeMap;
    use std::vec;

    use super::*;

    fn binding(guest: Range<u64>, memory: char, offset: u64) -> Binding<char> {
        Binding { guest, memory, offset, give: Give::Lend, rights: Rights::READ_WRITE }
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bindings = Bindings::default();
        bindings.insert(binding(0x4000..0x8000, 'a', 0)).unwrap();
        for overlapping in
            [0x4000..0x8000, 0x3000..0x5000, 0x7000..0x9000, 0x5000..0x6000, 0x1000..0xf000]
        {
            assert_eq!(bindings.insert(binding(overlapping, 'b', 0)), Err(Errno::Exists));
        }
        bindings.insert(binding(0x8000..0x9000, 'b', 0)).unwrap();
        bindings.insert(binding(0x3000..0x4000, 'c', 0)).unwrap();
        for (offset, pages) in [(0, 1), (0x3000, 1), (0x3000, 4), (0, 16)] {
            let twice = binding(0x10000..0x10000 + pages * 0x1000, 'a', offset);
            assert_eq!(bindings.insert(twice), Err(Errno::Exists), "{offset:#x}, {pages} pages");
        }
        bindings.insert(binding(0x10000..0x11000, 'a', 0x4000)).unwrap();
        assert_eq!(bindings.find(0x7fff).unwrap().memory, 'a');
        assert_eq!(bindings.find(0x8000).unwrap().memory, 'b');
        assert_eq!(bindings.find(0x3000).unwrap().memory, 'c');
        assert_eq!(bindings.find(0x2fff), None);
        assert_eq!(bindings.find(0x9000), None);
    }

    #[test]
    fn what_is_around_a_removed_part_stays_where_it_was() {
        let mut bindings = Bindings::default();
        bindings.insert(binding(0x4000..0x8000, 'a', 0x10000)).unwrap();
        bindings.remove(&(0x5000..0x6000)).unwrap();
        let left = bindings.list.clone();
        assert_eq!(
            left,
            vec![binding(0x4000..0x5000, 'a', 0x10000), binding(0x6000..0x8000, 'a', 0x12000)]
        );
        bindings.insert(binding(0x5000..0x6000, 'b', 0)).unwrap();
    }

    #[test]
    fn there_is_a_limit() {
        let mut bindings = Bindings::default();
        let page = |number: u64| number << 12..(number + 1) << 12;
        for number in 0..BINDINGS_MAX as u64 - 1 {
            bindings.insert(binding(page(number), 'a', number << 12)).unwrap();
        }
        let large = 0x1000_0000..0x1000_3000;
        bindings.insert(binding(large.clone(), 'b', 0)).unwrap();
        let one = binding(0x2000_0000..0x2000_1000, 'c', 0);
        assert_eq!(bindings.insert(one.clone()), Err(Errno::NoSpace));
        let middle = 0x1000_1000..0x1000_2000;
        assert_eq!(bindings.prepare_removal(&middle), Err(Errno::NoSpace));
        assert_eq!(bindings.remove(&middle), Err(Errno::NoSpace));
        assert_eq!(bindings.check(&large, &'b', 0, None, None), Ok(()), "nothing has changed");
        bindings.remove(&page(7)).unwrap();
        bindings.remove(&middle).unwrap();
        assert_eq!(bindings.insert(one), Err(Errno::NoSpace));
    }

    #[test]
    fn a_check_wants_every_page_at_its_offset() {
        let mut bindings = Bindings::default();
        bindings.insert(binding(0x4000..0x6000, 'a', 0)).unwrap();
        bindings.insert(binding(0x6000..0x8000, 'a', 0x2000)).unwrap();
        bindings.insert(binding(0x9000..0xa000, 'a', 0x5000)).unwrap();
        let check =
            |guest: &Range<u64>, memory, offset| bindings.check(guest, memory, offset, None, None);
        assert_eq!(check(&(0x4000..0x8000), &'a', 0), Ok(()));
        assert_eq!(check(&(0x5000..0x7000), &'a', 0x1000), Ok(()));
        assert_eq!(check(&(0x5000..0x7000), &'a', 0), Err(Errno::NotFound));
        assert_eq!(check(&(0x5000..0x7000), &'b', 0x1000), Err(Errno::NotFound));
        assert_eq!(check(&(0x4000..0xa000), &'a', 0), Err(Errno::NotFound));
    }

    #[test]
    fn a_check_wants_what_it_is_told_of_how_pages_are_bound() {
        let mut bindings = Bindings::default();
        bindings.insert(binding(0x4000..0x6000, 'a', 0)).unwrap();
        let shared = Binding { give: Give::Share, ..binding(0x6000..0x8000, 'a', 0x2000) };
        bindings.insert(shared).unwrap();
        let check = |guest: Range<u64>, give, rights| {
            bindings.check(&guest, &'a', guest.start - 0x4000, give, rights)
        };
        let (lend, share) = (Some(Give::Lend), Some(Give::Share));
        let (right, wrong) = (Some(Rights::READ_WRITE), Some(Rights::READ));
        assert_eq!(check(0x4000..0x6000, lend, right), Ok(()));
        assert_eq!(check(0x4000..0x6000, share, None), Err(Errno::NotFound));
        assert_eq!(check(0x5000..0x7000, None, right), Ok(()), "both are bound so");
        assert_eq!(check(0x5000..0x7000, lend, None), Err(Errno::NotFound), "the second is not");
        assert_eq!(check(0x7000..0x8000, share, wrong), Err(Errno::NotFound));
    }

    #[test]
    fn a_folio_goes_as_a_whole_or_not_at_all() {
        const BLOCK: u64 = 2 << 20;
        let place = |guest, start, length, offset| place_of(guest, start, length, offset, BLOCK);
        assert_eq!(place(8 * BLOCK, 0, 4 * BLOCK, 0), Some(8 * BLOCK));
        assert_eq!(place(8 * BLOCK, BLOCK, 4 * BLOCK, 4 * BLOCK), Some(11 * BLOCK));
        assert_eq!(place(8 * BLOCK, 0, 4 * BLOCK, 4 * BLOCK), None, "behind");
        assert_eq!(place(8 * BLOCK, BLOCK, 4 * BLOCK, 0), None, "before");
        assert_eq!(place(8 * BLOCK, 0, BLOCK - 0x1000, 0), None, "the last page is not bound");
        assert_eq!(place(8 * BLOCK, 0x1000, BLOCK, 0), None, "the first page is not bound");
        assert_eq!(place(8 * BLOCK + 0x1000, 0, 4 * BLOCK, 0), None, "not aligned");
        assert_eq!(place(8 * BLOCK + 0x1000, 0x1000, 4 * BLOCK, BLOCK), Some(9 * BLOCK));
        assert_eq!(place_of(0x3000, 0x1000, 0x2000, 0x2000, 0x1000), Some(0x4000));
        assert_eq!(place_of(u64::MAX - 0xfff, 0, 1 << 40, 1 << 30, 0x1000), None, "wraps");
    }

    #[test]
    fn accesses_need_their_rights() {
        let read_only = Binding { rights: Rights::READ, ..binding(0..0x1000, 'a', 0) };
        assert!(read_only.allows(0));
        assert!(!read_only.allows(run::FAULT_WRITE));
        assert!(!read_only.allows(run::FAULT_EXECUTE));
        let code = Binding { rights: Rights::READ_EXECUTE, ..read_only };
        assert!(code.allows(run::FAULT_EXECUTE) && !code.allows(run::FAULT_WRITE));
    }

    /// Against a map with an entry for each page.
    #[test]
    fn random_histories_agree_with_a_page_by_page_model() {
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut random = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let (mut bindings, mut model) = (Bindings::default(), BTreeMap::new());
        for round in 0..4000u64 {
            let (start, pages) = (random(64), 1 + random(8));
            let range = start << 12..(start + pages) << 12;
            if random(2) == 0 {
                let offset = random(200) << 12;
                let is_bound = |page: &u64| model.contains_key(page);
                let is_there = |at: &u64| model.values().any(|offset| offset == at);
                let free = !(start..start + pages).any(|page| is_bound(&page))
                    && !(0..pages).any(|page| is_there(&(offset + (page << 12))));
                let result = bindings.insert(binding(range, 'a', offset));
                assert_eq!(result, if free { Ok(()) } else { Err(Errno::Exists) });
                if free {
                    model.extend((0..pages).map(|page| (start + page, offset + (page << 12))));
                }
            } else {
                bindings.remove(&range).unwrap();
                model.retain(|page, _| !range.contains(&(page << 12)));
            }
            for page in 0..80 {
                let found = bindings.find(page << 12).map(|found| found.offset_of(page << 12));
                assert_eq!(found, model.get(&page).copied(), "round {round}, page {page}");
            }
            assert!(bindings.list.windows(2).all(|pair| pair[0].guest.end <= pair[1].guest.start));
        }
    }
}
