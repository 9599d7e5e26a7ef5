// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that breaks while a guest has it.
 *
 * memory_failure() marks the page, finds a folio that it cannot do anything
 * about (frozen, or on no list), and says so in a trace event; there is no
 * other way for a module to hear of it. The event is looked up by its name,
 * and only taken as a hint to look at all that is away: its arguments have
 * changed between kernels, its meaning has not.
 */

#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <linux/workqueue.h>

#include "escrow.h"

static void escrow_poison_work(struct work_struct *work);

static DECLARE_WORK(poison_work, escrow_poison_work);
static struct tracepoint *failures;

/* Has EL2 let nobody at the broken pages of a folio. Under the exclusive lock. */
static int escrow_poison_folio(struct escrow_mem *mem, struct escrow_folio *ef)
{
	struct escrow_batch *batch = mem->batch;
	static const struct escrow_report none;
	u32 count = 0, i;
	int err;

	err = escrow_rs_folio_begin_take_back(&ef->state, &mem->counts);
	if (err < 0)
		return err;
	for (i = 0; i < folio_nr_pages(ef->folio); i++) {
		struct page *page = folio_page(ef->folio, i);

		if (PageHWPoison(page))
			escrow_rs_list_entry(&batch->list[count++], PFN_PHYS(page_to_pfn(page)), 0,
					     0, 0, &none);
	}
	err = escrow_rs_mem_poison(batch->address, count);
	if (err) {
		WARN_ON_ONCE(escrow_rs_folio_kept(&ef->state, &mem->counts, false));
		return err;
	}
	WARN_ON_ONCE(escrow_rs_folio_broken(&ef->state, &mem->counts));
	unmap_mapping_range(escrow_mapping(mem), (loff_t)ef->index << PAGE_SHIFT,
			    folio_size(ef->folio), 0);
	return 0;
}

/* The first of a memory that is away, broken, and not known to be. */
static struct escrow_folio *escrow_poison_find(struct escrow_mem *mem, u64 *vm, u64 *guest)
{
	struct escrow_folio *ef;
	unsigned long index;

	xa_for_each(&mem->folios, index, ef) {
		if (escrow_folio_is_poisoned(ef->folio) &&
		    escrow_rs_folio_borrower(&ef->state, vm, guest) >= 0)
			return ef;
	}
	return NULL;
}

/* Tells the VMM where its guest has lost a page, once. */
static void escrow_poison_tell(u64 handle, u64 guest)
{
	struct escrow_vm *vm = escrow_vms_find(handle);

	if (!vm)
		return;
	pr_warn("VM %#llx: memory at guest address %#llx is broken\n", handle, guest);
	WRITE_ONCE(vm->broken, guest | ESCROW_BROKEN);
	escrow_vcpu_wake_all(vm);
	escrow_vm_release(vm);
}

static void escrow_poison_look(struct escrow_mem *mem)
{
	struct address_space *mapping = escrow_mapping(mem);
	int err;

	do {
		struct escrow_folio *ef;
		u64 vm, guest;

		filemap_invalidate_lock(mapping);
		ef = escrow_poison_find(mem, &vm, &guest);
		err = ef ? escrow_poison_folio(mem, ef) : -ENOENT;
		if (err == -ENOMEM)
			WRITE_ONCE(mem->needy, vm);
		filemap_invalidate_unlock(mapping);
		if (!err)
			escrow_poison_tell(vm, guest);
		else if (err != -ENOENT && err != -ENOMEM)
			pr_warn("VM %#llx keeps broken memory at %#llx: %d\n", vm, guest, err);
	} while (!err || escrow_mem_feed(mem, err));
}

static void escrow_poison_work(struct work_struct *work)
{
	struct file **files, *file;
	struct escrow_mem *mem;
	size_t count = 0, i;

	mutex_lock(&escrow_memories.lock);
	list_for_each_entry(mem, &escrow_memories.head, listing.link)
		count++;
	files = kvcalloc(count, sizeof(*files), GFP_KERNEL);
	i = 0;
	list_for_each_entry(mem, &escrow_memories.head, listing.link) {
		/* A file that is going has nothing away. */
		file = files ? get_file_active(&mem->file) : NULL;
		if (file)
			files[i++] = file;
	}
	mutex_unlock(&escrow_memories.lock);
	if (!files && count)
		pr_err("no memory to look after memory that broke\n");
	while (i) {
		escrow_poison_look(files[--i]->private_data);
		fput(files[i]);
	}
	kvfree(files);
}

/*
 * Takes home from a dead VM what is whole of a large folio that broke; the
 * folio itself is lost. Whether all of it is home now. Under the exclusive
 * lock.
 */
bool escrow_poison_take_rest(struct escrow_mem *mem, struct escrow_folio *ef)
{
	static const struct escrow_report none;
	u32 whole = 0, done, i;
	int err;

	for (i = 0; i < folio_nr_pages(ef->folio); i++) {
		struct page *page = folio_page(ef->folio, i);

		if (PageHWPoison(page))
			continue;
		whole++;
		escrow_rs_list_entry(&mem->batch->list[0], PFN_PHYS(page_to_pfn(page)), 0, 0, 0,
				     &none);
		err = escrow_rs_mem_take_back(ESCROW_SHARED, mem->batch->address, 1, &done);
		/*
		 * Refused: it is home already, or its VM lives. What broke on its way is
		 * away from the VM, and the folio is lost as it is.
		 */
		if (!err || err == -EHWPOISON)
			ef->home++;
	}
	return ef->home >= whole;
}

/*
 * memory_failure() may hold locks. The module stays: its exit unregisters and
 * waits for probes under way.
 */
static void escrow_poison_probe(void *data, unsigned long pfn, int type, int result)
{
	schedule_work(&poison_work);
}

static void escrow_poison_match(struct tracepoint *tp, void *data)
{
	if (!strcmp(tp->name, "memory_failure_event"))
		failures = tp;
}

void escrow_poison_init(void)
{
	for_each_kernel_tracepoint(escrow_poison_match, NULL);
	if (!failures)
		return; /* a kernel without CONFIG_MEMORY_FAILURE */
	if (tracepoint_probe_register(failures, escrow_poison_probe, NULL)) {
		pr_warn("memory that breaks while it is lent will not be noticed\n");
		failures = NULL;
	}
}

void escrow_poison_exit(void)
{
	if (failures)
		tracepoint_probe_unregister(failures, escrow_poison_probe, NULL);
	tracepoint_synchronize_unregister();
	cancel_work_sync(&poison_work);
}
