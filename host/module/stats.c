// SPDX-License-Identifier: GPL-2.0-only
/* Counts of events, and lists of what there is. */

#include <linux/cpumask.h>
#include <linux/string.h>

#include "escrow.h"

DEFINE_PER_CPU(struct escrow_events, escrow_events);

struct escrow_list escrow_memories = {
	.lock = __MUTEX_INITIALIZER(escrow_memories.lock),
	.head = LIST_HEAD_INIT(escrow_memories.head),
};

struct escrow_list escrow_vms = {
	.lock = __MUTEX_INITIALIZER(escrow_vms.lock),
	.head = LIST_HEAD_INIT(escrow_vms.head),
};

const char *const escrow_total_names[ESCROW_TOTALS] = {
	[ESCROW_TOTAL_MEMORIES] = "memories",
	[ESCROW_TOTAL_PRESENT] = "present",
	[ESCROW_TOTAL_LENT] = "lent",
	[ESCROW_TOTAL_SHARED] = "shared",
	[ESCROW_TOTAL_QUARANTINED] = "quarantined",
	[ESCROW_TOTAL_POISONED] = "poisoned",
	[ESCROW_TOTAL_VMS] = "vms",
	[ESCROW_TOTAL_METADATA] = "metadata",
	[ESCROW_TOTAL_REMAINS] = "remains",
};

const char *const escrow_event_names[ESCROW_EVENTS] = {
	[ESCROW_LENDS] = "lends",
	[ESCROW_SHARES] = "shares",
	[ESCROW_REFUSALS] = "refusals",
	[ESCROW_RETRIES] = "retries",
	[ESCROW_RECLAIMS] = "reclaims",
	[ESCROW_UNLOCKS] = "unlocks",
	[ESCROW_KEPT] = "kept",
};

/* Events that happen meanwhile may or may not be in the sum. */
u64 escrow_event_total(enum escrow_event event)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu(escrow_events.count[event], cpu));
	return sum;
}

void __escrow_listing_add(struct escrow_list *list, struct escrow_listing *listing)
{
	lockdep_assert_held(&list->lock);
	listing->creator = task_tgid_nr(current);
	strscpy(listing->comm, current->group_leader->comm);
	list_add_tail(&listing->link, &list->head);
}

void escrow_listing_add(struct escrow_list *list, struct escrow_listing *listing)
{
	mutex_lock(&list->lock);
	__escrow_listing_add(list, listing);
	mutex_unlock(&list->lock);
}

void escrow_listing_remove(struct escrow_list *list, struct escrow_listing *listing)
{
	if (!listing->link.next)
		return;
	mutex_lock(&list->lock);
	list_del(&listing->link);
	mutex_unlock(&list->lock);
}

static void escrow_add_memories(u64 totals[ESCROW_TOTALS])
{
	struct escrow_mem *mem;

	mutex_lock(&escrow_memories.lock);
	list_for_each_entry(mem, &escrow_memories.head, listing.link) {
		u64 counts[ESCROW_COUNTS];

		escrow_rs_counts(&mem->counts, counts);
		totals[ESCROW_TOTAL_MEMORIES]++;
		totals[ESCROW_TOTAL_PRESENT] += counts[0];
		totals[ESCROW_TOTAL_LENT] += counts[1];
		totals[ESCROW_TOTAL_SHARED] += counts[2];
		totals[ESCROW_TOTAL_QUARANTINED] += counts[3];
		totals[ESCROW_TOTAL_POISONED] += counts[4];
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
		totals[ESCROW_TOTAL_METADATA] += counts[1] + counts[3];
		if (READ_ONCE(vm->is_left))
			totals[ESCROW_TOTAL_REMAINS]++;
	}
	mutex_unlock(&escrow_vms.lock);
}

/*
 * What there is. Pages that change hands meanwhile may be counted in both
 * hands or in none: no lock of theirs is taken, so that who looks, as often
 * as he likes, keeps nobody from working but who creates and closes.
 */
void escrow_totals(u64 totals[ESCROW_TOTALS])
{
	memset(totals, 0, ESCROW_TOTALS * sizeof(*totals));
	escrow_add_memories(totals);
	escrow_add_vms(totals);
}
