// SPDX-License-Identifier: MIT OR Apache-2.0

//! The package that DKMS builds the shim from: the C files, and the Rust half
//! as an object and as source. Where there is a Rust tool chain, the package's
//! own script builds the object anew, from nothing but what is in the package;
//! that it comes out as the one that is delivered, is checked here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::module::{CROSS_COMPILE, FLAGS, PRELINK, RUST_OBJECT, SHIM};
use super::{Workspace, make, plain_cargo};
use crate::say;
use crate::setup::Setup;
use crate::shell::{Step, run_quietly, write_if_changed};

/// How DKMS builds the shim.
const DKMS_CONFIG: &str = "dkms.conf";
/// Builds the Rust half where the package is.
const RUST_SCRIPT: &str = "rust.sh";
/// What goes into the package as it is, besides what Kbuild reads: the shim's
/// license, how its Rust half is built, a udev rule and the group that it names, and what has the
/// shim in every initramfs.
const AS_IT_IS: [&str; 8] = [
    "COPYING",
    PRELINK,
    RUST_SCRIPT,
    "escrow_rust.ld",
    "install/60-escrow.rules",
    "install/initramfs-hook",
    "install/vmcoreinfo-48",
    "install/escrow.conf",
];
/// In the package: the source of the Rust half.
const RUST_FOLDER: &str = "rust";
/// The packages that the Rust half is made of.
const RUST_PACKAGES: [&str; 4] = ["abi", "host/memfd", "host/module", "host/vmcore"];
/// In the work tree: what goes with them.
const RUST_FILES: [&str; 3] = ["Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT"];
/// Where cargo takes other crates from.
const RUST_CONFIG: &str = "[source.crates-io]
replace-with = \"vendor\"

[source.vendor]
directory = \"vendor\"
";

/// Makes the package. The object is one that the kernel's build copies
/// (`_shipped`; it removes all others when it cleans).
pub fn package(workspace: &Workspace, setup: &Setup) -> Result<PathBuf> {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    setup.cross_compiler()?;
    let library = SHIM.library(workspace, setup)?;
    let folder = workspace.paths().dkms().join(format!("escrow-{VERSION}"));
    SHIM.prepare(workspace, library.as_deref(), &folder)?;
    fs::rename(folder.join(RUST_OBJECT), folder.join(format!("{RUST_OBJECT}_shipped")))?;
    fs::remove_file(folder.join(format!(".{RUST_OBJECT}.cmd")))?;
    let source = workspace.root().join(SHIM.source);
    let config = fs::read_to_string(source.join(DKMS_CONFIG)).context("reading dkms.conf")?;
    let config = config.replace("@VERSION@", VERSION);
    write_if_changed(&folder.join(DKMS_CONFIG), config.as_bytes())?;
    for name in AS_IT_IS {
        let (from, to) = (source.join(name), folder.join(name));
        write_if_changed(&to, &fs::read(&from)?)?;
        // DKMS starts scripts that can be executed.
        fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    }
    rust_source(workspace, &folder.join(RUST_FOLDER)).context("the source of the Rust half")?;
    Ok(folder)
}

/// Puts the source of the Rust half into a folder: a workspace of the packages
/// that it is made of, without their tests, and all crates that they need.
fn rust_source(workspace: &Workspace, folder: &Path) -> Result<()> {
    let root = workspace.root();
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let read = |name: &str| fs::read_to_string(root.join(name)).with_context(|| name.to_owned());
    let write = |name: &str, text: &str| write_if_changed(&folder.join(name), text.as_bytes());
    for name in RUST_FILES {
        write(name, &read(name)?)?;
    }
    write("Cargo.toml", &of_rust_half(&read("Cargo.toml")?)?)?;
    for package in RUST_PACKAGES {
        let manifest = format!("{package}/Cargo.toml");
        write(&manifest, &without_tests(&read(&manifest)?))?;
        copy(&root.join(package).join("src"), &folder.join(package).join("src"))?;
    }
    write("flags", &FLAGS.iter().map(|flag| format!("{flag}\n")).collect::<String>())?;
    let mut vendor = plain_cargo(workspace, "vendor");
    vendor.args(["--quiet", "--versioned-dirs"]).current_dir(folder);
    run_quietly(&mut vendor)?;
    // Not before: cargo would take crates from where they are to go.
    write(".cargo/config.toml", RUST_CONFIG)?;
    Ok(())
}

