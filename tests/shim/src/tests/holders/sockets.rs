// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages that the network stack has.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use escrow_shim_tests::runner::Lacking;
use nix::errno::Errno;

use super::pipes::word_of;
use super::{HELD, HOSTS, Holder, PIN, at_home, comes, held, story_of};
use crate::gunyah::{Mapping, PAGE};

/// Bytes that the receiver has no room for.
const AHEAD: usize = 256 << 10;

/// An option of a socket.
fn set<T>(socket: i32, level: i32, option: i32, value: &T) -> Result<(), Errno> {
    // SAFETY: the kernel reads the value, whose size it is told.
    Errno::result(unsafe {
        libc::setsockopt(
            socket,
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Sends what is at an address, without waiting.
fn send(socket: &TcpStream, at: *const u8, size: usize, flags: i32) -> Result<usize, Errno> {
    // SAFETY: the kernel checks the address, and takes the pages or what is in
    // them; nothing in this program has a reference that would mind.
    let count =
        unsafe { libc::send(socket.as_raw_fd(), at.cast(), size, flags | libc::MSG_DONTWAIT) };
    Ok(Errno::result(count)? as usize)
}

/// A page on its way over the loopback, behind more than the receiver takes:
/// it waits in the sender's queue. (What is delivered locally is copied first:
/// `skb_orphan_frags_rx`.)
pub struct Sent {
    sender: TcpStream,
    receiver: TcpStream,
}

impl Holder for Sent {
    const REFERENCES: u64 = 1;

    fn take(mapping: &Mapping, page: u64) -> Result<Sent> {
        let up = Command::new("ifconfig").args(["lo", "127.0.0.1", "up"]).status()?;
        ensure!(up.success(), "the loopback does not come up");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        // Less than what is sent, and so much that a page fits into one packet.
        let small: i32 = 32 << 10;
        set(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &small)?;
        let sender = TcpStream::connect(listener.local_addr()?)?;
        let large = 2 * AHEAD as i32;
        set(sender.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &large)?;
        set(sender.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1i32)?;
        let (receiver, _) = listener.accept()?;
        // The end of a record, so that the page is not split between packets.
        let ahead = vec![0xaa; AHEAD];
        let count = send(&sender, ahead.as_ptr(), AHEAD, libc::MSG_EOR)?;
        ensure!(count == AHEAD, "{count} bytes sent ahead");
        let count = send(&sender, mapping.at(page * PAGE), PAGE as usize, libc::MSG_ZEROCOPY)?;
        ensure!(count == PAGE as usize, "{count} bytes sent");
        Ok(Sent { sender, receiver })
    }

    fn release(mut self) -> Result<u64> {
        self.receiver.read_exact(&mut vec![0; AHEAD])?;
        let word = word_of(&mut self.receiver)?;
        drop(self.sender);
        Ok(word)
    }
}

/// MSG_ZEROCOPY: nobody reads, and the page waits.
pub fn zero_copy_send() -> Result<()> {
    story_of::<Sent>()?;
    // Both ends closed with the page still in the queue.
    let guest = at_home()?;
    let sent = Sent::take(&guest.mapping, HELD)?;
    held(&guest, 1)?;
    drop(sent);
    comes(&guest, HOSTS)
}

/// Frames of an AF_XDP socket (`struct xdp_umem_reg`).
#[repr(C)]
struct Umem {
    addr: u64,
    len: u64,
    chunk_size: u32,
    headroom: u32,
    flags: u32,
    tx_metadata_len: u32,
}

const SOL_XDP: i32 = 283;
const XDP_UMEM_REG: i32 = 4;

struct Packets(OwnedFd);

impl Holder for Packets {
    const REFERENCES: u64 = PIN;

    fn take(mapping: &Mapping, page: u64) -> Result<Packets> {
        // SAFETY: makes a socket.
        let socket = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if Errno::result(socket) == Err(Errno::EAFNOSUPPORT) {
            bail!(Lacking("sockets for packets".to_owned()));
        }
        let socket = Errno::result(socket).context("a socket for packets")?;
        // SAFETY: it is new, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let umem = Umem {
            addr: mapping.at(page * PAGE) as u64,
            len: PAGE,
            chunk_size: PAGE as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set(socket.as_raw_fd(), SOL_XDP, XDP_UMEM_REG, &umem)?;
        Ok(Packets(socket))
    }

    fn release(self) -> Result<u64> {
        drop(self.0);
        Ok(HOSTS)
    }
}

/// Memory that a socket takes packets to and from, pinned and mapped by the
/// kernel until the socket is closed.
pub fn packet_memory() -> Result<()> {
    story_of::<Packets>()
}
