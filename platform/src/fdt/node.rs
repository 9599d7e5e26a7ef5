// SPDX-License-Identifier: MIT OR Apache-2.0

//! Nodes, and what their properties mean.

use ::fdt::node::FdtNode;
use arrayvec::ArrayVec;

use super::token::Blocks;
use super::{Cursor, Fdt, MAX_DEPTH, Property, word};
use crate::range::Range;

/// The most words that the specification has for a number. More than 2 are
/// not read, so that it does not matter how many they are.
const MAX_CELLS: u32 = 4;

/// A node of a tree.
#[derive(Clone, Copy)]
pub struct Node<'b, 'a: 'b> {
    blocks: Blocks<'a>,
    /// `None` reads as a node that is empty.
    node: Option<FdtNode<'b, 'a>>,
}

/// How many words an address and a size take in the `reg` of a node's
/// children: 0 to 4 each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells {
    /// `#address-cells`
    pub address: u8,
    /// `#size-cells`
    pub size: u8,
}

impl Default for Cells {
    /// What the specification says for a node that does not say.
    fn default() -> Self {
        Cells { address: 2, size: 1 }
    }
}

impl Cells {
    /// Bytes of one address and its size.
    pub const fn stride(&self) -> usize {
        (self.address + self.size) as usize * 4
    }

    /// Address and size of each entry of a `reg`. Nothing if an address or a
    /// size does not fit into 64 bits by its form.
    pub fn entries<'v>(&self, value: &'v [u8]) -> impl Iterator<Item = (u64, u64)> + use<'v> {
        let cells = *self;
        let readable = cells.address <= 2 && cells.size <= 2 && cells.stride() > 0;
        let value = if readable { value } else { &[] };
        value.chunks_exact(if readable { cells.stride() } else { 1 }).map_while(move |entry| {
            let (address, size) = entry.split_at_checked(cells.address as usize * 4)?;
            Some((number(address)?, number(size)?))
        })
    }
}

/// A big-endian number of 0, 1 or 2 words.
fn number(cells: &[u8]) -> Option<u64> {
    match cells.len() {
        0 => Some(0),
        4 => word(cells, 0).map(u64::from),
        8 => super::double_word(cells, 0),
        _ => None,
    }
}

/// The strings of a list such as `compatible`.
pub fn strings(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == 0).filter(|string| !string.is_empty())
}

impl<'b, 'a: 'b> Node<'b, 'a> {
    pub(super) fn new(blocks: Blocks<'a>, node: Option<FdtNode<'b, 'a>>) -> Self {
        Node { blocks, node }
    }

    /// The name, with the unit address.
    pub fn name(&self) -> &'a [u8] {
        self.node.map_or(b"", |node| node.name.as_bytes())
    }

    /// Whether `name` names this node; the unit address may be left out.
    pub fn is_named(&self, name: &[u8]) -> bool {
        match self.name().strip_prefix(name) {
            Some(rest) => rest.is_empty() || (rest[0] == b'@' && !name.contains(&b'@')),
            None => false,
        }
    }

    /// The properties, in order.
    pub fn properties(&self) -> impl Iterator<Item = Property<'a>> + use<'a, 'b> {
        let properties = self.node.into_iter().flat_map(FdtNode::properties);
        properties.map(|p| Property { name: p.name.as_bytes(), value: p.value })
    }

    /// The value of a property.
    pub fn property(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.properties().find(|property| property.name == name).map(|property| property.value)
    }

    /// The value of a property that is one word.
    pub fn word(&self, name: &[u8]) -> Option<u32> {
        let value = self.property(name)?;
        if value.len() == 4 { word(value, 0) } else { None }
    }

    /// The first string of a property.
    pub fn string(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.property(name)?.split(|&byte| byte == 0).next()
    }

    /// Whether `compatible` lists `name`.
    pub fn is_compatible(&self, name: &[u8]) -> bool {
        self.property(b"compatible").is_some_and(|value| strings(value).any(|s| s == name))
    }

    /// Whether the node's `status` allows its use.
    pub fn is_available(&self) -> bool {
        matches!(self.string(b"status"), None | Some(b"okay" | b"ok"))
    }

    /// The form of the `reg` of this node's children.
    pub fn cells(&self) -> Cells {
        let default = Cells::default();
        let cells = |name, default: u8| self.word(name).map_or(default, |n| n.min(MAX_CELLS) as u8);
        Cells {
            address: cells(b"#address-cells", default.address),
            size: cells(b"#size-cells", default.size),
        }
    }

    /// What is inside the node, up to its end. Not for the root.
    pub(crate) fn contents(&self) -> Cursor<'a> {
        // The name is a part of the structure block; the node's first token
        // follows it.
        let name = self.name();
        let at = name.as_ptr().addr().wrapping_sub(self.blocks.structure.as_ptr().addr());
        Cursor::new(self.blocks, at.saturating_add(name.len() + 1).next_multiple_of(4))
    }

    /// The nodes right below.
    pub fn children(&self) -> impl Iterator<Item = Node<'b, 'a>> + use<'a, 'b> {
        let blocks = self.blocks;
        let children = self.node.into_iter().flat_map(FdtNode::children);
        children.map(move |node| Node { blocks, node: Some(node) })
    }

    /// The first node right below with this name; the unit address may be
    /// left out.
    pub fn child(&self, name: &[u8]) -> Option<Node<'b, 'a>> {
        self.children().find(|child| child.is_named(name))
    }
}

