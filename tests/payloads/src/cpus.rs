// SPDX-License-Identifier: MIT OR Apache-2.0

//! The other CPUs: started once, then given work by the boot CPU.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use aarch64_cpu::asm as cpu;
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable as _};
use escrow_abi::psci;

use crate::board::Board;
use crate::{Failure, Outcome, fail, interrupts, mmu, smc};

/// CPUs that a payload uses at the most.
pub const MAX_CPUS: usize = 8;
/// How long work on all CPUs may take, in seconds.
const PATIENCE: u64 = 60;

type Work<'a> = dyn Fn(usize) + Sync + 'a;

struct Slot(UnsafeCell<Option<&'static Work<'static>>>);

// SAFETY: written by the boot CPU while all others wait for a new round, and
// read by them in one; ROUND orders the two.
unsafe impl Sync for Slot {}

static WORK: Slot = Slot(UnsafeCell::new(None));
static ROUND: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);
static ONLINE: AtomicUsize = AtomicUsize::new(1);

unsafe extern "C" {
    static secondary_entry: u8;
}

/// The number of the CPU that asks, 0 being the boot CPU.
pub fn current() -> usize {
    let n: usize;
    // SAFETY: the entry code set the register to the CPU's number.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) n, options(nomem, nostack)) };
    n
}

/// How many CPUs there are to work with.
pub fn count() -> usize {
    ONLINE.load(Ordering::Relaxed)
}

/// A point in time, `seconds` from now, to pass to [`is_past`].
pub fn deadline(seconds: u64) -> u64 {
    CNTPCT_EL0.get() + seconds * CNTFRQ_EL0.get()
}

/// Whether a point in time is past.
pub fn is_past(deadline: u64) -> bool {
    CNTPCT_EL0.get() > deadline
}

/// Where a CPU starts that PSCI switches on with its number as context.
pub fn entry() -> u64 {
    &raw const secondary_entry as u64
}

/// Switches all CPUs on.
///
/// # Errors
/// One does not come.
pub(crate) fn start(board: &Board) -> Outcome {
    for (n, &affinity) in board.cpus.iter().enumerate().take(MAX_CPUS).skip(1) {
        let result = smc::firmware(psci::CPU_ON_64, &[affinity, entry(), n as u64]);
        if result != psci::SUCCESS {
            fail!("CPU_ON of CPU {n} ({affinity:#x}) answers {result:#x}");
        }
        wait_until(|| ONLINE.load(Ordering::Acquire) == n + 1, "a CPU does not start")?;
    }
    Ok(())
}

/// Waits for a condition.
///
/// # Errors
/// It does not come.
pub fn wait_until(condition: impl Fn() -> bool, what: &'static str) -> Outcome {
    let deadline = deadline(PATIENCE);
    while !condition() {
        if is_past(deadline) {
            fail!("{what}");
        }
        core::hint::spin_loop();
    }
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn payload_secondary(n: usize) -> ! {
    mmu::enable();
    interrupts::set_up_cpu(n);
    // A CPU that was off for a while has missed rounds.
    let mut round = ROUND.load(Ordering::Acquire);
    ONLINE.fetch_add(1, Ordering::AcqRel);
    loop {
        while ROUND.load(Ordering::Acquire) == round {
            cpu::wfe();
        }
        round += 1;
        // SAFETY: the boot CPU has written it before this round, and waits.
        if let Some(work) = unsafe { *WORK.0.get() } {
            work(n);
        }
        DONE.fetch_add(1, Ordering::AcqRel);
    }
}

/// Runs `work` on all CPUs at once, with their numbers, and waits for all.
///
/// # Panics
/// One is not done in time: it may use what is the caller's, so there is no
/// way back.
pub fn on_all(work: impl Fn(usize) + Sync) {
    let work: &Work<'_> = &work;
    // SAFETY: nobody uses the reference after this function has returned: it
    // waits for all to be done, and takes it back.
    let work = unsafe { core::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
    DONE.store(0, Ordering::Relaxed);
    // SAFETY: all other CPUs wait for a new round.
    unsafe { *WORK.0.get() = Some(work) };
    ROUND.fetch_add(1, Ordering::AcqRel);
    // SAFETY: it wakes CPUs.
    unsafe { asm!("dsb ish", "sev") };
    work(0);
    let others = count() - 1;
    if wait_until(|| DONE.load(Ordering::Acquire) == others, "").is_err() {
        panic!("a CPU is not done after {PATIENCE} s");
    }
    // SAFETY: all are waiting again.
    unsafe { *WORK.0.get() = None };
}

/// Skips the test on a machine with fewer CPUs.
///
/// # Errors
/// There are fewer.
pub fn need(cpus: usize) -> Outcome {
    if count() < cpus { Err(Failure::Skipped("too few CPUs")) } else { Ok(()) }
}

/// Switches the calling CPU off. Returns what PSCI says if it refuses.
pub fn switch_off() -> u64 {
    ONLINE.fetch_sub(1, Ordering::AcqRel);
    smc::firmware(psci::CPU_OFF, &[])
}
