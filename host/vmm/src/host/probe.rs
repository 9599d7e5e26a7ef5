// SPDX-License-Identifier: MIT OR Apache-2.0

use std::arch::global_asm;
use std::fmt;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

// Two accesses, each at a label that the signal handler knows. The handler
// steps over the access and leaves `signal << 32 | si_code` in x1.
global_asm!(
    ".section .text.escrow_probe, \"ax\"",
    ".balign 4",
    ".globl escrow_probe_load",
    ".globl escrow_probe_load_access",
    ".globl escrow_probe_store",
    ".globl escrow_probe_store_access",
    "escrow_probe_load:",
    "mov x1, #0",
    "escrow_probe_load_access:",
    "ldrb w0, [x0]",
    "ret",
    "escrow_probe_store:",
    "mov x2, x1",
    "mov x1, #0",
    "escrow_probe_store_access:",
    "strb w2, [x0]",
    "ret",
    ".previous",
);

#[repr(C)]
struct Answer {
    value: u64,
    signal: u64,
}

unsafe extern "C" {
    fn escrow_probe_load(address: usize) -> Answer;
    fn escrow_probe_store(address: usize, value: u64) -> Answer;
    static escrow_probe_load_access: u8;
    static escrow_probe_store_access: u8;
}

/// `si_addr` of the last signal that was stepped over.
static FAULT_ADDRESS: AtomicUsize = AtomicUsize::new(0);

/// What to do to a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Load it.
    Load,
    /// Store this.
    Store(u8),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched {
    /// The byte that was loaded or stored.
    Byte(u8),
    /// A signal instead.
    Signal(Signal),
}

impl fmt::Display for Touched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Touched::Byte(value) => write!(f, "{value:#04x}"),
            Touched::Signal(signal) => write!(f, "{signal}"),
        }
    }
}

/// Touches a byte of this process and survives the SIGBUS or SIGSEGV that may
/// come of it. The byte must be inside a [`Mapping`](crate::gunyah::Mapping).
pub fn touch(address: usize, touch: Touch) -> Touched {
    install();
    // SAFETY: the functions touch that one byte, which is in no Rust object
    // (mappings of guest memory are reached by volatile accesses alone), and
    // `skip` repairs a fault of it.
    let answer = unsafe {
        match touch {
            Touch::Load => escrow_probe_load(address),
            Touch::Store(value) => escrow_probe_store(address, value.into()),
        }
    };
    let signal = Signal::try_from((answer.signal >> 32) as i32);
    match (signal, touch) {
        (Ok(signal), _) if FAULT_ADDRESS.load(Ordering::Relaxed) == address => {
            Touched::Signal(signal)
        }
        // The signal was for another address, so the access has not caused it.
        (Ok(_), _) => Touched::Signal(Signal::SIGABRT),
        (Err(_), Touch::Load) => Touched::Byte(answer.value as u8),
        (Err(_), Touch::Store(value)) => Touched::Byte(value),
    }
}

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let action =
            SigAction::new(SigHandler::SigAction(skip), SaFlags::SA_SIGINFO, SigSet::empty());
        for signal in [Signal::SIGBUS, Signal::SIGSEGV] {
            // SAFETY: the handler is async-signal-safe: it touches its
            // arguments and an atomic, and may call sigaction.
            let _ = unsafe { sigaction(signal, &action) };
        }
    });
}

extern "C" fn skip(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes valid pointers that only this handler uses.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
    let machine = &mut context.uc_mcontext;
    let accesses = [&raw const escrow_probe_load_access, &raw const escrow_probe_store_access];
    if accesses.iter().any(|&access| access as u64 == machine.pc) {
        // SAFETY: SIGBUS and SIGSEGV have an address.
        FAULT_ADDRESS.store(unsafe { info.si_addr() } as usize, Ordering::Relaxed);
        machine.regs[1] = (signal as u64) << 32 | u64::from(info.si_code as u32);
        machine.pc += 4;
    } else {
        // The fault is not the probe's: with the default action, the repeated access kills
        // the process.
        // SAFETY: sigaction is async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
