// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which pages a step is about, as things stand when its turn comes.

use escrow_abi::{BLOCK_SIZE, FrameState, LIST_MAX, MemEntry, ORDER_BLOCK, PAGE_SIZE, Rights};
use escrow_spec::{Entry, Event, Frame, Life, Transition, VmId, step};

use super::super::fake::{FREE, METADATA};
use super::steps::{Fault, Pages, Part, Place, Taking, To, VMS, Who, is_of_interest};
use super::world::{Pair, World};

impl World {
    /// A guest that can make a call, `None` inside for the host.
    pub(super) fn caller(&self, who: Who) -> Option<Option<Pair>> {
        match who {
            Who::Host => Some(None),
            Who::Guest(vm) => self.running(vm).map(Some),
        }
    }

    pub(super) fn running(&self, vm: usize) -> Option<Pair> {
        let pair = self.vms[vm].as_ref()?;
        (self.spec.guest(pair.id).life == Life::Started).then(|| pair.clone())
    }

    /// The addresses at which a caller has frames of a kind: pages that tests
    /// are about, or whole blocks.
    pub(super) fn all_of(&self, who: Who, blocks: bool, kind: impl Fn(Frame) -> bool) -> Vec<u64> {
        let mut found = Vec::new();
        // A block is one if all of its pages are, and they come in order.
        let mut run = 0;
        let mut look = |at: u64, frame: Frame| {
            if blocks {
                run = if at.is_multiple_of(BLOCK_SIZE) { 0 } else { run };
                run += u64::from(kind(frame));
                if run == BLOCK_SIZE / PAGE_SIZE {
                    found.push(at & !(BLOCK_SIZE - 1));
                    run = 0;
                }
            } else if (is_of_interest(at) || frame.state == FrameState::Metadata) && kind(frame) {
                found.push(at);
            }
        };
        match who {
            // Not the pages that hold the host's lists.
            Who::Host => {
                self.spec.frames().filter(|(at, _)| *at >= METADATA).for_each(|(at, f)| look(at, f))
            }
            Who::Guest(vm) => {
                let Some(pair) = &self.vms[vm] else { return found };
                for (at, entry) in self.spec.guest(pair.id).entries() {
                    if let Some(frame) = entry.frame() {
                        look(at, self.spec.frame(frame));
                    }
                }
            }
        }
        found
    }

    /// The pages and blocks, by the caller's addresses, that `pages` means for a
    /// call that is about frames of a kind.
    pub(super) fn choose(
        &self,
        who: Who,
        pages: Pages,
        kind: impl Fn(Frame) -> bool,
    ) -> Vec<(u64, u32)> {
        let base = if who == Who::Host { FREE } else { 0 };
        match pages {
            Pages::Run(at, n) => (0..n).map(|n| (base + at + n * PAGE_SIZE, 0)).collect(),
            Pages::Block(at) => vec![(base + at, ORDER_BLOCK)],
            Pages::Known(n, pages) => {
                let blocks = pages == 0;
                let (order, pages) = if blocks { (ORDER_BLOCK, 1) } else { (0, pages) };
                // What guests have of each other is rare, and found every other time.
                let between = |frame: Frame| {
                    frame.owner != VmId::HOST && frame.borrower.is_some() && kind(frame)
                };
                let mut known = Vec::new();
                if n.is_multiple_of(2) {
                    known = self.all_of(who, blocks, between);
                }
                if known.is_empty() {
                    known = self.all_of(who, blocks, &kind);
                }
                let Some(n) = n.checked_rem(known.len()) else { return Vec::new() };
                (0..pages).map(|page| (known[n] + page * PAGE_SIZE, order)).collect()
            }
        }
    }

    pub(super) fn first_of(
        &self,
        who: Who,
        pages: Pages,
        kind: impl Fn(Frame) -> bool,
    ) -> Option<u64> {
        self.choose(who, pages, kind).first().map(|&(at, _)| at)
    }

    pub(super) fn id_of(&self, who: Who) -> Option<VmId> {
        match who {
            Who::Host => Some(VmId::HOST),
            Who::Guest(vm) => self.running(vm).map(|pair| pair.id),
        }
    }

