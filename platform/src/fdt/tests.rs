// SPDX-License-Identifier: MIT OR Apache-2.0

use proptest::prelude::*;

use super::*;
use crate::board::{Board, Console, own_arguments};
use crate::host_tree::Changes;
use crate::range::Range;
use crate::sample::Sample;

/// Reads all of a tree in every way that there is.
fn exercise(blob: &[u8]) -> Result<(), FdtError> {
    let fdt = Fdt::new(blob)?;
    let mut registers = 0;
    for index in 0..4 {
        let _ = Ancestry::search(&fdt, |_| {
            registers += 1;
            registers % 7 == index
        })
        .and_then(|place| place.registers(index));
    }
    let _ = Console::find(&fdt);
    let _ = own_arguments(&fdt);
    let _ = Board::read(&fdt).map_err(|error| error.to_string());
    let changes = Changes {
        escrow: &[Range::new(0x4020_0000, 0x4040_0000), Range::new(0x7f80_0000, 0x8000_0000)],
        ramdisk: Some(Range::new(0x4c00_0000, 0x4c10_0000)),
        arguments: b"quiet",
    };
    let mut out = vec![0; changes.size_bound(&fdt)];
    if let Ok(size) = changes.write(fdt, &mut out) {
        let copy = Fdt::new(&out[..size]).expect("what is written can be read");
        assert!(copy.root().child(b"hypervisor").is_some());
    }
    Ok(())
}

/// A node of this crate against the same one read by the `fdt` crate.
fn assert_same(ours: &Node<'_>, theirs: fdt::node::FdtNode<'_, '_>) {
    let name = if ours.name().is_empty() { b"/" } else { ours.name() };
    assert!(name == theirs.name.as_bytes() || theirs.name.is_empty());
    let our_properties: Vec<_> = ours.properties().map(|p| (p.name, p.value)).collect();
    let their_properties: Vec<_> =
        theirs.properties().map(|p| (p.name.as_bytes(), p.value)).collect();
    assert_eq!(our_properties, their_properties);
    let (our_children, their_children): (Vec<_>, Vec<_>) =
        (ours.children().collect(), theirs.children().collect());
    assert_eq!(our_children.len(), their_children.len());
    for (ours, theirs) in our_children.iter().zip(their_children) {
        assert_same(ours, theirs);
    }
}

#[test]
fn agrees_with_another_reader() {
    let blob = Sample::default().tree();
    let theirs = fdt::Fdt::new(&blob).unwrap();
    let ours = Fdt::new(&blob).unwrap();
    assert_same(&ours.root(), theirs.find_node("/").unwrap());
    let their_reservations: Vec<_> =
        theirs.memory_reservations().map(|r| (r.address() as u64, r.size() as u64)).collect();
    assert_eq!(ours.reservations().collect::<Vec<_>>(), their_reservations);
    let nodes = std::cell::Cell::new(0);
    let _ = Ancestry::search(&ours, |_| {
        nodes.set(nodes.get() + 1);
        false
    });
    assert_eq!(nodes.get(), theirs.all_nodes().count());
}

#[test]
fn padding_and_what_follows_do_not_matter() {
    let mut blob = Sample::default().tree();
    let size = blob.len();
    blob.resize(1 << 20, 0xa5);
    exercise(&blob).unwrap();
    blob[4..8].copy_from_slice(&(1u32 << 20).to_be_bytes());
    exercise(&blob).unwrap();
    assert!(Fdt::new(&blob).unwrap().content_size() <= size);
}

#[test]
fn a_cut_tree_is_refused() {
    let blob = Sample::default().tree();
    for size in 0..blob.len() {
        assert!(exercise(&blob[..size]).is_err(), "{size} of {} bytes", blob.len());
    }
    exercise(&blob).unwrap();
}

#[test]
fn bad_headers_are_refused() {
    let good = Sample::default().tree();
    let with = |field: usize, value: u32| {
        let mut blob = good.clone();
        blob[field * 4..field * 4 + 4].copy_from_slice(&value.to_be_bytes());
        Fdt::new(&blob).err()
    };
    assert_eq!(with(0, 0xedfe_0dd0), Some(FdtError::BadMagic));
    assert_eq!(with(1, 39), Some(FdtError::BadHeader));
    assert_eq!(with(1, MAX_SIZE as u32 + 1), Some(FdtError::BadHeader));
    for field in [2, 3, 4, 8, 9] {
        assert_eq!(with(field, u32::MAX - 7), Some(FdtError::BadHeader), "field {field}");
    }
    assert_eq!(with(5, 16), Some(FdtError::BadVersion(16)));
    assert_eq!(with(6, 18), Some(FdtError::BadVersion(18)));
}

