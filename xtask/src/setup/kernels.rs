// SPDX-License-Identifier: MIT OR Apache-2.0

//! Debian's kernels: the image, the modules, and what more modules are built
//! with.
//!
//! The older one is the release's own; the newer one, of the release's
//! backports, is a host as well, and the guests' kernel. Its build tools and its
//! compiler may be newer than this machine's. They run all the same, under the
//! C library that they were built for, which is fetched with them: nothing of
//! it is installed, and it needs neither root nor a chroot.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::components::{Store, find, find_where, link, remove, unpack};
use super::debian::{Apt, Package, native_architecture};
use crate::shell::{find_program, output_of};

/// Suite of the older kernel: 6.12, whose tools need [`TOOLS_GLIBC`].
const OLDER_SUITE: &str = "trixie";
/// The glibc that programs of [`OLDER_SUITE`] need.
const TOOLS_GLIBC: (u32, u32) = (2, 38);
/// The same kernel for machines with an older glibc.
const OLDER_SUITE_OLDER_TOOLS: &str = "bookworm-backports";
/// Suite of the newer kernel: 7.x. The flavour for clouds, because it is
/// small.
const NEWER_SUITE: &str = "trixie-backports";
/// Suite of the newer kernel's compiler.
const TOOLS_SUITE: &str = "trixie";

/// The part with the newer kernel's compiler, and with the libraries that it
/// and the kernels' build tools need.
pub const TOOLS: &str = "newer-tools";

/// What modules for a kernel are built with.
#[derive(Clone, Debug)]
pub struct Headers {
    /// Where a module's build starts (`make -C`).
    pub folder: PathBuf,
    /// What `uname -r` says.
    pub release: String,
    /// The compiler, where it is none of the system's.
    pub compiler: Option<PathBuf>,
}

impl Headers {
    /// The compiler that the headers name, the one that the kernel was built
    /// with: `aarch64-linux-gnu-gcc-14`.
    pub fn own_compiler(&self) -> Option<String> {
        let variables = fs::read_to_string(self.folder.join(".kernelvariables")).ok()?;
        compiler_in(&variables)
    }
}

/// A kernel and what modules for it are built with.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub image: PathBuf,
    pub headers: Headers,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
    version: String,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.image.display(), self.version)
    }
}

impl Kernel {
    /// Looks at a part that is there.
    fn of(store: &Store<'_>, part: &str) -> Result<Self> {
        let folder = store.folder(part);
        let modules = folder.join("modules");
        let place = fs::read_link(&modules).context("where are the kernel's modules?")?;
        let release = place.file_name().and_then(OsStr::to_str);
        Ok(Self {
            image: folder.join("Image"),
            headers: Headers {
                folder: folder.join("headers"),
                release: release.context("the kernel has no release")?.to_owned(),
                compiler: None,
            },
            modules,
            version: store.version(part).unwrap_or_default(),
        })
    }

    /// One that was built here, in `folder`, from the source of `version`.
    pub(super) fn of_build(folder: &Path, version: &str) -> Result<Self> {
        let release = fs::read_to_string(folder.join("include/config/kernel.release"))
            .context("the kernel has no release")?;
        let release = release.trim().to_owned();
        // It has no modules: all is in the image. But a kernel's folder of modules is
        // there, and has the release's name, by which tests find what is built for it.
        let modules = folder.join("modules").join(&release);
        fs::create_dir_all(&modules)?;
        Ok(Self {
            image: folder.join("arch/arm64/boot/Image"),
            headers: Headers { folder: folder.to_owned(), release, compiler: None },
            modules,
            version: version.to_owned(),
        })
    }
}

fn compiler_in(variables: &str) -> Option<String> {
    let mut words = variables.split_whitespace();
    let word = words.find_map(|word| word.strip_prefix("$(CROSS_COMPILE)"))?;
    word.starts_with("gcc-").then(|| format!("aarch64-linux-gnu-{word}"))
}

const OLDER: &str = "host-kernel";

/// The version of the kernel of most hosts, if it is there.
pub fn older_version(store: &Store<'_>) -> Option<String> {
    store.version(OLDER)
}

/// The kernel of most hosts.
pub fn older(store: &mut Store<'_>) -> Result<Kernel> {
    let part = OLDER;
    let suite = older_suite()?;
    let native = native_architecture();
    store.provide(
        part,
        |apt| with_headers(apt, "arm64", suite, &native?),
        unpack,
        |at, home| finish(at, home).map(drop),
    )?;
    Kernel::of(store, part)
}

