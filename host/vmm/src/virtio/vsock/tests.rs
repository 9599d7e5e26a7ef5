// SPDX-License-Identifier: MIT OR Apache-2.0

//! The device against a driver and programs of the host.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::super::driver::*;
use super::connection::ROOM;
use super::*;

const CID: u64 = 52;
/// Where packets to the guest go, by the head of their buffer.
const ROOMS: u64 = BUFFERS + (4 << 20);
const ROOM_SIZE: u64 = 0x11000;

/// A guest with a device.
struct Guest {
    driver: Driver,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Guest {
    /// A device, and buffers for what comes.
    fn new(rooms: u64) -> Guest {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let door = Arc::new(Door::open(&path).unwrap());
        let device = Vsock::new(CID, door).unwrap();
        let mut driver = Driver::started(device, 64);
        for room in 0..rooms {
            driver.add(RECEIVE, &[write(ROOMS + room * ROOM_SIZE, ROOM_SIZE as u32)]);
        }
        driver.kick(RECEIVE);
        Guest { driver, path, _directory: directory }
    }

    fn listen(&self, port: u32) -> UnixListener {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        UnixListener::bind(path).unwrap()
    }

    fn header(&self, operation: u16, guest: u32, host: u32) -> Header {
        Header {
            source: CID,
            destination: HOST,
            source_port: guest,
            destination_port: host,
            kind: STREAM,
            operation,
            room: 0x10000,
            ..Header::default()
        }
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let header = Header { length: data.len() as u32, ..header };
        self.driver.put(BUFFERS, &header.to_bytes());
        self.driver.put(BUFFERS + 0x1000, data);
        let data = read(BUFFERS + 0x1000, data.len() as u32);
        self.driver.transfer(TRANSMIT, &[read(BUFFERS, SIZE as u32), data]);
    }

    fn say(&mut self, operation: u16, guest: u32, host: u32) {
        self.send(self.header(operation, guest, host), &[]);
    }

    /// The next packet, and its data; its buffer is given again.
    fn next(&mut self) -> (Header, Vec<u8>) {
        let (head, length) = self.driver.wait(|driver| driver.used(RECEIVE));
        let room = ROOMS + u64::from(head) * ROOM_SIZE;
        let mut packet = self.driver.get(room, length as usize);
        let data = packet.split_off(SIZE);
        self.driver.offer(RECEIVE, head);
        self.driver.kick(RECEIVE);
        let header = Header::from_bytes(packet[..].try_into().unwrap());
        assert_eq!(header.length as usize, data.len());
        assert_eq!((header.source, header.destination), (HOST, CID));
        (header, data)
    }

    fn expect(&mut self, operation: u16, guest: u32, host: u32) -> Header {
        let (header, _) = self.next();
        let seen = (header.operation, header.destination_port, header.source_port);
        assert_eq!(seen, (operation, guest, host), "{header:?}");
        header
    }

    /// Nothing comes.
    fn nothing(&mut self) {
        // An order is carried out after all that was there before.
        self.say(RESET, 1, 1);
        assert_eq!(self.driver.used(RECEIVE), None);
    }

    /// A connection that the guest has asked for.
    fn connected(&mut self, guest: u32, host: u32) -> UnixStream {
        let listener = self.listen(host);
        self.say(REQUEST, guest, host);
        let header = self.expect(RESPONSE, guest, host);
        assert_eq!((header.kind, header.room), (STREAM, ROOM));
        let stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

#[test]
fn the_guest_connects_to_a_socket_and_both_talk() {
    let mut guest = Guest::new(8);
    assert_eq!(u64::from_le_bytes(guest.driver.config(0)), CID);
    let mut host = guest.connected(1000, 80);
    guest.send(guest.header(DATA, 1000, 80), b"GET /\n");
    let mut seen = [0; 6];
    host.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"GET /\n");
    host.write_all(b"200 OK").unwrap();
    let (header, data) = guest.next();
    assert_eq!((header.operation, &data[..]), (DATA, &b"200 OK"[..]));
    assert_eq!(header.taken, 6);

    // The host has said all; the guest has not.
    host.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.expect(SHUTDOWN, 1000, 80).flags, NO_SEND);
    guest.send(guest.header(DATA, 1000, 80), b"thanks");
    host.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"thanks");
    let flags = NO_SEND | NO_RECEIVE;
    guest.send(Header { flags, ..guest.header(SHUTDOWN, 1000, 80) }, &[]);
    guest.expect(RESET, 1000, 80);
    assert_eq!(host.read(&mut seen).unwrap(), 0);
    guest.nothing();
}