/// The workspace's manifest, with no more members than the Rust half is made of.
fn of_rust_half(manifest: &str) -> Result<String> {
    let (before, rest) = manifest.split_once("members = [").context("who are the members?")?;
    let (_, after) = rest.split_once("[workspace.package]").context("what is a package?")?;
    let members: Vec<_> = RUST_PACKAGES.iter().map(|package| format!("\"{package}\"")).collect();
    Ok(format!("{before}members = [{}]\n\n[workspace.package]{after}", members.join(", ")))
}

/// A package's manifest without what only tests need.
fn without_tests(manifest: &str) -> String {
    let mut wanted = true;
    let lines = manifest.lines().filter(|line| {
        if line.starts_with('[') {
            wanted = !line.contains("dev-dependencies") && !line.contains("cfg(loom)");
        }
        wanted
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// Builds the package for every kernel that hosts run, as DKMS does: with no
/// more than is in it, cleaned first. Then its Rust half, from its source.
pub fn check_package(workspace: &Workspace, setup: &Setup) -> Result<()> {
    setup.kernel_tools()?;
    let package = package(workspace, setup)?;
    for kernel in setup.host_kernels()? {
        let step = Step::start(format!("building the package for {}", kernel.headers.release));
        let work = workspace.paths().module_build(&kernel.headers.release, "escrow.dkms");
        copy(&package, &work)?;
        for target in ["clean", "modules"] {
            let mut make = make(&work, &kernel.headers)?;
            run_quietly(make.args(["KCFLAGS=-Werror", target]))
                .with_context(|| format!("make {target} for {}", kernel.headers.release))?;
        }
        if !work.join("escrow.ko").exists() {
            bail!("no module has been made for {}", kernel.headers.release);
        }
        step.done();
    }
    check_source(workspace, setup, &package)
}

/// Has the package's script build the Rust half from its source, in another
/// place and without a network: the object is the same, bit for bit.
fn check_source(workspace: &Workspace, setup: &Setup, package: &Path) -> Result<()> {
    if setup.bare_metal()?.library().is_none() {
        say!("Rust's library in the object is the tool chain's: the package builds another");
        return Ok(());
    }
    let step = Step::start("building the Rust half from the package");
    let work = workspace.paths().module_build("rust", "package");
    copy(package, &work)?;
    let object = work.join(format!("{RUST_OBJECT}_shipped"));
    let delivered = fs::read(&object)?;
    fs::remove_file(&object)?;
    run_quietly(
        Command::new("sh").arg(work.join(RUST_SCRIPT)).envs(build_rust(workspace, setup)?),
    )?;
    let built = fs::read(&object).context("the package has built no Rust half")?;
    if built != delivered {
        fs::write(work.join("delivered.o"), delivered)?;
        bail!("{} is not the object that is delivered, delivered.o beside it", object.display());
    }
    step.done();
    Ok(())
}

/// What has the package's script build the Rust half, or fail.
pub fn build_rust(workspace: &Workspace, setup: &Setup) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut variables = setup.bare_metal()?.environment();
    variables.extend([
        ("ESCROW_RUST", "yes".into()),
        ("CROSS_COMPILE", CROSS_COMPILE.into()),
        // Kept, so that Rust's library is not built each time.
        ("CARGO_TARGET_DIR", workspace.paths().module_build("rust", "target")),
    ]);
    Ok(variables)
}

/// Copies a folder, in the place of what was there.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &place)?;
        } else {
            fs::copy(entry.path(), place)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_without_tests() {
        let root = "[workspace]\nresolver = \"3\"\nmembers = [\n    \"boot\",\n]\n\n\
            default-members = [\"abi\"]\n\n[workspace.package]\nversion = \"1\"\n";
        let root = of_rust_half(root).unwrap();
        assert!(root.contains("members = [\"abi\", ") && !root.contains("boot"), "{root}");
        assert!(root.ends_with("[workspace.package]\nversion = \"1\"\n"));
        let manifest = "[dependencies]\na = \"1\"\n\n[dev-dependencies]\nb = \"1\"\n\n\
            [target.'cfg(loom)'.dependencies]\nloom = \"1\"\n\n[lints]\nworkspace = true\n";
        let expected = "[dependencies]\na = \"1\"\n\n[lints]\nworkspace = true\n";
        assert_eq!(without_tests(manifest), expected);
    }
}
