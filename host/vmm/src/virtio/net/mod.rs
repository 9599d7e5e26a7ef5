// SPDX-License-Identifier: MIT OR Apache-2.0

//! The network device (virtio 1.2 §5.1), with one pair of queues.
//!
//! | file | what |
//! | --- | --- |
//! | `tap` | frames go to and come from a tap device of the host's |
//! | `passt` | frames go to and come from passt, which needs no privilege |

mod passt;
mod tap;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::backend::{Backend, Identity, Queues, Result, Work};
use super::chain::{Buffer, Chain};
use super::memory::DeviceMemory;
use super::queue::{Broken, Virtqueue};
use super::status::Status;
use super::vectors::Vectors;

pub use passt::Passt;
pub use tap::Tap;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 256;
/// `struct virtio_net_hdr_v1`: before each frame in a buffer.
const HEADER: u64 = 12;
/// Where it says how many buffers a frame takes.
const HEADER_BUFFERS: u64 = 10;
/// Where the configuration says whether the link is up.
const CONFIG_LINK: usize = 6;
/// An Ethernet header and 64 KiB, the greatest frame with offloads
/// (§5.1.6.3.1).
const FRAME: u64 = 14 + (64 << 10);
/// An Ethernet header.
const SMALLEST_FRAME: u64 = 14;
/// Frames that are moved before the worker looks for orders.
const SHARE: usize = 64;

/// What a network device is connected to.
pub trait Link: Send {
    /// Readable and writable as [`Backend::sources`] says.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Which offloads it can do.
    fn features(&self) -> u64;

    /// The driver has taken these features.
    fn start(&mut self, features: u64) -> io::Result<()>;

    /// The size of the next frame with its header, or the greatest that it can
    /// have if that is not known.
    ///
    /// # Errors
    /// `WouldBlock` if it is known that there is none.
    fn next(&mut self) -> io::Result<u64>;

    /// Takes the next frame.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    fn receive(&mut self, room: &mut Vectors<'_>) -> io::Result<Frame>;

    /// Sends a frame: header and data.
    ///
    /// # Errors
    /// `WouldBlock` if it has to wait. After all others, the frame is lost.
    fn send(&mut self, memory: &DeviceMemory, frame: &Buffer) -> io::Result<()>;

    /// Goes on with what it has taken to send.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The error of a frame whose buffer has gone.
fn lost() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// A frame that was received.
pub enum Frame {
    /// It is in the room that there was for it: the bytes of header and data.
    InPlace(u64),
    /// It is here, without a header.
    Elsewhere(Vec<u8>),
}

/// A network device.
pub struct Net {
    name: String,
    mac: [u8; 6],
    link: Box<dyn Link>,
    mergeable: bool,
    /// Buffers that the driver has given for frames to come.
    room: VecDeque<Chain>,
    /// A frame that the link could not take yet.
    waiting: Option<Chain>,
    status: Option<Arc<Status>>,
}

impl Net {
    /// A device with this address.
    pub fn new(name: &str, mac: [u8; 6], link: Box<dyn Link>) -> Net {
        let (room, waiting) = (VecDeque::new(), None);
        Net { name: name.into(), mac, link, mergeable: false, room, waiting, status: None }
    }

