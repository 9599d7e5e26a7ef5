// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages that Linux would miss, because they come home zeroed: their contents
 * are put back before anybody looks.
 *
 * Of a process's stage-1 tables: the process's memory is kept from ending
 * until then. And a page of this module's own code.
 */

#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

#include <asm/cacheflush.h>

#include "liar.h"

struct liar_kept {
	struct list_head link;
	struct mm_struct *mm; /* or NULL */
	struct page *page;
	u8 contents[PAGE_SIZE];
};

/*
 * A page that holds nothing but a function that does nothing. A page of its
 * own making would not do: Linux makes no other executable than a module's.
 */
asm(".pushsection .text.liar_page, \"ax\"\n"
    ".balign " __stringify(PAGE_SIZE) "\n"
    ".globl liar_code_page\n"
    "liar_code_page:\n"
    "	hint #34\n" /* BTI C */
    "	ret\n"
    ".balign " __stringify(PAGE_SIZE) "\n"
    ".popsection");
extern char liar_code_page[];

static int liar_keep_contents(struct liar *liar, struct mm_struct *mm, void *linear,
			      struct liar_page *to)
{
	struct liar_kept *kept = kmalloc(sizeof(*kept), GFP_KERNEL);

	if (!kept)
		return -ENOMEM;
	memcpy(kept->contents, linear, PAGE_SIZE);
	kept->page = virt_to_page(linear);
	kept->mm = mm;
	if (mm)
		mmget(mm);
	list_add(&kept->link, &liar->kept);
	to->frame = page_to_phys(kept->page);
	to->linear = (unsigned long)linear;
	return 0;
}

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
	void *table;
	int err;

	mmap_read_lock(mm);
	table = liar_find_table(mm, untagged_addr(to->at), to->level);
	err = table ? liar_keep_contents(liar, mm, table, to) : -ENOENT;
	mmap_read_unlock(mm);
	return err;
}

int liar_code(struct liar *liar, struct liar_page *to)
{
	struct page *page = vmalloc_to_page(liar_code_page);
	int err;

	if (!page)
		return -ENOENT;
	err = liar_keep_contents(liar, NULL, page_address(page), to);
	to->linear = (unsigned long)liar_code_page;
	return err;
}

static int liar_put_back(struct liar_kept *kept)
{
	void *alias;

	if (!liar_is_home(page_address(kept->page)))
		return -EBUSY;
	/* The linear map of a module's code cannot be written to. */
	alias = vmap(&kept->page, 1, VM_MAP, PAGE_KERNEL);
	if (!alias)
		return -ENOMEM;
	memcpy(alias, kept->contents, PAGE_SIZE);
	/* Table walks and instruction fetches see it from here on. */
	dsb(ishst);
	caches_clean_inval_pou((unsigned long)alias, (unsigned long)alias + PAGE_SIZE);
	vunmap(alias);
	if (kept->mm)
		mmput(kept->mm);
	return 0;
}

int liar_restore(struct liar *liar)
{
	struct liar_kept *kept, *next;
	int err = 0;

	list_for_each_entry_safe(kept, next, &liar->kept, link) {
		int one = liar_put_back(kept);

		if (one) {
			err = one;
			continue;
		}
		list_del(&kept->link);
		kfree(kept);
	}
	return err;
}
