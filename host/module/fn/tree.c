// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 4: what a VM's device tree configures: its interrupt controller and its doorbells.
 * They are made when it starts, before the tree is lent.
 */

#include <linux/slab.h>

#include "fn/fn.h"

/*
 * Reads the device tree, whose memory is bound by @binding, and configures the VM by it. If
 * the guest has the tree already, since a start that failed, it cannot be read, and was
 * used at that start. With vm->lock for writing.
 */
int escrow_tree_configure(struct escrow_vm *vm, const struct escrow_binding *binding)
{
	u32 size, highest = escrow_consoles_highest(vm);
	u64 guest, room, offset;
	u8 head[8], *tree;
	int err, trimmed;

	if (!escrow_rs_vm_dtb(vm->core, &guest, &room))
		return 0;
	offset = binding->offset + (guest - binding->guest);
	if (room < sizeof(head) || escrow_mem_read(binding->mem, offset, head, sizeof(head)))
		return 0;
	size = escrow_rs_tree_size(head);
	/*
	 * Without a tree the VM gets no interrupts. An empty one is passed on, because a start
	 * that failed may have configured some.
	 */
	if (size < sizeof(head) || size > room)
		return escrow_rs_vm_configure(vm->core, &vm->borrower, highest, head, 0);
	tree = kvmalloc(size, GFP_KERNEL_ACCOUNT);
	if (!tree)
		return -ENOMEM;
	/* Programs can change the tree in the guest's memory, so only this copy is used. */
	err = 0;
	if (!escrow_mem_read(binding->mem, offset, tree, size)) {
		trimmed = escrow_rs_tree_trim(tree, size);
		err = trimmed < 0 ? trimmed :
				    escrow_rs_vm_configure(vm->core, &vm->borrower, highest, tree,
							   trimmed);
	}
	kvfree(tree);
	return err;
}
