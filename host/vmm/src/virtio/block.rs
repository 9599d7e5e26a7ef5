// SPDX-License-Identifier: MIT OR Apache-2.0

//! The block device (virtio 1.2 §5.2): a disk that is a file or a block device
//! of the host.
//!
//! The host's page cache is the disk's volatile cache: a write is durable when
//! a flush after it has ended.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
#[cfg(test)]
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::backend::{Backend, Identity, Queues, Result, Work};
use super::chain::{Buffer, Chain};
use super::memory::DeviceMemory;
use super::queue::Broken;
use super::status::Status;
use super::vectors::Vectors;

const SECTOR: u64 = 512;
/// Descriptors of the queue. Two of a chain are for header and status.
const QUEUE_SIZE: u16 = 256;
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Requests that are carried out before the worker looks for orders.
const SHARE: usize = 16;
/// Bytes that one system call moves: between two, an order ends the request.
const STEP: u64 = 4 << 20;
/// Sectors of one range that a guest discards.
const DISCARD_SECTORS: u32 = 1 << 21;
/// Sectors of one range that a guest zeroes. Where the file cannot, zeros are
/// written.
const ZEROES_SECTORS: u32 = 1 << 15;
/// Ranges in one request to discard or zero.
const RANGES: u32 = 16;
/// `struct virtio_blk_outhdr`.
const HEADER: u64 = 16;
/// `struct virtio_blk_discard_write_zeroes`.
const RANGE: u64 = 16;

/// A disk.
pub struct Block {
    name: String,
    /// Locked: for us alone, or, if it is only read, for those who only read.
    file: Flock<File>,
    read_only: bool,
    sectors: u64,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    status: Option<Arc<Status>>,
}

/// Why a request was not carried out.
enum Refusal {
    /// The request gets this status.
    Status(u32),
    /// It has no place for one, or lies outside memory.
    Broken(Broken),
}

const IOERR: Refusal = Refusal::Status(VIRTIO_BLK_S_IOERR);
const UNSUPPORTED: Refusal = Refusal::Status(VIRTIO_BLK_S_UNSUPP);

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Refusal {
        IOERR
    }
}

impl From<Broken> for Refusal {
    fn from(broken: Broken) -> Refusal {
        Refusal::Broken(broken)
    }
}

/// The result of a request or a part of it.
type Outcome<T> = std::result::Result<T, Refusal>;

impl Block {
    /// Opens a disk.
    #[cfg(test)]
    pub fn open(
        name: &str,
        path: &std::path::Path,
        read_only: bool,
        serial: &str,
    ) -> io::Result<Block> {
        let file = std::fs::OpenOptions::new().read(true).write(!read_only).open(path)?;
        Block::new(name, file, read_only, serial)
    }

