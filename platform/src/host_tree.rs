// SPDX-License-Identifier: MIT OR Apache-2.0

//! The device tree that the host gets: the board's, without Escrow's memory
//! and the boot modules, with what the host has to know of its own start.

use crate::board::{MAX_RAM, is_memory, is_module};
use crate::fdt::{Cells, Cursor, Fdt, FdtWriter, Node, Token, WriteError, strings};
use crate::layout;
use crate::range::{Range, RangeSet};

/// What the tree gets at the most on top of what it has, in bytes, command
/// line not counted.
const GROWTH: usize = 8 << 10;
/// Pieces that one memory node is cut into.
const MAX_PIECES: usize = MAX_RAM + layout::MAX_PIECES + 1;

/// The node of the CPUs' own timers.
const TIMER: &[u8] = b"arm,armv8-timer";
/// Its interrupts, where the tree does not name them; a name without an
/// interrupt does no harm.
const TIMER_INTERRUPTS: [&[u8]; 5] = [b"sec-phys", b"phys", b"virt", b"hyp-phys", b"hyp-virt"];
/// The name that the virtual timer's interrupt gets.
const GUEST_TIMER: &[u8] = b"guest-virt";

/// What differs for the host.
pub struct Changes<'a> {
    /// Escrow's memory: image and working memory.
    pub escrow: &'a [Range],
    /// The host's initial RAM disk.
    pub ramdisk: Option<Range>,
    /// The host's command line, without a NUL.
    pub arguments: &'a [u8],
}

impl Changes<'_> {
    /// A buffer of this size, in bytes, holds the changed tree, unless memory
    /// is cut into very many pieces.
    pub fn size_bound(&self, fdt: &Fdt<'_>) -> usize {
        fdt.content_size() + self.arguments.len() + GROWTH
    }

    /// Writes the changed tree into `out`; returns how long it is, in bytes.
    ///
    /// # Errors
    ///
    /// [`WriteError::NoRoom`]
    pub fn write(&self, fdt: &Fdt<'_>, out: &mut [u8]) -> Result<usize, WriteError> {
        let mut writer = FdtWriter::new(out, *fdt)?;
        self.root(&fdt.root(), &mut writer)?;
        writer.finish()
    }

    fn root<'a>(&self, root: &Node<'_, 'a>, w: &mut FdtWriter<'_, 'a>) -> Result<(), WriteError> {
        let cells = root.cells();
        let (mut chosen, mut reserved) = (false, false);
        w.begin_node(b"")?;
        for property in root.properties() {
            w.copy_property(&property)?;
        }
        for child in root.children() {
            if is_memory(&child) {
                self.memory(&child, cells, w)?;
            } else if child.is_named(b"chosen") {
                self.chosen(Some(&child), w)?;
                chosen = true;
            } else if child.is_named(b"reserved-memory") {
                self.reserved_memory(&child, w)?;
                reserved = true;
            } else if child.is_compatible(TIMER) {
                timer(&child, w)?;
            } else if !child.is_named(b"hypervisor") {
                copy(&child, w)?;
            }
        }
        if !chosen {
            self.chosen(None, w)?;
        }
        if !reserved {
            w.begin_node(b"reserved-memory")?;
            w.property_words(b"#address-cells", [cells.address.into()])?;
            w.property_words(b"#size-cells", [cells.size.into()])?;
            w.property(b"ranges", &[])?;
            self.escrow(cells, w)?;
            w.end_node()?;
        }
        w.begin_node(b"hypervisor")?;
        w.property(b"compatible", &[b"escrow,hypervisor\0"])?;
        w.end_node()?;
        w.end_node()
    }

    /// A memory node without what is Escrow's; none if nothing is left.
    fn memory<'a>(
        &self,
        node: &Node<'_, 'a>,
        cells: Cells,
        w: &mut FdtWriter<'_, 'a>,
    ) -> Result<(), WriteError> {
        let no_room = |_| WriteError::NoRoom;
        let mut left = RangeSet::<MAX_PIECES>::new();
        for (base, size) in cells.entries(node.property(b"reg").unwrap_or(&[])) {
            if let Some(range) = Range::with_size(base, size) {
                left.insert(range).map_err(no_room)?;
            }
        }
        for range in self.escrow {
            left.remove(*range).map_err(no_room)?;
        }
        if left.as_slice().is_empty() {
            return Ok(());
        }
        w.begin_node(node.name())?;
        for property in node.properties() {
            if property.name == b"reg" {
                let pieces = left.iter().flat_map(|range| reg(cells, *range));
                w.property_words(b"reg", pieces)?;
            } else {
                w.copy_property(&property)?;
            }
        }
        copy_children(node, w)?;
        w.end_node()
    }

    fn chosen<'a>(
        &self,
        node: Option<&Node<'_, 'a>>,
        w: &mut FdtWriter<'_, 'a>,
    ) -> Result<(), WriteError> {
        const OURS: [&[u8]; 3] = [b"bootargs", b"linux,initrd-start", b"linux,initrd-end"];
        w.begin_node(b"chosen")?;
        if !self.arguments.is_empty() {
            w.property(b"bootargs", &[self.arguments, b"\0"])?;
        }
        if let Some(ramdisk) = self.ramdisk {
            w.property(b"linux,initrd-start", &[&ramdisk.start.to_be_bytes()])?;
            w.property(b"linux,initrd-end", &[&ramdisk.end.to_be_bytes()])?;
        }
        if let Some(node) = node {
            for property in node.properties().filter(|p| !OURS.contains(&p.name)) {
                w.copy_property(&property)?;
            }
            for child in node.children().filter(|child| !is_module(child)) {
                copy(&child, w)?;
            }
        }
        w.end_node()
    }

    fn reserved_memory<'a>(
        &self,
        node: &Node<'_, 'a>,
        w: &mut FdtWriter<'_, 'a>,
    ) -> Result<(), WriteError> {
        w.begin_node(node.name())?;
        for property in node.properties() {
            w.copy_property(&property)?;
        }
        copy_children(node, w)?;
        self.escrow(node.cells(), w)?;
        w.end_node()
    }

    /// Escrow's memory is out of the memory nodes; this is for the host's
    /// users, who see it in /proc/device-tree, and for kernels that take
    /// memory from elsewhere. What the node's cells cannot express is left out.
    fn escrow(&self, cells: Cells, w: &mut FdtWriter<'_, '_>) -> Result<(), WriteError> {
        let fits = |value: u64, words: u8| words >= 2 || value >> (u32::from(words) * 32) == 0;
        for range in self.escrow {
            if !fits(range.end, cells.address) || !fits(range.size(), cells.size) {
                continue;
            }
            let mut name = *b"escrow@0000000000000000";
            let digits = hex(range.start, &mut name[7..]);
            let used = 7 + digits;
            w.begin_node(name.get(..used).unwrap_or(b"escrow"))?;
            w.property_words(b"reg", reg(cells, *range))?;
            w.property(b"no-map", &[])?;
            w.end_node()?;
        }
        Ok(())
    }
}

