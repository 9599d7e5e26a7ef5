// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 2: a range of a memory as a dma-buf, for devices and drivers of the host.
 *
 * Each importer has a safe reference under its device's name, and an access while
 * it has the buffer mapped or pinned. A lend tells dynamic importers to give their
 * mappings up. Static importers cannot be told, and lends fail until they detach.
 */

#include <linux/device.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include <linux/escrow.h>

#include "mem/mem.h"

/* MODULE_IMPORT_NS() wants a string since 6.13, and a name before. */
MODULE_INFO(import_ns, "DMA_BUF");

/* 7.0 has renamed dma-buf's move_notify. Kbuild looks for the new name. */
#ifdef ESCROW_HAS_INVALIDATE_MAPPINGS
static bool escrow_importer_can_be_told(const struct dma_buf_attachment *attach)
{
	return attach->importer_ops && attach->importer_ops->invalidate_mappings;
}

static void escrow_tell_importers(struct dma_buf *dmabuf)
{
	dma_buf_invalidate_mappings(dmabuf);
}
#else
static bool escrow_importer_can_be_told(const struct dma_buf_attachment *attach)
{
	return attach->importer_ops && attach->importer_ops->move_notify;
}

static void escrow_tell_importers(struct dma_buf *dmabuf)
{
	dma_buf_move_notify(dmabuf);
}
#endif

struct escrow_dmabuf {
	struct file *memory;
	struct file *part; /* of the memory: what mappings of the buffer map */
	u64 offset;
	u64 size;
	struct escrow_ref ref; /* the buffer's own, for its whole life */
};

struct escrow_importer {
	struct escrow_dmabuf *buffer;
	struct dma_buf *dmabuf;
	struct sg_table *mapped; /* under the reservation's lock */
	struct escrow_ref ref;
};

static void escrow_importer_let_go(struct escrow_ref *ref, u64 offset, u64 size)
{
	struct escrow_importer *importer = container_of(ref, struct escrow_importer, ref);
	struct dma_resv *resv = importer->dmabuf->resv;

	dma_resv_lock(resv, NULL);
	/* move_notify() concerns the whole buffer: dma-buf has none for a part. */
	escrow_tell_importers(importer->dmabuf);
	dma_resv_unlock(resv);
}

static const struct escrow_ref_ops escrow_dynamic_ops = {
	.owner = THIS_MODULE,
	.let_go = escrow_importer_let_go,
};

static const struct escrow_ref_ops escrow_static_ops = {
	.owner = THIS_MODULE,
};

static int escrow_dmabuf_take(const struct escrow_dmabuf *buffer, struct escrow_ref *ref,
			      const struct escrow_ref_ops *ops, const char *name)
{
	return escrow_ref_take(ref, buffer->memory, buffer->offset, buffer->size, ops, name);
}

static int escrow_dmabuf_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attach)
{
	struct escrow_importer *importer = kzalloc(sizeof(*importer), GFP_KERNEL_ACCOUNT);
	const struct escrow_ref_ops *ops = escrow_importer_can_be_told(attach) ?
		&escrow_dynamic_ops : &escrow_static_ops;
	char name[ESCROW_NAME_SIZE];
	int err;

	if (!importer)
		return -ENOMEM;
	importer->buffer = dmabuf->priv;
	importer->dmabuf = dmabuf;
	snprintf(name, sizeof(name), "dma-buf:%s", dev_name(attach->dev));
	err = escrow_dmabuf_take(importer->buffer, &importer->ref, ops, name);
	if (err) {
		kfree(importer);
		return err;
	}
	attach->priv = importer;
	return 0;
}

static void escrow_dmabuf_detach(struct dma_buf *dmabuf, struct dma_buf_attachment *attach)
{
	struct escrow_importer *importer = attach->priv;

	escrow_ref_release(&importer->ref);
	kfree(importer);
}

static int escrow_dmabuf_begin(struct escrow_dmabuf *buffer, struct escrow_ref *ref)
{
	return escrow_ref_begin_access(ref, buffer->offset, buffer->size);
}

static void escrow_dmabuf_end(struct escrow_dmabuf *buffer, struct escrow_ref *ref)
{
	escrow_ref_end_access(ref, buffer->offset, buffer->size);
}

