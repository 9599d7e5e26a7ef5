// SPDX-License-Identifier: GPL-2.0-only
/* How a memory's pages come into being, leave for a guest, and come home. */

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "escrow.h"

/* The page at an offset, made if there is none. Under the invalidate_lock. */
struct escrow_page *escrow_mem_page(struct escrow_mem *mem, pgoff_t index)
{
	struct escrow_page *page, *old;

	page = xa_load(&mem->pages, index);
	if (page)
		return page;
	page = escrow_page_alloc(&mem->counts);
	if (!page)
		return ERR_PTR(-ENOMEM);
	old = xa_cmpxchg(&mem->pages, index, NULL, page, GFP_KERNEL_ACCOUNT);
	if (!old)
		return page;
	escrow_page_free(page, &mem->counts);
	return xa_is_err(old) ? ERR_PTR(xa_err(old)) : old;
}

/*
 * Asks EL2 for one page that is away, under the shared lock, with its folio
 * locked.
 */
int escrow_mem_fetch(struct escrow_mem *mem, struct escrow_page *page,
		     struct escrow_batch *batch)
{
	static const struct escrow_report none;
	int how;

	how = escrow_rs_page_begin_take_back(&page->state, &mem->counts);
	if (how < 0)
		return how;
	escrow_batch_reset(batch);
	batch->how = how;
	escrow_batch_add(batch, page, 0, 0, &none);
	return escrow_batch_take_back(batch, &mem->counts, false);
}

static void escrow_mem_refused(struct escrow_mem *mem, u64 offset,
			       const struct escrow_refusal *refusal)
{
	pr_debug("offset %#llx is in use: excess %lld, accessible %u\n", offset, refusal->excess,
		 refusal->accessible);
	spin_lock(&mem->refusal_lock);
	mem->was_refused = true;
	mem->refused_offset = offset;
	mem->refusal = *refusal;
	spin_unlock(&mem->refusal_lock);
}

/* Prepares one page for a guest. 0: is in the batch, 1: is there already. */
static int escrow_mem_prepare(struct escrow_mem *mem, struct escrow_vm *vm,
			      const struct escrow_place *place, u32 i,
			      struct escrow_page *page, struct escrow_batch *batch)
{
	u64 at = (u64)i << PAGE_SHIFT;
	struct escrow_report report = {};
	struct escrow_refusal refusal = {};
	int err;

	err = escrow_rs_page_begin_give(&page->state, page->folio, place->how, vm->handle,
					place->guest + at, &report, &refusal);
	if (err == -EAGAIN)
		escrow_mem_refused(mem, place->offset + at, &refusal);
	if (!err)
		escrow_batch_add(batch, page, place->guest + at, place->rights, &report);
	return err;
}

/*
 * Gives the guest a run of pages: all of them or none. -EAGAIN: somebody uses
 * one of them; fdinfo says which. Under vm->lock.
 */
