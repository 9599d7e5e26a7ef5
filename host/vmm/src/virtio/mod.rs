// SPDX-License-Identifier: MIT OR Apache-2.0

//! Virtio devices, as virtio 1.2 has them, behind registers in memory.
//!
//! | file | what |
//! | --- | --- |
//! | `mmio` | the transport: a device's registers (§4.2) |
//! | `status` | what transport and worker share: status, interrupts, configuration |
//! | `worker` | a device's thread |
//! | `backend` | what a device is to its worker |
//! | `queue` | a virtqueue, and what is wrong with one |
//! | `chain` | a buffer that the driver has put into a queue |
//! | `rings` | where a queue's parts are in guest memory, and what is in them |
//! | `vectors` | I/O between files and guest memory |
//! | `memory` | which memory devices reach, and by which addresses |
//! | `guarded` | accesses to memory that may go away |
//! | `door` | a socket at which programs find a device |
//! | `block`, `console`, `entropy`, `net`, `vsock` | the devices |
//!
//! All that is read from queues and registers is the guest's, and may be wrong
//! in every way and change at any time. A device reads and writes only what
//! the guest has put into its queues. A queue that is wrong stops the device
//! until the driver resets it.

mod backend;
mod block;
mod chain;
mod console;
mod door;
mod entropy;
mod guarded;
mod memory;
mod mmio;
mod net;
mod queue;
mod rings;
mod status;
mod vectors;
mod vsock;
mod worker;

#[cfg(test)]
mod driver;
#[cfg(test)]
mod hostile;

pub use backend::Backend;
pub use block::Block;
pub use console::Console;
pub use door::Door;
pub use entropy::Entropy;
pub use memory::DeviceMemory;
pub use mmio::{QUEUE_NOTIFY, Transport, WINDOW};
pub use net::{Link, Net, Passt, Tap};
pub use vsock::Vsock;
