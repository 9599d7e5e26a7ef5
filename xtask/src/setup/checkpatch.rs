// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's own judge of style. It is in the kernel's source alone, a
//! large package of which three files are kept; so it is fetched when somebody
//! lints, and not before.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::components::{self, Store, find_where, remove, unpack};
use super::{Cache, kernels};
use crate::shell::run_quietly;

const PART: &str = "checkpatch";
/// The source that the release of the host's kernel has.
const PACKAGE: &str = "linux-source-6.12";
/// What `checkpatch.pl` reads, beside itself.
const FILES: [&str; 3] = ["checkpatch.pl", "spelling.txt", "const_structs.checkpatch"];

/// `checkpatch.pl`, fetched if need be.
pub fn provide() -> Result<PathBuf> {
    let cache = Cache::open()?;
    cache.create()?;
    let _lock = components::lock(&cache)?;
    let mut store = Store::new(&cache, false);
    store.provide(
        PART,
        |apt| Ok(vec![apt.candidate(&format!("{PACKAGE}/{}", kernels::older_suite()?))?]),
        unpack,
        |at, _| extract(at),
    )?;
    Ok(store.folder(PART).join(FILES[0]))
}

/// Takes the files out of the source's archive, and removes the rest.
fn extract(at: &Path) -> Result<()> {
    let archive = at.join(find_where(at, "usr/src", |name| name.ends_with(".tar.xz"))?);
    let name = archive.file_name().and_then(|name| name.to_str()).context("an archive")?;
    let tree = name.trim_end_matches(".tar.xz");
    let mut tar = Command::new("tar");
    // Each file is there once: then there is no need to read on.
    tar.args(["-xJ", "--occurrence=1", "--strip-components=2", "-C"]).arg(at);
    tar.arg("-f").arg(&archive);
    tar.args(FILES.map(|file| format!("{tree}/scripts/{file}")));
    run_quietly(&mut tar)?;
    remove(&at.join("usr"))
}
