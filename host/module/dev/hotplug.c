// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 5: a line in the log when memory is added while Linux runs: it cannot be lent.
 *
 * Memory that goes offline needs no handler. Guests have RAM of boot only, and arm64
 * takes none of that offline (prevent_bootmem_remove_notifier()).
 */

#include <linux/memory.h>
#include <linux/notifier.h>
#include <linux/pfn.h>

#include "dev/dev.h"

static int escrow_hotplug_notify(struct notifier_block *block, unsigned long event, void *data)
{
	const struct memory_notify *memory = data;
	phys_addr_t start = PFN_PHYS(memory->start_pfn);
	phys_addr_t last = start + PFN_PHYS(memory->nr_pages) - 1;

	if (event == MEM_ONLINE && !escrow_ram_has_some(memory->start_pfn, memory->nr_pages))
		pr_notice_once("[mem %pa-%pa] was added after boot: Escrow's ledger does not have it, and guests get nothing of what is added\n",
			       &start, &last);
	return NOTIFY_OK;
}

static struct notifier_block escrow_hotplug = {
	.notifier_call = escrow_hotplug_notify,
};

int escrow_hotplug_init(void)
{
	return register_memory_notifier(&escrow_hotplug);
}

void escrow_hotplug_exit(void)
{
	unregister_memory_notifier(&escrow_hotplug);
}
