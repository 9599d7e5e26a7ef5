// SPDX-License-Identifier: MIT OR Apache-2.0

use proptest::prelude::*;

use super::*;

const RAM: [Range; 1] = [Range { start: 0x4000_0000, end: 0x8000_0000 }];
const MIB: u64 = 1 << 20;

fn loaded() -> Loaded<'static> {
    Loaded {
        ram: &RAM,
        reserved: &[],
        image: Range::new(0x4020_0000, 0x4027_0000),
        tree: Range::new(0x4800_0000, 0x4810_0000),
        kernel: Range::new(0x4400_0000, 0x4600_0000),
        ramdisk: Some(Range::new(0x4c00_0000, 0x4c12_3456)),
    }
}

fn needs() -> Needs {
    let kernel =
        KernelImage { text_offset: 0, memory_size: 40 * MIB, page_size: None, anywhere: true };
    Needs { kernel, working_size: 8 * MIB, working_unit: MIB, host_tree_size: 0x5000 }
}

fn plan(loaded: Loaded<'_>, needs: Needs) -> Result<Layout, LayoutError> {
    loaded.check()?.plan(&needs)
}

#[test]
fn a_kernel_that_lies_right_stays() {
    let layout = plan(loaded(), needs()).unwrap();
    assert_eq!(layout.image, Range::new(0x4020_0000, 0x4040_0000));
    assert_eq!(layout.kernel, Range::new(0x4400_0000, 0x4400_0000 + 40 * MIB));
    assert_eq!(layout.working.as_slice(), [Range::new(0x7f80_0000, 0x8000_0000)]);
    assert_eq!(layout.host_tree, Range::new(0x7f7f_b000, 0x7f80_0000));
}

#[test]
fn a_kernel_that_does_not_is_moved() {
    // Off the boundary, too close to what follows, too close to the end.
    let crooked = Range::new(0x4400_1000, 0x4600_1000);
    let cramped = Range::new(0x4a00_0000, 0x4bff_0000);
    let last = Range::new(0x7e00_0000, 0x8000_0000);
    for kernel in [crooked, cramped, last] {
        let layout = plan(Loaded { kernel, ..loaded() }, needs()).unwrap();
        assert_ne!(layout.kernel.start, kernel.start);
        assert_eq!(layout.kernel, Range::new(0x4040_0000, 0x4040_0000 + 40 * MIB));
    }
    let kernel = KernelImage { text_offset: 0x8_0000, ..needs().kernel };
    let layout = plan(loaded(), Needs { kernel, ..needs() }).unwrap();
    assert_eq!(layout.kernel, Range::new(0x4048_0000, 0x4048_0000 + 40 * MIB));
}

/// However little there is of other memory.
#[test]
fn nothing_goes_to_address_0() {
    let ram = [Range::new(0, 4 * MIB), Range::new(0x4000_0000, 0x4000_0000 + 8 * MIB)];
    let loaded = Loaded {
        ram: &ram,
        image: Range::new(0x4000_0000, 0x4007_0000),
        kernel: Range::new(0x4020_0000, 0x4020_0000 + 2 * MIB),
        tree: Range::new(0x4040_0000, 0x4041_0000),
        ramdisk: None,
        ..loaded()
    };
    let kernel = KernelImage { memory_size: 2 * MIB, ..needs().kernel };
    let needs = Needs { kernel, working_size: 3 * MIB, ..needs() };
    let no_room = LayoutError::TooLittleMemory("Escrow's ledger", 3 * MIB);
    assert_eq!(plan(loaded, needs), Err(no_room));
    // A kernel that has to be moved.
    let crooked = Range::new(0x4020_1000, 0x4020_1000 + MIB);
    let needs = Needs { working_size: MIB, working_unit: 0, ..needs };
    let moved = plan(Loaded { kernel: crooked, ..loaded }, needs).unwrap();
    assert_ne!(moved.kernel.start, 0);
}

