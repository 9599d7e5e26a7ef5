// SPDX-License-Identifier: MIT OR Apache-2.0

//! A small driver, for the tests of devices: it does what a guest does, and
//! what no guest should.

use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::*;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend};

use super::backend::Backend;
use super::memory::{DeviceMemory, Ram};
use super::mmio::Transport;
use crate::machine::{InterruptLine, MmioDevice};

/// Where the guest's memory begins.
pub const RAM: u64 = 0x4000_0000;
/// Its size.
pub const RAM_SIZE: u64 = 16 << 20;
/// Where tests have their buffers; the queues are below.
pub const BUFFERS: u64 = RAM + (1 << 20);
/// Bytes of memory for one queue's rings.
const RINGS: u64 = 0x10000;
/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Both that a driver needs.
pub const PLAIN: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_F_ACCESS_PLATFORM;
/// All that drivers take.
pub const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
pub const EVENTS: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// The bits that a driver sets one after the other before it starts.
const ACKNOWLEDGED: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;

/// Counts interrupts.
#[derive(Default)]
pub struct Line {
    count: Mutex<u64>,
    more: Condvar,
}

impl InterruptLine for Line {
    fn trigger(&self) -> io::Result<()> {
        *self.count.lock().unwrap() += 1;
        self.more.notify_all();
        Ok(())
    }
}

impl Line {
    pub fn count(&self) -> u64 {
        *self.count.lock().unwrap()
    }
}

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

/// What the device reads.
pub fn read(address: u64, length: u32) -> Desc {
    Desc { address, length, flags: 0, next: 0 }
}

/// What the device writes.
pub fn write(address: u64, length: u32) -> Desc {
    Desc { address, length, flags: VRING_DESC_F_WRITE as u16, next: 0 }
}

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// A guest with one device.
pub struct Driver {
    /// The guest's memory, as the guest has it.
    pub ram: Arc<Ram>,
    /// The same memory, as the device has it.
    shared: Arc<Ram>,
    memory: File,
    /// Nothing: accesses to it raise SIGBUS.
    nothing: File,
    /// Set in addresses that the device is given.
    bit: u64,
    pub line: Arc<Line>,
    pub device: Transport,
    queues: Vec<Ring>,
}

struct Ring {
    base: u64,
    size: u16,
    available: u16,
    used: u16,
    next: u16,
}

impl Driver {
    /// A device that its driver has not found yet.
    pub fn new(backend: impl Backend + 'static) -> Driver {
        Driver::with(backend, None)
    }

    /// A device of a guest that sets this bit in the addresses of what it shares.
    pub fn with(backend: impl Backend + 'static, shared_bit: Option<u64>) -> Driver {
        let (memory, nothing) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        memory.set_len(RAM_SIZE).unwrap();
        let map = || {
            let file = FileOffset::new(memory.try_clone().unwrap(), 0);
            let ranges = [(GuestAddress(RAM), RAM_SIZE as usize, Some(file))];
            Arc::new(Ram::from_ranges_with_files(ranges).unwrap())
        };
        let (ram, shared) = (map(), map());
        let line = Arc::new(Line::default());
        let reached = DeviceMemory::new(shared.clone(), shared_bit);
        let device = Transport::new(Box::new(backend), reached, line.clone()).unwrap();
        let (bit, queues) = (shared_bit.unwrap_or(0), Vec::new());
        Driver { ram, shared, memory, nothing, bit, line, device, queues }
    }

    /// Takes pages away from the device, as a guest does that makes them its own again.
    pub fn take_back(&self, address: u64, pages: u64) {
        self.map(&self.nothing, address, pages, 0);
    }

    /// Lets the device have pages again, with what is in them.
    pub fn share(&self, address: u64, pages: u64) {
        self.map(&self.memory, address, pages, address - RAM);
    }

