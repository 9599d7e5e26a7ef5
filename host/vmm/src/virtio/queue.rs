// SPDX-License-Identifier: MIT OR Apache-2.0

//! A virtqueue, and what is wrong with one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::Chain;
use super::memory::DeviceMemory;
use super::status::Status;

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
    /// A buffer was given back since the driver was told.
    used: bool,
}

impl Virtqueue {
    /// Takes a queue that was found valid.
    pub fn new(queue: Queue, memory: DeviceMemory, status: Arc<Status>) -> Virtqueue {
        Virtqueue { queue, memory, status, used: false }
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

    /// Puts the buffer that was taken last back, as if it had not been.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a buffer back, with `written` bytes in its writable part.
    pub fn push(&mut self, chain: &Chain, written: u32) -> Result<(), Broken> {
        self.queue.add_used(&self.memory, chain.head(), written)?;
        self.used = true;
        Ok(())
    }

    /// Interrupts the driver if it wants to know of the buffers that were given
    /// back since the last call.
    pub fn notify(&mut self) -> Result<(), Broken> {
        if std::mem::take(&mut self.used) && self.queue.needs_notification(&self.memory)? {
            // Without event indices, a flag says whether the driver wants it.
            if !self.queue.event_idx_enabled() {
                let flags = GuestAddress(self.queue.avail_ring());
                let flags: u16 =
                    self.memory.load(flags, Ordering::Relaxed).map_err(|_| Broken::OUTSIDE)?;
                if u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0 {
                    return Ok(());
                }
            }
            self.status.used_buffer();
        }
        Ok(())
    }
}
