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
        .global guests_end
guests_end:
