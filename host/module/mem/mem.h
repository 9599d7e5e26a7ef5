/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Floor 2: guest memories. It knows a VM by its handle and as struct escrow_borrower.
 */
#ifndef ESCROW_MEM_H
#define ESCROW_MEM_H

#include <linux/fs.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/xarray.h>

#include "arch/listing.h"
#include "folio/folio.h"

/* Which of the folios that are away are meant. */
struct escrow_filter {
	u64 vm; /* 0: anybody's */
	int how; /* negative: either way */
	bool drop; /* free lent folios that come home: they contain zeros */
};

extern const struct escrow_filter escrow_any_vm;

/* Room for some names of those who are in the way of a lend. */
#define ESCROW_NAMES_SIZE 96

struct seq_file;

/*
 * A guest memory: what its file's private_data and its inode's i_private point to.
 * It is freed with the inode, which paths (O_PATH) keep longer than the file is open.
 */
struct escrow_mem {
	struct inode *inode;
	struct file *file; /* while that is open */
	bool huge; /* may be made of large folios */
	bool lend_first; /* lends that are tried again go before new mappings */
	struct xarray folios; /* of struct escrow_folio, by their first page */
	struct mutex make_lock; /* makes folios, where they may be large */
	struct escrow_payer payer;
	u32 unseen; /* pages that were lent since the payer's figures were set */
	struct escrow_counts counts;
	struct escrow_batch *batch; /* under the exclusive invalidate_lock */
	int (*top_up)(u64 vm); /* gives EL2 a page for a VM; without locks of the memory */
	loff_t zap_start; /* of the range around a lent folio that was last zapped */
	loff_t zap_end;
	u32 zap_size; /* of these, in bytes */
	struct escrow_ahead ahead; /* under the exclusive invalidate_lock */
	spinlock_t refusal_lock;
	bool was_refused;
	u64 refused_offset;
	struct escrow_refusal refusal;
	char refused_by[ESCROW_NAMES_SIZE];
	spinlock_t holders_lock; /* inside of everything, as the refusal_lock */
	struct list_head holders; /* who has safe references */
	u32 holders_count;
	wait_queue_head_t let_go; /* where lends wait for the end of accesses */
	struct escrow_listing listing; /* in escrow_memories */
};

/*
 * A lend that may be tried again when who is in its way has had time to let go.
 * Zeros, at first and after escrow_attempt_end().
 */
struct escrow_attempt {
	struct escrow_mem *mem; /* of the folio that was refused, with a reference; or NULL */
	u64 offset; /* of that folio */
	u32 pages;
	struct escrow_retry retry;
	struct escrow_refusal refusal;
	const char *by; /* see escrow_mem_refused() */
	bool is_refused; /* the last try was, by the host */
	bool is_told; /* holders of safe references were */
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
	return mem->inode->i_mapping;
}

/* The number of a memory in fdinfo, debugfs and traces: its inode's. */
static inline u64 escrow_mem_id(struct escrow_mem *mem)
{
	return mem->inode->i_ino;
}

/* file.c */
int escrow_mem_mmap(struct file *file, struct vm_area_struct *vma);
extern const struct file_operations escrow_mem_fops;
extern const struct inode_operations escrow_mem_iops;

/* fault.c */
extern const struct vm_operations_struct escrow_mem_vm_ops;

/* index.c */
struct escrow_folio *escrow_mem_find(struct escrow_mem *mem, pgoff_t index);
pgoff_t escrow_mem_head(struct escrow_mem *mem, pgoff_t index);
struct escrow_folio *escrow_mem_make(struct escrow_mem *mem, pgoff_t index);
int escrow_mem_split(struct escrow_mem *mem, struct escrow_folio *ef,
		     struct escrow_attempt *attempt);
int escrow_mem_split_lent(struct escrow_mem *mem, struct escrow_folio *ef,
			  struct escrow_attempt *attempt);
void escrow_mem_drop(struct escrow_mem *mem, pgoff_t first, pgoff_t last);

/* lend.c */
int escrow_mem_lend(struct escrow_borrower *to, const struct escrow_binding *binding, u64 guest,
		    u64 size, bool unmapped, struct escrow_attempt *attempt);
int escrow_mem_lend_one(struct escrow_borrower *to, const struct escrow_binding *binding,
			u64 guest, struct escrow_batch *batch, struct escrow_attempt *attempt);

int escrow_mem_lend_present(struct escrow_borrower *to, const struct escrow_binding *binding,
			    struct escrow_attempt *attempt);
