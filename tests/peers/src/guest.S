// SPDX-License-Identifier: MIT OR Apache-2.0

// The guest: does what its VMM says, which it asks by loads from x28, an
// address without memory. A command is five words:
//
//   what to do: 0 calls, 1 loads, 2 calls one by one, 3 loads one by one,
//               4 nothing, one by one, 5 NOPs in the place of calls,
//               6 loads one by one, whose ticks are only added up,
//               7 MODIFY_PAGES calls of Gunyah's, flags from `function`, of
//               `stride` bytes each
//   function    of the calls
//   first       first argument of the calls; address of the loads
//   stride      what is added to it each time
//   count       how many
//
// One by one, it tells the ticks of the virtual counter that each took by a
// store at x28 + 8; of those that it adds up, the least at x28 + 8 and then the
// sum. It stores the sum of all answers, or of all that it loaded, at x28 when
// it is done. MMU off, position-independent.

        .text
        .balign 4096
        .global peer_guest_begin
peer_guest_begin:
.Lpeer_next:
        ldr     x9, [x28]
        ldr     x20, [x28]
        ldr     x21, [x28]
        ldr     x22, [x28]
        ldr     x23, [x28]
        mov     x24, xzr
        cbz     x9, .Lpeer_calls
        cmp     x9, #2
        b.lo    .Lpeer_loads
        b.eq    .Lpeer_timed_calls
        cmp     x9, #4
        b.lo    .Lpeer_timed_loads
        b.eq    .Lpeer_timed_nothing
        cmp     x9, #6
        b.lo    .Lpeer_nops
        b.hi    .Lpeer_unlocks
        mov     x19, #-1
        mov     x27, xzr
        b       .Lpeer_touches
.Lpeer_touched:
        str     x19, [x28, #8]
        str     x27, [x28, #8]
.Lpeer_done:
        str     x24, [x28]
        b       .Lpeer_next

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

.Lpeer_calls:
        cbz     x23, .Lpeer_done
        call
        hvc     #0
        again   .Lpeer_calls

.Lpeer_nops:
        cbz     x23, .Lpeer_done
        call
        nop
        again   .Lpeer_nops

.Lpeer_loads:
        cbz     x23, .Lpeer_done
        ldr     x0, [x21]
        again   .Lpeer_loads

.macro  timed label, instruction:vararg
\label:
        cbz     x23, .Lpeer_done
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

        timed   .Lpeer_timed_calls, hvc #0
        timed   .Lpeer_timed_loads, ldr x0, [x21]
        timed   .Lpeer_timed_nothing

.Lpeer_touches:
        cbz     x23, .Lpeer_touched
        isb
        mrs     x25, cntvct_el0
        .global peer_guest_touch
peer_guest_touch:
        ldr     x0, [x21]
        isb
        mrs     x26, cntvct_el0
        sub     x26, x26, x25
        add     x27, x27, x26
        cmp     x26, x19
        csel    x19, x26, x19, lo
        again   .Lpeer_touches

.Lpeer_unlocks:
        cbz     x23, .Lpeer_done
        movz    w0, #0xc600, lsl #16
        movk    w0, #0x8069
        mov     x1, xzr
        mov     x2, x21
        mov     x3, x22
        mov     x4, x20
        hvc     #0
        again   .Lpeer_unlocks
        .global peer_guest_end
peer_guest_end:
