// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guests' data in EL2's own memory: saved registers, copies of lists. It is kept
//! separate from other data, so that it can be wiped.
//!
//! Each CPU has a second stack, which it uses from the vector of a `VCPU_RUN` to the return
//! to the host, and a scratch area for the calls of guests. EL2 has a guest's registers or
//! memory contents nowhere else. Before the machine is reset or switched off, one CPU wipes both of all CPUs,
//! while the others run the host. They are not stopped, as the firmware may
//! refuse the call, and then the machine goes on.
//!
//! So that no CPU is on its second stack while it is wiped, the two agree by two words
//! ([`Apart`]):
//!
//! | a CPU that runs a guest (vectors.S) | the CPU that wipes ([`NoRuns`]) |
//! | --- | --- |
//! | `in_use` = 1 | `sp` = its first stack |
//! | goes to the stack at `sp` | if `in_use` is 0, wipes its second stack |
//! | ... | |
//! | `in_use` = 0 | |
//!
//! The first two accesses of either side are a store-release and a load-acquire, which are seen
//! in this order by all (DDI 0487, "Load-Acquire, Store-Release": a Load-Acquire is ordered
//! after an earlier Store-Release; in Rust, that is `SeqCst`: a load that is `Acquire` may become
//! an `LDAPR`, which is not). So either the one that wipes sees that the stack is in use, or
//! the CPU finds that it is to stay on its first stack. What it does there has nothing of a guest:
//! all VMs have ended before, so no run begins ([`Slot::enter`](escrow_core::vm::Slot::enter)).

use core::arch::asm;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;

use crate::host::HostFrame;
use crate::percpu::{FAULT_STACK_TOP, PerCpu, STACK_SIZE};

/// The words by which a CPU and the CPU that wipes its second stack synchronise.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Apart {
    /// Not 0: the CPU is about to go to the stack at `sp`, or on it. Its own to write.
    in_use: AtomicU64,
    /// Where the stack of the next `VCPU_RUN` begins. Written by the CPU that wipes.
    sp: AtomicU64,
    /// The top of the second stack.
    stack_top: u64,
    /// The second stack was wiped since [`NoRuns`] began. Only the CPU that wipes uses it.
    is_wiped: AtomicBool,
    /// The CPU that was set aside before.
    next: *mut PerCpu,
}

/// All CPUs' data: the last one that was set aside.
static LAST: AtomicPtr<PerCpu> = AtomicPtr::new(ptr::null_mut());

impl Apart {
    pub(crate) fn new(stack_top: u64) -> Apart {
        let (in_use, sp) = (AtomicU64::new(0), AtomicU64::new(stack_top));
        let is_wiped = AtomicBool::new(false);
        Apart { in_use, sp, stack_top, is_wiped, next: ptr::null_mut() }
    }

    pub(crate) fn stack_top(&self) -> u64 {
        self.stack_top
    }
}

/// Adds a CPU's data to those that are wiped.
///
/// # Safety
///
/// `cpu` is valid for ever, and `apart` and `guest_scratch` in it are initialised. No other
/// CPU runs.
pub(crate) unsafe fn add(cpu: *mut PerCpu) {
    // SAFETY: as granted.
    unsafe { (*cpu).apart.next = LAST.load(Ordering::Relaxed) };
    LAST.store(cpu, Ordering::Release);
}

/// All CPUs' data.
fn all() -> impl Iterator<Item = *mut PerCpu> {
    let mut next = LAST.load(Ordering::Acquire);
    core::iter::from_fn(move || {
        let cpu = next;
        // SAFETY: null, or what was added, of which this does not change any more.
        next = unsafe { cpu.as_ref()?.apart.next };
        Some(cpu)
    })
}

/// While this exists, no CPU switches to its second stack. All VMs have ended, and none is
/// created meanwhile.
#[must_use = "the stacks are in use again when this is dropped"]
#[derive(Debug)]
pub struct NoRuns(());

impl NoRuns {
    /// To be called by one CPU at a time.
    pub fn begin() -> NoRuns {
        for cpu in all() {
            // SAFETY: valid; the words are atomic, and the others do not change.
            let (apart, top) = unsafe { (&(*cpu).apart, (*cpu).stack_top()) };
            apart.is_wiped.store(false, Ordering::Relaxed);
            // The vector has pushed a frame by then.
            apart.sp.store(top - size_of::<HostFrame>() as u64, Ordering::SeqCst);
        }
        NoRuns(())
    }

