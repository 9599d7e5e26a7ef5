// SPDX-License-Identifier: GPL-2.0-only
/* Floor 2: guest memories as objects: made, referenced, freed. */

#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pagemap.h>
#include <linux/pseudo_fs.h>
#include <linux/slab.h>

#include "mem/mem.h"

/* statfs() shows this as the type of the file system: "ESCR". */
#define ESCROW_MAGIC 0x45534352

struct escrow_list escrow_memories = {
	.lock = __MUTEX_INITIALIZER(escrow_memories.lock),
	.head = LIST_HEAD_INIT(escrow_memories.head),
};

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
	escrow_payer_end(&mem->payer);
	kfree(mem);
}

/*
 * The inodes belong to a file system of the module's own, so that the memory is freed with
 * its inode. There is a mount while a memory is open. A path to a memory keeps the mount,
 * the mount the superblock, and the superblock the module, until put_filesystem().
 */
static struct vfsmount *mount;
static int mount_users;

static void escrow_inode_evict(struct inode *inode)
{
	truncate_inode_pages_final(&inode->i_data);
	clear_inode(inode);
	/* An inode whose creation failed half-way has no memory. */
	if (inode->i_private)
		escrow_mem_free(inode->i_private);
}

static const struct super_operations escrow_super_ops = {
	.statfs = simple_statfs,
	.evict_inode = escrow_inode_evict,
};

static int escrow_fs_init_context(struct fs_context *fc)
{
	struct pseudo_fs_context *context = init_pseudo(fc, ESCROW_MAGIC);

	if (!context)
		return -ENOMEM;
	context->ops = &escrow_super_ops;
	fc->s_iflags |= SB_I_NOEXEC | SB_I_NODEV;
	return 0;
}

static struct file_system_type escrow_fs = {
	.name = "escrow",
	.owner = THIS_MODULE,
	.init_fs_context = escrow_fs_init_context,
	.kill_sb = kill_anon_super,
};

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
	 * A VM that has pages of this memory holds a reference to the memory's file. So at
	 * the file's release all pages are at home. If EL2 nevertheless keeps some, they
	 * are leaked: freed, they would fault in whoever gets them next.
	 */
	if (WARN_ON_ONCE(err)) {
		xa_for_each(&mem->folios, index, ef) {
			u64 vm, guest;

			if (escrow_rs_folio_borrower(&ef->state, &vm, &guest) < 0)
				continue;
			WRITE_ONCE(ef->folio->mapping, NULL);
			xa_erase(&mem->folios, index);
		}
	}
	escrow_mem_drop(mem, 0, ULONG_MAX);
	filemap_invalidate_unlock(inode->i_mapping);
	/* This drops the inode's own reference to the mount; the file has another one. */
	simple_release_fs(&mount, &mount_users);
	return 0;
}

/* Makes a file with an inode of its own. The inode owns the memory, also after an error. */
static struct file *escrow_mem_file(struct escrow_mem *mem, loff_t size)
{
	struct inode *inode;
	struct file *file;

	inode = alloc_anon_inode(mount->mnt_sb);
	if (IS_ERR(inode)) {
		escrow_mem_free(mem);
		return ERR_CAST(inode);
	}
	mem->inode = inode;
	inode->i_private = mem;
	inode->i_op = &escrow_mem_iops;
	/* ftruncate() and fallocate() work on regular files only. */
	inode->i_mode |= S_IFREG;
	i_size_write(inode, size);
	/* The file's reference to the module; the device's file has one, so this is safe. */
	__module_get(THIS_MODULE);
	file = alloc_file_pseudo(inode, mount, "[gunyah-mem]", O_RDWR | O_LARGEFILE,
				 &escrow_mem_fops);
	if (IS_ERR(file)) {
		module_put(THIS_MODULE);
		iput(inode);
		return file;
	}
	file->private_data = mem;
	/* The folios are on no LRU list, so marking them as accessed is of no use. */
	file->f_mode |= FMODE_NOREUSE;
	mem->file = file;
	return file;
}

int escrow_mem_create(const struct gunyah_create_guest_mem_args *args, int (*top_up)(u64 vm))
{
	struct escrow_mem *mem;
	struct file *file;
	int fd, err, flags;

	flags = escrow_rs_create_mem_check(args);
	if (flags < 0)
		return flags;

	fd = get_unused_fd_flags(flags & ESCROW_MEM_CLOEXEC ? O_CLOEXEC : 0);
	if (fd < 0)
		return fd;
	err = simple_pin_fs(&escrow_fs, &mount, &mount_users);
	if (err)
		goto err_fd;
	err = -ENOMEM;
	mem = kzalloc(sizeof(*mem), GFP_KERNEL_ACCOUNT);
	if (!mem)
		goto err_mount;
	xa_init(&mem->folios);
	mutex_init(&mem->make_lock);
	spin_lock_init(&mem->refusal_lock);
	spin_lock_init(&mem->holders_lock);
	INIT_LIST_HEAD(&mem->holders);
	init_waitqueue_head(&mem->let_go);
	mem->top_up = top_up;
	/*
	 * In a kernel without huge pages (PREEMPT_RT), split_folio() returns 0 and does
	 * nothing (huge_mm.h). MADV_COLD or MADV_PAGEOUT of a part of a large folio would
	 * retry for ever there, so such kernels get small folios only.
	 */
	mem->huge = IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && (flags & ESCROW_MEM_HUGE);
	mem->lend_first = flags & ESCROW_MEM_LEND_FIRST;
	err = escrow_payer_init(&mem->payer, ESCROW_KIND_MEMORY);
	if (!err) {
		mem->batch = escrow_batch_alloc(ESCROW_BATCH);
		err = mem->batch ? 0 : -ENOMEM;
	}
	if (err) {
		escrow_mem_free(mem);
		goto err_mount;
	}
	file = escrow_mem_file(mem, args->size);
	if (IS_ERR(file)) {
		err = PTR_ERR(file);
		goto err_mount;
	}
	escrow_listing_add(&escrow_memories, &mem->listing);
	/* Another thread may close the descriptor at once, which frees the memory. */
	fd_install(fd, file);
	return fd;

err_mount:
	simple_release_fs(&mount, &mount_users);
err_fd:
	put_unused_fd(fd);
	return err;
}
