// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random histories: after every call, what the tables let the host and the
//! guests reach is what the ledger says, and at the end everything is home.

use escrow_abi::{FrameState, Handle, MemEntry, Rights, call};
use proptest::prelude::*;

use super::fake::{FREE, Host};
use crate::addr::{BLOCK_SIZE, PAGE_SIZE, PhysAddr};

/// Pages of each block that the histories touch: few, so that they meet.
const PAGES: [u64; 4] = [0, 1, 2, 511];
const BLOCKS: u64 = 2;

#[derive(Clone, Copy, Debug)]
struct Piece {
    at: u64,
    order: u32,
}

#[derive(Clone, Debug)]
enum Step {
    Create,
    TopUp { vm: usize },
    Start { vm: usize },
    Destroy { vm: usize },
    Give { share: bool, vm: usize, pieces: Vec<(Piece, u64)> },
    Take { unshare: bool, pieces: Vec<Piece> },
    Unlock { vm: usize, guest: u64, pages: u64, flags: u64 },
}

fn piece() -> impl Strategy<Value = Piece> {
    let page = (0..BLOCKS, prop::sample::select(&PAGES[..])).prop_map(|(block, page)| Piece {
        at: FREE + block * BLOCK_SIZE + page * PAGE_SIZE,
        order: 0,
    });
    let block = (0..BLOCKS).prop_map(|block| Piece { at: FREE + block * BLOCK_SIZE, order: 9 });
    prop_oneof![3 => page, 2 => block]
}

/// Mostly where the frame would be in an identity map, at times anywhere.
fn guest(piece: Piece) -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => Just(piece.at - FREE),
        1 => (0..8u64).prop_map(move |n| n * if piece.order == 9 { BLOCK_SIZE } else { PAGE_SIZE })
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let with_guest = || piece().prop_flat_map(|p| guest(p).prop_map(move |g| (p, g)));
    prop_oneof![
        1 => Just(Step::Create),
        1 => (0..2usize).prop_map(|vm| Step::TopUp { vm }),
        1 => (0..2usize).prop_map(|vm| Step::Start { vm }),
        1 => (0..2usize).prop_map(|vm| Step::Destroy { vm }),
        5 => (any::<bool>(), 0..2usize, prop::collection::vec(with_guest(), 1..4))
            .prop_map(|(share, vm, pieces)| Step::Give { share, vm, pieces }),
        4 => (any::<bool>(), prop::collection::vec(piece(), 1..4))
            .prop_map(|(unshare, pieces)| Step::Take { unshare, pieces }),
        3 => (0..2usize, piece(), 0..3u64, 0..8u64).prop_map(|(vm, piece, pages, flags)| {
            let pages = if piece.order == 9 { 512 } else { pages };
            Step::Unlock { vm, guest: piece.at - FREE, pages, flags }
        }),
    ]
}

#[derive(Default)]
struct World {
    vms: Vec<Option<(u64, u64)>>,
    metadata: Vec<(u64, u32)>,
}

impl World {
    fn vm(&self, n: usize) -> Option<(u64, u64)> {
        self.vms.get(n).copied().flatten()
    }
}

