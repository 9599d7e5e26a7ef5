// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls that take a list of pages, in the caller's memory.

use std::collections::BTreeSet;

use escrow_abi::{BLOCK_SIZE, Error, FrameState, MemEntry, PAGE_SIZE, call};
use escrow_spec::{Entry, Refused, Spec, Target, VmId};

use super::super::fake::{ESCROW, LIST};
use super::steps::{BadList, Gift, Taking, To, Who};
use super::world::{GUEST_END, Pair, World, bare, vcpu};
use crate::machine::Machine;

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
        let (real, list) = self.list_call(by.as_ref(), function, Some(handle), entries);
        let spec = list.and_then(|()| {
            let spec = &mut self.spec;
            unless_in_its_pages(spec, apart, |spec| match gift {
                Gift::Share => spec.share(id, target, entries),
                Gift::Lend => spec.lend(id, target, entries),
                Gift::Donate => spec.donate(id, target, entries),
            })
        });
        self.agree(name, by.as_ref(), &real, &spec);
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
        let (real, list) = self.list_call(by.as_ref(), function, None, entries);
        let spec = match taking {
            Taking::Poison if by.is_some() => Err(bare(Error::Unimplemented)),
            taking => list.and_then(|()| {
                unless_in_its_pages(&mut self.spec, apart, |spec| match taking {
                    Taking::Unshare => spec.unshare(id, entries),
                    Taking::Reclaim => spec.reclaim(id, entries),
                    Taking::TakeBack => spec.take_back(id, entries),
                    Taking::Poison => spec.poison(entries),
                })
            }),
        };
        self.agree(name, by.as_ref(), &real, &spec);
    }

    /// Whether a call over a list may lie in the pages that it names, because it takes but
    /// one portion, or does not.
    fn list_is_apart(&self, by: Option<&Pair>, entries: &[MemEntry], contents: bool) -> bool {
        let frames: Vec<_> = match by {
            None => (0..4).map(|n| LIST + n * PAGE_SIZE).collect(),
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

    /// Makes a call with a list in its caller's memory. If that has no room
    /// for it, the second answer is the one that is expected.
    pub(super) fn list_call(
        &mut self,
        by: Option<&Pair>,
        function: u32,
        handle: Option<u64>,
        entries: &[MemEntry],
    ) -> (Result<(), Refused>, Result<(), Refused>) {
        let args = |list: u64| -> Vec<u64> {
            handle.into_iter().chain([list, entries.len() as u64]).collect()
        };
        let Some(pair) = by else {
            // A call with the entry in registers is the same in all that it does. Which pages
            // have it is no matter of chance: a history is to be as it was if it is run again.
            if let ([entry], Some(vm), call::MEM_LEND) = (entries, handle, function)
                && entry.frame & PAGE_SIZE != 0
            {
                return (self.host.lend_one(vm, entry), Ok(()));
            }
            let [list, _] = self.host.list(entries);
            return (self.host.call(function, &args(list)).map(drop), Ok(()));
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
            if seen.state == FrameState::SharedBack && seen.owner == pair.id {
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
