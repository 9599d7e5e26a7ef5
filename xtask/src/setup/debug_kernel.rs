// SPDX-License-Identifier: MIT OR Apache-2.0

//! Kernels that look for mistakes, for tests of the shim: built from Debian's
//! source of the host's kernel, with as little in them as the tests need
//! (`debug-kernel/*.config`).
//!
//! Building one takes a quarter of an hour on a machine with two cores that has
//! nothing else to do. Other set-ups are not kept waiting meanwhile.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::components::{self, Store, find, find_where, remove, unpack};
use super::{Cache, Kernel, kernels};
use crate::shell::{Step, run_quietly};

/// What a kernel looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DebugKernel {
    /// Uses after free and out of bounds, orders of locks, leaks (KASAN, lockdep, kmemleak)
    Kasan,
    /// Data races (KCSAN)
    Kcsan,
}

/// The kernel's source.
pub(super) const SOURCE: &str = "linux-source";
/// In its folder: the tree.
pub(super) const TREE: &str = "linux";
/// The package of it, for the series of the host's kernel.
const PACKAGE: &str = "linux-source-6.12";
/// In a built kernel's folder, when it is complete: what it was made of.
const RECIPE: &str = "recipe";
/// The same, while it is being built.
const BEGUN: &str = "begun";

const COMMON: &str = include_str!("debug-kernel/common.config");

impl DebugKernel {
    /// Its name, as options have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kasan => "kasan",
            Self::Kcsan => "kcsan",
        }
    }

    /// The name of its part in the cache.
    fn part(self) -> &'static str {
        match self {
            Self::Kasan => "debug-kernel-kasan",
            Self::Kcsan => "debug-kernel-kcsan",
        }
    }

    /// The options that it is configured with; all others are off.
    fn options(self) -> String {
        let own = match self {
            Self::Kasan => include_str!("debug-kernel/kasan.config"),
            Self::Kcsan => include_str!("debug-kernel/kcsan.config"),
        };
        format!("{COMMON}\n{own}")
    }

    /// The kernel, if it was built before.
    pub fn present(self, cache: &Cache) -> Result<Kernel> {
        let folder = cache.path().join(self.part());
        match fs::read_to_string(folder.join(RECIPE)) {
            Ok(recipe) if recipe.ends_with(&self.options()) => {
                let version = recipe.lines().next().unwrap_or_default();
                Kernel::of_build(&folder, version.trim_start_matches("# "))
            }
            _ => bail!("the kernel is built by `cargo xtask setup --debug-kernel`"),
        }
    }

    /// The kernel, built if need be.
    pub fn provide(self, cache: &Cache) -> Result<Kernel> {
        let version = source(cache).context("the kernel's source")?;
        let _lock = components::lock_as(cache, &format!("{}.lock", self.part()))?;
        let recipe = format!("# {version}\n{}", self.options());
        let folder = cache.path().join(self.part());
        if fs::read_to_string(folder.join(RECIPE)).is_ok_and(|have| have == recipe) {
            return self.present(cache);
        }
        let step = Step::start(format!("building {} {version}", self.part()));
        // The kernel's make goes on with a build of the same that was interrupted.
        let begun = folder.join(BEGUN);
        if !fs::read_to_string(&begun).is_ok_and(|have| have == recipe) {
            remove(&folder)?;
            fs::create_dir_all(&folder)?;
            fs::write(&begun, &recipe)?;
        }
        let tree = cache.path().join(SOURCE).join(TREE);
        self.build(&tree, &folder).with_context(|| format!("{} does not build", self.part()))?;
        fs::rename(begun, folder.join(RECIPE))?;
        step.done();
        self.present(cache)
    }

    fn build(self, tree: &Path, folder: &Path) -> Result<()> {
        let (options, fragment) = (self.options(), folder.join("options"));
        fs::write(&fragment, &options)?;
        let mut base = OsString::from("KCONFIG_ALLCONFIG=");
        base.push(&fragment);
        run_quietly(make(tree, folder).arg(base).arg("allnoconfig"))?;
        let configured = fs::read_to_string(folder.join(".config"))?;
        let missing = missing(&options, &configured);
        if !missing.is_empty() {
            bail!("options that this kernel does not have: {}", missing.join(", "));
        }
        let jobs = available_parallelism().map_or(1, usize::from);
        run_quietly(make(tree, folder).arg(format!("-j{jobs}")).args(["Image", "modules"]))?;
        // Modules are built with what is left.
        for large in ["vmlinux", "vmlinux.o", "vmlinux.a"] {
            remove(&folder.join(large))?;
        }
        for part in
            ["block", "certs", "crypto", "drivers", "fs", "init", "io_uring", "ipc", "kernel"]
        {
            remove(&folder.join(part))?;
        }
        for part in ["lib", "mm", "net", "security", "sound", "usr", "virt"] {
            remove(&folder.join(part))?;
        }
        Ok(())
    }
}