fn apply(host: &mut Host, world: &mut World, step: &Step) {
    match step {
        Step::Create => {
            let Some(free) = (0..2).find(|&n| world.vm(n).is_none()) else { return };
            // Few pages at first: running out of tables is part of it.
            let (vm, metadata) = host.create(3);
            world.metadata.extend(metadata);
            let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
            world.vms.resize(2, None);
            world.vms[free] = Some((vm, vcpu));
        }
        Step::TopUp { vm } => {
            let Some((vm, _)) = world.vm(*vm) else { return };
            let pages = host.fresh_metadata(1);
            world.metadata.extend(pages.iter().map(|e| (e.frame, 0)));
            host.give(call::VM_TOP_UP, vm, &pages).unwrap();
        }
        Step::Start { vm } => {
            let Some((vm, _)) = world.vm(*vm) else { return };
            let _ = host.call(call::VM_START, &[vm]);
        }
        Step::Destroy { vm: n } => {
            let Some((vm, _)) = world.vm(*n) else { return };
            host.call(call::VM_DESTROY, &[vm]).unwrap();
            world.vms[*n] = None;
        }
        Step::Give { share, vm, pieces } => {
            let Some((vm, _)) = world.vm(*vm) else { return };
            let list: Vec<_> = pieces
                .iter()
                .map(|&(p, guest)| MemEntry::new(p.at, p.order, guest, Rights::ALL))
                .collect();
            let function = if *share { call::MEM_SHARE } else { call::MEM_LEND };
            let before = refused_view(host);
            if host.give(function, vm, &list).is_err() {
                assert_eq!(refused_view(host), before, "a refusal changed something");
            }
        }
        Step::Take { unshare, pieces } => {
            let list: Vec<_> = pieces.iter().map(|p| (p.at, p.order)).collect();
            let function = if *unshare { call::MEM_UNSHARE } else { call::MEM_RECLAIM };
            let before = refused_view(host);
            if host.take(function, &list).is_err() {
                assert_eq!(refused_view(host), before, "a refusal changed something");
            }
        }
        Step::Unlock { vm, guest, pages, flags } => {
            let Some((vm, vcpu)) = world.vm(*vm) else { return };
            if host.call(call::VM_INFO, &[vm]).unwrap()[0] != 1 {
                return;
            }
            let _ = super::unlock(host, vcpu, *guest, pages * PAGE_SIZE, *flags);
        }
    }
}

/// Each touched page: its record and whether the host reaches it.
fn refused_view(host: &Host) -> Vec<(String, bool)> {
    touched()
        .map(|at| (format!("{:?}", host.escrow.ledger().get(PhysAddr(at))), host.reaches(at)))
        .collect()
}

/// The pages of the touched blocks that can differ, and one that cannot.
fn touched() -> impl Iterator<Item = u64> {
    (0..BLOCKS).flat_map(|block| {
        [0, 1, 2, 3, 511].map(|page| FREE + block * BLOCK_SIZE + page * PAGE_SIZE)
    })
}

/// The tables show what the ledger says.
fn check(host: &Host, world: &World) {
    for at in touched() {
        let record = host.escrow.ledger().get(PhysAddr(at)).unwrap();
        assert_eq!(host.reaches(at), record.owner_reaches(), "{record:?} at {at:#x}");
        for (vm, _) in world.vms.iter().flatten() {
            let slot = Handle::from_register(*vm).unwrap().slot;
            let borrows = record
                .state()
                .is_some_and(|s| !matches!(s, FrameState::Owned | FrameState::Metadata))
                && record.borrower().get() == slot;
            if borrows {
                let seen = host.guest_frame(*vm, record.guest().0);
                assert_eq!(seen, Some(at), "{record:?} at {at:#x}");
            } else {
                let strays =
                    touched().filter(|g| host.guest_frame(*vm, g - FREE) == Some(at)).count();
                assert_eq!(strays, 0, "{record:?} at {at:#x}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn tables_follow_the_ledger(steps in prop::collection::vec(step(), 1..60)) {
        let mut host = Host::new();
        let before = host.snapshot();
        let mut world = World::default();
        for step in &steps {
            apply(&mut host, &mut world, step);
            check(&host, &world);
        }
        for n in 0..2 {
            apply(&mut host, &mut world, &Step::Destroy { vm: n });
        }
        for block in 0..BLOCKS {
            for page in 0..512 {
                let at = FREE + block * BLOCK_SIZE + page * PAGE_SIZE;
                let record = host.escrow.ledger().get(PhysAddr(at)).unwrap();
                if !record.is(FrameState::Owned) {
                    host.reclaim(&[(at, 0)]).unwrap();
                }
            }
        }
        for &page in &world.metadata {
            host.reclaim(&[page]).unwrap();
        }
        prop_assert_eq!(host.snapshot(), before);
        prop_assert_eq!(host.call(call::LEDGER_INFO, &[call::INFO_VMS, 0]).unwrap()[0], 0);
    }
}
