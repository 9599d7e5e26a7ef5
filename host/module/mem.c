// SPDX-License-Identifier: GPL-2.0-only
/* Guest memory: a file whose pages can leave the host. */

#include <linux/anon_inodes.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "escrow.h"

static const struct file_operations escrow_mem_fops;

void escrow_mem_get(struct escrow_mem *mem)
{
	get_file(mem->file);
}

void escrow_mem_put(struct escrow_mem *mem)
{
	fput(mem->file);
}

struct escrow_mem *escrow_mem_of(struct file *file)
{
	return file->f_op == &escrow_mem_fops ? file->private_data : NULL;
}

static struct address_space *escrow_mapping(struct escrow_mem *mem)
{
	return mem->file->f_mapping;
}

/* The page at an offset, made if there is none. Under the invalidate_lock. */
static struct escrow_page *escrow_mem_page(struct escrow_mem *mem, pgoff_t index)
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
static int escrow_mem_fetch(struct escrow_mem *mem, struct escrow_page *page,
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

static vm_fault_t escrow_mem_fault(struct vm_fault *vmf)
{
	struct escrow_mem *mem = vmf->vma->vm_file->private_data;
	struct address_space *mapping = escrow_mapping(mem);
	struct escrow_page *page;
	vm_fault_t ret = VM_FAULT_SIGBUS;

	/*
	 * The lock keeps the page's record in place, so that the folio can be
	 * waited for without a reference, which a lender would count.
	 */
	filemap_invalidate_lock_shared(mapping);
	if (vmf->pgoff >= DIV_ROUND_UP(i_size_read(mapping->host), PAGE_SIZE))
		goto out;
	page = escrow_mem_page(mem, vmf->pgoff);
	if (IS_ERR(page)) {
		ret = VM_FAULT_OOM;
		goto out;
	}

	folio_lock(page->folio);
	if (!escrow_rs_page_is_reachable(&page->state)) {
		/* The guest may have given it up in the meantime. */
		struct escrow_batch *batch = escrow_batch_alloc(1);
		int err = batch ? escrow_mem_fetch(mem, page, batch) : -ENOMEM;

		escrow_batch_free(batch);
		if (err) {
			folio_unlock(page->folio);
			ret = err == -ENOMEM ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
			goto out;
		}
	}
	if (folio_test_hwpoison(page->folio)) {
		folio_unlock(page->folio);
		ret = VM_FAULT_HWPOISON;
		goto out;
	}
	folio_get(page->folio);
	vmf->page = folio_page(page->folio, 0);
	ret = VM_FAULT_LOCKED;
out:
	filemap_invalidate_unlock_shared(mapping);
	return ret;
}

static const struct vm_operations_struct escrow_mem_vm_ops = {
	.fault = escrow_mem_fault,
};

static int escrow_mem_mmap(struct file *file, struct vm_area_struct *vma)
{
	/* Private mappings would copy what they must not. */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	/*
	 * DONTEXPAND also exempts the mapping from mlock, which would keep
	 * references to the folios in batches that cannot be drained.
	 */
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &escrow_mem_vm_ops;
	return 0;
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
static int __escrow_mem_take_back(struct escrow_mem *mem, pgoff_t first, pgoff_t last, u64 vm,
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

/* Frees the pages of a range, none of which is away. Under the exclusive lock. */
static void escrow_mem_drop(struct escrow_mem *mem, pgoff_t first, pgoff_t last)
{
	struct address_space *mapping = escrow_mapping(mem);
	struct escrow_page *page;
	unsigned long index;

	xa_for_each_range(&mem->pages, index, page, first, last) {
		/* A page fault may have left with the folio, to map it. */
		folio_lock(page->folio);
		if (folio_mapped(page->folio))
			unmap_mapping_range(mapping, (loff_t)index << PAGE_SHIFT, PAGE_SIZE, 0);
		folio_unlock(page->folio);
		xa_erase(&mem->pages, index);
		escrow_page_free(page, &mem->counts);
		cond_resched();
	}
}

/* Pages @first to @last become a hole, or -EBUSY and all stay. */
static int escrow_mem_clear(struct escrow_mem *mem, pgoff_t first, pgoff_t last)
{
	int err;

	err = __escrow_mem_take_back(mem, first, last, 0, -1, false);
	if (err)
		return err == -ENOMEM ? err : -EBUSY;
	escrow_mem_drop(mem, first, last);
	return 0;
}

static int escrow_mem_allocate(struct escrow_mem *mem, pgoff_t first, pgoff_t last)
{
	struct address_space *mapping = escrow_mapping(mem);
	pgoff_t index;
	int err = 0;

	for (index = first; index <= last && !err; index++) {
		struct escrow_page *page;

		if (signal_pending(current))
			return -EINTR;
		filemap_invalidate_lock_shared(mapping);
		page = escrow_mem_page(mem, index);
		err = PTR_ERR_OR_ZERO(page);
		filemap_invalidate_unlock_shared(mapping);
		cond_resched();
	}
	return err;
}

static long escrow_mem_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct escrow_mem *mem = file->private_data;
	struct inode *inode = file_inode(file);
	loff_t end = offset + len, size;
	long err = 0;

	if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;
	if (!PAGE_ALIGNED(offset) || !PAGE_ALIGNED(len))
		return -EINVAL;

	inode_lock(inode);
	size = i_size_read(inode);
	if (mode & FALLOC_FL_PUNCH_HOLE) {
		end = min(end, size);
		if (offset < end) {
			filemap_invalidate_lock(inode->i_mapping);
			err = escrow_mem_clear(mem, offset >> PAGE_SHIFT,
					       (end - 1) >> PAGE_SHIFT);
			filemap_invalidate_unlock(inode->i_mapping);
		}
	} else if (end > size) {
		/* Only ftruncate changes the size. */
		err = -EINVAL;
	} else {
		err = escrow_mem_allocate(mem, offset >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT);
	}
	inode_unlock(inode);
	return err;
}

static int escrow_mem_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	struct inode *inode = d_inode(dentry);
	int err;

	err = setattr_prepare(idmap, dentry, attr);
	if (err)
		return err;
	if (attr->ia_valid & ATTR_SIZE) {
		loff_t old = i_size_read(inode);

		if (!PAGE_ALIGNED(attr->ia_size))
			return -EINVAL;
		filemap_invalidate_lock(inode->i_mapping);
		if (attr->ia_size < old)
			err = escrow_mem_clear(inode->i_private, attr->ia_size >> PAGE_SHIFT,
					       (old - 1) >> PAGE_SHIFT);
		if (!err)
			i_size_write(inode, attr->ia_size);
		filemap_invalidate_unlock(inode->i_mapping);
		if (err)
			return err;
	}
	setattr_copy(idmap, inode, attr);
	return 0;
}

static void escrow_mem_free(struct escrow_mem *mem)
{
	xa_destroy(&mem->pages);
	escrow_batch_free(mem->batch);
	kfree(mem);
}

static int escrow_mem_release(struct inode *inode, struct file *file)
{
	struct escrow_mem *mem = file->private_data;
	struct escrow_page *page;
	unsigned long index;
	int err;

	filemap_invalidate_lock(inode->i_mapping);
	err = __escrow_mem_take_back(mem, 0, ULONG_MAX, 0, -1, true);
	/*
	 * A VM that has pages of this memory holds a reference to its file, so
	 * nothing is away any more. Should EL2 see it otherwise, those pages
	 * are lost rather than freed.
	 */
	if (WARN_ON_ONCE(err)) {
		xa_for_each(&mem->pages, index, page) {
			u64 borrower;

			if (escrow_rs_page_borrower(&page->state, &borrower) >= 0)
				xa_erase(&mem->pages, index);
		}
	}
	escrow_mem_drop(mem, 0, ULONG_MAX);
	filemap_invalidate_unlock(inode->i_mapping);
	inode->i_private = NULL;
	escrow_mem_free(mem);
	return 0;
}

static void escrow_mem_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct escrow_mem *mem = file->private_data;
	struct escrow_refusal refusal;
	u64 counts[4], offset;
	bool was_refused;

	escrow_rs_counts(&mem->counts, counts);
	spin_lock(&mem->refusal_lock);
	was_refused = mem->was_refused;
	offset = mem->refused_offset;
	refusal = mem->refusal;
	spin_unlock(&mem->refusal_lock);

	seq_printf(m, "size:\t%lld\n", i_size_read(file_inode(file)));
	seq_printf(m, "present:\t%llu\nlent:\t%llu\nshared:\t%llu\nquarantined:\t%llu\n",
		   counts[0], counts[1], counts[2], counts[3]);
	if (was_refused)
		seq_printf(m, "last_refusal:\toffset=%#llx excess=%lld accessible=%u\n", offset,
			   refusal.excess, refusal.accessible);
	else
		seq_puts(m, "last_refusal:\tnone\n");
}

