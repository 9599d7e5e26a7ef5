// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random histories of a protected VM, next to a model that knows pages and no tables: what its guest
//! says of its addresses, what its host gives and takes, right or wrong, and what is in each frame.
//!
//! The model is of the promises: a frame is in one half at a time; what comes to the guest's
//! protected half after the start is zeroed and comes only where the guest has said RAM; what comes home is
//! zeroed, and only after the guest has given it up.

use std::collections::BTreeMap;

use escrow_abi::{MemEntry, ORDER_BLOCK, ORDER_PAGE, Rights, call, rsi, run};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{FREE, Guest, MEMORY, SHARED, Touched, fault};
use crate::addr::{BLOCK_SIZE, PAGE_SIZE};

/// Blocks of frames, and of addresses in each half.
const BLOCKS: u64 = 3;
const PAGES: u64 = BLOCKS * 512;

#[derive(Clone, Copy, Debug)]
enum Size {
    Page,
    Block,
}

/// Frames and addresses are numbered by pages; of a block, the number is rounded down.
#[derive(Clone, Copy, Debug)]
enum Step {
    Lend {
        frame: u64,
        at: u64,
        size: Size,
        one: bool,
    },
    Donate {
        frame: u64,
        at: u64,
    },
    Share {
        frame: u64,
        at: u64,
        size: Size,
    },
    /// Into the other half than it has to.
    Astray {
        frame: u64,
        at: u64,
        share: bool,
    },
    Reclaim {
        frame: u64,
        size: Size,
    },
    Unshare {
        frame: u64,
        size: Size,
    },
    Poison {
        frame: u64,
    },
    Says {
        from: u64,
        to: u64,
        ram: bool,
    },
    /// Its host declares it as memory, or withdraws that.
    Declares {
        from: u64,
        to: u64,
        add: bool,
    },
    Unlocks {
        at: u64,
        contents: bool,
    },
    GuestWrites {
        at: u64,
        shared: bool,
    },
    HostWrites {
        frame: u64,
    },
    Touches {
        at: u64,
        shared: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Home,
    Lent(u64),
    Unlocked(u64, bool),
    Shared(u64),
    Owned(u64),
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Absent { ram: bool },
    Frame(u64),
    Broken,
}

struct Model {
    frames: Vec<State>,
    zero: Vec<bool>,
    protected: Vec<Place>,
    shared: BTreeMap<u64, Place>,
    declared: Vec<bool>,
}

impl Size {
    const fn pages(self) -> u64 {
        match self {
            Size::Page => 1,
            Size::Block => 512,
        }
    }

    const fn order(self) -> u32 {
        match self {
            Size::Page => ORDER_PAGE,
            Size::Block => ORDER_BLOCK,
        }
    }
}

const fn frame_at(n: u64) -> u64 {
    FREE + n * PAGE_SIZE
}

const fn address(n: u64) -> u64 {
    MEMORY + n * PAGE_SIZE
}

impl Model {
    fn new() -> Model {
        Model {
            frames: vec![State::Home; PAGES as usize],
            zero: vec![false; PAGES as usize],
            protected: vec![Place::Absent { ram: false }; PAGES as usize],
            shared: BTreeMap::new(),
            declared: vec![true; PAGES as usize],
        }
    }

    fn frame(&self, n: u64) -> State {
        self.frames[n as usize]
    }

    fn ripas(&self, at: u64) -> u64 {
        match self.protected[at as usize] {
            Place::Absent { ram: false } => rsi::EMPTY,
            Place::Absent { ram: true } => rsi::RAM,
            Place::Broken => rsi::DESTROYED,
            Place::Frame(frame) => match self.frame(frame) {
                State::Unlocked(..) => rsi::EMPTY,
                _ => rsi::RAM,
            },
        }
    }

    fn shared(&self, at: u64) -> Place {
        self.shared.get(&at).copied().unwrap_or(Place::Absent { ram: false })
    }

