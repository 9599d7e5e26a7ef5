// SPDX-License-Identifier: MIT OR Apache-2.0

//! Parts that are fetched from Debian's archive and unpacked in the cache:
//! kernels, busybox, the sources of Rust's libraries.
//!
//! Each part is one folder, which appears in one step when it is complete,
//! with links of fixed names to what matters in it. Versions come from the
//! archive; a part that is there stays until somebody asks for a newer one.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::debian::{Apt, Os, Package};
use super::{Cache, kernels};
use crate::say;
use crate::shell::{Step, run_quietly};

/// Suite of the host's user space.
const USER_SUITE: &str = "trixie";

/// Raised when the contents of a part's folder change their form.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";

/// What a part was made of.
#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// Version of the part's main package.
    version: String,
    /// `NAME_VERSION_ARCHITECTURE` of each package.
    packages: Vec<String>,
}

/// Keeps two set-ups from working on the cache at once.
pub fn lock(cache: &Cache) -> Result<File> {
    lock_as(cache, "lock")
}

/// Keeps two set-ups from working at once on what this lock is for.
pub fn lock_as(cache: &Cache, name: &str) -> Result<File> {
    let path = cache.path().join(name);
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// The parts in the cache.
pub struct Store<'a> {
    cache: &'a Cache,
    refresh: bool,
    /// More suites that packages come from.
    suites: &'static [&'static str],
    /// Set up when first needed; the failure to do so is told once.
    apt: OnceCell<Option<Apt>>,
}

impl<'a> Store<'a> {
    pub fn new(cache: &'a Cache, refresh: bool) -> Self {
        Self { cache, refresh, suites: &[], apt: OnceCell::new() }
    }

    /// With more suites than what is needed for builds and boots.
    pub fn with_suites(mut self, suites: &'static [&'static str]) -> Self {
        self.suites = suites;
        self
    }

    /// The folder of a part, complete or not there.
    pub fn folder(&self, part: &str) -> PathBuf {
        self.cache.path().join(part)
    }

    /// The version of a part, if it is there.
    pub fn version(&self, part: &str) -> Option<String> {
        let text = fs::read(self.folder(part).join(MANIFEST)).ok()?;
        let manifest: Manifest = serde_json::from_slice(&text).ok()?;
        (manifest.format == FORMAT).then_some(manifest.version)
    }

    pub fn busybox(&mut self) -> Result<PathBuf> {
        self.provide(
            "busybox",
            |apt| Ok(vec![apt.candidate(&format!("busybox-static/{USER_SUITE}"))?]),
            unpack,
            |at, _| {
                let places = ["usr/bin/busybox", "bin/busybox"].map(PathBuf::from);
                let busybox = places.iter().find(|place| at.join(place).exists());
                link(at, "busybox", busybox.context("the package has no busybox")?)
            },
        )?;
        Ok(self.folder("busybox").join("busybox"))
    }

    /// What loads a crash kernel (`kexec`), for arm64 hosts, with its libraries.
    pub fn crash_tools(&mut self) -> Result<PathBuf> {
        let part = "crash-tools";
        self.provide(
            part,
            |apt| {
                let is_wanted = |name: &str| {
                    (name.starts_with("lib") && name != "libgcc-s1") || name.starts_with("zlib")
                };
                kernels::with_libraries(apt, "kexec-tools", "arm64", USER_SUITE, is_wanted)
            },
            unpack,
            |at, _| {
                let places = ["usr/sbin/kexec", "sbin/kexec"].map(Path::new);
                let place = places.iter().find(|place| at.join(place).exists());
                link(at, "kexec", place.context("the package has no kexec")?)?;
                link(at, "libraries", Path::new("usr/lib/aarch64-linux-gnu"))
            },
        )?;
        Ok(self.folder(part))
    }

    /// The sources of the libraries of Rust `version`.
    pub fn rust_library(&mut self, version: &str) -> Result<PathBuf> {
        let part = "rust-src";
        let same =
            |v: &str| v.strip_prefix(version).is_some_and(|rest| rest.starts_with(['+', '-', '~']));
        let stale = self.version(part).is_some_and(|have| !same(&have));
        if stale {
            remove(&self.folder(part))?;
        }
        let folder = format!("usr/src/rustc-{version}/library");
        self.provide(
            part,
            |apt| {
                let all = apt.versions("rust-src")?;
                let found = all.iter().find(|package| same(&package.version));
                let Some(found) = found else {
                    let have: Vec<_> = all.iter().map(|p| p.version.as_str()).collect();
                    bail!("Debian has no sources of Rust {version}, only {}", have.join(", "));
                };
                Ok(vec![found.clone()])
            },
            |package, at| unpack_only(package, at, &folder),
            |at, _| link(at, "library", Path::new(&folder)),
        )?;
        Ok(self.folder(part).join("library"))
    }

    /// Makes sure that a part is there: resolves its packages, downloads and
    /// unpacks them next to the place where the part goes, finishes what was
    /// unpacked (given where it is and where it will be), and puts it there.
    pub(super) fn provide(
        &mut self,
        part: &str,
        resolve: impl FnOnce(&Apt) -> Result<Vec<Package>>,
        unpack: impl Fn(&Path, &Path) -> Result<()>,
        finish: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<()> {
        let have = self.version(part);
        if have.is_some() && !self.refresh {
            return Ok(());
        }
        let home = self.folder(part);
        let packages = resolve(self.apt()?)?;
        let newest = packages.first().map(|p| p.version.clone());
        if have.is_some() && have == newest {
            return Ok(());
        }
        let bytes: u64 = packages.iter().map(|p| p.size).sum();
        let step = Step::start(format!("fetching {part} ({} MB)", bytes.div_ceil(1_000_000)));
        let work = self.cache.path().join(format!("{part}.new"));
        let (debs, tree) = (work.join("debs"), work.join("tree"));
        remove(&work)?;
        fs::create_dir_all(&debs)?;
        fs::create_dir_all(&tree)?;
        self.apt()?.download(&debs, &packages)?;
        for deb in fs::read_dir(&debs)? {
            unpack(&deb?.path(), &tree)?;
        }
        finish(&tree, &home).with_context(|| format!("{part} is not as expected"))?;
        let manifest = Manifest {
            format: FORMAT,
            version: newest.unwrap_or_default(),
            packages: packages.iter().map(identity).collect(),
        };
        fs::write(tree.join(MANIFEST), serde_json::to_vec_pretty(&manifest)?)?;
        remove(&home)?;
        fs::rename(&tree, &home)
            .with_context(|| format!("cannot put {} in place", home.display()))?;
        remove(&work)?;
        step.done();
        Ok(())
    }

    fn apt(&self) -> Result<&Apt> {
        let configure = || -> Result<Apt> {
            // Only those that are needed: old ones leave the archive one day.
            let mut suites = kernels::suites()?;
            suites.push(USER_SUITE);
            suites.extend(self.suites);
            suites.sort_unstable();
            suites.dedup();
            let apt = Apt::of_parts(&self.cache.path().join("apt"), &Os::detect(), &suites)?;
            // Versions vanish from the archive at each update of it.
            apt.update()?;
            Ok(apt)
        };
        let apt = self.apt.get_or_init(|| configure().inspect_err(|error| say!("{error:#}")).ok());
        apt.as_ref().context("Debian's archive cannot be read (see above)")
    }
}

