// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 5: /sys/kernel/debug/escrow/: what the module knows, a line for each memory and
 * each VM, and Escrow's log. Formats are documented in docs/shim.md; `escrow stat` reads them.
 */

#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/seq_file.h>
#include <linux/string_helpers.h>
#include <linux/uaccess.h>

#include "dev/dev.h"

static struct dentry *folder;

static int totals_show(struct seq_file *m, void *data)
{
	u64 totals[ESCROW_TOTALS];
	int i;

	escrow_totals(totals);
	for (i = 0; i < ESCROW_TOTALS; i++)
		seq_printf(m, "%s %llu\n", escrow_total_names[i], totals[i]);
	for (i = 0; i < ESCROW_EVENTS; i++)
		seq_printf(m, "%s %llu\n", escrow_event_names[i], escrow_event_total(i));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(totals);

/* A process can have any name: it is the last column, and its blanks are escaped. */
static void escrow_show_creator(struct seq_file *m, const struct escrow_listing *listing)
{
	seq_printf(m, " %d ", listing->creator);
	seq_escape(m, listing->comm, " \t\n\\");
	seq_putc(m, '\n');
}

static int memories_show(struct seq_file *m, void *data)
{
	struct escrow_mem *mem;

	seq_puts(m, "inode size present lent shared quarantined poisoned refusals retries creator name\n");
	mutex_lock(&escrow_memories.lock);
	list_for_each_entry(mem, &escrow_memories.head, listing.link) {
		u64 counts[ESCROW_COUNTS];
		int i;

		escrow_rs_counts(&mem->counts, counts);
		seq_printf(m, "%llu %lld", escrow_mem_id(mem), i_size_read(mem->inode));
		/* The columns are those of the header line, in the order of ESCROW_COUNT_*. */
		for (i = 0; i < ESCROW_COUNTS; i++)
			seq_printf(m, " %llu", counts[i]);
		escrow_show_creator(m, &mem->listing);
	}
	mutex_unlock(&escrow_memories.lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(memories);

static int holders_show(struct seq_file *m, void *data)
{
	struct escrow_mem *mem;

	seq_puts(m, "inode offset size references accesses name\n");
	mutex_lock(&escrow_memories.lock);
	list_for_each_entry(mem, &escrow_memories.head, listing.link)
		escrow_mem_show_holders(m, mem, false);
	mutex_unlock(&escrow_memories.lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(holders);

static int refusals_show(struct seq_file *m, void *data)
{
	struct escrow_mem *mem;

	seq_puts(m, "inode offset excess accessible by\n");
	mutex_lock(&escrow_memories.lock);
	list_for_each_entry(mem, &escrow_memories.head, listing.link)
		escrow_mem_show_refusal(m, mem, false);
	mutex_unlock(&escrow_memories.lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(refusals);

static const char *escrow_vm_state_name(enum escrow_vm_state state, bool started)
{
	switch (state) {
	case ESCROW_VM_LIVE:
		return started ? "started" : "created";
	case ESCROW_VM_DOWN:
		return "down";
	case ESCROW_VM_STUCK:
	case ESCROW_VM_ZOMBIE:
		return "zombie";
	case ESCROW_VM_CLOSED:
	case ESCROW_VM_DESTROYED:
	case ESCROW_VM_HOME:
		break;
	}
	return "ended";
}

static unsigned int escrow_vcpus(struct escrow_vm *vm)
{
	unsigned int i, count = 0;

	/* Without the lock a vCPU may be freed meanwhile: the pointers are not dereferenced. */
	for (i = 0; i < ARRAY_SIZE(vm->vcpus); i++)
		count += !!READ_ONCE(vm->vcpus[i]);
	return count;
}

static int vms_show(struct seq_file *m, void *data)
{
	struct escrow_vm *vm;

	seq_puts(m, "handle state vcpus mapped metadata free opened taken_back creator name\n");
	mutex_lock(&escrow_vms.lock);
	list_for_each_entry(vm, &escrow_vms.head, listing.link) {
		u64 handle = READ_ONCE(vm->borrower.handle), counts[ESCROW_COUNTS];
		struct escrow_vm_info info = {};
		enum escrow_vm_state state = escrow_vm_state(vm);
		/* A VM that is still being created has no handle. */
		int err = handle ? escrow_rs_vm_info(handle, &info) : -ENODEV;

		if (err && !escrow_vm_is_closed(vm))
			state = ESCROW_VM_CLOSED;

		escrow_rs_counts(&vm->metadata_counts, counts);
		seq_printf(m, "%#llx %s %u %llu %llu %llu %lld %lld", handle,
			   escrow_vm_state_name(state, info.started), escrow_vcpus(vm), info.mapped,
			   counts[ESCROW_COUNT_LENT] + counts[ESCROW_COUNT_QUARANTINED],
			   info.free, atomic64_read(&vm->borrower.opened),
			   atomic64_read(&vm->borrower.taken_back));
		escrow_show_creator(m, &vm->listing);
	}
	mutex_unlock(&escrow_vms.lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(vms);

/*
 * Escrow's log. The file's position is a position in the log. A read skips what the ring has
 * overwritten, and the file's position moves by that as well. A read ends before a gap.
 */
static ssize_t log_read(struct file *file, char __user *to, size_t count, loff_t *ppos)
{
	size_t done = 0;

	while (done < count) {
		u64 position = *ppos;
		u8 text[24];
		int size = escrow_rs_log_read(&position, text);
		size_t part;

		if (size < 0)
			return done ? (ssize_t)done : size;
		if (!size || (done && position != *ppos))
			break;
		part = min_t(size_t, size, count - done);
		if (copy_to_user(to + done, text, part))
			return done ? (ssize_t)done : -EFAULT;
		done += part;
		*ppos = position + part;
	}
	return done;
}

static const struct file_operations log_fops = {
	.owner = THIS_MODULE,
	.read = log_read,
	.llseek = default_llseek,
};

/* Errors of debugfs are ignored, as its documentation asks: the module works without it. */
void escrow_debugfs_init(void)
{
	folder = debugfs_create_dir("escrow", NULL);
	debugfs_create_file("totals", 0400, folder, NULL, &totals_fops);
	debugfs_create_file("memories", 0400, folder, NULL, &memories_fops);
	debugfs_create_file("vms", 0400, folder, NULL, &vms_fops);
	debugfs_create_file("holders", 0400, folder, NULL, &holders_fops);
	debugfs_create_file("refusals", 0400, folder, NULL, &refusals_fops);
	debugfs_create_file("log", 0400, folder, NULL, &log_fops);
}

/* Removes the files, and waits for reads that are under way. */
void escrow_debugfs_exit(void)
{
	debugfs_remove(folder);
}
