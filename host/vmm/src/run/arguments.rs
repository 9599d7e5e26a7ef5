// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `escrow run` is told, on its command line and in a file.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;

use super::devices::{Disk, Net};
use super::registry::Name;
use super::size::Size;
use crate::gunyah::Folios;
use crate::machine::layout::{self, CMDLINE_MAX};
use crate::machine::{Protection, Sharing, Specification};

/// What a guest has unless it is told otherwise.
const MEMORY: Size = Size(512 * layout::MIB);
/// CIDs of guests: 0 to 2 and 2^32 - 1 have meanings of their own (virtio 1.2, 5.10.4).
const VSOCK_CIDS: Range<u64> = 3..u32::MAX as u64;
/// What a kernel does after a panic unless it is told otherwise: ask for a reset
/// at once, so that this program notices.
const AFTER_PANIC: &str = "panic=-1";

/// What the guest's RAM is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// 2 MiB pages where the host has them, allocated when the guest first touches them
    Auto,
    /// The same, but all allocated before the guest starts
    Preallocate,
    /// 4 KiB pages
    Never,
}

/// Whether the guest is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protected {
    /// If its kernel and Escrow can; otherwise it has no virtio devices
    Auto,
    /// Yes, or it does not start
    Yes,
    /// No: it has no virtio devices
    No,
}

/// The options. A file has the same ones, by the same names.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Arguments {
    /// The kernel: Image, Image.gz, or vmlinuz as distributions install it (EFI zboot)
    #[arg(long, short, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initramfs
    #[arg(long, short, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    ///
    /// The console is ttyAMA0, and the kernel knows that without being told. If
    /// there is no `panic=` in it, `panic=-1` is added, so that a kernel that
    /// panics ends the run (exit status 4).
    #[arg(long, short, value_name = "WORDS", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Number of CPUs, 1 to 16 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(layout::CPUS_MAX)))]
    cpus: Option<u32>,
    /// RAM: 512M, 2G; a multiple of 2 MiB [default: 512M]
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<Size>,
    /// Share the guest's RAM with the host, instead of lending it
    ///
    /// With lent RAM the host cannot access what the guest has touched: not this
    /// program, not root, not the kernel. With --share it can.
    #[arg(long)]
    share: bool,
    /// Whether the guest decides which pages of its lent RAM devices reach [default: auto]
    ///
    /// All RAM is the guest's alone, and its kernel opens the pages that devices use for as
    /// long as they do. That needs a kernel with support for Arm's realms (RSI), as Debian's have
    /// from 7.3 on. `swiotlb=` is added to its command line unless it is there: data is
    /// copied through that memory.
    #[arg(long, value_name = "WHEN", conflicts_with = "share")]
    protected: Option<Protected>,
    /// A disk: an image or a block device; `,ro` for one that is only read; may be repeated
    ///
    /// The guest finds it as /dev/vda and so on. Needs --share or a protected guest.
    #[arg(long, value_name = "FILE[,ro]")]
    disk: Vec<Disk>,
    /// A network device, connected to a tap device of the host's or to the host's network
    ///
    /// `tap=NAME` needs a tap device that this user may use (ip tuntap add NAME
    /// mode tap user USER). For root, one that does not exist is made, and removed
    /// at the end. `user` needs the program passt and nothing else.
    /// `,mac=52:54:00:12:34:56` sets the address; otherwise it is random. May be
    /// repeated. Needs --share or a protected guest.
    #[arg(long, value_name = "tap=NAME|user")]
    net: Vec<Net>,
    /// The guest's address for sockets between it and the host (vsock), 3 or more
    ///
    /// Programs of the host connect to the socket NAME.vsock beside the guest's
    /// control socket, write `CONNECT PORT` and a newline, and read `OK`. What
    /// the guest connects to, port P of the host, is the socket NAME.vsock_P
    /// there. Needs --share or a protected guest.
    #[arg(long, value_name = "CID", value_parser = clap::value_parser!(u64).range(VSOCK_CIDS))]
    vsock: Option<u64>,
    /// What the guest's RAM is made of [default: auto]
    ///
    /// `--hugepages` alone is `--hugepages=preallocate`. RAM counts as locked
    /// memory of the user (ulimit -l).
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "preallocate")]
    hugepages: Option<HugePages>,
    /// The guest's name, for `escrow ls` and the others [default: guest-1, guest-2 …]
    #[arg(long, short, value_name = "NAME")]
    name: Option<String>,
    /// Start the guest again when it asks for a reset
    #[arg(long)]
    reboot: bool,
    /// A file with these options, in TOML
    ///
    /// The names are those of the options: `kernel = "vmlinuz"`, `cpus = 2`,
    /// `memory = "1G"`, `share = true`. Relative paths in it are relative to the
    /// file's folder. An option on the command line replaces that of the file.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The machine.
    pub machine: Specification,
    /// The guest's name, if it has been given one.
    pub name: Option<Name>,
    /// A reset is no end.
    pub reboot: bool,
}

