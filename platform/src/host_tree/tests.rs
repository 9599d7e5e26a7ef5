// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use crate::sample::Sample;

const ESCROW: [Range; 2] = [
    Range { start: 0x4020_0000, end: 0x4040_0000 },
    Range { start: 0x7f80_0000, end: 0x8000_0000 },
];

fn changes() -> Changes<'static> {
    Changes {
        escrow: &ESCROW,
        ramdisk: Some(Range::new(0x4c00_0000, 0x4c12_3456)),
        arguments: b"console=ttyAMA0 quiet",
    }
}

fn rewritten(sample: &Sample, changes: &Changes<'_>) -> Vec<u8> {
    let blob = sample.tree();
    let fdt = Fdt::new(&blob).unwrap();
    let mut out = vec![0xa5; changes.size_bound(&fdt)];
    let size = changes.write(&fdt, &mut out).unwrap();
    out.truncate(size);
    out
}

/// `reg` of a node with two words each.
fn reg(node: &Node<'_, '_>) -> Vec<(u64, u64)> {
    Cells { address: 2, size: 2 }.entries(node.property(b"reg").unwrap()).collect()
}

#[test]
fn escrows_memory_is_gone_and_reserved() {
    let blob = rewritten(&Sample::default(), &changes());
    let fdt = Fdt::new(&blob).unwrap();
    let root = fdt.root();
    let memory = root.child(b"memory").unwrap();
    assert_eq!(reg(&memory), [(0x4000_0000, 0x20_0000), (0x4040_0000, 0x3f40_0000)]);
    assert_eq!(memory.word(b"numa-node-id"), Some(0));
    let reserved = root.child(b"reserved-memory").unwrap();
    assert_eq!(reserved.children().count(), 3 + 2);
    for range in ESCROW {
        let name = format!("escrow@{:x}", range.start);
        let node = reserved.child(name.as_bytes()).unwrap();
        assert_eq!(reg(&node), [(range.start, range.size())]);
        assert!(node.property(b"no-map").is_some());
    }
}

#[test]
fn reserved_memory_appears_where_there_was_none() {
    let sample = Sample { reserved: vec![], ..Sample::default() };
    let blob = rewritten(&sample, &changes());
    let fdt = Fdt::new(&blob).unwrap();
    let reserved = fdt.root().child(b"reserved-memory").unwrap();
    assert_eq!(reserved.cells(), Cells { address: 2, size: 2 });
    assert_eq!(reserved.property(b"ranges"), Some(&b""[..]));
    assert_eq!(reserved.children().count(), 2);
}

#[test]
fn chosen_is_the_hosts() {
    let blob = rewritten(&Sample::default(), &changes());
    let fdt = Fdt::new(&blob).unwrap();
    let chosen = fdt.root().child(b"chosen").unwrap();
    assert_eq!(chosen.string(b"bootargs"), Some(&b"console=ttyAMA0 quiet"[..]));
    assert_eq!(chosen.property(b"linux,initrd-start"), Some(&0x4c00_0000u64.to_be_bytes()[..]));
    assert_eq!(chosen.property(b"linux,initrd-end"), Some(&0x4c12_3456u64.to_be_bytes()[..]));
    assert!(chosen.string(b"stdout-path").is_some());
    assert!(chosen.property(b"kaslr-seed").is_some());
    assert_eq!(chosen.children().count(), 0);
    // Without a command line and a RAM disk, nothing of Escrow's own is left.
    let none = Changes { ramdisk: None, arguments: b"", ..changes() };
    let blob = rewritten(&Sample::default(), &none);
    let fdt = Fdt::new(&blob).unwrap();
    let chosen = fdt.root().child(b"chosen").unwrap();
    assert_eq!(chosen.property(b"bootargs"), None);
    assert_eq!(chosen.property(b"linux,initrd-start"), None);
}

