// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask`: set-up, build, run and test of Escrow.

mod setup;
mod shell;

use anyhow::Result;
use clap::{Parser, Subcommand};

use setup::Setup;

/// Escrow's front door: sets the machine up, builds, runs and tests.
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
}

#[derive(clap::Args)]
struct SetupArgs {
    /// Look for newer versions of what was fetched before
    #[arg(long)]
    refresh: bool,
    /// Do not install packages into the system; say which are missing
    #[arg(long)]
    no_install: bool,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Task::Setup(args) => {
            Setup::ensure(setup::Options { refresh: args.refresh, no_install: args.no_install })?
                .report()
        }
    }
}
