// SPDX-License-Identifier: MIT OR Apache-2.0

// A guest that uses its GIC as a script in its mailbox says. It is copied into a page.
//
// A script is steps of four words: what to do, two arguments, and a place for the result. The main
// script ends with a store to the doorbell, an address without memory, and then begins again. At
// an interrupt, the guest acknowledges it, notes it, and goes through the handler's
// script, which may unmask interrupts and so be interrupted itself.
//
// Entered with the MMU off; x0: mailbox. x28: mailbox, x27: doorbell, x26: the step, x25: what was
// acknowledged.

        .set    MAIL_COUNT, 0           // interrupts acknowledged, spurious ones too
        .set    MAIL_EXCEPTION, 8       // ESR_EL1, ELR_EL1 of another exception
        .set    MAIL_SCRIPT, 0x100
        .set    MAIL_HANDLER, 0xa00
        .set    MAIL_NOTES, 0xc00       // 64 words: INTID, running priority << 32
        .set    MAIL_STACK, 0x1800      // its end

        .arch   armv8-a
        .text
        .balign 4096
        .global gic_guest_begin
gic_guest_begin:
        mov     x28, x0
        mov     x27, #{DOORBELL}
        add     x0, x28, #(MAIL_STACK & ~0xfff)
        add     x0, x0, #(MAIL_STACK & 0xfff)
        mov     sp, x0
        adr     x0, gic_guest_vectors
        msr     vbar_el1, x0
        isb
1:      str     x28, [x27]
        mov     x25, xzr
        add     x26, x28, #MAIL_SCRIPT
        bl      run_script
        b       1b

        // Does steps from x26 on, until one that ends.
