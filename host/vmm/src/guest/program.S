// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The guest's program: reads commands from the window, does them, answers.
// See protocol.rs for the numbers. It is position-independent (up to its 2 KiB
// alignment, which the vectors need), has no data and no stack, and runs at
// EL1 with the MMU off, as every vCPU begins.
//
// x0-x8: a command's arguments, answer and scratch
// x19:   the window
// x20-x24: the exception handler's
//
// Labels are local to the assembler (.L): another one, `send`, say, would take the
// place of the C library's function for all of the program's Rust.

	.section .rodata.guest_program, "a"
	.balign	2048
	.globl	escrow_guest_program
escrow_guest_program:
	mov	x19, #{WINDOW}
	adr	x0, .Lvectors
	msr	vbar_el1, x0
	// FP and SIMD for EL1 and EL0, no traps.
	mov	x0, #3 << 20
	msr	cpacr_el1, x0
	isb

.Lnext:
	ldr	x8, [x19, #{OPERATION}]
	cmp	x8, #{OP_COUNT}
	b.hs	.Lunknown
	ldr	x0, [x19, #{ARGUMENTS}]
	ldr	x1, [x19, #{ARGUMENTS} + 8]
	ldr	x2, [x19, #{ARGUMENTS} + 16]
	adr	x7, .Ltable
	add	x7, x7, x8, lsl #2
	br	x7

.Lanswer_zero:
	mov	x0, #0
.Lanswer:
	str	x0, [x19, #{ANSWER}]
	b	.Lnext

.Lunknown:
	mov	x0, #-1
	b	.Lanswer

// In the order of protocol::op.
.Ltable:
	b	.Lanswer_zero		// NOP
	b	.Lload8
	b	.Lload16
	b	.Lload32
	b	.Lload64
	b	.Lload_signed8
	b	.Lload_signed16
	b	.Lload_signed32
	b	.Lload64
	b	.Lstore8
	b	.Lstore16
	b	.Lstore32
	b	.Lstore64
	b	.Lfill
	b	.Ldifferences
	b	.Lsend
	b	.Lreceive
	b	.Lhypercall
	b	.Lset_vectors
	b	.Lcheck_vectors
	b	.Lread_hidden
	b	.Lsleep
	b	.Lspin
	b	.Lpower_off
	.if	. - .Ltable - 4 * {OP_COUNT}
	.error	"the table does not have one entry for each operation"
	.endif

.Lload8:
	ldrb	w0, [x0]
	b	.Lanswer
.Lload16:
	ldrh	w0, [x0]
	b	.Lanswer
.Lload32:
	ldr	w0, [x0]
	b	.Lanswer
.Lload64:
	ldr	x0, [x0]
	b	.Lanswer
.Lload_signed8:
	ldrsb	x0, [x0]
	b	.Lanswer
.Lload_signed16:
	ldrsh	x0, [x0]
	b	.Lanswer
.Lload_signed32:
	ldrsw	x0, [x0]
	b	.Lanswer
.Lstore8:
	strb	w1, [x0]
	b	.Lanswer_zero
.Lstore16:
	strh	w1, [x0]
	b	.Lanswer_zero
.Lstore32:
	str	w1, [x0]
	b	.Lanswer_zero
.Lstore64:
	str	x1, [x0]
	b	.Lanswer_zero

// x0: address, x1: bytes, x2: value
.Lfill:
	cbz	x1, .Lanswer_zero
	str	x2, [x0]
	add	x0, x0, #8
	sub	x1, x1, #8
	b	.Lfill

// x0: address, x1: bytes, x2: value
.Ldifferences:
	mov	x4, #0
1:	cbz	x1, 2f
	ldr	x3, [x0]
	add	x0, x0, #8
	sub	x1, x1, #8
	cmp	x3, x2
	cinc	x4, x4, ne
	b	1b
2:	mov	x0, x4
	b	.Lanswer

// x0: address, x1: bytes
.Lsend:
	cbz	x1, .Lanswer_zero
	ldr	x2, [x0]
	add	x0, x0, #8
	str	x2, [x19, #{DATA}]
	sub	x1, x1, #8
	b	.Lsend

// x0: address, x1: bytes
.Lreceive:
	cbz	x1, .Lanswer_zero
	ldr	x2, [x19, #{DATA}]
	str	x2, [x0]
	add	x0, x0, #8
	sub	x1, x1, #8
	b	.Lreceive

// x0-x2 are there already. Escrow wants zeros in the arguments that a call does
// not have.
.Lhypercall:
	ldr	x3, [x19, #{ARGUMENTS} + 24]
	ldr	x4, [x19, #{ARGUMENTS} + 32]
	mov	x5, xzr
	mov	x6, xzr
	mov	x7, xzr
	hvc	#0
	b	.Lanswer

// x0: seed. Register i: lower half seed + i, upper half its complement.
.macro for_each_vector operation:req
	.irp	i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	\operation \i
	.endr
.endm
.macro set_vector i:req
	add	x1, x0, #\i
	mvn	x2, x1
	mov	v\i\().d[0], x1
	mov	v\i\().d[1], x2
.endm
.macro check_vector i:req
	add	x1, x0, #\i
	mvn	x2, x1
	mov	x3, v\i\().d[0]
	mov	x4, v\i\().d[1]
	cmp	x1, x3
	ccmp	x2, x4, #0, eq
	cinc	x5, x5, ne
.endm
.Lset_vectors:
	for_each_vector set_vector
	b	.Lanswer_zero
.Lcheck_vectors:
	mov	x5, #0
	for_each_vector check_vector
	mov	x0, x5
	b	.Lanswer

.Lread_hidden:
	mrs	x0, pmcr_el0
	b	.Lanswer

// x0: ticks
.Lsleep:
	mrs	x1, cntvct_el0
	add	x2, x1, x0
	msr	cntv_cval_el0, x2
	mov	x3, #1			// enabled, not masked
	msr	cntv_ctl_el0, x3
	isb
1:	wfi
	isb				// the counter must not be read early
	mrs	x3, cntvct_el0
	cmp	x3, x2
	b.lo	1b
	msr	cntv_ctl_el0, xzr
	isb
	sub	x0, x3, x1
	b	.Lanswer

.Lspin:
	str	xzr, [x19, #{ANSWER}]
1:	b	1b

.Lpower_off:
	mov	w0, #{SYSTEM_OFF} & 0xffff
	movk	w0, #{SYSTEM_OFF} >> 16, lsl #16
	hvc	#0
	// It does not return. If it does, say so.
	b	.Lanswer

// Every exception is reported, and the instruction that caused it skipped.
// x20: the vector's number
.Lreport:
	mrs	x21, far_el1
	mrs	x22, esr_el1
	mrs	x23, elr_el1
	str	x21, [x19, #{EXCEPTION_FAR}]
	str	x22, [x19, #{EXCEPTION_ESR}]
	str	x20, [x19, #{EXCEPTION}]
	// Vectors 0, 4, 8 and 12 are synchronous: step over the instruction. The
	// others are not the instruction's fault.
	tst	x20, #3
	add	x24, x23, #4
	csel	x23, x24, x23, eq
	msr	elr_el1, x23
	eret

	.balign	2048
.Lvectors:
	.irp	number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	.balign	128
	mov	x20, #\number
	b	.Lreport
	.endr

	.globl	escrow_guest_program_end
escrow_guest_program_end:
	.previous
