// SPDX-License-Identifier: MIT OR Apache-2.0

//! The lists of pages that memory calls work on.
//!
//! A list is copied out of its caller's memory once, checked for what needs no
//! lock, and from then on the copy is all that the call knows. It is made of
//! [extents](Extent): entries for pages that lie side by side, in memory and in the
//! guest, are worked on together.

use escrow_abi::{Error, FrameState, LIST_MAX, MemEntry, ORDER_BLOCK, ORDER_PAGE, Rights};

use super::extents::{Extent, Scratch};
use super::portions::{Looks, Part};
use super::{Hypervisor, Refusal};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK, PhysAddr};
use crate::machine::Machine;
use crate::stage2::{GuestMap, Room};

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
    pub const UNMAP: Form = Form { guests: false, reports: true, blocks: true };
    pub const TAKE: Form = Form { guests: false, reports: false, blocks: true };
}

/// An entry that is valid, as far as that can be said without a lock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// The caller's own address of the page or block.
    pub at: u64,
    /// Address in the VM that gets it, with the rights in the low bits; 0 if none does.
    pub guest: u64,
    /// It is a block, not a page.
    pub is_block: bool,
}

impl Entry {
    /// What the four words of an entry say, to a call whose guests have addresses of so
    /// many bits. The one place that knows which words are valid.
    #[inline(always)]
    pub fn decode(form: Form, bits: u8, words: [u64; 4]) -> Result<Entry, (Error, u64)> {
        let [frame, guest, references, users] = words;
        // `refcount` and `safe`, which must be equal, are the halves of one word.
        let excess =
            if form.reports { references ^ references.rotate_left(32) } else { references };
        let odd_guest = if form.guests {
            // Bit 0 is the right to read, which must be set.
            (guest & (PAGE_SIZE - 1) & !6) ^ 1 | guest >> bits
        } else {
            guest
        };
        let order = frame % PAGE_SIZE;
        if excess | users | odd_guest | order != 0 {
            check_unusual(form, bits, words)?;
        }
        Ok(Entry { at: frame - order, guest, is_block: order == ORDER_BLOCK as u64 })
    }

    /// What the entries behind this one in a host's list say if they prolong its extent;
    /// `words` are its own.
    #[inline(always)]
    fn next(&self, form: Form, words: [u64; 4]) -> Expected {
        let behind = |at: u64| PAGES_PER_BLOCK as u64 - 1 - at / PAGE_SIZE % PAGES_PER_BLOCK as u64;
        let step = if form.guests { PAGE_SIZE } else { 0 };
        let left = match self.is_block {
            true => 0,
            false if form.guests => behind(self.at).min(behind(self.guest)),
            false => behind(self.at),
        };
        let [frame, guest, references, users] = words;
        Expected { words: [frame + PAGE_SIZE, guest + step, references, users], step, left }
    }
}

/// What an entry has to say to prolong the extent before it. It differs from an entry that
/// [`Entry::decode`] has accepted in nothing but the addresses, and those are of the page
/// behind it in the same block: so it is valid as well, and need not be decoded.
#[derive(Clone, Copy, Default)]
pub(super) struct Expected {
    words: [u64; 4],
    /// From one guest address to the next.
    step: u64,
    /// How many there can be, until a block ends.
    left: u64,
}

impl Expected {
    /// How many of these prolong it, one behind the other.
    #[inline(always)]
    pub fn take(&mut self, entries: &[[u64; 4]]) -> u64 {
        let mut taken = 0;
        for &words in entries.iter().take(self.left as usize) {
            // Compare word by word: `!=` on arrays calls memcmp.
            let [frame, guest, references, users] = words;
            let [next_frame, next_guest, next_references, next_users] = self.words;
            let addresses = (frame ^ next_frame) | (guest ^ next_guest);
            if addresses | (references ^ next_references) | (users ^ next_users) != 0 {
                break;
            }
            self.words[0] += PAGE_SIZE;
            self.words[1] += self.step;
            taken += 1;
        }
        self.left -= taken;
        taken
    }

    /// Whether an entry is for the page that could prolong it: a look that costs less than
    /// [`Expected::take`].
    #[inline(always)]
    fn is_near(&self, words: [u64; 4]) -> bool {
        self.left != 0 && words[0] == self.words[0]
    }

    /// Has it expect the references of an entry that was accepted; whether the entry
    /// prolongs the extent, and has other references than those before.
    #[inline(always)]
    fn turn_to(&mut self, words: [u64; 4]) -> bool {
        let [frame, guest, references, users] = words;
        let [next_frame, next_guest, next_references, next_users] = self.words;
        let other = self.left != 0
            && (frame, guest, users) == (next_frame, next_guest, next_users)
            && references != next_references;
        if other {
            self.words[2] = references;
        }
        other
    }
}

