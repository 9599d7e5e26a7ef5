// SPDX-License-Identifier: GPL-2.0-only
/* How a memory's folios leave for a guest, and come home. */

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sizes.h>

#include "escrow.h"

/*
 * Bytes whose user mappings go with that of a page in them: at first, and when
 * pages leave one after the other.
 */
#define ESCROW_ZAP_AROUND SZ_64K
#define ESCROW_ZAP_AHEAD SZ_2M

/*
 * Asks EL2 for one folio that is away. The folio is locked, or nobody else has
 * the memory.
 */
int escrow_mem_fetch(struct escrow_mem *mem, struct escrow_folio *ef)
{
	static const struct escrow_report none;
	struct escrow_batch *batch;
	u64 vm, guest;
	int err;

	if (escrow_rs_folio_borrower(&ef->state, &vm, &guest) < 0)
		return -ENOENT;
	batch = escrow_batch_alloc(folio_nr_pages(ef->folio));
	if (!batch)
		return -ENOMEM;
	batch->vm = vm;
	err = escrow_rs_folio_begin_take_back(&ef->state, &mem->counts);
	if (err >= 0) {
		batch->how = err;
		escrow_batch_add(batch, ef, 0, 0, &none);
		err = escrow_batch_take_back(batch, mem, &mem->counts, false);
	}
	escrow_batch_free(batch);
	return err;
}

/* Another VM that the folio was lent to may have given it up, or died. */
static int escrow_mem_recall(struct escrow_mem *mem, const struct escrow_vm *vm,
			     struct escrow_folio *ef)
{
	u64 borrower, guest;

	if (escrow_rs_folio_borrower(&ef->state, &borrower, &guest) != ESCROW_LENT ||
	    borrower == vm->handle)
		return 0;
	/* If it stays where it is, giving it away says so. */
	return escrow_mem_fetch(mem, ef) == -ENOMEM ? -ENOMEM : 0;
}

/*
 * Removes user mappings of a folio, which is locked, so that none of it comes
 * back. Those of small folios around it go along, as page faults bring in
 * those around theirs: a guest that touches its memory page by page would have
 * the same tables walked for each. As with readahead, those that follow on the
 * last ones are twice as many. Whoever needs them faults again.
 */
static noinline void escrow_mem_zap(struct escrow_mem *mem, const struct escrow_folio *ef)
{
	loff_t start = (loff_t)ef->index << PAGE_SHIFT;
	loff_t end = start + folio_size(ef->folio);

	if (!folio_test_large(ef->folio)) {
		u32 size = ESCROW_ZAP_AROUND;

		/* A guess, which another vCPU's may spoil. */
		if (start == READ_ONCE(mem->zap_end))
			size = clamp(READ_ONCE(mem->zap_size) * 2, ESCROW_ZAP_AROUND,
				     ESCROW_ZAP_AHEAD);
		else
			start = round_down(start, size);
		end = round_up(end, size);
		WRITE_ONCE(mem->zap_size, size);
		WRITE_ONCE(mem->zap_end, end);
	}
	unmap_mapping_range(escrow_mapping(mem), start, end - start, 0);
}

void escrow_mem_refused(struct escrow_mem *mem, const struct escrow_folio *ef,
			const struct escrow_refusal *refusal)
{
	u64 offset = (u64)ef->index << PAGE_SHIFT;

	spin_lock(&mem->refusal_lock);
	mem->was_refused = true;
	mem->refused_offset = offset;
	mem->refusal = *refusal;
	spin_unlock(&mem->refusal_lock);
	escrow_note_refusal(escrow_mem_id(mem), offset, folio_nr_pages(ef->folio),
			    refusal->excess, refusal->accessible, -EAGAIN);
}

/*
 * Prepares one folio, which is locked. 0: it is in the batch, 1: it is where
 * it should be already. Inlined, as the two that follow: each page that a guest
 * touches comes by here, and frames of their own cost it more than what they do.
 */
static __always_inline int escrow_mem_prepare(struct escrow_mem *mem, const struct escrow_vm *vm,
					      const struct escrow_place *place,
					      struct escrow_folio *ef, u64 guest,
					      struct escrow_batch *batch)
{
	struct escrow_report report = {};
	struct escrow_refusal refusal = {};
	int err;

	/* With the folio locked, no mapping of it can come back. */
	if (place->how == ESCROW_LENT && folio_mapped(ef->folio))
		escrow_mem_zap(mem, ef);
	err = escrow_rs_folio_begin_give(&ef->state, &mem->counts, ef->folio, place->how,
					 vm->handle, guest, &report, &refusal);
	if (err == -EAGAIN)
		escrow_mem_refused(mem, ef, &refusal);
	if (!err)
		escrow_batch_add(batch, ef, guest, place->rights, &report);
	return err;
}

/*
 * Ends what was prepared: with @err, all stays with the host but the first @done, which
 * EL2 had given when a long call ended.
 */
static __always_inline void escrow_mem_settle(struct escrow_mem *mem, struct escrow_vm *vm,
					      const struct escrow_place *place,
					      struct escrow_batch *batch, int err, u32 done)
{
	u32 i;

