// SPDX-License-Identifier: MIT OR Apache-2.0

//! From the description of a machine to QEMU's command line.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::artefacts::Artefacts;
use crate::layout::{Layout, MIB, image_span};

/// The oldest QEMU that will do, as major and minor version: it has SMMUv3
/// with stage 2.
pub const OLDEST: (u32, u32) = (9, 1);

/// What the machine's UART is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// The terminal, with QEMU's monitor behind Ctrl-A C.
    Terminal,
    /// Standard input and output, byte for byte, for a program to read.
    #[default]
    Pipe,
}

/// A file that QEMU's guest-loader puts into RAM and names under `/chosen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Module {
    /// A kernel (`multiboot,kernel`).
    Kernel {
        /// Physical address.
        address: u64,
        /// The file.
        file: PathBuf,
        /// The module's command line.
        bootargs: String,
    },
    /// An initramfs (`multiboot,ramdisk`).
    Ramdisk {
        /// Physical address.
        address: u64,
        /// The file.
        file: PathBuf,
    },
}

/// One QEMU `virt` machine and what it boots.
#[derive(Clone, Debug)]
pub struct Machine {
    /// `qemu-system-aarch64`.
    pub qemu: PathBuf,
    /// QEMU's name of the CPU, options included. A bare `max` gets the quick
    /// pointer authentication that real CPUs also choose for themselves.
    pub cpu: String,
    /// Number of CPUs.
    pub smp: u32,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// Whether the CPUs have EL2, and start in it.
    pub el2: bool,
    /// Version of the interrupt controller.
    pub gic: u32,
    /// What QEMU starts: an `Image` or an ELF file.
    pub kernel: PathBuf,
    /// The command line that `/chosen/bootargs` has.
    pub append: String,
    /// The initramfs that QEMU itself announces (not with Escrow: see
    /// [`Module::Ramdisk`]).
    pub initrd: Option<PathBuf>,
    /// Further files in RAM.
    pub modules: Vec<Module>,
    /// Where the UART goes.
    pub console: Console,
    /// TCP port on this machine on which QEMU waits for gdb before it starts.
    pub gdb: Option<u16>,
    /// Whether a reset starts the machine again; if not, it ends QEMU.
    pub reboot: bool,
    /// Whether the virtual clock counts instructions, one a nanosecond.
    pub icount: bool,
    /// More arguments, as they are.
    pub extra: Vec<OsString>,
}

impl Machine {
    /// A machine with 2 CPUs, 1 GiB of RAM, EL2 and GICv3 that boots `kernel`.
    #[must_use]
    pub fn new(qemu: impl Into<PathBuf>, kernel: impl Into<PathBuf>) -> Self {
        Self {
            qemu: qemu.into(),
            cpu: "max".into(),
            smp: 2,
            memory_mib: 1024,
            el2: true,
            gic: 3,
            kernel: kernel.into(),
            append: String::new(),
            initrd: None,
            modules: Vec::new(),
            console: Console::Pipe,
            gdb: None,
            reboot: false,
            icount: false,
            extra: Vec::new(),
        }
    }

    /// Escrow with the Debian host of `artefacts`: kernel and initramfs, and
    /// `bootargs` as the host's command line.
    ///
    /// # Errors
    /// See [`load_host`](Self::load_host).
    pub fn escrow(artefacts: &Artefacts, memory_mib: u64, bootargs: &str) -> Result<Self> {
        let mut machine = Self::new(&artefacts.qemu, &artefacts.image);
        machine.memory_mib = memory_mib;
        machine.load_host(&artefacts.host_kernel, Some(&artefacts.initramfs), bootargs)?;
        Ok(machine)
    }

    /// Adds a host (kernel, initramfs, command line) as modules, at addresses
    /// that suit the machine's RAM.
    ///
    /// # Errors
    /// A file cannot be read, or they do not fit into RAM.
    pub fn load_host(
        &mut self,
        kernel: &Path,
        initrd: Option<&Path>,
        bootargs: &str,
    ) -> Result<()> {
        let initrd_span = initrd.map_or(Ok(0), image_span)?;
        let at = Layout::place(self.memory_mib * MIB, image_span(kernel)?, initrd_span)?;
        self.modules.push(Module::Kernel {
            address: at.kernel,
            file: kernel.into(),
            bootargs: bootargs.into(),
        });
        self.modules
            .extend(initrd.map(|file| Module::Ramdisk { address: at.initrd, file: file.into() }));
        Ok(())
    }

