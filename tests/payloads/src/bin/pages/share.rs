// SPDX-License-Identifier: MIT OR Apache-2.0

//! Shared pages: both see what either writes, and the owner ends it.

use escrow_abi::{MemEntry, ORDER_PAGE, Rights, call, run};
use escrow_payloads::expect::is_in_reach;
use escrow_payloads::guest::{Agent, Exit, FREE, FREE_BLOCK, routine};
use escrow_payloads::host::{block, block_at, frame, page_at, peek, poke, refused};
use escrow_payloads::{Host, Outcome, Test, check_eq, hvc, tests};

pub const TESTS: &[Test] = tests![
    both_see_a_shared_page,
    both_see_a_shared_block,
    unshared_is_gone_from_the_guest,
    rights_are_kept,
];

fn both_see_a_shared_page(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let page = host.page();
    poke(page + 0x10, 0x1111);
    host.lists.share(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_SHARE"))?;
    check_eq!(agent.load(FREE + 0x10)?, 0x1111);
    agent.store(FREE + 0x18, 0x2222)?;
    check_eq!(peek(page + 0x18), 0x2222);
    poke(page + 0x10, 0x3333);
    check_eq!(agent.load(FREE + 0x10)?, 0x3333);
    is_in_reach(page)?;
    host.end(agent.vm)
}

fn both_see_a_shared_block(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let at = host.arena.blocks(1);
    let far = 0x1f_f008;
    poke(at + far, 0x1111);
    host.lists.share(agent.vm, &[block_at(at, FREE_BLOCK)]).map_err(refused("MEM_SHARE"))?;
    check_eq!(agent.load(FREE_BLOCK + far)?, 0x1111);
    agent.store(FREE_BLOCK, 0x2222)?;
    check_eq!(peek(at), 0x2222);
    is_in_reach(at + 0x10_0000)?;
    host.lists.unshare(&[block(at)]).map_err(refused("MEM_UNSHARE"))?;
    check_eq!(peek(at), 0x2222, "what was shared stays");
    host.end(agent.vm)
}

fn unshared_is_gone_from_the_guest(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let page = host.page();
    let arguments = [agent.vm, call::CONFIGURE_MEMORY_ADD, FREE, 0x1000];
    hvc::call(call::VM_CONFIGURE, &arguments).map_err(refused("VM_CONFIGURE"))?;
    host.lists.share(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_SHARE"))?;
    // It is in the guest's TLB.
    agent.store(FREE, 0x1111)?;
    host.lists.unshare(&[frame(page)]).map_err(refused("MEM_UNSHARE"))?;
    check_eq!(agent.begin(routine::ldr_x(), &[0, FREE])?, Exit::PageFault(FREE, 0x1000, 0));
    // Shared again, the same instruction goes through.
    host.lists.share(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_SHARE"))?;
    check_eq!(agent.finish([0, run::ACTION_RETRY, 0])?.x[0], 0x1111);
    host.end(agent.vm)
}

fn rights_are_kept(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let pages = host.arena.pages(2);
    let arguments = [agent.vm, call::CONFIGURE_MEMORY_ADD, FREE, 0x10000];
    hvc::call(call::VM_CONFIGURE, &arguments).map_err(refused("VM_CONFIGURE"))?;
    poke(pages, 0xd65f_03c0); // ret
    escrow_payloads::mmu::clean(pages, 16);
    let [read_only, no_execute] = [FREE, FREE + 0x1000];
    host.lists
        .share(
            agent.vm,
            &[
                MemEntry::new(pages, ORDER_PAGE, read_only, Rights::READ_EXECUTE),
                MemEntry::new(pages + 0x1000, ORDER_PAGE, no_execute, Rights::READ_WRITE),
            ],
        )
        .map_err(refused("MEM_SHARE"))?;
    check_eq!(agent.load(read_only)?, 0xd65f_03c0);
    let exit = agent.begin(routine::str_x(), &[0, read_only, 1])?;
    check_eq!(exit, Exit::PageFault(read_only, 0x1000, run::FAULT_WRITE));
    // Fault it, so that the agent is free again.
    let aborted = agent.finish([0, run::ACTION_FAULT, 0])?;
    check_eq!(aborted.exception.map(|e| e.esr >> 26), Some(0x25));
    check_eq!(peek(pages), 0xd65f_03c0);
    // What is executable runs, what is not does not.
    agent.call(routine::jump(), &[read_only])?;
    let exit = agent.begin(routine::jump(), &[no_execute])?;
    check_eq!(exit, Exit::PageFault(no_execute, 0x1000, run::FAULT_EXECUTE));
    let aborted = agent.finish([0, run::ACTION_FAULT, 0])?;
    check_eq!(aborted.exception.map(|e| e.esr >> 26), Some(0x21));
    host.end(agent.vm)
}