	for (i = 0; i < batch->count; i++) {
		struct escrow_folio *ef = batch->folios[i];
		u64 offset = (u64)ef->index << PAGE_SHIFT;

		WARN_ON_ONCE(escrow_rs_folio_end_give(&ef->state, &mem->counts, ef->folio,
						      !err || i < done));
		if (!err || i < done)
			escrow_note_lend(escrow_mem_id(mem), vm->handle,
					 place->guest + (offset - place->offset), offset,
					 folio_nr_pages(ef->folio), place->how);
	}
	escrow_batch_reset(batch);
}

/* Hands the batch to EL2: all of it or nothing, unless somebody disturbs a long call. */
static __always_inline int escrow_mem_hand_over(struct escrow_mem *mem, struct escrow_vm *vm,
						const struct escrow_place *place,
						struct escrow_batch *batch)
{
	u64 index = 0, detail = 0;
	u32 done = 0;
	int err;

	if (!batch->count)
		return 0;
	err = escrow_rs_mem_give(vm, vm->handle, place->how, batch->address, batch->list,
				 batch->count, &index, &detail, &done);
	/* EL2 has seen through a report of ours: a bug. */
	if (err == -EAGAIN && index < batch->count)
		pr_warn_once("refused by EL2, entry %llu, detail %llu\n", index, detail);
	escrow_mem_settle(mem, vm, place, batch, err, done);
	return err;
}

static bool escrow_mem_ends_before(struct escrow_mem *mem, u64 offset)
{
	return offset > i_size_read(escrow_mapping(mem)->host);
}

/* Folios in the place of a run of pages: whole ones that fit the binding. */
static int escrow_mem_give_locked(struct escrow_mem *mem, struct escrow_vm *vm,
				  const struct escrow_place *place, u64 offset, u64 size,
				  bool unmapped, struct escrow_batch *batch)
{
	pgoff_t first = offset >> PAGE_SHIFT, last = (offset + size - 1) >> PAGE_SHIFT, i;
	struct escrow_folio *ef;
	int err = 0;
	u64 guest;

	if (escrow_mem_ends_before(mem, offset + size))
		return -EINVAL;
	for (i = first; i <= last; i = escrow_folio_next(ef)) {
		ef = escrow_mem_make(mem, i);
		if (IS_ERR(ef))
			return PTR_ERR(ef);
		if (unmapped && folio_mapped(ef->folio)) {
			/* But for the memory's own, the references are not asked to go. */
			struct escrow_refusal refusal = {
				.excess = folio_ref_count(ef->folio) - 1,
			};

			escrow_mem_refused(mem, ef, &refusal);
			return -EAGAIN;
		}
		err = escrow_mem_recall(mem, vm, ef);
		if (err)
			return err;
		if (escrow_rs_place_takes(place, (u64)ef->index << PAGE_SHIFT,
					  folio_size(ef->folio), &guest))
			continue;
		err = escrow_mem_split(mem, ef);
		if (err)
			return err;
		ef = escrow_mem_find(mem, i);
	}

	escrow_batch_reset(batch);
	for (i = first; i <= last && err >= 0; i = escrow_folio_next(ef)) {
		ef = escrow_mem_find(mem, i);
		escrow_rs_place_takes(place, (u64)ef->index << PAGE_SHIFT, folio_size(ef->folio),
				      &guest);
		/*
		 * A page fault that began before may be about to map the folio.
		 * After this, it is frozen.
		 */
		folio_lock(ef->folio);
		err = escrow_mem_prepare(mem, vm, place, ef, guest, batch);
		folio_unlock(ef->folio);
		cond_resched();
	}
	if (err < 0) {
		escrow_mem_settle(mem, vm, place, batch, err, 0);
		return err;
	}
	return escrow_mem_hand_over(mem, vm, place, batch);
}

/*
 * Gives the guest what is behind the binding @place from @guest on: all of it
 * or none. -EAGAIN: somebody uses a folio, or, if they must be @unmapped, maps
 * it; fdinfo says which. Under vm->lock.
 */
int escrow_mem_give(struct escrow_vm *vm, const struct escrow_place *place, u64 guest, u64 size,
		    bool unmapped)
{
	struct escrow_mem *mem = place->mem;
	struct address_space *mapping = escrow_mapping(mem);
	struct escrow_batch *batch;
	int err;

	batch = escrow_batch_alloc(size >> PAGE_SHIFT);
	if (!batch)
		return -ENOMEM;
	filemap_invalidate_lock(mapping);
	err = escrow_mem_give_locked(mem, vm, place, place->offset + (guest - place->guest), size,
				     unmapped, batch);
	filemap_invalidate_unlock(mapping);
	escrow_batch_free(batch);
	return err;
}

/*
 * The same for the one folio that a guest needs at @guest, side by side with
 * others. Nothing is allocated where the folio is there already: @batch is the
 * caller's, and has room for one.
 */
int escrow_mem_give_one(struct escrow_vm *vm, const struct escrow_place *place, u64 guest,
			struct escrow_batch *batch)
{
	struct escrow_mem *mem = place->mem;
	struct address_space *mapping = escrow_mapping(mem);
	u64 offset = place->offset + (guest - place->guest), at = guest;
	struct escrow_folio *ef;
	int err;

