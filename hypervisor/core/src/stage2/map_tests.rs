// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's and a guest's tables, on fake memory.

use std::sync::atomic::Ordering;

use escrow_abi::Rights;

use super::*;
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PhysAddr, PhysRange};
use crate::hypervisor::tests::fake::{Fake, Memory};
use crate::ledger::{Ledger, RamMap, Record};
use crate::trap::{MAX_TRAPS, Trap, TrapKind, Traps};

const GIB: u64 = 1 << 30;

fn features(pa_bits: u8) -> Stage2Features {
    Stage2Features { pa_bits, force_write_back: false, vmid16: false }
}

struct World {
    machine: Fake,
    ledger: Ledger,
    map: HostMap,
}

/// A machine on which the host does not reach some pages.
fn try_world_without(
    traps: &[Trap],
    ram: &[PhysRange],
    pa_bits: u8,
    limit: usize,
) -> Result<World, HostMapError> {
    let machine = Fake::default();
    let mut memory = Memory::new(PhysRange::new(0x10_0000_0000, 64 * GIB), limit);
    let ledger = Ledger::new(RamMap::new(ram).unwrap(), ram, &mut memory).unwrap();
    let traps = Traps::new(traps).unwrap();
    let map = HostMap::new(&machine, &ledger, &features(pa_bits), &traps, &mut memory)?;
    Ok(World { machine, ledger, map })
}

fn try_world(ram: &[PhysRange], pa_bits: u8, limit: usize) -> Result<World, HostMapError> {
    try_world_without(&[], ram, pa_bits, limit)
}

fn world(ram: &[PhysRange], pa_bits: u8) -> World {
    try_world(ram, pa_bits, usize::MAX).unwrap()
}

impl World {
    fn reaches(&self, at: u64) -> bool {
        self.map.reaches(&self.machine, PhysAddr(at))
    }

    /// Levels of the host's walk to an address.
    fn levels(&self, at: u64) -> u8 {
        let root = PhysAddr(self.map.context().vttbr);
        let geometry = Geometry::new(if self.map.context().vtcr & 0x3f == 16 { 48 } else { 40 });
        let mut level = geometry.start_level;
        let mut index = at >> level_shift(level);
        let mut table = root.add(index / 512 * PAGE_SIZE);
        loop {
            index %= 512;
            let word = self.machine.word(table.add(8 * index));
            let entry = Descriptor::found(word.load(Ordering::Relaxed));
            if level == 3 || !entry.is_table() {
                return level;
            }
            table = entry.address();
            level += 1;
            index = at >> level_shift(level);
        }
    }
}

#[test]
fn the_host_is_mapped_by_the_largest_entries_that_fit() {
    // RAM: a whole GiB, then a part of one that ends inside a block.
    let world = world(&[PhysRange::new(GIB, GIB + 3 * BLOCK_SIZE + 5 * PAGE_SIZE)], 40);
    let edge = 2 * GIB + 3 * BLOCK_SIZE;
    assert_eq!(world.levels(GIB), 1);
    assert_eq!(world.levels(2 * GIB), 2);
    assert_eq!(world.levels(edge), 3);
    assert_eq!(world.levels(0), 1, "MMIO");
    assert_eq!(world.levels(2 * GIB + 64 * BLOCK_SIZE), 2, "MMIO beside RAM");
    // In the block where RAM ends, the host reaches the rest as MMIO.
    for at in [0, GIB, edge, edge + 5 * PAGE_SIZE, 3 * GIB, (1 << 40) - 1] {
        assert!(world.reaches(at), "{at:#x}");
    }
    assert!(!world.reaches(1 << 40));
}

#[test]
fn a_gib_is_split_once_and_made_whole_by_the_last() {
    let world = world(&[PhysRange::new(GIB, GIB)], 40);
    let locate = |at| world.ledger.locate(PhysAddr(at)).unwrap();
    let [one, two] = [GIB + 7 * BLOCK_SIZE, GIB + 9 * BLOCK_SIZE];
    for at in [one, two] {
        world.map.split(&world.machine, &world.ledger, locate(at), PhysAddr(at));
        assert_eq!((world.levels(GIB), world.levels(at)), (2, 3));
        assert!(world.reaches(at) && world.reaches(at + 511 * PAGE_SIZE));
    }
    world.map.merge(&world.machine, &world.ledger, locate(one), PhysAddr(one));
    assert_eq!((world.levels(one), world.levels(two), world.levels(GIB)), (2, 3, 2));
    world.map.merge(&world.machine, &world.ledger, locate(two), PhysAddr(two));
    assert_eq!(world.levels(two), 1);
    assert!(world.reaches(one) && world.reaches(two) && world.reaches(GIB));
}

/// Whose root is one table at level 1, two of them, one at level 0.
#[test]
fn an_emptied_map_reaches_nothing() {
    for (pa_bits, last) in [(36, 1 << 35), (39, 1 << 38), (40, 1 << 39), (48, 1 << 39)] {
        let world = world(&[PhysRange::new(GIB, GIB)], pa_bits);
        let seen = [0, GIB, last];
        assert!(seen.iter().all(|&at| world.reaches(at)), "{pa_bits}");
        world.map.empty(&world.machine);
        assert!(!seen.iter().any(|&at| world.reaches(at)), "{pa_bits}");
    }
}

#[test]
fn a_block_with_a_frame_away_is_not_merged() {
    let world = world(&[PhysRange::new(GIB, GIB)], 40);
    let at = PhysAddr(GIB + BLOCK_SIZE);
    let block = world.ledger.locate(at).unwrap();
    world.map.split(&world.machine, &world.ledger, block, at);
    world.map.unmap_pages(&world.machine, block, 3, 1);
    world.ledger.set(at.add(3 * PAGE_SIZE), Record::POISONED);
    world.map.merge(&world.machine, &world.ledger, block, at);
    assert_eq!(world.levels(at.0), 3);
    assert!(!world.reaches(at.0 + 3 * PAGE_SIZE) && world.reaches(at.0 + 4 * PAGE_SIZE));
}

#[test]
fn mmio_beyond_the_first_tib_is_mapped_when_it_is_touched() {
    let world = world(&[PhysRange::new(GIB, GIB)], 48);
    let touch = |at| world.map.map_mmio(&world.machine, Ipa(at));
    let far = |n: u64| (n << 39) + 5 * GIB;
    assert!(world.reaches(1 << 39), "the first TiB is there");
    for n in 2..6 {
        assert!(!world.reaches(far(n)));
        assert_eq!(touch(far(n)), MmioMap::Mapped);
        assert!(world.reaches(far(n)) && !world.reaches(far(n) + GIB));
        assert_eq!(touch(far(n) + GIB), MmioMap::Mapped, "its table is there");
    }
    // All tables are used: an access that needs another one faults.
    assert_eq!(touch(far(6)), MmioMap::Refused);
    assert!(!world.reaches(far(6)));
    assert_eq!(touch(far(2)), MmioMap::Mapped);
    assert_eq!(touch(1 << 48), MmioMap::Refused);
    assert_eq!(touch(!0), MmioMap::Refused);
}

fn hidden(base: u64, size: u64) -> Trap {
    Trap { registers: PhysRange::new(base, size), kind: TrapKind::Hidden }
}

