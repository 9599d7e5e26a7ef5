// SPDX-License-Identifier: GPL-2.0-only
/* VM_ADD_FUNCTION and VM_REMOVE_FUNCTION: which function they are about. */

#include <linux/minmax.h>
#include <linux/uaccess.h>

#include "escrow.h"

static int escrow_function_read(void __user *argp, struct gunyah_fn_desc *desc,
				union escrow_fn_arg *arg)
{
	if (copy_from_user(desc, argp, sizeof(*desc)))
		return -EFAULT;
	if (desc->arg_size > GUNYAH_FN_MAX_ARG_SIZE)
		return -EINVAL;
	/* One that is longer is none; there is no need to look at the rest. */
	if (copy_from_user(arg, u64_to_user_ptr(desc->arg),
			   min_t(size_t, desc->arg_size, sizeof(*arg))))
		return -EFAULT;
	return 0;
}

int escrow_function_add(struct escrow_vm *vm, void __user *argp)
{
	struct escrow_function function = {};
	union escrow_fn_arg arg = {};
	struct gunyah_fn_desc desc;
	int err;

	err = escrow_function_read(argp, &desc, &arg);
	if (!err)
		err = escrow_rs_function_to_add(&desc, &arg, &function);
	if (err)
		return err;
	switch (function.type) {
	case GUNYAH_FN_VCPU:
		return escrow_vcpu_add(vm, function.id);
	case GUNYAH_FN_IRQFD:
		return escrow_irqfd_add(vm, &function);
	case GUNYAH_FN_IOEVENTFD:
		return escrow_ioeventfd_add(vm, function.fd, &desc, &arg);
	default:
		return -ENOENT;
	}
}

int escrow_function_remove(struct escrow_vm *vm, void __user *argp)
{
	struct escrow_function function = {};
	union escrow_fn_arg arg = {};
	struct gunyah_fn_desc desc;
	int err;

	err = escrow_function_read(argp, &desc, &arg);
	if (!err)
		err = escrow_rs_function_to_remove(&desc, &arg, &function);
	if (err)
		return err;
	switch (function.type) {
	case GUNYAH_FN_VCPU:
		return escrow_vcpu_remove(vm, function.id);
	case GUNYAH_FN_IRQFD:
		return escrow_irqfd_remove(vm, function.id);
	case GUNYAH_FN_IOEVENTFD:
		return escrow_ioeventfd_remove(vm, &desc, &arg);
	default:
		return -ENOENT;
	}
}

/* The last reference to the VM is gone: nobody adds or removes any more. */
void escrow_functions_end(struct escrow_vm *vm)
{
	escrow_irqfds_end(vm);
	escrow_rs_ioeventfds_free(vm->ioeventfds);
	vm->ioeventfds = NULL;
}
