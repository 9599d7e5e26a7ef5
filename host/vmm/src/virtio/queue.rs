// SPDX-License-Identifier: MIT OR Apache-2.0

//! A virtqueue, and what is wrong with one.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;

use super::chain::Chain;
use super::memory::DeviceMemory;
use super::rings::Rings;
use super::status::Status;

/// A driver has broken the rules in a way that leaves nothing to go on with:
/// the device stops until it is reset. Says what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

impl Broken {
    /// A place that a driver has given is not in memory.
    pub const OUTSIDE: Broken = Broken("an address is not in the guest's memory");
    /// A page that the guest has given to its device is not there: the guest has taken it back.
    pub const GONE: Broken =
        Broken("memory that the guest has given to the device is not there any more");
    /// A buffer has not the bytes that its device needs.
    pub const SHORT: Broken = Broken("a buffer is too short");
}

/// A queue that is in use.
pub struct Virtqueue {
    rings: Rings,
    /// The device tells, and is told, up to which index to be silent (VIRTIO_F_EVENT_IDX).
    by_index: bool,
    memory: DeviceMemory,
    status: Arc<Status>,
    /// The next buffer to take is this one of the driver's.
    taken: u16,
    /// So many were given back.
    used: u16,
    /// Up to here, the driver has been told of buffers that were used.
    told: u16,
}

impl Virtqueue {
    /// Takes a queue whose rings were found to be in memory.
    pub fn new(
        rings: Rings,
        by_index: bool,
        memory: DeviceMemory,
        status: Arc<Status>,
    ) -> Virtqueue {
        Virtqueue { rings, by_index, memory, status, taken: 0, used: 0, told: 0 }
    }

