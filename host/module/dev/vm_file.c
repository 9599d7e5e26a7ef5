// SPDX-License-Identifier: GPL-2.0-only
/* Floor 5: a VM as a file, and its ioctls. */

#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "dev/dev.h"

static int escrow_vm_set_dtb(struct escrow_vm *vm, void __user *argp)
{
	struct gunyah_vm_dtb_config config;
	int err;

	if (copy_from_user(&config, argp, sizeof(config)))
		return -EFAULT;
	err = escrow_vm_lock(vm);
	if (err)
		return err;
	err = escrow_rs_vm_set_dtb(vm->core, &config);
	up_write(&vm->lock);
	return err;
}

static int escrow_vm_set_boot_context(struct escrow_vm *vm, void __user *argp)
{
	struct gunyah_vm_boot_context context;
	int err;

	if (copy_from_user(&context, argp, sizeof(context)))
		return -EFAULT;
	err = escrow_vm_lock(vm);
	if (err)
		return err;
	err = escrow_rs_vm_set_boot_context(vm->core, &context);
	up_write(&vm->lock);
	return err;
}

/* → how many bits the guest's addresses have */
static int escrow_vm_protect(struct escrow_vm *vm)
{
	int ret;

	ret = escrow_vm_lock(vm);
	if (ret)
		return ret;
	if (!list_empty(&vm->irqfds) || !list_empty(&vm->consoles) || vm->ioeventfds)
		ret = -EBUSY;
	else
		ret = escrow_rs_vm_protect(vm->core);
	if (ret >= 0)
		vm->borrower.is_protected = true;
	up_write(&vm->lock);
	return ret;
}

static int escrow_vm_map(struct escrow_vm *vm, void __user *argp)
{
	struct escrow_map_request request = {};
	struct gunyah_map_mem_args args;
	struct escrow_mem *mem;
	struct file *file;
	int err;

	if (copy_from_user(&args, argp, sizeof(args)))
		return -EFAULT;
	err = escrow_rs_map_check(&args, &request);
	if (err)
		return err;
	file = fget(args.guest_mem_fd);
	if (!file)
		return -EINVAL;
	mem = escrow_mem_of(file);
	if (!mem) {
		err = -EINVAL;
	} else {
		err = escrow_vm_lock(vm);
		if (!err) {
			err = request.unbind ?
				escrow_vm_unbind(vm, &request, mem) :
				escrow_vm_bind(vm, &request, mem);
			up_write(&vm->lock);
		}
	}
	fput(file);
	return err;
}

/* Calls the start operation of each kind of function. */
static int escrow_vm_start_functions(struct escrow_vm *vm)
{
	const struct escrow_fn_ops *const *ops;
	int err = 0;

	for (ops = vm->functions; *ops && !err; ops++) {
		if ((*ops)->start)
			err = (*ops)->start(vm);
	}
	return err;
}

static int escrow_vm_try_start(struct escrow_vm *vm, struct escrow_attempt *attempt)
{
	struct escrow_binding binding;
	u64 guest, size;
	bool unmapped;
	int err;

	err = escrow_vm_lock(vm);
	if (err)
		return err;
	err = escrow_rs_vm_check_start(vm->core, &binding, &guest, &size, &unmapped);
	if (err > 0) {
		/*
		 * The program is lent to the guest now, and a guest that has not run gives
		 * nothing back. So all that can fail must come before the lend. The start
		 * itself allocates nothing, and fails only if the VM has no vCPU.
		 */
		err = escrow_tree_configure(vm, &binding);
		if (!err)
			err = escrow_vm_start_functions(vm);
		if (!err)
			err = escrow_rs_vm_set_registers(vm->core);
		if (!err)
			err = escrow_mem_lend(&vm->borrower, &binding, guest, size, unmapped,
					      attempt);
		if (!err && vm->borrower.is_protected)
			err = escrow_vm_lend_present(vm, attempt);
		if (!err)
			err = escrow_rs_vm_start(vm->core, &vm->borrower);
	}
	up_write(&vm->lock);
	return err;
}

static int escrow_vm_start(struct escrow_vm *vm)
{
	struct escrow_attempt attempt = {};
	int err;

	/* The top-up drops vm->lock, so each attempt checks everything again. */
	do {
		err = escrow_vm_try_start(vm, &attempt);
	} while (err == -EAGAIN && escrow_attempt_again(&attempt));
	escrow_attempt_end(&attempt);
	return err;
}

static long escrow_vm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct escrow_vm *vm = file->private_data;
	void __user *argp = (void __user *)arg;

	switch (cmd) {
	case GUNYAH_VM_SET_DTB_CONFIG:
		return escrow_vm_set_dtb(vm, argp);
	case GUNYAH_VM_START:
		return escrow_vm_start(vm);
	case GUNYAH_VM_ADD_FUNCTION:
		return escrow_function_add(vm, argp);
	case GUNYAH_VM_REMOVE_FUNCTION:
		return escrow_function_remove(vm, argp);
	case GUNYAH_VM_MAP_MEM:
		return escrow_vm_map(vm, argp);
	case ESCROW_VM_PROTECT:
		return escrow_vm_protect(vm);
	case GUNYAH_VM_SET_BOOT_CONTEXT:
		return escrow_vm_set_boot_context(vm, argp);
	default:
		return -ENOTTY;
	}
}

static int escrow_vm_close(struct inode *inode, struct file *file)
{
	escrow_vm_put(file->private_data);
	return 0;
}

static const struct file_operations escrow_vm_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = escrow_vm_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = escrow_vm_close,
};

/* CREATE_VM: makes a VM and a file, which has the reference to it. */
int escrow_vm_create(void)
{
	struct escrow_vm *vm;
	struct file *file;
	int fd, err;

	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	vm = escrow_vm_new(escrow_functions);
	if (IS_ERR(vm)) {
		err = PTR_ERR(vm);
		goto err_fd;
	}
	err = escrow_vm_lock(vm);
	if (err)
		goto err_vm;
	err = escrow_vm_set_up(vm);
	up_write(&vm->lock);
	if (err)
		goto err_vm;
	file = anon_inode_getfile("[gunyah-vm]", &escrow_vm_fops, vm, O_RDWR);
	if (IS_ERR(file)) {
		err = PTR_ERR(file);
		goto err_vm;
	}
	/* Another thread may close the descriptor at once, which frees the VM. */
	fd_install(fd, file);
	return fd;

err_vm:
	escrow_vm_put(vm);
err_fd:
	put_unused_fd(fd);
	return err;
}
