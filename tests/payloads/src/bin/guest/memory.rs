// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's memory: what it was given and nothing else.

use escrow_abi::{BLOCK_SIZE, PAGE_SIZE, call, run};
use escrow_payloads::expect::escrow_memory;
use escrow_payloads::guest::{Agent, CODE, Exit, FREE, FREE_BLOCK, routine};
use escrow_payloads::host::{page_at, poke, refused};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, hvc, mmu, tests};

pub const TESTS: &[Test] = tests![
    missing_memory_is_asked_for,
    declared_memory_has_borders,
    a_guest_reaches_nothing_else,
    the_same_address_is_another_page_elsewhere,
    pages_come_while_it_runs,
    table_walks_ask_for_memory_too,
    code_is_fetched_from_lent_pages,
];

fn declare(agent: &Agent, key: u64, base: u64, size: u64) -> Outcome {
    hvc::call(call::VM_CONFIGURE, &[agent.vm, key, base, size]).map_err(refused("VM_CONFIGURE"))?;
    Ok(())
}

fn missing_memory_is_asked_for(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    declare(&agent, call::CONFIGURE_MEMORY_ADD, FREE_BLOCK, BLOCK_SIZE)?;
    let at = FREE_BLOCK + 0x5678;
    let page = at & !0xfff;
    check_eq!(agent.begin(routine::ldr_x(), &[0, at])?, Exit::PageFault(page, PAGE_SIZE, 0));
    // Still missing: it asks again.
    for action in [run::ACTION_RETRY, run::ACTION_EMULATE] {
        check_eq!(agent.run([0, action, 0])?, Exit::PageFault(page, PAGE_SIZE, 0));
    }
    let frame = host.page();
    poke(frame + 0x678, 0x1234);
    host.lists.lend(agent.vm, &[page_at(frame, page)]).map_err(refused("MEM_LEND"))?;
    check_eq!(agent.finish([0, run::ACTION_RETRY, 0])?.x[0], 0x1234);
    // A store, and a fetch.
    let next = page + PAGE_SIZE;
    let exit = agent.begin(routine::strb(), &[0, next + 3, 1])?;
    check_eq!(exit, Exit::PageFault(next, PAGE_SIZE, run::FAULT_WRITE));
    let aborted = agent.finish([0, run::ACTION_FAULT, 0])?;
    check_eq!(aborted.exception.map(|e| (e.esr >> 26, e.far)), Some((0x25, next + 3)));
    let exit = agent.begin(routine::jump(), &[next + 0x40])?;
    check_eq!(exit, Exit::PageFault(next, PAGE_SIZE, run::FAULT_EXECUTE));
    let aborted = agent.finish([0, run::ACTION_FAULT, 0])?;
    check_eq!(aborted.exception.map(|e| (e.esr >> 26, e.far)), Some((0x21, next + 0x40)));
    host.end(agent.vm)
}

fn declared_memory_has_borders(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let range = FREE_BLOCK..FREE_BLOCK + 0x4000;
    declare(&agent, call::CONFIGURE_MEMORY_ADD, range.start, 0x4000)?;
    declare(&agent, call::CONFIGURE_MEMORY_REMOVE, range.start + 0x1000, 0x1000)?;
    for (at, memory) in [
        (range.start - 8, false),
        (range.start, true),
        (range.start + 0xff8, true),
        (range.start + 0x1000, false),
        (range.start + 0x1ff8, false),
        (range.start + 0x2000, true),
        (range.end - 8, true),
        (range.end, false),
    ] {
        let exit = agent.begin(routine::ldr_x(), &[0, at])?;
        let expected =
            if memory { Exit::PageFault(at & !0xfff, 0x1000, 0) } else { Exit::MmioRead(at, 8) };
        check_eq!(exit, expected, "{at:#x}");
        agent.finish([0, run::ACTION_FAULT, 0])?;
    }
    host.end(agent.vm)
}

