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

/*
 * A shared futex is known by its inode and index, for which futex code looks here
 * (get_futex_key). Nothing else looks a folio up by this: it is on no LRU list and
 * in no page cache.
 */
static void escrow_mem_adopt(struct escrow_mem *mem, struct escrow_folio *ef)
{
	ef->folio->index = ef->index;
	WRITE_ONCE(ef->folio->mapping, escrow_mapping(mem));
}

static struct escrow_folio *escrow_mem_add(struct escrow_mem *mem, pgoff_t index,
					   unsigned int order)
{
	struct escrow_folio *ef, *old;

	ef = escrow_folio_alloc(&mem->payer, &mem->counts, order);
	if (!ef)
		return ERR_PTR(-ENOMEM);
	ef->index = index;
	escrow_mem_adopt(mem, ef);
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

	/* Without the lock, two tasks could make a small and a large folio that overlap. */
	if (mutex_lock_killable(&mem->make_lock))
		return ERR_PTR(-EINTR);
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

/* Allocates records for the pages of a large folio, and room in the index. */
static int escrow_mem_prepare_split(struct escrow_mem *mem, const struct escrow_folio *large,
				    struct escrow_folio **small)
{
	long pages = folio_nr_pages(large->folio), i;
	int err;

	for (i = 0; i < pages; i++) {
		small[i] = escrow_folio_record(folio_page(large->folio, i));
		if (!small[i])
			return -ENOMEM;
		small[i]->index = large->index + i;
		/* The first entry takes the large folio's; the others need room in the xarray. */
		err = i ? xa_reserve(&mem->folios, small[i]->index, GFP_KERNEL_ACCOUNT) : 0;
		if (err)
			return err;
	}
	return 0;
}

static void escrow_mem_cancel_split(struct escrow_mem *mem, struct escrow_folio **small,
				    long pages)
{
	long i;

	for (i = 0; i < pages && small[i]; i++) {
		if (i)
			xa_release(&mem->folios, small[i]->index);
		kfree(small[i]);
	}
}

/* Replaces a large folio, which is frozen, by its pages in the index. */
static void escrow_mem_end_split(struct escrow_mem *mem, struct escrow_folio *large,
				 struct escrow_folio **small)
{
	long pages = folio_nr_pages(large->folio), i;

	escrow_folio_dissolve(large->folio);
	WARN_ON_ONCE(escrow_rs_folio_split(&large->state, &mem->counts));
	for (i = 0; i < pages; i++) {
		WARN_ON_ONCE(escrow_rs_folio_populate(&small[i]->state, 0, &mem->counts));
		/* The room has been reserved, so nothing is allocated under the lock. */
		xa_lock(&mem->folios);
		__xa_store(&mem->folios, small[i]->index, small[i], 0);
		xa_unlock(&mem->folios);
		if (PageHWPoison(&small[i]->folio->page))
			WARN_ON_ONCE(escrow_rs_folio_broken_at_home(&small[i]->state,
								    &mem->counts));
	}
	kfree(large);
}

/*
 * Splits a large folio that is home, because a part of it is to be lent by itself, or is
 * broken. The folio must not be in use: -EAGAIN as for a lend, and nothing has changed.
 * Under the exclusive lock.
 */
int escrow_mem_split(struct escrow_mem *mem, struct escrow_folio *ef,
		     struct escrow_attempt *attempt)
{
	/* Safe references do not hinder a lend, but they hinder a split. */
	struct escrow_refusal refusal = { .excess = escrow_rs_folio_holders(&ef->state) };
	struct escrow_folio **small;
	struct folio *folio = ef->folio;
	long pages = folio_nr_pages(folio);
	int err;

	if (refusal.excess) {
		escrow_mem_refused(mem, ef, &refusal, NULL, attempt);
		return -EAGAIN;
	}
	small = kvcalloc(pages, sizeof(*small), GFP_KERNEL_ACCOUNT);
	if (!small)
		return -ENOMEM;
	err = escrow_mem_prepare_split(mem, ef, small);
	if (err)
		goto out;
	folio_lock(folio);
	if (folio_mapped(folio))
		unmap_mapping_range(escrow_mapping(mem), (loff_t)ef->index << PAGE_SHIFT,
				    folio_size(folio), 0);
	err = escrow_rs_folio_begin_split(&ef->state, folio, &refusal);
	if (err == -EAGAIN)
		escrow_mem_refused(mem, ef, &refusal, refusal.accessible ? NULL : "a pin",
				   attempt);
	if (!err)
		escrow_mem_end_split(mem, ef, small);
	/* If it was split, its first page has kept the lock. */
	folio_unlock(folio);
out:
	if (err)
		escrow_mem_cancel_split(mem, small, pages);
	kvfree(small);
	return err;
}

/* Puts the pages of a large folio, which @vm has at @guest, in its place. */
static void escrow_mem_end_split_lent(struct escrow_mem *mem, struct escrow_folio *large,
				      struct escrow_folio **small, u64 vm, u64 guest)
{
	long pages = folio_nr_pages(large->folio), i;

	escrow_folio_dissolve(large->folio);
	for (i = 0; i < pages; i++) {
		/*
		 * Who walks all pages may have a reference to any, for a moment. Nobody has
		 * one for longer: the page is not mapped, and on no list.
		 */
		while (escrow_rs_folio_populate_lent(&small[i]->state, &mem->counts,
						     small[i]->folio, vm, guest + PFN_PHYS(i)))
			cond_resched();
		xa_lock(&mem->folios);
		__xa_store(&mem->folios, small[i]->index, small[i], 0);
		xa_unlock(&mem->folios);
	}
	kfree(large);
}

/*
 * Splits a large folio that is lent, because its guest has given up a part of it. EL2 knows pages
 * alone, so the guest notices nothing. -EAGAIN: somebody has safe references, which are to this
 * folio. Under the exclusive lock.
 */
int escrow_mem_split_lent(struct escrow_mem *mem, struct escrow_folio *ef,
			  struct escrow_attempt *attempt)
{
	struct escrow_refusal refusal = { .excess = escrow_rs_folio_holders(&ef->state) };
	struct folio *folio = ef->folio;
	long pages = folio_nr_pages(folio);
	struct escrow_folio **small;
	u64 vm, guest;
	int err;

	if (refusal.excess) {
		escrow_mem_refused(mem, ef, &refusal, NULL, attempt);
		return -EAGAIN;
	}
	small = kvcalloc(pages, sizeof(*small), GFP_KERNEL_ACCOUNT);
	if (!small)
		return -ENOMEM;
	err = escrow_mem_prepare_split(mem, ef, small);
	if (!err) {
		/* A page fault may have left with the lock. */
		folio_lock(folio);
		err = escrow_rs_folio_split_lent(&ef->state, &mem->counts, &vm, &guest);
		if (!err)
			escrow_mem_end_split_lent(mem, ef, small, vm, guest);
		folio_unlock(folio);
	}
	if (err)
		escrow_mem_cancel_split(mem, small, pages);
	kvfree(small);
	return err;
}

/* Zeroes pages @first to @last of a folio that is home. Under the exclusive lock. */
static void escrow_mem_zero(struct escrow_folio *ef, pgoff_t first, pgoff_t last)
{
	pgoff_t index;

	/* No lend runs under the invalidate_lock; the access is counted as every access is. */
	if (WARN_ON_ONCE(escrow_rs_folio_access(&ef->state)))
		return;
	for (index = first; index <= last; index++) {
		struct page *page = folio_page(ef->folio, index - ef->index);

		if (!PageHWPoison(page))
			clear_highpage(page);
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
		/* A page fault that found the folio before may have mapped it since. */
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