    fn receive(&mut self, queue: &mut Virtqueue) -> Result {
        for _ in 0..SHARE {
            let needed = match self.link.next() {
                Ok(needed) => needed,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.unplug();
                    }
                    return Ok(Work::Done);
                }
            };
            if !self.make_room(queue, needed)? {
                // The driver kicks when it has given more.
                return Ok(Work::Done);
            }
            let memory = queue.memory().clone();
            let mut vectors = Vectors::default();
            // Without mergeable buffers, a frame is in one.
            let buffers = if self.mergeable { self.room.len() } else { 1 };
            for chain in self.room.iter().take(buffers) {
                chain.writable.add_to(&mut vectors, &memory, 0, u64::MAX)?;
            }
            let room = vectors.len() as u64;
            let length = match self.link.receive(&mut vectors) {
                Ok(Frame::InPlace(length)) => length,
                Ok(Frame::Elsewhere(frame)) => {
                    let length = HEADER + frame.len() as u64;
                    if length > room {
                        // The driver's buffers are too small for it.
                        continue;
                    }
                    let header = [0; HEADER as usize];
                    put(&self.room, &memory, 0, &header)?;
                    put(&self.room, &memory, HEADER, &frame)?;
                    length
                }
                Err(_) => return Ok(Work::Done),
            };
            self.give(queue, length.min(room))?;
        }
        Ok(Work::More)
    }

    /// Tells the driver that its cable goes nowhere any more.
    fn unplug(&self) {
        if let Some(status) = &self.status {
            status.set_config(CONFIG_LINK, &[0, 0]);
        }
    }

    /// Takes buffers of the driver's until there is room for `needed` bytes.
    /// Says whether there is.
    fn make_room(
        &mut self,
        queue: &mut Virtqueue,
        needed: u64,
    ) -> std::result::Result<bool, Broken> {
        let mut room = self.room.iter().map(|chain| chain.writable.len()).sum::<u64>();
        let mut first = self.room.is_empty();
        while if self.mergeable { room < needed } else { first } {
            let Some(chain) = queue.pop()? else { return Ok(false) };
            if chain.writable.len() < HEADER {
                return Err(Broken("a buffer for frames has no room for a header"));
            }
            room += chain.writable.len();
            first = false;
            self.room.push_back(chain);
        }
        Ok(true)
    }

    /// Gives the buffers of a frame of `length` bytes to the driver.
    fn give(&mut self, queue: &mut Virtqueue, length: u64) -> std::result::Result<(), Broken> {
        let mut used = Vec::new();
        let mut left = length;
        // At least one: an empty frame would be the driver's loss otherwise.
        while used.is_empty() || left > 0 {
            let Some(chain) = self.room.pop_front() else { break };
            let written = left.min(chain.writable.len());
            left -= written;
            used.push((chain, written as u32));
        }
        let count = used.len() as u16;
        if let Some((first, _)) = used.first() {
            first.writable.write(queue.memory(), HEADER_BUFFERS, &count.to_le_bytes())?;
        }
        queue.push_together(&used)
    }

    fn transmit(&mut self, queue: &mut Virtqueue) -> Result {
        for _ in 0..SHARE {
            let chain = match self.waiting.take() {
                Some(chain) => chain,
                None => match queue.pop()? {
                    Some(chain) => chain,
                    None => return Ok(Work::Done),
                },
            };
            let length = chain.readable.len();
            if length < HEADER {
                return Err(Broken("a frame has no header"));
            }
            // A frame that no network carries is lost, as on any.
            if (HEADER + SMALLEST_FRAME..=HEADER + FRAME).contains(&length) {
                match self.link.send(queue.memory(), &chain.readable) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.waiting = Some(chain);
                        return Ok(Work::Done);
                    }
                    // What the link does not take (a checksum outside the
                    // frame, say) is lost.
                    Ok(()) | Err(_) => {}
                }
            }
            queue.push(&chain, 0)?;
        }
        Ok(Work::More)
    }
}

/// Writes bytes into the buffers from `offset` on, as if they were one.
fn put(
    room: &VecDeque<Chain>,
    memory: &DeviceMemory,
    mut offset: u64,
    mut data: &[u8],
) -> std::result::Result<(), Broken> {
    for chain in room {
        let length = chain.writable.len();
        if offset < length {
            let part = (length - offset).min(data.len() as u64) as usize;
            chain.writable.write(memory, offset, &data[..part])?;
            (offset, data) = (0, &data[part..]);
        } else {
            offset -= length;
        }
    }
    Ok(())
}

