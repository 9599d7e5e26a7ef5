// SPDX-License-Identifier: MIT OR Apache-2.0

//! Debian's archive, by way of apt with a configuration of our own: neither
//! the user's sources nor the system's architectures change.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{Step, find_program, output_of, run_quietly};

/// Names a mirror of the Debian archive, for systems whose apt knows none.
const MIRROR_VARIABLE: &str = "ESCROW_DEBIAN_MIRROR";

/// `/etc/os-release`, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Os {
    pub id: String,
    pub codename: String,
    pub name: String,
}

impl Os {
    pub fn detect() -> Self {
        let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
        Self::parse(&text)
    }

    fn parse(text: &str) -> Self {
        let field = |key: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches('"').to_owned()
        };
        Self { id: field("ID"), codename: field("VERSION_CODENAME"), name: field("PRETTY_NAME") }
    }

    pub fn is_debian(&self) -> bool {
        self.id == "debian" && !self.codename.is_empty()
    }
}

/// A source of packages.
struct Source {
    uri: String,
    suites: Vec<String>,
}

/// An apt with a world of its own.
pub struct Apt {
    configuration: PathBuf,
}

impl Apt {
    /// For packages of this system: its own release, with updates and
    /// backports. Installs into the system.
    pub fn of_system(folder: &Path, os: &Os) -> Result<Self> {
        let release = &os.codename;
        let mut sources = vec![Source {
            uri: mirror(os)?,
            suites: vec![
                release.clone(),
                format!("{release}-updates"),
                format!("{release}-backports"),
            ],
        }];
        let security = format!("{release}-security");
        if let Some(target) = targets()?.into_iter().find(|t| t.release == security) {
            sources.push(Source { uri: target.uri, suites: vec![security] });
        }
        Self::configure(folder, &sources, Path::new("/var/lib/dpkg/status"), &[])
    }

    /// For packages that are only unpacked: of `suites`, for arm64 and this
    /// machine.
    pub fn of_parts(folder: &Path, os: &Os, suites: &[&str]) -> Result<Self> {
        let sources = [Source {
            uri: mirror(os)?,
            suites: suites.iter().map(|&suite| suite.to_owned()).collect(),
        }];
        let status = folder.join("status");
        fs::create_dir_all(folder)?;
        fs::write(&status, "")?;
        let native = native_architecture()?;
        Self::configure(folder, &sources, &status, &["arm64", &native])
    }

    fn configure(
        folder: &Path,
        sources: &[Source],
        status: &Path,
        architectures: &[&str],
    ) -> Result<Self> {
        let this = Self { configuration: folder.join("apt.conf") };
        for sub in ["lists/partial", "cache/archives/partial", "sources"] {
            let path = folder.join(sub);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        fs::write(folder.join("sources/escrow.sources"), stanzas(sources)?)?;
        fs::write(folder.join(PREFERENCES), "")?;
        let text = configuration(folder, status, architectures);
        fs::write(&this.configuration, text)
            .with_context(|| format!("cannot write {}", this.configuration.display()))?;
        Ok(this)
    }

    /// Fetches the package lists.
    pub fn update(&self) -> Result<()> {
        let step = Step::start("reading Debian's package lists");
        run_quietly(&mut self.command("apt-get", &["-q", "update", "--error-on=any"]))
            .context("cannot read the lists of Debian's packages")?;
        step.done();
        Ok(())
    }

    /// All versions of a package, the newest first.
    pub fn versions(&self, name: &str) -> Result<Vec<Package>> {
        let text = output_of(&mut self.command("apt-cache", &["show", name]))
            .with_context(|| format!("Debian's archive has no {name}"))?;
        Ok(text.split("\n\n").filter_map(Package::parse).collect())
    }

    /// Names of packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = output_of(&mut self.command("apt-cache", &["pkgnames", prefix]))?;
        let mut names: Vec<_> = text.lines().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// The package that apt would take for `selector`: `NAME`, `NAME/SUITE`
    /// or `NAME=VERSION`, with `:ARCHITECTURE` behind the name if need be.
    pub fn candidate(&self, selector: &str) -> Result<Package> {
        let arguments = ["show", "--no-all-versions", selector];
        let text = output_of(&mut self.command("apt-cache", &arguments))?;
        Package::parse(&text).with_context(|| format!("Debian's archive has no {selector}"))
    }

    /// Downloads packages into `folder`, checked against the archive's
    /// signature.
    pub fn download(&self, folder: &Path, packages: &[Package]) -> Result<()> {
        let mut command = self.command("apt-get", &["-q", "download"]);
        command.current_dir(folder);
        command.args(packages.iter().map(Package::selector));
        run_quietly(&mut command)?;
        Ok(())
    }

    /// Takes everything that is built from `source` from the release's
    /// backports.
    pub fn prefer_backports(&self, source: &str, release: &str) -> Result<()> {
        let pin = format!(
            "Package: src:{source}\nPin: release n={release}-backports\nPin-Priority: 990\n"
        );
        let path = self.configuration.with_file_name(PREFERENCES);
        fs::write(&path, pin).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Installs packages into the system.
    pub fn install(&self, packages: &[&str]) -> Result<()> {
        let mut command = self.command("apt-get", INSTALL);
        command.env("DEBIAN_FRONTEND", "noninteractive").args(packages);
        run_quietly(&mut command)?;
        Ok(())
    }

    /// What an administrator can type to install packages from here.
    pub fn install_line(&self, packages: &[&str]) -> String {
        format!(
            "apt-get -c {} {} {}",
            self.configuration.display(),
            INSTALL.join(" "),
            packages.join(" ")
        )
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.configuration).args(arguments);
        // Messages are read by us, too.
        command.env("LC_ALL", "C.UTF-8");
        command
    }
}

const PREFERENCES: &str = "preferences";

const INSTALL: &[&str] =
    &["install", "-q", "-y", "--no-install-recommends", "-oDPkg::Lock::Timeout=300"];

/// A package in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// `Depends` and `Pre-Depends`: of alternatives only the first.
    pub depends: Vec<Dependency>,
}

