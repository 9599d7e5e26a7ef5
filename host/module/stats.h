/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the module counts and tells: events, and the lists of memories and VMs.
 * What happens to a page is noted by one call here, which counts and traces it.
 */
#ifndef ESCROW_STATS_H
#define ESCROW_STATS_H

#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/types.h>

#include "trace.h"

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
static inline void escrow_note_lend(u64 memory, u64 vm, u64 guest, u64 offset, u32 pages, int how)
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

/*
 * A place in a list of all objects of a kind, and who made the object. The
 * lists' mutexes are taken inside of all other locks of the module, and
 * nothing is taken inside of them. An object on a list is not freed while the
 * mutex is held, but may be about to end.
 */
struct escrow_listing {
	struct list_head link;
	pid_t creator;
	char comm[TASK_COMM_LEN];
};

struct escrow_list {
	struct mutex lock; /* of the list, and of its members being there */
	struct list_head head;
};

extern struct escrow_list escrow_memories;
extern struct escrow_list escrow_vms;

void escrow_listing_add(struct escrow_list *list, struct escrow_listing *listing);
/* With the list's lock. */
void __escrow_listing_add(struct escrow_list *list, struct escrow_listing *listing);
/* Also of what was never added, if it is zero. */
void escrow_listing_remove(struct escrow_list *list, struct escrow_listing *listing);

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
	ESCROW_TOTAL_REMAINS, /* VMs that nobody has a file of, whose pages do not come */
	ESCROW_TOTALS
};

/* As they are called in sysfs and debugfs. */
extern const char *const escrow_total_names[ESCROW_TOTALS];
extern const char *const escrow_event_names[ESCROW_EVENTS];

void escrow_totals(u64 totals[ESCROW_TOTALS]);

#endif
