// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads flattened device trees (Devicetree Specification v0.4, chapter 5).
//!
//! A tree comes from outside, so nothing in here can be made to panic, to read
//! outside the blob, or to run on: [`Fdt::new`] walks the whole structure once
//! and refuses what is not well formed, and what reads it afterwards takes the
//! same checked steps, ending early instead of trusting the first walk.
//!
//! Nothing here looks at the padding that boot loaders leave at the end of a
//! tree (QEMU's is a mebibyte long), and nothing allocates.

mod node;
mod token;
mod write;

pub use node::{Ancestry, Cells, Children, Node, Properties, strings};
pub use token::{Cursor, Property, Token};
pub use write::{FdtWriter, WriteError};

use core::fmt;

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
}

impl fmt::Display for FdtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FdtError::BadMagic => f.write_str("bad magic number"),
            FdtError::BadVersion(version) => write!(f, "version {version} is unknown"),
            FdtError::BadHeader => f.write_str("bad header"),
            FdtError::BadStructure(offset) => write!(f, "malformed at offset {offset:#x}"),
            FdtError::TooDeep => f.write_str("nested too deep"),
        }
    }
}

impl core::error::Error for FdtError {}

/// A well-formed device tree.
#[derive(Clone, Copy)]
pub struct Fdt<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
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

    /// Checks a tree.
    ///
    /// # Errors
    ///
    /// See [`FdtError`].
    pub fn new(blob: &'a [u8]) -> Result<Self, FdtError> {
        let header = blob.first_chunk().ok_or(FdtError::BadHeader)?;
        let blob = blob.get(..Self::size(header)?).ok_or(FdtError::BadHeader)?;
        let field = |index: usize| word(blob, index * 4).ok_or(FdtError::BadHeader);
        let block = |offset: u32, size: u32| {
            let start = offset as usize;
            blob.get(start..start.checked_add(size as usize)?)
        };
        let [structure_at, strings_at, reservations_at] = [field(2)?, field(3)?, field(4)?];
        let [version, compatible] = [field(5)?, field(6)?];
        if version < VERSION {
            return Err(FdtError::BadVersion(version));
        }
        if compatible > VERSION {
            return Err(FdtError::BadVersion(compatible));
        }
        if structure_at % 4 != 0 || reservations_at % 8 != 0 {
            return Err(FdtError::BadHeader);
        }
        let fdt = Fdt {
            structure: block(structure_at, field(9)?).ok_or(FdtError::BadHeader)?,
            strings: block(strings_at, field(8)?).ok_or(FdtError::BadHeader)?,
            reservations: blob.get(reservations_at as usize..).ok_or(FdtError::BadHeader)?,
            boot_cpu: field(7)?,
        };
        fdt.check_structure()?;
        fdt.check_reservations()?;
        Ok(fdt)
    }

    /// One root node, balanced, properties before children, an end mark.
    fn check_structure(&self) -> Result<(), FdtError> {
        let mut cursor = Cursor::new(*self, 0);
        let mut depth = 0;
        // Whether the innermost open node may still have properties.
        let mut properties = false;
        loop {
            let at = cursor.offset();
            let malformed = Err(FdtError::BadStructure(at as u32));
            match cursor.advance()? {
                Token::BeginNode(name) => {
                    // The root has no name, and every other node has one.
                    if (at != 0 && depth == 0) || (depth == 0) != name.is_empty() {
                        return malformed;
                    }
                    depth += 1;
                    properties = true;
                    if depth > MAX_DEPTH {
                        return Err(FdtError::TooDeep);
                    }
                }
                Token::Property(_) if !properties => return malformed,
                Token::Property(_) => {}
                Token::EndNode if depth == 0 => return malformed,
                Token::EndNode => {
                    depth -= 1;
                    properties = false;
                }
                Token::End if depth == 0 && at != 0 => return Ok(()),
                Token::End => return malformed,
            }
        }
    }

    /// The list of reservations ends inside the blob.
    fn check_reservations(&self) -> Result<(), FdtError> {
        let mut entries = self.reservations.chunks_exact(16);
        if entries.any(|entry| entry.iter().all(|&byte| byte == 0)) {
            Ok(())
        } else {
            Err(FdtError::BadHeader)
        }
    }

    /// Bytes that a copy of the tree without padding takes.
    pub fn content_size(&self) -> usize {
        let reservations = (self.reservations().count() + 1) * 16;
        HEADER_SIZE + reservations + self.structure.len() + self.strings.len()
    }

    /// The root node.
    pub fn root(&self) -> Node<'a> {
        Node::root(*self)
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
