// SPDX-License-Identifier: GPL-2.0-only
/* Floor 3: the pages that EL2 keeps a VM in. */

#include <linux/err.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/sched.h>

#include "vm/vm.h"

/* Pages that may have a reference of somebody else before a donation fails. */
#define ESCROW_LOOKERS 16

/* Hands @count pages to EL2 in one call. With the metadata_lock. */
static int escrow_vm_send_metadata(struct escrow_vm *vm, u32 count)
{
	struct escrow_batch *batch = vm->batch;
	struct escrow_folio *ef;
	u32 done = 0, given = 0, lookers = 0, i;
	int err = 0;

	escrow_batch_reset(batch);
	while (batch->count < count) {
		struct escrow_report report = {};
		struct escrow_refusal refusal;

		ef = escrow_folio_alloc(&vm->payer, &vm->metadata_counts, 0);
		if (!ef) {
			err = -ENOMEM;
			break;
		}
		err = escrow_rs_folio_begin_lend(&ef->state, ef->folio, ESCROW_LENT,
						 vm->borrower.handle, 0, &report, &refusal);
		if (err) {
			escrow_folio_free(ef, &vm->payer, &vm->metadata_counts);
			/*
			 * Code that walks all page frames (compaction, say) can take a
			 * reference to any page for a moment. That reference frees this page,
			 * and the next attempt gets another one.
			 */
			if (err == -EAGAIN && lookers++ < ESCROW_LOOKERS) {
				err = 0;
				continue;
			}
			break;
		}
		escrow_batch_add(batch, ef, 0, 0, &report);
	}
	if (!err && !vm->borrower.handle)
		err = escrow_rs_vm_create(batch->address, batch->count, &vm->borrower.handle);
	else if (!err)
		err = escrow_rs_vm_top_up(vm->borrower.handle, batch->address, batch->count, &done);

	for (i = 0; i < batch->count; i++) {
		/*
		 * EL2 has the first @done pages, even if the call failed after them. A page that is
		 * not home (a broken one) must not be freed either.
		 */
		bool gone = !err || i < done;

		ef = batch->folios[i];
		if (!gone)
			gone = !escrow_rs_is_home(PFN_PHYS(folio_pfn(ef->folio)), 1);
		WARN_ON_ONCE(escrow_rs_folio_end_lend(&ef->state, &vm->metadata_counts,
						      ef->folio, gone));
		if (gone)
			list_add_tail(&ef->link, &vm->metadata_folios);
		else
			escrow_folio_free(ef, &vm->payer, &vm->metadata_counts);
		given += gone;
	}
	if (given)
		escrow_rs_metadata_added(&vm->metadata, given);
	return err;
}

int escrow_vm_top_up(struct escrow_vm *vm, u64 pages)
{
	int left, err = 0;

	mutex_lock(&vm->metadata_lock);
	left = escrow_rs_metadata_plan(&vm->metadata, pages);
	if (left < 0)
		err = left;
	while (left > 0 && !err) {
		u32 count = min_t(u32, left, vm->batch->capacity);

		err = escrow_vm_send_metadata(vm, count);
		left -= count;
	}
	mutex_unlock(&vm->metadata_lock);
	return err;
}

/* The same for a VM by its handle. Called without locks of a memory. */
int escrow_vm_top_up_handle(u64 handle)
{
	struct escrow_vm *vm = escrow_registry_find(handle);
	int err;

	if (!vm)
		return -ENODEV;
	err = escrow_vm_top_up(vm, 1);
	/* This may be the last reference, and end the VM. */
	escrow_vm_put(vm);
	return err;
}

/* Whether all of the metadata is home. */
bool escrow_vm_reclaim_metadata(struct escrow_vm *vm)
{
	static const struct escrow_report none;
	struct escrow_batch *batch = vm->batch;
	struct escrow_folio *ef, *next;
	LIST_HEAD(kept);

	mutex_lock(&vm->metadata_lock);
	while (!list_empty(&vm->metadata_folios)) {
		LIST_HEAD(asked);

		escrow_batch_reset(batch);
		list_for_each_entry_safe(ef, next, &vm->metadata_folios, link) {
			if (batch->count == batch->capacity)
				break;
			list_move_tail(&ef->link, &asked);
			if (escrow_rs_folio_begin_reclaim(&ef->state, &vm->metadata_counts) >= 0)
				escrow_batch_add(batch, ef, 0, 0, &none);
		}
		batch->how = ESCROW_LENT;
		escrow_batch_reclaim(batch, &vm->metadata_counts, true);
		list_for_each_entry_safe(ef, next, &asked, link) {
			if (!escrow_rs_folio_is_reachable(&ef->state) &&
			    !escrow_rs_folio_is_broken(&ef->state)) {
				list_move_tail(&ef->link, &kept);
				continue;
			}
			list_del(&ef->link);
			escrow_folio_free(ef, &vm->payer, &vm->metadata_counts);
			escrow_rs_metadata_reclaimed(&vm->metadata, 1);
		}
		cond_resched();
	}
	list_splice(&kept, &vm->metadata_folios);
	mutex_unlock(&vm->metadata_lock);
	return list_empty(&vm->metadata_folios);
}
