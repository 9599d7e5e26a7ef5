// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use crate::addr::Ipa;
use crate::hypervisor::tests::fake::Memory;

fn ledger(ram: &[PhysRange]) -> Ledger {
    let mut memory = Memory::new(PhysRange::new(0, 0), 0);
    Ledger::new(RamMap::new(ram).unwrap(), ram, &mut memory).unwrap()
}

fn lent(guest: u64) -> Record {
    Record::borrowed(FrameState::Lent, VmId::Host, GuestId::new(1).unwrap(), Ipa(guest))
}

#[test]
fn ram_is_sorted_merged_and_rounded_to_blocks() {
    let map = RamMap::new(&[
        PhysRange::new(0x8000_0000, 0x40_0000),
        PhysRange::new(0x4000_1000, 0x1f_f000),
        PhysRange::new(0x4020_0000, 0x20_0000),
    ])
    .unwrap();
    let ranges: Vec<_> = map.ranges().collect();
    assert_eq!(
        ranges,
        [PhysRange::new(0x4000_0000, 0x40_0000), PhysRange::new(0x8000_0000, 0x40_0000)]
    );
    assert_eq!(map.blocks(), 4);
    assert_eq!((map.gibs(), map.directory(), map.end()), (2, 3, 0x8040_0000));
}

#[test]
fn bad_ram_is_refused() {
    assert_eq!(RamMap::new(&[]).unwrap_err(), RamError::None);
    assert_eq!(RamMap::new(&[PhysRange::new(0x1001, 0x1000)]).unwrap_err(), RamError::None);
    assert_eq!(
        RamMap::new(&[PhysRange::new(u64::MAX - 1, 0x1000)]).unwrap_err(),
        RamError::OutOfRange
    );
    let many: Vec<_> =
        (0..=MAX_RANGES as u64).map(|n| PhysRange::new(n << 30, 0x20_0000)).collect();
    assert_eq!(RamMap::new(&many).unwrap_err(), RamError::TooManyRanges);
}

#[test]
fn edges_that_are_no_ram_are_marked() {
    let ledger = ledger(&[PhysRange::new(0x4000_1000, 0x3f_f000)]);
    assert_eq!(ledger.get(PhysAddr(0x4000_0000)), Some(Record::NO_RAM));
    assert_eq!(ledger.get(PhysAddr(0x4000_1000)), Some(Record::HOME));
    assert_eq!(ledger.count(FrameState::Owned), 1023);
}

#[test]
fn a_frame_that_leaves_splits_its_block_and_only_that() {
    let ledger = ledger(&[PhysRange::new(0x4000_0000, 0x40_0000)]);
    let at = PhysAddr(0x4000_3000);
    let block = ledger.locate(at).unwrap();
    ledger.set(at, lent(0x8000_0000));
    assert!(ledger.is_split(block));
    assert_eq!(ledger.away(block), 1);
    assert_eq!(ledger.get(at), Some(lent(0x8000_0000)));
    assert_eq!(ledger.get(PhysAddr(0x4000_4000)), Some(Record::HOME));
    assert_eq!(ledger.get(PhysAddr(0x4020_3000)), Some(Record::HOME));
    assert_eq!(ledger.count(FrameState::Lent), 1);
    assert_eq!(ledger.count(FrameState::Owned), 1023);
    ledger.set(at, Record::HOME);
    assert_eq!(ledger.away(block), 0);
    assert_eq!(ledger.whole_block(block), Some(Record::HOME));
    ledger.set_block(block, Record::HOME);
    assert!(!ledger.is_split(block));
    assert_eq!(ledger.count(FrameState::Owned), 1024);
}

