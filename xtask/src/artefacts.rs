// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where the results of a build are.
//!
//! `cargo xtask test` hands these paths to the test programs in the
//! environment, one variable for each field of [`Artefacts`]; a test reads
//! them back with [`Artefacts::from_env`].

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The environment variable that names the kind of the host's kernel if that
/// looks for mistakes: `kasan` or `kcsan`.
pub const DEBUG_KERNEL: &str = "ESCROW_DEBUG_KERNEL";

/// The environment variable that names the folder of what only the tests that
/// take long use.
pub const LONG_PARTS: &str = "ESCROW_LONG_PARTS";

macro_rules! artefacts {
    ($($(#[$doc:meta])* $field:ident = $variable:literal;)*) => {
        /// The files that boots are made of.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Artefacts {
            $($(#[$doc])* #[doc = concat!("\n\nIn the environment: `", $variable, "`.")] pub $field: PathBuf,)*
        }

        impl Artefacts {
            /// Reads the paths that `cargo xtask test` left in the environment.
            ///
            /// # Errors
            /// A variable is missing: the program was not started by
            /// `cargo xtask test`.
            pub fn from_env() -> Result<Self> {
                let path = |variable: &str| {
                    env::var_os(variable)
                        .map(PathBuf::from)
                        .with_context(|| format!("{variable} is not set: run this by `cargo xtask test`"))
                };
                Ok(Self { $($field: path($variable)?,)* })
            }

            /// The environment variables that [`from_env`](Self::from_env) reads.
            #[must_use]
            pub fn to_env(&self) -> Vec<(&'static str, OsString)> {
                vec![$(($variable, self.$field.clone().into_os_string()),)*]
            }
        }
    };
}

artefacts! {
    /// Escrow as a flat arm64 `Image`.
    image = "ESCROW_IMG";
    /// Escrow as ELF with its symbols, for gdb and for booting by ELF.
    elf = "ESCROW_ELF";
    /// Escrow for tests as an `Image`: it writes down what it does to tables.
    traced_image = "ESCROW_TRACED_IMG";
    /// Escrow for tests as an `Image`: it holds every call against the specification.
    oracle_image = "ESCROW_ORACLE_IMG";
    /// Folder of the bare-metal payloads, one `NAME.img` each.
    payloads = "ESCROW_PAYLOADS";
    /// The host's kernel: a stock Debian arm64 `Image`.
    host_kernel = "ESCROW_HOST_KERNEL";
    /// Folder of the host kernel's own modules (`lib/modules/RELEASE`).
    host_modules = "ESCROW_HOST_MODULES";
    /// The host's initramfs, with the shim and the `escrow` program in it.
    initramfs = "ESCROW_INITRAMFS";
    /// Debian's newer kernel, for hosts as well.
    newer_kernel = "ESCROW_NEWER_KERNEL";
    /// Folder of the newer kernel's own modules.
    newer_modules = "ESCROW_NEWER_MODULES";
    /// Folder of the modules built here: `RELEASE/NAME.ko` for each kernel.
    modules = "ESCROW_MODULES";
    /// The same of the shim in which whatever may fail does so when it is told
    /// to: `RELEASE/escrow.ko`.
    fault_modules = "ESCROW_FAULT_MODULES";
    /// The `escrow` program, static, for arm64 Linux.
    vmm = "ESCROW_VMM";
    /// The tests of the shim, static, for arm64 Linux under Escrow.
    shim_tests = "ESCROW_SHIM_TESTS";
    /// The tests of what fails on purpose, static, for arm64 Linux under Escrow.
    shim_faults = "ESCROW_SHIM_FAULTS";
    /// The soak, static, for arm64 Linux under Escrow.
    shim_soak = "ESCROW_SHIM_SOAK";
    /// The tests of memory added later and of devices' memory, static, for arm64 Linux
    /// under Escrow.
    shim_machine = "ESCROW_SHIM_MACHINE";
    /// The tests of a host that lies, static, for arm64 Linux under Escrow.
    liar = "ESCROW_LIAR";
    /// A kernel for guests: a Debian cloud arm64 `Image`.
    guest_kernel = "ESCROW_GUEST_KERNEL";
    /// Busybox, static, for arm64 Linux.
    busybox = "ESCROW_BUSYBOX";
    /// Folder of Debian's `kexec` for arm64, and of its `libraries`.
    crash_tools = "ESCROW_CRASH_TOOLS";
    /// `qemu-system-aarch64`.
    qemu = "ESCROW_QEMU";
}

/// What a build leaves in the workspace's `target` folder.
#[derive(Clone, Debug)]
pub struct BuildPaths {
    root: PathBuf,
}

impl BuildPaths {
    /// The artefacts of the workspace whose target folder is `target`.
    #[must_use]
    pub fn new(target: impl Into<PathBuf>) -> Self {
        Self { root: target.into() }
    }

    /// The target folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Escrow as ELF, with symbols.
    #[must_use]
    pub fn elf(&self) -> PathBuf {
        self.root.join("escrow.elf")
    }

    /// Escrow as a flat arm64 `Image`.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.root.join("escrow.img")
    }

    /// Escrow for tests as ELF: it holds every call against the specification.
    #[must_use]
    pub fn oracle_elf(&self) -> PathBuf {
        self.root.join("escrow-oracle.elf")
    }

    /// The same as a flat arm64 `Image`.
    #[must_use]
    pub fn oracle_image(&self) -> PathBuf {
        self.root.join("escrow-oracle.img")
    }

    /// Escrow for tests as ELF: it writes down what it does to tables.
    #[must_use]
    pub fn traced_elf(&self) -> PathBuf {
        self.root.join("escrow-trace.elf")
    }

    /// The same as a flat arm64 `Image`.
    #[must_use]
    pub fn traced_image(&self) -> PathBuf {
        self.root.join("escrow-trace.img")
    }

    /// Folder of the payloads' images.
    #[must_use]
    pub fn payloads(&self) -> PathBuf {
        self.root.join("payloads")
    }

    /// Folder of what runs on the host.
    #[must_use]
    pub fn host(&self) -> PathBuf {
        self.root.join("host")
    }

    /// The `escrow` program.
    #[must_use]
    pub fn vmm(&self) -> PathBuf {
        self.host().join("escrow")
    }

    /// The tests of the shim.
    #[must_use]
    pub fn shim_tests(&self) -> PathBuf {
        self.host().join("shim-tests")
    }

    /// The tests of what fails on purpose.
    #[must_use]
    pub fn shim_faults(&self) -> PathBuf {
        self.host().join("shim-faults")
    }

    /// The soak.
    #[must_use]
    pub fn shim_soak(&self) -> PathBuf {
        self.host().join("shim-soak")
    }

    /// The tests of memory added later and of devices' memory.
    #[must_use]
    pub fn shim_machine(&self) -> PathBuf {
        self.host().join("shim-machine")
    }

    /// The tests of a host that lies.
    #[must_use]
    pub fn liar(&self) -> PathBuf {
        self.host().join("liar")
    }

    /// Folder of the modules: `RELEASE/NAME.ko` for each kernel.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.host().join("modules")
    }

    /// The shim's source as DKMS wants it: in a folder `NAME-VERSION`.
    #[must_use]
    pub fn dkms(&self) -> PathBuf {
        self.root.join("dkms")
    }

    /// Folder of the shims that fail on purpose: `RELEASE/escrow.ko`.
    #[must_use]
    pub fn fault_modules(&self) -> PathBuf {
        self.host().join("fault-modules")
    }

    /// The host's initramfs.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.host().join("initramfs.cpio.gz")
    }

    /// Where Kbuild works on a module for the kernel `release`, so that the
    /// source tree stays clean.
    #[must_use]
    pub fn module_build(&self, release: &str, name: &str) -> PathBuf {
        self.root.join("module-build").join(release).join(name)
    }

    /// The results of the last `cargo xtask bench`.
    #[must_use]
    pub fn bench_json(&self) -> PathBuf {
        self.root.join("bench.json")
    }

    /// Folder for what a bench boots.
    #[must_use]
    pub fn bench(&self) -> PathBuf {
        self.root.join("bench")
    }

    /// The host's initramfs with a kernel for guests, and the initramfs of a guest.
    #[must_use]
    pub fn initramfs_with_guest(&self) -> PathBuf {
        self.root.join("host/initramfs-with-guest.cpio.gz")
    }

    /// The serial log of the last batch run.
    #[must_use]
    pub fn batch_log(&self) -> PathBuf {
        self.root.join("batch.log")
    }
}
