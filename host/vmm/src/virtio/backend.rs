// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a device is to its worker.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::queue::{Broken, Virtqueue};
use super::status::Status;

/// What a driver is told of a device before it starts.
pub struct Identity {
    /// The device's name, for messages and threads.
    pub name: String,
    /// Its type (virtio 1.2 §5).
    pub kind: u32,
    /// The features that it offers, other than the transport's.
    pub features: u64,
    /// The greatest size of each of its queues, powers of two.
    pub queues: &'static [u16],
    /// Its configuration.
    pub config: Vec<u8>,
}

/// Whether a device has more to do that nothing will wake it for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It waits for the driver or for a descriptor.
    Done,
    /// It has done its share, and wants to be called again.
    More,
}

/// The result of a device's work.
pub type Result = std::result::Result<Work, Broken>;

/// The queues that the driver has set up, by index.
pub type Queues = [Option<Virtqueue>];

/// A device. Lives in the worker's thread.
///
/// Each call does a bounded amount of work and does not wait, so that the
/// driver can reset the device at any time.
pub trait Backend: Send {
    /// What the driver is told.
    fn identity(&self) -> Identity;

    /// The driver has set the device up and took these features.
    fn start(&mut self, features: u64, status: Arc<Status>);

    /// The driver has put buffers into a queue, or the device starts.
    fn kicked(&mut self, queues: &mut Queues, index: usize) -> Result;

    /// Descriptors that the device waits for: until they can be read or
    /// written, edge-triggered.
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// One of [`Self::sources`] has become ready. The device may not have been
    /// started: what it does not take is lost.
    fn ready(&mut self, _queues: &mut Queues, _source: usize) -> Result {
        Ok(Work::Done)
    }

    /// The driver has reset the device, or takes its queues away.
    fn stop(&mut self) {}
}
