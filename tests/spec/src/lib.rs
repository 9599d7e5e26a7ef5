// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the host's memory calls do, as a model that is meant to be read.
//!
//! There are no locks, no tables in memory and no blocks of records here: a
//! frame is an entry in a map, a call is a function that first says why not and
//! then does it. Random histories run on this and on the real ledger, and both
//! must agree on every answer, every frame, every guest address and every page
//! of a VM's pool (`hypervisor/core/src/hypervisor/tests/histories.rs`).
//!
//! The order of the checks is part of the interface, since it decides which
//! error a call with several faults ends in:
//!
//! 1. each entry by itself, in list order: its form, then its report;
//! 2. guest addresses that overlap;
//! 3. the VM;
//! 4. guest addresses that are taken, then tables that are missing;
//! 5. frames that overlap;
//! 6. the ledger, entry by entry.
//!
//! Of the entries that one of these refuses, the first in list order is named.

#![forbid(unsafe_code)]

mod tables;
mod vm;

use std::collections::BTreeMap;

use escrow_abi::{
    BLOCK_SIZE, Error, FrameState, MODIFY_MAX, MemEntry, ORDER_BLOCK, ORDER_PAGE, PAGE_SIZE,
    RECLAIM_MAX, Rights, call,
};

pub use vm::{Life, Vm};

/// A refusal: the error, the entry, the detail.
pub type Refused = (Error, u64, u64);

/// A VM, as long as the specification lives.
pub type VmKey = usize;

/// A frame that is not simply the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away {
    /// Its state.
    pub state: FrameState,
    /// Who has it; nobody for what is pinned or Escrow's.
    pub borrower: Option<VmKey>,
    /// Where the borrower sees it.
    pub guest: u64,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Spec {
    ram: std::ops::Range<u64>,
    guest_end: u64,
    /// All frames but those that are the host's alone.
    away: BTreeMap<u64, Away>,
    vms: Vec<Vm>,
}

/// An entry, taken apart.
#[derive(Clone, Copy)]
struct Piece {
    index: u64,
    frame: u64,
    guest: u64,
    size: u64,
}

impl Piece {
    fn pages(self) -> impl Iterator<Item = (u64, u64)> {
        (0..self.size).step_by(PAGE_SIZE as usize).map(move |at| (self.frame + at, self.guest + at))
    }

    fn refuse(self, error: Error, detail: u64) -> Refused {
        (error, self.index, detail)
    }
}

/// What a list's entries carry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Share,
    Lend,
    Donate,
    Take,
}

impl Spec {
    /// A machine with this RAM, whose guests have addresses below `guest_end`.
    pub fn new(ram: std::ops::Range<u64>, guest_end: u64) -> Spec {
        Spec { ram, guest_end, away: BTreeMap::new(), vms: Vec::new() }
    }

    /// Takes RAM from the host, or pins it.
    pub fn set_aside(&mut self, range: std::ops::Range<u64>, state: FrameState) {
        for at in range.step_by(PAGE_SIZE as usize) {
            self.away.insert(at, Away { state, borrower: None, guest: 0 });
        }
    }

    /// A frame; `None` if it is the host's alone.
    pub fn frame(&self, at: u64) -> Option<Away> {
        self.away.get(&at).copied()
    }

    /// Whether the host reaches a frame.
    pub fn host_reaches(&self, at: u64) -> bool {
        self.frame(at)
            .is_none_or(|away| matches!(away.state, FrameState::Shared | FrameState::Pinned))
    }

    /// A VM.
    pub fn vm(&self, key: VmKey) -> &Vm {
        &self.vms[key]
    }

    /// Pages that a VM borrows.
    pub fn borrowed(&self, key: VmKey) -> u64 {
        let borrows =
            |away: &&Away| away.borrower == Some(key) && away.state != FrameState::Metadata;
        self.away.values().filter(borrows).count() as u64
    }

    /// Pages in a state that is not the host's own.
    pub fn count(&self, state: FrameState) -> u64 {
        self.away.values().filter(|away| away.state == state).count() as u64
    }

