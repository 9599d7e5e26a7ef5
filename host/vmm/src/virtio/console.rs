// SPDX-License-Identifier: MIT OR Apache-2.0

//! The console device (virtio 1.2 §5.3), with one port: Linux's `hvc0`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::backend::{Backend, Identity, Queues, Result, Work};
use super::door::Door;
use super::queue::Virtqueue;
use super::status::Status;
use super::vectors::Vectors;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 64;
/// Buffers that are moved before the worker looks for orders.
const SHARE: usize = 64;

/// A console, for one program of the host's at a time.
///
/// What the guest writes while there is none, and what it does not take, is
/// lost, as on a serial line: Linux waits, without doing anything else on that
/// CPU, until the device has taken what it writes.
pub struct Console {
    door: Arc<Door>,
    terminal: Option<UnixStream>,
    /// For the door, and whoever has come in.
    epoll: Epoll,
    /// Whether the driver waits for a reset.
    status: Option<Arc<Status>>,
}

impl Console {
    /// A console that programs find at `door`.
    pub fn new(door: Arc<Door>) -> std::io::Result<Console> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(&*door, EpollEvent::new(flags, 0))?;
        Ok(Console { door, terminal: None, epoll, status: None })
    }

    /// Whether there is something to read. Lets the next one in after the last
    /// has gone.
    fn has_input(&mut self) -> bool {
        loop {
            let Some(terminal) = &self.terminal else {
                let Ok(next) = self.door.accept() else { return false };
                let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
                if self.epoll.add(&next, EpollEvent::new(flags, 0)).is_ok() {
                    self.terminal = Some(next);
                }
                continue;
            };
            match recv(terminal.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK) {
                Ok(1..) => return true,
                Err(Errno::EAGAIN) => return false,
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => self.terminal = None,
            }
        }
    }

    fn receive(&mut self, queue: &mut Virtqueue) -> Result {
        for _ in 0..SHARE {
            // Check for input first: a buffer that was taken from the queue cannot be put back.
            if !self.has_input() {
                return Ok(Work::Done);
            }
            let Some(terminal) = &self.terminal else { return Ok(Work::Done) };
            let Some(chain) = queue.pop()? else { return Ok(Work::Done) };
            let memory = queue.memory().clone();
            let mut vectors = Vectors::default();
            chain.writable.add_to(&mut vectors, &memory, 0, u64::MAX)?;
            let read = vectors.read(terminal).unwrap_or(0);
            queue.push(&chain, read as u32)?;
        }
        Ok(Work::More)
    }

    fn hurry(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.hurry())
    }

    fn transmit(&self, queue: &mut Virtqueue) -> Result {
        for _ in 0..SHARE {
            let Some(chain) = queue.pop()? else { return Ok(Work::Done) };
            if let Some(terminal) = &self.terminal {
                let memory = queue.memory().clone();
                let mut vectors = Vectors::default();
                chain.readable.add_to(&mut vectors, &memory, 0, u64::MAX)?;
                // A chain may name 4 GiB, and a reset waits for it: the rest is lost.
                while vectors.len() > 0 && !self.hurry() && vectors.write(terminal).is_ok() {}
            }
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

    fn start(&mut self, _features: u64, status: Arc<Status>) {
        self.status = Some(status);
    }

    fn kicked(&mut self, queues: &mut Queues, index: usize) -> Result {
        match queues.get_mut(index) {
            Some(Some(queue)) if index == RECEIVE => self.receive(queue),
            Some(Some(queue)) if index == TRANSMIT => self.transmit(queue),
            _ => Ok(Work::Done),
        }
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.epoll.0.as_fd()]
    }

    fn ready(&mut self, queues: &mut Queues, _source: usize) -> Result {
        // Which one it was is found by looking at both.
        let mut events = [EpollEvent::empty(); 4];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let more = if count == events.len() { Work::More } else { Work::Done };
        // Accept a connection even if the guest has no room for input.
        self.has_input();
        let received = self.kicked(queues, RECEIVE)?;
        Ok(if received == Work::Done { more } else { received })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::driver::*;
    use super::super::memory::DeviceMemory;
    use super::super::rings::Rings;
    use super::*;

    struct Machine {
        driver: Driver,
        path: std::path::PathBuf,
        _directory: tempfile::TempDir,
    }

    fn machine() -> Machine {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hvc0");
        let console = Console::new(Arc::new(Door::open(&path).unwrap())).unwrap();
        Machine { driver: Driver::started(console, 16), path, _directory: directory }
    }

    /// A machine, and a terminal that has been let in.
    fn device() -> (Machine, UnixStream) {
        let mut machine = machine();
        let terminal = machine.attach();
        (machine, terminal)
    }

    impl Machine {
        fn attach(&mut self) -> UnixStream {
            let mut terminal = UnixStream::connect(&self.path).unwrap();
            terminal.set_read_timeout(Some(PATIENCE)).unwrap();
            // In: what the guest writes comes out.
            self.driver.put(BUFFERS, b"#");
            terminal.set_nonblocking(true).unwrap();
            while terminal.read(&mut [0]).is_err() {
                self.driver.transfer(TRANSMIT, &[read(BUFFERS, 1)]);
            }
            // Read what is left: the guest may have written once more.
            while terminal.read(&mut [0]).is_ok() {}
            terminal.set_nonblocking(false).unwrap();
            terminal
        }
    }

    #[test]
    fn what_the_guest_writes_comes_out_and_what_is_typed_goes_in() {
        let (mut machine, mut terminal) = device();
        let driver = &mut machine.driver;
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
        let (mut machine, mut terminal) = device();
        let driver = &mut machine.driver;
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

    /// What a chain names may be 4 GiB, and a terminal that reads fast enough takes all of it.
    #[test]
    fn output_is_broken_off_for_a_reset() {
        let directory = tempfile::tempdir().unwrap();
        let door = Arc::new(Door::open(&directory.path().join("hvc0")).unwrap());
        let mut terminal = UnixStream::connect(door.path()).unwrap();
        terminal.set_nonblocking(true).unwrap();
        let mut console = Console::new(door).unwrap();
        assert!(!console.has_input() && console.terminal.is_some());
        // A queue with one buffer of four bytes, twice.
        let driver = Driver::new(
            Console::new(Arc::new(Door::open(&directory.path().join("other")).unwrap())).unwrap(),
        );
        let memory = DeviceMemory::new(driver.ram.clone(), None);
        let status = Arc::new(Status::new("console".into(), Vec::new(), driver.line.clone()));
        let (table, available, used) = (RAM, RAM + 0x1000, RAM + 0x2000);
        driver.put(table, &[BUFFERS.to_le_bytes(), u64::from(4u32).to_le_bytes()].concat());
        driver.put(BUFFERS, b"text");
        let mut rings = Rings::new(16).unwrap();
        (rings.descriptors, rings.available, rings.used) = (table, available, used);
        let queue = Virtqueue::new(rings, false, memory, status.clone());
        let mut queues = [None, Some(queue)];
        console.start(0, status.clone());
        let mut seen = [0; 16];
        for (index, hurry, expected) in [(1u16, false, Some(4)), (2, true, None)] {
            // Flags, index, and the chain of descriptor 0 in each place.
            driver.put(available, &[[0, 0], index.to_le_bytes()].concat());
            status.set_hurry(hurry);
            assert_eq!(console.kicked(&mut queues, TRANSMIT), Ok(Work::Done));
            assert_eq!(terminal.read(&mut seen).ok(), expected);
            assert_eq!(driver.get(used + 2, 2), index.to_le_bytes());
        }
    }

    #[test]
    fn terminals_come_and_go_one_at_a_time() {
        let (mut machine, mut first) = device();
        let mut second = UnixStream::connect(&machine.path).unwrap();
        second.write_all(b"2").unwrap();
        first.write_all(b"1").unwrap();
        for at in 0..2 {
            machine.driver.add(RECEIVE, &[write(BUFFERS + 0x100 + at, 1)]);
        }
        machine.driver.kick(RECEIVE);
        machine.driver.wait(|driver| driver.used(RECEIVE));
        assert_eq!(machine.driver.get(BUFFERS + 0x100, 2), *b"1\0");
        // The second one's turn comes when the first has gone.
        drop(first);
        machine.driver.wait(|driver| driver.used(RECEIVE));
        assert_eq!(machine.driver.get(BUFFERS + 0x100, 2), *b"12");
        // A reset of the guest's leaves it where it is.
        let features = machine.driver.features();
        machine.driver.start(features, 16);
        machine.driver.put(BUFFERS, b"anew");
        machine.driver.transfer(TRANSMIT, &[read(BUFFERS, 4)]);
        let mut seen = [0; 4];
        second.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"anew");
    }
}
