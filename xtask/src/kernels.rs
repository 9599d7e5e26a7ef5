// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask kernels`: DKMS itself builds the package for every kernel for
//! arm64 that Debian's archive has headers of, and leaves out those that the
//! module is not for. What came of it is a table in `docs/kernels.md`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::build::{self, Workspace};
use crate::setup::{Flavour, Flavours, Headers, SUITES, Setup};
use crate::shell::{Step, find_program, run_quietly, tail, write_if_changed};
use crate::{say, show};

const DOCUMENT: &str = "docs/kernels.md";
const BEGIN: &str = "<!-- kernels: written by `cargo xtask kernels --write` -->\n";
const END: &str = "<!-- end of kernels -->\n";

/// What `dkms build` exits with where `BUILD_EXCLUSIVE_…` leaves a kernel out.
const LEFT_OUT: i32 = 77;

#[derive(clap::Args)]
pub struct Args {
    /// Only kernels that have this in the suite, the flavour or the release
    filter: Option<String>,
    /// Look for newer kernels than those fetched before
    #[arg(long)]
    refresh: bool,
    /// Write the table into docs/kernels.md, in place of checking the one there
    #[arg(long)]
    write: bool,
}

/// How a build for a kernel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Built,
    /// `dkms.conf` leaves it out, and `make` by hand says why.
    LeftOut,
}