    /// The frame that a guest address of a living VM leads to.
    pub fn guest_frame(&self, key: VmKey, guest: u64) -> Option<u64> {
        let reaches = |away: &Away| {
            away.borrower == Some(key) && away.state != FrameState::Metadata && away.guest == guest
        };
        self.away.iter().find(|(_, away)| reaches(away)).map(|(&at, _)| at)
    }

    /// VM_CREATE.
    pub fn create(&mut self, entries: &[MemEntry]) -> Result<VmKey, Refused> {
        let pieces = self.pieces(entries, Form::Donate)?;
        let key = self.vms.len();
        self.give_frames(&pieces, FrameState::Metadata, key)?;
        self.vms.push(Vm::new(entries.len() as u64));
        Ok(key)
    }

    /// VM_TOP_UP.
    pub fn top_up(&mut self, key: VmKey, entries: &[MemEntry]) -> Result<(), Refused> {
        let pieces = self.pieces(entries, Form::Donate)?;
        self.vms[key].must_be_live()?;
        self.give_frames(&pieces, FrameState::Metadata, key)?;
        self.vms[key].metadata += entries.len() as u64;
        self.vms[key].pool += entries.len() as u64;
        Ok(())
    }

    /// VCPU_CREATE of the one vCPU that the histories use.
    pub fn create_vcpu(&mut self, key: VmKey) -> Result<(), Refused> {
        self.vms[key].create_vcpu()
    }

    /// VM_START.
    pub fn start(&mut self, key: VmKey) -> Result<(), Refused> {
        self.vms[key].start()
    }

    /// VM_DESTROY, while no vCPU runs.
    pub fn destroy(&mut self, key: VmKey) -> Result<(), Refused> {
        self.vms[key].must_be_live()?;
        self.vms[key].life = Life::Dead;
        Ok(())
    }

    /// MEM_LEND and MEM_SHARE.
    pub fn give(&mut self, key: VmKey, entries: &[MemEntry], lend: bool) -> Result<(), Refused> {
        let (form, state) =
            if lend { (Form::Lend, FrameState::Lent) } else { (Form::Share, FrameState::Shared) };
        let pieces = self.pieces(entries, form)?;
        no_overlap(&pieces, |piece| piece.guest)?;
        self.vms[key].must_be_live()?;
        let taken = |piece: &Piece| {
            let vm = &self.vms[key];
            // A table without a page in it makes room for a block.
            piece.pages().any(|(_, guest)| vm.tables.maps(guest))
        };
        first(&pieces, |piece| {
            if taken(piece) { Err(piece.refuse(Error::GuestMapped, 0)) } else { Ok(()) }
        })?;
        let mut tables = self.vms[key].tables.clone();
        let mut needed = 0;
        let mut freed = 0;
        for piece in &pieces {
            let change = tables.map(piece.guest, piece.size);
            needed += change.needed;
            freed += change.freed;
        }
        let pool = self.vms[key].pool;
        if needed > pool {
            return Err((Error::NoMemory, 0, needed - pool));
        }
        self.give_frames(&pieces, state, key)?;
        let vm = &mut self.vms[key];
        vm.tables = tables;
        vm.pool = pool - needed + freed;
        Ok(())
    }

    fn give_frames(
        &mut self,
        pieces: &[Piece],
        state: FrameState,
        key: VmKey,
    ) -> Result<(), Refused> {
        no_overlap(pieces, |piece| piece.frame)?;
        first(pieces, |piece| self.is_given(piece))?;
        for piece in pieces {
            for (frame, guest) in piece.pages() {
                let guest = if state == FrameState::Metadata { 0 } else { guest };
                self.away.insert(frame, Away { state, borrower: Some(key), guest });
            }
        }
        Ok(())
    }

    /// A frame that is given away must be the host's alone, all of it.
    fn is_given(&self, piece: &Piece) -> Result<(), Refused> {
        let frames: Vec<_> = piece.pages().map(|(frame, _)| self.frame(frame)).collect();
        if frames.iter().all(Option::is_none) {
            return Ok(());
        }
        let alike = self.alike(piece).ok_or(piece.refuse(Error::WrongState, 0))?;
        Err(match alike.state {
            FrameState::Hypervisor => piece.refuse(Error::NotOwner, 0),
            FrameState::Pinned => piece.refuse(Error::Pinned, 0),
            state => piece.refuse(Error::WrongState, state as u64),
        })
    }

