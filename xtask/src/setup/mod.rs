// SPDX-License-Identifier: MIT OR Apache-2.0

//! Set-up: everything that a build and a boot need and the repository does
//! not hold. What is there already is only looked at, which takes a moment.

mod checkpatch;
mod components;
mod debian;
mod debug_kernel;
mod flavours;
mod kernels;
mod long;
mod peers;
mod rust;
mod system;

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum as _;

pub use checkpatch::provide as checkpatch;
pub use debug_kernel::DebugKernel;
pub use flavours::{Flavour, SUITES};
pub use kernels::{Headers, Kernel};
pub use peers::Peers;
pub use rust::{BareMetal, SOFTFLOAT, STATIC_LINUX};

use crate::say;

/// What set-up may do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Look for newer versions of what is in the cache.
    pub refresh: bool,
    /// Leave the system's packages alone, also where they could be installed.
    pub no_install: bool,
    /// Fetch the hypervisors that a bench holds Escrow against.
    pub peers: bool,
    /// Build the kernels that look for mistakes.
    pub debug_kernel: bool,
}

/// The user's folder for what was fetched.
#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

impl Cache {
    /// `$XDG_CACHE_HOME/escrow`, or `~/.cache/escrow`.
    pub fn open() -> Result<Self> {
        let variable =
            |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let base = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
        let base =
            base.context("neither XDG_CACHE_HOME nor HOME says where the cache folder is")?;
        // Make's include paths are among what is made of this one.
        let base = std::path::absolute(base)?;
        Ok(Self(base.join("escrow")))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.0)
            .with_context(|| format!("cannot create the cache folder {}", self.0.display()))
    }
}

/// A thing that set-up provides, or why it could not.
type Provided<T> = Result<T, String>;

/// The kernels that users may have, and DKMS, which builds modules for them.
pub struct Flavours {
    pub all: Vec<Flavour>,
    pub dkms: PathBuf,
}

impl Flavours {
    /// Gets the headers of all flavours that the archive has.
    pub fn ensure(refresh: bool) -> Result<Self> {
        let cache = Cache::open()?;
        cache.create()?;
        let _lock = components::lock(&cache)?;
        let mut parts = components::Store::new(&cache, refresh).with_suites(&flavours::SUITES);
        let dkms = flavours::dkms(&mut parts)?;
        Ok(Self { all: flavours::provide(&mut parts)?, dkms })
    }

    /// Gets the image of one.
    pub fn image(flavour: &Flavour) -> Result<PathBuf> {
        let cache = Cache::open()?;
        let _lock = components::lock(&cache)?;
        let mut parts = components::Store::new(&cache, false).with_suites(&flavours::SUITES);
        flavours::image(&mut parts, flavour)
    }
}

/// What is there to work with.
#[derive(Debug)]
pub struct Setup {
    qemu: Provided<PathBuf>,
    cross_compiler: Provided<()>,
    kernel_tools: Provided<()>,
    lint_tools: Provided<()>,
    linker: Provided<()>,
    bare_metal: Provided<BareMetal>,
    older_kernel: Provided<Kernel>,
    /// Takes the older kernel's place.
    other_kernel: Option<Kernel>,
    /// Succeeds when kernels can be built.
    debug_kernel_tools: Provided<()>,
    newer_kernel: Provided<Kernel>,
    busybox: Provided<PathBuf>,
    crash_tools: Provided<PathBuf>,
    peers: Provided<Peers>,
    /// Whether the peers were asked for.
    wants_peers: bool,
    /// How to get the system's tools that are missing; empty if none is.
    remedy: String,
}

impl Setup {
    /// Looks for every part, and gets those that are missing, as far as this
    /// machine and this user allow.
    pub fn ensure(options: Options) -> Result<Self> {
        let cache = Cache::open()?;
        cache.create()?;
        let _lock = components::lock(&cache)?;
        let toolchain = rust::Toolchain::detect();
        let missing = system::install_missing(&cache, options, toolchain.as_ref().ok());
        let mut parts = components::Store::new(&cache, options.refresh);
        Ok(Self {
            qemu: system::qemu(),
            cross_compiler: missing.without(system::Use::CrossCompiler),
            kernel_tools: missing.without(system::Use::Kbuild),
            lint_tools: missing.without(system::Use::Lint),
            linker: missing.without(system::Use::BareMetal),
            bare_metal: provided(toolchain.and_then(|it| rust::provide(&it, &mut parts))),
            older_kernel: provided(kernels::older(&mut parts)),
            other_kernel: None,
            debug_kernel_tools: missing.without(system::Use::DebugKernel),
            newer_kernel: provided(kernels::newer(&mut parts)),
            busybox: provided(parts.busybox()),
            crash_tools: provided(parts.crash_tools()),
            peers: provided(if options.peers {
                peers::provide(&mut parts)
            } else {
                peers::present(&parts)
            }),
            wants_peers: options.peers,
            remedy: missing.remedy,
        })
    }

    /// Builds the kernels that look for mistakes, where they are not there.
    pub fn build_debug_kernels(&self) -> Result<()> {
        self.need_tool(&self.debug_kernel_tools)?;
        self.cross_compiler()?;
        self.kernel_tools()?;
        let cache = Cache::open()?;
        for kind in DebugKernel::value_variants() {
            let kernel = kind.provide(&cache)?;
            say!("kernel that looks for mistakes: {kernel}");
        }
        Ok(())
    }

