// SPDX-License-Identifier: MIT OR Apache-2.0

//! The entropy device (virtio 1.2 §5.4): random bytes of the host's kernel.

use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::backend::{Backend, Identity, Queues, Result, Work};
use super::queue::Broken;
use super::status::Status;
use super::vectors::Vectors;

/// The most bytes that one buffer gets. The rest of it stays as it is: a
/// device may write less than there is room for.
const MOST: u64 = 64 << 10;
/// Buffers that are filled before the worker looks for orders.
const SHARE: usize = 16;

/// The entropy device.
pub struct Entropy;

impl Backend for Entropy {
    fn identity(&self) -> Identity {
        Identity {
            name: "entropy".into(),
            kind: VIRTIO_ID_RNG,
            features: 0,
            queues: &[64],
            config: Vec::new(),
        }
    }

    fn start(&mut self, _features: u64, _status: Arc<Status>) {}

    fn kicked(&mut self, queues: &mut Queues, index: usize) -> Result {
        let Some(queue) = &mut queues[index] else { return Ok(Work::Done) };
        for _ in 0..SHARE {
            let Some(chain) = queue.pop()? else { return Ok(Work::Done) };
            let mut vectors = Vectors::default();
            chain.writable.add_to(&mut vectors, queue.memory(), 0, MOST)?;
            let mut filled = 0;
            while vectors.len() > 0 {
                let done = vectors.fill_first();
                filled += done.map_err(|_| Broken("a buffer for random bytes is out of reach"))?;
            }
            queue.push(&chain, filled as u32)?;
        }
        Ok(Work::More)
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::*;
    use super::*;

    #[test]
    fn a_buffer_is_filled_and_no_more() {
        let mut driver = Driver::started(Entropy, 8);
        let written = driver.transfer(0, &[write(BUFFERS + 1, 100), write(BUFFERS + 200, 28)]);
        assert_eq!(written, 128);
        let bytes = driver.get(BUFFERS, 256);
        let filled = [&bytes[1..101], &bytes[200..228]].concat();
        // One in 10^36 times, 16 zeros.
        assert!(filled.chunks(16).all(|part| part.iter().any(|&byte| byte != 0)));
        let rest = [&bytes[..1], &bytes[101..200], &bytes[228..]].concat();
        assert!(rest.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_large_buffer_is_filled_in_part() {
        let mut driver = Driver::started(Entropy, 8);
        assert_eq!(driver.transfer(0, &[write(BUFFERS, 1 << 20)]), MOST as u32);
        assert_eq!(driver.get(BUFFERS + MOST, 64), [0; 64]);
        // An empty one, and one that the device may only read, get nothing.
        assert_eq!(driver.transfer(0, &[write(BUFFERS, 0)]), 0);
        assert_eq!(driver.transfer(0, &[read(BUFFERS, 64)]), 0);
    }
}