    /// Whether the guest can be given these frames at these addresses of its protected half.
    fn has_room(&self, frame: u64, at: u64, pages: u64) -> bool {
        (0..pages).all(|n| {
            self.frame(frame + n) == State::Home
                && self.protected[(at + n) as usize] == Place::Absent { ram: true }
        })
    }

    fn come_home(&mut self, frame: u64, zeroed: bool) {
        self.frames[frame as usize] = State::Home;
        if zeroed {
            self.zero[frame as usize] = true;
        }
    }
}

/// The real one and the model.
struct Both {
    guest: Guest,
    model: Model,
}

impl Both {
    fn new() -> Both {
        let mut both = Both { guest: Guest::created(64), model: Model::new() };
        for n in 0..PAGES {
            both.guest.host.escrow.machine.scribble(frame_at(n));
        }
        both.guest.start();
        both
    }

    fn play(&mut self, step: Step) {
        let Both { guest, model } = self;
        match step {
            Step::Lend { frame, at, size, one } => {
                let (frame, at) = (round(frame, size), round(at, size));
                let entry = entry(frame, address(at), size);
                let done = match one {
                    true => guest.host.lend_one(guest.vm, &entry),
                    false => guest.host.lend(guest.vm, &[entry]),
                };
                assert_eq!(done.is_ok(), model.has_room(frame, at, size.pages()), "{done:?}");
                if done.is_ok() {
                    for n in 0..size.pages() {
                        model.frames[(frame + n) as usize] = State::Lent(at + n);
                        model.zero[(frame + n) as usize] = true;
                        model.protected[(at + n) as usize] = Place::Frame(frame + n);
                    }
                }
            }
            Step::Donate { frame, at } => {
                let entry = entry(frame, address(at), Size::Page);
                let done = guest.host.give(call::MEM_DONATE, guest.vm, &[entry]);
                assert_eq!(done.is_ok(), model.has_room(frame, at, 1), "{done:?}");
                if done.is_ok() {
                    model.frames[frame as usize] = State::Owned(at);
                    model.zero[frame as usize] = true;
                    model.protected[at as usize] = Place::Frame(frame);
                }
            }
            Step::Share { frame, at, size } => {
                let (frame, at) = (round(frame, size), round(at, size));
                let done = guest.host.share(guest.vm, &[entry(frame, address(at) | SHARED, size)]);
                let fits = (0..size.pages()).all(|n| {
                    model.frame(frame + n) == State::Home
                        && model.shared(at + n) == Place::Absent { ram: false }
                });
                assert_eq!(done.is_ok(), fits, "{done:?}");
                if done.is_ok() {
                    for n in 0..size.pages() {
                        model.frames[(frame + n) as usize] = State::Shared(at + n);
                        model.shared.insert(at + n, Place::Frame(frame + n));
                    }
                }
            }
            Step::Astray { frame, at, share: true } => {
                let entry = entry(frame, address(at), Size::Page);
                assert!(guest.host.share(guest.vm, &[entry]).is_err());
            }
            Step::Astray { frame, at, share: false } => {
                let entry = entry(frame, address(at) | SHARED, Size::Page);
                assert!(guest.host.lend(guest.vm, &[entry]).is_err());
                assert!(guest.host.lend_one(guest.vm, &entry).is_err());
            }
            Step::Reclaim { frame, size } => {
                let frame = round(frame, size);
                let done = guest.host.reclaim(&[(frame_at(frame), size.order())]);
                let of = |n| match model.frame(frame + n) {
                    State::Unlocked(at, contents) => Some((at, contents)),
                    _ => None,
                };
                let first = of(0);
                // A block is one if its frames are alike.
                let fits = (0..size.pages())
                    .all(|n| of(n).is_some() && of(n) == first.map(|(at, c)| (at + n, c)));
                assert_eq!(done.is_ok(), fits, "{done:?}");
                if done.is_ok() {
                    for n in 0..size.pages() {
                        let Some((at, contents)) = (match model.frame(frame + n) {
                            State::Unlocked(at, contents) => Some((at, contents)),
                            _ => None,
                        }) else {
                            continue;
                        };
                        model.protected[at as usize] = Place::Absent { ram: false };
                        model.come_home(frame + n, !contents);
                    }
                }
            }
            Step::Unshare { frame, size } => {
                let frame = round(frame, size);
                let done = guest.host.take(call::MEM_UNSHARE, &[(frame_at(frame), size.order())]);
                let of = |n| match model.frame(frame + n) {
                    State::Shared(at) => Some(at),
                    _ => None,
                };
                let first = of(0);
                let fits =
                    (0..size.pages()).all(|n| of(n).is_some() && of(n) == first.map(|at| at + n));
                assert_eq!(done.is_ok(), fits, "{done:?}");
                if done.is_ok() {
                    for n in 0..size.pages() {
                        if let State::Shared(at) = model.frame(frame + n) {
                            model.shared.remove(&at);
                            model.come_home(frame + n, false);
                        }
                    }
                }
            }
            Step::Poison { frame } => {
                let done = guest.host.take(call::MEM_POISON, &[(frame_at(frame), ORDER_PAGE)]);
                assert_eq!(done.is_ok(), model.frame(frame) != State::Broken, "{done:?}");
                match model.frame(frame) {
                    State::Lent(at) | State::Unlocked(at, _) | State::Owned(at) => {
                        model.protected[at as usize] = Place::Broken;
                    }
                    State::Shared(at) => {
                        model.shared.insert(at, Place::Broken);
                    }
                    State::Home | State::Broken => {}
                }
                model.frames[frame as usize] = State::Broken;
            }
            Step::Says { from, to, ram } => self.says(from, to, ram),
            Step::Declares { from, to, add } => {
                let key = match add {
                    true => call::CONFIGURE_MEMORY_ADD,
                    false => call::CONFIGURE_MEMORY_REMOVE,
                };
                let range = [guest.vm, key, address(from), (to - from) * PAGE_SIZE];
                guest.host.call(call::VM_CONFIGURE, &range).unwrap();
                model.declared[from as usize..to as usize].fill(add);
            }
            Step::Unlocks { at, contents } => {
                let flags = match contents {
                    true => call::MODIFY_UNLOCK,
                    false => call::MODIFY_UNLOCK | call::MODIFY_SANITIZE,
                };
                let args = [0, address(at), PAGE_SIZE, flags];
                let done = guest.host.guest_call(guest.vcpu, call::MODIFY_PAGES, &args);
                let frame = match model.protected[at as usize] {
                    Place::Frame(frame) => Some(frame),
                    _ => None,
                };
                let lent = frame.filter(|&frame| {
                    matches!(model.frame(frame), State::Lent(_) | State::Unlocked(..))
                });
                assert_eq!(done.is_ok(), lent.is_some(), "{done:?}");
                if let Some(frame) = lent {
                    model.frames[frame as usize] = State::Unlocked(at, contents);
                    model.zero[frame as usize] |= !contents;
                }
            }
            Step::GuestWrites { at, shared } => {
                let place = match shared {
                    true => model.shared(at),
                    false => model.protected[at as usize],
                };
                let half = if shared { SHARED } else { 0 };
                let found = guest.host.guest_frame(guest.vm, address(at) | half);
                let expected = match place {
                    Place::Frame(frame) => Some(frame),
                    _ => None,
                };
                assert_eq!(found, expected.map(frame_at));
                if let Some(frame) = expected {
                    guest.host.escrow.machine.scribble(frame_at(frame));
                    model.zero[frame as usize] = false;
                }
            }
            Step::HostWrites { frame } => {
                let reached = matches!(model.frame(frame), State::Home | State::Shared(_));
                assert_eq!(guest.host.reaches(frame_at(frame)), reached);
                if reached {
                    guest.host.escrow.machine.scribble(frame_at(frame));
                    model.zero[frame as usize] = false;
                }
            }
            Step::Touches { at, shared } => {
                let (place, to) = match shared {
                    true => (model.shared(at), address(at) | SHARED),
                    false => (model.protected[at as usize], address(at)),
                };
                let touched = guest.touches(to, false);
                let declared = model.declared[at as usize];
                let asked = touched == fault(to);
                let is_mmio = touched == Touched::Exits([run::MMIO_READ, address(at), 4, 0]);
                let right = match place {
                    Place::Broken => touched == Touched::Aborts,
                    // A fault that was on its way when the page came.
                    Place::Frame(_) if touched == Touched::Enters => true,
                    _ if shared && !declared => is_mmio,
                    Place::Frame(_) => asked,
                    Place::Absent { ram } if ram || shared => asked,
                    Place::Absent { .. } => touched == Touched::Aborts,
                };
                assert!(right, "{touched:x?}");
                if asked || is_mmio {
                    guest.retries();
                }
            }
        }
    }

