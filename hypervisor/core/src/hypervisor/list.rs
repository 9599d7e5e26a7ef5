// SPDX-License-Identifier: MIT OR Apache-2.0

//! The lists of pages that memory calls work on.
//!
//! A list is copied out of its caller's memory once, checked for what needs no
//! lock, and from then on the copy is all that the call knows. It is made of
//! [extents](Extent): entries for pages that lie side by side, in memory and in the
//! guest, are worked on together.

use escrow_abi::{Error, FrameState, LIST_MAX, MemEntry, ORDER_BLOCK, ORDER_PAGE, Rights};

use super::extents::{Extent, Scratch};
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
const ENTRIES_PER_PAGE: u64 = PAGE_SIZE / ENTRY_SIZE;

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
        // What the next entry would have to say to prolong the last extent.
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
        let block = self.ledger.locate(page).ok_or(Error::InvalidAddress)?;
        // The page must be the host's while it is read; the host itself may
        // still write to it, which harms nobody but the host. What is not the
        // host's is not looked at.
        let mut read = || {
            let record = self.ledger.get_in(block, page);
            if !record.host_reaches() {
                return Err(Error::NotOwner.into());
            }
            if record.is(FrameState::Pinned) {
                // Firmware's or a device's, and some of it must not be read by a CPU.
                return Err(Error::Pinned.into());
            }
            self.read_page(scratch, Reader::Host, form, page, entries, next)
        };
        let result = if locked {
            block.lock();
            let result = read();
            block.unlock();
            Some(result)
        } else {
            block.read(read)
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
            let [frame, guest, references, users] = self
                .machine
                .read_entry(at)
                .map_err(|error| Refusal { error: error.into(), index, detail: 0 })?;
            at = at.add(ENTRY_SIZE);
            let prolongs = (frame, guest) == next
                && !next.0.is_multiple_of(BLOCK_SIZE)
                && (!form.guests || next.1 % BLOCK_SIZE >= PAGE_SIZE)
                && is_clean(form, references, users)
                && matches!(reader, Reader::Host);
            if !(prolongs && scratch.prolong()) {
                let words = [frame, guest, references, users];
                let extent = self
                    .check_entry(reader, form, words, index)
                    .map_err(|(error, detail)| Refusal { error, index, detail })?;
                next = if extent.is_block { (1, 0) } else { (frame, guest) };
                scratch.push(extent);
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
    ) -> Result<Extent, (Error, u64)> {
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
        let block = self.ledger.locate(frame).ok_or((Error::InvalidAddress, 0))?;
        let pages = if is_block { PAGES_PER_BLOCK as u16 } else { 1 };
        Ok(Extent {
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
}

/// Whether the last two words of an entry show no user and are in order.
#[inline(always)]
fn is_clean(form: Form, references: u64, users: u64) -> bool {
    // `refcount` and `safe` are the halves of one word.
    let excess = if form.reports { references ^ references.rotate_left(32) } else { references };
    excess | users == 0
}
