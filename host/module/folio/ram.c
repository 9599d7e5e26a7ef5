// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 1: memory that Escrow has records of: the RAM in the device tree that it gave
 * this kernel. What was added later (a DIMM, virtio-mem) is memory like any
 * other here, and EL2 takes none of it: for a guest, for a VM's metadata, for
 * a list.
 *
 * The page allocator does not tell the two apart. Where all of its memory is
 * of boot, that costs a comparison; where it is not, what it gives may have to
 * be given back for something else.
 */

#include <linux/gfp.h>
#include <linux/highmem.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/of.h>
#include <linux/of_address.h>
#include <linux/pfn.h>
#include <linux/sched.h>

#include "folio/folio.h"

/* Escrow cuts RAM into at most so many ranges. Ranges beyond would count as added later. */
#define ESCROW_RAM_RANGES	128
/* Blocks of added memory that a search holds until it finds one of boot. */
#define ESCROW_RAM_ASIDE	64
/* Blocks of boot whose movable pages are migrated away, in search of a free block. */
#define ESCROW_RAM_CLEARED	64
/* Attempts, since another CPU may allocate the block that was freed. */
#define ESCROW_RAM_RETRIES	8

struct escrow_ram_range {
	unsigned long first;
	unsigned long end;
};

static struct escrow_ram_range escrow_ram[ESCROW_RAM_RANGES];
static unsigned int escrow_ram_count;
/* The zone that gave memory of boot last. */
static gfp_t escrow_ram_zone;
/* The page allocator has memory that is not of boot. */
static bool escrow_ram_is_not_all;
/* Where the search for the next block to be cleared begins. */
static unsigned long escrow_ram_next;
static DEFINE_MUTEX(escrow_ram_lock);

static void __init escrow_ram_add(unsigned long first, unsigned long end)
{
	struct escrow_ram_range *last = &escrow_ram[escrow_ram_count];

	if (first >= end)
		return;
	if (escrow_ram_count && last[-1].end == first)
		last[-1].end = end;
	else if (escrow_ram_count < ESCROW_RAM_RANGES)
		escrow_ram[escrow_ram_count++] = (struct escrow_ram_range){ first, end };
}

/* Reads the device tree. Without memory in it, everything is of boot. */
void __init escrow_ram_init(void)
{
	struct device_node *node;
	struct resource at;
	int i;

	for_each_node_by_type(node, "memory") {
		for (i = 0; !of_address_to_resource(node, i, &at); i++)
			escrow_ram_add(PFN_UP(at.start), PFN_DOWN(at.end + 1));
	}
}

static bool escrow_ram_holds(unsigned long pfn, unsigned long pages)
{
	unsigned int i;

	for (i = 0; i < escrow_ram_count; i++) {
		if (pfn >= escrow_ram[i].first && pfn + pages <= escrow_ram[i].end)
			return true;
	}
	return !escrow_ram_count;
}

/* Whether any page of a range is of boot. */
bool escrow_ram_has_some(unsigned long pfn, unsigned long pages)
{
	unsigned int i;

	for (i = 0; i < escrow_ram_count; i++) {
		if (pfn < escrow_ram[i].end && pfn + pages > escrow_ram[i].first)
			return true;
	}
	return !escrow_ram_count;
}

static bool escrow_ram_has(const struct page *page, unsigned int order)
{
	return escrow_ram_holds(page_to_pfn(page), 1UL << order);
}

/* The next block that lies wholly in RAM of boot; after the last comes the first. With the lock. */
static unsigned long escrow_ram_turn(void)
{
	unsigned long at = ALIGN(escrow_ram_next, ESCROW_HUGE_PAGES);
	unsigned int round, i;

	for (round = 0; round < 2; round++, at = 0) {
		for (i = 0; i < escrow_ram_count; i++) {
			at = max(at, ALIGN(escrow_ram[i].first, ESCROW_HUGE_PAGES));
			if (at + ESCROW_HUGE_PAGES <= escrow_ram[i].end) {
				escrow_ram_next = at + ESCROW_HUGE_PAGES;
				return at;
			}
		}
	}
	return 0;
}

/*
 * Clears a block of boot: its movable pages (of programs, of files) are migrated elsewhere,
 * if need be to memory that was added. Returns the block, split into pages, or NULL.
 */
static struct page *escrow_ram_clear(void)
{
	struct page *block = NULL;
	unsigned long pfn;
	int i, err;

	mutex_lock(&escrow_ram_lock);
	for (i = 0; i < ESCROW_RAM_CLEARED && !block && !fatal_signal_pending(current); i++) {
		pfn = escrow_ram_turn();
		if (!pfn)
			break;
		/* "mem=" can have this kernel use less RAM than the device tree has. */
		if (!pfn_valid(pfn) || !pfn_valid(pfn + ESCROW_HUGE_PAGES - 1))
			continue;
#ifdef ACR_FLAGS_NONE
		err = alloc_contig_range(pfn, pfn + ESCROW_HUGE_PAGES, ACR_FLAGS_NONE,
					 GFP_KERNEL | __GFP_NOWARN);
#else
		err = alloc_contig_range(pfn, pfn + ESCROW_HUGE_PAGES, MIGRATE_MOVABLE,
					 GFP_KERNEL | __GFP_NOWARN);
#endif
		if (!err)
			block = pfn_to_page(pfn);
		cond_resched();
	}
	mutex_unlock(&escrow_ram_lock);
	return block;
}