/// The same version of the kernel, built as `PREEMPT_RT`.
pub fn real_time(store: &mut Store<'_>) -> Result<Kernel> {
    let part = "rt-kernel";
    let suite = older_suite()?;
    let native = native_architecture();
    store.provide(
        part,
        |apt| with_headers(apt, "rt-arm64", suite, &native?),
        unpack,
        |at, home| finish(at, home).map(drop),
    )?;
    Kernel::of(store, part)
}

/// The newer host's kernel, and the guests'.
pub fn newer(store: &mut Store<'_>) -> Result<Kernel> {
    let part = "newer-kernel";
    let native = native_architecture()?;
    let tools = store.folder(TOOLS);
    let tools_run_here = tools_run_here()?;
    store.provide(
        part,
        |apt| with_headers(apt, "cloud-arm64", NEWER_SUITE, &native),
        unpack,
        |at, home| {
            let headers = at.join(finish(at, home)?);
            // Modules need no BTF, and this system's pahole may be too old.
            remove(&headers.join("vmlinux"))?;
            wrap_tools(&at.join(find(at, "usr/lib", "linux-kbuild-")?), &tools)
        },
    )?;
    let mut kernel = Kernel::of(store, part)?;
    let compiler = kernel.headers.own_compiler().context("the headers name no compiler")?;
    if !tools_run_here || find_program(&compiler).is_none() {
        kernel.headers.compiler = Some(newer_tools(store, &compiler, &native)?);
    }
    Ok(kernel)
}

/// The compiler of that name, with its libraries.
fn newer_tools(store: &mut Store<'_>, compiler: &str, native: &str) -> Result<PathBuf> {
    let program = Path::new("usr/bin").join(compiler);
    let home = store.folder(TOOLS);
    if store.version(TOOLS).is_some() && !home.join(&program).exists() {
        // The kernel is built with another one by now.
        remove(&home)?;
    }
    // Debian's name for it: `gcc-14-aarch64-linux-gnu`.
    let gcc = compiler.strip_prefix("aarch64-linux-gnu-").unwrap_or(compiler);
    let root = format!("{gcc}-aarch64-linux-gnu");
    store.provide(
        TOOLS,
        |apt| with_libraries(apt, &root, native, TOOLS_SUITE, is_of_compiler),
        unpack,
        |at, home| {
            let libraries = find_where(at, "usr/lib", |name| name.ends_with("-linux-gnu"))?;
            link(at, "libraries", &libraries)?;
            let loader =
                find_where(at, &libraries.to_string_lossy(), |name| name.starts_with("ld-linux-"))?;
            link(at, "ld.so", &loader)?;
            wrap(&at.join(&program), home)?;
            let version = gcc.trim_start_matches("gcc-");
            let own = format!("usr/libexec/gcc-cross/aarch64-linux-gnu/{version}");
            wrap(&at.join(own).join("cc1"), home)?;
            // The system's assembler does, where this compiler looks for one.
            let assembler =
                find_program("aarch64-linux-gnu-as").context("there is no assembler")?;
            let place = at.join("usr/aarch64-linux-gnu/bin");
            fs::create_dir_all(&place)?;
            std::os::unix::fs::symlink(assembler, place.join("as"))?;
            Ok(())
        },
    )?;
    Ok(home.join(program))
}

/// Links what matters in a kernel's packages. Where the headers are.
fn finish(at: &Path, home: &Path) -> Result<PathBuf> {
    let modules = modules_folder(at)?;
    link(at, "Image", &image(at)?)?;
    link(at, "modules", &modules)?;
    let headers = find_where(at, "usr/src", |name| {
        // `-common`, and `-common-rt`, are what they share.
        name.starts_with("linux-headers-") && !name.contains("-common")
    })?;
    link(at, "headers", &headers)?;
    redirect_makefile(&at.join(&headers).join("Makefile"), home)?;
    Ok(headers)
}

/// Where a kernel's packages have its image.
pub fn image(at: &Path) -> Result<PathBuf> {
    // 7.x keeps it with the modules, before that it was in /boot.
    let image = modules_folder(at)?.join("vmlinuz");
    if at.join(&image).exists() { Ok(image) } else { find(at, "boot", "vmlinuz-") }
}

