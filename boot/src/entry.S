// SPDX-License-Identifier: MIT OR Apache-2.0

// Where CPUs enter Escrow. The boot CPU comes by the boot protocol of an arm64
// Linux Image: MMU and data cache off, device tree in x0, the image cleaned to
// the point of coherency. Secondary CPUs come from PSCI CPU_ON with a
// `CpuStart` in x0.

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

link_address:
        .quad   __link_address

        .global primary_entry
primary_entry:
        msr     daifset, #0xf
        msr     spsel, #1
        mov     x19, x0                 // device tree
        mrs     x21, CurrentEL

        // CNTPCT_EL0 may be trapped below EL2. The ISB keeps the read from
        // being made early (Arm ARM, "Self-synchronized view of counters").
        mov     x20, #0
        cmp     x21, #(2 << 2)
        b.ne    1f
        isb
        mrs     x20, cntpct_el0
1:
        // A loader that gives no tree may have put one just below the image:
        // QEMU does, at the beginning of RAM, when it loads the ELF file.
        cbnz    x19, 2f
        adr     x0, image_header
        sub     x0, x0, #(2 << 20)
        ldr     w1, [x0]
        ldr     w2, fdt_magic
        cmp     w1, w2
        csel    x19, x0, xzr, eq
2:
        // Relocate: the only kind that the linker leaves is R_AARCH64_RELATIVE.
        adr     x0, image_header
        ldr     x1, link_address
        sub     x0, x0, x1
        address x1, __rela_start
        address x2, __rela_end
3:      cmp     x1, x2
        b.hs    4f
        ldp     x3, x4, [x1]            // place, kind
        ldr     x5, [x1, #16]           // addend
        add     x1, x1, #24
        cmp     x4, #1027               // R_AARCH64_RELATIVE
        b.ne    3b
        add     x5, x5, x0
        str     x5, [x3, x0]
        b       3b
4:
        address x0, __bss_start
        address x1, __bss_end
5:      cmp     x0, x1
        b.hs    6f
        stp     xzr, xzr, [x0], #16
        b       5b
6:
        address x0, __stack_top
        mov     sp, x0
        mov     x29, xzr                // the last frame record of backtraces
        mov     x30, xzr

        mov     x1, x21
        cmp     x21, #(2 << 2)
        b.ne    not_at_el2

        // EL2 as Escrow uses it: without the host extensions. On CPUs that
        // cannot (FEAT_E2H0 not implemented), E2H stays set.
        mov     x0, #(1 << 31)          // HCR_EL2.RW
        msr     hcr_el2, x0
        isb
        mrs     x0, hcr_el2
        tbnz    x0, #34, no_e2h0
        bl      el2_defaults
        bl      mmu_off
        address x0, boot_vectors
        msr     vbar_el2, x0
        isb

        // An `Early` for boot's two halves to share, at the top of the stack.
        sub     sp, sp, #EARLY_SIZE
        mov     x0, sp
        mov     x1, x19
        bl      map_early

        // What was written so far went past the caches, and they may hold what
        // was there before: out with that, before the MMU makes it visible
        // (Arm ARM, "Mismatched memory attributes").
        dsb     sy
        address x0, __rodata_start
        address x1, __image_end
        mrs     x2, ctr_el0
        ubfx    x2, x2, #16, #4
        mov     x3, #4
        lsl     x2, x3, x2
7:      dc      ivac, x0
        add     x0, x0, x2
        cmp     x0, x1
        b.lo    7b
        dsb     sy

        mov     x0, sp
        bl      mmu_on
        mov     x0, sp
        mov     x1, x20
        bl      boot_main
        b       .

not_at_el2:
        mov     x0, x19
        lsr     x1, x1, #2
        bl      entered_elsewhere
        b       .
no_e2h0:
        mov     x0, x19
        bl      no_plain_el2
        b       .

fdt_magic:
        .byte   0xd0, 0x0d, 0xfe, 0xed

        .text

        // A secondary CPU, or one that comes back from a deep sleep.
        // x0: its `CpuStart`, cleaned to the point of coherency
        .global secondary_entry
secondary_entry:
        msr     daifset, #0xf
        msr     spsel, #1
        mov     x19, x0
        mov     x0, #(1 << 31)          // HCR_EL2.RW
        msr     hcr_el2, x0
        isb
        bl      el2_defaults
        bl      mmu_off
        address x0, boot_vectors
        msr     vbar_el2, x0
        mov     x0, x19
        bl      mmu_on
        ldp     x1, x0, [x19, #CPU_START_STACK]
        mov     sp, x1
        mov     x29, xzr
        mov     x30, xzr
        bl      secondary_main
        b       .

        // SCTLR_EL2 in a known state, with the MMU off. Clobbers x0.
mmu_off:
        address x0, sctlr_off
        ldr     x0, [x0]
        msr     sctlr_el2, x0
        isb
        ret

        // Registers of EL2's own that are UNKNOWN after reset, or as the boot
        // loader left them, to what the code that follows relies on: there is
        // no data of this CPU yet (TPIDR_EL2), and nothing that newer CPUs can
        // do at EL2 is in force. Clobbers x0 and x1.
el2_defaults:
        msr     tpidr_el2, xzr
        mrs     x0, s3_0_c0_c7_3        // ID_AA64MMFR3_EL1
        ubfx    x1, x0, #0, #4          // TCRX
        cbz     x1, 1f
        msr     s3_4_c2_c0_3, xzr       // TCR2_EL2
1:      ubfx    x1, x0, #4, #4          // SCTLRX
        cbz     x1, 2f
        msr     s3_4_c1_c0_3, xzr       // SCTLR2_EL2
2:      mrs     x0, id_aa64pfr1_el1
        ubfx    x1, x0, #44, #4         // GCS
        cbz     x1, 3f
        msr     s3_4_c2_c5_0, xzr       // GCSCR_EL2
3:      isb
        ret

        // Switches the MMU and the caches on.
        // x0: a `CpuStart`. Clobbers x1-x4.
mmu_on:
        ldp     x1, x2, [x0]            // TTBR0, TCR
        ldp     x3, x4, [x0, #16]       // MAIR, SCTLR
        msr     mair_el2, x3
        msr     tcr_el2, x2
        msr     ttbr0_el2, x1
        isb
        // TLBs and instruction caches may hold anything after reset (Arm ARM,
        // "TLB behavior at reset").
        tlbi    alle2
        ic      iallu
        dsb     nsh
        isb
        msr     sctlr_el2, x4
        isb
        ret

        // Exceptions before the real vectors are in place: there is one answer
        // to all of them.
        .balign 2048
boot_vectors:
        .rept   16
        .balign 128
        b       boot_fault
        .endr

boot_fault:
        adr     x0, boot_halt
        msr     vbar_el2, x0
        bl      mmu_off
        mrs     x0, esr_el2
        mrs     x1, far_el2
        mrs     x2, elr_el2
        address x3, __stack_top
        mov     sp, x3
        mov     x29, xzr
        bl      boot_exception
        b       .

        .balign 2048
boot_halt:
        .rept   16
        .balign 128
        b       .
        .endr

        .section .rodata
        .balign 8
sctlr_off:
        .quad   SCTLR_OFF
