// SPDX-License-Identifier: MIT OR Apache-2.0

//! The terminal that this program is started at: raw while a guest's console is
//! on it, and as it was afterwards, whatever ends the program.

use std::io::{self, IsTerminal as _};
use std::mem::MaybeUninit;
use std::panic;
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{getpgrp, tcgetpgrp};

/// The modes to go back to; null while the terminal has them.
static BEFORE: AtomicPtr<libc::termios> = AtomicPtr::new(null_mut());
/// Signals that end the program where it stands.
const FATAL: [Signal; 9] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGABRT,
    Signal::SIGILL,
    Signal::SIGFPE,
    // Blocked where a guest runs.
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// Standard input, if it is a terminal, and this program the one that it is for.
pub fn is_ours() -> bool {
    let input = io::stdin();
    input.is_terminal() && tcgetpgrp(&input).is_ok_and(|group| group == getpgrp())
}

/// A terminal in raw mode. There can be one at a time.
pub struct Raw {
    raw: libc::termios,
}

impl Raw {
    /// Makes the terminal of standard input raw.
    pub fn new() -> Result<Raw, Errno> {
        let mut before = MaybeUninit::uninit();
        // SAFETY: the structure is written if the call succeeds.
        Errno::result(unsafe { libc::tcgetattr(libc::STDIN_FILENO, before.as_mut_ptr()) })?;
        // SAFETY: as just checked.
        let before = unsafe { before.assume_init() };
        let mut raw = before;
        // SAFETY: changes the structure alone.
        unsafe { libc::cfmakeraw(&mut raw) };
        install();
        // Leaked on purpose, once a run: signal handlers may read it until the end.
        let kept = Box::leak(Box::new(before));
        BEFORE.store(kept, Ordering::SeqCst);
        let raw = Raw { raw };
        raw.again()?;
        Ok(raw)
    }

    /// Makes it raw again, after somebody else had it.
    pub fn again(&self) -> Result<(), Errno> {
        // SAFETY: the call reads the structure.
        let result = unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &self.raw) };
        Errno::result(result).map(drop)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its modes back. May be called by a signal handler.
pub fn restore() {
    let before = BEFORE.swap(null_mut(), Ordering::SeqCst);
    if !before.is_null() {
        // SAFETY: the structure is never freed; tcsetattr is async-signal-safe.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, before) };
    }
}

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        // SA_RESETHAND: the second time, the default action ends the program. SA_ONSTACK: Rust's
        // threads have a stack for the signal of one that is too small.
        let flags = SaFlags::SA_RESETHAND | SaFlags::SA_NODEFER | SaFlags::SA_ONSTACK;
        let action = SigAction::new(SigHandler::Handler(die), flags, SigSet::empty());
        for signal in FATAL {
            // SAFETY: the handler is async-signal-safe.
            let installed = unsafe { sigaction(signal, &action) };
            debug_assert!(installed.is_ok());
        }
    });
}

extern "C" fn die(signal: libc::c_int) {
    restore();
    // SAFETY: raise is async-signal-safe; the default action ends the program.
    unsafe { libc::raise(signal) };
}