/// The look from the inside out finds what the look at the whole block finds, whichever pages
/// it begins at, and whichever frame differs.
#[test]
fn whether_a_block_is_alike_shows_from_any_of_its_pages() {
    let ledger = ledger(&[PhysRange::new(0x4000_0000, 0x40_0000)]);
    let block = ledger.locate(PhysAddr(0x4000_0000)).unwrap();
    // Guest addresses that ascend across the end of a block; and no guest addresses.
    for record in [lent(0x8000_1000), Record::HOME] {
        for odd in [None, Some(0), Some(1), Some(255), Some(510), Some(511)] {
            ledger.set_block(block, record);
            ledger.split(block);
            assert_eq!(ledger.whole_block(block), Some(record), "split, and alike");
            if let Some(odd) = odd {
                ledger.set_frames(block, odd, 1, Record::POISONED);
            }
            for (first, pages) in [(0, 1), (1, 1), (2, 7), (100, 155), (254, 1), (509, 1), (511, 1)]
            {
                if odd.is_some_and(|odd| (first..first + pages).contains(&odd)) {
                    continue;
                }
                let goes_on = ledger.records(block).go_on_around(first, pages);
                assert_eq!(goes_on, odd.is_none(), "{odd:?} differs, seen from {first}");
                assert_eq!(goes_on, ledger.whole_block(block).is_some());
            }
        }
    }
    ledger.set_block(block, lent(0x8000_1000));
    assert!(ledger.records(block).go_on_around(3, 1), "one record is alike");
}

#[test]
fn a_block_that_leaves_is_one_record() {
    let ledger = ledger(&[PhysRange::new(0x4000_0000, 0x40_0000)]);
    let block = ledger.locate(PhysAddr(0x4000_0000)).unwrap();
    ledger.set_block(block, lent(0x8000_0000));
    assert!(!ledger.is_split(block));
    assert_eq!(ledger.away(block), 512);
    assert_eq!(ledger.get(PhysAddr(0x4000_5000)), Some(lent(0x8000_5000)));
    // A change of one frame leaves the guest addresses of the others.
    let unlocked = lent(0x8000_5000).with_state(FrameState::UnlockedZeroed);
    ledger.set(PhysAddr(0x4000_5000), unlocked);
    assert_eq!(ledger.away(block), 512);
    assert_eq!(ledger.whole_block(block), None);
    assert_eq!(ledger.get(PhysAddr(0x4000_6000)), Some(lent(0x8000_6000)));
    assert_eq!(ledger.count(FrameState::Lent), 511);
    ledger.set_block(block, Record::HOME);
    assert_eq!(ledger.count(FrameState::Owned), 1024);
    assert_eq!(ledger.count(FrameState::Lent), 0);
    assert_eq!(ledger.count(FrameState::UnlockedZeroed), 0);
}

/// Where a machine's RAM is: banks, and an address in each of them that is RAM.
fn is_ram(ram: &[PhysRange], at: u64) -> bool {
    ram.iter().any(|r| {
        let (base, end) = (r.base.0.next_multiple_of(PAGE_SIZE), r.end() & !(PAGE_SIZE - 1));
        (base..end).contains(&at)
    })
}

/// Holds the ledger of a machine against the banks themselves, at and around
/// every edge of a bank, a block and a GiB.
fn check_banks(ram: &[PhysRange]) {
    let ledger = ledger(ram);
    let mut places = vec![0, GIB_SIZE, (1 << 48) - PAGE_SIZE, 1 << 48, !(PAGE_SIZE - 1)];
    for range in ram {
        for edge in [range.base.0, range.end()] {
            for near in [edge, edge & !(BLOCK_SIZE - 1), edge & !(GIB_SIZE - 1)] {
                for step in [1, PAGE_SIZE, BLOCK_SIZE, GIB_SIZE] {
                    places.extend([near, near.wrapping_add(step), near.wrapping_sub(step)]);
                }
            }
        }
    }
    for at in places {
        let page = PhysAddr(at).align_down(PAGE_SIZE);
        let block = PhysAddr(at).align_down(BLOCK_SIZE);
        let record = ledger.get(PhysAddr(at));
        assert_eq!(record == Some(Record::HOME), is_ram(ram, page.0), "{at:#x} of {ram:x?}");
        let touched =
            (0..PAGES_PER_BLOCK as u64).any(|n| is_ram(ram, block.0.wrapping_add(n * PAGE_SIZE)));
        assert_eq!(record.is_some(), touched, "{at:#x} of {ram:x?}");
        assert_eq!(record.is_some(), ledger.locate(PhysAddr(at)).is_some());
    }
    let mut pages: Vec<u64> = Vec::new();
    let blocks =
        ledger.ram().ranges().flat_map(|r| (r.base.0..r.end()).step_by(BLOCK_SIZE as usize));
    for base in blocks {
        pages.extend(
            (0..PAGES_PER_BLOCK as u64).map(|n| base + n * PAGE_SIZE).filter(|&at| is_ram(ram, at)),
        );
    }
    assert_eq!(ledger.count(FrameState::Owned), pages.len() as u64);
    assert_eq!(ledger.blocks().count(), ledger.ram().blocks());
}

