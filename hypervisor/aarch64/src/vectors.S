// SPDX-License-Identifier: MIT OR Apache-2.0

// Exception vectors at EL2: one table while the host runs, one while a guest
// runs, so that no exception has to find out which of them it came from. EL2
// itself runs with D, A, I and F masked and takes no exception but by a bug,
// which ends in escrow_el2_fault.
//
// Of each there are four: a CPU whose branch predictors have to be kept from what a
// VM taught them uses one that does so before the first indirect branch; the others
// pay nothing for it (errata.rs chooses).

// A frame of what a function call may clobber (AAPCS64, "General-purpose Registers"): x0 to x18 and
// x30. The rest of the host's registers is kept by the Rust code that is
// called. Layout: host.rs, HostFrame.
.macro push_host_frame
    sub     sp, sp, #160
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x30, [sp, #144]
.endm

.macro pop_host_frame_and_return
    ldp     x18, x30, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp, #0]
    add     sp, sp, #160
    eret
.endm

// x2 to x29, in their places behind x0: stp or ldp.
.macro x2_to_x29 pair
    \pair   x2, x3, [x0, #16]
    \pair   x4, x5, [x0, #32]
    \pair   x6, x7, [x0, #48]
    \pair   x8, x9, [x0, #64]
    \pair   x10, x11, [x0, #80]
    \pair   x12, x13, [x0, #96]
    \pair   x14, x15, [x0, #112]
    \pair   x16, x17, [x0, #128]
    \pair   x18, x19, [x0, #144]
    \pair   x20, x21, [x0, #160]
    \pair   x22, x23, [x0, #176]
    \pair   x24, x25, [x0, #192]
    \pair   x26, x27, [x0, #208]
    \pair   x28, x29, [x0, #224]
.endm

// No instruction is to be executed speculatively past an ERET.
.macro speculation_barrier
    dsb     nsh
    isb
.endm

.macro vector
    .balign 0x80
.endm

// An exception that EL2 took from itself. kind: 0 synchronous, 1 IRQ, 2 FIQ,
// 3 SError. The EL2 stack may be what is broken, so the report has one of its
// own, and the registers that it needs to get there go to EL1's thread
// registers: that EL1 will not run again on this CPU.
.macro el2_fault kind
    vector
    msr     tpidr_el0, x0
    msr     tpidr_el1, x1
    mov     x1, #\kind
    b       el2_fault_common
.endm

// The same, unless it is what became of an access to a VM's memory (access.S), which
// leaves x16 and x17 to this: then it goes on there. A report has other values in these
// two registers than the code had.
.macro el2_access kind
    vector
    mrs     x16, elr_el2
    adr     x17, escrow_access_begin
    sub     x16, x16, x17
    cmp     x16, #(escrow_access_end - escrow_access_begin)
    mov     x16, #\kind
    b.lo    el2_access_failed
    msr     tpidr_el0, x0
    msr     tpidr_el1, x1
    mov     x1, x16
    b       el2_fault_common
.endm

.macro host_vector kind
    vector
    push_host_frame
    mov     x0, sp
    mov     x1, #\kind
    b       host_other
.endm

.macro guest_vector kind
    vector
    stp     x0, x1, [sp, #-16]!
    mov     x1, #\kind
    b       guest_exit
.endm

// From EL2 with SP_EL0, which is never used, and with SP_EL2.
.macro el2_vectors
    el2_fault 0
    el2_fault 1
    el2_fault 2
    el2_fault 3
    el2_access 0
    el2_fault 1
    el2_fault 2
    el2_access 3
.endm

// What is done against trained predictors. x0 may be changed, and by `firmware`
// x0 to x3 (DEN0028, "Register use in AArch64 SMC and HVC calls").

// CLRBHB (a hint), in force after the ISB.
.macro harden_clear
    hint    #22
    isb
.endm

// As many taken branches as the history is long. No load may be executed
// speculatively before they are done.
.macro harden_loop
    mrs     x0, tpidr_el2
    ldr     w0, [x0, #{hardening}]
8:  b       9f
9:  subs    w0, w0, #1
    b.ne    8b
    dsb     nsh
    isb
.endm

.macro harden_firmware
    mrs     x0, tpidr_el2
    ldr     w0, [x0, #{hardening}]
    smc     #0
.endm

.macro hardened_host_vector how, to
    vector
    push_host_frame
    harden_\how
    b       \to
.endm

.macro hardened_guest_vector how, kind
    vector
    stp     x0, x1, [sp, #-16]!
    .ifc    \how, firmware
    stp     x2, x3, [sp, #-16]!
    harden_firmware
    ldp     x2, x3, [sp], #16
    .else
    harden_\how
    .endif
    mov     x1, #\kind
    b       guest_exit
.endm

.macro hardened_vectors how
    .balign 0x800
    .global escrow_host_vectors_\how
escrow_host_vectors_\how:
    el2_vectors
    hardened_host_vector \how, host_hardened_sync
    hardened_host_vector \how, host_hardened_1
    hardened_host_vector \how, host_hardened_2
    hardened_host_vector \how, host_hardened_3
    hardened_host_vector \how, host_sync
    hardened_host_vector \how, host_hardened_1
    hardened_host_vector \how, host_hardened_2
    hardened_host_vector \how, host_hardened_3

    .balign 0x800
    .global escrow_guest_vectors_\how
escrow_guest_vectors_\how:
    el2_vectors
    .rept   2
    hardened_guest_vector \how, 0
    hardened_guest_vector \how, 1
    hardened_guest_vector \how, 1
    hardened_guest_vector \how, 3
    .endr
.endm

    .section .text.escrow_vectors, "ax"

    .balign 0x800
    .global escrow_host_vectors
escrow_host_vectors:
    el2_vectors
    // From the host, AArch64. An HVC #0 and nothing else has the syndrome
    // EC 0x16, IL 1, imm16 0. This is the hot path, and the shortest ones are those
    // of the calls that hosts make most.
    vector
    push_host_frame
host_pushed:
    mrs     x1, esr_el2
    mov     w2, #0x5a000000
    mov     w3, #({vcpu_run} & 0xffff)
    movk    w3, #({vcpu_run} >> 16), lsl #16
    cmp     x1, x2
    b.ne    host_sync
    cmp     w0, w3
    b.eq    host_run
    add     w3, w3, #({lends_one} - {vcpu_run})
    cmp     w0, w3
    mov     x0, sp
    b.eq    1f
    bl      escrow_host_hvc
    b       host_return
1:  bl      escrow_host_lend
    b       host_return
    host_vector 1
    host_vector 2
    host_vector 3
    // From the host, AArch32 (at EL0).
    vector
    push_host_frame
    b       host_sync
    host_vector 1
    host_vector 2
    host_vector 3

    // What EL2 does in the host's place may be about any register: host.rs,
    // SyncFrame.
host_sync:
    sub     sp, sp, #96
    stp     x19, x20, [sp, #0]
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    str     x29, [sp, #80]
    mov     x0, sp
    bl      escrow_host_sync
    ldp     x19, x20, [sp, #0]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldr     x29, [sp, #80]
    add     sp, sp, #96
    b       host_return

    // On a stack of its own (apart.rs says why, and what the order of the two is for).
    // x3: not 0.
host_run:
    mov     x0, sp
    mrs     x1, tpidr_el2
    add     x2, x1, #8
    stlr    x3, [x1]                    // Apart::in_use
    ldar    x2, [x2]                    // Apart::sp
    mov     sp, x2
    bl      escrow_host_run
    mrs     x1, tpidr_el2
    ldr     x0, [x1, #{stack_top}]
    sub     sp, x0, #{host_frame}
    stlr    xzr, [x1]                   // Apart::in_use
host_return:
    pop_host_frame_and_return
    speculation_barrier

// From hardened vectors, which changed x0.
host_hardened_sync:
    ldr     x0, [sp]
    b       host_pushed
    .irp    kind, 1, 2, 3
host_hardened_\kind:
    mov     x0, sp
    mov     x1, #\kind
    b       host_other
    .endr

host_other:
    bl      escrow_host_unexpected
    b       host_return

    .balign 0x800
    .global escrow_guest_vectors
escrow_guest_vectors:
    el2_vectors
    .rept   2
    guest_vector 0
    guest_vector 1
    guest_vector 1
    guest_vector 3
    .endr

    hardened_vectors clear
    hardened_vectors loop
    hardened_vectors firmware

// Loads the general registers of a guest (x0: *mut GeneralRegisters) and
// enters it; returns with them stored, once an exception has ended its run,
// with x1: 0 synchronous, 1 interrupt, 3 SError. Changes all registers but
// x19, x29 and SP; guest.rs tells the compiler.
    .global escrow_enter_guest
escrow_enter_guest:
    stp     x29, x30, [sp, #-32]!
    stp     x19, x0, [sp, #16]          // x0 for guest_exit
    ldp     x30, x1, [x0, #240]
    ldr     x2, [x0, #256]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    x2_to_x29 ldp
    ldp     x0, x1, [x0]
    eret
    speculation_barrier

// x0, x1: on the stack, above what escrow_enter_guest keeps there; x1: kind of exit.
guest_exit:
    ldr     x0, [sp, #(16 + 24)]
    x2_to_x29 stp
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x4, elr_el2
    mrs     x5, spsr_el2
    stp     x30, x4, [x0, #240]
    str     x5, [x0, #256]
    ldr     x19, [sp, #16]
    ldp     x29, x30, [sp], #32
    ret

// x16: kind. A synchronous exception is a data abort (class 0x25), or a bug after all.
el2_access_failed:
    mrs     x17, esr_el2
    lsr     x17, x17, #26
    cmp     x17, #0x25
    ccmp    x16, #0, #0, ne
    b.eq    1f
    adr     x17, escrow_access_failed
    msr     elr_el2, x17
    // escrow_access_take_serror is left with SErrors masked, whoever took them.
    mrs     x17, spsr_el2
    orr     x17, x17, #(1 << 8)         // PSTATE.A
    msr     spsr_el2, x17
    eret
    speculation_barrier
1:  msr     tpidr_el0, x0
    msr     tpidr_el1, x1
    mov     x1, x16
    b       el2_fault_common

// x1: kind; x0 and x1 are in TPIDR_EL0 and TPIDR_EL1. A CPU that is on the stack for faults
// already begins at its top again: what is there is of no use any more. escrow_el2_fault
// counts the faults, and does not return.
el2_fault_common:
    mrs     x0, tpidr_el2
    cbz     x0, 1f                      // before init_cpu: no other stack
    add     x0, x0, #({fault_stack_top} & 0xfff)
    add     x0, x0, #({fault_stack_top} & 0xfff000)
    b       2f
1:  mov     x0, sp
2:  // FaultFrame: x0 to x30, SP, kind.
    sub     x0, x0, #272
    x2_to_x29 stp
    mov     x2, sp
    stp     x30, x2, [x0, #240]
    str     x1, [x0, #256]
    mrs     x2, tpidr_el0
    mrs     x3, tpidr_el1
    stp     x2, x3, [x0]
    mov     sp, x0
    bl      escrow_el2_fault

// extern "C" fn escrow_enter_host(entry, x0, x1, x2, x3, spsr, sp) -> !
//
// Leaves EL2 for the host's first instruction, with nothing of EL2's in a
// register.
    .global escrow_enter_host
escrow_enter_host:
    mov     sp, x6
    msr     elr_el2, x0
    msr     spsr_el2, x5
    mov     x0, x1
    mov     x1, x2
    mov     x2, x3
    mov     x3, x4
    mov     x4, xzr
    .irp    n, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
    mov     x\n, xzr
    .endr
    eret
    speculation_barrier
