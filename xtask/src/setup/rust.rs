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

/// Where the libraries of those targets come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BareMetal {
    /// They are part of the toolchain.
    Installed,
    /// Cargo builds them from these sources (`-Zbuild-std`).
    BuildFrom(PathBuf),
}

impl fmt::Display for BareMetal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed => f.write_str("libraries of the toolchain"),
            Self::BuildFrom(sources) => write!(f, "libraries built from {}", sources.display()),
        }
    }
}

impl BareMetal {
    /// Environment variables of cargo calls for those targets.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        match self {
            Self::Installed => Vec::new(),
            Self::BuildFrom(sources) => vec![
                // -Zbuild-std with a stable toolchain.
                ("RUSTC_BOOTSTRAP", "1".into()),
                // Cargo looks for the sources in the toolchain's own folder,
                // which is not ours to change.
                ("__CARGO_TESTS_ONLY_SRC_ROOT", sources.clone()),
                // What a later Rust will not like in its own libraries.
                ("CARGO_FUTURE_INCOMPAT_REPORT_FREQUENCY", "never".into()),
            ],
        }
    }

    /// Arguments of cargo calls for `target`.
    pub fn arguments(&self, target: &str) -> Vec<String> {
        let mut arguments = vec![format!("--target={target}")];
        if let Self::BuildFrom(_) = self {
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
pub fn provide(parts: &mut Store<'_>) -> Result<BareMetal> {
    let toolchain = Toolchain::detect()?;
    if let Some(there) = toolchain.libraries() {
        return Ok(there);
    }
    let cached = parts.version("rust-src").is_some_and(|have| have.starts_with(&toolchain.release));
    if !cached {
        match add_targets() {
            Ok(()) => return toolchain.libraries().context("rustup added targets, but where?"),
            Err(why) => say!("rustup adds no targets ({why:#}): taking Debian's sources of Rust"),
        }
    }
    let library = parts.rust_library(&toolchain.release).with_context(|| {
        format!(
            "where rustup can download, run `rustup target add {SOFTFLOAT} {STATIC_LINUX}` \
             (`rustup component add rust-src` does, too)"
        )
    })?;
    Ok(BareMetal::BuildFrom(library))
}

struct Toolchain {
    /// As in `1.95.0`.
    release: String,
    sysroot: PathBuf,
}

impl Toolchain {
    fn detect() -> Result<Self> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let text = output_of(Command::new(&rustc).args(["-vV"]))?;
        let release = text.lines().find_map(|line| line.strip_prefix("release: "));
        let sysroot = output_of(Command::new(&rustc).args(["--print", "sysroot"]))?;
        Ok(Self {
            release: release.context("rustc does not tell its release")?.to_owned(),
            sysroot: sysroot.trim().into(),
        })
    }

    /// The libraries that the toolchain itself has.
    fn libraries(&self) -> Option<BareMetal> {
        let folder = self.sysroot.join("lib/rustlib");
        let built = |target: &str| folder.join(target).join("lib").exists();
        if built(SOFTFLOAT) && built(STATIC_LINUX) {
            return Some(BareMetal::Installed);
        }
        let sources = folder.join("src/rust/library");
        is_library(&sources).then_some(BareMetal::BuildFrom(sources))
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
    use super::*;

    #[test]
    fn libraries_are_built_only_where_they_are_missing() {
        let installed = BareMetal::Installed;
        assert_eq!(installed.arguments(SOFTFLOAT), [format!("--target={SOFTFLOAT}")]);
        assert!(installed.environment().is_empty());
        let built = BareMetal::BuildFrom("/src".into());
        assert!(built.arguments(SOFTFLOAT).contains(&"-Zbuild-std=core,alloc".into()));
        assert!(
            built
                .arguments(STATIC_LINUX)
                .contains(&"-Zbuild-std=std,panic_abort,panic_unwind".into())
        );
    }
}
