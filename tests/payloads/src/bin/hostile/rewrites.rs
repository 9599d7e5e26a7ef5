// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists that other CPUs rewrite while a call reads them. Each word is read once, or
//! the call would check one thing and do another: what is done must be what some list
//! could have asked for, and what no list could ask for is never done.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrayvec::ArrayVec;
use escrow_abi::{Error, FrameState, MemEntry, PAGE_SIZE, call};
use escrow_payloads::expect::{is_in_reach, is_out_of_reach, refusal, refusal_of};
use escrow_payloads::host::{Lists, frame, frame_state, page_at, poke, refused};
use escrow_payloads::random::Random;
use escrow_payloads::spoil::Elsewhere;
use escrow_payloads::{Host, Outcome, Test, check, check_eq, cpus, fail, hvc, tests};

use crate::seed;

pub const TESTS: &[Test] = tests![
    entries_change_while_they_are_read,
    frames_change_places_while_they_are_read,
    the_list_goes_away_while_it_is_read,
];

/// Entries of the list.
const ENTRIES: usize = 6;
/// Words of an entry: frame, guest address, references, users and what is reserved.
const WORDS: usize = 4;
/// Metadata pages of a VM.
const METADATA: u64 = 4;

/// What other CPUs write into one entry: for each of its words what is right, and
/// what is not.
#[derive(Clone, Default)]
struct Choices {
    right: [ArrayVec<u64, 4>; WORDS],
    wrong: [ArrayVec<u64, 24>; WORDS],
}

/// The list, and those who rewrite it.
struct Rewriters<'a> {
    list: u64,
    choices: &'a [Choices; ENTRIES],
    stop: AtomicBool,
    rewrites: AtomicU64,
}

