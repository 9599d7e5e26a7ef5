// SPDX-License-Identifier: MIT OR Apache-2.0

// The guest: does what its VMM says, which it asks by loads from x28, an
// address without memory. A command is five words:
//
//   what to do: 0 calls, 1 loads, 2 calls one by one, 3 loads one by one,
//               4 nothing, one by one, 5 NOPs in the place of calls
//   function    of the calls
//   first       first argument of the calls; address of the loads
//   stride      what is added to it each time
//   count       how many
//
// One by one, it tells the ticks of the virtual counter that each took by a
// store at x28 + 8. It stores the sum of all answers, or of all that it loaded,
// at x28 when it is done. MMU off, position-independent.

        .text
        .balign 4096
        .global peer_guest_begin
peer_guest_begin:
next:
        ldr     x9, [x28]
        ldr     x20, [x28]
        ldr     x21, [x28]
        ldr     x22, [x28]
        ldr     x23, [x28]
        mov     x24, xzr
        cbz     x9, calls
        cmp     x9, #2
        b.lo    loads
        b.eq    timed_calls
        cmp     x9, #4
        b.lo    timed_loads
        b.eq    timed_nothing
        b       nops
done:
        str     x24, [x28]
        b       next

.macro  call
        mov     x0, x20
        mov     x1, x21
        mov     x2, xzr
        mov     x3, xzr
.endm

.macro  again label
        add     x24, x24, x0
        add     x21, x21, x22
        sub     x23, x23, #1
        b       \label
.endm

calls:
        cbz     x23, done
        call
        hvc     #0
        again   calls

nops:
        cbz     x23, done
        call
        nop
        again   nops

loads:
        cbz     x23, done
        ldr     x0, [x21]
        again   loads

.macro  timed label, instruction:vararg
\label:
        cbz     x23, done
        call
        isb
        mrs     x25, cntvct_el0
        \instruction
        isb
        mrs     x26, cntvct_el0
        sub     x26, x26, x25
        str     x26, [x28, #8]
        again   \label
.endm

        timed   timed_calls, hvc #0
        timed   timed_loads, ldr x0, [x21]
        timed   timed_nothing
        .global peer_guest_end
peer_guest_end:
