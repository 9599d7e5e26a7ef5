// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine, as the device tree describes it to the payload.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{MPIDR_EL1, Readable as _};
use arrayvec::ArrayVec;
use fdt::Fdt;
use fdt::node::FdtNode;

/// The bits of `MPIDR_EL1` that name a CPU.
const AFFINITY: u64 = 0xff_00ff_ffff;

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
}

/// What a payload knows of its machine.
pub struct Board {
    /// The device tree itself.
    pub tree: Range<u64>,
    /// Memory that the payload may use, in ascending order.
    pub memory: ArrayVec<Range<u64>, 32>,
    /// What of it somebody else uses.
    pub reserved: ArrayVec<Range<u64>, 64>,
    /// The CPUs' affinities, the boot CPU's first.
    pub cpus: ArrayVec<u64, 64>,
    /// Registers of the GICv3's distributor, if there is one.
    pub distributor: Option<u64>,
    /// Registers of its redistributors.
    pub redistributors: Option<u64>,
    /// Whether PSCI is called by HVC; by SMC if not.
    pub psci_by_hvc: bool,
    /// Whether the tree has a node for Escrow.
    pub has_escrow: bool,
    /// The command line.
    pub arguments: &'static str,
}

/// Where the image is, with its stacks.
pub fn image() -> Range<u64> {
    &raw const __image_start as u64..&raw const __image_end as u64
}

static TREE: AtomicU64 = AtomicU64::new(0);

/// The device tree that [`Board::read`] read.
pub fn tree() -> Fdt<'static> {
    let at = TREE.load(Ordering::Relaxed) as *const u8;
    // SAFETY: the boot protocol puts a tree there, and it is never written to.
    match unsafe { Fdt::from_ptr(at) } {
        Ok(tree) => tree,
        Err(error) => panic!("no device tree at {at:p}: {error:?}"),
    }
}

fn ranges<'a>(node: &FdtNode<'a, 'a>) -> impl Iterator<Item = Range<u64>> + 'a {
    node.reg().into_iter().flatten().map(|region| {
        let start = region.starting_address as u64;
        start..start + region.size.unwrap_or(0) as u64
    })
}

fn is_memory(node: &FdtNode<'_, '_>) -> bool {
    node.property("device_type").and_then(|p| p.as_str()) == Some("memory")
}

impl Board {
    /// Reads the tree at `tree`, and makes its serial port the console.
    ///
    /// # Panics
    /// The tree lacks what a payload cannot do without.
    pub(crate) fn read(tree_at: usize) -> Board {
        TREE.store(tree_at as u64, Ordering::Relaxed);
        let tree = tree();
        let uart = tree.find_compatible(&["arm,pl011"]).and_then(|node| ranges(&node).next());
        // Without a console nobody hears why.
        let Some(uart) = uart else { panic!("no PL011 in the device tree") };
        crate::console::set_base(uart.start as usize);

        let mut memory = ArrayVec::new();
        let root = tree.find_node("/").expect("a root node");
        for node in root.children().filter(is_memory) {
            memory.extend(ranges(&node).filter(|range| !range.is_empty()));
        }
        memory.sort_unstable_by_key(|range: &Range<u64>| range.start);

        let mut reserved: ArrayVec<_, 64> = tree
            .memory_reservations()
            .map(|r| r.address() as u64..r.address() as u64 + r.size() as u64)
            .collect();
        if let Some(node) = tree.find_node("/reserved-memory") {
            for child in node.children() {
                reserved.extend(ranges(&child));
            }
        }
        if let Some(initrd) = initrd(&tree) {
            reserved.push(initrd);
        }

        let boot_cpu = MPIDR_EL1.get() & AFFINITY;
        let mut cpus: ArrayVec<u64, 64> = tree.cpus().map(|cpu| cpu.ids().first() as u64).collect();
        cpus.sort_unstable_by_key(|&id| (id != boot_cpu, id));

        let gic = tree.find_compatible(&["arm,gic-v3"]);
        let mut gic = gic.iter().flat_map(ranges).map(|range| range.start);
        let (distributor, redistributors) = (gic.next(), gic.next());
        let psci = tree.find_compatible(&["arm,psci-1.0", "arm,psci-0.2"]);
        let method = psci.and_then(|node| node.property("method")).and_then(|p| p.as_str());
        Board {
            tree: tree_at as u64..(tree_at + tree.total_size()) as u64,
            memory,
            reserved,
            cpus,
            distributor,
            redistributors,
            psci_by_hvc: method == Some("hvc"),
            has_escrow: tree.find_compatible(&["escrow,hypervisor"]).is_some(),
            arguments: tree.chosen().bootargs().unwrap_or(""),
        }
    }

    /// The value of an argument `name=value` of the command line.
    pub fn argument(&self, name: &str) -> Option<&'static str> {
        self.arguments
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// The value of a number argument, hexadecimal with or without `0x`.
    pub fn number(&self, name: &str) -> Option<u64> {
        let text = self.argument(name)?;
        u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
    }

    /// Whether all of a range is memory that nobody else uses.
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        let inside = self.memory.iter().any(|m| m.start <= range.start && range.end <= m.end);
        let taken = [image(), self.tree.clone()];
        let mut taken = taken.iter().chain(&self.reserved);
        inside && !taken.any(|t| t.start < range.end && range.start < t.end)
    }
}

fn initrd(tree: &Fdt<'_>) -> Option<Range<u64>> {
    let chosen = tree.find_node("/chosen")?;
    let number = |name| match chosen.property(name)?.value {
        value if value.len() == 8 => Some(u64::from_be_bytes(value.try_into().ok()?)),
        value => Some(u32::from_be_bytes(value.try_into().ok()?) as u64),
    };
    Some(number("linux,initrd-start")?..number("linux,initrd-end")?)
}
