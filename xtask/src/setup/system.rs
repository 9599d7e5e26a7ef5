// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs that come with the system: looked for, and installed on Debian.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::qemu::OLDEST;

use super::debian::{Apt, Os};
use super::rust::{SYSTEM_LINKER, Toolchain};
use super::{Cache, Options, Provided};
use crate::shell::{Step, find_program, output_of};

const QEMU: &str = "qemu-system-aarch64";
const QEMU_PACKAGE: &str = "qemu-system-arm";

/// What a tool is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Qemu,
    CrossCompiler,
    Kbuild,
    Lint,
    BareMetal,
    DebugKernel,
}

enum Test {
    Program(&'static str),
    File(&'static str),
    Qemu,
}

struct Tool {
    test: Test,
    /// Debian's package with it.
    package: &'static str,
    purpose: Use,
}

const fn tool(purpose: Use, test: Test, package: &'static str) -> Tool {
    Tool { test, package, purpose }
}

#[cfg(target_arch = "aarch64")]
const STATIC_LIBC: Tool =
    tool(Use::CrossCompiler, Test::File("/usr/lib/aarch64-linux-gnu/libc.a"), "libc6-dev");
#[cfg(not(target_arch = "aarch64"))]
const STATIC_LIBC: Tool = tool(
    Use::CrossCompiler,
    Test::File("/usr/aarch64-linux-gnu/lib/libc.a"),
    "libc6-dev-arm64-cross",
);

const TOOLS: &[Tool] = &[
    tool(Use::Qemu, Test::Qemu, QEMU_PACKAGE),
    tool(Use::CrossCompiler, Test::Program("aarch64-linux-gnu-gcc"), "gcc-aarch64-linux-gnu"),
    STATIC_LIBC,
    tool(Use::Kbuild, Test::Program("make"), "make"),
    tool(Use::Kbuild, Test::Program("pahole"), "dwarves"),
    tool(Use::Kbuild, Test::Program("modinfo"), "kmod"),
    tool(Use::Lint, Test::Program("perl"), "perl"),
    tool(Use::Lint, Test::Program("sparse"), "sparse"),
];

/// For kernels that are built here.
const DEBUG_KERNEL: &[Tool] = &[
    tool(Use::DebugKernel, Test::Program("flex"), "flex"),
    tool(Use::DebugKernel, Test::Program("bison"), "bison"),
    tool(Use::DebugKernel, Test::Program("bc"), "bc"),
];

/// For toolchains without a linker of their own.
const LINKER: Tool = tool(Use::BareMetal, Test::Program(SYSTEM_LINKER), "lld");

impl Tool {
    fn is_there(&self) -> bool {
        match self.test {
            Test::Program(name) => find_program(name).is_some(),
            Test::File(path) => Path::new(path).exists(),
            Test::Qemu => qemu().is_ok(),
        }
    }
}

/// Tools that are not there, and how to get them.
pub struct Missing {
    tools: Vec<&'static Tool>,
    /// Empty when nothing is missing.
    pub remedy: String,
}

impl Missing {
    /// Fails when a tool for `purpose` is missing.
    pub fn without(&self, purpose: Use) -> Provided<()> {
        let tools = self.tools.iter().filter(|tool| tool.purpose == purpose);
        let names: Vec<_> = tools.map(|tool| tool.to_string()).collect();
        if names.is_empty() { Ok(()) } else { Err(format!("there is no {}", names.join(", no "))) }
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.test {
            Test::Program(name) => f.write_str(name),
            Test::File(path) => f.write_str(path),
            Test::Qemu => write!(f, "{QEMU} {}.{} or newer", OLDEST.0, OLDEST.1),
        }
    }
}

/// The QEMU to use.
pub fn qemu() -> Provided<PathBuf> {
    let found = || -> Result<PathBuf> {
        let path = find_program(QEMU).with_context(|| format!("there is no {QEMU}"))?;
        let text = output_of(Command::new(&path).arg("--version"))?;
        let version = parse_version(&text).with_context(|| format!("what version is {text:?}?"))?;
        if version < OLDEST {
            bail!(
                "{} is version {}.{}, and {}.{} is the oldest that will do",
                path.display(),
                version.0,
                version.1,
                OLDEST.0,
                OLDEST.1
            );
        }
        Ok(path)
    };
    found().map_err(|error| format!("{error:#}"))
}

/// `QEMU emulator version 10.0.2 (…)` → (10, 0)
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split("version ").nth(1)?.split(['.', ' ', '(', '\n']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Installs the tools that are missing where that is possible, and tells which
/// are still missing.
pub fn install_missing(cache: &Cache, options: Options, toolchain: Option<&Toolchain>) -> Missing {
    let without_linker = toolchain.is_some_and(|toolchain| !toolchain.has_linker());
    let debug_kernel = if options.debug_kernel { DEBUG_KERNEL } else { &[] };
    let needed =
        || TOOLS.iter().chain(without_linker.then_some(&LINKER)).chain(debug_kernel.iter());
    let missing_tools = || needed().filter(|tool| !tool.is_there()).collect::<Vec<_>>();
    let tools = missing_tools();
    if tools.is_empty() {
        return Missing { tools, remedy: String::new() };
    }
    let result = install(cache, options, &tools);
    let tools = missing_tools();
    let remedy = match result {
        Err(error) => format!("{error:#}"),
        Ok(()) if tools.is_empty() => String::new(),
        Ok(()) => "Debian's packages were expected to bring what is missing".to_owned(),
    };
    Missing { tools, remedy }
}

fn install(cache: &Cache, options: Options, tools: &[&Tool]) -> Result<()> {
    let os = Os::detect();
    let names: Vec<_> = tools.iter().map(|tool| tool.package).collect();
    if !os.is_debian() {
        bail!(
            "this is no Debian, but {}: install what Debian has in the packages {}",
            if os.name.is_empty() { "another system" } else { &os.name },
            names.join(" ")
        );
    }
    let apt = Apt::of_system(&cache.path().join("apt-system"), &os)?;
    apt.update()?;
    if tools.iter().any(|tool| matches!(tool.test, Test::Qemu)) {
        let own = apt.candidate(QEMU_PACKAGE)?.version;
        if debian_version(&own) < Some(OLDEST) {
            apt.prefer_backports("qemu", &os.codename)?;
        }
    }
    if options.no_install || !rustix::process::geteuid().is_root() {
        bail!("as root, run: {}", apt.install_line(&names));
    }
    let step = Step::start(format!("installing {}", names.join(" ")));
    apt.install(&names)?;
    step.done();
    Ok(())
}

/// `1:10.0.2+ds-2` → (10, 0)
fn debian_version(version: &str) -> Option<(u32, u32)> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut numbers = upstream.split(['.', '+', '-', '~']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(parse_version(text), Some((10, 0)));
        assert_eq!(parse_version("QEMU emulator version 9.1\n"), Some((9, 1)));
        assert_eq!(parse_version("nonsense"), None);
        assert_eq!(debian_version("1:7.2+dfsg-7+deb12u18"), Some((7, 2)));
        assert!(debian_version("1:10.0.2+ds-2~bpo12+1") >= Some(OLDEST));
    }
}