    /// What all frames of a piece are, if they are alike: in one state, with
    /// one borrower, at adjacent guest addresses.
    fn alike(&self, piece: &Piece) -> Option<Away> {
        let home = Away { state: FrameState::Owned, borrower: None, guest: 0 };
        let of = |at| self.frame(at).unwrap_or(home);
        let first = of(piece.frame);
        let moves = first.borrower.is_some() && first.state != FrameState::Metadata;
        let same = |(frame, _): (u64, u64)| {
            let guest = if moves { first.guest + (frame - piece.frame) } else { first.guest };
            of(frame) == Away { guest, ..first }
        };
        piece.pages().all(same).then_some(first)
    }

    /// MEM_UNSHARE.
    pub fn unshare(&mut self, entries: &[MemEntry]) -> Result<(), Refused> {
        self.take(entries, |_, state| match state {
            FrameState::Shared => Ok(()),
            state => Err((Error::WrongState, state as u64)),
        })
    }

    /// MEM_RECLAIM.
    pub fn reclaim(&mut self, entries: &[MemEntry]) -> Result<(), Refused> {
        self.take(entries, |life, state| match state {
            FrameState::UnlockedZeroed | FrameState::UnlockedContents => Ok(()),
            FrameState::Lent | FrameState::Shared | FrameState::Metadata if life == Life::Dead => {
                Ok(())
            }
            FrameState::Lent => Err((Error::Locked, 0)),
            state => Err((Error::WrongState, state as u64)),
        })
    }

    fn take(
        &mut self,
        entries: &[MemEntry],
        allowed: impl Fn(Life, FrameState) -> Result<(), (Error, u64)>,
    ) -> Result<(), Refused> {
        let pieces = self.pieces(entries, Form::Take)?;
        no_overlap(&pieces, |piece| piece.frame)?;
        if pieces.iter().map(|piece| piece.size).sum::<u64>() > RECLAIM_MAX {
            return Err((Error::InvalidSize, 0, 0));
        }
        // One call is about one VM: the first entry's.
        let borrower = |piece: &Piece| self.frame(piece.frame).and_then(|away| away.borrower);
        let key = borrower(&pieces[0]);
        let life = key.map_or(Life::Created, |key| self.vms[key].life);
        first(&pieces, |piece| {
            let away = self.alike(piece).ok_or(piece.refuse(Error::WrongState, 0))?;
            if away.state == FrameState::Hypervisor {
                return Err(piece.refuse(Error::NotOwner, 0));
            }
            // What is allowed depends on the life of the call's VM.
            allowed(life, away.state).map_err(|(error, detail)| piece.refuse(error, detail))?;
            if away.borrower != key { Err(piece.refuse(Error::MixedVms, 0)) } else { Ok(()) }
        })?;
        let Some(key) = key else { return Ok(()) };
        if life != Life::Dead {
            let mut tables = self.vms[key].tables.clone();
            let mut needed = 0;
            for piece in &pieces {
                let guest = self.frame(piece.frame).map_or(0, |away| away.guest);
                needed += tables.unmap(guest, piece.size);
            }
            let vm = &mut self.vms[key];
            if needed > vm.pool {
                return Err((Error::NoMemory, 0, needed - vm.pool));
            }
            vm.tables = tables;
            vm.pool -= needed;
        }
        for piece in &pieces {
            for (frame, _) in piece.pages() {
                self.away.remove(&frame);
            }
        }
        Ok(())
    }

