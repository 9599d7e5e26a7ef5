// SPDX-License-Identifier: MIT OR Apache-2.0

//! Three interrupts for each CPU: its physical timer, its performance monitors, and SGI 0, which
//! EL2 sends.
//! The payload keeps interrupts masked, and so takes none but in [`taking`] and [`drain`]; they end
//! runs of guests.

use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTP_CTL_EL0, CNTP_TVAL_EL0, CNTVCT_EL0, Readable as _, Writeable as _,
};
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicV3};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};

use crate::board::Board;
use crate::exception::Frame;

/// The PPI of the physical timer of EL1.
const PHYSICAL_TIMER: u32 = 14;
/// The PPI of the performance monitors (BSA, "PPI assignments").
const MONITORS: u32 = 7;

static WORKS: AtomicBool = AtomicBool::new(false);

/// How many interrupts were taken, and X0 and X7 where the first was.
static TAKEN: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Whether [`longest_wait`] is under way; where the counter was when the last wait began,
/// and how long the longest was.
static WAITING: AtomicBool = AtomicBool::new(false);
static WAIT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Sets the interrupt controller up for all CPUs, from the boot CPU.
pub(crate) fn set_up(board: &Board) {
    let (Some(distributor), Some(redistributors)) = (board.distributor, board.redistributors)
    else {
        return;
    };
    let (Some(distributor), Some(redistributors)) =
        (NonNull::new(distributor as *mut Gicd), NonNull::new(redistributors as *mut GicrSgi))
    else {
        return;
    };
    // SAFETY: the device tree says so, the map has them as device memory, and
    // this is the one driver.
    let gic = unsafe {
        GicV3::new(UniqueMmioPointer::new(distributor), redistributors, board.cpus.len())
    };
    let Ok(mut gic) = gic else { return };
    gic.setup(0);
    for cpu in 0..board.cpus.len() {
        // CPU 0 is awake already, and others may be: not an error.
        let _ = gic.redistributor_mark_core_awake(cpu);
        let ours = [IntId::ppi(PHYSICAL_TIMER), IntId::ppi(MONITORS), IntId::sgi(0)];
        for interrupt in ours {
            let set_up = gic
                .set_interrupt_priority(interrupt, Some(cpu), 0x80)
                .and_then(|()| gic.enable_interrupt(interrupt, Some(cpu), true));
            if let Err(error) = set_up {
                panic!("the GIC's redistributor of CPU {cpu}: {error:?}");
            }
        }
    }
    WORKS.store(true, Ordering::Release);
    set_up_cpu(0);
}

/// Sets this CPU's interface to the interrupt controller up.
pub(crate) fn set_up_cpu(_cpu: usize) {
    if WORKS.load(Ordering::Acquire) {
        GicCpuInterface::enable_system_register_el1();
        GicCpuInterface::set_priority_mask(0xff);
        GicCpuInterface::enable_group1(true);
    }
}

/// Has this CPU's timer interrupt come in `microseconds`, and stay pending
/// until [`stop_timer`].
pub fn start_timer(microseconds: u64) {
    CNTP_TVAL_EL0.set(microseconds * CNTFRQ_EL0.get() / 1_000_000);
    CNTP_CTL_EL0.write(CNTP_CTL_EL0::ENABLE::SET + CNTP_CTL_EL0::IMASK::CLEAR);
    barrier::isb(barrier::SY);
}

/// Stops this CPU's timer.
pub fn stop_timer() {
    CNTP_CTL_EL0.write(CNTP_CTL_EL0::ENABLE::CLEAR);
    barrier::isb(barrier::SY);
}

/// Sleeps for some microseconds, if this CPU's timer is free and can wake it.
pub(crate) fn doze(microseconds: u64) {
    if !WORKS.load(Ordering::Acquire) || CNTP_CTL_EL0.is_set(CNTP_CTL_EL0::ENABLE) {
        crate::cpus::relax();
        return;
    }
    start_timer(microseconds);
    // A masked interrupt ends it as well as one that is taken.
    aarch64_cpu::asm::wfi();
    stop_timer();
}

/// Whether an interrupt is pending for this CPU.
pub fn is_pending() -> bool {
    let isr: u64;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mrs {}, isr_el1", out(reg) isr, options(nomem, nostack)) };
    isr & 1 << 7 != 0
}

/// Does something with this CPU's interrupts unmasked. What it returns, and X0 and X7 where
/// the first interrupt was taken, if any was. For one CPU at a time.
pub fn taking<R>(f: impl FnOnce() -> R) -> (R, Option<[u64; 2]>) {
    TAKEN[0].store(0, Ordering::Relaxed);
    // SAFETY: the vectors handle interrupts, and change no register of what they interrupt.
    unsafe { asm!("msr daifclr, #2") };
    let result = f();
    // SAFETY: masking them changes nothing else.
    unsafe { asm!("msr daifset, #2") };
    let [count, x0, x7] = TAKEN.each_ref().map(|word| word.load(Ordering::Relaxed));
    (result, (count != 0).then_some([x0, x7]))
}

/// Has the timer's interrupt come a microsecond from now, and notes the time.
fn begin_wait() {
    start_timer(1);
    WAIT[0].store(CNTVCT_EL0.get(), Ordering::Relaxed);
}

fn end_wait() {
    let ticks = CNTVCT_EL0.get() - WAIT[0].load(Ordering::Relaxed);
    WAIT[1].fetch_max(ticks, Ordering::Relaxed);
}

/// Does something that masks interrupts, with this CPU's interrupts unmasked and one that
/// comes soon after each time one was taken. What it returns, and the ticks of the longest
/// time between two, or before the first or after the last. For one CPU at a time.
pub fn longest_wait<R>(f: impl FnOnce() -> R) -> (R, u64) {
    WAIT[1].store(0, Ordering::Relaxed);
    WAITING.store(true, Ordering::Relaxed);
    begin_wait();
    let (result, _) = taking(f);
    WAITING.store(false, Ordering::Relaxed);
    end_wait();
    stop_timer();
    (result, WAIT[1].load(Ordering::Relaxed))
}

/// Takes what interrupts are pending, but for the timer's, which stays until [`stop_timer`].
/// Returns how many.
pub fn drain() -> u32 {
    let group = InterruptGroup::Group1;
    let mut count = 0;
    while let Some(interrupt) = GicCpuInterface::get_and_acknowledge_interrupt(group) {
        GicCpuInterface::end_interrupt(interrupt, group);
        if interrupt == IntId::ppi(PHYSICAL_TIMER) {
            break;
        }
        count += 1;
    }
    count
}

/// Takes an interrupt, if it is still there.
pub(crate) fn handle(frame: &Frame) {
    let waiting = WAITING.load(Ordering::Relaxed);
    if waiting {
        end_wait();
    }
    let group = InterruptGroup::Group1;
    let Some(interrupt) = GicCpuInterface::get_and_acknowledge_interrupt(group) else { return };
    stop_timer();
    if TAKEN[0].fetch_add(1, Ordering::Relaxed) == 0 {
        TAKEN[1].store(frame.x[0], Ordering::Relaxed);
        TAKEN[2].store(frame.x[7], Ordering::Relaxed);
    }
    GicCpuInterface::end_interrupt(interrupt, group);
    if waiting {
        begin_wait();
    }
}
