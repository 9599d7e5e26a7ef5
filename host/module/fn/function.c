// SPDX-License-Identifier: GPL-2.0-only
/* Floor 4: VM_ADD_FUNCTION and VM_REMOVE_FUNCTION: which function they are about. */

#include <linux/minmax.h>
#include <linux/uaccess.h>

#include "fn/fn.h"

static int escrow_function_read(void __user *argp, struct gunyah_fn_desc *desc,
				union escrow_fn_arg *arg)
{
	if (copy_from_user(desc, argp, sizeof(*desc)))
		return -EFAULT;
	if (desc->arg_size > GUNYAH_FN_MAX_ARG_SIZE)
		return -EINVAL;
	/* No argument is longer than *arg. Rust checks the size, so the rest is not copied. */
	if (copy_from_user(arg, u64_to_user_ptr(desc->arg),
			   min_t(size_t, desc->arg_size, sizeof(*arg))))
		return -EFAULT;
	return 0;
}

const struct escrow_fn_ops *const escrow_functions[] = {
	&escrow_vcpu_ops,
	&escrow_irqfd_ops,
	&escrow_ioeventfd_ops,
	&escrow_console_ops,
	NULL,
};

static const struct escrow_fn_ops *escrow_function_ops(const struct escrow_vm *vm, u32 type)
{
	const struct escrow_fn_ops *const *ops;

	for (ops = vm->functions; *ops; ops++) {
		if ((*ops)->type == type)
			return *ops;
	}
	return NULL;
}

/* Checks a call's argument, and calls the operation of that kind of function. */
static int escrow_function_do(struct escrow_vm *vm, void __user *argp, bool add)
{
	const struct escrow_fn_ops *ops;
	struct escrow_function function = {};
	union escrow_fn_arg arg = {};
	struct gunyah_fn_desc desc;
	int err;

	err = escrow_function_read(argp, &desc, &arg);
	if (err)
		return err;
	err = add ? escrow_rs_function_to_add(&desc, &arg, &function) :
		    escrow_rs_function_to_remove(&desc, &arg, &function);
	if (err)
		return err;
	ops = escrow_function_ops(vm, function.type);
	if (!ops)
		return -ENOENT;
	return add ? ops->add(vm, &function, &desc, &arg) :
		     ops->remove(vm, &function, &desc, &arg);
}

int escrow_function_add(struct escrow_vm *vm, void __user *argp)
{
	return escrow_function_do(vm, argp, true);
}

int escrow_function_remove(struct escrow_vm *vm, void __user *argp)
{
	return escrow_function_do(vm, argp, false);
}
