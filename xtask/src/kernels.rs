// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask kernels`: DKMS itself builds the package for every kernel for
//! arm64 that Debian's archive has headers of, and leaves out those that the
//! module is not for; each of the others can be booted with the module that was
//! built. What came of it is a table in `docs/kernels.md`.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use xtask::initramfs::Archive;
use xtask::qemu::Machine;

use crate::build::{self, What, Workspace};
use crate::run::{BOOTARGS, watch};
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
    /// Boot what was built for, under Escrow in QEMU, and run the demo there
    #[arg(long)]
    boot: bool,
    /// How long a boot may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    time_limit: u64,
    /// Write the table into docs/kernels.md, in place of checking the one there
    #[arg(long)]
    write: bool,
}

/// How a build for a kernel ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The module.
    Built(PathBuf),
    /// `dkms.conf` leaves it out, and `make` by hand says why.
    LeftOut(String),
}

/// What the table has where the demo ran, where it was not tried, and where there
/// is nothing to run.
const PASSED: &str = "passed";
const NOT_RUN: &str = "not run";
const NONE: &str = "";

/// Builds for every kernel, and says how it went.
pub fn kernels(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let setup = Setup::ensure(Default::default())?;
    setup.kernel_tools()?;
    let package = build::package(&workspace, &setup)?;
    if args.boot {
        build::build(&workspace, &setup, &[What::Hypervisor, What::Host])?;
    }
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
        let outcome = attempt(&workspace, &flavours.dkms, &package, &flavour.headers, &rust);
        let row = outcome.and_then(|outcome| {
            let demo = match &outcome {
                Outcome::Built(module) if args.boot => {
                    demo(&workspace, &setup, flavour, module, args.time_limit)?;
                    PASSED
                }
                Outcome::Built(_) => NOT_RUN,
                Outcome::LeftOut(why) => {
                    say!("{why}");
                    NONE
                }
            };
            Ok(Row::of(flavour, &outcome, demo))
        });
        match row {
            Ok(row) => {
                step.done();
                show!("test {} of {} ... ok", flavour.headers.release, flavour.suite);
                rows.push(row);
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
        // What ran on the same release and was not tried now.
        for row in rows.iter_mut().filter(|row| row.demo == NOT_RUN) {
            let before = all.iter().find(|it| it.is_of_the_same(row) && it.release == row.release);
            row.demo = before.map_or(NOT_RUN, |it| &it.demo).to_owned();
        }
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
) -> Result<Outcome> {
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
            Ok(Outcome::Built(built))
        }
        Some(LEFT_OUT) => Ok(Outcome::LeftOut(refusal(&source.join(name), headers)?)),
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

/// Boots a kernel under Escrow with the module that was built for it, and runs the
/// demo.
fn demo(
    workspace: &Workspace,
    setup: &Setup,
    flavour: &Flavour,
    module: &Path,
    seconds: u64,
) -> Result<()> {
    let kernel = Flavours::image(flavour).context("the kernel's image")?;
    let artefacts = workspace.artefacts(setup)?;
    // The usual archive, and behind it the module for this kernel.
    let release = &flavour.headers.release;
    let mut archive = Archive::new();
    let folder = format!("lib/modules/{release}");
    archive.directory(&folder)?;
    let bare = build::stripped(module, "--strip-debug")?;
    archive.file(&format!("{folder}/escrow.ko"), 0o644, &bare)?;
    let initrd = [fs::read(&artefacts.initramfs)?, archive.finish()?].concat();
    let home = workspace.paths().module_build(release, "boot");
    let file = home.join("initramfs");
    write_if_changed(&file, &initrd)?;
    let mut machine = Machine::new(artefacts.qemu, artefacts.image);
    machine.smp = 2;
    machine.load_host(&kernel, Some(&file), &format!("{BOOTARGS} escrow.init=demo-batch"))?;
    let log = home.join("console.log");
    let mut console = File::create(&log)?;
    let ran = watch(&machine, Duration::from_secs(seconds), |line| writeln!(console, "{line}"))?;
    match ran.complaint {
        None => Ok(()),
        Some(complaint) => bail!("{complaint}; see {}", log.display()),
    }
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    suite: String,
    flavour: String,
    release: String,
    outcome: String,
    demo: String,
}

impl Row {
    fn of(flavour: &Flavour, outcome: &Outcome, demo: &str) -> Self {
        let release = &flavour.headers.release;
        Self {
            suite: flavour.suite.to_owned(),
            flavour: flavour.name.clone(),
            release: release.clone(),
            outcome: match outcome {
                Outcome::Built(_) => "built".to_owned(),
                Outcome::LeftOut(why) => {
                    format!("left out: {}", why.replace(&format!("Linux {release} "), ""))
                }
            },
            demo: demo.to_owned(),
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
    let mut text = String::from(
        "| suite | flavour | release | by DKMS | demo |\n| --- | --- | --- | --- | --- |\n",
    );
    for Row { suite, flavour, release, outcome, demo } in rows {
        let row = format!("| {suite} | `{flavour}` | {release} | {outcome} | {demo} |\n");
        text.push_str(&row);
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
        let [_, suite, flavour, release, outcome, demo, _] = cells[..] else {
            bail!("what is {line:?}?");
        };
        let flavour = flavour.trim_matches('`');
        let [suite, flavour, release, outcome, demo] =
            [suite, flavour, release, outcome, demo].map(str::to_owned);
        Ok(Row { suite, flavour, release, outcome, demo })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(release: &str, outcome: &str) -> Row {
        let [suite, flavour] = ["trixie", "rt-arm64"].map(str::to_owned);
        let [release, outcome, demo] = [release, outcome, PASSED].map(str::to_owned);
        Row { suite, flavour, release, outcome, demo }
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
