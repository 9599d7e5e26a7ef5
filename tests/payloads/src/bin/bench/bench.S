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
        // Vectors: an interrupt, and what must not be, which tells so.
        .rept   5
        .balign 128
        str     xzr, [x28, #0x40]
        b       . - 4
        .endr
        // x25: when it came; x9: what it was. Both the guest's own timer and the host's, where the
        // guest's count is compared with that.
        .balign 128
take_interrupt:
        mrs     x25, cntvct_el0
        mrs     x9, s3_0_c12_c12_0      // ICC_IAR1_EL1
        msr     cntv_ctl_el0, xzr
        isb
        msr     s3_0_c12_c12_1, x9      // ICC_EOIR1_EL1
        eret

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

        // Makes calls and tells, by stores, the ticks of each and its answer.
        // x20: function; x21, x22: its arguments; x23: what is added to the first
        // each time.
.macro  calling_guest name, instruction:vararg
        .balign 64
        .global guest_\name
guest_\name:
        mov     x28, x1
1:      mov     x0, x20
        mov     x1, x21
        mov     x2, x22
        .irp    register, x3, x4, x5, x6, x7
        mov     \register, xzr
        .endr
        isb
        mrs     x24, cntvct_el0
        \instruction
        isb
        mrs     x25, cntvct_el0
        sub     x25, x25, x24
        str     x25, [x28]
        str     x0, [x28, #8]
        add     x21, x21, x23
        b       1b
.endm
        calling_guest calls, hvc #0
        calling_guest calls_nothing

        // Sets up the GIC for the vCPU of an index, and takes interrupts from here on. Changes x9 and
        // x10.
.macro  set_up_gic index
        adr     x9, guests_begin
        msr     vbar_el1, x9
        mov     x9, #{GICD}
        mov     w10, #0x13              // GICD_CTLR: groups and affinity routing
        str     w10, [x9]
        movz    x9, #(({GICR} >> 16) + \index * 2 + 1), lsl #16
        mov     w10, #-1
        str     w10, [x9, #0x80]        // GICR_IGROUPR0
        str     w10, [x9, #0x100]       // GICR_ISENABLER0
        mov     x10, #0xf0
        msr     s3_0_c4_c6_0, x10       // ICC_PMR_EL1
        mov     x10, #1
        msr     s3_0_c12_c12_7, x10     // ICC_IGRPEN1_EL1
        isb
        msr     daifclr, #2
.endm

        // Executes `instruction` again and again and tells, by stores, the ticks of each, and x0 after `check`.
        // x20: what goes to the address in x22 first. x21, x22: addresses. x26: what x21 is changed by
        // each time, by an exclusive or.
.macro  gic_guest name, instruction, check
        .balign 64
        .global guest_gic_\name
guest_gic_\name:
        mov     x28, x1
        set_up_gic 0
        str     w20, [x22]
1:      isb
        mrs     x24, cntvct_el0
        \instruction
        isb
        mrs     x25, cntvct_el0
        sub     x25, x25, x24
        \check
        str     x25, [x28]
        str     x0, [x28, #8]
        eor     x21, x21, x26
        b       1b
.endm
        gic_guest nothing, , "mov x0, xzr"
        gic_guest load, "ldr w0, [x21]", nop
        gic_guest store, "str w20, [x21]", "ldr w0, [x22]"
        gic_guest id, "mrs x0, id_aa64pfr0_el1", nop

        // Has the virtual timer's interrupt come at once, takes it, and masks the timer. x20: ticks until that is done. x9:
        // what was acknowledged. Changes x24.
.macro  take_timer
        msr     cntv_cval_el0, xzr
        mov     x20, #1                 // CNTV_CTL_EL0: enabled
        isb
        mrs     x24, cntvct_el0
        msr     cntv_ctl_el0, x20
        isb
        mrs     x20, cntvct_el0
        sub     x20, x20, x24
.endm

        .balign 64
        .global guest_gic_timer
guest_gic_timer:
        mov     x28, x1
        set_up_gic 0
1:      mov     x9, xzr
        take_timer
        str     x20, [x28]
        str     x9, [x28, #8]
        b       1b

        // Switches the other vCPU on, then tells that it is ready and sends an SGI to it (x20: ICC_SGI1R_EL1), again
        // and again. Tells when it did, and the ticks until it went on.
        .balign 64
        .global guest_gic_sender
guest_gic_sender:
        mov     x28, x1
        set_up_gic 0
        mov     x0, #({CPU_ON} & 0xffff)
        movk    x0, #({CPU_ON} >> 16), lsl #16
        mov     x1, #1
        adr     x2, guest_gic_receiver
        mov     x3, x28
        hvc     #0
1:      str     xzr, [x28, #16]
        isb
        mrs     x24, cntvct_el0
        msr     s3_0_c12_c11_5, x20     // ICC_SGI1R_EL1
        isb
        mrs     x25, cntvct_el0
        sub     x25, x25, x24
        yield
        str     x24, [x28]
        str     x25, [x28, #8]
        b       1b

        // Tells that it is there and waits for an interrupt, without an exit; then tells when it came, and
        // which. x0: where it tells. The hints have QEMU run the other CPU.
        .balign 64
guest_gic_receiver:
        mov     x28, x0
        set_up_gic 1
1:      mov     x9, xzr
        str     xzr, [x28, #16]
2:      yield
        cbz     x9, 2b
        str     x25, [x28]
        str     x9, [x28, #8]
        b       1b
        .global guests_end
guests_end:

        // `take_timer` in the host's place. Returns the ticks, and what was acknowledged (x1).
        .global sample_timer
sample_timer:
        stp     x19, x20, [sp, #-64]!
        stp     x24, x25, [sp, #16]
        stp     x28, x30, [sp, #32]
        mrs     x19, vbar_el1
        adr     x9, guests_begin
        msr     vbar_el1, x9
        mov     x28, xzr
        mov     x9, xzr
        isb
        msr     daifclr, #2
        take_timer
        msr     daifset, #2
        msr     vbar_el1, x19
        isb
        mov     x0, x20
        mov     x1, x9
        ldp     x28, x30, [sp, #32]
        ldp     x24, x25, [sp, #16]
        ldp     x19, x20, [sp], #64
        ret