    /// A disk of an open file. `name` is for messages; the guest sees the first
    /// 20 bytes of `serial`.
    ///
    /// # Errors
    /// `WouldBlock` if another program has the file locked: it has it open as a
    /// disk, too.
    pub fn new(name: &str, file: File, read_only: bool, serial: &str) -> io::Result<Block> {
        let lock = match read_only {
            true => FlockArg::LockSharedNonblock,
            false => FlockArg::LockExclusiveNonblock,
        };
        let file = Flock::lock(file, lock).map_err(|(_, errno)| io::Error::from(errno))?;
        // The end of a block device is told by a seek alone.
        let size = (&*file).seek(SeekFrom::End(0))?;
        if size < SECTOR {
            let error = "it has not even one sector of 512 bytes";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let sectors = size / SECTOR;
        Ok(Block { name: name.into(), file, read_only, sectors, serial: id, status: None })
    }

    /// Carries a request out. Answers how many bytes were written for the
    /// guest.
    fn serve(&self, chain: &Chain, memory: &DeviceMemory) -> std::result::Result<u32, Broken> {
        // The last byte that is writable is the status.
        let at = chain.writable.len().checked_sub(1);
        let at = at.ok_or(Broken("a block request has no room for its status"))?;
        let mut header = [0; HEADER as usize];
        chain.readable.read(memory, 0, &mut header)?;
        let [kind, _, low, high] = words(&header);
        let sector = u64::from(low) | u64::from(high) << 32;

        let (data, room) = (&chain.readable, &chain.writable);
        let outcome = match kind {
            VIRTIO_BLK_T_IN => self.read(room, at, memory, sector),
            VIRTIO_BLK_T_OUT => self.write(data, memory, sector),
            VIRTIO_BLK_T_FLUSH => self.flush(),
            VIRTIO_BLK_T_GET_ID => {
                let length = at.min(self.serial.len() as u64);
                room.write(memory, 0, &self.serial[..length as usize])?;
                Ok(length)
            }
            VIRTIO_BLK_T_DISCARD => self.ranges(data, memory, false),
            VIRTIO_BLK_T_WRITE_ZEROES => self.ranges(data, memory, true),
            _ => Err(UNSUPPORTED),
        };
        let (written, status) = match outcome {
            Ok(written) => (written, VIRTIO_BLK_S_OK),
            Err(Refusal::Status(status)) => (0, status),
            Err(Refusal::Broken(broken)) => return Err(broken),
        };
        room.write(memory, at, &[status as u8])?;
        // The used length covers the status only if all bytes before it were written.
        Ok(if written == at { at as u32 + 1 } else { written as u32 })
    }

    /// Whether the sectors are on the disk; answers the first one's place.
    fn place(&self, sector: u64, length: u64) -> Outcome<u64> {
        let end = sector.checked_add(length / SECTOR);
        if !length.is_multiple_of(SECTOR) || end.is_none_or(|end| end > self.sectors) {
            return Err(IOERR);
        }
        // The disk's size in bytes is a `u64`.
        Ok(sector * SECTOR)
    }

    fn read(&self, room: &Buffer, length: u64, memory: &DeviceMemory, sector: u64) -> Outcome<u64> {
        let place = self.place(sector, length)?;
        self.steps(room, 0, length, memory, |vectors, done| {
            vectors.read_at(&*self.file, place + done)
        })
    }

    fn write(&self, data: &Buffer, memory: &DeviceMemory, sector: u64) -> Outcome<u64> {
        let length = data.len() - HEADER;
        let place = self.place(sector, length)?;
        if self.read_only {
            return Err(IOERR);
        }
        self.steps(data, HEADER, length, memory, |vectors, done| {
            vectors.write_at(&*self.file, place + done)
        })?;
        Ok(0)
    }

    /// Moves the `length` bytes from `offset` on of a buffer, by calls that
    /// move some of them.
    fn steps(
        &self,
        buffer: &Buffer,
        offset: u64,
        length: u64,
        memory: &DeviceMemory,
        mut call: impl FnMut(&mut Vectors<'_>, u64) -> io::Result<usize>,
    ) -> Outcome<u64> {
        let mut done = 0;
        while done < length {
            let mut vectors = Vectors::default();
            buffer.add_to(&mut vectors, memory, offset + done, STEP.min(length - done))?;
            while vectors.len() > 0 {
                match call(&mut vectors, done) {
                    // The file has been truncated, or the worker has an order to carry out.
                    Ok(0) => return Err(IOERR),
                    Ok(_) if self.hurry() => return Err(IOERR),
                    Ok(moved) => done += moved as u64,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(done)
    }

    fn hurry(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.hurry())
    }

    fn flush(&self) -> Outcome<u64> {
        self.file.sync_data()?;
        Ok(0)
    }

    /// Discards or zeroes ranges of sectors.
    fn ranges(&self, data: &Buffer, memory: &DeviceMemory, zero: bool) -> Outcome<u64> {
        let length = data.len() - HEADER;
        if self.read_only
            || !(1..=u64::from(RANGES)).contains(&(length / RANGE))
            || !length.is_multiple_of(RANGE)
        {
            return Err(IOERR);
        }
        let mut ranges = vec![0; length as usize];
        data.read(memory, HEADER, &mut ranges)?;
        for range in ranges.chunks_exact(RANGE as usize) {
            self.range(range, zero)?;
        }
        Ok(0)
    }

    fn range(&self, range: &[u8], zero: bool) -> Outcome<()> {
        let [low, high, sectors, flags] = words(range);
        let sector = u64::from(low) | u64::from(high) << 32;
        let (most, known) = match zero {
            true => (ZEROES_SECTORS, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP),
            false => (DISCARD_SECTORS, 0),
        };
        if flags & !known != 0 {
            return Err(UNSUPPORTED);
        }
        if sectors > most {
            return Err(IOERR);
        }
        let length = u64::from(sectors) * SECTOR;
        let place = self.place(sector, length)?;
        if length == 0 {
            return Ok(());
        }
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
        let mode = match zero && flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP == 0 {
            true => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            false => hole,
        } | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&*self.file, mode, place as i64, length as i64) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP) if zero => Ok(self.write_zeros(place, length)?),
            // A discard is a hint: a file that has no holes keeps what it has.
            Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }

    fn write_zeros(&self, place: u64, length: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let zeros = [0; 64 << 10];
        let (mut place, end) = (place, place + length);
        while place < end {
            let count = (end - place).min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..count as usize], place)?;
            place += count;
        }
        Ok(())
    }
}

