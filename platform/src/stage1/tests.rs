// SPDX-License-Identifier: MIT OR Apache-2.0

use proptest::prelude::*;

use super::*;

const BASE: u64 = 0x7000_0000;

/// Tables that were used for something else before.
fn dirty(count: usize) -> Vec<Table> {
    (0..count).map(|_| [const { AtomicU64::new(u64::MAX) }; ENTRIES]).collect()
}

/// A walk as the MMU makes it: the leaf for an address, and its level.
fn walk(map: &Stage1<'_>, address: u64) -> Option<(u64, u32)> {
    let mut table = map.root();
    for level in 0..4 {
        let index = (address >> (12 + 9 * (3 - level))) as usize % ENTRIES;
        let entry = map.table(table).unwrap()[index].load(Ordering::Relaxed);
        if entry & VALID == 0 {
            return None;
        }
        if level == 3 || entry & TABLE_OR_PAGE == 0 {
            assert!(level > 0 && (level == 3) == (entry & TABLE_OR_PAGE != 0));
            return Some((entry, level));
        }
        table = entry & OUTPUT;
    }
    unreachable!()
}

/// What an address is mapped for; the identity of the mapping is checked.
fn usage(map: &Stage1<'_>, address: u64) -> Option<Use> {
    let (entry, level) = walk(map, address)?;
    let size = 1 << (12 + 9 * (3 - level));
    assert_eq!(entry & OUTPUT, address & !(size - 1) & OUTPUT);
    let flags = entry & !OUTPUT & !TABLE_OR_PAGE;
    let uses = [Use::Code, Use::ReadOnly, Use::Data, Use::Device];
    Some(uses.into_iter().find(|usage| usage.attributes() == flags).expect("a known use"))
}

fn level(map: &Stage1<'_>, address: u64) -> Option<u32> {
    walk(map, address).map(|(_, level)| level)
}

#[test]
fn nothing_is_writable_and_executable() {
    for usage in [Use::Code, Use::ReadOnly, Use::Data, Use::Device] {
        let attributes = usage.attributes();
        assert!(attributes & (READ_ONLY | EXECUTE_NEVER) != 0, "{usage:?}");
        assert_eq!(attributes & EXECUTE_NEVER == 0, usage == Use::Code);
    }
}

#[test]
fn the_largest_pieces_that_fit() {
    let tables = dirty(8);
    let mut map = Stage1::new(Pool { tables: &tables, base: BASE }, 40).unwrap();
    map.map(Range::new(0x3fff_f000, 0x8020_1000), Use::Data).unwrap();
    assert_eq!(level(&map, 0x3fff_efff), None);
    assert_eq!(level(&map, 0x3fff_f000), Some(3));
    assert_eq!(level(&map, 0x4000_0000), Some(1));
    assert_eq!(level(&map, 0x8000_0000), Some(2));
    assert_eq!(level(&map, 0x8020_0000), Some(3));
    assert_eq!(level(&map, 0x8020_1000), None);
    // Root, level 1, and for each end a level 2 and a level 3.
    assert_eq!(map.used, 6);
}

#[test]
fn whole_pages_and_known_addresses_only() {
    let tables = dirty(8);
    let mut map = Stage1::new(Pool { tables: &tables, base: BASE }, 36).unwrap();
    map.map(Range::new(0x1fff, 0x2001), Use::Device).unwrap();
    assert_eq!(usage(&map, 0x1000), Some(Use::Device));
    assert_eq!(usage(&map, 0x2fff), Some(Use::Device));
    assert_eq!(usage(&map, 0xfff).or(usage(&map, 0x3000)), None);
    let map_at = |map: &mut Stage1<'_>, start| map.map(Range::new(start, start + 1), Use::Data);
    assert_eq!(map_at(&mut map, (1 << 36) - 1), Ok(()));
    assert_eq!(map_at(&mut map, 1 << 36), Err(MapError::OutOfReach));
    assert_eq!(map_at(&mut map, u64::MAX - 1), Err(MapError::OutOfReach));
    assert_eq!(map.map(Range::new(5, 5), Use::Code), Ok(()));
}

#[test]
fn a_use_may_change_but_not_a_size() {
    let tables = dirty(8);
    let mut map = Stage1::new(Pool { tables: &tables, base: BASE }, 48).unwrap();
    map.map(Range::new(0x20_0000, 0x20_1000), Use::ReadOnly).unwrap();
    map.map(Range::new(0x40_0000, 0x60_0000), Use::ReadOnly).unwrap();
    // Over the page, whose table stays, and over the block.
    map.map(Range::new(0x20_0000, 0x60_0000), Use::Data).unwrap();
    assert_eq!((level(&map, 0x20_0000), level(&map, 0x40_0000)), (Some(3), Some(2)));
    assert_eq!(usage(&map, 0x20_0000), Some(Use::Data));
    assert_eq!(usage(&map, 0x5f_f000), Some(Use::Data));
    // Into the block.
    let into = map.map(Range::new(0x40_0000, 0x40_1000), Use::Code);
    assert_eq!(into, Err(MapError::Mapped));
}

