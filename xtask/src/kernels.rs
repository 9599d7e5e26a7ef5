// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask kernels`: DKMS itself builds the package for every kernel for
//! arm64 that Debian's archive has headers of, and leaves out those that the
//! module is not for. What came of it is a table in `docs/kernels.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::build::{self, Workspace};
use crate::setup::{Flavour, Flavours, Headers, Setup};
use crate::shell::{Step, run_quietly, tail, write_if_changed};
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
    #[arg(long, conflicts_with = "filter")]
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
    let mut rows = Vec::new();
    let mut failed = 0;
    for flavour in flavours.all.iter().filter(wanted) {
        let step = Step::start(format!("{}: {}", flavour.suite, flavour.headers.release));
        match attempt(&workspace, &flavours.dkms, &package, &flavour.headers) {
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
    if args.filter.is_none() {
        let path = workspace.root().join(DOCUMENT);
        let old = fs::read_to_string(&path).with_context(|| format!("no {DOCUMENT}"))?;
        let new = replaced(&old, &table(&rows))?;
        if args.write {
            write_if_changed(&path, new.as_bytes())?;
        } else if forms(&old)? != forms(&new)? {
            say!("{DOCUMENT} says something else: cargo xtask kernels --write");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Has DKMS build the package for a kernel. If it leaves the kernel out, make is
/// started by hand, and must refuse it in words.
fn attempt(
    workspace: &Workspace,
    dkms: &Path,
    package: &Path,
    headers: &Headers,
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
    build.envs([("ARCH", "arm64"), ("CROSS_COMPILE", "aarch64-linux-gnu-")]);
    if let Some(compiler) = build::compiler(headers) {
        // DKMS asks the headers, which ask for what is not here.
        build.arg("--directive").arg({
            let mut directive = std::ffi::OsString::from("MAKE[0]=make ");
            directive.push(compiler);
            directive.push(
                " -C ${kernel_source_dir} M=${dkms_tree}/${PACKAGE_NAME}/${PACKAGE_VERSION}/build modules",
            );
            directive
        });
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

/// What a table promises: how the build ends, for each suite and flavour. A
/// release's last numbers change with each update of the archive.
fn forms(document: &str) -> Result<BTreeMap<(String, String), (String, String)>> {
    let table = document.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    let (table, _) = table.context("the document has no table")?;
    let mut forms = BTreeMap::new();
    for line in table.lines().skip(2) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, suite, flavour, release, outcome, _] = cells[..] else {
            bail!("what is {line:?}?");
        };
        let version = release.split('.').take(2).collect::<Vec<_>>().join(".");
        forms.insert((suite.to_owned(), flavour.to_owned()), (version, outcome.to_owned()));
    }
    Ok(forms)
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
            let new = replaced(&document, &table(&[row(release, outcome)])).unwrap();
            assert!(new.starts_with("# Kernels\n") && new.ends_with("\nMore.\n"));
            forms(&new).unwrap()
        };
        let first = of("6.12.95+deb13-rt-arm64", "built");
        assert_eq!(first, of("6.12.117+deb13-rt-arm64", "built"), "an update");
        assert_ne!(first, of("6.13.1+deb13-rt-arm64", "built"));
        assert_ne!(first, of("6.12.95+deb13-rt-arm64", "left out: it is too old"));
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
