// SPDX-License-Identifier: MIT OR Apache-2.0

// A sample: the ticks of the virtual counter that pass over `instructions`.
// x0: 5 words, the call's number for X16 and its arguments for X0 to X3. The
// first becomes the answer.
.macro  xen_sample name, instructions:vararg
        .global xen_sample_\name
xen_sample_\name:
        stp     x29, x30, [sp, #-32]!
        mov     x29, sp
        stp     x19, x20, [sp, #16]
        mov     x19, x0
        ldr     x16, [x19]
        ldp     x0, x1, [x19, #8]
        ldp     x2, x3, [x19, #24]
        isb
        mrs     x20, cntvct_el0
        .irp    instruction, \instructions
        \instruction
        .endr
        isb
        mrs     x9, cntvct_el0
        str     x0, [x19]
        sub     x0, x9, x20
        ldp     x19, x20, [sp, #16]
        ldp     x29, x30, [sp], #32
        ret
.endm

        .text
        xen_sample nothing
        xen_sample call, "hvc #0xea1"
