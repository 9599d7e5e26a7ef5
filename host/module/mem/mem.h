/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Floor 2: guest memories. It knows a VM by its handle, and as one that borrows.
 */
#ifndef ESCROW_MEM_H
#define ESCROW_MEM_H

#include <linux/fs.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/xarray.h>

#include "arch/listing.h"
#include "folio/folio.h"

/* Which of the folios that are away are meant. */
struct escrow_filter {
	u64 vm; /* 0: anybody's */
	int how; /* negative: either way */
	bool bound; /* only those at the guest addresses of one binding: */
	u64 shift; /* guest address less offset */
};

extern const struct escrow_filter escrow_any_vm;

/* A guest memory: what its file's private_data points to. */
struct escrow_mem {
	struct file *file;
	bool huge; /* may be made of large folios */
	struct xarray folios; /* of struct escrow_folio, by their first page */
	struct mutex make_lock; /* makes folios, where they may be large */
	struct escrow_counts counts;
	struct escrow_batch *batch; /* under the exclusive invalidate_lock */
	int (*top_up)(u64 vm); /* gives EL2 a page for a VM; without locks of the memory */
	loff_t zap_end; /* of the last mappings that went with others */
	u32 zap_size; /* of these, in bytes */
	spinlock_t refusal_lock;
	bool was_refused;
	u64 refused_offset;
	struct escrow_refusal refusal;
	struct escrow_listing listing; /* in escrow_memories */
};

/* mem.c */
extern struct escrow_list escrow_memories;

int escrow_mem_create(const struct gunyah_create_guest_mem_args *args, int (*top_up)(u64 vm));
struct escrow_mem *escrow_mem_of(struct file *file);
int escrow_mem_release(struct inode *inode, struct file *file);

/* Rust keeps references in bindings. */
void escrow_mem_get(struct escrow_mem *mem);
void escrow_mem_put(struct escrow_mem *mem);

static inline struct address_space *escrow_mapping(struct escrow_mem *mem)
{
	return mem->file->f_mapping;
}

/* What people know a memory by: its inode's number. */
static inline u64 escrow_mem_id(struct escrow_mem *mem)
{
	return file_inode(mem->file)->i_ino;
}

/* file.c */
extern const struct file_operations escrow_mem_fops;
extern const struct inode_operations escrow_mem_iops;

/* fault.c */
extern const struct vm_operations_struct escrow_mem_vm_ops;

/* index.c */
struct escrow_folio *escrow_mem_find(struct escrow_mem *mem, pgoff_t index);
pgoff_t escrow_mem_head(struct escrow_mem *mem, pgoff_t index);
struct escrow_folio *escrow_mem_make(struct escrow_mem *mem, pgoff_t index);
int escrow_mem_split(struct escrow_mem *mem, struct escrow_folio *ef);
void escrow_mem_drop(struct escrow_mem *mem, pgoff_t first, pgoff_t last);

/* lend.c */
void escrow_mem_refused(struct escrow_mem *mem, const struct escrow_folio *ef,
			const struct escrow_refusal *refusal);
int escrow_mem_lend(struct escrow_borrower *to, const struct escrow_binding *binding, u64 guest,
		    u64 size, bool unmapped);
int escrow_mem_lend_one(struct escrow_borrower *to, const struct escrow_binding *binding,
			u64 guest, struct escrow_batch *batch);

/* reclaim.c; @lacks: with -ENOMEM, the VM that EL2 needs memory for, or 0 */
int escrow_mem_reclaim_folio(struct escrow_mem *mem, struct escrow_folio *ef, u64 *lacks);
int __escrow_mem_reclaim(struct escrow_mem *mem, pgoff_t first, pgoff_t last,
			 const struct escrow_filter *filter, bool quarantine, u64 *lacks);
int escrow_mem_reclaim(struct escrow_mem *mem, u64 offset, u64 size,
		       const struct escrow_filter *filter, bool quarantine, u64 *lacks);
bool escrow_mem_top_up(struct escrow_mem *mem, int err, u64 lacks);

/* access.c */
int escrow_mem_read(struct escrow_mem *mem, u64 offset, void *to, size_t size);

/* broken.c */
struct escrow_folio *escrow_mem_find_broken(struct escrow_mem *mem, u64 *vm, u64 *guest);
int escrow_mem_revoke_broken(struct escrow_mem *mem, struct escrow_folio *ef);
bool escrow_mem_reclaim_whole(struct escrow_mem *mem, struct escrow_folio *ef);

#endif
