// SPDX-License-Identifier: MIT OR Apache-2.0

//! A virtqueue, and what is wrong with one.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::Chain;
use super::memory::DeviceMemory;
use super::status::Status;

/// Bytes before the elements of the rings: flags and index.
const RING_HEADER: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;
const USED_ELEMENT: u64 = 8;

/// A driver has broken the rules in a way that leaves nothing to go on with:
/// the device stops until it is reset. Says what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

impl Broken {
    /// A place that a driver has given is not in memory.
    pub const OUTSIDE: Broken = Broken("an address is not in the guest's memory");
    /// A buffer has not the bytes that its device needs.
    pub const SHORT: Broken = Broken("a buffer is too short");
}

impl From<virtio_queue::Error> for Broken {
    fn from(error: virtio_queue::Error) -> Broken {
        Broken(match error {
            virtio_queue::Error::InvalidAvailRingIndex => {
                "more buffers are available than the queue has descriptors"
            }
            virtio_queue::Error::InvalidDescriptorIndex => {
                "a descriptor's index is not in its table"
            }
            _ => "a queue's rings are not in the guest's memory",
        })
    }
}

/// A queue that is in use.
pub struct Virtqueue {
    queue: Queue,
    memory: DeviceMemory,
    status: Arc<Status>,
    /// Up to here, the driver has been told of buffers that were used.
    told: u16,
}

impl Virtqueue {
    /// Takes a queue that was found valid.
    pub fn new(queue: Queue, memory: DeviceMemory, status: Arc<Status>) -> Virtqueue {
        Virtqueue { queue, memory, status, told: 0 }
    }

    /// The memory that its buffers are in.
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    /// The next buffer, if there is one.
    ///
    /// After `None`, the driver says when there are more.
    pub fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        loop {
            let longest = self.queue.max_size();
            if let Some(descriptors) = self.queue.iter(&self.memory)?.next() {
                let head = descriptors.head_index();
                return Chain::collect(head, descriptors, longest, &self.memory).map(Some);
            }
            // Tells the driver to say so, and looks again: it may have added
            // one before it was told.
            if !self.queue.enable_notification(&self.memory)? {
                return Ok(None);
            }
        }
    }

    /// Gives a buffer back, with `written` bytes in its writable part.
    pub fn push(&mut self, chain: &Chain, written: u32) -> Result<(), Broken> {
        Ok(self.queue.add_used(&self.memory, chain.head(), written)?)
    }

    /// Gives several buffers back, which the driver sees at once.
    pub fn push_together(&mut self, used: &[(Chain, u32)]) -> Result<(), Broken> {
        let Some(((last, written), others)) = used.split_last() else { return Ok(()) };
        let first = self.queue.next_used();
        for (place, (chain, written)) in (0..).zip(others) {
            let slot = first.wrapping_add(place) % self.queue.size();
            let at = RING_HEADER + u64::from(slot) * USED_ELEMENT;
            // The ring was found to be inside memory.
            let at = GuestAddress(self.queue.used_ring().wrapping_add(at));
            let element = [u32::from(chain.head()).to_le_bytes(), written.to_le_bytes()].concat();
            self.memory.write_slice(&element, at).map_err(|_| Broken::OUTSIDE)?;
        }
        // The driver sees no element before the index is behind it.
        self.queue.set_next_used(first.wrapping_add(others.len() as u16));
        self.push(last, *written)
    }

    /// Interrupts the driver if it wants to know of the buffers that were given
    /// back since the last call.
    pub fn notify(&mut self) -> Result<(), Broken> {
        let now = self.queue.next_used();
        let before = std::mem::replace(&mut self.told, now);
        if before == now {
            return Ok(());
        }
        // What was given back is visible before the driver's wish is read: it
        // looks for buffers after it has written the wish.
        fence(Ordering::SeqCst);
        let wish = if self.queue.event_idx_enabled() {
            RING_HEADER + u64::from(self.queue.size()) * AVAILABLE_ELEMENT
        } else {
            0
        };
        let wish = GuestAddress(self.queue.avail_ring().wrapping_add(wish));
        let wish: u16 = self.memory.load(wish, Ordering::Relaxed).map_err(|_| Broken::OUTSIDE)?;
        let wish = u16::from_le(wish);
        let wanted = if self.queue.event_idx_enabled() {
            // The index that the driver names is among those since the last
            // time (§2.7.7.2; vring_need_event() of Linux).
            now.wrapping_sub(wish).wrapping_sub(1) < now.wrapping_sub(before)
        } else {
            u32::from(wish) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.status.used_buffer();
        }
        Ok(())
    }
}
