// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random histories of calls, of which nothing is asked but that the trace of
//! their table writes keeps the rules of the architecture (`tests/trace`).
//!
//! Which call has which answer is the specification's business; here, calls
//! may succeed or not, as long as each sort of them succeeds at times.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use escrow_abi::{Error, FrameState, Handle, MemEntry, ORDER_BLOCK, ORDER_PAGE, Rights, call};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use super::super::Scratch;
use super::super::guest_calls::GuestCall;
use super::fake::{FREE, Host};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PhysAddr};
use crate::ledger::{Record, VmId};
use crate::machine::Machine as _;
use crate::vcpu::syndrome::{Ec, IL, abort};
use crate::vcpu::{GuestExit, GuestIds, Trap};

const HISTORIES: u32 = 200;
const VMS: usize = 2;
const BLOCKS: u64 = 2;
/// Pages of each block that are touched one by one.
const PAGES: [u64; 3] = [0, 1, 511];
/// Where a guest has the page that its lists are in, and where that is in the
/// host's memory.
const GUEST_LIST: u64 = 0x4000_0000;
const LISTS: u64 = FREE + 16 * BLOCK_SIZE;
const RIGHTS: u64 = call::RIGHT_SHARE | call::RIGHT_LEND | call::RIGHT_DONATE;

/// Pages, by number from the start of the memory that histories are about, and
/// where they are in the VM that gets them, or as what its owner has them.
#[derive(Clone, Copy, Debug)]
struct Piece {
    page: u64,
    order: u32,
    guest: u64,
}

/// Which of the pages that a call can be about, and how many of them at most.
#[derive(Clone, Copy, Debug)]
struct Pick {
    nth: usize,
    pages: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize, u64),
    TopUp(usize, u64),
    Destroy(usize),
    HostGives(u32, usize, Vec<Piece>),
    /// All pages of a block, one by one, to so many pages beside their own place.
    HostGivesAll(u32, usize, u64, u64),
    HostTakes(u32, Pick),
    GuestGives(u32, usize, Pick),
    GuestTakes(u32, usize, Pick),
    /// A guest's call about a range of its pages, with flags.
    Range(u32, usize, Pick, u64),
    /// A guest touches what it may not have.
    Touch(usize, u64),
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let page =
        (0..BLOCKS, select(&PAGES)).prop_map(|(block, page)| (block * 512 + page, ORDER_PAGE));
    let block = (0..BLOCKS).prop_map(|block| (block * 512, ORDER_BLOCK));
    let place = prop_oneof![9 => Just(None), 1 => (0..8u64).prop_map(Some)];
    let piece = (prop_oneof![4 => page, 1 => block], place);
    let piece = piece.prop_map(|((page, order), place)| {
        let scale = if order == ORDER_BLOCK { 512 } else { 1 };
        Piece { page, order, guest: place.map_or(page, |n| n * scale) }
    });
    // A list of which one page is in the wrong state is refused.
    prop_oneof![4 => piece.clone().prop_map(|piece| vec![piece]), 1 => vec(piece, 2..4)]
}

fn step() -> impl Strategy<Value = Step> {
    let vm = || 0..VMS;
    let gives = || select(&[call::MEM_SHARE, call::MEM_LEND, call::MEM_DONATE]);
    let takes = || {
        let often = select(&[call::MEM_UNSHARE, call::MEM_RECLAIM, call::MEM_TAKE_BACK]);
        prop_oneof![40 => often, 1 => Just(call::MEM_POISON)]
    };
    let ranges = select(&[call::MODIFY_PAGES, call::MEM_SHARE_BACK, call::MEM_ASK_BACK]);
    let page = (0..BLOCKS, select(&PAGES)).prop_map(|(block, page)| block * 512 + page);
    let pick = || {
        let pages = prop_oneof![3 => Just(1), 1 => Just(2), 2 => Just(512)];
        (any::<usize>(), pages).prop_map(|(nth, pages)| Pick { nth, pages })
    };
    prop_oneof![
        2 => (vm(), 6..12u64).prop_map(|(vm, pages)| Step::Create(vm, pages)),
        1 => (vm(), 1..3u64).prop_map(|(vm, pages)| Step::TopUp(vm, pages)),
        1 => vm().prop_map(Step::Destroy),
        7 => (gives(), vm(), pieces()).prop_map(|(f, vm, list)| Step::HostGives(f, vm, list)),
        2 => (gives(), vm(), 0..BLOCKS, 0..2u64)
            .prop_map(|(f, vm, block, shift)| Step::HostGivesAll(f, vm, block, shift)),
        7 => (takes(), pick()).prop_map(|(f, pick)| Step::HostTakes(f, pick)),
        9 => (gives(), vm(), pick()).prop_map(|(f, vm, pick)| Step::GuestGives(f, vm, pick)),
        9 => (takes(), vm(), pick()).prop_map(|(f, vm, pick)| Step::GuestTakes(f, vm, pick)),
        7 => (ranges, vm(), pick(), 1..8u64)
            .prop_map(|(f, vm, pick, flags)| Step::Range(f, vm, pick, flags)),
        2 => (vm(), page).prop_map(|(vm, page)| Step::Touch(vm, page)),
    ]
}