	filemap_invalidate_lock_shared(mapping);
	if (escrow_mem_ends_before(mem, offset + PAGE_SIZE)) {
		err = -EINVAL;
		goto out;
	}
	ef = escrow_mem_make(mem, offset >> PAGE_SHIFT);
	if (IS_ERR(ef)) {
		err = PTR_ERR(ef);
		goto out;
	}
	/* A page of a binding fits it. */
	if (folio_test_large(ef->folio) &&
	    !escrow_rs_place_takes(place, (u64)ef->index << PAGE_SHIFT, folio_size(ef->folio),
				   &at)) {
		/* It has to be split, which nobody may look at. */
		filemap_invalidate_unlock_shared(mapping);
		return escrow_mem_give(vm, place, guest, PAGE_SIZE, false);
	}

	folio_lock(ef->folio);
	escrow_batch_reset(batch);
	err = escrow_rs_folio_is_reachable(&ef->state) ? 0 : escrow_mem_recall(mem, vm, ef);
	if (!err)
		err = escrow_mem_prepare(mem, vm, place, ef, at, batch);
	if (err >= 0)
		err = escrow_mem_hand_over(mem, vm, place, batch);
	folio_unlock(ef->folio);
out:
	filemap_invalidate_unlock_shared(mapping);
	return err;
}

/* Whether a folio is away, and one of those that are meant. → enum escrow_how */
static int escrow_mem_is_meant(const struct escrow_folio *ef, const struct escrow_whose *whose,
			       u64 *vm)
{
	u64 guest;
	int how;

	how = escrow_rs_folio_borrower(&ef->state, vm, &guest);
	if (how < 0 || (whose->vm && *vm != whose->vm) || (whose->how >= 0 && how != whose->how))
		return -ENOENT;
	if (whose->bound && guest != ((u64)ef->index << PAGE_SHIFT) + whose->shift)
		return -ENOENT;
	return how;
}

/*
 * Takes back those of a range, and of the folios that reach out of it, that
 * are meant. Without @quarantine, stops at the first folio that EL2 keeps;
 * what came home before is fetched again by the guest as it needs it. Under
 * the exclusive lock.
 */
int __escrow_mem_take_back(struct escrow_mem *mem, pgoff_t first, pgoff_t last,
			   const struct escrow_whose *whose, bool quarantine)
{
	static const struct escrow_report none;
	struct escrow_batch *batch = mem->batch;
	struct escrow_folio *ef;
	unsigned long index;
	int err = 0, one;

	escrow_batch_reset(batch);
	xa_for_each_range(&mem->folios, index, ef, escrow_mem_head(mem, first), last) {
		u64 borrower = 0;
		int has = escrow_mem_is_meant(ef, whose, &borrower);

		if (escrow_rs_folio_is_broken(&ef->state) && folio_test_large(ef->folio)) {
			one = escrow_batch_take_back(batch, mem, &mem->counts, quarantine);
			err = err ?: one;
			/* While its VM lives, that has the rest. */
			if (!escrow_poison_take_rest(mem, ef) && !quarantine)
				err = err ?: -EBUSY;
			if (err && !quarantine)
				return err;
			continue;
		}
		if (has < 0)
			continue;
		/* One call takes folios of one VM, in one way. */
		if (escrow_batch_is_full(batch, ef) ||
		    (batch->count && (batch->vm != borrower || batch->how != has))) {
			one = escrow_batch_take_back(batch, mem, &mem->counts, quarantine);
			err = err ?: one;
			if (err && !quarantine)
				return err;
			cond_resched();
		}
		if (escrow_rs_folio_begin_take_back(&ef->state, &mem->counts) < 0)
			continue;
		batch->vm = borrower;
		batch->how = has;
		escrow_batch_add(batch, ef, 0, 0, &none);
	}
	one = escrow_batch_take_back(batch, mem, &mem->counts, quarantine);
	return err ?: one;
}

int escrow_mem_take_back(struct escrow_mem *mem, u64 offset, u64 size,
			 const struct escrow_whose *whose, bool quarantine)
{
	struct address_space *mapping = escrow_mapping(mem);
	int err;

	filemap_invalidate_lock(mapping);
	err = __escrow_mem_take_back(mem, offset >> PAGE_SHIFT, (offset + size - 1) >> PAGE_SHIFT,
				     whose, quarantine);
	filemap_invalidate_unlock(mapping);
	return err;
}

/*
 * After an error: whether it is worth another try, because the VM that lacked
 * memory has some now. Without locks of the memory, as this may be the end of
 * that VM.
 */
bool escrow_mem_feed(struct escrow_mem *mem, int err)
{
	u64 handle = xchg(&mem->needy, 0);
	struct escrow_vm *vm;

	if (err != -ENOMEM || !handle)
		return false;
	vm = escrow_vms_find(handle);
	if (!vm)
		return false;
	err = escrow_vm_donate(vm, 1);
	escrow_vm_release(vm);
	return !err;
}
