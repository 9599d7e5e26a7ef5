// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists in which exactly one entry is wrong: for every call that takes a list, every
//! kind of wrongness, as the first, the last and one in between; from all CPUs at
//! once, each about memory of its own.

use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, Error, FrameState, LIST_MAX, MemEntry, PAGE_SIZE, call};
use escrow_payloads::expect::refusal_of;
use escrow_payloads::host::{Lists, block, block_at, frame, frame_state, page_at, refused};
use escrow_payloads::random::Random;
use escrow_payloads::spoil::{Bad, BadEntries, Elsewhere};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, cpus, hvc, tests};

use crate::{all_lists, seed};

pub const TESTS: &[Test] = tests![one_wrong_entry_refuses_the_list];

type List = ArrayVec<MemEntry, LIST_MAX>;

/// What the entries of a call carry, and what they start from.
#[derive(Clone, Copy)]
struct Kind {
    function: u32,
    /// Whether a VM's handle comes first.
    has_vm: bool,
    /// Whether entries name guest addresses.
    has_guest: bool,
    /// Whether they carry reports.
    has_report: bool,
    /// Whether they may be blocks.
    has_blocks: bool,
    /// The state of the pages that it takes.
    from: FrameState,
}

const KINDS: &[Kind] = &[
    Kind {
        function: call::MEM_LEND,
        has_vm: true,
        has_guest: true,
        has_report: true,
        has_blocks: true,
        from: FrameState::Owned,
    },
    Kind {
        function: call::MEM_SHARE,
        has_vm: true,
        has_guest: true,
        has_report: false,
        has_blocks: true,
        from: FrameState::Owned,
    },
    Kind {
        function: call::VM_TOP_UP,
        has_vm: true,
        has_guest: false,
        has_report: true,
        has_blocks: false,
        from: FrameState::Owned,
    },
    Kind {
        function: call::VM_CREATE,
        has_vm: false,
        has_guest: false,
        has_report: true,
        has_blocks: false,
        from: FrameState::Owned,
    },
    Kind {
        function: call::MEM_UNSHARE,
        has_vm: false,
        has_guest: false,
        has_report: false,
        has_blocks: true,
        from: FrameState::Shared,
    },
    Kind {
        function: call::MEM_RECLAIM,
        has_vm: false,
        has_guest: false,
        has_report: false,
        has_blocks: true,
        from: FrameState::Lent,
    },
];

/// Where good entries go in the guest, page by page.
const GUEST: u64 = 0x40_0000;
/// Where the block among them goes.
const GUEST_BLOCK: u64 = 0x4000_0000;
/// Where bad ones would, if they did.
const SPARE: u64 = 0x1_0000_0000;

/// Pages of one CPU in the states that an entry must not be in for some call.
struct States {
    vm: u64,
    other: u64,
    home: u64,
    lent: u64,
    shared: u64,
    metadata: u64,
    /// A block of which one page is shared.
    broken: u64,
    /// A page lent to, and one shared with, the other VM.
    others: [u64; 2],
}

impl States {
    fn make(lists: &Lists, pages: u64, broken: u64) -> Outcome<States> {
        let page = |n| pages + n * PAGE_SIZE;
        let vm = lists.vm_of(page(0), 12)?;
        let other = lists.vm_of(page(12), 4)?;
        let [lent, shared] = [page(16), page(17)];
        let others = [page(18), page(19)];
        let far = SPARE + (1 << 30);
        lists.lend(vm, &[page_at(lent, far)]).map_err(refused("MEM_LEND"))?;
        lists.share(vm, &[page_at(shared, far + 0x1000)]).map_err(refused("MEM_SHARE"))?;
        lists.share(vm, &[page_at(broken + 0x5000, far + 0x2000)]).map_err(refused("MEM_SHARE"))?;
        lists.lend(other, &[page_at(others[0], 0x1000)]).map_err(refused("MEM_LEND"))?;
        lists.share(other, &[page_at(others[1], 0x2000)]).map_err(refused("MEM_SHARE"))?;
        Ok(States { vm, other, home: page(20), lent, shared, metadata: page(1), broken, others })
    }