/// Looks at an entry that is for a block, or invalid.
#[cold]
fn check_unusual(form: Form, bits: u8, words: [u64; 4]) -> Result<(), (Error, u64)> {
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
        if guest >> bits != 0 {
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

/// Where a list is.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    /// The caller's address of it.
    pub at: u64,
    /// Entries.
    pub count: u64,
    /// `x7`, the caller's word: see [`List::done`].
    pub progress: u64,
}

/// In `x7`, the bits below the first of these count the entries that are done; those up to the
/// second the looks that were made while none was ([`Looks`]); and those from it on the pages
/// of the entries that are done that turned out to be broken.
const LOOKED_SHIFT: u32 = 16;
const BROKEN_SHIFT: u32 = 32;

impl List {
    /// One entry, in registers ([`Reader::Registers`]).
    pub const OF_ONE: List = List { at: 0, count: 1, progress: 0 };

    /// How many entries are done.
    #[inline(always)]
    pub fn done(self) -> u64 {
        self.progress as u16 as u64
    }

    /// How many looks were made.
    #[inline(always)]
    pub fn looked(self) -> u64 {
        (self.progress >> LOOKED_SHIFT) as u16 as u64
    }

    /// How many pages of those turned out to be broken.
    #[inline(always)]
    pub fn broken(self) -> u64 {
        self.progress >> BROKEN_SHIFT
    }

    /// The word for `x7`, from the three counts.
    pub const fn progress(done: u64, looked: u64, broken: u64) -> u64 {
        broken << BROKEN_SHIFT | looked << LOOKED_SHIFT | done
    }
}

/// Where a call's list comes from.
#[derive(Clone, Copy)]
pub(super) enum Reader<'a> {
    Host,
    /// The host, whose one entry is in registers.
    Registers([u64; 4]),
    /// A guest, whose VM is locked.
    Guest(&'a GuestMap),
}

const ENTRY_SIZE: u64 = size_of::<MemEntry>() as u64;
/// Entries in a page of a list.
pub(super) const ENTRIES_PER_PAGE: u64 = PAGE_SIZE / ENTRY_SIZE;

impl<M: Machine> Hypervisor<M> {
    /// Copies and checks the entries of a list that a part of its call is about.
    #[inline(always)]
    pub(super) fn read_list(
        &self,
        scratch: &mut Scratch,
        reader: Reader<'_>,
        form: Form,
        list: List,
        part: Part,
    ) -> Result<(), Refusal> {
        let List { at, count, progress } = list;
        if progress != 0 && (list.done() + list.looked() == 0 || list.done() >= count) {
            return Err(Error::InvalidArgument.into());
        }
        if count.wrapping_sub(1) >= LIST_MAX as u64 {
            return Err(Error::InvalidSize.into());
        }
        if !at.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Misaligned.into());
        }
        if at.checked_add(count * ENTRY_SIZE).is_none() {
            return Err(Error::AddressOverflow.into());
        }
        scratch.begin(part);
        let mut index = part.first();
        let mut next = Expected::default();
        while index < count && !scratch.is_full() {
            let page = (at + index * ENTRY_SIZE) & !(PAGE_SIZE - 1);
            let end = count.min((index / ENTRIES_PER_PAGE + 1) * ENTRIES_PER_PAGE);
            let copied = match reader {
                Reader::Host => self.copy_from_host(scratch, PhysAddr(page), (index, end))?,
                Reader::Registers(words) => scratch.take_entry(words),
                Reader::Guest(map) => {
                    let inside = page < map.end();
                    let frame = inside.then(|| map.frame(&self.machine, Ipa(page))).flatten();
                    let frame = frame.filter(|(_, leaf)| leaf.entry.is_valid());
                    let (frame, _) = frame.ok_or(Error::InvalidAddress)?;
                    scratch.lies_in(frame);
                    // The page stays mapped for the guest while the VM's lock is held.
                    self.copy(scratch, frame, (index, end))
                }
            };
            self.take_entries(scratch, reader, form, (index, copied), &mut next)?;
            if index + (copied as u64) < end && !scratch.is_full() {
                let index = index + copied as u64;
                return Err(Refusal { index, ..Error::BrokenMemory.into() });
            }
            index = end;
        }
        Ok(())
    }

    /// Copies entries out of a page of a host's list. Returns how many it could read.
    #[inline(always)]
    fn copy_from_host(
        &self,
        scratch: &mut Scratch,
        page: PhysAddr,
        entries: (u64, u64),
    ) -> Result<usize, Refusal> {
        let block = self.ledger.locate(page).ok_or(Error::InvalidAddress)?;
        scratch.lies_in(page);
        // The page must be the host's while it is read, or it is not read. The host may write
        // to it meanwhile: that harms nobody else.
        let mut copy = || {
            let record = self.ledger.get_in(block, page);
            if !record.host_reaches() {
                return Err(Error::NotOwner);
            }
            if record.is(FrameState::Pinned) {
                // Memory of firmware or of a device: a CPU's read can have side effects.
                return Err(Error::Pinned);
            }
            Ok(self.copy(scratch, page, entries))
        };
        // Read without the block's lock, so that calls with lists in one block do not wait for
        // each other; if the block changed meanwhile, read again under the lock.
        let copied = match block.read(&mut copy) {
            Some(copied) => copied,
            None => {
                block.lock();
                let copied = copy();
                block.unlock();
                // The first copy may have data of a guest that got the page: overwrite it.
                let kept = copied.unwrap_or(0);
                let copies = scratch.copies((entries.1 - entries.0) as usize);
                copies.get_mut(kept..).unwrap_or_default().fill([0; 4]);
                copied
            }
        };
        Ok(copied?)
    }

    /// Copies entries out of a page: from the first of a pair of places up to the second.
    /// Returns how many it could read.
    #[inline(always)]
    fn copy(&self, scratch: &mut Scratch, page: PhysAddr, (first, end): (u64, u64)) -> usize {
        let at = page.add(first % ENTRIES_PER_PAGE * ENTRY_SIZE);
        self.machine.read_entries(at, scratch.copies((end - first) as usize))
    }

    /// Makes extents of entries that were copied, or of as many as the part takes. `first` is
    /// the place of the first in the list.
    #[inline(always)]
    fn take_entries(
        &self,
        scratch: &mut Scratch,
        reader: Reader<'_>,
        form: Form,
        (first, copied): (u64, usize),
        carried: &mut Expected,
    ) -> Result<(), Refusal> {
        let mut next = *carried;
        let mut place = 0;
        while place < copied {
            let words = scratch.entry(place);
            let taken = match next.is_near(words) {
                true => scratch.prolong(place..copied, &mut next),
                false => 0,
            };
            if taken != 0 {
                place += taken;
                continue;
            }
            let index = first + place as u64;
            let refuse = |(error, detail)| Refusal { error, index, detail, done: 0 };
            let entry = Entry::decode(form, self.guest_geometry.ipa_bits, words).map_err(refuse)?;
            if next.turn_to(words) {
                continue;
            }
            let extent = self.extent(reader, entry, index, &mut scratch.looks).map_err(refuse)?;
            if !scratch.push(extent) {
                break;
            }
            next = match reader {
                Reader::Host | Reader::Registers(_) => entry.next(form, words),
                // Pages of a guest need not be in sequence.
                Reader::Guest(_) => Expected::default(),
            };
            place += 1;
        }
        *carried = next;
        Ok(())
    }

    /// The extent that an entry begins.
    #[inline(always)]
    fn extent(
        &self,
        reader: Reader<'_>,
        entry: Entry,
        index: u64,
        looks: &mut Looks,
    ) -> Result<Extent, (Error, u64)> {
        let Entry { at, guest, is_block } = entry;
        let (frame, own) = match reader {
            Reader::Host | Reader::Registers(_) => (PhysAddr(at), Ipa(0)),
            Reader::Guest(map) => {
                let frame = self.resolve(map, Ipa(at), is_block, looks);
                (frame.map_err(|error| (error, 0))?, Ipa(at))
            }
        };
        let block = self.ledger.locate(frame).ok_or((Error::InvalidAddress, 0))?;
        let pages = if is_block { PAGES_PER_BLOCK as u16 } else { 1 };
        let (index, room) = (index as u16, Room::default());
        Ok(Extent { frame, guest, own, block, pages, index, is_block, room })
    }

    /// The frame of a page, or the first of a block, at a guest's own address.
    fn resolve(
        &self,
        map: &GuestMap,
        at: Ipa,
        is_block: bool,
        looks: &mut Looks,
    ) -> Result<PhysAddr, Error> {
        let found = if at.0 < map.end() { map.frame(&self.machine, at) } else { None };
        let (frame, leaf) = found.ok_or(Error::InvalidAddress)?;
        if !is_block || leaf.level == 2 {
            return Ok(frame);
        }
        // A block that is recorded page by page: all pages must be alike. For pages that only
        // the guest has, the ledger knows the guest address.
        let block = self.ledger.locate(frame).ok_or(Error::InvalidAddress)?;
        let record = self.ledger.record_of(block);
        let known = record.is_some_and(|r| r.is(FrameState::Donated) && r.guest() == at);
        let look = || map.leads_to_block(&self.machine, at, frame);
        let adjacent = match frame.is_aligned(BLOCK_SIZE) {
            true => known || looks.make(look).ok_or(Error::Retry)?,
            false => false,
        };
        if adjacent { Ok(frame) } else { Err(Error::InvalidAddress) }
    }
}
