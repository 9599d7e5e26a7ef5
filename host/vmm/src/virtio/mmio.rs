// SPDX-License-Identifier: MIT OR Apache-2.0

//! The transport: a device's registers in memory (virtio 1.2 §4.2, version 2).
//!
//! The driver's configuration of queues lives here until the driver says that
//! it is ready. The queues that are valid then go to the worker as they are:
//! what is written to their registers afterwards has no effect, except that
//! QueueReady takes a queue away.

use std::io;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::backend::Backend;
use super::memory::DeviceMemory;
use super::queue::{Broken, Virtqueue};
use super::rings::Rings;
use super::status::Status;
use super::worker::{Worker, event};
use crate::machine::{InterruptLine, MmioDevice};

/// Bytes that a device's registers take.
pub const WINDOW: u64 = 0x200;
/// Where a driver writes, 4 bytes, the index of a queue that it has put buffers
/// into.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "ESCR".
const VENDOR: u32 = 0x5243_5345;

/// The features that a driver must take. Without VERSION_1, it is a driver for
/// devices before virtio 1.0. Without ACCESS_PLATFORM, it gives addresses that
/// bypass the rules for what a device may reach.
const NEEDED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_F_ACCESS_PLATFORM;
const OFFERED: u64 = NEEDED | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A queue as the driver sets it up.
struct Setup {
    rings: Rings,
    ready: bool,
}

/// A device as its driver sees it.
pub struct Transport {
    kind: u32,
    features: u64,
    queues: Vec<Setup>,
    memory: DeviceMemory,
    status: Arc<Status>,
    kicks: Arc<[EventFd]>,
    worker: Worker,
    device_features_selected: u32,
    driver_features_selected: u32,
    driver_features: u64,
    queue_selected: u32,
}

impl Transport {
    /// Starts a device's thread; it waits for the driver.
    pub fn new(
        backend: Box<dyn Backend>,
        memory: DeviceMemory,
        line: Arc<dyn InterruptLine>,
    ) -> io::Result<Transport> {
        let identity = backend.identity();
        let queues = identity.queues.iter().map(|&size| {
            let rings = Rings::new(size).ok_or(io::ErrorKind::InvalidInput)?;
            Ok(Setup { rings, ready: false })
        });
        let queues = queues.collect::<io::Result<Vec<_>>>()?;
        let kicks = queues.iter().map(|_| event()).collect::<io::Result<Arc<[EventFd]>>>()?;
        let status = Arc::new(Status::new(identity.name.clone(), identity.config, line));
        let worker = Worker::spawn(&identity.name, backend, kicks.clone(), Arc::clone(&status))?;
        Ok(Transport {
            kind: identity.kind,
            features: identity.features | OFFERED,
            queues,
            memory,
            status,
            kicks,
            worker,
            device_features_selected: 0,
            driver_features_selected: 0,
            driver_features: 0,
            queue_selected: 0,
        })
    }

