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
static const struct escrow_whose escrow_anybody = { .how = -1 };

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

static vm_fault_t escrow_mem_fault(struct vm_fault *vmf)
{
	struct escrow_mem *mem = vmf->vma->vm_file->private_data;
	struct address_space *mapping = escrow_mapping(mem);
	vm_fault_t ret = VM_FAULT_SIGBUS;
	struct escrow_folio *ef;
	struct page *page;
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
		ret = escrow_ram_is_short() ? VM_FAULT_SIGBUS : VM_FAULT_OOM;
		goto out;
	}

	folio_lock(ef->folio);
	page = folio_page(ef->folio, vmf->pgoff - ef->index);
	if (PageHWPoison(page)) {
		folio_unlock(ef->folio);
		ret = VM_FAULT_HWPOISON;
		goto out;
	}
	if (!escrow_rs_folio_is_reachable(&ef->state)) {
		/* The guest may have given it up in the meantime. */
		err = escrow_mem_fetch(mem, ef);
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
	if (escrow_mem_feed(mem, err)) {
		ret = VM_FAULT_SIGBUS;
		err = 0;
		goto again;
	}
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

/* Pages @first to @last become a hole, or -EBUSY and all stay. */
static int escrow_mem_clear(struct escrow_mem *mem, pgoff_t first, pgoff_t last)
{
	int err;

	err = __escrow_mem_take_back(mem, first, last, &escrow_anybody, false);
	if (err)
		return err == -ENOMEM ? err : -EBUSY;
	escrow_mem_drop(mem, first, last);
	return 0;
}

static int escrow_mem_allocate(struct escrow_mem *mem, pgoff_t first, pgoff_t last)
{
	struct address_space *mapping = escrow_mapping(mem);
	pgoff_t index = first;

	while (index <= last) {
		struct escrow_folio *ef;

		if (signal_pending(current))
			return -EINTR;
		filemap_invalidate_lock_shared(mapping);
		ef = escrow_mem_make(mem, index);
		if (!IS_ERR(ef))
			index = escrow_folio_next(ef);
		filemap_invalidate_unlock_shared(mapping);
		if (IS_ERR(ef))
			return PTR_ERR(ef);
		cond_resched();
	}
	return 0;
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
			do {
				filemap_invalidate_lock(inode->i_mapping);
				err = escrow_mem_clear(mem, offset >> PAGE_SHIFT,
						       (end - 1) >> PAGE_SHIFT);
				filemap_invalidate_unlock(inode->i_mapping);
			} while (escrow_mem_feed(mem, err));
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

/* Ends the memory before page @end, or all stays. Under the exclusive lock. */
static int escrow_mem_shrink(struct escrow_mem *mem, pgoff_t end, pgoff_t old)
{
	struct escrow_folio *ef;
	int err;

	err = __escrow_mem_take_back(mem, end, old - 1, &escrow_anybody, false);
	if (err)
		return err == -ENOMEM ? err : -EBUSY;
	/* What is beyond the end must not be reached through what is not. */
	ef = escrow_mem_find(mem, end);
	if (ef && ef->index < end)
		err = escrow_mem_split(mem, ef);
	if (err)
		return err == -EAGAIN ? -EBUSY : err;
	escrow_mem_drop(mem, end, old - 1);
	return 0;
}

static int escrow_mem_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	struct inode *inode = d_inode(dentry);
	struct escrow_mem *mem = inode->i_private;
	int err;

	err = setattr_prepare(idmap, dentry, attr);
	if (err)
		return err;
	if (attr->ia_valid & ATTR_SIZE) {
		loff_t old = i_size_read(inode);

		if (!PAGE_ALIGNED(attr->ia_size))
			return -EINVAL;
		do {
			filemap_invalidate_lock(inode->i_mapping);
			if (attr->ia_size < old)
				err = escrow_mem_shrink(mem, attr->ia_size >> PAGE_SHIFT,
							old >> PAGE_SHIFT);
			if (!err)
				i_size_write(inode, attr->ia_size);
			filemap_invalidate_unlock(inode->i_mapping);
		} while (escrow_mem_feed(mem, err));
		if (err)
			return err;
	}
	setattr_copy(idmap, inode, attr);
	return 0;
}

static void escrow_mem_free(struct escrow_mem *mem)
{
	xa_destroy(&mem->folios);
	escrow_batch_free(mem->batch);
	kfree(mem);
}

static int escrow_mem_release(struct inode *inode, struct file *file)
{
	struct escrow_mem *mem = file->private_data;
	struct escrow_folio *ef;
	unsigned long index;
	int err;

	escrow_listing_remove(&escrow_memories, &mem->listing);
	filemap_invalidate_lock(inode->i_mapping);
	err = __escrow_mem_take_back(mem, 0, ULONG_MAX, &escrow_anybody, true);
	/*
	 * A VM that has pages of this memory holds a reference to its file, so
	 * nothing is away any more. Should EL2 see it otherwise, those pages
	 * are lost rather than freed.
	 */
	if (WARN_ON_ONCE(err)) {
		xa_for_each(&mem->folios, index, ef) {
			u64 vm, guest;

			if (escrow_rs_folio_borrower(&ef->state, &vm, &guest) >= 0)
				xa_erase(&mem->folios, index);
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
	u64 counts[ESCROW_COUNTS], offset;
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
	seq_printf(m, "poisoned:\t%llu\nrefusals:\t%llu\nretries:\t%llu\n", counts[4],
		   counts[5], counts[6]);
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
	xa_init(&mem->folios);
	mutex_init(&mem->make_lock);
	spin_lock_init(&mem->refusal_lock);
	mem->huge = flags & ESCROW_MEM_HUGE;
	mem->batch = escrow_batch_alloc(ESCROW_BATCH);
	if (!mem->batch) {
		fd = -ENOMEM;
		goto err_free;
	}
	fd = get_unused_fd_flags(flags & ESCROW_MEM_CLOEXEC ? O_CLOEXEC : 0);
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
	/* Nobody asks when a folio was used last: it is on no LRU list. */
	file->f_mode |= FMODE_NOREUSE;
	inode = file_inode(file);
	inode->i_private = mem;
	inode->i_op = &escrow_mem_iops;
	/* What makes ftruncate and fallocate look at it. */
	inode->i_mode |= S_IFREG;
	i_size_write(inode, args->size);
	escrow_listing_add(&escrow_memories, &mem->listing);
	fd_install(fd, file);
	return fd;

err_free:
	escrow_mem_free(mem);
	return fd;
}
