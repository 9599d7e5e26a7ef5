// SPDX-License-Identifier: MIT OR Apache-2.0

//! Booting Debian under Escrow: at the terminal, or in batch.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::fs::{FileType, fstat};
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};
use xtask::console::{Event, Session};
use xtask::layout::MIB;
use xtask::qemu::{Console, Machine};

use crate::build::{self, What, Workspace};
use crate::say;
use crate::setup::{Kernel, Setup};
use crate::shell::run_quietly;

/// What every host gets: the UART for its console, and the end of the run
/// when it panics.
pub const BOOTARGS: &str = "console=ttyAMA0 quiet panic=-1";
/// What Linux prints last before it asks PSCI for power-off.
const POWER_DOWN: &str = "reboot: Power down";
/// As many as Escrow manages.
const CPUS_MAX: i64 = 64;
/// The limit of a run that waits for gdb: none that anybody meets.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// How the line begins and ends that Escrow says before it halts for good.
const FATAL: (&str, &str) = ("escrow: fatal: ", "; halted");

#[derive(clap::Args)]
pub struct Args {
    /// Without a terminal: run the demo, power off; exit status 0 only if
    /// every step held
    #[arg(long, conflicts_with = "no_escrow")]
    batch: bool,
    /// Number of CPUs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=CPUS_MAX))]
    smp: u32,
    /// RAM, in MiB or with a unit: 512M, 2G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_mib)]
    mem: u64,
    /// CPU type, as QEMU names it: cortex-a53, cortex-a72, cortex-a76, neoverse-n1, max …
    #[arg(long, value_name = "TYPE", default_value = "max")]
    cpu: String,
    /// The host's kernel, an arm64 Image, in place of Debian's
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Debian's newer kernel for the host, 7.x, in place of the usual one
    #[arg(long, conflicts_with = "kernel")]
    newer_kernel: bool,
    /// The host's initramfs, in place of the built one
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Start a Debian guest in the host, at whose shell you are then; the host's follows
    #[arg(long, conflicts_with_all = ["batch", "no_escrow", "initrd"])]
    guest: bool,
    /// More words for the host kernel's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Option<String>,
    /// Wait for gdb on this TCP port before the first instruction
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "1234")]
    gdb: Option<u16>,
    /// What Escrow itself prints
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
    /// Build, and print QEMU's command line instead of running it
    #[arg(long)]
    dry_run: bool,
    /// Boot the same host without Escrow, at EL1
    #[arg(long)]
    no_escrow: bool,
    /// For --batch: how long the run may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 180, requires = "batch")]
    time_limit: u64,
    /// More arguments for QEMU
    #[arg(last = true, value_name = "QEMU ARGUMENTS")]
    qemu: Vec<std::ffi::OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Boots, and says how it went.
pub fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let setup = Setup::ensure(Default::default())?;
    check(args, setup.qemu()?)?;
    if !args.no_escrow {
        build::build(&workspace, &setup, &[What::Hypervisor])?;
    }
    build::host_for(&workspace, &setup, args.kernels(&setup)?)?;
    let machine = machine(args, &workspace, &setup)?;
    if args.dry_run {
        writeln!(io::stdout(), "{}", machine.shell_line())?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.batch {
        let log = workspace.paths().batch_log();
        let log = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let limit = args.gdb.map_or(Duration::from_secs(args.time_limit), |_| A_YEAR);
        args.tell_of_gdb(&workspace);
        return batch(&machine, log, limit);
    }
    args.tell_of_gdb(&workspace);
    interactive(&machine)
}

impl Args {
    /// The kernels that the host's initramfs is to have modules for.
    fn kernels<'a>(&self, setup: &'a Setup) -> Result<Vec<&'a Kernel>> {
        Ok(match (&self.kernel, self.newer_kernel) {
            // It may be either.
            (Some(_), _) => setup.host_kernels()?.into(),
            (None, true) => vec![setup.newer_kernel()?],
            (None, false) => vec![setup.host_kernel()?],
        })
    }

    fn tell_of_gdb(&self, workspace: &Workspace) {
        if let Some(port) = self.gdb {
            say!(
                "waiting for gdb: gdb-multiarch -ex 'target remote :{port}' {}",
                workspace.paths().elf().display()
            );
        }
    }
}