    const PAGES: u64 = 21;

    /// What is wrong with entries of a call, and how it is refused.
    fn wrong(&self, kind: &Kind, elsewhere: &Elsewhere) -> BadEntries {
        let entry = |at: u64| {
            if kind.has_guest { page_at(at, SPARE) } else { frame(at) }
        };
        let good = entry(self.home);
        let mut bad = BadEntries::default();
        bad.anywhere(elsewhere, good);
        if kind.has_guest {
            bad.in_maps(good);
            // Something of the VM's is there already.
            let taken = page_at(self.home, SPARE + (1 << 30));
            bad.push(Bad::new(taken, Error::GuestMapped, 0));
        } else {
            bad.without_guest(good);
        }
        if kind.has_report {
            bad.reports(good);
        } else {
            bad.without_report(good);
        }
        if kind.has_blocks {
            bad.in_blocks(good);
            let broken =
                if kind.has_guest { block_at(self.broken, SPARE) } else { block(self.broken) };
            bad.push(Bad::new(broken, Error::WrongState, 0));
        } else {
            bad.push(Bad::new(block(self.broken), Error::InvalidArgument, 0));
        }
        let reclaims = kind.function == call::MEM_RECLAIM;
        for (at, state) in [
            (self.home, FrameState::Owned),
            (self.lent, FrameState::Lent),
            (self.shared, FrameState::Shared),
            (self.metadata, FrameState::Metadata),
        ] {
            // What a dead VM had comes home from any state.
            if state != kind.from && !(reclaims && state != FrameState::Owned) {
                bad.push(Bad::new(entry(at), Error::WrongState, state as u64));
            }
        }
        for (at, state) in self.others.into_iter().zip([FrameState::Lent, FrameState::Shared]) {
            if reclaims || state == kind.from && !kind.has_vm {
                bad.push(Bad::new(entry(at), Error::MixedVms, 0));
            } else {
                bad.push(Bad::new(entry(at), Error::WrongState, state as u64));
            }
        }
        bad
    }
}

/// Makes a call with a list.
fn make(kind: &Kind, lists: &Lists, vm: u64, entries: &[MemEntry]) -> hvc::Answer {
    let [list, count] = lists.put(entries);
    if kind.has_vm {
        hvc::call(kind.function, &[vm, list, count])
    } else {
        hvc::call(kind.function, &[list, count])
    }
}

/// One CPU's memory for one call.
struct Scene<'a> {
    lists: &'a Lists,
    elsewhere: &'a Elsewhere,
    /// [`PAGES`] pages.
    pages: u64,
    /// A block that is given whole, one that is in pieces.
    blocks: [u64; 2],
}

/// Good entries of a list, at the most.
const LONGEST: u64 = 200;
/// Pages of a scene.
const PAGES: u64 = States::PAGES + LONGEST;

