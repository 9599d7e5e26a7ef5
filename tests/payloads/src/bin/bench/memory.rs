// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages that change hands. Lists are written before the counting begins.

use arrayvec::ArrayVec;
use escrow_abi::{
    BLOCK_SIZE, LIST_MAX, MemEntry, ORDER_BLOCK, ORDER_PAGE, PAGE_SIZE, Rights, call,
};
use escrow_payloads::guest::FREE_BLOCK;
use escrow_payloads::host::frame;
use escrow_payloads::random::Random;
use escrow_payloads::samples::Samples;
use escrow_payloads::{Host, Outcome, Test, println, tests};

use crate::borrower::{Borrower, Left, entry, take};

pub const TESTS: &[Test] =
    tests![pages, blocks, whole_lists, short_lists, scattered_lists, unlocked_pages];

/// Where guests get memory, in a part of their address space whose tables
/// have nothing else in them.
const GUEST: u64 = 0x1_0000_0000;
const PAGES_PER_BLOCK: u64 = BLOCK_SIZE / PAGE_SIZE;
/// Samples of calls about single pages.
const PAGES: u64 = 256;
/// Samples of calls about blocks.
const BLOCKS: u64 = 8;
/// Blocks that scattered pages are taken from.
const SCATTERED_BLOCKS: u64 = 16;
const SCATTERED_PAGES: usize = (SCATTERED_BLOCKS * PAGES_PER_BLOCK) as usize;

fn page(block: u64, n: u64, guest: u64) -> MemEntry {
    entry(block + n * PAGE_SIZE, ORDER_PAGE, guest + n * PAGE_SIZE)
}

/// Single pages, one a call. The first of a block, which divides it, is a
/// sample of its own.
fn pages(host: &mut Host) -> Outcome {
    let borrower = Borrower::start(host, 4 + 2 * BLOCKS)?;
    let blocks = host.arena.blocks(BLOCKS);
    let to_share = host.arena.blocks(1);
    let mut first = Samples::new("lend_4k_first_of_block");
    for n in 0..BLOCKS {
        let offset = n * BLOCK_SIZE;
        let entry = page(blocks + offset, 0, GUEST + offset);
        borrower.give(host, &mut first, call::MEM_LEND_ONE, &[entry])?;
    }
    println!("{first}");
    let mut lend = Samples::new("lend_4k");
    for n in 1..=PAGES {
        borrower.give(host, &mut lend, call::MEM_LEND_ONE, &[page(blocks, n, GUEST)])?;
    }
    println!("{lend}");
    // The same by a list.
    let mut listed = Samples::new("lend_4k_by_list");
    for n in 1..=PAGES {
        let entry = page(blocks + BLOCK_SIZE, n, GUEST + BLOCK_SIZE);
        borrower.give(host, &mut listed, call::MEM_LEND, &[entry])?;
    }
    println!("{listed}");

    let guest = GUEST + BLOCKS * BLOCK_SIZE;
    let mut share = Samples::new("share_4k");
    // As for lending, the block is divided already.
    let mut ignored = share.clone();
    borrower.give(host, &mut ignored, call::MEM_SHARE, &[page(to_share, 0, guest)])?;
    for n in 1..=PAGES {
        borrower.give(host, &mut share, call::MEM_SHARE, &[page(to_share, n, guest)])?;
    }
    println!("{share}");
    let mut unshare = Samples::new("unshare_4k");
    for n in 1..=PAGES {
        let entry = frame(to_share + n * PAGE_SIZE);
        take(host, &mut unshare, call::MEM_UNSHARE, &[entry], Left::Contents)?;
    }
    println!("{unshare}");

    borrower.destroy()?;
    let mut reclaim = Samples::new("reclaim_4k");
    for n in 1..=PAGES {
        let entry = frame(blocks + n * PAGE_SIZE);
        take(host, &mut reclaim, call::MEM_RECLAIM, &[entry], Left::Nothing)?;
    }
    println!("{reclaim}");
    host.bring_home()
}

/// Whole blocks, one a call.
fn blocks(host: &mut Host) -> Outcome {
    let borrower = Borrower::start(host, 4)?;
    let blocks = host.arena.blocks(BLOCKS + 1);
    let mut lend = Samples::new("lend_2m");
    // The first one finds no tables.
    let mut ignored = lend.clone();
    let block = |n| entry(blocks + n * BLOCK_SIZE, ORDER_BLOCK, GUEST + n * BLOCK_SIZE);
    borrower.give(host, &mut ignored, call::MEM_LEND, &[block(0)])?;
    for n in 1..=BLOCKS {
        borrower.give(host, &mut lend, call::MEM_LEND_ONE, &[block(n)])?;
    }
    println!("{lend}");
    borrower.destroy()?;
    let mut reclaim = Samples::new("reclaim_2m");
    for n in 1..=BLOCKS {
        let entry = MemEntry::new(blocks + n * BLOCK_SIZE, ORDER_BLOCK, 0, Rights::NONE);
        take(host, &mut reclaim, call::MEM_RECLAIM, &[entry], Left::Nothing)?;
    }
    println!("{reclaim}");
    host.bring_home()
}