#[test]
fn banks_lie_anywhere_in_any_order() {
    const M: u64 = 1 << 20;
    let machines: &[&[(u64, u64)]] = &[
        // Unsorted banks, one at a high address.
        &[(0x8_0000_0000, 2 * M), (0x4000_0000, 4 * M), (0x80_0000_0000, 2 * M)],
        // Adjacent banks, with sizes in pages.
        &[(0x4000_0000, 0x3000), (0x4000_3000, 0x1000), (0x4000_4000, 4 * M)],
        // Two banks and a hole in one block, another hole in one GiB.
        &[(0x4000_0000, 0x8_0000), (0x4010_0000, 0x4_0000), (0x5000_0000, 2 * M)],
        // A hole of one page at the edge of a block; banks that overlap.
        &[(0x401f_e000, 0x1000), (0x4020_0000, 0x1000), (0x4020_0000, 0x3000)],
        // A bank across the edge of a GiB; parts of pages.
        &[(0x7ff0_0800, 2 * M), (0xffff_f000, 0x2000)],
    ];
    for banks in machines {
        let mut ram: Vec<_> =
            banks.iter().map(|&(base, size)| PhysRange::new(base, size)).collect();
        check_banks(&ram);
        ram.reverse();
        check_banks(&ram);
    }
}

#[test]
fn every_bank_has_its_own_records() {
    let ram: Vec<_> =
        (0..MAX_RANGES as u64).map(|n| PhysRange::new(n * 3 * GIB_SIZE / 2, BLOCK_SIZE)).collect();
    check_banks(&ram);
    let ledger = ledger(&ram);
    let owner = |n: u64| Record::donated(GuestId::new(n as u16 + 1).unwrap(), Ipa(n * PAGE_SIZE));
    for (n, range) in (0..).zip(&ram) {
        ledger.set(range.base.add(n * PAGE_SIZE), owner(n));
    }
    for (n, range) in (0..).zip(&ram) {
        assert_eq!(ledger.get(range.base.add(n * PAGE_SIZE)), Some(owner(n)));
        assert_eq!(ledger.locate(range.base).map(|block| ledger.away(block)), Some(1));
    }
}

#[test]
fn records_may_be_in_pieces() {
    let ram = [PhysRange::new(0x4000_0000, 7 * BLOCK_SIZE)];
    for piece in [1, 2, 3, 7] {
        let mut memory = Memory::new(PhysRange::new(0, 0), 0).in_pieces(piece);
        let ledger = Ledger::new(RamMap::new(&ram).unwrap(), &ram, &mut memory).unwrap();
        for (n, block) in (0..).zip(ledger.blocks()) {
            ledger.split(block);
            ledger.set_frames(block, n, 1, Record::POISONED);
        }
        assert_eq!(ledger.count(FrameState::Poisoned), 7);
        for n in 0..7 {
            let at = PhysAddr(0x4000_0000 + n * (BLOCK_SIZE + PAGE_SIZE));
            assert_eq!(ledger.get(at), Some(Record::POISONED), "pieces of {piece}: {at}");
        }
    }
}
