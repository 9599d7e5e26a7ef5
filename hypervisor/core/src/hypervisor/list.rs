// SPDX-License-Identifier: MIT OR Apache-2.0

//! The lists of pages that memory calls work on.
//!
//! A list is copied out of its caller's memory once, checked for what needs no
//! lock, put into the order of the locks, and from then on the copy is all
//! that the call knows. The copy is made of *runs*: entries for pages that lie side by
//! side, in memory and in the guest, are worked on together.

use arrayvec::ArrayVec;
use escrow_abi::{Error, LIST_MAX, MemEntry, ORDER_BLOCK, ORDER_PAGE, Rights};

use super::{Hypervisor, Refusal};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::ledger::{BlockIndex, page_in_block};
use crate::machine::Machine;
use crate::stage2::{GuestMap, Room, Span};

/// Entries of a list that name pages side by side. Neither its frames nor its guest
/// addresses go beyond one block of 2 MiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub frame: PhysAddr,
    /// Address in the VM that gets it, with the rights in the low bits; 0 if
    /// none does.
    guest: u64,
    /// The calling guest's own address.
    pub own: Ipa,
    pub block: BlockIndex,
    pub pages: u16,
    /// Place of its first entry in the caller's list.
    pub index: u16,
    /// It is one entry, for a block.
    pub is_block: bool,
    /// Where the guest has room for it.
    pub room: Room,
}

impl Run {
    /// Address in the VM that gets it.
    #[inline(always)]
    pub fn guest(&self) -> Ipa {
        Ipa(self.guest & !(PAGE_SIZE - 1))
    }

    /// What the VM that gets it may do, as an index.
    #[inline(always)]
    pub fn rights(&self) -> usize {
        (self.guest % 8) as usize
    }

    /// Its pages at their addresses in the VM that gets them.
    #[inline(always)]
    pub fn span(&self) -> Span {
        Span { at: self.guest(), pages: self.pages.into(), is_block: self.is_block }
    }

    /// Its pages at the calling guest's addresses.
    pub fn own_span(&self) -> Span {
        Span { at: self.own, pages: self.pages.into(), is_block: self.is_block }
    }

    /// Bytes.
    #[inline(always)]
    pub fn size(&self) -> u64 {
        self.pages as u64 * PAGE_SIZE
    }

    /// Which page of its block it begins with.
    #[inline(always)]
    pub fn first(&self) -> usize {
        page_in_block(self.frame)
    }

    /// A refusal about its first entry.
    pub fn refuse(&self, error: Error, detail: u64) -> Refusal {
        self.refuse_page(0, error, detail)
    }

    /// A refusal about its `page`th page.
    pub fn refuse_page(&self, page: usize, error: Error, detail: u64) -> Refusal {
        let entry = if self.is_block { 0 } else { page as u64 };
        Refusal { error, index: self.index as u64 + entry, detail }
    }
}

/// Room for one list: each CPU has its own.
#[derive(Default)]
pub struct Scratch {
    runs: ArrayVec<Run, LIST_MAX>,
    /// To sort by.
    keys: ArrayVec<u64, LIST_MAX>,
    /// The runs are in the order of their frames, and none overlap.
    frames_sorted: bool,
    /// The same for their guest addresses.
    guests_sorted: bool,
    /// Where the last run ends.
    frame_end: u64,
    guest_end: u64,
}

/// What the entries of a list carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// Addresses and rights in the VM that gets the pages.
    pub guests: bool,
    /// Reports.
    pub reports: bool,
    /// Blocks as well as pages.
    pub blocks: bool,
}

impl Form {
    pub const SHARE: Form = Form { guests: true, reports: false, blocks: true };
    pub const LEND: Form = Form { guests: true, reports: true, blocks: true };
    /// For the hypervisor's own use.
    pub const METADATA: Form = Form { guests: false, reports: true, blocks: false };
    /// Out of a VM's sight, to nobody or to the host.
    pub const HIDE: Form = Form { guests: false, reports: true, blocks: true };
    pub const TAKE: Form = Form { guests: false, reports: false, blocks: true };
}