impl Rewriters<'_> {
    fn word(&self, entry: usize, word: usize) -> u64 {
        self.list + (entry * size_of::<MemEntry>() + word * 8) as u64
    }

    /// Writes one of the right values to each word.
    fn set_right(&self, random: &mut Random) {
        for (n, choices) in self.choices.iter().enumerate() {
            for (word, right) in choices.right.iter().enumerate() {
                if !right.is_empty() {
                    poke(self.word(n, word), random.pick(right));
                }
            }
        }
    }

    /// Rewrites words at random until it is told to stop. Wrong ones do not stay for long, so
    /// that some calls find none.
    fn rewrite(&self, mut random: Random) {
        // The words for which there is a choice.
        let words = (0..ENTRIES * WORDS).map(|n| (n / WORDS, n % WORDS));
        let words: ArrayVec<(usize, usize), { ENTRIES * WORDS }> = words
            .filter(|&(entry, word)| {
                let Choices { right, wrong } = &self.choices[entry];
                right[word].len() + wrong[word].len() > 1
            })
            .collect();
        let others = cpus::count() as u64 - 1;
        while !self.stop.load(Ordering::Relaxed) {
            let (entry, word) = random.pick(&words);
            let choices = &self.choices[entry];
            let at = self.word(entry, word);
            if random.below(20 * others) == 0 && !choices.wrong[word].is_empty() {
                poke(at, random.pick(&choices.wrong[word]));
                for _ in 0..random.below(30) {
                    cpus::relax();
                }
            }
            poke(at, random.pick(&choices.right[word]));
            self.rewrites.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// CPU 0 works, the others rewrite.
fn against(rewriters: &Rewriters<'_>, seed: u64, work: impl Fn() -> Outcome + Sync) -> Outcome {
    cpus::try_on_all(|n| {
        if n != 0 {
            rewriters.rewrite(Random::new(seed << 8 | n as u64));
            return Ok(());
        }
        let outcome = work();
        rewriters.stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    let rewrites = rewriters.rewrites.load(Ordering::Relaxed);
    check!(rewrites > 1000, "only {rewrites} rewrites");
    Ok(())
}

/// What came of the calls.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    refused: AtomicU64,
}

impl Tally {
    /// Makes calls until there were `enough` of both kinds, and as many as there should be.
    ///
    /// # Errors
    /// A call's; or of one kind there was none.
    fn until_both(
        &self,
        rounds: u64,
        enough: u64,
        mut call: impl FnMut(u64) -> Outcome<bool>,
    ) -> Outcome {
        // Other CPUs may not have had their turn for a long time.
        let end = cpus::deadline(20);
        for round in 0.. {
            let counter = if call(round)? { &self.done } else { &self.refused };
            counter.fetch_add(1, Ordering::Relaxed);
            let [done, refused] = [&self.done, &self.refused].map(|n| n.load(Ordering::Relaxed));
            if done >= enough && refused >= enough && done + refused >= rounds {
                break;
            }
            check!(!cpus::is_past(end), "{done} done, {refused} refused");
        }
        Ok(())
    }
}

/// How many of so many calls must be done, and how many refused: fewer where CPUs share
/// a real one, and do not rewrite while another reads.
fn often(rounds: u64) -> u64 {
    if cpus::count() > 2 { 1 } else { rounds / 20 }
}

fn rounds(host: &Host) -> u64 {
    host.board.number("rounds").unwrap_or(if cpus::count() > 2 { 100 } else { 1500 })
}

fn entries_change_while_they_are_read(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let elsewhere = Elsewhere::find(host)?;
    let pages = host.arena.pages(2 * ENTRIES as u64 + METADATA);
    let list = Lists::new(&mut host.arena);
    let spare = host.page();
    let metadata = pages + 2 * ENTRIES as u64 * PAGE_SIZE;
    // Two frames and two guest addresses for each entry, its own.
    let frames = |n: usize| [0, 1].map(|k| pages + (2 * n as u64 + k) * PAGE_SIZE);
    let guests = |n: usize| [0, 1].map(|k| 0x1000 * (2 * n as u64 + k + 1));
    let choices: [Choices; ENTRIES] = core::array::from_fn(|n| {
        let mut choices = Choices::default();
        choices.right[0].extend(frames(n));
        choices.right[1].extend(guests(n).map(|at| at | 7));
        choices.right[2].extend([0, 1 | 1 << 32, 5 | 5 << 32]);
        choices.right[3].push(0);
        // Bad orders, half a block, no RAM, Escrow's.
        choices.wrong[0].extend([frames(n)[0] | 1, frames(n)[1] & !0xfff | 0x1009]);
        choices.wrong[0].extend(elsewhere.addresses().take(12));
        choices.wrong[1].extend([0x7000, 0x8000 | 8, 1 << 39 | 7, !0xfff | 7, 1 << 63 | 3]);
        choices.wrong[2].extend([1, 2 | 1 << 32, 1 << 32]);
        choices.wrong[3].extend([1, 1 << 32]);
        choices
    });
    let stop = AtomicBool::new(false);
    let rewrites = AtomicU64::new(0);
    let rewriters = Rewriters { list: list.address(), choices: &choices, stop, rewrites };
    let (seed, rounds) = (seed(host), rounds(host));
    let lists = host.lists;
    let tally = Tally::default();
    rewriters.set_right(&mut Random::new(seed));
    against(&rewriters, seed, || {
        let mut vm = lists.vm_of(metadata, METADATA)?;
        tally.until_both(rounds, often(rounds), |round| {
            let lend = round % 2 == 0;
            let function = if lend { call::MEM_LEND } else { call::MEM_SHARE };
            if !lend {
                // Reports have no place here: all zero, or refused.
                for n in 0..ENTRIES {
                    poke(rewriters.word(n, 2), 0);
                }
            }
            let answer = hvc::call(function, &[vm, list.address(), ENTRIES as u64]);
            let is_away = |at: u64| frame_state(at).map(|state| state != FrameState::Owned);
            if let Err(refusal) = answer {
                check!(is_a_reason(refusal), "{refusal:?}");
                for at in (0..ENTRIES).flat_map(frames) {
                    check!(!is_away(at)?, "{at:#x} is away; the call said {refusal:?}");
                }
                return Ok(false);
            }
            for n in 0..ENTRIES {
                // One of the two frames, at one of the two addresses.
                let [first, second] = frames(n);
                check!(is_away(first)? != is_away(second)?, "entry {n} of round {round}");
                let there = if is_away(first)? { first } else { second };
                if lend {
                    is_out_of_reach(there)?;
                } else {
                    is_in_reach(there)?;
                }
                is_in_reach(if there == first { second } else { first })?;
                let mut taken = 0;
                for guest in guests(n) {
                    match lists.share(vm, &[page_at(spare, guest)]) {
                        Ok(_) => {
                            lists.unshare(&[frame(spare)]).map_err(refused("MEM_UNSHARE"))?;
                        }
                        Err(hvc::Refusal { error: Error::GuestMapped, .. }) => taken += 1,
                        Err(other) => fail!("MEM_SHARE: {other:?}"),
                    }
                }
                check_eq!(taken, 1, "guest addresses of entry {n}, round {round}");
            }
            hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
            lists.bring_home(pages..metadata + METADATA * PAGE_SIZE)?;
            vm = lists.vm_of(metadata, METADATA)?;
            Ok(true)
        })
    })?;
    host.destroy_all()?;
    host.bring_home()
}

/// A refusal that one of the wrong words gives reason to.
fn is_a_reason(refusal: hvc::Refusal) -> bool {
    let hvc::Refusal { error, index, detail } = refusal;
    let detail_is_right = match error {
        Error::InvalidArgument
        | Error::Misaligned
        | Error::InvalidAddress
        | Error::NotOwner
        | Error::AddressOverflow => detail == 0,
        Error::Excess => detail == 1 || detail == u64::MAX,
        Error::Accessible => detail == 1,
        _ => false,
    };
    detail_is_right && index < ENTRIES as u64
}

fn frames_change_places_while_they_are_read(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    // Every entry may name any of the frames, so that many name the same; of what is taken
    // home some is shared and some is not.
    let count = 6;
    let pages = host.arena.pages(count);
    let list = Lists::new(&mut host.arena);
    let frames = |n: u64| pages + n * PAGE_SIZE;
    let mut give: [Choices; ENTRIES] = core::array::from_fn(|_| Choices::default());
    let used = 3;
    for (n, choices) in (0..used).zip(&mut give) {
        choices.right[0].extend((0..4).map(|k| frames((n + k) % count)));
        choices.right[1].push((0x1000 * (n + 1)) | 7);
        choices.right[2].push(0);
        choices.right[3].push(0);
    }
    let stop = AtomicBool::new(false);
    let rewrites = AtomicU64::new(0);
    let rewriters = Rewriters { list: list.address(), choices: &give, stop, rewrites };
    let (seed, rounds) = (seed(host), rounds(host));
    let lists = host.lists;
    let vm = host.vm(METADATA)?;
    let tally = Tally::default();
    rewriters.set_right(&mut Random::new(seed));
    against(&rewriters, seed, || {
        tally.until_both(rounds, often(rounds), |round| {
            let answer = hvc::call(call::MEM_SHARE, &[vm, list.address(), used]);
            let mut away: ArrayVec<MemEntry, 8> = ArrayVec::new();
            for n in 0..count {
                if frame_state(frames(n))? != FrameState::Owned {
                    away.push(frame(frames(n)));
                }
            }
            let [_, borrowed, ..] = hvc::call(call::VM_INFO, &[vm]).map_err(refused("VM_INFO"))?;
            check_eq!(borrowed, away.len() as u64, "round {round}");
            match answer {
                Ok(_) => {
                    // As many frames as entries, so no two were one.
                    check_eq!(away.len() as u64, used, "round {round}");
                    lists.unshare(&away).map_err(refused("MEM_UNSHARE"))?;
                    Ok(true)
                }
                Err(seen) => {
                    let overlap = seen.error == Error::Overlap && seen.index < used;
                    check!(overlap && away.is_empty(), "{seen:?}, {} away", away.len());
                    Ok(false)
                }
            }
        })
    })?;
    host.end(vm)
}

fn the_list_goes_away_while_it_is_read(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    // The second page of the list is lent and fetched by CPU 1, over and over.
    let per_page = PAGE_SIZE / size_of::<MemEntry>() as u64;
    let pages = host.arena.pages(per_page + 1);
    let list = Lists::new(&mut host.arena);
    let lists = [Lists::new(&mut host.arena), Lists::new(&mut host.arena)];
    let metadata = host.arena.pages(2 * METADATA);
    let second = list.address() + PAGE_SIZE;
    let entries: ArrayVec<MemEntry, 512> =
        (0..=per_page).map(|n| page_at(pages + n * PAGE_SIZE, 0x1000 * (n + 1))).collect();
    let bare: ArrayVec<MemEntry, 512> =
        (0..=per_page).map(|n| frame(pages + n * PAGE_SIZE)).collect();
    let stop = AtomicBool::new(false);
    let rounds = rounds(host);
    let tally = Tally::default();
    list.put(&entries);
    let vm = lists[0].vm_of(metadata, METADATA)?;
    let last = entries[per_page as usize];
    let at_home = cpus::Barrier::new();
    cpus::try_on_all(|n| match n {
        0 => {
            at_home.wait()?;
            let outcome = tally.until_both(rounds, 1, |_| {
                match hvc::call(call::MEM_SHARE, &[vm, list.address(), per_page + 1]) {
                    Ok(_) => {
                        check_eq!(frame_state(last.frame)?, FrameState::Shared);
                        lists[0].unshare(&bare).map_err(refused("MEM_UNSHARE"))?;
                        Ok(true)
                    }
                    // The list is not the caller's, or it came home empty, or CPU 1 is
                    // at its words.
                    Err(seen) => {
                        let gone = refusal(Error::NotOwner);
                        let empty = refusal_of(Error::InvalidArgument, per_page, 0);
                        let half = refusal_of(Error::InvalidAddress, per_page, 0);
                        check!(seen == gone || seen == empty || seen == half, "{seen:?}");
                        check_eq!(frame_state(pages)?, FrameState::Owned);
                        Ok(false)
                    }
                }
            });
            stop.store(true, Ordering::SeqCst);
            outcome
        }
        1 => {
            at_home.wait()?;
            let own = metadata + METADATA * PAGE_SIZE;
            while !stop.load(Ordering::SeqCst) {
                let thief = lists[1].vm_of(own, METADATA)?;
                lists[1].lend(thief, &[page_at(second, 0x1000)]).map_err(refused("MEM_LEND"))?;
                hvc::call(call::VM_DESTROY, &[thief]).map_err(refused("VM_DESTROY"))?;
                lists[1].bring_home(own..own + METADATA * PAGE_SIZE)?;
                lists[1].reclaim(&[frame(second)]).map_err(refused("MEM_RECLAIM"))?;
                for _ in 0..20 {
                    // What was in it is zeroed; it is written again.
                    // SAFETY: the page is this CPU's, and at home.
                    unsafe { (second as *mut MemEntry).write_volatile(last) };
                    cpus::relax();
                }
            }
            Ok(())
        }
        _ => at_home.wait(),
    })?;
    host.end(vm)
}
