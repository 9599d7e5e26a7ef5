// SPDX-License-Identifier: MIT OR Apache-2.0

//! Building: the hypervisor, the payloads, and what runs on the host.

mod cargo;
mod image;
mod initramfs;
mod module;
mod package;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use xtask::artefacts::{Artefacts, BuildPaths};

pub use cargo::{command as cargo_command, plain as plain_cargo};
pub use initramfs::{stripped, with_guest as initramfs_with_guest};
pub use module::{FLAGS as MODULE_FLAGS, check as check_modules, make, rust_half};
pub use package::{build_rust, check_package, package};

use cargo::Kind;

use crate::setup::{Kernel, SOFTFLOAT, STATIC_LINUX, Setup};
use crate::shell::{run_quietly, write_if_changed};

/// What can be built on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Escrow itself: target/escrow.elf and target/escrow.img
    Hypervisor,
    /// Escrow for tests, which writes down what it does to tables:
    /// target/escrow-trace.elf and target/escrow-trace.img
    Traced,
    /// Escrow for tests, which holds every call against the specification:
    /// target/escrow-oracle.elf and target/escrow-oracle.img
    Oracle,
    /// The bare-metal test programs: target/payloads/*.img
    Payloads,
    /// What the host runs: the escrow program, the shim, the initramfs
    Host,
    /// What tests run on the host: their programs and modules
    Tests,
    /// The shim for DKMS, for other kernels: target/dkms/escrow-VERSION
    Dkms,
}

/// The work tree and its target folder.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
    paths: BuildPaths,
}

impl Workspace {
    /// The work tree that this program belongs to.
    pub fn find() -> Result<Self> {
        // Cargo sets the variable when it runs the program.
        let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let manifest = manifest.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = manifest.parent().context("xtask is not in a work tree")?;
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => std::path::absolute(folder)?,
            None => root.join("target"),
        };
        Ok(Self { root: root.to_owned(), paths: BuildPaths::new(target) })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn paths(&self) -> &BuildPaths {
        &self.paths
    }

    /// Everything that a boot is made of, built or set up.
    pub fn artefacts(&self, setup: &Setup) -> Result<Artefacts> {
        let kernel = setup.host_kernel()?;
        let newer = setup.newer_kernel()?;
        Ok(Artefacts {
            image: self.paths.image(),
            elf: self.paths.elf(),
            traced_image: self.paths.traced_image(),
            oracle_image: self.paths.oracle_image(),
            payloads: self.paths.payloads(),
            host_kernel: kernel.image.clone(),
            host_modules: kernel.modules.clone(),
            initramfs: self.paths.initramfs(),
            newer_kernel: newer.image.clone(),
            newer_modules: newer.modules.clone(),
            modules: self.paths.modules(),
            vmm: self.paths.vmm(),
            fault_modules: self.paths.fault_modules(),
            shim_tests: self.paths.shim_tests(),
            shim_faults: self.paths.shim_faults(),
            shim_soak: self.paths.shim_soak(),
            shim_machine: self.paths.shim_machine(),
            liar: self.paths.liar(),
            guest_kernel: newer.image.clone(),
            busybox: setup.busybox()?.to_owned(),
            crash_tools: setup.crash_tools()?.to_owned(),
            qemu: setup.qemu()?.to_owned(),
        })
    }
}

/// Builds `parts`.
pub fn build(workspace: &Workspace, setup: &Setup, parts: &[What]) -> Result<()> {
    let wanted = |what| parts.contains(&what);
    if wanted(What::Hypervisor) {
        let [elf, image] = [workspace.paths.elf(), workspace.paths.image()];
        hypervisor(workspace, setup, "", &elf, &image).context("the hypervisor does not build")?;
    }
    if wanted(What::Traced) {
        let [elf, image] = [workspace.paths.traced_elf(), workspace.paths.traced_image()];
        hypervisor(workspace, setup, "trace", &elf, &image)
            .context("the hypervisor that writes traces does not build")?;
    }
    if wanted(What::Oracle) {
        let [elf, image] = [workspace.paths.oracle_elf(), workspace.paths.oracle_image()];
        hypervisor(workspace, setup, "oracle", &elf, &image)
            .context("the hypervisor with the oracle does not build")?;
    }
    if wanted(What::Payloads) {
        payloads(workspace, setup).context("the payloads do not build")?;
    }
    if wanted(What::Host) {
        host_for(workspace, setup, setup.host_kernels()?.into())?;
    }
    if wanted(What::Tests) {
        setup.cross_compiler()?;
        let paths = &workspace.paths;
        for (package, name, place) in [
            ("escrow-shim-tests", "shim-tests", paths.shim_tests()),
            ("escrow-shim-tests", "shim-faults", paths.shim_faults()),
            ("escrow-shim-tests", "shim-soak", paths.shim_soak()),
            ("escrow-shim-tests", "shim-machine", paths.shim_machine()),
            ("escrow-liar", "liar", paths.liar()),
        ] {
            let built = program(workspace, setup, package, name, &place);
            built.with_context(|| format!("the program {name} does not build"))?;
        }
        module::build_all(workspace, setup).context("the modules of tests do not build")?;
    }
    if wanted(What::Dkms) {
        package(workspace, setup).context("the package for DKMS cannot be made")?;
    }
    Ok(())
}

