// SPDX-License-Identifier: MIT OR Apache-2.0

//! The real-time clock: a PL031 that tells the host's time. It has no alarm.

use vm_superio::Rtc;
use vm_superio::rtc_pl031::NoEvents;

use super::MmioDevice;

/// Bytes of each register.
const REGISTER: usize = 4;

/// A PL031.
#[derive(Default)]
pub struct Clock(Rtc<NoEvents>);

impl MmioDevice for Clock {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut value = [0; REGISTER];
        if let (Ok(offset), REGISTER) = (u16::try_from(offset), data.len()) {
            self.0.read(offset, &mut value);
            data.copy_from_slice(&value);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), Ok(value)) = (u16::try_from(offset), data.try_into()) {
            self.0.write(offset, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn it_tells_the_time() {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32;
        let mut clock = Clock::default();
        let mut time = [0; 4];
        let before = now();
        clock.read(0, &mut time);
        assert!((before..=now()).contains(&u32::from_le_bytes(time)));
        // A guest may set the clock.
        clock.write(8, &1000_u32.to_le_bytes());
        clock.read(0, &mut time);
        assert!((1000..1010).contains(&u32::from_le_bytes(time)));
    }

    #[test]
    fn it_says_that_it_is_a_pl031() {
        let mut clock = Clock::default();
        let ids = [0xfe0_u64, 0xfe4, 0xfe8, 0xfec].map(|at| {
            let mut id = [0; 4];
            clock.read(at, &mut id);
            id[0]
        });
        assert_eq!(ids[..2], [0x31, 0x10]);
    }

    #[test]
    fn every_access_has_an_answer() {
        let mut clock = Clock::default();
        for offset in 0..0x1000 {
            for size in [1, 2, 4, 8] {
                let mut data = [0; 8];
                clock.read(offset, &mut data[..size]);
                clock.write(offset, &[0xff; 8][..size]);
                if size != REGISTER {
                    assert_eq!(data, [0; 8]);
                }
            }
        }
    }
}
