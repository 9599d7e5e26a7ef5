// SPDX-License-Identifier: GPL-2.0-only
/* Floor 5: what there is at the moment, added up from all memories and VMs. */

#include <linux/string.h>

#include "dev/dev.h"

const char *const escrow_total_names[ESCROW_TOTALS] = {
	[ESCROW_TOTAL_MEMORIES] = "memories",
	[ESCROW_TOTAL_PRESENT] = "present",
	[ESCROW_TOTAL_LENT] = "lent",
	[ESCROW_TOTAL_SHARED] = "shared",
	[ESCROW_TOTAL_QUARANTINED] = "quarantined",
	[ESCROW_TOTAL_POISONED] = "poisoned",
	[ESCROW_TOTAL_VMS] = "vms",
	[ESCROW_TOTAL_METADATA] = "metadata",
	[ESCROW_TOTAL_ZOMBIES] = "zombies",
};

static void escrow_add_memories(u64 totals[ESCROW_TOTALS])
{
	struct escrow_mem *mem;

	mutex_lock(&escrow_memories.lock);
	list_for_each_entry(mem, &escrow_memories.head, listing.link) {
		u64 counts[ESCROW_COUNTS];

		escrow_rs_counts(&mem->counts, counts);
		totals[ESCROW_TOTAL_MEMORIES]++;
		totals[ESCROW_TOTAL_PRESENT] += counts[ESCROW_COUNT_PRESENT];
		totals[ESCROW_TOTAL_LENT] += counts[ESCROW_COUNT_LENT];
		totals[ESCROW_TOTAL_SHARED] += counts[ESCROW_COUNT_SHARED];
		totals[ESCROW_TOTAL_QUARANTINED] += counts[ESCROW_COUNT_QUARANTINED];
		totals[ESCROW_TOTAL_POISONED] += counts[ESCROW_COUNT_POISONED];
	}
	mutex_unlock(&escrow_memories.lock);
}

static void escrow_add_vms(u64 totals[ESCROW_TOTALS])
{
	struct escrow_vm *vm;

	mutex_lock(&escrow_vms.lock);
	list_for_each_entry(vm, &escrow_vms.head, listing.link) {
		u64 counts[ESCROW_COUNTS];

		escrow_rs_counts(&vm->metadata_counts, counts);
		totals[ESCROW_TOTAL_VMS]++;
		totals[ESCROW_TOTAL_METADATA] += counts[ESCROW_COUNT_LENT] +
						 counts[ESCROW_COUNT_QUARANTINED];
		if (escrow_vm_is_zombie(vm))
			totals[ESCROW_TOTAL_ZOMBIES]++;
	}
	mutex_unlock(&escrow_vms.lock);
}

/*
 * Adds up the states of all pages and VMs. No lock of a page is taken, so a page whose
 * state changes meanwhile may be counted in both states or in none. In return a reader
 * holds up only the creation and the end of memories and VMs, however often it reads.
 */
void escrow_totals(u64 totals[ESCROW_TOTALS])
{
	memset(totals, 0, ESCROW_TOTALS * sizeof(*totals));
	escrow_add_memories(totals);
	escrow_add_vms(totals);
}