#[test]
fn a_program_of_the_host_connects_to_the_guest() {
    let mut guest = Guest::new(8);
    for turn in 0..3 {
        let mut host = UnixStream::connect(&guest.path).unwrap();
        // In pieces, and with more than the line behind.
        host.write_all(b"CONN").unwrap();
        std::thread::yield_now();
        host.write_all(b"ECT 22\nhello").unwrap();
        let port = FIRST_PORT + turn;
        guest.expect(REQUEST, 22, port);
        guest.nothing();
        guest.say(RESPONSE, 22, port);
        let mut host = BufReader::new(host);
        let mut line = String::new();
        host.read_line(&mut line).unwrap();
        assert_eq!(line, format!("OK {port}\n"));
        let (header, data) = guest.next();
        assert_eq!((header.operation, &data[..]), (DATA, &b"hello"[..]));
        guest.say(RESET, 22, port);
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_program_that_does_not_say_what_it_wants_is_hung_up_on() {
    let mut guest = Guest::new(8);
    for line in ["HELLO\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT -1\n"] {
        let mut host = UnixStream::connect(&guest.path).unwrap();
        host.write_all(line.as_bytes()).unwrap();
        assert!(!matches!(host.read(&mut [0]), Ok(1)), "{line}");
    }
    let mut host = UnixStream::connect(&guest.path).unwrap();
    host.write_all(&[b'C'; 40]).unwrap();
    assert!(!matches!(host.read(&mut [0]), Ok(1)));
    // One that goes away, and one that only waits.
    let mut gone = UnixStream::connect(&guest.path).unwrap();
    gone.write_all(b"CONNECT 2").unwrap();
    drop(gone);
    let _waits = UnixStream::connect(&guest.path).unwrap();
    guest.nothing();
}

#[test]
fn what_nobody_listens_to_is_reset() {
    let mut guest = Guest::new(8);
    guest.say(REQUEST, 1000, 80);
    guest.expect(RESET, 1000, 80);
    for operation in [RESPONSE, SHUTDOWN, DATA, CREDIT_UPDATE, CREDIT_REQUEST, 0, 99] {
        guest.say(operation, 1000, 80);
        guest.expect(RESET, 1000, 80);
    }
    guest.say(RESET, 1000, 80);
    // A sequence of packets is no stream.
    let _listener = guest.listen(81);
    guest.send(Header { kind: 2, ..guest.header(REQUEST, 1000, 81) }, &[]);
    assert_eq!(guest.expect(RESET, 1000, 81).kind, 2);
    // What is for or from others is not answered.
    guest.send(Header { source: CID + 1, ..guest.header(REQUEST, 1000, 81) }, &[]);
    guest.send(Header { destination: 1, ..guest.header(REQUEST, 1000, 81) }, &[]);
    guest.send(Header { destination: CID, ..guest.header(REQUEST, 1000, 81) }, &[]);
    guest.nothing();
}

#[test]
fn a_request_on_a_connection_ends_it() {
    let mut guest = Guest::new(8);
    let mut host = guest.connected(1000, 80);
    guest.say(REQUEST, 1000, 80);
    guest.expect(RESET, 1000, 80);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut guest = Guest::new(8);
    let mut host = guest.connected(1000, 80);
    let stream = (0..150_000).map(|at| (at / 3) as u8).collect::<Vec<_>>();
    let (mut seen, data) = (Vec::new(), stream.clone());
    let writer = std::thread::spawn(move || host.write_all(&data).map(|()| host));
    while seen.len() < stream.len() {
        let (header, data) = guest.next();
        assert_eq!(header.operation, DATA);
        seen.extend(data);
        // 64 KiB of room, of which each time all but 1000 is taken.
        let taken = seen.len().saturating_sub(1000) as u32;
        assert!(seen.len() - taken as usize <= 0x10000);
        guest.send(Header { taken, ..guest.header(CREDIT_UPDATE, 1000, 80) }, &[]);
    }
    assert!(seen == stream);
    let mut host = writer.join().unwrap().unwrap();
    // No room at all, also by a guest that has taken more than it got.
    for taken in [seen.len() as u32 - 0x10000, seen.len() as u32 + 1] {
        guest.send(Header { taken, ..guest.header(CREDIT_UPDATE, 1000, 80) }, &[]);
        host.write_all(b"x").unwrap();
        guest.nothing();
    }
}

#[test]
fn a_guest_that_sends_more_than_there_is_room_for_is_cut_off() {
    let mut guest = Guest::new(8);
    let mut host = guest.connected(1000, 80);
    let data = vec![7; 0x10000];
    let mut sent = 0;
    // Until the socket is full, the room is told anew.
    let header = loop {
        guest.send(guest.header(DATA, 1000, 80), &data);
        sent += data.len();
        assert!(sent < 8 << 20);
        guest.say(RESET, 1, 1);
        match guest.driver.used(RECEIVE) {
            None => continue,
            Some((head, _)) => {
                let bytes = guest.driver.get(ROOMS + u64::from(head) * ROOM_SIZE, SIZE);
                guest.driver.offer(RECEIVE, head);
                let header = Header::from_bytes(bytes[..].try_into().unwrap());
                if header.operation == RESET {
                    break header;
                }
                assert_eq!(header.operation, CREDIT_UPDATE);
            }
        }
    };
    assert!(sent as u64 > u64::from(header.taken) + u64::from(ROOM));
    assert!(sent as u64 <= u64::from(header.taken) + u64::from(ROOM) + 0x10000);
    // What was taken is there.
    let mut seen = Vec::new();
    host.read_to_end(&mut seen).unwrap();
    assert_eq!(seen.len(), header.taken as usize);
}

#[test]
fn a_slow_reader_gets_all_and_the_guest_learns_of_room() {
    let mut guest = Guest::new(8);
    let mut host = guest.connected(1000, 80);
    let (mut sent, mut taken, total) = (0u32, 0u32, 3u32 << 20);
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        host.read_to_end(&mut seen).map(|_| seen)
    });
    while sent < total {
        if sent - taken + 0x8000 > ROOM {
            taken = guest.expect(CREDIT_UPDATE, 1000, 80).taken;
            continue;
        }
        let data = (sent..sent + 0x8000).map(|at| (at / 5) as u8).collect::<Vec<_>>();
        guest.send(guest.header(DATA, 1000, 80), &data);
        sent += 0x8000;
    }
    guest.send(Header { flags: NO_SEND, ..guest.header(SHUTDOWN, 1000, 80) }, &[]);
    let seen = reader.join().unwrap().unwrap();
    assert!(seen == (0..total).map(|at| (at / 5) as u8).collect::<Vec<_>>());
}

