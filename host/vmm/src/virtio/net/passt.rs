// SPDX-License-Identifier: MIT OR Apache-2.0

//! passt: a network for a guest out of the sockets of an ordinary user.
//!
//! The two programs talk over a stream socket. Each frame comes after its
//! length, 4 bytes, big-endian (QEMU's `-netdev stream`). passt leaves no
//! checksum open and takes none, so there are no offloads.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{MsgFlags, send};

use super::{FRAME, Frame, HEADER, Link, lost};
use crate::virtio::chain::Buffer;
use crate::virtio::memory::DeviceMemory;
use crate::virtio::vectors::Vectors;

/// Bytes of a frame's length.
const LENGTH: usize = 4;

/// A connection to a passt. Its clones are the same connection: one device
/// after the other may use it.
#[derive(Clone)]
pub struct Passt {
    socket: Arc<UnixStream>,
    stream: Arc<Mutex<Stream>>,
}

/// Where the connection is between two frames.
#[derive(Default)]
struct Stream {
    /// What was received and not taken.
    received: Vec<u8>,
    /// How much of `received` is frames that were taken.
    taken: usize,
    /// The rest of a frame that was sent in part.
    unsent: Vec<u8>,
}

impl Passt {
    /// Starts a passt for one device.
    ///
    /// # Errors
    /// `NotFound` if it is not installed.
    pub fn spawn() -> io::Result<Passt> {
        let (ours, theirs) = UnixStream::pair()?;
        let fd = theirs.as_raw_fd();
        let mut command = Command::new("passt");
        command.args(["--foreground", "--quiet", "--one-off", "--fd", &fd.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: between fork and exec, the closure makes one system call, on
        // a descriptor that is open until `spawn` returns.
        unsafe {
            command.pre_exec(move || {
                // It is to survive the exec.
                match libc::fcntl(fd, libc::F_SETFD, 0) {
                    -1 => Err(io::Error::last_os_error()),
                    _ => Ok(()),
                }
            });
        }
        // It ends with its connection, and so at the latest with this program,
        // whose parent reaps it then.
        command.spawn()?;
        Passt::connected(ours)
    }

    /// Takes a connection to a passt.
    pub fn connected(socket: UnixStream) -> io::Result<Passt> {
        socket.set_nonblocking(true)?;
        Ok(Passt { socket: Arc::new(socket), stream: Arc::default() })
    }

    fn stream(&self) -> MutexGuard<'_, Stream> {
        // Each change leaves it in step.
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    /// The length of the first frame that is there as a whole.
    fn whole(&self) -> io::Result<Option<usize>> {
        let rest = &self.received[self.taken..];
        let Some((length, data)) = rest.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        if u64::from(length) > FRAME {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of no network"));
        }
        Ok((data.len() >= length as usize).then_some(length as usize))
    }

    /// Reads until there is a whole frame. Its length.
    fn fill(&mut self, mut socket: &UnixStream) -> io::Result<usize> {
        loop {
            if let Some(length) = self.whole()? {
                return Ok(length);
            }
            self.received.drain(..self.taken);
            self.taken = 0;
            // Room for one frame more than there is a part of.
            let have = self.received.len();
            self.received.resize(have + LENGTH + FRAME as usize, 0);
            let read = socket.read(&mut self.received[have..]);
            self.received.truncate(have + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Sends what has been kept.
    fn flush(&mut self, socket: &UnixStream) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let sent = send(socket.as_raw_fd(), &self.unsent, MsgFlags::MSG_NOSIGNAL)?;
            self.unsent.drain(..sent);
        }
        Ok(())
    }
}

impl Link for Passt {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn features(&self) -> u64 {
        0
    }

    fn start(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn next(&mut self) -> io::Result<u64> {
        let length = self.stream().fill(&self.socket)?;
        Ok(HEADER + length as u64)
    }

    fn receive(&mut self, _room: &mut Vectors<'_>) -> io::Result<Frame> {
        let mut stream = self.stream();
        let length = stream.whole()?.ok_or(io::ErrorKind::WouldBlock)?;
        let start = stream.taken + LENGTH;
        stream.taken = start + length;
        Ok(Frame::Elsewhere(stream.received[start..start + length].to_vec()))
    }

    fn send(&mut self, memory: &DeviceMemory, frame: &Buffer) -> io::Result<()> {
        let mut stream = self.stream();
        stream.flush(&self.socket)?;
        let mut bytes = vec![0; LENGTH + (frame.len() - HEADER) as usize];
        let (length, data) = bytes.split_at_mut(LENGTH);
        length.copy_from_slice(&(data.len() as u32).to_be_bytes());
        frame.read(memory, HEADER, data).map_err(|_| lost())?;
        // What does not fit into the socket now is sent before the next frame:
        // the stream would be out of step without it.
        stream.unsent = bytes;
        match stream.flush(&self.socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream().flush(&self.socket)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;

    use super::super::Net;
    use super::*;
    use crate::virtio::driver::*;

    const RECEIVE: usize = 0;
    const TRANSMIT: usize = 1;

    /// A device, and the end of its passt.
    fn device() -> (Driver, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        let net = Net::new("net0", [2; 6], Box::new(Passt::connected(ours).unwrap()));
        (Driver::started(net, 64), theirs)
    }

    fn with_length(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes(), frame].concat()
    }

    #[test]
    fn frames_are_sent_without_header_after_their_length() {
        let (mut driver, mut passt) = device();
        for length in [14u32, 60, 1514, 65000] {
            let frame = (0..length).map(|at| (at * 5) as u8).collect::<Vec<_>>();
            driver.put(BUFFERS, &[0xff; 12]);
            driver.put(BUFFERS + 12, &frame);
            driver.transfer(TRANSMIT, &[read(BUFFERS, 12 + length)]);
            let mut seen = vec![0; 4 + frame.len()];
            passt.read_exact(&mut seen).unwrap();
            assert!(seen == with_length(&frame));
        }
    }

    #[test]
    fn a_socket_that_is_full_loses_no_byte() {
        let (mut driver, mut passt) = device();
        let count = 60u8;
        for number in 0..count {
            let at = BUFFERS + u64::from(number) * 0x10000;
            driver.put(at + 12, &vec![number; 20000]);
            driver.add(TRANSMIT, &[read(at, 20012)]);
        }
        driver.kick(TRANSMIT);
        for number in 0..count {
            let mut seen = vec![0; 20004];
            passt.read_exact(&mut seen).unwrap();
            assert!(seen == with_length(&vec![number; 20000]), "{number}");
        }
    }

    #[test]
    fn frames_are_received_in_whatever_pieces_they_come() {
        let (mut driver, mut passt) = device();
        for piece in 0..32 {
            driver.add(RECEIVE, &[write(BUFFERS + piece * 0x10000, 0x10000)]);
        }
        driver.kick(RECEIVE);
        let frame = |number: u8| vec![number; 40 + 100 * usize::from(number)];
        let stream = (0..32).flat_map(|number| with_length(&frame(number))).collect::<Vec<_>>();
        let mut rest = &stream[..];
        for size in (1..).map(|turn| turn * turn) {
            let (piece, more) = rest.split_at(rest.len().min(size));
            passt.write_all(piece).unwrap();
            std::thread::yield_now();
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
        for number in 0..32 {
            let expected = frame(number);
            let (_, written) = driver.wait(|driver| driver.used(RECEIVE));
            assert_eq!(written as usize, 12 + expected.len());
            let at = BUFFERS + u64::from(number) * 0x10000;
            assert_eq!(driver.get(at, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert!(driver.get(at + 12, expected.len()) == expected);
        }
    }

    #[test]
    fn a_machine_that_starts_anew_goes_on_with_the_stream() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let passt = Passt::connected(ours).unwrap();
        let net = |passt: &Passt| Net::new("net0", [2; 6], Box::new(passt.clone()));
        let mut first = Driver::started(net(&passt), 64);
        first.add(RECEIVE, &[write(BUFFERS, 0x10000)]);
        first.kick(RECEIVE);
        // One frame and a half.
        let stream = with_length(&[1; 60]).repeat(2);
        theirs.write_all(&stream[..90]).unwrap();
        first.wait(|driver| driver.used(RECEIVE));
        drop(first);
        let mut second = Driver::started(net(&passt), 64);
        second.add(RECEIVE, &[write(BUFFERS, 0x10000)]);
        second.kick(RECEIVE);
        theirs.write_all(&stream[90..]).unwrap();
        assert_eq!(second.wait(|driver| driver.used(RECEIVE)).1, 72);
        assert_eq!(second.get(BUFFERS + 12, 60), [1; 60]);
    }

    #[test]
    fn a_passt_that_ends_or_talks_nonsense_is_a_link_that_is_down() {
        for nonsense in [false, true] {
            let (mut driver, mut passt) = device();
            driver.add(RECEIVE, &[write(BUFFERS, 0x10000)]);
            driver.kick(RECEIVE);
            let generation = driver.generation();
            if nonsense {
                passt.write_all(&[0xff; 64]).unwrap();
            } else {
                passt.shutdown(Shutdown::Both).unwrap();
            }
            driver.wait(|driver| (driver.config(6) == [0, 0]).then_some(()));
            assert_ne!(driver.generation(), generation);
            driver.wait(|driver| (driver.line.count() > 0).then_some(()));
            // What is sent is lost, and not the device.
            driver.transfer(TRANSMIT, &[read(BUFFERS, 100)]);
        }
    }
}