impl Arguments {
    /// Makes a plan of them, and of the file if they name one.
    pub fn plan(self) -> Result<Plan> {
        let all = match self.config.clone() {
            Some(path) => {
                let failed = || format!("the configuration {}", path.display());
                let text = fs::read_to_string(&path).with_context(failed)?;
                let folder = path.parent().unwrap_or(Path::new(""));
                self.over(parse(&text, folder).with_context(failed)?)
            }
            None => self,
        };
        all.checked()
    }

    /// These options, and those of `file` where there are none here.
    fn over(self, file: Arguments) -> Arguments {
        Arguments {
            kernel: self.kernel.or(file.kernel),
            initrd: self.initrd.or(file.initrd),
            cmdline: self.cmdline.or(file.cmdline),
            cpus: self.cpus.or(file.cpus),
            memory: self.memory.or(file.memory),
            share: self.share || file.share && self.protected.is_none(),
            protected: if self.share { None } else { self.protected.or(file.protected) },
            disk: if self.disk.is_empty() { file.disk } else { self.disk },
            net: if self.net.is_empty() { file.net } else { self.net },
            vsock: self.vsock.or(file.vsock),
            hugepages: self.hugepages.or(file.hugepages),
            name: self.name.or(file.name),
            reboot: self.reboot || file.reboot,
            config: None,
        }
    }

    fn checked(self) -> Result<Plan> {
        let kernel = self.kernel.context("which kernel? Give one with --kernel FILE")?;
        let cpus = self.cpus.unwrap_or(1);
        // The parser of the command line checks its own, not what a file says.
        if !(1..=layout::CPUS_MAX).contains(&cpus) {
            bail!("{cpus} CPUs: a guest has 1 to {}", layout::CPUS_MAX);
        }
        let Size(ram) = self.memory.unwrap_or(MEMORY);
        if !(layout::RAM_MIN..=layout::RAM_MAX).contains(&ram) {
            bail!(
                "{} of RAM: a guest has {} to {}",
                Size(ram),
                Size(layout::RAM_MIN),
                Size(layout::RAM_MAX)
            );
        }
        if let Some(cid) = self.vsock.filter(|cid| !VSOCK_CIDS.contains(cid)) {
            bail!(
                "--vsock {cid}: the CID of a guest is {} to {}",
                VSOCK_CIDS.start,
                VSOCK_CIDS.end - 1
            );
        }
        let name = self.name.map(|name| {
            name.parse::<Name>().map_err(|why| anyhow::anyhow!("--name {name:?}: {why}"))
        });
        let name = name.transpose()?;
        if self.share && self.protected.is_some() {
            bail!("share and protected: a guest's RAM is shared or lent");
        }
        let hugepages = self.hugepages.unwrap_or(HugePages::Auto);
        let machine = Specification {
            kernel,
            initrd: self.initrd,
            cmdline: cmdline(self.cmdline.as_deref().unwrap_or(""))?,
            cpus,
            ram,
            sharing: if self.share { Sharing::Shared } else { Sharing::Lent },
            protection: match self.protected {
                Some(Protected::Yes) => Protection::Yes,
                Some(Protected::No) => Protection::No,
                Some(Protected::Auto) | None => Protection::Auto,
            },
            folios: match hugepages {
                HugePages::Never => Folios::Small,
                HugePages::Auto | HugePages::Preallocate => Folios::Large,
            },
            populate: hugepages == HugePages::Preallocate,
            disks: self.disk.into_iter().map(|disk| disk.0).collect(),
            nets: self.net.into_iter().map(|net| net.0).collect(),
            vsock: self.vsock,
        };
        if machine.has_devices()
            && machine.sharing == Sharing::Lent
            && machine.protection == Protection::No
        {
            bail!(
                "--disk, --net and --vsock need --share or a protected guest: devices reach only \
                 RAM that the host can access"
            );
        }
        Ok(Plan { machine, name, reboot: self.reboot })
    }
}

