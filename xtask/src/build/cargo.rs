// SPDX-License-Identifier: MIT OR Apache-2.0

//! Cargo calls for the targets that need more than a plain `cargo build`.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Workspace;
use crate::setup::Setup;

/// What sort of file cargo made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Program,
    StaticLibrary,
}

/// A file that cargo made.
#[derive(Debug)]
pub struct Built {
    pub kind: Kind,
    pub name: String,
    pub path: PathBuf,
}

/// A release build of one package.
pub struct Build<'a> {
    package: &'a str,
    target: &'a str,
    flags: &'a [&'a str],
    features: &'a str,
}

impl<'a> Build<'a> {
    pub fn new(package: &'a str, target: &'a str) -> Self {
        Self { package, target, flags: &[], features: "" }
    }

    /// Flags for rustc, in place of those in `.cargo/config.toml`.
    pub fn flags(mut self, flags: &'a [&'a str]) -> Self {
        self.flags = flags;
        self
    }

    /// Features of the package, with commas between.
    pub fn features(mut self, features: &'a str) -> Self {
        self.features = features;
        self
    }

    /// Builds, and tells which files came of it.
    pub fn run(self, workspace: &Workspace, setup: &Setup) -> Result<Vec<Built>> {
        let mut command = command(workspace, setup, "build", self.target, self.flags)?;
        command.args(["--release", "--package", self.package, "--features", self.features]);
        command.arg("--message-format=json-render-diagnostics");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start cargo")?;
        let messages = child.stdout.take().context("cargo has no output")?;
        let mut built = Vec::new();
        for line in BufReader::new(messages).lines() {
            let message: Message = serde_json::from_str(&line?).context("what does cargo say?")?;
            built.extend(message.built(workspace.root()));
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("cargo build of {} failed ({status})", self.package);
        }
        Ok(built)
    }
}

/// `cargo SUBCOMMAND` for `target`, with `flags` for rustc if there are any.
pub fn command(
    workspace: &Workspace,
    setup: &Setup,
    subcommand: &str,
    target: &str,
    flags: &[&str],
) -> Result<Command> {
    let bare_metal = setup.bare_metal()?;
    let mut command = plain(workspace, subcommand);
    command.args(bare_metal.arguments(target));
    command.envs(bare_metal.environment());
    if !flags.is_empty() {
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    }
    Ok(command)
}

/// `cargo SUBCOMMAND` for the build machine itself.
pub fn plain(workspace: &Workspace, subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand).current_dir(workspace.root());
    // What cargo says of us to us would be taken for the truth about others.
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"CARGO_PKG_") {
            command.env_remove(name);
        }
    }
    command.env_remove("CARGO_MANIFEST_DIR");
    command.env_remove("CARGO_MANIFEST_PATH");
    command
}

/// The one file of a kind and name.
pub fn only<'a>(built: &'a [Built], kind: Kind, name: &str) -> Result<&'a Path> {
    let found = built.iter().find(|b| b.kind == kind && b.name == name);
    let found = found.with_context(|| format!("cargo made no {name}"))?;
    Ok(&found.path)
}

/// A line of `cargo build --message-format=json`, as far as it matters.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    executable: Option<PathBuf>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Message {
    fn built(self, root: &Path) -> Option<Built> {
        let target = self.target?;
        let ours = self.manifest_path?.starts_with(root);
        if self.reason != "compiler-artifact" || !ours {
            return None;
        }
        let is = |kind: &str| target.kind.iter().any(|k| k == kind);
        let (kind, path) = if is("bin") {
            (Kind::Program, self.executable?)
        } else if is("staticlib") {
            let is_archive = |path: &PathBuf| path.extension().is_some_and(|e| e == "a");
            let archive = self.filenames.into_iter().find(is_archive)?;
            (Kind::StaticLibrary, archive)
        } else {
            return None;
        };
        Some(Built { kind, name: target.name, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artefacts_of_the_workspace_alone() {
        let message = |manifest: &str, kind: &str| {
            let text = format!(
                r#"{{"reason":"compiler-artifact","package_id":"x","manifest_path":"{manifest}",
                "target":{{"kind":["{kind}"],"name":"n"}},"executable":"/t/n",
                "filenames":["/t/libn.rlib","/t/libn.a"],"fresh":true}}"#
            );
            serde_json::from_str::<Message>(&text).unwrap()
        };
        let root = Path::new("/w");
        let program = message("/w/boot/Cargo.toml", "bin").built(root).unwrap();
        assert_eq!((program.kind, program.path), (Kind::Program, "/t/n".into()));
        let library = message("/w/m/Cargo.toml", "staticlib").built(root).unwrap();
        assert_eq!(library.path, Path::new("/t/libn.a"));
        assert!(message("/registry/Cargo.toml", "bin").built(root).is_none());
        assert!(message("/w/m/Cargo.toml", "lib").built(root).is_none());
        let end: Message =
            serde_json::from_str(r#"{"reason":"build-finished","success":true}"#).unwrap();
        assert!(end.built(root).is_none());
    }
}
