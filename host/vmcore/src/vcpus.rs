// SPDX-License-Identifier: MIT OR Apache-2.0

//! The vCPUs of a VM, by their numbers.

use crate::Errno;
use crate::args::VCPUS_MAX;

/// One number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Slot {
    /// Never used.
    #[default]
    Free,
    /// Escrow's vCPU is there and the program has taken the function away.
    Removed { handle: u64 },
    /// A function of the VM.
    Present { handle: u64 },
}

/// Which numbers are vCPUs.
#[derive(Debug, Default)]
pub struct Vcpus {
    slots: [Slot; VCPUS_MAX as usize],
}

impl Vcpus {
    /// Adds a vCPU. `create` makes Escrow's half, unless the number has been
    /// in use before: Escrow's vCPUs live as long as their VM. → its handle
    ///
    /// # Errors
    /// `Exists` if the number is taken, `Invalid` if it is none, and those of
    /// `create`.
    pub fn add(
        &mut self,
        id: u32,
        create: impl FnOnce() -> Result<u64, Errno>,
    ) -> Result<u64, Errno> {
        let slot = self.slots.get_mut(id as usize).ok_or(Errno::Invalid)?;
        let handle = match *slot {
            Slot::Present { .. } => return Err(Errno::Exists),
            Slot::Removed { handle } => handle,
            Slot::Free => create()?,
        };
        *slot = Slot::Present { handle };
        Ok(handle)
    }

    /// Takes a vCPU away.
    ///
    /// # Errors
    /// `NotFound`
    pub fn remove(&mut self, id: u32) -> Result<(), Errno> {
        match self.slots.get_mut(id as usize) {
            Some(slot @ &mut Slot::Present { handle }) => {
                *slot = Slot::Removed { handle };
                Ok(())
            }
            _ => Err(Errno::NotFound),
        }
    }

    /// Whether the number is a vCPU.
    pub fn contains(&self, id: u32) -> bool {
        matches!(self.slots.get(id as usize), Some(Slot::Present { .. }))
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Present { .. })).count() as u32
    }

    /// One more than the highest number that Escrow has a vCPU with.
    pub fn end(&self) -> u32 {
        let last = self.slots.iter().rposition(|slot| *slot != Slot::Free);
        last.map_or(0, |last| last as u32 + 1)
    }

    /// The handle of the one that starts first: the one with the lowest
    /// number.
    pub fn boot(&self) -> Option<u64> {
        self.slots.iter().find_map(|slot| match slot {
            Slot::Present { handle } => Some(*handle),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_and_go() {
        let mut vcpus = Vcpus::default();
        assert_eq!((vcpus.boot(), vcpus.end()), (None, 0));
        assert_eq!(vcpus.add(3, || Ok(33)), Ok(33));
        assert_eq!(vcpus.add(3, || Ok(34)), Err(Errno::Exists));
        assert_eq!(vcpus.add(1, || Err(Errno::NoMemory)), Err(Errno::NoMemory));
        assert_eq!((vcpus.count(), vcpus.boot(), vcpus.end()), (1, Some(33), 4));
        assert_eq!(vcpus.add(1, || Ok(11)), Ok(11));
        assert_eq!((vcpus.count(), vcpus.boot()), (2, Some(11)));
        assert_eq!(vcpus.remove(1), Ok(()));
        assert_eq!(vcpus.remove(1), Err(Errno::NotFound));
        assert!(!vcpus.contains(1) && vcpus.contains(3));
        assert_eq!(vcpus.add(1, || panic!("made twice")), Ok(11));
        assert_eq!(vcpus.add(32, || Ok(1)), Err(Errno::Invalid));
        assert_eq!(vcpus.remove(32), Err(Errno::NotFound));
        assert_eq!((vcpus.remove(3), vcpus.end()), (Ok(()), 4), "Escrow has it still");
    }
}