int escrow_mem_give(struct escrow_vm *vm, const struct escrow_place *place)
{
	struct escrow_mem *mem = place->mem;
	struct address_space *mapping = escrow_mapping(mem);
	u32 count = place->size >> PAGE_SHIFT, locked, begun, i;
	pgoff_t first = place->offset >> PAGE_SHIFT;
	struct escrow_page **pages;
	struct escrow_batch *batch;
	bool mapped = false;
	int err = 0;

	batch = escrow_batch_alloc(count);
	pages = kvcalloc(count, sizeof(*pages), GFP_KERNEL_ACCOUNT);
	if (!batch || !pages) {
		err = -ENOMEM;
		goto out_free;
	}

	/* Several folios are only locked by one task at a time. */
	if (count == 1)
		filemap_invalidate_lock_shared(mapping);
	else
		filemap_invalidate_lock(mapping);
	if (place->offset + place->size > i_size_read(mapping->host)) {
		err = -EINVAL;
		goto out_unlock;
	}
	for (locked = 0; locked < count; locked++) {
		struct escrow_page *page = escrow_mem_page(mem, first + locked);
		u64 borrower;

		if (IS_ERR(page)) {
			err = PTR_ERR(page);
			goto out_folios;
		}
		pages[locked] = page;
		folio_lock(page->folio);
		mapped |= folio_mapped(page->folio);
		/* Another VM that it was lent to may have given it up, or died. */
		if (escrow_rs_page_borrower(&page->state, &borrower) == ESCROW_LENT &&
		    borrower != vm->handle)
			escrow_mem_fetch(mem, page, batch);
	}

	/* With the folios locked, no mapping of them can come back. */
	if (mapped && place->how == ESCROW_LENT)
		unmap_mapping_range(mapping, place->offset, place->size, 0);
	escrow_batch_reset(batch);
	for (i = 0; i < count; i++) {
		err = escrow_mem_prepare(mem, vm, place, i, pages[i], batch);
		if (err < 0)
			break;
	}
	if (err >= 0 && batch->count) {
		u64 index = 0, detail = 0;

		err = escrow_rs_mem_give(vm, vm->handle, place->how, escrow_batch_address(batch),
					 batch->count, &index, &detail);
		if (err == -EAGAIN && index < batch->count) {
			/* EL2 has seen through a report of ours: a bug. */
			pr_warn_once("refused by EL2, entry %llu, detail %llu\n", index, detail);
		}
	}
	/* The pages that were begun are in the batch, in the same order. */
	for (i = 0, begun = 0; begun < batch->count; i++) {
		struct escrow_page *page = pages[i];

		if (batch->pages[begun] != page)
			continue;
		begun++;
		WARN_ON_ONCE(escrow_rs_page_end_give(&page->state, &mem->counts, page->folio,
						     place->how, vm->handle,
						     place->guest + ((u64)i << PAGE_SHIFT),
						     err >= 0));
	}
out_folios:
	for (i = 0; i < locked; i++)
		folio_unlock(pages[i]->folio);
out_unlock:
	if (count == 1)
		filemap_invalidate_unlock_shared(mapping);
	else
		filemap_invalidate_unlock(mapping);
out_free:
	kvfree(pages);
	escrow_batch_free(batch);
	return min(err, 0);
}

/*
 * Takes back what guests have of a range; only @vm's pages unless it is 0,
 * only those that it has in that way unless @how is negative. Without
 * @quarantine, stops at the first page that EL2 keeps; what came home before
 * is fetched again by the guest as it needs it. Under the exclusive lock.
 */
int __escrow_mem_take_back(struct escrow_mem *mem, pgoff_t first, pgoff_t last, u64 vm,
			   int how, bool quarantine)
{
	static const struct escrow_report none;
	struct escrow_batch *batch = mem->batch;
	struct escrow_page *page;
	unsigned long index;
	int err = 0, one;

	escrow_batch_reset(batch);
	xa_for_each_range(&mem->pages, index, page, first, last) {
		u64 borrower = 0;
		int has = escrow_rs_page_borrower(&page->state, &borrower);

		if (has < 0 || (vm && borrower != vm) || (how >= 0 && has != how))
			continue;
		/* One call takes pages of one VM, in one way. */
		if (batch->count == batch->capacity ||
		    (batch->count && (batch->vm != borrower || batch->how != has))) {
			one = escrow_batch_take_back(batch, &mem->counts, quarantine);
			err = err ?: one;
			if (err && !quarantine)
				return err;
			cond_resched();
		}
		if (escrow_rs_page_begin_take_back(&page->state, &mem->counts) < 0)
			continue;
		batch->vm = borrower;
		batch->how = has;
		escrow_batch_add(batch, page, 0, 0, &none);
	}
	one = escrow_batch_take_back(batch, &mem->counts, quarantine);
	return err ?: one;
}

int escrow_mem_take_back(struct escrow_mem *mem, u64 offset, u64 size, u64 vm, int how,
			 bool quarantine)
{
	struct address_space *mapping = escrow_mapping(mem);
	int err;

	filemap_invalidate_lock(mapping);
	err = __escrow_mem_take_back(mem, offset >> PAGE_SHIFT, (offset + size - 1) >> PAGE_SHIFT,
				     vm, how, quarantine);
	filemap_invalidate_unlock(mapping);
	return err;
}
