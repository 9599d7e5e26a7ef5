// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow run`: a guest that is an operating system, from its kernel's file to
//! its end.

mod arguments;
mod buffer;
mod client;
mod devices;
mod keys;
mod landlock;
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
use std::io;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};

pub use arguments::Arguments;
use arguments::Plan;
use progress::Progress;
pub use protocol::Status;
use registry::Entry;
pub use registry::Name;
pub use remote::{
    ConsoleArguments, ListArguments, StopArguments, console, guest, guests, kill, list, stop,
};
use session::{Guest, Session};
pub use status::HELP as EXIT_STATUS;
use status::Killer;

use crate::gunyah::Device;
use crate::machine::{Ending, Machine, Parts, Running, Sharing};

/// Runs a guest. The exit status.
pub fn run(arguments: Arguments) -> Result<u8> {
    let plan = match arguments.plan() {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("escrow: {error:#}");
            return Ok(status::WRONG_OPTIONS);
        }
    };
    let device = preflight::open()?;
    preflight::check_memory(plan.machine.ram, plan.machine.populate)?;
    let (entry, listener) = Entry::take(plan.name.as_ref())?;
    let parts = Parts::open(&plan.machine, &|kind| entry.path(kind))?;
    let mut session = Session::new(listener)?;
    // Before the first thread is started: privileges are each thread's own.
    sandbox::drop_privileges(entry.folder())?;
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

/// A guest that runs.
struct Booted<'a> {
    plan: &'a Plan,
    entry: &'a Entry,
    boots: u64,
    running: Running,
    started: Instant,
}

impl Guest for Booted<'_> {
    fn status(&self) -> Status {
        let Plan { machine, .. } = self.plan;
        let counts = self.running.vcpus().counts();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Status {
            name: self.entry.name().as_str().to_owned(),
            pid: process::id(),
            cpus: machine.cpus,
            memory: machine.ram,
            shared: machine.sharing == Sharing::Shared,
            protected: self.running.is_protected(),
            kernel: machine.kernel.display().to_string(),
            boots: self.boots,
            uptime: self.started.elapsed().as_secs(),
            exits: count(&counts.exits),
            mmio: count(&counts.mmio),
            faults: count(&counts.faults),
        }
    }

    fn stop(&self) -> io::Result<()> {
        self.running.button().press()
    }
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
    if let Some(remark) = machine.remark().filter(|_| boots == 1) {
        eprintln!("escrow: {remark}");
    }
    let console: File = machine.console()?;
    session.enter_terminal()?;
    if boots == 1 {
        sandbox::filter_system_calls(plan.machine.vsock.is_some())?;
    }
    let running = machine.start()?;
    let guest = Booted { plan, entry, boots, running, started: Instant::now() };
    let killer = session.serve(&console, guest.running.vcpus().ended(), &guest)?;
    let (ending, ram) = guest.running.finish();
    drop(ram);
    session.drain(&console).context("the end of the console")?;
    Ok((ending, killer))
}
