// SPDX-License-Identifier: GPL-2.0-only
/* What Rust calls. */

#include <linux/arm-smccc.h>
#include <linux/bug.h>
#include <linux/delay.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/page_ref.h>
#include <linux/processor.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "escrow.h"

void *escrow_alloc(size_t size)
{
	return kvmalloc(size, GFP_KERNEL_ACCOUNT);
}

void escrow_free(void *block)
{
	kvfree(block);
}

void __noreturn escrow_panic(const char *file, size_t length, u32 line)
{
	pr_emerg("bug at %.*s:%u\n", (int)length, file, line);
	BUG();
}

void escrow_hvc(const u64 args[8], u64 results[5])
{
	const struct arm_smccc_1_2_regs in = {
		.a0 = args[0], .a1 = args[1], .a2 = args[2], .a3 = args[3],
		.a4 = args[4], .a5 = args[5], .a6 = args[6], .a7 = args[7],
	};
	struct arm_smccc_1_2_regs out;

	arm_smccc_1_2_hvc(&in, &out);
	results[0] = out.a0;
	results[1] = out.a1;
	results[2] = out.a2;
	results[3] = out.a3;
	results[4] = out.a4;
}

bool escrow_folio_freeze(struct folio *folio, u32 at, u32 *count)
{
	if (folio_ref_freeze(folio, at))
		return true;
	*count = folio_ref_count(folio);
	return false;
}

void escrow_folio_unfreeze(struct folio *folio, u32 to)
{
	folio_ref_unfreeze(folio, to);
}

bool escrow_pause(u32 microseconds)
{
	if (fatal_signal_pending(current))
		return false;
	escrow_count(ESCROW_RETRIES, 1);
	if (microseconds)
		usleep_range(microseconds, microseconds + microseconds / 2);
	else
		cpu_relax();
	return true;
}
