// SPDX-License-Identifier: GPL-2.0-only
/* Floor 2: guest memories as objects: made, referenced, freed. */

#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/pagemap.h>
#include <linux/slab.h>

#include "mem/mem.h"

struct escrow_list escrow_memories = ESCROW_LIST_INIT(escrow_memories);

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

static void escrow_mem_free(struct escrow_mem *mem)
{
	xa_destroy(&mem->folios);
	escrow_batch_free(mem->batch);
	kfree(mem);
}

int escrow_mem_release(struct inode *inode, struct file *file)
{
	struct escrow_mem *mem = file->private_data;
	struct escrow_folio *ef;
	unsigned long index;
	u64 lacks;
	int err;

	escrow_listing_remove(&escrow_memories, &mem->listing);
	filemap_invalidate_lock(inode->i_mapping);
	err = __escrow_mem_reclaim(mem, 0, ULONG_MAX, &escrow_any_vm, true, &lacks);
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

int escrow_mem_create(const struct gunyah_create_guest_mem_args *args, int (*top_up)(u64 vm))
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
	spin_lock_init(&mem->holders_lock);
	INIT_LIST_HEAD(&mem->holders);
	init_waitqueue_head(&mem->let_go);
	mem->top_up = top_up;
	mem->huge = flags & ESCROW_MEM_HUGE;
	mem->lend_first = flags & ESCROW_MEM_LEND_FIRST;
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
