// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine: all frames, all guests, and the calls that are not about
//! lists.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use escrow_abi::{
    BLOCK_SIZE, CREATE_BLOCKS_MAX, Error, FrameState, MODIFY_MAX, MemEntry, PAGE_SIZE, Rights, call,
};

use crate::Refused;
use crate::capability::CapId;
use crate::frame::{Contents, Event, Frame, Living, Refusal, Transition, VmId, contents, step};
use crate::guest::Guest;
use crate::list::{Form, Piece, no_overlap};
use crate::map::{Entry, Tables};

/// What a caller names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The host, by a guest.
    Host,
    /// A VM, by the host.
    Vm(VmId),
    /// A VM, by a guest.
    Capability(CapId),
    /// No handle.
    Null,
    /// A handle of something that is no VM.
    WrongType,
}

/// What becomes of a guest's `MEM_ASK_BACK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The owner has access to none of it.
    Done,
    /// The host is asked; the answer is the one that the same question has
    /// when the guest runs again, with `Busy` in place of this one.
    HostIsAsked,
}

/// A frame and what can be told of what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    frame: Frame,
    zero: bool,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Spec {
    pub(crate) ram: Range<u64>,
    pub(crate) guest_end: u64,
    /// By block; a block that is not in it is the host's, with who knows what
    /// in it.
    blocks: BTreeMap<u64, Arc<Vec<Cell>>>,
    /// `VmId` 1 is the first. A guest stays here when it is dead.
    guests: Vec<Arc<Guest>>,
}

impl Spec {
    /// A machine with this RAM, whose guests have addresses below `guest_end`.
    pub fn new(ram: Range<u64>, guest_end: u64) -> Spec {
        Spec { ram, guest_end, blocks: BTreeMap::new(), guests: Vec::new() }
    }

    /// Takes RAM from the host, or pins it.
    pub fn set_aside(&mut self, range: Range<u64>, state: FrameState) {
        for at in range.step_by(PAGE_SIZE as usize) {
            self.set(at, Frame { state, ..Frame::HOME });
        }
    }

    /// Somebody wrote to a frame, or is known to have left it zeroed.
    pub fn write(&mut self, at: u64, zero: bool) {
        self.cell(at).zero = zero;
    }

    // Looking.

    /// A frame.
    pub fn frame(&self, at: u64) -> Frame {
        self.blocks.get(&(at / BLOCK_SIZE)).map_or(Frame::HOME, |block| block[page(at)].frame)
    }

    /// How many frames, from one on to the end of its block, are in the same state and have
    /// the same owner.
    pub fn held_alike(&self, at: u64) -> u64 {
        let held = |at| {
            let frame = self.frame(at);
            (frame.state, frame.owner)
        };
        let end = (at | (BLOCK_SIZE - 1)) + 1;
        let frames = (at..end).step_by(PAGE_SIZE as usize);
        frames.take_while(|&other| held(other) == held(at)).count() as u64
    }

    /// Whether a frame is all zeros.
    pub fn is_zero(&self, at: u64) -> bool {
        self.blocks.get(&(at / BLOCK_SIZE)).is_some_and(|block| block[page(at)].zero)
    }

    /// A guest.
    pub fn guest(&self, vm: VmId) -> &Guest {
        &self.guests[vm.0 as usize - 1]
    }

    /// Whether a VM lives.
    pub fn is_alive(&self, vm: VmId) -> bool {
        vm == VmId::HOST || self.guest(vm).is_alive()
    }

