// SPDX-License-Identifier: MIT OR Apache-2.0

//! What Escrow costs, in instructions, measured under QEMU, and what others do.
//!
//! Every machine here counts instructions: with `-icount shift=0` QEMU's virtual
//! clock advances by a nanosecond at each, and the counter of its CPU type `max`
//! ticks at 1 GHz. The counts are the same on every build machine, busy or idle.
//! What they leave out, and what each row means, is in docs/performance.md.

mod calls;
mod chart;
mod console;
mod cpus;
mod docs;
mod guests;
mod payload;
mod peers;
mod profile;
mod report;
mod shim;
mod table;
mod workload;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use xtask::artefacts::Artefacts;

use crate::build::{self, What, Workspace};
use crate::say;
use crate::setup::Setup;
use crate::shell::Step;
use report::{Report, Row};

#[derive(clap::Args)]
pub struct Args {
    /// Only this part; target/bench.json then has only its rows
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Do not build; measure what was built last
    #[arg(long)]
    no_build: bool,
    /// Do not measure; take target/bench.json as it is
    #[arg(long, conflicts_with_all = ["only", "no_build"])]
    no_measure: bool,
    /// Show the functions that the instructions of one part of `--only shim` or `--only guests` are
    /// spent in: `lend_4k`, `lend_2m`, `lend_4k_scattered`, `mmio_user` or `exit_with_host`
    #[arg(long, value_name = "ROW", conflicts_with_all = ["only", "no_measure", "chart"])]
    profile: Option<String>,
    /// Draw the charts and write the tables of docs/performance.md
    #[arg(long)]
    chart: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Hypercalls, guest exits and the boot, seen from a payload in the host's place
    Calls,
    /// Several CPUs that lend at once
    Cpus,
    /// Other hypervisors, if `cargo xtask setup --peers` has fetched them
    Peers,
    /// A guest's memory, lent and taken back through the shim, and by pKVM
    Shim,
    /// What guests cost on a Debian host, and on KVM
    Guests,
    /// A Debian host's user space, with Escrow and without
    Workload,
}

/// Measures, prints tables and writes `target/bench.json`.
///
/// A goal that is missed is shown and is no error; what cannot be measured is.
pub fn bench(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    if let Some(part) = &args.profile {
        write!(io::stdout(), "{}", profile(args, part, &workspace)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let json = workspace.paths().bench_json();
    let report = if args.no_measure {
        Report::read(&json)?
    } else {
        let report = Report(measure(args, &workspace)?);
        report.write(&json)?;
        report
    };
    let headed = [
        ("", table::own(&report)),
        ("against peers, which stand with the least that they take:\n", table::peers(&report)),
        ("what else the peers take:\n", table::others(&report)),
        ("lending more at once:\n", table::growth(&report)),
        ("lending by several CPUs at once:\n", table::cpus(&report)),
    ];
    let shown = headed.into_iter().filter(|(_, table)| !table.is_empty());
    let shown: Vec<_> = shown.map(|(head, table)| format!("{head}{}", table.text())).collect();
    write!(io::stdout(), "{}", shown.join("\n"))?;
    if args.chart {
        docs::update(&report, &workspace.root().join("docs"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &Args, workspace: &Workspace) -> Result<Vec<Row>> {
    let setup = Setup::ensure(Default::default())?;
    setup.qemu()?;
    let wanted = |part| args.only.is_none_or(|only| only == part);
    if !args.no_build {
        let mut needed = vec![What::Hypervisor];
        let on_linux = |part| matches!(part, Part::Workload | Part::Shim | Part::Guests);
        needed.extend((!args.only.is_some_and(on_linux)).then_some(What::Payloads));
        needed.extend(args.only.is_none_or(on_linux).then_some(What::Host));
        build::build(workspace, &setup, &needed)?;
    }
    let artefacts = workspace.artefacts(&setup)?;
    let mut rows = Vec::new();
    if wanted(Part::Calls) {
        rows.extend(step("what calls, exits and the boot take", || calls::measure(&artefacts))?);
    }
    if wanted(Part::Cpus) {
        let plugin = build::plugin(workspace)?;
        let measure = || cpus::measure(&artefacts, &plugin);
        rows.extend(step("what CPUs take that lend at once", measure)?);
    }
    if wanted(Part::Peers) {
        rows.extend(measure_peers(workspace, &setup, &artefacts)?);
    }
    if wanted(Part::Shim) {
        let (shim, kvm) = (build::shim_bench(workspace, &setup)?, build::peers(workspace, &setup)?);
        let programs = shim::Programs { shim: &shim, kvm: &kvm };
        let measure = || shim::measure(&artefacts, &programs, &workspace.paths().bench());
        rows.extend(step("what lending through the shim takes, and what pKVM takes", measure)?);
    }
    if wanted(Part::Guests) {
        let (shim, kvm) = (build::shim_bench(workspace, &setup)?, build::peers(workspace, &setup)?);
        let guest = build::guest_bench(workspace, &setup)?;
        let programs = guests::Programs { shim: &shim, kvm: &kvm, guest: &guest };
        let measure = || guests::measure(&artefacts, &programs, &workspace.paths().bench());
        rows.extend(step("what guests take, and what KVM takes", measure)?);
    }
    if wanted(Part::Workload) {
        let program = build::workload(workspace, &setup)?;
        let measure = || workload::measure(&artefacts, &program, &workspace.paths().bench());
        rows.extend(step("a workload with Escrow and without", measure)?);
    }
    Ok(rows)
}

/// The functions that a part of the shim's rows is spent in.
fn profile(args: &Args, part: &str, workspace: &Workspace) -> Result<String> {
    let setup = Setup::ensure(Default::default())?;
    setup.qemu()?;
    if !args.no_build {
        build::build(workspace, &setup, &[What::Hypervisor, What::Host])?;
    }
    let artefacts = workspace.artefacts(&setup)?;
    let (plugin, program) = (build::plugin(workspace)?, build::shim_bench(workspace, &setup)?);
    profile::show(&artefacts, workspace.paths(), &plugin, &program, part)
        .with_context(|| format!("no profile of {part}"))
}

/// The peers' rows; none, and a line that says so, if they are not there.
fn measure_peers(workspace: &Workspace, setup: &Setup, artefacts: &Artefacts) -> Result<Vec<Row>> {
    let Ok(peers) = setup.peers() else {
        say!("no peers to compare with: `cargo xtask setup --peers` fetches them");
        return Ok(Vec::new());
    };
    let program = build::peers(workspace, setup)?;
    let folder = workspace.paths().bench();
    step("what other hypervisors take", || peers::measure(artefacts, peers, &program, &folder))
}

fn step(what: &str, measure: impl FnOnce() -> Result<Vec<Row>>) -> Result<Vec<Row>> {
    let step = Step::start(format!("counting {what}"));
    let rows = measure().with_context(|| format!("cannot measure {what}"))?;
    step.done();
    Ok(rows)
}
