// SPDX-License-Identifier: GPL-2.0-only
/* Safe references, held well and badly. */

#include <linux/delay.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/highmem.h>
#include <linux/module.h>

#include "holder.h"

/* Longer than anybody waits. */
#define HOLDER_SLEEP_MS 3000

/* Ends the access that is under way, once, whoever comes first. */
static void holder_end(struct holder *holder)
{
	if (atomic_xchg(&holder->accessing, 0))
		escrow_ref_end_access(&holder->ref, holder->offset, holder->size);
}

static void holder_let_go(struct escrow_ref *ref, u64 offset, u64 size)
{
	struct holder *holder = container_of(ref, struct holder, ref);

	atomic_inc(&holder->told);
	switch (holder->manner) {
	case HOLDER_SLEEPS:
		msleep(HOLDER_SLEEP_MS);
		holder_end(holder);
		break;
	case HOLDER_RELEASES:
		atomic_set(&holder->accessing, 0);
		escrow_ref_release(ref);
		break;
	case HOLDER_RETURNS:
		holder_end(holder);
		WRITE_ONCE(holder->result, escrow_ref_begin_access(ref, offset, size));
		if (!holder->result)
			escrow_ref_end_access(ref, offset, size);
		break;
	case HOLDER_ENDS:
		holder_end(holder);
		break;
	default:
		break;
	}
}

static const struct escrow_ref_ops holder_dynamic = {
	.owner = THIS_MODULE,
	.let_go = holder_let_go,
};

static const struct escrow_ref_ops holder_static = {
	.owner = THIS_MODULE,
};

static long holder_take(struct holder *holder, struct holder_args *args)
{
	const struct escrow_ref_ops *ops =
		args->manner == HOLDER_STATIC ? &holder_static : &holder_dynamic;
	struct file *file = fget(args->fd);
	long err;

	if (!file)
		return -EBADF;
	if (!READ_ONCE(holder->ref.holder))
		holder->manner = args->manner;
	err = escrow_ref_take(&holder->ref, file, args->offset, args->size, ops, "test holder");
	fput(file);
	return err;
}

static long holder_begin(struct holder *holder, struct holder_args *args)
{
	long err = escrow_ref_begin_access(&holder->ref, args->offset, args->size);

	if (err)
		return err;
	holder->offset = args->offset;
	holder->size = args->size;
	atomic_set(&holder->accessing, 1);
	return 0;
}

/* Reads a word, as a driver would: with no more than an access around it. */
static long holder_read(struct holder *holder, struct holder_args *args)
{
	struct page *page;
	long err;

	err = escrow_ref_begin_access(&holder->ref, args->offset, sizeof(args->value));
	if (err)
		return err;
	page = escrow_ref_page(&holder->ref, args->offset);
	if (page)
		memcpy_from_page((char *)&args->value, page, offset_in_page(args->offset),
				 sizeof(args->value));
	escrow_ref_end_access(&holder->ref, args->offset, sizeof(args->value));
	return page ? 0 : -EINVAL;
}

long holder_ref(struct holder *holder, unsigned int cmd, struct holder_args *args)
{
	switch (cmd) {
	case HOLDER_TAKE:
		return holder_take(holder, args);
	case HOLDER_RELEASE:
		atomic_set(&holder->accessing, 0);
		escrow_ref_release(&holder->ref);
		return 0;
	case HOLDER_BEGIN:
		return holder_begin(holder, args);
	case HOLDER_END:
		/* Also what has not begun, if a test wants it. */
		atomic_set(&holder->accessing, 0);
		escrow_ref_end_access(&holder->ref, args->offset, args->size);
		return 0;
	case HOLDER_READ:
		return holder_read(holder, args);
	case HOLDER_TOLD:
		args->value = atomic_read(&holder->told);
		args->result = READ_ONCE(holder->result);
		return 0;
	default:
		return -ENOTTY;
	}
}

void holder_ref_end(struct holder *holder)
{
	if (READ_ONCE(holder->ref.holder))
		escrow_ref_release(&holder->ref);
}
