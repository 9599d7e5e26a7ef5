// SPDX-License-Identifier: GPL-2.0-only
/* What Escrow says of itself: /sys/class/misc/gunyah/escrow/. */

#include <linux/device.h>
#include <linux/sysfs.h>

#include "escrow.h"

static ssize_t version_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u64 version;
	int err = escrow_rs_info_version(&version);

	if (err)
		return err;
	return sysfs_emit(buf, "%u.%u.%u\n", (u32)(version >> 32), (u16)(version >> 16),
			  (u16)version);
}
static DEVICE_ATTR_RO(version);

static ssize_t cpus_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u64 value;
	int err = escrow_rs_info_cpus(&value);

	return err ?: sysfs_emit(buf, "%llu\n", value);
}
static DEVICE_ATTR_RO(cpus);

static ssize_t vms_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u64 value;
	int err = escrow_rs_info_vms(&value);

	return err ?: sysfs_emit(buf, "%llu\n", value);
}
static DEVICE_ATTR_RO(vms);

/* A line for each state of a frame. */
static ssize_t pages_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	ssize_t at = 0;
	u64 state;

	for (state = 0; ; state++) {
		u8 name[32];
		u64 value;
		int err = escrow_rs_info_pages(state, name, &value);

		if (err == -ENOENT)
			return at;
		if (err)
			return err;
		at += sysfs_emit_at(buf, at, "%s %llu\n", name, value);
	}
}
static DEVICE_ATTR_RO(pages);

static struct attribute *escrow_attrs[] = {
	&dev_attr_version.attr,
	&dev_attr_cpus.attr,
	&dev_attr_vms.attr,
	&dev_attr_pages.attr,
	NULL,
};

static const struct attribute_group escrow_group = {
	.name = "escrow",
	.attrs = escrow_attrs,
};

const struct attribute_group *escrow_groups[] = {
	&escrow_group,
	NULL,
};
