// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 5: memory that breaks while a guest has it.
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

#include "dev/dev.h"

static void escrow_poison_work(struct work_struct *work);

static DECLARE_WORK(poison_work, escrow_poison_work);
static struct tracepoint *failures;

/* Tells the VMM where its guest has lost a page, once. */
static void escrow_poison_tell(u64 handle, u64 guest)
{
	struct escrow_vm *vm = escrow_registry_find(handle);

	if (!vm)
		return;
	pr_warn("VM %#llx: memory at guest address %#llx is broken\n", handle, guest);
	WRITE_ONCE(vm->broken, guest | ESCROW_BROKEN);
	escrow_vm_wake_all(vm);
	escrow_vm_put(vm);
}

static void escrow_poison_look(struct escrow_mem *mem)
{
	struct address_space *mapping = escrow_mapping(mem);
	u64 vm, guest;
	int err;

	do {
		struct escrow_folio *ef;

		filemap_invalidate_lock(mapping);
		ef = escrow_mem_find_broken(mem, &vm, &guest);
		err = ef ? escrow_mem_revoke_broken(mem, ef) : -ENOENT;
		filemap_invalidate_unlock(mapping);
		if (!err)
			escrow_poison_tell(vm, guest);
		else if (err != -ENOENT && err != -ENOMEM)
			pr_warn("VM %#llx keeps broken memory at %#llx: %d\n", vm, guest, err);
	} while (!err || escrow_mem_top_up(mem, err, vm));
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