/// The packages of a kernel and of its headers.
fn with_headers(apt: &Apt, flavour: &str, suite: &str, native: &str) -> Result<Vec<Package>> {
    let mut all = Vec::new();
    for what in ["image", "headers"] {
        let root = format!("linux-{what}-{flavour}/{suite}");
        all.extend(packages(apt, &root, suite, native, |name| name.starts_with("linux-"))?);
    }
    let mut packages = all;
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    packages.dedup();
    Ok(packages)
}

/// All packages of one version of the kernel that `root` needs, as far as they
/// are wanted: its dependencies on exactly that version, and the build's tools
/// for the machine that builds.
pub fn packages(
    apt: &Apt,
    root: &str,
    suite: &str,
    native: &str,
    is_wanted: fn(&str) -> bool,
) -> Result<Vec<Package>> {
    let mut queue = VecDeque::from([root.to_owned()]);
    let mut packages: Vec<Package> = Vec::new();
    while let Some(selector) = queue.pop_front() {
        let package = apt.candidate(&selector)?;
        if packages.contains(&package) {
            continue;
        }
        for needed in package.depends.iter().filter(|needed| is_wanted(&needed.name)) {
            let name = &needed.name;
            match &needed.exactly {
                _ if name.starts_with("linux-kbuild-") => {
                    queue.push_back(format!("{name}:{native}/{suite}"))
                }
                Some(version) => queue.push_back(format!("{name}={version}")),
                None => {}
            }
        }
        packages.push(package);
    }
    Ok(packages)
}

/// A program with all that it needs and that is wanted: its own parts, and the libraries
/// behind them.
pub fn with_libraries(
    apt: &Apt,
    root: &str,
    architecture: &str,
    suite: &str,
    is_wanted: fn(&str) -> bool,
) -> Result<Vec<Package>> {
    let mut queue = VecDeque::from([root.to_owned()]);
    let mut packages: Vec<Package> = Vec::new();
    while let Some(name) = queue.pop_front() {
        if packages.iter().any(|package| package.name == name) {
            continue;
        }
        let package = apt.candidate(&format!("{name}:{architecture}/{suite}"))?;
        let names = package.depends.iter().map(|needed| &needed.name);
        queue.extend(names.filter(|name| is_wanted(name)).cloned());
        packages.push(package);
    }
    Ok(packages)
}

/// Of a compiler: what it needs to compile C to assembly.
fn is_of_compiler(name: &str) -> bool {
    // Not what programs for arm64 are linked with.
    name.starts_with("cpp-") || name.starts_with("lib") && !name.contains("-dev")
}

/// The folder of a kernel's modules: `/lib` became a link to `/usr/lib`.
fn modules_folder(tree: &Path) -> Result<PathBuf> {
    find(tree, "usr/lib/modules", "").or_else(|_| find(tree, "lib/modules", ""))
}

/// Debian's headers name each other by absolute path (`include /usr/src/…`).
pub fn redirect_makefile(makefile: &Path, home: &Path) -> Result<()> {
    let text = fs::read_to_string(makefile)?;
    let home = home.to_str().filter(|path| !path.contains(char::is_whitespace));
    let home =
        home.context("the kernel's build does not take a cache folder with a space in its path")?;
    let redirected = text.replace("/usr/src/", &format!("{home}/usr/src/"));
    fs::write(makefile, redirected)?;
    Ok(())
}

/// Has the programs in a folder run here, as far as they are too new for this
/// machine: under the C library in `tools`.
pub fn wrap_tools(folder: &Path, tools: &Path) -> Result<()> {
    if tools_run_here()? { Ok(()) } else { wrap_all(folder, tools) }
}

/// The compiler of the newer kernel, where this machine has none that new.
pub fn newer_compiler(store: &mut Store<'_>) -> Result<Option<PathBuf>> {
    Ok(newer(store)?.headers.compiler)
}

/// Wraps every program in a folder.
fn wrap_all(folder: &Path, tools: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            wrap_all(&path, tools)?;
        } else if kind.is_file() && is_program(&path)? {
            wrap(&path, tools)?;
        }
    }
    Ok(())
}

/// Whether it is an ELF file that can be executed.
fn is_program(path: &Path) -> Result<bool> {
    let mut file = fs::File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o111 == 0 {
        return Ok(false);
    }
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic)?;
    Ok(magic == b"\x7fELF")
}

