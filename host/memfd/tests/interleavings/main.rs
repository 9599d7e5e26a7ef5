// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every interleaving of those who give a folio away, take it back, use it and
//! give it up, with a hypervisor that may refuse each call.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p escrow-memfd --test interleavings`

#![cfg(loom)]

mod world;

use loom::sync::Arc;
use loom::thread;
use world::{Actor, Answers, Patience, Start, World};

/// How many interleavings were seen, and how many sets of answers.
#[derive(Default)]
struct Tally {
    scenes: u64,
    interleavings: u64,
}

impl Tally {
    /// Plays a scene in every order, with every set of answers that the
    /// hypervisor may give to the actors. With a bound, only orders in which
    /// actors are interrupted so often.
    fn play(&mut self, bound: Option<usize>, start: Start, patience: Patience, actors: &[Actor]) {
        let calls: u32 = actors.iter().map(|actor| actor.calls()).sum();
        for answers in 0..1 << calls {
            // Not loom's: it counts what loom does.
            let seen = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
            let (actors, count) = (actors.to_vec(), seen.clone());
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = bound;
            builder.check(move || {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                scene(start, patience, &actors, answers);
            });
            self.scenes += 1;
            self.interleavings += seen.load(std::sync::atomic::Ordering::Relaxed);
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        println!("{} scenes, {} interleavings", self.scenes, self.interleavings);
    }
}

fn scene(start: Start, patience: Patience, actors: &[Actor], mut answers: u32) {
    let world = Arc::new(World::new(start));
    let mut parts = actors.iter().map(|&actor| {
        let own = Answers(answers & ((1 << actor.calls()) - 1));
        answers >>= actor.calls();
        (actor, own)
    });
    let Some((first, own)) = parts.next() else { return };
    let others: Vec<_> = parts
        .map(|(actor, own)| {
            let world = world.clone();
            thread::spawn(move || world.act(actor, own, patience))
        })
        .collect();
    world.act(first, own, patience);
    for other in others {
        other.join().unwrap();
    }
    world.check();
}

/// All of two.
fn pairs_from(start: Start) {
    let mut tally = Tally::default();
    for (i, &one) in Actor::ALL.iter().enumerate() {
        for &other in &Actor::ALL[i..] {
            tally.play(None, start, Patience(0), &[one, other]);
        }
    }
}

#[test]
fn pairs_when_it_is_home() {
    pairs_from(Start::Home);
}

#[test]
fn pairs_when_it_is_mapped() {
    pairs_from(Start::Mapped);
}

#[test]
fn pairs_when_it_is_lent() {
    pairs_from(Start::Lent);
}

#[test]
fn pairs_when_it_is_shared() {
    pairs_from(Start::Shared);
}

#[test]
fn pairs_when_it_is_quarantined() {
    pairs_from(Start::Quarantined);
}

/// A lender and two others, interrupted up to twice.
fn threes_from(start: Start) {
    let mut tally = Tally::default();
    let others = [
        [Actor::Fault, Actor::Pin],
        [Actor::Fault, Actor::Punch],
        [Actor::Fault, Actor::Speculate],
        [Actor::Speculate, Actor::Access],
        [Actor::Speculate, Actor::Punch],
        [Actor::Speculate, Actor::Release],
        [Actor::Pin, Actor::Punch],
        [Actor::Access, Actor::Share(2)],
        [Actor::Hold, Actor::Hold],
        [Actor::Hold, Actor::Access],
        [Actor::Hold, Actor::Speculate],
        [Actor::Hold, Actor::Punch],
        [Actor::Lend(2), Actor::Speculate],
        [Actor::Lend(2), Actor::Fault],
    ];
    for [one, other] in others {
        tally.play(Some(2), start, Patience(0), &[Actor::Lend(1), one, other]);
    }
}

#[test]
fn threes_when_it_is_mapped() {
    threes_from(Start::Mapped);
}

#[test]
fn threes_when_it_is_lent() {
    threes_from(Start::Lent);
}

/// A lender that waits for those that go away by themselves.
#[test]
fn patience() {
    let mut tally = Tally::default();
    for actor in [Actor::Speculate, Actor::Access, Actor::Hold, Actor::Pin] {
        tally.play(None, Start::Mapped, Patience(2), &[Actor::Lend(1), actor]);
    }
}

/// Those who forget the lock, and those who need none: each transition is one
/// caller's alone.
#[test]
fn without_the_lock() {
    let mut tally = Tally::default();
    let [one, other] = [Actor::LendUnlocked(1), Actor::LendUnlocked(2)];
    tally.play(None, Start::Home, Patience(0), &[one, other]);
    for third in [Actor::Speculate, Actor::Access] {
        tally.play(Some(2), Start::Home, Patience(0), &[one, other, third]);
    }
    for start in [Start::Lent, Start::Shared, Start::Quarantined] {
        tally.play(None, start, Patience(0), &[Actor::FetchUnlocked, one]);
        tally.play(None, start, Patience(0), &[Actor::FetchUnlocked; 2]);
        tally.play(Some(2), start, Patience(0), &[Actor::FetchUnlocked, one, other]);
    }
}
