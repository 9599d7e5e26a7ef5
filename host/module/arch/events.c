// SPDX-License-Identifier: GPL-2.0-only
/* Floor 0: counts of events. */

#include <linux/cpumask.h>

#include "arch/events.h"

DEFINE_PER_CPU(struct escrow_events, escrow_events);

const char *const escrow_event_names[ESCROW_EVENTS] = {
	[ESCROW_LENDS] = "lends",
	[ESCROW_SHARES] = "shares",
	[ESCROW_REFUSALS] = "refusals",
	[ESCROW_RETRIES] = "retries",
	[ESCROW_RECLAIMS] = "reclaims",
	[ESCROW_UNLOCKS] = "unlocks",
	[ESCROW_KEPT] = "kept",
};

/* Adds up all CPUs. An event that happens meanwhile may or may not be counted. */
u64 escrow_event_total(enum escrow_event event)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu(escrow_events.count[event], cpu));
	return sum;
}
