// SPDX-License-Identifier: MIT OR Apache-2.0

//! What Escrow and the shim tell about themselves.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result, ensure};
use escrow_abi::FrameState;
use escrow_vmcore::uapi;

/// Escrow's counts. Memory that tests have broken stays broken: it is counted
/// with what the host owns, whose it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    vms: String,
    pages: BTreeMap<String, u64>,
}

impl Facts {
    /// Asks Escrow.
    pub fn read() -> Result<Facts> {
        let read = |name: &str| {
            let path = format!("{}/{name}", uapi::SYSFS_DIR);
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let mut pages = BTreeMap::new();
        for line in read("pages")?.lines() {
            let (name, count) = line.split_once(' ').context("a line of two words")?;
            let name =
                if name == FrameState::Poisoned.name() { FrameState::Owned.name() } else { name };
            *pages.entry(name.to_owned()).or_insert(0) += count.trim().parse::<u64>()?;
        }
        Ok(Facts { vms: read("vms")?, pages })
    }
}

/// One of the shim's own numbers, by its name in [`uapi::SHIM_TOTALS`] or [`uapi::SHIM_EVENTS`].
pub fn shim(name: &str) -> Result<u64> {
    let path = format!("{}/{name}", uapi::SHIM_SYSFS_DIR);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().parse()?)
}

/// A line of a guest memory's fdinfo.
pub fn fdinfo(fd: BorrowedFd<'_>, name: &str) -> Result<String> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    Ok(value.with_context(|| format!("{path} has no line {name}"))?.to_owned())
}

/// All lines of a guest memory's fdinfo that have that name.
pub fn fdinfo_all(fd: BorrowedFd<'_>, name: &str) -> Result<Vec<String>> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    Ok(values.map(str::to_owned).collect())
}

/// Of a kernel that looks for leaks itself.
const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// The kernel's memory, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelMemory {
    /// Nobody has it; those pages as well that each CPU keeps ready, of which
    /// there are the more the more it has had to do.
    pub free: i64,
    /// The kernel's own objects, of those that it cannot drop.
    pub slab: i64,
}

impl KernelMemory {
    /// Asks the kernel.
    pub fn read() -> Result<KernelMemory> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let number = |name: &str| -> Result<i64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
            Ok(number.with_context(|| format!("no {name}"))?.parse()?)
        };
        let zones = fs::read_to_string("/proc/zoneinfo")?;
        let counts = zones.lines().filter_map(|line| line.trim().strip_prefix("count:"));
        let ready: i64 = counts.filter_map(|count| count.trim().parse::<i64>().ok()).sum();
        Ok(KernelMemory { free: number("MemFree")? + 4 * ready, slab: number("SUnreclaim")? })
    }

    /// Fails if more than `bound` KiB are missing since then. A kernel that looks
    /// for uses after free keeps what is freed for a while, and finds leaks itself.
    pub fn check_since(&self, then: &KernelMemory, bound: i64) -> Result<()> {
        if fs::exists(KMEMLEAK)? {
            return Ok(());
        }
        let lost = (then.free - self.free).max(self.slab - then.slab);
        ensure!(lost <= bound, "{then:?} then, {self:?} now: more than {bound} KiB are missing");
        Ok(())
    }
}
