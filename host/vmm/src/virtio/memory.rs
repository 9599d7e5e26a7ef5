// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which memory devices reach, and by which addresses.

use std::sync::Arc;

use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    Permissions,
};

/// The guest's RAM, as this program has it mapped.
pub type Ram = GuestMemoryMmap<()>;

/// The guest's memory as devices see it.
///
/// Each access of a device to guest memory goes through this type: it is the
/// place that decides what a device may reach.
#[derive(Clone)]
pub struct DeviceMemory {
    ram: Arc<Ram>,
    alias: Option<u64>,
}

impl DeviceMemory {
    /// Devices reach all of `ram`.
    ///
    /// A guest on protected memory gives devices addresses in its shared
    /// alias: those with the bit `alias` set. The bit is no part of the place
    /// in RAM, and an address without it is not the devices'.
    pub fn new(ram: Arc<Ram>, alias: Option<u64>) -> DeviceMemory {
        DeviceMemory { ram, alias }
    }

    /// The place in RAM of an address that a driver has given.
    fn place(&self, address: GuestAddress) -> Option<GuestAddress> {
        match self.alias {
            None => Some(address),
            Some(alias) if address.raw_value() & alias == alias => {
                Some(GuestAddress(address.raw_value() & !alias))
            }
            Some(_) => None,
        }
    }
}

impl GuestMemory for DeviceMemory {
    type PhysicalMemory = Ram;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, _: Permissions) -> bool {
        self.place(address)
            .is_some_and(|place| GuestMemoryBackend::check_range(&*self.ram, place, count))
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        _: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        let place = self.place(address).ok_or(GuestMemoryError::InvalidGuestAddress(address))?;
        Ok(GuestMemoryBackend::get_slices(&*self.ram, place, count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, VolatileSlice};

    const BASE: u64 = 0x4000_0000;
    const ALIAS: u64 = 1 << 47;

    fn memory(alias: Option<u64>) -> DeviceMemory {
        let ram = Ram::from_ranges(&[(GuestAddress(BASE), 0x2000)]).unwrap();
        DeviceMemory::new(Arc::new(ram), alias)
    }

    #[test]
    fn an_address_in_the_alias_is_the_place_without_its_bit() {
        let memory = memory(Some(ALIAS));
        memory.write_obj(0x1234_5678u32, GuestAddress(ALIAS | (BASE + 0x1ffc))).unwrap();
        assert_eq!(memory.ram.read_obj::<u32>(GuestAddress(BASE + 0x1ffc)).unwrap(), 0x1234_5678);
        assert!(memory.check_range(GuestAddress(ALIAS | BASE), 0x2000, Permissions::Write));
        assert!(!memory.check_range(GuestAddress(ALIAS | BASE), 0x2001, Permissions::Write));
    }

    #[test]
    fn with_an_alias_an_address_outside_it_is_not_the_devices() {
        let memory = memory(Some(ALIAS));
        assert!(memory.write_obj(1u32, GuestAddress(BASE)).is_err());
        assert!(memory.read_obj::<u32>(GuestAddress(BASE)).is_err());
        assert!(!memory.check_range(GuestAddress(BASE), 4, Permissions::Read));
        assert!(memory.get_slices(GuestAddress(BASE), 4, Permissions::Read).is_err());
    }

    #[test]
    fn without_an_alias_all_bits_count() {
        let memory = memory(None);
        assert!(memory.read_obj::<u32>(GuestAddress(BASE)).is_ok());
        assert!(memory.read_obj::<u32>(GuestAddress(ALIAS | BASE)).is_err());
        assert!(!memory.check_range(GuestAddress(u64::MAX), 2, Permissions::Read));
    }
}