/// As many pages as one call takes: all of a block's, which it divides.
fn whole_lists(host: &mut Host) -> Outcome {
    let borrower = Borrower::start(host, 4 + BLOCKS)?;
    let blocks = host.arena.blocks(BLOCKS);
    let per = LIST_MAX as u64;
    let mut entries = [frame(0); LIST_MAX];
    let mut lend = Samples::per("lend_512x4k_per_page", per);
    for n in 0..BLOCKS {
        let (block, guest) = (blocks + n * BLOCK_SIZE, GUEST + n * BLOCK_SIZE);
        for (entry, number) in entries.iter_mut().zip(0..PAGES_PER_BLOCK) {
            *entry = page(block, number, guest);
        }
        borrower.give(host, &mut lend, call::MEM_LEND, &entries)?;
    }
    println!("{lend}");
    borrower.destroy()?;
    let mut reclaim = Samples::per("reclaim_512x4k_per_page", per);
    for n in 0..BLOCKS {
        for (entry, number) in entries.iter_mut().zip(0..PAGES_PER_BLOCK) {
            *entry = frame(blocks + n * BLOCK_SIZE + number * PAGE_SIZE);
        }
        take(host, &mut reclaim, call::MEM_RECLAIM, &entries, Left::Nothing)?;
    }
    println!("{reclaim}");
    host.bring_home()
}

/// Lends lists of `N` of these pages, which get ascending guest addresses from
/// `guest` on.
fn lend_lists<const N: usize>(
    host: &Host,
    borrower: &Borrower,
    name: &'static str,
    pages: &[u64],
    guest: u64,
) -> Outcome {
    let mut samples = Samples::per(name, N as u64);
    let guests = (0..).map(|n| guest + n * N as u64 * PAGE_SIZE);
    for (list, guest) in pages.as_chunks::<N>().0.iter().zip(guests) {
        let guest = |n| guest + n as u64 * PAGE_SIZE;
        let entries: [_; N] = core::array::from_fn(|n| entry(list[n], ORDER_PAGE, guest(n)));
        borrower.give(host, &mut samples, call::MEM_LEND, &entries)?;
    }
    println!("{samples}");
    Ok(())
}

/// Adjacent pages of blocks that are divided already.
fn short_lists(host: &mut Host) -> Outcome {
    const PAGES_BEFORE: u64 = 64;
    let borrower = Borrower::start(host, 8)?;
    let blocks = host.arena.blocks(2);
    let adjacent = |block: u64| -> [u64; (PAGES_PER_BLOCK - PAGES_BEFORE) as usize] {
        let first = blocks + block * BLOCK_SIZE + PAGES_BEFORE * PAGE_SIZE;
        core::array::from_fn(|n| first + n as u64 * PAGE_SIZE)
    };
    let mut ignored = Samples::new("");
    for block in 0..2 {
        let (at, guest) = (blocks + block * BLOCK_SIZE, GUEST + block * BLOCK_SIZE);
        borrower.give(host, &mut ignored, call::MEM_LEND, &[page(at, 0, guest)])?;
    }
    let guest = |block| GUEST + block * BLOCK_SIZE + PAGES_BEFORE * PAGE_SIZE;
    lend_lists::<8>(host, &borrower, "lend_8x4k_per_page", &adjacent(0), guest(0))?;
    lend_lists::<64>(host, &borrower, "lend_64x4k_per_page", &adjacent(1), guest(1))?;
    borrower.end(host)
}

/// Pages in no order, as a host that ran for a while has them: of many blocks,
/// which are divided already. The guest has them one after the other.
fn scattered_lists(host: &mut Host) -> Outcome {
    let blocks = host.arena.blocks(SCATTERED_BLOCKS);
    // One page of each block is lent all the time, so that it stays divided.
    let keeper = Borrower::start(host, 4 + SCATTERED_BLOCKS)?;
    for block in 0..SCATTERED_BLOCKS {
        let (at, guest) = (blocks + block * BLOCK_SIZE, GUEST + block * BLOCK_SIZE);
        keeper.give(host, &mut Samples::new(""), call::MEM_LEND, &[page(at, 0, guest)])?;
    }
    let mut pages: ArrayVec<u64, SCATTERED_PAGES> = (0..SCATTERED_PAGES as u64)
        .filter(|n| !n.is_multiple_of(PAGES_PER_BLOCK))
        .map(|n| blocks + n * PAGE_SIZE)
        .collect();
    let mut random = Random::new(4);
    for n in (1..pages.len()).rev() {
        pages.swap(n, random.below(n as u64 + 1) as usize);
    }
    let borrower = Borrower::start(host, 4 + SCATTERED_BLOCKS)?;
    let (few, rest) = pages.split_at(512);
    let (more, rest) = rest.split_at(1024);
    lend_lists::<8>(host, &borrower, "lend_8x4k_scattered_per_page", few, GUEST)?;
    let guest = GUEST + BLOCK_SIZE;
    lend_lists::<64>(host, &borrower, "lend_64x4k_scattered_per_page", more, guest)?;
    let guest = guest + 2 * BLOCK_SIZE;
    lend_lists::<512>(host, &borrower, "lend_512x4k_scattered_per_page", rest, guest)?;
    keeper.destroy()?;
    borrower.end(host)
}

/// Pages that a guest which lives on gave up with their contents: nothing is
/// zeroed, but the guest's map changes.
fn unlocked_pages(host: &mut Host) -> Outcome {
    let borrower = Borrower::start(host, 0)?;
    let block = host.arena.blocks(1);
    let guest = FREE_BLOCK;
    // Not all: a block whose pages are all home again is one again.
    let entries: [MemEntry; 300] = core::array::from_fn(|n| page(block, n as u64, guest));
    borrower.give(host, &mut Samples::new(""), call::MEM_LEND, &entries)?;
    borrower.unlock(guest, PAGES * PAGE_SIZE)?;
    let mut reclaim = Samples::new("reclaim_4k_unlocked");
    for n in 0..PAGES {
        let entry = frame(block + n * PAGE_SIZE);
        take(host, &mut reclaim, call::MEM_RECLAIM, &[entry], Left::Contents)?;
    }
    println!("{reclaim}");
    borrower.end(host)
}
