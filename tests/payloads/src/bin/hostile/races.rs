// SPDX-License-Identifier: MIT OR Apache-2.0

//! All CPUs after the same pages, for the same VMs, which come and go meanwhile. Who
//! wins is open; that each page is given and taken by turns is not, nor that the
//! ledger, the VMs' counts and the host's map tell the same in the end.

use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use escrow_abi::{Error, FrameState, MemEntry, PAGE_SIZE, call};
use escrow_payloads::expect::{is_in_reach, is_out_of_reach, refusal};
use escrow_payloads::guest::{Agent, Exit, routine, run_once};
use escrow_payloads::host::{Counts, Lists, block, block_at, frame, frame_state, page_at, refused};
use escrow_payloads::random::Random;
use escrow_payloads::{Host, Outcome, Test, check, check_eq, cpus, fail, hvc, interrupts, tests};

use crate::{all_lists, rounds, seed};

pub const TESTS: &[Test] = tests![
    all_after_the_same_pages,
    one_of_all_destroys_a_vm,
    one_of_all_has_the_metadata,
    vms_end_while_they_run,
    doorbells_end_while_they_ring,
];

/// Pages that all are after: the first of a block, which they are after as well.
const PAGES: usize = 24;
/// VMs at a time.
const VMS: usize = 3;
/// Metadata pages of each.
const METADATA: u64 = 6;

/// What the race is about.
struct Prize {
    block: u64,
    /// How often each page was given, and taken back.
    gives: [AtomicU64; PAGES],
    takes: [AtomicU64; PAGES],
    /// The newest VM of each line, and what its metadata pages are.
    vms: [AtomicU64; VMS],
    metadata: u64,
    done: AtomicU64,
    refused: AtomicU64,
}

