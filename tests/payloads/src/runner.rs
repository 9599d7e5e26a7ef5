// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sets the machine up, runs the tests, and says how they ended.

use escrow_abi::FrameState;

use crate::arena::Arena;
use crate::board::Board;
use crate::host::{Counts, Host, Lists};
use crate::{Failure, Outcome, check_eq, cpus, interrupts, mmu, println, smc};

/// A test.
pub struct Test {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&mut Host) -> Outcome,
}

/// A list of tests: functions by their names. One that is defined and not
/// listed is a warning of the compiler's.
#[macro_export]
macro_rules! tests {
    ($($test:ident),+ $(,)?) => {
        &[$($crate::Test { name: stringify!($test), run: $test }),+]
    };
}

/// What [`payload!`](crate::payload) calls.
pub fn main(name: &str, tree: usize, lists: &[&[Test]]) -> ! {
    let board = Board::read(tree);
    smc::set_conduit(board.psci_by_hvc);
    mmu::build(&board);
    mmu::enable();
    // `only=TEXT` on the command line picks tests by their names.
    let only = board.argument("only").unwrap_or("");
    let tests = || lists.iter().copied().flatten().filter(|test| test.name.contains(only));
    let count = tests().count();
    println!("payload {name}: {count} tests");

    interrupts::set_up(&board);
    if let Err(failure) = cpus::start(&board) {
        panic!("{failure:?}");
    }
    let Some(mut arena) = Arena::find(&board) else { panic!("no room for the arena") };
    let mut host = Host { lists: Lists::new(&mut arena), board, arena, poisoned: 0 };
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for test in tests() {
        match run(test, &mut host) {
            Ok(()) => {
                passed += 1;
                println!("test {name}::{} ... ok", test.name);
            }
            Err(Failure::Failed(why)) => {
                failed += 1;
                println!("test {name}::{} ... FAILED: {why}", test.name);
            }
            Err(Failure::Skipped(why)) => {
                skipped += 1;
                println!("test {name}::{} ... skipped: {why}", test.name);
            }
        }
    }
    println!("payload {name}: {passed} passed, {failed} failed, {skipped} skipped");
    smc::system_off()
}

/// Runs a test, and checks what holds after every test: Escrow answers, and
/// all pages and VMs are what they were.
fn run(test: &Test, host: &mut Host) -> Outcome {
    host.arena.reset();
    host.lists = Lists::new(&mut host.arena);
    host.poisoned = 0;
    let before = host.board.has_escrow.then(Counts::read);
    let outcome = (test.run)(host);
    interrupts::stop_timer();
    let Some(before) = before else { return outcome };
    let outcome = outcome.and_then(|()| {
        let expected = before.moved(FrameState::Owned, FrameState::Poisoned, host.poisoned);
        check_eq!(Counts::read(), expected, "after the test");
        Ok(())
    });
    // The next test is not to suffer for it.
    if outcome.is_err()
        && let Err(Failure::Failed(why)) = host.recover()
    {
        println!("payload: cannot clean up: {why}");
    }
    outcome
}