#[test]
fn what_goes_is_what_was_named() {
    let tables = dirty(8);
    let mut map = Stage1::new(Pool { tables: &tables, base: BASE }, 40).unwrap();
    // A page, a GiB, a block, a page.
    map.map(Range::new(0x3fff_f000, 0x8020_1000), Use::Data).unwrap();
    let levels = |map: &Stage1<'_>| {
        [0x3fff_f000, 0x4000_0000, 0x8000_0000, 0x8020_0000].map(|at| level(map, at))
    };
    let all = [Some(3), Some(1), Some(2), Some(3)];
    assert_eq!(levels(&map), all);
    // Where nothing is.
    map.unmap(Range::new(0, 0x3fff_f000)).unwrap();
    map.unmap(Range::new(0x8020_1000, 1 << 39)).unwrap();
    // A part of what is one entry, at each of its ends.
    for part in [(0x4000_0000, 0x7fff_f000), (0x8000_1000, 0x8020_0000)] {
        assert_eq!(map.unmap(Range::new(part.0, part.1)), Err(MapError::Mapped));
    }
    assert_eq!(levels(&map), all);
    map.unmap(Range::new(0x8000_0000, 0x8020_1000)).unwrap();
    assert_eq!(levels(&map), [Some(3), Some(1), None, None]);
    map.unmap(Range::new(0x3fff_f000, 0x8000_0000)).unwrap();
    assert_eq!(levels(&map), [None; 4]);
    // Its tables stay, and its place may be mapped in other pieces.
    let used = map.used;
    map.map(Range::new(0x8000_0000, 0x8020_1000), Use::ReadOnly).unwrap();
    map.map(Range::new(0x4000_0000, 0x4020_0000), Use::Code).unwrap();
    assert_eq!((level(&map, 0x8000_0000), level(&map, 0x4000_0000)), (Some(2), Some(2)));
    assert_eq!(map.used, used + 1);
}

#[test]
fn tables_run_out_and_come_from_the_next_pool() {
    let (first, second) = (dirty(4), dirty(2));
    assert_eq!(
        Stage1::new(Pool { tables: &[], base: BASE }, 48).map(drop),
        Err(MapError::NoTables)
    );
    let mut map = Stage1::new(Pool { tables: &first, base: BASE }, 48).unwrap();
    map.map(Range::new(0, 0x1000), Use::Data).unwrap();
    let more = Range::new(0x20_0000, 0x20_1000);
    assert_eq!(map.map(more, Use::Data), Err(MapError::NoTables));
    assert_eq!(usage(&map, 0), Some(Use::Data));
    map.add_pool(Pool { tables: &second, base: BASE << 4 }).unwrap();
    map.map(more, Use::Data).unwrap();
    assert_eq!(usage(&map, 0x20_0000), Some(Use::Data));
    assert_eq!(usage(&map, 0x20_1000), None);
    let third = map.add_pool(Pool { tables: &second, base: BASE << 5 });
    assert_eq!(third, Err(MapError::NoTables));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Against a list of pages: ranges in 4 GiB, in an order in which no
    /// block is cut.
    #[test]
    fn maps_what_it_is_told(
        mut ranges in prop::collection::vec((0u64..0x10_0000, 1u64..0x2000, 0usize..2), 1..12),
    ) {
        let uses = [Use::ReadOnly, Use::Data];
        // Small ones first: their tables are there when larger ones come.
        ranges.sort_by_key(|range| range.1);
        let tables = dirty(64);
        let mut map = Stage1::new(Pool { tables: &tables, base: BASE }, 48).unwrap();
        let mut model = std::collections::BTreeMap::new();
        for (page, count, kind) in ranges {
            let range = Range::new(page * PAGE, (page + count) * PAGE);
            if map.map(range, uses[kind]).is_err() {
                // A block was in the way, or tables ran out: half done.
                return Ok(());
            }
            model.extend((page..page + count).map(|page| (page, uses[kind])));
        }
        for (&page, &expected) in &model {
            prop_assert_eq!(usage(&map, page * PAGE), Some(expected));
            for neighbour in [page.wrapping_sub(1), page + 1] {
                if neighbour < 1 << 36 && !model.contains_key(&neighbour) {
                    prop_assert_eq!(usage(&map, neighbour * PAGE), None);
                }
            }
        }
    }
}