/* No read, write or splice: the pages are reached through mappings alone. */
static const struct file_operations escrow_mem_fops = {
	.owner = THIS_MODULE,
	.mmap = escrow_mem_mmap,
	.fallocate = escrow_mem_fallocate,
	.release = escrow_mem_release,
	.show_fdinfo = escrow_mem_show_fdinfo,
};

static const struct inode_operations escrow_mem_iops = {
	.setattr = escrow_mem_setattr,
};

int escrow_mem_create(const struct gunyah_create_guest_mem_args *args)
{
	struct escrow_mem *mem;
	struct inode *inode;
	struct file *file;
	int fd, flags;

	flags = escrow_rs_create_mem_check(args);
	if (flags < 0)
		return flags;

	mem = kzalloc(sizeof(*mem), GFP_KERNEL_ACCOUNT);
	if (!mem)
		return -ENOMEM;
	xa_init(&mem->pages);
	spin_lock_init(&mem->refusal_lock);
	mem->batch = escrow_batch_alloc(ESCROW_BATCH);
	if (!mem->batch) {
		fd = -ENOMEM;
		goto err_free;
	}
	fd = get_unused_fd_flags(flags ? O_CLOEXEC : 0);
	if (fd < 0)
		goto err_free;
	file = anon_inode_create_getfile("[gunyah-mem]", &escrow_mem_fops, mem, O_RDWR, NULL);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		fd = PTR_ERR(file);
		goto err_free;
	}
	mem->file = file;
	file->f_flags |= O_LARGEFILE;
	inode = file_inode(file);
	inode->i_private = mem;
	inode->i_op = &escrow_mem_iops;
	/* What makes ftruncate and fallocate look at it. */
	inode->i_mode |= S_IFREG;
	i_size_write(inode, args->size);
	fd_install(fd, file);
	return fd;

err_free:
	escrow_mem_free(mem);
	return fd;
}
