// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 5: a crash dump. The kernel that runs after a panic (kdump) reads the memory of
 * the kernel that panicked, and does not recover from a fault there. To EL2 nothing has
 * changed: a page that a guest has still faults. So /proc/vmcore asks here before it
 * reads a page, and shows zeros for pages that the host cannot access.
 *
 * An answer may be kept, as no page changes its state any more: this kernel knows none of
 * the VMs, their vCPUs do not run, and it creates no VM (the gate is shut).
 */

#include <linux/crash_dump.h>
#include <linux/minmax.h>
#include <linux/pfn.h>
#include <linux/spinlock.h>

#include "dev/dev.h"

/* EL2's last answer, and the frames that it holds for. */
static DEFINE_SPINLOCK(known_lock);
static unsigned long known_first, known_end;
static bool known_reached;

static bool escrow_dump_is_ram(struct vmcore_cb *cb, unsigned long pfn)
{
	bool is_known, reached;
	u64 pages;

	spin_lock(&known_lock);
	is_known = pfn >= known_first && pfn < known_end;
	reached = known_reached;
	spin_unlock(&known_lock);
	if (is_known)
		return reached;
	reached = escrow_rs_host_reaches(PFN_PHYS(pfn), &pages);
	spin_lock(&known_lock);
	known_first = pfn;
	known_end = pfn + pages;
	known_reached = reached;
	spin_unlock(&known_lock);
	return reached;
}

static struct vmcore_cb escrow_dump = {
	.pfn_is_ram = escrow_dump_is_ram,
};

void escrow_dump_init(void)
{
	u64 vms = 0;

	if (!is_kdump_kernel())
		return;
	escrow_registry_shut();
	register_vmcore_cb(&escrow_dump);
	escrow_rs_info_vms(&vms);
	pr_info("this kernel is here for a dump: what the %llu VMs of the one before have reads as zeros, and there are no new ones\n",
		vms);
}

void escrow_dump_exit(void)
{
	if (is_kdump_kernel())
		unregister_vmcore_cb(&escrow_dump);
}