/// The kernel's own make, as one that gives way to whoever works here.
pub(super) fn make(tree: &Path, folder: &Path) -> Command {
    let mut output = OsString::from("O=");
    output.push(folder);
    let mut command = Command::new("nice");
    command.args(["-n", "15", "make", "-s", "-C"]).arg(tree).arg(output);
    command.args(["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"]);
    // A make that runs us must not steer this one.
    command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    command
}

/// The options that were asked for and are not set.
fn missing<'a>(options: &'a str, configured: &str) -> Vec<&'a str> {
    let set: std::collections::BTreeSet<_> = configured.lines().collect();
    let asked = options.lines().filter(|line| line.starts_with("CONFIG_"));
    asked.filter(|line| !line.ends_with("=n") && !set.contains(line)).collect()
}

/// The source of the host's kernel, fetched if need be. Its version.
pub(super) fn source(cache: &Cache) -> Result<String> {
    let _lock = components::lock(cache)?;
    let mut store = Store::new(cache, false);
    let host = kernels::older_version(&store).context("the host's kernel is not there")?;
    if store.version(SOURCE).is_some_and(|have| have != host) {
        remove(&store.folder(SOURCE))?;
    }
    store.provide(
        SOURCE,
        |apt| {
            let all = apt.versions(PACKAGE)?;
            let same = all.iter().find(|package| package.version == host);
            let same = same.with_context(|| {
                format!("Debian's archive has no {PACKAGE} {host} any more: `setup --refresh`")
            })?;
            Ok(vec![same.clone()])
        },
        unpack,
        |at, _| {
            let packed = at.join(find(at, "usr/src", "linux-source-")?);
            let packed = if packed.is_dir() {
                at.join(find_where(at, "usr/src", |name| name.ends_with(".tar.xz"))?)
            } else {
                packed
            };
            let tree = at.join(TREE);
            fs::create_dir_all(&tree)?;
            // Of other machines' drivers only what names their options, and what make reads
            // on its way through all folders.
            let tar = || {
                let mut tar = Command::new("tar");
                tar.arg("-xJf").arg(&packed).arg("-C").arg(&tree).arg("--strip-components=1");
                tar
            };
            run_quietly(tar().args(["--exclude=*/drivers/gpu", "--exclude=*/arch/x86"]))?;
            run_quietly(tar().args(["--wildcards", "*/Kconfig*", "*/drivers/gpu/*Makefile"]))?;
            remove(&at.join("usr"))
        },
    )?;
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_are_not_taken_are_named() {
        let options = "# a comment\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=17\nCONFIG_D=y\n";
        let configured = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=17\n# CONFIG_D is not set\n";
        assert_eq!(missing(options, configured), ["CONFIG_D=y"]);
    }

    #[test]
    fn a_kernel_of_other_options_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache(folder.path().to_owned());
        let build = folder.path().join(DebugKernel::Kasan.part());
        let release = build.join("include/config/kernel.release");
        fs::create_dir_all(release.parent().unwrap()).unwrap();
        fs::write(release, "6.12.1-escrow-kasan\n").unwrap();
        assert!(DebugKernel::Kasan.present(&cache).is_err());
        let recipe =
            |options: &str| fs::write(build.join(RECIPE), format!("# 6.12.1-1\n{options}"));
        recipe("CONFIG_A=y\n").unwrap();
        assert!(DebugKernel::Kasan.present(&cache).is_err());
        recipe(&DebugKernel::Kasan.options()).unwrap();
        let kernel = DebugKernel::Kasan.present(&cache).unwrap();
        assert_eq!(kernel.headers.release, "6.12.1-escrow-kasan");
        let modules = kernel.modules.canonicalize().unwrap();
        assert_eq!(modules.file_name().unwrap(), "6.12.1-escrow-kasan");
        assert!(kernel.to_string().ends_with("(6.12.1-1)"), "{kernel}");
    }
}
