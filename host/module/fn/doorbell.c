// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 4: the doorbells of a VM: those that its device tree configures. They are made
 * when it starts, before the tree is lent.
 */

#include <linux/slab.h>

#include "fn/fn.h"

/*
 * Makes the doorbells that the device tree configures, which is behind the
 * binding @binding. A tree that is not to be read, because the guest has it
 * since a start that failed, has been read then. With vm->lock for writing.
 */
int escrow_doorbells_configure(struct escrow_vm *vm, const struct escrow_binding *binding)
{
	u64 guest, room, offset;
	u8 head[8], *tree;
	u32 size;
	int err;

	if (!escrow_rs_vm_dtb(vm->core, &guest, &room))
		return 0;
	offset = binding->offset + (guest - binding->guest);
	if (room < sizeof(head) || escrow_mem_read(binding->mem, offset, head, sizeof(head)))
		return 0;
	size = escrow_rs_tree_size(head);
	/* No tree configures none, also where one that failed to start had some. */
	if (size < sizeof(head) || size > room)
		return escrow_rs_vm_configure_bells(vm->core, head, 0);
	tree = kvmalloc(size, GFP_KERNEL_ACCOUNT);
	if (!tree)
		return -ENOMEM;
	/* A program may write to the tree meanwhile, so only this copy is used. */
	if (escrow_mem_read(binding->mem, offset, tree, size))
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
		pr_warn_ratelimited("VM %#llx: doorbell %u does not ring: %d\n",
				    vm->borrower.handle, label, err);
	/* Doorbells ring at vCPU 0, until VMs have an interrupt controller. */
	if (!err)
		escrow_vm_wake(vm, 0);
}
