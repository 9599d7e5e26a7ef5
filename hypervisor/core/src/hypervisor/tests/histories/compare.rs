// SPDX-License-Identifier: MIT OR Apache-2.0

//! What both sides hold: the ledger frame by frame, the tables entry by entry
//! as the CPU reads them, counters, pools, contents. And between one step and
//! the next: that no TLB holds what is no longer true.

use std::collections::BTreeMap;
use std::rc::Rc;

use escrow_abi::{BLOCK_SIZE, Error, FrameState, Handle, PAGE_SIZE, Rights, call};
use escrow_spec::{Entry, Frame, Life, Spec, VmId};

use super::super::fake::{FREE, METADATA};
use super::steps::{BLOCKS, pages_of_interest};
use super::world::{GUEST_END, Pair, World};
use crate::addr::{Ipa, PhysAddr};
use crate::ledger::GuestId;
use crate::stage2::{Descriptor, Stage2Context};

/// Bits of a page's or block's descriptor that are not its address, and that
/// do not differ between pages of a VM but for its rights: inner shareable,
/// accessed, normal memory (DDI 0487, D8.3.2).
const COMMON: u64 = 0b1111 << 2 | 0b11 << 8 | 1 << 10;
const NOT_COMMON: u64 = 0x0000_ffff_ffff_f000 | 1 << 54 | 0xf << 55 | 0b11 << 6 | 0b11;

/// Addresses and what they lead to, in ascending order.
type Seen = Vec<(u64, u64)>;

/// What TLBs may hold: what was valid after the last step.
#[derive(Clone, Default)]
pub struct View {
    /// Of the host, by block.
    host: BTreeMap<u64, Rc<Seen>>,
    /// By handle.
    guests: BTreeMap<u64, (Stage2Context, Rc<Seen>)>,
}

/// The blocks that histories touch, in ascending order.
fn blocks() -> impl Iterator<Item = u64> {
    let given = (0..BLOCKS).map(|n| FREE + n * BLOCK_SIZE);
    [METADATA & !(BLOCK_SIZE - 1)].into_iter().chain(given)
}

/// The pages whose contents are looked at.
pub fn sampled() -> impl Iterator<Item = u64> {
    let page = |base| pages_of_interest().map(move |n| base + n * PAGE_SIZE);
    let given = blocks().skip(1).flat_map(page);
    given.chain((0..8).map(|n| METADATA + n * PAGE_SIZE))
}

impl World {
    /// Both hold the same, where something happened since the last time or, if
    /// `all`, everywhere.
    pub fn check(&mut self, all: bool) {
        let then = std::mem::replace(&mut self.checked, self.spec.clone());
        let mut view = self.view.clone();
        for base in blocks() {
            if !self.spec.same_block(&then, base) {
                self.count_frames(&then, base);
            }
            if all || !self.spec.same_block(&then, base) {
                self.check_block(base);
                view.host.insert(base, Rc::new(self.host_view(base)));
            }
        }
        for pair in self.vms.clone().iter().flatten() {
            if all || !self.spec.same_guest(&then, pair.id) {
                self.check_interrupts(pair);
                match self.check_guest(pair) {
                    Some(context) => {
                        let seen = Rc::new(self.check_guest_tables(pair, &context));
                        view.guests.insert(pair.handle, (context, seen));
                    }
                    None => {
                        view.guests.remove(&pair.handle);
                    }
                }
            }
        }
        if all {
            assert!(self.spec.is_consistent());
            self.check_counts();
            for at in sampled() {
                self.check_page(at);
            }
        }
        self.check_tlbs(&view);
        self.host.escrow.machine.forget();
        self.view = view;
    }

    fn check_counts(&mut self) {
        let counts = self.spec.counts();
        for state in FrameState::ALL.into_iter().filter(|&state| state != FrameState::Owned) {
            let args = [call::INFO_PAGES, state as u64];
            let real = self.host.call(call::LEDGER_INFO, &args);
            assert_eq!(real, Ok([counts[state as usize], 0, 0, 0]), "{state:?}");
        }
        let vms = self.host.call(call::LEDGER_INFO, &[call::INFO_VMS, 0]);
        assert_eq!(vms, Ok([self.spec.existing(), 0, 0, 0]));
    }

