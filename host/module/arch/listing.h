/* SPDX-License-Identifier: GPL-2.0-only */
/* Floor 0: lists of all objects of a kind. */
#ifndef ESCROW_LISTING_H
#define ESCROW_LISTING_H

#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/types.h>

/*
 * A place in a list of all objects of a kind, and the process that made the object. The
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

void escrow_listing_add(struct escrow_list *list, struct escrow_listing *listing);
/* With the list's lock. */
void __escrow_listing_add(struct escrow_list *list, struct escrow_listing *listing);
/* Also of what was never added, if it is zero. */
void escrow_listing_remove(struct escrow_list *list, struct escrow_listing *listing);

#endif