#[test]
fn a_credit_request_is_answered() {
    let mut guest = Guest::new(8);
    let _host = guest.connected(1000, 80);
    guest.say(CREDIT_REQUEST, 1000, 80);
    assert_eq!(guest.expect(CREDIT_UPDATE, 1000, 80).room, ROOM);
}

#[test]
fn a_guest_that_does_not_listen_gets_its_answers_later() {
    let mut guest = Guest::new(1);
    // One buffer is given; the answers to all others have to wait, and at
    // some point so do the packets.
    let data = guest.header(DATA, 1, 2).to_bytes();
    guest.driver.put(BUFFERS, &data);
    let mut sent = 0;
    for _ in 0..64 {
        guest.driver.add(TRANSMIT, &[read(BUFFERS, SIZE as u32)]);
        sent += 1;
    }
    guest.driver.kick(TRANSMIT);
    let mut returned = 0;
    for answer in 0..300 {
        while guest.driver.used(TRANSMIT).is_some() {
            returned += 1;
            if sent < 300 {
                guest.driver.add(TRANSMIT, &[read(BUFFERS, SIZE as u32)]);
                sent += 1;
            }
        }
        guest.driver.kick(TRANSMIT);
        assert!(returned <= answer + ANSWERS + 64 + 1);
        guest.expect(RESET, 1, 2);
    }
    guest.driver.wait(|driver| {
        returned += usize::from(driver.used(TRANSMIT).is_some());
        (returned == 300).then_some(())
    });
}