/// What a package needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    pub name: String,
    /// The only version that will do, if the package says so.
    pub exactly: Option<String>,
}

impl Package {
    fn parse(stanza: &str) -> Option<Self> {
        let field = |key: &str| {
            stanza.lines().find_map(|line| {
                let value = line.strip_prefix(key)?.strip_prefix(':')?;
                Some(value.trim())
            })
        };
        let depends = ["Pre-Depends", "Depends"].into_iter().filter_map(field);
        Some(Self {
            name: field("Package")?.to_owned(),
            version: field("Version")?.to_owned(),
            architecture: field("Architecture")?.to_owned(),
            size: field("Size")?.parse().ok()?,
            depends: depends
                .flat_map(|list| list.split(','))
                .filter_map(Dependency::parse)
                .collect(),
        })
    }

    /// How apt calls exactly this one.
    fn selector(&self) -> String {
        match self.architecture.as_str() {
            "all" => format!("{}={}", self.name, self.version),
            architecture => format!("{}:{architecture}={}", self.name, self.version),
        }
    }
}

impl Dependency {
    fn parse(text: &str) -> Option<Self> {
        let first = text.split('|').next()?.trim();
        let (name, constraint) = first.split_once(' ').unwrap_or((first, ""));
        let name = name.split(':').next()?;
        let exactly = constraint
            .trim()
            .strip_prefix("(=")
            .map(|rest| rest.trim_end_matches(')').trim().to_owned());
        (!name.is_empty()).then(|| Self { name: name.to_owned(), exactly })
    }
}

/// This machine's architecture in Debian's words.
pub fn native_architecture() -> Result<String> {
    let text = output_of(Command::new("dpkg").arg("--print-architecture"))?;
    Ok(text.trim().to_owned())
}

/// An index that the user's own apt is set up to read.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    origin: String,
    uri: String,
    release: String,
}

fn targets() -> Result<Vec<Target>> {
    let format = "$(ORIGIN)|$(COMPONENT)|$(RELEASE)|$(REPO_URI)";
    let text = output_of(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    Ok(text.lines().filter_map(Target::parse).collect())
}

impl Target {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(4, '|');
        let (origin, component) = (fields.next()?, fields.next()?);
        let (release, uri) = (fields.next()?, fields.next()?);
        (component == "main").then(|| Self {
            origin: origin.to_owned(),
            uri: uri.to_owned(),
            release: release.to_owned(),
        })
    }
}

/// Where the Debian archive is: the mirror that the user's own apt reads, so
/// that it is near and reachable.
fn mirror(os: &Os) -> Result<String> {
    for program in ["apt-get", "apt-cache", "dpkg", "dpkg-deb"] {
        if find_program(program).is_none() {
            bail!("{program} is missing: install this system's packages `apt` and `dpkg`");
        }
    }
    if let Some(mirror) = env::var(MIRROR_VARIABLE).ok().filter(|m| !m.is_empty()) {
        return Ok(mirror);
    }
    let own = if os.is_debian() { pick_mirror(&targets()?, &os.codename) } else { None };
    own.with_context(|| {
        format!(
            "apt on this system ({}) reads no Debian mirror: name one in {MIRROR_VARIABLE}",
            os.name
        )
    })
}

