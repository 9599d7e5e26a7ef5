// SPDX-License-Identifier: MIT OR Apache-2.0

//! The socket device (virtio 1.2 §5.10): streams between ports of the guest's
//! and Unix sockets of the host's, as Firecracker and Cloud Hypervisor have
//! them, so that programs made for those fit.
//!
//! - A program on the host connects to the device's socket and writes `CONNECT
//!   PORT`, a line. When the guest has accepted, it reads `OK PORT`, a line
//!   with the host's port. The stream follows.
//! - A guest's program that connects to port N of CID 2 gets to the socket
//!   whose path is the device's, `_` and N.
//!
//! | file | what |
//! | --- | --- |
//! | `header` | the header of a packet |
//! | `connection` | a connection, with its flow control |

mod connection;
mod header;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use self::connection::{Connection, Greeting, Ports, greeting};
use self::header::*;
use super::backend::{Backend, Identity, Queues, Result, Work};
use super::chain::Chain;
use super::door::Door;
use super::memory::DeviceMemory;
use super::queue::{Broken, Virtqueue};
use super::status::Status;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 128;
/// Connections, and programs that have not said yet to what they want one.
const MOST: usize = 256;
/// Answers to packets of no connection that wait for a buffer. As many packets
/// are not taken from the guest before there is one.
const ANSWERS: usize = 64;
/// Packets that are moved before the worker looks for orders.
const SHARE: usize = 64;
/// The first port for connections that a program of the host's asks for: ports
/// below are for who listens.
const FIRST_PORT: u32 = 1 << 30;
/// The listening socket, among what [`Vsock::epoll`] waits for.
const LISTENER: u64 = 0;

/// A socket device.
pub struct Vsock {
    cid: u64,
    door: Arc<Door>,
    epoll: Epoll,
    /// The number of the next peer.
    next: u64,
    next_port: u32,
    /// Programs that have not said what they want.
    strangers: HashMap<u64, UnixStream>,
    connections: HashMap<u64, Connection>,
    by_ports: HashMap<Ports, u64>,
    /// Connections that may have something for the guest.
    turns: VecDeque<u64>,
    /// Packets for the guest that are of no connection.
    answers: VecDeque<Header>,
    /// A buffer that was taken and not used.
    room: Option<Chain>,
}

impl Vsock {
    /// A device with the guest's address, 3 or more.
    ///
    /// # Errors
    /// `InvalidInput` for an address that is not a guest's.
    pub fn new(cid: u64, door: Arc<Door>) -> io::Result<Vsock> {
        if !(3..u64::from(u32::MAX)).contains(&cid) {
            let error = "the CID of a guest is 3 or more, and less than 2^32 - 1";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(&*door, EpollEvent::new(flags, LISTENER))?;
        Ok(Vsock {
            cid,
            door,
            epoll,
            next: LISTENER + 1,
            next_port: FIRST_PORT,
            strangers: HashMap::new(),
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            turns: VecDeque::new(),
            answers: VecDeque::new(),
            room: None,
        })
    }

    /// Waits for a socket, too. Answers its number.
    fn watch(&mut self, stream: &UnixStream) -> io::Result<u64> {
        if self.strangers.len() + self.connections.len() >= MOST {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        self.epoll.add(stream, EpollEvent::new(flags, self.next))?;
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Looks at the host's side. Says whether there may be more.
    fn poll(&mut self) -> bool {
        let mut events = [EpollEvent::empty(); SHARE];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        for event in &events[..count] {
            let number = event.data();
            if let Some(connection) = self.connections.get_mut(&number) {
                connection.ready();
                self.queue(number);
            } else if self.strangers.contains_key(&number) {
                self.greet(number, event.events());
            }
        }
        let mut accepted = 0;
        // Not only at an event: one that came before the device was started
        // has been lost.
        while accepted < SHARE
            && let Ok(stream) = self.door.accept()
        {
            accepted += 1;
            // One too many is hung up.
            if let Ok(number) = self.watch(&stream) {
                self.strangers.insert(number, stream);
            }
        }
        count == events.len() || accepted == SHARE
    }

    /// A program has said something, perhaps what it wants.
    fn greet(&mut self, number: u64, events: EpollFlags) {
        let Some(mut stream) = self.strangers.remove(&number) else { return };
        match greeting(&mut stream) {
            Greeting::Port(guest) => {
                let ports = self.free_ports(guest);
                self.connect(number, Connection::asked(ports, stream));
            }
            Greeting::Unfinished if !events.contains(EpollFlags::EPOLLRDHUP) => {
                self.strangers.insert(number, stream);
            }
            Greeting::Unfinished | Greeting::Wrong => {}
        }
    }

    /// A port of the host's that has no connection to that of the guest's.
    fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_port;
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
            let ports = Ports { host, guest };
            // There are fewer connections than ports.
            if !self.by_ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    fn connect(&mut self, number: u64, connection: Connection) {
        self.by_ports.insert(connection.ports, number);
        self.connections.insert(number, connection);
        self.queue(number);
    }

    fn disconnect(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            self.by_ports.remove(&connection.ports);
            // Whatever the guest does, there are no more turns than
            // connections.
            self.turns.retain(|&other| other != number);
        }
    }

    /// Lets a connection say something, once.
    fn queue(&mut self, number: u64) {
        if let Some(connection) = self.connections.get_mut(&number)
            && connection.has_packet()
            && !std::mem::replace(&mut connection.queued, true)
        {
            self.turns.push_back(number);
        }
    }

    /// The guest asks for a connection to a socket.
    fn request(&mut self, header: &Header) -> io::Result<()> {
        let ports = Ports { host: header.destination_port, guest: header.source_port };
        let mut path = self.door.path().to_owned().into_os_string();
        path.push(format!("_{}", ports.host));
        let stream = dial(Path::new(&path))?;
        let number = self.watch(&stream)?;
        self.connect(number, Connection::accepted(ports, stream, header));
        Ok(())
    }

    /// Takes packets of the guest's.
    fn transmit(&mut self, queue: &mut Virtqueue) -> Result {
        for _ in 0..SHARE {
            if self.answers.len() >= ANSWERS {
                return Ok(Work::Done);
            }
            let Some(chain) = queue.pop()? else { return Ok(Work::Done) };
            self.take(queue.memory(), &chain)?;
            queue.push(&chain, 0)?;
        }
        Ok(Work::More)
    }

    fn take(&mut self, memory: &DeviceMemory, chain: &Chain) -> std::result::Result<(), Broken> {
        let mut bytes = [0; SIZE];
        chain.readable.read(memory, 0, &mut bytes)?;
        let header = Header::from_bytes(&bytes);
        if u64::from(header.length) > chain.readable.len() - SIZE as u64 {
            return Err(Broken("a packet is longer than its buffer"));
        }
        // §5.10.6.2: what is from or to others is not carried.
        if header.source != self.cid || header.destination != HOST {
            return Ok(());
        }
        let ports = Ports { host: header.destination_port, guest: header.source_port };
        let number = self.by_ports.get(&ports).copied();
        match (number, header.operation) {
            (_, operation) if header.kind != STREAM => {
                if operation != RESET {
                    self.answers.push_back(reset(&header));
                }
            }
            (Some(number), RESET) => self.disconnect(number),
            (Some(number), _) => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.take(&header, memory, &chain.readable)?;
                    self.queue(number);
                }
            }
            (None, RESET) => {}
            (None, REQUEST) if self.request(&header).is_ok() => {}
            (None, _) => self.answers.push_back(reset(&header)),
        }
        Ok(())
    }

