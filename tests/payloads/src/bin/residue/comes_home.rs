// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory filled with a pattern, given away, and fetched again by every way home.

use core::arch::asm;

use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, LIST_MAX, MemEntry, PAGE_SIZE, call};
use escrow_payloads::guest::{Agent, FREE, FREE_BLOCK};
use escrow_payloads::host::{block, block_at, frame, page_at, refused};
use escrow_payloads::{Failure, Host, Outcome, Test, check_eq, hvc, tests};

use crate::views::{Views, ZEROS};

pub const TESTS: &[Test] = tests![
    of_a_lent_page,
    of_a_lent_block,
    of_a_block_page_by_page,
    of_pages_as_a_block,
    of_metadata,
    of_metadata_that_was_in_use,
    of_pages_that_a_guest_wrote_to,
    of_unlocked_pages_that_were_zeroed,
    of_an_unlocked_block_that_was_zeroed,
    of_unlocked_pages_of_a_dead_guest,
    what_the_host_has_deferred_is_no_error_of_memory,
    what_is_passed_on_is_seen,
    what_is_shared_is_seen,
];

const SIZE: u64 = 4 * PAGE_SIZE;

fn destroy(vm: u64) -> Outcome {
    hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
    Ok(())
}

fn frames(at: u64, size: u64) -> ArrayVec<MemEntry, LIST_MAX> {
    (at..at + size).step_by(PAGE_SIZE as usize).map(frame).collect()
}

fn pages_at(at: u64, size: u64, guest: u64) -> ArrayVec<MemEntry, LIST_MAX> {
    (0..size).step_by(PAGE_SIZE as usize).map(|n| page_at(at + n, guest + n)).collect()
}

fn reclaim(host: &Host, list: &[MemEntry]) -> Outcome {
    host.lists.reclaim(list).map_err(refused("MEM_RECLAIM"))?;
    Ok(())
}

fn lend(host: &Host, vm: u64, list: &[MemEntry]) -> Outcome {
    host.lists.lend(vm, list).map_err(refused("MEM_LEND"))?;
    Ok(())
}

fn of_a_lent_page(host: &mut Host) -> Outcome {
    let views = Views::new(host);
    let vm = host.vm(4)?;
    let pages = host.arena.pages(4);
    views.fill(pages, SIZE, 1)?;
    lend(host, vm, &pages_at(pages, SIZE, FREE))?;
    destroy(vm)?;
    reclaim(host, &frames(pages, SIZE))?;
    views.shows(pages, SIZE, ZEROS)?;
    host.bring_home()
}

/// A block that goes by one list and comes home by another.
fn of_block(host: &mut Host, as_block: bool, home_as_block: bool) -> Outcome {
    let views = Views::new(host);
    let vm = host.vm(4)?;
    let at = host.arena.blocks(1);
    views.fill(at, BLOCK_SIZE, 2)?;
    if as_block {
        lend(host, vm, &[block_at(at, FREE_BLOCK)])?;
    } else {
        lend(host, vm, &pages_at(at, BLOCK_SIZE, FREE_BLOCK))?;
    }
    destroy(vm)?;
    if home_as_block {
        reclaim(host, &[block(at)])?;
    } else {
        // The second half first, so that the block is in pieces in between.
        let half = BLOCK_SIZE / 2;
        reclaim(host, &frames(at + half, half))?;
        views.shows(at + half, half, ZEROS)?;
        reclaim(host, &frames(at, half))?;
    }
    views.shows(at, BLOCK_SIZE, ZEROS)?;
    host.bring_home()
}

fn of_a_lent_block(host: &mut Host) -> Outcome {
    of_block(host, true, true)
}

fn of_a_block_page_by_page(host: &mut Host) -> Outcome {
    of_block(host, true, false)
}

fn of_pages_as_a_block(host: &mut Host) -> Outcome {
    of_block(host, false, true)
}