fn pick_mirror(targets: &[Target], codename: &str) -> Option<String> {
    // Sources may name the release or its role.
    let releases = [codename, "stable", "oldstable"];
    let own = targets.iter().filter(|t| releases.contains(&t.release.as_str()));
    // Others publish under Debian's release names, too. The origin is known
    // only once lists have been fetched.
    let best = own.max_by_key(|t| (t.origin == "Debian", t.uri.ends_with("/debian/")))?;
    Some(best.uri.clone())
}

fn keyring() -> Result<PathBuf> {
    let names = ["debian-archive-keyring.pgp", "debian-archive-keyring.gpg"];
    let folder = Path::new("/usr/share/keyrings");
    names.map(|name| folder.join(name)).into_iter().find(|path| path.exists()).context(
        "the keys of Debian's archive are missing: install the package debian-archive-keyring",
    )
}

fn stanzas(sources: &[Source]) -> Result<String> {
    let keyring = keyring()?;
    let mut text = String::new();
    for source in sources {
        let Source { uri, suites } = source;
        writeln!(
            text,
            "Types: deb\nURIs: {uri}\nSuites: {}\nComponents: main\nSigned-By: {}\n",
            suites.join(" "),
            keyring.display()
        )?;
    }
    Ok(text)
}

fn configuration(folder: &Path, status: &Path, architectures: &[&str]) -> String {
    let folder = folder.display();
    let mut text = format!(
        r#"// Made by `cargo xtask setup`.
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{}";
Dir::Cache "{folder}/cache";
Dir::Cache::archives "{folder}/cache/archives";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{folder}/sources";
Dir::Etc::preferences "{folder}/preferences";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
// The folder is the user's: apt's own user cannot read it.
APT::Sandbox::User "root";
// What the system runs after an update of its own lists.
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#,
        status.display()
    );
    if let [first, ..] = architectures {
        text.push_str("#clear APT::Architectures;\n");
        let mut all = architectures.to_vec();
        all.dedup();
        text.push_str(&format!("APT::Architecture \"{first}\";\n"));
        for architecture in all {
            text.push_str(&format!("APT::Architectures:: \"{architecture}\";\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_of_the_archive() {
        let stanza = "Package: linux-headers-6.12.1-arm64\nVersion: 6.12.1-1\nArchitecture: arm64\n\
            Depends: linux-base (>= 4.12~), linux-headers-6.12.1-common (= 6.12.1-1), \
            linux-image-6.12.1-arm64 (= 6.12.1-1) | linux-image-6.12.1-arm64-unsigned (= 6.12.1-1), \
            linux-kbuild-6.12.1, gcc-14:native\nPre-Depends: dpkg\nSize: 3217356";
        let package = Package::parse(stanza).unwrap();
        assert_eq!(package.size, 3_217_356);
        assert_eq!(package.selector(), "linux-headers-6.12.1-arm64:arm64=6.12.1-1");
        let depends: Vec<_> =
            package.depends.iter().map(|d| (d.name.as_str(), d.exactly.as_deref())).collect();
        let exactly = Some("6.12.1-1");
        let expected = [
            ("dpkg", None),
            ("linux-base", None),
            ("linux-headers-6.12.1-common", exactly),
            ("linux-image-6.12.1-arm64", exactly),
            ("linux-kbuild-6.12.1", None),
            ("gcc-14", None),
        ];
        assert_eq!(depends, expected);
        assert_eq!(Package::parse("N: no such package"), None);
    }

    #[test]
    fn the_mirror_is_debians() {
        let lines = [
            "|main|bookworm|http://tools.example/apt/",
            "Debian|main|bookworm|http://mirror.example/debian/",
            "Debian|main|bookworm-security|http://mirror.example/debian-security/",
            "Debian|contrib|bookworm|http://other.example/debian/",
        ];
        let targets: Vec<_> = lines.iter().filter_map(|line| Target::parse(line)).collect();
        assert_eq!(targets.len(), 3);
        let mirror = pick_mirror(&targets, "bookworm");
        assert_eq!(mirror.as_deref(), Some("http://mirror.example/debian/"));
        assert_eq!(pick_mirror(&targets, "trixie"), None);
    }

    #[test]
    fn os_release() {
        let os = Os::parse(
            "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_CODENAME=bookworm\nID=debian\n",
        );
        assert!(os.is_debian());
        assert_eq!(os.codename, "bookworm");
        assert!(!Os::parse("ID=fedora\n").is_debian());
    }
}
