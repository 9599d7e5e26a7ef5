// SPDX-License-Identifier: GPL-2.0-only
/* Floor 5: /dev/gunyah */

#include <linux/crash_dump.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/uaccess.h>

#include <asm/virt.h>

#include "dev/dev.h"
#include "escrow_version.h"

static long escrow_dev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	if (escrow_registry_is_shut())
		return -ENODEV;
	switch (cmd) {
	case GUNYAH_CREATE_VM:
		/* The argument is the type of VM; 0 is the only one. */
		return arg ? -EINVAL : escrow_vm_create();
	case GUNYAH_CREATE_GUEST_MEM: {
		struct gunyah_create_guest_mem_args args;

		if (copy_from_user(&args, (void __user *)arg, sizeof(args)))
			return -EFAULT;
		return escrow_mem_create(&args, escrow_vm_top_up_handle);
	}
	default:
		return -ENOTTY;
	}
}

static const struct file_operations escrow_dev_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = escrow_dev_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice escrow_dev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "gunyah",
	.fops = &escrow_dev_fops,
	.groups = escrow_groups,
};

/* The node that Escrow adds to its host's tree; udev finds the module by it. */
static const struct of_device_id escrow_ids[] = {
	{ .compatible = "escrow,hypervisor" },
	{}
};
MODULE_DEVICE_TABLE(of, escrow_ids);

/*
 * Without a hypervisor HVC is an undefined instruction, so look into the device tree
 * first.
 */
static bool __init escrow_is_below(void)
{
	struct device_node *node;

	if (is_kernel_in_hyp_mode()) {
		pr_err("this kernel runs at EL2 itself, not under Escrow\n");
		return false;
	}
	node = of_find_matching_node(NULL, escrow_ids);
	if (!node) {
		pr_err("not running under Escrow: the device tree names no escrow,hypervisor\n");
		return false;
	}
	of_node_put(node);
	if (!escrow_rs_identify()) {
		pr_err("whoever is at EL2, it is no Escrow that this module knows\n");
		return false;
	}
	return true;
}

/*
 * Warns of VMs of an earlier kernel, which crashed, or which a kexec left without this
 * module's notifier.
 */
static void __init escrow_tell_of_others(void)
{
	u64 vms = 0;

	escrow_rs_info_vms(&vms);
	/* In a dump kernel such VMs are expected, and dump.c reports them. */
	if (vms && !is_kdump_kernel())
		pr_warn("%llu VMs of a kernel before this one have memory that faults here: reset the machine\n",
			vms);
}

static int __init escrow_init(void)
{
	int err;

	if (!escrow_is_below())
		return -ENODEV;
	escrow_tell_of_others();
	escrow_ram_init();
	err = escrow_holders_init();
	if (err)
		return err;
	err = escrow_power_init();
	if (err)
		goto err_holders;
	err = escrow_hotplug_init();
	if (err)
		goto err_power;
	escrow_guest_init();
	escrow_poison_init();
	escrow_dump_init();
	escrow_debugfs_init();
	/* This is the last step: programs may use the device before misc_register() returns. */
	err = misc_register(&escrow_dev);
	if (err) {
		pr_err("cannot register /dev/gunyah: %d\n", err);
		goto err_debugfs;
	}
	return 0;

err_debugfs:
	escrow_debugfs_exit();
	escrow_dump_exit();
	escrow_poison_exit();
	escrow_guest_exit();
	escrow_hotplug_exit();
err_power:
	escrow_power_exit();
err_holders:
	escrow_holders_exit();
	return err;
}

static void __exit escrow_exit(void)
{
	misc_deregister(&escrow_dev);
	escrow_debugfs_exit();
	escrow_dump_exit();
	escrow_poison_exit();
	escrow_guest_exit();
	escrow_hotplug_exit();
	escrow_power_exit();
	escrow_vm_exit();
	escrow_holders_exit();
}

module_init(escrow_init);
module_exit(escrow_exit);

MODULE_DESCRIPTION("Guests on memory that is held in escrow");
MODULE_AUTHOR("The Escrow authors");
MODULE_LICENSE("GPL");
MODULE_VERSION(ESCROW_VERSION);