    /// The guest says RAM or empty of a range, in as many calls as it takes.
    fn says(&mut self, from: u64, to: u64, ram: bool) {
        let Both { guest, model } = self;
        let (mut at, top) = (address(from), address(to));
        let ripas = if ram { rsi::RAM } else { rsi::EMPTY };
        // What it owns, it cannot give up so; and nothing becomes RAM that is not declared.
        let refused = (from..to).find(|&n| match model.protected[n as usize] {
            Place::Frame(frame) => !ram && matches!(model.frame(frame), State::Owned(_)),
            Place::Absent { ram: false } => ram && !model.declared[n as usize],
            Place::Absent { ram: true } | Place::Broken => false,
        });
        let end = refused.unwrap_or(to);
        while at < top {
            let [status, next, response] = guest.asks(rsi::IPA_STATE_SET, &[at, top, ripas, 0]);
            assert_eq!(status, rsi::STATUS_SUCCESS);
            assert!(next <= top && (next > at || response == rsi::REJECT));
            at = next;
            if response == rsi::REJECT {
                break;
            }
        }
        assert_eq!(at, address(end));
        for n in from..end {
            match model.protected[n as usize] {
                Place::Absent { .. } => model.protected[n as usize] = Place::Absent { ram },
                Place::Frame(frame) => {
                    let state = &mut model.frames[frame as usize];
                    *state = match *state {
                        State::Lent(at) | State::Unlocked(at, _) if !ram => {
                            State::Unlocked(at, false)
                        }
                        State::Unlocked(at, _) if ram => State::Lent(at),
                        other => other,
                    };
                }
                Place::Broken => {}
            }
        }
    }