/* Without DMABUF_MOVE_NOTIFY the kernel pins the buffer for dynamic importers as well. */
static int escrow_dmabuf_pin(struct dma_buf_attachment *attach)
{
	struct escrow_importer *importer = attach->priv;

	return escrow_dmabuf_begin(importer->buffer, &importer->ref);
}

static void escrow_dmabuf_unpin(struct dma_buf_attachment *attach)
{
	struct escrow_importer *importer = attach->priv;

	escrow_dmabuf_end(importer->buffer, &importer->ref);
}

/* An array of the buffer's pages, to be freed with kvfree(), or NULL. */
static struct page **escrow_dmabuf_pages(struct escrow_dmabuf *buffer)
{
	size_t count = buffer->size >> PAGE_SHIFT, i;
	struct page **pages;

	pages = kvcalloc(count, sizeof(*pages), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	for (i = 0; pages && i < count; i++)
		pages[i] = escrow_ref_page(&buffer->ref, buffer->offset + (i << PAGE_SHIFT));
	return pages;
}

static int escrow_dmabuf_fill(struct escrow_dmabuf *buffer, struct device *dev,
			      struct sg_table *table)
{
	unsigned int segment = round_down(dma_get_max_seg_size(dev), PAGE_SIZE);
	struct page **pages = escrow_dmabuf_pages(buffer);
	int err;

	if (!pages)
		return -ENOMEM;
	err = sg_alloc_table_from_pages_segment(table, pages, buffer->size >> PAGE_SHIFT, 0,
						buffer->size, segment, GFP_KERNEL_ACCOUNT);
	kvfree(pages);
	return err;
}

static struct sg_table *escrow_dmabuf_map(struct dma_buf_attachment *attach,
					  enum dma_data_direction direction)
{
	struct escrow_importer *importer = attach->priv;
	struct escrow_dmabuf *buffer = importer->buffer;
	struct sg_table *table;
	int err;

	err = escrow_dmabuf_begin(buffer, &importer->ref);
	if (err)
		return ERR_PTR(err);
	table = kzalloc(sizeof(*table), GFP_KERNEL_ACCOUNT);
	err = -ENOMEM;
	if (!table)
		goto err_end;
	err = escrow_dmabuf_fill(buffer, attach->dev, table);
	if (err)
		goto err_free;
	err = dma_map_sgtable(attach->dev, table, direction, 0);
	if (err)
		goto err_table;
	importer->mapped = table;
	return table;

err_table:
	sg_free_table(table);
err_free:
	kfree(table);
err_end:
	escrow_dmabuf_end(buffer, &importer->ref);
	return ERR_PTR(err);
}

static void escrow_dmabuf_unmap(struct dma_buf_attachment *attach, struct sg_table *table,
				enum dma_data_direction direction)
{
	struct escrow_importer *importer = attach->priv;

	/*
	 * An importer may unmap while its device still uses the mapping: its fences are
	 * signalled when the device has done.
	 */
	dma_resv_wait_timeout(attach->dmabuf->resv, DMA_RESV_USAGE_BOOKKEEP, false,
			      MAX_SCHEDULE_TIMEOUT);
	importer->mapped = NULL;
	dma_unmap_sgtable(attach->dev, table, direction, 0);
	sg_free_table(table);
	kfree(table);
	escrow_dmabuf_end(importer->buffer, &importer->ref);
}

static int escrow_dmabuf_begin_cpu(struct dma_buf *dmabuf, enum dma_data_direction direction)
{
	struct dma_buf_attachment *attach;

	dma_resv_lock(dmabuf->resv, NULL);
	list_for_each_entry(attach, &dmabuf->attachments, node) {
		struct escrow_importer *importer = attach->priv;

		if (importer->mapped)
			dma_sync_sgtable_for_cpu(attach->dev, importer->mapped, direction);
	}
	dma_resv_unlock(dmabuf->resv);
	return 0;
}

static int escrow_dmabuf_end_cpu(struct dma_buf *dmabuf, enum dma_data_direction direction)
{
	struct dma_buf_attachment *attach;

	dma_resv_lock(dmabuf->resv, NULL);
	list_for_each_entry(attach, &dmabuf->attachments, node) {
		struct escrow_importer *importer = attach->priv;

		if (importer->mapped)
			dma_sync_sgtable_for_device(attach->dev, importer->mapped, direction);
	}
	dma_resv_unlock(dmabuf->resv);
	return 0;
}

/* A mapping of the buffer is one of the memory, and goes when a page is lent. */
static int escrow_dmabuf_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct escrow_dmabuf *buffer = dmabuf->priv;