impl Backend for Block {
    fn identity(&self) -> Identity {
        let mut features =
            1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        features |= match self.read_only {
            true => 1 << VIRTIO_BLK_F_RO,
            false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        };
        // `struct virtio_blk_config`.
        let mut config = vec![0; 60];
        let mut put = |at: usize, value: &[u8]| config[at..at + value.len()].copy_from_slice(value);
        put(0, &self.sectors.to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(36, &DISCARD_SECTORS.to_le_bytes());
        put(40, &RANGES.to_le_bytes());
        // discard_sector_alignment: a hole is punched by pages of the host.
        put(44, &8u32.to_le_bytes());
        put(48, &ZEROES_SECTORS.to_le_bytes());
        put(52, &RANGES.to_le_bytes());
        put(56, &[1]);
        Identity {
            name: self.name.clone(),
            kind: VIRTIO_ID_BLOCK,
            features,
            queues: &[QUEUE_SIZE],
            config,
        }
    }

    fn start(&mut self, _features: u64, status: Arc<Status>) {
        self.status = Some(status);
    }

    fn kicked(&mut self, queues: &mut Queues, index: usize) -> Result {
        let Some(queue) = &mut queues[index] else { return Ok(Work::Done) };
        for _ in 0..SHARE {
            let Some(chain) = queue.pop()? else { return Ok(Work::Done) };
            let written = self.serve(&chain, queue.memory())?;
            queue.push(&chain, written)?;
            if self.hurry() {
                break;
            }
        }
        Ok(Work::More)
    }
}

/// Four little-endian words of 16 bytes.
fn words(bytes: &[u8]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
    }
    words
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use virtio_bindings::virtio_ring::VRING_DESC_F_INDIRECT;

    use super::super::driver::*;
    use super::*;

    const SECTORS: u64 = 2048;
    const STATUS: u64 = BUFFERS + 0x10;
    const DATA: u64 = BUFFERS + 0x1000;

    /// A file in which each sector differs.
    fn image() -> (tempfile::NamedTempFile, Vec<u8>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let data =
            (0..SECTORS * SECTOR).map(|at| ((at / 7) ^ (at / 512)) as u8).collect::<Vec<_>>();
        file.as_file().write_all_at(&data, 0).unwrap();
        (file, data)
    }

    fn disk(file: &tempfile::NamedTempFile, read_only: bool) -> Block {
        Block::open("disk0", file.path(), read_only, "a-serial-of-more-than-20-bytes").unwrap()
    }

    fn contents(file: &tempfile::NamedTempFile) -> Vec<u8> {
        std::fs::read(file.path()).unwrap()
    }

    fn header(driver: &Driver, kind: u32, sector: u64) -> Desc {
        driver.put(BUFFERS, &[kind.to_le_bytes(), [0; 4]].concat());
        driver.put(BUFFERS + 8, &sector.to_le_bytes());
        driver.put(STATUS, &[0xff]);
        read(BUFFERS, 16)
    }