    /// Gives packets to the guest.
    fn receive(&mut self, queue: &mut Virtqueue) -> Result {
        for _ in 0..SHARE {
            let chain = match self.room.take() {
                Some(chain) => chain,
                None if self.answers.is_empty() && self.turns.is_empty() => return Ok(Work::Done),
                None => match queue.pop()? {
                    Some(chain) => chain,
                    None => return Ok(Work::Done),
                },
            };
            let Some(header) = self.packet(queue.memory(), &chain)? else {
                self.room = Some(chain);
                return Ok(Work::Done);
            };
            let header = Header { destination: self.cid, ..header };
            chain.writable.write(queue.memory(), 0, &header.to_bytes())?;
            queue.push(&chain, SIZE as u32 + header.length)?;
        }
        Ok(Work::More)
    }

    /// The next packet for the guest, its data already in the buffer.
    fn packet(
        &mut self,
        memory: &DeviceMemory,
        chain: &Chain,
    ) -> std::result::Result<Option<Header>, Broken> {
        if let Some(answer) = self.answers.pop_front() {
            return Ok(Some(answer));
        }
        while let Some(number) = self.turns.pop_front() {
            let Some(connection) = self.connections.get_mut(&number) else { continue };
            connection.queued = false;
            let header = connection.packet(memory, &chain.writable)?;
            if connection.is_reset() && header.is_some() {
                self.disconnect(number);
            } else {
                self.queue(number);
            }
            if header.is_some() {
                return Ok(header);
            }
        }
        Ok(None)
    }

    fn work(&mut self, queues: &mut Queues) -> Result {
        let mut more = self.poll();
        if let Some(Some(queue)) = queues.get_mut(TRANSMIT) {
            more |= self.transmit(queue)? == Work::More;
        }
        let full = self.answers.len() >= ANSWERS;
        if let Some(Some(queue)) = queues.get_mut(RECEIVE) {
            more |= self.receive(queue)? == Work::More;
        }
        // The guest's packets had to wait for their answers.
        more |= full && self.answers.len() < ANSWERS;
        Ok(if more { Work::More } else { Work::Done })
    }
}

/// Connects to a socket, without waiting for who listens there.
fn dial(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    use std::os::fd::AsRawFd;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

/// The answer to a packet of no connection.
fn reset(header: &Header) -> Header {
    Header {
        source: HOST,
        source_port: header.destination_port,
        destination_port: header.source_port,
        kind: header.kind,
        operation: RESET,
        ..Header::default()
    }
}

impl Backend for Vsock {
    fn identity(&self) -> Identity {
        Identity {
            name: "vsock".into(),
            kind: VIRTIO_ID_VSOCK,
            features: 0,
            // The third is for events that this device has not.
            queues: &[QUEUE_SIZE; 3],
            config: self.cid.to_le_bytes().to_vec(),
        }
    }

    fn start(&mut self, _features: u64, _status: Arc<Status>) {}

    fn kicked(&mut self, queues: &mut Queues, _index: usize) -> Result {
        self.work(queues)
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.epoll.0.as_fd()]
    }

    fn ready(&mut self, queues: &mut Queues, _source: usize) -> Result {
        self.work(queues)
    }

    fn stop(&mut self) {
        self.strangers.clear();
        self.connections.clear();
        self.by_ports.clear();
        self.turns.clear();
        self.answers.clear();
        self.room = None;
    }
}
