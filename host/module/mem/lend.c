// SPDX-License-Identifier: GPL-2.0-only
/* Floor 2: how a memory's folios are lent to a guest, or shared with it. */

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>

#include "arch/events.h"
#include "mem/mem.h"

/*
 * When a folio is unmapped from user space, so are its neighbours: this many bytes at first,
 * and more when folios are lent one after the other.
 */
#define ESCROW_ZAP_AROUND SZ_64K
#define ESCROW_ZAP_AHEAD SZ_2M
#define ESCROW_ZAP_AHEAD_LARGE SZ_16M

/* Pages lent between two updates of the payer's RSS: fewer than a VMM itself has. */
#define ESCROW_FIGURES_STEP 64

/* Reclaims a folio from another VM, if that has unlocked it or has ended. */
int escrow_mem_recall(struct escrow_mem *mem, const struct escrow_borrower *to,
		      struct escrow_folio *ef)
{
	u64 vm, guest, lacks;

	if (escrow_rs_folio_borrower(&ef->state, &vm, &guest) != ESCROW_LENT ||
	    vm == to->handle)
		return 0;
	/* Other errors are left to the lend, which meets and reports them. */
	return escrow_mem_reclaim_folio(mem, ef, &lacks) == -ENOMEM ? -ENOMEM : 0;
}

/*
 * Removes user mappings of a folio, which is locked, so that none of it comes
 * back. Mappings of small folios around it are removed as well: for a guest that touches
 * its memory page by page, the same page tables would be walked for each page. As with
 * readahead, a range that adjoins the last one, above or below, is twice as large. The
 * host's programs fault the pages in again.
 */
static noinline void escrow_mem_zap(struct escrow_mem *mem, const struct escrow_folio *ef)
{
	loff_t start = (loff_t)ef->index << PAGE_SHIFT;
	bool is_large = folio_test_large(ef->folio);
	u32 first = is_large ? folio_size(ef->folio) : ESCROW_ZAP_AROUND;
	u32 most = is_large ? ESCROW_ZAP_AHEAD_LARGE : ESCROW_ZAP_AHEAD;
	loff_t end = start + folio_size(ef->folio);
	u32 size = clamp(READ_ONCE(mem->zap_size) * 2, first, most);

	/* Without a lock: another vCPU may change these, and then the guess is a bad one. */
	if (start == READ_ONCE(mem->zap_end)) {
		end = round_up(end, size);
	} else if (round_up(end, first) == READ_ONCE(mem->zap_start)) {
		start = round_down(start, size);
		end = round_up(end, first);
	} else {
		size = first;
		start = round_down(start, size);
		end = round_up(end, size);
	}
	WRITE_ONCE(mem->zap_size, size);
	WRITE_ONCE(mem->zap_start, start);
	WRITE_ONCE(mem->zap_end, end);
	unmap_mapping_range(escrow_mapping(mem), start, end - start, 0);
}

/* Counts lent pages; the payer's RSS is updated every ESCROW_FIGURES_STEP pages. */
static __always_inline void escrow_mem_lent(struct escrow_mem *mem, u32 pages)
{
	u32 unseen = READ_ONCE(mem->unseen) + pages;

	WRITE_ONCE(mem->unseen, unseen);
	if (unlikely(unseen >= ESCROW_FIGURES_STEP))
		escrow_mem_show_away(mem);
}

/*
 * Freezes one folio, which is locked, and adds it to the batch. 0: done, 1: the guest has the
 * folio already.
 */
int escrow_mem_prepare(struct escrow_mem *mem, const struct escrow_borrower *to,
		       const struct escrow_binding *binding, struct escrow_folio *ef,
		       u64 guest, struct escrow_batch *batch, struct escrow_attempt *attempt)
{
	struct escrow_report report; /* set if the call returns 0 */
	struct escrow_refusal refusal; /* set if the call returns -EAGAIN */
	int err;

	/* The folio is locked, so no page fault can map it again. */
	if (binding->how == ESCROW_LENT && folio_mapped(ef->folio))
		escrow_mem_zap(mem, ef);
	err = escrow_rs_folio_begin_lend(&ef->state, ef->folio, binding->how, to->handle, guest,
					 &report, &refusal);
	if (err == -EAGAIN)
		escrow_mem_refused(mem, ef, &refusal, refusal.accessible ? NULL : "a pin",
				   attempt);
	if (!err)
		escrow_batch_add(batch, ef, guest, binding->rights, &report);
	return err;
}

/*
 * Ends the transition of each folio of the batch. With @err, all stay with the host but the
 * first @done, which EL2 has given to the guest already.
 */