    /// Entries that give pages away.
    pub(super) fn entries(&self, who: Who, to: To, part: &Part) -> Vec<MemEntry> {
        let Some(id) = self.id_of(who) else { return Vec::new() };
        let own = |frame: Frame| {
            frame.owner == id && matches!(frame.state, FrameState::Owned | FrameState::Donated)
        };
        let pages = self.choose(who, part.pages, own);
        let Some(&(first, _)) = pages.first() else { return Vec::new() };
        let returned = who != Who::Host && matches!(to, To::Host);
        let entry = |&(at, order): &(u64, u32)| {
            let guest = match part.place {
                _ if returned => return MemEntry::new(at, order, 0, Rights::NONE),
                Place::Same if who == Who::Host => at.wrapping_sub(FREE) % (1 << 32),
                Place::Same => at,
                Place::At(place) => place + (at - first),
            };
            MemEntry::new(at, order, guest, part.rights)
        };
        pages.iter().map(entry).collect()
    }

    /// Pages that a call may take.
    pub(super) fn takeable(&self, who: Who, taking: Taking, pages: Pages) -> Vec<MemEntry> {
        let Some(by) = self.id_of(who) else { return Vec::new() };
        let transition = match taking {
            Taking::Unshare => Transition::Unshare(0),
            Taking::Reclaim => Transition::Reclaim(0),
            Taking::TakeBack => Transition::TakeBack,
            Taking::Poison => Transition::Poison,
        };
        let fits = |frame| {
            let event = Event { by, transition, living: self.spec.living(frame) };
            frame != Frame::HOME && step(frame, event).is_ok()
        };
        let pages = self.choose(who, pages, fits).into_iter();
        pages.map(|(at, order)| MemEntry::new(at, order, 0, Rights::NONE)).collect()
    }

    /// A guest that has something to take from another; that is rare, so every
    /// other time it is its turn.
    pub(super) fn taker(&self, taking: Taking, parts: &[Pages]) -> Option<Who> {
        let Some(Pages::Known(n, pages)) = parts.first() else { return None };
        let some = |who: &Who| !self.takeable(*who, taking, Pages::Known(0, *pages)).is_empty();
        let mut guests = (0..VMS).map(Who::Guest);
        guests.find(|who| n.is_multiple_of(2) && some(who))
    }

    /// A running guest and a range of its addresses, mostly one that it borrows
    /// in a state.
    pub(super) fn range(
        &self,
        vm: usize,
        (pages, size): (Pages, u64),
        kind: impl Fn(Frame) -> bool,
    ) -> Option<(Pair, u64, u64)> {
        let found = (vm..VMS).chain(0..vm).find_map(|vm| {
            let pair = self.running(vm)?;
            // At times one that it owns, and that another one borrows.
            let owns = matches!(pages, Pages::Known(n, _) if n % 4 == 1);
            let its = |frame: Frame| if owns { Some(frame.owner) } else { frame.borrower };
            let borrows = |frame: Frame| its(frame) == Some(pair.id) && kind(frame);
            let at = self.first_of(Who::Guest(vm), pages, borrows)?;
            Some((pair, at))
        });
        let (pair, at) = found?;
        // Whether what was opened to its owner is in that one's map shows in
        // which error such a call ends in.
        let unsettled = |at| match self.spec.guest(pair.id).entry(at) {
            Entry::Away(frame, _) => self.spec.frame(frame).state == FrameState::SharedBack,
            _ => false,
        };
        let mut pages = (at..).step_by(PAGE_SIZE as usize).take(size.min(512) as usize);
        if pages.any(unsettled) { None } else { Some((pair, at, size * PAGE_SIZE)) }
    }
}

/// The caller, or the one that stands in for it because it has nothing that the
/// call can be about.
pub(super) fn first_with_some(
    who: Who,
    entries: impl Fn(Who) -> Vec<MemEntry>,
) -> Option<(Who, Vec<MemEntry>)> {
    let others = (0..VMS).map(Who::Guest).chain([Who::Host]);
    let mut found = [who].into_iter().chain(others).map(|who| (who, entries(who)));
    found.find(|(_, entries)| !entries.is_empty())
}

pub(super) fn spoilt(mut entries: Vec<MemEntry>, fault: Option<(usize, Fault)>) -> Vec<MemEntry> {
    entries.truncate(LIST_MAX);
    if let (Some((at, fault)), false) = (fault, entries.is_empty()) {
        let at = at % entries.len();
        fault.spoil(&mut entries[at]);
    }
    entries
}
