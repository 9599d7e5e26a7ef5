// SPDX-License-Identifier: GPL-2.0-only
/* Pages, and batches of them on their way to or from EL2. */

#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "escrow.h"

/*
 * A zeroed page that nobody else knows. Not on any LRU list and with no
 * mapping: nothing in the kernel moves it, swaps it out or looks it up.
 */
struct escrow_page *escrow_page_alloc(struct escrow_counts *counts)
{
	struct escrow_page *page;

	page = kzalloc(sizeof(*page), GFP_KERNEL_ACCOUNT);
	if (!page)
		return NULL;
	page->folio = folio_alloc(GFP_KERNEL_ACCOUNT | __GFP_ZERO, 0);
	if (!page->folio) {
		kfree(page);
		return NULL;
	}
	INIT_LIST_HEAD(&page->link);
	WARN_ON_ONCE(escrow_rs_page_populate(&page->state, counts));
	return page;
}

/*
 * Gives up a page that only the host has. Whoever holds a reference to the
 * folio keeps it. A page that is not the host's is not freed, whatever the
 * caller thinks: losing a page is better than freeing one that a guest has.
 */
void escrow_page_free(struct escrow_page *page, struct escrow_counts *counts)
{
	if (WARN_ON_ONCE(escrow_rs_page_remove(&page->state, counts)))
		return;
	folio_put(page->folio);
	kfree(page);
}

static size_t escrow_list_size(u32 capacity)
{
	return (size_t)capacity * sizeof(struct escrow_entry);
}

struct escrow_batch *escrow_batch_alloc(u32 capacity)
{
	struct escrow_batch *batch;

	batch = kvzalloc(struct_size(batch, pages, capacity), GFP_KERNEL_ACCOUNT);
	if (!batch)
		return NULL;
	batch->capacity = capacity;
	/* Whole pages of its own: EL2 reads the list where it is. */
	batch->list = alloc_pages_exact(escrow_list_size(capacity),
					GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!batch->list) {
		kvfree(batch);
		return NULL;
	}
	return batch;
}

void escrow_batch_free(struct escrow_batch *batch)
{
	if (!batch)
		return;
	free_pages_exact(batch->list, escrow_list_size(batch->capacity));
	kvfree(batch);
}

u64 escrow_batch_address(const struct escrow_batch *batch)
{
	return virt_to_phys(batch->list);
}

void escrow_batch_reset(struct escrow_batch *batch)
{
	batch->count = 0;
}

void escrow_batch_add(struct escrow_batch *batch, struct escrow_page *page, u64 guest,
		      u32 rights, const struct escrow_report *report)
{
	u32 at = batch->count++;

	batch->pages[at] = page;
	escrow_rs_list_entry(&batch->list[at], PFN_PHYS(folio_pfn(page->folio)), guest, rights,
			     report);
}

static void escrow_page_settle(struct escrow_page *page, struct escrow_counts *counts, int err,
			       bool quarantine)
{
	if (err)
		WARN_ON_ONCE(escrow_rs_page_kept(&page->state, counts, quarantine));
	else
		WARN_ON_ONCE(escrow_rs_page_taken_back(&page->state, counts, page->folio));
}

/*
 * Takes the pages of a batch back, which are all of one VM. Without
 * @quarantine all of them or none; with it, each that EL2 gives back.
 * Empties the batch.
 */
int escrow_batch_take_back(struct escrow_batch *batch, struct escrow_counts *counts,
			   bool quarantine)
{
	u32 count = batch->count, i;
	int err;

	if (!count)
		return 0;
	escrow_batch_reset(batch);
	err = escrow_rs_mem_take_back(batch->how, escrow_batch_address(batch), count);
	if (!err || !quarantine || count == 1) {
		for (i = 0; i < count; i++)
			escrow_page_settle(batch->pages[i], counts, err, quarantine);
		return err;
	}

	/* One of them is kept: find out which, and take the others. */
	err = 0;
	for (i = 0; i < count; i++) {
		int one;

		batch->list[0] = batch->list[i];
		one = escrow_rs_mem_take_back(batch->how, escrow_batch_address(batch), 1);
		escrow_page_settle(batch->pages[i], counts, one, quarantine);
		if (one)
			err = one;
		cond_resched();
	}
	return err;
}
