// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that the device tree has and the machine has not, or that it says no CPU may
//! touch: EL2's own accesses to it fail, and the machine goes on. Runs on a tree of the
//! test's making (`tests/tests/boot/memory.rs`), which has both where this expects them.

#![no_std]
#![no_main]

use escrow_abi::{Error, FrameState, PAGE_SIZE, call};
use escrow_payloads::expect::{is_out_of_reach, refusal_of};
use escrow_payloads::guest::{Agent, FREE};
use escrow_payloads::host::{Counts, fill, frame, frame_state, is_zero, page_at, peek, refused};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, hvc, payload, tests};

payload!("broken", TESTS);

const TESTS: &[Test] = tests![
    lists_in_memory_that_does_not_answer,
    lists_in_memory_that_is_not_to_be_mapped,
    what_is_nobodys_is_out_of_reach,
    a_long_list_that_ends_in_nothing,
    absent_pages_do_not_come_home,
    absent_pages_are_no_metadata,
    escrow_goes_on,
];

/// 4 pages that are not there.
const ABSENT: u64 = 0x8000_0000;
/// A reserved region with `no-map`, which no node refers to.
const NOBODYS: u64 = 0x5000_0000;
/// One that has a phandle.
const NO_MAP: u64 = 0x5040_0000;

/// Makes each call that takes a list, with the list in a place.
fn all_list_calls(vm: u64, list: u64, expected: hvc::Refusal) -> Outcome {
    let with_vm = [call::VM_TOP_UP, call::MEM_LEND, call::MEM_SHARE, call::MEM_DONATE];
    for function in with_vm {
        check_eq!(hvc::call(function, &[vm, list, 1]), Err(expected), "{function:#x}");
    }
    let without = [
        call::VM_CREATE,
        call::MEM_UNSHARE,
        call::MEM_RECLAIM,
        call::MEM_TAKE_BACK,
        call::MEM_POISON,
    ];
    for function in without {
        check_eq!(hvc::call(function, &[list, 1]), Err(expected), "{function:#x}");
    }
    Ok(())
}

fn lists_in_memory_that_does_not_answer(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    let before = Counts::read();
    all_list_calls(vm, ABSENT, refusal_of(Error::BrokenMemory, 0, 0))?;
    check_eq!(Counts::read(), before);
    host.end(vm)
}

fn lists_in_memory_that_is_not_to_be_mapped(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    let before = Counts::read();
    all_list_calls(vm, NO_MAP, refusal_of(Error::Pinned, 0, 0))?;
    all_list_calls(vm, NOBODYS, refusal_of(Error::NotOwner, 0, 0))?;
    check_eq!(Counts::read(), before);
    host.end(vm)
}

/// What no CPU may touch leaves the host's map, unless something in the tree needs it.
fn what_is_nobodys_is_out_of_reach(_host: &mut Host) -> Outcome {
    let size = 2 << 20;
    for at in [NOBODYS, NOBODYS + PAGE_SIZE, NOBODYS + size - 8] {
        is_out_of_reach(at)?;
    }
    check_eq!(frame_state(NO_MAP)?, FrameState::Pinned);
    for at in [NOBODYS - 8, NOBODYS + size, NO_MAP, NO_MAP + size - 8] {
        peek(at);
    }
    Ok(())
}

fn a_long_list_that_ends_in_nothing(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    let before = Counts::read();
    let seen = hvc::call(call::MEM_LEND, &[vm, ABSENT, 512]);
    check_eq!(seen, Err(refusal_of(Error::BrokenMemory, 0, 0)));
    check_eq!(Counts::read(), before);
    host.end(vm)
}

fn absent_pages_do_not_come_home(host: &mut Host) -> Outcome {
    let vm = host.vm(8)?;
    let good = host.page();
    fill(good, 7);
    let absent = ABSENT + PAGE_SIZE;
    let entries = [page_at(good, 0x8000_0000), page_at(absent, 0x8000_1000)];
    host.lists.lend(vm, &entries).map_err(refused("MEM_LEND"))?;
    hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
    let told = host.lists.reclaim(&[frame(good), frame(absent)]);
    check_eq!(told.map(|[x1, broken, ..]| [x1, broken]), Ok([0, 1]));
    host.poisoned += 1;
    check!(is_zero(good, PAGE_SIZE), "what is there is zeroed");
    check_eq!(frame_state(good)?, FrameState::Owned);
    check_eq!(frame_state(absent)?, FrameState::Poisoned);
    host.bring_home()
}

fn absent_pages_are_no_metadata(host: &mut Host) -> Outcome {
    let absent = ABSENT + 2 * PAGE_SIZE;
    let at = host.arena.pages(3);
    let pages = [frame(at), frame(absent), frame(at + PAGE_SIZE), frame(at + 2 * PAGE_SIZE)];
    let [list, count] = host.lists.put(&pages);
    let [vm, broken, ..] =
        hvc::call(call::VM_CREATE, &[list, count]).map_err(refused("VM_CREATE"))?;
    check_eq!(broken, 1);
    host.poisoned += 1;
    let [_, _, metadata, free] = hvc::call(call::VM_INFO, &[vm]).map_err(refused("VM_INFO"))?;
    check_eq!((metadata, free), (3, 2));
    check_eq!(frame_state(absent)?, FrameState::Poisoned);
    let [list, count] = host.lists.put(&[frame(ABSENT + 3 * PAGE_SIZE)]);
    let none = hvc::call(call::VM_CREATE, &[list, count]);
    check_eq!(none, Err(refusal_of(Error::NoMemory, 0, 1)));
    host.poisoned += 1;
    host.end(vm)
}

/// After all that, a guest lives as ever.
fn escrow_goes_on(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let lent = host.page();
    host.lists.lend(agent.vm, &[page_at(lent, FREE)]).map_err(refused("MEM_LEND"))?;
    agent.store(FREE, 77)?;
    check_eq!(agent.load(FREE)?, 77);
    host.end(agent.vm)
}
