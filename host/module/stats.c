// SPDX-License-Identifier: GPL-2.0-only
/* Counts of events, and lists of what there is. */

#include <linux/cpumask.h>
#include <linux/string.h>

#include "stats.h"

DEFINE_PER_CPU(struct escrow_events, escrow_events);

struct escrow_list escrow_memories = {
	.lock = __MUTEX_INITIALIZER(escrow_memories.lock),
	.head = LIST_HEAD_INIT(escrow_memories.head),
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

void escrow_listing_add(struct escrow_list *list, struct escrow_listing *listing)
{
	listing->creator = task_tgid_nr(current);
	strscpy(listing->comm, current->group_leader->comm);
	mutex_lock(&list->lock);
	list_add_tail(&listing->link, &list->head);
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
