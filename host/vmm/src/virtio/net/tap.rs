// SPDX-License-Identifier: MIT OR Apache-2.0

//! A tap device of the host's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use virtio_bindings::virtio_net::*;
use vmm_sys_util::ioctl::{ioctl_with_ref, ioctl_with_val};

use super::{FRAME, Frame, HEADER, Link, lost};
use crate::virtio::chain::Buffer;
use crate::virtio::memory::DeviceMemory;
use crate::virtio::vectors::Vectors;

/// A frame without offloads: of 1,500 bytes, with a VLAN's tag.
const ORDINARY_FRAME: u64 = 1518;

/// A tap device. It knows the header that is before each frame, and does what
/// it says.
///
/// Clones are the same device: one after the other may use it.
#[derive(Clone)]
pub struct Tap {
    file: Arc<File>,
    largest: u64,
}

impl Tap {
    /// Attaches to the tap device `name`; makes it if there is none and this
    /// program may.
    ///
    /// # Errors
    /// `PermissionDenied` if the device is another user's, or there is none;
    /// `ResourceBusy` if another program has it.
    pub fn open(name: &str) -> io::Result<Tap> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        // SAFETY: all members of the structure and its union are numbers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // A name that is cut would be another device's; a NUL ends it.
        if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
            let error = "a network device's name has 1 to 15 bytes";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the call reads and writes the structure, which is a local
        // variable.
        check(unsafe { ioctl_with_ref(&file, libc::TUNSETIFF as _, &request) })?;
        let size = HEADER as libc::c_int;
        // SAFETY: the call reads a number.
        check(unsafe { ioctl_with_ref(&file, libc::TUNSETVNETHDRSZ as _, &size) })?;
        Ok(Tap { file: Arc::new(file), largest: HEADER + FRAME })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Link for Tap {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
    }

    fn start(&mut self, features: u64) -> io::Result<()> {
        let offloads = [
            (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
            (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        ];
        let taken = offloads.iter().filter(|(feature, _)| features & 1 << feature != 0);
        let offloads = taken.fold(0, |offloads, (_, offload)| offloads | offload);
        let segments = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        self.largest = HEADER + if offloads & segments == 0 { ORDINARY_FRAME } else { FRAME };
        // SAFETY: the call takes a number.
        check(unsafe { ioctl_with_val(&*self.file, libc::TUNSETOFFLOAD as _, offloads.into()) })
    }

    fn next(&mut self) -> io::Result<u64> {
        Ok(self.largest)
    }

    fn receive(&mut self, room: &mut Vectors<'_>) -> io::Result<Frame> {
        room.read(&*self.file).map(|length| Frame::InPlace(length as u64))
    }

    fn send(&mut self, memory: &DeviceMemory, frame: &Buffer) -> io::Result<()> {
        let mut vectors = Vectors::default();
        frame.add_to(&mut vectors, memory, 0, frame.len()).map_err(|_| lost())?;
        vectors.write(&*self.file).map(drop)
    }
}
