// SPDX-License-Identifier: MIT OR Apache-2.0

//! A connection between a port of the guest's and a socket of the host's.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use super::header::*;
use crate::virtio::chain::Buffer;
use crate::virtio::memory::DeviceMemory;
use crate::virtio::queue::Broken;
use crate::virtio::vectors::Vectors;

/// The most bytes from the guest that wait for a socket.
pub const ROOM: u32 = 256 << 10;
/// The most bytes of data in one packet.
const PACKET: u64 = 64 << 10;

/// The ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The host's.
    pub host: u32,
    /// The guest's.
    pub guest: u32,
}

/// A connection.
pub struct Connection {
    pub ports: Ports,
    stream: UnixStream,
    /// The other side has accepted it.
    established: bool,
    /// Which packets are due for the guest.
    say_request: bool,
    say_response: bool,
    say_credit: bool,
    say_shutdown: bool,
    say_reset: bool,
    /// The socket may have data.
    readable: bool,
    /// The socket has no more data.
    ended: bool,
    /// The connection is in the queue of those that may send.
    pub queued: bool,
    /// The flags of the guest's SHUTDOWN packets.
    shut: u32,
    /// The guest's data that the socket has not taken.
    outbox: VecDeque<u8>,
    /// How much of the guest's data the socket has taken.
    taken: Wrapping<u32>,
    /// The same, as the last packet to the guest said.
    told: Wrapping<u32>,
    /// How much was sent to the guest.
    sent: Wrapping<u32>,
    /// The guest's room for data, and how much it has taken out of there.
    guest_room: u32,
    guest_taken: Wrapping<u32>,
}

impl Connection {
    /// A connection that the guest has asked for, and `stream` accepted.
    pub fn accepted(ports: Ports, stream: UnixStream, request: &Header) -> Connection {
        let mut connection = Connection::new(ports, stream);
        connection.established = true;
        connection.say_response = true;
        connection.note_credit(request);
        connection
    }

    /// A connection that the guest is to be asked for.
    pub fn asked(ports: Ports, stream: UnixStream) -> Connection {
        Connection { say_request: true, ..Connection::new(ports, stream) }
    }

    fn new(ports: Ports, stream: UnixStream) -> Connection {
        Connection {
            ports,
            stream,
            established: false,
            say_request: false,
            say_response: false,
            say_credit: false,
            say_shutdown: false,
            say_reset: false,
            readable: true,
            ended: false,
            queued: false,
            shut: 0,
            outbox: VecDeque::new(),
            taken: Wrapping(0),
            told: Wrapping(0),
            sent: Wrapping(0),
            guest_room: 0,
            guest_taken: Wrapping(0),
        }
    }

    /// Whether there is something for the guest now.
    pub fn has_packet(&self) -> bool {
        self.say_request
            || self.say_response
            || self.say_credit
            || self.say_shutdown
            || self.say_reset
            || self.may_send_data()
    }

    fn may_send_data(&self) -> bool {
        self.readable && self.established && self.shut & NO_RECEIVE == 0 && self.credit() > 0
    }

    /// How much the guest can take.
    fn credit(&self) -> u32 {
        // A guest that says it has taken more than it got has no room.
        self.guest_room.saturating_sub((self.sent - self.guest_taken).0)
    }

    fn note_credit(&mut self, header: &Header) {
        self.guest_room = header.room;
        self.guest_taken = Wrapping(header.taken);
    }

    /// The next packet for the guest; its data go to `room`, behind the header.
    /// After a reset, the connection is no more.
    pub fn packet(
        &mut self,
        memory: &DeviceMemory,
        room: &Buffer,
    ) -> Result<Option<Header>, Broken> {
        use std::mem::take;
        let (mut length, mut flags) = (0, 0);
        // First of all: a read may tell that there is something else to say.
        let first = self.say_reset || self.say_request || self.say_response;
        let data = match !first && self.may_send_data() {
            true => self.receive(memory, room)?,
            false => None,
        };
        let operation = if self.say_reset {
            RESET
        } else if let Some(count) = data {
            length = count;
            DATA
        } else if take(&mut self.say_request) {
            REQUEST
        } else if take(&mut self.say_response) {
            RESPONSE
        } else if take(&mut self.say_shutdown) {
            flags = NO_SEND;
            SHUTDOWN
        } else if take(&mut self.say_credit) {
            CREDIT_UPDATE
        } else {
            return Ok(None);
        };
        // Each packet says it.
        self.say_credit = false;
        self.told = self.taken;
        Ok(Some(Header { length, flags, ..self.header(operation) }))
    }

    fn header(&self, operation: u16) -> Header {
        Header {
            source: HOST,
            source_port: self.ports.host,
            destination_port: self.ports.guest,
            kind: STREAM,
            operation,
            room: ROOM,
            taken: self.taken.0,
            ..Header::default()
        }
    }