fn a_guest_reaches_nothing_else(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    // Physical addresses mean nothing to it: Escrow's, the host's, devices'.
    let mut addresses: arrayvec::ArrayVec<u64, 32> =
        escrow_memory(host)?.iter().take(8).map(|range| range.start).collect();
    addresses.extend(host.board.memory.iter().take(8).map(|range| range.start));
    addresses.extend([agent.code, agent.mailbox, host.lists.address()]);
    addresses.extend(host.board.distributor);
    addresses.extend(host.board.redistributors);
    // Where it has been given something, it has that.
    addresses.retain(|at| !(CODE..CODE + BLOCK_SIZE).contains(at));
    check!(addresses.len() >= 5);
    for at in addresses {
        check_eq!(agent.begin(routine::ldr_x(), &[0, at])?, Exit::MmioRead(at, 8));
        agent.finish([0, run::ACTION_FAULT, 0])?;
        check_eq!(agent.begin(routine::str_x(), &[0, at, 7])?, Exit::MmioWrite(at, 8, 7));
        agent.finish([0, run::ACTION_FAULT, 0])?;
        match agent.begin(routine::jump(), &[at])? {
            Exit::Fault(_, seen) => check_eq!(seen, at),
            exit => escrow_payloads::fail!("jump to {at:#x}: {exit:x?}"),
        }
        agent.finish([0, run::ACTION_FAULT, 0])?;
    }
    // Beyond its address space it does not even get out of stage 1.
    let results = agent.call(routine::ldr_x(), &[0, 1 << 52])?;
    check!(results.exception.is_some(), "{results:x?}");
    host.end(agent.vm)
}

fn the_same_address_is_another_page_elsewhere(host: &mut Host) -> Outcome {
    let [first, second] = [Agent::start(host)?, Agent::start(host)?];
    for (agent, value) in [(first, 0x1111), (second, 0x2222)] {
        let page = host.page();
        host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
        agent.store(FREE, value)?;
    }
    // In turns: neither sees the other's, also not through the TLB.
    for _ in 0..5 {
        check_eq!(first.load(FREE)?, 0x1111);
        check_eq!(second.load(FREE)?, 0x2222);
    }
    host.end(first.vm)?;
    check_eq!(second.load(FREE)?, 0x2222);
    host.end(second.vm)
}

fn pages_come_while_it_runs(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    declare(&agent, call::CONFIGURE_MEMORY_ADD, FREE, 0x10_0000)?;
    for n in 0..32 {
        let at = FREE + n * PAGE_SIZE;
        check_eq!(
            agent.begin(routine::str_x(), &[0, at, n])?,
            Exit::PageFault(at, PAGE_SIZE, run::FAULT_WRITE)
        );
        let page = host.page();
        host.lists.lend(agent.vm, &[page_at(page, at)]).map_err(refused("MEM_LEND"))?;
        agent.finish([0, run::ACTION_RETRY, 0])?;
    }
    for n in 0..32 {
        check_eq!(agent.load(FREE + n * PAGE_SIZE)?, n);
    }
    host.end(agent.vm)
}

/// Stage 1 on, 39 bits, little-endian.
const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
const SCTLR: u64 = 0x30d0_0800 | 1;

fn table_walks_ask_for_memory_too(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    declare(&agent, call::CONFIGURE_MEMORY_ADD, FREE, PAGE_SIZE)?;
    // Its root table is missing.
    let exit = agent.begin(routine::mmu_on(), &[FREE, TCR, SCTLR])?;
    check!(matches!(exit, Exit::PageFault(FREE, PAGE_SIZE, _)), "{exit:x?}");
    // The host gives it a table that maps the first GiB, and the one after it,
    // as they are; the guest goes on where it was.
    let page = host.page();
    for n in 0..512 {
        poke(page + n * 8, 0);
    }
    for gib in 0..2 {
        // The doorbell is device memory; so may all be, for its purpose.
        poke(page + gib * 8, mmu::block_entry(gib * mmu::GIB) & !(3 << 8));
    }
    mmu::clean(page, PAGE_SIZE);
    host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    let results = agent.finish([0, run::ACTION_RETRY, 0])?;
    check_eq!(results.x[0] & 1, 1, "its MMU is on");
    // It runs on like this; another walk, of a table that is no memory at all.
    check!(agent.load(FREE)? != 0);
    host.end(agent.vm)
}

fn code_is_fetched_from_lent_pages(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let page = host.page();
    // mov x0, #0x77; ret
    poke(page, 0xd65f_03c0_d280_0ee0);
    mmu::clean(page, 16);
    host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    check_eq!(agent.call(routine::jump(), &[FREE])?.x[0], 0x77);
    host.end(agent.vm)
}
