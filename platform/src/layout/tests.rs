// SPDX-License-Identifier: MIT OR Apache-2.0

use proptest::prelude::*;

use super::*;

const RAM: [Range; 1] = [Range { start: 0x4000_0000, end: 0x8000_0000 }];
const MIB: u64 = 1 << 20;

fn request() -> Request<'static> {
    Request {
        ram: &RAM,
        reserved: &[],
        image: Range::new(0x4020_0000, 0x4027_0000),
        tree: Range::new(0x4800_0000, 0x4810_0000),
        kernel: Range::new(0x4400_0000, 0x4600_0000),
        kernel_image: KernelImage {
            text_offset: 0,
            memory_size: 40 * MIB,
            page_size: None,
            anywhere: true,
        },
        ramdisk: Some(Range::new(0x4c00_0000, 0x4c12_3456)),
        working_size: 8 * MIB,
        host_tree_size: 0x5000,
    }
}

#[test]
fn a_kernel_that_lies_right_stays() {
    let layout = Layout::plan(&request()).unwrap();
    assert_eq!(layout.image, Range::new(0x4020_0000, 0x4040_0000));
    assert_eq!(layout.kernel, Range::new(0x4400_0000, 0x4400_0000 + 40 * MIB));
    assert_eq!(layout.working, Range::new(0x7f80_0000, 0x8000_0000));
    assert_eq!(layout.host_tree, Range::new(0x7f7f_b000, 0x7f80_0000));
}

#[test]
fn a_kernel_that_does_not_is_moved() {
    // Off the boundary, too close to what follows, too close to the end.
    let crooked = Range::new(0x4400_1000, 0x4600_1000);
    let cramped = Range::new(0x4a00_0000, 0x4bff_0000);
    let last = Range::new(0x7e00_0000, 0x8000_0000);
    for kernel in [crooked, cramped, last] {
        let layout = Layout::plan(&Request { kernel, ..request() }).unwrap();
        assert_ne!(layout.kernel.start, kernel.start);
        assert_eq!(layout.kernel, Range::new(0x4040_0000, 0x4040_0000 + 40 * MIB));
    }
    let kernel_image = KernelImage { text_offset: 0x8_0000, ..request().kernel_image };
    let layout = Layout::plan(&Request { kernel_image, ..request() }).unwrap();
    assert_eq!(layout.kernel, Range::new(0x4048_0000, 0x4048_0000 + 40 * MIB));
}

#[test]
fn overlaps_are_named() {
    let overlap = |request: Request<'_>| match Layout::plan(&request) {
        Err(LayoutError::Overlap(one, _, other, _)) => (one, other),
        other => panic!("{other:?}"),
    };
    let (kernel, ramdisk) = ("the host's kernel", "the host's ramdisk");
    // In the rest of the last block is still in Escrow's memory.
    for at in [0x4020_0000, 0x403f_f000, 0x4000_0000] {
        let over = Range::new(at, at + 4 * MIB);
        assert_eq!(overlap(Request { kernel: over, ..request() }), (kernel, "Escrow"));
        let ramdisk_over = Request { ramdisk: Some(over), ..request() };
        assert_eq!(overlap(ramdisk_over), (ramdisk, "Escrow"));
    }
    let over = Some(Range::new(0x45ff_ffff, 0x4700_0000));
    assert_eq!(overlap(Request { ramdisk: over, ..request() }), (ramdisk, kernel));
    let over = Range::new(0x4380_0000, 0x4380_0000 + 100 * MIB);
    assert_eq!(overlap(Request { kernel: over, ..request() }), (kernel, "the device tree"));
    let tree = Range::new(0x4026_0000, 0x4028_0000);
    assert_eq!(overlap(Request { tree, ..request() }), ("Escrow", "the device tree"));
    let reserved = &[Range::new(0x4030_0000, 0x4030_1000)];
    assert_eq!(overlap(Request { reserved, ..request() }).0, "Escrow");
    let reserved = &[Range::new(0x4500_0000, 0x4500_1000)];
    assert_eq!(overlap(Request { reserved, ..request() }).0, kernel);
}

#[test]
fn the_old_tree_may_lie_behind_the_image_or_in_reserved_memory() {
    let tree = Range::new(0x4030_0000, 0x4031_0000);
    assert!(Layout::plan(&Request { tree, ..request() }).is_ok());
    let reserved = &[Range::new(0x4800_0000, 0x4810_0000)];
    assert!(Layout::plan(&Request { reserved, ..request() }).is_ok());
}

#[test]
fn everything_is_in_ram() {
    let outside = Range::new(0x8000_0000, 0x8010_0000);
    let plan = |request: Request<'_>| match Layout::plan(&request) {
        Err(LayoutError::OutsideRam(what, _)) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(plan(Request { kernel: outside, ..request() }), "the host's kernel");
    assert_eq!(plan(Request { ramdisk: Some(outside), ..request() }), "the host's ramdisk");
    assert_eq!(plan(Request { tree: outside, ..request() }), "the device tree");
    assert_eq!(plan(Request { image: outside, ..request() }), "Escrow");
    let image = Range::new(0x4028_0000, 0x4030_0000);
    let misaligned = Layout::plan(&Request { image, ..request() });
    assert_eq!(misaligned, Err(LayoutError::Misaligned(image)));
}

#[test]
fn too_little_memory_says_for_what() {
    let plan = |request: Request<'_>| match Layout::plan(&request) {
        Err(LayoutError::TooLittleMemory(what, _)) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(plan(Request { working_size: 1 << 30, ..request() }), "Escrow's ledger");
    assert_eq!(plan(Request { host_tree_size: 1 << 30, ..request() }), "the host's device tree");
    for memory_size in [1 << 30, u64::MAX] {
        let kernel_image = KernelImage { memory_size, ..request().kernel_image };
        assert_eq!(plan(Request { kernel_image, ..request() }), "the host's kernel");
    }
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
        let request = Request {
            kernel: at(kernel, 30 * MIB),
            ramdisk: Some(at(ramdisk, 0x12_3456)),
            tree: at(tree, 0x8000),
            reserved: &reserved,
            working_size: working * BLOCK,
            ..request()
        };
        if let Ok(layout) = Layout::plan(&request) {
            let moved = layout.kernel.start != request.kernel.start;
            let mut taken = vec![layout.image, layout.working, layout.kernel, layout.host_tree];
            taken.extend(request.ramdisk);
            if moved {
                taken.push(request.kernel);
            }
            taken.extend(reserved.iter().copied());
            for (index, one) in taken.iter().enumerate().take(6) {
                prop_assert!(index >= 4 || RAM[0].contains(one));
                for other in &taken[index + 1..] {
                    prop_assert!(!one.overlaps(other), "{one} {other}");
                }
            }
            prop_assert!(!layout.working.overlaps(&request.tree));
            prop_assert!(!layout.host_tree.overlaps(&request.tree));
            prop_assert_eq!(layout.kernel.start % ALIGNMENT, 0);
            prop_assert_eq!(layout.working.start % BLOCK, 0);
        }
    }
}
