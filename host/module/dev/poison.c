// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 5: memory that breaks.
 *
 * memory_failure() marks the page, finds a folio that it cannot do anything
 * about (frozen, or on no list), and says so in a trace event; there is no
 * other way for a module to hear of it. The event is looked up by its name,
 * and only taken as a hint to look at all memories: its arguments have
 * changed between kernels, its meaning has not.
 */

#include <linux/bitmap.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <linux/workqueue.h>

#include "dev/dev.h"

static void escrow_poison_work(struct work_struct *work);

static DECLARE_WORK(poison_work, escrow_poison_work);
static struct tracepoint *failures;

/* Tells the VMM where its guest has lost pages. */
static void escrow_poison_tell(const struct escrow_losses_of_folio *lost)
{
	struct escrow_vm *vm;
	unsigned int page;

	if (bitmap_empty(lost->pages, ESCROW_HUGE_PAGES))
		return;
	vm = escrow_registry_find(lost->vm);
	if (!vm)
		return;
	for_each_set_bit(page, lost->pages, ESCROW_HUGE_PAGES) {
		u64 guest = lost->guest + PFN_PHYS(page);

		pr_warn_ratelimited("VM %#llx: memory at guest address %#llx is broken\n",
				    lost->vm, guest);
		escrow_vm_lose(vm, guest);
	}
	escrow_vm_wake_all(vm);
	escrow_vm_put(vm);
}

static void escrow_poison_look(struct escrow_mem *mem)
{
	struct address_space *mapping = escrow_mapping(mem);
	struct escrow_losses_of_folio lost;
	pgoff_t next = 0;
	int err;

	do {
		filemap_invalidate_lock(mapping);
		err = escrow_mem_break_next(mem, &next, &lost);
		filemap_invalidate_unlock(mapping);
		/*
		 * With -ENOMEM a part of the pages may have been handled: the VM is told of
		 * these now, and the loop goes on with the rest.
		 */
		escrow_poison_tell(&lost);
		if (err == -ENOMEM && !escrow_mem_top_up(mem, err, lost.vm)) {
			pr_warn("VM %#llx keeps broken memory: no memory\n", lost.vm);
			return;
		}
		cond_resched();
	} while (err != -ENOENT);
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
		/* A file without references is being released: all its pages are at home. */
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
 * Only schedules work: memory_failure() may hold locks here. The probe needs no reference to
 * the module, whose exit unregisters it and waits for calls that are under way.
 */
static void escrow_poison_probe(void *data, unsigned long pfn, int type, int result)
{
	WRITE_ONCE(escrow_may_be_poisoned, true);
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
	if (!failures) {
		/* Only CONFIG_MEMORY_FAILURE marks pages as broken. */
		escrow_may_be_poisoned = IS_ENABLED(CONFIG_MEMORY_FAILURE);
		return;
	}
	if (tracepoint_probe_register(failures, escrow_poison_probe, NULL)) {
		pr_warn("memory that breaks while it is lent will not be noticed\n");
		escrow_may_be_poisoned = true;
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