    /// The memory that its buffers are in.
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    /// The next buffer, if there is one.
    ///
    /// After `None`, the driver says when there are more.
    pub fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        if !self.is_more()? {
            // Ask the driver for notifications, and look again: it may have added a
            // buffer before it saw that.
            match self.by_index {
                true => self.rings.set_available_event(&self.memory, self.taken)?,
                false => self.rings.set_used_flags(&self.memory, 0)?,
            }
            fence(Ordering::SeqCst);
            if !self.is_more()? {
                return Ok(None);
            }
        }
        let head = self.rings.available(&self.memory, self.taken)?;
        self.taken = self.taken.wrapping_add(1);
        let chain = Chain::read(head, self.rings.table(), self.rings.max_size(), &self.memory)?;
        Ok(Some(chain))
    }

    /// Whether the driver has made buffers available that were not taken.
    fn is_more(&self) -> Result<bool, Broken> {
        let waiting = self.rings.available_index(&self.memory)?.wrapping_sub(self.taken);
        if waiting > self.rings.size() {
            return Err(Broken("more buffers are available than the queue has descriptors"));
        }
        Ok(waiting > 0)
    }

    /// Gives a buffer back, with `written` bytes in its writable part.
    pub fn push(&mut self, chain: &Chain, written: u32) -> Result<(), Broken> {
        self.give_back([(chain, written)].into_iter())
    }

    /// Gives several buffers back, which the driver sees at once.
    pub fn push_together(&mut self, used: &[(Chain, u32)]) -> Result<(), Broken> {
        self.give_back(used.iter().map(|(chain, written)| (chain, *written)))
    }

    fn give_back<'a>(
        &mut self,
        used: impl Iterator<Item = (&'a Chain, u32)>,
    ) -> Result<(), Broken> {
        let mut index = self.used;
        for (chain, written) in used {
            self.rings.set_used(&self.memory, index, chain.head(), written)?;
            index = index.wrapping_add(1);
        }
        // The driver reads an element only when the index is beyond it: the index comes last.
        self.rings.set_used_index(&self.memory, index)?;
        self.used = index;
        Ok(())
    }

    /// Interrupts the driver if it wants to know of the buffers that were given
    /// back since the last call.
    pub fn notify(&mut self) -> Result<(), Broken> {
        let now = self.used;
        let before = std::mem::replace(&mut self.told, now);
        if before == now {
            return Ok(());
        }
        // The used index must be visible before the driver's wish is read. The driver writes
        // its wish first, and reads the index then.
        fence(Ordering::SeqCst);
        let wanted = if self.by_index {
            let wish = self.rings.used_event(&self.memory)?;
            // The index that the driver names is among those since the last
            // time (§2.7.7.2; vring_need_event() of Linux).
            now.wrapping_sub(wish).wrapping_sub(1) < now.wrapping_sub(before)
        } else {
            let flags = self.rings.available_flags(&self.memory)?;
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.status.used_buffer();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_ring::{
        VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    };

    use super::super::driver::*;
    use super::super::entropy::Entropy;

    const SIZE: u16 = 8;
    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
    const TABLE: u64 = BUFFERS + 0x8000;

    /// Puts descriptors into the queue's table and one that others may refer
    /// to, offers the first, and says whether the device gives it back.
    fn accepted(direct: &[Desc], indirect: &[Desc]) -> bool {
        let mut driver = Driver::started(Entropy, SIZE);
        let tables = [(driver.table(0), direct), (TABLE, indirect)];
        for (table, chain) in tables {
            for (index, desc) in (0..).zip(chain) {
                driver.descriptor(table, index, *desc);
            }
        }
        driver.offer(0, 0);
        driver.kick(0);
        driver.wait(|driver| {
            if driver.used(0).is_some() {
                return Some(true);
            }
            (driver.status() & 64 != 0).then_some(false)
        })
    }

    fn desc(flags: u16, next: u16) -> Desc {
        Desc { address: BUFFERS, length: 16, flags, next }
    }

    fn table(length: u32, flags: u16) -> Desc {
        Desc { address: TABLE, length, flags: INDIRECT | flags, next: 0 }
    }

    #[test]
    fn a_chain_ends_in_its_table() {
        assert!(accepted(&[desc(NEXT | WRITE, 1), desc(WRITE, 0)], &[]));
        for (what, chain) in [
            ("itself", vec![desc(NEXT | WRITE, 0)]),
            ("a loop", vec![desc(NEXT | WRITE, 1), desc(NEXT | WRITE, 0)]),
            ("outside the table", vec![desc(NEXT | WRITE, SIZE)]),
            ("far outside", vec![desc(NEXT | WRITE, u16::MAX)]),
            ("readable last", vec![desc(NEXT | WRITE, 1), desc(0, 0)]),
        ] {
            assert!(!accepted(&chain, &[]), "{what}");
        }
    }

    #[test]
    fn a_chain_in_another_table_ends_there() {
        let one = [desc(WRITE, 0)];
        let two = [desc(NEXT | WRITE, 1), desc(WRITE, 0)];
        assert!(accepted(&[table(16, 0)], &one));
        assert!(accepted(&[table(32, 0)], &two));
        // Some descriptors here, the rest there.
        assert!(accepted(&[desc(NEXT | WRITE, 1), table(32, 0)], &two));
        for (what, first, chain) in [
            ("outside its table", table(16, 0), &two[..]),
            ("a loop", table(32, 0), &[desc(NEXT | WRITE, 1), desc(NEXT | WRITE, 0)]),
            ("an empty table", table(0, 0), &one),
            ("half a descriptor", table(24, 0), &one),
            ("a table in a table", table(32, 0), &[table(16, 0)]),
            ("a table as large as can be", table(u32::MAX, 0), &one),
            ("a table outside memory", Desc { address: RAM - 16, ..table(16, 0) }, &one),
            ("a table at the end", Desc { address: u64::MAX - 15, ..table(16, 0) }, &one),
        ] {
            assert!(!accepted(&[first], chain), "{what}");
        }
    }

    #[test]
    fn a_chain_is_no_longer_than_the_queue_may_be() {
        // Entropy's queue has 64 descriptors.
        let chain = |length: u16| {
            let last = length - 1;
            (0..length)
                .map(|at| if at < last { desc(NEXT | WRITE, at + 1) } else { desc(WRITE, 0) })
                .collect::<Vec<_>>()
        };
        assert!(accepted(&[table(64 * 16, 0)], &chain(64)));
        assert!(!accepted(&[table(65 * 16, 0)], &chain(65)));
    }

    #[test]
    fn a_buffer_is_in_memory_with_all_its_bytes() {
        let end = RAM + RAM_SIZE;
        for (address, length) in
            [(RAM, u32::MAX), (end - 15, 16), (RAM - 1, 16), (u64::MAX - 7, 16), (0, 1)]
        {
            let mut driver = Driver::started(Entropy, SIZE);
            driver.add(0, &[write(address, length)]);
            driver.kick(0);
            driver.wait_broken();
        }
        let mut driver = Driver::started(Entropy, SIZE);
        assert_eq!(driver.transfer(0, &[write(end - 16, 16)]), 16);
    }

    #[test]
    fn more_available_than_there_are_is_broken() {
        let mut driver = Driver::started(Entropy, SIZE);
        driver.set_available(0, SIZE + 1);
        driver.kick(0);
        driver.wait_broken();
        // And so is an index that goes back.
        let mut driver = Driver::started(Entropy, SIZE);
        driver.transfer(0, &[write(BUFFERS, 16)]);
        driver.set_available(0, 0);
        driver.kick(0);
        driver.wait_broken();
    }

    #[test]
    fn a_head_outside_the_table_is_broken() {
        for head in [SIZE, u16::MAX] {
            let mut driver = Driver::started(Entropy, SIZE);
            driver.offer(0, head);
            driver.kick(0);
            driver.wait_broken();
            assert_eq!(driver.used(0), None);
        }
    }

    #[test]
    fn rings_that_the_guest_takes_back_stop_the_device_until_it_is_reset() {
        let part = |driver: &Driver, number: usize| {
            [driver.table(0), driver.available(0), driver.used_ring(0)][number]
        };
        for number in 0..3 {
            let mut driver = Driver::started(Entropy, SIZE);
            assert_eq!(driver.transfer(0, &[write(BUFFERS, 16)]), 16);
            let page = part(&driver, number);
            driver.take_back(page, 1);
            driver.add(0, &[write(BUFFERS, 16)]);
            driver.kick(0);
            driver.wait_broken();
            assert_eq!(driver.used(0), None);
            // They cannot be used for a start either.
            driver.start(PLAIN | EVENTS, SIZE);
            driver.add(0, &[write(BUFFERS, 16)]);
            driver.kick(0);
            driver.wait_broken();
            driver.share(page, 1);
            driver.start(PLAIN | EVENTS, SIZE);
            assert_eq!(driver.transfer(0, &[write(BUFFERS, 16)]), 16);
        }
    }

    #[test]
    fn buffers_and_tables_that_the_guest_takes_back_are_no_memory_of_the_device_s() {
        let mut driver = Driver::started(Entropy, SIZE);
        let page = BUFFERS + 0x3000;
        driver.descriptor(TABLE, 0, desc(WRITE, 0));
        for chain in [[write(page, 64)], [table(16, 0)]] {
            driver.take_back(page, 1);
            driver.take_back(TABLE, 1);
            driver.add(0, &chain);
            driver.kick(0);
            driver.wait_broken();
            driver.share(page, 1);
            driver.share(TABLE, 1);
            driver.start(PLAIN | super::super::driver::INDIRECT | EVENTS, SIZE);
            assert_ne!(driver.transfer(0, &chain), 0);
        }
        // What was written before the page that is gone does not count.
        driver.take_back(page, 1);
        driver.add(0, &[write(page - 64, 128)]);
        driver.kick(0);
        driver.wait_broken();
        assert_eq!(driver.used(0), None);
    }

    #[test]
    fn a_protected_guest_gives_addresses_in_the_shared_half() {
        const BIT: u64 = 1 << 38;
        let mut driver = Driver::with(Entropy, Some(BIT));
        driver.start(PLAIN, SIZE);
        assert_eq!(driver.transfer(0, &[write(BIT | BUFFERS, 32)]), 32);
        assert_ne!(driver.get(BUFFERS, 32), [0; 32]);
        assert_eq!(driver.get(BUFFERS + 32, 32), [0; 32]);
        driver.descriptor(TABLE, 0, Desc { address: BIT | BUFFERS, ..desc(WRITE, 0) });
        let table = |address| Desc { address, ..table(16, 0) };
        driver.start(PLAIN | super::super::driver::INDIRECT, SIZE);
        assert_eq!(driver.transfer(0, &[table(BIT | TABLE)]), 16);

        // One that is its own is not the device's, though the host may have the page by chance.
        for chain in [[write(BUFFERS, 32)], [table(TABLE)]] {
            driver.add(0, &chain);
            driver.kick(0);
            driver.wait_broken();
            assert_eq!(driver.used(0), None);
            driver.start(PLAIN | super::super::driver::INDIRECT, SIZE);
        }
        for wrong in 0..3 {
            assert!(driver.negotiate(PLAIN));
            let mut places = [RAM, RAM + 0x1000, RAM + 0x2000].map(|place| BIT | place);
            places[wrong] &= !BIT;
            let [table, available, used] = places;
            driver.set_up(0, SIZE, table, available, used);
            driver.wait_broken();
        }
    }

    #[test]
    fn indices_wrap() {
        let mut driver = Driver::started(Entropy, 2);
        for _ in 0..(1 << 16) + 10 {
            driver.add(0, &[write(BUFFERS, 1)]);
            driver.kick(0);
            while driver.used(0).is_none() {
                std::thread::yield_now();
            }
        }
        assert_eq!(driver.transfer(0, &[write(BUFFERS, 1)]), 1);
    }
}