#[test]
fn what_is_withheld_is_a_hole_of_its_own_pages() {
    let ram = [PhysRange::new(GIB, GIB / 2 + 5 * PAGE_SIZE)];
    let edge = GIB + GIB / 2;
    let traps = [
        // Pages of a block; two traps in one block; a block and more.
        hidden(0x902_0000, 0x18),
        hidden(0x902_2000, 2 * PAGE_SIZE),
        hidden(0xa1f_f000, BLOCK_SIZE + 2 * PAGE_SIZE),
        // In a block that is partly RAM; beside RAM; in a GiB without RAM; beyond 1 TiB.
        hidden(edge + 7 * PAGE_SIZE, PAGE_SIZE),
        hidden(edge + 4 * BLOCK_SIZE, 1),
        hidden(7 * GIB, 2 * PAGE_SIZE),
        hidden((3 << 40) + 9 * GIB + PAGE_SIZE, PAGE_SIZE),
    ];
    let world = try_world_without(&traps, &ram, 48, usize::MAX).unwrap();
    for Trap { registers, .. } in traps {
        let (first, end) = (registers.base.0 & !0xfff, registers.end().next_multiple_of(PAGE_SIZE));
        for page in (first..end).step_by(PAGE_SIZE as usize) {
            assert!(!world.reaches(page), "{page:#x}");
            // Further accesses of the host do not map it either.
            world.map.map_mmio(&world.machine, Ipa(page));
            assert!(!world.reaches(page), "{page:#x} heals");
        }
        let outside = [first.checked_sub(PAGE_SIZE), Some(end)].into_iter().flatten();
        for page in outside.filter(|&page| page != 0x902_2000 && page < 1 << 40) {
            assert!(world.reaches(page), "{page:#x}");
        }
    }
    // Entries elsewhere keep their size; a block that is withheld as a whole needs no table.
    assert_eq!((world.levels(0x4000_0000 - 1), world.levels(0x902_0000)), (2, 3));
    assert_eq!((world.levels(0xa20_0000), world.levels(2 * GIB)), (2, 1));
    assert_eq!((world.levels(edge + 3 * PAGE_SIZE), world.levels(edge + BLOCK_SIZE)), (3, 2));
    // The neighbourhood of the far one is mapped at its first access.
    let far = (3 << 40) + 8 * GIB;
    assert!(!world.reaches(far) && world.reaches(far + GIB));
    assert_eq!(world.map.map_mmio(&world.machine, Ipa(far)), MmioMap::Mapped);
    assert!(world.reaches(far) && !world.reaches(far + GIB + PAGE_SIZE));
}

#[test]
fn ram_is_not_withheld() {
    let ram = [PhysRange::new(GIB, 2 * GIB + 5 * PAGE_SIZE)];
    let end = 3 * GIB + 5 * PAGE_SIZE;
    for (base, size) in [
        (GIB, PAGE_SIZE),
        (2 * GIB - PAGE_SIZE, PAGE_SIZE),
        (GIB - PAGE_SIZE, 2 * PAGE_SIZE),
        (2 * GIB, BLOCK_SIZE),
        (3 * GIB, PAGE_SIZE),
        (3 * GIB, BLOCK_SIZE),
        (end - 1, PAGE_SIZE),
    ] {
        let world = try_world_without(&[hidden(base, size)], &ram, 40, usize::MAX);
        assert_eq!(world.err(), Some(HostMapError::WithheldRam), "{base:#x} {size:#x}");
    }
    assert!(try_world_without(&[hidden(end, BLOCK_SIZE)], &ram, 40, usize::MAX).is_ok());
    let beyond = try_world_without(&[hidden(1 << 40, 8)], &ram, 40, usize::MAX);
    assert_eq!(beyond.err(), Some(HostMapError::OutOfRange));
}

#[test]
fn a_page_that_is_lent_and_comes_home_does_not_heal_a_hole_beside_it() {
    let ram = [PhysRange::new(GIB, BLOCK_SIZE + 5 * PAGE_SIZE)];
    let edge = PhysAddr(GIB + BLOCK_SIZE);
    let hole = edge.0 + 5 * PAGE_SIZE;
    let world = try_world_without(&[hidden(hole, 8)], &ram, 40, usize::MAX).unwrap();
    let block = world.ledger.locate(edge).unwrap();
    world.map.split(&world.machine, &world.ledger, block, edge);
    world.map.unmap_pages(&world.machine, block, 0, 5);
    world.map.map_pages(&world.machine, block, edge, 5);
    world.map.merge(&world.machine, &world.ledger, block, edge);
    assert!(world.reaches(hole - PAGE_SIZE) && !world.reaches(hole));
    assert!(world.reaches(hole + PAGE_SIZE));
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let ram = [PhysRange::new(GIB, GIB)];
    let why = |ram: &[PhysRange], bits, limit| try_world(ram, bits, limit).err();
    assert_eq!(why(&ram, 32, 999), Some(HostMapError::AddressesTooSmall));
    assert_eq!(why(&[PhysRange::new(1 << 40, GIB)], 40, 999), Some(HostMapError::OutOfRange));
    for limit in 0..3 {
        assert_eq!(why(&ram, 40, limit), Some(HostMapError::NoMemory), "{limit} pages");
    }
    assert_eq!(why(&ram, 40, 3), None);
}

