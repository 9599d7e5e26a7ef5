// SPDX-License-Identifier: MIT OR Apache-2.0

// A sample: the ticks of the virtual counter that pass over `instructions`.
// x0: 8 words, loaded into X0 to X7 before and stored from there after. The
// barriers keep the reads of the counter where they stand.
.macro  sample name, instructions:vararg
        .global sample_\name
sample_\name:
        stp     x29, x30, [sp, #-32]!
        mov     x29, sp
        stp     x19, x20, [sp, #16]
        mov     x19, x0
        ldp     x2, x3, [x19, #16]
        ldp     x4, x5, [x19, #32]
        ldp     x6, x7, [x19, #48]
        ldp     x0, x1, [x19]
        isb
        mrs     x20, cntvct_el0
        .irp    instruction, \instructions
        \instruction
        .endr
        isb
        mrs     x9, cntvct_el0
        stp     x0, x1, [x19]
        stp     x2, x3, [x19, #16]
        stp     x4, x5, [x19, #32]
        stp     x6, x7, [x19, #48]
        sub     x0, x9, x20
        ldp     x19, x20, [sp, #16]
        ldp     x29, x30, [sp], #32
        ret
.endm
