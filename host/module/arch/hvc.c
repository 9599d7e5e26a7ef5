// SPDX-License-Identifier: GPL-2.0-only
/* Floor 0: calls to EL2. */

#include "arch/arch.h"

/*
 * arm_smccc_1_2_hvc() moves 18 registers each way through memory, and
 * arm_smccc_1_1_hvc() has no fifth result. SMCCC 1.2 (Arm DEN0028, 2.6): a
 * call preserves x18 and up.
 */
void escrow_hvc(const u64 args[8], u64 results[5])
{
	/*
	 * Memory is read before and written after the registers are in use: what
	 * looks for mistakes makes a call of each access, which would change them.
	 */
	u64 a0 = args[0], a1 = args[1], a2 = args[2], a3 = args[3];
	u64 a4 = args[4], a5 = args[5], a6 = args[6], a7 = args[7];
	register u64 x0 asm("x0") = a0;
	register u64 x1 asm("x1") = a1;
	register u64 x2 asm("x2") = a2;
	register u64 x3 asm("x3") = a3;
	register u64 x4 asm("x4") = a4;
	register u64 x5 asm("x5") = a5;
	register u64 x6 asm("x6") = a6;
	register u64 x7 asm("x7") = a7;

	asm volatile("hvc #0"
		     : "+r" (x0), "+r" (x1), "+r" (x2), "+r" (x3),
		       "+r" (x4), "+r" (x5), "+r" (x6), "+r" (x7)
		     :
		     : "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
		       "x16", "x17", "cc", "memory");
	a0 = x0;
	a1 = x1;
	a2 = x2;
	a3 = x3;
	a4 = x4;
	results[0] = a0;
	results[1] = a1;
	results[2] = a2;
	results[3] = a3;
	results[4] = a4;
}