    /// Makes a request, and answers its status and the bytes written.
    fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[Desc]) -> (u32, u32) {
        let mut chain = vec![header(driver, kind, sector)];
        chain.extend(data);
        chain.push(write(STATUS, 1));
        let written = driver.transfer(0, &chain);
        (driver.get(STATUS, 1)[0].into(), written)
    }

    #[test]
    fn data_that_the_guest_takes_back_fails_its_request_alone() {
        let (file, expected) = image();
        let mut driver = Driver::started(disk(&file, false), 64);
        let page = DATA + PAGE;
        driver.put(DATA, &[0xee; 3 * PAGE as usize]);
        driver.take_back(page, 1);
        for (kind, data) in
            [(VIRTIO_BLK_T_IN, write(page, 512)), (VIRTIO_BLK_T_OUT, read(page, 512))]
        {
            assert_eq!(request(&mut driver, kind, 0, &[data]).0, VIRTIO_BLK_S_IOERR);
        }
        assert_eq!(contents(&file), expected);
        // So does a request that begins elsewhere, and ends there.
        let (status, _) = request(&mut driver, VIRTIO_BLK_T_IN, 0, &[write(page - 512, 1024)]);
        assert_eq!(status, VIRTIO_BLK_S_IOERR);
        // Others do not, and this one does not once the page is back.
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 1, &[write(DATA, 512)]).0, 0);
        assert_eq!(driver.get(DATA, 512), expected[512..1024]);
        driver.share(page, 1);
        assert_eq!(driver.get(page, 512), [0xee; 512]);
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 1, &[write(page, 512)]).0, 0);
        assert_eq!(driver.get(page, 512), expected[512..1024]);

        // A status cannot say that it has nowhere to be.
        driver.take_back(BUFFERS, 1);
        let chain = [read(DATA, 16), write(STATUS, 1)];
        driver.put(DATA, &[0; 16]);
        driver.add(0, &chain);
        driver.kick(0);
        driver.wait_broken();
    }

    #[test]
    fn what_is_written_is_read_and_in_the_file() {
        let (file, mut expected) = image();
        let mut driver = Driver::started(disk(&file, false), 64);
        assert_eq!(u64::from_le_bytes(driver.config(0)), SECTORS);

        // Pieces that are no sectors, and one at memory's very end.
        let end = RAM + RAM_SIZE - 24;
        let pieces = |kind: fn(u64, u32) -> Desc| {
            [kind(DATA + 3, 1000), kind(DATA + 0x1000, 0), kind(DATA + 0x2001, 512), kind(end, 24)]
        };
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 5, &pieces(write)), (0, 1537));
        let seen =
            [driver.get(DATA + 3, 1000), driver.get(DATA + 0x2001, 512), driver.get(end, 24)];
        assert_eq!(seen.concat(), expected[5 * 512..8 * 512]);

        let new = (0..1536).map(|at| (at * 3) as u8).collect::<Vec<_>>();
        driver.put(DATA + 3, &new[..1000]);
        driver.put(DATA + 0x2001, &new[1000..1512]);
        driver.put(end, &new[1512..]);
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, SECTORS - 3, &pieces(read)), (0, 1));
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
        let at = expected.len() - 1536;
        expected[at..].copy_from_slice(&new);
        assert!(contents(&file) == expected);
    }

    #[test]
    fn a_request_in_an_indirect_table() {
        let (file, expected) = image();
        let mut driver = Driver::started(disk(&file, false), 64);
        let table = BUFFERS + 0x100;
        let mut chain = vec![header(&driver, VIRTIO_BLK_T_IN, 0)];
        chain.extend((0..200).map(|piece| write(DATA + piece * 5120, 5120)));
        chain.push(write(STATUS, 1));
        for (index, desc) in (0..).zip(&chain) {
            let mut desc = *desc;
            if usize::from(index) + 1 < chain.len() {
                (desc.flags, desc.next) = (desc.flags | 1, index + 1);
            }
            driver.descriptor(table, index, desc);
        }
        let indirect =
            Desc { flags: VRING_DESC_F_INDIRECT as u16, ..read(table, 16 * chain.len() as u32) };
        assert_eq!(driver.transfer(0, &[indirect]), 200 * 5120 + 1);
        assert_eq!(driver.get(STATUS, 1), [0]);
        assert!(driver.get(DATA, 200 * 5120) == expected[..200 * 5120]);
    }

    #[test]
    fn a_request_of_several_steps() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let data = (0..9u64 << 20).map(|at| (at / 511) as u8).collect::<Vec<_>>();
        file.as_file().write_all_at(&data, 0).unwrap();
        let mut driver = Driver::started(disk(&file, false), 64);
        let pieces = [write(DATA, 3 << 20), write(DATA + (3 << 20), 6 << 20)];
        let length = 9 << 20;
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &pieces), (0, length + 1));
        assert!(driver.get(DATA, length as usize) == data);
        let inverted = data.iter().map(|byte| !byte).collect::<Vec<_>>();
        driver.put(DATA, &inverted);
        let pieces = [read(DATA, 3 << 20), read(DATA + (3 << 20), 6 << 20)];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &pieces), (0, 1));
        assert!(contents(&file) == inverted);
    }

    #[test]
    fn requests_outside_the_disk_or_of_half_sectors_fail_and_do_nothing() {
        let (file, expected) = image();
        let mut driver = Driver::started(disk(&file, false), 64);
        driver.put(DATA, &[0xee; 1024]);
        for (sector, length) in [
            (SECTORS, 512),
            (SECTORS - 1, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (1 << 55, 512),
            (0, 511),
            (0, 513),
        ] {
            let error = |written| (VIRTIO_BLK_S_IOERR, written);
            let data = [read(DATA, length)];
            assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, sector, &data), error(1));
            let data = [write(DATA, length)];
            assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, sector, &data), error(0));
        }
        assert_eq!(driver.get(DATA, 1024), [0xee; 1024]);
        assert!(contents(&file) == expected);
        let unknown = request(&mut driver, 77, 0, &[]);
        assert_eq!(unknown.0, VIRTIO_BLK_S_UNSUPP);
    }

    #[test]
    fn a_disk_that_is_only_read_is_never_written() {
        let (file, expected) = image();
        let mut driver = Driver::started(disk(&file, true), 64);
        assert_ne!(driver.features() & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(driver.features() & 1 << VIRTIO_BLK_F_DISCARD, 0);
        let range = [0u64.to_le_bytes(), 8u64.to_le_bytes()].concat();
        driver.put(DATA, &range);
        for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            for length in [16, 512] {
                let result = request(&mut driver, kind, 0, &[read(DATA, length)]);
                assert_eq!(result.0, VIRTIO_BLK_S_IOERR);
            }
        }
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[write(DATA, 512)]), (0, 513));
        assert!(contents(&file) == expected);
    }

    #[test]
    fn the_serial_is_cut_at_20_bytes_and_at_the_buffer() {
        let (file, _) = image();
        let mut driver = Driver::started(disk(&file, false), 64);
        for length in [20, 7, 0] {
            driver.put(DATA, &[0; 24]);
            let data = [write(DATA, length)];
            assert_eq!(request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &data), (0, length + 1));
            let mut expected = b"a-serial-of-more-than-20-bytes"[..length as usize].to_vec();
            expected.resize(24, 0);
            assert_eq!(driver.get(DATA, 24), expected);
        }
    }

    #[test]
    fn ranges_are_discarded_and_zeroed() {
        let (file, mut expected) = image();
        let mut driver = Driver::started(disk(&file, false), 64);
        let range = |sector: u64, sectors: u32, flags: u32| {
            [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        // Two ranges, one to be unmapped; the pieces end inside a range.
        driver.put(DATA, &[range(3, 5, 0), range(100, 16, 1)].concat());
        let pieces = [read(DATA, 5), read(DATA + 5, 27)];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &pieces), (0, 1));
        expected[3 * 512..8 * 512].fill(0);
        expected[100 * 512..116 * 512].fill(0);
        assert!(contents(&file) == expected);

        driver.put(DATA, &range(64, 8, 0));
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &[read(DATA, 16)]).0, 0);
        expected[64 * 512..72 * 512].fill(0);
        assert!(contents(&file) == expected);

        for (kind, bytes, status) in [
            (VIRTIO_BLK_T_DISCARD, range(SECTORS - 1, 2, 0), VIRTIO_BLK_S_IOERR),
            (VIRTIO_BLK_T_DISCARD, range(u64::MAX, 1, 0), VIRTIO_BLK_S_IOERR),
            (VIRTIO_BLK_T_DISCARD, range(0, u32::MAX, 0), VIRTIO_BLK_S_IOERR),
            (VIRTIO_BLK_T_DISCARD, range(0, 1, 1), VIRTIO_BLK_S_UNSUPP),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 2), VIRTIO_BLK_S_UNSUPP),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(0, ZEROES_SECTORS + 1, 0), VIRTIO_BLK_S_IOERR),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 0)[1..].to_vec(), VIRTIO_BLK_S_IOERR),
            (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 0).repeat(17), VIRTIO_BLK_S_IOERR),
            (VIRTIO_BLK_T_WRITE_ZEROES, vec![], VIRTIO_BLK_S_IOERR),
        ] {
            driver.put(DATA, &bytes);
            let data = [read(DATA, bytes.len() as u32)];
            assert_eq!(request(&mut driver, kind, 0, &data).0, status, "{kind} {bytes:?}");
        }
        assert!(contents(&file) == expected);
    }

    #[test]
    fn where_the_file_cannot_zero_zeros_are_written() {
        let (file, mut expected) = image();
        let disk = disk(&file, false);
        disk.write_zeros(512, 150_000).unwrap();
        expected[512..150_512].fill(0);
        assert!(contents(&file) == expected);
    }

    #[test]
    fn a_disk_has_one_writer_or_many_readers() {
        let (file, _) = image();
        let open = |read_only| Block::open("disk0", file.path(), read_only, "");
        let first = open(true).unwrap();
        open(true).unwrap();
        assert_eq!(open(false).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        let _writer = open(false).unwrap();
        assert_eq!(open(true).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        let empty = tempfile::NamedTempFile::new().unwrap();
        let error = Block::open("disk0", empty.path(), false, "").err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_file_that_shrinks_gives_errors() {
        let (file, _) = image();
        let mut driver = Driver::started(disk(&file, false), 64);
        file.as_file().set_len(512).unwrap();
        let data = [write(DATA, 1024)];
        let status = request(&mut driver, VIRTIO_BLK_T_IN, 0, &data).0;
        assert_eq!(status, VIRTIO_BLK_S_IOERR);
    }

    #[test]
    fn of_a_request_with_a_part_outside_memory_nothing_is_done() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(9 << 20).unwrap();
        let mut driver = Driver::started(disk(&file, false), 64);
        driver.put(DATA, &[0xee; 512]);
        // The first part alone is more than one step.
        let data = [read(DATA, 5 << 20), read(RAM + RAM_SIZE - 511, 512)];
        let header = header(&driver, VIRTIO_BLK_T_OUT, 0);
        driver.add(0, &[header, data[0], data[1], write(STATUS, 1)]);
        driver.kick(0);
        driver.wait_broken();
        assert!(contents(&file).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn requests_without_header_or_status_stop_the_device_until_a_reset() {
        let (file, expected) = image();
        let mut driver = Driver::new(disk(&file, false));
        let features = driver.features();
        for chain in [
            vec![read(BUFFERS, 15), write(STATUS, 1)],
            vec![read(BUFFERS, 16)],
            vec![read(BUFFERS, 16), write(STATUS, 0)],
            vec![write(STATUS, 1)],
            vec![read(BUFFERS, 16), write(STATUS, 1), read(DATA, 512)],
            vec![read(BUFFERS, 16), write(RAM + RAM_SIZE - 511, 512), write(STATUS, 1)],
            vec![read(BUFFERS, 16), write(u64::MAX - 100, 512), write(STATUS, 1)],
            vec![read(RAM - 8, 16), write(STATUS, 1)],
        ] {
            driver.start(features, 64);
            header(&driver, VIRTIO_BLK_T_IN, 0);
            driver.add(0, &chain);
            driver.kick(0);
            driver.wait_broken();
            assert_eq!(driver.used(0), None, "{chain:?}");
        }
        driver.start(features, 64);
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 1, &[write(DATA, 512)]), (0, 513));
        assert!(driver.get(DATA, 512) == expected[512..1024]);
    }
}
