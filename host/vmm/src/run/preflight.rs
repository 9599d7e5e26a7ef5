// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is missing for a guest, found out and told before anything is started.

use std::fs;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;
use procfs::{Current as _, Meminfo};

use super::size::Size;
use crate::gunyah::Device;
use crate::machine::layout::MIB;

/// Where the host's device tree names its hypervisor.
const HYPERVISOR: &str = "/proc/device-tree/hypervisor/compatible";

/// Opens the device, or says what is missing.
pub fn open() -> Result<Device> {
    Device::open().map_err(|error| match error.errno {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => anyhow!(missing(under_escrow())),
        Errno::EACCES | Errno::EPERM => anyhow!(
            "no access to /dev/gunyah: run this as root, or join the group escrow, if the module's \
             udev rule has given the device to it: usermod -aG escrow USER"
        ),
        _ => error.into(),
    })
}

/// Whether Escrow says to this host that it is there.
fn under_escrow() -> bool {
    let compatible = fs::read(HYPERVISOR).unwrap_or_default();
    compatible.split(|&byte| byte == 0).any(|name| name == b"escrow,hypervisor")
}

fn missing(under_escrow: bool) -> &'static str {
    if under_escrow {
        "there is no /dev/gunyah: the module is not loaded (modprobe escrow)"
    } else {
        "there is no Escrow underneath this machine: guests need a host that Escrow has booted"
    }
}

/// Whether the host has the memory for a guest's RAM, and this user may have it. `at_once`: all of
/// it is allocated before the guest starts.
pub fn check_memory(ram: u64, at_once: bool) -> Result<()> {
    let memory = Meminfo::current().context("reading /proc/meminfo")?;
    let available = memory.mem_available.unwrap_or(memory.mem_free);
    fits(ram, at_once, memory.mem_total, available)?;
    if !geteuid().is_root() {
        let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).context("RLIMIT_MEMLOCK")?;
        may_lock(ram, limit)?;
    }
    Ok(())
}

fn fits(ram: u64, at_once: bool, total: u64, available: u64) -> Result<()> {
    if ram >= total {
        bail!(
            "{} of RAM for the guest, and the host has {} MiB in all (--memory)",
            Size(ram),
            total / MIB
        );
    }
    if ram > available && at_once {
        // The kernel would kill programs for it, this one first.
        bail!(
            "{} of RAM for the guest at once (--hugepages), and the host has {} MiB to spare: use \
             less (--memory)",
            Size(ram),
            available / MIB
        );
    }
    if ram > available {
        // Only a warning: the guest may not use all of its RAM.
        eprintln!(
            "escrow: warning: {} of RAM for the guest, and the host has {} MiB to spare",
            Size(ram),
            available / MIB
        );
    }
    Ok(())
}

fn may_lock(ram: u64, limit: u64) -> Result<()> {
    if ram > limit {
        bail!(
            "{} of RAM for the guest, and you may lock {} MiB: a guest's RAM counts as locked \
             memory. Raise the limit (ulimit -l, /etc/security/limits.d), or use less (--memory)",
            Size(ram),
            limit / MIB
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_memory_is_said_in_numbers() {
        assert!(fits(512 * MIB, true, 1024 * MIB, 600 * MIB).is_ok());
        assert!(fits(512 * MIB, false, 1024 * MIB, 100 * MIB).is_ok());
        let error = fits(512 * MIB, true, 1024 * MIB, 100 * MIB).unwrap_err().to_string();
        assert!(error.contains("512M") && error.contains("100 MiB to spare"), "{error}");
        let error = fits(1024 * MIB, false, 1024 * MIB, 0).unwrap_err().to_string();
        assert!(error.contains("1G") && error.contains("1024 MiB"), "{error}");
        let error = may_lock(512 * MIB, 8 * MIB).unwrap_err().to_string();
        assert!(error.contains("512M") && error.contains("8 MiB"), "{error}");
        assert!(may_lock(512 * MIB, u64::MAX).is_ok());
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(missing(true).contains("modprobe"));
        assert!(missing(false).contains("no Escrow"));
        // The build machine does not run under Escrow.
        if !std::path::Path::new("/dev/gunyah").exists() {
            let error = open().err().unwrap().to_string();
            assert!(error.contains("no Escrow") || error.contains("modprobe"), "{error}");
        }
    }
}