/// Whether a call can be about a page of a state, for its owner or borrower.
fn starts_from(function: u32, state: FrameState) -> bool {
    use FrameState::{Donated, Lent, Shared, SharedBack, UnlockedContents, UnlockedZeroed};
    match function {
        call::MEM_SHARE | call::MEM_LEND | call::MEM_DONATE => state == Donated,
        call::MEM_UNSHARE => state == Shared,
        call::MEM_RECLAIM => matches!(state, UnlockedContents | UnlockedZeroed),
        call::MEM_TAKE_BACK | call::MEM_ASK_BACK => state == SharedBack,
        call::MEM_POISON => state != FrameState::Owned,
        _ => state == Lent,
    }
}

#[derive(Clone, Copy)]
struct Guest {
    vm: u64,
    vcpu: u64,
}

/// How often each call succeeded.
type Successes = BTreeMap<&'static str, usize>;

struct World {
    host: Host,
    guests: [Option<Guest>; VMS],
    /// What a guest has to name the other one by.
    handles: [Option<u64>; VMS],
    donated: Vec<u64>,
    successes: Successes,
}

impl World {
    fn new() -> World {
        World {
            host: Host::traced(),
            guests: [None; VMS],
            handles: [None; VMS],
            donated: Vec::new(),
            successes: Successes::new(),
        }
    }

    fn note<T, E>(&mut self, what: &'static str, result: Result<T, E>) -> Option<T> {
        if result.is_ok() {
            *self.successes.entry(what).or_default() += 1;
        }
        result.ok()
    }

    fn play(&mut self, step: &Step) {
        match *step {
            Step::Create(vm, pages) => self.create(vm, pages),
            Step::TopUp(vm, pages) => {
                let Some(Guest { vm, .. }) = self.guests[vm] else { return };
                let list = self.metadata(pages);
                let result = self.host.give(call::VM_TOP_UP, vm, &list);
                self.note("top up", result);
            }
            Step::Destroy(vm) => self.destroy(vm),
            Step::HostGives(function, vm, ref list) => {
                let entries: Vec<_> = list.iter().map(|p| p.entry(FREE, p.guest)).collect();
                self.host_gives(function, vm, &entries);
            }
            Step::HostGivesAll(function, vm, block, shift) => {
                let page = |n| Piece { page: block * 512 + n, order: ORDER_PAGE, guest: 0 };
                let entry = |n| page(n).entry(FREE, block * 512 + n + shift);
                let entries: Vec<_> = (0..512).map(entry).collect();
                self.host_gives(function, vm, &entries);
            }
            Step::HostTakes(function, pick) => {
                let found = self.find(function, pick, |record| record.owner() == VmId::HOST);
                let frames: Vec<_> = found.iter().map(|&(at, _)| (at, ORDER_PAGE)).collect();
                let result = self.host.take(function, &frames);
                self.note(name(function), result);
            }
            Step::GuestGives(function, vm, pick) => {
                let (Some(handle), Some(id)) = (self.handles[vm], self.id(vm)) else { return };
                let found = self.find(function, pick, |record| record.owner() == id);
                let entry = |&(at, guest)| MemEntry::new(guest, ORDER_PAGE, at - FREE, Rights::ALL);
                let entries: Vec<_> = found.iter().map(entry).collect();
                let count = self.guest_list(vm, &entries);
                self.guest_call(vm, function, &[handle, GUEST_LIST, count]);
            }
            Step::GuestTakes(function, vm, pick) => {
                let Some(id) = self.id(vm) else { return };
                // A guest mostly has what it owns where it is in memory.
                let found = self.find(function, pick, |record| record.owner() == id);
                let entry = |&(at, _)| MemEntry::new(at - FREE, ORDER_PAGE, 0, Rights::NONE);
                let entries: Vec<_> = found.iter().map(entry).collect();
                let count = self.guest_list(vm, &entries);
                self.guest_call(vm, function, &[GUEST_LIST, count]);
            }
            Step::Range(function, vm, pick, flags) => {
                let Some(id) = self.id(vm) else { return };
                let found = self.find(function, pick, |record| record.borrower() == id);
                let Some(&(_, at)) = found.first() else { return };
                let size = found.len() as u64 * PAGE_SIZE;
                let with_flags = [0, at, size, flags];
                let is_modify = function == call::MODIFY_PAGES;
                let arguments = if is_modify { &with_flags[..] } else { &with_flags[1..3] };
                self.guest_call(vm, function, arguments);
            }
            Step::Touch(vm, page) => self.touch(vm, page * PAGE_SIZE),
        }
    }

