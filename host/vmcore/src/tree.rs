// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a guest's device tree says to its host: where the guest's interrupt controller is, and
//! which interrupt a label stands for.
//!
//! Programs for Gunyah configure a VM by a node of the tree that its guest
//! boots with:
//!
//! ```dts
//! gunyah-vm-config {
//!     vdevices {
//!         bell-1f {
//!             vdevice-type = "doorbell";
//!             label = <0x1f>;
//!             interrupts = <0 16 4>;
//!         };
//!     };
//! };
//! ```
//!
//! `interrupts` is one interrupt of the tree's GICv3, in the words of its binding in Linux
//! (`arm,gic-v3.yaml`): 0 for an SPI, its number (its INTID less 32), 1 for an edge or 4 for a high
//! level. In a tree without a GICv3 it is ignored.
//!
//! The GICv3 is a child of the root, or of a child of the root whose addresses are the root's (a bus
//! with an empty `ranges`).
//!
//! So is the page that the guest finds its stolen time in, if it is to be told ([`VM_PV_TIME`]):
//!
//! ```dts
//! stolen-time@b000000 {
//!     compatible = "escrow,stolen-time";
//!     reg = <0 0x0b000000 0 0x1000>;
//! };
//! ```
//!
//! [`VM_PV_TIME`]: escrow_abi::call::VM_PV_TIME
//!
//! The shim reads nothing else in it. It does not trust the tree: whoever can start a VM has
//! written it.

use alloc::vec::Vec;
use core::ops::Range;

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use escrow_abi::PAGE_SIZE;
use escrow_abi::call::{DOORBELLS_MAX, SPIS_MAX};

use crate::Errno;

/// What a tree begins with: a magic number and its size in bytes.
pub const HEAD: usize = 8;
const MAGIC: u32 = 0xd00d_feed;
/// Of a tree up to the end of its strings, in bytes. Linux for arm64 boots with none of more
/// (`MAX_FDT_SIZE`).
pub const MAX: usize = 2 << 20;

/// The INTIDs of SPIs.
pub const SPIS: Range<u32> = 32..1020;
const _: () = assert!((SPIS.end - SPIS.start) as u64 == SPIS_MAX);

/// A device's interrupt: an SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// One of [`SPIS`].
    pub intid: u32,
    /// It is level-sensitive; otherwise, it is edge-triggered.
    pub level: bool,
}

/// A doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bell {
    /// Its name.
    pub label: u32,
    /// The SPI that it is, in a tree with a GICv3.
    pub interrupt: Option<Interrupt>,
}

/// Where a guest finds its GICv3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gic {
    /// Guest address of the distributor.
    pub distributor: u64,
    /// Guest address of the first vCPU's redistributor.
    pub redistributors: u64,
    /// How many vCPUs the tree has room for.
    pub room: u32,
}

/// What a tree configures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Its GICv3.
    pub gic: Option<Gic>,
    /// Guest address of the page of its stolen time.
    pub stolen_time: Option<u64>,
    /// Its doorbells, each label once, sorted.
    pub bells: Vec<Bell>,
}

/// Why a tree is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the program.
    pub errno: Errno,
    /// For the log; of the tree.
    pub why: Option<&'static str>,
}

impl Refusal {
    /// A tree that is wrong.
    pub const fn wrong(why: &'static str) -> Refusal {
        Refusal { errno: Errno::Invalid, why: Some(why) }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        Refusal { errno, why: None }
    }
}

/// The size in bytes of the tree whose first bytes these are; `None` if they are no tree's.
pub fn size(head: &[u8; HEAD]) -> Option<u32> {
    let [a, b, c, d, size @ ..] = *head;
    (u32::from_be_bytes([a, b, c, d]) == MAGIC).then_some(u32::from_be_bytes(size))
}