#[test]
fn the_tables_of_any_ram_fit_what_is_asked_for() {
    for (ram, bits) in [
        (vec![PhysRange::new(GIB, GIB)], 48),
        (vec![PhysRange::new(GIB / 2, 8 * GIB)], 40),
        ((0..32).map(|n| PhysRange::new(n * 4 * GIB, BLOCK_SIZE)).collect(), 48),
    ] {
        let needed = HostMap::pages_needed(&RamMap::new(&ram).unwrap());
        assert!(try_world(&ram, bits, needed).is_ok(), "{ram:x?}");
        // With the maximum of withheld ranges, each of which needs tables of its own.
        let far = |n| (300 + 600 * n) * GIB - PAGE_SIZE;
        let traps: Vec<_> = (0..MAX_TRAPS as u64).map(|n| hidden(far(n), 2 * PAGE_SIZE)).collect();
        let traps = if bits == 48 { &traps[..] } else { &traps[..1] };
        assert!(try_world_without(traps, &ram, bits, needed).is_ok(), "{ram:x?}");
    }
}

#[test]
fn a_tebibyte_in_64_banks() {
    let bank = |n: u64| 0x8_0000_0000 + n * 24 * GIB;
    let ram: Vec<_> = (0..64).rev().map(|n| PhysRange::new(bank(n), 16 * GIB)).collect();
    let map = RamMap::new(&ram).unwrap();
    assert_eq!((map.blocks(), map.gibs()), (1 << 19, 1024));
    let world = try_world(&ram, 48, HostMap::pages_needed(&map)).unwrap();
    for n in 0..64 {
        let (first, last) = (bank(n), bank(n) + 16 * GIB - BLOCK_SIZE);
        for at in [first, last] {
            assert!(world.reaches(at));
            assert_eq!(world.levels(at), 1, "one entry for a GiB");
            assert_eq!(world.ledger.get(PhysAddr(at)), Some(Record::HOME));
        }
        for at in [first - PAGE_SIZE, last + BLOCK_SIZE] {
            assert_eq!(world.ledger.get(PhysAddr(at)), None, "{at:#x} is between banks");
        }
        // Each bank's blocks have tables of their own.
        let block = world.ledger.locate(PhysAddr(last)).unwrap();
        world.map.split(&world.machine, &world.ledger, block, PhysAddr(last));
        world.map.unmap_pages(&world.machine, block, n as usize, 1);
    }
    for n in 0..64 {
        let last = bank(n) + 16 * GIB - BLOCK_SIZE;
        let reached = (0..64).filter(|page| world.reaches(last + page * PAGE_SIZE));
        assert!(reached.eq((0..64).filter(|&page| page != n)), "bank {n}");
    }
}

/// A guest's map with `count` pages in its pool.
fn guest(machine: &Fake, count: u64) -> (GuestMap, PagePool) {
    let geometry = Geometry::new(39);
    let root = PhysAddr(0x1000_0000);
    let context = Stage2Context { vttbr: 1 << 48 | root.0, vtcr: geometry.vtcr(&features(40)) };
    let mut pool = PagePool::new();
    pool.adopt(machine, root);
    let root = pool.pop(machine).unwrap();
    for n in 1..=count {
        pool.adopt(machine, root.address().add(n * PAGE_SIZE));
    }
    (GuestMap::new(geometry, root, context), pool)
}

fn ram() -> Attributes {
    Attributes::guest_ram(Rights::ALL, &features(40))
}

#[test]
fn a_pool_gives_back_what_it_got() {
    let machine = Fake::default();
    let (_, mut pool) = guest(&machine, 3);
    let got = std::iter::from_fn(|| pool.pop(&machine));
    let mut got: Vec<_> = got.map(|page| page.address()).collect();
    got.sort();
    assert_eq!(got, [0x1000_1000, 0x1000_2000, 0x1000_3000].map(PhysAddr));
    assert!(pool.is_empty());
    assert!(got.iter().all(|page| machine.is_zero(page.0)), "no link is left in a table");
}

fn page(at: u64) -> Span {
    Span { at: Ipa(at), pages: 1, is_block: false }
}

