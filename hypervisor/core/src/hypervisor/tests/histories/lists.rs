// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls that take a list of pages, in the caller's memory.

use std::collections::BTreeSet;

use escrow_abi::{BLOCK_SIZE, Error, FrameState, MemEntry, PAGE_SIZE, call};
use escrow_spec::{Entry, Refused, Spec, Target, VmId};

use super::super::fake::{ESCROW, LIST};
use super::steps::{BadList, Gift, Taking, To, Who};
use super::world::{GUEST_END, Pair, World, bare, vcpu};
use crate::machine::Machine;

/// The name, in tallies, of calls that others came between the portions of.
pub const MET: &str = "a call that others came between";
/// The name of those that would have laid memory over an interrupt controller.
pub const FRAMES: &str = "memory over frames";

impl World {
    pub(super) fn give(&mut self, who: Who, gift: Gift, to: To, entries: &[MemEntry]) {
        let Some(by) = self.caller(who) else { return };
        let (handle, target) = match &by {
            None => self.host_target(to),
            Some(pair) => self.guest_target(to, pair),
        };
        let (name, function) = match gift {
            Gift::Share => ("share", call::MEM_SHARE),
            Gift::Lend => ("lend", call::MEM_LEND),
            Gift::Donate => ("donate", call::MEM_DONATE),
        };
        let id = by.as_ref().map_or(VmId::HOST, |pair| pair.id);
        let home = gift == Gift::Donate && target == Target::Host;
        let contents = home || gift != Gift::Share && self.host.escrow.machine.needs_clean();
        let apart = self.list_is_apart(by.as_ref(), entries, contents);
        let call = |spec: &mut Spec, entries: &[MemEntry]| match gift {
            Gift::Share => spec.share(id, target, entries),
            Gift::Lend => spec.lend(id, target, entries),
            Gift::Donate => spec.donate(id, target, entries),
        };
        let Some(pair) = by else {
            let there: Vec<_> = match target {
                Target::Vm(id) => {
                    let at = entries.iter().map(|entry| entry.guest & !(PAGE_SIZE - 1));
                    at.map(|at| self.spec.guest(id).entry(at)).collect()
                }
                _ => Vec::new(),
            };
            let told = self.host_list_call(name, (function, Some(handle)), entries, apart, call);
            if let Some((Error::GuestMapped, index, _)) = told
                && there.get(index as usize) == Some(&Entry::Nothing)
            {
                self.tally.call(FRAMES, false, told.map(|told| told.0));
            }
            return;
        };
        let (real, list) = self.list_call(&pair, function, Some(handle), entries);
        let spec = &mut self.spec;
        let spec = list.and_then(|()| unless_in_its_pages(spec, apart, |spec| call(spec, entries)));
        self.agree(name, Some(&pair), &real, &spec);
    }

    pub(super) fn take(&mut self, who: Who, taking: Taking, entries: &[MemEntry]) {
        let Some(by) = self.caller(who) else { return };
        let (name, function) = match taking {
            Taking::Unshare => ("unshare", call::MEM_UNSHARE),
            Taking::Reclaim => ("reclaim", call::MEM_RECLAIM),
            Taking::TakeBack => ("take back", call::MEM_TAKE_BACK),
            Taking::Poison => ("poison", call::MEM_POISON),
        };
        let id = by.as_ref().map_or(VmId::HOST, |pair| pair.id);
        let contents = taking != Taking::Poison;
        let apart = self.list_is_apart(by.as_ref(), entries, contents);
        let call = |spec: &mut Spec, entries: &[MemEntry]| match taking {
            Taking::Unshare => spec.unshare(id, entries),
            Taking::Reclaim => spec.reclaim(id, entries),
            Taking::TakeBack => spec.take_back(id, entries),
            Taking::Poison => spec.poison(entries),
        };
        let Some(pair) = by else {
            self.host_list_call(name, (function, None), entries, apart, call);
            return;
        };
        let (real, list) = self.list_call(&pair, function, None, entries);
        let spec = match taking {
            Taking::Poison => Err(bare(Error::Unimplemented)),
            _ => list.and_then(|()| {
                unless_in_its_pages(&mut self.spec, apart, |spec| call(spec, entries))
            }),
        };
        self.agree(name, Some(&pair), &real, &spec);
    }

