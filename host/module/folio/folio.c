// SPDX-License-Identifier: GPL-2.0-only
/* Floor 1: folios that the module allocates, and what is kept about each. */

#include <linux/gfp.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "folio/folio.h"

/* Leaks a folio with broken memory, so that the page allocator never gets it. */
static void escrow_folio_lose(const struct escrow_folio *ef)
{
	pr_warn("%lu pages at frame %#lx are lost: memory broke\n", folio_nr_pages(ef->folio),
		folio_pfn(ef->folio));
}

/*
 * Allocates a zeroed folio. It is on no LRU list and has no mapping, so the kernel does
 * not move it, swap it out or look it up. NULL if there is no RAM of boot, or if the payer
 * has reached its limit. For a large one the allocator does not try hard, as small ones
 * can be used in its place.
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
	/*
	 * Not folio_alloc(): it marks a folio as rmappable, and Linux then splits it by its own
	 * rules.
	 */
	ef->folio = page_folio(page);
	/* The allocator returns a broken page that was freed as a part of a larger block. */
	if (unlikely(escrow_folio_is_marked(ef->folio))) {
		escrow_folio_lose(ef);
		kfree(ef);
		goto err_charge;
	}
	INIT_LIST_HEAD(&ef->link);
	escrow_payer_show(ef->folio, true);
	WARN_ON_ONCE(escrow_rs_folio_populate(&ef->state, order, counts));
	return ef;

err_charge:
	escrow_payer_uncharge(payer, BIT(order));
	return NULL;
}

/* Allocates the record of a page that becomes a folio of its own. */
struct escrow_folio *escrow_folio_record(struct page *page)
{
	struct escrow_folio *ef = kzalloc(sizeof(*ef), GFP_KERNEL_ACCOUNT);

	if (!ef)
		return NULL;
	/* The page is still a tail page: it becomes this folio when the split is done. */
	ef->folio = (struct folio *)page;
	INIT_LIST_HEAD(&ef->link);
	return ef;
}

#ifdef CONFIG_MEMCG
#define escrow_page_uncharged(page) ((page)->memcg_data = 0)
#else
#define escrow_page_uncharged(page) ((void)(page))
#endif

/*
 * Makes a large folio, which is frozen and not mapped, into pages: each is a folio
 * of its own then, with one reference, which is the caller's. hugetlb does it like
 * this before it frees a gigantic folio; the page allocator's split_page() does the
 * rest, among it the charges. No reference can be taken while the count of a page is 0.
 */
void escrow_folio_dissolve(struct folio *folio)
{
	struct address_space *mapping = folio->mapping;
	unsigned int order = folio_order(folio);
	struct page *head = &folio->page;
	pgoff_t index = folio->index;
	unsigned long i;

	/* Atomically: memory_failure() may set PG_hwpoison of that page meanwhile. */
	set_mask_bits(&folio->_flags_1, PAGE_FLAGS_SECOND, 0);
	for (i = 1; i < BIT(order); i++) {
		struct page *page = head + i;

		escrow_page_uncharged(page);
		set_page_private(page, 0);
		page->mapping = mapping;
		clear_compound_head(page);
		page_folio(page)->index = index + i;
	}
	/* ClearPageCompound() does not exist in kernels without huge pages (PREEMPT_RT). */
	ClearPageHead(head);
	folio_ref_unfreeze(folio, 1);
	split_page(head, order);
}

/* Frees the pages of a former large folio, but for those that EL2 keeps. */
static void escrow_folio_free_pages(struct page *head, unsigned int order)
{
	unsigned long i;

	for (i = 0; i < BIT(order); i++) {
		struct page *page = head + i;

		WRITE_ONCE(page->mapping, NULL);
		/* A page that is marked as broken can be freed: the allocator keeps it. */
		if (PageHWPoison(page) || escrow_rs_is_home(PFN_PHYS(page_to_pfn(page)), 1)) {
			escrow_payer_show(page_folio(page), false);
			put_page(page);
		} else {
			pr_warn("the page at frame %#lx is lost\n", page_to_pfn(page));
		}
	}
}

/*
 * Gives up a large folio with broken pages, which the page allocator would take for
 * whole if they came with it.
 */
static void escrow_folio_free_large(struct escrow_folio *ef, struct escrow_counts *counts,
				    bool is_broken)
{
	unsigned int order = folio_order(ef->folio);
	struct page *head = &ef->folio->page;
	struct escrow_refusal refusal;

	if (is_broken)
		WARN_ON_ONCE(escrow_rs_folio_rest_reclaimed(&ef->state, counts, ef->folio));
	if (escrow_rs_folio_begin_split(&ef->state, ef->folio, &refusal)) {
		/* Somebody has a reference to the folio. The last one who drops his frees it. */
		escrow_folio_lose(ef);
		escrow_rs_folio_remove(&ef->state, counts);
		return;
	}
	escrow_folio_dissolve(ef->folio);
	escrow_folio_free_pages(head, order);
	WARN_ON_ONCE(escrow_rs_folio_split(&ef->state, counts));
}

/* Frees the record of a broken folio that is home, and takes it off the counts. */
static void escrow_folio_free_small(struct escrow_folio *ef, struct escrow_counts *counts)
{
	/* Users in the kernel may still have references, and then the folio is not freed here. */
	if (escrow_rs_folio_remove_broken(&ef->state, counts, ef->folio))
		escrow_folio_lose(ef);
	else
		escrow_folio_free_pages(&ef->folio->page, 0);
}

/*
 * Drops the reference to a folio that only the host has; other references keep it. If
 * a guest has the folio, which is a mistake of the caller, it is not freed: a leak is
 * better than a guest's page in the page allocator.
 */
void escrow_folio_free(struct escrow_folio *ef, struct escrow_payer *payer,
		       struct escrow_counts *counts)
{
	bool is_broken = escrow_rs_folio_is_broken(&ef->state);
	struct folio *folio = ef->folio;
	long pages = folio_nr_pages(folio);

	WRITE_ONCE(folio->mapping, NULL);
	if (folio_test_large(folio) && (is_broken || escrow_folio_is_poisoned(folio))) {
		escrow_folio_free_large(ef, counts, is_broken);
	} else if (is_broken) {
		escrow_folio_free_small(ef, counts);
	} else if (!WARN_ON_ONCE(escrow_rs_folio_remove(&ef->state, counts))) {
		escrow_payer_show(folio, false);
		folio_put(folio);
	} else {
		return;
	}
	escrow_payer_uncharge(payer, pages);
	kfree(ef);
}
