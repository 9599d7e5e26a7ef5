// SPDX-License-Identifier: GPL-2.0-only
/* Floor 2: page faults of the host's programs in a memory. */

#include <linux/err.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

#include "mem/mem.h"

static vm_fault_t escrow_mem_fault(struct vm_fault *vmf)
{
	struct escrow_mem *mem = vmf->vma->vm_file->private_data;
	struct address_space *mapping = escrow_mapping(mem);
	vm_fault_t ret = VM_FAULT_SIGBUS;
	struct escrow_folio *ef;
	struct page *page;
	u64 lacks = 0;
	int err = 0;

	/*
	 * The lock keeps the folio's record in place, so that the folio can be
	 * waited for without a reference, which a lender would count.
	 */
again:
	filemap_invalidate_lock_shared(mapping);
	if (vmf->pgoff >= DIV_ROUND_UP(i_size_read(mapping->host), PAGE_SIZE))
		goto out;
	ef = escrow_mem_make(mem, vmf->pgoff);
	if (IS_ERR(ef)) {
		/* A loop that kills nobody would follow where the rest of memory is free. */
		ret = escrow_ram_is_short() || !escrow_payer_has_room(&mem->payer) ?
			VM_FAULT_SIGBUS : VM_FAULT_OOM;
		goto out;
	}

	folio_lock(ef->folio);
	page = folio_page(ef->folio, vmf->pgoff - ef->index);
	if (PageHWPoison(page)) {
		folio_unlock(ef->folio);
		ret = VM_FAULT_HWPOISON;
		goto out;
	}
	/* A lend of it is being tried, and goes first. */
	if (escrow_folio_is_wanted(ef)) {
		folio_unlock(ef->folio);
		goto out;
	}
	if (!escrow_rs_folio_is_reachable(&ef->state)) {
		/* The guest may have given it up in the meantime. */
		err = escrow_mem_reclaim_folio(mem, ef, &lacks);
		if (err) {
			folio_unlock(ef->folio);
			ret = err == -ENOMEM ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
			goto out;
		}
	}
	folio_get(ef->folio);
	vmf->page = page;
	ret = VM_FAULT_LOCKED;
out:
	filemap_invalidate_unlock_shared(mapping);
	if (escrow_mem_top_up(mem, err, lacks)) {
		ret = VM_FAULT_SIGBUS;
		err = 0;
		goto again;
	}
	return ret;
}

const struct vm_operations_struct escrow_mem_vm_ops = {
	.fault = escrow_mem_fault,
};
