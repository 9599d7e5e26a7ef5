// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the host finds where it has lent something: faults that say where and
//! what, at once and on every CPU, and nothing of what is there.

use core::sync::atomic::{AtomicU64, Ordering};

use escrow_abi::{BLOCK_SIZE, PAGE_SIZE};
use escrow_payloads::expect::{is_in_reach, is_out_of_reach, is_taken_away};
use escrow_payloads::host::{block_at, fill, is_filled, page_at, poke, refused};
use escrow_payloads::{Host, Outcome, Test, check_eq, cpus, fail, mmu, probe, tests};

pub const TESTS: &[Test] = tests![
    a_lent_page_is_out_of_reach,
    a_lent_block_is_out_of_reach,
    neighbours_stay,
    faults_tell_of_every_kind_of_access,
    atomics_fault,
    accesses_over_the_edge_fault,
    instructions_are_not_fetched,
    table_walks_fault,
    lent_is_lent_on_every_cpu,
    donated_pages_are_out_of_reach,
];

fn a_lent_page_is_out_of_reach(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let page = host.page();
    // The translation is in the TLB when the page goes.
    is_in_reach(page)?;
    host.lists.lend(vm, &[page_at(page, 0x1000)]).map_err(refused("MEM_LEND"))?;
    for offset in [0, 8, 0x7f8, 0xff8] {
        is_out_of_reach(page + offset)?;
    }
    host.end(vm)?;
    is_in_reach(page)
}

fn a_lent_block_is_out_of_reach(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let block = host.arena.blocks(1);
    is_in_reach(block + 0x12_3000)?;
    host.lists.lend(vm, &[block_at(block, 0x20_0000)]).map_err(refused("MEM_LEND"))?;
    for at in (block..block + BLOCK_SIZE).step_by(PAGE_SIZE as usize) {
        is_out_of_reach(at)?;
    }
    is_out_of_reach(block + BLOCK_SIZE - 8)?;
    host.end(vm)?;
    is_in_reach(block + 0x12_3000)
}

fn neighbours_stay(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let pages = host.arena.pages(3);
    let blocks = host.arena.blocks(3);
    let [page, block] = [pages + PAGE_SIZE, blocks + BLOCK_SIZE];
    for at in [page - PAGE_SIZE, page + PAGE_SIZE, block - PAGE_SIZE, block + BLOCK_SIZE] {
        fill(at, 7);
    }
    host.lists
        .lend(vm, &[page_at(page, 0x1000), block_at(block, 0x20_0000)])
        .map_err(refused("MEM_LEND"))?;
    for at in [page - PAGE_SIZE, page + PAGE_SIZE, block - PAGE_SIZE, block + BLOCK_SIZE] {
        check_eq!(is_filled(at, 7), true, "{at:#x}");
        is_in_reach(at)?;
    }
    is_in_reach(page - 8)?;
    is_in_reach(block - 8)?;
    host.end(vm)
}

fn faults_tell_of_every_kind_of_access(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let page = host.page();
    host.lists.lend(vm, &[page_at(page, 0x1000)]).map_err(refused("MEM_LEND"))?;
    for access in probe::ACCESSES {
        for at in [page, page + 0xf80] {
            match access.run(at, 0xbad) {
                Ok(_) => fail!("{} works at {at:#x}", access.name),
                Err(fault) => is_taken_away(fault, at, access.is_write)?,
            }
        }
    }
    check_eq!(probe::prefetch(page), Ok(()));
    host.end(vm)
}

fn atomics_fault(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let page = host.page();
    // Without FEAT_LSE it is an undefined instruction, lent or not.
    if probe::atomic_add(page, 0).is_err() {
        host.end(vm)?;
        return Err(escrow_payloads::Failure::Skipped("no FEAT_LSE"));
    }
    host.lists.lend(vm, &[page_at(page, 0x1000)]).map_err(refused("MEM_LEND"))?;
    match probe::atomic_add(page, 1) {
        Ok(_) => fail!("an atomic addition works"),
        Err(fault) => is_taken_away(fault, page, fault.is_write())?,
    }
    host.end(vm)
}

