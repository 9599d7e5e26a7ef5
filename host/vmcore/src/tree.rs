// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a guest's device tree says to its host.
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
//!         };
//!     };
//! };
//! ```
//!
//! All else in there is of no concern to the shim. A tree may be anything:
//! whoever can start a VM has written it.

use alloc::vec::Vec;

use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};
use escrow_abi::call::DOORBELLS_MAX;

use crate::Errno;

/// What a tree begins with: a magic number and its size in bytes.
pub const HEAD: usize = 8;
const MAGIC: u32 = 0xd00d_feed;

/// The size of a tree that begins like this, in bytes; `None` if none does.
pub fn size(head: &[u8; HEAD]) -> Option<u32> {
    let [a, b, c, d, size @ ..] = *head;
    (u32::from_be_bytes([a, b, c, d]) == MAGIC).then_some(u32::from_be_bytes(size))
}

/// The labels of the doorbells that a tree configures, each once, sorted. What
/// is no tree configures none.
///
/// # Errors
/// `NoSpace` for more than [`DOORBELLS_MAX`], `NoMemory`.
pub fn doorbells(tree: &[u8]) -> Result<Vec<u32>, Errno> {
    let mut labels = Vec::new();
    // It looks at all of the tree, so that walking it cannot go wrong.
    let Ok(tree) = Fdt::new(tree) else { return Ok(labels) };
    let Some(devices) = tree.find_node("/gunyah-vm-config/vdevices") else { return Ok(labels) };
    for device in devices.children() {
        let kind = device.property("vdevice-type");
        if kind.is_none_or(|kind| kind.value() != b"doorbell\0") {
            continue;
        }
        let label = device.property("label").and_then(|label| label.value().try_into().ok());
        let Some(label) = label.map(u32::from_be_bytes) else { continue };
        if let Err(at) = labels.binary_search(&label) {
            if labels.len() == DOORBELLS_MAX {
                return Err(Errno::NoSpace);
            }
            labels.try_reserve(1).map_err(|_| Errno::NoMemory)?;
            labels.insert(at, label);
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use proptest::prelude::*;
    use vm_fdt::FdtWriter;

    use super::*;

    /// A device: its type and its label.
    type Device<'a> = (Option<&'a str>, Option<&'a [u8]>);

    fn tree(devices: &[Device]) -> Vec<u8> {
        let mut to = FdtWriter::new().unwrap();
        let root = to.begin_node("").unwrap();
        let memory = to.begin_node("memory").unwrap();
        to.property_u32("label", 99).unwrap();
        to.end_node(memory).unwrap();
        let config = to.begin_node("gunyah-vm-config").unwrap();
        to.property_string("image-name", "guest").unwrap();
        let list = to.begin_node("vdevices").unwrap();
        to.property_string("generate", "/hypervisor").unwrap();
        for (n, (kind, label)) in devices.iter().enumerate() {
            let node = to.begin_node(&format!("bell-{n:x}")).unwrap();
            to.property_null("peer-default").unwrap();
            if let Some(kind) = kind {
                to.property_string("vdevice-type", kind).unwrap();
            }
            if let Some(label) = label {
                to.property("label", label).unwrap();
            }
            to.end_node(node).unwrap();
        }
        to.end_node(list).unwrap();
        to.end_node(config).unwrap();
        to.end_node(root).unwrap();
        to.finish().unwrap()
    }

    fn bells(labels: impl IntoIterator<Item = u32>) -> Vec<u8> {
        let labels: Vec<_> = labels.into_iter().map(u32::to_be_bytes).collect();
        let devices: Vec<Device> =
            labels.iter().map(|label| (Some("doorbell"), Some(label.as_slice()))).collect();
        tree(&devices)
    }

    #[test]
    fn labels_are_those_of_doorbells() {
        let tree = tree(&[
            (Some("doorbell"), Some(&[0, 0, 1, 2])),
            (Some("doorbell-source"), Some(&[0, 0, 0, 1])),
            (Some("doorbell"), None),
            (Some("doorbell"), Some(&[0, 0, 0])),
            (Some("doorbell"), Some(&[0; 8])),
            (None, Some(&[0, 0, 0, 2])),
            (Some("doorbell"), Some(&[0xff; 4])),
            (Some("doorbell"), Some(&[0, 0, 0, 7])),
            (Some("doorbell"), Some(&[0, 0, 1, 2])),
        ]);
        assert_eq!(doorbells(&tree), Ok(std::vec![7, 0x102, u32::MAX]));
        assert_eq!(size(tree[..HEAD].try_into().unwrap()), Some(tree.len() as u32));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let most = DOORBELLS_MAX as u32;
        assert_eq!(doorbells(&bells(0..most)).map(|labels| labels.len()), Ok(DOORBELLS_MAX));
        assert_eq!(doorbells(&bells(0..=most)), Err(Errno::NoSpace));
        let twice = (0..most).chain(0..most);
        assert_eq!(doorbells(&bells(twice)).map(|labels| labels.len()), Ok(DOORBELLS_MAX));
    }

    #[test]
    fn what_is_no_tree_has_none() {
        assert_eq!(doorbells(&[]), Ok(Vec::new()));
        assert_eq!(doorbells(&[0; 4096]), Ok(Vec::new()));
        assert_eq!(size(&[0; HEAD]), None);
        let mut tree = bells([5]);
        tree.pop();
        assert_eq!(doorbells(&tree), Ok(Vec::new()), "cut short");
    }

    #[test]
    fn depth_costs_no_stack() {
        // Deeper than a writer would go: a node without properties within another.
        let small = bells([]);
        let begin = u32::from_be_bytes(small[8..12].try_into().unwrap()) as usize;
        let count = 1 << 17;
        let mut nodes = Vec::from([0, 0, 0, 1, 0, 0, 0, 0]);
        nodes.extend([0, 0, 0, 1, b'a', 0, 0, 0].repeat(count));
        nodes.extend([0, 0, 0, 2].repeat(count + 1));
        nodes.extend([0, 0, 0, 9]);
        let mut deep = Vec::from(&small[..begin]);
        deep.extend(&nodes);
        // Of the whole, and of what follows: strings, of which there are none, and nodes.
        let sizes = [(4, deep.len()), (12, deep.len()), (32, 0), (36, nodes.len())];
        for (at, value) in sizes {
            deep[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
        }
        assert!(Fdt::new(&deep).is_ok(), "{:?}", Fdt::new(&deep));
        // A thread with as much stack as the kernel has.
        let walk = std::thread::Builder::new().stack_size(16 << 10);
        let labels = walk.spawn(move || doorbells(&deep)).unwrap().join().unwrap();
        assert_eq!(labels, Ok(Vec::new()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Bytes of a good tree are changed, words of it cut out and doubled: an
        /// answer, whatever it is.
        #[test]
        fn any_tree_is_answered(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            words in prop::collection::vec(
                (any::<prop::sample::Index>(), 0u32..16, any::<bool>()), 0..4),
            cut in prop::option::of((any::<prop::sample::Index>(), 1usize..16)),
        ) {
            let mut tree = bells([1, 2, 3]);
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
            if let Ok(labels) = doorbells(&tree) {
                prop_assert!(labels.len() <= 3);
            }
        }
    }
}
