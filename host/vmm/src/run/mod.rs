// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow run`: a guest that is an operating system, from its kernel's file to
//! its end.

mod arguments;
mod buffer;
mod client;
mod devices;
mod keys;
mod oops;
mod preflight;
mod progress;
mod protocol;
mod registry;
mod remote;
mod sandbox;
mod session;
mod size;
mod status;
mod terminal;

use std::fs::File;
use std::process;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context as _, Result};

pub use arguments::Arguments;
use arguments::Plan;
use progress::Progress;
use protocol::Status;
use registry::Entry;
pub use registry::Name;
pub use remote::{ListArguments, console, kill, list};
use session::Session;
pub use status::HELP as EXIT_STATUS;
use status::Killer;

use crate::gunyah::Device;
use crate::machine::{Ending, Machine, Parts, Sharing};

/// Runs a guest. The exit status.
pub fn run(arguments: Arguments) -> Result<u8> {
    let plan = arguments.plan()?;
    let device = preflight::open()?;
    preflight::check_memory(plan.machine.ram)?;
    let (entry, listener) = Entry::take(plan.name.as_ref())?;
    let parts = Parts::open(&plan.machine, &entry.path("vsock"))?;
    let mut session = Session::new(listener)?;
    // No other thread is there yet.
    sandbox::drop_privileges()?;
    let host = Host { device, parts, entry };
    let mut boots = 0;
    loop {
        boots += 1;
        let (ending, killer) = boot(&plan, &host, &mut session, boots)?;
        let panicked = session.panicked();
        if plan.reboot && matches!(ending, Ending::Reset) {
            session.next_guest();
            continue;
        }
        session.leave_terminal();
        if let Some(message) = status::message(&ending, panicked) {
            eprintln!("escrow: {message}");
        }
        return Ok(status::code(&ending, killer, panicked));
    }
}

/// What a guest is made of at the host's.
struct Host {
    device: Device,
    parts: Parts,
    entry: Entry,
}

/// Starts a guest, and sees it to its end.
fn boot(
    plan: &Plan,
    host: &Host,
    session: &mut Session,
    boots: u64,
) -> Result<(Ending, Option<Killer>)> {
    let mut progress = Progress::new();
    let Host { device, parts, entry } = host;
    let machine = Machine::build(device, &plan.machine, parts, &mut |step| progress.show(step))?;
    progress.clear();
    let console: File = machine.console()?;
    session.enter_terminal()?;
    if boots == 1 {
        sandbox::filter_system_calls(plan.machine.vsock.is_some())?;
    }
    let running = machine.start()?;
    let started = Instant::now();
    let status = || Status {
        name: entry.name().as_str().to_owned(),
        pid: process::id(),
        cpus: plan.machine.cpus,
        memory: plan.machine.ram,
        shared: plan.machine.sharing == Sharing::Shared,
        kernel: plan.machine.kernel.display().to_string(),
        boots,
        uptime: started.elapsed().as_secs(),
        mmio: running.vcpus().counts().mmio.load(Ordering::Relaxed),
    };
    let killer = session.serve(&console, running.vcpus().ended(), status)?;
    let (ending, ram) = running.finish();
    drop(ram);
    session.drain(&console).context("the end of the console")?;
    Ok((ending, killer))
}