/// Puts a script in a program's place that starts it under the C library in
/// `tools` (once that is there) in place of the system's.
fn wrap(program: &Path, tools: &Path) -> Result<()> {
    let tools = tools.to_str().filter(|path| !path.contains('\''));
    let tools = tools.context("the kernel's build does not take a cache folder with this name")?;
    let mut real = OsString::from(program);
    real.push(".elf");
    fs::rename(program, &real).with_context(|| format!("there is no {}", program.display()))?;
    let script = format!(
        "#!/bin/sh\nexec '{tools}/ld.so' --library-path '{tools}/libraries' --argv0 \"$0\" \
         \"$0.elf\" \"$@\"\n"
    );
    fs::write(program, script)?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Whether programs of [`OLDER_SUITE`] and newer run here as they are.
fn tools_run_here() -> Result<bool> {
    Ok(glibc()? >= TOOLS_GLIBC)
}

/// Where the older kernel comes from.
pub fn older_suite() -> Result<&'static str> {
    Ok(if tools_run_here()? { OLDER_SUITE } else { OLDER_SUITE_OLDER_TOOLS })
}

/// The suites that packages come from on this machine.
pub fn suites() -> Result<Vec<&'static str>> {
    Ok(vec![older_suite()?, NEWER_SUITE, TOOLS_SUITE])
}

/// Version of the C library of the machine that builds.
fn glibc() -> Result<(u32, u32)> {
    let text = output_of(Command::new("getconf").arg("GNU_LIBC_VERSION"))
        .context("the kernel's build tools need a system with glibc")?;
    let mut numbers = text.trim().trim_start_matches("glibc ").split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("what glibc is {text:?}?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makefiles_are_redirected_into_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let makefile = folder.path().join("Makefile");
        fs::write(&makefile, "include /usr/src/linux-headers-6.12.1-common/Makefile\n").unwrap();
        redirect_makefile(&makefile, Path::new("/c/host-kernel")).unwrap();
        let text = fs::read_to_string(&makefile).unwrap();
        assert_eq!(text, "include /c/host-kernel/usr/src/linux-headers-6.12.1-common/Makefile\n");
        assert!(redirect_makefile(&makefile, Path::new("/a b")).is_err());
    }

    #[test]
    fn the_headers_name_the_compiler() {
        let variables = "override ARCH = arm64\nCCACHE = ccache\n\
            CC = $(if $(USE_CCACHE),$(CCACHE)) $(CROSS_COMPILE)gcc-14\n";
        assert_eq!(compiler_in(variables).as_deref(), Some("aarch64-linux-gnu-gcc-14"));
        assert_eq!(compiler_in("CC = $(CROSS_COMPILE)clang\n"), None);
    }

    #[test]
    fn libraries_of_a_compiler() {
        let names = ["cpp-14-aarch64-linux-gnu", "libmpc3", "libc6"];
        assert!(names.into_iter().all(is_of_compiler));
        let names = ["binutils-aarch64-linux-gnu", "libgcc-14-dev-arm64-cross", "gcc-14-base"];
        assert!(!names.into_iter().any(is_of_compiler));
    }

    #[test]
    fn a_wrapped_program_runs_under_the_loader() {
        let folder = tempfile::tempdir().unwrap();
        let (tools, programs) = (folder.path().join("tools"), folder.path().join("programs"));
        fs::create_dir_all(&tools).unwrap();
        fs::create_dir_all(programs.join("sub")).unwrap();
        // A loader that says what it is given.
        let (loader, program) = (tools.join("ld.so"), programs.join("sub/fixdep"));
        fs::write(&loader, "#!/bin/sh\necho \"$@\"\n").unwrap();
        fs::write(&program, b"\x7fELF...").unwrap();
        fs::write(programs.join("script"), "#!/bin/sh\n").unwrap();
        for path in [&loader, &program, &programs.join("script")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        wrap_all(&programs, &tools).unwrap();
        let said = output_of(Command::new(&program).args(["a", "b c"])).unwrap();
        let (at, tools) = (program.display(), tools.display());
        let expected = format!("--library-path {tools}/libraries --argv0 {at} {at}.elf a b c\n");
        assert_eq!(said, expected);
        assert_eq!(fs::read(programs.join("sub/fixdep.elf")).unwrap(), b"\x7fELF...");
        assert_eq!(fs::read(programs.join("script")).unwrap(), b"#!/bin/sh\n");
    }
}
