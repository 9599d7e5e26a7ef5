// SPDX-License-Identifier: GPL-2.0-only
/* An importer of dma-bufs: a static one, and dynamic ones of several manners. */

#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/err.h>
#include <linux/io.h>
#include <linux/iosys-map.h>
#include <linux/module.h>
#include <linux/scatterlist.h>

#include "holder.h"

/* MODULE_IMPORT_NS() wants a string since 6.13, and a name before. */
MODULE_INFO(import_ns, "DMA_BUF");

/* With the reservation's lock. */
static void holder_unmap(struct holder *holder)
{
	if (holder->table)
		dma_buf_unmap_attachment(holder->attachment, holder->table, DMA_BIDIRECTIONAL);
	holder->table = NULL;
}

static long holder_map(struct holder *holder)
{
	struct sg_table *table;

	if (holder->table)
		return -EBUSY;
	table = dma_buf_map_attachment(holder->attachment, DMA_BIDIRECTIONAL);
	if (IS_ERR(table))
		return PTR_ERR(table);
	holder->table = table;
	return 0;
}

/* With the reservation's lock. */
static void holder_move_notify(struct dma_buf_attachment *attachment)
{
	struct holder *holder = attachment->importer_priv;

	atomic_inc(&holder->told);
	if (holder->manner == HOLDER_KEEPS)
		return;
	holder_unmap(holder);
	if (holder->manner == HOLDER_RETURNS)
		WRITE_ONCE(holder->result, holder_map(holder));
}

static const struct dma_buf_attach_ops holder_attach_ops = {
	.allow_peer2peer = false,
#ifdef HOLDER_HAS_INVALIDATE_MAPPINGS
	.invalidate_mappings = holder_move_notify,
#else
	.move_notify = holder_move_notify,
#endif
};

static long holder_attach(struct holder *holder, struct holder_args *args)
{
	struct dma_buf_attachment *attachment;
	struct dma_buf *dmabuf;

	if (holder->attachment)
		return -EBUSY;
	dmabuf = dma_buf_get(args->fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	holder->manner = args->manner;
	attachment = args->manner == HOLDER_STATIC ?
		dma_buf_attach(dmabuf, holder_device) :
		dma_buf_dynamic_attach(dmabuf, holder_device, &holder_attach_ops, holder);
	if (IS_ERR(attachment)) {
		dma_buf_put(dmabuf);
		return PTR_ERR(attachment);
	}
	holder->dmabuf = dmabuf;
	holder->attachment = attachment;
	return 0;
}

static void holder_detach(struct holder *holder)
{
	dma_resv_lock(holder->dmabuf->resv, NULL);
	holder_unmap(holder);
	dma_resv_unlock(holder->dmabuf->resv);
	dma_buf_detach(holder->dmabuf, holder->attachment);
	dma_buf_put(holder->dmabuf);
	holder->attachment = NULL;
	holder->dmabuf = NULL;
}

/* What a device would read at the buffer's begin. */
static u64 holder_first_word(struct holder *holder)
{
	struct scatterlist *first = holder->table->sgl;

	/* Without an IOMMU, a device's address is a physical one. */
	return *(u64 *)phys_to_virt(sg_dma_address(first));
}

/* What a driver would read through the kernel's mapping. */
static long holder_vmap(struct holder *holder, struct holder_args *args)
{
	struct iosys_map map;
	int err;

	err = dma_buf_vmap_unlocked(holder->dmabuf, &map);
	if (err)
		return err;
	args->value = *(u64 *)map.vaddr;
	dma_buf_vunmap_unlocked(holder->dmabuf, &map);
	return 0;
}

long holder_import(struct holder *holder, unsigned int cmd, struct holder_args *args)
{
	struct dma_resv *resv;
	long err = 0;

	if (cmd == HOLDER_ATTACH)
		return holder_attach(holder, args);
	if (!holder->attachment)
		return -EINVAL;
	resv = holder->dmabuf->resv;
	switch (cmd) {
	case HOLDER_DETACH:
		holder_detach(holder);
		return 0;
	case HOLDER_MAP:
		dma_resv_lock(resv, NULL);
		err = holder_map(holder);
		if (!err)
			args->value = holder_first_word(holder);
		dma_resv_unlock(resv);
		return err;
	case HOLDER_UNMAP:
		dma_resv_lock(resv, NULL);
		holder_unmap(holder);
		dma_resv_unlock(resv);
		return 0;
	case HOLDER_VMAP:
		return holder_vmap(holder, args);
	default:
		return -ENOTTY;
	}
}

void holder_import_end(struct holder *holder)
{
	if (holder->attachment)
		holder_detach(holder);
}