    fn check(&mut self) {
        let Both { guest, model } = self;
        let mut expected: Vec<(u64, u64)> = Vec::new();
        for n in 0..PAGES {
            let (end, ripas) = (address(n + 1), model.ripas(n));
            match expected.last_mut() {
                Some((last, same)) if *same == ripas => *last = end,
                _ => expected.push((end, ripas)),
            }
        }
        assert_eq!(guest.ripas(MEMORY, address(PAGES)), expected);
        for n in 0..PAGES {
            let state = model.frame(n);
            let at = frame_at(n);
            let reached = matches!(state, State::Home | State::Shared(_));
            assert_eq!(guest.host.reaches(at), reached, "{n}: {state:?}");
            if state != State::Broken {
                let zero = guest.host.escrow.machine.is_zero(at);
                assert_eq!(zero, model.zero[n as usize], "{n}: {state:?}");
            }
        }
    }
}

fn entry(frame: u64, at: u64, size: Size) -> MemEntry {
    MemEntry::new(frame_at(frame), size.order(), at, Rights::ALL)
}

const fn round(n: u64, size: Size) -> u64 {
    n - n % size.pages()
}

/// Few pages of each block, so that steps meet.
fn number() -> impl Strategy<Value = u64> {
    let page = prop_oneof![4 => 0..4u64, 1 => Just(510), 1 => Just(511)];
    (0..BLOCKS, page).prop_map(|(block, page)| block * 512 + page)
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![3 => Just(Size::Page), 1 => Just(Size::Block)]
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let some = (number(), 1..6u64).prop_map(|(from, pages)| (from, (from + pages).min(PAGES)));
    let blocks = (0..BLOCKS, 1..=BLOCKS)
        .prop_map(|(from, blocks)| (from * 512, ((from + blocks) * 512).min(PAGES)));
    let odd = (number(), number()).prop_map(|(a, b)| (a.min(b), a.max(b) + 1));
    prop_oneof![2 => some, 2 => blocks, 1 => odd]
}

/// Mostly a frame goes where it was.
fn pair() -> impl Strategy<Value = (u64, u64)> {
    let all = (number(), number(), 0..4u32);
    all.prop_map(|(frame, at, other)| (frame, if other == 0 { at } else { frame }))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (pair(), size(), any::<bool>())
            .prop_map(|((frame, at), size, one)| Step::Lend { frame, at, size, one }),
        1 => pair().prop_map(|(frame, at)| Step::Donate { frame, at }),
        3 => (pair(), size()).prop_map(|((frame, at), size)| Step::Share { frame, at, size }),
        1 => (pair(), any::<bool>())
            .prop_map(|((frame, at), share)| Step::Astray { frame, at, share }),
        4 => (number(), size()).prop_map(|(frame, size)| Step::Reclaim { frame, size }),
        3 => (number(), size()).prop_map(|(frame, size)| Step::Unshare { frame, size }),
        1 => number().prop_map(|frame| Step::Poison { frame }),
        8 => (range(), any::<bool>()).prop_map(|((from, to), ram)| Step::Says { from, to, ram }),
        1 => (range(), any::<bool>())
            .prop_map(|((from, to), add)| Step::Declares { from, to, add }),
        1 => (number(), any::<bool>()).prop_map(|(at, contents)| Step::Unlocks { at, contents }),
        2 => (number(), any::<bool>()).prop_map(|(at, shared)| Step::GuestWrites { at, shared }),
        2 => number().prop_map(|frame| Step::HostWrites { frame }),
        2 => (number(), any::<bool>()).prop_map(|(at, shared)| Step::Touches { at, shared }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: super::cases(), ..ProptestConfig::default() })]

    #[test]
    fn a_protected_vm_does_as_its_model(steps in vec(step(), 1..40)) {
        let mut both = Both::new();
        // Most of it is RAM.
        both.says(0, PAGES, true);
        for step in steps {
            both.play(step);
            both.check();
        }
    }
}

