// SPDX-License-Identifier: GPL-2.0-only
/* Floor 1: folios that the module allocates, and what is kept about each. */

#include <linux/gfp.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "folio/folio.h"

/*
 * A zeroed folio that nobody else knows. Not on any LRU list and with no
 * mapping: nothing in the kernel moves it, swaps it out or looks it up. NULL
 * without memory that Escrow knows, or if the payer may not have more; for a large one that is no reason to try
 * hard, as small ones serve as well.
 */
struct escrow_folio *escrow_folio_alloc(struct escrow_payer *payer, struct escrow_counts *counts,
					unsigned int order)
{
	gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_ZERO;
	struct escrow_folio *ef;
	struct page *page;

	if (order)
		gfp |= __GFP_NORETRY | __GFP_NOWARN;
	if (!escrow_payer_charge(payer, BIT(order)))
		return NULL;
	ef = kzalloc(sizeof(*ef), GFP_KERNEL_ACCOUNT);
	if (!ef)
		goto err_charge;
	gfp |= __GFP_COMP;
	page = escrow_ram_or_other(alloc_pages(gfp, order), gfp, order);
	if (!page) {
		kfree(ef);
		goto err_charge;
	}
	/* folio_alloc() would mark it as one that the kernel may split. */
	ef->folio = page_folio(page);
	INIT_LIST_HEAD(&ef->link);
	escrow_payer_show(ef->folio, true);
	WARN_ON_ONCE(escrow_rs_folio_populate(&ef->state, order, counts));
	return ef;

err_charge:
	escrow_payer_uncharge(payer, BIT(order));
	return NULL;
}

/* Broken memory that the page allocator must not have again. */
static void escrow_folio_lose(const struct escrow_folio *ef)
{
	pr_warn("%lu pages at frame %#lx are lost: memory broke\n", folio_nr_pages(ef->folio),
		folio_pfn(ef->folio));
}

/*
 * Gives up a folio that only the host has. Whoever holds a reference to it
 * keeps it. A folio that is not the host's is not freed, whatever the caller
 * thinks: losing memory is better than freeing what a guest has.
 */
void escrow_folio_free(struct escrow_folio *ef, struct escrow_payer *payer,
		       struct escrow_counts *counts)
{
	long pages = folio_nr_pages(ef->folio);

	if (escrow_rs_folio_is_broken(&ef->state)) {
		escrow_folio_lose(ef);
	} else if (WARN_ON_ONCE(escrow_rs_folio_remove(&ef->state, counts))) {
		return;
	} else if (folio_test_large(ef->folio) && escrow_folio_is_poisoned(ef->folio)) {
		/* The allocator keeps a broken page to itself only if it comes alone. */
		escrow_folio_lose(ef);
	} else {
		escrow_payer_show(ef->folio, false);
		folio_put(ef->folio);
	}
	escrow_payer_uncharge(payer, pages);
	kfree(ef);
}