    /// Whether a call over a list may lie in the pages that it names, because it takes but
    /// one portion, or does not.
    fn list_is_apart(&self, by: Option<&Pair>, entries: &[MemEntry], contents: bool) -> bool {
        let frames: Vec<_> = match by {
            None => (0..4).map(|n| self.host.list_at + n * PAGE_SIZE).collect(),
            Some(pair) => match self.room_for_list(pair, entries.len()) {
                Some((_, frames)) => frames,
                None => return true,
            },
        };
        let (mut pages, mut blocks, mut apart) = (0, BTreeSet::new(), true);
        for entry in entries {
            let (at, order) = (entry.frame & !(PAGE_SIZE - 1), entry.frame % PAGE_SIZE);
            let size = if order == 9 { BLOCK_SIZE } else { PAGE_SIZE };
            let frame = match by {
                None => Some(at),
                Some(pair) => self.spec.guest(pair.id).entry(at).frame(),
            };
            // What is not there is refused before.
            let Some(frame) = frame else { return true };
            pages += size / PAGE_SIZE;
            blocks.insert(frame / BLOCK_SIZE);
            apart &= !frames.iter().any(|&page| page.wrapping_sub(frame) < size);
        }
        let is_long = contents && pages > 512 || blocks.len() > 16;
        apart || !is_long
    }

    /// Makes a call of the host's with a list, in which other steps may come between two
    /// portions. `call` is what the specification says of some of the entries.
    ///
    /// All of the call is looked at when it begins: it is refused then, or not for anything
    /// that was so at that time. Each portion is a call of its own. Returns why the specification
    /// refuses all of it.
    fn host_list_call(
        &mut self,
        name: &'static str,
        (function, handle): (u32, Option<u64>),
        entries: &[MemEntry],
        apart: bool,
        call: impl Fn(&mut Spec, &[MemEntry]) -> Result<(), Refused>,
    ) -> Option<Refused> {
        let whole = unless_in_its_pages(&mut self.spec.clone(), apart, |spec| call(spec, entries));
        let args: Vec<_> = handle.into_iter().chain(self.host.list(entries)).collect();
        let mut x = [0; 8];
        x[0] = function.into();
        x[1..=args.len()].copy_from_slice(&args);
        if let ([entry], Some(vm), call::MEM_LEND) = (entries, handle, function)
            && entry.frame & PAGE_SIZE != 0
        {
            // A call with the entry in registers is the same in all that it does. Which pages
            // have it is no matter of chance: a history is to be as it was if it is run again.
            let [frame, guest, references, users] = entry.words();
            x = [call::MEM_LEND_ONE.into(), vm, frame, guest, references, users, 0, 0];
        }
        let mut done = 0;
        let portion = |spec: &mut Spec, done: &mut usize, to: usize| {
            let these = &entries[*done..to];
            if !these.is_empty() {
                assert_eq!(call(spec, these), Ok(()), "{name}: entries {done} to {to} are done");
            }
            *done = to;
        };
        let mut came_between = false;
        while !self.host.makes_call(&mut x) {
            assert_eq!(whole, Ok(()), "{name} has begun");
            portion(&mut self.spec, &mut done, x[7] as u16 as usize);
            came_between |= self.comes_between();
        }
        let real = match Error::from_register(x[0]) {
            None => Ok(()),
            Some(error) => Err((error, x[1], x[2])),
        };
        if !came_between {
            if whole.is_ok() && real.is_ok() {
                portion(&mut self.spec, &mut done, entries.len());
            }
            self.agree(name, None, &real, &whole);
            return whole.err();
        }
        let Err((error, index, detail)) = real else {
            portion(&mut self.spec, &mut done, entries.len());
            self.tally.call(MET, false, None);
            return None;
        };
        // Some portion behind what is done cannot be made: not the whole rest, perhaps.
        portion(&mut self.spec, &mut done, x[3] as u32 as usize);
        let ends = index.max(done as u64) as usize + 1..=entries.len();
        let refused = |end: usize| match call(&mut self.spec.clone(), &entries[done..end]) {
            Ok(()) => false,
            Err(told) => {
                // Indices count in the whole list, if they are any.
                (told.0, told.2) == (error, detail)
                    && (told.1 == index || told.1 + done as u64 == index)
            }
        };
        assert!(
            ends.clone().rev().any(refused),
            "{name}: {real:x?} behind {done} of {}: {:x?}",
            entries.len(),
            call(&mut self.spec.clone(), &entries[done..])
        );
        self.tally.call(MET, false, Some(error));
        None
    }