fn of_metadata(host: &mut Host) -> Outcome {
    let views = Views::new(host);
    let pages = host.arena.pages(4);
    views.fill(pages, SIZE, 3)?;
    let vm = host.lists.vm_of(pages, 4)?;
    destroy(vm)?;
    reclaim(host, &frames(pages, SIZE))?;
    views.shows(pages, SIZE, ZEROS)
}

fn of_metadata_that_was_in_use(host: &mut Host) -> Outcome {
    // Tables with entries in them, a vCPU with registers in it.
    let views = Views::new(host);
    let pages = host.arena.pages(Agent::PAGES);
    let agent = Agent::start_with(&host.lists, pages)?;
    let at = host.arena.pages(4);
    lend(host, agent.vm, &pages_at(at, SIZE, FREE))?;
    agent.store(FREE, 0x5ec7e7)?;
    destroy(agent.vm)?;
    // All that it had, the mailbox apart: that was shared.
    let size = (Agent::PAGES - 1) * PAGE_SIZE;
    reclaim(host, &frames(pages, size))?;
    views.shows(pages, size, ZEROS)?;
    host.bring_home()
}

fn of_pages_that_a_guest_wrote_to(host: &mut Host) -> Outcome {
    let views = Views::new(host);
    let agent = Agent::start(host)?;
    let pages = host.arena.pages(4);
    let at = host.arena.blocks(1);
    views.fill(pages, SIZE, 4)?;
    lend(host, agent.vm, &pages_at(pages, SIZE, FREE))?;
    lend(host, agent.vm, &[block_at(at, FREE_BLOCK)])?;
    for n in 0..4 {
        agent.store(FREE + n * PAGE_SIZE + 0xff8, 0x5ec7e7)?;
        agent.store(FREE_BLOCK + n * 0x7_f008, 0x5ec7e7)?;
    }
    destroy(agent.vm)?;
    reclaim(host, &frames(pages, SIZE))?;
    reclaim(host, &[block(at)])?;
    views.shows(pages, SIZE, ZEROS)?;
    views.shows(at, BLOCK_SIZE, ZEROS)?;
    host.bring_home()
}

/// `DISR_EL1` is the host's to write, and EL2 uses it.
fn what_the_host_has_deferred_is_no_error_of_memory(host: &mut Host) -> Outcome {
    let pfr0: u64;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mrs {}, id_aa64pfr0_el1", out(reg) pfr0, options(nomem, nostack)) };
    if pfr0 >> 28 & 0xf == 0 {
        return Err(Failure::Skipped("no FEAT_RAS"));
    }
    let vm = host.vm(4)?;
    let pages = host.arena.pages(4);
    lend(host, vm, &pages_at(pages, SIZE, FREE))?;
    destroy(vm)?;
    let set = 1 << 31 | 0x11_u64;
    // SAFETY: the payload has no use for it.
    unsafe { asm!("msr s3_0_c12_c1_1, {}", in(reg) set, options(nomem, nostack)) };
    let told = host.lists.reclaim(&frames(pages, SIZE)).map_err(refused("MEM_RECLAIM"));
    let kept: u64;
    // SAFETY: as above.
    unsafe {
        asm!("mrs {}, s3_0_c12_c1_1", "msr s3_0_c12_c1_1, xzr", out(reg) kept,
            options(nomem, nostack))
    };
    let [_, broken, ..] = told?;
    check_eq!((broken, kept), (0, set));
    host.bring_home()
}

fn modify(agent: &Agent, at: u64, size: u64, flags: u64) -> Outcome {
    check_eq!(agent.hvc(&[call::MODIFY_PAGES as u64, 0, at, size, flags])?, 0);
    Ok(())
}

const ZEROED: u64 = call::MODIFY_UNLOCK | call::MODIFY_SANITIZE;

