// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 2: broken pages of a memory, wherever they are.
 *
 * memory_failure() marks the page, and does nothing more. A folio of one page is taken
 * out of use: out of the host's mappings and out of its guest. A large folio is split
 * into pages first. It is not split while it is lent: EL2 takes the broken page out of
 * use, the guest keeps the others, and the large folio stays until they come home.
 */

#include <linux/bitmap.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

#include "mem/mem.h"

/* Folios that are examined before the lock is dropped. */
#define ESCROW_LOOKS 256

static void escrow_mem_unmap(struct escrow_mem *mem, const struct escrow_folio *ef)
{
	folio_lock(ef->folio);
	/* With this flag, page faults map the large folio by pages. */
	if (folio_test_large(ef->folio))
		folio_set_has_hwpoisoned(ef->folio);
	unmap_mapping_range(escrow_mapping(mem), (loff_t)ef->index << PAGE_SHIFT,
			    folio_size(ef->folio), 0);
	folio_unlock(ef->folio);
}

/*
 * Reclaims the sound pages of a large folio with a broken one: all of them, or none. 0:
 * they are home, and the folio is like one that broke at home. The folio is locked, or the
 * caller alone has the memory.
 */
int escrow_mem_reclaim_rest(struct escrow_mem *mem, struct escrow_folio *ef,
			    struct escrow_batch *batch)
{
	static const struct escrow_report none;
	u32 count = 0, done, i;
	int err = 0;

	for (i = 0; i < folio_nr_pages(ef->folio); i++) {
		struct page *page = folio_page(ef->folio, i);
		u64 frame = PFN_PHYS(page_to_pfn(page));

		/* A page that broke on its way home is not marked yet: ask EL2 for it as well. */
		if (!PageHWPoison(page) && !escrow_rs_is_home(frame, 1))
			escrow_rs_list_entry(&batch->list[count++], frame, 0, 0, 0, &none);
	}
	if (count)
		err = escrow_rs_mem_reclaim(ESCROW_SHARED, batch->address, count, &done);
	if (err == -EHWPOISON)
		escrow_folio_report(ef);
	if (!err)
		err = escrow_rs_folio_rest_reclaimed(&ef->state, &mem->counts, ef->folio);
	return err;
}

/* Has EL2 unmap the broken pages of a folio from the guest that has it. */
static int escrow_mem_revoke(struct escrow_mem *mem, struct escrow_folio *ef,
			     struct escrow_losses_of_folio *lost)
{
	static const struct escrow_report none;
	struct escrow_batch *batch = mem->batch;
	int err;
	u32 i;

	for (i = 0; i < folio_nr_pages(ef->folio); i++) {
		struct page *page = folio_page(ef->folio, i);

		if (!PageHWPoison(page))
			continue;
		escrow_rs_list_entry(&batch->list[0], PFN_PHYS(page_to_pfn(page)), 0, 0, 0,
				     &none);
		err = escrow_rs_mem_poison(batch->address, 1);
		if (err == -ENOMEM)
			return err;
		/* If EL2 refuses it, the VM has been told of this page before. */
		if (!err)
			set_bit(i, lost->pages);
	}
	return 0;
}

/*
 * Deals with one folio that has broken pages. -ENOMEM: EL2 needs memory for the VM
 * that is named, and nothing is lost if the same is done again.
 */
static int escrow_mem_break(struct escrow_mem *mem, struct escrow_folio *ef,
			    struct escrow_losses_of_folio *lost)
{
	bool is_large = folio_test_large(ef->folio), has_rest;
	int how, err;

	how = escrow_rs_folio_borrower(&ef->state, &lost->vm, &lost->guest);
	has_rest = escrow_rs_folio_has_rest(&ef->state, &lost->vm, &lost->guest);
	if (how >= 0 || has_rest) {
		err = escrow_mem_revoke(mem, ef, lost);
		if (err)
			return err;
	}
	if (how >= 0) {
		if (escrow_rs_folio_begin_reclaim(&ef->state, &mem->counts) < 0)
			return -EBUSY;
		WARN_ON_ONCE(escrow_rs_folio_broken(&ef->state, &mem->counts));
	}
	escrow_mem_show_away(mem);
	escrow_mem_unmap(mem, ef);
	if (!is_large) {
		/* This does nothing if the folio is recorded as broken already. */
		escrow_rs_folio_broken_at_home(&ef->state, &mem->counts);
		return 0;
	}
	if (escrow_rs_folio_is_broken(&ef->state) && escrow_mem_reclaim_rest(mem, ef, mem->batch))
		return 0;
	/* A folio that somebody holds cannot be split: it stays large and is mapped by pages. */
	escrow_mem_split(mem, ef, NULL);
	return 0;
}

/*
 * Looks for broken pages from *@next on, and deals with the first folio that has some.
 * What a VM has lost by that is in @lost. -ENOENT: there is none; -EAGAIN: none so far.
 * Under the exclusive lock.
 */
int escrow_mem_break_next(struct escrow_mem *mem, pgoff_t *next,
			  struct escrow_losses_of_folio *lost)
{
	struct escrow_folio *ef;
	unsigned long index;
	int looks = 0;

	lost->vm = 0;
	bitmap_zero(lost->pages, ESCROW_HUGE_PAGES);
	xa_for_each_start(&mem->folios, index, ef, *next) {
		pgoff_t behind = escrow_folio_next(ef);
		int err;

		*next = index;
		if (looks++ == ESCROW_LOOKS)
			return -EAGAIN;
		if (escrow_folio_is_poisoned(ef->folio)) {
			err = escrow_mem_break(mem, ef, lost);
			if (err != -ENOMEM)
				*next = behind;
			return err;
		}
	}
	return -ENOENT;
}
