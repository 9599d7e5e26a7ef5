// SPDX-License-Identifier: GPL-2.0-only
/*
 * The doorbells of a VM: those that its device tree configures. They are made
 * when it starts, before the tree is lent.
 */

#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/slab.h>

#include "escrow.h"

/* Copies out of a page that is there. Under the invalidate_lock. */
static int escrow_page_read(struct escrow_mem *mem, struct escrow_folio *ef, u64 offset,
			    void *to, size_t size)
{
	struct page *page = folio_page(ef->folio, (offset >> PAGE_SHIFT) - ef->index);
	int err = 0;

	folio_lock(ef->folio);
	if (PageHWPoison(page))
		err = -EHWPOISON;
	else if (!escrow_rs_folio_is_reachable(&ef->state))
		/* The guest may have given it up in the meantime. */
		err = escrow_mem_fetch(mem, ef);
	if (!err)
		err = escrow_rs_folio_access(&ef->state);
	if (!err) {
		memcpy_from_page(to, page, offset_in_page(offset), size);
		escrow_rs_folio_end_access(&ef->state);
	}
	folio_unlock(ef->folio);
	return err;
}

/* Copies out of a memory; pages that were never touched are zeros. */
static int escrow_mem_read(struct escrow_mem *mem, u64 offset, void *to, size_t size)
{
	struct address_space *mapping = escrow_mapping(mem);
	int err = 0;

	filemap_invalidate_lock_shared(mapping);
	while (size && !err) {
		size_t part = min_t(size_t, size, PAGE_SIZE - offset_in_page(offset));
		struct escrow_folio *ef = escrow_mem_find(mem, offset >> PAGE_SHIFT);

		if (ef)
			err = escrow_page_read(mem, ef, offset, to, part);
		else
			memset(to, 0, part);
		offset += part;
		to += part;
		size -= part;
		cond_resched();
	}
	filemap_invalidate_unlock_shared(mapping);
	return err;
}

/*
 * Makes the doorbells that the device tree configures, which is behind the
 * binding @place. A tree that is not to be read, because the guest has it
 * since a start that failed, has been read then. With vm->lock for writing.
 */
int escrow_doorbells_configure(struct escrow_vm *vm, const struct escrow_place *place)
{
	u64 guest, room, offset;
	u8 head[8], *tree;
	u32 size;
	int err;

	if (!escrow_rs_vm_dtb(vm->core, &guest, &room))
		return 0;
	offset = place->offset + (guest - place->guest);
	if (room < sizeof(head) || escrow_mem_read(place->mem, offset, head, sizeof(head)))
		return 0;
	size = escrow_rs_tree_size(head);
	/* No tree configures none, also where one that failed to start had some. */
	if (size < sizeof(head) || size > room)
		return escrow_rs_vm_configure_bells(vm->core, head, 0);
	tree = kvmalloc(size, GFP_KERNEL_ACCOUNT);
	if (!tree)
		return -ENOMEM;
	/* What it says is up to who writes to it meanwhile; it is but a copy. */
	if (escrow_mem_read(place->mem, offset, tree, size))
		err = 0;
	else
		err = escrow_rs_vm_configure_bells(vm->core, tree, size);
	kvfree(tree);
	return err;
}

/* From any context. */
void escrow_doorbell_ring(struct escrow_vm *vm, u64 bell, u32 label)
{
	int err = escrow_rs_bell_send(bell, 1);

	/* Eventfds may be signalled after the VM's end. */
	if (err && err != -ENODEV)
		pr_warn_ratelimited("VM %#llx: doorbell %u does not ring: %d\n", vm->handle,
				    label, err);
	/* Doorbells ring at vCPU 0, until VMs have an interrupt controller. */
	if (!err)
		escrow_vcpu_wake(vm, 0);
}
