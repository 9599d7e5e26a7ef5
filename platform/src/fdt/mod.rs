// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads flattened device trees (Devicetree Specification v0.4, chapter 5).
//!
//! The reader is the `fdt` crate's, which takes a tree at its word: it panics on
//! about a third of all damaged ones. A tree comes from outside, so it gets to
//! see those only that [`Fdt::open`] has walked from end to end and found well
//! formed in all that the crate relies on, and of the crate only what reads
//! nodes and raw properties is used; what they mean is decided here.
//!
//! Nothing here looks at the padding that boot loaders leave at the end of a
//! tree (QEMU's is a mebibyte long), and nothing allocates.

mod node;
mod token;
mod write;

pub use node::{Ancestry, Cells, Node, strings};
pub use token::{Cursor, Property, Token};
pub use write::{FdtWriter, WriteError};

use core::fmt;

use token::Blocks;

/// Bytes of a tree's header.
pub const HEADER_SIZE: usize = 40;
/// The longest tree that is taken: Linux's limit for arm64.
pub const MAX_SIZE: usize = 2 << 20;
/// How deep nodes may nest, the root included.
pub const MAX_DEPTH: usize = 32;

const MAGIC: u32 = 0xd00d_feed;
/// The version that is read and written; every tree since 2005 is of it.
const VERSION: u32 = 17;
const LAST_COMPATIBLE_VERSION: u32 = 16;

/// Why a blob is no device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdtError {
    /// The first word is not the magic number.
    BadMagic,
    /// The format's version is not one that can be read.
    BadVersion(u32),
    /// A block lies outside the tree, or is misaligned, or the tree is too
    /// long.
    BadHeader,
    /// The structure block is malformed at this offset, in bytes.
    BadStructure(u32),
    /// Nodes nest deeper than [`MAX_DEPTH`].
    TooDeep,
    /// There are padding tokens, which [`Fdt::open`] removes.
    Padded,
}

impl fmt::Display for FdtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FdtError::BadMagic => f.write_str("bad magic number"),
            FdtError::BadVersion(version) => write!(f, "version {version} is unknown"),
            FdtError::BadHeader => f.write_str("bad header"),
            FdtError::BadStructure(offset) => write!(f, "malformed at offset {offset:#x}"),
            FdtError::TooDeep => f.write_str("nested too deep"),
            FdtError::Padded => f.write_str("padding inside"),
        }
    }
}

impl core::error::Error for FdtError {}

/// A well-formed device tree.
#[derive(Clone, Copy)]
pub struct Fdt<'a> {
    tree: ::fdt::Fdt<'a>,
    blocks: Blocks<'a>,
    reservations: &'a [u8],
    boot_cpu: u32,
}

impl<'a> Fdt<'a> {
    /// How long the tree behind this header says it is, in bytes.
    ///
    /// # Errors
    ///
    /// [`FdtError::BadMagic`] if there is none, [`FdtError::BadHeader`] if it
    /// is longer than [`MAX_SIZE`] or shorter than its header.
    pub fn size(header: &[u8; HEADER_SIZE]) -> Result<usize, FdtError> {
        if word(header, 0) != Some(MAGIC) {
            return Err(FdtError::BadMagic);
        }
        match word(header, 4).map(|size| size as usize) {
            Some(size @ HEADER_SIZE..=MAX_SIZE) => Ok(size),
            _ => Err(FdtError::BadHeader),
        }
    }

    /// Checks a tree, after removing padding tokens from it: tools leave them
    /// where something was deleted, and the reader stumbles over them.
    ///
    /// # Errors
    ///
    /// See [`FdtError`].
    pub fn open(blob: &'a mut [u8]) -> Result<Self, FdtError> {
        match check(blob) {
            Err(FdtError::Padded) => {
                squeeze(blob)?;
                check(blob)?;
            }
            checked => checked?,
        }
        Self::assemble(blob)
    }

    /// Checks a tree.
    ///
    /// # Errors
    ///
    /// See [`FdtError`].
    pub fn new(blob: &'a [u8]) -> Result<Self, FdtError> {
        check(blob)?;
        Self::assemble(blob)
    }

    /// The parts of a tree that was checked.
    fn assemble(blob: &'a [u8]) -> Result<Self, FdtError> {
        let blob = whole(blob)?;
        Ok(Fdt {
            tree: ::fdt::Fdt::new(blob).map_err(|_| FdtError::BadHeader)?,
            blocks: Blocks::of(blob)?,
            reservations: reservations(blob)?,
            boot_cpu: field(blob, 7)?,
        })
    }

    /// Bytes that a copy of the tree without padding takes.
    pub fn content_size(&self) -> usize {
        let reservations = (self.reservations().count() + 1) * 16;
        HEADER_SIZE + reservations + self.blocks.structure.len() + self.blocks.strings.len()
    }

    /// The root node.
    pub fn root(&self) -> Node<'_, 'a> {
        Node::new(self.blocks, self.tree.find_node("/"))
    }

