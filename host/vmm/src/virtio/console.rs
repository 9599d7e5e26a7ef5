// SPDX-License-Identifier: MIT OR Apache-2.0

//! The console device (virtio 1.2 §5.3), with one port: Linux's `hvc0`.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::backend::{Backend, Identity, Queues, Result, Work};
use super::queue::Virtqueue;
use super::status::Status;
use super::vectors::Vectors;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 64;
/// Buffers that are moved before the worker looks for orders.
const SHARE: usize = 64;

/// A console.
///
/// What the guest writes and the other end does not take is lost, as on a
/// serial line: Linux waits, without doing anything else on that CPU, until
/// the device has taken what it writes.
pub struct Console {
    stream: UnixStream,
}

impl Console {
    /// A console whose other end is the other end of `stream`.
    pub fn new(stream: UnixStream) -> std::io::Result<Console> {
        stream.set_nonblocking(true)?;
        Ok(Console { stream })
    }

    fn receive(&self, queue: &mut Virtqueue) -> Result {
        for _ in 0..SHARE {
            // Looks first whether there is something: a buffer that was taken
            // cannot be put back.
            if self.nothing_to_read() {
                return Ok(Work::Done);
            }
            let Some(chain) = queue.pop()? else { return Ok(Work::Done) };
            let memory = queue.memory().clone();
            let mut vectors = Vectors::default();
            chain.writable.add_to(&mut vectors, &memory, 0, u64::MAX)?;
            let read = vectors.read(&self.stream).unwrap_or(0);
            queue.push(&chain, read as u32)?;
        }
        Ok(Work::More)
    }

    /// Whether a read would give nothing: now, or ever.
    fn nothing_to_read(&self) -> bool {
        use nix::sys::socket::{MsgFlags, recv};
        use std::os::fd::AsRawFd;
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        !matches!(recv(self.stream.as_raw_fd(), &mut [0], peek), Ok(1))
    }

    fn transmit(&self, queue: &mut Virtqueue) -> Result {
        for _ in 0..SHARE {
            let Some(chain) = queue.pop()? else { return Ok(Work::Done) };
            let memory = queue.memory().clone();
            let mut vectors = Vectors::default();
            chain.readable.add_to(&mut vectors, &memory, 0, u64::MAX)?;
            while vectors.len() > 0 && vectors.write(&self.stream).is_ok() {}
            queue.push(&chain, 0)?;
        }
        Ok(Work::More)
    }
}

impl Backend for Console {
    fn identity(&self) -> Identity {
        Identity {
            name: "console".into(),
            kind: VIRTIO_ID_CONSOLE,
            features: 0,
            queues: &[QUEUE_SIZE; 2],
            config: Vec::new(),
        }
    }

    fn start(&mut self, _features: u64, _status: Arc<Status>) {}

    fn kicked(&mut self, queues: &mut Queues, index: usize) -> Result {
        match queues.get_mut(index) {
            Some(Some(queue)) if index == RECEIVE => self.receive(queue),
            Some(Some(queue)) if index == TRANSMIT => self.transmit(queue),
            _ => Ok(Work::Done),
        }
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.stream.as_fd()]
    }

    fn ready(&mut self, queues: &mut Queues, _source: usize) -> Result {
        self.kicked(queues, RECEIVE)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::driver::*;
    use super::*;

    fn device() -> (Driver, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        (Driver::started(Console::new(ours).unwrap(), 16), theirs)
    }

    #[test]
    fn what_the_guest_writes_comes_out_and_what_is_typed_goes_in() {
        let (mut driver, mut terminal) = device();
        driver.put(BUFFERS, b"hello, world\n");
        driver.transfer(TRANSMIT, &[read(BUFFERS, 6), read(BUFFERS + 6, 7)]);
        let mut seen = [0; 13];
        terminal.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello, world\n");

        // Before there is a buffer, and with one.
        terminal.write_all(b"ls\n").unwrap();
        driver.add(RECEIVE, &[write(BUFFERS, 2)]);
        driver.add(RECEIVE, &[write(BUFFERS + 2, 4096)]);
        driver.kick(RECEIVE);
        assert_eq!(driver.wait(|driver| driver.used(RECEIVE)), (0, 2));
        assert_eq!(driver.wait(|driver| driver.used(RECEIVE)), (1, 1));
        assert_eq!(driver.get(BUFFERS, 3), b"ls\n");
        driver.add(RECEIVE, &[write(BUFFERS, 4096)]);
        driver.kick(RECEIVE);
        terminal.write_all(b"exit\n").unwrap();
        assert_eq!(driver.wait(|driver| driver.used(RECEIVE)), (2, 5));
        assert_eq!(driver.get(BUFFERS, 5), b"exit\n");
        assert_eq!(driver.used(RECEIVE), None);
    }

    #[test]
    fn a_terminal_that_does_not_read_does_not_stop_the_guest() {
        let (mut driver, mut terminal) = device();
        for _ in 0..40 {
            driver.transfer(TRANSMIT, &[read(BUFFERS, 1 << 16)]);
        }
        // What fitted is there.
        let mut seen = vec![0; 1 << 16];
        terminal.read_exact(&mut seen).unwrap();
        drop(terminal);
        for _ in 0..40 {
            driver.transfer(TRANSMIT, &[read(BUFFERS, 1 << 16)]);
        }
        // And a buffer for input stays where it is.
        driver.add(RECEIVE, &[write(BUFFERS, 16)]);
        driver.kick(RECEIVE);
        driver.transfer(TRANSMIT, &[read(BUFFERS, 1)]);
        assert_eq!(driver.used(RECEIVE), None);
    }
}
