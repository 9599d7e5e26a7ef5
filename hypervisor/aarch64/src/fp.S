// SPDX-License-Identifier: MIT OR Apache-2.0

// Floating-point, SIMD and SVE registers to and from memory. Rust at EL2 is
// compiled for soft float, so these are the only instructions of Escrow that
// touch them. CPTR_EL2 must not trap what is used.

    .section .text.escrow_fp, "ax"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve

// extern "C" fn escrow_fp_save(registers: *mut FpRegisters)
    .global escrow_fp_save
escrow_fp_save:
    stp     q0, q1, [x0, #0]
    stp     q2, q3, [x0, #32]
    stp     q4, q5, [x0, #64]
    stp     q6, q7, [x0, #96]
    stp     q8, q9, [x0, #128]
    stp     q10, q11, [x0, #160]
    stp     q12, q13, [x0, #192]
    stp     q14, q15, [x0, #224]
    stp     q16, q17, [x0, #256]
    stp     q18, q19, [x0, #288]
    stp     q20, q21, [x0, #320]
    stp     q22, q23, [x0, #352]
    stp     q24, q25, [x0, #384]
    stp     q26, q27, [x0, #416]
    stp     q28, q29, [x0, #448]
    stp     q30, q31, [x0, #480]
    mrs     x1, fpsr
    mrs     x2, fpcr
    add     x0, x0, #512
    stp     x1, x2, [x0]
    ret

// extern "C" fn escrow_fp_load(registers: *const FpRegisters)
    .global escrow_fp_load
escrow_fp_load:
    ldp     q0, q1, [x0, #0]
    ldp     q2, q3, [x0, #32]
    ldp     q4, q5, [x0, #64]
    ldp     q6, q7, [x0, #96]
    ldp     q8, q9, [x0, #128]
    ldp     q10, q11, [x0, #160]
    ldp     q12, q13, [x0, #192]
    ldp     q14, q15, [x0, #224]
    ldp     q16, q17, [x0, #256]
    ldp     q18, q19, [x0, #288]
    ldp     q20, q21, [x0, #320]
    ldp     q22, q23, [x0, #352]
    ldp     q24, q25, [x0, #384]
    ldp     q26, q27, [x0, #416]
    ldp     q28, q29, [x0, #448]
    ldp     q30, q31, [x0, #480]
    add     x0, x0, #512
    ldp     x1, x2, [x0]
    msr     fpsr, x1
    msr     fpcr, x2
    ret

// extern "C" fn escrow_sve_save(registers: *mut HostVectors, ffr: bool)
//
// At the vector length in force. Without FEAT_SME_FA64, streaming mode has no
// FFR; the caller says.
    .global escrow_sve_save
escrow_sve_save:
    .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    str     z\n, [x0, #\n, mul vl]
    .endr
    add     x2, x0, #8192
    .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    str     p\n, [x2, #\n, mul vl]
    .endr
    tbz     w1, #0, 1f
    rdffr   p0.b
    str     p0, [x2, #16, mul vl]
    ldr     p0, [x2]
1:  mrs     x1, fpsr
    mrs     x3, fpcr
    add     x2, x2, #544
    stp     x1, x3, [x2]
    ret

// extern "C" fn escrow_sve_load(registers: *const HostVectors, ffr: bool)
    .global escrow_sve_load
escrow_sve_load:
    .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    ldr     z\n, [x0, #\n, mul vl]
    .endr
    add     x2, x0, #8192
    tbz     w1, #0, 1f
    ldr     p0, [x2, #16, mul vl]
    wrffr   p0.b
1:
    .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    ldr     p\n, [x2, #\n, mul vl]
    .endr
    add     x2, x2, #544
    ldp     x1, x3, [x2]
    msr     fpsr, x1
    msr     fpcr, x3
    ret
