// SPDX-License-Identifier: GPL-2.0-only
/* Floor 2: how a memory's folios are reclaimed from a guest. */

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>

#include "mem/mem.h"

const struct escrow_filter escrow_any_vm = { .how = -1 };

/* Updates the payer's RSS by the number of pages that guests have. */
void escrow_mem_show_away(struct escrow_mem *mem)
{
	WRITE_ONCE(mem->unseen, 0);
	escrow_payer_show_away(&mem->payer, &mem->counts);
}

/* Reclaims the sound pages of a large folio that is broken in a part. */
static int escrow_mem_reclaim_broken(struct escrow_mem *mem, struct escrow_folio *ef, u64 *lacks)
{
	struct escrow_batch *batch;
	u64 vm, guest;
	int err;

	if (!folio_test_large(ef->folio) || !escrow_rs_folio_has_rest(&ef->state, &vm, &guest))
		return -EHWPOISON;
	batch = escrow_batch_alloc(folio_nr_pages(ef->folio));
	if (!batch)
		return -ENOMEM;
	err = escrow_mem_reclaim_rest(mem, ef, batch);
	if (err == -ENOMEM)
		*lacks = vm;
	escrow_batch_free(batch);
	return err;
}

/*
 * Reclaims one folio that is away. The folio is locked, or nobody else has the
 * memory. -EHWPOISON: it broke on its way.
 */
int escrow_mem_reclaim_folio(struct escrow_mem *mem, struct escrow_folio *ef, u64 *lacks)
{
	static const struct escrow_report none;
	struct escrow_batch *batch;
	u64 vm, guest;
	int err;

	*lacks = 0;
	if (escrow_rs_folio_is_broken(&ef->state))
		return escrow_mem_reclaim_broken(mem, ef, lacks);
	if (escrow_rs_folio_borrower(&ef->state, &vm, &guest) < 0)
		return -ENOENT;
	batch = escrow_batch_alloc(folio_nr_pages(ef->folio));
	if (!batch)
		return -ENOMEM;
	batch->memory = escrow_mem_id(mem);
	batch->vm = vm;
	err = escrow_rs_folio_begin_reclaim(&ef->state, &mem->counts);
	if (err >= 0) {
		batch->how = err;
		escrow_batch_add(batch, ef, 0, 0, &none);
		err = escrow_batch_reclaim(batch, &mem->counts, false);
		if (err == -ENOMEM)
			*lacks = vm;
		escrow_mem_show_away(mem);
	}
	escrow_batch_free(batch);
	return !err && escrow_rs_folio_is_broken(&ef->state) ? -EHWPOISON : err;
}

/* Whether a folio is away and matches the filter: its enum escrow_how, or negative. */
static int escrow_mem_is_meant(const struct escrow_folio *ef,
			       const struct escrow_filter *filter, u64 *vm)
{
	u64 guest;
	int how;

	how = escrow_rs_folio_borrower(&ef->state, vm, &guest);
	if (how < 0 || (filter->vm && *vm != filter->vm) ||
	    (filter->how >= 0 && how != filter->how))
		return -ENOENT;
	return how;
}

/* Reclaims the folios of the memory's batch. */
static int escrow_mem_flush(struct escrow_mem *mem, const struct escrow_filter *filter,
			    bool quarantine)
{
	struct escrow_batch *batch = mem->batch;
	u32 count = batch->count, i;
	int err;

	err = escrow_batch_reclaim(batch, &mem->counts, quarantine);
	if (!filter->drop || batch->how != ESCROW_LENT)
		return err;
	for (i = 0; i < count; i++) {
		struct escrow_folio *ef = batch->folios[i];

		/* If a user in the kernel has a reference, the folio must stay in the index. */
		if (escrow_rs_folio_is_reachable(&ef->state) && folio_ref_count(ef->folio) == 1)
			escrow_mem_drop(mem, ef->index, escrow_folio_next(ef) - 1);
	}
	return err;
}

/* Whether a large folio is broken in a part, and the filter's VM has the rest, or none has. */
static bool escrow_mem_is_rest_meant(const struct escrow_folio *ef,
				     const struct escrow_filter *filter)
{
	u64 vm, guest;

	if (!escrow_rs_folio_is_broken(&ef->state) || !folio_test_large(ef->folio))
		return false;
	return !filter->vm || !escrow_rs_folio_has_rest(&ef->state, &vm, &guest) ||
	       vm == filter->vm;
}

/*
 * Takes back those of a range, and of the folios that reach out of it, that
 * are meant. Without @quarantine, stops at the first folio that EL2 keeps;
 * what came home before is fetched again by the guest as it needs it. Under
 * the exclusive lock.
 */
int __escrow_mem_reclaim(struct escrow_mem *mem, pgoff_t first, pgoff_t last,
			 const struct escrow_filter *filter, bool quarantine, u64 *lacks)
{
	static const struct escrow_report none;
	struct escrow_batch *batch = mem->batch;
	struct escrow_folio *ef;
	unsigned long index;
	int err = 0, one;

	*lacks = 0;
	escrow_batch_reset(batch);
	batch->memory = escrow_mem_id(mem);
	xa_for_each_range(&mem->folios, index, ef, escrow_mem_head(mem, first), last) {
		u64 borrower = 0;
		int has = escrow_mem_is_meant(ef, filter, &borrower);

		cond_resched();
		if (escrow_mem_is_rest_meant(ef, filter)) {
			one = escrow_mem_flush(mem, filter, quarantine);
			err = err ?: one;
			/* The VM keeps the rest of the folio as long as it lives: then no split. */
			if (!escrow_mem_reclaim_rest(mem, ef, batch))
				escrow_mem_split(mem, ef, NULL);
			else if (!quarantine)
				err = err ?: -EBUSY;
			if (err && !quarantine)
				goto out;
			continue;
		}
		if (has < 0)
			continue;
		/* One call of EL2 takes folios of one VM that are all lent or all shared. */
		if (escrow_batch_is_full(batch, ef) ||
		    (batch->count && (batch->vm != borrower || batch->how != has))) {
			one = escrow_mem_flush(mem, filter, quarantine);
			err = err ?: one;
			if (err && !quarantine)
				goto out;
		}
		if (escrow_rs_folio_begin_reclaim(&ef->state, &mem->counts) < 0)
			continue;
		batch->vm = borrower;
		batch->how = has;
		escrow_batch_add(batch, ef, 0, 0, &none);
	}
	one = escrow_mem_flush(mem, filter, quarantine);
	err = err ?: one;
out:
	escrow_mem_show_away(mem);
	/* The error is the last batch's: without @quarantine, an error ends the loop. */
	if (err == -ENOMEM)
		*lacks = batch->vm;
	return err;
}

int escrow_mem_reclaim(struct escrow_mem *mem, u64 offset, u64 size,
		       const struct escrow_filter *filter, bool quarantine, u64 *lacks)
{
	struct address_space *mapping = escrow_mapping(mem);
	int err;

	filemap_invalidate_lock(mapping);
	err = __escrow_mem_reclaim(mem, offset >> PAGE_SHIFT, (offset + size - 1) >> PAGE_SHIFT,
				   filter, quarantine, lacks);
	filemap_invalidate_unlock(mapping);
	return err;
}

/*
 * After an error: whether it is worth another try, because the VM that EL2
 * needed memory for (@lacks) has some now. Without locks of the memory, as this
 * may be the end of that VM.
 */
bool escrow_mem_top_up(struct escrow_mem *mem, int err, u64 lacks)
{
	return err == -ENOMEM && lacks && !mem->top_up(lacks);
}
