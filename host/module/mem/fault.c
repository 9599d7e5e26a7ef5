// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 2: page faults of the host's programs in a memory.
 *
 * A fault holds the mmap_lock, or only the lock of its VMA. A writer of that lock waits
 * for the fault, and all later readers wait for the writer. So a fault that has to wait
 * drops the lock first and is tried again, as in filemap_fault(). If it may not drop the
 * lock any more, its wait ends when its task is killed.
 */

#include <linux/err.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sizes.h>
#include <linux/userfaultfd_k.h>

#include "mem/mem.h"

/* Bytes around a fault that are mapped with it: the default of fault_around_bytes. */
#define ESCROW_FAULT_AROUND SZ_64K

/*
 * Before a wait: drops the fault's lock and returns a reference to the file; the fault must
 * end in VM_FAULT_RETRY then. NULL: the fault has to keep its lock.
 */
static struct file *escrow_fault_let_go(struct vm_fault *vmf)
{
	struct file *file;

	if (!fault_flag_allow_retry_first(vmf->flags) || (vmf->flags & FAULT_FLAG_RETRY_NOWAIT))
		return NULL;
	file = get_file(vmf->vma->vm_file);
	release_fault_lock(vmf);
	return file;
}

/* Whether the fault must not wait, and must return VM_FAULT_RETRY with its lock held. */
static bool escrow_fault_never_waits(const struct vm_fault *vmf)
{
	return fault_flag_allow_retry_first(vmf->flags) && (vmf->flags & FAULT_FLAG_RETRY_NOWAIT);
}

/*
 * For a fault that still has its lock, of a task that is killed. VM_FAULT_RETRY makes its
 * callers look for the signal, but they expect the lock to be dropped.
 */
static vm_fault_t escrow_fault_killed(struct vm_fault *vmf)
{
	if (!(vmf->flags & FAULT_FLAG_KILLABLE))
		return VM_FAULT_SIGBUS;
	release_fault_lock(vmf);
	return VM_FAULT_RETRY;
}

/* Takes the invalidate_lock, shared. */
static vm_fault_t escrow_fault_lock_index(struct vm_fault *vmf, struct address_space *mapping)
{
	struct file *file;

	if (filemap_invalidate_trylock_shared(mapping))
		return 0;
	if (escrow_fault_never_waits(vmf))
		return VM_FAULT_RETRY;
	file = escrow_fault_let_go(vmf);
	if (!down_read_killable(&mapping->invalidate_lock)) {
		if (!file)
			return 0;
		filemap_invalidate_unlock_shared(mapping);
	}
	if (!file)
		return escrow_fault_killed(vmf);
	fput(file);
	return VM_FAULT_RETRY;
}

/*
 * Locks a folio under the invalidate_lock, which keeps the folio in the memory. So the wait
 * needs no reference to it, which a lend would count. If this returns without the folio's
 * lock, the invalidate_lock has been dropped.
 */
static vm_fault_t escrow_fault_lock_folio(struct vm_fault *vmf, struct address_space *mapping,
					  struct folio *folio)
{
	vm_fault_t ret = VM_FAULT_RETRY;
	struct file *file = NULL;

	if (folio_trylock(folio))
		return 0;
	if (!escrow_fault_never_waits(vmf)) {
		file = escrow_fault_let_go(vmf);
		if (!folio_lock_killable(folio)) {
			if (!file)
				return 0;
			folio_unlock(folio);
		} else if (!file) {
			ret = escrow_fault_killed(vmf);
		}
	}
	filemap_invalidate_unlock_shared(mapping);
	if (file)
		fput(file);
	return ret;
}

/*
 * Maps pages around the one of a fault, if they exist and are not locked. It may fail
 * without consequences.
 */
static void escrow_fault_map_around(struct vm_fault *vmf, struct escrow_mem *mem)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long fault = vmf->address & PAGE_MASK;
	unsigned long at = max(round_down(fault, ESCROW_FAULT_AROUND), vma->vm_start);
	unsigned long end = min(round_down(fault, ESCROW_FAULT_AROUND) + ESCROW_FAULT_AROUND,
				vma->vm_end);

	/* Memories with huge pages have no VM_MIXEDMAP, which inserting pages needs: see mmap. */
	if (!(vma->vm_flags & VM_MIXEDMAP))
		return;
	/* userfaultfd must see a fault for each page. */
	if (userfaultfd_armed(vma))
		return;
	for (; at < end; at += PAGE_SIZE) {
		struct escrow_folio *ef;

		if (at == fault)
			continue;
		ef = escrow_mem_find(mem, linear_page_index(vma, at));
		if (!ef || !folio_trylock(ef->folio))
			continue;
		if (!folio_test_hwpoison(ef->folio) && !escrow_folio_is_wanted(ef) &&
		    escrow_rs_folio_is_reachable(&ef->state))
			vm_insert_page(vma, at, &ef->folio->page);
		folio_unlock(ef->folio);
	}
}

/*
 * Maps one page of a large folio in which others are broken, or leaves that to
 * finish_fault(): 0.
 */