/// What can be known to be wrong before anything is built.
fn check(args: &Args, qemu: &Path) -> Result<()> {
    for file in [&args.kernel, &args.initrd].into_iter().flatten() {
        if !file.is_file() {
            bail!("there is no file {}", file.display());
        }
    }
    let mut help = Command::new(qemu);
    let types = run_quietly(help.args(["-machine", "virt", "-cpu", "help"]))?;
    // Behind a comma are properties of it.
    let name = args.cpu.split(',').next().unwrap_or_default();
    if !String::from_utf8_lossy(&types.stdout).split_whitespace().any(|word| word == name) {
        bail!("QEMU has no CPU {name}: qemu-system-aarch64 -machine virt -cpu help names all");
    }
    if !args.batch && !args.dry_run && !can_be_typed_at(io::stdin().as_fd())? {
        bail!("nobody can type at the host's shell, as there is no terminal: use --batch");
    }
    Ok(())
}

/// A terminal, or what a program at the other end writes to.
fn can_be_typed_at(input: BorrowedFd<'_>) -> Result<bool> {
    let kind = FileType::from_raw_mode(fstat(input)?.st_mode);
    Ok(isatty(input) || matches!(kind, FileType::Fifo | FileType::Socket))
}

fn machine(args: &Args, workspace: &Workspace, setup: &Setup) -> Result<Machine> {
    let artefacts = workspace.artefacts(setup)?;
    let usual = if args.newer_kernel { &artefacts.newer_kernel } else { &artefacts.host_kernel };
    let kernel = args.kernel.as_ref().unwrap_or(usual);
    let with_guest = workspace.paths().initramfs_with_guest();
    let initrd = match &args.initrd {
        Some(initrd) => initrd,
        None if args.no_escrow => &artefacts.initramfs,
        None => {
            build::initramfs_with_guest(workspace, setup, kernel)?;
            &with_guest
        }
    };
    let mode = match (args.batch, args.no_escrow) {
        (true, _) => "demo-batch",
        _ if args.guest => "guest",
        (false, false) => "demo-shell",
        // Without Escrow there is nothing for the demo to show.
        (false, true) => "shell",
    };
    let mut bootargs = format!("{BOOTARGS} escrow.init={mode}");
    if let Some(words) = &args.append {
        bootargs.push(' ');
        bootargs.push_str(words);
    }

    let mut machine = if args.no_escrow {
        let mut machine = Machine::new(artefacts.qemu, kernel);
        machine.el2 = false;
        machine.initrd = Some(initrd.clone());
        machine.append = bootargs;
        machine.memory_mib = args.mem;
        machine
    } else {
        let mut machine = Machine::new(artefacts.qemu, artefacts.image);
        machine.memory_mib = args.mem;
        machine.load_host(kernel, Some(initrd), &bootargs)?;
        if let Some(level) = args.log_level {
            let level = level.to_possible_value().context("a level has no name")?;
            // At the terminal, what Escrow says is to be seen as it comes.
            machine.append = format!("loglevel={} log=uart", level.get_name());
        }
        machine
    };
    machine.smp = args.smp;
    machine.cpu.clone_from(&args.cpu);
    machine.gdb = args.gdb;
    machine.reboot = !args.batch;
    machine.console = if args.batch { Console::Pipe } else { Console::Terminal };
    machine.extra.clone_from(&args.qemu);
    Ok(machine)
}

fn interactive(machine: &Machine) -> Result<ExitCode> {
    say!("starting QEMU; Ctrl-A X ends it, Ctrl-A C is its monitor");
    let stdin = io::stdin();
    // QEMU makes the terminal raw, and gives it back only if it ends in peace.
    let terminal = stdin.is_terminal().then(|| tcgetattr(&stdin).ok()).flatten();
    let status = machine.command().status().context("cannot start QEMU");
    if let Some(terminal) = terminal {
        tcsetattr(&stdin, OptionalActions::Now, &terminal)?;
    }
    let status = status?;
    if !status.success() {
        bail!("QEMU failed ({status})");
    }
    Ok(ExitCode::SUCCESS)
}

/// What a batch run's console has told so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Steps passed and failed, of the last line that counts them.
    demo: Option<(u32, u32)>,
    powered_off: bool,
    /// Escrow has halted: there is nothing left to wait for.
    halted: bool,
}

impl Verdict {
    fn read(&mut self, line: &str) {
        if let Some(counts) = parse_counts(line) {
            self.demo = Some(counts);
        }
        self.powered_off |= line.contains(POWER_DOWN);
        let line = line.trim();
        self.halted |= line.starts_with(FATAL.0) && line.ends_with(FATAL.1);
    }

    /// Why the run is no success, if it is none.
    fn complaint(&self) -> Option<&'static str> {
        match self.demo {
            _ if self.halted => Some("Escrow has halted"),
            None => Some("the demo did not come to its end"),
            Some((0, 0)) => Some("the demo tried nothing"),
            Some((_, 1..)) => Some("steps of the demo failed"),
            Some(_) if !self.powered_off => Some("the host did not power off"),
            Some(_) => None,
        }
    }
}

