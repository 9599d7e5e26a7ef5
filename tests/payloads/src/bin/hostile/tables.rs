// SPDX-License-Identifier: MIT OR Apache-2.0

//! VMs that run out of tables: at every point at which a call could need one more,
//! it says how many are missing, and nothing has changed.

use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, Error, LIST_MAX, MemEntry, PAGE_SIZE, call};
use escrow_payloads::expect::{is_in_reach, refusal_of, refuses, refuses_with};
use escrow_payloads::guest::{Agent, FREE_BLOCK};
use escrow_payloads::host::{block, block_at, frame, page_at, refused};
use escrow_payloads::{Host, Outcome, Test, check_eq, hvc, tests};

pub const TESTS: &[Test] = tests![
    maps_pay_for_every_table,
    the_most_tables_that_a_list_can_need,
    splits_by_unsharing_are_paid_for,
    splits_by_reclaiming_are_paid_for,
    vcpus_are_paid_for,
    a_block_gives_back_the_table_it_replaces,
];

const GIB: u64 = 1 << 30;

type List = ArrayVec<MemEntry, LIST_MAX>;

/// Free metadata pages of a VM.
fn free(vm: u64) -> Outcome<u64> {
    let [_, _, _, free] = hvc::call(call::VM_INFO, &[vm]).map_err(refused("VM_INFO"))?;
    Ok(free)
}

/// The call is refused as long as tables are missing, one less each time that the VM
/// gets one more page; then it is done, and none is left.
fn pays_for(
    host: &mut Host,
    vm: u64,
    tables: u64,
    attempt: impl Fn(&Host) -> hvc::Answer,
) -> Outcome {
    check_eq!(free(vm)?, 0, "the VM has none to begin with");
    let extra = host.arena.pages(tables);
    for missing in (1..=tables).rev() {
        let info = hvc::call(call::VM_INFO, &[vm]);
        let expected = refusal_of(Error::NoMemory, 0, missing);
        refuses_with(expected, &[missing], || attempt(host))?;
        check_eq!(hvc::call(call::VM_INFO, &[vm]), info);
        let page = frame(extra + (tables - missing) * PAGE_SIZE);
        host.lists.top_up(vm, &[page]).map_err(refused("VM_TOP_UP"))?;
    }
    attempt(host).map_err(refused("with all tables"))?;
    check_eq!(free(vm)?, 0, "not one too many");
    Ok(())
}

/// A list that is lent and one that is shared, each by a VM with a root table only.
fn maps_pay(host: &mut Host, list: &[MemEntry], tables: u64) -> Outcome {
    for lend in [true, false] {
        let vm = host.vm(1)?;
        pays_for(host, vm, tables, |host| {
            if lend { host.lists.lend(vm, list) } else { host.lists.share(vm, list) }
        })?;
        host.end(vm)?;
        for entry in list {
            is_in_reach(entry.frame & !0xfff)?;
        }
    }
    Ok(())
}

fn maps_pay_for_every_table(host: &mut Host) -> Outcome {
    let pages = host.arena.pages(32);
    let blocks = host.arena.blocks(4);
    let page = |n: u64, guest| page_at(pages + n * PAGE_SIZE, guest);
    let whole = |n: u64, guest| block_at(blocks + n * BLOCK_SIZE, guest);
    let last = (1 << 39) - PAGE_SIZE;
    // Tables of level 2, then of level 3.
    for (list, tables) in [
        (&[page(0, 0)][..], 1 + 1),
        (&[page(0, last)], 1 + 1),
        (&[whole(0, 0)], 1),
        (&[page(0, 0), page(1, 0x1000)], 1 + 1),
        // Over the edge of 2 MiB, of 1 GiB.
        (&[page(0, BLOCK_SIZE - 0x1000), page(1, BLOCK_SIZE)], 1 + 2),
        (&[page(0, GIB - 0x1000), page(1, GIB)], 2 + 2),
        (&[whole(0, GIB - BLOCK_SIZE), whole(1, GIB)], 2),
        // Both kinds below one table, and each below its own.
        (&[whole(0, 0), page(0, BLOCK_SIZE)], 1 + 1),
        (&[page(0, BLOCK_SIZE), whole(0, 0)], 1 + 1),
        (&[whole(0, 0), page(0, GIB)], 2 + 1),
        (&[whole(3, 5 * GIB), page(9, 0), page(3, 5 * GIB + BLOCK_SIZE), whole(1, 0x20_0000)], 4),
        (&[page(0, 0), page(1, 7 * GIB), page(2, 0x1000), page(3, last), page(4, 7 * GIB)], 0),
    ] {
        if tables == 0 {
            // Two at one address: refused before any table is counted.
            let vm = host.vm(1)?;
            let expected = refusal_of(Error::Overlap, 4, 0);
            refuses_with(expected, &[0], || host.lists.lend(vm, list))?;
            host.end(vm)?;
            continue;
        }
        maps_pay(host, list, tables)?;
    }
    // A block, page by page: aligned, and not.
    let of_block = |guest: u64| -> List {
        (0..512).map(|n| n * PAGE_SIZE).map(|n| page_at(blocks + n, guest + n)).collect()
    };
    maps_pay(host, &of_block(0), 1 + 1)?;
    maps_pay(host, &of_block(PAGE_SIZE), 1 + 2)?;
    maps_pay(host, &of_block(GIB - PAGE_SIZE), 2 + 2)
}

