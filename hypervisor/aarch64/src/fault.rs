// SPDX-License-Identifier: MIT OR Apache-2.0

//! An exception from EL2 to EL2: a bug in Escrow. It is reported,
//! and the machine stops, as EL2's state may be inconsistent.
//!
//! The handler may fault as well. The CPU that wipes guests' memory then continues
//! after the step that failed ([`Wiper`]), up to [`FAULTS_MAX`] faults.

use core::arch::asm;
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use escrow_core::hypervisor::{Hypervisor, WipeProgress};

use crate::apart::NoRuns;
use crate::machine::{Hardware, Installed, installed};
use crate::percpu::{PerCpu, cpu_index};
use crate::sysreg::*;
use crate::window::close_all;

/// The registers that vectors.S saved.
#[repr(C)]
pub(crate) struct FaultFrame {
    x: [u64; 31],
    sp: u64,
    kind: u64,
    padding: u64,
}

const _: () = assert!(size_of::<FaultFrame>() == 272);

/// The target of what is logged when the machine ends: registers and the like,
/// which may be a guest's. It must not go where a VM can read it.
pub const LAST_WORDS: &str = "escrow::last-words";

/// Deepest backtrace.
const FRAMES_MAX: usize = 32;

/// How many faults a CPU may take before it stops at once.
const FAULTS_MAX: u32 = 8;

/// # Safety
///
/// Called from the vector with the frame that it filled.
#[unsafe(no_mangle)]
unsafe extern "C" fn escrow_el2_fault(frame: &FaultFrame) -> ! {
    // Read these first: another exception would overwrite them.
    let (esr, far, hpfar) = (ESR_EL2::read(), FAR_EL2::read(), HPFAR_EL2::read());
    let (pc, pstate) = (ELR_EL2::read(), SPSR_EL2::read());
    let what = match frame.kind {
        0 => "synchronous exception",
        1 => "IRQ",
        2 => "FIQ",
        _ => "SError",
    };
    match count_fault() {
        1 => stop_vms(),
        n if n > FAULTS_MAX => halt(),
        n => {
            // The handling of the first fault has failed. Do only what is necessary, and the
            // report last: if that fails again, the stacks have been wiped already.
            WIPER.wipe();
            if n < FAULTS_MAX {
                log::error!(
                    target: LAST_WORDS,
                    "failed again: {what}, ESR {esr:#018x}  FAR {far:#018x}  PC {pc:#018x}",
                );
            }
            wipe_own_and_halt();
        }
    }
    log::error!(target: LAST_WORDS, "==== ESCROW FAULT: {what} at EL2, CPU {} ====", Number(cpu_index()));
    log::error!(
        target: LAST_WORDS,
        "ESR {esr:#018x} (class {:#04x})  FAR {far:#018x}  HPFAR {hpfar:#018x}",
        esr >> 26 & 0x3f,
    );
    log::error!(
        target: LAST_WORDS,
        "PC  {pc:#018x}  SP  {:#018x}  PSTATE {pstate:#010x}",
        frame.sp,
    );
    for (n, pair) in frame.x.chunks(2).enumerate() {
        match pair {
            [a, b] => {
                log::error!(target: LAST_WORDS, "x{:<2} {a:#018x}  x{:<2} {b:#018x}", 2 * n, 2 * n + 1)
            }
            [a] => log::error!(target: LAST_WORDS, "x{:<2} {a:#018x}", 2 * n),
            _ => {}
        }
    }
    backtrace_from(frame.x[29], frame.sp);
    log::error!(target: LAST_WORDS, "==== Escrow has failed: this machine stops here ====");
    stop_machine()
}

/// Within one second divided by this, a guest that has no translation left has taken an
/// exception to EL2.
const LEAVE_PER_SECOND: u64 = 100;

/// Whether [`stop_vms`] was called.
static STOPPED: AtomicBool = AtomicBool::new(false);
static WIPER: Wiper = Wiper {
    cpu: AtomicU64::new(0),
    done: AtomicUsize::new(0),
    passes: [const { WipeProgress::new() }; 2],
};

/// The CPU that wipes guests' memory, and its progress. If a step faults, it continues with the
/// next one.
struct Wiper {
    /// The CPU's `TPIDR_EL2`; 0 if there is none yet.
    cpu: AtomicU64,
    /// The number of steps that are not made again: complete ones, and one that [`Self::step`] has begun.
    done: AtomicUsize,
    /// The two passes over memory.
    passes: [WipeProgress; 2],
}

