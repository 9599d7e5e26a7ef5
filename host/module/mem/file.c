// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 2: a memory as a file: its mappings, its size, its holes, and what it
 * tells of itself. There is no read, write or splice: the pages are reached
 * through mappings alone.
 */

#include <linux/err.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/uaccess.h>

#include "mem/mem.h"

int escrow_mem_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct escrow_mem *mem = file_inode(file)->i_private;

	/* A private mapping would copy pages on a write, past all the counts. */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	/*
	 * VM_DONTEXPAND also exempts the mapping from mlock(), whose per-CPU batches would
	 * hold references to the folios, and modules cannot drain them. VM_MIXEDMAP lets
	 * page faults insert neighbouring pages. A memory with huge pages goes without:
	 * with VM_MIXEDMAP, Linux takes an entry for a whole folio as one of a driver
	 * that counts no references (vma_is_special_huge()).
	 */
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP | (mem->huge ? 0 : VM_MIXEDMAP));
	vma->vm_ops = &escrow_mem_vm_ops;
	return 0;
}

/* Punches a hole: frees pages @first to @last. -EBUSY: none is freed. */
static int escrow_mem_clear(struct escrow_mem *mem, pgoff_t first, pgoff_t last,
			    u64 *lacks)
{
	int err;

	if (escrow_mem_is_held(mem, first, last))
		return -EBUSY;
	err = __escrow_mem_reclaim(mem, first, last, &escrow_any_vm, false, lacks);
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
	u64 lacks = 0;
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
						       (end - 1) >> PAGE_SHIFT, &lacks);
				filemap_invalidate_unlock(inode->i_mapping);
			} while (escrow_mem_top_up(mem, err, lacks));
		}
	} else if (end > size) {
		/* fallocate() does not extend a memory: only ftruncate() changes the size. */
		err = -EINVAL;
	} else {
		err = escrow_mem_allocate(mem, offset >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT);
	}
	inode_unlock(inode);
	return err;
}

/* Truncates the memory at page @end. An error leaves it as it is. Under the exclusive lock. */
static int escrow_mem_shrink(struct escrow_mem *mem, pgoff_t end, pgoff_t old, u64 *lacks)
{
	struct escrow_folio *ef;
	int err;

	if (escrow_mem_is_held(mem, end, old - 1))
		return -EBUSY;
	err = __escrow_mem_reclaim(mem, end, old - 1, &escrow_any_vm, false, lacks);
	if (err)
		return err == -ENOMEM ? err : -EBUSY;
	/* A large folio across the new end would give access to pages beyond it: split it. */
	ef = escrow_mem_find(mem, end);
	if (ef && ef->index < end)
		err = escrow_mem_split(mem, ef, NULL);
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
		u64 lacks = 0;

		if (!PAGE_ALIGNED(attr->ia_size))
			return -EINVAL;
		do {
			filemap_invalidate_lock(inode->i_mapping);
			if (attr->ia_size < old)
				err = escrow_mem_shrink(mem, attr->ia_size >> PAGE_SHIFT,
							old >> PAGE_SHIFT, &lacks);
			if (!err)
				i_size_write(inode, attr->ia_size);
			filemap_invalidate_unlock(inode->i_mapping);
		} while (escrow_mem_top_up(mem, err, lacks));
		if (err)
			return err;
	}
	setattr_copy(idmap, inode, attr);
	return 0;
}

static void escrow_mem_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct escrow_mem *mem = file->private_data;
	u64 counts[ESCROW_COUNTS];

	escrow_rs_counts(&mem->counts, counts);
	seq_printf(m, "size:\t%lld\n", i_size_read(file_inode(file)));
	seq_printf(m, "present:\t%llu\nlent:\t%llu\nshared:\t%llu\nquarantined:\t%llu\n",
		   counts[ESCROW_COUNT_PRESENT], counts[ESCROW_COUNT_LENT],
		   counts[ESCROW_COUNT_SHARED], counts[ESCROW_COUNT_QUARANTINED]);
	seq_printf(m, "poisoned:\t%llu\nrefusals:\t%llu\nretries:\t%llu\n",
		   counts[ESCROW_COUNT_POISONED], counts[ESCROW_COUNT_REFUSALS],
		   counts[ESCROW_COUNT_RETRIES]);
	escrow_mem_show_refusal(m, mem, true);
	escrow_mem_show_holders(m, mem, true);
}

static long escrow_mem_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct escrow_export_dmabuf_args args;

	switch (cmd) {
	case ESCROW_MEM_EXPORT_DMABUF:
		if (copy_from_user(&args, (void __user *)arg, sizeof(args)))
			return -EFAULT;
		return escrow_mem_export(file, &args);
	default:
		return -ENOTTY;
	}
}

const struct file_operations escrow_mem_fops = {
	.owner = THIS_MODULE,
	.mmap = escrow_mem_mmap,
	/* Aligns mappings so that one entry can map a large folio. */
	.get_unmapped_area = thp_get_unmapped_area,
	.fallocate = escrow_mem_fallocate,
	.unlocked_ioctl = escrow_mem_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = escrow_mem_release,
	.show_fdinfo = escrow_mem_show_fdinfo,
};

const struct inode_operations escrow_mem_iops = {
	.setattr = escrow_mem_setattr,
};