/// Who makes a call, as far as the list is concerned.
#[derive(Clone, Copy)]
pub(super) enum Reader<'a> {
    Host,
    /// A guest, whose VM is locked.
    Guest(&'a GuestMap),
}

/// Why a list was not read.
enum Unread {
    /// It was, and this is what is wrong with it.
    Refused(Refusal),
    /// What it lies in may have changed hands meanwhile.
    Changed,
}

impl<E: Into<Refusal>> From<E> for Unread {
    fn from(error: E) -> Unread {
        Unread::Refused(error.into())
    }
}

const ENTRY_SIZE: u64 = size_of::<MemEntry>() as u64;
/// Bits for the place of a run among 512.
const PLACE_BITS: u32 = 9;
const ENTRIES_PER_PAGE: u64 = PAGE_SIZE / ENTRY_SIZE;

impl Scratch {
    /// An empty one.
    pub const fn new() -> Scratch {
        Scratch {
            runs: ArrayVec::new_const(),
            keys: ArrayVec::new_const(),
            frames_sorted: true,
            guests_sorted: true,
            frame_end: 0,
            guest_end: 0,
        }
    }

    /// The runs.
    #[inline(always)]
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The runs, to note in them where there is room for them.
    #[inline(always)]
    pub(super) fn runs_mut(&mut self) -> &mut [Run] {
        &mut self.runs
    }

    /// Puts the runs into the order of their frames, unless they are;
    /// refuses overlapping ones.
    #[inline(always)]
    pub(super) fn sort_by_frame(&mut self) -> Result<(), Refusal> {
        if !self.frames_sorted {
            self.sort_by(|run| run.frame.0)?;
            self.frames_sorted = true;
            self.guests_sorted = false;
        }
        Ok(())
    }

    /// Puts the runs into the order of their guest addresses, unless they
    /// are; refuses overlapping ones.
    #[inline(always)]
    pub(super) fn sort_by_guest(&mut self) -> Result<(), Refusal> {
        if !self.guests_sorted {
            self.sort_by(|run| run.guest().0)?;
            self.guests_sorted = true;
            self.frames_sorted = false;
        }
        Ok(())
    }

