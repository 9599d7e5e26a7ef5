// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every kernel for arm64 that Debian's archive has headers of: all flavours, of
//! all suites. Headers alone, unpacked in the cache, a part for each suite; and
//! DKMS, which builds modules for them on users' machines.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::components::{Store, find, remove, unpack};
use super::debian::{Apt, Package, native_architecture};
use super::kernels::{self, Headers};
use crate::shell::find_program;

/// Where kernels for users come from: Debian's two last releases with their
/// backports, and the next one.
pub const SUITES: [&str; 5] =
    ["bookworm", "bookworm-backports", "trixie", "trixie-backports", "forky"];
/// The suite of DKMS.
const DKMS_SUITE: &str = "trixie";

/// In the part of an image: it, and what `uname -r` says.
const IMAGE: &str = "Image";
const RELEASE: &str = "release";

/// A kernel that a user may have.
#[derive(Clone, Debug)]
pub struct Flavour {
    pub suite: &'static str,
    /// `rt-arm64`
    pub name: String,
    pub headers: Headers,
}

/// Headers of every flavour, in the order of [`SUITES`].
pub fn provide(store: &mut Store<'_>) -> Result<Vec<Flavour>> {
    let native = native_architecture()?;
    let tools = store.folder(kernels::TOOLS);
    let mut flavours = Vec::new();
    for suite in SUITES {
        let part = format!("headers-{suite}");
        store.provide(
            &part,
            |apt| packages(apt, suite, &native),
            unpack,
            |at, home| {
                for headers in folders(at)? {
                    kernels::redirect_makefile(&headers.join("Makefile"), home)?;
                    // Modules need no BTF, and it is larger than all the rest.
                    remove(&headers.join("vmlinux"))?;
                }
                kernels::wrap_tools(&at.join(find(at, "usr/lib", "linux-kbuild-")?), &tools)
            },
        )?;
        for folder in folders(&store.folder(&part))? {
            flavours.push(flavour(store, suite, folder)?);
        }
    }
    Ok(flavours)
}

/// The image of a kernel, without its modules.
pub fn image(store: &mut Store<'_>, flavour: &Flavour) -> Result<PathBuf> {
    let Flavour { suite, name, headers } = flavour;
    let (part, release) = (format!("image-{suite}-{name}"), &headers.release);
    // Another one than that of the headers.
    let stale = store.folder(&part).join(RELEASE);
    if fs::read_to_string(&stale).is_ok_and(|have| have != *release) {
        remove(&store.folder(&part))?;
    }
    let native = native_architecture()?;
    store.provide(
        &part,
        |apt| {
            let root = format!("linux-image-{release}:arm64/{suite}");
            kernels::packages(apt, &root, suite, &native, |name| name.starts_with("linux-"))
        },
        unpack,
        |at, _| {
            let image = at.join(kernels::image(at)?);
            fs::rename(image, at.join(IMAGE)).context("where is the image?")?;
            fs::write(at.join(RELEASE), release)?;
            ["boot", "etc", "lib", "usr"].iter().try_for_each(|name| remove(&at.join(name)))
        },
    )?;
    Ok(store.folder(&part).join(IMAGE))
}

/// The program `dkms`, a script.
pub fn dkms(store: &mut Store<'_>) -> Result<PathBuf> {
    let candidate = |apt: &Apt| Ok(vec![apt.candidate(&format!("dkms/{DKMS_SUITE}"))?]);
    store.provide("dkms", candidate, unpack, |_, _| Ok(()))?;
    Ok(store.folder("dkms").join("usr/sbin/dkms"))
}

/// The headers of all flavours of a suite.
fn packages(apt: &Apt, suite: &str, native: &str) -> Result<Vec<Package>> {
    let mut packages: Vec<Package> = Vec::new();
    for name in apt.names("linux-headers-")? {
        // The names without a version stand for the newest that there is.
        let is_flavour = name.contains("arm64") && !name.contains('.');
        // Not every suite has all.
        let root = format!("{name}:arm64/{suite}");
        if is_flavour && apt.candidate(&root).is_ok() {
            packages.extend(kernels::packages(apt, &root, suite, native, is_for_building)?);
        }
    }
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    packages.dedup();
    Ok(packages)
}

fn is_for_building(name: &str) -> bool {
    name.starts_with("linux-headers-") || name.starts_with("linux-kbuild-")
}

/// Folders of headers, but for what they have in common.
fn folders(tree: &Path) -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(tree.join("usr/src")).context("there are no headers")?;
    let folders = entries.flatten().map(|entry| entry.path());
    Ok(folders.filter(|path| release(path).is_some()).collect())
}

/// `6.12.1-rt-arm64` of `/…/linux-headers-6.12.1-rt-arm64`
fn release(folder: &Path) -> Option<&str> {
    let release = folder.file_name().and_then(OsStr::to_str)?.strip_prefix("linux-headers-")?;
    release.contains("arm64").then_some(release)
}

fn flavour(store: &mut Store<'_>, suite: &'static str, folder: PathBuf) -> Result<Flavour> {
    let release = release(&folder).context("headers without a release")?.to_owned();
    let at = release.find("cloud").or(release.find("rt-")).or(release.find("arm64"));
    let name = at.map_or(release.as_str(), |at| &release[at..]).to_owned();
    let mut headers = Headers { folder, release, compiler: None };
    // What a newer compiler made is built with a newer one, too.
    let compiler = headers.own_compiler().context("the headers name no compiler")?;
    if find_program(&compiler).is_none() {
        headers.compiler = kernels::newer_compiler(store)?;
    }
    Ok(Flavour { suite, name, headers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_have_a_release() {
        let of = |name| release(Path::new(name));
        assert_eq!(
            of("/c/usr/src/linux-headers-6.12.1+deb13-rt-arm64"),
            Some("6.12.1+deb13-rt-arm64")
        );
        assert_eq!(of("/c/usr/src/linux-headers-6.12.1+deb13-common-rt"), None);
        assert_eq!(of("/c/usr/src/linux-kbuild-6.12.1"), None);
    }
}