/// Cuts off what follows a tree's strings (a program may have padded its tree to huge pages), and
/// sets `totalsize` accordingly. → the tree's size then
///
/// The shim reads all of a tree several times, and a kernel without preemption does nothing else
/// meanwhile. So there is a limit, and the padding does not count.
///
/// # Errors
/// `TooLarge` for more than [`MAX`].
pub fn trim(tree: &mut [u8]) -> Result<usize, Errno> {
    // The tree ends behind its strings (`off_dt_strings`, `size_dt_strings`): `Fdt` refuses
    // trees in which they are not last.
    let (Some(at), Some(size)) = (header(tree, 12), header(tree, 32)) else {
        return Ok(tree.len());
    };
    let end = at.saturating_add(size);
    // No valid tree has such a header: `config` ignores it.
    if end > tree.len() {
        return Ok(tree.len());
    }
    if end > MAX {
        return Err(Errno::TooLarge);
    }
    // `totalsize`. A buffer too short for it holds no tree, and stays as it is.
    if let (Some(total), Ok(end)) = (tree.get_mut(4..8), u32::try_from(end)) {
        total.copy_from_slice(&end.to_be_bytes());
    }
    Ok(end)
}

/// A field of a tree's header.
fn header(tree: &[u8], at: usize) -> Option<usize> {
    let bytes = tree.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_be_bytes(*bytes)).ok()
}

/// What a tree configures. Data that is no tree configures nothing.
///
/// # Errors
/// `Invalid`, and why, for a GICv3 or a page that cannot be; `NoSpace` for more doorbells than
/// [`DOORBELLS_MAX`], or than SPIs if there is a GICv3; `NoMemory`.
pub fn config(tree: &[u8]) -> Result<Config, Refusal> {
    // `Fdt::new` checks the whole tree, so that a walk cannot fail.
    let Ok(tree) = Fdt::new(tree) else { return Ok(Config::default()) };
    let (gic, cells) = match find(&tree, b"arm,gic-v3") {
        Some((node, bus)) => (Some(gic(&node, &bus)?), cells(&node, "#interrupt-cells")),
        None => (None, None),
    };
    let stolen_time = match find(&tree, b"escrow,stolen-time") {
        Some((node, bus)) => Some(stolen_time(&node, &bus)?),
        None => None,
    };
    let mut config = Config { gic, stolen_time, bells: Vec::new() };
    let Some(devices) = tree.find_node("/gunyah-vm-config/vdevices") else { return Ok(config) };
    let most = if gic.is_some() { SPIS.len() } else { DOORBELLS_MAX };
    for device in devices.children() {
        let kind = device.property("vdevice-type");
        if kind.is_none_or(|kind| kind.value() != b"doorbell\0") {
            continue;
        }
        let Some(label) = device.property("label").and_then(|label| word(label.value())) else {
            continue;
        };
        let Err(at) = config.bells.binary_search_by_key(&label, |bell| bell.label) else {
            continue;
        };
        let interrupt = match gic.and(device.property("interrupts")) {
            Some(property) => Some(interrupt(property.value(), cells)?),
            None => None,
        };
        if config.bells.len() == most {
            return Err(Errno::NoSpace.into());
        }
        config.bells.try_reserve(1).map_err(|_| Errno::NoMemory)?;
        config.bells.insert(at, Bell { label, interrupt });
    }
    Ok(config)
}

/// The first node of the tree that is compatible with this, and its parent, whose `#address-cells`
/// it uses.
fn find<'a>(tree: &Fdt<'a>, compatible: &[u8]) -> Option<(FdtNode<'a>, FdtNode<'a>)> {
    let root = tree.root();
    let on = |bus: FdtNode<'a>| {
        let node = bus.children().find(|node| is(node, compatible))?;
        Some((node, bus))
    };
    // An empty `ranges` means that the bus does not translate addresses.
    let same =
        |bus: &FdtNode| bus.property("ranges").is_some_and(|ranges| ranges.value().is_empty());
    on(root).or_else(|| root.children().filter(same).find_map(on))
}

fn is(node: &FdtNode, compatible: &[u8]) -> bool {
    let enabled = |status: &[u8]| status == b"okay\0" || status == b"ok\0";
    node.property("compatible")
        .is_some_and(|names| names.value().split(|&byte| byte == 0).any(|name| name == compatible))
        && node.property("status").is_none_or(|status| enabled(status.value()))
}