#[test]
fn the_host_knows_of_no_virtual_timer() {
    const NAMED: &[&str] = &["phys", "virt"];
    for (before, after) in [
        (None, &[&b"sec-phys"[..], b"phys", b"guest-virt", b"hyp-phys", b"hyp-virt"][..]),
        (Some(NAMED), &[b"phys", b"guest-virt"]),
    ] {
        let sample = Sample { timer_names: before, ..Sample::default() };
        let blob = rewritten(&sample, &changes());
        let fdt = Fdt::new(&blob).unwrap();
        let timer = fdt.root().child(b"timer").unwrap();
        let names: Vec<_> = strings(timer.property(b"interrupt-names").unwrap()).collect();
        assert_eq!(names, after);
        assert_eq!(timer.property(b"interrupts").map(<[u8]>::len), Some(4 * 12));
        assert!(timer.property(b"always-on").is_some());
        assert_eq!(timer.properties().count(), 4);
    }
}

#[test]
fn there_is_one_hypervisor_node() {
    let blob = rewritten(&Sample::default(), &changes());
    let fdt = Fdt::new(&blob).unwrap();
    let root = fdt.root();
    let nodes: Vec<_> = root.children().filter(|node| node.is_named(b"hypervisor")).collect();
    assert_eq!(nodes.len(), 1);
    assert!(nodes[0].is_compatible(b"escrow,hypervisor"));
}

/// What is in a tree but not to be changed, as text.
fn rest(blob: &[u8]) -> Vec<String> {
    fn add(node: &Node<'_, '_>, path: &str, out: &mut Vec<String>) {
        let path = format!("{path}/{}", node.name().escape_ascii());
        for property in node.properties() {
            out.push(format!("{path}: {} = {:?}", property.name.escape_ascii(), property.value));
        }
        for child in node.children() {
            add(&child, &path, out);
        }
    }
    let changed = [
        "/memory@40000000: reg",
        "/timer: interrupt-names",
        "/chosen",
        "/hypervisor",
        "/reserved-memory/escrow@",
    ];
    let mut out = Vec::new();
    let fdt = Fdt::new(blob).unwrap();
    add(&fdt.root(), "", &mut out);
    out.extend(fdt.reservations().map(|entry| format!("{entry:x?}")));
    out.retain(|line| !changed.iter().any(|path| line.starts_with(&format!("/{path}"))));
    out
}

#[test]
fn the_rest_is_as_it_was() {
    let sample = Sample::default();
    let (before, after) = (rest(&sample.tree()), rest(&rewritten(&sample, &changes())));
    assert!(before.len() > 40);
    assert_eq!(before, after);
}

#[test]
fn another_reader_agrees() {
    let blob = rewritten(&Sample::default(), &changes());
    let fdt = fdt::Fdt::new(&blob).unwrap();
    let regions: Vec<_> =
        fdt.memory().regions().map(|r| (r.starting_address as u64, r.size)).collect();
    assert_eq!(regions, [(0x4000_0000, Some(0x20_0000)), (0x4040_0000, Some(0x3f40_0000))]);
    assert_eq!(fdt.chosen().bootargs(), Some("console=ttyAMA0 quiet"));
    assert_eq!(fdt.cpus().count(), 4);
}

#[test]
fn memory_that_is_all_escrows_has_no_node() {
    let sample = Sample { memory: vec![0x7f80_0000, 0x80_0000], ..Sample::default() };
    let blob = rewritten(&sample, &changes());
    assert!(Fdt::new(&blob).unwrap().root().child(b"memory").is_none());
}

#[test]
fn a_small_buffer_is_an_error() {
    let blob = Sample::default().tree();
    let fdt = Fdt::new(&blob).unwrap();
    let whole = rewritten(&Sample::default(), &changes()).len();
    for size in 0..whole {
        let mut out = vec![0; size];
        assert_eq!(changes().write(&fdt, &mut out), Err(WriteError::NoRoom), "{size}");
    }
}

#[test]
fn unit_addresses_are_in_short_hexadecimal() {
    let mut out = [0; 16];
    for (value, text) in [(0, "0"), (0x4020_0000, "40200000"), (u64::MAX, "ffffffffffffffff")] {
        let digits = hex(value, &mut out);
        assert_eq!(&out[..digits], text.as_bytes());
    }
}
