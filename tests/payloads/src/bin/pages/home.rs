// SPDX-License-Identifier: MIT OR Apache-2.0

//! The end of a VM: every page it had comes home, zeroed, in whatever state it
//! died in, and nothing of it is left behind.

use escrow_abi::{BLOCK_SIZE, Error, FrameState, LIST_MAX, MemEntry, PAGE_SIZE, call};
use escrow_payloads::expect::{is_in_reach, is_out_of_reach, refusal_of, refuses_with};
use escrow_payloads::guest::{Agent, FREE, FREE_BLOCK};
use escrow_payloads::host::{
    Counts, block, block_at, fill, frame, frame_state, is_filled, is_zero, page_at, peek, refused,
};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, hvc, tests};

use arrayvec::ArrayVec;

pub const TESTS: &[Test] = tests![
    lent_pages_come_home_zeroed,
    lent_blocks_come_home_zeroed,
    pages_of_a_lent_block_come_home_one_by_one,
    a_block_of_pages_comes_home_as_one,
    metadata_comes_home_zeroed,
    what_a_dead_guest_unlocked_comes_home_zeroed,
    shared_pages_come_home,
    pages_stay_out_of_reach_until_they_are_fetched,
    a_vm_that_was_never_started_dies,
    the_next_vm_finds_nothing,
    many_lives,
];

fn destroy(vm: u64) -> Outcome {
    hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
    Ok(())
}

fn lent_pages_come_home_zeroed(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let pages = host.arena.pages(2);
    fill(pages, 1);
    fill(pages + PAGE_SIZE, 1);
    let list = [page_at(pages, FREE), page_at(pages + PAGE_SIZE, FREE + PAGE_SIZE)];
    host.lists.lend(agent.vm, &list).map_err(refused("MEM_LEND"))?;
    agent.store(FREE + 0x18, 0x5ec7e7)?;
    destroy(agent.vm)?;
    host.lists
        .reclaim(&[frame(pages), frame(pages + PAGE_SIZE)])
        .map_err(refused("MEM_RECLAIM"))?;
    check!(is_zero(pages, 2 * PAGE_SIZE));
    is_in_reach(pages)?;
    host.bring_home()
}

fn lent_blocks_come_home_zeroed(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let at = host.arena.blocks(1);
    for n in 0..512 {
        fill(at + n * PAGE_SIZE, 2);
    }
    host.lists.lend(agent.vm, &[block_at(at, FREE_BLOCK)]).map_err(refused("MEM_LEND"))?;
    agent.store(FREE_BLOCK + 0x1f_fff8, 0x5ec7e7)?;
    destroy(agent.vm)?;
    host.lists.reclaim(&[block(at)]).map_err(refused("MEM_RECLAIM"))?;
    check!(is_zero(at, BLOCK_SIZE));
    host.bring_home()
}

fn pages_of_a_lent_block_come_home_one_by_one(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let at = host.arena.blocks(1);
    for n in 0..512 {
        fill(at + n * PAGE_SIZE, 3);
    }
    host.lists.lend(agent.vm, &[block_at(at, FREE_BLOCK)]).map_err(refused("MEM_LEND"))?;
    destroy(agent.vm)?;
    // Odd pages first: the block is in pieces meanwhile.
    for odd in [1, 0] {
        let list: ArrayVec<MemEntry, LIST_MAX> =
            (0..256).map(|n| frame(at + (2 * n + odd) * PAGE_SIZE)).collect();
        if odd == 0 {
            is_out_of_reach(at)?;
            check!(is_zero(at + PAGE_SIZE, PAGE_SIZE));
        }
        host.lists.reclaim(&list).map_err(refused("MEM_RECLAIM"))?;
    }
    check!(is_zero(at, BLOCK_SIZE));
    // It can go as one again.
    let vm = host.vm(12)?;
    host.lists.lend(vm, &[block_at(at, 0x20_0000)]).map_err(refused("MEM_LEND"))?;
    host.end(vm)?;
    host.bring_home()
}

fn a_block_of_pages_comes_home_as_one(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let at = host.arena.blocks(1);
    let list: ArrayVec<MemEntry, LIST_MAX> =
        (0..512).map(|n| page_at(at + n * PAGE_SIZE, FREE_BLOCK + n * PAGE_SIZE)).collect();
    // A table for them, beside those that the agent has.
    host.lists.lend(agent.vm, &list).map_err(refused("MEM_LEND"))?;
    agent.store(FREE_BLOCK + 0x1f_fff8, 0x5ec7e7)?;
    is_out_of_reach(at + 0x1f_fff8)?;
    destroy(agent.vm)?;
    host.lists.reclaim(&[block(at)]).map_err(refused("MEM_RECLAIM"))?;
    check!(is_zero(at, BLOCK_SIZE));
    host.bring_home()
}

