// SPDX-License-Identifier: GPL-2.0-only
/* /dev/liar */

#include <linux/arm-smccc.h>
#include <linux/capability.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/limits.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/notifier.h>
#include <linux/of.h>
#include <linux/reboot.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "liar.h"

static void liar_hvc(struct liar_call *call)
{
	const struct arm_smccc_1_2_regs in = {
		.a0 = call->x[0], .a1 = call->x[1], .a2 = call->x[2], .a3 = call->x[3],
		.a4 = call->x[4], .a5 = call->x[5], .a6 = call->x[6], .a7 = call->x[7],
	};
	struct arm_smccc_1_2_regs out;

	arm_smccc_1_2_hvc(&in, &out);
	*call = (struct liar_call){ { out.a0, out.a1, out.a2, out.a3, out.a4 } };
}

static int liar_open(struct inode *inode, struct file *file)
{
	struct liar *liar;

	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	liar = kzalloc(sizeof(*liar), GFP_KERNEL);
	if (!liar)
		return -ENOMEM;
	mutex_init(&liar->lock);
	INIT_LIST_HEAD(&liar->pages);
	INIT_LIST_HEAD(&liar->kept);
	file->private_data = liar;
	return 0;
}

static int liar_release(struct inode *inode, struct file *file)
{
	struct liar *liar = file->private_data;

	if (liar_restore(liar))
		pr_err("a page that Linux needs has not come home\n");
	liar_let_go(liar);
	kfree(liar);
	return 0;
}

static int liar_page(struct liar *liar, unsigned int cmd, void __user *arg)
{
	struct liar_page page;
	int err;

	if (copy_from_user(&page, arg, sizeof(page)))
		return -EFAULT;
	if (page.reserved)
		return -EINVAL;
	mutex_lock(&liar->lock);
	switch (cmd) {
	case LIAR_HOLD:
		err = liar_hold(liar, &page);
		break;
	case LIAR_PAIR:
		err = liar_pair(liar, &page);
		break;
	case LIAR_CODE:
		err = liar_code(liar, &page);
		break;
	default:
		err = liar_table(liar, &page);
		break;
	}
	mutex_unlock(&liar->lock);
	if (err)
		return err;
	return copy_to_user(arg, &page, sizeof(page)) ? -EFAULT : 0;
}

static long liar_ioctl(struct file *file, unsigned int cmd, unsigned long value)
{
	struct liar *liar = file->private_data;
	void __user *arg = (void __user *)value;

	switch (cmd) {
	case LIAR_HVC: {
		struct liar_call call;

		if (copy_from_user(&call, arg, sizeof(call)))
			return -EFAULT;
		liar_hvc(&call);
		return copy_to_user(arg, &call, sizeof(call)) ? -EFAULT : 0;
	}
	case LIAR_HOLD:
	case LIAR_PAIR:
	case LIAR_CODE:
	case LIAR_TABLE:
		return liar_page(liar, cmd, arg);
	case LIAR_RESTORE: {
		int err;

		mutex_lock(&liar->lock);
		err = liar_restore(liar);
		mutex_unlock(&liar->lock);
		return err;
	}
	case LIAR_PROBE: {
		struct liar_probe probe;
		int err;

		if (copy_from_user(&probe, arg, sizeof(probe)))
			return -EFAULT;
		/* Whoever dies of it must not hold the lock. */
		err = liar_probe(&probe);
		if (err)
			return err;
		return copy_to_user(arg, &probe, sizeof(probe)) ? -EFAULT : 0;
	}
	default:
		return -ENOTTY;
	}
}

static const struct file_operations liar_fops = {
	.owner = THIS_MODULE,
	.open = liar_open,
	.release = liar_release,
	.unlocked_ioctl = liar_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice liar_dev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "liar",
	.mode = 0600,
	.fops = &liar_fops,
};

/* So that programs can be seen after drivers have prepared for the machine's end. */
static uint linger_ms;
module_param(linger_ms, uint, 0444);
MODULE_PARM_DESC(linger_ms, "how long the machine's end waits for programs, at the most");
static bool linger_over;
module_param(linger_over, bool, 0644);
MODULE_PARM_DESC(linger_over, "the programs have ended: the machine's end goes on");

static int liar_linger(struct notifier_block *block, unsigned long event, void *data)
{
	unsigned long end = jiffies + msecs_to_jiffies(linger_ms);

	while (!READ_ONCE(linger_over) && time_before(jiffies, end))
		msleep(20);
	return NOTIFY_DONE;
}

static struct notifier_block liar_reboot = {
	.notifier_call = liar_linger,
	/* After all others. */
	.priority = INT_MIN,
};

static int __init liar_init(void)
{
	struct device_node *node;
	int err;

	/* An HVC that nobody answers is an undefined instruction. */
	node = of_find_compatible_node(NULL, NULL, "escrow,hypervisor");
	if (!node)
		return -ENODEV;
	of_node_put(node);
	err = misc_register(&liar_dev);
	if (err)
		return err;
	err = register_reboot_notifier(&liar_reboot);
	if (err)
		misc_deregister(&liar_dev);
	return err;
}

static void __exit liar_exit(void)
{
	unregister_reboot_notifier(&liar_reboot);
	misc_deregister(&liar_dev);
}

module_init(liar_init);
module_exit(liar_exit);

MODULE_DESCRIPTION("A host that lies to Escrow, for tests");
MODULE_LICENSE("GPL");