/// Calls with any arguments harm nobody: what its host has stays what it was, and the guest is answered.
#[test]
fn any_arguments_are_answered() {
    let mut guest = Guest::created(64);
    guest.lend(entry(0, MEMORY, Size::Block)).unwrap();
    guest.start();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let interesting = [0, 1, PAGE_SIZE, MEMORY, MEMORY + BLOCK_SIZE, SHARED - PAGE_SIZE, SHARED];
    for _ in 0..super::cases() * 20 {
        let function = rsi::FIRST + (random() % 32) as u32;
        let args: [u64; 4] = std::array::from_fn(|_| match random() % 4 {
            0 => random(),
            1 => random() % 5,
            2 => random() & (2 * SHARED - 1) & !(PAGE_SIZE - 1),
            _ => interesting[(random() % interesting.len() as u64) as usize],
        });
        let asked = guest.asks_anything(function, &args);
        if let Err([state, data, ..]) = asked {
            match state {
                run::TOP_UP => {
                    assert!((1..=2).contains(&data));
                    let entries = guest.host.fresh_metadata(data);
                    let [list, count] = guest.host.list(&entries);
                    // Until its host has no more, which is the guest's loss.
                    if guest.host.call(call::VM_TOP_UP, &[guest.vm, list, count]).is_err() {
                        break;
                    }
                }
                run::PAGE_FAULT => assert_eq!(data & SHARED, 0),
                other => panic!("{other:#x}"),
            }
            guest.retries();
        }
    }
    for n in 512..1024 {
        assert!(guest.host.reaches(frame_at(n)));
    }
    guest.host.call(call::VM_DESTROY, &[guest.vm]).unwrap();
    guest.host.reclaim(&[(FREE, ORDER_BLOCK)]).unwrap_or_else(|_| {
        for n in 0..512 {
            guest.host.reclaim(&[(frame_at(n), ORDER_PAGE)]).unwrap();
        }
    });
}
