// SPDX-License-Identifier: GPL-2.0-only
/* Floor 0: lists of all objects of a kind. */

#include <linux/lockdep.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/string.h>

#include "arch/listing.h"

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
