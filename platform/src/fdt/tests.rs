// SPDX-License-Identifier: MIT OR Apache-2.0

use proptest::prelude::*;

use super::*;
use crate::board::{Board, Console, Outline};
use crate::host_tree::Changes;
use crate::range::Range;
use crate::sample::Sample;

/// Reads all of a tree in every way that there is.
fn exercise(blob: &[u8]) -> Result<(), FdtError> {
    let mut blob = blob.to_vec();
    let fdt = Fdt::open(&mut blob)?;
    let mut registers = 0;
    for index in 0..4 {
        let _ = Ancestry::search(&fdt, |_| {
            registers += 1;
            registers % 7 == index
        })
        .and_then(|place| place.registers(index));
    }
    let outline = Outline::of(&fdt);
    let _ = Console::find(&outline);
    let _ = outline.own_arguments();
    let _ = Board::read(&outline).map_err(|error| error.to_string());
    let changes = Changes {
        escrow: &[Range::new(0x4020_0000, 0x4040_0000), Range::new(0x7f80_0000, 0x8000_0000)],
        ramdisk: Some(Range::new(0x4c00_0000, 0x4c10_0000)),
        arguments: b"quiet",
    };
    let mut out = vec![0; changes.size_bound(&fdt)];
    if let Ok(size) = changes.write(&fdt, &mut out) {
        let copy = Fdt::new(&out[..size]).expect("what is written can be read");
        assert!(copy.root().child(b"hypervisor").is_some());
    }
    Ok(())
}

/// Nodes and properties below a node, as the tokens that they come from.
fn tokens<'a>(node: &Node<'_, 'a>, out: &mut Vec<Token<'a>>) {
    out.push(Token::BeginNode(node.name()));
    out.extend(node.properties().map(Token::Property));
    for child in node.children() {
        tokens(&child, out);
    }
    out.push(Token::EndNode);
}

/// What the reader shows is what is there: no more, no less, in order.
fn assert_complete(fdt: &Fdt<'_>) {
    let mut cursor = Cursor::new(fdt.blocks, 0);
    let mut expected = Vec::new();
    loop {
        match cursor.advance().unwrap() {
            Token::End => break,
            token => expected.push(token),
        }
    }
    let mut seen = Vec::new();
    tokens(&fdt.root(), &mut seen);
    assert_eq!(seen, expected);
    let nodes = std::cell::Cell::new(0);
    let _ = Ancestry::search(fdt, |_| {
        nodes.set(nodes.get() + 1);
        false
    });
    let begins = expected.iter().filter(|token| matches!(token, Token::BeginNode(_)));
    assert_eq!(nodes.get(), begins.count());
}

#[test]
fn all_of_a_tree_is_read() {
    let sample = Sample::default();
    let blob = sample.tree();
    let fdt = Fdt::new(&blob).unwrap();
    assert_complete(&fdt);
    assert_eq!(fdt.reservations().collect::<Vec<_>>(), sample.reservations);
}

/// The tree with a padding token before each of its own.
fn padded(blob: &[u8]) -> Vec<u8> {
    let fdt = Fdt::new(blob).unwrap();
    let nop = 4u32.to_be_bytes();
    let mut structure = Vec::new();
    let mut cursor = Cursor::new(fdt.blocks, 0);
    loop {
        let begin = cursor.offset();
        let token = cursor.advance().unwrap();
        structure.extend(nop);
        structure.extend(&fdt.blocks.structure[begin..cursor.offset()]);
        if token == Token::End {
            break;
        }
    }
    let mut out = blob.to_vec();
    let at = out.len().next_multiple_of(4);
    out.resize(at, 0);
    out.extend(&structure);
    let size = out.len();
    for (field, value) in [(1, size), (2, at), (9, structure.len())] {
        out[field * 4..field * 4 + 4].copy_from_slice(&(value as u32).to_be_bytes());
    }
    out
}

#[test]
fn padding_inside_is_removed() {
    let blob = Sample::default().tree();
    let mut padded = padded(&blob);
    assert_eq!(Fdt::new(&padded).err(), Some(FdtError::Padded));
    let squeezed = Fdt::open(&mut padded).unwrap();
    assert_eq!(squeezed.blocks.structure, Fdt::new(&blob).unwrap().blocks.structure);
    assert_complete(&squeezed);
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
    let refused = |structure: &[u32]| Fdt::open(&mut raw(structure)).err();
    assert_eq!(refused(&[1, 0, 2, 9]), None);
    assert_eq!(refused(&[4, 1, 0, 4, 4, 3, 0, 0, 4, 1, NAME, 4, 2, 4, 2, 4, 9]), None);
    let bad: [&[u32]; 13] = [
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
        &[1, 0, 1, 0xff00_0000, 2, 2, 9],   // a name that is no text
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
    let mut blob =
        raw(&[4, 1, 0, 4, 3, 4, 0, 0x2a, 4, 1, u32::from_be_bytes(*b"n\0\0\0"), 2, 2, 9]);
    let fdt = Fdt::open(&mut blob).unwrap();
    let root = fdt.root();
    assert_eq!(root.word(b"a"), Some(0x2a));
    assert_eq!(root.children().count(), 1);
    assert!(root.child(b"n").unwrap().properties().next().is_none());
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
    #![proptest_config(ProptestConfig::with_cases(2048))]

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
        if let Ok(fdt) = Fdt::open(&mut blob) {
            assert_complete(&fdt);
        }
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
        if let Ok(fdt) = Fdt::open(&mut blob) {
            assert_complete(&fdt);
        }
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