/// Maps pages where there must be room.
fn map_pages(machine: &Fake, map: &GuestMap, pool: &mut PagePool, span: Span, to: u64) {
    let mut count = TableCount::new();
    let room = map.prepare_map(machine, span, &mut count).unwrap();
    let before = pool.len();
    map.map(machine, pool, span, room, PhysAddr(to), ram());
    assert_eq!(before - pool.len(), count.tables());
}

#[test]
fn as_many_tables_are_used_as_were_counted() {
    let machine = Fake::default();
    let at = [0, PAGE_SIZE, BLOCK_SIZE, GIB, GIB + PAGE_SIZE, 511 * GIB];
    let mut count = TableCount::new();
    let (map, mut pool) = guest(&machine, 16);
    let rooms = at.map(|at| map.prepare_map(&machine, page(at), &mut count).unwrap());
    // Four tables of level 3 and three of level 2.
    assert_eq!(count.tables(), 7);
    for (n, (&at, room)) in (0u64..).zip(at.iter().zip(rooms)) {
        map.map(&machine, &mut pool, page(at), room, PhysAddr(n * PAGE_SIZE), ram());
    }
    assert_eq!(pool.len(), 16 - 7);
    for (n, &at) in (0u64..).zip(&at) {
        let leaf = map.lookup(&machine, Ipa(at));
        assert_eq!((leaf.entry.address(), leaf.level), (PhysAddr(n * PAGE_SIZE), 3));
        let mut none = TableCount::new();
        assert_eq!(map.prepare_map(&machine, page(at), &mut none), Err(0), "it is taken");
    }
    let mut none = TableCount::new();
    let three = Span { at: Ipa(GIB - PAGE_SIZE * 2 + GIB), pages: 2, is_block: false };
    assert_eq!(map.prepare_map(&machine, three, &mut none), Ok(Room::default()));
    let across = Span { at: Ipa(GIB), pages: 3, is_block: false };
    assert_eq!(map.prepare_map(&machine, across, &mut none), Err(0));
    let later = Span { at: Ipa(BLOCK_SIZE - PAGE_SIZE), pages: 1, is_block: false };
    assert!(map.prepare_map(&machine, later, &mut none).is_ok());
}

#[test]
fn a_block_takes_the_place_of_an_empty_table() {
    let machine = Fake::default();
    let (map, mut pool) = guest(&machine, 4);
    map_pages(&machine, &map, &mut pool, page(0), 0);
    let mut count = TableCount::new();
    let BlockRoom::IfEmpty(table) = map.prepare_map_block(&machine, Ipa(0), &mut count) else {
        panic!("no table");
    };
    assert!(!map.is_empty(&machine, table, Ipa(0)), "a page is there");
    map.unmap(&machine, &mut pool, page(0), Unmapped::Free);
    assert_eq!(map.prepare_map_block(&machine, Ipa(0), &mut count), BlockRoom::IfEmpty(table));
    assert!(map.is_empty(&machine, table, Ipa(0)));
    assert_eq!((count.tables(), pool.len()), (0, 2));
    map.map_block(&machine, &mut pool, Ipa(0), PhysAddr(BLOCK_SIZE), ram());
    assert_eq!(pool.len(), 3, "the table is free");
    assert_eq!(machine.invalidations(map.context().vttbr, Ipa(0)), 1, "and out of the TLBs");
    assert_eq!(map.lookup(&machine, Ipa(0x5000)).level, 2);
}

#[test]
fn a_page_out_of_a_block_leaves_the_others() {
    let machine = Fake::default();
    let (map, mut pool) = guest(&machine, 4);
    map.map_block(&machine, &mut pool, Ipa(0), PhysAddr(GIB), ram());
    let mut count = TableCount::new();
    map.prepare_unmap(&machine, page(0x3000), Unmapped::Free, &mut count);
    map.prepare_unmap(&machine, page(0x4000), Unmapped::Away, &mut count);
    assert_eq!(count.tables(), 1, "both are of one block");
    map.unmap(&machine, &mut pool, page(0x3000), Unmapped::Free);
    assert_eq!(pool.len(), 2);
    assert!(!map.lookup(&machine, Ipa(0x3000)).entry.is_valid());
    let other = map.lookup(&machine, Ipa(0x4000)).entry;
    assert_eq!((other.address(), other.attributes()), (PhysAddr(GIB + 0x4000), ram()));
    map.unmap(
        &machine,
        &mut pool,
        Span { at: Ipa(0), pages: 512, is_block: false },
        Unmapped::Free,
    );
    assert!(!map.lookup(&machine, Ipa(0x4000)).entry.is_valid());
}

