// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest gives pages up, with or without what is in them; its consent is
//! asked for everything else.

use escrow_abi::{BLOCK_SIZE, Error, FrameState, MODIFY_MAX, call};
use escrow_payloads::expect::{is_in_reach, is_out_of_reach, refusal_of, refuses_with};
use escrow_payloads::guest::{Agent, CODE, FREE, FREE_BLOCK, MAILBOX};
use escrow_payloads::host::{
    Counts, block, block_at, fill, frame, frame_state, is_filled, is_zero, page_at, peek, refused,
};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, tests};

pub const TESTS: &[Test] = tests![
    locked_pages_stay,
    unlocked_with_zeroing_comes_home_zeroed,
    unlocked_with_contents_comes_home_with_them,
    what_is_unlocked_is_the_guest_s_until_it_is_fetched,
    a_guest_unlocks_blocks,
    a_guest_unlocks_part_of_a_block,
    a_guest_s_arguments_are_checked,
    a_guest_unlocks_only_what_it_was_lent,
];

const UNLOCK: u64 = call::MODIFY_UNLOCK;
const SANITIZE: u64 = call::MODIFY_SANITIZE;

fn modify(agent: &Agent, at: u64, size: u64, flags: u64) -> Outcome<u64> {
    agent.hvc(&[call::MODIFY_PAGES as u64, 0, at, size, flags])
}

fn locked_pages_stay(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let page = host.page();
    let at = host.arena.blocks(1);
    let entries = [page_at(page, FREE), block_at(at, FREE_BLOCK)];
    host.lists.lend(agent.vm, &entries).map_err(refused("MEM_LEND"))?;
    agent.store(FREE, 0x5ec7e7)?;
    let locked = refusal_of(Error::Locked, 0, 0);
    refuses_with(locked, &[page], || host.lists.reclaim(&[frame(page)]))?;
    refuses_with(locked, &[at], || host.lists.reclaim(&[block(at)]))?;
    refuses_with(locked, &[at], || host.lists.reclaim(&[frame(at + 0x3000)]))?;
    is_out_of_reach(page)?;
    is_out_of_reach(at + 0x3000)?;
    check_eq!(agent.load(FREE)?, 0x5ec7e7);
    host.end(agent.vm)
}

fn unlocked_with_zeroing_comes_home_zeroed(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let pages = host.arena.pages(2);
    fill(pages, 1);
    fill(pages + 0x1000, 2);
    let entries = [page_at(pages, FREE), page_at(pages + 0x1000, FREE + 0x1000)];
    host.lists.lend(agent.vm, &entries).map_err(refused("MEM_LEND"))?;
    agent.store(FREE + 0x1ff8, 0x5ec7e7)?;
    check_eq!(modify(&agent, FREE, 0x2000, UNLOCK | SANITIZE)?, 0);
    check_eq!(frame_state(pages)?, FrameState::UnlockedZeroed);
    is_out_of_reach(pages)?;
    host.lists.reclaim(&[frame(pages), frame(pages + 0x1000)]).map_err(refused("MEM_RECLAIM"))?;
    check!(is_zero(pages, 0x2000));
    is_in_reach(pages)?;
    host.end(agent.vm)
}

fn unlocked_with_contents_comes_home_with_them(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let page = host.page();
    fill(page, 1);
    host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    check!(agent.load(FREE + 8)? != 0);
    check_eq!(modify(&agent, FREE, 0x1000, UNLOCK)?, 0);
    check_eq!(frame_state(page)?, FrameState::UnlockedContents);
    host.lists.reclaim(&[frame(page)]).map_err(refused("MEM_RECLAIM"))?;
    check!(is_filled(page, 1));
    // And so does what the guest wrote.
    host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    agent.store(FREE + 0x88, 0x9e55a9e)?;
    check_eq!(modify(&agent, FREE, 0x1000, UNLOCK | call::MODIFY_FLUSH)?, 0);
    host.lists.reclaim(&[frame(page)]).map_err(refused("MEM_RECLAIM"))?;
    check_eq!(peek(page + 0x88), 0x9e55a9e);
    host.end(agent.vm)
}

fn what_is_unlocked_is_the_guest_s_until_it_is_fetched(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let page = host.page();
    host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    agent.store(FREE, 0x5ec7e7)?;
    check_eq!(modify(&agent, FREE, 0x1000, UNLOCK | SANITIZE)?, 0);
    check_eq!(agent.load(FREE)?, 0, "zeroed at once");
    // What it writes there now, the host must not see: it was zeroed before.
    agent.store(FREE, 0x1a7e)?;
    host.lists.reclaim(&[frame(page)]).map_err(refused("MEM_RECLAIM"))?;
    check!(is_zero(page, 0x1000), "written after it was unlocked: {:#x}", peek(page));
    host.end(agent.vm)
}

