// SPDX-License-Identifier: MIT OR Apache-2.0

//! An exception that EL2 took from itself: a bug in Escrow. It is reported,
//! and this CPU stops for good.

use core::fmt;

use crate::percpu::{PerCpu, cpu_index};
use crate::sysreg::*;

/// What vectors.S found in the registers.
#[repr(C)]
pub(crate) struct FaultFrame {
    x: [u64; 31],
    sp: u64,
    kind: u64,
    padding: u64,
}

const _: () = assert!(size_of::<FaultFrame>() == 272);

/// Deepest backtrace.
const FRAMES_MAX: usize = 32;

/// # Safety
///
/// Called from the vector with the frame that it filled.
#[unsafe(no_mangle)]
unsafe extern "C" fn escrow_el2_fault(frame: &FaultFrame) -> ! {
    let what = match frame.kind {
        0 => "synchronous exception",
        1 => "IRQ",
        2 => "FIQ",
        _ => "SError",
    };
    log::error!("==== ESCROW FAULT: {what} at EL2, CPU {} ====", Number(cpu_index()));
    log::error!(
        "ESR {:#018x} (class {:#04x})  FAR {:#018x}  HPFAR {:#018x}",
        ESR_EL2::read(),
        ESR_EL2::read() >> 26 & 0x3f,
        FAR_EL2::read(),
        HPFAR_EL2::read(),
    );
    log::error!(
        "PC  {:#018x}  SP  {:#018x}  PSTATE {:#010x}",
        ELR_EL2::read(),
        frame.sp,
        SPSR_EL2::read()
    );
    for (n, pair) in frame.x.chunks(2).enumerate() {
        match pair {
            [a, b] => log::error!("x{:<2} {a:#018x}  x{:<2} {b:#018x}", 2 * n, 2 * n + 1),
            [a] => log::error!("x{:<2} {a:#018x}", 2 * n),
            _ => {}
        }
    }
    backtrace_from(frame.x[29], frame.sp);
    log::error!("==== this CPU stops here ====");
    halt()
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

/// Follows frame records (AAPCS64, 6.4.6) up the EL2 stack. Whatever the
/// chain holds, only the stack's own memory is read.
fn backtrace_from(mut fp: u64, sp: u64) {
    // SAFETY: TPIDR_EL2 is zero or points to this CPU's data.
    let Some(top) = (unsafe { PerCpu::current().as_ref() }).map(PerCpu::stack_top) else { return };
    let mut lowest = sp;
    for n in 0..FRAMES_MAX {
        if fp < lowest || fp & 0xf != 0 || fp.saturating_add(16) > top {
            break;
        }
        // SAFETY: between the stack pointer and the top of the stack, all is
        // mapped, and 16-byte aligned records lie wholly inside.
        let [next, lr] = unsafe { (fp as *const [u64; 2]).read_volatile() };
        log::error!("  #{n} {lr:#018x}");
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
