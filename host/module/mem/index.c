// SPDX-License-Identifier: GPL-2.0-only
/* Floor 2: which folios a memory has: made, found, split and dropped. */

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "mem/mem.h"

/*
 * The folio that has a page, or NULL. Under the invalidate_lock.
 *
 * A large folio is in the array at its first page's index, and none of its
 * other pages are there.
 */
struct escrow_folio *escrow_mem_find(struct escrow_mem *mem, pgoff_t index)
{
	struct escrow_folio *ef = xa_load(&mem->folios, index);

	if (ef || !mem->huge)
		return ef;
	ef = xa_load(&mem->folios, round_down(index, ESCROW_HUGE_PAGES));
	return ef && folio_test_large(ef->folio) ? ef : NULL;
}

/* Where to begin to look for the folios of a range. Under the invalidate_lock. */
pgoff_t escrow_mem_head(struct escrow_mem *mem, pgoff_t index)
{
	struct escrow_folio *ef = escrow_mem_find(mem, index);

	return ef ? ef->index : index;
}

static struct escrow_folio *escrow_mem_add(struct escrow_mem *mem, pgoff_t index,
					   unsigned int order)
{
	struct escrow_folio *ef, *old;

	ef = escrow_folio_alloc(&mem->payer, &mem->counts, order);
	if (!ef)
		return ERR_PTR(-ENOMEM);
	ef->index = index;
	old = xa_cmpxchg(&mem->folios, index, NULL, ef, GFP_KERNEL_ACCOUNT);
	if (!old)
		return ef;
	escrow_folio_free(ef, &mem->payer, &mem->counts);
	return xa_is_err(old) ? ERR_PTR(xa_err(old)) : old;
}

/* Whether a large folio may be made around a page. With the make_lock. */
static bool escrow_mem_has_room(struct escrow_mem *mem, pgoff_t index)
{
	unsigned long head = round_down(index, ESCROW_HUGE_PAGES), at = head;
	loff_t size = i_size_read(escrow_mapping(mem)->host);

	return head + ESCROW_HUGE_PAGES <= size >> PAGE_SHIFT &&
	       !xa_find(&mem->folios, &at, head + ESCROW_HUGE_PAGES - 1, XA_PRESENT);
}

static noinline struct escrow_folio *escrow_mem_make_new(struct escrow_mem *mem, pgoff_t index)
{
	struct escrow_folio *ef;

	if (!mem->huge)
		return escrow_mem_add(mem, index, 0);

	/* Two who need two pages must not make a small and a large folio. */
	mutex_lock(&mem->make_lock);
	ef = escrow_mem_find(mem, index);
	if (!ef && escrow_mem_has_room(mem, index)) {
		ef = escrow_mem_add(mem, round_down(index, ESCROW_HUGE_PAGES), ESCROW_HUGE_ORDER);
		if (IS_ERR(ef))
			ef = NULL;
	}
	if (!ef)
		ef = escrow_mem_add(mem, index, 0);
	mutex_unlock(&mem->make_lock);
	return ef;
}

/* The folio that has a page, made if there is none. Under the invalidate_lock. */
struct escrow_folio *escrow_mem_make(struct escrow_mem *mem, pgoff_t index)
{
	return escrow_mem_find(mem, index) ?: escrow_mem_make_new(mem, index);
}

/* Makes small folios for the pages of a large one, with the same contents. */
static int escrow_mem_copy(struct escrow_mem *mem, struct escrow_folio *large,
			   struct escrow_folio **small)
{
	long pages = folio_nr_pages(large->folio), i;

	for (i = 0; i < pages; i++) {
		small[i] = escrow_folio_alloc(&mem->payer, &mem->counts, 0);
		if (!small[i])
			return -ENOMEM;
		small[i]->index = large->index + i;
		copy_highpage(folio_page(small[i]->folio, 0), folio_page(large->folio, i));
		cond_resched();
	}
	return 0;
}

/* Puts them in its place; the first one last, as that needs no memory. */
static int escrow_mem_replace(struct escrow_mem *mem, struct escrow_folio *large,
			      struct escrow_folio **small)
{
	long pages = folio_nr_pages(large->folio), i;
	int err;

