/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * /dev/holder: a user of the shim's safe references and dma-bufs, for tests. It
 * does as it is told, and behaves as badly as it is told. Each open file has one
 * safe reference and one buffer at the most. The structures are those of
 * tests/shim/src/holder.rs.
 */
#ifndef HOLDER_H
#define HOLDER_H

#include <linux/errno.h>
#include <linux/ioctl.h>
#include <linux/mutex.h>
#include <linux/types.h>

#include <linux/escrow.h>

/* What it does when it is told to let go. */
enum holder_manner {
	HOLDER_ENDS = 0, /* ends its access, as it should */
	HOLDER_KEEPS = 1, /* nothing */
	HOLDER_SLEEPS = 2, /* sleeps for three seconds, and ends it then */
	HOLDER_RELEASES = 3, /* releases the reference */
	HOLDER_RETURNS = 4, /* ends it, and tries to begin another at once */
	HOLDER_STATIC = 5, /* cannot be told */
};

struct holder_args {
	__s32 fd; /* the memory, or the dma-buf */
	__u32 manner;
	__u64 offset;
	__u64 size;
	__u64 value; /* what was read, or how often it was told */
	__s64 result; /* of its last attempt to begin again */
};

#define HOLDER_TAKE	_IOWR('H', 0x10, struct holder_args)
#define HOLDER_RELEASE	_IOWR('H', 0x11, struct holder_args)
#define HOLDER_BEGIN	_IOWR('H', 0x12, struct holder_args)
#define HOLDER_END	_IOWR('H', 0x13, struct holder_args)
#define HOLDER_READ	_IOWR('H', 0x14, struct holder_args)
#define HOLDER_TOLD	_IOWR('H', 0x15, struct holder_args)
#define HOLDER_ATTACH	_IOWR('H', 0x20, struct holder_args)
#define HOLDER_DETACH	_IOWR('H', 0x21, struct holder_args)
#define HOLDER_MAP	_IOWR('H', 0x22, struct holder_args)
#define HOLDER_UNMAP	_IOWR('H', 0x23, struct holder_args)
#define HOLDER_VMAP	_IOWR('H', 0x24, struct holder_args)

struct device;
struct dma_buf;
struct dma_buf_attachment;
struct sg_table;

struct holder {
	struct mutex lock; /* of what the program does */
	u32 manner;
	atomic_t told;
	s64 result;
	struct escrow_ref ref;
	u64 offset; /* of the access under way */
	u64 size;
	atomic_t accessing;
	struct dma_buf *dmabuf;
	struct dma_buf_attachment *attachment;
	struct sg_table *table; /* under the reservation's lock */
};

extern struct device *holder_device;

long holder_ref(struct holder *holder, unsigned int cmd, struct holder_args *args);
void holder_ref_end(struct holder *holder);
#ifdef CONFIG_DMA_SHARED_BUFFER
long holder_import(struct holder *holder, unsigned int cmd, struct holder_args *args);
void holder_import_end(struct holder *holder);
#else
static inline long holder_import(struct holder *holder, unsigned int cmd, struct holder_args *args)
{
	return -EOPNOTSUPP;
}

static inline void holder_import_end(struct holder *holder)
{
}
#endif

#endif
