// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A guest that does what it is told. It reads four words at 0x6000 (what to
// do, and three arguments), does it, and writes the answer to 0x6020. An
// exception's class goes to 0x6028, and the instruction is left out. An
// interrupt is counted in x26, and masked where it came from.
//
// Position-independent, without a stack; x20 is the window's address.
//
// Labels are local to the assembler (.L): another one, `wait`, say, would take the place of
// the C library's function for all of the program's Rust.

	.macro	told
	mrs	x25, elr_el1
	add	x25, x25, #4
	msr	elr_el1, x25
	mrs	x25, esr_el1
	lsr	x25, x25, #26
	str	x25, [x20, #0x28]
	eret
	.balign	0x80
	.endm

	.macro	interrupt
	add	x26, x26, #1
	mrs	x25, spsr_el1
	orr	x25, x25, #0x80
	msr	spsr_el1, x25
	eret
	.balign	0x80
	.endm

	.pushsection .rodata
	.balign	0x800		// as the vectors: it is copied to a page's start
	.global	shim_guest_start
shim_guest_start:
	mov	x20, #0x6000
	orr	x20, x20, x5		// where a protected VM's devices are
	adr	x0, .Lvectors
	msr	vbar_el1, x0
	isb
.Lnext:
	ldr	x1, [x20]
	ldr	x2, [x20, #8]
	ldr	x3, [x20, #16]
	ldr	x4, [x20, #24]
	cmp	x1, #0
	b.eq	.Lload
	cmp	x1, #1
	b.eq	.Lstore
	cmp	x1, #2
	b.eq	.Lunlock
	cmp	x1, #3
	b.eq	.Lloop
	cmp	x1, #4
	b.eq	.Loff
	cmp	x1, #5
	b.eq	.Lvisit
	cmp	x1, #6
	b.eq	.Lcome_and_go
	cmp	x1, #0x10
	b.eq	.Lstore_part
	cmp	x1, #0x11
	b.eq	.Lcount_down
	cmp	x1, #0x12
	b.eq	.Lmake_call
	cmp	x1, #0x13
	b.eq	.Lmake_call_for_x1
	cmp	x1, #0x14
	b.eq	.Lwait
	cmp	x1, #0x15
	b.eq	.Lspin
	cmp	x1, #0x16
	b.eq	.Lwait_masked
	cmp	x1, #0x17
	b.eq	.Lpending
	cmp	x1, #0x18
	b.eq	.Ltranslate
	cmp	x1, #0x19
	b.eq	.Lgic_on
	cmp	x1, #0x1a
	b.eq	.Lacknowledge
	cmp	x1, #0x1b
	b.eq	.Lend
	cmp	x1, #0x1c
	b.eq	.Lsgi
	cmp	x1, #0x1d
	b.eq	.Ltimer
	cmp	x1, #0x1e
	b.eq	.Ltimer_off
	cmp	x1, #0x1f
	b.eq	.Lrealm_set
	cmp	x1, #0x20
	b.eq	.Lrealm_get
	cmp	x1, #0x21
	b.eq	.Lrealm_call
	b	.Loff
.Lload:				// of x2
	ldr	x0, [x2]
	b	.Lanswer
.Lstore:				// x3 to x2
	str	x3, [x2]
	mov	x0, #0
	b	.Lanswer
.Lstore_part:			// x4 bytes of x3 to x2
	mov	x0, #0
	tbnz	x4, #0, 1f
	tbnz	x4, #1, 2f
	tbnz	x4, #2, 4f
	str	x3, [x2]
	b	.Lanswer
1:	strb	w3, [x2]
	b	.Lanswer
2:	strh	w3, [x2]
	b	.Lanswer
4:	str	w3, [x2]
	b	.Lanswer
.Lcount_down:			// x3, x3 - 1, ..., 1 to x2
	mov	x0, x3
1:	str	w3, [x2]
	subs	x3, x3, #1
	b.ne	1b
	b	.Lanswer
.Lmake_call:			// number x2, with x3, x4 and 0
	bl	.Lcall
	b	.Lanswer
.Lmake_call_for_x1:		// the same, if X0 is 0
	bl	.Lcall
	cmp	x0, #0
	csel	x0, x1, x0, eq
	b	.Lanswer
.Lcall:
	mov	x0, x2
	mov	x1, x3
	mov	x2, x4
	mov	x3, #0
	hvc	#0
	ret
.Lwait:				// for an interrupt
	mov	x26, #0
	msr	daifclr, #2
1:	wfi
	isb
	cbz	x26, 1b
	b	.Linterrupted
.Lspin:				// until there is one
	mov	x26, #0
	msr	daifclr, #2
1:	cbz	x26, 1b
.Linterrupted:
	msr	daifset, #2
	mov	x0, x26
	b	.Lanswer
.Lwait_masked:			// for an interrupt that is not taken
	wfi
	mrs	x0, isr_el1
	cbz	x0, .Lwait_masked
	b	.Lanswer
.Lpending:
	mrs	x0, isr_el1
	b	.Lanswer
.Ltranslate:			// by the level 1 table at x2: 39 bits, normal memory
	mov	x0, #0xff
	msr	mair_el1, x0
	movz	x0, #0x3519		// T0SZ 25, write-back, inner shareable
	movk	x0, #0x80, lsl #16	// EPD1
	movk	x0, #2, lsl #32		// 40 bits of output
	msr	tcr_el1, x0
	msr	ttbr0_el1, x2
	dsb	sy
	tlbi	vmalle1
	dsb	sy
	isb
	mrs	x0, sctlr_el1
	orr	x0, x0, #1
	bic	x0, x0, #2		// unaligned accesses are no faults
	msr	sctlr_el1, x0
	isb
	b	.Lanswer
.Lgic_on:				// the CPU interface, for group 1
	mov	x0, #0xf0
	msr	S3_0_C4_C6_0, x0	// ICC_PMR_EL1
	mov	x0, #1
	msr	S3_0_C12_C12_7, x0	// ICC_IGRPEN1_EL1
	isb
	mov	x0, #0
	b	.Lanswer
.Lacknowledge:			// an interrupt: its INTID
	mrs	x0, S3_0_C12_C12_0	// ICC_IAR1_EL1
	dsb	sy
	b	.Lanswer
.Lend:				// of the interrupt x2
	msr	S3_0_C12_C12_1, x2	// ICC_EOIR1_EL1
	isb
	mov	x0, #0
	b	.Lanswer
.Lsgi:				// as x2 says
	msr	S3_0_C12_C11_5, x2	// ICC_SGI1R_EL1
	isb
	mov	x0, #0
	b	.Lanswer
.Ltimer:				// expires in x2 ticks; how many have passed when it has
	mrs	x21, cntvct_el0
	msr	cntv_tval_el0, x2
	mov	x0, #1
	msr	cntv_ctl_el0, x0
	isb
	mov	x26, #0
	msr	daifclr, #2
1:	wfi
	isb
	cbz	x26, 1b
	msr	daifset, #2
	mrs	x0, cntvct_el0
	sub	x0, x0, x21
	b	.Lanswer
.Ltimer_off:
	msr	cntv_ctl_el0, xzr
	isb
	mov	x0, #0
	b	.Lanswer
.Lrealm_set:			// RIPAS x4 from x2 to x3; 0, an error, or 0x100: rejected
	mov	x21, x2
	mov	x22, x3
	mov	x23, x4
1:	movz	x0, #0xc400, lsl #16
	movk	x0, #0x0197
	mov	x1, x21
	mov	x2, x22
	mov	x3, x23
	mov	x4, #0
	smc	#0
	cbnz	x0, .Lanswer
	mov	x0, #0x100
	cbnz	x2, .Lanswer
	mov	x21, x1
	cmp	x21, x22
	b.lo	1b
	mov	x0, #0
	b	.Lanswer
.Lrealm_get:			// from x2 to x3: how far there is one RIPAS, and that
	movz	x0, #0xc400, lsl #16
	movk	x0, #0x0198
	mov	x1, x2
	mov	x2, x3
	smc	#0
	cbnz	x0, .Lanswer
	orr	x0, x1, x2
	b	.Lanswer
.Lrealm_call:			// number x2, with x3
	mov	x0, x2
	mov	x1, x3
	smc	#0
	b	.Lanswer
.Lunlock:				// x3 bytes at x2, flags x4
	bl	.Lmodify
.Lanswer:
	str	x0, [x20, #0x20]
	b	.Lnext
.Lloop:
	b	.Lloop
.Loff:
	movz	w0, #0x8400, lsl #16
	movk	w0, #0x0008
	hvc	#0
	b	.Loff
.Lvisit:				// a word in each of x3 pages at x2
	mov	x0, x3
1:	str	x2, [x2]
	add	x2, x2, #0x1000
	subs	x3, x3, #1
	b.ne	1b
	b	.Lanswer
	// As visit, then unlocks each, flags x4, for ever. What has been unlocked
	// is no longer the guest's own: it may go between any two instructions,
	// and then the next access brings in another, with zeros.
.Lcome_and_go:
	mov	x21, x2
	mov	x22, x3
2:	mov	x23, #0
3:	add	x2, x21, x23, lsl #12
	str	x2, [x2]
	add	x23, x23, #1
	cmp	x23, x22
	b.lo	3b
	mov	x23, #0
4:	add	x2, x21, x23, lsl #12
	ldr	x0, [x2]
	cmp	x0, x2
	ccmp	x0, #0, #4, ne	// neither its own word nor zeros
	b.ne	.Lanswer
	mov	x3, #0x1000
	bl	.Lmodify
	cmp	x0, #22		// InvalidAddress: it is gone
	ccmp	x0, #0, #4, ne
	b.ne	.Lanswer
	add	x23, x23, #1
	cmp	x23, x22
	b.lo	4b
	b	2b
.Lmodify:				// x3 bytes at x2, flags x4; keeps x4
	mov	x24, x4
	movz	w0, #0xc600, lsl #16
	movk	w0, #0x8069
	mov	x1, #0
	hvc	#0
	mov	x4, x24
	ret

	.balign	0x800
.Lvectors:
	told
	interrupt
	.rept	3
	told
	.endr
	interrupt
	.rept	10
	told
	.endr
	.global	shim_guest_end
shim_guest_end:
	.popsection
