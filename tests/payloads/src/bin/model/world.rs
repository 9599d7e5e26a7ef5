// SPDX-License-Identifier: MIT OR Apache-2.0

//! One CPU's world: its memory, its VMs, and the specification of both.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, Error, FrameState, MemEntry, PAGE_SIZE, call};
use escrow_payloads::host::{Lists, frame, poke};
use escrow_payloads::hvc::{self, Answer};
use escrow_payloads::random::Random;
use escrow_payloads::spoil::Elsewhere;
use escrow_payloads::{Outcome, check_eq, cpus, fail};
use escrow_spec::{Frame, Refused, Spec, VmId};

use crate::member::Member;
use crate::{BLOCKS, SUPPLIES};

/// What a CPU has to itself.
pub struct Place {
    pub lists: Lists,
    /// [`BLOCKS`] blocks.
    pub blocks: u64,
    /// Pages of a block of which other CPUs have others.
    pub part: u64,
    /// [`SUPPLIES`] pages for VMs.
    pub supplies: u64,
    /// All RAM of the machine.
    pub ram: Range<u64>,
}

/// Pages that are used of the common block.
pub const PART: u64 = 24;
/// VMs at a time.
pub const MEMBERS: usize = 3;
/// Where the word is by which a page is told from others.
pub const TAG: u64 = 0x20;
/// Guest addresses end here.
const GUEST_END: u64 = 1 << 39;
/// Calls between two looks at everything, if the CPU is alone.
const LOOK: u64 = 64;

/// The world.
pub struct World<'a> {
    pub place: Place,
    pub elsewhere: &'a Elsewhere,
    pub random: Random,
    pub spec: Spec,
    pub members: ArrayVec<Member, MEMBERS>,
    /// The tag of each page that is not all zeros.
    pub tags: BTreeMap<u64, u64>,
    next_tag: u64,
    pub done: u64,
    pub refused: u64,
}

impl<'a> World<'a> {
    pub fn new(place: Place, elsewhere: &'a Elsewhere, seed: u64) -> Outcome<World<'a>> {
        let mut spec = Spec::new(place.ram.clone(), GUEST_END);
        // Lists name the first block of each at the most.
        for range in &elsewhere.escrow {
            for at in [range.start, range.end - BLOCK_SIZE] {
                let block = at & !(BLOCK_SIZE - 1);
                spec.set_aside(block..block + BLOCK_SIZE, FrameState::Hypervisor);
            }
        }
        let mut world = World {
            place,
            elsewhere,
            random: Random::new(seed),
            spec,
            members: ArrayVec::new(),
            tags: BTreeMap::new(),
            next_tag: seed << 32,
            done: 0,
            refused: 0,
        };
        let pages: Vec<u64> = world.pages().collect();
        for at in pages {
            world.mark(at);
        }
        Ok(world)
    }

    /// All memory that lists are about.
    fn own(&self) -> [Range<u64>; 3] {
        let Place { blocks, part, supplies, .. } = self.place;
        [(blocks, BLOCKS * 512), (part, PART), (supplies, SUPPLIES)]
            .map(|(at, pages)| at..at + pages * PAGE_SIZE)
    }

    /// All its pages.
    pub fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        self.own().into_iter().flat_map(|range| range.step_by(PAGE_SIZE as usize))
    }

    /// How many pages are this CPU's from one of them on: of those behind, which other CPUs
    /// change, the specification does not know.
    pub fn own_pages_from(&self, at: u64) -> u64 {
        let range = self.own().into_iter().find(|range| range.contains(&at));
        range.map_or(0, |range| (range.end - at) / PAGE_SIZE)
    }

