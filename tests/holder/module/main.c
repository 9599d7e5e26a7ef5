// SPDX-License-Identifier: GPL-2.0-only
/* /dev/holder */

#include <linux/capability.h>
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "holder.h"

static struct platform_device *platform;
struct device *holder_device;

static int holder_open(struct inode *inode, struct file *file)
{
	struct holder *holder;

	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	holder = kzalloc(sizeof(*holder), GFP_KERNEL);
	if (!holder)
		return -ENOMEM;
	mutex_init(&holder->lock);
	file->private_data = holder;
	return 0;
}

static int holder_close(struct inode *inode, struct file *file)
{
	struct holder *holder = file->private_data;

	holder_import_end(holder);
	holder_ref_end(holder);
	kfree(holder);
	return 0;
}

static long holder_ioctl(struct file *file, unsigned int cmd, unsigned long value)
{
	struct holder *holder = file->private_data;
	void __user *argp = (void __user *)value;
	struct holder_args args;
	long err;

	if (copy_from_user(&args, argp, sizeof(args)))
		return -EFAULT;
	mutex_lock(&holder->lock);
	err = cmd < HOLDER_ATTACH ? holder_ref(holder, cmd, &args) :
				    holder_import(holder, cmd, &args);
	mutex_unlock(&holder->lock);
	if (err)
		return err;
	return copy_to_user(argp, &args, sizeof(args)) ? -EFAULT : 0;
}

static const struct file_operations holder_fops = {
	.owner = THIS_MODULE,
	.open = holder_open,
	.release = holder_close,
	.unlocked_ioctl = holder_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice holder_dev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "holder",
	.mode = 0600,
	.fops = &holder_fops,
};

static int __init holder_init(void)
{
	int err;

	/* What buffers are attached to. */
	platform = platform_device_register_simple("holder", PLATFORM_DEVID_NONE, NULL, 0);
	if (IS_ERR(platform))
		return PTR_ERR(platform);
	holder_device = &platform->dev;
	err = dma_coerce_mask_and_coherent(holder_device, DMA_BIT_MASK(64));
	if (!err)
		err = misc_register(&holder_dev);
	if (err)
		platform_device_unregister(platform);
	return err;
}

static void __exit holder_exit(void)
{
	misc_deregister(&holder_dev);
	platform_device_unregister(platform);
}

module_init(holder_init);
module_exit(holder_exit);

MODULE_DESCRIPTION("A user of the shim's safe references, for tests");
MODULE_LICENSE("GPL");
