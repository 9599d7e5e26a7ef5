// SPDX-License-Identifier: MIT OR Apache-2.0

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::alarm;

use crate::gunyah::{Exit, Result, Vcpu};

/// A time limit for running a vCPU. There can be one at a time.
///
/// When the time is over, SIGALRM ends the run, or keeps the next one from
/// beginning: whichever comes, `VCPU_RUN` returns.
pub struct Watchdog(());

static BARKED: AtomicBool = AtomicBool::new(false);
/// The `immediate_exit` flag of the vCPU that is running.
static FLAG: AtomicPtr<u8> = AtomicPtr::new(null_mut());
/// Once the time is over, the program has this long to notice it. If it does
/// not, it hangs in something that no signal ends.
const GRACE_SECONDS: u32 = 20;

impl Watchdog {
    /// Starts the clock.
    pub fn start(limit: Duration) -> Watchdog {
        BARKED.store(false, Ordering::SeqCst);
        // No SA_RESTART: system calls are to end.
        let action = SigAction::new(SigHandler::Handler(bark), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler is async-signal-safe.
        let installed = unsafe { sigaction(Signal::SIGALRM, &action) };
        debug_assert!(installed.is_ok());
        alarm::set(limit.as_secs().clamp(1, 3600) as u32);
        Watchdog(())
    }

    /// Whether the time is over.
    pub fn barked(&self) -> bool {
        BARKED.load(Ordering::SeqCst)
    }

    /// Runs a vCPU by `run`, within the time.
    pub fn guard(
        &self,
        vcpu: &mut Vcpu,
        run: impl FnOnce(&mut Vcpu) -> Result<Exit>,
    ) -> Result<Exit> {
        let flag: *const AtomicU8 = vcpu.immediate_exit();
        FLAG.store(flag.cast_mut().cast(), Ordering::SeqCst);
        if self.barked() {
            vcpu.immediate_exit().store(1, Ordering::SeqCst);
        }
        let exit = run(vcpu);
        FLAG.store(null_mut(), Ordering::SeqCst);
        vcpu.immediate_exit().store(0, Ordering::SeqCst);
        exit
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        alarm::cancel();
    }
}

extern "C" fn bark(_signal: libc::c_int) {
    if BARKED.swap(true, Ordering::SeqCst) {
        let message = b"escrow: the kernel or a guest hangs, giving up\n";
        // SAFETY: write and _exit are async-signal-safe; the buffer is whole.
        unsafe {
            libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
            libc::_exit(1);
        }
    }
    let flag = FLAG.load(Ordering::SeqCst);
    if !flag.is_null() {
        // SAFETY: `guard` sets the pointer only while it borrows the vCPU,
        // which keeps its page mapped.
        unsafe { AtomicU8::from_ptr(flag) }.store(1, Ordering::SeqCst);
    }
    // SAFETY: alarm is async-signal-safe and takes no pointer.
    unsafe { libc::alarm(GRACE_SECONDS) };
}