#[test]
fn connections_and_strangers_are_limited() {
    let mut guest = Guest::new(32);
    let waiting = (0..MOST - 1).map(|_| UnixStream::connect(&guest.path).unwrap());
    let waiting = waiting.collect::<Vec<_>>();
    // Some are let in before each packet is taken.
    for _ in 0..MOST / SHARE + 1 {
        guest.nothing();
    }
    let listener = guest.listen(80);
    guest.say(REQUEST, 1, 80);
    guest.expect(RESPONSE, 1, 80);
    guest.say(REQUEST, 2, 80);
    guest.expect(RESET, 2, 80);
    let mut one_too_many = UnixStream::connect(&guest.path).unwrap();
    assert_eq!(one_too_many.read(&mut [0]).unwrap(), 0);
    drop(waiting);
    guest.driver.wait(|_| UnixStream::connect(&guest.path).ok());
    drop(listener);
}

#[test]
fn a_reset_hangs_up_and_the_device_goes_on() {
    let mut guest = Guest::new(8);
    let mut host = guest.connected(1000, 80);
    let features = guest.driver.features();
    assert!(guest.driver.negotiate(features));
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    // Who connects while the guest starts, waits.
    let mut host = UnixStream::connect(&guest.path).unwrap();
    host.write_all(b"CONNECT 7\n").unwrap();
    guest.driver.start(features, 64);
    guest.driver.add(RECEIVE, &[write(ROOMS, ROOM_SIZE as u32)]);
    guest.driver.kick(RECEIVE);
    let (header, _) = guest.next();
    assert_eq!((header.operation, header.destination_port), (REQUEST, 7));
}

#[test]
fn packets_that_do_not_fit_their_buffers_break_the_device() {
    let mut guest = Guest::new(8);
    let features = guest.driver.features();
    for (length, size) in [(1, SIZE as u32), (u32::MAX, 1000), (0, 43), (0, 0)] {
        let header = Header { length, ..guest.header(DATA, 1, 2) };
        guest.driver.put(BUFFERS, &header.to_bytes());
        guest.driver.add(TRANSMIT, &[read(BUFFERS, size)]);
        guest.driver.kick(TRANSMIT);
        guest.driver.wait_broken();
        guest.driver.start(features, 64);
    }
    // So does a buffer without room for a header.
    guest.driver.add(RECEIVE, &[write(ROOMS, 43)]);
    guest.driver.put(BUFFERS, &guest.header(DATA, 1, 2).to_bytes());
    guest.driver.add(TRANSMIT, &[read(BUFFERS, SIZE as u32)]);
    guest.driver.kick(TRANSMIT);
    guest.driver.wait_broken();
}

#[test]
fn the_door_is_there_as_long_as_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let door = Arc::new(Door::open(&path).unwrap());
    for cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
        assert!(Vsock::new(cid, door.clone()).is_err());
    }
    let device = Vsock::new(3, door.clone()).unwrap();
    assert_eq!(Door::open(&path).err().unwrap().kind(), io::ErrorKind::AddrInUse);
    drop(door);
    assert!(path.exists());
    drop(device);
    assert!(!path.exists());
}