#[test]
fn overlaps_are_named() {
    let overlap = |loaded: Loaded<'_>| match loaded.check() {
        Err(LayoutError::Overlap(one, _, other, _)) => (one, other),
        other => panic!("{other:?}"),
    };
    let (kernel, ramdisk) = ("the host's kernel", "the host's ramdisk");
    // In the rest of the last block is still in Escrow's memory.
    for at in [0x4020_0000, 0x403f_f000, 0x4000_0000] {
        let over = Range::new(at, at + 4 * MIB);
        assert_eq!(overlap(Loaded { kernel: over, ..loaded() }), (kernel, "Escrow"));
        let ramdisk_over = Loaded { ramdisk: Some(over), ..loaded() };
        assert_eq!(overlap(ramdisk_over), (ramdisk, "Escrow"));
    }
    let over = Some(Range::new(0x45ff_ffff, 0x4700_0000));
    assert_eq!(overlap(Loaded { ramdisk: over, ..loaded() }), (ramdisk, kernel));
    let over = Range::new(0x4380_0000, 0x4380_0000 + 100 * MIB);
    assert_eq!(overlap(Loaded { kernel: over, ..loaded() }), (kernel, "the device tree"));
    let tree = Range::new(0x4026_0000, 0x4028_0000);
    assert_eq!(overlap(Loaded { tree, ..loaded() }), ("Escrow", "the device tree"));
    let reserved = &[Range::new(0x4030_0000, 0x4030_1000)];
    assert_eq!(overlap(Loaded { reserved, ..loaded() }).0, "Escrow");
    let reserved = &[Range::new(0x4500_0000, 0x4500_1000)];
    assert_eq!(overlap(Loaded { reserved, ..loaded() }).0, kernel);
}

#[test]
fn the_old_tree_may_lie_behind_the_image_or_in_reserved_memory() {
    let tree = Range::new(0x4030_0000, 0x4031_0000);
    assert!(plan(Loaded { tree, ..loaded() }, needs()).is_ok());
    let reserved = &[Range::new(0x4800_0000, 0x4810_0000)];
    assert!(plan(Loaded { reserved, ..loaded() }, needs()).is_ok());
}

#[test]
fn everything_is_in_ram() {
    let outside = Range::new(0x8000_0000, 0x8010_0000);
    let check = |loaded: Loaded<'_>| match loaded.check() {
        Err(LayoutError::OutsideRam(what, _)) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(check(Loaded { kernel: outside, ..loaded() }), "the host's kernel");
    assert_eq!(check(Loaded { ramdisk: Some(outside), ..loaded() }), "the host's ramdisk");
    assert_eq!(check(Loaded { tree: outside, ..loaded() }), "the device tree");
    assert_eq!(check(Loaded { image: outside, ..loaded() }), "Escrow");
    let image = Range::new(0x4028_0000, 0x4030_0000);
    let misaligned = Loaded { image, ..loaded() }.check().err();
    assert_eq!(misaligned, Some(LayoutError::Misaligned(image)));
}

