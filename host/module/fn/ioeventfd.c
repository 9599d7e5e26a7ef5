// SPDX-License-Identifier: GPL-2.0-only
/* Floor 4: Guest writes that signal an eventfd, without the program that runs the vCPU. */

#include <linux/err.h>
#include <linux/eventfd.h>

#include "fn/fn.h"

/*
 * The table holds the reference to the eventfd: if its last descriptor is closed, the
 * event stays, without a reader, until the function is removed or the VM ends.
 */
static int escrow_ioeventfd_add(struct escrow_vm *vm, const struct escrow_function *function,
				const struct gunyah_fn_desc *desc,
				const union escrow_fn_arg *arg)
{
	struct eventfd_ctx *event = eventfd_ctx_fdget(function->fd);
	int err;

	if (IS_ERR(event))
		return PTR_ERR(event);
	err = escrow_vm_lock(vm);
	if (err) {
		eventfd_ctx_put(event);
		return err;
	}
	if (!vm->ioeventfds) {
		WRITE_ONCE(vm->ioeventfds, escrow_rs_ioeventfds_new());
		err = vm->ioeventfds ? 0 : -ENOMEM;
	}
	if (err)
		eventfd_ctx_put(event);
	else
		err = escrow_rs_ioeventfd_add(vm->ioeventfds, desc, arg, event);
	if (err == -ENOSPC)
		pr_warn_ratelimited("VM %#llx has as many IOEVENTFDs as a VM can have\n",
				    vm->borrower.handle);
	up_write(&vm->lock);
	return err;
}

static int escrow_ioeventfd_remove(struct escrow_vm *vm, const struct escrow_function *function,
				   const struct gunyah_fn_desc *desc,
				   const union escrow_fn_arg *arg)
{
	int err;

	err = escrow_vm_lock(vm);
	if (err)
		return err;
	err = -ENOENT;
	if (vm->ioeventfds)
		err = escrow_rs_ioeventfd_remove(vm->ioeventfds, desc, arg);
	up_write(&vm->lock);
	return err;
}

/*
 * A guest's write. true: it matched an IOEVENTFD and is done. vm->lock keeps the event from
 * being released meanwhile; once a removal has returned, its event is not signalled.
 */
bool escrow_ioeventfd_write(struct escrow_vm *vm, u64 address, u32 size, u64 data)
{
	bool done;

	/* A table that is there stays until the VM's end: without one there is nothing to find. */
	if (!READ_ONCE(vm->ioeventfds))
		return false;
	escrow_down_read(&vm->lock);
	done = escrow_rs_ioeventfd_write(vm->ioeventfds, address, size, data);
	up_read(&vm->lock);
	return done;
}

static void escrow_ioeventfds_end(struct escrow_vm *vm)
{
	escrow_rs_ioeventfds_free(vm->ioeventfds);
	vm->ioeventfds = NULL;
}

const struct escrow_fn_ops escrow_ioeventfd_ops = {
	.type = GUNYAH_FN_IOEVENTFD,
	.add = escrow_ioeventfd_add,
	.remove = escrow_ioeventfd_remove,
	.end = escrow_ioeventfds_end,
};
