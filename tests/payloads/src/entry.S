// SPDX-License-Identifier: MIT OR Apache-2.0

// Where CPUs enter a payload, by the boot protocol of an arm64 Linux Image or
// from PSCI CPU_ON; and where exceptions do.

.macro  address reg, symbol
        adrp    \reg, \symbol
        add     \reg, \reg, :lo12:\symbol
.endm

        .section .head.text, "ax"

        // The Image header (Linux, Documentation/arch/arm64/booting.rst).
        .global image_header
image_header:
        b       primary_entry
        .long   0
        .quad   0                       // text offset
        .quad   __image_size
        .quad   0b1010                  // little-endian, 4 KiB pages, anywhere
        .quad   0, 0, 0
        .ascii  "ARM\x64"
        .long   0

primary_entry:
        mrs     x20, cntvct_el0         // for who wants to know when it began
        msr     daifset, #0xf
        msr     spsel, #1
        mov     x19, x0                 // device tree

        // Relocate: the image is linked at 0, and the linker leaves
        // R_AARCH64_RELATIVE alone.
        adr     x0, image_header
        address x1, __rela_start
        address x2, __rela_end
1:      cmp     x1, x2
        b.hs    2f
        ldp     x3, x4, [x1]            // place, kind
        ldr     x5, [x1, #16]           // addend
        add     x1, x1, #24
        cmp     x4, #1027               // R_AARCH64_RELATIVE
        b.ne    1b
        add     x5, x5, x0
        str     x5, [x3, x0]
        b       1b
2:
        address x0, __bss_start
        address x1, __bss_end
3:      cmp     x0, x1
        b.hs    4f
        stp     xzr, xzr, [x0], #16
        b       3b
4:
        address x0, stacks
        add     x0, x0, #{STACK_SIZE}
        mov     sp, x0
        mov     x29, xzr
        mov     x30, xzr
        bl      set_up_cpu
        msr     tpidr_el1, xzr          // CPU 0
        mov     x0, x19
        mov     x1, x20
        bl      payload_start
5:      wfe
        b       5b

        // x0: the CPU's number, from 1
        .global secondary_entry
secondary_entry:
        msr     daifset, #0xf
        msr     spsel, #1
        mov     x19, x0
        msr     tpidr_el1, x0
        address x1, stacks
        mov     x2, #{STACK_SIZE}
        add     x0, x0, #1
        madd    x1, x0, x2, x1
        mov     sp, x1
        mov     x29, xzr
        mov     x30, xzr
        bl      set_up_cpu
        mov     x0, x19
        bl      payload_secondary
6:      wfe
        b       6b

        // What every CPU needs before Rust: vectors, and FP and SIMD open for
        // the tests that are about them.
set_up_cpu:
        address x0, vectors
        msr     vbar_el1, x0
        mov     x0, #(3 << 20)          // CPACR_EL1.FPEN
        msr     cpacr_el1, x0
        isb
        ret

// One vector: saves what a handler may change, and leaves for Rust.
.macro  vector number
        .balign 128
        sub     sp, sp, #{FRAME_SIZE}
        stp     x0, x1, [sp]
        mov     x1, #\number
        b       exception_entry
.endm

        .text
        .balign 2048
vectors:
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vector  \n
        .endr

exception_entry:
        stp     x2, x3, [sp, #16]
        stp     x4, x5, [sp, #32]
        stp     x6, x7, [sp, #48]
        stp     x8, x9, [sp, #64]
        stp     x10, x11, [sp, #80]
        stp     x12, x13, [sp, #96]
        stp     x14, x15, [sp, #112]
        stp     x16, x17, [sp, #128]
        stp     x18, x19, [sp, #144]
        stp     x20, x21, [sp, #160]
        stp     x22, x23, [sp, #176]
        stp     x24, x25, [sp, #192]
        stp     x26, x27, [sp, #208]
        stp     x28, x29, [sp, #224]
        mrs     x2, elr_el1
        stp     x30, x2, [sp, #240]
        mrs     x2, spsr_el1
        mrs     x3, esr_el1
        stp     x2, x3, [sp, #256]
        mrs     x2, far_el1
        str     x2, [sp, #272]
        mov     x0, sp
        bl      payload_exception
        ldp     x30, x2, [sp, #240]
        msr     elr_el1, x2
        ldr     x2, [sp, #256]
        msr     spsr_el1, x2
        ldp     x2, x3, [sp, #16]
        ldp     x4, x5, [sp, #32]
        ldp     x6, x7, [sp, #48]
        ldp     x8, x9, [sp, #64]
        ldp     x10, x11, [sp, #80]
        ldp     x12, x13, [sp, #96]
        ldp     x14, x15, [sp, #112]
        ldp     x16, x17, [sp, #128]
        ldp     x18, x19, [sp, #144]
        ldp     x20, x21, [sp, #160]
        ldp     x22, x23, [sp, #176]
        ldp     x24, x25, [sp, #192]
        ldp     x26, x27, [sp, #208]
        ldp     x28, x29, [sp, #224]
        ldp     x0, x1, [sp]
        add     sp, sp, #{FRAME_SIZE}
        eret
