// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where a queue's table and rings are in guest memory, and what is in them (virtio 1.2 §2.7).

use super::chain::Table;
use super::memory::DeviceMemory;
use super::queue::Broken;

/// Bytes of a descriptor, and what a table begins on a multiple of.
const DESCRIPTOR: u64 = 16;
/// Where the index is in both rings; flags are before it.
const INDEX: u64 = 2;
/// Bytes before the elements of the rings.
const HEADER: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;
const USED_ELEMENT: u64 = 8;
/// Bytes after the elements of the rings: an index at which the other side is to be told.
const EVENT: u64 = 2;
/// What the rings begin on a multiple of.
const AVAILABLE_ALIGNMENT: u64 = 2;
const USED_ALIGNMENT: u64 = 4;
/// The largest queue (§2.7).
const SIZE_MAX: u16 = 1 << 15;

/// The places of a queue's three parts. Until they are found to be in memory, they are whatever the
/// driver has written.
#[derive(Clone, Debug)]
pub struct Rings {
    max_size: u16,
    size: u16,
    /// The descriptors.
    pub descriptors: u64,
    /// The ring of buffers that the driver makes available.
    pub available: u64,
    /// The ring of buffers that the device has used.
    pub used: u64,
}

impl Rings {
    /// Those of a queue that the driver has not set up, of `max_size` descriptors at the most; `None`
    /// if no queue has so many.
    pub fn new(max_size: u16) -> Option<Rings> {
        let possible = max_size.is_power_of_two() && max_size <= SIZE_MAX;
        let rings = Rings { max_size, size: max_size, descriptors: 0, available: 0, used: 0 };
        possible.then_some(rings)
    }

    /// The most descriptors that it may have.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// How many it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Says how many it has. Whether it can have so many.
    pub fn set_size(&mut self, size: u32) -> bool {
        let size = u16::try_from(size).ok();
        let size = size.filter(|size| size.is_power_of_two() && *size <= self.max_size);
        self.size = size.unwrap_or(self.size);
        size.is_some()
    }

    /// Whether they are where a device can use them.
    pub fn are_in(&self, memory: &DeviceMemory) -> bool {
        let size = u64::from(self.size);
        let available = HEADER + size * AVAILABLE_ELEMENT + EVENT;
        let used = HEADER + size * USED_ELEMENT + EVENT;
        [
            (self.descriptors, size * DESCRIPTOR, DESCRIPTOR),
            (self.available, available, AVAILABLE_ALIGNMENT),
            (self.used, used, USED_ALIGNMENT),
        ]
        .into_iter()
        .all(|(at, length, alignment)| {
            at.is_multiple_of(alignment) && memory.contains(at, length as usize)
        })
    }

    /// The table of descriptors.
    pub fn table(&self) -> Table {
        Table { address: self.descriptors, size: self.size.into() }
    }

    /// What is so many bytes behind the start of a part. The places were found to be in memory; if
    /// not, an access there fails.
    fn at(part: u64, offset: u64) -> u64 {
        part.wrapping_add(offset)
    }

    /// How many buffers the driver has made available since the start.
    pub fn available_index(&self, memory: &DeviceMemory) -> Result<u16, Broken> {
        memory.load(Rings::at(self.available, INDEX))
    }

    /// The head of buffer `index` of those that the driver has made available.
    pub fn available(&self, memory: &DeviceMemory, index: u16) -> Result<u16, Broken> {
        let slot = u64::from(index % self.size);
        memory.load(Rings::at(self.available, HEADER + slot * AVAILABLE_ELEMENT))
    }

    /// The driver's flags.
    pub fn available_flags(&self, memory: &DeviceMemory) -> Result<u16, Broken> {
        memory.load(self.available)
    }

    /// The buffer that the driver wants to hear of when it is used.
    pub fn used_event(&self, memory: &DeviceMemory) -> Result<u16, Broken> {
        let elements = u64::from(self.size) * AVAILABLE_ELEMENT;
        memory.load(Rings::at(self.available, HEADER + elements))
    }

    /// Says what buffer `index` of those that were used is.
    pub fn set_used(
        &self,
        memory: &DeviceMemory,
        index: u16,
        head: u16,
        written: u32,
    ) -> Result<(), Broken> {
        let slot = u64::from(index % self.size);
        let element = u64::from(head) | u64::from(written) << 32;
        memory.write(Rings::at(self.used, HEADER + slot * USED_ELEMENT), &element.to_le_bytes())
    }

    /// Says how many buffers were used since the start.
    pub fn set_used_index(&self, memory: &DeviceMemory, index: u16) -> Result<(), Broken> {
        memory.store(Rings::at(self.used, INDEX), index)
    }

    /// Sets the device's flags.
    pub fn set_used_flags(&self, memory: &DeviceMemory, flags: u16) -> Result<(), Broken> {
        memory.store(self.used, flags)
    }

    /// Says which buffer the device wants to hear of when it is available.
    pub fn set_available_event(&self, memory: &DeviceMemory, index: u16) -> Result<(), Broken> {
        let elements = u64::from(self.size) * USED_ELEMENT;
        memory.store(Rings::at(self.used, HEADER + elements), index)
    }
}