impl Backend for Net {
    fn identity(&self) -> Identity {
        Identity {
            name: self.name.clone(),
            kind: VIRTIO_ID_NET,
            features: 1 << VIRTIO_NET_F_MAC
                | 1 << VIRTIO_NET_F_MRG_RXBUF
                | 1 << VIRTIO_NET_F_STATUS
                | self.link.features(),
            queues: &[QUEUE_SIZE; 2],
            // Its address, and that the link is up.
            config: [&self.mac[..], &(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes()].concat(),
        }
    }

    fn start(&mut self, features: u64, status: Arc<Status>) {
        self.status = Some(status);
        self.mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        // A link that cannot do what it offered loses frames.
        let _ = self.link.start(features);
    }

    fn kicked(&mut self, queues: &mut Queues, index: usize) -> Result {
        match queues.get_mut(index) {
            Some(Some(queue)) if index == RECEIVE => self.receive(queue),
            Some(Some(queue)) if index == TRANSMIT => self.transmit(queue),
            _ => Ok(Work::Done),
        }
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.link.descriptor()]
    }

    fn ready(&mut self, queues: &mut Queues, _source: usize) -> Result {
        // An error is met again at the next frame.
        let _ = self.link.flush();
        let received = self.kicked(queues, RECEIVE)?;
        let sent = self.kicked(queues, TRANSMIT)?;
        Ok(if received == Work::Done { sent } else { received })
    }

