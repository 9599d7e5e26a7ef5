// SPDX-License-Identifier: MIT OR Apache-2.0

// What is counted: as little as can be around a call, and guests that do
// nothing but what makes them exit.

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

        .arch   armv8-a+fp+simd
        .text
        sample  nothing
        sample  hvc, "hvc #0"
        // The host uses a vector register afterwards.
        sample  hvc_vectors, "hvc #0", "movi v0.16b, #1"

// A guest: runs `instructions` for ever, with x1 an address without memory.
.macro  guest name, instructions:vararg
        .balign 64
        .global guest_\name
guest_\name:
        .irp    instruction, \instructions
        \instruction
        .endr
        b       guest_\name
.endm

        .balign 4096
        .global guests_begin
guests_begin:
        guest   read, "ldr x0, [x1]"
        guest   write, "str x0, [x1]"
        guest   wait, "wfi"
        guest   write_slow, "str x0, [x1]", nop, nop, nop, nop, nop, nop, nop, nop
        // 8 instructions more than `write` has; see `guests_are_counted`.

        // Opens FP and SIMD, then uses a vector register in each round.
        .balign 64
        .global guest_vectors
guest_vectors:
        mov     x0, #(3 << 20)          // CPACR_EL1.FPEN
        msr     cpacr_el1, x0
        isb
1:      movi    v0.16b, #2
        str     x0, [x1]
        b       1b
        .global guests_end
guests_end:
