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
 * As folio_ref_freeze(), and stores the count that the compare-and-swap read in *@count,
 * whether it succeeds or not: the report to EL2 has the count that was there.
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
 * False as long as the module is told of memory failures and has been told of none. Pages
 * that broke before the module was loaded are not handed out by the page allocator.
 */
bool escrow_may_be_poisoned;

bool escrow_folio_is_poisoned(struct folio *folio)
{
	/* Every lend calls this, so the pages are walked only if one can be marked. */
	return READ_ONCE(escrow_may_be_poisoned) && escrow_folio_is_marked(folio);
}

bool escrow_folio_is_marked(struct folio *folio)
{
	long i;

	/*
	 * memory_failure() marks the page. It sets the folio's flag only for a folio that
	 * is on an LRU list, so each page is checked.
	 */
	for (i = 0; i < folio_nr_pages(folio); i++) {
		if (PageHWPoison(folio_page(folio, i)))
			return true;
	}
	return false;
}

/* EL2 has refused a report of this module as false: a bug of the module. */
void escrow_seen_through(u64 index, u64 detail)
{
	pr_warn_once("refused by EL2, entry %llu, detail %llu\n", index, detail);
}

/* The program is at fault, not the kernel, so the log is rate-limited. */
void escrow_tree_refused(u64 vm, const char *why, size_t length)
{
	pr_warn_ratelimited("VM %#llx: its device tree is refused: %.*s\n", vm, (int)length, why);
}

void escrow_relax(void)
{
	cpu_relax();
}

/* Donates pages to EL2, which needs them for the tables of a VM. */
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