	for (i = pages - 1; i >= 0; i--) {
		err = xa_err(xa_store(&mem->folios, small[i]->index, small[i],
				      GFP_KERNEL_ACCOUNT));
		if (err)
			break;
	}
	if (i < 0)
		return 0;
	while (++i < pages)
		xa_erase(&mem->folios, small[i]->index);
	return err;
}

/*
 * Makes small folios out of a large one that is home, because a part of it has
 * to go a way of its own. For that, nobody may hold it: -EAGAIN as for a lend,
 * and everything is as it was. Under the exclusive lock.
 */
int escrow_mem_split(struct escrow_mem *mem, struct escrow_folio *ef,
		     struct escrow_attempt *attempt)
{
	/* Safe references, which hinder no lend, are to this folio. */
	struct escrow_refusal refusal = { .excess = escrow_rs_folio_holders(&ef->state) };
	struct escrow_report report;
	struct escrow_folio **small;
	struct folio *folio = ef->folio;
	long pages = folio_nr_pages(folio), i;
	int err;

	if (refusal.excess) {
		escrow_mem_refused(mem, ef, &refusal, NULL, attempt);
		return -EAGAIN;
	}
	small = kvcalloc(pages, sizeof(*small), GFP_KERNEL_ACCOUNT);
	if (!small)
		return -ENOMEM;
	folio_lock(folio);
	if (folio_mapped(folio))
		unmap_mapping_range(escrow_mapping(mem), (loff_t)ef->index << PAGE_SHIFT,
				    folio_size(folio), 0);
	/* As if it were lent to nobody: frozen, its contents stand still. */
	err = escrow_rs_folio_begin_lend(&ef->state, folio, ESCROW_LENT, 0, 0, &report, &refusal);
	if (err == -EAGAIN)
		escrow_mem_refused(mem, ef, &refusal, refusal.accessible ? NULL : "a pin",
				   attempt);
	if (!err) {
		err = escrow_mem_copy(mem, ef, small) ?: escrow_mem_replace(mem, ef, small);
		WARN_ON_ONCE(escrow_rs_folio_end_lend(&ef->state, &mem->counts, folio, false));
	}
	folio_unlock(folio);
	if (!err)
		escrow_folio_free(ef, &mem->payer, &mem->counts);
	for (i = 0; err && i < pages && small[i]; i++)
		escrow_folio_free(small[i], &mem->payer, &mem->counts);
	kvfree(small);
	return err;
}

/* Zeroes those pages of a folio that is home. Under the exclusive lock. */
static void escrow_mem_zero(struct escrow_folio *ef, pgoff_t first, pgoff_t last)
{
	pgoff_t index;

	/* Under this lock nobody lends it; the count says so all the same. */
	if (WARN_ON_ONCE(escrow_rs_folio_access(&ef->state)))
		return;
	for (index = first; index <= last; index++) {
		clear_highpage(folio_page(ef->folio, index - ef->index));
		cond_resched();
	}
	escrow_rs_folio_end_access(&ef->state);
}

/*
 * Frees the folios of a range, none of which is away; of one that reaches out
 * of it, zeroes the part that is in it. Under the exclusive lock.
 */
void escrow_mem_drop(struct escrow_mem *mem, pgoff_t first, pgoff_t last)
{
	struct address_space *mapping = escrow_mapping(mem);
	struct escrow_folio *ef;
	unsigned long index;

	xa_for_each_range(&mem->folios, index, ef, escrow_mem_head(mem, first), last) {
		if (index < first || escrow_folio_next(ef) - 1 > last) {
			escrow_mem_zero(ef, max(index, first),
					min(escrow_folio_next(ef) - 1, last));
			continue;
		}
		/* A page fault may have left with the folio, to map it. */
		folio_lock(ef->folio);
		if (folio_mapped(ef->folio))
			unmap_mapping_range(mapping, (loff_t)index << PAGE_SHIFT,
					    folio_size(ef->folio), 0);
		folio_unlock(ef->folio);
		xa_erase(&mem->folios, index);
		escrow_folio_free(ef, &mem->payer, &mem->counts);
		cond_resched();
	}
}