    /// All frames that are not, or were not always, the host's alone.
    pub fn frames(&self) -> impl Iterator<Item = (u64, Frame)> + '_ {
        self.blocks.iter().flat_map(|(&block, cells)| {
            let at = (0..).map(move |n| block * BLOCK_SIZE + n * PAGE_SIZE);
            at.zip(cells.iter().map(|cell| cell.frame))
        })
    }

    /// Whether nothing happened to a block of frames since `then`. (Something may
    /// have, and been undone, if this says no.)
    pub fn same_block(&self, then: &Spec, at: u64) -> bool {
        match (self.blocks.get(&(at / BLOCK_SIZE)), then.blocks.get(&(at / BLOCK_SIZE))) {
            (Some(now), Some(then)) => Arc::ptr_eq(now, then),
            (now, then) => now.is_none() && then.is_none(),
        }
    }

    /// The same for a guest.
    pub fn same_guest(&self, then: &Spec, vm: VmId) -> bool {
        let then = then.guests.get(vm.0 as usize - 1);
        then.is_some_and(|then| Arc::ptr_eq(&self.guests[vm.0 as usize - 1], then))
    }

    /// The frames of a block, if not all are the host's.
    pub fn block(&self, at: u64) -> Option<impl Iterator<Item = Frame> + '_> {
        self.blocks.get(&(at / BLOCK_SIZE)).map(|cells| cells.iter().map(|cell| cell.frame))
    }

    /// Pages in each state but the first, which is all that are in no other.
    pub fn counts(&self) -> [u64; FrameState::ALL.len()] {
        let mut counts = [0; FrameState::ALL.len()];
        for (_, frame) in self.frames().filter(|(_, frame)| *frame != Frame::HOME) {
            counts[frame.state as usize] += 1;
        }
        counts
    }

    /// Pages that a living guest reaches: what it borrows, and its own as long
    /// as it has them to itself.
    pub fn reachable(&self, vm: VmId) -> u64 {
        let has = |frame: Frame| match frame.state {
            FrameState::Metadata => false,
            FrameState::Donated => frame.owner == vm,
            _ => frame.borrower == Some(vm),
        };
        self.frames().filter(|(_, frame)| has(*frame)).count() as u64
    }

    /// Guests that exist: alive, or with a page that is not home yet.
    pub fn existing(&self) -> u64 {
        let mut exist: Vec<_> = self.guests.iter().map(|guest| guest.is_alive()).collect();
        for (_, frame) in self.frames() {
            for vm in [Some(frame.owner), frame.borrower].into_iter().flatten() {
                if vm != VmId::HOST {
                    exist[vm.0 as usize - 1] = true;
                }
            }
        }
        exist.into_iter().filter(|exists| *exists).count() as u64
    }

    /// Whether maps and ledger tell the same story: every frame is mapped where
    /// it says, by those who reach it and by nobody else.
    pub fn is_consistent(&self) -> bool {
        let vms = (1..).map(VmId).zip(&self.guests);
        let entries = vms.flat_map(|(vm, guest)| guest.entries().map(move |e| (vm, e)));
        let mut expected = 0;
        for (at, frame) in self.frames().filter(|(_, frame)| frame.state != FrameState::Metadata) {
            if let Some(borrower) = frame.borrower.filter(|&vm| self.is_alive(vm)) {
                expected += 1;
                let entry = self.guest(borrower).entry(frame.guest);
                if !matches!(entry, Entry::Valid(to, _) if to == at) {
                    return false;
                }
            }
            if frame.owner != VmId::HOST && self.is_alive(frame.owner) {
                expected += 1;
            }
        }
        let mut found = 0;
        for (vm, (guest, entry)) in entries {
            let Some(at) = entry.frame() else { continue };
            let frame = self.frame(at);
            if self.guest(vm).time == Some(at) {
                // Metadata that its guest reads, and nobody else.
                let its = frame.state == FrameState::Metadata && frame.borrower == Some(vm);
                if !its || entry != Entry::Valid(at, Rights::READ) {
                    return false;
                }
                continue;
            }
            found += 1;
            let borrows = frame.borrower == Some(vm) && frame.guest == guest;
            let owns =
                frame.owner == vm && (frame.state != FrameState::Donated || frame.guest == guest);
            let reaches = matches!(entry, Entry::Valid(..));
            // A page that was opened to its owner may or may not be in its map.
            let told = frame.is_reached_by(vm) == reaches || frame.state == FrameState::SharedBack;
            if !(borrows || owns) || !told {
                return false;
            }
        }
        found == expected
    }

    // The host's calls about VMs.

    /// VM_CREATE.
    pub fn create(&mut self, entries: &[MemEntry]) -> Result<VmId, Refused> {
        let pieces = self.pieces(VmId::HOST, entries, Form::EQUIP)?;
        no_overlap(&pieces, |piece| piece.frame)?;
        let mut blocks: Vec<_> = pieces.iter().map(|piece| piece.frame / BLOCK_SIZE).collect();
        blocks.sort_unstable();
        blocks.dedup();
        if blocks.len() > CREATE_BLOCKS_MAX {
            return Err((Error::InvalidSize, 0, 0));
        }
        self.attempt(|spec| {
            spec.guests.push(Arc::new(Guest::new(pieces.len() as u64)));
            let vm = VmId(spec.guests.len() as u16);
            spec.equip(vm, &pieces)?;
            Ok(vm)
        })
    }

    /// VM_TOP_UP.
    pub fn top_up(&mut self, vm: Target, entries: &[MemEntry]) -> Result<(), Refused> {
        let pieces = self.pieces(VmId::HOST, entries, Form::EQUIP)?;
        let vm = self.named(vm)?;
        self.guest(vm).must_live()?;
        self.attempt(|spec| {
            spec.equip(vm, &pieces)?;
            let guest = spec.guest_mut(vm);
            guest.metadata += pieces.len() as u64;
            guest.pool += pieces.len() as u64;
            Ok(())
        })
    }

    fn equip(&mut self, vm: VmId, pieces: &[Piece]) -> Result<(), Refused> {
        no_overlap(pieces, |piece| piece.frame)?;
        for piece in pieces {
            self.apply(piece.frame, VmId::HOST, Transition::Equip(vm))
                .map_err(|refusal| piece.refuse(refusal))?;
        }
        Ok(())
    }

    /// VM_START.
    pub fn start(&mut self, vm: VmId) -> Result<(), Refused> {
        self.guest_mut(vm).start()
    }

    /// VM_DESTROY, while no vCPU runs. The frames keep their records until the
    /// host, who is the owner or the heir, takes each home.
    pub fn destroy(&mut self, vm: VmId) -> Result<(), Refused> {
        self.guest_mut(vm).destroy()
    }

    // A guest's calls about its own addresses.

    /// MODIFY_PAGES.
    pub fn modify(&mut self, by: VmId, at: u64, size: u64, flags: u64) -> Result<(), Error> {
        let known = call::MODIFY_UNLOCK | call::MODIFY_SANITIZE | call::MODIFY_FLUSH;
        if flags == 0 || flags & !known != 0 {
            return Err(Error::InvalidArgument);
        }
        self.guest_range(at, size, MODIFY_MAX)?;
        let sanitize = flags & call::MODIFY_SANITIZE != 0;
        self.attempt(|spec| {
            for frame in spec.mapped(by, at, size) {
                let frame = frame?;
                let before = spec.frame(frame);
                spec.apply(frame, by, Transition::Unlock { sanitize }).map_err(|(e, _)| e)?;
                if flags & call::MODIFY_UNLOCK == 0 {
                    // Cleaned, perhaps zeroed, and still the guest's.
                    spec.set(frame, before);
                }
            }
            Ok(())
        })
    }

    /// MEM_SHARE_BACK.
    pub fn share_back(&mut self, by: VmId, at: u64, size: u64) -> Result<(), Error> {
        self.guest_range(at, size, MODIFY_MAX)?;
        self.attempt(|spec| {
            for frame in spec.mapped(by, at, size) {
                spec.apply(frame?, by, Transition::ShareBack).map_err(|(error, _)| error)?;
            }
            Ok(())
        })
    }

    /// MEM_ASK_BACK.
    pub fn ask_back(&self, by: VmId, at: u64, size: u64) -> Result<Asked, Error> {
        self.guest_range(at, size, MODIFY_MAX)?;
        let frames: Vec<_> = self.mapped(by, at, size).collect();
        let mut opened = Vec::new();
        for frame in frames {
            let frame = self.frame(frame?);
            match frame.state {
                _ if frame.borrower != Some(by) => return Err(Error::Denied),
                FrameState::Lent => {}
                FrameState::SharedBack => opened.push(frame.owner),
                _ => return Err(Error::Denied),
            }
        }
        match opened {
            owners if owners.is_empty() => Ok(Asked::Done),
            owners if owners.contains(&VmId::HOST) => Ok(Asked::HostIsAsked),
            _ => Err(Error::Busy),
        }
    }

    /// A guest touches a page of its own that it has lent; whether it reaches
    /// it then. What the borrower opened enters its map now: all of a block
    /// that is one entry and that was opened as a whole, or else the page, for
    /// which its pool must have a table if there is none.
    pub fn touch(&mut self, by: VmId, at: u64) -> bool {
        let opened = |page| {
            let frame = self.guest(by).entry(page).frame();
            frame.is_some_and(|frame| self.frame(frame).state == FrameState::SharedBack)
        };
        let base = at & !(BLOCK_SIZE - 1);
        let mut block = (base..base + BLOCK_SIZE).step_by(PAGE_SIZE as usize);
        let (from, size) = if self.guest(by).map.is_block(at) && block.all(opened) {
            (base, BLOCK_SIZE)
        } else {
            (at, PAGE_SIZE)
        };
        if !opened(at) {
            return false;
        }
        let touched = self.attempt(|spec| {
            let needed = spec.guest_mut(by).map.change(from, size, Entry::back);
            spec.pay(by, Tables { needed, freed: 0 }, 1)
        });
        touched.is_ok()
    }

    /// The frames behind a range of a guest's addresses.
    fn mapped(
        &self,
        vm: VmId,
        at: u64,
        size: u64,
    ) -> impl Iterator<Item = Result<u64, Error>> + use<> {
        let guest = self.guests[vm.0 as usize - 1].clone();
        (at..at + size).step_by(PAGE_SIZE as usize).map(move |at| match guest.entry(at) {
            Entry::Valid(frame, _) => Ok(frame),
            _ => Err(Error::InvalidAddress),
        })
    }

    // What calls are made of.

    /// Runs a call on a copy of the machine, which takes its place if the call
    /// succeeds.
    pub(crate) fn attempt<R, E>(
        &mut self,
        call: impl FnOnce(&mut Spec) -> Result<R, E>,
    ) -> Result<R, E> {
        let mut copy = self.clone();
        let result = call(&mut copy)?;
        *self = copy;
        Ok(result)
    }

    /// A range of guest addresses, `most` bytes at the most.
    pub(crate) fn guest_range(&self, at: u64, size: u64, most: u64) -> Result<Range<u64>, Error> {
        if !at.is_multiple_of(PAGE_SIZE) || !size.is_multiple_of(PAGE_SIZE) {
            return Err(Error::Misaligned);
        }
        if size == 0 || size > most {
            return Err(Error::InvalidSize);
        }
        let end = at.checked_add(size).filter(|&end| end <= self.guest_end);
        Ok(at..end.ok_or(Error::AddressOverflow)?)
    }

    /// The guest that the host names, dead or alive.
    pub(crate) fn named(&self, target: Target) -> Result<VmId, Refused> {
        match target {
            Target::Vm(vm) => Ok(vm),
            Target::WrongType => Err((Error::HandleType, 0, 0)),
            Target::Host | Target::Capability(_) | Target::Null => Err((Error::HandleNull, 0, 0)),
        }
    }

    pub(crate) fn guest_mut(&mut self, vm: VmId) -> &mut Guest {
        Arc::make_mut(&mut self.guests[vm.0 as usize - 1])
    }

    /// Tables that a VM needs for a change; see [`Guest::pay`].
    pub(crate) fn pay(&mut self, vm: VmId, tables: Tables, who: u64) -> Result<(), Refused> {
        self.guest_mut(vm).pay(tables, who)
    }

    /// Which of the VMs of a frame live.
    pub fn living(&self, frame: Frame) -> Living {
        let borrower = frame.borrower.is_none_or(|vm| self.is_alive(vm));
        Living { owner: self.is_alive(frame.owner), borrower }
    }

    /// Takes one frame through a transition.
    pub(crate) fn apply(
        &mut self,
        at: u64,
        by: VmId,
        transition: Transition,
    ) -> Result<(), Refusal> {
        let frame = self.frame(at);
        let event = Event { by, transition, living: self.living(frame) };
        self.set(at, step(frame, event)?);
        if contents(frame, event) == Contents::Zeroed {
            self.cell(at).zero = true;
        }
        Ok(())
    }

    fn set(&mut self, at: u64, frame: Frame) {
        self.cell(at).frame = frame;
    }

    fn cell(&mut self, at: u64) -> &mut Cell {
        let unknown = Cell { frame: Frame::HOME, zero: false };
        let block = self.blocks.entry(at / BLOCK_SIZE);
        let cells = block.or_insert_with(|| Arc::new(vec![unknown; 512]));
        &mut Arc::make_mut(cells)[page(at)]
    }
}

fn page(at: u64) -> usize {
    (at % BLOCK_SIZE / PAGE_SIZE) as usize
}