    /// Pages in all runs.
    #[inline(always)]
    pub(super) fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.pages as u64).sum()
    }

    /// The run whose entry stands first in the caller's list.
    pub(super) fn first(&self) -> Option<&Run> {
        self.runs.iter().min_by_key(|run| run.index)
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.runs.clear();
        self.frames_sorted = true;
        self.guests_sorted = true;
        self.frame_end = 0;
        self.guest_end = 0;
    }

    #[inline(always)]
    fn push(&mut self, run: Run) {
        self.frames_sorted &= run.frame.0 >= self.frame_end;
        self.guests_sorted &= run.guest().0 >= self.guest_end;
        self.set_ends(&run);
        // The caller's list is no longer than there is room.
        let _ = self.runs.try_push(run);
    }

    #[inline(always)]
    fn set_ends(&mut self, run: &Run) {
        self.frame_end = run.frame.0 + run.size();
        self.guest_end = run.guest().0 + run.size();
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Copies and checks a list.
    #[inline(always)]
    pub(super) fn read_list(
        &self,
        scratch: &mut Scratch,
        reader: Reader<'_>,
        form: Form,
        list: u64,
        count: u64,
    ) -> Result<(), Refusal> {
        if count.wrapping_sub(1) >= LIST_MAX as u64 {
            return Err(Error::InvalidSize.into());
        }
        if !list.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Misaligned.into());
        }
        if list.checked_add(count * ENTRY_SIZE).is_none() {
            return Err(Error::AddressOverflow.into());
        }
        // A list is read without a lock, so that calls whose lists lie side by
        // side do not wait for each other; with it, if the block of a page of
        // the list changed meanwhile.
        let mut locked = false;
        loop {
            scratch.clear();
            match self.read_pages(scratch, reader, form, (list, count), locked) {
                Ok(()) => return Ok(()),
                Err(Unread::Refused(refusal)) => return Err(refusal),
                Err(Unread::Changed) => locked = true,
            }
        }
    }

    #[inline(always)]
    fn read_pages(
        &self,
        scratch: &mut Scratch,
        reader: Reader<'_>,
        form: Form,
        (list, count): (u64, u64),
        locked: bool,
    ) -> Result<(), Unread> {
        let mut done = 0;
        // What the next entry would have to say to prolong the last run.
        let mut next = (1, 0);
        while done < count {
            let page = list + done * ENTRY_SIZE;
            let end = count.min(done + ENTRIES_PER_PAGE);
            let entries = (done, end);
            match reader {
                Reader::Host => {
                    self.read_host_page(scratch, form, PhysAddr(page), entries, &mut next, locked)?;
                }
                Reader::Guest(map) => {
                    let inside = page < map.end();
                    let frame = inside.then(|| map.frame(&self.machine, Ipa(page))).flatten();
                    let frame = frame.filter(|(_, leaf)| leaf.entry.is_valid());
                    let (frame, _) = frame.ok_or(Error::InvalidAddress)?;
                    // What is mapped for a guest stays so while it is locked.
                    self.read_page(scratch, reader, form, frame, entries, &mut next)?;
                }
            }
            done = end;
        }
        Ok(())
    }

    #[inline(always)]
    fn read_host_page(
        &self,
        scratch: &mut Scratch,
        form: Form,
        page: PhysAddr,
        entries: (u64, u64),
        next: &mut (u64, u64),
        locked: bool,
    ) -> Result<(), Unread> {
        let block = self.ledger.ram().locate(page).ok_or(Error::InvalidAddress)?;
        let cell = self.ledger.cell(block);
        // The page must be the host's while it is read; the host itself may
        // still write to it, which harms nobody but the host. What is not the
        // host's is not looked at.
        let mut read = || {
            if self.ledger.get_in(block, page).host_reaches() {
                self.read_page(scratch, Reader::Host, form, page, entries, next)
            } else {
                Err(Error::NotOwner.into())
            }
        };
        let result = if locked {
            cell.lock();
            let result = read();
            cell.unlock();
            Some(result)
        } else {
            cell.read(read)
        };
        Ok(result.ok_or(Unread::Changed)??)
    }

    /// Reads entries from a page: from the first of a pair of places up to the second.
    #[inline(always)]
    fn read_page(
        &self,
        scratch: &mut Scratch,
        reader: Reader<'_>,
        form: Form,
        page: PhysAddr,
        (first, end): (u64, u64),
        carried: &mut (u64, u64),
    ) -> Result<(), Refusal> {
        let step = if form.guests { PAGE_SIZE } else { 0 };
        let mut at = page;
        let mut index = first;
        let mut next = *carried;
        while index < end {
            let [frame, guest, references, users] = self.machine.read_entry(at);
            at = at.add(ENTRY_SIZE);
            let prolongs = (frame, guest) == next
                && !next.0.is_multiple_of(BLOCK_SIZE)
                && (!form.guests || next.1 % BLOCK_SIZE >= PAGE_SIZE)
                && is_clean(form, references, users)
                && matches!(reader, Reader::Host);
            match scratch.runs.last_mut() {
                Some(run) if prolongs => {
                    run.pages += 1;
                    scratch.frame_end += PAGE_SIZE;
                    scratch.guest_end += PAGE_SIZE;
                }
                _ => {
                    let words = [frame, guest, references, users];
                    let run = self
                        .check_entry(reader, form, words, index)
                        .map_err(|(error, detail)| Refusal { error, index, detail })?;
                    next = if run.is_block { (1, 0) } else { (frame, guest) };
                    scratch.push(run);
                }
            }
            next = (next.0 + PAGE_SIZE, next.1 + step);
            index += 1;
        }
        *carried = next;
        Ok(())
    }

    #[inline(always)]
    fn check_entry(
        &self,
        reader: Reader<'_>,
        form: Form,
        words: [u64; 4],
        index: u64,
    ) -> Result<Run, (Error, u64)> {
        let [frame, guest, references, users] = words;
        let rights = guest % PAGE_SIZE;
        // All that is usual in one look; what is not is looked at one by one.
        let is_usual = frame.is_multiple_of(PAGE_SIZE)
            && is_clean(form, references, users)
            && if form.guests {
                rights < 8 && rights % 2 == 1 && guest < self.guest_geometry.end()
            } else {
                guest == 0
            };
        if !is_usual {
            self.check_unusual(form, words)?;
        }
        let is_block = frame % PAGE_SIZE == ORDER_BLOCK as u64;
        let frame = frame & !(PAGE_SIZE - 1);
        let (frame, own) = match reader {
            Reader::Host => (PhysAddr(frame), Ipa(0)),
            Reader::Guest(map) => {
                let frame = self.resolve(map, Ipa(frame), is_block);
                (frame.ok_or((Error::InvalidAddress, 0))?, Ipa(words[0] & !(PAGE_SIZE - 1)))
            }
        };
        let block = self.ledger.ram().locate(frame).ok_or((Error::InvalidAddress, 0))?;
        let pages = if is_block { PAGES_PER_BLOCK as u16 } else { 1 };
        Ok(Run {
            frame,
            guest,
            own,
            block,
            pages,
            index: index as u16,
            is_block,
            room: Room::default(),
        })
    }

    /// Looks at an entry that is for a block, or wrong.
    #[cold]
    fn check_unusual(&self, form: Form, words: [u64; 4]) -> Result<(), (Error, u64)> {
        let [frame, guest, references, users] = words;
        let is_block = match (frame % PAGE_SIZE) as u32 {
            ORDER_PAGE => false,
            ORDER_BLOCK if form.blocks => true,
            _ => return Err((Error::InvalidArgument, 0)),
        };
        let rights = Rights::from_bits(guest % PAGE_SIZE).ok_or((Error::InvalidArgument, 0))?;
        let (refcount, safe) = (references as u32, (references >> 32) as u32);
        let (accessible, reserved) = (users as u32, (users >> 32) as u32);
        if reserved != 0 {
            return Err((Error::InvalidArgument, 0));
        }
        let in_block = |at: u64| at % BLOCK_SIZE >= PAGE_SIZE;
        if is_block && (in_block(frame) || in_block(guest)) {
            return Err((Error::Misaligned, 0));
        }
        if form.guests {
            if !rights.read() {
                return Err((Error::InvalidArgument, 0));
            }
            if guest >= self.guest_geometry.end() {
                return Err((Error::AddressOverflow, 0));
            }
        } else if guest != 0 {
            return Err((Error::InvalidArgument, 0));
        }
        if !form.reports {
            let empty = refcount | safe | accessible == 0;
            return if empty { Ok(()) } else { Err((Error::InvalidArgument, 0)) };
        }
        if refcount != safe {
            return Err((Error::Excess, (refcount as i64 - safe as i64) as u64));
        }
        if accessible != 0 {
            return Err((Error::Accessible, accessible as u64));
        }
        Ok(())
    }

    /// The frame of a page, or the first of a block, at a guest's own address.
    fn resolve(&self, map: &GuestMap, at: Ipa, is_block: bool) -> Option<PhysAddr> {
        if at.0 >= map.end() {
            return None;
        }
        let (frame, leaf) = map.frame(&self.machine, at)?;
        if !is_block || leaf.level == 2 {
            return Some(frame);
        }
        // As pages: they must be those of one block.
        let adjacent = frame.is_aligned(BLOCK_SIZE)
            && (1..PAGES_PER_BLOCK as u64).map(|n| n * PAGE_SIZE).all(|n| {
                map.frame(&self.machine, at.add(n)).is_some_and(|(page, _)| page == frame.add(n))
            });
        adjacent.then_some(frame)
    }

    /// Takes the locks of all blocks that the runs lie in, in ascending
    /// order. The runs are in the order of their frames.
    #[inline(always)]
    pub(super) fn lock_blocks(&self, scratch: &Scratch) {
        for_each_block(scratch.runs(), |block| self.ledger.lock(block));
    }

    /// Gives the locks back.
    #[inline(always)]
    pub(super) fn unlock_blocks(&self, scratch: &Scratch) {
        for_each_block(scratch.runs(), |block| self.ledger.unlock(block));
    }
}

