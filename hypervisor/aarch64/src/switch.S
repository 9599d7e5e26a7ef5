// SPDX-License-Identifier: MIT OR Apache-2.0

// EL1's system registers to and from memory, two at a time. Layout:
// escrow_core::vcpu::El1Registers. What is written takes effect at the ERET
// that follows, a context synchronization event (DDI 0487, Glossary).

    .section .text.escrow_switch, "ax"

.macro save_pair first, second, offset
    mrs     x1, \first
    mrs     x2, \second
    stp     x1, x2, [x0, #\offset]
.endm

.macro load_pair first, second, offset
    ldp     x1, x2, [x0, #\offset]
    msr     \first, x1
    msr     \second, x2
.endm

// What every CPU has.
.macro el1_registers pair
    \pair  sctlr_el1, cpacr_el1, 0
    \pair  ttbr0_el1, ttbr1_el1, 16
    \pair  tcr_el1, mair_el1, 32
    \pair  vbar_el1, contextidr_el1, 48
    \pair  elr_el1, spsr_el1, 64
    \pair  esr_el1, far_el1, 80
    \pair  par_el1, tpidrro_el0, 96
    \pair  tpidr_el0, tpidr_el1, 112
    \pair  sp_el0, sp_el1, 128
    \pair  cntkctl_el1, csselr_el1, 144
.endm

// The keys of pointer authentication.
.macro el1_keys pair
    \pair  s3_0_c2_c1_0, s3_0_c2_c1_1, 0
    \pair  s3_0_c2_c1_2, s3_0_c2_c1_3, 16
    \pair  s3_0_c2_c2_0, s3_0_c2_c2_1, 32
    \pair  s3_0_c2_c2_2, s3_0_c2_c2_3, 48
    \pair  s3_0_c2_c3_0, s3_0_c2_c3_1, 64
.endm

// extern "C" fn escrow_save_el1(registers: *mut El1Registers)
    .global escrow_save_el1
escrow_save_el1:
    el1_registers save_pair
    ret

// extern "C" fn escrow_load_el1(registers: *const El1Registers)
    .global escrow_load_el1
escrow_load_el1:
    el1_registers load_pair
    ret

// extern "C" fn escrow_save_keys(keys: *mut [u64; 10])
    .global escrow_save_keys
escrow_save_keys:
    el1_keys save_pair
    ret

// extern "C" fn escrow_load_keys(keys: *const [u64; 10])
    .global escrow_load_keys
escrow_load_keys:
    el1_keys load_pair
    ret
