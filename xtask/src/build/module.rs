// SPDX-License-Identifier: MIT OR Apache-2.0

//! The modules: the shim, and those of tests. Rust first, prelinked to one
//! object file; then the kernel's own build, on copies of the C files, so that
//! the source tree stays clean.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Workspace;
use super::cargo::{Build, Kind, only};
use crate::setup::{Headers, Kernel, SOFTFLOAT, Setup};
use crate::shell::{Step, find_program, run_quietly, write_if_changed};

/// Made for the C files: the workspace's version.
const VERSION_HEADER: &str = "escrow_version.h";
/// What Kbuild files call the Rust half.
pub(super) const RUST_OBJECT: &str = "escrow_rust.o";
/// Links the Rust half, here and where the package for DKMS is built.
pub(super) const PRELINK: &str = "prelink.sh";
/// How the names of the cross compiler's programs begin.
pub(super) const CROSS_COMPILE: &str = "aarch64-linux-gnu-";

/// A module's loader knows no GOT. What the code is about lies in the module
/// itself, so near that two instructions name it (the small code model), and
/// the loader makes veneers for calls that go further. One object is for all kernels, so it bears with
/// what any of them is built with: it leaves x18 alone, which is the shadow
/// call stack's (`SHADOW_CALL_STACK`), and what is called by its address begins
/// with `BTI C` (`ARM64_BTI_KERNEL`) and signs its return address
/// (`ARM64_PTR_AUTH_KERNEL`). A CPU without these takes them for NOPs. As in the
/// kernel's C, leaves have no frame, and so nothing to sign.
pub const FLAGS: &[&str] = &[
    "-Crelocation-model=static",
    "-Ccode-model=small",
    "-Zunstable-options",
    "-Cforce-frame-pointers=non-leaf",
    "-Zfixed-x18",
    "-Zbranch-protection=bti,pac-ret",
];

/// A module, and where it comes from.
pub(super) struct Module {
    name: &'static str,
    /// Folder of the C files.
    pub(super) source: &'static str,
    /// Package of the Rust half, if there is one.
    rust: Option<&'static str>,
    /// Whether whatever may fail does so when it is told to; for tests.
    faults: bool,
    /// Whether it uses what the shim exports. The shim is built before it.
    uses_shim: bool,
}

/// The shim, and those of tests, which may use it.
const MODULES: &[Module] = &[
    SHIM,
    Module { faults: true, ..SHIM },
    Module { name: "liar", source: "tests/liar/module", ..PLAIN },
    Module { name: "holder", source: "tests/holder/module", uses_shim: true, ..PLAIN },
];

pub(super) const SHIM: Module =
    Module { name: "escrow", source: "host/module", rust: Some("escrow-module"), ..PLAIN };
const PLAIN: Module = Module { name: "", source: "", rust: None, faults: false, uses_shim: false };

impl Module {
    /// Builds the Rust half, if there is one.
    pub(super) fn library(&self, workspace: &Workspace, setup: &Setup) -> Result<Option<PathBuf>> {
        let Some(package) = self.rust else { return Ok(None) };
        let remaps = remaps(setup)?;
        let flags = FLAGS.iter().copied().chain(remaps.iter().map(String::as_str));
        let flags: Vec<_> = flags.collect();
        let built = Build::new(package, SOFTFLOAT).flags(&flags).run(workspace, setup)?;
        Ok(Some(only(&built, Kind::StaticLibrary, &package.replace('-', "_"))?.to_owned()))
    }

    /// Puts together what the kernel's build needs. Whether anything changed.
    pub(super) fn prepare(
        &self,
        workspace: &Workspace,
        library: Option<&Path>,
        work: &Path,
    ) -> Result<bool> {
        let source = workspace.root().join(self.source);
        let mut changed = stage(&source, work)?;
        let version = format!("#define ESCROW_VERSION \"{}\"\n", env!("CARGO_PKG_VERSION"));
        changed |= write_if_changed(&work.join(VERSION_HEADER), version.as_bytes())?;
        if let Some(library) = library {
            changed |= prelink(library, &source, work)?;
        }
        Ok(changed)
    }
}

/// Flags by which it makes no difference to the Rust half where crates and Rust's
/// library lie: a panic names its file. The package's own build has the same names.
fn remaps(setup: &Setup) -> Result<Vec<String>> {
    let mut flags = Vec::new();
    for crates in registries()? {
        flags.push(format!("--remap-path-prefix={}=crates", crates.display()));
    }
    if let Some(library) = setup.bare_metal()?.library() {
        flags.push(format!("--remap-path-prefix={}=library", library.display()));
    }
    Ok(flags)
}

/// The folders where cargo has the sources of crates, one for each registry.
fn registries() -> Result<Vec<PathBuf>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let folder = home.context("where is cargo's home?")?.join("registry/src");
    let entries = fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))?;
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    found.sort();
    Ok(found)
}

