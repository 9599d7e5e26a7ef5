// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random histories, on the real ledger and on the executable specification:
//! every call has the same answer on both, and after every step both hold the
//! same, frame by frame, guest address by guest address, pool by pool. At the
//! end everything is home.

use escrow_abi::{Error, FrameState, Handle, MemEntry, ORDER_BLOCK, ORDER_PAGE, Rights, call};
use escrow_spec::{Life, Refused, Spec, VmKey};
use proptest::prelude::*;

use super::fake::{ESCROW, FREE, Host, PINNED, RAM};
use crate::addr::{BLOCK_SIZE, PAGE_SIZE, PhysAddr};

/// Pages of each block that the histories touch: few, so that they meet.
const PAGES: [u64; 4] = [0, 1, 2, 511];
const BLOCKS: u64 = 2;
const VMS: usize = 2;
const GUEST_END: u64 = 1 << 39;

#[derive(Clone, Copy, Debug)]
struct Piece {
    at: u64,
    order: u32,
}

/// What is wrong with an entry of a list.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Frame(u64),
    Guest(u64),
    Report(u32, u32, u32),
    Reserved,
}

#[derive(Clone, Debug)]
enum Step {
    Create { pages: u64 },
    TopUp { vm: usize, pages: u64 },
    Start { vm: usize },
    Destroy { vm: usize },
    Give { lend: bool, vm: usize, pieces: Vec<(Piece, u64)>, fault: Option<(usize, Fault)> },
    GiveAll { lend: bool, vm: usize, block: u64, guest: u64 },
    Take { unshare: bool, pieces: Vec<Piece> },
    Modify { vm: usize, guest: u64, pages: u64, flags: u64 },
}

fn piece() -> impl Strategy<Value = Piece> {
    let page = (0..BLOCKS, prop::sample::select(&PAGES[..])).prop_map(|(block, page)| Piece {
        at: FREE + block * BLOCK_SIZE + page * PAGE_SIZE,
        order: ORDER_PAGE,
    });
    let block = (0..BLOCKS).prop_map(|n| Piece { at: FREE + n * BLOCK_SIZE, order: ORDER_BLOCK });
    prop_oneof![3 => page, 2 => block]
}