    /// What is in a page, and what the host is told of it.
    fn check_page(&mut self, at: u64) {
        let frame = self.spec.frame(at);
        // What EL2 keeps in metadata is its own business.
        if frame.state != FrameState::Metadata {
            let zero = self.host.escrow.machine.is_zero(at);
            assert_eq!(zero, self.spec.is_zero(at), "contents of {at:#x}, {frame:x?}");
        }
        let told = self.host.call(call::FRAME_INFO, &[at]);
        let heir = frame.owner == VmId::HOST || !self.spec.is_alive(frame.owner);
        let expected = if heir {
            Ok([frame.state as u64, self.spec.held_alike(at), 0, 0])
        } else {
            Err((Error::NotOwner, 0, 0))
        };
        assert_eq!(told, expected, "{frame:x?} at {at:#x}");
    }

    /// The ledger's records of a block.
    fn check_block(&self, base: u64) {
        let slots = self.vms.each_ref().map(|pair| pair.as_ref().map(|p| (p.id, slot_of(p))));
        let is = |vm: VmId, slot: u16| match slots.iter().flatten().find(|known| known.0 == vm) {
            Some(known) => known.1 == slot,
            // The host, or a VM that has made room for another in `vms`.
            None => vm != VmId::HOST || slot == 0,
        };
        self.for_block(base, |at, frame| {
            let record = self.host.escrow.ledger().get(PhysAddr(at)).unwrap();
            let same = record.is(frame.state)
                && record.guest().0 == frame.guest
                && is(frame.owner, record.owner().vmid())
                && frame
                    .borrower
                    .is_none_or(|vm| is(vm, record.borrower().map_or(0, GuestId::get)));
            assert!(same, "{record:?} at {at:#x}, not {frame:x?}");
        });
    }

    fn count_frames(&mut self, then: &Spec, base: u64) {
        for at in (base..base + BLOCK_SIZE).step_by(PAGE_SIZE as usize) {
            self.tally.frame(then.frame(at), self.spec.frame(at));
        }
    }

    fn for_block(&self, base: u64, mut f: impl FnMut(u64, Frame)) {
        let at = (base..base + BLOCK_SIZE).step_by(PAGE_SIZE as usize);
        match self.spec.block(base) {
            Some(frames) => at.zip(frames).for_each(|(at, frame)| f(at, frame)),
            None => at.for_each(|at| f(at, Frame::HOME)),
        }
    }

    /// What the host reaches of a block, from its tables.
    fn host_view(&self, base: u64) -> Seen {
        let mut entries = Vec::with_capacity(512);
        let context = self.host.escrow.host_context();
        self.host.read_block(context, base, |_, entry| entries.push(entry));
        let mut entries = entries.into_iter();
        let mut seen = Vec::with_capacity(512);
        self.for_block(base, |at, frame| {
            let entry = entries.next().unwrap();
            let reached = entry & 1 != 0;
            assert_eq!(reached, frame.is_reached_by(VmId::HOST), "{at:#x}: {frame:x?}");
            if reached {
                assert_eq!(entry & 0xffff_ffff_f000, at, "the host's map is the identity");
                assert_eq!(entry & !NOT_COMMON, COMMON, "{entry:#x} at {at:#x}");
                assert_eq!(Descriptor::found(entry).rights(), Some(Rights::ALL), "{at:#x}");
                seen.push((at, entry & !0xfff));
            }
        });
        seen
    }

    /// What the host is told of a guest; its registers if it lives.
    fn check_guest(&mut self, pair: &Pair) -> Option<Stage2Context> {
        let guest = self.spec.guest(pair.id);
        let state = match guest.life {
            Life::Created => 0,
            Life::Started => 1,
            Life::Dead => {
                let gone = self.host.call(call::VM_INFO, &[pair.handle]);
                assert_eq!(gone, Err((Error::HandleRevoked, 0, 0)));
                return None;
            }
        };
        let expected = [state, self.spec.reachable(pair.id), guest.metadata, guest.pool];
        assert_eq!(self.host.call(call::VM_INFO, &[pair.handle]), Ok(expected), "{pair:x?}");
        let vm = self.host.escrow.slots.get(GuestId::new(slot_of(pair)).unwrap()).unwrap().lock();
        vm.map.as_ref().map(|map| *map.context())
    }