    /// Wipes guests' data in EL2's memory. `false`: a CPU still uses its second stack; the others'
    /// are wiped. The call is to be repeated then. Each CPU has to be found off its
    /// second stack once, not all at the same time: the host could prevent that by a stream of
    /// `VCPU_RUN`s that fail.
    pub fn wipe(&self) -> bool {
        let mut all_wiped = true;
        for cpu in all() {
            // SAFETY: valid; the words are atomic, and the others do not change.
            let apart = unsafe { &(*cpu).apart };
            if apart.is_wiped.load(Ordering::Relaxed) {
                continue;
            }
            if apart.in_use.load(Ordering::SeqCst) == 0 {
                // SAFETY: the CPU is not on its second stack, and will not be.
                unsafe { wipe(cpu) };
                apart.is_wiped.store(true, Ordering::Relaxed);
            } else {
                all_wiped = false;
            }
        }
        all_wiped
    }
}

impl Drop for NoRuns {
    fn drop(&mut self) {
        for cpu in all() {
            // SAFETY: valid; the word is atomic.
            let apart = unsafe { &(*cpu).apart };
            apart.sp.store(apart.stack_top, Ordering::Release);
        }
    }
}

/// Wipes a CPU's second stack and the scratch area of guests.
///
/// # Safety
///
/// The CPU is not on that stack, and does not go there meanwhile.
pub(crate) unsafe fn wipe(cpu: *mut PerCpu) {
    // SAFETY: all of it is set aside for that CPU, and not in use, as the caller says. A scratch
    // area may hold any numbers: each call clears its own before it looks.
    unsafe {
        let stack = ((*cpu).apart.stack_top - STACK_SIZE) as *mut u8;
        zero(stack, STACK_SIZE as usize);
        let scratch = &raw mut (*cpu).guest_scratch;
        zero(scratch.cast(), size_of_val(&*scratch));
        scratch.write(escrow_core::hypervisor::Scratch::new());
    }
    barrier::dsb(barrier::SY);
}

/// Wipes the calling CPU's second stack, the scratch area of guests and the stack for faults,
/// one of which it is on, and stops the CPU for good.
///
/// # Safety
///
/// `cpu` is the calling CPU's data.
pub(crate) unsafe fn wipe_and_halt(cpu: NonNull<PerCpu>) -> ! {
    let cpu = cpu.as_ptr();
    // SAFETY: as granted; the two are side by side, which percpu.rs asserts.
    let (stack_end, scratch) = unsafe { ((*cpu).apart.stack_top, &raw const (*cpu).guest_scratch) };
    // SAFETY: all of it is this CPU's own. Nothing of it is used any more: the code has all that it
    // needs in registers, and does not return.
    unsafe {
        asm!(
            "2: str xzr, [{from}]",
            "dc civac, {from}",
            "add {from}, {from}, #8",
            "cmp {from}, {to}",
            "b.lo 2b",
            "3: str xzr, [{next}]",
            "dc civac, {next}",
            "add {next}, {next}, #8",
            "cmp {next}, {end}",
            "b.lo 3b",
            "dsb sy",
            "4: wfe",
            "b 4b",
            from = in(reg) stack_end - STACK_SIZE,
            to = in(reg) stack_end,
            next = in(reg) scratch.addr(),
            end = in(reg) cpu.addr() + FAULT_STACK_TOP,
            options(noreturn),
        )
    }
}

/// Zeroes memory of EL2's, as far as it is stored to (DRAM).
///
/// # Safety
///
/// It is mapped as data, and nobody uses it.
unsafe fn zero(start: *mut u8, size: usize) {
    // SAFETY: as granted.
    unsafe { start.write_bytes(0, size) };
    let start = start.addr();
    // No cache line is smaller than 16 bytes (DDI 0487, "CTR_EL0", DminLine).
    for at in (start & !15..start + size).step_by(16) {
        // SAFETY: cleaning and invalidating caches loses nothing.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
    }
}
