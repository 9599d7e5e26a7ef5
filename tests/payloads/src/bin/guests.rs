// SPDX-License-Identifier: MIT OR Apache-2.0

//! As many guests as Escrow was told, and no more. The boot test
//! (`tests/tests/boot/machines.rs`) gives both the same number.

#![no_std]
#![no_main]

use arrayvec::ArrayVec;
use escrow_abi::{Error, PAGE_SIZE};
use escrow_payloads::expect::refusal;
use escrow_payloads::host::frame;
use escrow_payloads::{Host, Outcome, Test, check_eq, fail, payload, tests};

payload!("guests", TESTS);

const TESTS: &[Test] = tests![no_more_than_escrow_was_told];

/// Pages of a VM.
const PAGES: u64 = 4;
/// The most that this asks for.
const MOST: usize = 8;

fn no_more_than_escrow_was_told(host: &mut Host) -> Outcome {
    let guests = host.board.number("guests").unwrap_or(0) as usize;
    if !(1..=MOST).contains(&guests) {
        fail!("guests={guests}");
    }
    let mut vms = ArrayVec::<u64, MOST>::new();
    for _ in 0..guests {
        vms.push(host.vm(PAGES)?);
    }
    let at = host.arena.pages(PAGES);
    let list: ArrayVec<_, 8> = (0..PAGES).map(|n| frame(at + n * PAGE_SIZE)).collect();
    check_eq!(host.lists.vm_create(&list), Err(refusal(Error::TableFull)));
    // A slot that is free again is enough.
    if let Some(vm) = vms.pop() {
        host.end(vm)?;
    }
    vms.push(host.lists.vm_of(at, PAGES)?);
    check_eq!(host.lists.vm_create(&list), Err(refusal(Error::TableFull)));
    vms.into_iter().try_for_each(|vm| host.end(vm))
}
