// SPDX-License-Identifier: GPL-2.0-only
/* Floor 2: the module's own reads of a memory. */

#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>

#include "mem/mem.h"

/* Copies from a folio that exists. Under the invalidate_lock. */
static int escrow_page_read(struct escrow_mem *mem, struct escrow_folio *ef, u64 offset,
			    void *to, size_t size)
{
	struct page *page = folio_page(ef->folio, (offset >> PAGE_SHIFT) - ef->index);
	u64 lacks;
	int err = 0;

	folio_lock(ef->folio);
	if (PageHWPoison(page))
		err = -EHWPOISON;
	else if (!escrow_rs_folio_is_reachable(&ef->state))
		/* The guest may have unlocked it: then EL2 gives it back. */
		err = escrow_mem_reclaim_folio(mem, ef, &lacks);
	if (!err)
		err = escrow_rs_folio_access(&ef->state);
	if (!err) {
		memcpy_from_page(to, page, offset_in_page(offset), size);
		escrow_rs_folio_end_access(&ef->state);
	}
	folio_unlock(ef->folio);
	return err;
}

/* Copies from a memory; pages that do not exist yet read as zeros. */
int escrow_mem_read(struct escrow_mem *mem, u64 offset, void *to, size_t size)
{
	struct address_space *mapping = escrow_mapping(mem);
	int err = 0;

	filemap_invalidate_lock_shared(mapping);
	while (size && !err) {
		size_t part = min_t(size_t, size, PAGE_SIZE - offset_in_page(offset));
		struct escrow_folio *ef = escrow_mem_find(mem, offset >> PAGE_SHIFT);

		if (ef)
			err = escrow_page_read(mem, ef, offset, to, part);
		else
			memset(to, 0, part);
		offset += part;
		to += part;
		size -= part;
		cond_resched();
	}
	filemap_invalidate_unlock_shared(mapping);
	return err;
}
