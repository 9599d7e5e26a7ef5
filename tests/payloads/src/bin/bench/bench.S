// SPDX-License-Identifier: MIT OR Apache-2.0

// What is counted: as little as can be around a call, and guests that do
// nothing but what makes them exit.

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

        // Makes calls and tells, by stores, the ticks of each and its answer.
        // x20: function; x21, x22: its arguments; x23: what is added to the first
        // each time.
.macro  calling_guest name, instruction:vararg
        .balign 64
        .global guest_\name
guest_\name:
        mov     x28, x1
1:      mov     x0, x20
        mov     x1, x21
        mov     x2, x22
        .irp    register, x3, x4, x5, x6, x7
        mov     \register, xzr
        .endr
        isb
        mrs     x24, cntvct_el0
        \instruction
        isb
        mrs     x25, cntvct_el0
        sub     x25, x25, x24
        str     x25, [x28]
        str     x0, [x28, #8]
        add     x21, x21, x23
        b       1b
.endm
        calling_guest calls, hvc #0
        calling_guest calls_nothing
        .global guests_end
guests_end:
