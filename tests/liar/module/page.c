// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages that may be lent without Linux knowing. Until the file is closed they
 * are not freed, whoever else lets go of them; and one that is not home even
 * then is kept for good, because Linux would hand it out.
 */

#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "liar.h"

/* Pages with one reference to drop. */
struct liar_held {
	struct list_head link;
	struct page *page;
	unsigned int order;
};

static int liar_keep(struct liar *liar, struct page *page, unsigned int order)
{
	struct liar_held *held = kmalloc(sizeof(*held), GFP_KERNEL);

	if (!held)
		return -ENOMEM;
	held->page = page;
	held->order = order;
	list_add(&held->link, &liar->pages);
	return 0;
}

static void liar_tell(struct liar_page *to, struct page *page)
{
	to->frame = page_to_phys(page);
	to->linear = (unsigned long)page_address(page);
}

int liar_hold(struct liar *liar, struct liar_page *to)
{
	struct page *page;
	int err;

	err = get_user_pages_fast(untagged_addr(to->at), 1, 0, &page);
	if (err < 0)
		return err;
	err = liar_keep(liar, page, 0);
	if (err)
		put_page(page);
	else
		liar_tell(to, page);
	return err;
}

int liar_pair(struct liar *liar, struct liar_page *to)
{
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_ZERO, 1);
	int err;

	if (!page)
		return -ENOMEM;
	err = liar_keep(liar, page, 1);
	if (err)
		__free_pages(page, 1);
	else
		liar_tell(to, page + 1);
	return err;
}

bool liar_is_home(const void *page)
{
	u8 byte;

	return !copy_from_kernel_nofault(&byte, page, sizeof(byte));
}

void liar_let_go(struct liar *liar)
{
	struct liar_held *held, *next;

	list_for_each_entry_safe(held, next, &liar->pages, link) {
		unsigned int n;
		bool is_home = true;

		for (n = 0; n < 1 << held->order; n++)
			is_home &= liar_is_home(page_address(held->page + n));
		if (!is_home)
			pr_err("a page is kept for good: %pa has not come home\n",
			       &(phys_addr_t){ page_to_phys(held->page) });
		else if (held->order)
			__free_pages(held->page, held->order);
		else
			put_page(held->page);
		list_del(&held->link);
		kfree(held);
	}
}
