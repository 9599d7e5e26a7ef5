// SPDX-License-Identifier: MIT OR Apache-2.0

// The system registers of EL1, and of EL2 over EL1, to and from memory, two at
// a time. What is written takes effect at the ERET that follows, a context
// synchronization event (DDI 0487, Glossary); EL2 itself uses none of it.
//
// Offsets in braces come from lib.rs; those of El1Registers are asserted in
// switch.rs.

    .section .text.escrow_switch, "ax"

.macro save_pair first, second, base, offset
    mrs     x4, \first
    mrs     x5, \second
    stp     x4, x5, [\base, #\offset]
.endm

.macro load_pair first, second, base, offset
    ldp     x4, x5, [\base, #\offset]
    msr     \first, x4
    msr     \second, x5
.endm

// What every CPU has, at an offset from a base.
.macro el1_registers pair, base, at
    \pair  sctlr_el1, cpacr_el1, \base, (\at + 0)
    \pair  ttbr0_el1, ttbr1_el1, \base, (\at + 16)
    \pair  tcr_el1, mair_el1, \base, (\at + 32)
    \pair  vbar_el1, contextidr_el1, \base, (\at + 48)
    \pair  elr_el1, spsr_el1, \base, (\at + 64)
    \pair  esr_el1, far_el1, \base, (\at + 80)
    \pair  par_el1, tpidrro_el0, \base, (\at + 96)
    \pair  tpidr_el0, tpidr_el1, \base, (\at + 112)
    \pair  sp_el0, sp_el1, \base, (\at + 128)
    \pair  cntkctl_el1, csselr_el1, \base, (\at + 144)
.endm

// The keys of pointer authentication.
.macro el1_keys pair, base
    \pair  s3_0_c2_c1_0, s3_0_c2_c1_1, \base, 0
    \pair  s3_0_c2_c1_2, s3_0_c2_c1_3, \base, 16
    \pair  s3_0_c2_c2_0, s3_0_c2_c2_1, \base, 32
    \pair  s3_0_c2_c2_2, s3_0_c2_c2_3, \base, 48
    \pair  s3_0_c2_c3_0, s3_0_c2_c3_1, \base, 64
.endm

// EL2's controls, from Controls.
.macro load_controls base
    load_pair hcr_el2, cptr_el2, \base, {controls_hcr}
    load_pair mdcr_el2, cnthctl_el2, \base, {controls_mdcr}
    ldr     x4, [\base, #{controls_ich_hcr}]
    msr     s3_4_c12_c11_0, x4              // ICH_HCR_EL2
    ldrh    w4, [x0, #{cpu_optional}]
    tbz     w4, #0, 1f                      // Optional::HFGXTR
    load_pair s3_4_c1_c1_4, s3_4_c1_c1_5, \base, {controls_hfgrtr}
1:
.endm

// extern "C" fn escrow_to_guest(cpu: *mut PerCpu, vcpu: *const Vcpu,
//     vttbr: u64, vtcr: u64) -> u64
//
// The host's registers out of the CPU, a guest's in. Returns 1 if the guest's timer has fired and
// IMASK was set in its CNTV_CTL_EL0, so that it does not end the run at once; else 0.
    .global escrow_to_guest
escrow_to_guest:
    el1_registers save_pair, x0, {cpu_host}
    save_pair elr_el2, spsr_el2, x0, ({cpu_host} + {host_pc})
    save_pair cntv_ctl_el0, cntv_cval_el0, x0, ({cpu_host} + {host_timer_ctl})
    el1_registers load_pair, x1, {vcpu_el1}
    msr     vttbr_el2, x2
    msr     vtcr_el2, x3
    ldr     x4, [x0, #{cpu_guest_vectors}]
    msr     vbar_el2, x4
    add     x9, x0, #{cpu_guest_controls}
    load_controls x9
    ldp     x4, x5, [x1, #{vcpu_vmpidr}]    // VMPIDR, timer: CTL
    ldp     x6, x7, [x1, #({vcpu_vmpidr} + 16)] // CVAL, offset
    msr     vmpidr_el2, x4
    and     x8, x5, #0x7                    // ENABLE and ISTATUS, not IMASK
    cmp     x8, #0x5
    cset    x0, eq
    orr     x5, x5, x0, lsl #1              // IMASK
    msr     cntvoff_el2, x7
    msr     cntv_cval_el0, x6
    msr     cntv_ctl_el0, x5
    ret

// extern "C" fn escrow_to_host(cpu: *const PerCpu, vcpu: *mut Vcpu)
//
// The way back. The guest's timer and general registers are stored already.
    .global escrow_to_host
escrow_to_host:
    el1_registers save_pair, x1, {vcpu_el1}
    el1_registers load_pair, x0, {cpu_host}
    load_pair elr_el2, spsr_el2, x0, ({cpu_host} + {host_pc})
    load_pair cntv_ctl_el0, cntv_cval_el0, x0, ({cpu_host} + {host_timer_ctl})
    msr     cntvoff_el2, xzr
    load_pair vttbr_el2, vtcr_el2, x0, {cpu_host_stage2}
    load_pair vmpidr_el2, vbar_el2, x0, {cpu_mpidr}
    add     x9, x0, #{cpu_host_controls}
    load_controls x9
    ret

// extern "C" fn escrow_save_el1(registers: *mut El1Registers)
    .global escrow_save_el1
escrow_save_el1:
    el1_registers save_pair, x0, 0
    ret

// extern "C" fn escrow_load_el1(registers: *const El1Registers)
    .global escrow_load_el1
escrow_load_el1:
    el1_registers load_pair, x0, 0
    ret

// extern "C" fn escrow_save_keys(keys: *mut [u64; 10])
    .global escrow_save_keys
escrow_save_keys:
    el1_keys save_pair, x0
    ret

// extern "C" fn escrow_load_keys(keys: *const [u64; 10])
    .global escrow_load_keys
escrow_load_keys:
    el1_keys load_pair, x0
    ret
