// SPDX-License-Identifier: MIT OR Apache-2.0

//! Parts that are fetched from Debian's archive and unpacked in the cache:
//! kernels, busybox, the sources of Rust's libraries.
//!
//! Each part is one folder, which appears in one step when it is complete,
//! with links of fixed names to what matters in it. Versions come from the
//! archive; a part that is there stays until somebody asks for a newer one.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Cache;
use super::debian::{Apt, Os, Package, native_architecture};
use crate::say;
use crate::shell::{Step, output_of, run_quietly};

/// Suite of the host's kernel: 6.12, whose tools need [`TOOLS_GLIBC`].
const HOST_SUITE: &str = "trixie";
/// The glibc that programs of [`HOST_SUITE`] need.
const TOOLS_GLIBC: (u32, u32) = (2, 38);
/// The same kernel for machines with an older glibc.
const HOST_SUITE_OLDER: &str = "bookworm-backports";
/// Suite of the guests' kernel.
const GUEST_SUITE: &str = "trixie-backports";
/// Suite of the host's user space.
const USER_SUITE: &str = "trixie";

/// Raised when the contents of a part's folder change their form.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";

/// The host's kernel and what modules for it are built with.
#[derive(Clone, Debug)]
pub struct HostKernel {
    pub image: PathBuf,
    /// Where a module's build starts (`make -C`).
    pub headers: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
    version: String,
}

/// The guests' kernel.
#[derive(Clone, Debug)]
pub struct GuestKernel {
    pub image: PathBuf,
    version: String,
}

impl fmt::Display for HostKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.image.display(), self.version)
    }
}

impl fmt::Display for GuestKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.image.display(), self.version)
    }
}

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
    let path = cache.path().join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// The parts in the cache.
pub struct Store<'a> {
    cache: &'a Cache,
    refresh: bool,
    /// Set up when first needed; the failure to do so is told once.
    apt: OnceCell<Option<Apt>>,
}

