// SPDX-License-Identifier: GPL-2.0-only
/* Floor 1: batches of folios on their way to or from EL2. */

#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "arch/events.h"
#include "folio/folio.h"

static size_t escrow_list_size(u32 capacity)
{
	return (size_t)capacity * sizeof(struct escrow_entry);
}

struct escrow_batch *escrow_batch_alloc(u32 capacity)
{
	struct escrow_batch *batch;

	batch = kvzalloc(struct_size(batch, folios, capacity), GFP_KERNEL_ACCOUNT);
	if (!batch)
		return NULL;
	batch->capacity = capacity;
	/* EL2 reads the list by its physical address: it has pages of its own. */
	batch->list = alloc_pages_exact(escrow_list_size(capacity),
					GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	batch->list = escrow_ram_or_other_exact(batch->list, escrow_list_size(capacity));
	if (!batch->list) {
		kvfree(batch);
		return NULL;
	}
	batch->address = virt_to_phys(batch->list);
	return batch;
}

void escrow_batch_free(struct escrow_batch *batch)
{
	if (!batch)
		return;
	free_pages_exact(batch->list, escrow_list_size(batch->capacity));
	kvfree(batch);
}

/* Whether the batch must be sent before @ef is added, so that its call does not get too long. */
bool escrow_batch_is_full(const struct escrow_batch *batch, const struct escrow_folio *ef)
{
	return batch->count == batch->capacity ||
	       batch->pages + folio_nr_pages(ef->folio) > ESCROW_CALL_PAGES;
}

void escrow_batch_add(struct escrow_batch *batch, struct escrow_folio *ef, u64 guest, u32 rights,
		      const struct escrow_report *report)
{
	u32 at = batch->count++;

	batch->pages += folio_nr_pages(ef->folio);
	batch->folios[at] = ef;
	escrow_rs_list_entry(&batch->list[at], PFN_PHYS(folio_pfn(ef->folio)),
			     folio_order(ef->folio), guest, rights, report);
}

/*
 * Tells the kernel which pages of a folio broke on their way home: it marks them, and
 * the module hears of it as of any others (dev/poison.c). It may take locks that the
 * caller has, so it does that later.
 */
void escrow_folio_report(const struct escrow_folio *ef)
{
	long i;

	for (i = 0; i < folio_nr_pages(ef->folio); i++) {
		struct page *page = folio_page(ef->folio, i);

		if (!PageHWPoison(page) && !escrow_rs_is_home(PFN_PHYS(page_to_pfn(page)), 1))
			memory_failure_queue(page_to_pfn(page), 0);
	}
}

/*
 * Ends the reclaim of one folio, whose result was @err, and returns that; or -EHWPOISON if
 * the folio broke on its way home, and no VM has it.
 */
static int escrow_batch_settle(struct escrow_batch *batch, u32 at,
			       struct escrow_counts *counts, int err, bool quarantine)
{
	struct escrow_folio *ef = batch->folios[at];
	bool broke = err == -EHWPOISON;

	if (broke) {
		WARN_ON_ONCE(escrow_rs_folio_broken(&ef->state, counts));
		escrow_folio_report(ef);
	} else if (err) {
		WARN_ON_ONCE(escrow_rs_folio_kept(&ef->state, counts, quarantine));
	} else {
		WARN_ON_ONCE(escrow_rs_folio_reclaimed(&ef->state, counts, ef->folio));
	}
	if (batch->memory)
		escrow_note_reclaim(batch->memory, batch->vm, (u64)ef->index << PAGE_SHIFT,
				    folio_nr_pages(ef->folio), err, err && !broke && quarantine,
				    !quarantine && batch->how == ESCROW_LENT);
	return broke ? 0 : err;
}

/* A folio that broke on its way home is neither the guest's nor the host's. */
static int escrow_batch_home(const struct escrow_folio *ef)
{
	return escrow_rs_is_home(PFN_PHYS(folio_pfn(ef->folio)), folio_nr_pages(ef->folio)) ?
	       0 : -EHWPOISON;
}

/*
 * Takes one folio back. EL2 takes a large one for one only while all of its
 * pages are in the same state; a guest may have unlocked them in different ways.
 */
static int escrow_batch_reclaim_one(struct escrow_batch *batch, const struct escrow_folio *ef)
{
	static const struct escrow_report none;
	u32 pages = folio_nr_pages(ef->folio), i;
	u64 frame = PFN_PHYS(folio_pfn(ef->folio));
	u32 done;
	int err;

	escrow_rs_list_entry(&batch->list[0], frame, folio_order(ef->folio), 0, 0, &none);
	err = escrow_rs_mem_reclaim(batch->how, batch->address, 1, &done);
	/* EL2 does not give back a page that broke in a call of EL2's that then failed. */
	if (err && pages == 1 && escrow_rs_is_broken(frame))
		return -EHWPOISON;
	if (!err || err == -EHWPOISON || err == -ENOMEM || pages == 1 || pages > batch->capacity)
		return err;
	for (i = 0; i < pages; i++)
		escrow_rs_list_entry(&batch->list[i], frame + PFN_PHYS(i), 0, 0, 0, &none);
	/* The list has at most a block's pages: EL2 takes all of them or none. */
	return escrow_rs_mem_reclaim(batch->how, batch->address, pages, &done);
}

/*
 * Reclaims the folios of a batch, which are all of one VM. With @quarantine,
 * each that EL2 gives back; without, those before the first that it keeps, or
 * none. Empties the batch. -ENOMEM: to unmap a part of a block, EL2 needs one
 * more table of that VM, batch->vm.
 */
int escrow_batch_reclaim(struct escrow_batch *batch, struct escrow_counts *counts,
			 bool quarantine)
{
	u32 count = batch->count, pages = batch->pages, done = 0, i;
	int err;

	if (!count)
		return 0;
	escrow_batch_reset(batch);
	err = escrow_rs_mem_reclaim(batch->how, batch->address, count, &done);
	if (!err || (pages == count && !quarantine)) {
		for (i = 0; i < count; i++) {
			int one = err;

			if (err && i < done)
				one = escrow_batch_home(batch->folios[i]);
			escrow_batch_settle(batch, i, counts, one, quarantine);
		}
		return err == -EHWPOISON ? 0 : err;
	}

	/* EL2 keeps one of them. Take folio by folio, to find which it is. */
	err = 0;
	for (i = 0; i < count; i++) {
		int one = i < done ? escrow_batch_home(batch->folios[i]) : err;

		/* The first @done folios are back already: a long call ended after them. */
		if (i >= done && (!err || quarantine))
			one = escrow_batch_reclaim_one(batch, batch->folios[i]);
		err = escrow_batch_settle(batch, i, counts, one, quarantine) ?: err;
		cond_resched();
	}
	return err;
}