    /// A number that no page has had as a tag.
    pub fn new_tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag
    }

    /// The host writes a new tag to a page that it reaches.
    pub fn mark(&mut self, at: u64) {
        let tag = self.new_tag();
        poke(at + TAG, tag);
        self.tags.insert(at, tag);
        self.spec.write(at, false);
    }

    /// What a page has at [`TAG`], if that is known.
    pub fn tag(&self, at: u64) -> Option<u64> {
        if self.spec.is_zero(at) { Some(0) } else { self.tags.get(&at).copied() }
    }

    /// Escrow's answer is the specification's.
    pub fn agree<A, B>(
        &mut self,
        what: &str,
        real: Result<A, Refused>,
        spec: &Result<B, Refused>,
    ) -> Outcome {
        // Which of two that overlap is named is not specified.
        let essence = |refused: &Refused| match refused.0 {
            Error::Overlap => (Error::Overlap, 0, 0),
            _ => *refused,
        };
        let real = real.as_ref().err().map(essence);
        let spec = spec.as_ref().err().map(essence);
        check_eq!(real, spec, "{what}, call {}", self.done + self.refused);
        if real.is_some() {
            self.refused += 1;
        } else {
            self.done += 1;
        }
        Ok(())
    }

    /// Makes a call of the host's about a list.
    pub fn list_call(&self, function: u32, vm: Option<u64>, list: &[MemEntry]) -> Answered {
        let [at, count] = self.place.lists.put(list);
        refused(match vm {
            Some(vm) => hvc::call(function, &[vm, at, count]),
            None => hvc::call(function, &[at, count]),
        })
    }

    /// Pages of the supplies that are at home.
    pub fn supplies(&self, count: u64) -> Option<ArrayVec<u64, 16>> {
        let range = (0..SUPPLIES).map(|n| self.place.supplies + n * PAGE_SIZE);
        let mut found: ArrayVec<u64, 16> = ArrayVec::new();
        for at in range.filter(|&at| self.spec.frame(at) == Frame::HOME) {
            found.push(at);
            if found.len() as u64 == count {
                return Some(found);
            }
        }
        None
    }

    /// Brings home what dead VMs have.
    pub fn bring_home(&mut self) -> Outcome {
        let mut list: Vec<MemEntry> = Vec::new();
        let mut like = None;
        for at in self.pages().collect::<Vec<u64>>() {
            let record = self.spec.frame(at);
            let has_heir = |vm: VmId| vm == VmId::HOST || !self.spec.is_alive(vm);
            if record == Frame::HOME
                || !has_heir(record.owner)
                || record.borrower.is_some_and(|vm| self.spec.is_alive(vm))
            {
                continue;
            }
            let kind = Some((record.owner, record.borrower));
            if like != kind || list.len() == 200 {
                self.reclaim(&list)?;
                list.clear();
            }
            like = kind;
            list.push(frame(at));
        }
        self.reclaim(&list)
    }

    /// Pages of a VM that is no more: nothing may be in the way.
    fn reclaim(&mut self, list: &[MemEntry]) -> Outcome {
        if list.is_empty() {
            return Ok(());
        }
        let real = self.list_call(call::MEM_RECLAIM, None, list);
        let spec = self.spec.reclaim(VmId::HOST, list);
        if let Err(refused) = spec {
            fail!("{:#x} and others do not come home: {refused:?}", list[0].frame);
        }
        self.agree("MEM_RECLAIM", real, &spec)
    }

    /// So many calls, then everything comes home.
    pub fn live(&mut self, calls: u64) -> Outcome {
        let mut next_look = 0;
        while self.done + self.refused < calls {
            self.step()?;
            if self.done + self.refused >= next_look {
                next_look = self.done + self.refused + LOOK * cpus::count() as u64;
                self.look_at_all()?;
            }
        }
        self.end()
    }

    fn end(&mut self) -> Outcome {
        while let Some(member) = self.members.pop() {
            self.destroy(&member)?;
        }
        self.look_at_all()?;
        self.bring_home()?;
        check_eq!(self.spec.existing(), 0);
        self.look_at_all()
    }
}

/// An answer as the specification has it.
pub type Answered = Result<[u64; 4], Refused>;

/// Turns an answer of Escrow's into one of the specification's.
pub fn refused(answer: Answer) -> Answered {
    answer.map_err(|refusal| (refusal.error, refusal.index, refusal.detail))
}
