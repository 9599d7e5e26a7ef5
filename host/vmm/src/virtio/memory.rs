// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which memory devices reach, and by which addresses.

use std::sync::Arc;

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, VolatileSlice,
};

use super::guarded::{self, Gone};
use super::queue::Broken;

/// The guest's RAM, as this program has it mapped.
pub type Ram = GuestMemoryMmap<()>;

/// The guest's memory as devices see it.
///
/// Each access of a device to guest memory goes through this type: it is the place that decides what
/// a device may reach. A page may go away at any time, also in the middle of an access: the guest
/// takes it back, or it breaks. That is an error of the access ([`Broken::GONE`]), and what was
/// copied before the page was copied.
#[derive(Clone)]
pub struct DeviceMemory {
    ram: Arc<Ram>,
    shared_bit: Option<u64>,
}

impl From<Gone> for Broken {
    fn from(Gone: Gone) -> Broken {
        Broken::GONE
    }
}

impl DeviceMemory {
    /// Devices reach all of `ram`.
    ///
    /// The guest of a protected VM gives devices addresses in the shared half of its addresses: those
    /// with the bit `shared_bit` set. The bit is no part of the place in RAM, and an address without
    /// it is not the devices'.
    pub fn new(ram: Arc<Ram>, shared_bit: Option<u64>) -> DeviceMemory {
        DeviceMemory { ram, shared_bit }
    }

    /// The place in RAM of an address that a driver has given.
    fn place(&self, address: u64) -> Option<GuestAddress> {
        match self.shared_bit {
            None => Some(GuestAddress(address)),
            Some(bit) if address & bit == bit => Some(GuestAddress(address & !bit)),
            Some(_) => None,
        }
    }

    /// Whether all bytes of a range are the devices'. They may be gone all the same.
    pub fn contains(&self, address: u64, length: usize) -> bool {
        self.place(address).is_some_and(|place| self.ram.check_range(place, length))
    }

    /// The pieces of this program's memory that a range is. They are for the kernel to access: it
    /// says EFAULT where a load or store would be a signal.
    pub fn slices(
        &self,
        address: u64,
        length: usize,
    ) -> impl Iterator<Item = Result<VolatileSlice<'_>, Broken>> {
        let place = self.place(address);
        let slices = place.map(|place| self.ram.get_slices(place, length));
        let outside = place.is_none().then_some(Err(Broken::OUTSIDE));
        let slices = slices.into_iter().flatten();
        let slices = slices.map(|slice| slice.map_err(|_: GuestMemoryError| Broken::OUTSIDE));
        slices.chain(outside)
    }

    /// Copies bytes out.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Broken> {
        let mut rest = data;
        for slice in self.slices(address, rest.len()) {
            let slice = slice?;
            let (part, others) = rest.split_at_mut_checked(slice.len()).ok_or(Broken::OUTSIDE)?;
            guarded::read(&slice, part)?;
            rest = others;
        }
        if rest.is_empty() { Ok(()) } else { Err(Broken::OUTSIDE) }
    }

    /// Copies bytes in.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Broken> {
        let mut rest = data;
        for slice in self.slices(address, rest.len()) {
            let slice = slice?;
            let (part, others) = rest.split_at_checked(slice.len()).ok_or(Broken::OUTSIDE)?;
            guarded::write(&slice, part)?;
            rest = others;
        }
        if rest.is_empty() { Ok(()) } else { Err(Broken::OUTSIDE) }
    }

    /// Loads an index or flags, with what the guest wrote before them.
    pub fn load(&self, address: u64) -> Result<u16, Broken> {
        Ok(u16::from_le(guarded::load(&self.word(address)?)?))
    }

    /// Stores an index or flags, after what was written before.
    pub fn store(&self, address: u64, value: u16) -> Result<(), Broken> {
        Ok(guarded::store(&self.word(address)?, value.to_le())?)
    }

    /// Two bytes that are accessed at once.
    fn word(&self, address: u64) -> Result<VolatileSlice<'_>, Broken> {
        let whole = |slice: &VolatileSlice| slice.len() == 2 && address.is_multiple_of(2);
        let slice = self.slices(address, 2).next().ok_or(Broken::OUTSIDE)??;
        Some(slice).filter(whole).ok_or(Broken::OUTSIDE)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const BASE: u64 = 0x4000_0000;
    const BIT: u64 = 1 << 38;

    fn memory(shared_bit: Option<u64>) -> DeviceMemory {
        let ram = Ram::from_ranges(&[(GuestAddress(BASE), 0x2000)]).unwrap();
        DeviceMemory::new(Arc::new(ram), shared_bit)
    }

    #[test]
    fn an_address_in_the_shared_half_is_the_place_without_its_bit() {
        let memory = memory(Some(BIT));
        memory.write(BIT | (BASE + 0x1ffc), &0x1234_5678u32.to_le_bytes()).unwrap();
        assert_eq!(memory.ram.read_obj::<u32>(GuestAddress(BASE + 0x1ffc)).unwrap(), 0x1234_5678);
        assert_eq!(memory.load(BIT | (BASE + 0x1ffc)), Ok(0x5678));
        assert!(memory.contains(BIT | BASE, 0x2000));
        assert!(!memory.contains(BIT | BASE, 0x2001));
        // Other bits are no part of the shared half.
        for bit in [BIT << 1, BIT >> 1, 1 << 63] {
            assert!(!memory.contains(bit | BIT | BASE, 1));
        }
    }

    #[test]
    fn in_a_protected_vm_an_address_without_the_bit_is_not_the_devices() {
        let memory = memory(Some(BIT));
        assert_eq!(memory.write(BASE, &[1; 4]), Err(Broken::OUTSIDE));
        assert_eq!(memory.read(BASE, &mut [0; 4]), Err(Broken::OUTSIDE));
        assert_eq!(memory.load(BASE), Err(Broken::OUTSIDE));
        assert_eq!(memory.store(BASE, 1), Err(Broken::OUTSIDE));
        assert!(!memory.contains(BASE, 4));
        assert!(memory.slices(BASE, 4).all(|slice| slice.is_err()));
        assert_eq!(memory.slices(BASE, 4).count(), 1);
    }

    #[test]
    fn otherwise_all_bits_count() {
        let memory = memory(None);
        assert_eq!(memory.read(BASE, &mut [0; 4]), Ok(()));
        assert_eq!(memory.read(BIT | BASE, &mut [0; 4]), Err(Broken::OUTSIDE));
        assert!(!memory.contains(u64::MAX, 2));
    }

    #[test]
    fn what_is_not_in_memory_as_a_whole_is_outside() {
        let memory = memory(None);
        let end = BASE + 0x2000;
        assert_eq!(memory.read(end - 4, &mut [0; 8]), Err(Broken::OUTSIDE));
        assert_eq!(memory.write(BASE - 4, &[0; 8]), Err(Broken::OUTSIDE));
        assert_eq!(memory.load(end), Err(Broken::OUTSIDE));
        // An index is never in two pieces.
        assert_eq!(memory.load(end - 1), Err(Broken::OUTSIDE));
        assert_eq!(memory.store(BASE + 1, 0), Err(Broken::OUTSIDE));
    }
}