    /// All entries of a guest, against all that it should have.
    fn check_guest_tables(&self, pair: &Pair, context: &Stage2Context) -> Seen {
        let mut seen = Vec::new();
        let mut expected = self.spec.guest(pair.id).entries();
        let mut entry_is = |at, entry: Entry| {
            let expected = expected.next();
            let open = |at| self.spec.frame(at).state == FrameState::SharedBack;
            let same = match expected {
                // What was opened to its owner may be in its map already.
                Some((there, expected)) if entry.frame().is_some_and(open) => {
                    there == at && expected.away() == entry.away()
                }
                expected => expected == Some((at, entry)),
            };
            assert!(same, "{entry:x?} of {pair:x?} at {at:#x}, not {expected:x?}");
        };
        self.host.read_tables(context, |base, level, entry| {
            let descriptor = Descriptor::found(entry);
            if descriptor.is_free() {
                return;
            }
            assert!(level >= 2, "{entry:#x} at level {level}");
            let size = if level == 2 { BLOCK_SIZE } else { PAGE_SIZE };
            if level == 3 && descriptor.is_valid() {
                assert_eq!(entry & 3, 3, "{entry:#x} is no page");
            }
            for offset in (0..size).step_by(PAGE_SIZE as usize) {
                let at = base + offset;
                let frame = descriptor.address().0 + offset;
                if descriptor.is_poisoned() {
                    entry_is(at, Entry::Poisoned);
                    continue;
                }
                assert_eq!(entry & !NOT_COMMON, COMMON, "{entry:#x} at {at:#x}");
                let rights = descriptor.rights().unwrap();
                if descriptor.is_valid() {
                    entry_is(at, Entry::Valid(frame, rights));
                    seen.push((at, (entry & !0xfff) + offset));
                } else {
                    entry_is(at, Entry::Away(frame, rights));
                }
            }
        });
        assert_eq!(expected.next(), None, "{pair:x?} has nothing there");
        seen
    }

    /// What a TLB may have held and is no longer so was removed.
    fn check_tlbs(&self, now: &View) {
        let machine = &self.host.escrow.machine;
        let host = self.host.escrow.host_context().vttbr;
        for (base, then) in &self.view.host {
            for (at, entry) in gone(then, &now.host[base]) {
                let removed = machine.invalidations(host, Ipa(at)) > 0;
                assert!(removed, "a TLB holds {entry:#x} at {at:#x} of the host");
            }
        }
        for (handle, (context, then)) in &self.view.guests {
            match now.guests.get(handle) {
                Some((_, now)) => {
                    for (at, entry) in gone(then, now) {
                        let removed = machine.invalidations(context.vttbr, Ipa(at)) > 0;
                        assert!(removed, "a TLB holds {entry:#x} at {at:#x} of {handle:#x}");
                    }
                }
                // Its VMID goes to another.
                None => assert!(machine.invalidations(context.vttbr, Ipa(GUEST_END)) > 0),
            }
        }
    }
}

/// What was there and is not the same any more. Both are in ascending order.
fn gone<'a>(then: &'a Rc<Seen>, now: &'a Rc<Seen>) -> impl Iterator<Item = (u64, u64)> + 'a {
    let then: &[_] = if Rc::ptr_eq(then, now) { &[] } else { then };
    let mut now = now.iter().peekable();
    then.iter().copied().filter(move |&(at, entry)| {
        while now.next_if(|next| next.0 < at).is_some() {}
        now.peek() != Some(&&(at, entry))
    })
}

fn slot_of(pair: &Pair) -> u16 {
    Handle::from_register(pair.handle).unwrap().slot
}