fn the_most_tables_that_a_list_can_need(host: &mut Host) -> Outcome {
    // Each page in a GiB of its own: a table of level 2 and one of level 3 for each.
    let pages = host.arena.pages(LIST_MAX as u64);
    let list: List = (0..LIST_MAX as u64)
        .map(|n| page_at(pages + n * PAGE_SIZE, n * GIB + n * 0x3000))
        .collect();
    let vm = host.vm(1)?;
    pays_for(host, vm, 2 * LIST_MAX as u64, |host| host.lists.lend(vm, &list))?;
    host.end(vm)?;
    // The other way round, it is as many.
    let back: List = list.iter().rev().copied().collect();
    let vm = host.vm(1)?;
    let expected = refusal_of(Error::NoMemory, 0, 2 * LIST_MAX as u64);
    refuses_with(expected, &[0], || host.lists.share(vm, &back))?;
    host.end(vm)
}

fn splits_by_unsharing_are_paid_for(host: &mut Host) -> Outcome {
    let blocks = host.arena.blocks(3);
    let vm = host.vm(2)?;
    let list: [MemEntry; 3] = [0, 1, 2].map(|n| block_at(blocks + n * BLOCK_SIZE, n * BLOCK_SIZE));
    host.lists.share(vm, &list).map_err(refused("MEM_SHARE"))?;
    // A page out of each: three tables. Two out of one: one.
    let one = |n: u64, page: u64| frame(blocks + n * BLOCK_SIZE + page * PAGE_SIZE);
    let bare = [one(2, 511), one(0, 0), one(1, 77), one(0, 1)];
    pays_for(host, vm, 3, |host| host.lists.unshare(&bare))?;
    // Now that they are in pieces, no more is needed.
    host.lists.unshare(&[one(0, 7), one(1, 0)]).map_err(refused("MEM_UNSHARE"))?;
    // All of the rest, and all whole again.
    let rest: List = (0..512).filter(|n| ![0, 1, 7].contains(n)).map(|n| one(0, n)).collect();
    host.lists.unshare(&rest).map_err(refused("MEM_UNSHARE"))?;
    host.end(vm)?;
    let vm = host.vm(2)?;
    host.lists.lend(vm, &list).map_err(refused("MEM_LEND"))?;
    host.end(vm)
}

fn splits_by_reclaiming_are_paid_for(host: &mut Host) -> Outcome {
    let agent = Agent::create(host)?;
    let blocks = host.arena.blocks(2);
    let list: [MemEntry; 2] =
        [0, 1].map(|n| block_at(blocks + n * BLOCK_SIZE, FREE_BLOCK + n * BLOCK_SIZE));
    host.lists.lend(agent.vm, &list).map_err(refused("MEM_LEND"))?;
    // vCPUs take what is left.
    for index in 1.. {
        if free(agent.vm)? == 0 {
            break;
        }
        hvc::call(call::VCPU_CREATE, &[agent.vm, index]).map_err(refused("VCPU_CREATE"))?;
    }
    hvc::call(call::VM_START, &[agent.vm]).map_err(refused("VM_START"))?;
    check_eq!(agent.run([0; 3])?, escrow_payloads::guest::Exit::DOORBELL);
    let unlock = [
        call::MODIFY_PAGES as u64,
        0,
        FREE_BLOCK,
        2 * BLOCK_SIZE,
        call::MODIFY_UNLOCK | call::MODIFY_SANITIZE,
    ];
    check_eq!(agent.hvc(&unlock)?, 0);
    let bare = [frame(blocks + 0x3000), frame(blocks + BLOCK_SIZE + 0x1f_f000)];
    pays_for(host, agent.vm, 2, |host| host.lists.reclaim(&bare))?;
    // As blocks they would not have needed any.
    host.end(agent.vm)?;
    let agent = Agent::start(host)?;
    host.lists.lend(agent.vm, &list).map_err(refused("MEM_LEND"))?;
    check_eq!(agent.hvc(&unlock)?, 0);
    let before = free(agent.vm)?;
    let whole = [block(blocks), block(blocks + BLOCK_SIZE)];
    host.lists.reclaim(&whole).map_err(refused("MEM_RECLAIM"))?;
    check_eq!(free(agent.vm)?, before);
    host.end(agent.vm)
}

fn vcpus_are_paid_for(host: &mut Host) -> Outcome {
    let vm = host.vm(1)?;
    for index in 0..32 {
        let expected = refusal_of(Error::NoMemory, 0, 1);
        refuses(call::VCPU_CREATE, &[vm, index], expected)?;
        let page = host.page();
        host.lists.top_up(vm, &[frame(page)]).map_err(refused("VM_TOP_UP"))?;
        hvc::call(call::VCPU_CREATE, &[vm, index]).map_err(refused("VCPU_CREATE"))?;
        check_eq!(free(vm)?, 0);
    }
    host.end(vm)
}

fn a_block_gives_back_the_table_it_replaces(host: &mut Host) -> Outcome {
    // A page, gone again, leaves its table; a block takes the table's place.
    let vm = host.vm(3)?;
    let page = host.page();
    let at = host.arena.blocks(1);
    for _ in 0..5 {
        host.lists.share(vm, &[page_at(page, 0x1000)]).map_err(refused("MEM_SHARE"))?;
        check_eq!(free(vm)?, 0);
        host.lists.unshare(&[frame(page)]).map_err(refused("MEM_UNSHARE"))?;
        check_eq!(free(vm)?, 0);
        host.lists.share(vm, &[block_at(at, 0)]).map_err(refused("MEM_SHARE"))?;
        check_eq!(free(vm)?, 1);
        host.lists.unshare(&[block(at)]).map_err(refused("MEM_UNSHARE"))?;
        check_eq!(free(vm)?, 1);
    }
    host.end(vm)
}