    fn id(&self, slot: usize) -> Option<VmId> {
        let guest = self.guests[slot]?;
        Some(VmId::new(Handle::from_register(guest.vm)?.slot))
    }

    /// Pages side by side that a call can be about: their frames, and where who
    /// has them sees them. The call is made anyway if there are none.
    fn find(&self, function: u32, pick: Pick, whose: impl Fn(Record) -> bool) -> Vec<(u64, u64)> {
        let ledger = self.host.escrow.ledger();
        let fits = |at: u64| {
            let record = ledger.get(PhysAddr(at))?;
            let fits = whose(record) && starts_from(function, record.state()?);
            fits.then_some((at, record.guest().0))
        };
        let blocks = (0..BLOCKS).flat_map(|block| PAGES.map(|page| block * 512 + page));
        let firsts: Vec<_> = blocks.filter_map(|page| fits(FREE + page * PAGE_SIZE)).collect();
        let first = firsts.get(pick.nth % firsts.len().max(1)).map_or(FREE, |&(at, _)| at);
        (0..pick.pages as u64).map_while(|n| fits(first + n * PAGE_SIZE)).collect()
    }

    /// Pages for tables; taken home when their VM is gone.
    fn metadata(&mut self, pages: u64) -> Vec<MemEntry> {
        let list = self.host.fresh_metadata(pages);
        self.donated.extend(list.iter().map(|entry| entry.frame));
        list
    }

    /// A VM that runs, with a page for its lists and a handle of the other.
    fn create(&mut self, slot: usize, pages: u64) {
        if self.guests[slot].is_some() {
            return;
        }
        let list = self.metadata(pages);
        let [list, count] = self.host.list(&list);
        let Ok([vm, ..]) = self.host.call(call::VM_CREATE, &[list, count]) else { return };
        let [vcpu, ..] = self.host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
        self.host.call(call::VM_START, &[vm]).unwrap();
        let page = LISTS + slot as u64 * PAGE_SIZE;
        self.host.share(vm, &[MemEntry::new(page, ORDER_PAGE, GUEST_LIST, Rights::ALL)]).unwrap();
        self.guests[slot] = Some(Guest { vm, vcpu });
        self.note("create", Ok::<_, ()>(()));
        let [Some(one), Some(other)] = self.guests else { return };
        for (slot, (to, object)) in [(one, other), (other, one)].into_iter().enumerate() {
            let grant = [to.vm, object.vm, RIGHTS, 0, 1 << 39];
            self.handles[slot] = self.host.call(call::CAP_GRANT, &grant).ok().map(|x| x[0]);
        }
    }

    fn destroy(&mut self, slot: usize) {
        let Some(Guest { vm, .. }) = self.guests[slot] else { return };
        let result = self.host.call(call::VM_DESTROY, &[vm]);
        if self.note("destroy", result).is_none() {
            return;
        }
        self.guests[slot] = None;
        self.handles = [None; VMS];
        self.host.reclaim(&[(LISTS + slot as u64 * PAGE_SIZE, ORDER_PAGE)]).unwrap();
        self.donated.retain(|&page| self.host.reclaim(&[(page, ORDER_PAGE)]).is_err());
    }

    fn host_gives(&mut self, function: u32, vm: usize, entries: &[MemEntry]) {
        let Some(Guest { vm, .. }) = self.guests[vm] else { return };
        let result = self.host.give(function, vm, entries);
        self.note(name(function), result);
    }

    /// Writes a guest's list; returns how many entries it has.
    fn guest_list(&mut self, slot: usize, entries: &[MemEntry]) -> u64 {
        // A page has room for so many.
        let entries = &entries[..entries.len().min(128)];
        let table = self.host.escrow.machine.table(PhysAddr(LISTS + slot as u64 * PAGE_SIZE));
        for (words, entry) in table.chunks(4).zip(entries) {
            let reports = entry.refcount as u64 | (entry.safe as u64) << 32;
            for (word, value) in words.iter().zip([entry.frame, entry.guest, reports, 0]) {
                word.store(value, Ordering::Relaxed);
            }
        }
        entries.len() as u64
    }

