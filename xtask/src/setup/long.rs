// SPDX-License-Identifier: MIT OR Apache-2.0

//! What only the tests that take long boot and run: another kernel for guests,
//! Debian's installer, programs of Debian's with their libraries, and the
//! kernel's own tests, built from its source.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::components::{self, Store, find, link, remove, unpack, unpack_only};
use super::debian::native_architecture;
use super::{Cache, debug_kernel, kernels};
use crate::shell::{Step, output_of, run_quietly};

/// Suite of the kernel.
const KERNEL_SUITE: &str = "trixie-backports";
/// Suite of the programs and of the installer.
const SUITE: &str = "trixie";
/// The programs.
const PROGRAMS: [&str; 3] = ["stress-ng", "passt", "socat"];
/// The package of the installer.
const INSTALLER: &str = "debian-installer-13-netboot-arm64";
/// Where it has kernel and initramfs.
const INSTALLER_FOLDER: &str = "usr/lib/debian-installer/images/13/arm64/text/debian-installer";
/// Where libraries are, in a package and on a host.
const LIBRARIES: &str = "usr/lib/aarch64-linux-gnu";
/// The dynamic linker.
const LINKER: &str = "lib/ld-linux-aarch64.so.1";
/// The kernel's tests: those of FP and SIMD state and of signals, and of the vDSO.
const TESTS: &str = "kernel-tests";

/// Provides everything. The folder that it is in, each in its own.
pub fn provide(cache: &Cache) -> Result<PathBuf> {
    {
        let _lock = components::lock(cache)?;
        let mut store = Store::new(cache, false);
        full_kernel(&mut store)?;
        programs(&mut store)?;
        installer(&mut store)?;
    }
    kernel_tests(cache).context("the kernel's tests do not build")?;
    Ok(cache.path().to_owned())
}

/// The newer kernel that is not for clouds: `full-kernel/Image`.
fn full_kernel(store: &mut Store<'_>) -> Result<()> {
    let native = native_architecture()?;
    store.provide(
        "full-kernel",
        |apt| {
            let root = format!("linux-image-arm64/{KERNEL_SUITE}");
            kernels::packages(apt, &root, KERNEL_SUITE, &native, |name| name.starts_with("linux-"))
        },
        unpack,
        |at, _| link(at, "Image", &kernels::image(at)?),
    )
}

/// The programs, as a tree that goes into an initramfs: `guest-programs/root`.
fn programs(store: &mut Store<'_>) -> Result<()> {
    store.provide(
        "guest-programs",
        |apt| {
            // Not what a library loads only if there is a display.
            let is_wanted = |name: &str| {
                (name.starts_with("lib") || name.starts_with("zlib"))
                    && !["mesa", "llvm"].iter().any(|part| name.contains(part))
            };
            let mut all = Vec::new();
            for program in PROGRAMS {
                all.extend(kernels::with_libraries(apt, program, "arm64", SUITE, is_wanted)?);
            }
            let mut packages = Vec::new();
            for package in all {
                if !packages.contains(&package) {
                    packages.push(package);
                }
            }
            Ok(packages)
        },
        unpack,
        |at, _| {
            let root = at.join("root");
            for folder in ["bin", "lib", LIBRARIES] {
                fs::create_dir_all(root.join(folder))?;
            }
            let places = ["usr/lib/ld-linux-aarch64.so.1", LINKER].map(|place| at.join(place));
            let linker = places.iter().find(|place| place.exists());
            fs::copy(linker.context("there is no dynamic linker")?, root.join(LINKER))?;
            for program in PROGRAMS {
                let place = at.join("usr/bin").join(program);
                fs::copy(&place, root.join("bin").join(program))
                    .with_context(|| format!("there is no {program}"))?;
                libraries_of(&place, at, &root)?;
            }
            // The packages are some hundred megabytes.
            for entry in fs::read_dir(at)? {
                let path = entry?.path();
                if path != root {
                    remove(&path)?;
                }
            }
            Ok(())
        },
    )
}