/// Builds what the host runs, if it boots one of these kernels.
pub fn host_for(workspace: &Workspace, setup: &Setup, kernels: Vec<&Kernel>) -> Result<()> {
    setup.cross_compiler()?;
    program(workspace, setup, "escrow-vmm", "escrow", &workspace.paths.vmm())
        .context("the program escrow does not build")?;
    module::build(workspace, setup, &kernels).context("the module does not build")?;
    initramfs::build(workspace, setup, &kernels).context("the initramfs cannot be made")
}

fn hypervisor(
    workspace: &Workspace,
    setup: &Setup,
    features: &str,
    to_elf: &Path,
    to_image: &Path,
) -> Result<()> {
    let build = cargo::Build::new("escrow-boot", SOFTFLOAT).features(features);
    let built = build.run(workspace, setup)?;
    let elf = cargo::only(&built, Kind::Program, "escrow-boot")?;
    let elf = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    write_if_changed(to_elf, &elf)?;
    write_if_changed(to_image, &image::flatten(&elf)?)?;
    Ok(())
}

fn payloads(workspace: &Workspace, setup: &Setup) -> Result<()> {
    let built = cargo::Build::new("escrow-payloads", SOFTFLOAT).run(workspace, setup)?;
    let folder = workspace.paths.payloads();
    let mut names = Vec::new();
    for program in built.iter().filter(|built| built.kind == Kind::Program) {
        let elf = fs::read(&program.path)?;
        let flat = image::flatten(&elf).with_context(|| program.name.clone())?;
        write_if_changed(&folder.join(format!("{}.img", program.name)), &flat)?;
        write_if_changed(&folder.join(format!("{}.elf", program.name)), &elf)?;
        names.push(program.name.clone());
    }
    // A payload that is gone must not be tested any more.
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        if !stem.is_some_and(|stem| names.contains(&stem)) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// A program that runs on the host.
fn program(
    workspace: &Workspace,
    setup: &Setup,
    package: &str,
    name: &str,
    place: &Path,
) -> Result<()> {
    let built = cargo::Build::new(package, STATIC_LINUX).run(workspace, setup)?;
    let program = cargo::only(&built, Kind::Program, name)?;
    let program =
        fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    write_if_changed(place, &program)?;
    Ok(())
}

/// Builds the workload that `cargo xtask bench` runs on the host. The program.
pub fn workload(workspace: &Workspace, setup: &Setup) -> Result<PathBuf> {
    setup.cross_compiler()?;
    let built = cargo::Build::new("escrow-workload", STATIC_LINUX).run(workspace, setup)?;
    Ok(cargo::only(&built, Kind::Program, "escrow-workload")?.to_owned())
}

/// Builds the VMM that `cargo xtask bench` runs on KVM. The program.
pub fn peers(workspace: &Workspace, setup: &Setup) -> Result<PathBuf> {
    setup.cross_compiler()?;
    let built = cargo::Build::new("escrow-peers", STATIC_LINUX).run(workspace, setup)?;
    Ok(cargo::only(&built, Kind::Program, "escrow-peers")?.to_owned())
}

/// Builds the program that `cargo xtask bench` counts the shim's work with.
pub fn shim_bench(workspace: &Workspace, setup: &Setup) -> Result<PathBuf> {
    setup.cross_compiler()?;
    let built = cargo::Build::new("escrow-shim-bench", STATIC_LINUX).run(workspace, setup)?;
    Ok(cargo::only(&built, Kind::Program, "escrow-shim-bench")?.to_owned())
}

/// Builds the first process of the Linux guests that `cargo xtask bench` boots. The program.
pub fn guest_bench(workspace: &Workspace, setup: &Setup) -> Result<PathBuf> {
    setup.cross_compiler()?;
    let built = cargo::Build::new("escrow-guest-bench", STATIC_LINUX).run(workspace, setup)?;
    Ok(cargo::only(&built, Kind::Program, "escrow-guest-bench")?.to_owned())
}

/// Builds the plugin for QEMU that counts what each CPU executes.
pub fn plugin(workspace: &Workspace) -> Result<PathBuf> {
    let mut command = plain_cargo(workspace, "build");
    command.args(["--release", "--package", "escrow-plugin"]);
    run_quietly(&mut command).context("the plugin for QEMU does not build")?;
    Ok(workspace.paths.root().join("release/libescrow_plugin.so"))
}
