// SPDX-License-Identifier: MIT OR Apache-2.0

//! Accesses by this process, and the signals that they end in. The process
//! handles the signal and goes on behind the access.

use std::arch::global_asm;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::Relaxed};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

// One access each, to the address in x0. Between the first and the last label
// the handler steps over what faults.
global_asm!(
    ".section .text.liar_access, \"ax\"",
    ".arch_extension lse",
    ".balign 4",
    "liar_access_first:",
    "liar_access_ldrb: ldrb w1, [x0]",
    "ret",
    "liar_access_ldr: ldr x1, [x0]",
    "ret",
    "liar_access_ldp: ldp x1, x2, [x0]",
    "ret",
    "liar_access_ldr_q: ldr q0, [x0]",
    "ret",
    "liar_access_ldar: ldar x1, [x0]",
    "ret",
    "liar_access_ldxr: ldxr x1, [x0]",
    "clrex",
    "ret",
    "liar_access_strb: strb wzr, [x0]",
    "ret",
    "liar_access_str: str xzr, [x0]",
    "ret",
    "liar_access_stp: stp xzr, xzr, [x0]",
    "ret",
    "liar_access_str_q: str q0, [x0]",
    "ret",
    "liar_access_stlr: stlr xzr, [x0]",
    "ret",
    "liar_access_zva: dc zva, x0",
    "ret",
    "liar_access_ldadd: ldadd xzr, x1, [x0]",
    "ret",
    "liar_access_prfm: prfm pldl1keep, [x0]",
    "ret",
    "liar_access_last:",
    ".globl liar_access_first",
    ".globl liar_access_last",
    ".globl liar_access_ldrb",
    ".globl liar_access_ldr",
    ".globl liar_access_ldp",
    ".globl liar_access_ldr_q",
    ".globl liar_access_ldar",
    ".globl liar_access_ldxr",
    ".globl liar_access_strb",
    ".globl liar_access_str",
    ".globl liar_access_stp",
    ".globl liar_access_str_q",
    ".globl liar_access_stlr",
    ".globl liar_access_zva",
    ".globl liar_access_ldadd",
    ".globl liar_access_prfm",
    ".previous",
);

unsafe extern "C" {
    static liar_access_first: u8;
    static liar_access_last: u8;
    fn liar_access_ldrb(at: usize);
    fn liar_access_ldr(at: usize);
    fn liar_access_ldp(at: usize);
    fn liar_access_ldr_q(at: usize);
    fn liar_access_ldar(at: usize);
    fn liar_access_ldxr(at: usize);
    fn liar_access_strb(at: usize);
    fn liar_access_str(at: usize);
    fn liar_access_stp(at: usize);
    fn liar_access_str_q(at: usize);
    fn liar_access_stlr(at: usize);
    fn liar_access_zva(at: usize);
    fn liar_access_ldadd(at: usize);
    fn liar_access_prfm(at: usize);
}

/// One instruction that reaches memory.
#[derive(Clone, Copy)]
pub struct Access {
    /// Its mnemonic.
    pub name: &'static str,
    run: unsafe extern "C" fn(usize),
}

macro_rules! accesses {
    ($($constant:ident = $function:ident, $name:literal;)*) => {
        $(#[doc = concat!("`", $name, "`")]
        pub const $constant: Access = Access { name: $name, run: $function };)*
    };
}

accesses! {
    LDRB = liar_access_ldrb, "ldrb";
    LDR = liar_access_ldr, "ldr";
    LDP = liar_access_ldp, "ldp";
    LDR_Q = liar_access_ldr_q, "ldr q";
    LDAR = liar_access_ldar, "ldar";
    LDXR = liar_access_ldxr, "ldxr";
    STRB = liar_access_strb, "strb";
    STR = liar_access_str, "str";
    STP = liar_access_stp, "stp";
    STR_Q = liar_access_str_q, "str q";
    STLR = liar_access_stlr, "stlr";
    ZVA = liar_access_zva, "dc zva";
    LDADD = liar_access_ldadd, "ldadd";
    PRFM = liar_access_prfm, "prfm";
}

/// Loads and stores that every CPU has.
pub const PLAIN: &[Access] = &[LDRB, LDR, LDP, LDR_Q, LDAR, LDXR, STRB, STR, STP, STR_Q, STLR, ZVA];

/// A signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its number.
    pub signal: i32,
    /// `si_code`
    pub code: i32,
    /// `si_addr`
    pub address: usize,
}

impl Fault {
    /// The SIGBUS that ends a data access to `address`.
    pub const fn data(address: usize) -> Fault {
        Fault { signal: libc::SIGBUS, code: libc::BUS_ADRALN, address }
    }

    /// The SIGBUS that ends an instruction fetch from `address`.
    pub const fn fetch(address: usize) -> Fault {
        Fault { signal: libc::SIGBUS, code: libc::BUS_OBJERR, address }
    }
}

static COUNT: AtomicUsize = AtomicUsize::new(0);
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);

/// Makes an access. The signal that it ended in, if it did; not more than one.
pub fn access(access: Access, at: usize) -> Option<Fault> {
    // SAFETY: the functions make one access to a region, which holds no Rust
    // objects, and the handler repairs a fault of it.
    watched(|| unsafe { (access.run)(at) })
}

/// Calls the code at an address, which returns at once.
pub fn call(at: usize) -> Option<Fault> {
    // SAFETY: there is a function that does nothing, or there is a fault and
    // the handler returns in its place.
    watched(|| unsafe { std::mem::transmute::<usize, extern "C" fn()>(at)() })
}

fn watched(run: impl FnOnce()) -> Option<Fault> {
    install();
    COUNT.store(0, Relaxed);
    run();
    match COUNT.load(Relaxed) {
        0 => None,
        1 => Some(Fault {
            signal: SIGNAL.load(Relaxed),
            code: CODE.load(Relaxed),
            address: ADDRESS.load(Relaxed),
        }),
        count => panic!("{count} signals of one access"),
    }
}

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let action =
            SigAction::new(SigHandler::SigAction(skip), SaFlags::SA_SIGINFO, SigSet::empty());
        for signal in [Signal::SIGBUS, Signal::SIGSEGV, Signal::SIGILL] {
            // SAFETY: the handler is async-signal-safe: it touches its
            // arguments and atomics, and may call sigaction.
            let _ = unsafe { sigaction(signal, &action) };
        }
    });
}

extern "C" fn skip(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes valid pointers that only this handler uses.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<libc::ucontext_t>()) };
    let machine = &mut context.uc_mcontext;
    // SAFETY: these signals have an address.
    let address = unsafe { info.si_addr() } as usize;
    let ours = &raw const liar_access_first as u64..&raw const liar_access_last as u64;
    if ours.contains(&machine.pc) {
        machine.pc += 4;
    } else if machine.pc == address as u64 {
        // The fetch itself: back to who called.
        machine.pc = machine.regs[30];
    } else {
        // Somebody else's: let the repeated access have its normal end.
        // SAFETY: sigaction is async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    COUNT.fetch_add(1, Relaxed);
    SIGNAL.store(signal, Relaxed);
    CODE.store(info.si_code, Relaxed);
    ADDRESS.store(address, Relaxed);
}