    /// Has hosts run a kernel that looks for mistakes, in the usual one's place.
    pub fn use_debug_kernel(&mut self, kind: DebugKernel) -> Result<()> {
        self.other_kernel = Some(kind.present(&Cache::open()?)?);
        Ok(())
    }

    /// Has hosts run Debian's real-time kernel, in the usual one's place.
    pub fn use_real_time(&mut self) -> Result<()> {
        let cache = Cache::open()?;
        let _lock = components::lock(&cache)?;
        let mut parts = components::Store::new(&cache, false);
        self.other_kernel = Some(kernels::real_time(&mut parts)?);
        Ok(())
    }

    /// Gets what only the tests that take long use. The folder that it is in.
    pub fn for_long_tests(&self) -> Result<PathBuf> {
        self.cross_compiler()?;
        long::provide(&Cache::open()?)
    }

    /// What is missing, a line each.
    pub fn problems(&self) -> Vec<String> {
        fn problem<T>(what: &str, part: &Provided<T>) -> Option<String> {
            Some(format!("{what}: {}", part.as_ref().err()?))
        }
        let problems = [
            problem("QEMU", &self.qemu),
            problem("arm64 cross compiler", &self.cross_compiler),
            problem("tools for the kernel's build", &self.kernel_tools),
            problem("tools for lint", &self.lint_tools),
            problem("linker for bare metal", &self.linker),
            problem("Rust for bare metal", &self.bare_metal),
            problem("host's kernel", &self.older_kernel),
            problem("newer kernel", &self.newer_kernel),
            problem("busybox", &self.busybox),
            problem("tools for crash dumps", &self.crash_tools),
            self.wants_peers.then(|| problem("peers", &self.peers)).flatten(),
        ];
        problems.into_iter().flatten().collect()
    }

    pub fn qemu(&self) -> Result<&Path> {
        self.need_tool(&self.qemu).map(PathBuf::as_path)
    }

    /// Succeeds when arm64 programs and modules can be compiled and linked.
    pub fn cross_compiler(&self) -> Result<()> {
        self.need_tool(&self.cross_compiler).copied()
    }

    /// Succeeds when kernel modules can be built.
    pub fn kernel_tools(&self) -> Result<()> {
        self.need_tool(&self.kernel_tools).copied()
    }

    /// Succeeds when the modules' C can be looked through.
    pub fn lint_tools(&self) -> Result<()> {
        self.need_tool(&self.lint_tools).copied()
    }

    /// How bare-metal programs are built.
    pub fn bare_metal(&self) -> Result<&BareMetal> {
        self.need_tool(&self.linker)?;
        need(&self.bare_metal)
    }

    /// The kernel of most hosts: the release's own, or what
    /// [`use_debug_kernel`](Self::use_debug_kernel) or
    /// [`use_real_time`](Self::use_real_time) has put in its place.
    pub fn host_kernel(&self) -> Result<&Kernel> {
        match &self.other_kernel {
            Some(kernel) => Ok(kernel),
            None => need(&self.older_kernel),
        }
    }

    /// A newer one, for hosts and for guests.
    pub fn newer_kernel(&self) -> Result<&Kernel> {
        need(&self.newer_kernel)
    }

    /// The kernels that hosts run, the usual one first.
    pub fn host_kernels(&self) -> Result<[&Kernel; 2]> {
        Ok([self.host_kernel()?, self.newer_kernel()?])
    }

    pub fn busybox(&self) -> Result<&Path> {
        need(&self.busybox).map(PathBuf::as_path)
    }

    /// Folder of `kexec` and its `libraries`.
    pub fn crash_tools(&self) -> Result<&Path> {
        need(&self.crash_tools).map(PathBuf::as_path)
    }

    /// What a bench boots besides Escrow.
    pub fn peers(&self) -> Result<&Peers> {
        need(&self.peers)
    }

    /// A part that comes with the system's packages.
    fn need_tool<'a, T>(&self, part: &'a Provided<T>) -> Result<&'a T> {
        part.as_ref().map_err(|why| anyhow!("{why}: {}", self.remedy))
    }

    /// Says what there is: `cargo xtask setup`'s answer.
    pub fn report(&self) -> Result<()> {
        let there = [
            self.qemu().map(|p| ("QEMU", p.display().to_string())),
            self.bare_metal().map(|b| ("Rust for bare metal", b.to_string())),
            self.host_kernel().map(|k| ("host's kernel", k.to_string())),
            self.newer_kernel().map(|k| ("newer kernel, for hosts and guests", k.to_string())),
            self.busybox().map(|p| ("busybox", p.display().to_string())),
            self.crash_tools().map(|p| ("tools for crash dumps", p.display().to_string())),
            self.peers().map(|p| ("Xen, a peer", format!("{} ({})", p.xen.display(), p.version))),
        ];
        for (what, how) in there.into_iter().flatten() {
            say!("{what}: {how}");
        }
        let problems = self.problems();
        if problems.is_empty() {
            return Ok(());
        }
        for problem in &problems {
            say!("MISSING {problem}");
        }
        if !self.remedy.is_empty() {
            say!("to get the tools: {}", self.remedy);
        }
        bail!("set-up is not complete: {} missing", problems.len())
    }
}

fn provided<T>(part: Result<T>) -> Provided<T> {
    part.map_err(|error| format!("{error:#}"))
}

fn need<T>(part: &Provided<T>) -> Result<&T> {
    part.as_ref().map_err(|why| anyhow!("{why}"))
}