impl Scene<'_> {
    /// Entries for pages in an order by the seed, with a block among them where that may be.
    fn entries(&self, random: &mut Random, has_guest: bool, has_blocks: bool) -> List {
        let free = self.pages + States::PAGES * PAGE_SIZE;
        let longest = if cpus::count() > 2 { 40 } else { LONGEST };
        let count = 3 + random.below(longest - 2);
        let pages = (0..count).map(|n| n * PAGE_SIZE);
        let mut list: List = pages
            .map(|n| if has_guest { page_at(free + n, GUEST + n) } else { frame(free + n) })
            .collect();
        for n in (1..list.len()).rev() {
            list.swap(n, random.below(n as u64 + 1) as usize);
        }
        if has_blocks {
            // Where no wrong one is going to be.
            list[1] = if has_guest {
                block_at(self.blocks[0], GUEST_BLOCK)
            } else {
                block(self.blocks[0])
            };
        }
        list
    }

    /// Tries a call with every wrong entry in every place.
    fn play(&self, kind: &Kind, random: &mut Random) -> Outcome<u64> {
        let states = States::make(self.lists, self.pages, self.blocks[1])?;
        let given = self.entries(random, true, kind.has_blocks);
        let good: List = if kind.has_guest {
            given.clone()
        } else {
            given.iter().map(|e| MemEntry { frame: e.frame, ..MemEntry::default() }).collect()
        };
        match kind.function {
            call::MEM_UNSHARE => {
                self.lists.share(states.vm, &given).map_err(refused("MEM_SHARE"))?;
            }
            call::MEM_RECLAIM => {
                self.lists.lend(states.vm, &given).map_err(refused("MEM_LEND"))?;
                hvc::call(call::VM_DESTROY, &[states.vm]).map_err(refused("VM_DESTROY"))?;
            }
            _ => {}
        }
        let mut tries = 0;
        let before = self.states(&good)?;
        // Where CPUs wait for each other, each tries some.
        let share = (cpus::count() * cpus::count()) as u64;
        let mut is_tried = || cpus::count() <= 2 || random.below(share) == 0;
        let mut list = good.clone();
        for bad in &*states.wrong(kind, self.elsewhere) {
            for place in [0, good.len() / 2, good.len() - 1] {
                if place == 0 && bad.error == Error::MixedVms {
                    // It would be the others that do not fit.
                    continue;
                }
                if !is_tried() {
                    continue;
                }
                list[place] = bad.entry;
                check_eq!(
                    make(kind, self.lists, states.vm, &list),
                    Err(refusal_of(bad.error, place as u64, bad.detail)),
                    "{:#x}, {} entries, {:x?} at {place}",
                    kind.function,
                    list.len(),
                    bad.entry
                );
                list[place] = good[place];
                tries += 1;
            }
            if is_tried() {
                check_eq!(self.states(&good)?, before, "{:#x}, {:x?}", kind.function, bad.entry);
            }
        }
        // With good ones in all places, all of it is done.
        let vm = make(kind, self.lists, states.vm, &good).map_err(refused("the good list"))?;
        if kind.function == call::VM_CREATE {
            hvc::call(call::VM_DESTROY, &[vm[0]]).map_err(refused("VM_DESTROY"))?;
        }
        self.end(&states, kind)?;
        Ok(tries)
    }

    /// The states of the pages of a list, as a number.
    fn states(&self, list: &[MemEntry]) -> Outcome<u64> {
        let mut sum: u64 = 0;
        for entry in list {
            let state = frame_state(entry.frame & !0xfff)?;
            sum = sum.wrapping_mul(31).wrapping_add(state as u64);
        }
        Ok(sum)
    }

    fn end(&self, states: &States, kind: &Kind) -> Outcome {
        if kind.function != call::MEM_RECLAIM {
            hvc::call(call::VM_DESTROY, &[states.vm]).map_err(refused("VM_DESTROY"))?;
        }
        hvc::call(call::VM_DESTROY, &[states.other]).map_err(refused("VM_DESTROY"))?;
        self.lists.bring_home(self.pages..self.pages + PAGES * PAGE_SIZE)?;
        let [whole, broken] = self.blocks;
        self.lists.bring_home(broken..broken + 8 * PAGE_SIZE)?;
        if frame_state(whole)? != FrameState::Owned {
            self.lists.reclaim(&[block(whole)]).map_err(refused("MEM_RECLAIM"))?;
        }
        Ok(())
    }
}

fn one_wrong_entry_refuses_the_list(host: &mut Host) -> Outcome {
    let elsewhere = Elsewhere::find(host)?;
    let lists = all_lists(host);
    let pages = host.arena.pages(PAGES * cpus::MAX_CPUS as u64);
    let blocks = host.arena.blocks(2 * cpus::MAX_CPUS as u64);
    let seed = seed(host);
    cpus::try_on_all(|n| {
        let mut random = Random::new(seed << 8 | n as u64);
        let scene = Scene {
            lists: &lists[n],
            elsewhere: &elsewhere,
            pages: pages + PAGES * n as u64 * PAGE_SIZE,
            blocks: [0, 1].map(|k| blocks + (2 * n as u64 + k) * BLOCK_SIZE),
        };
        let mut tries = 0;
        for kind in KINDS {
            tries += scene.play(kind, &mut random)?;
        }
        check!(tries > if cpus::count() > 2 { 5 } else { 600 }, "{tries} tries");
        Ok(())
    })
}