fn a_guest_unlocks_blocks(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let blocks = host.arena.blocks(2);
    for at in [blocks, blocks + 0x10_0000, blocks + BLOCK_SIZE + 0x1f_f000] {
        fill(at, 3);
    }
    let entries =
        [block_at(blocks, FREE_BLOCK), block_at(blocks + BLOCK_SIZE, FREE_BLOCK + BLOCK_SIZE)];
    let before = Counts::read();
    host.lists.lend(agent.vm, &entries).map_err(refused("MEM_LEND"))?;
    check_eq!(modify(&agent, FREE_BLOCK, BLOCK_SIZE, UNLOCK | SANITIZE)?, 0);
    check_eq!(modify(&agent, FREE_BLOCK + BLOCK_SIZE, BLOCK_SIZE, UNLOCK)?, 0);
    host.lists
        .reclaim(&[block(blocks), block(blocks + BLOCK_SIZE)])
        .map_err(refused("MEM_RECLAIM"))?;
    check_eq!(Counts::read(), before);
    check!(is_zero(blocks, BLOCK_SIZE));
    check!(is_filled(blocks + BLOCK_SIZE + 0x1f_f000, 3));
    host.end(agent.vm)
}

fn a_guest_unlocks_part_of_a_block(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let at = host.arena.blocks(1);
    for n in 0..512 {
        fill(at + n * 0x1000, 4);
    }
    host.lists.lend(agent.vm, &[block_at(at, FREE_BLOCK)]).map_err(refused("MEM_LEND"))?;
    // The last page but one, and one that the host fetches alone.
    let [zeroed, kept] = [at + 510 * 0x1000, at + 5 * 0x1000];
    check_eq!(modify(&agent, FREE_BLOCK + 510 * 0x1000, 0x1000, UNLOCK | SANITIZE)?, 0);
    check_eq!(modify(&agent, FREE_BLOCK + 5 * 0x1000, 0x1000, UNLOCK)?, 0);
    let locked = refusal_of(Error::Locked, 1, 0);
    let list = [frame(zeroed), frame(zeroed + 0x1000)];
    refuses_with(locked, &[], || host.lists.reclaim(&list))?;
    // The page comes out of the middle of the guest's block.
    host.lists.reclaim(&[frame(kept), frame(zeroed)]).map_err(refused("MEM_RECLAIM"))?;
    check!(is_filled(kept, 4));
    check!(is_zero(zeroed, 0x1000));
    for neighbour in [kept - 0x1000, kept + 0x1000, zeroed - 0x1000, zeroed + 0x1000] {
        is_out_of_reach(neighbour)?;
    }
    // The guest has all others, with what is in them.
    check!(agent.load(FREE_BLOCK + 4 * 0x1000 + 8)? != 0);
    check!(agent.load(FREE_BLOCK + 511 * 0x1000 + 8)? != 0);
    host.end(agent.vm)?;
    check!(is_zero(at, 5 * 0x1000), "what the guest held is zeroed");
    check!(is_filled(kept, 4), "what it gave back is the host's");
    Ok(())
}

fn a_guest_s_arguments_are_checked(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let page = host.page();
    host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    let unlock = call::MODIFY_PAGES as u64;
    let before = Counts::read();
    for (arguments, error) in [
        ([unlock, 1, FREE, 0x1000, UNLOCK], Error::InvalidArgument),
        ([unlock, 0, FREE, 0x1000, 0], Error::InvalidArgument),
        ([unlock, 0, FREE, 0x1000, 8], Error::InvalidArgument),
        ([unlock, 0, FREE, 0x1000, UNLOCK | 1 << 63], Error::InvalidArgument),
        ([unlock, 0, FREE + 8, 0x1000, UNLOCK], Error::Misaligned),
        ([unlock, 0, FREE, 0x800, UNLOCK], Error::Misaligned),
        ([unlock, 0, FREE, 0, UNLOCK], Error::InvalidSize),
        ([unlock, 0, FREE, MODIFY_MAX + 0x1000, UNLOCK], Error::InvalidSize),
        ([unlock, 0, FREE, !0xfff, UNLOCK], Error::InvalidSize),
        ([unlock, 0, !0xfff, 0x1000, UNLOCK], Error::AddressOverflow),
        ([unlock, 0, !0xfff, 0x2000, UNLOCK], Error::AddressOverflow),
        ([unlock, 0, 1 << 47, 0x1000, UNLOCK], Error::AddressOverflow),
    ] {
        let answer = agent.hvc(&arguments)?;
        check_eq!(Error::from_register(answer), Some(error), "{arguments:x?}");
        check_eq!(Counts::read(), before, "{arguments:x?}");
    }
    check_eq!(frame_state(page)?, FrameState::Lent);
    host.end(agent.vm)
}

fn a_guest_unlocks_only_what_it_was_lent(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let page = host.page();
    host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    fill_from_guest(&agent)?;
    let before = Counts::read();
    // Nothing there; half there; shared with it; never its own.
    for (at, size, error) in [
        (FREE + 0x1000, 0x1000, Error::InvalidAddress),
        (FREE, 0x2000, Error::InvalidAddress),
        (MAILBOX, 0x1000, Error::Denied),
        (0, 0x1000, Error::InvalidAddress),
        (CODE + 0x4000_0000, 0x1000, Error::InvalidAddress),
    ] {
        for flags in [UNLOCK, UNLOCK | SANITIZE, SANITIZE] {
            let answer = modify(&agent, at, size, flags)?;
            check_eq!(Error::from_register(answer), Some(error), "{at:#x}, {flags}");
            check_eq!(Counts::read(), before);
        }
    }
    // All or nothing: not even zeroed.
    check_eq!(agent.load(FREE)?, 0x5ec7e7);
    check_eq!(frame_state(page)?, FrameState::Lent);
    host.end(agent.vm)
}

fn fill_from_guest(agent: &Agent) -> Outcome {
    agent.store(FREE, 0x5ec7e7)
}