void escrow_mem_settle(struct escrow_mem *mem, struct escrow_borrower *to,
		       const struct escrow_binding *binding, struct escrow_batch *batch, int err,
		       u32 done)
{
	u32 i;

	for (i = 0; i < batch->count; i++) {
		struct escrow_folio *ef = batch->folios[i];
		u64 offset = (u64)ef->index << PAGE_SHIFT;

		WARN_ON_ONCE(escrow_rs_folio_end_lend(&ef->state, &mem->counts, ef->folio,
						      !err || i < done));
		if (!err || i < done)
			escrow_note_lend(escrow_mem_id(mem), to->handle,
					 binding->guest + (offset - binding->offset), offset,
					 folio_nr_pages(ef->folio), binding->how);
	}
	if (!err && binding->how == ESCROW_LENT)
		escrow_mem_lent(mem, batch->pages);
	escrow_batch_reset(batch);
}

/* Hands the batch to EL2: all of it or nothing, unless the pages change during a long call. */
int escrow_mem_send(struct escrow_mem *mem, struct escrow_borrower *to,
		    const struct escrow_binding *binding, struct escrow_batch *batch)
{
	u32 done = 0;
	int err;

	if (!batch->count)
		return 0;
	err = escrow_rs_mem_lend(to, to->handle, binding->how, batch->address, batch->count,
				 &done);
	escrow_mem_settle(mem, to, binding, batch, err, done);
	return err;
}

bool escrow_mem_ends_before(struct escrow_mem *mem, u64 offset)
{
	return offset > i_size_read(escrow_mapping(mem)->host);
}

/* Lends or shares pages @first to @last, folio by folio. */
static int escrow_mem_lend_locked(struct escrow_mem *mem, struct escrow_borrower *to,
				  const struct escrow_binding *binding, u64 offset, u64 size,
				  bool unmapped, struct escrow_batch **batches, u32 count,
				  struct escrow_attempt *attempt)
{
	pgoff_t first = offset >> PAGE_SHIFT, last = (offset + size - 1) >> PAGE_SHIFT, i;
	struct escrow_folio *ef;
	u32 at = 0;
	int err = 0;
	u64 guest;

	if (escrow_mem_ends_before(mem, offset + size))
		return -EINVAL;
	for (i = first; i <= last; i = escrow_folio_next(ef)) {
		cond_resched();
		ef = escrow_mem_make(mem, i);
		if (IS_ERR(ef))
			return PTR_ERR(ef);
		if (unmapped && folio_mapped(ef->folio)) {
			/* The excess: all references but the index's own and the safe ones. */
			struct escrow_refusal refusal = {
				.excess = folio_ref_count(ef->folio) - 1 -
					  escrow_rs_folio_holders(&ef->state),
			};

			escrow_mem_refused(mem, ef, &refusal, "a mapping", NULL);
			return -EAGAIN;
		}
		err = escrow_mem_recall(mem, to, ef);
		if (err)
			return err;
		/* A folio with a broken page is split: its other pages are lent one by one. */
		if (!escrow_mem_has_broken(ef) &&
		    escrow_rs_binding_fits(binding, (u64)ef->index << PAGE_SHIFT,
					   folio_size(ef->folio), &guest))
			continue;
		err = escrow_mem_split(mem, ef, attempt);
		if (err)
			return err;
		ef = escrow_mem_find(mem, i);
	}

	/* Prepare all before the first is lent: a lend cannot be undone. */
	for (i = first; i <= last && err >= 0; i = escrow_folio_next(ef)) {
		ef = escrow_mem_find(mem, i);
		escrow_rs_binding_fits(binding, (u64)ef->index << PAGE_SHIFT, folio_size(ef->folio),
				       &guest);
		if (escrow_batch_is_full(batches[at], ef))
			at++;
		/*
		 * A page fault that began earlier may be about to map the folio: it holds the
		 * folio lock. Afterwards the folio is frozen, and cannot be mapped.
		 */
		folio_lock(ef->folio);
		err = escrow_mem_prepare(mem, to, binding, ef, guest, batches[at], attempt);
		folio_unlock(ef->folio);
		cond_resched();
	}
	for (at = 0; at < count; at++) {
		if (err < 0)
			escrow_mem_settle(mem, to, binding, batches[at], err, 0);
		else
			err = escrow_mem_send(mem, to, binding, batches[at]);
		cond_resched();
	}
	return err;
}

static void escrow_mem_free_batches(struct escrow_batch **batches, u32 count)
{
	while (count--)
		escrow_batch_free(batches[count]);
	kvfree(batches);
}