/// Where the GICv3 of a node is.
fn gic(node: &FdtNode, bus: &FdtNode) -> Result<Gic, Refusal> {
    const NO_REG: Refusal =
        Refusal::wrong("its GICv3 has no reg of a distributor and redistributors");
    let reg = node.property("reg").ok_or(NO_REG)?;
    // Devicetree Specification, 2.3.5: the defaults are 2 and 1.
    let address = cells(bus, "#address-cells").unwrap_or(2);
    let size = cells(bus, "#size-cells").unwrap_or(1);
    let mut rest = reg.value();
    let mut next = || Some((number(&mut rest, address)?, number(&mut rest, size)?));
    let (distributor, distributor_size) = next().ok_or(NO_REG)?;
    let (redistributors, size) = next().ok_or(NO_REG)?;
    // The binding of arm,gic-v3 allows one cell or two.
    let stride = node.property("redistributor-stride").map(|stride| match stride.value().len() {
        4 | 8 => number(&mut stride.value(), stride.value().len() as u32 / 4),
        _ => None,
    });
    if !matches!(stride, None | Some(Some(0 | REDISTRIBUTOR_SIZE))) {
        return Err(Refusal::wrong("its GICv3 has redistributors that are not of 128 KiB"));
    }
    if distributor % FRAME != 0 || redistributors % FRAME != 0 {
        return Err(Refusal::wrong("its GICv3 has frames that are not aligned to 64 KiB"));
    }
    let ends = (distributor.checked_add(distributor_size), redistributors.checked_add(size));
    let (Some(distributor_end), Some(end)) = ends else {
        return Err(Refusal::wrong("its GICv3 has frames that wrap"));
    };
    if distributor_size < FRAME || size < REDISTRIBUTOR_SIZE {
        return Err(Refusal::wrong("its GICv3 has frames that are too small"));
    }
    if distributor < end && redistributors < distributor_end {
        return Err(Refusal::wrong("its GICv3 has frames that overlap"));
    }
    let room = u32::try_from(size / REDISTRIBUTOR_SIZE).unwrap_or(u32::MAX);
    Ok(Gic { distributor, redistributors, room })
}

/// Where the page of a node is.
fn stolen_time(node: &FdtNode, bus: &FdtNode) -> Result<u64, Refusal> {
    const NO_REG: Refusal = Refusal::wrong("its stolen time has no reg of a page");
    let reg = node.property("reg").ok_or(NO_REG)?;
    let mut rest = reg.value();
    let at = number(&mut rest, cells(bus, "#address-cells").unwrap_or(2)).ok_or(NO_REG)?;
    let size = number(&mut rest, cells(bus, "#size-cells").unwrap_or(1)).ok_or(NO_REG)?;
    // EL2 checks the address further.
    if size == PAGE_SIZE && at % PAGE_SIZE == 0 { Ok(at) } else { Err(NO_REG) }
}

/// The size of a frame, and what it is aligned to.
const FRAME: u64 = 0x1_0000;
/// The two frames of a redistributor.
const REDISTRIBUTOR_SIZE: u64 = 2 * FRAME;

/// The interrupt of a doorbell, where an interrupt has so many cells.
fn interrupt(value: &[u8], cells: Option<u32>) -> Result<Interrupt, Refusal> {
    const SPI: u64 = 0;
    const EDGE_RISING: u64 = 1;
    const LEVEL_HIGH: u64 = 4;
    let is_one =
        cells.is_some_and(|cells| cells >= 3 && value.len() as u64 == 4 * u64::from(cells));
    let mut rest = value;
    let mut next = || number(&mut rest, 1);
    let (Some(kind), Some(spi), Some(flags), true) = (next(), next(), next(), is_one) else {
        return Err(Refusal::wrong("a doorbell's interrupts are not one interrupt of its GICv3"));
    };
    let intid = u32::try_from(spi).ok().and_then(|spi| spi.checked_add(SPIS.start));
    match (kind, intid.filter(|intid| SPIS.contains(intid)), flags) {
        (SPI, Some(intid), EDGE_RISING | LEVEL_HIGH) => {
            Ok(Interrupt { intid, level: flags == LEVEL_HIGH })
        }
        (SPI, Some(_), _) => Err(Refusal::wrong(
            "a doorbell's interrupt is neither a rising edge (1) nor a high level (4)",
        )),
        _ => Err(Refusal::wrong("a doorbell's interrupt is no SPI")),
    }
}