fn accesses_over_the_edge_fault(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let pages = host.arena.pages(2);
    let lent = pages + PAGE_SIZE;
    poke(lent - 8, 0x1122_3344_5566_7788);
    host.lists.lend(vm, &[page_at(lent, 0x1000)]).map_err(refused("MEM_LEND"))?;
    // Half of the access is the host's own; that half is not done either. The
    // fault names the first byte that is not.
    match probe::read(lent - 4) {
        Ok(value) => fail!("reads {value:#x}"),
        Err(fault) => {
            check_eq!((fault.class(), fault.status(), fault.is_write()), (0x25, 0x21, false));
            check_eq!((lent - 4..=lent).contains(&fault.far), true, "{fault:x?}");
        }
    }
    check_eq!(probe::write(lent - 4, 0).is_err(), true);
    check_eq!(probe::read(lent - 8), Ok(0x1122_3344_5566_7788));
    host.end(vm)
}

fn instructions_are_not_fetched(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let page = host.page();
    poke(page, 0xd65f_03c0); // ret
    mmu::clean(page, 16);
    check_eq!(probe::fetch(page), Ok(()));
    host.lists.lend(vm, &[page_at(page, 0x1000)]).map_err(refused("MEM_LEND"))?;
    let fault = probe::fetch(page);
    check_eq!(fault.map_err(|f| (f.class(), f.status(), f.far)), Err((0x21, 0x10, page)));
    host.end(vm)
}

fn table_walks_fault(host: &mut Host) -> Outcome {
    // Tables of two levels in the host's own pages, used once.
    let [level2, level3] = [host.page(), host.page()];
    let target = host.page();
    for n in 0..512 {
        poke(level2 + n * 8, 0);
        poke(level3 + n * 8, 0);
    }
    poke(target, 0x600d);
    let at = 300 * mmu::GIB;
    for (lent, level) in [(level3, 3), (level2, 2)] {
        let vm = host.vm(12)?;
        // They came home zeroed from the round before.
        poke(level2, mmu::table_entry(level3));
        poke(level3, mmu::page_entry(target));
        mmu::set_table(300, level2);
        check_eq!(probe::read(at), Ok(0x600d), "level {level}");
        host.lists.lend(vm, &[page_at(lent, 0x1000)]).map_err(refused("MEM_LEND"))?;
        // Neither an endless loop nor an alignment fault: an external abort on
        // a walk, and the address that was accessed. Its level is that at
        // which stage 2 missed the page, which need not be the table's own.
        let seen = |fault: probe::Fault| (fault.class(), fault.status() & !3, fault.far);
        let expected = |class| Err((class, 0x14, at));
        check_eq!(probe::read(at).map(|_| ()).map_err(seen), expected(0x25), "level {level}");
        check_eq!(probe::write(at, 1).map_err(seen), expected(0x25), "level {level}");
        check_eq!(probe::fetch(at).map_err(seen), expected(0x21), "level {level}");
        mmu::clear_table(300);
        host.end(vm)?;
    }
    Ok(())
}

fn lent_is_lent_on_every_cpu(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let vm = host.vm(12)?;
    let page = host.page();
    let block = host.arena.blocks(1);
    let bad = AtomicU64::new(0);
    let count = |ok: bool| {
        if !ok {
            bad.fetch_add(1, Ordering::Relaxed);
        }
    };
    // All have it in their TLBs.
    cpus::on_all(|_| count(is_in_reach(page + 8 * cpus::current() as u64).is_ok()));
    cpus::on_all(|_| count(probe::read(block).is_ok()));
    host.lists
        .lend(vm, &[page_at(page, 0x1000), block_at(block, 0x20_0000)])
        .map_err(refused("MEM_LEND"))?;
    cpus::on_all(|_| count(is_out_of_reach(page).is_ok()));
    cpus::on_all(|_| count(is_out_of_reach(block + 0x10_0000).is_ok()));
    check_eq!(bad.load(Ordering::Relaxed), 0);
    host.end(vm)?;
    cpus::on_all(|_| count(probe::read(page).is_ok() && probe::read(block).is_ok()));
    check_eq!(bad.load(Ordering::Relaxed), 0);
    Ok(())
}

fn donated_pages_are_out_of_reach(host: &mut Host) -> Outcome {
    let pages = host.arena.pages(4);
    let vm = host.lists.vm_of(pages, 4)?;
    for n in 0..4 {
        is_out_of_reach(pages + n * PAGE_SIZE)?;
    }
    host.end(vm)?;
    for n in 0..4 {
        is_in_reach(pages + n * PAGE_SIZE)?;
    }
    Ok(())
}