/* Batches for @pages pages. A full batch has ESCROW_BATCH folios, or at least as many pages. */
static struct escrow_batch **escrow_mem_alloc_batches(u64 pages, u32 *count)
{
	struct escrow_batch **batches;
	u32 i;

	*count = DIV_ROUND_UP(pages, ESCROW_BATCH);
	batches = kvcalloc(*count, sizeof(*batches), GFP_KERNEL_ACCOUNT);
	if (!batches)
		return NULL;
	for (i = 0; i < *count; i++) {
		batches[i] = escrow_batch_alloc(min_t(u64, pages, ESCROW_BATCH));
		if (!batches[i]) {
			escrow_mem_free_batches(batches, *count);
			return NULL;
		}
	}
	return batches;
}

/*
 * Lends or shares the memory behind @binding from @guest on: all of it or none. -EAGAIN: a
 * folio is in use, or, if they must be @unmapped, mapped. Then release vm->lock and call
 * escrow_attempt_again(), which says whether to try again. Under vm->lock.
 */
int escrow_mem_lend(struct escrow_borrower *to, const struct escrow_binding *binding, u64 guest,
		    u64 size, bool unmapped, struct escrow_attempt *attempt)
{
	struct escrow_mem *mem = binding->mem;
	struct address_space *mapping = escrow_mapping(mem);
	struct escrow_batch **batches;
	u32 count;
	int err;

	batches = escrow_mem_alloc_batches(size >> PAGE_SHIFT, &count);
	if (!batches)
		return -ENOMEM;
	filemap_invalidate_lock(mapping);
	err = escrow_mem_lend_locked(mem, to, binding,
				     binding->offset + (guest - binding->guest), size, unmapped,
				     batches, count, attempt);
	filemap_invalidate_unlock(mapping);
	escrow_mem_free_batches(batches, count);
	return err;
}

/*
 * Finds the next pages from *@first on that are there, without a gap and in one block. Those that
 * are out of use for good are left out: the guest finds them missing. → how many
 */
static u64 escrow_mem_present(struct escrow_mem *mem, pgoff_t *first, pgoff_t last)
{
	unsigned long at = escrow_mem_head(mem, *first);
	struct escrow_folio *ef = xa_find(&mem->folios, &at, last, XA_PRESENT);
	pgoff_t end;

	while (ef && escrow_rs_folio_is_broken(&ef->state))
		ef = xa_find_after(&mem->folios, &at, last, XA_PRESENT);
	if (!ef)
		return 0;
	*first = max(*first, at);
	end = min(last + 1, round_down(*first, ESCROW_HUGE_PAGES) + ESCROW_HUGE_PAGES);
	for (at = *first; ef && at < end && !escrow_rs_folio_is_broken(&ef->state);
	     ef = escrow_mem_find(mem, at))
		at = escrow_folio_next(ef);
	return min(at, end) - *first;
}

/*
 * Lends all of the memory behind @binding that is there, before the start of a protected VM:
 * later, EL2 would zero it. What was lent before an error stays so, until the same is done
 * again or the VM ends. -EAGAIN as above. Under vm->lock.
 */
int escrow_mem_lend_present(struct escrow_borrower *to, const struct escrow_binding *binding,
			    struct escrow_attempt *attempt)
{
	struct escrow_batch *batch = escrow_batch_alloc(ESCROW_BATCH);
	struct escrow_mem *mem = binding->mem;
	struct address_space *mapping = escrow_mapping(mem);
	u64 end = binding->offset + binding->size, pages;
	pgoff_t first = binding->offset >> PAGE_SHIFT;
	int err = 0;

	if (!batch)
		return -ENOMEM;
	filemap_invalidate_lock(mapping);
	end = min_t(u64, end, i_size_read(mapping->host)) >> PAGE_SHIFT;
	while (first < end && err >= 0) {
		pages = escrow_mem_present(mem, &first, end - 1);
		if (!pages)
			break;
		err = fatal_signal_pending(current) ? -EINTR :
			escrow_mem_lend_locked(mem, to, binding, (u64)first << PAGE_SHIFT,
					       pages << PAGE_SHIFT, false, &batch, 1, attempt);
		first += pages;
	}
	filemap_invalidate_unlock(mapping);
	escrow_batch_free(batch);
	return err;
}

/* Shares one folio, which is locked. */
static noinline int escrow_mem_share_folio(struct escrow_mem *mem, struct escrow_borrower *to,
					   const struct escrow_binding *binding,
					   struct escrow_folio *ef, u64 guest,
					   struct escrow_batch *batch,
					   struct escrow_attempt *attempt)
{
	int err;