fn of_unlocked_pages_that_were_zeroed(host: &mut Host) -> Outcome {
    let views = Views::new(host);
    let agent = Agent::start(host)?;
    let pages = host.arena.pages(4);
    views.fill(pages, SIZE, 5)?;
    lend(host, agent.vm, &pages_at(pages, SIZE, FREE))?;
    modify(&agent, FREE, SIZE, ZEROED)?;
    // It can write there until they are fetched; that is not for the host either.
    agent.store(FREE + 0x808, 0x5ec7e7)?;
    reclaim(host, &frames(pages, SIZE))?;
    views.shows(pages, SIZE, ZEROS)?;
    host.end(agent.vm)
}

fn of_an_unlocked_block_that_was_zeroed(host: &mut Host) -> Outcome {
    let views = Views::new(host);
    let agent = Agent::start(host)?;
    let at = host.arena.blocks(1);
    views.fill(at, BLOCK_SIZE, 6)?;
    lend(host, agent.vm, &[block_at(at, FREE_BLOCK)])?;
    // A page first: the block is in pieces then.
    modify(&agent, FREE_BLOCK + 0x3000, PAGE_SIZE, ZEROED)?;
    reclaim(host, &[frame(at + 0x3000)])?;
    views.shows(at + 0x3000, PAGE_SIZE, ZEROS)?;
    modify(&agent, FREE_BLOCK, 3 * PAGE_SIZE, ZEROED)?;
    modify(&agent, FREE_BLOCK + 0x4000, BLOCK_SIZE - 0x4000, ZEROED)?;
    let rest = frames(at, BLOCK_SIZE).into_iter().filter(|entry| entry.frame != at + 0x3000);
    reclaim(host, &rest.collect::<ArrayVec<_, LIST_MAX>>())?;
    views.shows(at, BLOCK_SIZE, ZEROS)?;
    host.end(agent.vm)
}

fn of_unlocked_pages_of_a_dead_guest(host: &mut Host) -> Outcome {
    // It would have passed their contents on, and died before they were fetched.
    let views = Views::new(host);
    let agent = Agent::start(host)?;
    let pages = host.arena.pages(4);
    views.fill(pages, SIZE, 7)?;
    lend(host, agent.vm, &pages_at(pages, SIZE, FREE))?;
    modify(&agent, FREE, SIZE, call::MODIFY_UNLOCK)?;
    destroy(agent.vm)?;
    reclaim(host, &frames(pages, SIZE))?;
    views.shows(pages, SIZE, ZEROS)?;
    host.bring_home()
}

fn what_is_passed_on_is_seen(host: &mut Host) -> Outcome {
    let views = Views::new(host);
    let agent = Agent::start(host)?;
    let pages = host.arena.pages(4);
    let [_, xor] = views.fill(pages, SIZE, 8)?;
    lend(host, agent.vm, &pages_at(pages, SIZE, FREE))?;
    // What the guest writes is with it.
    let old = agent.load(FREE + 0x10)?;
    agent.store(FREE + 0x10, !old)?;
    modify(&agent, FREE, SIZE, call::MODIFY_UNLOCK)?;
    reclaim(host, &frames(pages, SIZE))?;
    let [(_, seen), ..] = views.look(pages, SIZE);
    check_eq!([seen[0] & !old, seen[1]], [!old, xor ^ old ^ !old]);
    views.shows(pages, SIZE, seen)?;
    host.end(agent.vm)
}

fn what_is_shared_is_seen(host: &mut Host) -> Outcome {
    let views = Views::new(host);
    let vm = host.vm(4)?;
    let pages = host.arena.pages(4);
    let pattern = views.fill(pages, SIZE, 9)?;
    host.lists.share(vm, &pages_at(pages, SIZE, FREE)).map_err(refused("MEM_SHARE"))?;
    views.shows(pages, SIZE, pattern)?;
    host.lists.unshare(&frames(pages, 2 * PAGE_SIZE)).map_err(refused("MEM_UNSHARE"))?;
    destroy(vm)?;
    reclaim(host, &frames(pages + 2 * PAGE_SIZE, 2 * PAGE_SIZE))?;
    views.shows(pages, SIZE, pattern)?;
    host.bring_home()
}
