// SPDX-License-Identifier: MIT OR Apache-2.0

//! What histories are made of.
//!
//! There are few VMs, few blocks and few pages in each, so that steps meet. A
//! step that takes pages mostly picks, when its turn comes, pages of which the
//! specification says that they can be taken; the rest is left to chance, and
//! mostly refused.

use std::ops::Range;

use escrow_abi::{BLOCK_SIZE, MemEntry, PAGE_SIZE, Rights};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::fake::{ESCROW, FREE, PINNED};
use super::world::GUEST_END;

/// VMs at a time.
pub const VMS: usize = 3;
/// Blocks of memory, and of each guest's addresses.
pub const BLOCKS: u64 = 3;

/// Who makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Host,
    Guest(usize),
}

/// Whom a call names.
#[derive(Clone, Copy, Debug)]
pub enum To {
    /// This VM; a guest does so by a capability that it holds, if it does.
    Vm(usize),
    /// A guest: the n-th capability that it was ever given. The host: a VM that another has taken the
    /// place of, the n-th last.
    Nth(usize),
    /// A guest: by the n-th handle that any guest was ever given.
    Anybodys(usize),
    /// A guest: its host.
    Host,
    Null,
    WrongType,
}

/// Pages that an entry, or several one after the other, name by the caller's
/// addresses.
#[derive(Clone, Copy, Debug)]
pub enum Pages {
    /// So many pages from here on, from the start of the caller's memory.
    Run(u64, u64),
    /// A block.
    Block(u64),
    /// The n-th page of those that the call can be about, and so many from there
    /// on; 0 for the n-th block.
    Known(usize, u64),
}

/// Where pages are to be in the VM that gets them.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Where they are in memory, or in the giver's space.
    Same,
    /// At an address.
    At(u64),
}

/// An entry or several.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub pages: Pages,
    pub place: Place,
    pub rights: Rights,
}

/// What is wrong with an entry of a list.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Frame(u64),
    Guest(u64),
    Report(u32, u32, u32),
    Reserved,
}