/// A property of one cell.
fn cells(node: &FdtNode, name: &str) -> Option<u32> {
    node.property(name).and_then(|property| word(property.value()))
}

fn word(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// Takes a number of so many cells, 0 to 2.
fn number(rest: &mut &[u8], cells: u32) -> Option<u64> {
    let (value, after) = rest.split_at_checked(4 * usize::try_from(cells.min(3)).ok()?)?;
    *rest = after;
    match value.len() {
        0..=8 => Some(value.iter().fold(0, |all, &byte| all << 8 | u64::from(byte))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{format, vec};

    use proptest::prelude::*;
    use vm_fdt::FdtWriter;

    use super::*;

    /// A device: its type, its label, and its interrupts.
    type Device<'a> = (Option<&'a str>, Option<&'a [u8]>, Option<&'a [u32]>);
    /// A property of one or more cells.
    type Cells<'a> = (&'a str, &'a [u32]);

    /// What a GICv3 has in the tree of a machine like QEMU's.
    const GIC: [Cells; 2] = [("#interrupt-cells", &[3]), ("reg", &REG)];
    const REG: [u32; 8] = [0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000];
    const FOUND: Gic = Gic { distributor: 0x800_0000, redistributors: 0x80a_0000, room: 123 };

    fn write_gic(to: &mut FdtWriter, compatible: &str, cells: &[Cells]) {
        let node = to.begin_node("intc@8000000").unwrap();
        to.property_string("compatible", compatible).unwrap();
        for (name, cells) in cells {
            to.property_array_u32(name, cells).unwrap();
        }
        to.end_node(node).unwrap();
    }

    /// A tree with a GICv3 that has these properties, if it has one.
    fn tree_with(gic: Option<&[Cells]>, devices: &[Device]) -> Vec<u8> {
        let mut to = FdtWriter::new().unwrap();
        let root = to.begin_node("").unwrap();
        to.property_u32("#address-cells", 2).unwrap();
        to.property_u32("#size-cells", 2).unwrap();
        let memory = to.begin_node("memory").unwrap();
        to.property_u32("label", 99).unwrap();
        to.end_node(memory).unwrap();
        if let Some(cells) = gic {
            write_gic(&mut to, "arm,gic-v3", cells);
        }
        let config = to.begin_node("gunyah-vm-config").unwrap();
        to.property_string("image-name", "guest").unwrap();
        let list = to.begin_node("vdevices").unwrap();
        to.property_string("generate", "/hypervisor").unwrap();
        for (n, (kind, label, interrupts)) in devices.iter().enumerate() {
            let node = to.begin_node(&format!("bell-{n:x}")).unwrap();
            to.property_null("peer-default").unwrap();
            if let Some(kind) = kind {
                to.property_string("vdevice-type", kind).unwrap();
            }
            if let Some(label) = label {
                to.property("label", label).unwrap();
            }
            if let Some(interrupts) = interrupts {
                to.property_array_u32("interrupts", interrupts).unwrap();
            }
            to.end_node(node).unwrap();
        }
        to.end_node(list).unwrap();
        to.end_node(config).unwrap();
        to.end_node(root).unwrap();
        to.finish().unwrap()
    }

    fn bells(gic: Option<&[Cells]>, labels: impl IntoIterator<Item = u32>) -> Vec<u8> {
        let labels: Vec<_> = labels.into_iter().map(u32::to_be_bytes).collect();
        let devices: Vec<Device> = labels
            .iter()
            .map(|label| (Some("doorbell"), Some(label.as_slice()), Some([0, 7, 4].as_slice())))
            .collect();
        tree_with(gic, &devices)
    }

    /// The labels of the bells of a tree without a GICv3.
    fn labels(tree: &[u8]) -> Result<Vec<u32>, Errno> {
        let config = config(tree).map_err(|refusal| refusal.errno)?;
        assert!(config.gic.is_none() && config.bells.iter().all(|bell| bell.interrupt.is_none()));
        Ok(config.bells.iter().map(|bell| bell.label).collect())
    }

    #[test]
    fn labels_are_those_of_doorbells() {
        let tree = tree_with(
            None,
            &[
                (Some("doorbell"), Some(&[0, 0, 1, 2]), None),
                (Some("doorbell-source"), Some(&[0, 0, 0, 1]), None),
                (Some("doorbell"), None, None),
                (Some("doorbell"), Some(&[0, 0, 0]), None),
                (Some("doorbell"), Some(&[0; 8]), None),
                (None, Some(&[0, 0, 0, 2]), None),
                (Some("doorbell"), Some(&[0xff; 4]), Some(&[0, 1, 4])),
                (Some("doorbell"), Some(&[0, 0, 0, 7]), Some(&[9])),
                (Some("doorbell"), Some(&[0, 0, 1, 2]), None),
            ],
        );
        assert_eq!(labels(&tree), Ok(vec![7, 0x102, u32::MAX]));
        assert_eq!(size(tree[..HEAD].try_into().unwrap()), Some(tree.len() as u32));
    }

    #[test]
    fn there_is_room_for_so_many() {
        for (gic, most) in [(None, DOORBELLS_MAX), (Some(&GIC[..]), SPIS.len())] {
            let (most, count) = (most as u32, |tree: &[u8]| {
                config(tree)
                    .map(|config| config.bells.len() as u32)
                    .map_err(|refused| refused.errno)
            });
            assert_eq!(count(&bells(gic, 0..most)), Ok(most));
            assert_eq!(count(&bells(gic, 0..=most)), Err(Errno::NoSpace));
            assert_eq!(count(&bells(gic, (0..most).chain(0..most))), Ok(most));
        }
    }

    #[test]
    fn what_is_no_tree_has_none() {
        assert_eq!(labels(&[]), Ok(Vec::new()));
        assert_eq!(labels(&[0; 4096]), Ok(Vec::new()));
        assert_eq!(size(&[0; HEAD]), None);
        let mut tree = bells(None, [5]);
        tree.pop();
        assert_eq!(labels(&tree), Ok(Vec::new()), "cut short");
    }

    #[test]
    fn a_gic_is_found() {
        assert_eq!(config(&tree_with(Some(&GIC), &[])).unwrap().gic, Some(FOUND));
        // A second region of redistributors is ignored, and so are other properties.
        let reg = [&REG[..], &[0, 0x4000_0000, 0, 0x200_0000]].concat();
        let more: [Cells; 4] = [
            ("reg", &reg),
            ("#interrupt-cells", &[4]),
            ("#redistributor-regions", &[2]),
            ("redistributor-stride", &[0, 0x2_0000]),
        ];
        assert_eq!(config(&tree_with(Some(&more), &[])).unwrap().gic, Some(FOUND));
    }

    /// The GICv3 of a tree in which it is on a bus, or not enabled.
    fn on_a_bus(ranges: Option<&[u32]>, compatible: &[u8], status: Option<&str>) -> Option<Gic> {
        let mut to = FdtWriter::new().unwrap();
        let root = to.begin_node("").unwrap();
        to.property_u32("#address-cells", 1).unwrap();
        to.property_u32("#size-cells", 0).unwrap();
        let bus = to.begin_node("soc").unwrap();
        to.property_u32("#size-cells", 1).unwrap();
        if let Some(ranges) = ranges {
            to.property_array_u32("ranges", ranges).unwrap();
        }
        let node = to.begin_node("intc@8000000").unwrap();
        to.property("compatible", compatible).unwrap();
        let reg = [0, 0x800_0000, 0x2_0000, 0, 0x80a_0000, 0x5_0000];
        to.property_array_u32("reg", &reg).unwrap();
        if let Some(status) = status {
            to.property_string("status", status).unwrap();
        }
        to.end_node(node).unwrap();
        to.end_node(bus).unwrap();
        to.end_node(root).unwrap();
        config(&to.finish().unwrap()).unwrap().gic
    }

    #[test]
    fn a_bus_s_addresses_are_the_roots_if_it_says_so() {
        let found = Some(Gic { room: 2, ..FOUND });
        let v3: &[u8] = b"arm,gic-v3\0";
        assert_eq!(on_a_bus(Some(&[]), v3, None), found);
        assert_eq!(on_a_bus(Some(&[]), b"a,gic-700\0arm,gic-v3\0", Some("okay")), found);
        for (ranges, compatible, status) in [
            (None, v3, None),
            (Some(&[0, 0, 0, 0x1000][..]), v3, None),
            (Some(&[]), v3, Some("disabled")),
            (Some(&[]), b"arm,gic-400\0", None),
            (Some(&[]), b"arm,gic-v3x\0", None),
        ] {
            assert_eq!(on_a_bus(ranges, compatible, status), None);
        }
    }

    /// A tree whose stolen time has this `reg`, on a bus of 2 and 2 cells.
    fn stolen_time_at(reg: Option<&[u32]>) -> Result<Option<u64>, Refusal> {
        let mut to = FdtWriter::new().unwrap();
        let root = to.begin_node("").unwrap();
        to.property_u32("#address-cells", 2).unwrap();
        to.property_u32("#size-cells", 2).unwrap();
        let node = to.begin_node("stolen-time@b000000").unwrap();
        to.property_string("compatible", "escrow,stolen-time").unwrap();
        if let Some(reg) = reg {
            to.property_array_u32("reg", reg).unwrap();
        }
        to.end_node(node).unwrap();
        to.end_node(root).unwrap();
        config(&to.finish().unwrap()).map(|config| config.stolen_time)
    }

    #[test]
    fn the_page_of_stolen_time_is_named_or_there_is_none() {
        assert_eq!(stolen_time_at(Some(&[1, 0xb00_0000, 0, 0x1000])), Ok(Some(0x1_0b00_0000)));
        assert_eq!(config(&tree_with(Some(&GIC), &[])).unwrap().stolen_time, None);
        for wrong in [
            None,
            Some(&[0, 0xb00_0000][..]),
            Some(&[0, 0xb00_0800, 0, 0x1000]),
            Some(&[0, 0xb00_0000, 0, 0x2000]),
            Some(&[0, 0xb00_0000, 0, 0]),
        ] {
            let refusal = stolen_time_at(wrong).unwrap_err();
            assert_eq!(refusal.errno, Errno::Invalid, "{wrong:x?}");
            assert!(refusal.why.is_some());
        }
    }

    #[test]
    fn a_gic_that_cannot_be_is_refused() {
        let why = |changes: &[(usize, u32)], more: &[Cells]| {
            let mut reg = REG;
            changes.iter().for_each(|&(at, value)| reg[at] = value);
            let cells = [&[("#interrupt-cells", &[3][..]), ("reg", &reg)], more].concat();
            match config(&tree_with(Some(&cells), &[])) {
                Err(Refusal { errno: Errno::Invalid, why: Some(why) }) => why,
                other => panic!("{changes:x?}, {more:x?}: {other:?}"),
            }
        };
        for alignment in [(1, 0x800_8000), (5, 0x80a_1000)] {
            assert!(why(&[alignment], &[]).contains("aligned"));
        }
        for wrap in [&[(0, u32::MAX), (1, 0xffff_0000), (3, 0x2_0000)][..], &[(6, u32::MAX)]] {
            let wrap = [wrap, &[(4, 1)]].concat();
            assert!(why(&wrap, &[]).contains("wrap"), "{wrap:x?}");
        }
        for small in [(3, 0xf000), (7, 0x1_f000)] {
            assert!(why(&[small], &[]).contains("small"));
        }
        for overlap in [(5, 0x800_0000), (3, 0xb_0000), (5, 0x7f0_0000)] {
            assert!(why(&[overlap], &[]).contains("overlap"), "{overlap:x?}");
        }
        for stride in [&[0x4_0000][..], &[1, 0x2_0000], &[], &[0, 0, 0x2_0000]] {
            let stride = [("redistributor-stride", stride)];
            assert!(why(&[], &stride).contains("128 KiB"));
        }
        let no_reg: &[&[Cells]] = &[&[], &[("reg", &[])], &[("reg", &REG[..7])]];
        for cells in no_reg {
            let refused = config(&tree_with(Some(cells), &[])).unwrap_err();
            assert!(refused.why.unwrap().contains("reg"));
        }
    }

    fn one(gic: Option<&[Cells]>, interrupts: Option<&[u32]>) -> Result<Bell, Refusal> {
        let tree = tree_with(gic, &[(Some("doorbell"), Some(&[0, 0, 0, 5]), interrupts)]);
        config(&tree).map(|config| config.bells[0])
    }

    #[test]
    fn labels_stand_for_interrupts() {
        let spi = |intid, level| Bell { label: 5, interrupt: Some(Interrupt { intid, level }) };
        let none = Bell { label: 5, interrupt: None };
        for (interrupts, bell) in [
            ([0, 0, 1], spi(32, false)),
            ([0, 16, 4], spi(48, true)),
            ([0, 987, 4], spi(1019, true)),
        ] {
            assert_eq!(one(Some(&GIC), Some(&interrupts)), Ok(bell));
            assert_eq!(one(None, Some(&interrupts)), Ok(none));
        }
        assert_eq!(one(Some(&GIC), None), Ok(none));
        // A fourth cell names a partition of PPIs.
        let four: [Cells; 2] = [("#interrupt-cells", &[4]), ("reg", &REG)];
        assert_eq!(one(Some(&four), Some(&[0, 1, 1, 0])), Ok(spi(33, false)));
        for (gic, bad) in [
            (&GIC, &[0, 16][..]),
            (&GIC, &[]),
            (&GIC, &[0, 16, 4, 0]),
            (&GIC, &[0, 16, 4, 0, 17, 4]),
            (&four, &[0, 16, 4]),
            (&[("#interrupt-cells", &[2]), ("reg", &REG)], &[0, 16]),
            (&[("#interrupt-cells", &[]), ("reg", &REG)], &[0, 16, 4]),
            (&GIC, &[1, 7, 4]),
            (&GIC, &[2, 7, 4]),
            (&GIC, &[0, 988, 4]),
            (&GIC, &[0, u32::MAX, 4]),
            (&GIC, &[0, 16, 0]),
            (&GIC, &[0, 16, 2]),
            (&GIC, &[0, 16, 8]),
            (&GIC, &[0, 16, 5]),
        ] {
            let refused = one(Some(gic), Some(bad)).unwrap_err();
            assert!(refused.errno == Errno::Invalid && refused.why.is_some(), "{bad:?}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        // Nodes without properties, nested deeper than any real tree.
        let small = bells(None, []);
        let begin = u32::from_be_bytes(small[8..12].try_into().unwrap()) as usize;
        let count = 1 << 17;
        let mut nodes = Vec::from([0, 0, 0, 1, 0, 0, 0, 0]);
        nodes.extend([0, 0, 0, 1, b'a', 0, 0, 0].repeat(count));
        nodes.extend([0, 0, 0, 2].repeat(count + 1));
        nodes.extend([0, 0, 0, 9]);
        let mut deep = Vec::from(&small[..begin]);
        deep.extend(&nodes);
        // The header: the total size, the offset of the strings, and both sizes; there are no
        // strings.
        let sizes = [(4, deep.len()), (12, deep.len()), (32, 0), (36, nodes.len())];
        for (at, value) in sizes {
            deep[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
        }
        assert!(Fdt::new(&deep).is_ok(), "{:?}", Fdt::new(&deep));
        // The thread has as much stack as one of the kernel.
        let walk = std::thread::Builder::new().stack_size(16 << 10);
        let found = walk.spawn(move || config(&deep)).unwrap().join().unwrap();
        assert_eq!(found, Ok(Config::default()));
    }

    #[test]
    fn padding_is_left_away() {
        let tree = bells(None, [5, 9]);
        let mut padded = tree.clone();
        padded.resize(MAX + 4096, 0);
        let size = padded.len() as u32;
        padded[4..8].copy_from_slice(&size.to_be_bytes());
        let both = config(&tree);
        assert_eq!(both.as_ref().map(|config| config.bells.len()), Ok(2));
        assert_eq!(config(&padded), both);
        assert_eq!(trim(&mut padded), Ok(tree.len()));
        assert_eq!(padded[..tree.len()], tree);
        assert_eq!(config(&padded[..tree.len()]), both);
        assert_eq!(trim(&mut []), Ok(0));
        assert_eq!(trim(&mut [0; 8]), Ok(8));
    }

    /// Nodes that lie behind what the header says of them would be looked at.
    #[test]
    fn trees_have_a_limit() {
        let tree = bells(None, [5]);
        let begin = header(&tree, 8).unwrap();
        let mut large = Vec::from(&tree[..begin]);
        large.extend([0, 0, 0, 1, 0, 0, 0, 0]);
        // FDT_NOP
        large.extend([0, 0, 0, 4].repeat(MAX / 4));
        large.extend([0, 0, 0, 2, 0, 0, 0, 9]);
        let size = large.len();
        for (at, value) in [(4, size), (12, size), (32, 0), (36, size - begin)] {
            large[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
        }
        assert!(Fdt::new(&large).is_ok(), "{:?}", Fdt::new(&large));
        assert_eq!(trim(&mut large), Err(Errno::TooLarge));
        // The header places the strings before the nodes.
        for (at, value) in [(12, begin), (36, 0)] {
            large[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
        }
        assert!(Fdt::new(&large).is_ok());
        assert_eq!(trim(&mut large), Ok(begin));
        assert!(Fdt::new(&large[..begin]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Bytes of a good tree are changed, words of it cut out and doubled: an
        /// answer, whatever it is.
        #[test]
        fn any_tree_is_answered(
            gic: bool,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            words in prop::collection::vec(
                (any::<prop::sample::Index>(), 0u32..16, any::<bool>()), 0..4),
            cut in prop::option::of((any::<prop::sample::Index>(), 1usize..16)),
        ) {
            let mut tree = bells(gic.then_some(&GIC[..]), [1, 2, 3]);
            for (at, byte) in changes {
                let at = at.index(tree.len());
                tree[at] = byte;
            }
            for (at, word, header) in words {
                let at = at.index(if header { 10 } else { tree.len() / 4 }) * 4;
                tree[at..at + 4].copy_from_slice(&word.to_be_bytes());
            }
            if let Some((at, count)) = cut {
                let at = at.index(tree.len() / 4) * 4;
                let end = (at + 4 * count).min(tree.len());
                tree.drain(at..end);
                let size = tree.len() as u32;
                if size >= 8 {
                    tree[4..8].copy_from_slice(&size.to_be_bytes());
                }
            }
            if let Ok(config) = config(&tree) {
                prop_assert!(config.bells.len() <= 3);
                let interrupts = config.bells.iter().filter_map(|bell| bell.interrupt);
                prop_assert!(interrupts.clone().all(|it| SPIS.contains(&it.intid)));
                prop_assert!(config.gic.is_some() || interrupts.count() == 0);
                if let Some(gic) = config.gic {
                    prop_assert_eq!((gic.distributor | gic.redistributors) % FRAME, 0);
                    prop_assert!(gic.room > 0);
                }
            }
            let size = trim(&mut tree).unwrap();
            prop_assert!(size <= tree.len());
            let _ = config(&tree[..size]);
        }
    }
}
