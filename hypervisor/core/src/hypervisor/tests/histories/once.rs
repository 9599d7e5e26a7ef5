// SPDX-License-Identifier: MIT OR Apache-2.0

//! Histories that found something once, as they were shrunk. Seeds say nothing
//! any more when the strategies change; these do.

use escrow_abi::{BLOCK_SIZE, Rights};

use super::super::fake::{LITTLE_RAM, RAM};
use super::Stage;
use super::steps::{BadList, Gift, Pages, Part, Place, Step, Taking, To, Who};
use super::world::GUEST_END;

fn create(pages: u64) -> Step {
    Step::Create { pages, start: true, gic: None, time: None }
}

fn grant(to: usize, object: usize) -> Step {
    Step::Grant { to, object: To::Vm(object), rights: 7, window: (0, GUEST_END) }
}

fn give(who: Who, gift: Gift, to: To, pages: Pages) -> Step {
    let parts = vec![Part { pages, place: Place::Same, rights: Rights::ALL }];
    Step::Give { who, gift, to, parts, fault: None }
}

fn take(taking: Taking, parts: Vec<Pages>) -> Step {
    Step::Take { who: Who::Host, taking, parts, fault: None }
}

fn play(steps: &[Step]) {
    for ram in [LITTLE_RAM, RAM] {
        Stage::new(ram).play(steps);
    }
}

/// The handle was looked at before the list.
#[test]
fn a_guest_shares_with_its_host_by_a_bad_list() {
    let by = Who::Guest(0);
    play(&[create(2), give(by, Gift::Share, To::Host, Pages::Run(0, 1))]);
    let bad = Step::BadList { who: by, gift: Gift::Share, to: To::Host, bad: BadList::Empty };
    play(&[create(2), bad]);
}

/// It was taken away from the dead.
#[test]
fn a_handle_on_a_dead_guest_is_revoked() {
    let revoke = Step::Revoke { from: 2, which: To::Nth(1) };
    play(&[
        create(4),
        create(5),
        create(3),
        grant(2, 0),
        grant(2, 1),
        Step::Destroy { vm: 1 },
        revoke,
    ]);
}

/// Whether the host is heir was decided by the first entry.
#[test]
fn a_list_of_what_the_host_owns_and_what_it_inherits() {
    let block = Pages::Block(0x40_0000);
    play(&[
        create(9),
        give(Who::Host, Gift::Donate, To::Vm(0), block),
        Step::Destroy { vm: 0 },
        // Metadata first.
        take(Taking::Reclaim, vec![Pages::Known(1_000_003, 1), block]),
        take(Taking::Reclaim, vec![Pages::Known(39, 1), block]),
    ]);
}

/// Runs of pages that go beyond a block, or beyond what can be taken.
#[test]
fn more_is_unshared_than_is_shared() {
    for first in [371, 1113] {
        play(&[
            create(3),
            create(3),
            grant(0, 1),
            grant(1, 0),
            give(Who::Host, Gift::Donate, To::Vm(0), Pages::Block(0)),
            give(Who::Host, Gift::Share, To::Vm(1), Pages::Block(0x20_0000)),
            take(Taking::Unshare, vec![Pages::Known(first, 512)]),
        ]);
    }
}

/// A page that a guest has lent was opened to it: whether its map has it shows
/// in nothing but what it reaches.
#[test]
fn a_block_is_opened_to_the_guest_that_gave_it_page_by_page() {
    let between = Pages::Known(0, 0);
    let pages = Pages::Run(0, 512);
    let open = Step::ShareBack { vm: 1, at: (between, 512) };
    play(&[
        create(5),
        create(5),
        grant(0, 1),
        give(Who::Host, Gift::Donate, To::Vm(0), pages),
        give(Who::Guest(0), Gift::Lend, To::Vm(0), pages),
        open,
        Step::Touch { vm: 0, at: Pages::Run(0x5000, 1) },
        Step::ShareBack { vm: 0, at: (Pages::Run(0x6000, 1), 1) },
        Step::Take {
            who: Who::Guest(0),
            taking: Taking::TakeBack,
            parts: vec![Pages::Run(0x7000, 1)],
            fault: None,
        },
    ]);
}

/// What chance hardly comes to: the second of two blocks is refused, and the first is lent.
#[test]
fn a_vm_ends_between_the_portions_of_a_lend() {
    let stage = Stage::new(LITTLE_RAM);
    let part = |block| Part {
        pages: Pages::Block(block * BLOCK_SIZE),
        place: Place::Same,
        rights: Rights::ALL,
    };
    let lend = |to| Step::Give {
        who: Who::Host,
        gift: Gift::Lend,
        to: To::Vm(to),
        parts: vec![part(0), part(1)],
        fault: None,
    };
    stage.play(&[create(4), create(4), lend(0), Step::Destroy { vm: 0 }]);
    let told = stage.tally.borrow().to_string();
    assert!(told.contains("others came between: HandleRevoked"), "{told}");
}
