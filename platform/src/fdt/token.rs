// SPDX-License-Identifier: MIT OR Apache-2.0

//! The structure block as a sequence of tokens.

use super::{FdtError, word};

pub(super) const BEGIN_NODE: u32 = 1;
pub(super) const END_NODE: u32 = 2;
pub(super) const PROPERTY: u32 = 3;
pub(super) const NOP: u32 = 4;
pub(super) const END: u32 = 9;

/// A property of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Property<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its value, as it stands in the tree.
    pub value: &'a [u8],
}

/// One step through the structure block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// A node begins; its name, with the unit address.
    BeginNode(&'a [u8]),
    /// A property of the node that began last.
    Property(Property<'a>),
    /// The innermost node ends.
    EndNode,
    /// The structure ends.
    End,
}

/// Where structure and names of a tree are.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    pub structure: &'a [u8],
    pub strings: &'a [u8],
}

/// A place in the structure block.
#[derive(Clone, Copy)]
pub struct Cursor<'a> {
    blocks: Blocks<'a>,
    /// Where the last token that was taken began.
    token: usize,
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// At an offset, in bytes, from the beginning of the structure block.
    pub(super) fn new(blocks: Blocks<'a>, offset: usize) -> Self {
        Self { blocks, token: offset, offset }
    }

    /// Where the last token that was taken began, in bytes from the beginning of
    /// the structure block.
    pub(super) fn token(&self) -> usize {
        self.token
    }

    /// Where it ended, and padding tokens or the next one begin.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Takes the next token; padding tokens are passed over.
    ///
    /// # Errors
    ///
    /// [`FdtError::BadStructure`] if there is none; the cursor stays.
    pub fn advance(&mut self) -> Result<Token<'a>, FdtError> {
        self.step().ok_or(FdtError::BadStructure(self.offset as u32))
    }

    fn step(&mut self) -> Option<Token<'a>> {
        let block = self.blocks.structure;
        let mut at = self.offset;
        while word(block, at)? == NOP {
            at += 4;
        }
        let (token, end) = match word(block, at)? {
            BEGIN_NODE => {
                let name = c_string(block.get(at + 4..)?)?;
                (Token::BeginNode(name), at + 4 + name.len() + 1)
            }
            PROPERTY => {
                let size = word(block, at + 4)? as usize;
                let name = c_string(self.blocks.strings.get(word(block, at + 8)? as usize..)?)?;
                let value = block.get(at + 12..)?.get(..size)?;
                (Token::Property(Property { name, value }), at + 12 + size)
            }
            END_NODE => (Token::EndNode, at + 4),
            END => (Token::End, at + 4),
            _ => return None,
        };
        self.token = at;
        self.offset = end.next_multiple_of(4);
        Some(token)
    }
}

/// The bytes before the first NUL.
fn c_string(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..bytes.iter().position(|&byte| byte == 0)?)
}