    /// A descriptor for each queue, by index, that is to be signalled when the
    /// driver writes the index to [`QUEUE_NOTIFY`]. Such a write that comes to
    /// [`MmioDevice::write`] does the same.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    fn read_register(&self, offset: u32) -> u32 {
        let queue = self.queues.get(self.queue_selected as usize);
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.kind,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features, self.device_features_selected),
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.rings.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| queue.ready.into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.status.interrupts(),
            VIRTIO_MMIO_STATUS => self.status.get(),
            // No shared memory region: §4.2.2 has a length of all ones for it.
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.status.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_selected = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_selected = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.set_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_selected = value,
            VIRTIO_MMIO_QUEUE_READY => self.set_ready(value),
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    // An error means that the count is at its maximum: the eventfd
                    // is signalled already.
                    let _ = kick.write(1);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.status.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => self.configure_queue(offset, value),
        }
    }

    /// The queue that is selected, if it may be changed: between the
    /// negotiation of features and the driver's start.
    fn queue_in_setup(&mut self) -> Option<&mut Setup> {
        let status = self.status.get();
        if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 || status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            return None;
        }
        self.queues.get_mut(self.queue_selected as usize)
    }

    fn configure_queue(&mut self, offset: u32, value: u32) {
        let Some(queue) = self.queue_in_setup().filter(|queue| !queue.ready) else { return };
        let rings = &mut queue.rings;
        let low = |place: &mut u64| *place = *place & !u64::from(u32::MAX) | u64::from(value);
        let high = |place: &mut u64| *place = *place & u64::from(u32::MAX) | u64::from(value) << 32;
        match offset {
            VIRTIO_MMIO_QUEUE_NUM if !rings.set_size(value) => {
                self.status.needs_reset(Broken("a queue's size cannot be"));
            }
            VIRTIO_MMIO_QUEUE_DESC_LOW => low(&mut rings.descriptors),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => high(&mut rings.descriptors),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => low(&mut rings.available),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => high(&mut rings.available),
            VIRTIO_MMIO_QUEUE_USED_LOW => low(&mut rings.used),
            VIRTIO_MMIO_QUEUE_USED_HIGH => high(&mut rings.used),
            _ => {}
        }
    }

    fn set_ready(&mut self, value: u32) {
        if value == 0 {
            let index = self.queue_selected as usize;
            let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready) else {
                return;
            };
            queue.ready = false;
            // §4.2.2.1: the device does not access a queue that is not ready.
            self.worker.drop_queue(index);
            return;
        }
        let memory = self.memory.clone();
        let Some(queue) = self.queue_in_setup() else { return };
        queue.ready = queue.rings.are_in(&memory);
        if !queue.ready {
            self.status.needs_reset(Broken("a queue's rings are not in the guest's memory"));
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.status.get() & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let (clear, set) = match self.driver_features_selected {
            0 => (u64::from(u32::MAX), value.into()),
            1 => (u64::from(u32::MAX) << 32, u64::from(value) << 32),
            // No feature beyond bit 63 is offered.
            _ => return,
        };
        self.driver_features = self.driver_features & !clear | set;
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // Only a reset clears bits (§2.1.1), and NEEDS_RESET is set by the device alone.
        let before = self.status.get();
        let mut added = value & !before & 0xff & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let taken = self.driver_features;
        if taken & !self.features != 0 || taken & NEEDED != NEEDED {
            // The driver finds the bit clear and gives up (§3.1.1).
            added &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        let now = before | added;
        let stopped = VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;
        if now & VIRTIO_CONFIG_S_FEATURES_OK == 0 || now & stopped != 0 {
            added &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.status.set(added);
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.start();
        }
    }

    fn start(&mut self) {
        let by_index = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queues = self.queues.iter().map(|queue| {
            let (memory, status) = (self.memory.clone(), Arc::clone(&self.status));
            let rings = queue.ready.then(|| queue.rings.clone());
            rings.map(|rings| Virtqueue::new(rings, by_index, memory, status))
        });
        self.worker.start(self.driver_features, queues.collect());
    }

    fn reset(&mut self) {
        // When this returns, the worker accesses the guest's memory no more.
        self.worker.reset();
        self.status.reset();
        for queue in &mut self.queues {
            // Its greatest size was one before.
            if let Some(rings) = Rings::new(queue.rings.max_size()) {
                *queue = Setup { rings, ready: false };
            }
        }
        self.driver_features = 0;
        self.device_features_selected = 0;
        self.driver_features_selected = 0;
        self.queue_selected = 0;
    }
}

impl MmioDevice for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(place) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            self.status.read_config(place, data);
        } else if let (Ok(data), 0) = (<&mut [u8; 4]>::try_from(data), offset % 4) {
            // §4.2.2.2: registers are read and written by 32 bits, aligned.
            *data = self.read_register(offset as u32).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No device here has configuration that a driver may write.
        if offset < VIRTIO_MMIO_CONFIG.into()
            && let (Ok(data), 0) = (data.try_into(), offset % 4)
        {
            self.write_register(offset as u32, u32::from_le_bytes(data));
        }
    }
}

