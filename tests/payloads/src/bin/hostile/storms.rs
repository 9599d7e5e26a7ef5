// SPDX-License-Identifier: MIT OR Apache-2.0

//! Blocks that are split and made whole all the time, from all CPUs at once: in the
//! end each is one block again, and all of it the host's.

use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, FrameState, LIST_MAX, MemEntry, PAGE_SIZE, call};
use escrow_payloads::expect::{is_in_reach, is_out_of_reach};
use escrow_payloads::host::{Lists, block, block_at, frame, frame_state, page_at, refused};
use escrow_payloads::random::Random;
use escrow_payloads::{Host, Outcome, Test, check_eq, cpus, hvc, probe, tests};

use crate::{all_lists, rounds, seed};

pub const TESTS: &[Test] = tests![blocks_are_split_and_made_whole];

type List = ArrayVec<MemEntry, LIST_MAX>;

/// Metadata pages of each CPU's VM: root, level 2, and level 3 for three blocks.
const METADATA: u64 = 5;

/// One CPU's part of a storm.
struct Storm<'a> {
    lists: &'a Lists,
    random: Random,
    /// Its VM's pages.
    metadata: u64,
    /// A block of its own, and the one that all have a part of.
    own: u64,
    common: u64,
    /// Which pages of the common block are this CPU's.
    part: (u64, u64),
}

/// Where the common block goes in the guests.
const COMMON: u64 = BLOCK_SIZE;

impl Storm<'_> {
    /// Pages that are some of `from..from + of`, in any order.
    fn some(&mut self, from: u64, of: u64, most: u64) -> ArrayVec<u64, LIST_MAX> {
        let count = 1 + self.random.below(most.min(of));
        let mut pages: ArrayVec<u64, LIST_MAX> = (from..from + of).collect();
        for n in 0..count as usize {
            let other = n + self.random.below((pages.len() - n) as u64) as usize;
            pages.swap(n, other);
        }
        pages.truncate(count as usize);
        pages
    }

    fn share(&self, vm: u64, list: &[MemEntry]) -> Outcome {
        self.lists.share(vm, list).map_err(refused("MEM_SHARE"))?;
        Ok(())
    }

    fn unshare(&self, list: &[MemEntry]) -> Outcome {
        self.lists.unshare(list).map_err(refused("MEM_UNSHARE"))?;
        Ok(())
    }

    /// Some pages go, in one call or two, and come back in another order.
    fn pages(&mut self, vm: u64, at: u64, guest: u64, from: u64, of: u64) -> Outcome {
        let pages = self.some(from, of, 64);
        let there: List =
            pages.iter().map(|n| page_at(at + n * PAGE_SIZE, guest + n * PAGE_SIZE)).collect();
        let mut back: List = pages.iter().map(|n| frame(at + n * PAGE_SIZE)).collect();
        let cut = self.random.below(there.len() as u64) as usize;
        for part in [&there[..cut], &there[cut..]] {
            if !part.is_empty() {
                self.share(vm, part)?;
            }
        }
        check_eq!(frame_state(at + pages[0] * PAGE_SIZE)?, FrameState::Shared);
        if self.random.below(2) == 0 {
            back.reverse();
        }
        let cut = self.random.below(back.len() as u64) as usize;
        for part in [&back[cut..], &back[..cut]] {
            if !part.is_empty() {
                self.unshare(part)?;
            }
        }
        Ok(())
    }

    /// The CPU's own block: as one, in pieces, page by page, and over again.
    fn block(&mut self, vm: u64) -> Outcome {
        let at = self.own;
        match self.random.below(4) {
            0 => {
                self.share(vm, &[block_at(at, 0)])?;
                self.unshare(&[block(at)])
            }
            1 => {
                // One, home in two halves.
                self.share(vm, &[block_at(at, 0)])?;
                let pages = self.some(0, 512, 511);
                let first: List = pages.iter().map(|n| frame(at + n * PAGE_SIZE)).collect();
                let rest: List = (0..512)
                    .filter(|n| !pages.contains(n))
                    .map(|n| frame(at + n * PAGE_SIZE))
                    .collect();
                self.unshare(&first)?;
                check_eq!(frame_state(first[0].frame)?, FrameState::Owned);
                check_eq!(frame_state(rest[0].frame)?, FrameState::Shared);
                self.unshare(&rest)
            }
            2 => {
                // All its pages, home as one.
                let all: List =
                    (0..512).map(|n| n * PAGE_SIZE).map(|n| page_at(at + n, n)).collect();
                self.share(vm, &all)?;
                self.unshare(&[block(at)])
            }
            _ => self.pages(vm, at, 0, 0, 512),
        }
    }

    fn round(&mut self) -> Outcome {
        let vm = self.lists.vm_of(self.metadata, METADATA)?;
        for _ in 0..4 {
            self.block(vm)?;
            let (from, of) = self.part;
            self.pages(vm, self.common, COMMON, from, of)?;
            // The CPU's part of the common block is in reach all the while.
            let at = self.common + (from + self.random.below(of)) * PAGE_SIZE;
            check_eq!(probe::write(at, at), Ok(()));
            check_eq!(probe::read(at), Ok(at));
        }
        // What is lent stays until the VM's end, in the midst of the others' storms.
        let (from, of) = self.part;
        let page = self.common + (from + self.random.below(of)) * PAGE_SIZE;
        self.lists.lend(vm, &[page_at(page, COMMON)]).map_err(refused("MEM_LEND"))?;
        is_out_of_reach(page)?;
        hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
        self.lists.reclaim(&[frame(page)]).map_err(refused("MEM_RECLAIM"))?;
        is_in_reach(page)?;
        let metadata: List = (0..METADATA).map(|n| frame(self.metadata + n * PAGE_SIZE)).collect();
        self.lists.reclaim(&metadata).map_err(refused("MEM_RECLAIM"))?;
        Ok(())
    }
}

fn blocks_are_split_and_made_whole(host: &mut Host) -> Outcome {
    let lists = all_lists(host);
    let metadata = host.arena.pages(METADATA * cpus::MAX_CPUS as u64);
    let blocks = host.arena.blocks(cpus::MAX_CPUS as u64 + 1);
    let common = blocks + cpus::MAX_CPUS as u64 * BLOCK_SIZE;
    let seed = seed(host);
    let rounds = rounds(host, 200);
    let part = 512 / cpus::count() as u64;
    cpus::try_on_all(|n| {
        let n = n as u64;
        let mut storm = Storm {
            lists: &lists[n as usize],
            random: Random::new(seed << 8 | n),
            metadata: metadata + METADATA * n * PAGE_SIZE,
            own: blocks + n * BLOCK_SIZE,
            common,
            part: (part * n, part),
        };
        (0..rounds).try_for_each(|_| storm.round())
    })?;
    // All is the host's, page by page, and each block goes as one.
    for at in (blocks..common + BLOCK_SIZE).step_by(PAGE_SIZE as usize) {
        check_eq!(frame_state(at)?, FrameState::Owned, "{at:#x}");
        is_in_reach(at)?;
    }
    let vm = host.vm(2)?;
    let whole: List = (0..=cpus::MAX_CPUS as u64)
        .map(|n| block_at(blocks + n * BLOCK_SIZE, n * BLOCK_SIZE))
        .collect();
    host.lists.lend(vm, &whole).map_err(refused("MEM_LEND of whole blocks"))?;
    host.end(vm)
}
