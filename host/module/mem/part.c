// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 2: a file that maps a part of a memory and nothing else of it.
 *
 * A mapping of a dma-buf has to be one of the memory's inode, so that a lend removes it.
 * But a program can have the kernel map the file of its mapping again, at any offset
 * (remap_file_pages), or make holes through it (MADV_REMOVE). So that file must not be
 * the memory's own.
 */

#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "mem/mem.h"

/* The private_data of the file of a part. */
struct escrow_part {
	struct file *memory; /* with a reference */
	pgoff_t first;
	pgoff_t end;
};

static int escrow_part_mmap(struct file *file, struct vm_area_struct *vma)
{
	const struct escrow_part *part = file->private_data;

	/* mmap() has checked that this sum does not wrap. */
	if (vma->vm_pgoff < part->first || vma->vm_pgoff + vma_pages(vma) > part->end)
		return -EINVAL;
	return escrow_mem_mmap(file, vma);
}

static void escrow_part_free(struct escrow_part *part)
{
	fput(part->memory);
	kfree(part);
}

static int escrow_part_release(struct inode *inode, struct file *file)
{
	escrow_part_free(file->private_data);
	return 0;
}

static const struct file_operations escrow_part_fops = {
	.owner = THIS_MODULE,
	.mmap = escrow_part_mmap,
	.get_unmapped_area = thp_get_unmapped_area,
	.release = escrow_part_release,
};

/*
 * A file of a part, which is page-aligned and not empty; offsets in it are the memory's.
 * @flags: O_RDWR or O_RDONLY. The file keeps the memory alive.
 */
struct file *escrow_part_open(struct file *memory, u64 offset, u64 size, int flags)
{
	struct inode *inode = file_inode(memory);
	struct escrow_part *part;
	struct file *file;

	part = kzalloc(sizeof(*part), GFP_KERNEL_ACCOUNT);
	if (!part)
		return ERR_PTR(-ENOMEM);
	part->memory = get_file(memory);
	part->first = offset >> PAGE_SHIFT;
	part->end = (offset + size) >> PAGE_SHIFT;
	/* The file's references to the inode and to the module. */
	ihold(inode);
	__module_get(THIS_MODULE);
	file = alloc_file_pseudo(inode, memory->f_path.mnt, "[gunyah-mem-part]",
				 flags | O_LARGEFILE, &escrow_part_fops);
	if (IS_ERR(file)) {
		module_put(THIS_MODULE);
		iput(inode);
		escrow_part_free(part);
		return file;
	}
	file->private_data = part;
	/* As in escrow_mem_create(): the folios are on no LRU list. */
	file->f_mode |= FMODE_NOREUSE;
	return file;
}