/*
 * Finds a free block of RAM of boot, split into pages, or NULL. Blocks of added memory
 * are held until then, so that the allocator does not return the same ones again.
 * Nothing is reclaimed for this, and no control group is charged.
 */
static struct page *escrow_ram_search(void)
{
	const gfp_t gfp = (GFP_KERNEL & ~__GFP_RECLAIM) | __GFP_NOWARN;
	struct page *page = NULL, *other, *next;
	LIST_HEAD(aside);
	int i;

	for (i = 0; i < ESCROW_RAM_ASIDE && !page; i++) {
		other = alloc_pages_noprof(gfp, ESCROW_HUGE_ORDER);
		if (!other)
			break;
		if (escrow_ram_has(other, ESCROW_HUGE_ORDER))
			page = other;
		else
			list_add(&other->lru, &aside);
		cond_resched();
	}
	list_for_each_entry_safe(other, next, &aside, lru) {
		list_del(&other->lru);
		__free_pages(other, ESCROW_HUGE_ORDER);
	}
	if (page)
		split_page(page, ESCROW_HUGE_ORDER);
	return page;
}

/* The GFP flags that ask for a page's zone, or a lower one. */
static gfp_t escrow_ram_zone_of(const struct page *page)
{
	switch (page_zonenum(page)) {
#ifdef CONFIG_ZONE_DMA
	case ZONE_DMA:
		return __GFP_DMA;
#endif
#ifdef CONFIG_ZONE_DMA32
	case ZONE_DMA32:
		return __GFP_DMA32;
#endif
	default:
		return 0;
	}
}

/* A block of boot, split into pages; or NULL and a line in the log. */
static struct page *escrow_ram_block(void)
{
	struct page *page = escrow_ram_search() ?: escrow_ram_clear();

	if (page)
		WRITE_ONCE(escrow_ram_zone, escrow_ram_zone_of(page));
	else
		pr_warn_ratelimited("no memory of boot is left: what was added later cannot be lent\n");
	return page;
}

/* Frees pages from the last down: the allocator hands out first what was freed last. */
static void escrow_ram_free(struct page *first, unsigned long from, unsigned long end)
{
	while (end-- > from)
		__free_page(first + end);
}

/* Allocates from a zone or a lower one; NULL if the result is not of boot. */
static struct page *escrow_ram_in_zone(gfp_t zone, gfp_t gfp, unsigned int order)
{
	struct page *page = alloc_pages_noprof(gfp | zone | __GFP_NOWARN, order);

	if (!page)
		return NULL;
	if (escrow_ram_has(page, order)) {
		WRITE_ONCE(escrow_ram_zone, zone);
		return page;
	}
	__free_pages(page, order);
	return NULL;
}

/*
 * Allocates from each zone in turn: added memory is seldom in the lower ones. The allocator
 * reclaims there as it needs to.
 */
static struct page *escrow_ram_in_zones(gfp_t gfp, unsigned int order)
{
	return escrow_ram_in_zone(READ_ONCE(escrow_ram_zone), gfp, order) ?:
	       escrow_ram_in_zone(__GFP_DMA32, gfp, order) ?:
	       escrow_ram_in_zone(__GFP_DMA, gfp, order);
}

/*
 * The page for escrow_folio_alloc(): @page, which alloc_pages() returned for these arguments,
 * if it is of boot, or another one that is. NULL: there is none. For a large folio no block
 * is cleared: only each zone is tried.
 */
struct page *escrow_ram_or_other(struct page *page, gfp_t gfp, unsigned int order)
{
	struct page *block;
	int i;

	if (!page || escrow_ram_has(page, order))
		return page;
	WRITE_ONCE(escrow_ram_is_not_all, true);
	__free_pages(page, order);
	page = escrow_ram_in_zones(gfp, order);
	for (i = 0; !page && !order && i < ESCROW_RAM_RETRIES; i++) {
		block = escrow_ram_block();
		if (!block)
			break;
		/* The pages go through the allocator, which charges the one to its cgroup. */
		escrow_ram_free(block, 0, ESCROW_HUGE_PAGES);
		page = escrow_ram_in_zone(READ_ONCE(escrow_ram_zone), gfp, order);
	}
	return page;
}

/* The same for pages that alloc_pages_exact() gave, zeroed, at most a block. */
void *escrow_ram_or_other_exact(void *pages, size_t size)
{
	unsigned long count = PFN_UP(size), all = 1UL << get_order(size);
	struct page *first;

	if (!pages || escrow_ram_holds(PFN_DOWN(virt_to_phys(pages)), count))
		return pages;
	WRITE_ONCE(escrow_ram_is_not_all, true);
	free_pages_exact(pages, size);
	first = escrow_ram_in_zones(GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN,
				    get_order(size));
	if (first) {
		split_page(first, get_order(size));
	} else {
		first = escrow_ram_block();
		all = ESCROW_HUGE_PAGES;
	}
	if (!first)
		return NULL;
	escrow_ram_free(first, count, all);
	return memset(page_address(first), 0, count << PAGE_SHIFT);
}

/*
 * Whether there is memory that was added after boot. Then killing a process need not
 * free RAM of boot, and a page fault that waits for it may wait for ever.
 */
bool escrow_ram_is_short(void)
{
	return READ_ONCE(escrow_ram_is_not_all);
}
