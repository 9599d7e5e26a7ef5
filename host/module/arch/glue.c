// SPDX-License-Identifier: GPL-2.0-only
/* Floor 0: what Rust calls. */

#include <linux/bug.h>
#include <linux/eventfd.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/page_ref.h>
#include <linux/processor.h>
#include <linux/slab.h>

#include "arch/arch.h"

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

void escrow_folio_get(struct folio *folio)
{
	folio_get(folio);
}

void escrow_folio_put(struct folio *folio)
{
	folio_put(folio);
}

/*
 * folio_ref_freeze() that says what it found. Either way, *count is the count
 * as it was read, and nothing that the caller believes.
 */
bool escrow_folio_freeze(struct folio *folio, u32 at, u32 *count)
{
	*count = atomic_cmpxchg(&folio->_refcount, at, 0);
	return *count == at;
}

void escrow_folio_unfreeze(struct folio *folio, u32 to)
{
	folio_ref_unfreeze(folio, to);
}

/*
 * False while memory_failure() has said nothing, and would. What was broken before is
 * not taken from the page allocator.
 */
bool escrow_may_be_poisoned;

bool escrow_folio_is_poisoned(struct folio *folio)
{
	/* Each lend comes by here. */
	return READ_ONCE(escrow_may_be_poisoned) && escrow_folio_is_marked(folio);
}

bool escrow_folio_is_marked(struct folio *folio)
{
	long i;

	/* memory_failure() marks the page, and the folio only if it finds it on a list. */
	for (i = 0; i < folio_nr_pages(folio); i++) {
		if (PageHWPoison(folio_page(folio, i)))
			return true;
	}
	return false;
}

/* EL2 has seen through a report of ours: a bug. */
void escrow_seen_through(u64 index, u64 detail)
{
	pr_warn_once("refused by EL2, entry %llu, detail %llu\n", index, detail);
}

/* A program's own fault, so the log tells of some. */
void escrow_tree_refused(u64 vm, const char *why, size_t length)
{
	pr_warn_ratelimited("VM %#llx: its device tree is refused: %.*s\n", vm, (int)length, why);
}

void escrow_relax(void)
{
	cpu_relax();
}

/* EL2 needs memory for a VM. */
int escrow_top_up(struct escrow_borrower *borrower, u64 pages)
{
	return borrower->top_up(borrower, pages);
}

void escrow_event_signal(struct eventfd_ctx *event)
{
	eventfd_signal(event);
}

void escrow_event_put(struct eventfd_ctx *event)
{
	eventfd_ctx_put(event);
}
