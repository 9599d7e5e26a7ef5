// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's own TLB entries, when it gives memory away.

use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, MemEntry, PAGE_SIZE, call};
use escrow_payloads::host::{Lists, block_at, frame, page_at, refused};
use escrow_payloads::random::Random;
use escrow_payloads::{Host, Outcome, Test, check_eq, cpus, hvc, probe, tests};

use crate::hammer::{Target, neighbour};

pub const TESTS: &[Test] = tests![
    a_lent_page_leaves_all_tlbs,
    a_page_out_of_a_block_leaves_all_tlbs,
    a_page_lent_the_short_way_leaves_all_tlbs,
    a_lent_block_leaves_all_tlbs,
    a_block_lent_the_short_way_leaves_all_tlbs,
    a_short_list_leaves_all_tlbs,
    a_long_list_leaves_all_tlbs,
    donated_metadata_leaves_all_tlbs,
];

/// Metadata pages of a VM that pages are lent to.
const METADATA: u64 = 4;

/// What the VM has when it is lent something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tables {
    /// A root table: others are made.
    Root,
    /// All that it needs: Escrow may take a shorter way.
    All,
}

/// What a round gives away, and where the other CPUs are meanwhile.
struct Round {
    /// The list.
    entries: ArrayVec<MemEntry, 64>,
    /// The place that they access.
    at: u64,
    /// A page that they access as well, and keep; 0 for none.
    kept: u64,
}

/// CPU 0 gives away and takes home, the others access.
fn rounds(host: &mut Host, tables: Tables, round: impl Fn(&mut Random) -> Round + Sync) -> Outcome {
    cpus::need(2)?;
    let metadata = host.arena.pages(METADATA + 1);
    let target = Target::default();
    let count = host.board.number("rounds").unwrap_or(if cpus::count() > 2 { 8 } else { 40 });
    let seed = host.board.number("seed").unwrap_or(1);
    let first = round(&mut Random::new(seed));
    target.aim(first.at, first.kept);
    let lists = host.lists;
    let work = || {
        let mut random = Random::new(seed);
        for _ in 0..count {
            let Round { entries, at, kept } = round(&mut random);
            target.aim(at, kept);
            let vm = lists.vm_of(metadata, METADATA)?;
            let other = metadata + METADATA * PAGE_SIZE;
            if tables == Tables::All {
                lists.share(vm, &[page_at(other, 0x1f_f000)]).map_err(refused("MEM_SHARE"))?;
            }
            // After all that invalidates TLBs by the way.
            target.wait_until_through()?;
            lists.lend(vm, &entries).map_err(refused("MEM_LEND"))?;
            target.is_taken()?;
            hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
            home(&lists, &entries)?;
            lists.bring_home(metadata..other + PAGE_SIZE)?;
        }
        target.wait_until_through()
    };
    target.against(work)
}

/// Takes home what was lent.
fn home(lists: &Lists, entries: &[MemEntry]) -> Outcome {
    let bare: ArrayVec<_, 64> =
        entries.iter().map(|e| MemEntry { frame: e.frame, ..MemEntry::default() }).collect();
    lists.reclaim(&bare).map_err(refused("MEM_RECLAIM"))?;
    Ok(())
}

fn a_lent_page_leaves_all_tlbs(host: &mut Host) -> Outcome {
    page_of_pieces(host, Tables::Root)
}

fn a_page_lent_the_short_way_leaves_all_tlbs(host: &mut Host) -> Outcome {
    page_of_pieces(host, Tables::All)
}

fn page_of_pieces(host: &mut Host, tables: Tables) -> Outcome {
    // In a block that is in pieces anyhow: its TLB entries are pages.
    let pages = host.arena.pages(64);
    let keeper = host.vm(METADATA)?;
    let lists = host.lists;
    let away = [page_at(pages, 0x1000)];
    lists.lend(keeper, &away).map_err(refused("MEM_LEND"))?;
    rounds(host, tables, |random| {
        let at = pages + (2 + random.below(62)) * PAGE_SIZE;
        Round { entries: [page_at(at, 0x1000)].into_iter().collect(), at, kept: neighbour(at) }
    })?;
    host.end(keeper)
}

fn a_page_out_of_a_block_leaves_all_tlbs(host: &mut Host) -> Outcome {
    // The block is whole at each begin: the CPUs' entries for it are one block.
    let block = host.arena.blocks(1);
    rounds(host, Tables::All, |random| {
        let at = block + random.below(512) * PAGE_SIZE;
        Round { entries: [page_at(at, 0x1000)].into_iter().collect(), at, kept: neighbour(at) }
    })
}

fn a_lent_block_leaves_all_tlbs(host: &mut Host) -> Outcome {
    whole_block(host, Tables::Root)
}

fn a_block_lent_the_short_way_leaves_all_tlbs(host: &mut Host) -> Outcome {
    whole_block(host, Tables::All)
}

fn whole_block(host: &mut Host, tables: Tables) -> Outcome {
    let blocks = host.arena.blocks(2);
    rounds(host, tables, |random| {
        let at = blocks + random.below(512) * PAGE_SIZE;
        let kept = blocks + BLOCK_SIZE + random.below(512) * PAGE_SIZE;
        let entries = [block_at(blocks, 0x20_0000)].into_iter().collect();
        Round { entries, at, kept }
    })
}

fn a_long_list_leaves_all_tlbs(host: &mut Host) -> Outcome {
    // More pieces than are invalidated one by one.
    scattered(host, 48)
}

fn a_short_list_leaves_all_tlbs(host: &mut Host) -> Outcome {
    scattered(host, 5)
}

/// Every other page of a block that is in pieces anyhow.
fn scattered(host: &mut Host, count: u64) -> Outcome {
    let block = host.arena.blocks(1);
    let keeper = host.vm(METADATA)?;
    let lists = host.lists;
    let away = block + 511 * PAGE_SIZE;
    lists.lend(keeper, &[page_at(away, 0x1000)]).map_err(refused("MEM_LEND"))?;
    rounds(host, Tables::Root, |random| {
        let first = random.below(200) * 2;
        let page = |n: u64| block + (first + 2 * n) * PAGE_SIZE;
        let entries = (0..count).map(|n| page_at(page(n), 0x10_0000 + n * PAGE_SIZE)).collect();
        let at = page(random.below(count));
        Round { entries, at, kept: neighbour(at) }
    })?;
    host.end(keeper)
}

fn donated_metadata_leaves_all_tlbs(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let block = host.arena.blocks(1);
    let first = host.arena.pages(1);
    let vm = host.lists.vm_of(first, 1)?;
    let target = Target::default();
    target.aim(block, block + PAGE_SIZE);
    let lists = host.lists;
    let work = || {
        for n in 0..8 {
            // Even pages go; the odd ones beside them stay.
            let at = block + 2 * n * PAGE_SIZE;
            target.aim(at, at + PAGE_SIZE);
            target.wait_until_through()?;
            lists.top_up(vm, &[frame(at)]).map_err(refused("VM_TOP_UP"))?;
            target.is_taken()?;
        }
        Ok(())
    };
    target.against(work)?;
    host.end(vm)?;
    // All of it is in reach again.
    for at in (block..block + BLOCK_SIZE).step_by(PAGE_SIZE as usize) {
        check_eq!(probe::read(at).is_ok(), true, "{at:#x}");
    }
    Ok(())
}