    /// Moves data from the socket to the guest; `None` if there is none.
    fn receive(&mut self, memory: &DeviceMemory, room: &Buffer) -> Result<Option<u32>, Broken> {
        let mut vectors = Vectors::default();
        let most = PACKET.min(self.credit().into());
        room.add_to(&mut vectors, memory, SIZE as u64, most)?;
        if vectors.len() == 0 {
            return Err(Broken("a buffer for packets has no room for data"));
        }
        match vectors.read(&self.stream) {
            Ok(0) => {
                // The other end sends no more; it may still receive.
                (self.readable, self.ended) = (false, true);
                self.say_shutdown = true;
                Ok(None)
            }
            Ok(count) => {
                // At most PACKET.
                self.sent += count as u32;
                Ok(Some(count as u32))
            }
            Err(error) => {
                self.readable = false;
                self.say_reset = error.kind() != io::ErrorKind::WouldBlock;
                Ok(None)
            }
        }
    }

    /// Whether the guest has been told that the connection is no more.
    pub fn is_reset(&self) -> bool {
        self.say_reset
    }

    /// The socket has become ready.
    pub fn ready(&mut self) {
        self.readable = !self.ended;
        self.flush();
    }

    /// The guest's packet, other than one that asks for a connection. Its data
    /// are behind the header in `buffer`.
    pub fn take(
        &mut self,
        header: &Header,
        memory: &DeviceMemory,
        buffer: &Buffer,
    ) -> Result<(), Broken> {
        self.note_credit(header);
        match header.operation {
            RESPONSE if !self.established => {
                self.established = true;
                let answer = format!("OK {}\n", self.ports.host);
                // It fits: it is the first that the socket gets.
                self.say_reset |= self.stream.write_all(answer.as_bytes()).is_err();
            }
            DATA if self.established && self.shut & NO_SEND == 0 => {
                let length = header.length as usize;
                if self.outbox.len() + length > ROOM as usize {
                    // More than it was told there is room for.
                    self.say_reset = true;
                    return Ok(());
                }
                self.send(length, memory, buffer)?;
                self.flush();
            }
            SHUTDOWN if self.established => {
                self.shut |= header.flags & (NO_RECEIVE | NO_SEND);
                self.flush();
            }
            CREDIT_UPDATE if self.established => {}
            CREDIT_REQUEST if self.established => self.say_credit = true,
            _ => self.say_reset = true,
        }
        Ok(())
    }

    /// Gives data to the socket, and keeps what it does not take.
    fn send(
        &mut self,
        length: usize,
        memory: &DeviceMemory,
        buffer: &Buffer,
    ) -> Result<(), Broken> {
        let mut done = 0;
        if self.outbox.is_empty() && length > 0 {
            let mut vectors = Vectors::default();
            buffer.add_to(&mut vectors, memory, SIZE as u64, length as u64)?;
            // An error is met again with the rest.
            done = vectors.write(&self.stream).unwrap_or(0);
            self.taken += done as u32;
        }
        let mut rest = vec![0; length - done];
        buffer.read(memory, (SIZE + done) as u64, &mut rest)?;
        self.outbox.extend(rest);
        Ok(())
    }

    /// Gives the socket what it takes of the guest's data.
    fn flush(&mut self) {
        while !self.outbox.is_empty() {
            let (data, _) = self.outbox.as_slices();
            match self.stream.write(data) {
                Ok(count) => {
                    self.outbox.drain(..count);
                    self.taken += count as u32;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.say_reset = true;
                    return;
                }
            }
        }
        // The guest is to know before it has used up its room.
        self.say_credit |= (self.taken - self.told).0 >= ROOM / 2;
        if self.outbox.is_empty() {
            if self.shut == NO_RECEIVE | NO_SEND {
                self.say_reset = true;
            } else if self.shut & NO_SEND != 0 {
                // An error is that the other end has gone: a read tells, too.
                let _ = self.stream.shutdown(Shutdown::Write);
            }
        }
    }
}

/// What a host's program has to say first: the port that it wants.
pub enum Greeting {
    /// A port.
    Port(u32),
    /// Not all of it has come.
    Unfinished,
    /// Something else.
    Wrong,
}

/// Reads `CONNECT PORT`, a line, and nothing behind it.
pub fn greeting(stream: &mut UnixStream) -> Greeting {
    use nix::errno::Errno;
    use nix::sys::socket::{MsgFlags, recv};
    use std::os::fd::AsRawFd;

    let mut line = [0; 32];
    let length = match recv(stream.as_raw_fd(), &mut line, MsgFlags::MSG_PEEK) {
        Ok(0) => return Greeting::Wrong,
        Ok(length) => length,
        Err(Errno::EAGAIN | Errno::EINTR) => return Greeting::Unfinished,
        Err(_) => return Greeting::Wrong,
    };
    let Some(end) = line[..length].iter().position(|&byte| byte == b'\n') else {
        return if length < line.len() { Greeting::Unfinished } else { Greeting::Wrong };
    };
    if stream.read_exact(&mut line[..=end]).is_err() {
        return Greeting::Wrong;
    }
    let line = std::str::from_utf8(&line[..end]).ok();
    let port = line.and_then(|line| line.strip_prefix("CONNECT ")?.parse().ok());
    port.map_or(Greeting::Wrong, Greeting::Port)
}
