// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a machine is made of that is the host's: files, network links, sockets.
//! They are opened once, before this program gives up what it needs for that;
//! each start of the guest uses them anew.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use super::kernel::{self, Kernel};
use super::{Mac, Net, NetLink, Protection, Sharing, Specification};
use crate::virtio::{Door, Link, Passt, Tap};

/// Open files and sockets.
pub struct Parts {
    kernel: File,
    initrd: Option<File>,
    /// In the order of [`Specification::disks`].
    pub(super) disks: Vec<File>,
    /// In the order of [`Specification::nets`].
    pub(super) nets: Vec<(Mac, OpenLink)>,
    /// Where programs find the vsock device, if there is one.
    pub(super) vsock: Option<Arc<Door>>,
    /// Where programs find the virtio console, if there is one.
    console: RefCell<Option<Arc<Door>>>,
}

/// An open network link.
#[derive(Clone)]
pub enum OpenLink {
    /// A tap device.
    Tap(Tap),
    /// A passt.
    Passt(Passt),
}

impl OpenLink {
    fn open(link: &NetLink) -> Result<OpenLink> {
        match link {
            NetLink::Tap(name) => {
                let tap = Tap::open(name).map_err(|error| match error.kind() {
                    io::ErrorKind::PermissionDenied => anyhow::anyhow!(
                        "no access: make it for this user first \
                         (ip tuntap add {name} mode tap user USER), or run this as root"
                    ),
                    io::ErrorKind::NotFound => {
                        anyhow::anyhow!("the host has no /dev/net/tun (modprobe tun)")
                    }
                    io::ErrorKind::ResourceBusy => anyhow::anyhow!("another program uses it"),
                    _ => error.into(),
                });
                tap.map(OpenLink::Tap).with_context(|| format!("the network device {name}"))
            }
            NetLink::User => {
                let passt = Passt::spawn().map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => {
                        anyhow::anyhow!("the program passt is not installed (apt install passt)")
                    }
                    _ => error.into(),
                });
                passt.map(OpenLink::Passt).context("the user's network")
            }
        }
    }

    /// As a device needs it.
    pub fn link(&self) -> Box<dyn Link> {
        match self {
            OpenLink::Tap(tap) => Box::new(tap.clone()),
            OpenLink::Passt(passt) => Box::new(passt.clone()),
        }
    }
}

impl Parts {
    /// Opens what `machine` names. `place` says where the socket of a device is
    /// to be, by the device's kind.
    pub fn open(machine: &Specification, place: &dyn Fn(&str) -> PathBuf) -> Result<Parts> {
        let kernel = File::open(&machine.kernel);
        let kernel = kernel.with_context(|| format!("the kernel {}", machine.kernel.display()))?;
        let initrd = machine.initrd.as_ref().map(|path| {
            File::open(path).with_context(|| format!("the initramfs {}", path.display()))
        });
        let disks = machine.disks.iter().map(|disk| {
            let file = OpenOptions::new().read(true).write(!disk.read_only).open(&disk.path);
            file.with_context(|| format!("the disk {}", disk.path.display()))
        });
        let nets = machine.nets.iter().map(|Net { link, mac }| {
            let mac = mac.map_or_else(random_mac, Ok)?;
            Ok((mac, OpenLink::open(link)?))
        });
        let door = |kind: &str| {
            let path = place(kind);
            // The file of a program that was killed: this guest has the name now.
            let _ = std::fs::remove_file(&path);
            let opened = Door::open(&path).map(Arc::new);
            opened.with_context(|| format!("the socket {}", path.display()))
        };
        let may_have_devices =
            machine.sharing == Sharing::Shared || machine.protection != Protection::No;
        let console = may_have_devices.then(|| door("hvc0")).transpose()?;
        Ok(Parts {
            kernel,
            initrd: initrd.transpose()?,
            disks: disks.collect::<Result<_>>()?,
            nets: nets.collect::<Result<_>>()?,
            vsock: machine.vsock.map(|_| door("vsock")).transpose()?,
            console: RefCell::new(console),
        })
    }

    /// A kernel and an initramfs that are open, and nothing else.
    #[cfg(target_arch = "aarch64")]
    pub fn of(kernel: File, initrd: File) -> Parts {
        let (disks, nets) = (Vec::new(), Vec::new());
        let console = RefCell::default();
        Parts { kernel, initrd: Some(initrd), disks, nets, vsock: None, console }
    }

    /// Where programs find the virtio console, if there is one.
    pub(super) fn console(&self) -> Option<Arc<Door>> {
        self.console.borrow().clone()
    }

    /// The guest has no devices: nobody is to find one.
    pub(super) fn close(&self) {
        self.console.take();
    }

    /// The kernel.
    pub(super) fn kernel(&self) -> Result<Kernel<'_>, kernel::Error> {
        if self.kernel.metadata()?.is_dir() {
            return Err(kernel::Error::Foreign("a directory"));
        }
        (&self.kernel).seek(SeekFrom::Start(0))?;
        Kernel::new(BufReader::with_capacity(1 << 18, &self.kernel))
    }

    /// The initramfs and its size.
    pub(super) fn initrd(&self) -> Result<Option<(&File, u64)>> {
        let Some(mut file) = self.initrd.as_ref() else { return Ok(None) };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            bail!("it is not a regular file");
        }
        if metadata.len() == 0 {
            bail!("it is empty");
        }
        file.seek(SeekFrom::Start(0))?;
        Ok(Some((file, metadata.len())))
    }
}

/// An address of nobody's: locally administered, and of one station (IEEE 802,
/// 8.2).
fn random_mac() -> Result<Mac> {
    let mut mac = [0; 6];
    getrandom::fill(&mut mac).context("a random address")?;
    mac[0] = mac[0] & !1 | 2;
    Ok(Mac(mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_addresses_are_of_one_station_and_local() {
        let all: Vec<_> = (0..64).map(|_| random_mac().unwrap()).collect();
        assert!(all.iter().all(|Mac(mac)| mac[0] & 3 == 2));
        assert_ne!(all[0], all[1]);
    }
}
