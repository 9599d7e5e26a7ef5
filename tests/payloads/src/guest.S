// SPDX-License-Identifier: MIT OR Apache-2.0

// The agent: what tests run in a guest. It is copied into a page, and does what
// a mailbox page says: the number of a routine, arguments X0 to X7. Results,
// and the exception if the routine took one, go back there. It asks for the
// next command by a store to its doorbell, an address without memory.
//
// Entered with the MMU off; x0: mailbox, x1: doorbell, or 0 for DOORBELL: PSCI CPU_ON
// brings nothing but x0. x27 to x29 are the agent's own.

        .set    MAIL_ROUTINE, 0
        .set    MAIL_ARGUMENTS, 8
        .set    MAIL_RESULTS, 72
        .set    MAIL_ESR, 136
        .set    MAIL_FAR, 144
        .set    MAIL_ELR, 152
        .set    MAIL_SPSR, 160
        // How many interrupts it took; what it then calls (X0 to X3), and X0 and X1 of the
        // answer to that.
        .set    MAIL_INTERRUPTS, 168
        .set    MAIL_CALL, 176
        .set    MAIL_ANSWER, 208
        .set    MAIL_VECTORS, 256

        .arch   armv8-a+fp+simd
        .text
        .balign 4096
        .global agent_begin
agent_begin:
        mov     x28, x0
        mov     x27, x1
        cbnz    x27, 1f
        mov     x27, #{DOORBELL}
1:
        adr     x0, agent_vectors
        msr     vbar_el1, x0
        // CPACR_EL1.FPEN, and ZEN: what is hidden of SVE is to be EL2's doing.
        mov     x0, #(3 << 20 | 3 << 16)
        msr     cpacr_el1, x0
        isb
