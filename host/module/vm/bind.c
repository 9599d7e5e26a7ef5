// SPDX-License-Identifier: GPL-2.0-only
/* Floor 3: guest addresses and the memories behind them. */

#include <linux/errno.h>

#include "vm/vm.h"

/* With vm->lock for writing, as the functions below. */
int escrow_vm_bind(struct escrow_vm *vm, const struct escrow_map_request *request,
		   struct escrow_mem *mem)
{
	int err = escrow_rs_vm_bind(vm->core, &vm->borrower, request, mem);

	if (err == -ENOSPC)
		pr_warn_ratelimited("VM %#llx has as many bindings as a VM can have\n",
				    vm->borrower.handle);
	return err;
}

int escrow_vm_unbind(struct escrow_vm *vm, const struct escrow_map_request *request,
		     struct escrow_mem *mem)
{
	/* A range is bound once in a VM, so all that this VM has of it comes from this binding. */
	const struct escrow_filter filter = { .vm = vm->borrower.handle, .how = -1 };
	u64 lacks;
	int err;

	err = escrow_rs_vm_begin_unbind(vm->core, request, mem);
	if (err)
		return err;
	/* vm->lock is held, so no vCPU of this VM gets a page again meanwhile. */
	do {
		err = escrow_mem_reclaim(mem, request->offset, request->size, &filter,
					 false, &lacks);
	} while (escrow_mem_top_up(mem, err, lacks));
	if (err)
		return err;
	return escrow_rs_vm_end_unbind(vm->core, &vm->borrower, request);
}

/* Lends all that is there: what a protected VM starts with. */
int escrow_vm_lend_present(struct escrow_vm *vm, struct escrow_attempt *attempt)
{
	struct escrow_binding binding;
	int err = 0;
	size_t i;

	for (i = 0; !err && !escrow_rs_vm_binding(vm->core, i, &binding); i++) {
		if (binding.how == ESCROW_LENT)
			err = escrow_mem_lend_present(&vm->borrower, &binding, attempt);
	}
	return err;
}
