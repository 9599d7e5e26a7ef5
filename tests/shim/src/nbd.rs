// SPDX-License-Identifier: MIT OR Apache-2.0

//! A network block device whose server is this program, which so decides when
//! an I/O is done. See the kernel's `Documentation/admin-guide/blockdev/nbd.rst`
//! and the protocol's description by the NBD project.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use crate::wait::until;

/// Bytes in a block.
pub const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;
/// The block whose I/O waits for the program.
pub const SLOW: u64 = 32;

const DEVICE: &str = "/dev/nbd0";
const SYSFS: &str = "/sys/block/nbd0";

/// The driver's requests, `_IO(0xab, n)`.
const SET_SOCK: u64 = 0xab00;
const SET_BLKSIZE: u64 = 0xab01;
const DO_IT: u64 = 0xab03;
const SET_SIZE_BLOCKS: u64 = 0xab07;

/// First words of a request and of a reply.
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// Commands.
const READ: u32 = 0;
const WRITE: u32 = 1;
const DISCONNECT: u32 = 2;

fn ioctl(device: &File, request: u64, number: u64) -> Result<(), Errno> {
    // SAFETY: all of these requests take plain numbers.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), request as _, number) }).map(drop)
}

/// The device, and this program's side of it. It ends with the process.
pub struct Device {
    contents: Arc<Mutex<Vec<u8>>>,
    arrived: Receiver<()>,
    go: Sender<()>,
}

impl Device {
    /// Makes one, of which all is zero.
    pub fn serve() -> Result<Device> {
        crate::modules::load("nbd", "nbds_max=1 max_part=0", SYSFS)?;
        let device = OpenOptions::new().read(true).write(true).open(DEVICE).context(DEVICE)?;
        let (kernel, server) = UnixStream::pair()?;
        ioctl(&device, SET_BLKSIZE, BLOCK).context("the size of a block")?;
        ioctl(&device, SET_SIZE_BLOCKS, BLOCKS).context("the number of blocks")?;
        ioctl(&device, SET_SOCK, kernel.as_raw_fd() as u64).context("the socket")?;

        let contents = Arc::new(Mutex::new(vec![0; (BLOCKS * BLOCK) as usize]));
        let (tell, arrived) = channel();
        let (go, wait) = channel();
        let server = Server { stream: server, contents: contents.clone(), arrived: tell, go: wait };
        thread::spawn(move || server.run());
        // The driver serves the device for as long as this call lasts: until
        // the process ends.
        thread::spawn(move || {
            let _socket = kernel;
            ioctl(&device, DO_IT, 0)
        });
        until("the device's size", || {
            let size = fs::read_to_string(format!("{SYSFS}/size"))?;
            Ok(fs::exists(format!("{SYSFS}/pid"))?
                && size.trim().parse() == Ok(BLOCKS * BLOCK / 512))
        })?;
        Ok(Device { contents, arrived, go })
    }

    /// Opens it past the page cache.
    pub fn open(&self) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_DIRECT);
        options.open(DEVICE).context(DEVICE)
    }

    /// Waits until an I/O of the slow block has come, and is in flight.
    pub fn wait(&self) -> Result<()> {
        self.arrived.recv().context("the server has gone")
    }

    /// Lets that I/O be done.
    pub fn complete(&self) -> Result<()> {
        self.go.send(()).context("the server has gone")
    }

    /// The first word of the slow block.
    pub fn word(&self) -> Result<u64> {
        let contents = self.contents.lock().map_err(|_| io::Error::other("a thread panicked"))?;
        let bytes = contents.get((SLOW * BLOCK) as usize..).and_then(|rest| rest.first_chunk());
        Ok(u64::from_le_bytes(*bytes.context("no such block")?))
    }

    /// Changes it.
    pub fn set_word(&self, word: u64) -> Result<()> {
        let mut contents =
            self.contents.lock().map_err(|_| io::Error::other("a thread panicked"))?;
        let at = (SLOW * BLOCK) as usize;
        contents.get_mut(at..at + 8).context("no such block")?.copy_from_slice(&word.to_le_bytes());
        Ok(())
    }
}

struct Server {
    stream: UnixStream,
    contents: Arc<Mutex<Vec<u8>>>,
    arrived: Sender<()>,
    go: Receiver<()>,
}

/// What the driver asks for.
struct Request {
    command: u32,
    cookie: [u8; 8],
    from: u64,
    size: u32,
}

impl Request {
    fn read(mut stream: impl io::Read) -> Result<Request> {
        let mut bytes = [0; 28];
        stream.read_exact(&mut bytes)?;
        let word = |at: usize| -> Result<u32> {
            let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk());
            Ok(u32::from_be_bytes(*bytes.context("a short request")?))
        };
        ensure!(word(0)? == REQUEST, "no request");
        let cookie = *bytes.get(8..).and_then(|rest| rest.first_chunk()).context("no cookie")?;
        let from = u64::from(word(16)?) << 32 | u64::from(word(20)?);
        Ok(Request { command: word(4)? & 0xffff, cookie, from, size: word(24)? })
    }
}

impl Server {
    fn run(mut self) -> Result<()> {
        loop {
            let request = Request::read(&self.stream)?;
            if request.command == DISCONNECT {
                return Ok(());
            }
            let mut data = vec![0; request.size as usize];
            if request.command == WRITE {
                self.stream.read_exact(&mut data)?;
            }
            if request.from / BLOCK == SLOW {
                self.arrived.send(())?;
                self.go.recv()?;
            }
            let mut answer = Vec::from(REPLY.to_be_bytes());
            answer.extend([0; 4]);
            answer.extend(request.cookie);
            if matches!(request.command, READ | WRITE) {
                let mut contents =
                    self.contents.lock().map_err(|_| io::Error::other("a thread panicked"))?;
                let from = request.from as usize;
                let blocks = contents.get_mut(from..from + data.len()).context("beyond the end")?;
                if request.command == WRITE {
                    blocks.copy_from_slice(&data);
                } else {
                    answer.extend_from_slice(blocks);
                }
            }
            self.stream.write_all(&answer)?;
        }
    }
}