/// Whether the last two words of an entry show no user and are in order.
#[inline(always)]
fn is_clean(form: Form, references: u64, users: u64) -> bool {
    // `refcount` and `safe` are the halves of one word.
    let excess = if form.reports { references ^ references.rotate_left(32) } else { references };
    excess | users == 0
}

#[inline(always)]
fn for_each_block(runs: &[Run], mut f: impl FnMut(BlockIndex)) {
    let mut last = None;
    for run in runs {
        if last != Some(run.block) {
            f(run.block);
            last = Some(run.block);
        }
    }
}

impl Scratch {
    /// Sorts the runs by an address of theirs, in place and without
    /// allocation; refuses those that overlap in it.
    ///
    /// Keys are sorted, words of their own that know which run they are of:
    /// runs are too long to be moved about at each step.
    #[inline(never)]
    fn sort_by(&mut self, address: impl Fn(&Run) -> u64) -> Result<(), Refusal> {
        const { assert!(LIST_MAX <= 1 << PLACE_BITS) };
        let Scratch { runs, keys, .. } = self;
        keys.clear();
        for (place, run) in runs.iter().enumerate() {
            // As many keys as runs have room.
            let _ = keys.try_push((address(run) / PAGE_SIZE) << PLACE_BITS | place as u64);
        }
        keys.sort_unstable();
        let place_of = |key: u64| (key & ((1 << PLACE_BITS) - 1)) as usize;
        // The end of what came before: a block may cover several later pages.
        let mut end = (0, 0);
        let mut bad: Option<u16> = None;
        for &key in keys.iter() {
            let Some(run) = runs.get(place_of(key)) else { continue };
            let at = address(run);
            if at < end.0 {
                let later = run.index.max(end.1);
                bad = Some(bad.map_or(later, |b| b.min(later)));
            }
            if at + run.size() > end.0 {
                end = (at + run.size(), run.index);
            }
        }
        if let Some(index) = bad {
            return Err(Refusal { error: Error::Overlap, index: index as u64, detail: 0 });
        }
        // Each run goes to its place along the cycles of the permutation; a key
        // that is done names its own place.
        for start in 0..keys.len() {
            let mut to = start;
            loop {
                let from = place_of(keys[to]);
                keys[to] = to as u64;
                if from == start {
                    break;
                }
                runs.swap(to, from);
                to = from;
            }
        }
        Ok(())
    }
}

/// Keeps the refusal of the entry that stands first in the caller's list.
#[cold]
fn note_first(first: &mut Option<Refusal>, refusal: Refusal) {
    if first.is_none_or(|f| refusal.index < f.index) {
        *first = Some(refusal);
    }
}

/// Checks all runs and returns the refusal of the entry that stands first in
/// the caller's list.
#[inline(always)]
pub(super) fn check_all<'a>(
    runs: impl Iterator<Item = &'a mut Run>,
    mut check: impl FnMut(&mut Run) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut first: Option<Refusal> = None;
    for run in runs {
        if let Err(refusal) = check(run) {
            note_first(&mut first, refusal);
        }
    }
    first.map_or(Ok(()), Err)
}