#[test]
fn pages_that_fill_a_block_are_one_entry_and_their_table_stays_theirs() {
    let machine = Fake::default();
    let (map, mut pool) = guest(&machine, 2);
    let all = Span { at: Ipa(GIB), pages: 512, is_block: false };
    map_pages(&machine, &map, &mut pool, all, 3 * GIB);
    assert_eq!((map.lookup(&machine, Ipa(GIB)).level, pool.len()), (2, 0));
    // Splitting it needs no table from the pool.
    let mut count = TableCount::new();
    map.prepare_unmap(&machine, page(GIB + 0x1000), Unmapped::Free, &mut count);
    assert_eq!(count.tables(), 0);
    map.unmap(&machine, &mut pool, page(GIB + 0x1000), Unmapped::Free);
    assert_eq!((map.lookup(&machine, Ipa(GIB)).level, pool.len()), (3, 0));
    assert_eq!(map.frame(&machine, Ipa(GIB + 0x2000)).unwrap().0, PhysAddr(3 * GIB + 0x2000));
    assert!(map.frame(&machine, Ipa(GIB + 0x1000)).is_none());
    // With the missing page, the block can be merged again.
    map_pages(&machine, &map, &mut pool, page(GIB + 0x1000), 3 * GIB + 0x1000);
    map.merge(&machine, &mut pool, Ipa(GIB));
    assert_eq!((map.lookup(&machine, Ipa(GIB)).level, pool.len()), (2, 0));
    assert!(machine.invalidations(map.context().vttbr, Ipa(GIB)) >= 2, "break before make");
    // After all pages are unmapped, the table stays for the next mapping.
    map.unmap(&machine, &mut pool, all, Unmapped::Free);
    map_pages(&machine, &map, &mut pool, page(GIB), 0);
    assert_eq!(map.lookup(&machine, Ipa(GIB)).level, 3);
    map.unmap(&machine, &mut pool, page(GIB), Unmapped::Free);
    // A block in the place of the table returns that to the pool.
    map.map_block(&machine, &mut pool, Ipa(GIB), PhysAddr(GIB), ram());
    assert_eq!(pool.len(), 1);
}

#[test]
fn what_is_away_comes_back_as_it_was() {
    let machine = Fake::default();
    let (map, mut pool) = guest(&machine, 2);
    map.map_block(&machine, &mut pool, Ipa(0), PhysAddr(GIB), ram());
    map.unmap(&machine, &mut pool, Span { at: Ipa(0), pages: 512, is_block: true }, Unmapped::Away);
    let leaf = map.lookup(&machine, Ipa(0x7000));
    assert!(leaf.entry.is_away() && leaf.level == 2);
    assert_eq!(map.frame(&machine, Ipa(0x7000)).unwrap().0, PhysAddr(GIB + 0x7000));
    assert_eq!(map.prepare_map(&machine, page(0x7000), &mut TableCount::new()), Err(0));
    // Restore one page.
    map.restore(&machine, &mut pool, page(0x7000));
    let back = map.lookup(&machine, Ipa(0x7000));
    assert_eq!(back.entry, Descriptor::page(PhysAddr(GIB + 0x7000), ram()));
    assert!(map.lookup(&machine, Ipa(0x8000)).entry.is_away());
    assert!(pool.is_empty());
    // A poisoned page leaves a mark in its entry.
    map.unmap(&machine, &mut pool, page(0x8000), Unmapped::Poisoned);
    assert!(map.lookup(&machine, Ipa(0x8000)).entry.is_poisoned());
    assert_eq!(map.prepare_map(&machine, page(0x8000), &mut TableCount::new()), Err(0));
    assert!(map.frame(&machine, Ipa(0x8000)).is_none());
    map.restore(&machine, &mut pool, page(0x8000));
    assert!(map.lookup(&machine, Ipa(0x8000)).entry.is_poisoned());
}