    /// QEMU's arguments.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments(Vec::new());
        let el2 = if self.el2 { "on" } else { "off" };
        args.pair("-M", format!("virt,gic-version={},virtualization={el2}", self.gic));
        args.pair(
            "-cpu",
            match self.cpu.as_str() {
                "max" => "max,pauth-impdef=on",
                other => other,
            },
        );
        args.pair("-smp", self.smp.to_string());
        args.pair("-m", format!("{}M", self.memory_mib));
        // Without -nodefaults QEMU adds a network card and looks for its ROM.
        args.0.extend(["-nographic".into(), "-nodefaults".into()]);
        match self.console {
            Console::Terminal => args.pair("-serial", "mon:stdio"),
            Console::Pipe => args.pair("-serial", "stdio"),
        }
        if !self.reboot {
            args.0.push("-no-reboot".into());
        }
        if self.icount {
            args.pair("-icount", "shift=0,sleep=off");
        }
        if let Some(port) = self.gdb {
            args.pair("-gdb", format!("tcp:127.0.0.1:{port}"));
            args.0.push("-S".into());
        }
        args.pair("-kernel", &self.kernel);
        if !self.append.is_empty() {
            args.pair("-append", &self.append);
        }
        if let Some(initrd) = &self.initrd {
            args.pair("-initrd", initrd);
        }
        for module in &self.modules {
            args.pair("-device", module.device());
        }
        args.0.extend(self.extra.iter().cloned());
        args.0
    }

    /// The command that starts QEMU. QEMU will not outlive the thread that
    /// spawns it.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.qemu);
        command.args(self.arguments());
        die_with_parent(&mut command);
        command
    }

    /// The command line as one could type it.
    #[must_use]
    pub fn shell_line(&self) -> String {
        let mut line = shell_quote(self.qemu.as_os_str());
        for argument in self.arguments() {
            // One option a line.
            let option = argument.as_encoded_bytes().starts_with(b"-");
            line.push_str(if option { " \\\n    " } else { " " });
            line.push_str(&shell_quote(&argument));
        }
        line
    }
}

impl Module {
    fn device(&self) -> OsString {
        let mut device = OsString::from("guest-loader");
        let mut property = |name: &str, value: &OsStr| {
            device.push(format!(",{name}="));
            device.push(double_commas(value));
        };
        match self {
            Self::Kernel { address, file, bootargs } => {
                property("addr", format!("{address:#x}").as_ref());
                property("kernel", file.as_ref());
                property("bootargs", bootargs.as_ref());
            }
            Self::Ramdisk { address, file } => {
                property("addr", format!("{address:#x}").as_ref());
                property("initrd", file.as_ref());
            }
        }
        device
    }
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn pair(&mut self, option: &str, value: impl AsRef<OsStr>) {
        self.0.push(option.into());
        self.0.push(value.as_ref().into());
    }
}

/// A comma within the value of a QEMU option is written twice.
fn double_commas(value: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let mut doubled = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        doubled.push(byte);
        if byte == b',' {
            doubled.push(byte);
        }
    }
    OsString::from_vec(doubled)
}

fn shell_quote(argument: &OsStr) -> String {
    let text = argument.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+.,/:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Has the kernel kill the command's process when the thread that spawns it
/// ends, however it ends.
fn die_with_parent(command: &mut Command) {
    let hook = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe work is allowed:
    // the hook makes one system call, and neither allocates nor locks.
    unsafe { command.pre_exec(hook) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(machine: &Machine) -> Vec<String> {
        let arguments = machine.arguments().into_iter();
        arguments.map(|a| a.into_string().unwrap()).collect()
    }

    fn value<'a>(arguments: &'a [String], option: &str) -> Option<&'a str> {
        let at = arguments.iter().position(|a| a == option)?;
        arguments.get(at + 1).map(String::as_str)
    }

    #[test]
    fn modules_become_guest_loaders() {
        let mut machine = Machine::new("qemu", "escrow.img");
        machine.modules = vec![
            Module::Kernel {
                address: 0x4400_0000,
                file: "a,b/Image".into(),
                bootargs: "console=ttyAMA0,115200 quiet".into(),
            },
            Module::Ramdisk { address: 0x4800_0000, file: "initrd".into() },
        ];
        let line = strings(&machine).join(" ");
        assert!(line.contains(
            "-device guest-loader,addr=0x44000000,kernel=a,,b/Image,\
             bootargs=console=ttyAMA0,,115200 quiet \
             -device guest-loader,addr=0x48000000,initrd=initrd"
        ));
    }

    #[test]
    fn the_description_is_what_qemu_gets() {
        let mut machine = Machine::new("qemu", "k");
        machine.cpu = "cortex-a72".into();
        machine.smp = 4;
        machine.memory_mib = 512;
        machine.el2 = false;
        machine.gic = 2;
        machine.gdb = Some(1234);
        machine.append = "loglevel=debug".into();
        let arguments = strings(&machine);
        assert_eq!(value(&arguments, "-M"), Some("virt,gic-version=2,virtualization=off"));
        assert_eq!(value(&arguments, "-cpu"), Some("cortex-a72"));
        assert_eq!(value(&arguments, "-smp"), Some("4"));
        assert_eq!(value(&arguments, "-m"), Some("512M"));
        assert_eq!(value(&arguments, "-gdb"), Some("tcp:127.0.0.1:1234"));
        assert_eq!(value(&arguments, "-append"), Some("loglevel=debug"));
        assert!(arguments.contains(&"-S".into()));
        assert!(arguments.contains(&"-no-reboot".into()));
    }

    #[test]
    fn the_shell_line_can_be_typed() {
        assert_eq!(shell_quote("a=b,c".as_ref()), "a=b,c");
        assert_eq!(shell_quote("it's".as_ref()), r"'it'\''s'");
        assert_eq!(shell_quote("".as_ref()), "''");
    }

    #[test]
    fn qemu_dies_with_the_thread_that_started_it() {
        let mut command = Command::new("sleep");
        command.arg("60");
        die_with_parent(&mut command);
        let mut child = std::thread::scope(|scope| {
            let spawned = scope.spawn(|| command.spawn().unwrap());
            spawned.join().unwrap()
        });
        let status = child.wait().unwrap();
        assert!(!status.success(), "killed, not finished: {status}");
    }
}