/// Mostly where the frame would be in an identity map, at times anywhere.
fn guest(piece: Piece) -> impl Strategy<Value = u64> {
    let size = if piece.order == ORDER_BLOCK { BLOCK_SIZE } else { PAGE_SIZE };
    prop_oneof![
        3 => Just(piece.at - FREE),
        1 => (0..8u64).prop_map(move |n| n * size),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    let frames = [ESCROW.base.0, PINNED.base.0, 0x0900_0000, FREE + 0x800, !0xfff];
    let guests = [GUEST_END, 0x8, 0x1000, !0];
    prop_oneof![
        prop::sample::select(frames.to_vec()).prop_map(Fault::Frame),
        prop::sample::select(guests.to_vec()).prop_map(Fault::Guest),
        (0..3u32, 0..3u32, 0..2u32).prop_map(|(r, s, a)| Fault::Report(r, s, a)),
        Just(Fault::Reserved),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let with_guest = || piece().prop_flat_map(|p| guest(p).prop_map(move |g| (p, g)));
    let pieces = || prop::collection::vec(with_guest(), 1..4);
    let vm = || 0..VMS;
    prop_oneof![
        2 => (1..5u64).prop_map(|pages| Step::Create { pages }),
        2 => (vm(), 1..3u64).prop_map(|(vm, pages)| Step::TopUp { vm, pages }),
        2 => vm().prop_map(|vm| Step::Start { vm }),
        1 => vm().prop_map(|vm| Step::Destroy { vm }),
        8 => (any::<bool>(), vm(), pieces(), prop::option::weighted(0.2, (0..3usize, fault())))
            .prop_map(|(lend, vm, pieces, fault)| Step::Give { lend, vm, pieces, fault }),
        2 => (any::<bool>(), vm(), 0..BLOCKS, 0..3u64).prop_map(|(lend, vm, block, page)| {
            Step::GiveAll { lend, vm, block, guest: block * BLOCK_SIZE + page * PAGE_SIZE }
        }),
        6 => (any::<bool>(), prop::collection::vec(piece(), 1..4))
            .prop_map(|(unshare, pieces)| Step::Take { unshare, pieces }),
        4 => (vm(), piece(), 0..3u64, 0..9u64).prop_map(|(vm, piece, pages, flags)| {
            let guest = piece.at - FREE;
            match piece.order {
                // As `GiveAll` may have given them.
                ORDER_BLOCK => Step::Modify { vm, guest: guest + pages * PAGE_SIZE, pages: 512, flags },
                _ => Step::Modify { vm, guest, pages, flags },
            }
        }),
    ]
}

/// A VM on both sides.
#[derive(Clone, Copy)]
struct Pair {
    key: VmKey,
    handle: u64,
    vcpu: Option<u64>,
}

struct World {
    host: Host,
    spec: Spec,
    /// The VMs that may be used: a dead one's handle stays until the next.
    vms: [Option<Pair>; VMS],
}

/// Answers must agree, but for which of two overlapping entries is named.
fn agree<A: std::fmt::Debug, B>(real: &Result<A, Refused>, spec: &Result<B, Refused>) {
    let essence = |refused: &Refused| match refused.0 {
        Error::Overlap => (Error::Overlap, 0, 0),
        _ => *refused,
    };
    let expected = spec.as_ref().err().map(essence);
    assert_eq!(real.as_ref().err().map(essence), expected, "{real:x?}");
}

impl World {
    fn new() -> World {
        let mut spec = Spec::new(RAM.base.0..RAM.end(), GUEST_END);
        spec.set_aside(ESCROW.base.0..ESCROW.end(), FrameState::Hypervisor);
        spec.set_aside(PINNED.base.0..PINNED.end(), FrameState::Pinned);
        World { host: Host::new(), spec, vms: [None; VMS] }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Create { pages } => self.create(pages),
            Step::TopUp { vm, pages } => {
                let Some(Pair { key, handle, .. }) = self.vms[vm] else { return };
                let list = self.host.fresh_metadata(pages);
                let real = self.host.give(call::VM_TOP_UP, handle, &list);
                agree(&real, &self.spec.top_up(key, &list));
            }
            Step::Start { vm } => {
                let Some(Pair { key, handle, .. }) = self.vms[vm] else { return };
                agree(&self.host.call(call::VM_START, &[handle]), &self.spec.start(key));
            }
            Step::Destroy { vm } => {
                let Some(Pair { key, handle, .. }) = self.vms[vm] else { return };
                agree(&self.host.call(call::VM_DESTROY, &[handle]), &self.spec.destroy(key));
            }
            Step::Give { lend, vm, ref pieces, fault } => {
                let entry = |&(piece, guest): &(Piece, u64)| {
                    MemEntry::new(piece.at, piece.order, guest, Rights::ALL)
                };
                let mut list: Vec<_> = pieces.iter().map(entry).collect();
                if let Some((at, fault)) = fault {
                    let at = at % list.len();
                    spoil(&mut list[at], fault);
                }
                self.give(vm, lend, &list);
            }
            Step::GiveAll { lend, vm, block, guest } => {
                let list: Vec<_> = (0..512)
                    .map(|n| n * PAGE_SIZE)
                    .map(|n| (FREE + block * BLOCK_SIZE + n, guest + n))
                    .map(|(at, guest)| MemEntry::new(at, ORDER_PAGE, guest, Rights::ALL))
                    .collect();
                self.give(vm, lend, &list);
            }
            Step::Take { unshare, ref pieces } => {
                let list: Vec<_> = pieces.iter().map(|p| (p.at, p.order)).collect();
                self.take(unshare, &list);
            }
            Step::Modify { vm, guest, pages, flags } => {
                let Some(Pair { key, vcpu: Some(vcpu), .. }) = self.vms[vm] else { return };
                if self.spec.vm(key).life != Life::Started {
                    return;
                }
                let size = pages * PAGE_SIZE;
                let real = super::unlock(&mut self.host, vcpu, guest, size, flags);
                assert_eq!(real, self.spec.modify(key, guest, size, flags));
            }
        }
    }

    /// A VM with a vCPU, if there are pages enough for one.
    fn create(&mut self, pages: u64) {
        let dead = |pair: &Pair| self.spec.vm(pair.key).life == Life::Dead;
        let Some(free) = self.vms.iter().position(|vm| vm.as_ref().is_none_or(dead)) else {
            return;
        };
        let list = self.host.fresh_metadata(pages);
        let [at, count] = self.host.list(&list);
        let real = self.host.call(call::VM_CREATE, &[at, count]);
        let spec = self.spec.create(&list);
        agree(&real, &spec);
        let (Ok([handle, ..]), Ok(key)) = (real, spec) else { return };
        let real = self.host.call(call::VCPU_CREATE, &[handle, 0]);
        agree(&real, &self.spec.create_vcpu(key));
        self.vms[free] = Some(Pair { key, handle, vcpu: real.ok().map(|x| x[0]) });
    }

    fn give(&mut self, vm: usize, lend: bool, list: &[MemEntry]) {
        let Some(Pair { key, handle, .. }) = self.vms[vm] else { return };
        let function = if lend { call::MEM_LEND } else { call::MEM_SHARE };
        agree(&self.host.give(function, handle, list), &self.spec.give(key, list, lend));
    }

    fn take(&mut self, unshare: bool, frames: &[(u64, u32)]) {
        let entries: Vec<_> =
            frames.iter().map(|&(at, order)| MemEntry::new(at, order, 0, Rights::NONE)).collect();
        if unshare {
            let real = self.host.take(call::MEM_UNSHARE, frames);
            agree(&real, &self.spec.unshare(&entries));
        } else {
            agree(&self.host.reclaim(frames), &self.spec.reclaim(&entries));
        }
    }

    /// Both hold the same.
    fn check(&mut self) {
        for state in FrameState::ALL.into_iter().skip(1) {
            let real = self.host.escrow.pages(state);
            assert_eq!(real, self.spec.count(state), "{state:?}");
        }
        for at in touched() {
            self.check_frame(at);
        }
        for Pair { key, handle, .. } in self.vms.into_iter().flatten() {
            let vm = self.spec.vm(key);
            let state = match vm.life {
                Life::Created => 0,
                Life::Started => 1,
                Life::Dead => {
                    let gone = self.host.call(call::VM_INFO, &[handle]);
                    assert_eq!(gone, Err((Error::HandleRevoked, 0, 0)));
                    continue;
                }
            };
            let expected = [state, self.spec.borrowed(key), vm.metadata, vm.pool];
            assert_eq!(self.host.call(call::VM_INFO, &[handle]), Ok(expected));
            for guest in touched().map(|at| at - FREE) {
                let real = self.host.guest_frame(handle, guest);
                assert_eq!(real, self.spec.guest_frame(key, guest), "guest address {guest:#x}");
            }
        }
    }

    fn check_frame(&self, at: u64) {
        let record = self.host.escrow.ledger().get(PhysAddr(at)).unwrap();
        match self.spec.frame(at) {
            None => assert!(record.is(FrameState::Owned), "{record:?} at {at:#x}"),
            Some(away) => {
                assert!(record.is(away.state), "{record:?} at {at:#x}, not {away:?}");
                assert_eq!(record.guest().0, away.guest, "{record:?} at {at:#x}");
                let pair = self.vms.iter().flatten().find(|p| Some(p.key) == away.borrower);
                let slot = pair.and_then(|pair| Handle::from_register(pair.handle));
                // A dead VM's slot may be anybody's who has not forgotten it.
                assert!(slot.is_none_or(|h| h.slot == record.borrower().get()), "{at:#x}");
            }
        }
        assert_eq!(self.host.reaches(at), self.spec.host_reaches(at), "{record:?} at {at:#x}");
    }

    /// Ends all VMs and takes everything home.
    fn end(&mut self) {
        for vm in 0..VMS {
            self.apply(&Step::Destroy { vm });
        }
        let given: Vec<_> = self.spec.given().collect();
        for at in given {
            self.take(false, &[(at, ORDER_PAGE)]);
        }
        assert_eq!(self.spec.given().count(), 0);
        self.check();
    }
}

fn spoil(entry: &mut MemEntry, fault: Fault) {
    match fault {
        Fault::Frame(frame) => entry.frame = frame,
        Fault::Guest(guest) => entry.guest = guest,
        Fault::Report(refcount, safe, accessible) => {
            *entry = entry.with_report(refcount, safe, accessible);
        }
        Fault::Reserved => entry.reserved = 1,
    }
}

/// The pages of the touched blocks that can differ, and some that cannot.
fn touched() -> impl Iterator<Item = u64> {
    (0..BLOCKS).flat_map(|block| {
        [0, 1, 2, 3, 5, 511].map(|page| FREE + block * BLOCK_SIZE + page * PAGE_SIZE)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_does_as_specified(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        let before = world.host.snapshot();
        for step in &steps {
            world.apply(step);
            world.check();
        }
        world.end();
        prop_assert_eq!(world.host.snapshot(), before);
        let vms = world.host.call(call::LEDGER_INFO, &[call::INFO_VMS, 0]).unwrap()[0];
        prop_assert_eq!(vms, 0);
    }
}
