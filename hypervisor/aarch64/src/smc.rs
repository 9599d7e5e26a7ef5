// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls to the firmware at EL3.

use core::arch::asm;

/// Makes a call to the firmware by `SMC #0`: eight arguments in `x0`–`x7`,
/// four results from `x0`–`x3`.
///
/// # Safety
///
/// The call must not make the firmware change memory that Rust code uses, nor
/// end this CPU's execution in a state that others rely on.
pub unsafe fn smc(args: [u64; 8]) -> [u64; 4] {
    let [mut x0, mut x1, mut x2, mut x3, x4, x5, x6, x7] = args;
    // SAFETY: the caller answers for the call's effects. Firmware before SMCCC
    // 1.1 may change x4 to x17 (DEN0028, "Register use in AArch64 SMC and HVC calls"); all of them are given up.
    unsafe {
        asm!(
            "smc #0",
            inout("x0") x0,
            inout("x1") x1,
            inout("x2") x2,
            inout("x3") x3,
            inout("x4") x4 => _,
            inout("x5") x5 => _,
            inout("x6") x6 => _,
            inout("x7") x7 => _,
            out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
            out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            options(nostack),
        );
    }
    [x0, x1, x2, x3]
}
