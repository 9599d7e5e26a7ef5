// SPDX-License-Identifier: MIT OR Apache-2.0

//! What Escrow and the shim tell about themselves.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
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

/// A line of a guest memory's fdinfo.
pub fn fdinfo(fd: BorrowedFd<'_>, name: &str) -> Result<String> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    Ok(value.with_context(|| format!("{path} has no line {name}"))?.to_owned())
}
