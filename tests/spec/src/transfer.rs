// SPDX-License-Identifier: MIT OR Apache-2.0

//! The calls that take a list of an owner's pages: giving and taking.

use alloc::vec::Vec;

use escrow_abi::{BLOCK_SIZE, Error, MemEntry, PAGE_SIZE, call};

use crate::Refused;
use crate::frame::{Event, Frame, Transition, VmId, step};
use crate::list::{Form, Piece, no_overlap};
use crate::machine::{Spec, Target};
use crate::map::{Entry, Tables};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gift {
    Share,
    Lend,
    Donate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Taking {
    Unshare,
    Reclaim,
    TakeBack,
    Poison,
}

/// The calls. `by` is the host or a guest that runs.
impl Spec {
    /// MEM_SHARE.
    pub fn share(&mut self, by: VmId, to: Target, entries: &[MemEntry]) -> Result<(), Refused> {
        self.attempt(|spec| spec.give(by, Gift::Share, to, entries))
    }

    /// MEM_LEND.
    pub fn lend(&mut self, by: VmId, to: Target, entries: &[MemEntry]) -> Result<(), Refused> {
        self.attempt(|spec| spec.give(by, Gift::Lend, to, entries))
    }

    /// MEM_DONATE.
    pub fn donate(&mut self, by: VmId, to: Target, entries: &[MemEntry]) -> Result<(), Refused> {
        self.attempt(|spec| spec.give(by, Gift::Donate, to, entries))
    }

    /// MEM_UNSHARE.
    pub fn unshare(&mut self, by: VmId, entries: &[MemEntry]) -> Result<(), Refused> {
        self.attempt(|spec| spec.take(by, Taking::Unshare, entries))
    }

    /// MEM_RECLAIM.
    pub fn reclaim(&mut self, by: VmId, entries: &[MemEntry]) -> Result<(), Refused> {
        self.attempt(|spec| spec.take(by, Taking::Reclaim, entries))
    }

    /// MEM_TAKE_BACK.
    pub fn take_back(&mut self, by: VmId, entries: &[MemEntry]) -> Result<(), Refused> {
        self.attempt(|spec| spec.take(by, Taking::TakeBack, entries))
    }

    /// MEM_POISON, by the host.
    pub fn poison(&mut self, entries: &[MemEntry]) -> Result<(), Refused> {
        self.attempt(|spec| spec.take(VmId::HOST, Taking::Poison, entries))
    }
}

impl Spec {
    fn give(
        &mut self,
        by: VmId,
        gift: Gift,
        target: Target,
        entries: &[MemEntry],
    ) -> Result<(), Refused> {
        let returned = gift == Gift::Donate && by != VmId::HOST && target == Target::Host;
        let form = match gift {
            _ if returned => Form::RETURN,
            Gift::Share => Form::SHARE,
            Gift::Lend => Form::LEND,
            Gift::Donate => Form::DONATE,
        };
        let pieces = self.pieces(by, entries, form)?;
        let to = if returned {
            VmId::HOST
        } else {
            no_overlap(&pieces, |piece| piece.guest)?;
            self.enter(by, gift, target, &pieces)?
        };
        no_overlap(&pieces, |piece| piece.frame)?;
        for piece in &pieces {
            self.must_be_alike(piece)?;
            for page in piece.pages() {
                let at = piece.guest + page;
                let transition = match gift {
                    Gift::Share => Transition::Share(to, at),
                    Gift::Lend => Transition::Lend(to, at),
                    Gift::Donate => Transition::Donate(to, at),
                };
                self.apply(piece.frame + page, by, transition).map_err(|r| piece.refuse(r))?;
            }
        }
        // A guest keeps its own addresses of what it lends, for the day when
        // that comes home, and loses those of what it gives away.
        match gift {
            Gift::Share => Ok(()),
            Gift::Lend => self.change_own(by, &pieces, Entry::away),
            Gift::Donate => self.change_own(by, &pieces, |_| Entry::Nothing),
        }
    }

    /// Pages enter the map of the VM that gets them, if its holder may put them
    /// there and there is room.
    fn enter(
        &mut self,
        by: VmId,
        gift: Gift,
        target: Target,
        pieces: &[Piece],
    ) -> Result<VmId, Refused> {
        let right = match gift {
            Gift::Share => call::RIGHT_SHARE,
            Gift::Lend => call::RIGHT_LEND,
            Gift::Donate => call::RIGHT_DONATE,
        };
        let (to, window) = match target {
            _ if by == VmId::HOST => (self.named(target)?, 0..self.guest_end),
            Target::Host => return Err((Error::Denied, 0, 0)),
            Target::Capability(which) => self.held(by, which, right)?,
            Target::WrongType => return Err((Error::HandleType, 0, 0)),
            Target::Vm(_) | Target::Null => return Err((Error::HandleNull, 0, 0)),
        };
        self.guest(to).must_live()?;
        for piece in pieces {
            if piece.guest < window.start || window.end - piece.guest.min(window.end) < piece.size {
                return Err(piece.refuse((Error::Denied, 0)));
            }
        }
        for piece in pieces {
            if !self.guest(to).map.is_free(piece.guest, piece.size) {
                return Err(piece.refuse((Error::GuestMapped, 0)));
            }
        }
        let mut tables = Tables::default();
        for &Piece { guest, size, frame, rights, .. } in pieces {
            let change = self.guest_mut(to).map.map(guest, size, frame, rights);
            tables.needed += change.needed;
            tables.freed += change.freed;
        }
        self.pay(to, tables, 0)?;
        Ok(to)
    }

    fn take(&mut self, by: VmId, taking: Taking, entries: &[MemEntry]) -> Result<(), Refused> {
        let form = if taking == Taking::TakeBack { Form::RETURN } else { Form::TAKE };
        let pieces = self.pieces(by, entries, form)?;
        no_overlap(&pieces, |piece| piece.frame)?;
        let old = self.may_take(by, taking, &pieces)?;
        for piece in &pieces {
            for page in piece.pages() {
                let at = piece.frame + page;
                self.count_metadata_home(self.frame(at));
                self.apply(at, by, taking.of(piece.own + page)).map_err(|r| piece.refuse(r))?;
            }
        }
        // The borrower loses them, but for what it only closes again.
        let to = if taking == Taking::Poison { Entry::Poisoned } else { Entry::Nothing };
        let borrower = old[0].borrower.filter(|&vm| self.is_alive(vm));
        if let (Some(vm), true) = (borrower, taking != Taking::TakeBack) {
            let map = &mut self.guest_mut(vm).map;
            let pages = pieces.iter().zip(&old);
            let needed = pages.map(|(piece, old)| map.change(old.guest, piece.size, |_| to)).sum();
            self.pay(vm, Tables { needed, freed: 0 }, 0)?;
        }
        match taking {
            Taking::TakeBack => self.change_own(by, &pieces, Entry::away),
            Taking::Unshare | Taking::Reclaim => self.change_own(by, &pieces, Entry::back),
            Taking::Poison => self.mark_own(old[0].owner, &pieces),
        }
    }

    /// An owner that is a guest has its addresses of broken memory taken.
    fn mark_own(&mut self, owner: VmId, pieces: &[Piece]) -> Result<(), Refused> {
        if owner == VmId::HOST || !self.is_alive(owner) {
            return Ok(());
        }
        let map = &mut self.guest_mut(owner).map;
        let mut needed = 0;
        for piece in pieces {
            let its = |frame: u64| frame.wrapping_sub(piece.frame) < piece.size;
            let found = map.entries().filter(|(_, entry)| entry.frame().is_some_and(its));
            let found: Vec<_> = found.map(|(at, _)| at).collect();
            // One entry, if that is what the owner has and all of it is broken.
            let whole = piece.size == BLOCK_SIZE && map.is_block(found[0]);
            for &at in if whole { &found[..1] } else { &found[..] } {
                let size = if whole { BLOCK_SIZE } else { PAGE_SIZE };
                needed += map.change(at, size, |_| Entry::Poisoned);
            }
        }
        self.pay(owner, Tables { needed, freed: 0 }, 1)
    }

    /// What the first frame of each piece is, if all may be taken in one call:
    /// of one owner and one borrower.
    fn may_take(&self, by: VmId, taking: Taking, pieces: &[Piece]) -> Result<Vec<Frame>, Refused> {
        let first = self.frame(pieces[0].frame);
        let frames = pieces.iter().map(|piece| {
            self.must_be_alike(piece)?;
            let frame = self.frame(piece.frame);
            // One call is about one borrower, so it is the first one's life
            // that counts.
            let living = self.living(Frame { borrower: first.borrower, ..frame });
            let event = Event { by, transition: taking.of(piece.own), living };
            step(frame, event).map_err(|refusal| piece.refuse(refusal))?;
            if (frame.owner, frame.borrower) != (first.owner, first.borrower) {
                return Err(piece.refuse((Error::MixedVms, 0)));
            }
            Ok(frame)
        });
        frames.collect()
    }

    /// All frames of a block that is named as one must be alike: in one state,
    /// of one owner and one borrower, at adjacent guest addresses.
    fn must_be_alike(&self, piece: &Piece) -> Result<(), Refused> {
        let first = self.frame(piece.frame);
        let alike = |page| self.frame(piece.frame + page) == first.next(page);
        if piece.size == BLOCK_SIZE && !piece.pages().all(alike) {
            return Err(piece.refuse((Error::WrongState, 0)));
        }
        Ok(())
    }

    /// Changes a calling guest's own entries for the pieces that it named.
    fn change_own(
        &mut self,
        by: VmId,
        pieces: &[Piece],
        to: impl Fn(Entry) -> Entry,
    ) -> Result<(), Refused> {
        if by == VmId::HOST {
            return Ok(());
        }
        let map = &mut self.guest_mut(by).map;
        let needed = pieces.iter().map(|piece| map.change(piece.own, piece.size, &to)).sum();
        self.pay(by, Tables { needed, freed: 0 }, 1)
    }

    fn count_metadata_home(&mut self, frame: Frame) {
        if let (escrow_abi::FrameState::Metadata, Some(vm)) = (frame.state, frame.borrower) {
            self.guest_mut(vm).metadata -= 1;
        }
    }
}

impl Taking {
    /// The transition, for an owner that has the frame at an address.
    fn of(self, at: u64) -> Transition {
        match self {
            Taking::Unshare => Transition::Unshare(at),
            Taking::Reclaim => Transition::Reclaim(at),
            Taking::TakeBack => Transition::TakeBack,
            Taking::Poison => Transition::Poison,
        }
    }
}