fn metadata_comes_home_zeroed(host: &mut Host) -> Outcome {
    let pages = host.arena.pages(Agent::PAGES);
    for n in 0..Agent::PAGES {
        fill(pages + n * PAGE_SIZE, 5);
    }
    let agent = Agent::start_with(&host.lists, pages)?;
    // Tables and a vCPU are in them now. Not while the VM lives.
    let list: ArrayVec<MemEntry, LIST_MAX> =
        (0..Agent::PAGES - 2).map(|n| frame(pages + n * PAGE_SIZE)).collect();
    let metadata = FrameState::Metadata as u64;
    let wrong = refusal_of(Error::WrongState, 0, metadata);
    refuses_with(wrong, &[], || host.lists.reclaim(&list))?;
    destroy(agent.vm)?;
    host.lists.reclaim(&list).map_err(refused("MEM_RECLAIM"))?;
    check!(is_zero(pages, (Agent::PAGES - 2) * PAGE_SIZE));
    host.bring_home()
}

fn what_a_dead_guest_unlocked_comes_home_zeroed(host: &mut Host) -> Outcome {
    // It passed its contents on to an owner that fetches them while it lives.
    // Afterwards nobody can say any more what it wanted: zeroed is safe.
    let agent = Agent::start(host)?;
    let page = host.page();
    fill(page, 6);
    host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    let unlock = [call::MODIFY_PAGES as u64, 0, FREE, PAGE_SIZE, call::MODIFY_UNLOCK];
    check_eq!(agent.hvc(&unlock)?, 0);
    destroy(agent.vm)?;
    host.lists.reclaim(&[frame(page)]).map_err(refused("MEM_RECLAIM"))?;
    check!(is_zero(page, PAGE_SIZE));
    host.bring_home()
}

fn shared_pages_come_home(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let [first, second] = [host.page(), host.page()];
    fill(first, 7);
    fill(second, 7);
    let list = [page_at(first, FREE), page_at(second, FREE + PAGE_SIZE)];
    host.lists.share(agent.vm, &list).map_err(refused("MEM_SHARE"))?;
    destroy(agent.vm)?;
    // The owner saw all of it all the time: nothing to hide. Either call does.
    host.lists.unshare(&[frame(first)]).map_err(refused("MEM_UNSHARE"))?;
    host.lists.reclaim(&[frame(second)]).map_err(refused("MEM_RECLAIM"))?;
    check!(is_filled(first, 7) && is_filled(second, 7));
    host.bring_home()
}

fn pages_stay_out_of_reach_until_they_are_fetched(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let page = host.page();
    host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    destroy(agent.vm)?;
    for at in [page, agent.code] {
        check_eq!(frame_state(at)?, FrameState::Lent);
        is_out_of_reach(at)?;
    }
    host.bring_home()?;
    is_in_reach(page)
}

fn a_vm_that_was_never_started_dies(host: &mut Host) -> Outcome {
    let before = Counts::read();
    let agent = Agent::create(host)?;
    host.end(agent.vm)?;
    check_eq!(Counts::read(), before);
    let vm = host.vm(1)?;
    host.end(vm)?;
    check_eq!(Counts::read(), before);
    Ok(())
}

fn the_next_vm_finds_nothing(host: &mut Host) -> Outcome {
    // The same slot and VMID, the same guest addresses, other pages.
    let first = Agent::start(host)?;
    let page = host.page();
    host.lists.lend(first.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    first.store(FREE, 0x5ec7e7)?;
    host.end(first.vm)?;
    let second = Agent::start(host)?;
    // Nothing is mapped there, also not in a TLB: it is no memory of this VM.
    let exit = second.begin(escrow_payloads::guest::routine::ldr_x(), &[0, FREE])?;
    check_eq!(exit, escrow_payloads::guest::Exit::MmioRead(FREE, 8));
    check_eq!(second.finish([0x77, 0, 0])?.x[0], 0x77);
    let other = host.page();
    host.lists.lend(second.vm, &[page_at(other, FREE)]).map_err(refused("MEM_LEND"))?;
    second.store(FREE, 1)?;
    check_eq!(peek(page), 0);
    host.end(second.vm)
}

fn many_lives(host: &mut Host) -> Outcome {
    let before = Counts::read();
    let pages = host.arena.pages(Agent::PAGES);
    let page = host.page();
    for n in 0..50 {
        let agent = Agent::start_with(&host.lists, pages)?;
        host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
        agent.store(FREE, n)?;
        destroy(agent.vm)?;
        let list: ArrayVec<MemEntry, LIST_MAX> =
            (0..Agent::PAGES).map(|n| frame(pages + n * PAGE_SIZE)).chain([frame(page)]).collect();
        host.lists.reclaim(&list).map_err(refused("MEM_RECLAIM"))?;
        check_eq!(Counts::read(), before, "life {n}");
    }
    Ok(())
}