/// What is wrong with a call that takes a list, beyond its entries.
#[derive(Clone, Copy, Debug)]
pub enum BadList {
    Reserved,
    Empty,
    TooLong,
    Misaligned,
    Overflow,
    NotThere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gift {
    Share,
    Lend,
    Donate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Taking {
    Unshare,
    Reclaim,
    TakeBack,
    Poison,
}

/// An interrupt controller.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    pub distributor: u64,
    pub redistributors: u64,
    pub spis: u64,
}

/// What a host does that is asked to lose sight of pages.
#[derive(Clone, Copy, Debug)]
pub enum Reaction {
    Nothing,
    TakeFirst,
    TakeAll,
}

#[derive(Clone, Debug)]
pub enum Step {
    Create {
        pages: u64,
        start: bool,
        /// What it gets before it is started.
        gic: Option<Frames>,
        time: Option<u64>,
    },
    Vcpu {
        vm: usize,
        index: u64,
    },
    Vgic {
        to: To,
        frames: Frames,
    },
    PvTime {
        to: To,
        at: u64,
    },
    Input {
        to: To,
        intid: u64,
        input: u64,
    },
    Done {
        to: To,
    },
    TopUp {
        vm: usize,
        pages: u64,
    },
    Start {
        vm: usize,
    },
    Destroy {
        vm: usize,
    },
    /// Ends a VM and takes home what can be taken: its slot may be free then.
    Bury {
        vm: usize,
    },
    Grant {
        to: usize,
        object: To,
        rights: u64,
        window: (u64, u64),
    },
    Revoke {
        from: usize,
        which: To,
    },
    Give {
        who: Who,
        gift: Gift,
        to: To,
        parts: Vec<Part>,
        fault: Option<(usize, Fault)>,
    },
    Take {
        who: Who,
        taking: Taking,
        parts: Vec<Pages>,
        fault: Option<(usize, Fault)>,
    },
    BadList {
        who: Who,
        gift: Gift,
        to: To,
        bad: BadList,
    },
    Modify {
        vm: usize,
        at: (Pages, u64),
        flags: u64,
    },
    ShareBack {
        vm: usize,
        at: (Pages, u64),
    },
    AskBack {
        vm: usize,
        at: (Pages, u64),
        reaction: Reaction,
    },
    Touch {
        vm: usize,
        at: Pages,
    },
    Write {
        who: Who,
        at: Pages,
    },
}

/// Pages of a block that may come to differ.
pub fn pages_of_interest() -> impl Iterator<Item = u64> {
    [0, 1, 2, 3, 5, 510, 511].into_iter()
}

pub fn is_of_interest(at: u64) -> bool {
    matches!(at % BLOCK_SIZE / PAGE_SIZE, 0..=3 | 5 | 510 | 511)
}

impl Fault {
    pub fn spoil(self, entry: &mut MemEntry) {
        match self {
            Fault::Frame(frame) => entry.frame = frame,
            Fault::Guest(guest) => entry.guest = guest,
            Fault::Report(refcount, safe, accessible) => {
                *entry = entry.with_report(refcount, safe, accessible);
            }
            Fault::Reserved => entry.reserved = 1,
        }
    }
}

fn vm() -> Range<usize> {
    0..VMS
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![2 => Just(Who::Host), 3 => vm().prop_map(Who::Guest)]
}

fn to() -> impl Strategy<Value = To> {
    prop_oneof![
        12 => vm().prop_map(To::Vm),
        2 => (0..4usize).prop_map(To::Nth),
        1 => (0..16usize).prop_map(To::Anybodys),
        2 => Just(To::Host),
        1 => select(vec![To::Null, To::WrongType]),
    ]
}

/// A page of a block, counted from the start of the caller's memory.
fn page() -> impl Strategy<Value = u64> {
    (0..BLOCKS, select(pages_of_interest().collect::<Vec<_>>()))
        .prop_map(|(block, page)| block * BLOCK_SIZE + page * PAGE_SIZE)
}

fn anywhere() -> impl Strategy<Value = Pages> {
    prop_oneof![
        4 => page().prop_map(|at| Pages::Run(at, 1)),
        2 => (page(), 2..6u64).prop_map(|(at, pages)| Pages::Run(at, pages)),
        1 => (page(), 500..=512u64).prop_map(|(at, pages)| Pages::Run(at, pages)),
        4 => (0..BLOCKS).prop_map(|block| Pages::Block(block * BLOCK_SIZE)),
    ]
}

fn known() -> impl Strategy<Value = Pages> {
    let pages = prop_oneof![6 => Just(1), 4 => Just(0), 2 => 2..6u64, 1 => Just(512)];
    (0..2048usize, pages).prop_map(|(n, pages)| Pages::Known(n, pages))
}

/// Pages for a call that can only be about some.
fn fitting() -> impl Strategy<Value = Pages> {
    prop_oneof![1 => anywhere(), 8 => known()]
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        4 => Just(Place::Same),
        1 => page().prop_map(Place::At),
        1 => (0..BLOCKS).prop_map(|block| Place::At(block * BLOCK_SIZE)),
    ]
}