#[test]
fn too_little_memory_says_for_what() {
    let lacking = |needs| match plan(loaded(), needs) {
        Err(LayoutError::TooLittleMemory(what, _)) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(lacking(Needs { working_size: 1 << 30, ..needs() }), "Escrow's ledger");
    assert_eq!(lacking(Needs { host_tree_size: 1 << 30, ..needs() }), "the host's device tree");
    for memory_size in [1 << 30, u64::MAX] {
        let kernel = KernelImage { memory_size, ..needs().kernel };
        assert_eq!(lacking(Needs { kernel, ..needs() }), "the host's kernel");
    }
}

#[test]
fn working_memory_may_be_in_pieces() {
    // Free: 2 MiB, 6 MiB, 4 MiB and 2 MiB of no use, as it is on no boundary.
    let reserved: Vec<Range> = [
        (0x4040_0000, 0x4400_0000),
        (0x4680_0000, 0x7f00_0000),
        (0x7f20_0000, 0x7f40_0000),
        (0x7fa0_0000, 0x7fb0_0000),
        (0x7fd0_0000, 0x7fe0_0000),
    ]
    .map(|(start, end)| Range::new(start, end))
    .into();
    let ram = [Range::new(0x4020_0000, 0x8000_0000)];
    let loaded = Loaded {
        ram: &ram,
        reserved: &reserved,
        kernel: Range::new(0x4400_0000, 0x4600_0000),
        tree: Range::new(0x4040_0000, 0x4050_0000),
        ramdisk: None,
        ..loaded()
    };
    let kernel = KernelImage { memory_size: 40 * MIB, ..needs().kernel };
    let needs = |size| Needs { kernel, working_size: size, host_tree_size: 0x1000, ..needs() };
    let one = plan(loaded, needs(6 * MIB)).unwrap();
    assert_eq!(one.working.as_slice(), [Range::new(0x7f40_0000, 0x7fa0_0000)]);
    // Of each piece the last MiB may be lost.
    let two = plan(loaded, needs(6 * MIB + 1)).unwrap();
    let pieces = [Range::new(0x7f40_0000, 0x7fa0_0000), Range::new(0x7fe0_0000, 0x8000_0000)];
    assert_eq!(two.working[0], pieces[0]);
    assert_eq!(two.working.iter().map(Range::size).sum::<u64>(), 10 * MIB);
    let all = plan(loaded, needs(7 * MIB)).unwrap();
    assert_eq!(all.working.len(), 3);
    let more = plan(loaded, needs(7 * MIB + 1));
    assert_eq!(more, Err(LayoutError::TooLittleMemory("Escrow's ledger", 7 * MIB + 1)));
}

proptest! {
    /// Whatever is where: what is planned is free, in RAM and apart.
    #[test]
    fn plans_are_sound(
        kernel in 0u64..1024, ramdisk in 0u64..1024, tree in 0u64..1024,
        reserved in prop::collection::vec((0u64..0x4_0000, 1u64..0x8000), 0..12),
        working in 1u64..64,
    ) {
        let at = |mib: u64, size| {
            Range::new(0x4000_0000 + mib * MIB, 0x4000_0000 + mib * MIB + size)
        };
        let reserved: Vec<Range> = reserved
            .into_iter()
            .map(|(page, bytes)| Range::new(0x4000_0000 + page * 4096, 0x4000_0000 + page * 4096 + bytes))
            .collect();
        let loaded = Loaded {
            kernel: at(kernel, 30 * MIB),
            ramdisk: Some(at(ramdisk, 0x12_3456)),
            tree: at(tree, 0x8000),
            reserved: &reserved,
            ..loaded()
        };
        if let Ok(layout) = plan(loaded, Needs { working_size: working * BLOCK, ..needs() }) {
            let moved = layout.kernel.start != loaded.kernel.start;
            let mut taken = vec![layout.image, layout.kernel, layout.host_tree];
            taken.extend(layout.working.iter().copied());
            taken.extend(loaded.ramdisk);
            if moved {
                taken.push(loaded.kernel);
            }
            // What a tree reserves may overlap itself, so it is only compared with.
            let ours = taken.len();
            taken.extend(reserved.iter().copied());
            for (index, one) in taken.iter().enumerate().take(ours) {
                prop_assert!(RAM[0].contains(one));
                for other in &taken[index + 1..] {
                    prop_assert!(!one.overlaps(other), "{one} {other}");
                }
            }
            let unit = needs().working_unit;
            let usable: u64 = layout.working.iter().map(|piece| piece.size() - unit).sum();
            let whole = layout.working.len() == 1;
            prop_assert!(whole && usable + unit == working * BLOCK || usable >= working * BLOCK);
            for piece in &layout.working {
                prop_assert!(!piece.overlaps(&loaded.tree));
                prop_assert_eq!((piece.start % BLOCK, piece.end % BLOCK), (0, 0));
            }
            prop_assert!(!layout.host_tree.overlaps(&loaded.tree));
            prop_assert_eq!(layout.kernel.start % ALIGNMENT, 0);
        }
    }
}