agent_next:
        str     x28, [x27]
        adr     x9, agent_begin
        ldr     x10, [x28, #MAIL_ROUTINE]
        add     x9, x9, x10
        str     xzr, [x28, #MAIL_ESR]
        ldp     x0, x1, [x28, #MAIL_ARGUMENTS]
        ldp     x2, x3, [x28, #MAIL_ARGUMENTS + 16]
        ldp     x4, x5, [x28, #MAIL_ARGUMENTS + 32]
        ldp     x6, x7, [x28, #MAIL_ARGUMENTS + 48]
        blr     x9
agent_results:
        stp     x0, x1, [x28, #MAIL_RESULTS]
        stp     x2, x3, [x28, #MAIL_RESULTS + 16]
        stp     x4, x5, [x28, #MAIL_RESULTS + 32]
        stp     x6, x7, [x28, #MAIL_RESULTS + 48]
        b       agent_next

agent_exception:
        mrs     x9, esr_el1
        mrs     x10, far_el1
        stp     x9, x10, [x28, #MAIL_ESR]
        mrs     x9, elr_el1
        mrs     x10, spsr_el1
        stp     x9, x10, [x28, #MAIL_ELR]
        b       agent_results

        // Unmasked by a routine, which goes on masked if there is nothing to call.
        // Changes none of its registers.
agent_interrupt:
        mov     x20, x0
        mov     x21, x1
        mov     x22, x2
        mov     x23, x3
        ldr     x24, [x28, #MAIL_INTERRUPTS]
        add     x24, x24, #1
        str     x24, [x28, #MAIL_INTERRUPTS]
        ldp     x0, x1, [x28, #MAIL_CALL]
        ldp     x2, x3, [x28, #MAIL_CALL + 16]
        cbz     x0, 1f
        hvc     #0
        stp     x0, x1, [x28, #MAIL_ANSWER]
        b       2f
1:      mrs     x24, spsr_el1
        orr     x24, x24, #(1 << 7)
        msr     spsr_el1, x24
2:      mov     x0, x20
        mov     x1, x21
        mov     x2, x22
        mov     x3, x23
        eret

.macro  routine name, instructions:vararg
        .global agent_\name
agent_\name:
        .irp    instruction, \instructions
        \instruction
        .endr
        ret
.endm

        // Loads from x1; x0 is what the register held before.
        routine ldrb_w, "ldrb w0, [x1]"
        routine ldrh_w, "ldrh w0, [x1]"
        routine ldr_w, "ldr w0, [x1]"
        routine ldr_x, "ldr x0, [x1]"
        routine ldrsb_w, "ldrsb w0, [x1]"
        routine ldrsb_x, "ldrsb x0, [x1]"
        routine ldrsh_w, "ldrsh w0, [x1]"
        routine ldrsh_x, "ldrsh x0, [x1]"
        routine ldrsw_x, "ldrsw x0, [x1]"
        routine ldr_xzr, "ldr xzr, [x1]", "mov x0, xzr"
        // Stores of x2 to x1.
        routine strb, "strb w2, [x1]"
        routine strh, "strh w2, [x1]"
        routine str_w, "str w2, [x1]"
        routine str_x, "str x2, [x1]"
        routine str_xzr, "str xzr, [x1]"
        // Accesses without a syndrome to emulate them by.
        routine ldp, "ldp x0, x2, [x1]"
        routine stp, "stp x2, x2, [x1]"
        routine ldr_post, "ldr x0, [x1], #8"
        routine ldr_q, "ldr q0, [x1]"

        routine hvc, "hvc #0"
        routine hvc1, "hvc #1"
        routine smc, "smc #0"
        routine wfi, "wfi"
        routine wfe, "wfe"
        routine jump, "br x0"
        routine svc, "svc #5"
        routine brk, "brk #1"
        routine current_el, "mrs x0, CurrentEL"
        routine id, "mrs x0, midr_el1", "mrs x1, mpidr_el1", "mrs x2, id_aa64pfr0_el1", "mrs x3, id_aa64pfr1_el1", "mrs x4, id_aa64dfr0_el1", "mrs x5, id_aa64mmfr0_el1", "mrs x6, id_aa64isar1_el1", "mrs x7, s3_0_c0_c4_4"
        routine mrs_isar0, "mrs x0, id_aa64isar0_el1"
        routine mrs_el2, "mrs x0, vttbr_el2"
        routine mrs_implementation_defined, "mrs x0, s3_0_c15_c2_0"
        routine mrs_unallocated, "mrs x0, s3_3_c13_c7_7"
        routine msr_unallocated, "msr s3_3_c13_c7_7, x0"
        routine mrs_pmcr, "mrs x0, s3_3_c9_c12_0"
        routine mrs_zcr, "mrs x0, s3_0_c1_c2_0"
        routine mrs_oslsr, "mrs x0, oslsr_el1"
        routine mrs_pmscr, "mrs x0, s3_0_c9_c9_0"
        routine msr_mdscr, "msr mdscr_el1, x0"
        routine msr_dbgbvr, "msr dbgbvr0_el1, x0"
        routine msr_dbgbcr, "msr dbgbcr0_el1, x0"
        routine msr_oslar, "msr oslar_el1, x0"
        routine counter, "isb", "mrs x0, cntvct_el0", "mrs x1, cntfrq_el0"
        routine set_timer, "msr cntv_cval_el0, x0", "msr cntv_ctl_el0, x1", "isb"
        routine get_timer, "mrs x0, cntv_cval_el0", "mrs x1, cntv_ctl_el0"

        // What is pending, at once and behind a call or a write to a key of pointer
        // authentication, and whether it comes where it may.
        routine pending, "mrs x2, isr_el1"
        routine hvc_pending, "hvc #0", "mrs x2, isr_el1"
        routine keys_pending, "msr s3_0_c2_c1_0, x1", "mrs x2, isr_el1"
        routine unmask, "msr daifclr, #2", "isb", "mrs x2, daif", "msr daifset, #2"

        // Counts in X0 and at X1 until an interrupt has come.
        .global agent_await
agent_await:
        msr     daifclr, #2
1:      add     x0, x0, #1
        str     x0, [x1]
        ldr     x2, [x28, #MAIL_INTERRUPTS]
        cbz     x2, 1b
        msr     daifset, #2
        ret

        // Keeps values in system registers and reads them back.
        routine set_registers, "msr tpidr_el0, x0", "msr tpidr_el1, x1", "msr contextidr_el1, x2", "msr mair_el1, x3", "msr ttbr1_el1, x4", "msr par_el1, x5", "msr sp_el0, x6", "msr tpidrro_el0, x7"
        // DISR_EL1, of FEAT_RAS.
        routine set_disr, "msr s3_0_c12_c1_1, x0"
        routine get_disr, "mrs x0, s3_0_c12_c1_1"
        routine get_registers, "mrs x0, tpidr_el0", "mrs x1, tpidr_el1", "mrs x2, contextidr_el1", "mrs x3, mair_el1", "mrs x4, ttbr1_el1", "mrs x5, par_el1", "mrs x6, sp_el0", "mrs x7, tpidrro_el0"
        routine set_translation, "msr tcr_el1, x0", "msr ttbr0_el1, x1", "msr sctlr_el1, x2", "isb", "msr cpacr_el1, x3", "msr csselr_el1, x4", "mov sp, x5", "msr cntkctl_el1, x6", "isb"
        routine get_translation, "mrs x0, tcr_el1", "mrs x1, ttbr0_el1", "mrs x2, sctlr_el1", "mrs x3, cpacr_el1", "mrs x4, csselr_el1", "mov x5, sp", "mrs x6, cntkctl_el1"
        routine set_exception, "msr vbar_el1, x0", "msr elr_el1, x1", "msr spsr_el1, x2", "msr esr_el1, x3", "msr far_el1, x4"
        routine get_exception, "mrs x0, vbar_el1", "mrs x1, elr_el1", "mrs x2, spsr_el1", "mrs x3, esr_el1", "mrs x4, far_el1"

        // Goes round a loop X0 times; the second with debug exceptions unmasked.
        routine work, "subs x0, x0, #1", "b.ne . - 4"
        routine unmasked_work, "msr daifclr, #8", "subs x0, x0, #1", "b.ne . - 4", "msr daifset, #8"

        .global agent_spin
agent_spin:
        add     x0, x0, #1
        b       agent_spin

        // Counts at x1 + 8, and looks at x1 before each step; then at x2, to tell
        // of it.
        .global agent_poll
agent_poll:
        ldr     x3, [x1]
        add     x0, x0, #1
        str     x0, [x1, #8]
        str     x0, [x2]
        b       agent_poll

        // For good: has values that nobody else has in all registers, and in 4 words of its
        // memory, while its runs end in one way after the other. x0: the complement of the
        // first value, the others follow it; x1: an address without memory; x2: a page of its
        // own; x3, x4: a call with a list and its handle.
        .global agent_hold_secrets
agent_hold_secrets:
        mvn     x26, x0
        mov     x27, x1
        mov     x28, x3
        mov     x29, x2
        mov     x30, x4
        .set    n, 32
        .irp    register, tpidr_el0, tpidr_el1, far_el1, elr_el1, sp_el0, mair_el1, tpidrro_el0
        add     x3, x26, #n
        msr     \register, x3
        .set    n, n + 1
        .endr
        .set    n, 60
        .irp    word, 0, 8, 16, 24
        add     x3, x26, #n
        str     x3, [x29, #\word]
        .set    n, n + 1
        .endr
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        add     x3, x26, #(64 + \n)
        dup     v\n\().2d, x3
        .endr
        .irp    n, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25
        add     x\n, x26, #\n
        .endr
1:      .irp    n, 0, 1, 2, 3, 4, 5, 6, 7
        add     x\n, x26, #\n
        .endr
        str     xzr, [x27]
        smc     #1
        mrs     x5, id_aa64pfr0_el1
        add     x5, x26, #5
        wfi
        mov     x0, x28
        mov     x1, x30
        mov     x2, x29
        mov     x3, #1
        mov     x4, xzr
        mov     x5, xzr
        mov     x6, xzr
        mov     x7, xzr
        hvc     #0
        b       1b

        // Switches the MMU on: x0 TTBR0_EL1, x1 TCR_EL1, x2 SCTLR_EL1.
        .global agent_mmu_on
agent_mmu_on:
        msr     ttbr0_el1, x0
        msr     tcr_el1, x1
        isb
        msr     sctlr_el1, x2
        isb
        mrs     x0, sctlr_el1
        ret

        // V0 to V31 from and to the mailbox.
.macro  move_agent_vectors instruction
        add     x9, x28, #MAIL_VECTORS
        \instruction q0, q1, [x9]
        \instruction q2, q3, [x9, #32]
        \instruction q4, q5, [x9, #64]
        \instruction q6, q7, [x9, #96]
        \instruction q8, q9, [x9, #128]
        \instruction q10, q11, [x9, #160]
        \instruction q12, q13, [x9, #192]
        \instruction q14, q15, [x9, #224]
        \instruction q16, q17, [x9, #256]
        \instruction q18, q19, [x9, #288]
        \instruction q20, q21, [x9, #320]
        \instruction q22, q23, [x9, #352]
        \instruction q24, q25, [x9, #384]
        \instruction q26, q27, [x9, #416]
        \instruction q28, q29, [x9, #448]
        \instruction q30, q31, [x9, #480]
        ret
.endm
        .global agent_load_vectors
agent_load_vectors:
        move_agent_vectors ldp
        .global agent_store_vectors
agent_store_vectors:
        move_agent_vectors stp

        .balign 2048
agent_vectors:
        .rept   5
        .balign 128
        b       agent_exception
        .endr
        .balign 128
        b       agent_interrupt
        .rept   10
        .balign 128
        b       agent_exception
        .endr
        .global agent_end
agent_end:
