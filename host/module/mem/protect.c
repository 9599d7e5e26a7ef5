// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 2: memory of protected VMs. The guest's addresses have two halves. What is lent is in
 * the protected half, and what is shared in the shared half, at the same address with one more
 * bit. A page is in one of them at a time, and comes home in between. A binding says which half
 * is meant: the guest addresses of one that is shared have the bit.
 *
 * A lend of a page that is home has the invalidate_lock shared, as in other VMs; all else here
 * has it exclusively.
 */

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>

#include "mem/mem.h"

/*
 * Takes home page @first, which is lent, and those behind it up to *@last that the guest has
 * given up as well. → *@last is the last page that came. -EACCES: the guest has not given
 * @first up.
 */
static int escrow_mem_fetch(struct escrow_mem *mem, const struct escrow_borrower *to,
			    pgoff_t first, pgoff_t *last, u64 *lacks,
			    struct escrow_attempt *attempt)
{
	const struct escrow_filter filter = { .vm = to->handle, .how = ESCROW_LENT };
	struct escrow_folio *ef;
	int err;

	for (;;) {
		ef = escrow_mem_find(mem, first);
		/* A large folio comes as a whole, or is made into pages. */
		if (folio_test_large(ef->folio))
			*last = escrow_folio_next(ef) - 1;
		err = __escrow_mem_reclaim(mem, first, *last, &filter, false, lacks);
		if (err == -ENOMEM)
			return err;
		ef = escrow_mem_find(mem, first);
		if (escrow_rs_folio_is_broken(&ef->state))
			return -EHWPOISON;
		if (escrow_rs_folio_is_reachable(&ef->state))
			return 0;
		if (err != -EBUSY)
			return err ?: -EBUSY;
		if (folio_test_large(ef->folio)) {
			err = escrow_mem_split_lent(mem, ef, attempt);
			if (err)
				return err;
			*last = first;
			continue;
		}
		/* EL2 takes all pages of a list or none. */
		if (*last == first)
			return -EACCES;
		*last = first + (*last - first) / 2;
	}
}

/* Shares page @guest, and others behind it. */
static int escrow_mem_open_locked(struct escrow_mem *mem, struct escrow_borrower *to,
				  const struct escrow_binding *binding, u64 guest, u64 *lacks,
				  struct escrow_attempt *attempt)
{
	u64 offset = binding->offset + (guest - binding->guest);
	u64 end = min_t(u64, binding->offset + binding->size,
			i_size_read(escrow_mapping(mem)->host));
	pgoff_t first = offset >> PAGE_SHIFT, last, i;
	struct escrow_batch *batch = mem->batch;
	struct escrow_folio *ef;
	u64 at, vm, where;
	bool is_next;
	int err = 0;
	u32 pages;

	if (escrow_mem_ends_before(mem, offset + PAGE_SIZE))
		return -EINVAL;
	ef = escrow_mem_make(mem, first);
	if (IS_ERR(ef))
		return PTR_ERR(ef);
	last = first + escrow_rs_ahead_window(&mem->ahead, first, &is_next) - 1;
	last = min(last, (end >> PAGE_SHIFT) - 1);
	if (escrow_rs_folio_borrower(&ef->state, &vm, &where) == ESCROW_LENT) {
		if (vm == to->handle)
			err = escrow_mem_fetch(mem, to, first, &last, lacks, attempt);
		else
			err = escrow_mem_recall(mem, to, ef);
	} else if (!is_next) {
		last = first;
	}
	if (err)
		return err;

	escrow_batch_reset(batch);
	for (i = first; i <= last; i = escrow_folio_next(ef)) {
		struct escrow_folio *next = is_next ? escrow_mem_make(mem, i) :
						      escrow_mem_find(mem, i);

		if (i != first && (IS_ERR_OR_NULL(next) || escrow_batch_is_full(batch, next) ||
				   !escrow_rs_folio_is_reachable(&next->state)))
			break;
		ef = next;
		if (escrow_mem_has_broken(ef) ||
		    !escrow_rs_binding_fits(binding, (u64)ef->index << PAGE_SHIFT,
					    folio_size(ef->folio), &at)) {
			if (i != first)
				break;
			err = escrow_mem_split(mem, ef, attempt);
			if (err)
				return err;
			ef = escrow_mem_find(mem, i);
			escrow_rs_binding_fits(binding, (u64)i << PAGE_SHIFT, PAGE_SIZE, &at);
			last = first;
		}
		folio_lock(ef->folio);
		err = escrow_mem_prepare(mem, to, binding, ef, at, batch, attempt);
		folio_unlock(ef->folio);
		/* What stands in the way of another is no matter of this one's. */
		if (err < 0)
			break;
	}
	if (err < 0 && i == first)
		return err;
	escrow_rs_ahead_came(&mem->ahead, i);
	pages = batch->pages;
	err = escrow_mem_send(mem, to, binding, batch);
	if (!err)
		atomic64_add(pages, &to->opened);
	return err;
}

static int escrow_mem_open(struct escrow_borrower *to, const struct escrow_binding *binding,
			   u64 guest, struct escrow_attempt *attempt)
{
	struct escrow_mem *mem = binding->mem;
	struct address_space *mapping = escrow_mapping(mem);
	u64 lacks;
	int err;

	do {
		lacks = 0;
		filemap_invalidate_lock(mapping);
		err = escrow_mem_open_locked(mem, to, binding, guest, &lacks, attempt);
		filemap_invalidate_unlock(mapping);
	} while (escrow_mem_top_up(mem, err, lacks));
	return err;
}

/*
 * Page @guest was not lent, because it, or something else, is there already. 0: that is over, and
 * it can be; 1: it is EL2 that decides, when the guest runs on.
 */
static int escrow_mem_make_way(struct escrow_mem *mem, struct escrow_borrower *to,
			       const struct escrow_binding *binding, u64 guest,
			       struct escrow_attempt *attempt)
{
	const struct escrow_filter filter = { .vm = to->handle, .how = ESCROW_SHARED };
	pgoff_t index = (binding->offset + (guest - binding->guest)) >> PAGE_SHIFT;
	struct escrow_folio *ef = escrow_mem_find(mem, index);
	u64 vm, where, lacks;
	int err;

	if (!ef)
		return 0;
	if (escrow_rs_folio_borrower(&ef->state, &vm, &where) == ESCROW_SHARED &&
	    vm == to->handle) {
		err = __escrow_mem_reclaim(mem, index, index, &filter, false, &lacks);
		if (!err)
			atomic64_add(folio_nr_pages(ef->folio), &to->taken_back);
		return err;
	}
	/* Somebody else has it. */
	if (!escrow_rs_folio_is_reachable(&ef->state))
		return -EEXIST;
	/*
	 * EL2 has refused it: not all of it is RAM to the guest, or some of it is there. Of
	 * one page, the guest has just said so on another vCPU.
	 */
	return folio_test_large(ef->folio) ? escrow_mem_split(mem, ef, attempt) : 1;
}

/*
 * Brings the page that the guest of a protected VM lacks at @guest. Under vm->lock. -EAGAIN: as
 * escrow_mem_lend_one(). -EACCES: what the guest wants to share it has not given up.
 */
int escrow_mem_bring_protected(struct escrow_borrower *to, const struct escrow_binding *binding,
			       u64 guest, struct escrow_batch *batch,
			       struct escrow_attempt *attempt)
{
	struct escrow_mem *mem = binding->mem;
	struct address_space *mapping = escrow_mapping(mem);
	int err;

	if (binding->how == ESCROW_SHARED)
		return escrow_mem_open(to, binding, guest, attempt);
	for (;;) {
		err = escrow_mem_lend_one(to, binding, guest, batch, attempt);
		if (err != -EEXIST)
			return err;
		filemap_invalidate_lock(mapping);
		err = escrow_mem_make_way(mem, to, binding, guest, attempt);
		filemap_invalidate_unlock(mapping);
		if (err)
			return min(err, 0);
		if (fatal_signal_pending(current))
			return -EINTR;
	}
}