/// A tree with this structure block and the strings "a\0".
fn raw(structure: &[u32]) -> Vec<u8> {
    let (structure_at, size) = (56, structure.len() as u32 * 4);
    let header = [MAGIC, 56 + size + 2, structure_at, 56 + size, 40, 17, 16, 0, 2, size];
    let mut blob: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
    blob.extend([0; 16]);
    blob.extend(structure.iter().flat_map(|word| word.to_be_bytes()));
    blob.extend(b"a\0");
    blob
}

#[test]
fn the_structure_has_to_be_well_formed() {
    const NAME: u32 = u32::from_be_bytes(*b"n\0\0\0");
    let refused = |structure: &[u32]| Fdt::new(&raw(structure)).err();
    assert_eq!(refused(&[1, 0, 2, 9]), None);
    assert_eq!(refused(&[4, 1, 0, 4, 4, 3, 0, 0, 4, 1, NAME, 4, 2, 4, 2, 4, 9]), None);
    let bad: [&[u32]; 12] = [
        &[],
        &[9],
        &[2, 9],
        &[1, NAME, 2, 9],                   // a root with a name
        &[1, 0, 1, 0, 2, 2, 9],             // a child without
        &[1, 0, 2],                         // no end
        &[1, 0, 9],                         // a node that does not end
        &[1, 0, 2, 1, 0, 2, 9],             // two roots
        &[1, 0, 1, NAME, 2, 3, 0, 0, 2, 9], // a property after a child
        &[1, 0, 3, 5, 0, 2, 9],             // a property longer than the block
        &[1, 0, 3, 0, 2, 2, 9],             // a name outside the strings
        &[1, 0, 7, 2, 9],                   // an unknown token
    ];
    for structure in bad {
        assert!(matches!(refused(structure), Some(FdtError::BadStructure(_))), "{structure:?}");
    }
    let mut deep = vec![1, 0];
    deep.extend([1, NAME].repeat(MAX_DEPTH - 1));
    let ends = [2].repeat(MAX_DEPTH);
    assert_eq!(refused(&[&deep[..], &ends[..], &[9]].concat()), None);
    deep.extend([1, NAME]);
    assert_eq!(refused(&[&deep[..], &ends[..], &[2, 9]].concat()), Some(FdtError::TooDeep));
}

#[test]
fn nothing_is_found_past_padding_tokens_that_is_not_there() {
    let blob = raw(&[4, 1, 0, 4, 3, 4, 0, 0x2a, 4, 1, u32::from_be_bytes(*b"n\0\0\0"), 2, 2, 9]);
    let root = Fdt::new(&blob).unwrap().root();
    assert_eq!(root.word(b"a"), Some(0x2a));
    assert_eq!(root.children().count(), 1);
    assert!(root.child(b"n").unwrap().properties().next().is_none());
    exercise(&blob).unwrap();
}

#[test]
fn paths_and_aliases() {
    let blob = Sample::default().tree();
    let fdt = Fdt::new(&blob).unwrap();
    let at = |path: &[u8]| Ancestry::at_path(&fdt, path).and_then(|place| place.registers(0));
    // 0x9001_0000 inside the inner bus, 0x901_0000 inside the outer one.
    let serial = Some(Range::new(0x8901_0000, 0x8901_1000));
    assert_eq!(at(b"/soc/bus@9000000/serial@10000"), serial);
    assert_eq!(at(b"/soc/bus/serial"), serial);
    assert_eq!(at(b"serial0"), serial);
    assert_eq!(at(b"loop"), None);
    assert_eq!(at(b"nothing"), None);
    assert_eq!(at(b"/soc/bus@9000000/serial@1"), None);
    assert_eq!(at(b"/"), None);
    assert_eq!(at(b""), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Random damage: refused or read, and never a panic.
    #[test]
    fn damage_is_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let mut blob = Sample::default().tree();
        for (at, value) in changes {
            let at = at.index(blob.len());
            blob[at] = value;
        }
        let _ = exercise(&blob);
    }

    /// Damage where it hurts: whole words in the structure block become
    /// tokens, sizes and offsets.
    #[test]
    fn odd_words_are_survived(
        changes in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![0u32..10, Just(u32::MAX), Just(0x8000_0000), any::<u32>()]),
            1..6,
        )
    ) {
        let mut blob = Sample::default().tree();
        for (at, value) in changes {
            let at = at.index(blob.len() / 4) * 4;
            blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        let _ = exercise(&blob);
    }

    /// Noise behind a good magic number.
    #[test]
    fn noise_is_survived(mut blob in prop::collection::vec(any::<u8>(), 0..512)) {
        if let Some(magic) = blob.get_mut(..4) {
            magic.copy_from_slice(&MAGIC.to_be_bytes());
        }
        let _ = exercise(&blob);
    }
}