impl Wiper {
    /// Makes the remaining steps, unless another CPU is the wiper.
    fn wipe(&self) {
        let Some(Installed { hypervisor, .. }) = installed() else { return };
        let own = TPIDR_EL2::read();
        match self.cpu.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {}
            // This CPU had begun the wipe when it failed.
            Err(cpu) if cpu == own => {}
            Err(_) => return,
        }
        let [first, second] = &self.passes;
        // The first pass zeroes the guests' tables, too. Once the TLBs are empty, guests that
        // run on other CPUs fault to EL2: their registers are saved to memory that the second
        // pass zeroes, and the way back to the host stops the CPU.
        self.step_again(0, || hypervisor.wipe(first));
        // SAFETY: removes cached translations only.
        unsafe { asm!("tlbi alle1is", options(nostack, preserves_flags)) };
        hypervisor.machine.finish();
        self.step(1, || {
            let begin = CNTPCT_EL0.get();
            while CNTPCT_EL0.get().wrapping_sub(begin) < CNTFRQ_EL0.get() / LEAVE_PER_SECOND {
                core::hint::spin_loop();
            }
        });
        // Stop the host again: a call on another CPU may have written an entry of the host's
        // root meanwhile (the merge of a GiB).
        self.step(2, || stop_host(hypervisor));
        self.step_again(3, || hypervisor.wipe(second));
        // EL2's own copies of guests' data. A CPU that is still on its second stack wipes that
        // itself, when it returns to the host or fails as well.
        self.step(4, || {
            let runs = NoRuns::begin();
            runs.wipe();
            core::mem::forget(runs);
        });
    }

    /// Makes a step. A step that faults is not repeated.
    fn step(&self, number: usize, step: impl FnOnce()) {
        if self.done.load(Ordering::Relaxed) <= number {
            self.done.store(number + 1, Ordering::Relaxed);
            step();
        }
    }

    /// Makes a step that keeps its own progress: if it faults, it is called again and continues after
    /// the place that failed.
    fn step_again(&self, number: usize, step: impl FnOnce()) {
        if self.done.load(Ordering::Relaxed) <= number {
            step();
            self.done.store(number + 1, Ordering::Relaxed);
        }
    }
}

/// How often the calling CPU has failed, this time included.
fn count_fault() -> u32 {
    // SAFETY: null before `init_cpu`, or this CPU's data; the counter is atomic.
    match unsafe { PerCpu::current().as_ref() } {
        Some(cpu) => cpu.faults.fetch_add(1, Ordering::Relaxed).saturating_add(1),
        // Before the per-CPU data exist, no guest can have run.
        None => 1,
    }
}

/// Stops the machine for good: [`stop_vms`], and the calling CPU.
pub fn stop_machine() -> ! {
    stop_vms();
    wipe_own_and_halt()
}

/// Wipes guests' data in the calling CPU's part of EL2's memory, and stops the CPU for good.
fn wipe_own_and_halt() -> ! {
    // The stacks hold what was reported, and that may be a guest's.
    match NonNull::new(PerCpu::current()) {
        // SAFETY: this CPU's own, which never leaves it again.
        Some(cpu) => unsafe { crate::apart::wipe_and_halt(cpu) },
        None => halt(),
    }
}

/// Stops all other CPUs for good, as far as they run VMs or come back to them, and
/// zeroes what guests have or had.
///
/// To be called before anything is logged: a UART that the host has stopped may never become
/// ready, and DRAM may keep its contents over the reset that follows. It takes no lock:
/// the CPU that failed may hold it.
pub fn stop_vms() {
    if let Some(Installed { hypervisor, .. }) = installed() {
        STOPPED.store(true, Ordering::Release);
        // A CPU that fails as the second one does this as well: it is about to report its
        // registers, and the first CPU may not have stopped the host yet.
        stop_host(hypervisor);
        close_all();
        WIPER.wipe();
    }
}

/// Empties the host's stage-2 root tables, so that whatever the host does next on any
/// CPU ends at EL2, where that CPU stops as well.
fn stop_host(hypervisor: &Hypervisor<Hardware>) {
    let (context, machine) = (hypervisor.host_context(), &hypervisor.machine);
    VTCR_EL2::write(context.vtcr);
    VTTBR_EL2::write(context.vttbr);
    barrier::isb(barrier::SY);
    hypervisor.host_map().empty(machine);
    barrier::dsb(barrier::ISHST);
    // SAFETY: removes cached translations only.
    unsafe { asm!("tlbi vmalls12e1is", options(nostack, preserves_flags)) };
    machine.finish();
}

/// Stops the calling CPU if [`stop_vms`] was called. For the exceptions
/// that the host then takes.
#[inline]
pub(crate) fn stop_if_stopped() {
    if STOPPED.load(Ordering::Acquire) {
        // SAFETY: the CPU's own data: the host runs on no other. It is not on its second stack,
        // for it comes from the host, and does not go on.
        unsafe { crate::apart::wipe(PerCpu::current()) };
        halt();
    }
}

/// Logs the calling chain from where this is called, for panics.
pub fn backtrace() {
    let (fp, sp): (u64, u64);
    // SAFETY: reads two registers.
    unsafe {
        core::arch::asm!("mov {}, x29", "mov {}, sp", out(reg) fp, out(reg) sp,
            options(nomem, nostack, preserves_flags));
    }
    backtrace_from(fp, sp);
}

/// Follows frame records (AAPCS64, "The Frame Pointer") up the EL2 stack. Whatever the
/// chain holds, only the stack's own memory is read.
fn backtrace_from(mut fp: u64, sp: u64) {
    // SAFETY: TPIDR_EL2 is zero or points to this CPU's data.
    let Some(cpu) = (unsafe { PerCpu::current().as_ref() }) else { return };
    let top = cpu.top_of_stack_at(sp);
    let mut lowest = sp;
    for n in 0..FRAMES_MAX {
        if fp < lowest || fp & 0xf != 0 || fp.saturating_add(16) > top {
            break;
        }
        // SAFETY: between the stack pointer and the top of the stack, all is
        // mapped, and 16-byte aligned records lie wholly inside.
        let [next, lr] = unsafe { (fp as *const [u64; 2]).read_volatile() };
        log::error!(target: LAST_WORDS, "  #{n} {lr:#018x}");
        lowest = fp + 16;
        fp = next;
    }
}

/// Stops the calling CPU for good.
pub fn halt() -> ! {
    loop {
        aarch64_cpu::asm::wfe();
    }
}

struct Number(Option<u32>);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(n) => write!(f, "{n}"),
            None => f.write_str("unknown"),
        }
    }
}
