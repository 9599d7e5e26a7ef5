// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writes a tree that is an edited copy of another one.

use core::fmt;

use arrayvec::ArrayVec;

use super::token::{BEGIN_NODE, END, END_NODE, PROPERTY};
use super::{Fdt, HEADER_SIZE, LAST_COMPATIBLE_VERSION, MAGIC, Property, VERSION};

/// Property names that a writer adds to those of the tree it copies from.
const NEW_NAMES_MAX: usize = 16;

/// Why a tree could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The buffer is too small.
    NoRoom,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteError::NoRoom => f.write_str("no room for the device tree"),
        }
    }
}

impl core::error::Error for WriteError {}

/// Writes into a buffer, with the strings of an existing tree as its own, so
/// that copying a property moves its value and nothing else.
///
/// It does not judge names, because it has to pass on what real boards have: of
/// the trees in Debian's kernel packages, three in five break the
/// specification's rules (31 characters at the most), and so would be refused
/// by the writer of the `vm-fdt` crate.
pub struct FdtWriter<'o, 'a> {
    out: &'o mut [u8],
    at: usize,
    base: Fdt<'a>,
    structure: usize,
    reservations: usize,
    new_names: ArrayVec<(&'static [u8], u32), NEW_NAMES_MAX>,
    strings_size: usize,
}

impl<'o, 'a> FdtWriter<'o, 'a> {
    /// Begins a tree in `out` with the reservations of `base`.
    ///
    /// # Errors
    ///
    /// [`WriteError::NoRoom`]
    pub fn new(out: &'o mut [u8], base: Fdt<'a>) -> Result<Self, WriteError> {
        let mut writer = FdtWriter {
            out,
            at: HEADER_SIZE,
            base,
            structure: 0,
            reservations: HEADER_SIZE,
            new_names: ArrayVec::new(),
            strings_size: base.blocks.strings.len(),
        };
        for (address, size) in base.reservations().chain([(0, 0)]) {
            writer.bytes(&address.to_be_bytes())?;
            writer.bytes(&size.to_be_bytes())?;
        }
        writer.structure = writer.at;
        Ok(writer)
    }

    /// Begins a node.
    ///
    /// # Errors
    ///
    /// [`WriteError::NoRoom`]
    pub fn begin_node(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.word(BEGIN_NODE)?;
        self.bytes(name)?;
        self.bytes(&[0])?;
        self.pad()
    }

    /// Ends the innermost node.
    ///
    /// # Errors
    ///
    /// [`WriteError::NoRoom`]
    pub fn end_node(&mut self) -> Result<(), WriteError> {
        self.word(END_NODE)
    }

    /// A property of the tree that is copied from.
    ///
    /// # Errors
    ///
    /// [`WriteError::NoRoom`]
    pub fn copy_property(&mut self, property: &Property<'a>) -> Result<(), WriteError> {
        // The name is a part of the block of strings, which is copied whole.
        let name = property.name.as_ptr().addr() - self.base.blocks.strings.as_ptr().addr();
        self.word(PROPERTY)?;
        self.word(property.value.len() as u32)?;
        self.word(name as u32)?;
        self.bytes(property.value)?;
        self.pad()
    }

    /// A new property, its value given in pieces.
    ///
    /// # Errors
    ///
    /// [`WriteError::NoRoom`]
    pub fn property(&mut self, name: &'static [u8], value: &[&[u8]]) -> Result<(), WriteError> {
        let name_offset = self.name(name)?;
        self.word(PROPERTY)?;
        let size_at = self.at;
        self.word(0)?;
        self.word(name_offset)?;
        let begin = self.at;
        for piece in value {
            self.bytes(piece)?;
        }
        self.put(size_at, &((self.at - begin) as u32).to_be_bytes())?;
        self.pad()
    }

    /// A new property whose value is a list of words.
    ///
    /// # Errors
    ///
    /// [`WriteError::NoRoom`]
    pub fn property_words(
        &mut self,
        name: &'static [u8],
        words: impl IntoIterator<Item = u32>,
    ) -> Result<(), WriteError> {
        let name_offset = self.name(name)?;
        self.word(PROPERTY)?;
        let size_at = self.at;
        self.word(0)?;
        self.word(name_offset)?;
        let begin = self.at;
        for word in words {
            self.word(word)?;
        }
        self.put(size_at, &((self.at - begin) as u32).to_be_bytes())
    }

    /// Ends the tree; returns how long it is, in bytes.
    ///
    /// # Errors
    ///
    /// [`WriteError::NoRoom`]
    pub fn finish(mut self) -> Result<usize, WriteError> {
        self.word(END)?;
        let structure_size = self.at - self.structure;
        let strings = self.at;
        self.bytes(self.base.blocks.strings)?;
        let names = core::mem::take(&mut self.new_names);
        for (name, _) in &names {
            self.bytes(name)?;
            self.bytes(&[0])?;
        }
        let header = [
            MAGIC,
            self.at as u32,
            self.structure as u32,
            strings as u32,
            self.reservations as u32,
            VERSION,
            LAST_COMPATIBLE_VERSION,
            self.base.boot_cpu,
            self.strings_size as u32,
            structure_size as u32,
        ];
        for (index, field) in header.iter().enumerate() {
            self.put(index * 4, &field.to_be_bytes())?;
        }
        Ok(self.at)
    }

    /// Where a new name will be in the block of strings.
    fn name(&mut self, name: &'static [u8]) -> Result<u32, WriteError> {
        if let Some((_, offset)) = self.new_names.iter().find(|(known, _)| *known == name) {
            return Ok(*offset);
        }
        let offset = self.strings_size as u32;
        self.new_names.try_push((name, offset)).map_err(|_| WriteError::NoRoom)?;
        self.strings_size += name.len() + 1;
        Ok(offset)
    }

    fn word(&mut self, word: u32) -> Result<(), WriteError> {
        self.bytes(&word.to_be_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.put(self.at, bytes)?;
        self.at += bytes.len();
        Ok(())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), WriteError> {
        let room = self.out.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len()));
        room.ok_or(WriteError::NoRoom)?.copy_from_slice(bytes);
        Ok(())
    }

    fn pad(&mut self) -> Result<(), WriteError> {
        let zeros = self.at.next_multiple_of(4) - self.at;
        self.bytes([0; 3].get(..zeros).unwrap_or(&[]))
    }
}