/// The options in a file's text, with paths from the file's folder.
fn parse(text: &str, folder: &Path) -> Result<Arguments> {
    let mut arguments: Arguments = toml::from_str(text)?;
    for path in [&mut arguments.kernel, &mut arguments.initrd].into_iter().flatten() {
        *path = folder.join(&*path);
    }
    for Disk(disk) in &mut arguments.disk {
        disk.path = folder.join(&disk.path);
    }
    Ok(arguments)
}

/// The kernel's command line.
fn cmdline(given: &str) -> Result<String> {
    let mut words = given.trim().to_owned();
    if words.contains('\0') {
        bail!("the command line has a NUL in it");
    }
    // What follows `--` is for the first process.
    let for_kernel = words.split_whitespace().take_while(|&word| word != "--");
    if !for_kernel.clone().any(|word| word.starts_with("panic=")) {
        words.insert_str(0, if words.is_empty() { AFTER_PANIC } else { "panic=-1 " });
    }
    if words.len() > CMDLINE_MAX {
        bail!("the command line has {} bytes, and a kernel takes {CMDLINE_MAX}", words.len());
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::machine;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn plan(words: &[&str]) -> Result<Plan> {
        let cli = Cli::try_parse_from([&["run"], words].concat())?;
        cli.arguments.plan()
    }

    #[test]
    fn a_kernel_is_enough() {
        let plan = plan(&["--kernel", "Image"]).unwrap();
        assert_eq!(plan.machine.kernel, Path::new("Image"));
        assert_eq!((plan.machine.cpus, plan.machine.ram), (1, 512 * layout::MIB));
        assert_eq!(plan.machine.cmdline, "panic=-1");
        assert_eq!(plan.machine.sharing, Sharing::Lent);
        assert_eq!(plan.machine.protection, Protection::Auto);
        assert_eq!((plan.machine.folios, plan.machine.populate), (Folios::Large, false));
        assert!(plan.name.is_none() && !plan.reboot);
    }

    #[test]
    fn the_command_line_says_what_is_wrong() {
        for (words, complaint) in [
            (&["-m", "1G"][..], "--kernel"),
            (&["-k", "x", "--cpus", "17"], "17"),
            (&["-k", "x", "-m", "1M"], "2 MiB"),
            (&["-k", "x", "-m", "16M"], "16M of RAM: a guest has 32M to 1023G"),
            (&["-k", "x", "-m", "9999G"], "9999G"),
            (&["-k", "x", "-n", "a/b"], "letters"),
            (&["-k", "x", "--disk", ",ro"], "FILE,ro"),
            (&["-k", "x", "--protected", "no", "--disk", "y"], "--share"),
            (&["-k", "x", "--protected", "no", "--net", "user"], "--share"),
            (&["-k", "x", "--protected", "maybe"], "auto, yes, no"),
            (&["-k", "x", "--protected", "yes", "--share"], "--share"),
            (&["-k", "x", "--net", "bridge=b"], "tap=NAME"),
            (&["-k", "x", "--share", "--vsock", "2"], "2 is not in"),
            (&["-k", "x", "--config", "/nowhere"], "/nowhere"),
        ] {
            let error = format!("{:#}", plan(words).unwrap_err());
            assert!(error.contains(complaint), "{words:?}: {error}");
        }
    }

    #[test]
    fn huge_pages_are_an_option_with_or_without_a_value() {
        let folios = |words: &[&str]| {
            let machine = plan(&[&["-k", "x"], words].concat()).unwrap().machine;
            (machine.folios, machine.populate)
        };
        assert_eq!(folios(&["--hugepages"]), (Folios::Large, true));
        assert_eq!(folios(&["--hugepages=never"]), (Folios::Small, false));
        assert_eq!(folios(&["--hugepages=auto"]), (Folios::Large, false));
    }

    #[test]
    fn how_ram_is_used_is_said_by_the_command_line_or_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let both = |file: &str, words: &[&str]| {
            let path = folder.path().join("guest.toml");
            fs::write(&path, format!("kernel = 'x'\n{file}\n")).unwrap();
            let config = ["--config", path.to_str().unwrap()];
            let machine = plan(&[&config[..], words].concat()).unwrap().machine;
            (machine.sharing, machine.protection)
        };
        let (auto, yes) = (Protection::Auto, Protection::Yes);
        assert_eq!(both("", &["--protected", "yes"]), (Sharing::Lent, yes));
        assert_eq!(both("protected = 'yes'", &[]), (Sharing::Lent, yes));
        assert_eq!(both("protected = 'no'", &["--protected=auto"]), (Sharing::Lent, auto));
        assert_eq!(both("share = true", &["--protected=yes"]), (Sharing::Lent, yes));
        assert_eq!(both("protected = 'yes'", &["--share"]), (Sharing::Shared, auto));
        let error = parse("kernel = 'x'\nshare = true\nprotected = 'yes'", Path::new(""));
        assert!(error.unwrap().checked().unwrap_err().to_string().contains("shared or lent"));
    }

    #[test]
    fn a_file_has_the_same_options() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("web.toml");
        let text = "kernel = 'vmlinuz'\ninitrd = '/boot/initrd'\ncpus = 2\nmemory = '1G'\n\
                    share = true\ndisk = ['a.img,ro', '/b']\nnet = ['user']\nvsock = 3\nhugepages = 'never'\nname = 'web'\nreboot = true\n\
                    cmdline = 'quiet panic=5'\n";
        fs::write(&file, text).unwrap();
        let config = file.to_str().unwrap();
        let plan = plan(&["--config", config, "--cpus", "4", "--name", "two"]).unwrap();
        assert_eq!(plan.machine.kernel, folder.path().join("vmlinuz"));
        assert_eq!(plan.machine.initrd.as_deref(), Some(Path::new("/boot/initrd")));
        assert_eq!((plan.machine.cpus, plan.machine.ram), (4, 1024 * layout::MIB));
        assert_eq!(plan.machine.cmdline, "quiet panic=5");
        assert_eq!(plan.machine.sharing, Sharing::Shared);
        assert_eq!(plan.machine.folios, Folios::Small);
        assert_eq!((plan.machine.nets.len(), plan.machine.vsock), (1, Some(3)));
        let disk = |path: PathBuf, read_only| machine::Disk { path, read_only };
        let disks = [disk(folder.path().join("a.img"), true), disk("/b".into(), false)];
        assert_eq!(plan.machine.disks, disks);
        assert_eq!(plan.name.as_ref().map(Name::as_str), Some("two"));
        assert!(plan.reboot);
    }

    #[test]
    fn a_file_says_what_is_wrong() {
        for (text, complaint) in [
            ("kernal = 'x'", "kernal"),
            ("kernel = 1", "kernel"),
            ("memory = '1T'", "T is no unit"),
            ("cpus = 'two'", "cpus"),
            ("config = 'other'", "config"),
        ] {
            let error = format!("{:#}", parse(text, Path::new("")).unwrap_err());
            assert!(error.contains(complaint), "{text}: {error}");
        }
        let many = parse("kernel = 'x'\ncpus = 99", Path::new("")).unwrap();
        assert!(many.checked().unwrap_err().to_string().contains("99 CPUs"));
        let host = parse("kernel = 'x'\nshare = true\nvsock = 2", Path::new("")).unwrap();
        assert!(host.checked().unwrap_err().to_string().contains("--vsock 2"));
    }

    #[test]
    fn a_kernel_that_panics_ends_the_run_unless_it_is_told_otherwise() {
        assert_eq!(cmdline(" quiet ").unwrap(), "panic=-1 quiet");
        assert_eq!(cmdline("quiet panic=0").unwrap(), "quiet panic=0");
        assert_eq!(cmdline("quiet -- panic=0").unwrap(), "panic=-1 quiet -- panic=0");
        assert!(cmdline(&"x".repeat(CMDLINE_MAX + 1)).is_err());
    }
}
