// SPDX-License-Identifier: MIT OR Apache-2.0

// Calls with every register that the SMC Calling Convention passes or
// preserves under control. x0: 18 words, loaded into X0 to X17 before the
// call and stored from there after it; in the _vectors form x1: 32 quadwords,
// the same for V0 to V31.

.macro  call name, instruction, vectors
        .global \name
\name:
        stp     x29, x30, [sp, #-32]!
        mov     x29, sp
        stp     x19, x20, [sp, #16]
        mov     x19, x0
        mov     x20, x1
        .if     \vectors
        move_vectors ldp, x20
        .endif
        ldp     x2, x3, [x19, #16]
        ldp     x4, x5, [x19, #32]
        ldp     x6, x7, [x19, #48]
        ldp     x8, x9, [x19, #64]
        ldp     x10, x11, [x19, #80]
        ldp     x12, x13, [x19, #96]
        ldp     x14, x15, [x19, #112]
        ldp     x16, x17, [x19, #128]
        ldp     x0, x1, [x19]
        \instruction
        stp     x0, x1, [x19]
        stp     x2, x3, [x19, #16]
        stp     x4, x5, [x19, #32]
        stp     x6, x7, [x19, #48]
        stp     x8, x9, [x19, #64]
        stp     x10, x11, [x19, #80]
        stp     x12, x13, [x19, #96]
        stp     x14, x15, [x19, #112]
        stp     x16, x17, [x19, #128]
        .if     \vectors
        move_vectors stp, x20
        .endif
        ldp     x19, x20, [sp, #16]
        ldp     x29, x30, [sp], #32
        ret
.endm

.macro  move_vectors instruction, base
        \instruction q0, q1, [\base]
        \instruction q2, q3, [\base, #32]
        \instruction q4, q5, [\base, #64]
        \instruction q6, q7, [\base, #96]
        \instruction q8, q9, [\base, #128]
        \instruction q10, q11, [\base, #160]
        \instruction q12, q13, [\base, #192]
        \instruction q14, q15, [\base, #224]
        \instruction q16, q17, [\base, #256]
        \instruction q18, q19, [\base, #288]
        \instruction q20, q21, [\base, #320]
        \instruction q22, q23, [\base, #352]
        \instruction q24, q25, [\base, #384]
        \instruction q26, q27, [\base, #416]
        \instruction q28, q29, [\base, #448]
        \instruction q30, q31, [\base, #480]
.endm

        .arch   armv8-a+fp+simd
        .text
        call    payload_hvc, "hvc #0", 0
        call    payload_smc, "smc #0", 0
        call    payload_hvc_vectors, "hvc #0", 1