    /// The memory reservation block: address and size, in bytes, of each
    /// entry.
    pub fn reservations(&self) -> impl Iterator<Item = (u64, u64)> + 'a {
        self.reservations
            .chunks_exact(16)
            .map_while(|entry| Some((double_word(entry, 0)?, double_word(entry, 8)?)))
            .take_while(|&entry| entry != (0, 0))
    }

    /// The physical identifier of the CPU that the boot loader ran on.
    pub fn boot_cpu(&self) -> u32 {
        self.boot_cpu
    }
}

impl<'a> Blocks<'a> {
    /// The blocks that a tree's header names.
    fn of(blob: &'a [u8]) -> Result<Self, FdtError> {
        let block = |offset: u32, size: u32| {
            let start = offset as usize;
            let block = blob.get(start..start.checked_add(size as usize)?);
            block.filter(|_| start >= HEADER_SIZE)
        };
        let structure_at = field(blob, 2)?;
        if structure_at % 4 != 0 {
            return Err(FdtError::BadHeader);
        }
        Ok(Blocks {
            structure: block(structure_at, field(blob, 9)?).ok_or(FdtError::BadHeader)?,
            strings: block(field(blob, 3)?, field(blob, 8)?).ok_or(FdtError::BadHeader)?,
        })
    }
}

/// The blob as far as its header says that the tree goes.
fn whole(blob: &[u8]) -> Result<&[u8], FdtError> {
    let header = blob.first_chunk().ok_or(FdtError::BadHeader)?;
    blob.get(..Fdt::size(header)?).ok_or(FdtError::BadHeader)
}

/// The blob from the list of reservations on.
fn reservations(blob: &[u8]) -> Result<&[u8], FdtError> {
    let at = field(blob, 4)? as usize;
    blob.get(at..).filter(|_| at.is_multiple_of(8)).ok_or(FdtError::BadHeader)
}

/// Checks all of a tree that reading it relies on.
fn check(blob: &[u8]) -> Result<(), FdtError> {
    let blob = whole(blob)?;
    let [version, compatible] = [field(blob, 5)?, field(blob, 6)?];
    if version < VERSION {
        return Err(FdtError::BadVersion(version));
    }
    if compatible > VERSION {
        return Err(FdtError::BadVersion(compatible));
    }
    // The list of reservations has to end, by an entry of zeros.
    let mut entries = reservations(blob)?.chunks_exact(16);
    if !entries.any(|entry| entry.iter().all(|&byte| byte == 0)) {
        return Err(FdtError::BadHeader);
    }
    check_structure(Blocks::of(blob)?)
}

/// One root node, balanced, properties before children, names that are text,
/// an end mark; and no padding.
fn check_structure(blocks: Blocks<'_>) -> Result<(), FdtError> {
    let mut cursor = Cursor::new(blocks, 0);
    let mut depth = 0;
    let mut padded = false;
    // Whether the innermost open node may still have properties.
    let mut properties = false;
    loop {
        let end = cursor.offset();
        let token = cursor.advance()?;
        padded |= cursor.token() != end;
        let malformed = Err(FdtError::BadStructure(cursor.token() as u32));
        match token {
            Token::BeginNode(name) => {
                // The root has no name, and every other node has one.
                if (end != 0 && depth == 0) || (depth == 0) != name.is_empty() || !is_text(name) {
                    return malformed;
                }
                depth += 1;
                properties = true;
                if depth > MAX_DEPTH {
                    return Err(FdtError::TooDeep);
                }
            }
            Token::Property(property) => {
                if !properties || !is_text(property.name) {
                    return malformed;
                }
            }
            Token::EndNode => {
                if depth == 0 {
                    return malformed;
                }
                depth -= 1;
                properties = false;
            }
            Token::End if depth == 0 && end != 0 => {
                return if padded { Err(FdtError::Padded) } else { Ok(()) };
            }
            Token::End => return malformed,
        }
    }
}

fn is_text(name: &[u8]) -> bool {
    core::str::from_utf8(name).is_ok()
}

/// Removes padding tokens from a tree that is well formed otherwise.
fn squeeze(blob: &mut [u8]) -> Result<(), FdtError> {
    let base = field(blob, 2)? as usize;
    let (mut from, mut to) = (0, 0);
    loop {
        // What was moved so far lies before `from`.
        let mut cursor = Cursor::new(Blocks::of(blob)?, from);
        let token = cursor.advance()?;
        let (start, end) = (cursor.token(), cursor.offset());
        let last = token == Token::End;
        if base + end > blob.len() {
            return Err(FdtError::BadStructure(start as u32));
        }
        blob.copy_within(base + start..base + end, base + to);
        to += end - start;
        from = end;
        if last {
            break;
        }
    }
    let size = blob.get_mut(9 * 4..10 * 4).ok_or(FdtError::BadHeader)?;
    size.copy_from_slice(&(to as u32).to_be_bytes());
    Ok(())
}

/// A word of the header.
fn field(blob: &[u8], index: usize) -> Result<u32, FdtError> {
    word(blob, index * 4).ok_or(FdtError::BadHeader)
}

/// The big-endian word at an offset in bytes.
pub(crate) fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_be_bytes)
}

/// The big-endian double word at an offset in bytes.
pub(crate) fn double_word(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().copied().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests;
