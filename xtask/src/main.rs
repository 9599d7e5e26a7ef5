// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask`: set-up, build, run, test and bench of Escrow.

// These panic when nobody reads any more.
#![deny(clippy::print_stdout)]

mod bench;
mod build;
mod clean;
mod kernels;
mod lint;
mod run;
mod setup;
mod shell;
mod test;

use std::io;
use std::process::ExitCode;
use std::slice;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum as _};

use setup::Setup;

/// Escrow's front door: sets the machine up, builds, runs, tests and measures.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Get everything that builds and boots need
    Setup(SetupArgs),
    /// Build the hypervisor, the payloads and what the host runs
    Build(BuildArgs),
    /// Boot Debian under Escrow, run the demo, and leave you at a shell
    Run(run::Args),
    /// Run the tests
    Test(test::Args),
    /// Have DKMS build the module for every kernel that Debian has headers of
    Kernels(kernels::Args),
    /// Count what Escrow costs, in instructions
    Bench(bench::Args),
    /// Remove what was built
    Clean(clean::Args),
    /// Print the environment of cargo calls for the bare-metal targets
    ///
    /// For use in a shell: eval "$(cargo xtask env)", and then for example
    /// cargo build -p escrow-boot with the arguments that the comment names.
    Env,
}

#[derive(clap::Args)]
struct BuildArgs {
    /// Only this part
    #[arg(long, value_name = "PART")]
    only: Option<build::What>,
}

#[derive(clap::Args)]
struct SetupArgs {
    /// Look for newer versions of what was fetched before
    #[arg(long)]
    refresh: bool,
    /// Do not install packages into the system; say which are missing
    #[arg(long)]
    no_install: bool,
    /// Also get the hypervisors that `bench` holds Escrow against
    #[arg(long)]
    peers: bool,
    /// Also build the kernels that look for mistakes, for `test --debug-kernel`; takes long
    #[arg(long)]
    debug_kernel: bool,
    /// Also get what `test --long` boots and runs in guests
    #[arg(long)]
    long: bool,
}

fn main() -> ExitCode {
    // Not by returning it: that would show a backtrace to everybody who has
    // RUST_BACKTRACE set, and our errors say what matters.
    run_task(Cli::parse().command).unwrap_or_else(|error| {
        let closed = error.downcast_ref::<io::Error>();
        if closed.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            // Whoever reads has seen enough.
            return ExitCode::from(shell::CLOSED_PIPE);
        }
        say!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_task(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup(args) => {
            let SetupArgs { refresh, no_install, peers, debug_kernel, long } = args;
            let options = setup::Options { refresh, no_install, peers, debug_kernel };
            let setup = Setup::ensure(options)?;
            setup.report()?;
            if debug_kernel {
                setup.build_debug_kernels()?;
            }
            if long {
                setup.for_long_tests()?;
            }
        }
        Task::Build(args) => {
            let setup = Setup::ensure(Default::default())?;
            let all = build::What::value_variants();
            let parts = args.only.as_ref().map_or(all, slice::from_ref);
            build::build(&build::Workspace::find()?, &setup, parts)?;
        }
        Task::Run(args) => return run::run(&args),
        Task::Test(args) => return test::test(&args),
        Task::Kernels(args) => return kernels::kernels(&args),
        Task::Bench(args) => return bench::bench(&args),
        Task::Clean(args) => clean::clean(&args)?,
        Task::Env => {
            let setup = Setup::ensure(Default::default())?;
            let bare_metal = setup.bare_metal()?;
            for (name, value) in bare_metal.environment() {
                show!("export {name}='{}'", value.display());
            }
            for target in [setup::SOFTFLOAT, setup::STATIC_LINUX] {
                show!("# {}", bare_metal.arguments(target).join(" "));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