    /// MODIFY_PAGES, by a running guest.
    pub fn modify(&mut self, key: VmKey, guest: u64, size: u64, flags: u64) -> Result<(), Error> {
        let known = call::MODIFY_UNLOCK | call::MODIFY_SANITIZE | call::MODIFY_FLUSH;
        if flags == 0 || flags & !known != 0 {
            return Err(Error::InvalidArgument);
        }
        if !guest.is_multiple_of(PAGE_SIZE) || !size.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Misaligned);
        }
        if size == 0 || size > MODIFY_MAX {
            return Err(Error::InvalidSize);
        }
        if guest.checked_add(size).is_none_or(|end| end > self.guest_end) {
            return Err(Error::AddressOverflow);
        }
        let mut frames = Vec::new();
        for at in (guest..guest + size).step_by(PAGE_SIZE as usize) {
            let frame = self.guest_frame(key, at).ok_or(Error::InvalidAddress)?;
            if self.away[&frame].state == FrameState::Shared {
                return Err(Error::Denied);
            }
            frames.push(frame);
        }
        let state = if flags & call::MODIFY_SANITIZE != 0 {
            FrameState::UnlockedZeroed
        } else {
            FrameState::UnlockedContents
        };
        for frame in frames.iter().filter(|_| flags & call::MODIFY_UNLOCK != 0) {
            if let Some(away) = self.away.get_mut(frame) {
                away.state = state;
            }
        }
        Ok(())
    }

    /// All frames that a VM has, or EL2 for one.
    pub fn given(&self) -> impl Iterator<Item = u64> + '_ {
        self.away.iter().filter(|(_, away)| away.borrower.is_some()).map(|(&at, _)| at)
    }

    /// Takes a list apart; refuses the first entry that is wrong by itself.
    fn pieces(&self, entries: &[MemEntry], form: Form) -> Result<Vec<Piece>, Refused> {
        (0..).zip(entries).map(|(index, entry)| self.piece(index, entry, form)).collect()
    }

    fn piece(&self, index: u64, entry: &MemEntry, form: Form) -> Result<Piece, Refused> {
        let order = (entry.frame % PAGE_SIZE) as u32;
        let size = match order {
            ORDER_PAGE => PAGE_SIZE,
            ORDER_BLOCK if form != Form::Donate => BLOCK_SIZE,
            _ => return Err((Error::InvalidArgument, index, 0)),
        };
        let (frame, guest) = (entry.frame & !(PAGE_SIZE - 1), entry.guest & !(PAGE_SIZE - 1));
        let piece = Piece { index, frame, guest, size };
        let rights = Rights::from_bits(entry.guest % PAGE_SIZE);
        let rights = rights.ok_or(piece.refuse(Error::InvalidArgument, 0))?;
        if entry.reserved != 0 {
            return Err(piece.refuse(Error::InvalidArgument, 0));
        }
        if !frame.is_multiple_of(size) || !guest.is_multiple_of(size) {
            return Err(piece.refuse(Error::Misaligned, 0));
        }
        if matches!(form, Form::Share | Form::Lend) {
            if !rights.read() {
                return Err(piece.refuse(Error::InvalidArgument, 0));
            }
            if guest >= self.guest_end {
                return Err(piece.refuse(Error::AddressOverflow, 0));
            }
        } else if entry.guest != 0 {
            return Err(piece.refuse(Error::InvalidArgument, 0));
        }
        if matches!(form, Form::Lend | Form::Donate) {
            if entry.excess() != 0 {
                return Err(piece.refuse(Error::Excess, entry.excess() as u64));
            }
            if entry.accessible != 0 {
                return Err(piece.refuse(Error::Accessible, entry.accessible.into()));
            }
        } else if (entry.refcount, entry.safe, entry.accessible) != (0, 0, 0) {
            return Err(piece.refuse(Error::InvalidArgument, 0));
        }
        if !self.ram.contains(&frame) {
            return Err(piece.refuse(Error::InvalidAddress, 0));
        }
        Ok(piece)
    }
}

/// Checks all pieces; refuses the first one in list order that is wrong.
fn first(pieces: &[Piece], check: impl Fn(&Piece) -> Result<(), Refused>) -> Result<(), Refused> {
    pieces.iter().try_for_each(check)
}

/// Refuses pieces that overlap in their frames or guest addresses. Which of
/// them is named is not specified.
fn no_overlap(pieces: &[Piece], base: impl Fn(&Piece) -> u64) -> Result<(), Refused> {
    for (n, a) in pieces.iter().enumerate() {
        for b in &pieces[..n] {
            if base(a) < base(b) + b.size && base(b) < base(a) + a.size {
                return Err(a.refuse(Error::Overlap, 0));
            }
        }
    }
    Ok(())
}