    fn guest_call(&mut self, slot: usize, function: u32, arguments: &[u64]) {
        let Some(Guest { vcpu, .. }) = self.guests[slot] else { return };
        let mut args = [0; 8];
        args[0] = function.into();
        args[1..=arguments.len()].copy_from_slice(arguments);
        let result = self.host.run(vcpu, |escrow, mut run| {
            match escrow.guest_call(&mut Scratch::new(), &mut run, &args) {
                GuestCall::Return([0, ..]) | GuestCall::Ask(_) => Ok(()),
                GuestCall::Return([x0, ..]) => Err(Error::from_register(x0)),
            }
        });
        self.note(guest_name(function), result);
    }

    fn touch(&mut self, slot: usize, at: u64) {
        let Some(Guest { vcpu, .. }) = self.guests[slot] else { return };
        let esr = Ec::DATA_ABORT_LOWER.bits() | IL | abort::ISV | 2 << 22 | 3 << 16 | 0x7;
        let exit = GuestExit::Abort(Trap { esr, far: at, ipa: Some(Ipa(at)) });
        let ids = GuestIds::new(|_, _| 0, 39);
        self.host.run(vcpu, |escrow, mut run| {
            escrow.guest_exit(&mut Scratch::new(), &mut run, exit, &ids);
        });
    }

    /// All VMs end, and all that they had comes home.
    fn end(&mut self) {
        for slot in 0..VMS {
            self.destroy(slot);
        }
        for at in (FREE..FREE + BLOCKS * BLOCK_SIZE).step_by(PAGE_SIZE as usize) {
            if !self.host.reaches(at) {
                // What is broken stays where it is.
                let _ = self.host.reclaim(&[(at, ORDER_PAGE)]);
            }
        }
        self.donated.retain(|&page| self.host.reclaim(&[(page, ORDER_PAGE)]).is_err());
    }
}

impl Piece {
    /// An entry that says where the pages are to be.
    fn entry(&self, base: u64, guest: u64) -> MemEntry {
        MemEntry::new(base + self.page * PAGE_SIZE, self.order, guest * PAGE_SIZE, Rights::ALL)
    }
}

fn name(function: u32) -> &'static str {
    match function {
        call::MEM_SHARE => "share",
        call::MEM_LEND => "lend",
        call::MEM_DONATE => "donate",
        call::MEM_UNSHARE => "unshare",
        call::MEM_RECLAIM => "reclaim",
        call::MEM_TAKE_BACK => "take back",
        _ => "poison",
    }
}

fn guest_name(function: u32) -> &'static str {
    match function {
        call::MEM_SHARE => "guest: share",
        call::MEM_LEND => "guest: lend",
        call::MEM_DONATE => "guest: donate",
        call::MEM_UNSHARE => "guest: unshare",
        call::MEM_RECLAIM => "guest: reclaim",
        call::MEM_TAKE_BACK => "guest: take back",
        call::MODIFY_PAGES => "guest: modify",
        call::MEM_SHARE_BACK => "guest: share back",
        call::MEM_ASK_BACK => "guest: ask back",
        _ => "guest: poison",
    }
}

#[test]
fn the_tables_of_a_new_machine_are_in_its_trace() {
    let host = Host::traced();
    let report = host.escrow.machine.trace().check();
    assert!(report.counts.writes > 1024, "{report:?}");
    assert_eq!(report.counts.breaks, 0);
}

#[test]
fn histories_keep_the_rules_of_the_architecture() {
    let successes = RefCell::new(Successes::new());
    let breaks = RefCell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: HISTORIES,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&vec(step(), 30..90), |steps| {
        let mut world = World::new();
        (0..VMS).for_each(|vm| world.create(vm, 8));
        steps.iter().for_each(|step| world.play(step));
        world.end();
        *breaks.borrow_mut() += world.host.escrow.machine.trace().check().counts.breaks;
        for (what, times) in world.successes {
            *successes.borrow_mut().entry(what).or_default() += times;
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let successes = successes.into_inner();
    println!("{} entries broken; {successes:?}", breaks.into_inner());
    for what in [
        "create",
        "top up",
        "destroy",
        "share",
        "lend",
        "donate",
        "unshare",
        "reclaim",
        "take back",
        "guest: share",
        "guest: lend",
        "guest: donate",
        "guest: unshare",
        "guest: modify",
        "guest: share back",
    ] {
        assert!(successes.contains_key(what), "no history has it: {what}");
    }
}
