// SPDX-License-Identifier: MIT OR Apache-2.0

// All instructions with which EL2 touches memory that a VM names, in one piece:
// an abort between begin and end is no bug. The vector of EL2's own
// synchronous exceptions (vectors.S) goes on at escrow_access_failed then, and the
// function returns with x4 = 1.
//
// The functions use no stack and change only what window.rs says: their caller
// finds itself as after any call, wherever they ended. x16 and x17 are the vector's.

    .section .text.escrow_access, "ax"
    .balign 64
    .global escrow_access_begin
escrow_access_begin:

// Four words at x0, each read once, to x0-x3.
    .global escrow_access_read
escrow_access_read:
    mov     x4, xzr
    ldp     x2, x3, [x0, #16]
    ldp     x0, x1, [x0]
    ret

// Four words, x1 to x3 and x5, to x0.
    .global escrow_access_write
escrow_access_write:
    mov     x4, xzr
    stp     x1, x2, [x0]
    stp     x3, x5, [x0, #16]
    ret

// Entries of four words from x0 up to x2, each word read once, to memory of EL2's own at
// x1. x0: how far it came; if it failed, within the entry that failed.
    .global escrow_access_copy
escrow_access_copy:
    mov     x4, xzr
4:  ldp     x5, x6, [x0], #16
    ldp     x7, x8, [x0], #16
    stp     x5, x6, [x1], #16
    stp     x7, x8, [x1], #16
    cmp     x0, x2
    b.lo    4b
    ret

// Zeroes from x0 up to x1 by DC ZVA, x2 bytes at a time. x0: how far it came.
    .global escrow_access_zero_blocks
escrow_access_zero_blocks:
    mov     x4, xzr
1:  dc      zva, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    1b
    ret

// The same by stores, 64 bytes at a time.
    .global escrow_access_zero
escrow_access_zero:
    mov     x4, xzr
2:  stp     xzr, xzr, [x0]
    stp     xzr, xzr, [x0, #16]
    stp     xzr, xzr, [x0, #32]
    stp     xzr, xzr, [x0, #48]
    add     x0, x0, #64
    cmp     x0, x1
    b.lo    2b
    ret

// Zeroes and cleans from x0 up to x1, by DC ZVA that zeroes a cache line of x2 bytes. Each
// line is cleaned after it is zeroed: DC ZVA counts as a store to it, and maintenance by
// address comes in program order after stores to the same line (DDI 0487, "Ordering and
// completion of data and instruction cache instructions"). What is zeroed are whole pages,
// so a multiple of 16 of any line up to 256 bytes.
    .global escrow_access_zero_lines
escrow_access_zero_lines:
    mov     x4, xzr
5:  .rept   16
    dc      zva, x0
    dc      civac, x0
    add     x0, x0, x2
    .endr
    cmp     x0, x1
    b.lo    5b
    ret

// Zeroes x1 bytes at x0 by the instructions of FEAT_MOPS. If that fails, nothing is known
// of how far they came: what the registers hold meanwhile is the CPU's affair.
    .arch_extension mops
    .global escrow_access_set
escrow_access_set:
    mov     x4, xzr
    setp    [x0]!, x1!, xzr
    setm    [x0]!, x1!, xzr
    sete    [x0]!, x1!, xzr
    ret

// Cleans and invalidates from x0 up to x1, in lines of x2 bytes. What is cleaned are
// whole pages, so a multiple of 16 of any line up to 256 bytes.
    .global escrow_access_clean
escrow_access_clean:
    mov     x4, xzr
3:  .rept   16
    dc      civac, x0
    add     x0, x0, x2
    .endr
    cmp     x0, x1
    b.lo    3b
    ret

// Takes an SError that is pending, if it is for EL2.
    .global escrow_access_take_serror
escrow_access_take_serror:
    mov     x4, xzr
    msr     daifclr, #4
    isb
    msr     daifset, #4
    ret

// Walks EL1's stage 1 for a load at x0 from EL1, or from EL0: PAR_EL1 has the answer.
// The tables are the VM's: an external abort on the walk, or on an update of an Access
// flag in it, is taken as an exception (DDI 0487, "Address translation instructions").
    .global escrow_access_walk_el1
escrow_access_walk_el1:
    mov     x4, xzr
    at      s1e1r, x0
    isb
    ret

    .global escrow_access_walk_el0
escrow_access_walk_el0:
    mov     x4, xzr
    at      s1e0r, x0
    isb
    ret

    .global escrow_access_end
escrow_access_end:

    .global escrow_access_failed
escrow_access_failed:
    mov     x4, #1
    ret
