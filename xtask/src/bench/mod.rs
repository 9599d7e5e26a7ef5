// SPDX-License-Identifier: MIT OR Apache-2.0

//! What Escrow costs, in instructions, measured under QEMU.
//!
//! Every machine here has one CPU and counts instructions: with
//! `-icount shift=0` QEMU's virtual clock advances by a nanosecond at each,
//! and the counter of its CPU type `max` ticks at 1 GHz. The counts are the
//! same on every build machine, busy or idle. What they leave out, and what
//! each row means, is in docs/performance.md.

mod calls;
mod console;
mod report;
mod workload;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::build::{self, What, Workspace};
use crate::setup::Setup;
use crate::shell::Step;

#[derive(clap::Args)]
pub struct Args {
    /// Only this part; target/bench.json then has only its rows
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Do not build; measure what was built last
    #[arg(long)]
    no_build: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Hypercalls, guest exits and the boot, seen from a payload in the host's place
    Calls,
    /// A Debian host's user space, with Escrow and without
    Workload,
}

/// Measures, prints a table and writes `target/bench.json`.
///
/// A goal that is missed is shown and is no error; what cannot be measured is.
pub fn bench(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let setup = Setup::ensure(Default::default())?;
    setup.qemu()?;
    let wanted = |part| args.only.is_none_or(|only| only == part);
    if !args.no_build {
        let mut needed = vec![What::Hypervisor];
        needed.extend(wanted(Part::Calls).then_some(What::Payloads));
        needed.extend(wanted(Part::Workload).then_some(What::Host));
        build::build(&workspace, &setup, &needed)?;
    }
    let artefacts = workspace.artefacts(&setup)?;
    let mut rows = Vec::new();
    if wanted(Part::Calls) {
        let step = Step::start("counting what calls, exits and the boot take");
        rows.extend(calls::measure(&artefacts).context("the calls cannot be measured")?);
        step.done();
    }
    if wanted(Part::Workload) {
        let program = build::workload(&workspace, &setup)?;
        let step = Step::start("counting a workload with Escrow and without");
        let measured = workload::measure(&artefacts, &program, &workspace.paths().bench());
        rows.extend(measured.context("the workload cannot be measured")?);
        step.done();
    }
    report::write(&rows, &workspace.paths().bench_json())?;
    print!("{}", report::table(&rows));
    Ok(ExitCode::SUCCESS)
}