/// The Rust half of the shim as one object, as the kernel's build takes it.
pub fn rust_half(workspace: &Workspace, setup: &Setup) -> Result<PathBuf> {
    setup.cross_compiler()?;
    let library = SHIM.library(workspace, setup)?.context("the shim has no Rust half")?;
    let work = workspace.paths().module_build("rust", SHIM.name);
    fs::create_dir_all(&work)?;
    prelink(&library, &workspace.root().join(SHIM.source), &work)?;
    Ok(work.join(RUST_OBJECT))
}

/// Builds the shim for these kernels.
pub fn build(workspace: &Workspace, setup: &Setup, kernels: &[&Kernel]) -> Result<()> {
    build_some(workspace, setup, &[SHIM], kernels)
}

/// Builds every module for every kernel that hosts run.
pub fn build_all(workspace: &Workspace, setup: &Setup) -> Result<()> {
    let kernels = setup.host_kernels()?;
    build_some(workspace, setup, MODULES, &kernels)?;
    // Modules for kernels that are gone would go into the initramfs of tests.
    for folder in [workspace.paths().modules(), workspace.paths().fault_modules()] {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !kernels.iter().any(|kernel| entry.file_name() == *kernel.headers.release) {
                fs::remove_dir_all(entry.path())?;
            }
        }
    }
    Ok(())
}

fn build_some(
    workspace: &Workspace,
    setup: &Setup,
    modules: &[Module],
    kernels: &[&Kernel],
) -> Result<()> {
    setup.cross_compiler()?;
    setup.kernel_tools()?;
    for module in modules {
        let library = module.library(workspace, setup)?;
        for kernel in kernels {
            let what = || format!("{} for {}", module.name, kernel.headers.release);
            build_for(workspace, kernel, module, library.as_deref()).with_context(what)?;
        }
    }
    Ok(())
}

fn build_for(
    workspace: &Workspace,
    kernel: &Kernel,
    module: &Module,
    library: Option<&Path>,
) -> Result<()> {
    let name = module.name;
    let (folder, place) = match module.faults {
        true => (format!("{name}-faults"), workspace.paths().fault_modules()),
        false => (name.to_owned(), workspace.paths().modules()),
    };
    let work = workspace.paths().module_build(&kernel.headers.release, &folder);
    let mut changed = module.prepare(workspace, library, &work)?;
    // Another kernel is another module.
    changed |= write_if_changed(&work.join("kernel"), kernel.to_string().as_bytes())?;
    if module.uses_shim {
        let shim = workspace.paths().module_build(&kernel.headers.release, SHIM.name);
        // Another interface is another module.
        for (from, to) in [("Module.symvers", "symvers"), ("include/linux/escrow.h", "interface")] {
            changed |= write_if_changed(&work.join(to), &fs::read(shim.join(from))?)?;
        }
    }
    let result = work.join(format!("{name}.ko"));
    if changed || !result.exists() {
        // If this build fails, the next must not take the old one for it.
        let _ = fs::remove_file(&result);
        let with = if module.faults { " with faults" } else { "" };
        let step = Step::start(format!("building {name}.ko{with} for {}", kernel.headers.release));
        // The module builds without a warning, or it does not build.
        let mut make = make(&work, &kernel.headers)?;
        make.args(["KCFLAGS=-Werror", "modules"]).args(module.faults.then_some("ESCROW_FAULTS=1"));
        if module.uses_shim {
            make.args(of_the_shim(
                &workspace.paths().module_build(&kernel.headers.release, SHIM.name),
            ));
        }
        let output = run_quietly(&mut make)?;
        // make itself and modpost warn, too.
        let warnings = String::from_utf8_lossy(&output.stderr);
        let warnings: Vec<_> = warnings.lines().filter(|line| !is_known_remark(line)).collect();
        if !warnings.is_empty() {
            bail!("the kernel's build warns:\n{}", warnings.join("\n"));
        }
        step.done();
    }
    let built = fs::read(&result).with_context(|| format!("cannot read {}", result.display()))?;
    let place = place.join(&kernel.headers.release).join(format!("{name}.ko"));
    write_if_changed(&place, &built)?;
    Ok(())
}

/// Copies the files that Kbuild reads, and removes the copies of those that
/// are gone. Whether anything changed.
fn stage(source: &Path, work: &Path) -> Result<bool> {
    let mut changed = false;
    let mut staged = BTreeSet::new();
    for path in sources(source)? {
        let place = work.join(path.strip_prefix(source)?);
        changed |= write_if_changed(&place, &fs::read(&path)?)?;
        staged.insert(place);
    }
    if work.exists() {
        for stale in sources(work)?.iter().filter(|path| !staged.contains(*path)) {
            // Kbuild leaves generated C files beside the others.
            if !stale.to_string_lossy().ends_with(".mod.c") && !stale.ends_with(VERSION_HEADER) {
                fs::remove_file(stale)?;
                changed = true;
            }
        }
    }
    Ok(changed)
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.file_name().is_some_and(|name| name == "Kbuild")
            || path.extension().is_some_and(|e| e == "c" || e == "h" || e == "S")
        {
            found.push(path);
        }
    }
    Ok(found)
}

