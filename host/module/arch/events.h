/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Floor 0: events. What happens to a page is noted by one call here, which
 * counts and traces it.
 */
#ifndef ESCROW_EVENTS_H
#define ESCROW_EVENTS_H

#include <linux/atomic.h>
#include <linux/percpu.h>
#include <linux/types.h>

#include "arch/trace.h"

/* Events since the module was loaded, in 4 KiB pages but for RETRIES. */
enum escrow_event {
	ESCROW_LENDS,	 /* lent to a guest */
	ESCROW_SHARES,	 /* shared with one */
	ESCROW_REFUSALS, /* not lent, because somebody used it; each try counts */
	ESCROW_RETRIES,	 /* waits for such users to let go, within a try */
	ESCROW_RECLAIMS, /* come home, from living guests and from dead ones */
	ESCROW_UNLOCKS,	 /* of these, unlocked by a guest that lives on */
	ESCROW_KEPT,	 /* asked back in vain; each time counts */
	ESCROW_EVENTS
};

struct escrow_events {
	u64 count[ESCROW_EVENTS];
};

DECLARE_PER_CPU(struct escrow_events, escrow_events);

/* From any context but NMIs; a few instructions, none of them on shared memory. */
static inline void escrow_count(enum escrow_event event, u64 by)
{
	this_cpu_add(escrow_events.count[event], by);
}

u64 escrow_event_total(enum escrow_event event);

/* @pages of @memory (an inode's number) from @offset on are with the VM now. */
static __always_inline void escrow_note_lend(u64 memory, u64 vm, u64 guest, u64 offset, u32 pages,
					     int how)
{
	escrow_count(how ? ESCROW_SHARES : ESCROW_LENDS, pages);
	trace_escrow_lend(memory, vm, guest, offset, pages, how);
}

/* They could not be lent. */
static inline void escrow_note_refusal(u64 memory, u64 offset, u32 pages, s64 excess,
				       u32 accessible, int error)
{
	escrow_count(ESCROW_REFUSALS, pages);
	trace_escrow_refuse(memory, offset, excess, accessible, error);
}

/*
 * They were asked back. @lives: the VM had not ended, so that its guest must
 * have unlocked what was lent and came.
 */
static inline void escrow_note_reclaim(u64 memory, u64 vm, u64 offset, u32 pages, int result,
				       bool quarantined, bool lives)
{
	escrow_count(result ? ESCROW_KEPT : ESCROW_RECLAIMS, pages);
	trace_escrow_reclaim(memory, vm, offset, pages, result, quarantined);
	if (lives && !result) {
		escrow_count(ESCROW_UNLOCKS, pages);
		trace_escrow_unlock(memory, vm, offset, pages);
	}
}

/* As they are called in sysfs and debugfs. */
extern const char *const escrow_event_names[ESCROW_EVENTS];

#endif
