// SPDX-License-Identifier: MIT OR Apache-2.0

//! The other CPUs: started once, then given work by the boot CPU.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable as _};
use escrow_abi::psci;

use crate::board::Board;
use crate::{Failure, Outcome, fail, interrupts, mmu, smc};

/// CPUs that a payload uses at the most.
pub const MAX_CPUS: usize = 8;
/// How long work on all CPUs may take, in seconds.
const PATIENCE: u64 = 60;

/// Looks at what a CPU waits for, before it sleeps between them.
const SPINS: u32 = 2000;

type Work<'a> = dyn Fn(usize) + Sync + 'a;

struct Slot(UnsafeCell<Option<&'static Work<'static>>>);

// SAFETY: written by the boot CPU while all others wait for a new round, and
// read by them in one; ROUND orders the two.
unsafe impl Sync for Slot {}

static WORK: Slot = Slot(UnsafeCell::new(None));
static ROUND: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);
/// The CPU that is to switch itself off at the next round.
static LEAVING: AtomicUsize = AtomicUsize::new(NOBODY);
const NOBODY: usize = usize::MAX;
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
        switch_on(affinity, n)?;
    }
    Ok(())
}

/// Gives way to the CPUs that one waits for: where an emulator runs all CPUs in
/// one thread, to the next of them at once.
pub fn relax() {
    // SAFETY: a hint.
    unsafe { asm!("yield", options(nomem, nostack)) };
}

/// Where the CPUs wait for each other.
#[derive(Default)]
pub struct Barrier(AtomicUsize);

impl Barrier {
    /// One at which nobody waits yet.
    pub const fn new() -> Barrier {
        Barrier(AtomicUsize::new(0))
    }

    /// Waits until all CPUs are here. It may be used again and again.
    ///
    /// # Errors
    /// One does not come.
    pub fn wait(&self) -> Outcome {
        let all = count();
        let end = (self.0.fetch_add(1, Ordering::AcqRel) / all + 1) * all;
        wait_until(|| self.0.load(Ordering::Acquire) >= end, "a CPU does not come to the barrier")
    }
}

/// Waits for a condition.
///
/// # Errors
/// It does not come.
pub fn wait_until(condition: impl Fn() -> bool, what: &'static str) -> Outcome {
    let deadline = deadline(PATIENCE);
    for turn in 0.. {
        if condition() {
            break;
        }
        if is_past(deadline) {
            fail!("{what}");
        }
        if turn < SPINS {
            relax();
        } else {
            interrupts::doze(50);
        }
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
        // Asleep, or an emulator's idle CPUs would take the time of the busy ones.
        while ROUND.load(Ordering::Acquire) == round {
            interrupts::doze(200);
        }
        round += 1;
        if LEAVING.compare_exchange(n, NOBODY, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            let answer = smc::firmware(psci::CPU_OFF, &[]);
            panic!("CPU_OFF of CPU {n} answers {answer:#x}");
        }
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

/// One CPU's outcome.
struct Part(UnsafeCell<Outcome>);

// SAFETY: each is written by its own CPU, and read when all are done.
unsafe impl Sync for Part {}

/// [`on_all`] for work that may fail.
///
/// # Errors
/// That of the first CPU that has one.
pub fn try_on_all(work: impl Fn(usize) -> Outcome + Sync) -> Outcome {
    let parts: [Part; MAX_CPUS] = core::array::from_fn(|_| Part(UnsafeCell::new(Ok(()))));
    on_all(|n| {
        let outcome = work(n);
        // SAFETY: this is CPU n.
        unsafe { *parts[n].0.get() = outcome };
    });
    parts.into_iter().try_for_each(|part| part.0.into_inner())
}

/// Switches the last CPU off, and waits until all others know.
///
/// # Panics
/// The CPU does, if PSCI refuses.
pub fn switch_off_last() {
    let last = ONLINE.fetch_sub(1, Ordering::AcqRel) - 1;
    LEAVING.store(last, Ordering::Relaxed);
    // A round without work.
    on_all(|_| ());
}

/// Switches CPU number `n`, the next that there is not, on again.
///
/// # Errors
/// It does not come.
pub fn switch_on(affinity: u64, n: usize) -> Outcome {
    let result = smc::firmware(psci::CPU_ON_64, &[affinity, entry(), n as u64]);
    if result != psci::SUCCESS {
        fail!("CPU_ON of CPU {n} ({affinity:#x}) answers {result:#x}");
    }
    wait_until(|| ONLINE.load(Ordering::Acquire) == n + 1, "a CPU does not start")
}