bool escrow_mem_ends_before(struct escrow_mem *mem, u64 offset);
int escrow_mem_recall(struct escrow_mem *mem, const struct escrow_borrower *to,
		      struct escrow_folio *ef);
int escrow_mem_prepare(struct escrow_mem *mem, const struct escrow_borrower *to,
		       const struct escrow_binding *binding, struct escrow_folio *ef,
		       u64 guest, struct escrow_batch *batch, struct escrow_attempt *attempt);
void escrow_mem_settle(struct escrow_mem *mem, struct escrow_borrower *to,
		       const struct escrow_binding *binding, struct escrow_batch *batch, int err,
		       u32 done);
int escrow_mem_send(struct escrow_mem *mem, struct escrow_borrower *to,
		    const struct escrow_binding *binding, struct escrow_batch *batch);

/* protect.c */
int escrow_mem_bring_protected(struct escrow_borrower *to, const struct escrow_binding *binding,
			       u64 guest, struct escrow_batch *batch,
			       struct escrow_attempt *attempt);

/* refusal.c */
void escrow_mem_refused(struct escrow_mem *mem, struct escrow_folio *ef,
			const struct escrow_refusal *refusal, const char *by,
			struct escrow_attempt *attempt);
void escrow_mem_give_up(const struct escrow_attempt *attempt);
bool escrow_attempt_again(struct escrow_attempt *attempt);
bool escrow_folio_is_wanted(const struct escrow_folio *ef);
void escrow_mem_show_refusal(struct seq_file *m, struct escrow_mem *mem, bool fdinfo);

static inline void escrow_attempt_end(struct escrow_attempt *attempt)
{
	if (unlikely(attempt->mem)) {
		escrow_mem_put(attempt->mem);
		*attempt = (struct escrow_attempt){};
	}
}

/* holder.c */
int escrow_holders_init(void);
void escrow_holders_exit(void);
bool escrow_mem_is_held(struct escrow_mem *mem, pgoff_t first, pgoff_t last);
int escrow_mem_let_go(struct escrow_mem *mem, pgoff_t first, pgoff_t last);
void escrow_mem_name_holders(struct escrow_mem *mem, pgoff_t first, pgoff_t last, char *names,
			     size_t size);
void escrow_mem_show_holders(struct seq_file *m, struct escrow_mem *mem, bool fdinfo);

/* part.c */
struct file *escrow_part_open(struct file *memory, u64 offset, u64 size, int flags);

/* dmabuf.c */
#ifdef CONFIG_DMA_SHARED_BUFFER
int escrow_mem_export(struct file *memory, const struct escrow_export_dmabuf_args *args);
#else
static inline int escrow_mem_export(struct file *memory,
				    const struct escrow_export_dmabuf_args *args)
{
	return -EOPNOTSUPP;
}
#endif

/* reclaim.c; @lacks: with -ENOMEM, the VM that EL2 needs memory for, or 0 */
int escrow_mem_reclaim_folio(struct escrow_mem *mem, struct escrow_folio *ef, u64 *lacks);
int __escrow_mem_reclaim(struct escrow_mem *mem, pgoff_t first, pgoff_t last,
			 const struct escrow_filter *filter, bool quarantine, u64 *lacks);
int escrow_mem_reclaim(struct escrow_mem *mem, u64 offset, u64 size,
		       const struct escrow_filter *filter, bool quarantine, u64 *lacks);
bool escrow_mem_top_up(struct escrow_mem *mem, int err, u64 lacks);

void escrow_mem_show_away(struct escrow_mem *mem);

/* access.c */
int escrow_mem_read(struct escrow_mem *mem, u64 offset, void *to, size_t size);

/* Pages that a VM has lost. */
struct escrow_losses_of_folio {
	u64 vm; /* 0: none */
	u64 guest; /* where it had the folio */
	DECLARE_BITMAP(pages, ESCROW_HUGE_PAGES);
};

/* broken.c */
int escrow_mem_break_next(struct escrow_mem *mem, pgoff_t *next,
			  struct escrow_losses_of_folio *lost);
int escrow_mem_reclaim_rest(struct escrow_mem *mem, struct escrow_folio *ef,
			    struct escrow_batch *batch);

/* Whether it is a large folio, home, that is known to have broken pages. */
static inline bool escrow_mem_has_broken(const struct escrow_folio *ef)
{
	return folio_test_large(ef->folio) && escrow_folio_is_poisoned(ef->folio) &&
	       escrow_rs_folio_is_reachable(&ef->state);
}

#endif