/// Links the Rust half to one object that has no more than C can reach. Whether
/// it changed.
fn prelink(library: &Path, source: &Path, work: &Path) -> Result<bool> {
    let object = work.join("escrow_rust.new");
    let mut script = Command::new("sh");
    script.arg(source.join(PRELINK)).args([library, &object]).env("CROSS_COMPILE", CROSS_COMPILE);
    run_quietly(&mut script)?;
    let changed = write_if_changed(&work.join(RUST_OBJECT), &fs::read(&object)?)?;
    fs::remove_file(&object)?;
    // Kbuild wants to know how each object was made.
    write_if_changed(&work.join(format!(".{RUST_OBJECT}.cmd")), b"")?;
    Ok(changed)
}

/// Has sparse and the compiler's `W=1` look at every module, for every kernel;
/// sparse only with the older one: Debian's headers of 7.x leave out the script
/// that the kernel's build starts it by (`checker-valid.sh`).
/// The folders that they looked at, and all that was said.
pub fn check(workspace: &Workspace, setup: &Setup) -> Result<Vec<(PathBuf, String)>> {
    setup.cross_compiler()?;
    setup.kernel_tools()?;
    let mut said = Vec::new();
    for module in MODULES.iter().filter(|module| !module.faults) {
        let library = module.library(workspace, setup)?;
        for kernel in setup.host_kernels()? {
            let work = workspace.paths().module_build(&kernel.headers.release, module.name);
            let work = work.with_extension("lint");
            module.prepare(workspace, library.as_deref(), &work)?;
            let step =
                Step::start(format!("sparse for {} on {}", module.name, kernel.headers.release));
            // From the beginning: what was compiled before would be left out.
            run_quietly(make(&work, &kernel.headers)?.arg("clean"))?;
            module.prepare(workspace, library.as_deref(), &work)?;
            let mut make = make(&work, &kernel.headers)?;
            make.args(["W=1", "C=2", "modules"]);
            if module.uses_shim {
                let shim = workspace.paths().module_build(&kernel.headers.release, SHIM.name);
                make.args(of_the_shim(&shim.with_extension("lint")));
            }
            let output = run_quietly(&mut make)?;
            let text = [output.stderr, output.stdout].concat();
            said.push((work, String::from_utf8_lossy(&text).into_owned()));
            step.done();
        }
    }
    Ok(said)
}

/// What a module needs that uses what the shim, built in that folder, exports.
fn of_the_shim(shim: &Path) -> [String; 2] {
    [
        format!("ccflags-y=-I{}", shim.join("include").display()),
        format!("KBUILD_EXTRA_SYMBOLS={}", shim.join("Module.symvers").display()),
    ]
}

/// The kernel's build of the module in a folder.
pub fn make(work: &Path, headers: &Headers) -> Result<Command> {
    let mut command = Command::new("make");
    command
        .arg("-C")
        .arg(fs::canonicalize(&headers.folder)?)
        .arg(format!("M={}", work.display()))
        .args(["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"])
        .args(compiler(headers))
        // A make that runs us must not steer this one.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL");
    Ok(command)
}

/// What every out-of-tree build says.
fn is_known_remark(line: &str) -> bool {
    line.trim().is_empty()
        || line.contains("the compiler differs from the one used to build the kernel")
        || line.contains("pahole version differs from the one used to build the kernel")
        || line.trim_start().starts_with("The kernel was built by:")
        || line.trim_start().starts_with("The kernel was built with:")
        || line.trim_start().starts_with("You are using:")
        || line.contains("Skipping BTF generation")
}

/// Which compiler to use, where it is not the one that the headers name:
/// another version does where that one is not installed.
fn compiler(headers: &Headers) -> Option<OsString> {
    let other = match &headers.compiler {
        Some(path) => path.clone().into_os_string(),
        None if headers.own_compiler().is_some_and(|name| find_program(&name).is_some()) => {
            return None;
        }
        None => "aarch64-linux-gnu-gcc".into(),
    };
    let mut argument = OsString::from("CC=");
    argument.push(other);
    Some(argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_follows_the_sources() {
        let folder = tempfile::tempdir().unwrap();
        let (source, work) = (folder.path().join("source"), folder.path().join("work"));
        fs::create_dir_all(source.join("src")).unwrap();
        fs::write(source.join("Kbuild"), "obj-m := escrow.o").unwrap();
        fs::write(source.join("a.c"), "int a;").unwrap();
        fs::write(source.join("src/lib.rs"), "").unwrap();
        assert!(stage(&source, &work).unwrap());
        assert!(!stage(&source, &work).unwrap(), "nothing changed");
        assert!(!work.join("src/lib.rs").exists());

        fs::write(work.join("escrow.mod.c"), "generated").unwrap();
        fs::rename(source.join("a.c"), source.join("b.c")).unwrap();
        assert!(stage(&source, &work).unwrap());
        assert!(work.join("b.c").exists() && !work.join("a.c").exists());
        assert!(work.join("escrow.mod.c").exists());
    }
}