/// `demo: N passed, M failed`
fn parse_counts(line: &str) -> Option<(u32, u32)> {
    let counts = line.trim().strip_prefix("demo: ")?;
    let (passed, failed) = counts.split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.strip_suffix(" failed")?.parse().ok()?))
}

fn batch(machine: &Machine, mut log: File, limit: Duration) -> Result<ExitCode> {
    let mut out = io::stdout();
    let verdict = watch(machine, limit, |line| {
        writeln!(log, "{line}")?;
        writeln!(out, "{line}")
    })?;
    if let Some(complaint) = &verdict.complaint {
        say!("{complaint}");
    }
    let (passed, failed) = verdict.counts;
    writeln!(out, "demo: {passed} passed, {failed} failed")?;
    out.flush()?;
    Ok(if verdict.complaint.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How a boot with the demo went.
pub struct Demo {
    /// Steps passed and failed. What went wrong beside them counts as one more.
    pub counts: (u32, u32),
    /// Why it is no success, if it is none.
    pub complaint: Option<&'static str>,
}

/// Boots a machine whose host runs the demo, and passes on what its console says.
pub fn watch(
    machine: &Machine,
    limit: Duration,
    mut tell: impl FnMut(&str) -> io::Result<()>,
) -> Result<Demo> {
    let mut session = Session::start(machine.command())?;
    let deadline = Instant::now() + limit;
    let mut verdict = Verdict::default();
    let in_time = loop {
        match session.next(deadline) {
            Event::Line(line) => {
                verdict.read(&line);
                tell(&line)?;
                if verdict.halted {
                    break true;
                }
            }
            Event::End => break true,
            Event::TimeUp => break false,
        }
    };
    let ending = session.finish()?;
    if !ending.errors.is_empty() {
        say!("QEMU says: {}", ending.errors);
    }
    let complaint = match () {
        () if !in_time => Some("time is up"),
        // QEMU was ended by us.
        () if verdict.halted => verdict.complaint(),
        () if !ending.status.success() => Some("QEMU failed"),
        () => verdict.complaint(),
    };
    let (passed, failed) = verdict.demo.unwrap_or_default();
    let failed = if complaint.is_some() { failed.max(1) } else { failed };
    Ok(Demo { counts: (passed, failed), complaint })
}

/// RAM sizes as QEMU takes them, in MiB.
fn parse_mib(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().with_context(|| format!("{text} is no size"))?;
    let mib = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "M" | "MB" | "MIB" => Some(number),
        "G" | "GB" | "GIB" => number.checked_mul(1024),
        unit => bail!("{unit} is no unit of memory: M or G"),
    };
    mib.filter(|mib| (1..u64::MAX / MIB).contains(mib))
        .with_context(|| format!("{text} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lines: &[&str]) -> Verdict {
        let mut verdict = Verdict::default();
        lines.iter().for_each(|line| verdict.read(line));
        verdict
    }

    #[test]
    fn only_a_whole_success_is_one() {
        let off = "[    3.1] reboot: Power down";
        let good = verdict(&["demo: 9 passed, 0 failed\r", off]);
        assert_eq!(good.complaint(), None);
        for bad in [
            &["demo: 8 passed, 1 failed", off][..],
            &["demo: 0 passed, 0 failed", off],
            &["demo: 9 passed, 0 failed"],
            &["demo: 9 passed, 0 failed", "demo: 0 passed, 9 failed", off],
            &["xdemo: 9 passed, 0 failed", off],
            &["escrow: fatal: no kernel; halted\r"],
            &["demo: 9 passed, 0 failed", "escrow: fatal: x; halted", off],
            &[off],
        ] {
            assert!(verdict(bad).complaint().is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_halt_is_the_end() {
        assert!(verdict(&["escrow: fatal: 66 CPUs, at most 64; halted\r"]).halted);
        assert!(!verdict(&["sh: escrow: fatal: x; halted", "escrow: fatal: x"]).halted);
    }

    #[test]
    fn nobody_types_into_a_file() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(can_be_typed_at(reader.as_fd()).unwrap());
        for file in ["/dev/null", "/proc/self/exe"] {
            assert!(!can_be_typed_at(File::open(file).unwrap().as_fd()).unwrap(), "{file}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_mib("512").unwrap(), 512);
        assert_eq!(parse_mib("512M").unwrap(), 512);
        assert_eq!(parse_mib("2g").unwrap(), 2048);
        for bad in ["", "G", "0", "1T", "99999999999999999999", "18446744073709551615G"] {
            assert!(parse_mib(bad).is_err(), "{bad}");
        }
    }
}
