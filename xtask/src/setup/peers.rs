// SPDX-License-Identifier: MIT OR Apache-2.0

//! The hypervisors that a bench holds Escrow against.
//!
//! KVM, protected (pKVM) and not, is in the guests' kernel, which is there
//! anyway. Only Xen is fetched for this, and only when asked for.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::components::{Store, find_where, link, unpack};

/// Suite of Xen.
const SUITE: &str = "trixie";
/// Depends on the Xen of its suite.
const ROOT: &str = "xen-system-arm64";
const HYPERVISOR: &str = "xen-hypervisor-";
const PART: &str = "xen";

/// What a bench boots besides Escrow.
#[derive(Clone, Debug)]
pub struct Peers {
    /// Xen, as an arm64 `Image`.
    pub xen: PathBuf,
    /// Its Debian version.
    pub version: String,
}

/// The peers, if they were fetched before.
pub fn present(store: &Store<'_>) -> Result<Peers> {
    match store.version(PART) {
        Some(version) => Ok(Peers { xen: store.folder(PART).join("xen"), version }),
        None => bail!("fetched by `cargo xtask setup --peers`"),
    }
}

/// The peers, fetched if need be.
pub fn provide(store: &mut Store<'_>) -> Result<Peers> {
    store.provide(
        PART,
        |apt| {
            let root = apt.candidate(&format!("{ROOT}/{SUITE}"))?;
            let is_xen = |name: &&str| name.starts_with(HYPERVISOR) && !name.ends_with("-common");
            let name = root.depends.iter().map(|d| d.name.as_str()).find(is_xen);
            let name = name.with_context(|| format!("{ROOT} names no hypervisor"))?;
            Ok(vec![apt.candidate(&format!("{name}/{SUITE}"))?])
        },
        unpack,
        |at, _| {
            // Beside it are its configuration and the same for EFI.
            let is_image = |name: &str| name.starts_with("xen-") && name.ends_with("-arm64");
            link(at, "xen", &find_where(at, "boot", is_image)?)
        },
    )?;
    present(store)
}
