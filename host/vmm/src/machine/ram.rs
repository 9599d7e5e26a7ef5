// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's RAM, and what is loaded into it.

use std::io::{self, Read};

use anyhow::{Context as _, Result, bail};
use vm_memory::{
    Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

use super::layout::{MIB, RAM};
use crate::gunyah::{Access, Binding, Device, Folios, GuestMemory, PAGE_SIZE, Vm};

/// How a guest has its RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Alone: the host cannot access it.
    Lent,
    /// Together with the host.
    Shared,
}

/// A guest's RAM.
pub struct Ram {
    memory: GuestMemory,
    size: u64,
}

impl Ram {
    /// New RAM, which reads as zeros.
    pub fn new(device: &Device, size: u64, folios: Folios) -> Result<Ram> {
        let memory = device.create_memory(size, folios)?;
        Ok(Ram { memory, size })
    }

    /// The memory that it is.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Makes all its pages now.
    pub fn populate(&self) -> Result<()> {
        Ok(self.memory.populate(0, self.size)?)
    }

    /// Gives it to a VM.
    pub fn bind(&self, vm: &Vm, sharing: Sharing) -> Result<()> {
        let all = Binding { guest: RAM, offset: 0, size: self.size };
        match sharing {
            Sharing::Lent => vm.lend(&self.memory, all, Access::All)?,
            Sharing::Shared => vm.share(&self.memory, all, Access::All)?,
        }
        Ok(())
    }

    /// Maps it for this process, to load something.
    pub fn map(&self) -> Result<Mapped<'_>> {
        Ok(Mapped { memory: &self.memory, mapping: self.map_all()? })
    }

    /// Maps it for devices. What the guest has to itself raises SIGBUS.
    pub fn map_all(&self) -> Result<GuestMemoryMmap> {
        let file = FileOffset::new(self.memory.file()?, 0);
        let region = MmapRegion::from_file(file, usize::try_from(self.size)?)
            .context("mapping the guest's RAM")?;
        let region = GuestRegionMmap::new(region, GuestAddress(RAM))
            .context("a guest's RAM has no such size")?;
        Ok(GuestMemoryMmap::from_regions(vec![region])?)
    }
}

/// RAM that this process accesses.
pub struct Mapped<'a> {
    memory: &'a GuestMemory,
    mapping: GuestMemoryMmap,
}

impl Mapped<'_> {
    /// Copies `source` to guest address `address`, up to its end. The number of
    /// bytes. `progress` hears of each step, in bytes.
    ///
    /// It is an error if there are more than `room` bytes.
    pub fn load(
        &self,
        address: u64,
        room: u64,
        source: &mut dyn Read,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64> {
        let mut buffer = vec![0; 2 * MIB as usize];
        let mut loaded = 0;
        loop {
            let count = fill(source, &mut buffer)?;
            if count == 0 {
                return Ok(loaded);
            }
            let size = count as u64;
            if size > room - loaded {
                bail!("it does not fit its room of {room} bytes");
            }
            let start = address - RAM + loaded;
            let first = start / PAGE_SIZE * PAGE_SIZE;
            let end = (start + size).next_multiple_of(PAGE_SIZE);
            self.memory.populate(first, end - first)?;
            self.mapping.write_slice(&buffer[..count], GuestAddress(RAM + start))?;
            loaded += size;
            progress(loaded);
        }
    }
}

/// Reads until `buffer` is full or `source` is at its end.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte at a time, with interruptions.
    struct Slow(Vec<u8>, bool);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let Some(byte) = self.0.pop() else { return Ok(0) };
            buffer[0] = byte;
            Ok(1)
        }
    }

    #[test]
    fn a_buffer_is_filled_from_a_slow_source() {
        let mut slow = Slow(vec![5, 4, 3, 2, 1], false);
        let mut buffer = [0; 3];
        assert_eq!(fill(&mut slow, &mut buffer).unwrap(), 3);
        assert_eq!(buffer, [1, 2, 3]);
        assert_eq!(fill(&mut slow, &mut buffer).unwrap(), 2);
        assert_eq!(buffer[..2], [4, 5]);
        assert_eq!(fill(&mut slow, &mut buffer).unwrap(), 0);
    }
}
