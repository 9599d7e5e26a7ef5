// SPDX-License-Identifier: MIT OR Apache-2.0

//! A buffer that the driver has put into a queue: a chain of descriptors.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::memory::DeviceMemory;
use super::queue::Broken;
use super::vectors::Vectors;

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;

/// A table of descriptors: the queue's own, or one that a descriptor refers to.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// The address of its first descriptor.
    pub address: u64,
    /// How many descriptors it has.
    pub size: u32,
}

/// `struct virtq_desc`, read once.
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn is(&self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

impl Table {
    fn read(self, index: u16, memory: &DeviceMemory) -> Result<Descriptor, Broken> {
        if u32::from(index) >= self.size {
            return Err(Broken("a chain of descriptors leaves its table"));
        }
        let at = self.address.checked_add(u64::from(index) * DESCRIPTOR).ok_or(Broken::OUTSIDE)?;
        let mut bytes = [0; DESCRIPTOR as usize];
        memory.read(at, &mut bytes)?;
        let all = u128::from_le_bytes(bytes);
        Ok(Descriptor {
            address: all as u64,
            length: (all >> 64) as u32,
            flags: (all >> 96) as u16,
            next: (all >> 112) as u16,
        })
    }
}

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
    address: u64,
    length: usize,
}

impl Chain {
    /// Reads the chain that begins at `head` of a queue's table; `longest` is the greatest number of
    /// descriptors that a chain may have.
    pub fn read(
        head: u16,
        mut table: Table,
        longest: u16,
        memory: &DeviceMemory,
    ) -> Result<Chain, Broken> {
        let mut chain = Chain { head, readable: Buffer::default(), writable: Buffer::default() };
        let (mut index, mut indirect) = (head, false);
        for _ in 0..longest {
            let mut descriptor = table.read(index, memory)?;
            if descriptor.is(VRING_DESC_F_INDIRECT) && !indirect {
                // The chain goes on there, and ends there (§2.7.5.3.1).
                indirect = true;
                let size = descriptor.length / DESCRIPTOR as u32;
                if !u64::from(descriptor.length).is_multiple_of(DESCRIPTOR) {
                    return Err(Broken("a table has a part of a descriptor"));
                }
                table = Table { address: descriptor.address, size };
                descriptor = table.read(0, memory)?;
            }
            if descriptor.is(VRING_DESC_F_INDIRECT) {
                return Err(Broken("in a table, a descriptor refers to another table"));
            }
            chain.add(&descriptor, memory)?;
            if !descriptor.is(VRING_DESC_F_NEXT) {
                return Ok(chain);
            }
            index = descriptor.next;
        }
        Err(Broken("a chain has more descriptors than the queue, or no end"))
    }

    /// Adds the memory of one descriptor.
    fn add(&mut self, descriptor: &Descriptor, memory: &DeviceMemory) -> Result<(), Broken> {
        let buffer = if descriptor.is(VRING_DESC_F_WRITE) {
            &mut self.writable
        } else if self.writable.pieces.is_empty() {
            &mut self.readable
        } else {
            return Err(Broken("in a chain, a readable descriptor follows a writable one"));
        };
        let piece = Piece { address: descriptor.address, length: descriptor.length as usize };
        if !memory.contains(piece.address, piece.length) {
            return Err(Broken("a descriptor's buffer is not in the guest's memory"));
        }
        buffer.pieces.push(piece);
        buffer.length += piece.length as u64;
        // §2.7.5.2.
        if self.readable.length + self.writable.length > 1 << 32 {
            return Err(Broken("a chain has more than 4 GiB"));
        }
        Ok(())
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
            memory.read(piece.address, part)?;
            done += piece.length;
        }
        if done == data.len() { Ok(()) } else { Err(Broken::SHORT) }
    }

    /// Copies bytes in, from `offset` on.
    pub fn write(&self, memory: &DeviceMemory, offset: u64, data: &[u8]) -> Result<(), Broken> {
        let mut done = 0;
        for piece in self.range(offset, data.len() as u64) {
            let part = &data[done..done + piece.length];
            memory.write(piece.address, part)?;
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
            for slice in memory.slices(piece.address, piece.length) {
                vectors.push(slice?);
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
            let address = piece.address + skip;
            skip = 0;
            left -= taken;
            (taken > 0).then_some(Piece { address, length: taken as usize })
        })
    }
}