    /// Makes a guest's call with a list in its memory. If that has no room
    /// for it, the second answer is the one that is expected.
    pub(super) fn list_call(
        &mut self,
        pair: &Pair,
        function: u32,
        handle: Option<u64>,
        entries: &[MemEntry],
    ) -> (Result<(), Refused>, Result<(), Refused>) {
        let args = |list: u64| -> Vec<u64> {
            handle.into_iter().chain([list, entries.len() as u64]).collect()
        };
        let room = self.room_for_list(pair, entries.len());
        let (list, there) = match &room {
            Some((at, _)) => (*at, Ok(())),
            None if entries.is_empty() => (GUEST_END / 2, Ok(())),
            None => (GUEST_END / 2, Err(bare(Error::InvalidAddress))),
        };
        if let Some((_, frames)) = room {
            for &frame in &frames {
                self.host.escrow.machine.scribble(frame);
                self.spec.write(frame, false);
            }
            self.host.write_list(entries, |page| frames[page as usize]);
        }
        (self.host.guest_call(vcpu(pair), function, &args(list)).map(drop), there)
    }

    /// Pages of a guest's that a list goes into, side by side in its space, and
    /// the frames that they are.
    pub(super) fn room_for_list(&self, pair: &Pair, entries: usize) -> Option<(u64, Vec<u64>)> {
        let pages = (entries * 32).div_ceil(PAGE_SIZE as usize);
        let mut run = (0, Vec::new());
        for (at, entry) in self.spec.guest(pair.id).entries() {
            let Entry::Valid(frame, _) = entry else { continue };
            // What was opened to its owner may not be in its map yet.
            let seen = self.spec.frame(frame);
            let unsettled = seen.state == FrameState::SharedBack && seen.owner == pair.id;
            // EL2 writes to the page of its stolen time as soon as the guest runs.
            if unsettled || seen.state == FrameState::Metadata {
                continue;
            }
            if run.0 + run.1.len() as u64 * PAGE_SIZE != at {
                run = (at, Vec::new());
            }
            run.1.push(frame);
            if run.1.len() == pages {
                return Some(run);
            }
        }
        None
    }

    pub(super) fn bad_list(&mut self, who: Who, gift: Gift, to: To, bad: BadList) {
        let Some(by) = self.caller(who) else { return };
        let function = match gift {
            Gift::Share => call::MEM_SHARE,
            Gift::Lend => call::MEM_LEND,
            Gift::Donate => call::MEM_DONATE,
        };
        let handle = match &by {
            None => self.host_target(to).0,
            Some(pair) => self.guest_target(to, pair).0,
        };
        let host = by.is_none();
        let list = if host { LIST } else { 0 };
        let (args, error) = match bad {
            BadList::Reserved => (vec![handle, list, 1, 1], Error::InvalidArgument),
            BadList::Empty => (vec![handle, list, 0], Error::InvalidSize),
            BadList::TooLong => (vec![handle, list, 513], Error::InvalidSize),
            BadList::Misaligned => (vec![handle, list + 8, 1], Error::Misaligned),
            BadList::Overflow => (vec![handle, !0xfff, 512], Error::AddressOverflow),
            BadList::NotThere if host => (vec![handle, ESCROW.base.0, 1], Error::NotOwner),
            BadList::NotThere => (vec![handle, GUEST_END, 1], Error::InvalidAddress),
        };
        let real = match &by {
            None => self.host.call(function, &args).map(drop),
            Some(pair) => self.host.guest_call(vcpu(pair), function, &args).map(drop),
        };
        self.agree("bad list", by.as_ref(), &real, &Err::<(), _>(bare(error)));
    }
}

/// Makes a call, which is refused, if by nothing else, because its list lies in the pages
/// that it names.
fn unless_in_its_pages(
    spec: &mut Spec,
    apart: bool,
    call: impl FnOnce(&mut Spec) -> Result<(), Refused>,
) -> Result<(), Refused> {
    if apart {
        return call(spec);
    }
    call(&mut spec.clone()).and(Err(bare(Error::Overlap)))
}