    /// Has pages of the device's be those of a file.
    fn map(&self, file: &File, address: u64, pages: u64, offset: u64) {
        assert!(address.is_multiple_of(PAGE) && address + pages * PAGE <= RAM + RAM_SIZE);
        let place = self.shared.get_host_address(GuestAddress(address)).unwrap();
        let place = std::num::NonZeroUsize::new(place.addr());
        let length = std::num::NonZeroUsize::new((pages * PAGE) as usize).unwrap();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: the place is inside a mapping that no Rust reference is into, and that is
        // unmapped as a whole, whatever is mapped there.
        unsafe { mmap(place, length, access, flags, file, offset as libc::off_t) }.unwrap();
    }

    /// A device that runs, with all features that it offers and queues of
    /// `size` descriptors.
    pub fn started(backend: impl Backend + 'static, size: u16) -> Driver {
        let mut driver = Driver::new(backend);
        let features = driver.features();
        driver.start(features, size);
        driver
    }

    pub fn register(&mut self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&mut self, offset: u32, value: u32) {
        self.device.write(offset.into(), &value.to_le_bytes());
    }

    pub fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.device.read(u64::from(VIRTIO_MMIO_CONFIG) + offset, &mut data);
        data
    }

    /// What the device offers.
    pub fn features(&mut self) -> u64 {
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        let high = self.register(VIRTIO_MMIO_DEVICE_FEATURES);
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        u64::from(high) << 32 | u64::from(self.register(VIRTIO_MMIO_DEVICE_FEATURES))
    }

    pub fn status(&mut self) -> u32 {
        self.register(VIRTIO_MMIO_STATUS)
    }

    /// How often the configuration has changed.
    pub fn generation(&mut self) -> u32 {
        self.register(VIRTIO_MMIO_CONFIG_GENERATION)
    }

    /// Resets the device and negotiates; says whether it agrees.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.set(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.status(), 0);
        self.queues.clear();
        self.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGED);
        for half in [0, 1] {
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGED | VIRTIO_CONFIG_S_FEATURES_OK);
        self.status() & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    /// Sets the next queue up.
    pub fn add_queue(&mut self, size: u16) {
        let index = self.queues.len() as u64;
        let base = RAM + index * RINGS;
        self.ram.write_slice(&[0; RINGS as usize], GuestAddress(base)).unwrap();
        self.queues.push(Ring { base, size, available: 0, used: 0, next: 0 });
        let base = self.bit | base;
        self.set_up(index as u32, size, base, base + RINGS / 2, base + RINGS * 3 / 4);
    }

    /// Writes a queue's registers.
    pub fn set_up(&mut self, index: u32, size: u16, table: u64, available: u64, used: u64) {
        self.set(VIRTIO_MMIO_QUEUE_SEL, index);
        self.set(VIRTIO_MMIO_QUEUE_NUM, size.into());
        for (low, high, value) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, table),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, available),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, used),
        ] {
            self.set(low, value as u32);
            self.set(high, (value >> 32) as u32);
        }
        self.set(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Negotiates, sets all queues up, and starts the device.
    pub fn start(&mut self, features: u64, size: u16) {
        assert!(self.negotiate(features));
        for index in 0.. {
            self.set(VIRTIO_MMIO_QUEUE_SEL, index);
            match self.register(VIRTIO_MMIO_QUEUE_NUM_MAX) {
                0 => break,
                most => self.add_queue(size.min(most as u16)),
            }
            assert_eq!(self.register(VIRTIO_MMIO_QUEUE_READY), 1);
        }
        self.run();
    }

    /// Sets DRIVER_OK.
    pub fn run(&mut self) {
        let status = ACKNOWLEDGED | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        self.set(VIRTIO_MMIO_STATUS, status);
    }

    pub fn put(&self, address: u64, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.ram.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    fn put16(&self, address: u64, value: u16) {
        self.put(address, &value.to_le_bytes());
    }

    /// How many chains of one descriptor a queue can take.
    pub fn free(&self, queue: usize) -> u16 {
        let ring = &self.queues[queue];
        ring.size - ring.available.wrapping_sub(ring.used)
    }

    /// Writes a descriptor into a queue's table, or any other.
    pub fn descriptor(&self, table: u64, index: u16, desc: Desc) {
        let mut bytes = desc.address.to_le_bytes().to_vec();
        bytes.extend(desc.length.to_le_bytes());
        bytes.extend(desc.flags.to_le_bytes());
        bytes.extend(desc.next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// The table of a queue.
    pub fn table(&self, queue: usize) -> u64 {
        self.queues[queue].base
    }

    /// The ring of what was used in a queue.
    pub fn used_ring(&self, queue: usize) -> u64 {
        self.queues[queue].base + RINGS * 3 / 4
    }

    /// The ring of what is available in a queue: flags, index, ring.
    pub fn available(&self, queue: usize) -> u64 {
        self.queues[queue].base + RINGS / 2
    }

    /// Makes the chain that begins at `head` available.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.queues[queue];
        let place = ring.base + RINGS / 2;
        let slot = place + 4 + 2 * u64::from(ring.available % ring.size);
        ring.available = ring.available.wrapping_add(1);
        let available = ring.available;
        self.put16(slot, head);
        self.put16(place + 2, available);
    }

    /// Says how many are available, whatever there is.
    pub fn set_available(&mut self, queue: usize, index: u16) {
        let ring = &mut self.queues[queue];
        ring.available = index;
        let place = ring.base + RINGS / 2 + 2;
        self.put16(place, index);
    }

    /// Puts a chain into a queue and makes it available. Returns its head.
    pub fn add(&mut self, queue: usize, chain: &[Desc]) -> u16 {
        let ring = &mut self.queues[queue];
        let (table, size, head) = (ring.base, ring.size, ring.next);
        ring.next = (head + chain.len() as u16) % size;
        for (place, desc) in (0..).zip(chain) {
            let mut desc = *desc;
            if usize::from(place) + 1 < chain.len() {
                desc.flags |= VRING_DESC_F_NEXT as u16;
                desc.next = (head + place + 1) % size;
            }
            self.descriptor(table, (head + place) % size, desc);
        }
        self.offer(queue, head);
        head
    }

    /// Asks for an interrupt at the next buffer that is used.
    pub fn want_interrupt(&mut self, queue: usize) {
        let ring = &self.queues[queue];
        let place = ring.base + RINGS / 2 + 4 + 2 * u64::from(ring.size);
        self.put16(place, ring.used);
    }

    /// As the machine does when the driver writes QueueNotify.
    pub fn kick(&mut self, queue: usize) {
        self.device.kicks()[queue].write(1).unwrap();
    }

    /// The next buffer that the device gave back, if there is one.
    pub fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let ring = &mut self.queues[queue];
        let place = ring.base + RINGS * 3 / 4;
        let index: u16 =
            self.ram.load(GuestAddress(place + 2), std::sync::atomic::Ordering::Acquire).unwrap();
        if index == ring.used {
            return None;
        }
        let slot = place + 4 + 8 * u64::from(ring.used % ring.size);
        ring.used = ring.used.wrapping_add(1);
        let head: u32 = self.ram.read_obj(GuestAddress(slot)).unwrap();
        let length = self.ram.read_obj(GuestAddress(slot + 4)).unwrap();
        Some((head.try_into().unwrap(), length))
    }

    /// Waits until `found` finds something.
    pub fn wait<T>(&mut self, mut found: impl FnMut(&mut Driver) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(result) = found(self) {
                return result;
            }
            assert!(Instant::now() < end, "the device does not answer");
            // Interrupts cut this short; what raises none is found by time.
            let line = self.line.clone();
            let count = line.count.lock().unwrap();
            drop(line.more.wait_timeout(count, Duration::from_millis(2)).unwrap());
        }
    }

    /// Puts a chain into a queue, and waits until it comes back. Answers what
    /// was written.
    pub fn transfer(&mut self, queue: usize, chain: &[Desc]) -> u32 {
        let head = self.add(queue, chain);
        self.kick(queue);
        let (used, length) = self.wait(|driver| driver.used(queue));
        assert_eq!(used, head);
        length
    }

    /// Waits until the device has stopped for a fault of the driver's.
    pub fn wait_broken(&mut self) {
        self.wait(|driver| (driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0).then_some(()));
    }
}
