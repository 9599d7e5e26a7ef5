// SPDX-License-Identifier: MIT OR Apache-2.0

//! The bus: which device answers an access to which address.

use std::sync::{Mutex, PoisonError};

use super::MmioDevice;
use super::layout::Window;
use crate::gunyah::MmioAccess;

/// A machine's emulated devices.
///
/// An access that no device's window holds as a whole reads as zeros, and its
/// writes go nowhere, as on a bus that has nobody at that address.
#[derive(Default)]
pub struct Bus {
    /// Sorted by address.
    devices: Vec<(Window, Mutex<Box<dyn MmioDevice>>)>,
}

impl Bus {
    /// Puts a device on the bus.
    ///
    /// # Panics
    /// If another one is there: the machine's layout is at fault.
    pub fn add(&mut self, window: Window, device: Box<dyn MmioDevice>) {
        let at = self.devices.partition_point(|(other, _)| other.start < window.start);
        let apart = |other: Option<&(Window, _)>| {
            other.is_none_or(|(o, _)| o.end() <= window.start || window.end() <= o.start)
        };
        let before = at.checked_sub(1).and_then(|before| self.devices.get(before));
        assert!(apart(before) && apart(self.devices.get(at)), "two devices at {window:x?}");
        self.devices.insert(at, (window, Mutex::new(device)));
    }

    /// Does what an access asks for; the value of a read.
    pub fn access(&self, access: MmioAccess) -> u64 {
        let (MmioAccess::Read { address, size } | MmioAccess::Write { address, size, .. }) = access;
        let size = size.min(8) as usize;
        let after = self.devices.partition_point(|(window, _)| window.start <= address);
        let device = after.checked_sub(1).and_then(|at| self.devices.get(at));
        let found = device
            .and_then(|(window, device)| Some((window.offset(address, size as u64)?, device)));
        let Some((offset, device)) = found else { return 0 };
        // No lock is ever poisoned, since a panic ends the whole program.
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        match access {
            MmioAccess::Read { .. } => {
                let mut data = [0; 8];
                device.read(offset, &mut data[..size]);
                u64::from_le_bytes(data)
            }
            MmioAccess::Write { value, .. } => {
                device.write(offset, &value.to_le_bytes()[..size]);
                0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    type Written = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

    /// Reads as its number and the offset; remembers what was written.
    struct Fake(u8, Written);

    impl MmioDevice for Fake {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.1.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn bus() -> (Bus, Written) {
        let mut bus = Bus::default();
        let written = Written::default();
        for (number, start) in [(0x40, 0x3000), (0x10, 0x1000), (0x20, 0x1010)] {
            let window = Window { start, size: 0x10 };
            bus.add(window, Box::new(Fake(number, Arc::clone(&written))));
        }
        (bus, written)
    }

    #[test]
    fn an_access_goes_to_the_device_that_holds_all_of_it() {
        let (bus, written) = bus();
        let read = |address, size| bus.access(MmioAccess::Read { address, size });
        assert_eq!(read(0x1000, 4), 0x1010_1010);
        assert_eq!(read(0x1008, 8), 0x1818_1818_1818_1818);
        assert_eq!(read(0x1010, 1), 0x20);
        assert_eq!(read(0x300f, 1), 0x4f);
        for (address, size) in
            [(0x100c, 8), (0xfff, 1), (0x1020, 4), (0x300f, 2), (0, 1), (u64::MAX, 8)]
        {
            assert_eq!(read(address, size), 0, "{address:#x}");
            bus.access(MmioAccess::Write { address, size, value: u64::MAX });
        }
        assert!(written.lock().unwrap().is_empty());
        bus.access(MmioAccess::Write { address: 0x3002, size: 2, value: 0x1234 });
        assert_eq!(*written.lock().unwrap(), [(2, vec![0x34, 0x12])]);
    }

    #[test]
    #[should_panic(expected = "two devices")]
    fn two_devices_at_one_place_are_a_mistake() {
        let (mut bus, written) = bus();
        bus.add(Window { start: 0xfff, size: 2 }, Box::new(Fake(0, written)));
    }
}