/// The timer node, without a virtual timer that the host would know by its
/// name.
///
/// The virtual timer is the guests': while one runs, it holds the guest's
/// deadline. A host that kept its own tick there would have none meanwhile, and
/// a guest that loops would keep the CPU. So the host is to use the physical
/// timer, which EL2 never touches. Linux takes that one if it finds no
/// interrupt of the name `virt`.
fn timer<'a>(node: &Node<'_, 'a>, w: &mut FdtWriter<'_, 'a>) -> Result<(), WriteError> {
    const NAMES: &[u8] = b"interrupt-names";
    const MAX: usize = TIMER_INTERRUPTS.len();
    w.begin_node(node.name())?;
    for property in node.properties().filter(|property| property.name != NAMES) {
        w.copy_property(&property)?;
    }
    let mut pieces: [&[u8]; 2 * MAX] = [b""; 2 * MAX];
    let mut fill = |names: &mut dyn Iterator<Item = &'a [u8]>| {
        for (piece, name) in pieces.chunks_exact_mut(2).zip(names) {
            let name = if name == b"virt" { GUEST_TIMER } else { name };
            piece.copy_from_slice(&[name, b"\0"]);
        }
    };
    match node.property(NAMES) {
        Some(names) => fill(&mut strings(names)),
        None => fill(&mut TIMER_INTERRUPTS.into_iter()),
    }
    w.property(b"interrupt-names", &pieces)?;
    copy_children(node, w)?;
    w.end_node()
}

/// A range as words of a `reg`.
fn reg(cells: Cells, range: Range) -> impl Iterator<Item = u32> {
    let words = |value: u64, count: u8| {
        let shifts = (0..u32::from(count)).rev().map(|word| word * 32);
        shifts.map(move |shift| value.checked_shr(shift).unwrap_or(0) as u32)
    };
    words(range.start, cells.address).chain(words(range.size(), cells.size))
}

/// Writes `value` without leading zeros; returns the number of digits.
fn hex(value: u64, out: &mut [u8]) -> usize {
    let digits = (64 - value.leading_zeros()).div_ceil(4).max(1) as usize;
    for (slot, digit) in out.iter_mut().zip((0..digits).rev()) {
        *slot = b"0123456789abcdef"[(value >> (digit * 4) & 0xf) as usize];
    }
    digits
}

/// Copies a node and all below it.
fn copy<'a>(node: &Node<'_, 'a>, w: &mut FdtWriter<'_, 'a>) -> Result<(), WriteError> {
    w.begin_node(node.name())?;
    let mut depth = 1usize;
    let mut cursor: Cursor<'a> = node.contents();
    while depth > 0 {
        match cursor.advance() {
            Ok(Token::BeginNode(name)) => {
                w.begin_node(name)?;
                depth += 1;
            }
            Ok(Token::Property(property)) => w.copy_property(&property)?,
            Ok(Token::EndNode) => {
                w.end_node()?;
                depth -= 1;
            }
            // Cannot be in a tree that was checked.
            Ok(Token::End) | Err(_) => break,
        }
    }
    Ok(())
}

fn copy_children<'a>(node: &Node<'_, 'a>, w: &mut FdtWriter<'_, 'a>) -> Result<(), WriteError> {
    node.children().try_for_each(|child| copy(&child, w))
}

#[cfg(test)]
mod tests;