/// The 32 bits that a selector chooses; 0 where there are none.
fn half(bits: u64, selected: u32) -> u32 {
    match selected {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

    use super::super::driver::*;
    use super::super::entropy::Entropy;
    use super::*;

    const BROKEN: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

    #[test]
    fn a_device_says_what_it_is() {
        let mut driver = Driver::new(Entropy);
        assert_eq!(driver.register(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
        assert_eq!(driver.register(VIRTIO_MMIO_VERSION), 2);
        assert_eq!(driver.register(VIRTIO_MMIO_DEVICE_ID), VIRTIO_ID_RNG);
        assert_eq!(driver.register(VIRTIO_MMIO_VENDOR_ID).to_le_bytes(), *b"ESCR");
        assert_eq!(driver.features(), PLAIN | INDIRECT | EVENTS);
        for selected in [2, u32::MAX] {
            driver.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, selected);
            assert_eq!(driver.register(VIRTIO_MMIO_DEVICE_FEATURES), 0);
        }
        for selected in [1, u32::MAX] {
            driver.set(VIRTIO_MMIO_QUEUE_SEL, selected);
            assert_eq!(driver.register(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        }
        for half in (VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH).step_by(4) {
            assert_eq!(driver.register(half), u32::MAX);
        }
    }

    #[test]
    fn features_are_refused_that_leave_no_sound_device() {
        let mut driver = Driver::new(Entropy);
        for good in [PLAIN, PLAIN | INDIRECT, PLAIN | EVENTS, driver.features()] {
            assert!(driver.negotiate(good));
        }
        for bad in [
            0,
            1 << VIRTIO_F_VERSION_1,
            1 << VIRTIO_F_ACCESS_PLATFORM,
            PLAIN | 1,
            PLAIN | 1 << 34,
            PLAIN | 1 << 63,
            u64::MAX,
        ] {
            assert!(!driver.negotiate(bad), "{bad:#x}");
            // Without the feature, the device does not run.
            driver.run();
            assert_eq!(driver.status() & VIRTIO_CONFIG_S_DRIVER_OK, 0, "{bad:#x}");
        }
        // Features are settled by FEATURES_OK.
        assert!(driver.negotiate(PLAIN));
        driver.set(VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
        driver.add_queue(8);
        driver.run();
        assert_eq!(driver.transfer(0, &[write(BUFFERS, 16)]), 16);
    }

    #[test]
    fn registers_are_accessed_by_32_bits() {
        let mut driver = Driver::new(Entropy);
        for (offset, length) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (3, 4)] {
            let mut data = [0; 8];
            driver.device.read(offset, &mut data[..length]);
            assert_eq!(data, [0; 8]);
        }
        for length in [1, 2, 8] {
            driver.device.write(VIRTIO_MMIO_STATUS.into(), &[1; 8][..length]);
            assert_eq!(driver.status(), 0);
        }
        driver.device.write(u64::from(VIRTIO_MMIO_STATUS) + 1, &[1; 4]);
        assert_eq!(driver.status(), 0);
        // This device has no configuration space.
        for offset in [VIRTIO_MMIO_CONFIG.into(), WINDOW - 8, u64::MAX - 8] {
            let mut data = [0; 8];
            driver.device.read(offset, &mut data);
            driver.device.write(offset, &[0xff; 8]);
            assert_eq!(data, [0; 8]);
        }
    }

    #[test]
    fn status_bits_are_cleared_by_a_reset_alone() {
        let mut driver = Driver::started(Entropy, 8);
        let before = driver.status();
        driver.set(VIRTIO_MMIO_STATUS, 1);
        assert_eq!(driver.status(), before);
        // The device's own bit is not the driver's to set.
        driver.set(VIRTIO_MMIO_STATUS, BROKEN | 0xffff_ff00);
        assert_eq!(driver.status(), before);
        driver.set(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.status(), 0);
        driver.set(VIRTIO_MMIO_QUEUE_SEL, 0);
        assert_eq!(driver.register(VIRTIO_MMIO_QUEUE_READY), 0);
    }

    #[test]
    fn queues_that_cannot_be_are_not_ready() {
        let mut driver = Driver::new(Entropy);
        let end = RAM + RAM_SIZE;
        let (table, available, used) = (RAM, RAM + 0x1000, RAM + 0x2000);
        for (size, table, available, used) in [
            (0, table, available, used),
            (3, table, available, used),
            (128, table, available, used),
            (u16::MAX, table, available, used),
            (64, 0, available, used),
            (64, table, 0, used),
            (64, table, available, 0),
            (64, end - 16, available, used),
            (64, table, end - 128, used),
            (64, table, available, end - 512),
            (64, u64::MAX - 15, available, used),
            (64, table, u64::MAX - 1, used),
            (64, table, available, u64::MAX - 3),
            (64, 1 << 47 | table, available, used),
        ] {
            assert!(driver.negotiate(PLAIN));
            driver.set_up(0, size, table, available, used);
            assert_eq!(driver.status() & BROKEN, BROKEN, "{size} {table:x} {available:x} {used:x}");
            driver.run();
            assert_eq!(driver.status() & VIRTIO_CONFIG_S_DRIVER_OK, 0);
        }
        // A driver that has not started is not interrupted.
        assert_eq!(driver.line.count(), 0);
        // Queues are set up between FEATURES_OK and DRIVER_OK.
        driver.set(VIRTIO_MMIO_STATUS, 0);
        driver.set_up(0, 64, table, available, used);
        assert_eq!(driver.register(VIRTIO_MMIO_QUEUE_READY), 0);
        // The highest addresses that fit.
        assert!(driver.negotiate(PLAIN));
        driver.set_up(0, 64, end - 1024, end - 1024 - 134, end - 2048 - 518 + 2);
        assert_eq!(driver.register(VIRTIO_MMIO_QUEUE_READY), 1);
    }

    #[test]
    fn a_running_queue_does_not_move() {
        let mut driver = Driver::started(Entropy, 8);
        assert_eq!(driver.transfer(0, &[write(BUFFERS, 16)]), 16);
        driver.set_up(0, 4, 0, 0, 0);
        assert_eq!(driver.register(VIRTIO_MMIO_QUEUE_READY), 1);
        assert_eq!(driver.status() & BROKEN, 0);
        for _ in 0..20 {
            assert_eq!(driver.transfer(0, &[write(BUFFERS, 16)]), 16);
        }
    }

    #[test]
    fn a_queue_that_is_taken_away_is_not_touched() {
        let mut driver = Driver::started(Entropy, 8);
        driver.set(VIRTIO_MMIO_QUEUE_SEL, 0);
        driver.set(VIRTIO_MMIO_QUEUE_READY, 0);
        assert_eq!(driver.register(VIRTIO_MMIO_QUEUE_READY), 0);
        driver.add(0, &[write(BUFFERS, 16)]);
        driver.kick(0);
        // Wait, in case the worker still has the queue.
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(driver.used(0), None);
        driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.register(VIRTIO_MMIO_QUEUE_READY), 0);
        driver.set(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.used(0), None);
        assert_eq!(driver.get(BUFFERS, 16), [0; 16]);
    }

    #[test]
    fn after_a_reset_nothing_is_written() {
        let mut driver = Driver::new(Entropy);
        for _ in 0..200 {
            driver.start(PLAIN | EVENTS, 64);
            for _ in 0..32 {
                driver.add(0, &[write(BUFFERS, 60000)]);
            }
            driver.kick(0);
            driver.set(VIRTIO_MMIO_STATUS, 0);
            driver.put(BUFFERS, &[0; 60000]);
            while driver.used(0).is_some() {}
            std::thread::yield_now();
            assert!(driver.get(BUFFERS, 60000).iter().all(|&byte| byte == 0));
            assert_eq!(driver.used(0), None);
            assert_eq!(driver.register(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        }
    }

    #[test]
    fn a_kick_by_register_is_a_kick() {
        let mut driver = Driver::started(Entropy, 8);
        driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
        driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
        driver.add(0, &[write(BUFFERS, 16)]);
        driver.set(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        assert_eq!(driver.wait(|driver| driver.used(0)).1, 16);
    }

    #[test]
    fn buffers_that_are_there_before_the_start_need_no_kick() {
        let mut driver = Driver::new(Entropy);
        assert!(driver.negotiate(PLAIN));
        driver.add_queue(8);
        driver.add(0, &[write(BUFFERS, 16)]);
        driver.run();
        assert_eq!(driver.wait(|driver| driver.used(0)).1, 16);
    }

    #[test]
    fn interrupts_are_raised_and_acknowledged() {
        let mut driver = Driver::started(Entropy, 8);
        assert_eq!(driver.line.count(), 0);
        driver.transfer(0, &[write(BUFFERS, 16)]);
        driver.wait(|driver| (driver.line.count() == 1).then_some(()));
        assert_eq!(driver.register(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
        driver.set(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(driver.register(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
        driver.set(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
        assert_eq!(driver.register(VIRTIO_MMIO_INTERRUPT_STATUS), 0);

        // A fault interrupts, too, with its own reason.
        driver.add(0, &[write(0, 16)]);
        driver.kick(0);
        driver.wait_broken();
        driver.wait(|driver| (driver.line.count() == 2).then_some(()));
        assert_eq!(driver.register(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    }

    #[test]
    fn a_driver_that_wants_no_interrupt_gets_none() {
        // By event index: the next interrupt is for the one buffer that the
        // driver names, and that is far ahead.
        let mut driver = Driver::started(Entropy, 8);
        driver.transfer(0, &[write(BUFFERS, 16)]);
        driver.transfer(0, &[write(BUFFERS, 16)]);
        driver.transfer(0, &[write(BUFFERS, 16)]);
        driver.want_interrupt(0);
        driver.transfer(0, &[write(BUFFERS, 16)]);
        driver.wait(|driver| (driver.line.count() == 2).then_some(()));

        // By flag.
        let mut driver = Driver::new(Entropy);
        driver.start(PLAIN, 8);
        let available = driver.available(0);
        driver.put(available, &[1, 0]);
        driver.transfer(0, &[write(BUFFERS, 16)]);
        driver.transfer(0, &[write(BUFFERS, 16)]);
        driver.put(available, &[0, 0]);
        driver.transfer(0, &[write(BUFFERS, 16)]);
        driver.wait(|driver| (driver.line.count() == 1).then_some(()));
    }
}
