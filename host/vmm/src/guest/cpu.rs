// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the demo needs of this machine's CPU: running a vCPU while this process
//! holds values in its own `V0` to `V31`, and the counter's frequency.

use std::arch::asm;
use std::os::fd::RawFd;

/// The values of `V0` to `V31`.
pub type Vectors = [u128; 32];

/// A pattern that differs in each byte of each register.
pub fn pattern(seed: u64) -> Vectors {
    std::array::from_fn(|register| {
        let word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(register as u64);
        (u128::from(word.rotate_left(register as u32)) << 64) | u128::from(!word)
    })
}

/// `CNTFRQ_EL0`: ticks of the counter in a second.
pub fn counter_frequency() -> u64 {
    let frequency;
    // SAFETY: reads a register that Linux lets user space read.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack)) };
    frequency
}

/// Makes the ioctl `request` without an argument, with `before` in the vector
/// registers at the moment of the call. Returns what the kernel answers (a
/// negative errno, or 0 or more), and the registers after it.
pub fn ioctl_with_vectors(fd: RawFd, request: u32, before: &Vectors) -> (i64, Vectors) {
    let mut after: Vectors = [0; 32];
    let mut result = i64::from(fd);
    // SAFETY: a system call keeps all registers but x0. The two arrays are 512
    // bytes each, and every vector register is declared as overwritten. The
    // request has no pointer argument, so the kernel writes no memory that the
    // compiler relies on (a vCPU's page is only read by volatile accesses).
    unsafe {
        asm!(
            "ldp q0, q1, [x3, #0]",
            "ldp q2, q3, [x3, #32]",
            "ldp q4, q5, [x3, #64]",
            "ldp q6, q7, [x3, #96]",
            "ldp q8, q9, [x3, #128]",
            "ldp q10, q11, [x3, #160]",
            "ldp q12, q13, [x3, #192]",
            "ldp q14, q15, [x3, #224]",
            "ldp q16, q17, [x3, #256]",
            "ldp q18, q19, [x3, #288]",
            "ldp q20, q21, [x3, #320]",
            "ldp q22, q23, [x3, #352]",
            "ldp q24, q25, [x3, #384]",
            "ldp q26, q27, [x3, #416]",
            "ldp q28, q29, [x3, #448]",
            "ldp q30, q31, [x3, #480]",
            "svc #0",
            "stp q0, q1, [x4, #0]",
            "stp q2, q3, [x4, #32]",
            "stp q4, q5, [x4, #64]",
            "stp q6, q7, [x4, #96]",
            "stp q8, q9, [x4, #128]",
            "stp q10, q11, [x4, #160]",
            "stp q12, q13, [x4, #192]",
            "stp q14, q15, [x4, #224]",
            "stp q16, q17, [x4, #256]",
            "stp q18, q19, [x4, #288]",
            "stp q20, q21, [x4, #320]",
            "stp q22, q23, [x4, #352]",
            "stp q24, q25, [x4, #384]",
            "stp q26, q27, [x4, #416]",
            "stp q28, q29, [x4, #448]",
            "stp q30, q31, [x4, #480]",
            inout("x0") result,
            in("x1") u64::from(request),
            in("x2") 0,
            in("x3") before.as_ptr(),
            in("x4") after.as_mut_ptr(),
            in("x8") libc::SYS_ioctl,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _,
            out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _,
            out("v12") _, out("v13") _, out("v14") _, out("v15") _,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _,
            out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            out("v24") _, out("v25") _, out("v26") _, out("v27") _,
            out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            options(nostack),
        );
    }
    (result, after)
}
