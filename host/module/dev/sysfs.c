// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 5: /sys/class/misc/gunyah/: what Escrow says of itself (escrow/), and what the
 * module has counted (shim/; units in arch/events.h).
 *
 * What counts is root's to read: it changes with each page that a guest touches,
 * and so would tell every user what guests do.
 */

#include <linux/device.h>
#include <linux/sysfs.h>

#include "dev/dev.h"

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
static DEVICE_ATTR_ADMIN_RO(vms);

/* A bit for each erratum of the CPUs (escrow_abi::errata::Erratum). */
static ssize_t errata_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u64 value;
	int err = escrow_rs_info_errata(&value);

	return err ?: sysfs_emit(buf, "%#llx\n", value);
}
static DEVICE_ATTR_RO(errata);

/* A bit for each way in which entries to EL2 are hardened (escrow_abi::errata::Hardening). */
static ssize_t hardening_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u64 value;
	int err = escrow_rs_info_hardening(&value);

	return err ?: sysfs_emit(buf, "%#llx\n", value);
}
static DEVICE_ATTR_RO(hardening);

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
static DEVICE_ATTR_ADMIN_RO(pages);

/* One number of the module's own; which one is told by the attribute. */
struct escrow_shim_attr {
	struct device_attribute attr;
	int which;
};

static int escrow_which(struct device_attribute *attr)
{
	return container_of(attr, struct escrow_shim_attr, attr)->which;
}

static ssize_t total_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	u64 totals[ESCROW_TOTALS];

	escrow_totals(totals);
	return sysfs_emit(buf, "%llu\n", totals[escrow_which(attr)]);
}

static ssize_t event_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", escrow_event_total(escrow_which(attr)));
}

#define ESCROW_SHIM_ATTR(kind, name, number) \
	static struct escrow_shim_attr shim_attr_##name = { \
		.attr = __ATTR(name, 0400, kind##_show, NULL), \
		.which = number, \
	}

ESCROW_SHIM_ATTR(total, memories, ESCROW_TOTAL_MEMORIES);
ESCROW_SHIM_ATTR(total, present, ESCROW_TOTAL_PRESENT);
ESCROW_SHIM_ATTR(total, lent, ESCROW_TOTAL_LENT);
ESCROW_SHIM_ATTR(total, shared, ESCROW_TOTAL_SHARED);
ESCROW_SHIM_ATTR(total, quarantined, ESCROW_TOTAL_QUARANTINED);
ESCROW_SHIM_ATTR(total, poisoned, ESCROW_TOTAL_POISONED);
ESCROW_SHIM_ATTR(total, vms, ESCROW_TOTAL_VMS);
ESCROW_SHIM_ATTR(total, metadata, ESCROW_TOTAL_METADATA);
ESCROW_SHIM_ATTR(total, zombies, ESCROW_TOTAL_ZOMBIES);
ESCROW_SHIM_ATTR(event, lends, ESCROW_LENDS);
ESCROW_SHIM_ATTR(event, shares, ESCROW_SHARES);
ESCROW_SHIM_ATTR(event, refusals, ESCROW_REFUSALS);
ESCROW_SHIM_ATTR(event, retries, ESCROW_RETRIES);
ESCROW_SHIM_ATTR(event, reclaims, ESCROW_RECLAIMS);
ESCROW_SHIM_ATTR(event, unlocks, ESCROW_UNLOCKS);
ESCROW_SHIM_ATTR(event, kept, ESCROW_KEPT);

static struct attribute *shim_attrs[] = {
	&shim_attr_memories.attr.attr,
	&shim_attr_present.attr.attr,
	&shim_attr_lent.attr.attr,
	&shim_attr_shared.attr.attr,
	&shim_attr_quarantined.attr.attr,
	&shim_attr_poisoned.attr.attr,
	&shim_attr_vms.attr.attr,
	&shim_attr_metadata.attr.attr,
	&shim_attr_zombies.attr.attr,
	&shim_attr_lends.attr.attr,
	&shim_attr_shares.attr.attr,
	&shim_attr_refusals.attr.attr,
	&shim_attr_retries.attr.attr,
	&shim_attr_reclaims.attr.attr,
	&shim_attr_unlocks.attr.attr,
	&shim_attr_kept.attr.attr,
	NULL,
};

static const struct attribute_group shim_group = {
	.name = "shim",
	.attrs = shim_attrs,
};

static struct attribute *escrow_attrs[] = {
	&dev_attr_version.attr,
	&dev_attr_cpus.attr,
	&dev_attr_vms.attr,
	&dev_attr_pages.attr,
	&dev_attr_errata.attr,
	&dev_attr_hardening.attr,
	NULL,
};

static const struct attribute_group escrow_group = {
	.name = "escrow",
	.attrs = escrow_attrs,
};

const struct attribute_group *escrow_groups[] = {
	&escrow_group,
	&shim_group,
	NULL,
};