	escrow_batch_reset(batch);
	err = escrow_rs_folio_is_reachable(&ef->state) ? 0 : escrow_mem_recall(mem, to, ef);
	if (!err)
		err = escrow_mem_prepare(mem, to, binding, ef, guest, batch, attempt);
	return err < 0 ? err : escrow_mem_send(mem, to, binding, batch);
}

/* Handles a lend that failed for reason @why. 0: the guest has the folio nevertheless. */
static noinline int escrow_mem_not_lent(struct escrow_mem *mem, struct escrow_folio *ef, int why,
					const struct escrow_refusal *refusal,
					struct escrow_attempt *attempt)
{
	switch (why) {
	case ESCROW_LEND_THERE:
		return 0;
	case ESCROW_LEND_REFUSED:
		escrow_mem_refused(mem, ef, refusal, refusal->accessible ? NULL : "a pin",
				   attempt);
		return -EAGAIN;
	case ESCROW_LEND_OUT_OF_TURN:
		WARN_ON_ONCE(true);
		return -EIO;
	default:
		return why;
	}
}

/*
 * Lends one folio, which is locked. Inlined: it is called for each page that a guest
 * touches, and a stack frame would cost more than the function does.
 */
static __always_inline int escrow_mem_lend_folio(struct escrow_mem *mem,
						 struct escrow_borrower *to,
						 const struct escrow_binding *binding,
						 struct escrow_folio *ef, u64 guest,
						 struct escrow_attempt *attempt)
{
	struct folio *folio = ef->folio;
	struct escrow_refusal refusal; /* set if the call returns ESCROW_LEND_REFUSED */
	bool is_recalled = false;
	int err;

	/* The folio is locked, so no page fault can map it again. */
	if (folio_mapped(folio))
		escrow_mem_zap(mem, ef);
again:
	err = escrow_rs_folio_lend(&ef->state, folio, &mem->counts, to, to->handle, guest,
				   PFN_PHYS(folio_pfn(folio)), binding->rights, &refusal);
	if (unlikely(err)) {
		if ((err == -EEXIST || err == -EBUSY) && !is_recalled) {
			/* Another VM has it, or EL2 kept it for one: ask for it once. */
			is_recalled = true;
			err = escrow_mem_recall(mem, to, ef);
			if (!err)
				goto again;
		}
		return escrow_mem_not_lent(mem, ef, err, &refusal, attempt);
	}
	escrow_note_lend(escrow_mem_id(mem), to->handle, guest, (u64)ef->index << PAGE_SHIFT,
			 folio_nr_pages(folio), ESCROW_LENT);
	escrow_mem_lent(mem, folio_nr_pages(folio));
	return 0;
}

/*
 * The same for the one folio that a guest needs at @guest, side by side with
 * others. Nothing is allocated where the folio is there already: @batch is the
 * caller's, and has room for one.
 */
int escrow_mem_lend_one(struct escrow_borrower *to, const struct escrow_binding *binding,
			u64 guest, struct escrow_batch *batch, struct escrow_attempt *attempt)
{
	struct escrow_mem *mem = binding->mem;
	struct address_space *mapping = escrow_mapping(mem);
	u64 offset = binding->offset + (guest - binding->guest), at = guest;
	struct escrow_folio *ef;
	int err;

	escrow_down_read(&mapping->invalidate_lock);
	if (escrow_mem_ends_before(mem, offset + PAGE_SIZE)) {
		err = -EINVAL;
		goto out;
	}
	ef = escrow_mem_make(mem, offset >> PAGE_SHIFT);
	if (IS_ERR(ef)) {
		err = PTR_ERR(ef);
		goto out;
	}
	/* A single page always fits; a large folio may be broken, or reach beyond the binding. */
	if (folio_test_large(ef->folio) &&
	    (escrow_mem_has_broken(ef) ||
	     !escrow_rs_binding_fits(binding, (u64)ef->index << PAGE_SHIFT,
				     folio_size(ef->folio), &at))) {
		/* Splitting takes the invalidate_lock for writing; here it is held for reading. */
		filemap_invalidate_unlock_shared(mapping);
		return escrow_mem_lend(to, binding, guest, PAGE_SIZE, false, attempt);
	}

	folio_lock(ef->folio);
	if (likely(binding->how == ESCROW_LENT))
		err = escrow_mem_lend_folio(mem, to, binding, ef, at, attempt);
	else
		err = escrow_mem_share_folio(mem, to, binding, ef, at, batch, attempt);
	folio_unlock(ef->folio);
out:
	filemap_invalidate_unlock_shared(mapping);
	return err;
}
