// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use crate::addr::Ipa;

fn ledger(ram: &[PhysRange]) -> Ledger {
    let map = RamMap::new(ram).unwrap();
    let blocks: Vec<BlockCell> = (0..map.blocks()).map(|_| BlockCell::default()).collect();
    let frames: Vec<AtomicU64> =
        (0..map.blocks() * PAGES_PER_BLOCK).map(|_| AtomicU64::new(0xdead)).collect();
    Ledger::new(map, ram, Vec::leak(blocks), Vec::leak(frames)).unwrap()
}

fn lent(guest: u64) -> Record {
    Record::borrowed(FrameState::Lent, VmId::HOST, VmId::new(1), Ipa(guest))
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
    assert_eq!(map.locate(PhysAddr(0x8020_0000)).unwrap().get(), 3);
    assert_eq!(map.locate(PhysAddr(0x4040_0000)), None);
    assert_eq!(map.locate(PhysAddr(0)), None);
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
    let block = ledger.ram().locate(at).unwrap();
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

#[test]
fn a_block_that_leaves_is_one_record() {
    let ledger = ledger(&[PhysRange::new(0x4000_0000, 0x40_0000)]);
    let block = ledger.ram().locate(PhysAddr(0x4000_0000)).unwrap();
    ledger.set_block(block, lent(0x8000_0000));
    assert!(!ledger.is_split(block));
    assert_eq!(ledger.away(block), 512);
    assert_eq!(ledger.get(PhysAddr(0x4000_5000)), Some(lent(0x8000_5000)));
    // One of its frames changes: the others keep their guest addresses.
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