/// Builds for every kernel, and says how it went.
pub fn kernels(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let setup = Setup::ensure(Default::default())?;
    setup.kernel_tools()?;
    let package = build::package(&workspace, &setup)?;
    let flavours = Flavours::ensure(args.refresh)?;
    let wanted = |it: &&Flavour| {
        let text = format!("{} {} {}", it.suite, it.name, it.headers.release);
        args.filter.as_ref().is_none_or(|filter| text.contains(filter))
    };
    let rust = build::build_rust(&workspace, &setup)?;
    let mut rows = Vec::new();
    let mut failed = 0;
    for flavour in flavours.all.iter().filter(wanted) {
        let step = Step::start(format!("{}: {}", flavour.suite, flavour.headers.release));
        match attempt(&workspace, &flavours.dkms, &package, &flavour.headers, &rust) {
            Ok((outcome, why)) => {
                step.done();
                show!("test {} of {} ... ok", flavour.headers.release, flavour.suite);
                if let Some(why) = &why {
                    say!("{why}");
                }
                rows.push(Row::of(flavour, outcome, why));
            }
            Err(error) => {
                failed += 1;
                show!(
                    "test {} of {} ... FAILED: {error:#}",
                    flavour.headers.release,
                    flavour.suite
                );
            }
        }
    }
    show!("{} passed, {failed} failed", rows.len());
    if failed > 0 || rows.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let path = workspace.root().join(DOCUMENT);
    let old = fs::read_to_string(&path).with_context(|| format!("no {DOCUMENT}"))?;
    let mut all = parsed(&old)?;
    let agree = rows.iter().all(|row| all.iter().any(|it| it.promises() == row.promises()));
    if args.write {
        if args.filter.is_none() {
            // Suites and flavours that are gone.
            all.clear();
        }
        all.retain(|it| !rows.iter().any(|row| it.is_of_the_same(row)));
        all.extend(rows);
        let place = |row: &Row| SUITES.iter().position(|suite| *suite == row.suite);
        all.sort_by_key(|row| (place(row), row.flavour.clone()));
        write_if_changed(&path, replaced(&old, &table(&all))?.as_bytes())?;
    } else if !agree {
        say!("{DOCUMENT} says something else: cargo xtask kernels --write");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Has DKMS build the package for a kernel, its Rust half from source. If it leaves the kernel out, make is
/// started by hand, and must refuse it in words.
fn attempt(
    workspace: &Workspace,
    dkms: &Path,
    package: &Path,
    headers: &Headers,
    rust: &[(&str, PathBuf)],
) -> Result<(Outcome, Option<String>)> {
    let home = workspace.paths().module_build(&headers.release, "escrow.tree");
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    let [tree, source, install] = ["tree", "source", "install"].map(|name| home.join(name));
    for folder in [&tree, &source, &install] {
        fs::create_dir_all(folder)?;
    }
    let name = package.file_name().and_then(|name| name.to_str()).context("no package")?;
    let (module, version) = name.split_once('-').context("the package has no version")?;
    run_quietly(Command::new("cp").arg("-r").arg(package).arg(source.join(name)))?;
    let call = |action: &str| {
        let mut command = Command::new("bash");
        command.arg(dkms).args([action, "-m", module, "-v", version]);
        command.arg("--dkmstree").arg(&tree).arg("--sourcetree").arg(&source);
        command.arg("--installtree").arg(&install);
        command
    };
    run_quietly(&mut call("add"))?;
    let mut build = call("build");
    build.args(["-k", &headers.release, "-a", "aarch64", "--directive", "STRIP[0]=no"]);
    build.arg("--kernelsourcedir").arg(&headers.folder);
    build.arg("--config").arg(headers.folder.join(".config"));
    build.env("ARCH", "arm64").envs(rust.iter().cloned());
    // DKMS asks the headers for their compiler, by a name that is not everywhere.
    if let Some(own) = headers.own_compiler().filter(|name| find_program(name).is_none()) {
        let folder = home.join("compiler");
        let other = headers.compiler.as_deref().unwrap_or(Path::new("aarch64-linux-gnu-gcc"));
        let script = format!("#!/bin/sh\nexec '{}' \"$@\"\n", other.display());
        write_if_changed(&folder.join(&own), script.as_bytes())?;
        fs::set_permissions(folder.join(own), fs::Permissions::from_mode(0o755))?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(folder).chain(std::env::split_paths(&path));
        build.env("PATH", std::env::join_paths(path)?);
    }
    let output = build.stdin(Stdio::null()).output().context("cannot start dkms")?;
    match output.status.code() {
        Some(0) => {
            let folder = tree.join(module).join(version).join(&headers.release);
            let built = folder.join("aarch64/module").join(format!("{module}.ko"));
            if !built.exists() {
                bail!("dkms has made no {}", built.display());
            }
            Ok((Outcome::Built, None))
        }
        Some(LEFT_OUT) => Ok((Outcome::LeftOut, Some(refusal(&source.join(name), headers)?))),
        _ => {
            let log = tree.join(module).join(version).join("build/make.log");
            let log = fs::read(log).unwrap_or_default();
            let said = [output.stdout, output.stderr, log].concat();
            bail!("dkms failed ({}):\n{}", output.status, tail(&String::from_utf8_lossy(&said)))
        }
    }
}

/// Why `make` by hand refuses a kernel.
fn refusal(source: &Path, headers: &Headers) -> Result<String> {
    let output = build::make(source, headers)?.arg("modules").output().context("no make")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let ours = said
        .lines()
        .find_map(|line| line.split_once("escrow: ").filter(|(place, _)| place.contains("Kbuild")));
    match ours {
        Some((_, why)) if !output.status.success() && !said.contains("error:") => {
            Ok(why.trim_end_matches(".  Stop.").to_owned())
        }
        _ => bail!("DKMS leaves it out, and make does not say why:\n{}", tail(&said)),
    }
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    suite: String,
    flavour: String,
    release: String,
    outcome: String,
}

impl Row {
    fn of(flavour: &Flavour, outcome: Outcome, why: Option<String>) -> Self {
        let release = &flavour.headers.release;
        let why = why.unwrap_or_default().replace(&format!("Linux {release} "), "");
        Self {
            suite: flavour.suite.to_owned(),
            flavour: flavour.name.clone(),
            release: release.clone(),
            outcome: match outcome {
                Outcome::Built => "built".to_owned(),
                Outcome::LeftOut => format!("left out: {why}"),
            },
        }
    }
}

impl Row {
    fn is_of_the_same(&self, other: &Row) -> bool {
        (&self.suite, &self.flavour) == (&other.suite, &other.flavour)
    }

    /// What the table promises: how the build ends. A release's last numbers
    /// change with each update of the archive.
    fn promises(&self) -> (&str, &str, String, &str) {
        let version = self.release.split('.').take(2).collect::<Vec<_>>().join(".");
        (&self.suite, &self.flavour, version, &self.outcome)
    }
}

fn table(rows: &[Row]) -> String {
    let mut text =
        String::from("| suite | flavour | release | by DKMS |\n| --- | --- | --- | --- |\n");
    for Row { suite, flavour, release, outcome } in rows {
        text.push_str(&format!("| {suite} | `{flavour}` | {release} | {outcome} |\n"));
    }
    text
}

/// The document with another table.
fn replaced(document: &str, table: &str) -> Result<String> {
    let (before, rest) = document.split_once(BEGIN).context("the document has no table")?;
    let (_, after) = rest.split_once(END).context("the table has no end")?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

/// The rows of the document's table.
fn parsed(document: &str) -> Result<Vec<Row>> {
    let table = document.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let (table, _) = table.context("the document has no table")?;
    let rows = table.lines().skip(2).map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, suite, flavour, release, outcome, _] = cells[..] else {
            bail!("what is {line:?}?");
        };
        let flavour = flavour.trim_matches('`');
        let [suite, flavour, release, outcome] =
            [suite, flavour, release, outcome].map(str::to_owned);
        Ok(Row { suite, flavour, release, outcome })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(release: &str, outcome: &str) -> Row {
        let [suite, flavour] = ["trixie", "rt-arm64"].map(str::to_owned);
        Row { suite, flavour, release: release.to_owned(), outcome: outcome.to_owned() }
    }

    #[test]
    fn tables_are_replaced_and_compared() {
        let document = format!("# Kernels\n\n{BEGIN}old{END}\nMore.\n");
        let of = |release, outcome| {
            let rows = [row(release, outcome)];
            let new = replaced(&document, &table(&rows)).unwrap();
            assert!(new.starts_with("# Kernels\n") && new.ends_with("\nMore.\n"));
            assert_eq!(parsed(&new).unwrap(), rows);
            let [row] = rows;
            row
        };
        let first = of("6.12.95+deb13-rt-arm64", "built");
        let same = |other: Row| first.promises() == other.promises();
        assert!(same(of("6.12.117+deb13-rt-arm64", "built")), "an update");
        assert!(!same(of("6.13.1+deb13-rt-arm64", "built")));
        assert!(!same(of("6.12.95+deb13-rt-arm64", "left out: it is too old")));
        assert!(replaced("# Kernels\n", "").is_err());
    }

    /// What the two files say that build the module.
    #[test]
    fn dkms_and_kbuild_want_the_same() {
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/module");
        let read = |name: &str| fs::read_to_string(module.join(name)).unwrap();
        let (config, kbuild) = (read("dkms.conf"), read("Kbuild"));
        let value = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            let words = line.trim_matches(|c: char| " :=\"".contains(c)).split_whitespace();
            words.map(|word| word.replace("CONFIG_", "")).collect::<Vec<_>>()
        };
        let options = value(&config, "BUILD_EXCLUSIVE_CONFIG");
        assert_eq!(options, value(&kbuild, "escrow-options"));
        assert!(options.contains(&"ARM64_4K_PAGES".to_owned()));
    }
}