impl Prize {
    fn tally<'a>(&'a self, tallies: &'a [AtomicU64; PAGES], list: &[MemEntry]) {
        for entry in list {
            let first = (entry.frame & !0xfff) - self.block;
            let whole = entry.frame & 0xfff != 0;
            let count = if whole { PAGES } else { 1 };
            let first = (first / PAGE_SIZE) as usize;
            for tally in &tallies[first..first + count] {
                tally.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn count(&self, answer: &hvc::Answer) {
        let counter = if answer.is_ok() { &self.done } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// One of the racers.
struct Racer<'a> {
    prize: &'a Prize,
    lists: &'a Lists,
    random: Random,
}

impl Racer<'_> {
    /// Pages of the prize, each once; at times all of it.
    fn pick(&mut self, entry: impl Fn(u64) -> MemEntry, whole: MemEntry) -> ArrayVec<MemEntry, 4> {
        if self.random.below(6) == 0 {
            return [whole].into_iter().collect();
        }
        let count = 1 + self.random.below(4);
        let first = self.random.below(PAGES as u64);
        (0..count).map(|n| entry((first + n * 5) % PAGES as u64)).collect()
    }

    fn vm(&mut self) -> (usize, u64) {
        let line = self.random.below(VMS as u64) as usize;
        (line, self.prize.vms[line].load(Ordering::SeqCst))
    }

    fn give(&mut self) -> Outcome {
        let base = self.prize.block;
        let list = self.pick(|n| page_at(base + n * PAGE_SIZE, n * PAGE_SIZE), block_at(base, 0));
        let (_, vm) = self.vm();
        let answer = if self.random.below(2) == 0 {
            self.lists.share(vm, &list)
        } else {
            self.lists.lend(vm, &list)
        };
        self.prize.count(&answer);
        match answer {
            Ok(_) => self.prize.tally(&self.prize.gives, &list),
            Err(hvc::Refusal {
                error: Error::WrongState | Error::GuestMapped | Error::HandleRevoked,
                index,
                ..
            }) if index < list.len() as u64 => {}
            Err(other) => fail!("given: {other:?}"),
        }
        Ok(())
    }

    fn take(&mut self) -> Outcome {
        let base = self.prize.block;
        let list = self.pick(|n| frame(base + n * PAGE_SIZE), block(base));
        let answer = if self.random.below(3) == 0 {
            self.lists.unshare(&list)
        } else {
            self.lists.reclaim(&list)
        };
        self.prize.count(&answer);
        match answer {
            Ok(_) => self.prize.tally(&self.prize.takes, &list),
            Err(hvc::Refusal {
                error: Error::WrongState | Error::Locked | Error::MixedVms | Error::NoMemory,
                index,
                ..
            }) if index < list.len() as u64 => {}
            Err(other) => fail!("taken: {other:?}"),
        }
        Ok(())
    }

    /// Ends a VM and, if it was this CPU that ended it, makes the next.
    fn end(&mut self) -> Outcome {
        let (line, vm) = self.vm();
        let answer = hvc::call(call::VM_DESTROY, &[vm]);
        self.prize.count(&answer);
        match answer {
            Ok(_) => {}
            Err(seen) if seen == refusal(Error::HandleRevoked) => return Ok(()),
            Err(other) => fail!("VM_DESTROY: {other:?}"),
        }
        // Nobody else knows of its metadata.
        let metadata = self.prize.metadata + line as u64 * METADATA * PAGE_SIZE;
        let list: [MemEntry; METADATA as usize] =
            core::array::from_fn(|n| frame(metadata + n as u64 * PAGE_SIZE));
        self.lists.reclaim(&list).map_err(refused("MEM_RECLAIM of metadata"))?;
        let next = self.lists.vm_of(metadata, METADATA)?;
        let before = self.prize.vms[line].swap(next, Ordering::SeqCst);
        check_eq!(before, vm, "two CPUs have ended one VM");
        Ok(())
    }

    fn step(&mut self) -> Outcome {
        match self.random.below(16) {
            0 => self.end(),
            1..=8 => self.give(),
            _ => self.take(),
        }
    }
}

fn all_after_the_same_pages(host: &mut Host) -> Outcome {
    let lists = all_lists(host);
    let metadata = host.arena.pages(METADATA * VMS as u64);
    let block = host.arena.blocks(1);
    let prize = Prize {
        block,
        gives: [const { AtomicU64::new(0) }; PAGES],
        takes: [const { AtomicU64::new(0) }; PAGES],
        vms: [const { AtomicU64::new(0) }; VMS],
        metadata,
        done: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    };
    for (n, vm) in (0..).zip(&prize.vms) {
        let pages = metadata + n * METADATA * PAGE_SIZE;
        vm.store(host.lists.vm_of(pages, METADATA)?, Ordering::SeqCst);
    }
    let before = Counts::read();
    let (seed, rounds) = (seed(host), rounds(host, 8_000));
    cpus::try_on_all(|n| {
        let random = Random::new(seed << 8 | n as u64);
        let mut racer = Racer { prize: &prize, lists: &lists[n], random };
        (0..rounds).try_for_each(|_| racer.step())
    })?;
    let [done, refusals] = [&prize.done, &prize.refused].map(|n| n.load(Ordering::SeqCst));
    let calls = done + refusals;
    check!(done > calls / 10 && refusals > calls / 10, "{done} done, {refusals} refused");
    settle(&prize, before)?;
    host.destroy_all()?;
    host.bring_home()?;
    // It is one block again.
    let vm = host.vm(2)?;
    host.lists.lend(vm, &[block_at(block, 0)]).map_err(refused("MEM_LEND of the block"))?;
    host.end(vm)
}

/// All that tells of the pages tells the same.
fn settle(prize: &Prize, before: Counts) -> Outcome {
    let mut away = 0;
    for n in 0..PAGES {
        let at = prize.block + n as u64 * PAGE_SIZE;
        let [gives, takes] = [&prize.gives, &prize.takes].map(|t| t[n].load(Ordering::SeqCst));
        let state = frame_state(at)?;
        let is_away = state != FrameState::Owned;
        check_eq!(gives, takes + is_away as u64, "page {n} is {state:?}");
        away += is_away as u64;
        if matches!(state, FrameState::Owned | FrameState::Shared) {
            is_in_reach(at)?;
        } else {
            check_eq!(state, FrameState::Lent);
            is_out_of_reach(at)?;
        }
    }
    // The rest of the block goes with the pages, or not at all.
    let mut rest = 0;
    for n in PAGES as u64..512 {
        rest += u64::from(frame_state(prize.block + n * PAGE_SIZE)? != FrameState::Owned);
    }
    let now = Counts::read();
    let of = |counts: &Counts, state| counts.of(state);
    let borrowed = of(&now, FrameState::Lent) + of(&now, FrameState::Shared);
    let borrowed_before = of(&before, FrameState::Lent) + of(&before, FrameState::Shared);
    check_eq!(borrowed - borrowed_before, away + rest, "the ledger's counters");
    check_eq!(of(&now, FrameState::Metadata), of(&before, FrameState::Metadata));
    // What the living have is not more than what is away; the dead have the rest.
    let mut living = 0;
    for vm in &prize.vms {
        let vm = vm.load(Ordering::SeqCst);
        let [_, borrowed, metadata, _] =
            hvc::call(call::VM_INFO, &[vm]).map_err(refused("VM_INFO"))?;
        check_eq!(metadata, METADATA);
        living += borrowed;
    }
    check!(living <= away + rest, "{living} pages of the living, {} away", away + rest);
    Ok(())
}

fn one_of_all_destroys_a_vm(host: &mut Host) -> Outcome {
    let lists = all_lists(host);
    let pages = host.arena.pages(3);
    let vm = AtomicU64::new(0);
    let winners = AtomicU64::new(0);
    let [ready, ended] = [cpus::Barrier::new(), cpus::Barrier::new()];
    let rounds = rounds(host, 400);
    cpus::try_on_all(|n| {
        for round in 0..rounds {
            if n == 0 {
                winners.store(0, Ordering::SeqCst);
                vm.store(lists[n].vm_of(pages, 3)?, Ordering::SeqCst);
            }
            ready.wait()?;
            let handle = vm.load(Ordering::SeqCst);
            match hvc::call(call::VM_DESTROY, &[handle]) {
                Ok(_) => {
                    winners.fetch_add(1, Ordering::SeqCst);
                }
                Err(seen) => check_eq!(seen, refusal(Error::HandleRevoked), "round {round}"),
            }
            // Dead for all, whoever it was.
            let info = hvc::call(call::VM_INFO, &[handle]);
            check_eq!(info, Err(refusal(Error::HandleRevoked)), "round {round}");
            ended.wait()?;
            if n == 0 {
                check_eq!(winners.load(Ordering::SeqCst), 1, "round {round}");
                let list = [0, 1, 2].map(|n| frame(pages + n * PAGE_SIZE));
                lists[n].reclaim(&list).map_err(refused("MEM_RECLAIM"))?;
            }
        }
        Ok(())
    })
}

/// The flags that are sent to the doorbell of this handle, and to no other one.
fn flags_of(doorbell: u64) -> u64 {
    1 << (doorbell >> 24 & 0x3f)
}

fn doorbells_end_while_they_ring(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let lists = all_lists(host);
    let page = host.page();
    let [newest, done] = [const { AtomicU64::new(0) }; 2];
    let rounds = rounds(host, 400);
    cpus::try_on_all(|n| {
        if n != 0 {
            // The one that lives, as far as this CPU knows, until its end and after it.
            while done.load(Ordering::Acquire) == 0 {
                let doorbell = newest.load(Ordering::Acquire);
                if doorbell == 0 {
                    cpus::relax();
                    continue;
                }
                match hvc::call(call::BELL_SEND, &[doorbell, flags_of(doorbell)]) {
                    Ok([before, ..]) => {
                        check_eq!(before & !flags_of(doorbell), 0);
                    }
                    Err(seen) => check_eq!(seen, refusal(Error::HandleRevoked)),
                }
            }
            return Ok(());
        }
        let receive = |doorbell| -> Outcome<u64> {
            let [before, ..] = hvc::call(call::BELL_RECEIVE, &[doorbell, u64::MAX])
                .map_err(refused("BELL_RECEIVE"))?;
            Ok(before)
        };
        let one_life = || -> Outcome {
            let vm = lists[0].vm_of(page, 1)?;
            let [doorbell, ..] =
                hvc::call(call::BELL_CREATE, &[vm, 0]).map_err(refused("BELL_CREATE"))?;
            // Of what is still under way to the last one, nothing comes here.
            check_eq!(receive(doorbell)?, 0);
            newest.store(doorbell, Ordering::Release);
            let deadline = cpus::deadline(20);
            let heard = loop {
                check!(!cpus::is_past(deadline), "nobody rings");
                match receive(doorbell)? {
                    0 => cpus::relax(),
                    heard => break heard,
                }
            };
            check_eq!(heard, flags_of(doorbell));
            // They are at it.
            hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
            let ring = hvc::call(call::BELL_SEND, &[doorbell, 1]);
            check_eq!(ring, Err(refusal(Error::HandleRevoked)));
            lists[0].reclaim(&[frame(page)]).map_err(refused("MEM_RECLAIM"))?;
            Ok(())
        };
        let outcome = (0..rounds).try_for_each(|_| one_life());
        done.store(1, Ordering::Release);
        outcome
    })
}

fn one_of_all_has_the_metadata(host: &mut Host) -> Outcome {
    // All make a VM of the same pages; who wins ends it, all fetch the pages.
    let lists = all_lists(host);
    let pages = host.arena.pages(3);
    let list = [0, 1, 2].map(|n| frame(pages + n * PAGE_SIZE));
    let (made, fetched) = (AtomicU64::new(0), AtomicU64::new(0));
    let [ready, tried, ended] = [const { cpus::Barrier::new() }; 3];
    let rounds = rounds(host, 400);
    cpus::try_on_all(|n| {
        for round in 1..=rounds {
            ready.wait()?;
            let answer = lists[n].vm_create(&list);
            let wrong = FrameState::Metadata as u64;
            let lost = escrow_payloads::expect::refusal_of(Error::WrongState, 0, wrong);
            match answer {
                Ok(_) => {
                    made.fetch_add(1, Ordering::SeqCst);
                }
                Err(seen) => check_eq!(seen, lost, "round {round}"),
            }
            tried.wait()?;
            check_eq!(made.load(Ordering::SeqCst), round, "VMs made");
            if let Ok(vm) = answer {
                hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
            }
            ended.wait()?;
            match lists[n].reclaim(&list) {
                Ok(_) => {
                    fetched.fetch_add(1, Ordering::SeqCst);
                }
                Err(seen) => {
                    let home = escrow_payloads::expect::refusal_of(Error::WrongState, 0, 0);
                    check_eq!(seen, home, "round {round}");
                }
            }
        }
        Ok(())
    })?;
    check_eq!(fetched.load(Ordering::SeqCst), rounds, "pages fetched");
    Ok(())
}

fn vms_end_while_they_run(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    // Each CPU runs its guest, and is after the guest of the CPU beside it: its pages,
    // its end. What it may do changes nothing; what ends a guest ends it for good.
    let lists = all_lists(host);
    let pages = host.arena.pages(Agent::PAGES * cpus::MAX_CPUS as u64);
    let agents: [AtomicU64; cpus::MAX_CPUS] = [const { AtomicU64::new(0) }; cpus::MAX_CPUS];
    let [ready, ended] = [const { cpus::Barrier::new() }; 2];
    let (seed, rounds) = (seed(host), rounds(host, 60));
    cpus::try_on_all(|n| {
        let mut random = Random::new(seed << 8 | n as u64);
        let own = |n: usize| pages + Agent::PAGES * n as u64 * PAGE_SIZE;
        let next = (n + 1) % cpus::count();
        for _ in 0..rounds {
            let agent = Agent::start_with(&lists[n], own(n))?;
            agent.command(routine::spin(), &[0]);
            agents[n].store(agent.vm, Ordering::SeqCst);
            ready.wait()?;
            let victim = agents[next].load(Ordering::SeqCst);
            let code = own(next) + (Agent::PAGES - 2) * PAGE_SIZE;
            for _ in 0..1 + random.below(6) {
                interrupts::start_timer(20 + random.below(100));
                let exit = run_once(agent.vcpu, [0; 3]);
                interrupts::stop_timer();
                let dead = exit == Err(refusal(Error::HandleRevoked));
                check!(dead || exit == Ok(Exit::Ready), "{exit:x?}");
                match lists[n].reclaim(&[frame(code)]) {
                    Err(seen) if seen == refusal(Error::Locked) => {}
                    // It is dead, and this fetched what it had, or somebody has.
                    Ok(_) => {}
                    Err(hvc::Refusal { error: Error::WrongState, .. }) => {}
                    Err(other) => fail!("MEM_RECLAIM of the code: {other:?}"),
                }
                if random.below(2) == 0 {
                    match hvc::call(call::VM_DESTROY, &[victim]) {
                        Ok(_) => {}
                        Err(seen) if seen == refusal(Error::Busy) => {}
                        Err(seen) => check_eq!(seen, refusal(Error::HandleRevoked)),
                    }
                }
            }
            ended.wait()?;
            match hvc::call(call::VM_DESTROY, &[agent.vm]) {
                Ok(_) => {}
                Err(seen) => check_eq!(seen, refusal(Error::HandleRevoked)),
            }
            ready.wait()?;
            lists[n].bring_home(own(n)..own(n) + Agent::PAGES * PAGE_SIZE)?;
            ended.wait()?;
        }
        Ok(())
    })?;
    let kept = pages..pages + Agent::PAGES * cpus::count() as u64 * PAGE_SIZE;
    for at in kept.step_by(PAGE_SIZE as usize) {
        check_eq!(frame_state(at)?, FrameState::Owned);
    }
    Ok(())
}