static vm_fault_t escrow_fault_map_alone(struct vm_fault *vmf, struct page *page)
{
	folio_set_has_hwpoisoned(page_folio(page));
#ifdef ESCROW_HAS_INSERT_PAGE_MKWRITE
	/* The generic path would map other pages of the folio as well: map this one only. */
	return vmf_insert_page_mkwrite(vmf, page, vmf->flags & FAULT_FLAG_WRITE);
#else
	/* The generic path maps the whole folio or, if that is marked as broken, this page only. */
	return 0;
#endif
}

static vm_fault_t escrow_fault_of(int err)
{
	switch (err) {
	case -ENOMEM:
		return VM_FAULT_OOM;
	case -EHWPOISON:
		return VM_FAULT_HWPOISON;
	default:
		return VM_FAULT_SIGBUS;
	}
}

static vm_fault_t escrow_mem_fault(struct vm_fault *vmf)
{
	/* By the inode: private_data of a part's file (part.c) is no memory. */
	struct escrow_mem *mem = file_inode(vmf->vma->vm_file)->i_private;
	struct address_space *mapping = escrow_mapping(mem);
	struct escrow_folio *ef;
	struct page *page;
	bool was_there;
	struct file *file;
	vm_fault_t ret;
	u64 lacks = 0;
	int err = 0;

again:
	ret = escrow_fault_lock_index(vmf, mapping);
	if (ret)
		return ret;
	ret = VM_FAULT_SIGBUS;
	if (vmf->pgoff >= DIV_ROUND_UP(i_size_read(mapping->host), PAGE_SIZE))
		goto out;
	ef = escrow_mem_find(mem, vmf->pgoff);
	was_there = ef;
	if (!ef)
		ef = escrow_mem_make(mem, vmf->pgoff);
	if (ef == ERR_PTR(-EINTR)) {
		filemap_invalidate_unlock_shared(mapping);
		return escrow_fault_killed(vmf);
	}
	if (IS_ERR(ef)) {
		/*
		 * VM_FAULT_OOM repeats the fault after the OOM killer. If other memory is
		 * free, the killer does nothing, and the fault would repeat for ever.
		 */
		ret = escrow_ram_is_short() || !escrow_payer_has_room(&mem->payer) ?
			VM_FAULT_SIGBUS : VM_FAULT_OOM;
		goto out;
	}

	ret = escrow_fault_lock_folio(vmf, mapping, ef->folio);
	if (ret)
		return ret;
	ret = VM_FAULT_SIGBUS;
	page = folio_page(ef->folio, vmf->pgoff - ef->index);
	if (PageHWPoison(page)) {
		folio_unlock(ef->folio);
		ret = VM_FAULT_HWPOISON;
		goto out;
	}
	/* A lend of this folio is being retried: do not map it again meanwhile. */
	if (escrow_folio_is_wanted(ef)) {
		folio_unlock(ef->folio);
		goto out;
	}
	if (!escrow_rs_folio_is_reachable(&ef->state)) {
		/* The guest may have unlocked it: then EL2 gives it back. */
		err = escrow_mem_reclaim_folio(mem, ef, &lacks);
		if (err) {
			folio_unlock(ef->folio);
			ret = escrow_fault_of(err);
			goto out;
		}
		/* The folio may have broken while it was away. */
		if (PageHWPoison(page)) {
			folio_unlock(ef->folio);
			ret = VM_FAULT_HWPOISON;
			goto out;
		}
	}
	if (escrow_mem_has_broken(ef)) {
		ret = escrow_fault_map_alone(vmf, page);
		if (ret) {
			folio_unlock(ef->folio);
			goto out;
		}
	}
	/* A new page seldom has neighbours: a program is filling the memory page by page. */
	if (was_there)
		escrow_fault_map_around(vmf, mem);
	folio_get(ef->folio);
	vmf->page = page;
	ret = VM_FAULT_LOCKED;
out:
	filemap_invalidate_unlock_shared(mapping);
	if (err != -ENOMEM || !lacks)
		return ret;
	/*
	 * EL2 needs memory for the VM. The top-up sleeps, and may drop the last reference to
	 * the VM, which ends it.
	 */
	if (escrow_fault_never_waits(vmf))
		return VM_FAULT_RETRY;
	file = escrow_fault_let_go(vmf);
	if (file) {
		escrow_mem_top_up(mem, err, lacks);
		fput(file);
		return VM_FAULT_RETRY;
	}
	if (escrow_mem_top_up(mem, err, lacks)) {
		err = 0;
		goto again;
	}
	return ret;
}

/*
 * Does nothing: the fault handler maps the pages around a fault itself, since page tables
 * cannot be allocated here. But only an operation map_pages lets Linux take faults
 * without the mmap_lock.
 */
static vm_fault_t escrow_mem_map_pages(struct vm_fault *vmf, pgoff_t first, pgoff_t last)
{
	return 0;
}

const struct vm_operations_struct escrow_mem_vm_ops = {
	.fault = escrow_mem_fault,
	.map_pages = escrow_mem_map_pages,
};