/// Copies the libraries that a program is linked with, and those that they are linked with.
fn libraries_of(program: &Path, at: &Path, root: &Path) -> Result<()> {
    let mut queue = VecDeque::from([program.to_owned()]);
    while let Some(file) = queue.pop_front() {
        let mut readelf = Command::new("aarch64-linux-gnu-readelf");
        let text = output_of(readelf.arg("-dW").arg(&file))?;
        for name in needed(&text) {
            let to = root.join(LIBRARIES).join(name);
            if to.exists() || LINKER.ends_with(name) {
                continue;
            }
            let places =
                [LIBRARIES, "lib/aarch64-linux-gnu"].map(|place| at.join(place).join(name));
            let from = places.iter().find(|place| place.exists());
            let from = from.with_context(|| format!("{} needs {name}", file.display()))?;
            fs::copy(from, &to)?;
            queue.push_back(to);
        }
    }
    Ok(())
}

/// The libraries that `readelf -d` names.
fn needed(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter(|line| line.contains("(NEEDED)"));
    lines.filter_map(|line| line.split_once('[')?.1.split(']').next())
}

/// The installer: `installer/linux` and `installer/initrd.gz`.
fn installer(store: &mut Store<'_>) -> Result<()> {
    store.provide(
        "installer",
        |apt| Ok(vec![apt.candidate(&format!("{INSTALLER}/{SUITE}"))?]),
        |package, at| unpack_only(package, at, INSTALLER_FOLDER),
        |at, _| {
            let folder = find(at, INSTALLER_FOLDER, "arm64")?;
            for name in ["linux", "initrd.gz"] {
                link(at, name, &folder.join(name))?;
            }
            Ok(())
        },
    )
}

/// The kernel's tests of the CPU's state: `kernel-tests/arm64/fp` and so on.
fn kernel_tests(cache: &Cache) -> Result<()> {
    let version = debug_kernel::source(cache).context("the kernel's source")?;
    let _lock = components::lock_as(cache, &format!("{TESTS}.lock"))?;
    let home = cache.path().join(TESTS);
    let made_of = home.join("version");
    if fs::read_to_string(&made_of).is_ok_and(|have| have == version) {
        return Ok(());
    }
    let step = Step::start(format!("building the kernel's tests, {version}"));
    let work = cache.path().join(format!("{TESTS}.new"));
    remove(&work)?;
    remove(&home)?;
    fs::create_dir_all(&work)?;
    let tree = cache.path().join(debug_kernel::SOURCE).join(debug_kernel::TREE);
    run_quietly(debug_kernel::make(&tree, &work).arg("headers"))?;
    let mut headers = OsString::from("KHDR_INCLUDES=-isystem ");
    headers.push(work.join("usr/include"));
    let mut make = debug_kernel::make(&tree.join("tools/testing/selftests"), &work);
    // Some are linked without LDFLAGS, those of signals without CC's options as well: for them
    // there are the programs' libraries.
    make.args(["TARGETS=arm64 vDSO", "ARM64_SUBTARGETS=fp signal"]);
    make.args(["CC=aarch64-linux-gnu-gcc -static", "LDFLAGS=-static"]);
    run_quietly(make.arg(headers).arg("all"))?;
    let built = work.join("kselftest");
    for one in ["arm64/fp/fp-stress", "arm64/signal/sve_regs", "vDSO/vdso_test_abi"] {
        if !built.join(one).exists() {
            bail!("there is no {one}");
        }
    }
    fs::rename(built, &home)?;
    fs::write(made_of, version)?;
    remove(&work)?;
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_readelf() {
        let text = "Dynamic section at offset 0x1 contains 3 entries:\n  Tag        Type    Name/Value\n \
                    0x0000000000000001 (NEEDED)  Shared library: [libbsd.so.0]\n \
                    0x000000000000000e (SONAME)  Library soname: [me.so]\n \
                    0x0000000000000001 (NEEDED)  Shared library: [libc.so.6]\n";
        assert_eq!(needed(text).collect::<Vec<_>>(), ["libbsd.so.0", "libc.so.6"]);
    }
}