run_script:
        str     x30, [sp, #-16]!
next_step:
        ldp     x9, x0, [x26]
        ldp     x1, x2, [x26, #16]
        adr     x10, steps
        add     x10, x10, x9, lsl #4
        blr     x10
        str     x2, [x26, #24]
        add     x26, x26, #32
        b       next_step

        // Each step has four instructions. x0, x1: arguments, x2: the result.
.macro  step first:vararg
        .balign 16
        \first
.endm
        .balign 16
steps:
        step b end_script               // 0
        step ldr w2, [x0]               // 1
        ret
        step str w1, [x0]               // 2
        ret
        step ldr x2, [x0]               // 3
        ret
        step str x1, [x0]               // 4
        ret
        step ldrb w2, [x0]              // 5
        ret
        step strb w1, [x0]              // 6
        ret
        step b read_register            // 7
        step b write_register           // 8
        step msr daifclr, #2            // 9
        ret
        step msr daifset, #2            // 10
        ret
        step wfi                        // 11
        ret
        step b await_count              // 12
        step b call                     // 13
        step b loops                    // 14
        step b if_intid                 // 15
        step b end_interrupt            // 16
        step b deactivate               // 17
        step b await_word               // 18
        step b add_word                 // 19
        step str x1, [x27, #8]          // 20
        ret
        step mrs x2, cntv_ctl_el0       // 21: until the timer's condition is met
        tbz     x2, #2, . - 4
        ret

end_script:
        ldr     x30, [sp], #16
        ret

        // x0: the number of a register below.
read_register:
        adr     x10, registers_read
        add     x10, x10, x0, lsl #3
        isb
        br      x10
write_register:
        adr     x10, registers_written
        add     x10, x10, x0, lsl #3
        mov     x11, x30
        blr     x10
        isb
        mov     x30, x11
        ret

        // Until so many interrupts came, or x1 loops have passed. What came.
await_count:
        ldr     x2, [x28, #MAIL_COUNT]
        cmp     x2, x0
        b.hs    1f
        subs    x1, x1, #1
        b.ne    await_count
1:      ret

        // Until the word at x0 is at least the number in the result's place, or x1 loops have passed.
await_word:
        mov     x12, x2
2:      ldr     x2, [x0]
        cmp     x2, x12
        b.hs    1f
        subs    x1, x1, #1
        b.ne    2b
1:      ret

        // Adds x1 to the word at x0.
add_word:
        ldr     x2, [x0]
        add     x2, x2, x1
        str     x2, [x0]
        ret

        // HVC with x0, x1 and x2 from where x1 is, and x3 from the result's place.
call:
        mov     x12, x30
        mov     x3, x2
        ldp     x1, x2, [x1]
        hvc     #0
        mov     x2, x0
        mov     x30, x12
        ret

loops:
        subs    x0, x0, #1
        b.ne    loops
        ret

        // Leaves out x1 steps if what was acknowledged is not x0.
if_intid:
        and     x12, x25, #0xffffff
        cmp     x12, x0
        b.eq    1f
        add     x26, x26, x1, lsl #5
1:      ret

end_interrupt:
        msr     s3_0_c12_c12_1, x25     // ICC_EOIR1_EL1
        isb
        ret
deactivate:
        msr     s3_0_c12_c11_1, x25     // ICC_DIR_EL1
        isb
        ret

.macro  reads register
        mrs     x2, \register
        ret
.endm
registers_read:
        reads   s3_0_c12_c12_0          // 0 ICC_IAR1_EL1
        reads   s3_0_c12_c12_2          // 1 ICC_HPPIR1_EL1
        reads   s3_0_c12_c11_3          // 2 ICC_RPR_EL1
        reads   s3_0_c4_c6_0            // 3 ICC_PMR_EL1
        reads   s3_0_c12_c12_4          // 4 ICC_CTLR_EL1
        reads   s3_0_c12_c12_7          // 5 ICC_IGRPEN1_EL1
        reads   s3_0_c12_c12_3          // 6 ICC_BPR1_EL1
        reads   cntv_ctl_el0            // 7
        reads   cntv_cval_el0           // 8
        reads   cntvct_el0              // 9
        reads   id_aa64pfr0_el1         // 10
        reads   s3_0_c12_c12_5          // 11 ICC_SRE_EL1
        reads   isr_el1                 // 12
        reads   mpidr_el1               // 13
        reads   cntp_ctl_el0            // 14
        reads   cntp_cval_el0           // 15
        reads   cntp_tval_el0           // 16
        reads   cntpct_el0              // 17

.macro  writes register
        msr     \register, x1
        ret
.endm
registers_written:
        writes  s3_0_c12_c12_1          // 0 ICC_EOIR1_EL1
        writes  s3_0_c12_c11_1          // 1 ICC_DIR_EL1
        writes  s3_0_c12_c11_5          // 2 ICC_SGI1R_EL1
        writes  s3_0_c4_c6_0            // 3 ICC_PMR_EL1
        writes  s3_0_c12_c12_4          // 4 ICC_CTLR_EL1
        writes  s3_0_c12_c12_7          // 5 ICC_IGRPEN1_EL1
        writes  s3_0_c12_c12_3          // 6 ICC_BPR1_EL1
        writes  cntv_ctl_el0            // 7
        writes  cntv_cval_el0           // 8
        writes  cntv_tval_el0           // 9
        writes  s3_0_c12_c11_7          // 10 ICC_SGI0R_EL1
        writes  s3_0_c12_c11_6          // 11 ICC_ASGI1R_EL1
        writes  cntp_ctl_el0            // 12
        writes  cntp_cval_el0           // 13
        writes  cntp_tval_el0           // 14

interrupted:
        stp     x0, x1, [sp, #-160]!
        stp     x2, x3, [sp, #16]
        stp     x9, x10, [sp, #32]
        stp     x11, x12, [sp, #48]
        stp     x25, x26, [sp, #64]
        mrs     x0, elr_el1
        mrs     x1, spsr_el1
        stp     x0, x1, [sp, #80]
        str     x30, [sp, #96]
        mrs     x25, s3_0_c12_c12_0     // ICC_IAR1_EL1
        isb
        mrs     x0, s3_0_c12_c11_3      // ICC_RPR_EL1
        orr     x0, x25, x0, lsl #32
        ldr     x1, [x28, #MAIL_COUNT]
        and     x2, x1, #63
        add     x2, x28, x2, lsl #3
        str     x0, [x2, #MAIL_NOTES]
        add     x1, x1, #1
        str     x1, [x28, #MAIL_COUNT]
        and     x0, x25, #0xffffff
        cmp     x0, #1020
        b.hs    1f
        add     x26, x28, #MAIL_HANDLER
        bl      run_script
1:      ldp     x0, x1, [sp, #80]
        msr     daifset, #2
        msr     elr_el1, x0
        msr     spsr_el1, x1
        ldr     x30, [sp, #96]
        ldp     x25, x26, [sp, #64]
        ldp     x11, x12, [sp, #48]
        ldp     x9, x10, [sp, #32]
        ldp     x2, x3, [sp, #16]
        ldp     x0, x1, [sp], #160
        eret

        // The step is done without what it was to do.
failed:
        mrs     x9, esr_el1
        mrs     x10, elr_el1
        stp     x9, x10, [x28, #MAIL_EXCEPTION]
        add     x10, x10, #4
        msr     elr_el1, x10
        eret

        .balign 2048
gic_guest_vectors:
        .rept   4
        .balign 128
        b       failed
        .endr
        .balign 128
        b       failed
        .balign 128
        b       interrupted
        .rept   10
        .balign 128
        b       failed
        .endr
        .global gic_guest_end
gic_guest_end:
