// SPDX-License-Identifier: MIT OR Apache-2.0

// Accesses that may fault. x0: address; x1: what is stored. They return what
// was loaded in x0 and 0 in x1. When one of their instructions takes an
// exception, the handler returns to their caller, with ESR_EL1 in x1 and
// FAR_EL1 in x2. None of them has a stack frame.

.macro  probe name, instruction:vararg
        .global probe_\name
probe_\name:
        \instruction
        mov     x1, xzr
        ret
.endm

        .arch   armv8.1-a+fp+simd
        .text
        .global probe_begin
probe_begin:
        probe   load8, ldrb w0, [x0]
        probe   load16, ldrh w0, [x0]
        probe   load32, ldr w0, [x0]
        probe   load64, ldr x0, [x0]
        probe   store8, strb w1, [x0]
        probe   store16, strh w1, [x0]
        probe   store32, str w1, [x0]
        probe   store64, str x1, [x0]
        probe   load_pair, ldp x0, x3, [x0]
        probe   store_pair, stp x1, x1, [x0]
        probe   load_acquire, ldar x0, [x0]
        probe   store_release, stlr x1, [x0]
        probe   load_exclusive, ldxr x0, [x0]
        probe   load_vector, ldr q0, [x0]
        probe   store_vector, str q0, [x0]
        probe   add, ldadd x1, x0, [x0]
        probe   zero, dc zva, x0
        probe   clean, dc cvac, x0
        probe   clean_invalidate, dc civac, x0
        probe   prefetch, prfm pldl1keep, [x0]
        .global probe_end
probe_end:

        // Runs what is at the address, which returns at once if it can. The
        // handler goes to probe_fetch_failed when the fetch faults.
        .global probe_fetch
probe_fetch:
        stp     x29, x30, [sp, #-16]!
        mov     x29, sp
        blr     x0
        .global probe_fetch_returned
probe_fetch_returned:
        mov     x1, xzr
        .global probe_fetch_failed
probe_fetch_failed:
        ldp     x29, x30, [sp], #16
        ret