fn rights() -> impl Strategy<Value = Rights> {
    prop_oneof![
        8 => Just(Rights::ALL),
        1 => select(vec![Rights::READ, Rights::READ_WRITE, Rights::READ_EXECUTE]),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    let pages = prop_oneof![1 => anywhere(), 5 => known()];
    (pages, place(), rights()).prop_map(|(pages, place, rights)| Part { pages, place, rights })
}

fn fault() -> impl Strategy<Value = Fault> {
    let frames = [ESCROW.base.0, PINNED.base.0, 0x0900_0000, FREE + 0x800, !0xfff, GUEST_END];
    let guests = [GUEST_END, 0x8, 0x1000, 0x2, 0, !0];
    prop_oneof![
        select(frames.to_vec()).prop_map(Fault::Frame),
        select(guests.to_vec()).prop_map(Fault::Guest),
        (0..3u32, 0..3u32, 0..2u32).prop_map(|(r, s, a)| Fault::Report(r, s, a)),
        Just(Fault::Reserved),
    ]
}

fn faults() -> impl Strategy<Value = Option<(usize, Fault)>> {
    weighted(0.12, (0..600usize, fault()))
}

fn gift() -> impl Strategy<Value = Gift> {
    prop_oneof![
        2 => Just(Gift::Share),
        3 => Just(Gift::Lend),
        3 => Just(Gift::Donate),
    ]
}

fn taking(poison: bool) -> impl Strategy<Value = Taking> {
    prop_oneof![
        4 => Just(Taking::Unshare),
        8 => Just(Taking::Reclaim),
        4 => Just(Taking::TakeBack),
        u32::from(poison) * 3 => Just(Taking::Poison),
    ]
}

fn window() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        6 => Just((0, GUEST_END)),
        1 => (0..BLOCKS).prop_map(|block| (block * BLOCK_SIZE, BLOCK_SIZE)),
        1 => (page(), 1..4u64).prop_map(|(at, pages)| (at, pages * PAGE_SIZE)),
        1 => select(vec![
            (0x800, PAGE_SIZE),
            (0, 0),
            (GUEST_END - PAGE_SIZE, 2 * PAGE_SIZE),
            (!0xfff, PAGE_SIZE),
        ]),
    ]
}

/// A range of a guest's addresses.
fn range() -> impl Strategy<Value = (Pages, u64)> {
    prop_oneof![
        8 => (fitting(), 1..3u64),
        1 => (known(), Just(512)),
        1 => (anywhere(), select(vec![0, 3, 511, 512, 513, 64 * 256 + 1])),
    ]
}

/// A page of stolen time: where memory comes as well, or not.
fn time_page() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => page(),
        2 => Just(0x0b00_0000),
        1 => select(vec![GUEST_END - PAGE_SIZE, GUEST_END, 0x800, !0xfff]),
    ]
}

/// Frames: where memory comes as well, or not; right and wrong ones.
fn frames() -> impl Strategy<Value = Frames> {
    // The first and the last pages of a block are of interest.
    let near = select(vec![0, 0x1f_0000, 0x20_0000, 0x1e_0000, 0x3e_0000]);
    let far = select(vec![0x0800_0000, 0x080a_0000, 0x0b00_0000, GUEST_END - 0x2_0000]);
    let wrong = select(vec![0x8000, GUEST_END - 0x1_0000, GUEST_END, !0xffff]);
    let at = prop_oneof![8 => near, 8 => far, 1 => wrong];
    let spis = prop_oneof![
        8 => select(vec![32, 64, 480, 512, 960, 988]),
        1 => select(vec![0, 31, 33, 992, 1 << 32 | 32]),
    ];
    (at.clone(), at, spis).prop_map(|(distributor, redistributors, spis)| Frames {
        distributor,
        redistributors,
        spis,
    })
}

fn intid() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => select(vec![32, 33, 63, 64, 95, 511, 512, 543, 991, 1019]),
        1 => select(vec![0, 27, 31, 1020, 1023, 1 << 32 | 32]),
    ]
}

/// A VM; few of them have more than memory.
fn create(pages: u64, start: bool) -> impl Strategy<Value = Step> {
    (weighted(0.25, frames()), weighted(0.15, time_page())).prop_map(move |(gic, time)| {
        let more = gic.map_or(0, |_| 2) + time.map_or(0, |_| 1);
        Step::Create { pages: pages + more, start, gic, time }
    })
}

/// One step. Broken memory never comes home, so only some histories have it.
pub fn step(poison: bool) -> impl Strategy<Value = Step> {
    let bad_list = select(vec![
        BadList::Reserved,
        BadList::Empty,
        BadList::TooLong,
        BadList::Misaligned,
        BadList::Overflow,
        BadList::NotThere,
    ]);
    let reaction = select(vec![Reaction::Nothing, Reaction::TakeFirst, Reaction::TakeAll]);
    let life = prop_oneof![
        3 => (1..8u64, weighted(0.8, Just(()))).prop_flat_map(|(n, start)| create(n, start.is_some())),
        2 => (vm(), 1..3u64).prop_map(|(vm, pages)| Step::TopUp { vm, pages }),
        1 => vm().prop_map(|vm| Step::Start { vm }),
        2 => vm().prop_map(|vm| Step::Destroy { vm }),
        1 => vm().prop_map(|vm| Step::Bury { vm }),
        2 => (vm(), to(), prop_oneof![4 => Just(7), 1 => 0..9u64], window())
            .prop_map(|(to, object, rights, window)| Step::Grant { to, object, rights, window }),
        1 => (vm(), to()).prop_map(|(from, which)| Step::Revoke { from, which }),
    ];
    let interrupts = prop_oneof![
        2 => (vm(), select(vec![0, 1, 1, 2, 31, 32])).prop_map(|(vm, index)| Step::Vcpu { vm, index }),
        2 => (to(), frames()).prop_map(|(to, frames)| Step::Vgic { to, frames }),
        2 => (to(), time_page()).prop_map(|(to, at)| Step::PvTime { to, at }),
        4 => (to(), intid(), 0..5u64)
            .prop_map(|(to, intid, input)| Step::Input { to, intid, input }),
        1 => to().prop_map(|to| Step::Done { to }),
    ];
    let give = prop_oneof![
        24 => (who(), gift(), to(), vec(part(), 1..4), faults())
            .prop_map(|(who, gift, to, parts, fault)| Step::Give { who, gift, to, parts, fault }),
        1 => (who(), gift(), to(), bad_list)
            .prop_map(|(who, gift, to, bad)| Step::BadList { who, gift, to, bad }),
    ];
    let take = (who(), taking(poison), vec(fitting(), 1..4), faults())
        .prop_map(|(who, taking, parts, fault)| Step::Take { who, taking, parts, fault });
    let borrow = prop_oneof![
        4 => (vm(), range(), 0..9u64)
            .prop_map(|(vm, at, flags)| Step::Modify { vm, at, flags }),
        4 => (vm(), range()).prop_map(|(vm, at)| Step::ShareBack { vm, at }),
        2 => (vm(), range(), reaction)
            .prop_map(|(vm, at, reaction)| Step::AskBack { vm, at, reaction }),
        1 => (vm(), fitting()).prop_map(|(vm, at)| Step::Touch { vm, at }),
        2 => (who(), fitting()).prop_map(|(who, at)| Step::Write { who, at }),
    ];
    prop_oneof![4 => life, 2 => interrupts, 9 => give, 7 => take, 7 => borrow]
}

/// Something for a new VM, so that it has what it can make calls about.
fn endowment(vm: usize) -> impl Strategy<Value = Step> {
    let gift = prop_oneof![5 => Just(Gift::Donate), 2 => Just(Gift::Lend), 1 => Just(Gift::Share)];
    let block = vm as u64 * BLOCK_SIZE;
    let pages = prop_oneof![
        3 => Just(Pages::Block(block)),
        3 => (2..8u64).prop_map(move |pages| Pages::Run(block, pages)),
        1 => Just(Pages::Run(block, 512)),
        1 => anywhere(),
    ];
    (gift, pages, rights()).prop_map(move |(gift, pages, rights)| {
        let parts = vec![Part { pages, place: Place::Same, rights }];
        Step::Give { who: Who::Host, gift, to: To::Vm(vm), parts, fault: None }
    })
}

/// VMs that may give to each other.
fn beginning() -> impl Strategy<Value = Vec<Step>> {
    let vms = prop_oneof![1 => Just(0), 2 => Just(1), 6 => Just(2), 4 => Just(VMS)];
    let endowments = (endowment(0), endowment(1), endowment(2));
    let pools = prop_oneof![2 => 3..5u64, 3 => 3..12u64];
    // Mostly they may do everything.
    let all = Just((7, (0, GUEST_END)));
    let granted = prop_oneof![4 => all, 1 => (1..8u64, window())];
    let created = vec(pools.prop_flat_map(|pages| create(pages, true)), VMS);
    (vms, created, endowments, granted).prop_map(|(vms, created, (a, b, c), granted)| {
        let pairs = (0..vms).flat_map(|to| (0..vms).map(move |object| (to, object)));
        let grants = pairs.filter(|(to, object)| to != object).map(|(to, object)| Step::Grant {
            to,
            object: To::Vm(object),
            rights: granted.0,
            window: granted.1,
        });
        created.into_iter().take(vms).chain(grants).chain([a, b, c].into_iter().take(vms)).collect()
    })
}

/// What two guests do with pages that one lends or shares to the other, which chance
/// alone would hardly ever come to.
fn between_guests() -> impl Strategy<Value = Vec<Step>> {
    let known = (0..64usize, prop_oneof![3 => Just(1), 1 => 2..4u64, 2 => Just(0)]);
    (0..2usize, known, 0..4u32).prop_flat_map(|(owner, (n, pages), shared)| {
        let borrower = 1 - owner;
        // Even: what guests have of each other.
        let these = Pages::Known(2 * n, pages);
        let size = if pages == 0 { 512 } else { pages };
        let own = (Pages::Known(4 * n + 1, pages), size);
        let one = Pages::Known(2 * n, 1);
        let part = Part { pages: these, place: Place::Same, rights: Rights::ALL };
        let to = To::Vm(0);
        let gift = if shared == 0 { Gift::Share } else { Gift::Lend };
        let who = Who::Guest(owner);
        let give = Step::Give { who, gift, to, parts: vec![part], fault: None };
        let at = (these, size);
        let then = prop_oneof![
            4 => Just(Step::ShareBack { vm: borrower, at }),
            2 => Just(Step::ShareBack { vm: borrower, at: (these, 1) }),
            3 => Just(Step::Touch { vm: owner, at: these }),
            1 => Just(Step::AskBack { vm: borrower, at, reaction: Reaction::Nothing }),
            // By the owner, whose it is not to ask.
            1 => Just(Step::AskBack { vm: owner, at: own, reaction: Reaction::Nothing }),
            3 => (1..4u64).prop_map(move |flags| Step::Modify { vm: borrower, at, flags }),
            1 => (1..4u64)
                .prop_map(move |flags| Step::Modify { vm: borrower, at: (one, 1), flags }),
            2 => taking(false)
                .prop_map(move |taking| Step::Take { who, taking, parts: vec![one], fault: None }),
            2 => select(vec![owner, borrower]).prop_map(|vm| Step::Destroy { vm }),
            6 => taking(false)
                .prop_map(move |taking| Step::Take { who, taking, parts: vec![these], fault: None }),
            1 => Just(Step::Write { who: Who::Guest(borrower), at: these }),
            2 => step(false),
        ];
        vec(then, 2..8).prop_map(move |then| [give.clone()].into_iter().chain(then).collect())
    })
}

/// A whole history: a beginning, then anything.
pub fn history() -> impl Strategy<Value = Vec<Step>> {
    let steps = prop_oneof![24 => vec(step(false), 1..24), 1 => vec(step(true), 1..24)];
    let between = prop_oneof![2 => Just(Vec::new()), 1 => between_guests()];
    (beginning(), between, steps).prop_map(|(mut beginning, mut between, mut steps)| {
        beginning.append(&mut between);
        beginning.append(&mut steps);
        beginning
    })
}
