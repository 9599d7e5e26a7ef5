// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists: what an entry must look like, and what it names.

use alloc::vec::Vec;

use escrow_abi::{
    BLOCK_SIZE, Error, LIST_MAX, MemEntry, ORDER_BLOCK, ORDER_PAGE, PAGE_SIZE, Rights,
};

use crate::machine::Spec;
use crate::{Refused, VmId};

/// What the entries of a call carry.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    /// Where the VM will have the page, and its rights; zero otherwise.
    pub maps: bool,
    /// The owner's report; zero otherwise.
    pub reports: bool,
    /// Blocks as well as pages.
    pub blocks: bool,
}

impl Form {
    pub const SHARE: Form = Form { maps: true, reports: false, blocks: true };
    pub const LEND: Form = Form { maps: true, reports: true, blocks: true };
    /// Donation to a guest.
    pub const DONATE: Form = Form::LEND;
    /// Donation to the host, and taking back: the pages go nowhere new.
    pub const RETURN: Form = Form { maps: false, reports: true, blocks: true };
    /// Donation to EL2.
    pub const EQUIP: Form = Form { maps: false, reports: true, blocks: false };
    /// Taking home, and poisoning.
    pub const TAKE: Form = Form { maps: false, reports: false, blocks: true };
}

/// An entry, taken apart.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub index: u64,
    /// The first frame.
    pub frame: u64,
    pub size: u64,
    /// Where a guest that makes the call has it; 0 for the host.
    pub own: u64,
    /// Where the VM that gets it will have it.
    pub guest: u64,
    pub rights: Rights,
}

impl Piece {
    /// How far into the piece each of its pages is.
    pub fn pages(self) -> impl Iterator<Item = u64> {
        (0..self.size).step_by(PAGE_SIZE as usize)
    }

    pub fn refuse(self, (error, detail): (Error, u64)) -> Refused {
        (error, self.index, detail)
    }
}

impl Spec {
    /// Takes a list apart; refuses the first entry that is wrong by itself.
    pub(crate) fn pieces(
        &self,
        by: VmId,
        entries: &[MemEntry],
        form: Form,
    ) -> Result<Vec<Piece>, Refused> {
        if entries.is_empty() || entries.len() > LIST_MAX {
            return Err((Error::InvalidSize, 0, 0));
        }
        (0..).zip(entries).map(|(index, entry)| self.piece(by, index, entry, form)).collect()
    }

    fn piece(&self, by: VmId, index: u64, entry: &MemEntry, form: Form) -> Result<Piece, Refused> {
        let refuse = |error, detail| Err((error, index, detail));
        let size = match (entry.frame % PAGE_SIZE) as u32 {
            ORDER_PAGE => PAGE_SIZE,
            ORDER_BLOCK if form.blocks => BLOCK_SIZE,
            _ => return refuse(Error::InvalidArgument, 0),
        };
        let (at, guest) = (entry.frame & !(PAGE_SIZE - 1), entry.guest & !(PAGE_SIZE - 1));
        let rights = Rights::from_bits(entry.guest % PAGE_SIZE);
        let rights = rights.ok_or((Error::InvalidArgument, index, 0))?;
        if entry.reserved != 0 {
            return refuse(Error::InvalidArgument, 0);
        }
        if !at.is_multiple_of(size) || !guest.is_multiple_of(size) {
            return refuse(Error::Misaligned, 0);
        }
        if form.maps {
            if !rights.read() {
                return refuse(Error::InvalidArgument, 0);
            }
            if guest >= self.guest_end {
                return refuse(Error::AddressOverflow, 0);
            }
        } else if entry.guest != 0 {
            return refuse(Error::InvalidArgument, 0);
        }
        if form.reports {
            if entry.excess() != 0 {
                return refuse(Error::Excess, entry.excess() as u64);
            }
            if entry.accessible != 0 {
                return refuse(Error::Accessible, entry.accessible.into());
            }
        } else if (entry.refcount, entry.safe, entry.accessible) != (0, 0, 0) {
            return refuse(Error::InvalidArgument, 0);
        }
        let frame = self.resolve(by, at, size).ok_or((Error::InvalidAddress, index, 0))?;
        let own = if by == VmId::HOST { 0 } else { at };
        Ok(Piece { index, frame, size, own, guest, rights })
    }

    /// The frames that a caller names by its own address: the host by the
    /// physical one, a guest by one that leads to a frame of its map, also
    /// one that it has lent. Whose it is, the ledger will say.
    fn resolve(&self, by: VmId, at: u64, size: u64) -> Option<u64> {
        if by == VmId::HOST {
            return self.ram.contains(&at).then_some(at);
        }
        let map = &self.guest(by).map;
        if size == BLOCK_SIZE { map.block(at) } else { map.get(at).frame() }
    }
}

/// Refuses pieces that overlap in their frames or guest addresses. Which of
/// them is named is not specified.
pub(crate) fn no_overlap(pieces: &[Piece], base: impl Fn(&Piece) -> u64) -> Result<(), Refused> {
    let mut order: Vec<_> = pieces.iter().collect();
    order.sort_by_key(|piece| base(piece));
    for pair in order.windows(2) {
        if base(pair[1]) < base(pair[0]) + pair[0].size {
            return Err(pair[1].refuse((Error::Overlap, 0)));
        }
    }
    Ok(())
}
