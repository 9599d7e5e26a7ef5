/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Floor 1: folios that the module allocates, and batches of them on their way
 * to or from EL2. Rust keeps the state of a folio (struct escrow_folio_state).
 */
#ifndef ESCROW_FOLIO_H
#define ESCROW_FOLIO_H

#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/spinlock.h>
#include <linux/types.h>

#include "arch/arch.h"

/* EL2 counts pages of 4 KiB; arm64 has kernels with larger ones. */
static_assert(PAGE_SIZE == 4096);

/* Large folios are what one descriptor of a level-2 table maps. */
#define ESCROW_HUGE_ORDER 9
#define ESCROW_HUGE_PAGES BIT(ESCROW_HUGE_ORDER)

/* One folio, of a memory or of a VM's metadata. */
struct escrow_folio {
	struct escrow_folio_state state;
	struct folio *folio;
	u32 wanted; /* MEM_LEND_FIRST: the time of the last refusal (escrow_rs_moment()), or 0 */
	union {
		pgoff_t index; /* of a memory: of its first page */
		struct list_head link; /* of metadata: in vm->metadata_folios */
	};
};

/* Index of the page behind a folio of a memory. */
static inline pgoff_t escrow_folio_next(const struct escrow_folio *ef)
{
	return ef->index + folio_nr_pages(ef->folio);
}

/* Folios on their way to or from EL2 in one call. */
struct escrow_batch {
	struct escrow_entry *list;
	u64 address; /* the list's, as EL2 wants it */
	u32 capacity;
	u32 count;
	u32 pages;
	u64 memory; /* its number in traces; 0: metadata */
	u64 vm;
	int how;
	struct escrow_folio *folios[] __counted_by(capacity);
};

static inline void escrow_batch_reset(struct escrow_batch *batch)
{
	batch->count = 0;
	batch->pages = 0;
}

#define ESCROW_BATCH ESCROW_HUGE_PAGES
/* Pages that one call takes back at the most. */
#define ESCROW_CALL_PAGES 16384

/* Objects that users have, of which each may have so many. */
enum escrow_kind {
	ESCROW_KIND_MEMORY,
	ESCROW_KIND_VM,
	ESCROW_KIND_CONSOLE,
	ESCROW_KINDS
};

struct escrow_user;

/* Who has an object. */
struct escrow_owner {
	enum escrow_kind kind;
	struct escrow_user *answerable; /* for its user */
	struct escrow_user *self; /* its user, if that is another one; or NULL */
};

/* Who pays for an object's folios. */
struct escrow_payer {
	struct escrow_owner owner;
	struct user_struct *user;
	struct mm_struct *mm;
	struct task_struct *task; /* whose RLIMIT_MEMLOCK counts; NULL: none does */
	atomic_long_t pages; /* that are paid for */
	spinlock_t away_lock;
	long away; /* of these, those that the mm counts without having them mapped */
};

/* payer.c */
int escrow_owner_init(struct escrow_owner *owner, enum escrow_kind kind);
void escrow_owner_end(struct escrow_owner *owner);
int escrow_payer_init(struct escrow_payer *payer, enum escrow_kind kind);
void escrow_payer_end(struct escrow_payer *payer);
bool escrow_payer_has_room(const struct escrow_payer *payer);
bool escrow_payer_charge(struct escrow_payer *payer, long pages);
void escrow_payer_uncharge(struct escrow_payer *payer, long pages);
void escrow_payer_show_away(struct escrow_payer *payer, const struct escrow_counts *counts);
void escrow_payer_show(const struct folio *folio, bool is_there);

/* folio.c */
struct escrow_folio *escrow_folio_alloc(struct escrow_payer *payer, struct escrow_counts *counts,
					unsigned int order);
void escrow_folio_free(struct escrow_folio *ef, struct escrow_payer *payer,
		       struct escrow_counts *counts);
struct escrow_folio *escrow_folio_record(struct page *page);
void escrow_folio_dissolve(struct folio *folio);

/* ram.c */
void escrow_ram_init(void);
bool escrow_ram_has_some(unsigned long pfn, unsigned long pages);
struct page *escrow_ram_or_other(struct page *page, gfp_t gfp, unsigned int order);
void *escrow_ram_or_other_exact(void *pages, size_t size);
bool escrow_ram_is_short(void);

/* batch.c */
struct escrow_batch *escrow_batch_alloc(u32 capacity);
void escrow_batch_free(struct escrow_batch *batch);
bool escrow_batch_is_full(const struct escrow_batch *batch, const struct escrow_folio *ef);
void escrow_batch_add(struct escrow_batch *batch, struct escrow_folio *ef, u64 guest, u32 rights,
		      const struct escrow_report *report);
void escrow_folio_report(const struct escrow_folio *ef);
int escrow_batch_reclaim(struct escrow_batch *batch, struct escrow_counts *counts,
			 bool quarantine);

#endif