impl Drop for Store<'_> {
    fn drop(&mut self) {
        // The lists are large, and read anew the next time. What of them
        // cannot be removed does no harm.
        if let Some(Some(_)) = self.apt.get() {
            let _ = remove(&self.cache.path().join("apt"));
        }
    }
}

fn identity(package: &Package) -> String {
    format!("{}_{}_{}", package.name, package.version, package.architecture)
}

pub(super) fn unpack(package: &Path, into: &Path) -> Result<()> {
    run_quietly(Command::new("dpkg-deb").arg("-x").args([package, into]))?;
    Ok(())
}

/// Unpacks one folder of a package, out of many.
pub(super) fn unpack_only(package: &Path, into: &Path, folder: &str) -> Result<()> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let contents = archive.stdout.take().context("dpkg-deb has no output")?;
    let status = Command::new("tar")
        .arg("-x")
        .arg("-C")
        .arg(into)
        .arg(format!("./{folder}"))
        .stdin(contents)
        .status()
        .context("cannot start tar")?;
    let unpacked = archive.wait()?;
    if !status.success() || !unpacked.success() {
        bail!("cannot unpack {} of {}", folder, package.display());
    }
    Ok(())
}

pub(super) fn link(tree: &Path, name: &str, target: &Path) -> Result<()> {
    if !tree.join(target).exists() {
        bail!("there is no {}", target.display());
    }
    symlink(target, tree.join(name)).with_context(|| format!("cannot link {name}"))
}

/// The only entry of `folder` whose name begins with `prefix`, as a path in
/// `tree`.
pub(super) fn find(tree: &Path, folder: &str, prefix: &str) -> Result<PathBuf> {
    find_where(tree, folder, |name| name.starts_with(prefix))
}

pub(super) fn find_where(
    tree: &Path,
    folder: &str,
    fits: impl Fn(&str) -> bool,
) -> Result<PathBuf> {
    let entries =
        fs::read_dir(tree.join(folder)).with_context(|| format!("there is no {folder}"))?;
    let mut names = entries.flatten().map(|entry| entry.file_name());
    let name = names.find(|name| fits(&name.to_string_lossy()));
    let name = name.with_context(|| format!("nothing in {folder} is what we look for"))?;
    Ok(Path::new(folder).join(name))
}

/// Removes a file or a folder, if it is there.
pub(super) fn remove(folder: &Path) -> Result<()> {
    let removed =
        if folder.is_dir() { fs::remove_dir_all(folder) } else { fs::remove_file(folder) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_another_format_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache(folder.path().to_owned());
        let store = Store::new(&cache, false);
        assert_eq!(store.version("busybox"), None);
        let part = folder.path().join("busybox");
        fs::create_dir(&part).unwrap();
        for (format, expected) in [(FORMAT, Some("1.0".to_owned())), (FORMAT + 1, None)] {
            let manifest = Manifest { format, version: "1.0".into(), packages: Vec::new() };
            fs::write(part.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
            assert_eq!(store.version("busybox"), expected);
        }
    }
}
