// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages of a process's own stage-1 tables. They come home zeroed, and Linux
 * would miss what was in them when the process ends: so the process's memory
 * is kept from ending, and the contents are put back first.
 */

#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "liar.h"

struct liar_kept_table {
	struct list_head link;
	struct mm_struct *mm;
	void *table;
	u8 contents[PAGE_SIZE];
};

/* Address of the table in the linear map, or NULL. */
static void *liar_find_table(struct mm_struct *mm, unsigned long at, u32 level)
{
	pgd_t *pgd = pgd_offset(mm, at);
	p4d_t *p4d;
	pud_t *pud;
	pmd_t *pmd;

	if (pgd_none(*pgd) || pgd_bad(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, at);
	if (p4d_none(*p4d) || p4d_bad(*p4d))
		return NULL;
	pud = pud_offset(p4d, at);
	if (level == 1)
		return PTR_ALIGN_DOWN(pud, PAGE_SIZE);
	if (pud_none(*pud) || pud_leaf(*pud))
		return NULL;
	pmd = pmd_offset(pud, at);
	if (level == 2)
		return PTR_ALIGN_DOWN(pmd, PAGE_SIZE);
	if (pmd_none(*pmd) || pmd_leaf(*pmd))
		return NULL;
	return level == 3 ? page_address(pmd_page(*pmd)) : NULL;
}

int liar_table(struct liar *liar, struct liar_page *to)
{
	struct mm_struct *mm = current->mm;
	struct liar_kept_table *kept;

	kept = kmalloc(sizeof(*kept), GFP_KERNEL);
	if (!kept)
		return -ENOMEM;
	mmap_read_lock(mm);
	kept->table = liar_find_table(mm, untagged_addr(to->at), to->level);
	if (kept->table)
		memcpy(kept->contents, kept->table, PAGE_SIZE);
	mmap_read_unlock(mm);
	if (!kept->table) {
		kfree(kept);
		return -ENOENT;
	}
	mmget(mm);
	kept->mm = mm;
	list_add(&kept->link, &liar->tables);
	to->frame = __pa(kept->table);
	to->linear = (unsigned long)kept->table;
	return 0;
}

int liar_restore(struct liar *liar)
{
	struct liar_kept_table *kept, *next;
	int err = 0;

	list_for_each_entry_safe(kept, next, &liar->tables, link) {
		if (!liar_is_home(kept->table)) {
			err = -EBUSY;
			continue;
		}
		memcpy(kept->table, kept->contents, PAGE_SIZE);
		/* Table walks see it from here on. */
		dsb(ishst);
		mmput(kept->mm);
		list_del(&kept->link);
		kfree(kept);
	}
	return err;
}
