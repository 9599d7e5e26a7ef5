// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow`: what a host that runs under Escrow can do with it, from the
//! command line.

// These panic when nobody reads any more.
#![deny(clippy::print_stdout)]
// Elsewhere, this compiles for the sake of its unit tests, and most of it has
// no user.
#![cfg_attr(not(target_arch = "aarch64"), allow(dead_code, unused_imports))]

mod demo;
mod guest;
mod gunyah;
mod host;
mod info;
mod log;
mod machine;
mod manual;
mod run;
mod stat;
mod verify_token;
mod virtio;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// Runs guests on memory that this host lends them, and shows what becomes of
/// it.
#[derive(Parser)]
#[command(name = "escrow", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Connect to a guest's console
    ///
    /// At a terminal, Ctrl-] q leaves it; the guest goes on.
    Console(run::ConsoleArguments),
    /// Lend a page to a guest, try to get at it, and get it back, step by step
    ///
    /// Each of the ten steps prints a line; the last line is `demo: N passed, M
    /// failed`. Elsewhere than at a terminal, and for a step that fails, the line
    /// says what was expected and what was seen. The exit status is 0 only if all
    /// steps passed. Needs root: two steps look at physical memory.
    Demo(DemoArguments),
    /// What the guest of the demo's last step does, as its first process.
    #[cfg(target_arch = "aarch64")]
    #[command(hide = true)]
    GuestInit {
        /// What it says.
        token: String,
    },
    /// Show what Escrow says of itself: version, CPUs, VMs, pages by state
    ///
    /// Needs root.
    Info {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End a guest at once
    ///
    /// Returns when it has ended and the host has its memory back.
    Kill {
        /// The guest's name
        name: run::Name,
    },
    /// List the guests that run
    Ls(run::ListArguments),
    /// Show what Escrow has logged: its boot, and what it has met since
    ///
    /// Escrow keeps the last 32 KiB. Needs root.
    Log(log::Arguments),
    /// Write the manual pages into a folder
    ///
    /// One for `escrow` and one for each command, in section 1. View one with
    /// `man -l FOLDER/escrow-run.1`.
    Man {
        /// The folder; it must exist
        folder: PathBuf,
    },
    /// Start a Linux kernel as a guest, with its console here
    ///
    /// The guest is a machine like QEMU's `virt`: a GICv3, a PL011 (ttyAMA0), a
    /// PL031, a power button. Its RAM is lent to it: the host cannot access what
    /// the guest has touched. At a terminal, Ctrl-] q ends the guest, Ctrl-] ?
    /// explains the keys; all others are the guest's, Ctrl-C too.
    #[command(after_help = run::EXIT_STATUS)]
    Run(run::Arguments),
    /// Ask a guest to power off, by its power button
    ///
    /// The guest needs a driver for the button (gpio-keys) and a program that
    /// listens to it (systemd-logind does). Returns when the guest has ended and
    /// the host has its memory back. If that takes longer than --timeout, the exit
    /// status is 1.
    Stop(run::StopArguments),
    /// Show who has which pages: what `info` shows, what the shim has counted,
    /// and each guest, memory and VM
    ///
    /// With a name, only that guest: its vCPUs, pages and exits. All others need root.
    Stat(stat::Arguments),
    /// Verify the attestation token of a protected guest
    ///
    /// Runs on any machine. The token is to be signed by the machine with
    /// --platform-key, and to be what is expected. What it claims is printed, else
    /// there is a line for each thing that is wrong, and the exit status is 1.
    VerifyToken(verify_token::Arguments),
}

/// How the demo reports.
#[derive(clap::Args, Clone)]
struct DemoArguments {
    /// The kernel that the last step boots [default: this host's, /boot/vmlinuz-RELEASE]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Print JSON: a list of the steps with all their checks
    #[arg(long, conflicts_with = "verbose")]
    json: bool,
    /// Print each check of each step on a line of its own
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> ExitCode {
    let passed = |passed| if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let result = match Cli::parse().command {
        Command::Demo(arguments) => demo(arguments).map(passed),
        #[cfg(target_arch = "aarch64")]
        Command::GuestInit { token } => guest::init(&token).map(|()| ExitCode::SUCCESS),
        Command::Info { json } => info::print(json).map(|()| ExitCode::SUCCESS),
        Command::Log(arguments) => log::log(arguments).map(|()| ExitCode::SUCCESS),
        Command::Console(arguments) => run::console(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Kill { name } => run::kill(&name).map(|()| ExitCode::SUCCESS),
        Command::Stop(arguments) => run::stop(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Ls(arguments) => run::list(arguments).map(|()| ExitCode::SUCCESS),
        Command::Man { folder } => {
            manual::write(Cli::command(), &folder).map(|()| ExitCode::SUCCESS)
        }
        Command::Run(arguments) => run::run(arguments).map(ExitCode::from),
        Command::Stat(arguments) => stat::stat(&arguments).map(|()| ExitCode::SUCCESS),
        Command::VerifyToken(arguments) => verify_token::verify_token(&arguments).map(passed),
    };
    match result {
        Ok(status) => status,
        // The reader of a pipe has closed it (`| head`): no error.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("escrow: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether what is printed has nobody left to read it: the error itself, not one
/// that something else met.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Runs the demo. Whether all steps passed.
#[cfg(target_arch = "aarch64")]
fn demo(arguments: DemoArguments) -> anyhow::Result<bool> {
    let format = match arguments {
        DemoArguments { json: true, .. } => demo::Format::Json,
        DemoArguments { verbose: true, .. } => demo::Format::Verbose,
        _ if io::IsTerminal::is_terminal(&io::stdout()) => demo::Format::Short,
        _ => demo::Format::Lines,
    };
    demo::run(format, arguments.kernel.as_deref())
}

/// The demo's guest is arm64 code.
#[cfg(not(target_arch = "aarch64"))]
fn demo(_arguments: DemoArguments) -> anyhow::Result<bool> {
    anyhow::bail!("the demo needs an arm64 machine: its guest is an arm64 program")
}