/// A node with the nodes above it: what it takes to say where in the physical
/// address space its registers are.
pub struct Ancestry<'b, 'a: 'b> {
    /// From the root down to the node itself.
    nodes: ArrayVec<Node<'b, 'a>, MAX_DEPTH>,
}

impl<'b, 'a: 'b> Ancestry<'b, 'a> {
    /// Walks the whole tree in order, and stops at the first node for which
    /// `wanted` says so.
    pub fn search(fdt: &'b Fdt<'a>, mut wanted: impl FnMut(&Node<'b, 'a>) -> bool) -> Option<Self> {
        let mut place = Ancestry { nodes: ArrayVec::new() };
        place.descend(fdt.root(), &mut wanted).then_some(place)
    }

    /// Whether `wanted` is at `node` or below; `nodes` leads there then.
    fn descend(
        &mut self,
        node: Node<'b, 'a>,
        wanted: &mut dyn FnMut(&Node<'b, 'a>) -> bool,
    ) -> bool {
        if self.nodes.try_push(node).is_err() {
            return false;
        }
        if wanted(&node) || node.children().any(|child| self.descend(child, wanted)) {
            return true;
        }
        self.nodes.pop();
        false
    }

    /// The node at a path from the root, or at an alias. Unit addresses may be
    /// left out.
    pub fn at_path(fdt: &'b Fdt<'a>, path: &[u8]) -> Option<Self> {
        if !path.starts_with(b"/") {
            let target = fdt.root().child(b"aliases")?.string(path)?;
            // An alias of an alias is not a thing, and could be a loop.
            return if target.starts_with(b"/") { Self::at_path(fdt, target) } else { None };
        }
        let mut nodes: ArrayVec<Node<'b, 'a>, MAX_DEPTH> = ArrayVec::new();
        let mut node = fdt.root();
        nodes.try_push(node).ok()?;
        for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            node = node.child(name)?;
            nodes.try_push(node).ok()?;
        }
        Some(Ancestry { nodes })
    }

    /// The node.
    pub fn node(&self) -> Option<Node<'b, 'a>> {
        self.nodes.last().copied()
    }

    /// Whether the node and all the buses above it are available.
    pub fn is_available(&self) -> bool {
        self.nodes.iter().all(Node::is_available)
    }

    /// The physical addresses of the node's `reg` entry with this index.
    /// `None` if there is none, if it is empty, or if a bus above has no
    /// translation for it.
    pub fn registers(&self, index: usize) -> Option<Range> {
        let (node, above) = self.nodes.split_last()?;
        let (parent, buses) = above.split_last()?;
        let (address, size) = parent.cells().entries(node.property(b"reg")?).nth(index)?;
        let mut range = Range::with_size(address, size).filter(|range| !range.is_empty())?;
        let mut bus = *parent;
        for upper in buses.iter().rev() {
            range = translate(&bus, upper, range)?;
            bus = *upper;
        }
        Some(range)
    }
}

/// Addresses of `bus` as addresses of the bus above, by its `ranges`.
fn translate(bus: &Node<'_, '_>, upper: &Node<'_, '_>, range: Range) -> Option<Range> {
    let ranges = bus.property(b"ranges")?;
    if ranges.is_empty() {
        return Some(range);
    }
    let (inner, outer) = (bus.cells(), upper.cells());
    if inner.address > 2 || inner.size > 2 || outer.address > 2 {
        return None;
    }
    let [inner_end, outer_end] =
        [inner.address as usize * 4, (inner.address + outer.address) as usize * 4];
    let stride = outer_end + inner.size as usize * 4;
    if stride == 0 {
        return None;
    }
    ranges.chunks_exact(stride).find_map(|entry| {
        let from = number(entry.get(..inner_end)?)?;
        let to = number(entry.get(inner_end..outer_end)?)?;
        let window = Range::with_size(from, number(entry.get(outer_end..)?)?)?;
        if !window.contains(&range) {
            return None;
        }
        Range::with_size(to.checked_add(range.start - from)?, range.size())
    })
}
