// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine that runs: a thread for each vCPU, and how it ends.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use escrow_vmcore::uapi;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::bus::Bus;
use crate::gunyah::{Exit, MmioAccess, Stopper, Vcpu};

/// How a machine ended.
#[derive(Debug)]
pub enum Ending {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// Escrow has ended the guest.
    Crashed,
    /// It was stopped from outside.
    Stopped,
    /// A vCPU could not be run.
    Failed(anyhow::Error),
}

/// What the vCPUs' threads have done.
#[derive(Debug, Default)]
pub struct Counts {
    /// Returns of runs to this program.
    pub exits: AtomicU64,
    /// Accesses to emulated devices.
    pub mmio: AtomicU64,
    /// Page faults that had to be tried again.
    pub faults: AtomicU64,
}

/// What all threads of a machine share.
struct Common {
    bus: Bus,
    stopping: AtomicBool,
    ending: Mutex<Option<Ending>>,
    /// Readable when there is an ending.
    ended: EventFd,
    counts: Counts,
}

/// The vCPUs of a machine.
pub struct Vcpus {
    common: Arc<Common>,
    threads: Vec<(JoinHandle<()>, Stopper)>,
}

/// The signal that interrupts a thread's run.
const KICK: Signal = Signal::SIGUSR1;
/// How long a page may be in use by somebody in the host.
const PATIENCE: Duration = Duration::from_secs(10);

impl Vcpus {
    /// Runs each of `vcpus` in a thread of its own.
    pub fn run(vcpus: Vec<Vcpu>, bus: Bus) -> Result<Vcpus> {
        install_kick();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let common = Arc::new(Common {
            bus,
            stopping: AtomicBool::new(false),
            ending: Mutex::new(None),
            ended: EventFd::from_value_and_flags(0, flags).context("eventfd")?,
            counts: Counts::default(),
        });
        let mut all = Vcpus { common: Arc::clone(&common), threads: Vec::new() };
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let (common, stopper) = (Arc::clone(&common), vcpu.stopper());
            let thread = thread::Builder::new()
                .name(format!("vcpu-{id}"))
                .spawn(move || common.run(vcpu))
                .with_context(|| format!("starting a thread for vCPU {id}"))?;
            all.threads.push((thread, stopper));
        }
        Ok(all)
    }

    /// A descriptor that is readable once the machine has ended.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.common.ended.as_fd()
    }

    /// What they have done so far.
    pub fn counts(&self) -> &Counts {
        &self.common.counts
    }

    /// Stops all vCPUs, and tells how the machine has ended: [`Ending::Stopped`]
    /// if it had not.
    pub fn finish(mut self) -> Ending {
        self.stop();
        let mut ending = self.common.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.take().unwrap_or(Ending::Stopped)
    }

    fn stop(&mut self) {
        self.common.stopping.store(true, Ordering::SeqCst);
        for (thread, stopper) in &self.threads {
            stopper.stop();
            // The thread has not been joined. If it has ended, this does nothing.
            let _ = pthread_kill(thread.as_pthread_t(), KICK);
        }
        for (thread, _) in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Common {
    /// Runs a vCPU until the machine ends.
    fn run(&self, mut vcpu: Vcpu) {
        let ending = self.run_to_the_end(&mut vcpu).unwrap_or_else(Ending::Failed);
        let mut first = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the first ending counts: the others are its consequence.
        if first.is_none() && !matches!(ending, Ending::Stopped) {
            *first = Some(ending);
            // An eventfd fails to count at u64::MAX only.
            let _ = self.ended.write(1);
        }
    }

    fn run_to_the_end(&self, vcpu: &mut Vcpu) -> Result<Ending> {
        let mut waiting: Option<(u64, Instant)> = None;
        while !self.stopping.load(Ordering::SeqCst) {
            let exit = vcpu.run()?;
            self.counts.exits.fetch_add(1, Ordering::Relaxed);
            match exit {
                // A signal, or the order to stop, which the loop checks.
                Exit::Interrupted => {}
                Exit::Mmio(access) => {
                    self.counts.mmio.fetch_add(1, Ordering::Relaxed);
                    let value = self.bus.access(access);
                    if let MmioAccess::Read { .. } = access {
                        vcpu.complete_read(value);
                    }
                }
                Exit::PageFault { address, errno: Errno::EAGAIN } => {
                    self.counts.faults.fetch_add(1, Ordering::Relaxed);
                    let since = match waiting {
                        Some((page, since)) if page == address => since,
                        _ => Instant::now(),
                    };
                    waiting = Some((address, since));
                    if since.elapsed() > PATIENCE {
                        anyhow::bail!(
                            "the guest's page at {address:#x} cannot be lent: something on the host \
                             has been using it for {} s (`escrow stat` shows refusals)",
                            PATIENCE.as_secs()
                        );
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                // Running again lets the guest take the abort.
                Exit::PageFault { errno: Errno::EHWPOISON, .. } => {}
                // The module answers no access to a protected guest's RAM with an abort.
                Exit::PageFault { address, errno: Errno::EPERM } => {
                    anyhow::bail!(
                        "the guest uses RAM at {address:#x} in a way that its memory does not allow, \
                         or that it has no more"
                    );
                }
                Exit::PageFault { address, errno } => {
                    return Err(errno)
                        .with_context(|| format!("allocating the guest's page at {address:#x}"));
                }
                Exit::Ended { status: uapi::STATUS_EXITED, kind: uapi::EXIT_TYPE_RESET } => {
                    return Ok(Ending::Reset);
                }
                Exit::Ended { status: uapi::STATUS_EXITED, .. } => return Ok(Ending::PowerOff),
                Exit::Ended { .. } => return Ok(Ending::Crashed),
            }
        }
        Ok(Ending::Stopped)
    }
}

/// Installs a handler for [`KICK`], so that the signal interrupts system calls and does nothing else.
fn install_kick() {
    extern "C" fn ignore(_signal: libc::c_int) {}
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Without SA_RESTART, so that the signal ends a run.
        let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing.
        let installed = unsafe { sigaction(KICK, &action) };
        debug_assert!(installed.is_ok());
    });
}
