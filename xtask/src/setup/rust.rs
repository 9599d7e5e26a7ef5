// SPDX-License-Identifier: MIT OR Apache-2.0

//! Rust's libraries for the two targets that the build machine's own
//! toolchain does not come with.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::components::Store;
use crate::say;
use crate::shell::{Step, find_program, output_of, run_quietly};

/// EL2, the payloads and the module: no FP/SIMD register is touched by
/// compiled code.
pub const SOFTFLOAT: &str = "aarch64-unknown-none-softfloat";
/// Programs for the host's user space, linked statically.
pub const STATIC_LINUX: &str = "aarch64-unknown-linux-gnu";

/// The linker of bare-metal programs where the toolchain has none of its own.
pub const SYSTEM_LINKER: &str = "ld.lld";
const SYSTEM_LINKER_VARIABLE: &str = "CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER";

/// How those targets are built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BareMetal {
    /// Sources that cargo builds the libraries from (`-Zbuild-std`); none if
    /// they are part of the toolchain.
    sources: Option<PathBuf>,
    /// Whether the toolchain brings `rust-lld`.
    own_linker: bool,
}

impl fmt::Display for BareMetal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.sources {
            None => f.write_str("libraries of the toolchain"),
            Some(sources) => write!(f, "libraries built from {}", sources.display()),
        }
    }
}

impl BareMetal {
    /// Environment variables of cargo calls for those targets.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let mut variables = Vec::new();
        if let Some(sources) = &self.sources {
            // -Zbuild-std with a stable toolchain.
            variables.push(("RUSTC_BOOTSTRAP", "1".into()));
            // Cargo looks for the sources in the toolchain's own folder, which
            // is not ours to change.
            variables.push(("__CARGO_TESTS_ONLY_SRC_ROOT", sources.clone()));
            // What a later Rust will not like in its own libraries.
            variables.push(("CARGO_FUTURE_INCOMPAT_REPORT_FREQUENCY", "never".into()));
        }
        if !self.own_linker {
            variables.push((SYSTEM_LINKER_VARIABLE, SYSTEM_LINKER.into()));
        }
        variables
    }

    /// Where the libraries' sources are, if cargo builds them.
    pub fn library(&self) -> Option<&Path> {
        self.sources.as_deref()
    }

    /// Arguments of cargo calls for `target`.
    pub fn arguments(&self, target: &str) -> Vec<String> {
        let mut arguments = vec![format!("--target={target}")];
        if self.sources.is_some() {
            let libraries = match target {
                STATIC_LINUX => "std,panic_abort,panic_unwind",
                _ => "core,alloc",
            };
            arguments.push(format!("-Zbuild-std={libraries}"));
        }
        arguments
    }
}

/// Finds the libraries, or gets them: from rustup where it may download, else
/// as sources from Debian's archive.
pub fn provide(toolchain: &Toolchain, parts: &mut Store<'_>) -> Result<BareMetal> {
    if let Some(there) = toolchain.bare_metal() {
        return Ok(there);
    }
    let cached = parts.version("rust-src").is_some_and(|have| have.starts_with(&toolchain.release));
    if !cached {
        match add_targets() {
            Ok(()) => return toolchain.bare_metal().context("rustup added targets, but where?"),
            Err(why) => say!("rustup adds no targets ({why:#}): taking Debian's sources of Rust"),
        }
    }
    let library = parts.rust_library(&toolchain.release).with_context(|| {
        format!(
            "where rustup can download, run `rustup target add {SOFTFLOAT} {STATIC_LINUX}` \
             (`rustup component add rust-src` does, too)"
        )
    })?;
    Ok(toolchain.building_from(Some(library)))
}

/// The installed Rust.
pub struct Toolchain {
    /// As in `1.95.0`.
    release: String,
    sysroot: PathBuf,
    /// The build machine's target.
    host: String,
}

impl Toolchain {
    pub fn detect() -> Result<Self> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let text = output_of(Command::new(&rustc).args(["-vV"]))?;
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.map(str::to_owned).with_context(|| format!("rustc does not tell its {name}"))
        };
        let sysroot = output_of(Command::new(&rustc).args(["--print", "sysroot"]))?;
        Ok(Self {
            release: field("release")?,
            sysroot: sysroot.trim().into(),
            host: field("host")?,
        })
    }

    /// Whether it can link bare-metal programs; distributions leave that to
    /// their own linker.
    pub fn has_linker(&self) -> bool {
        let programs = self.libraries().join(&self.host).join("bin");
        programs.join("rust-lld").exists() || find_program("rust-lld").is_some()
    }

    fn libraries(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib")
    }

    /// What the toolchain itself has of the libraries.
    fn bare_metal(&self) -> Option<BareMetal> {
        let folder = self.libraries();
        let built = |target: &str| folder.join(target).join("lib").exists();
        if built(SOFTFLOAT) && built(STATIC_LINUX) {
            return Some(self.building_from(None));
        }
        let sources = folder.join("src/rust/library");
        is_library(&sources).then(|| self.building_from(Some(sources)))
    }

    fn building_from(&self, sources: Option<PathBuf>) -> BareMetal {
        BareMetal { sources, own_linker: self.has_linker() }
    }
}

fn is_library(sources: &Path) -> bool {
    sources.join("core/Cargo.toml").exists()
}

fn add_targets() -> Result<()> {
    let rustup = find_program("rustup").context("there is none")?;
    // How a user says that rustup shall not download behind their back.
    if env::var_os("RUSTUP_AUTO_INSTALL").is_some_and(|value| value == "0") {
        anyhow::bail!("RUSTUP_AUTO_INSTALL=0");
    }
    let step = Step::start("fetching Rust's libraries for arm64");
    run_quietly(Command::new(rustup).args(["target", "add", SOFTFLOAT, STATIC_LINUX]))?;
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn libraries_are_built_only_where_they_are_missing() {
        let installed = BareMetal { sources: None, own_linker: true };
        assert_eq!(installed.arguments(SOFTFLOAT), [format!("--target={SOFTFLOAT}")]);
        assert!(installed.environment().is_empty());
        let built = BareMetal { sources: Some("/src".into()), own_linker: true };
        assert!(built.arguments(SOFTFLOAT).contains(&"-Zbuild-std=core,alloc".into()));
        let std = "-Zbuild-std=std,panic_abort,panic_unwind".to_owned();
        assert!(built.arguments(STATIC_LINUX).contains(&std));
    }

    #[test]
    fn a_toolchain_is_what_its_folders_hold() {
        let folder = tempfile::tempdir().unwrap();
        let toolchain = Toolchain {
            release: "1.95.0".into(),
            sysroot: folder.path().into(),
            host: "here".into(),
        };
        let create = |path: &str| {
            fs::create_dir_all(toolchain.libraries().join(path)).unwrap();
        };
        assert_eq!(toolchain.bare_metal(), None);
        create("src/rust/library/core");
        fs::write(toolchain.libraries().join("src/rust/library/core/Cargo.toml"), "").unwrap();
        assert!(toolchain.bare_metal().unwrap().sources.is_some());
        create(&format!("{SOFTFLOAT}/lib"));
        assert!(toolchain.bare_metal().unwrap().sources.is_some(), "half is not enough");
        create(&format!("{STATIC_LINUX}/lib"));
        assert_eq!(toolchain.bare_metal().unwrap().sources, None);
    }
}
