/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Floor 0: calls to EL2, and what the Rust half of the module needs of Linux.
 */
#ifndef ESCROW_ARCH_H
#define ESCROW_ARCH_H

#include <linux/atomic.h>
#include <linux/lockdep.h>
#include <linux/rwsem.h>
#include <linux/types.h>

#include "arch/rust.h"

#undef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

struct eventfd_ctx;
struct folio;

/*
 * A VM as the floors below know it: whose pages they are, and who gives EL2
 * more memory for the VM's tables when a call is short of it.
 */
struct escrow_borrower {
	u64 handle;
	int (*top_up)(struct escrow_borrower *borrower, u64 pages);
	bool is_protected; /* set before the VM has memory */
	atomic64_t opened; /* pages that were shared with the guest of a protected VM */
	atomic64_t taken_back; /* and those of them that became the guest's alone again */
};

/* down_read(), but faster where no task has the lock for writing. */
static inline void escrow_down_read(struct rw_semaphore *lock)
{
	might_lock_read(lock);
	if (unlikely(!down_read_trylock(lock)))
		down_read(lock);
}

/* hvc.c */
void escrow_hvc(const u64 args[8], u64 results[5]);
void escrow_hvc_enter_guest(const u64 args[8], u64 results[5]);

/* guest.c */
void escrow_guest_init(void);
void escrow_guest_exit(void);
int escrow_guest_do_work(void);
bool escrow_guest_must_work(void);
void escrow_guest_run(const u64 registers[8], u64 results[5]);

/* glue.c: what Rust calls */
void *escrow_alloc(size_t size);
void escrow_free(void *block);
void __noreturn escrow_panic(const char *file, size_t length, u32 line);
bool escrow_folio_freeze(struct folio *folio, u32 at, u32 *count);
void escrow_folio_unfreeze(struct folio *folio, u32 to);
extern bool escrow_may_be_poisoned;
bool escrow_folio_is_poisoned(struct folio *folio);
bool escrow_folio_is_marked(struct folio *folio);
void escrow_folio_get(struct folio *folio);
void escrow_folio_put(struct folio *folio);
void escrow_seen_through(u64 index, u64 detail);
void escrow_tree_refused(u64 vm, const char *why, size_t length);
void escrow_relax(void);
int escrow_top_up(struct escrow_borrower *borrower, u64 pages);
void escrow_event_signal(struct eventfd_ctx *event);
void escrow_event_put(struct eventfd_ctx *event);

#endif
