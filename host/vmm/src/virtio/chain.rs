// SPDX-License-Identifier: MIT OR Apache-2.0

//! A buffer that the driver has put into a queue: a chain of descriptors.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::memory::DeviceMemory;
use super::queue::Broken;
use super::vectors::Vectors;

/// A chain of descriptors, read and checked once: what the driver writes there
/// afterwards changes nothing.
#[derive(Debug)]
pub struct Chain {
    /// The index of the first descriptor, by which the chain is given back.
    head: u16,
    /// What the device reads.
    pub readable: Buffer,
    /// What the device writes.
    pub writable: Buffer,
}

/// Pieces of guest memory that are one buffer.
#[derive(Debug, Default)]
pub struct Buffer {
    pieces: Vec<Piece>,
    length: u64,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    address: GuestAddress,
    length: usize,
}

impl Chain {
    /// Takes the descriptors of the chain that begins at `head`; `longest` is
    /// the greatest number that a chain may have.
    ///
    /// `descriptors` ends early, without a word, where a chain goes on in a
    /// loop, outside its table or outside memory, or has more than 2^32 bytes:
    /// the last one that it gives says then that another follows.
    pub fn collect(
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
        longest: u16,
        memory: &DeviceMemory,
    ) -> Result<Chain, Broken> {
        let mut chain = Chain { head, readable: Buffer::default(), writable: Buffer::default() };
        let mut complete = false;
        for (number, descriptor) in descriptors.enumerate() {
            if number >= usize::from(longest) {
                return Err(Broken("a chain has more descriptors than the queue"));
            }
            let (buffer, access) = if descriptor.is_write_only() {
                (&mut chain.writable, Permissions::Write)
            } else if chain.writable.pieces.is_empty() {
                (&mut chain.readable, Permissions::Read)
            } else {
                return Err(Broken("in a chain, a readable descriptor follows a writable one"));
            };
            let piece = Piece { address: descriptor.addr(), length: descriptor.len() as usize };
            if !memory.check_range(piece.address, piece.length, access) {
                return Err(Broken("a descriptor's buffer is not in the guest's memory"));
            }
            buffer.pieces.push(piece);
            buffer.length += piece.length as u64;
            complete = !descriptor.has_next();
        }
        if !complete {
            return Err(Broken("a chain of descriptors has no end, or leaves its table"));
        }
        Ok(chain)
    }

    /// The index of the first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }
}

impl Buffer {
    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Copies bytes out, from `offset` on.
    pub fn read(&self, memory: &DeviceMemory, offset: u64, data: &mut [u8]) -> Result<(), Broken> {
        let mut done = 0;
        for piece in self.range(offset, data.len() as u64) {
            let part = &mut data[done..done + piece.length];
            memory.read_slice(part, piece.address).map_err(|_| Broken::OUTSIDE)?;
            done += piece.length;
        }
        if done == data.len() { Ok(()) } else { Err(Broken::SHORT) }
    }

    /// Copies bytes in, from `offset` on.
    pub fn write(&self, memory: &DeviceMemory, offset: u64, data: &[u8]) -> Result<(), Broken> {
        let mut done = 0;
        for piece in self.range(offset, data.len() as u64) {
            let part = &data[done..done + piece.length];
            memory.write_slice(part, piece.address).map_err(|_| Broken::OUTSIDE)?;
            done += piece.length;
        }
        if done == data.len() { Ok(()) } else { Err(Broken::SHORT) }
    }

    /// Adds `length` bytes from `offset` on, or what there is of them, to
    /// `vectors`.
    pub fn add_to<'m>(
        &self,
        vectors: &mut Vectors<'m>,
        memory: &'m DeviceMemory,
        offset: u64,
        length: u64,
    ) -> Result<(), Broken> {
        for piece in self.range(offset, length) {
            // Whether the piece may be read or written was checked with the chain.
            let slices = memory.get_slices(piece.address, piece.length, Permissions::ReadWrite);
            for slice in slices.map_err(|_| Broken::OUTSIDE)? {
                vectors.push(slice.map_err(|_| Broken::OUTSIDE)?);
            }
        }
        Ok(())
    }

    /// The pieces of the bytes in a range.
    fn range(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece> + '_ {
        let (mut skip, mut left) = (offset, length);
        self.pieces.iter().filter_map(move |piece| {
            let size = piece.length as u64;
            if skip >= size {
                skip -= size;
                return None;
            }
            let taken = (size - skip).min(left);
            // This cannot overflow: the piece was checked to be inside memory.
            let address = GuestAddress(piece.address.0 + skip);
            skip = 0;
            left -= taken;
            (taken > 0).then_some(Piece { address, length: taken as usize })
        })
    }
}