    fn stop(&mut self) {
        self.room.clear();
        self.waiting = None;
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::super::driver::*;
    use super::*;

    /// A link whose other end a test has. Frames come with their headers.
    struct Wire(UnixDatagram);

    impl Link for Wire {
        fn descriptor(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn features(&self) -> u64 {
            0
        }

        fn start(&mut self, _features: u64) -> io::Result<()> {
            Ok(())
        }

        fn next(&mut self) -> io::Result<u64> {
            Ok(5000)
        }

        fn receive(&mut self, room: &mut Vectors<'_>) -> io::Result<Frame> {
            room.read(&self.0).map(|length| Frame::InPlace(length as u64))
        }

        fn send(&mut self, memory: &DeviceMemory, frame: &Buffer) -> io::Result<()> {
            let mut vectors = Vectors::default();
            frame.add_to(&mut vectors, memory, 0, frame.len()).map_err(|_| lost())?;
            vectors.write(&self.0).map(drop)
        }
    }

    const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];

    /// A device, and the other end of its wire.
    fn net() -> (Net, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        (Net::new("net0", MAC, Box::new(Wire(ours))), theirs)
    }

    fn frame(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 7) as u8).collect()
    }

    #[test]
    fn the_driver_learns_the_address_and_that_the_link_is_up() {
        let (net, _wire) = net();
        let mut driver = Driver::new(net);
        assert_eq!(driver.config(0), [2, 0, 0, 1, 2, 3, 1, 0]);
    }

    #[test]
    fn frames_are_sent() {
        let (net, wire) = net();
        let mut driver = Driver::started(net, 16);
        for length in [14, 15, 60, 1514] {
            driver.put(BUFFERS, &frame(12 + length));
            let first = [read(BUFFERS, 5), read(BUFFERS + 5, 7 + length as u32)];
            assert_eq!(driver.transfer(TRANSMIT, &first), 0);
            let mut seen = vec![0; 2000];
            let received = wire.recv(&mut seen).unwrap();
            assert_eq!(seen[..received], frame(12 + length));
        }
    }

    #[test]
    fn frames_that_no_network_carries_are_lost() {
        let (net, wire) = net();
        let mut driver = Driver::started(net, 16);
        wire.set_nonblocking(true).unwrap();
        for length in [12, 25, 12 + 14 + 65537, 4 << 20] {
            assert_eq!(driver.transfer(TRANSMIT, &[read(BUFFERS, length)]), 0);
            assert!(wire.recv(&mut [0; 16]).is_err(), "{length}");
        }
        driver.add(TRANSMIT, &[read(BUFFERS, 11)]);
        driver.kick(TRANSMIT);
        driver.wait_broken();
    }

    #[test]
    fn a_frame_waits_for_a_link_that_is_full() {
        let (net, wire) = net();
        let mut driver = Driver::started(net, 64);
        // More than the socket holds.
        for number in 0..50u8 {
            let at = BUFFERS + u64::from(number) * 8192;
            driver.put(at + 12, &[number; 8000]);
            driver.add(TRANSMIT, &[read(at, 8012)]);
        }
        driver.kick(TRANSMIT);
        for number in 0..50 {
            let mut seen = [0; 9000];
            assert_eq!(wire.recv(&mut seen).unwrap(), 8012);
            assert_eq!(seen[12..8012], [number; 8000]);
        }
        for _ in 0..50 {
            driver.wait(|driver| driver.used(TRANSMIT));
        }
    }

    #[test]
    fn a_frame_is_received_in_one_buffer_or_in_several() {
        let (net, wire) = net();
        let mut driver = Driver::started(net, 16);
        for piece in 0..8 {
            let at = BUFFERS + piece * 0x1000;
            driver.add(RECEIVE, &[write(at, 4), write(at + 4, 996)]);
        }
        driver.kick(RECEIVE);
        for (length, buffers) in [(100, 1), (1000, 1), (1001, 2)] {
            let sent = frame(length);
            wire.send(&sent).unwrap();
            let mut seen = Vec::new();
            for _ in 0..buffers {
                let (head, written) = driver.wait(|driver| driver.used(RECEIVE));
                let at = BUFFERS + u64::from(head) / 2 * 0x1000;
                seen.extend(driver.get(at, written as usize));
            }
            assert_eq!(seen.len(), length);
            assert_eq!(seen[10..12], u16::to_le_bytes(buffers));
            assert_eq!(seen[..10], sent[..10]);
            assert_eq!(seen[12..], sent[12..]);
        }
    }

    #[test]
    fn the_buffers_of_a_frame_are_seen_at_once() {
        let (net, wire) = net();
        let mut driver = Driver::started(net, 64);
        for round in 0..200 {
            while driver.free(RECEIVE) > 0 {
                driver.add(RECEIVE, &[write(BUFFERS, 100)]);
            }
            driver.kick(RECEIVE);
            wire.send(&frame(4000)).unwrap();
            driver.wait(|driver| driver.used(RECEIVE));
            for _ in 1..40 {
                assert!(driver.used(RECEIVE).is_some(), "round {round}");
            }
            assert_eq!(driver.used(RECEIVE), None);
        }
    }

    #[test]
    fn without_mergeable_buffers_a_frame_is_in_one() {
        let (net, wire) = net();
        let mut driver = Driver::new(net);
        driver.start(PLAIN, 16);
        driver.add(RECEIVE, &[write(BUFFERS, 1000)]);
        driver.add(RECEIVE, &[write(BUFFERS + 0x1000, 1000)]);
        driver.kick(RECEIVE);
        for head in [0, 1] {
            wire.send(&frame(500)).unwrap();
            assert_eq!(driver.wait(|driver| driver.used(RECEIVE)), (head, 500));
            let at = BUFFERS + 0x1000 * u64::from(head);
            assert_eq!(driver.get(at + 10, 2), [1, 0]);
            assert_eq!(driver.get(at + 12, 488), frame(500)[12..]);
        }
        // Without a buffer, a frame waits for one.
        wire.send(&frame(300)).unwrap();
        driver.add(RECEIVE, &[write(BUFFERS, 1000)]);
        driver.kick(RECEIVE);
        assert_eq!(driver.wait(|driver| driver.used(RECEIVE)), (2, 300));
    }

    #[test]
    fn a_buffer_without_room_for_a_header_breaks_the_device() {
        let (net, wire) = net();
        let mut driver = Driver::started(net, 16);
        driver.add(RECEIVE, &[write(BUFFERS, 11)]);
        driver.kick(RECEIVE);
        wire.send(&frame(60)).unwrap();
        driver.wait_broken();
    }
}
