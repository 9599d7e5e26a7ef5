/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Floor 5: what user space sees: /dev/gunyah and its ioctls, sysfs and debugfs;
 * and what Linux tells the module: sleep, the machine's end, broken memory,
 * added memory; and what a dump kernel may read.
 */
#ifndef ESCROW_DEV_H
#define ESCROW_DEV_H

#include <linux/types.h>

#include "arch/events.h"
#include "fn/fn.h"

/* What there is at the moment; pages are of 4 KiB. */
enum escrow_total {
	ESCROW_TOTAL_MEMORIES,
	ESCROW_TOTAL_PRESENT, /* pages of memories that the host has for itself */
	ESCROW_TOTAL_LENT,
	ESCROW_TOTAL_SHARED,
	ESCROW_TOTAL_QUARANTINED, /* pages that Escrow should have given back */
	ESCROW_TOTAL_POISONED, /* pages whose memory is broken */
	ESCROW_TOTAL_VMS, /* also those whose files are closed, until all is home */
	ESCROW_TOTAL_METADATA, /* pages that Escrow keeps VMs in */
	ESCROW_TOTAL_ZOMBIES, /* VMs without an open file, whose pages EL2 does not give back */
	ESCROW_TOTALS
};

/* As they are called in sysfs and debugfs. */
extern const char *const escrow_total_names[ESCROW_TOTALS];

/* totals.c */
void escrow_totals(u64 totals[ESCROW_TOTALS]);

/* vm_file.c */
int escrow_vm_create(void);

/* poison.c */
void escrow_poison_init(void);
void escrow_poison_exit(void);

/* hotplug.c */
int escrow_hotplug_init(void);
void escrow_hotplug_exit(void);

/* dump.c */
#ifdef CONFIG_PROC_VMCORE
void escrow_dump_init(void);
void escrow_dump_exit(void);
#else
static inline void escrow_dump_init(void) { }
static inline void escrow_dump_exit(void) { }
#endif

/* sysfs.c */
extern const struct attribute_group *escrow_groups[];

/* debugfs.c */
void escrow_debugfs_init(void);
void escrow_debugfs_exit(void);

/* power.c */
int escrow_power_init(void);
void escrow_power_exit(void);

#endif
