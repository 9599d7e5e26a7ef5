/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Safe references to guest memory, for other modules.
 *
 * A page of a guest memory can be lent to a guest at any time. An ordinary
 * reference (a pin, a mapping of a device) makes the lend fail, and its owner
 * cannot be asked to let go. A *safe reference* does not make lends fail. Its
 * holder may read and write the pages only between escrow_ref_begin_access()
 * and escrow_ref_end_access(); in between they are not lent. A lend that wants
 * them calls @let_go of the holder, and waits up to 200 ms for the end of its
 * accesses.
 *
 * Build with -I/usr/src/escrow-VERSION/include and KBUILD_EXTRA_SYMBOLS naming
 * the shim's Module.symvers. Arguments, contexts and errors of the functions are
 * documented in mem/holder.c, the idea in docs/three-counters.md.
 */
#ifndef _LINUX_ESCROW_H
#define _LINUX_ESCROW_H

#include <linux/types.h>

struct escrow_holder;
struct escrow_ref;
struct file;
struct module;
struct page;

/* Bytes of a holder's name, with the zero at its end. */
#define ESCROW_NAME_SIZE 32

/**
 * struct escrow_ref_ops - how a holder is told to let go
 * @owner: the module that contains this structure. It stays loaded as long as
 *	it holds a safe reference: its exit function is too late a place to
 *	release one.
 * @let_go: optional. A guest needs pages that the holder accesses. The holder is
 *	to end its accesses to @size bytes from @offset on (of the memory).
 *	Called by a worker of the shim without a lock; may sleep, and may release
 *	the reference. It is not called again before it has returned. The lend
 *	waits up to 200 ms for the end of the accesses, not for the return of
 *	this function. Without @let_go, a lend does not wait.
 */
struct escrow_ref_ops {
	struct module *owner;
	void (*let_go)(struct escrow_ref *ref, u64 offset, u64 size);
};

/**
 * struct escrow_ref - a safe reference to a range of a guest memory
 * @holder: private to the shim
 *
 * Embed it in an object that lives until escrow_ref_release() has returned. A
 * structure of zeros holds nothing.
 */
struct escrow_ref {
	struct escrow_holder *holder;
};

int escrow_ref_take(struct escrow_ref *ref, struct file *memory, u64 offset, u64 size,
		    const struct escrow_ref_ops *ops, const char *name);
void escrow_ref_release(struct escrow_ref *ref);
int escrow_ref_begin_access(struct escrow_ref *ref, u64 offset, u64 size);
void escrow_ref_end_access(struct escrow_ref *ref, u64 offset, u64 size);
struct page *escrow_ref_page(struct escrow_ref *ref, u64 offset);

#endif
