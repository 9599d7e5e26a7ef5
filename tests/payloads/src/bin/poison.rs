// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that the host says is broken: out of use for good, whoever had it.
//!
//! A payload of its own: what is poisoned does not come home, and no test of another
//! is to find it in its arena.

#![no_std]
#![no_main]

use escrow_abi::{Error, FrameState, MemEntry, call};
use escrow_payloads::expect::{is_out_of_reach, refusal_of};
use escrow_payloads::guest::{Agent, FREE, routine};
use escrow_payloads::host::{Counts, frame, frame_state, page_at, poke, refused};
use escrow_payloads::{Host, Outcome, Test, check_eq, fail, hvc, payload, tests};

payload!("poison", TESTS);

const TESTS: &[Test] =
    tests![what_is_broken_is_out_of_use, what_a_guest_owns_and_breaks_is_out_of_use];

/// Synchronous external abort, of data, from EL1.
const EXTERNAL_ABORT: (u64, u64) = (0x25, 0x10);

fn poison(host: &Host, entries: &[MemEntry]) -> hvc::Answer {
    hvc::call(call::MEM_POISON, &host.lists.put(entries))
}

/// A guest's access to an address ends in an external abort.
fn aborts(agent: &Agent, at: u64) -> Outcome {
    for (routine, write) in [(routine::ldr_x(), 0), (routine::str_x(), 1)] {
        let results = agent.call(routine, &[0x77, at, 1])?;
        let Some(exception) = results.exception else { fail!("no exception at {at:#x}") };
        let seen = (exception.esr >> 26, exception.esr & 0x3f);
        check_eq!(seen, EXTERNAL_ABORT, "{exception:x?}");
        check_eq!((exception.esr >> 6 & 1, exception.far), (write, at), "{exception:x?}");
    }
    Ok(())
}

fn what_is_broken_is_out_of_use(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let [home, shared, lent, whole, other] =
        [host.page(), host.page(), host.page(), host.page(), host.page()];
    poke(lent, 0x5ec2);
    host.lists.share(agent.vm, &[page_at(shared, FREE)]).map_err(refused("MEM_SHARE"))?;
    let entries = [page_at(lent, FREE + 0x1000), page_at(whole, FREE + 0x2000)];
    host.lists.lend(agent.vm, &entries).map_err(refused("MEM_LEND"))?;
    // The guest has all of it in its TLB.
    check_eq!(agent.load(FREE + 0x1000)?, 0x5ec2);
    agent.store(FREE, 1)?;
    agent.store(FREE + 0x2000, 2)?;

    let before = Counts::read();
    // One call is about one borrower.
    let mixed = poison(host, &[frame(home), frame(lent)]);
    check_eq!(mixed, Err(refusal_of(Error::MixedVms, 1, 0)));
    check_eq!(Counts::read(), before);
    poison(host, &[frame(home)]).map_err(refused("MEM_POISON"))?;
    poison(host, &[frame(shared), frame(lent)]).map_err(refused("MEM_POISON"))?;
    host.poisoned = 3;
    let after = before
        .moved(FrameState::Owned, FrameState::Poisoned, 1)
        .moved(FrameState::Shared, FrameState::Poisoned, 1)
        .moved(FrameState::Lent, FrameState::Poisoned, 1);
    check_eq!(Counts::read(), after);

    for at in [home, shared, lent] {
        check_eq!(frame_state(at)?, FrameState::Poisoned);
        is_out_of_reach(at)?;
        let wrong = refusal_of(Error::WrongState, 0, FrameState::Poisoned as u64);
        check_eq!(poison(host, &[frame(at)]), Err(wrong));
        check_eq!(host.lists.reclaim(&[frame(at)]), Err(wrong));
        check_eq!(host.lists.lend(agent.vm, &[page_at(at, FREE + 0x9000)]), Err(wrong));
    }
    // The guest hears of it, and keeps what is beside it.
    aborts(&agent, FREE)?;
    aborts(&agent, FREE + 0x1000)?;
    check_eq!(agent.load(FREE + 0x2000)?, 2);
    // Nothing can be slipped in there.
    for at in [FREE, FREE + 0x1000] {
        let taken = refusal_of(Error::GuestMapped, 0, 0);
        check_eq!(host.lists.lend(agent.vm, &[page_at(other, at)]), Err(taken));
        check_eq!(host.lists.share(agent.vm, &[page_at(other, at)]), Err(taken));
    }
    // The VM's end changes nothing of it; the rest comes home.
    host.end(agent.vm)?;
    for at in [home, shared, lent] {
        check_eq!(frame_state(at)?, FrameState::Poisoned);
        is_out_of_reach(at)?;
    }
    check_eq!(frame_state(whole)?, FrameState::Owned);
    Ok(())
}

/// A page that no test before this one has poisoned.
fn sound_page(host: &mut Host) -> Outcome<u64> {
    loop {
        let at = host.page();
        if frame_state(at)? == FrameState::Owned {
            return Ok(at);
        }
    }
}

fn what_a_guest_owns_and_breaks_is_out_of_use(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let [broken, whole] = [sound_page(host)?, sound_page(host)?];
    let entries = [page_at(broken, FREE), page_at(whole, FREE + 0x1000)];
    let [list, count] = host.lists.put(&entries);
    hvc::call(call::MEM_DONATE, &[agent.vm, list, count]).map_err(refused("MEM_DONATE"))?;
    agent.store(FREE, 1)?;
    agent.store(FREE + 0x1000, 2)?;
    let before = Counts::read();
    poison(host, &[frame(broken)]).map_err(refused("MEM_POISON"))?;
    host.poisoned = 1;
    check_eq!(Counts::read(), before.moved(FrameState::Donated, FrameState::Poisoned, 1));
    check_eq!(frame_state(broken)?, FrameState::Poisoned);
    aborts(&agent, FREE)?;
    check_eq!(agent.load(FREE + 0x1000)?, 2);
    host.end(agent.vm)?;
    check_eq!(frame_state(whole)?, FrameState::Owned);
    is_out_of_reach(broken)
}
