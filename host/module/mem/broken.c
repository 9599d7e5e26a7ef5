// SPDX-License-Identifier: GPL-2.0-only
/* Floor 2: folios of a memory with broken pages, while a guest has them. */

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

#include "mem/mem.h"

/* Has EL2 let nobody at the broken pages of a folio. Under the exclusive lock. */
int escrow_mem_revoke_broken(struct escrow_mem *mem, struct escrow_folio *ef)
{
	struct escrow_batch *batch = mem->batch;
	static const struct escrow_report none;
	u32 count = 0, i;
	int err;

	err = escrow_rs_folio_begin_reclaim(&ef->state, &mem->counts);
	if (err < 0)
		return err;
	for (i = 0; i < folio_nr_pages(ef->folio); i++) {
		struct page *page = folio_page(ef->folio, i);

		if (PageHWPoison(page))
			escrow_rs_list_entry(&batch->list[count++], PFN_PHYS(page_to_pfn(page)), 0,
					     0, 0, &none);
	}
	err = escrow_rs_mem_poison(batch->address, count);
	if (err) {
		WARN_ON_ONCE(escrow_rs_folio_kept(&ef->state, &mem->counts, false));
		return err;
	}
	WARN_ON_ONCE(escrow_rs_folio_broken(&ef->state, &mem->counts));
	unmap_mapping_range(escrow_mapping(mem), (loff_t)ef->index << PAGE_SHIFT,
			    folio_size(ef->folio), 0);
	return 0;
}

/* The first of a memory that is away, broken, and not known to be. */
struct escrow_folio *escrow_mem_find_broken(struct escrow_mem *mem, u64 *vm, u64 *guest)
{
	struct escrow_folio *ef;
	unsigned long index;

	xa_for_each(&mem->folios, index, ef) {
		if (escrow_folio_is_poisoned(ef->folio) &&
		    escrow_rs_folio_borrower(&ef->state, vm, guest) >= 0)
			return ef;
	}
	return NULL;
}

/*
 * Takes home from a dead VM what is whole of a large folio that broke; the
 * folio itself is lost. Whether all of it is home now. Under the exclusive
 * lock.
 */
bool escrow_mem_reclaim_whole(struct escrow_mem *mem, struct escrow_folio *ef)
{
	static const struct escrow_report none;
	u32 whole = 0, done, i;
	int err;

	for (i = 0; i < folio_nr_pages(ef->folio); i++) {
		struct page *page = folio_page(ef->folio, i);

		if (PageHWPoison(page))
			continue;
		whole++;
		escrow_rs_list_entry(&mem->batch->list[0], PFN_PHYS(page_to_pfn(page)), 0, 0, 0,
				     &none);
		err = escrow_rs_mem_reclaim(ESCROW_SHARED, mem->batch->address, 1, &done);
		/*
		 * Refused: it is home already, or its VM lives. What broke on its way is
		 * away from the VM, and the folio is lost as it is.
		 */
		if (!err || err == -EHWPOISON)
			ef->home++;
	}
	return ef->home >= whole;
}
