/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Safe references to guest memory, for other modules.
 *
 * A page of a guest memory can leave the host at any time. Whoever has a
 * reference of another kind to it (a pin, a mapping of a device) hinders that,
 * and nobody can ask him to let go. A *safe reference* hinders nothing. Its
 * holder reaches the pages only between escrow_ref_begin_access() and
 * escrow_ref_end_access(); meanwhile they stay. Who lends tells the holder, and
 * waits a little for the end of its accesses.
 *
 * Build with -I/usr/src/escrow-VERSION/include and KBUILD_EXTRA_SYMBOLS naming
 * the shim's Module.symvers. Documentation: docs/three-counters.md.
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
 * @owner: the module that these are in. It stays loaded as long as it holds a
 *	safe reference.
 * @let_go: optional. A guest needs pages that the holder accesses: it shall end
 *	its accesses to this part of its range. Called by a thread of the shim's
 *	without a lock, and may sleep. It may release the reference. It is not
 *	called again until it has returned. The lend waits for the end of the
 *	accesses, not for the return of this function, and not for long.
 *	Without it, a lend does not wait.
 */
struct escrow_ref_ops {
	struct module *owner;
	void (*let_go)(struct escrow_ref *ref, u64 offset, u64 size);
};

/**
 * struct escrow_ref - a safe reference to a range of a guest memory
 * @holder: the shim's
 *
 * It is part of an object of the holder's, which lives until
 * escrow_ref_release() has returned. Zeros hold nothing.
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