impl<'a> Store<'a> {
    pub fn new(cache: &'a Cache, refresh: bool) -> Self {
        Self { cache, refresh, apt: OnceCell::new() }
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

    pub fn host_kernel(&mut self) -> Result<HostKernel> {
        let part = "host-kernel";
        let suite = host_suite()?;
        let native = native_architecture();
        self.provide(
            part,
            |apt| {
                let native = native?;
                let mut packages = kernel_packages(apt, "linux-image-arm64", suite, &native)?;
                packages.extend(kernel_packages(apt, "linux-headers-arm64", suite, &native)?);
                packages.sort_by(|a, b| a.name.cmp(&b.name));
                packages.dedup();
                Ok(packages)
            },
            unpack,
            |at, home| {
                link(at, "Image", &find(at, "boot", "vmlinuz-")?)?;
                link(at, "modules", &modules_folder(at)?)?;
                let headers = find_where(at, "usr/src", |n| {
                    n.starts_with("linux-headers-") && !n.ends_with("-common")
                })?;
                link(at, "headers", &headers)?;
                redirect_makefile(&at.join(headers).join("Makefile"), home)
            },
        )?;
        let folder = self.folder(part);
        Ok(HostKernel {
            image: folder.join("Image"),
            headers: folder.join("headers"),
            modules: folder.join("modules"),
            version: self.version(part).unwrap_or_default(),
        })
    }

    pub fn guest_kernel(&mut self) -> Result<GuestKernel> {
        let part = "guest-kernel";
        self.provide(
            part,
            |apt| kernel_packages(apt, "linux-image-cloud-arm64", GUEST_SUITE, ""),
            unpack,
            |at, _| {
                // 7.x keeps the image with the modules, before that it was in /boot.
                let modules = modules_folder(at)?;
                let image = modules.join("vmlinuz");
                let image =
                    if at.join(&image).exists() { image } else { find(at, "boot", "vmlinuz-")? };
                link(at, "Image", &image)?;
                link(at, "modules", &modules)
            },
        )?;
        Ok(GuestKernel {
            image: self.folder(part).join("Image"),
            version: self.version(part).unwrap_or_default(),
        })
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
    fn provide(
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
            let mut suites = vec![host_suite()?, USER_SUITE, GUEST_SUITE];
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

/// All packages of one version of the kernel that `root` needs: its
/// dependencies on exactly that version, and the build's tools for the machine
/// that builds.
fn kernel_packages(apt: &Apt, root: &str, suite: &str, native: &str) -> Result<Vec<Package>> {
    let mut queue = VecDeque::from([format!("{root}/{suite}")]);
    let mut packages: Vec<Package> = Vec::new();
    while let Some(selector) = queue.pop_front() {
        let package = apt.candidate(&selector)?;
        if packages.contains(&package) {
            continue;
        }
        for needed in &package.depends {
            let name = &needed.name;
            match &needed.exactly {
                _ if name.starts_with("linux-kbuild-") => {
                    queue.push_back(format!("{name}:{native}/{suite}"))
                }
                Some(version) if name.starts_with("linux-") => {
                    queue.push_back(format!("{name}={version}"));
                }
                _ => {}
            }
        }
        packages.push(package);
    }
    Ok(packages)
}

fn unpack(package: &Path, into: &Path) -> Result<()> {
    run_quietly(Command::new("dpkg-deb").arg("-x").args([package, into]))?;
    Ok(())
}

/// Unpacks one folder of a package, out of many.
fn unpack_only(package: &Path, into: &Path, folder: &str) -> Result<()> {
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

fn link(tree: &Path, name: &str, target: &Path) -> Result<()> {
    if !tree.join(target).exists() {
        bail!("there is no {}", target.display());
    }
    symlink(target, tree.join(name)).with_context(|| format!("cannot link {name}"))
}

/// The only entry of `folder` whose name begins with `prefix`, as a path in
/// `tree`.
fn find(tree: &Path, folder: &str, prefix: &str) -> Result<PathBuf> {
    find_where(tree, folder, |name| name.starts_with(prefix))
}

fn find_where(tree: &Path, folder: &str, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries =
        fs::read_dir(tree.join(folder)).with_context(|| format!("there is no {folder}"))?;
    let mut names = entries.flatten().map(|entry| entry.file_name());
    let name = names.find(|name| fits(&name.to_string_lossy()));
    let name = name.with_context(|| format!("nothing in {folder} is what we look for"))?;
    Ok(Path::new(folder).join(name))
}

/// The folder of a kernel's modules: `/lib` became a link to `/usr/lib`.
fn modules_folder(tree: &Path) -> Result<PathBuf> {
    find(tree, "usr/lib/modules", "").or_else(|_| find(tree, "lib/modules", ""))
}

/// Debian's headers name each other by absolute path (`include /usr/src/…`).
fn redirect_makefile(makefile: &Path, home: &Path) -> Result<()> {
    let text = fs::read_to_string(makefile)?;
    let home = home.to_str().filter(|path| !path.contains(char::is_whitespace));
    let home =
        home.context("the kernel's build does not take a cache folder with a space in its path")?;
    let redirected = text.replace("/usr/src/", &format!("{home}/usr/src/"));
    fs::write(makefile, redirected)?;
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The suite whose kernel comes with build tools that run here.
fn host_suite() -> Result<&'static str> {
    Ok(if glibc()? >= TOOLS_GLIBC { HOST_SUITE } else { HOST_SUITE_OLDER })
}

/// Version of the C library of the machine that builds.
fn glibc() -> Result<(u32, u32)> {
    let text = output_of(Command::new("getconf").arg("GNU_LIBC_VERSION"))
        .context("the kernel's build tools need a system with glibc")?;
    let mut numbers = text.trim().trim_start_matches("glibc ").split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("what glibc is {text:?}?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makefiles_are_redirected_into_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let makefile = folder.path().join("Makefile");
        fs::write(&makefile, "include /usr/src/linux-headers-6.12.1-common/Makefile\n").unwrap();
        redirect_makefile(&makefile, Path::new("/c/host-kernel")).unwrap();
        let text = fs::read_to_string(&makefile).unwrap();
        assert_eq!(text, "include /c/host-kernel/usr/src/linux-headers-6.12.1-common/Makefile\n");
        assert!(redirect_makefile(&makefile, Path::new("/a b")).is_err());
    }

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