	vma->vm_pgoff += buffer->offset >> PAGE_SHIFT;
	vma_set_file(vma, buffer->part);
	return buffer->part->f_op->mmap(buffer->part, vma);
}

static void escrow_dmabuf_free(struct escrow_dmabuf *buffer)
{
	escrow_ref_release(&buffer->ref);
	fput(buffer->part);
	fput(buffer->memory);
	kfree(buffer);
}

static void escrow_dmabuf_release(struct dma_buf *dmabuf)
{
	escrow_dmabuf_free(dmabuf->priv);
}

/*
 * There is no vmap: it would have to fail where a guest has a page, and dma_buf_vmap() warns
 * of each failure.
 */
static const struct dma_buf_ops escrow_dmabuf_ops = {
	.attach = escrow_dmabuf_attach,
	.detach = escrow_dmabuf_detach,
	.pin = escrow_dmabuf_pin,
	.unpin = escrow_dmabuf_unpin,
	.map_dma_buf = escrow_dmabuf_map,
	.unmap_dma_buf = escrow_dmabuf_unmap,
	.begin_cpu_access = escrow_dmabuf_begin_cpu,
	.end_cpu_access = escrow_dmabuf_end_cpu,
	.mmap = escrow_dmabuf_mmap,
	.release = escrow_dmabuf_release,
};

static struct escrow_dmabuf *escrow_dmabuf_alloc(struct file *memory, u64 offset, u64 size,
						 int flags)
{
	struct escrow_dmabuf *buffer = kzalloc(sizeof(*buffer), GFP_KERNEL_ACCOUNT);
	int err;

	if (!buffer)
		return ERR_PTR(-ENOMEM);
	buffer->memory = get_file(memory);
	buffer->offset = offset;
	buffer->size = size;
	/* The part's file keeps who maps the buffer from other pages of the memory. */
	buffer->part = escrow_part_open(memory, offset, size, flags);
	if (IS_ERR(buffer->part)) {
		err = PTR_ERR(buffer->part);
		goto err_memory;
	}
	err = escrow_dmabuf_take(buffer, &buffer->ref, &escrow_static_ops, "dma-buf");
	if (err)
		goto err_part;
	/* This allocates all pages. An importer cannot map the buffer while one of them is lent. */
	err = escrow_dmabuf_begin(buffer, &buffer->ref);
	if (err) {
		escrow_dmabuf_free(buffer);
		return ERR_PTR(err);
	}
	escrow_dmabuf_end(buffer, &buffer->ref);
	return buffer;

err_part:
	fput(buffer->part);
err_memory:
	fput(memory);
	kfree(buffer);
	return ERR_PTR(err);
}

/* A dma-buf of a part of a memory. → a descriptor */
int escrow_mem_export(struct file *memory, const struct escrow_export_dmabuf_args *args)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct escrow_dmabuf *buffer;
	struct dma_buf *dmabuf;
	int fd, flags;

	flags = escrow_rs_export_check(args);
	if (flags < 0)
		return flags;
	info.flags = flags & ESCROW_EXPORT_WRITE ? O_RDWR : O_RDONLY;
	buffer = escrow_dmabuf_alloc(memory, args->offset, args->size, info.flags);
	if (IS_ERR(buffer))
		return PTR_ERR(buffer);
	info.ops = &escrow_dmabuf_ops;
	info.size = buffer->size;
	info.priv = buffer;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		escrow_dmabuf_free(buffer);
		return PTR_ERR(dmabuf);
	}
	/* Another thread may close the descriptor at once: the buffer is not used below. */
	fd = dma_buf_fd(dmabuf, flags & ESCROW_EXPORT_CLOEXEC ? O_CLOEXEC : 0);
	if (fd < 0)
		dma_buf_put(dmabuf);
	return fd;
}
